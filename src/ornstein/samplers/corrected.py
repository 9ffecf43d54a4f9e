"""Predictor-corrector plans: UniPC, SA-Solver, and Adams methods in any frame, one recursion.

The evaluation at the predicted state serves twice: it corrects the step that led there, and is remembered for the next ones,
so that a corrector costs no call. The same normal drives a step's prediction and its correction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from ornstein.grid import Grid, Spacing
from ornstein.process import GaussianProcess
from ornstein.samplers.frame import Frame
from ornstein.samplers.multistep import STARTS, Rule, multistep, polynomial
from ornstein.samplers.plan import Plan, Row, Terms
from ornstein.samplers.singlestep import exponential, step_rows


def _corrected(
    frame: Frame,
    name: str,
    calls: int,
    grid: str | Spacing | Grid,
    end: float | None,
    *,
    predictor: tuple[int, Rule],
    corrector: tuple[int, Rule],
    tau: float = 0.0,
    single: int = 0,
) -> Plan:
    """The recursion; predictor and corrector are (how many earlier evaluations they use, rule).

    Row k evaluates at the state predicted for t_k and then corrects the step from t_{k-1}; the last row denoises as well,
    or, with `end`, is at that time (times given as such are then one fewer than the calls). The first `single` steps are
    DPM-Solver++'s of order 3, three calls each.
    """
    jumps = frame.jumps(calls - 2 * single - (end is not None), grid, end)
    times = [t for t, _ in jumps] + ([end] if end is not None else [])
    rows: list[Row] = []
    seen: list[tuple[float, int]] = []  # (time, row) of the evaluations at the times, the latest first
    for k, t in enumerate(times):
        index, row = len(rows), Row(t, t, 1.0)
        if k > single:
            before = times[k - 1]
            decay, noise = frame.diffuse(before, t, tau)
            step = partial(_step, frame, before, t, index, decay)
            p, prior = step(seen[: predictor[0]], predictor[1])
            a, b = step([(t, index), *seen[: corrector[0]]], corrector[1])
            row = Row(t, t, a, b, noise, p, prior, noise)
        seen = [(t, index), *seen]
        if k < single:
            rows += step_rows(t, times[k + 1], exponential(frame, t, times[k + 1], 3))
        elif k == len(times) - 1 and end is None:
            rows.append(frame.denoise(t, row))
        else:
            rows.append(row)
    return Plan(name, frame.view, tuple(rows))


def _step(
    frame: Frame, t: float, s: float, index: int, decay: float, used: Sequence[tuple[float, int]], rule: Rule
) -> tuple[float, Terms]:
    """(a, terms) of the step t → s by the evaluations `used`, (time, row) each, as seen from row `index`."""
    on_x, terms = frame.step(t, s, rule([time for time, _ in used], t, s), decay)
    return on_x, tuple((index - used[j][1], w) for j, w in terms)


def unipc(
    process: GaussianProcess,
    calls: int,
    grid: str | Spacing | Grid = "log_snr",
    *,
    order: int = 3,
    variant: str = "bh2",
    end: float | None = None,
    starts: str = "climb",
) -> Plan:
    """UniPC-p on x0: predictor and corrector through the last p evaluations in lambda. Order p + 1.

    Exact polynomials, except where the paper puts a half: predictor of order 2 and corrector of order 1 weigh their only
    difference by alpha_s B(h)/2, with B = h ("bh1") or 1 - e^{-h} ("bh2") and h = lambda_s - lambda_t. Without the corrector
    UniPC-1 is DDIM and UniPC-2 (bh2) DPM-Solver++(2M). The early steps are of lower order, and so is the order of the whole
    in the limit of small steps unless `starts="single_step"`. Source: Zhao et al. 2023, arXiv 2302.04867.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order={order} is not one of 1, 2, 3")
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"variant={variant!r} is not one of bh1, bh2")
    if starts not in STARTS:
        raise ValueError(f"starts={starts!r} is not one of {', '.join(STARTS)}")
    frame = Frame(process, "x0")
    exact = polynomial(frame, "lambda")

    def half(nodes: Sequence[float], t: float, s: float) -> list[float]:
        low, step = frame.log_snr(t), frame.log_snr(s) - frame.log_snr(t)
        if len(nodes) != 2 or not math.isfinite(step):
            return exact(nodes, t, s)
        b = 0.5 * frame.growth(s) * (step if variant == "bh1" else -math.expm1(-step))
        other = frame.log_snr(nodes[0] if nodes[1] == t else nodes[1])
        ratio = (other - low) / step  # 1 for the corrector, negative for the predictor, 0 for a node without signal
        whole, slope = frame.constant(t, s), b / ratio if math.isfinite(ratio) else 0.0
        return [slope, whole - slope] if nodes[1] == t else [whole - slope, slope]

    single = order if starts == "single_step" and calls > 3 * order + 1 else 0
    return _corrected(
        frame, f"unipc({order}, {variant})", calls, grid, end, predictor=(order, half), corrector=(order, half), single=single
    )


