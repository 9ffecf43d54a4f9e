"""Plans that remember earlier evaluations: Adams-Bashforth methods in every frame and variable, PNDM, DPM-Solver multistep.

All are one recursion (`multistep`): a rule says how much each remembered H weighs in the step t → s. At the start, where too
few are remembered, the order climbs from 1, or with `starts="single_step"` the first steps are DPM-Solver-3's, so that the
warm-up does not cap the order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ornstein.grid import Grid, Spacing
from ornstein.process import GaussianProcess
from ornstein.samplers.frame import Frame
from ornstein.samplers.plan import Plan, Row
from ornstein.samplers.singlestep import TABLEAUX, Stage, Stepping, exponential, step_rows

STARTS = ("climb", "single_step")

Rule = Callable[[Sequence[float], float, float], list[float]]
"""(nodes, t, s) -> weights in the frame: of the H at `nodes` (times, the latest first) in the step from t to s."""


def multistep(
    frame: Frame,
    name: str,
    calls: int,
    grid: str | Spacing | Grid,
    order: int,
    end: float | None,
    rule: Rule,
    *,
    starts: str = "climb",
    tau: float = 0.0,
) -> Plan:
    """The plan of a rule that looks back at `order` evaluations, with noise tau·g (see `Frame.diffuse`)."""
    if starts not in STARTS:
        raise ValueError(f"starts={starts!r} is not one of {', '.join(STARTS)}")
    single = order - 1 if starts == "single_step" and calls > 3 * order else 0
    rows: list[Row] = []
    seen: list[tuple[float, int]] = []  # (time, index of the row that evaluated H there), the latest first
    for k, (t, s) in enumerate(frame.jumps(calls - 2 * single, grid, end)):
        seen = [(t, len(rows)), *seen][:order]
        if s is None:
            rows.append(frame.denoise(t))
        elif k < single:
            rows += step_rows(t, s, exponential(frame, t, s, 3))
        else:
            decay, noise = frame.diffuse(t, s, tau)
            a, terms = frame.step(t, s, rule([time for time, _ in seen], t, s), decay)
            rows.append(Row(t, s, a, tuple((len(rows) - seen[j][1], w) for j, w in terms), noise))
    return Plan(name, frame.view, tuple(rows))


def polynomial(frame: Frame, variable: str, tau: float = 0.0) -> Rule:
    """Exact integrals of the polynomial through the nodes in `variable`."""
    return lambda nodes, t, s: frame.integrals(variable, nodes, t, s, tau)


def _difference(frame: Frame, tau: float = 0.0) -> Rule:
    """DPM-Solver's weights: a half of the last difference at order 2, exact quadratics at order 3."""

    def rule(nodes: Sequence[float], t: float, s: float) -> list[float]:
        if len(nodes) != 2:
            return frame.integrals("lambda", nodes, t, s, tau)
        whole, low = frame.constant(t, s, tau), frame.log_snr(nodes[1])
        # the difference vanishes after a step that started at alpha = 0, where lambda is infinite
        extra = 0.5 * (frame.log_snr(s) - frame.log_snr(t)) / (frame.log_snr(t) - low)
        return [whole * (1 + extra), -whole * extra]

    return rule


def lms(
    process: GaussianProcess,
    calls: int,
    grid: str | Spacing | Grid = "karras",
    *,
    order: int = 4,
    end: float | None = None,
    starts: str = "climb",
) -> Plan:
    """Linear multistep: Adams-Bashforth for x/alpha in rho = sigma/alpha through the last `order` eps, weights exact.

    Order `order` with exact starts. Equals DEIS ρAB of degree order - 1; k-diffusion's `sample_lms` has order 4.
    Source: Katherine Crowson's k-diffusion; Zhang and Chen 2023, arXiv 2204.13902.
    """
    frame = Frame(process, "eps")
    return multistep(frame, f"lms({order})", calls, grid, _positive(order), end, polynomial(frame, "r"), starts=starts)


def deis(
    process: GaussianProcess,
    calls: int,
    grid: str | Spacing | Grid = "quadratic",
    *,
    degree: int = 3,
    variable: str = "t",
    end: float | None = None,
    starts: str = "climb",
) -> Plan:
    """DEIS: eps is extrapolated by a polynomial of `degree` in t (tAB) or in rho = sigma/alpha (ρAB), its integral exact.

    Order degree + 1 with exact starts; degree 0 is DDIM. Variable "rho" equals `lms` of order degree + 1.
    Source: Zhang and Chen 2023, arXiv 2204.13902, section 3.3.
    """
    if variable not in ("t", "rho"):
        raise ValueError(f"variable={variable!r} is not one of t, rho")
    frame = Frame(process, "eps")
    rule = polynomial(frame, "t" if variable == "t" else "r")
    return multistep(frame, f"deis({variable}AB{degree})", calls, grid, _positive(degree + 1), end, rule, starts=starts)


def dpm_solver_multistep(
    process: GaussianProcess,
    calls: int,
    grid: str | Spacing | Grid = "log_snr",
    *,
    order: int = 2,
    end: float | None = None,
    starts: str = "climb",
) -> Plan:
    """DPM-Solver multistep on eps, order 1 (= DDIM), 2 or 3: `dpm_solver_pp` in the other frame.

    Source: Lu et al. 2022, arXiv 2206.00927 and 2211.01095, appendix.
    """
    frame = Frame(process, "eps")
    return multistep(frame, f"dpm_solver({order}M)", calls, grid, _up_to_three(order), end, _difference(frame), starts=starts)