def sa_solver(
    process: GaussianProcess,
    calls: int,
    grid: str | Spacing | Grid = "log_snr",
    *,
    predictor: int = 2,
    corrector: int = 2,
    tau: float = 1.0,
    end: float | None = None,
) -> Plan:
    """SA-Solver: stochastic Adams predictor of `predictor` steps and corrector of `corrector` steps (0: none), noise tau·g.

    tau = 0 is deterministic, where predictor p and corrector p are UniPC-p with exact polynomials; predictor 1, corrector 0
    and tau = 1 is DDIM(1). Weak order 2 from predictor 2 or corrector 1 on (tau = 0: order
    min(predictor, corrector) + 1); exact in law for constant x0.
    Source: Xue et al. 2023, arXiv 2309.05019.
    """
    if predictor < 1 or corrector < 0 or tau < 0:
        raise ValueError(f"predictor={predictor}, corrector={corrector}, tau={tau} must be at least 1, 0 and 0")
    frame, name = Frame(process, "x0"), f"sa_solver({predictor}, {corrector}, tau={tau:g})"
    rule = polynomial(frame, "lambda", tau)
    if corrector == 0:
        return multistep(frame, name, calls, grid, predictor, end, rule, tau=tau)
    return _corrected(frame, name, calls, grid, end, predictor=(predictor, rule), corrector=(corrector, rule), tau=tau)


def adams(
    process: GaussianProcess,
    calls: int,
    grid: str | Spacing | Grid = "vp_time",
    *,
    view: str = "v",
    variable: str = "lambda",
    order: int = 2,
    correct: bool = True,
    end: float | None = None,
) -> Plan:
    """Adams-Bashforth predictor through the last `order` evaluations, and Adams-Moulton corrector (`correct`), in any frame.

    `view` is "v", "x0" or "eps"; the polynomial is in `variable` "lambda", "t" or "growth" (of the frame: the angle
    atan(sigma/alpha) for v, sigma/alpha for eps, alpha/sigma for x0). Order `order` without, order + 1 with corrector, at most 3
    for the warm-up climbs from 1. In the v view x turns by the angle, dX = v d angle, with no factor that explodes at either
    end: at few calls its error is several times smaller than in the other two. x0 in lambda is UniPC with exact
    polynomials, eps in "growth" without corrector `lms`, eps in "t" without corrector `deis`.
    Source: Zhao et al. 2023, arXiv 2302.04867 for the corrector; Salimans and Ho 2022, arXiv 2202.00512 for v.
    """
    if variable not in ("lambda", "t", "growth"):
        raise ValueError(f"variable={variable!r} is not one of lambda, t, growth")
    if order < 1:
        raise ValueError(f"order={order} must be at least 1")
    frame = Frame(process, view)
    name = f"adams({view} in {variable}, {order}{', corrected' if correct else ''})"
    rule = polynomial(frame, {"growth": "r"}.get(variable, variable))
    if correct:
        return _corrected(frame, name, calls, grid, end, predictor=(order, rule), corrector=(order, rule))
    return multistep(frame, name, calls, grid, order, end, rule)