def dpm_solver_pp(
    process: GaussianProcess,
    calls: int,
    grid: str | Spacing | Grid = "log_snr",
    *,
    order: int = 2,
    end: float | None = None,
    starts: str = "climb",
) -> Plan:
    """DPM-Solver++ multistep on the data prediction, order 1 (= DDIM), 2 (2M) or 3 (3M).

    With lambda = log(alpha/sigma), h = lambda_s - lambda_t and r = h_previous/h, order 2 is
    x_s = (sigma_s/sigma_t) x + alpha_s (1 - e^{-h}) ((1 + 1/(2r)) x0 - 1/(2r) x0_previous). Order 3 integrates the parabola
    through the last three x0 in lambda exactly; the update of that name which is widely copied gives the second difference
    half its weight and is of order 2 (`Frame.integrals` has the exact weights). Source: Lu et al. 2022, arXiv 2211.01095.
    """
    frame = Frame(process, "x0")
    return multistep(frame, f"dpm_solver_pp({order}M)", calls, grid, _up_to_three(order), end, _difference(frame), starts=starts)


def dpm_solver_pp_sde(
    process: GaussianProcess,
    calls: int,
    grid: str | Spacing | Grid = "log_snr",
    *,
    order: int = 2,
    end: float | None = None,
) -> Plan:
    """SDE-DPM-Solver++ multistep: the reverse equation with x0 extrapolated in lambda; order 1 (= DDIM(1)), 2 (2M) or 3 (3M).

    x_s = (sigma_s/sigma_t) e^{-h} x + alpha_s (1 - e^{-2h}) (x0 + (x0 - x0_previous)/(2r)) + sigma_s sqrt(1 - e^{-2h}) z at
    order 2, the exact parabola at order 3. Exact in law for constant x0; weak order 2 from order 2 on. `sa_solver` with
    tau = 1 has exact polynomials at every order. Source: Lu et al. 2022, arXiv 2211.01095, section 5.
    """
    frame = Frame(process, "x0")
    rule = _difference(frame, tau=1.0)
    return multistep(frame, f"dpm_solver_pp_sde({order}M)", calls, grid, _up_to_three(order), end, rule, tau=1.0)


ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Weights of the last 1 … 4 evaluations on equal steps."""


def ipndm(
    process: GaussianProcess,
    calls: int,
    grid: str | Spacing | Grid = "uniform",
    *,
    order: int = 4,
    end: float | None = None,
    starts: str = "climb",
) -> Plan:
    """iPNDM: DDIM steps with eps replaced by the Adams-Bashforth mean of the last 1, 2, 3, … `order`, weights of equal steps.

    Order 2 at most, whatever the grid: the weights are those of equal steps in a variable in which the steps are not equal
    (order 1 for `order` = 1, DDIM). No call beyond one a step, unlike `pndm`. Source: Zhang and Chen 2023, arXiv 2204.13902.
    """
    if not 1 <= order <= 4:
        raise ValueError(f"order={order} is not one of 1, 2, 3, 4")
    frame = Frame(process, "eps")
    return multistep(frame, f"ipndm({order})", calls, grid, order, end, _equal_steps(frame), starts=starts)


def pndm(process: GaussianProcess, calls: int, grid: str | Spacing | Grid = "uniform", *, end: float | None = None) -> Plan:
    """PNDM: three pseudo Runge-Kutta steps of four calls, then the four-term Adams-Bashforth mean with DDIM's transfer.

    n steps cost n + 9 calls, the last denoise included. Order 2, measured 1.4 to 2 (`ipndm` says why not 4).
    Source: Liu et al. 2022, arXiv 2202.09778, algorithm 2.
    """
    if calls < 13:
        raise ValueError(f"calls={calls}: PNDM's warm-up alone takes 12; ask for at least 13, or use ipndm")
    frame = Frame(process, "eps")
    rows: list[Row] = []
    seen: list[int] = []
    rule = _equal_steps(frame)
    for k, (t, s) in enumerate(frame.jumps(calls - 9, grid, end)):
        seen = [len(rows), *seen][:4]
        if s is None:
            rows.append(frame.denoise(t))
        elif k < 3:
            rows += step_rows(t, s, _pseudo_rk4(frame, t, s))
        else:
            a, terms = frame.step(t, s, rule([t] * 4, t, s))
            rows.append(Row(t, s, a, tuple((len(rows) - seen[j], w) for j, w in terms)))
    return Plan("pndm", "eps", tuple(rows))


def _equal_steps(frame: Frame) -> Rule:
    """DDIM's transfer of the Adams-Bashforth mean of equal steps."""
    return lambda nodes, t, s: [frame.constant(t, s) * w for w in ADAMS_BASHFORTH[len(nodes) - 1]]


def _pseudo_rk4(frame: Frame, t: float, s: float) -> Stepping:
    """RK4 with every Euler step replaced by DDIM's transfer, the middle in t."""
    tableau, middle = TABLEAUX["rk4"], (t + s) / 2
    times = (t, middle, middle, s)
    stages = []
    for time, ws in zip(times, tableau.stages, strict=True):
        a, terms = frame.step(t, time, [frame.constant(t, time) * (w > 0) for w in ws])
        weights = dict(terms)
        stages.append(Stage(time, a, tuple(weights.get(j, 0.0) for j in range(len(ws)))))
    a, terms = frame.step(t, s, [frame.constant(t, s) * w for w in tableau.weights])
    return Stepping(tuple(stages), a, tuple(w for _, w in terms))


def _positive(order: int) -> int:
    if order < 1:
        raise ValueError(f"order={order} must be at least 1 (degree at least 0)")
    return order


def _up_to_three(order: int) -> int:
    if order not in (1, 2, 3):
        raise ValueError(f"order={order} is not one of 1, 2, 3")
    return order
