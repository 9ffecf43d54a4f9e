"""Plans that look ahead within a step: Runge-Kutta in several variables, EDM's Heun with churn, DPM-Solver 2 and 3, ++2S.

A step is a list of stages (time, weights on x and on the earlier evaluations of the step) and a last line of weights;
`step_rows` turns it into rows. A method with m stages makes as many steps as the calls allow, and calls left over go unused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ornstein.grid import Grid, Spacing
from ornstein.process import GaussianProcess
from ornstein.samplers.frame import Array, Frame, floats
from ornstein.samplers.plan import Plan, Row

Weights = tuple[float, ...]
Numbers = float | Array
Column = tuple[Numbers, ...]


@dataclass(frozen=True)
class Tableau:
    """A Runge-Kutta method: nodes c, the rows of A below the diagonal, weights b, and its order.

    `error`, of an embedded pair, holds the differences of the two methods' weights, the last for the slope after the step.
    """

    nodes: Weights
    stages: tuple[Weights, ...]
    weights: Weights
    order: int
    error: Weights = ()


TABLEAUX: dict[str, Tableau] = {
    "euler": Tableau((0.0,), ((),), (1.0,), 1),
    "midpoint": Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0), 2),
    "heun": Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5), 2),
    "kutta3": Tableau((0.0, 0.5, 1.0), ((), (0.5,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6), 3),
    "rk4": Tableau((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4),
    "dormand_prince": Tableau(
        (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        5,
        (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    ),
}
"""Source: Kutta 1901; Dormand and Prince 1980 for the pair of orders 5 and 4."""


@dataclass(frozen=True)
class Stage:
    """Evaluate at `time` the state on_x·x + Σ_j weights[j]·H_j, H_j the j-th evaluation of the same step."""

    time: float
    on_x: float
    weights: Weights = ()


@dataclass(frozen=True)
class Stepping:
    """A step from t to s: its stages, and the state after it, on_x·x + Σ_j weights[j]·H_j."""

    stages: tuple[Stage, ...]
    on_x: float
    weights: Weights


def step_rows(t: float, s: float, step: Stepping, lift: float = 1.0, noise: float = 0.0) -> list[Row]:
    """The rows of a step; `lift` and `noise` change x to lift·x + noise·z before its first stage."""
    rows = []
    for i, stage in enumerate(step.stages):
        prior = tuple((i - j, w) for j, w in enumerate(stage.weights) if w)
        last = i == len(step.stages) - 1
        b = tuple((i - j, w) for j, w in enumerate(step.weights) if w) if last else ()
        if i == 0 and (lift != 1 or noise):
            a = step.on_x * lift if last else lift
            rows.append(Row(stage.time, s if last else t, a, b, (step.on_x if last else 1.0) * noise, lift, (), noise))
        else:
            rows.append(Row(stage.time, s if last else t, step.on_x if last else 1.0, b, p=stage.on_x, prior=prior))
    return rows


def _framed(frame: Frame, t: float, s: float, inner: list[tuple[float, Weights]], weights: Weights) -> Stepping:
    """A step whose stages (time, W) and last weights are given in the frame, where x has no drift."""
    scale = frame.scale(t)
    stages = [Stage(u, frame.scale(u) / scale, tuple(frame.scale(u) * w for w in ws)) for u, ws in inner]
    return Stepping(tuple(stages), frame.scale(s) / scale, tuple(frame.scale(s) * w for w in weights))


def _in_growth(frame: Frame, t: float, s: float, tableau: Tableau) -> Stepping:
    """A Runge-Kutta step in the frame's growth r: for the eps view, x/alpha stepped in sigma/alpha."""
    start, h = frame.growth(t), frame.growth(s) - frame.growth(t)
    times = [t if c == 0 else s if c == 1 else frame.time_at(-math.log(start + c * h)) for c in tableau.nodes]
    inner = [(u, tuple(h * w for w in ws)) for u, ws in zip(times, tableau.stages, strict=True)]
    return _framed(frame, t, s, inner, tuple(h * w for w in tableau.weights))


def _in_time(process: GaussianProcess, t: float, s: float, tableau: Tableau) -> Stepping:
    """A Runge-Kutta step of dx/dt = f x + g²/(2 sigma) eps, every stage written out in x and the H_j."""
    h, m = s - t, len(tableau.nodes)
    slopes: list[list[float]] = []  # weights of dx/dt at a stage on (x, H_0 … H_{m-1})
    stages: list[Stage] = []

    def state(ws: Weights) -> list[float]:
        return [(k == 0) + h * sum(w * slope[k] for w, slope in zip(ws, slopes, strict=False)) for k in range(m + 1)]

    for i, (c, ws) in enumerate(zip(tableau.nodes, tableau.stages, strict=True)):
        u = t + c * h
        f, half = float(process.drift(u)), float(process.diffusion(u)) ** 2 / (2 * floats(process, u)[1])
        y = state(ws)
        stages.append(Stage(u, y[0], tuple(y[1 : i + 1])))
        slopes.append([f * w + half * (k == i + 1) for k, w in enumerate(y)])
    end = state(tableau.weights)
    return Stepping(tuple(stages), end[0], tuple(end[1:]))


def exponential(frame: Frame, t: float, s: float, order: int) -> Stepping:
    """DPM-Solver's step of order 1, 2 or 3 in lambda, for the eps view or (++) the x0 view.

    With k the change of log r: order 2 looks at k/2, order 3 at k/3 and 2k/3. A step from where alpha = 0 is of order 1.
    """
    low, high = frame.log_snr(t), frame.log_snr(s)
    if order == 1 or not math.isfinite(low):
        return _framed(frame, t, s, [(t, ())], (frame.growth(s) - frame.growth(t),))
    k, r = (high - low) * (1 if frame.view == "x0" else -1), frame.growth(t)
    stages, last = exponential_weights(r, k, order)
    inner = [(frame.time_at(low + part * (high - low)) if part else t, tuple(map(float, ws))) for part, ws in stages]
    return _framed(frame, t, s, inner, tuple(map(float, last)))


def exponential_weights(r: Numbers, k: Numbers, order: int, node: float = 1 / 2) -> tuple[list[tuple[float, Column]], Column]:
    """Stages (part of the step, weights on earlier H) and last weights, in the frame, of a step over k = log r_s - log r_t.

    Order 1 is Euler's, order 2 looks at `node`, order 3 at 1/3 and 2/3; r = r_t and k are numbers, or arrays with an entry
    per sample. Source: Lu et al. 2022, arXiv 2206.00927, appendix B.
    """
    whole = r * np.expm1(k)
    if order == 1:
        return [(0.0, ())], (whole,)
    if order == 2:
        bent = whole / (2 * node)
        return [(0.0, ()), (node, (r * np.expm1(node * k),))], (whole - bent, bent)
    bend, last = 2 * r * _ramp(2 * k / 3), 1.5 * r * _ramp(k)
    second = (r * np.expm1(2 * k / 3) - bend, bend)
    return [(0.0, ()), (1 / 3, (r * np.expm1(k / 3),)), (2 / 3, second)], (whole - last, 0.0 * whole, last)


def _ramp(k: Numbers) -> Numbers:
    """∫_0^k e^u (u/k) du, without the cancellation of its closed form at small k."""
    small = np.abs(k) <= 1e-2
    safe = np.where(small, 1.0, k)
    series = k / 2 + k**2 / 3 + k**3 / 8 + k**4 / 30 + k**5 / 144
    return np.where(small, series, np.exp(safe) - np.expm1(safe) / safe)


Step = Callable[[Frame, float, float, int], Stepping]


def _assemble(frame: Frame, name: str, pattern: list[int], grid: str | Spacing | Grid, end: float | None, step: Step) -> Plan:
    """A plan of one step per entry of `pattern` (its order), then the final denoise unless it stops at `end`."""
    rows: list[Row] = []
    for order, (t, s) in zip([*pattern, 1], frame.jumps(len(pattern) + (end is None), grid, end), strict=False):
        rows += [frame.denoise(t)] if s is None else step_rows(t, s, step(frame, t, s, order))
    return Plan(name, frame.view, tuple(rows))


def _repeated(calls: int, stages: int, end: float | None) -> list[int]:
    """As many steps of `stages` calls as fit, a call being kept for the final denoise."""
    if calls < (1 if end is None else stages):
        raise ValueError(f"calls={calls} do not suffice for a step of {stages} calls; ask for at least {stages}")
    return [stages] * ((calls - (end is None)) // stages)


def runge_kutta(
    process: GaussianProcess,
    calls: int,
    grid: str | Spacing | Grid = "uniform",
    *,
    method: str = "heun",
    variable: str = "t",
    end: float | None = None,
) -> Plan:
    """A Runge-Kutta method of `TABLEAUX` on the probability flow, of the order in that table.

    `variable` "t": dx/dt = f x + g²/(2 sigma) eps, linear drift included (method "euler" is the probability-flow Euler of Song
    et al. 2021, arXiv 2011.13456). "ratio": y = x/alpha stepped in rho = sigma/alpha, dy/d rho = eps, exact for constant eps:
    DEIS's ρRK (Zhang and Chen 2023, arXiv 2204.13902), with "euler" = DDIM, with "heun" = `heun` without churn.
    """
    if method not in TABLEAUX:
        raise ValueError(f"method={method!r} is not one of {', '.join(TABLEAUX)}")
    if variable not in ("t", "ratio"):
        raise ValueError(f"variable={variable!r} is not one of t, ratio")
    tableau, frame = TABLEAUX[method], Frame(process, "eps")

    def step(frame: Frame, t: float, s: float, order: int) -> Stepping:
        return _in_time(process, t, s, tableau) if variable == "t" else _in_growth(frame, t, s, tableau)

    pattern = _repeated(calls, len(tableau.nodes), end)
    return _assemble(frame, f"runge_kutta({method}, {variable})", pattern, grid, end, step)


def probability_flow_euler(
    process: GaussianProcess, calls: int, grid: str | Spacing | Grid = "uniform", *, end: float | None = None
) -> Plan:
    """Euler on the probability flow in t: x_s = (1 - h f) x - h g²/(2 sigma) eps, h = t - s. Order 1.

    The drift-discretising neighbour of `ddim`; `euler_maruyama` is its stochastic one. Source: arXiv 2011.13456, eq. 13.
    """
    return runge_kutta(process, calls, grid, method="euler", end=end)


def midpoint(
    process: GaussianProcess,
    calls: int,
    grid: str | Spacing | Grid = "karras",
    *,
    variable: str = "ratio",
    end: float | None = None,
) -> Plan:
    """The midpoint rule on the probability flow, in rho = sigma/alpha ("ratio") or in t. Order 2, two calls a step.

    EDM's general second-order step with its middle at ½ (Karras et al. 2022, arXiv 2206.00364, appendix C); `dpm_solver` of
    order 2 looks at the middle in lambda instead.
    """
    return runge_kutta(process, calls, grid, method="midpoint", variable=variable, end=end)


def heun(
    process: GaussianProcess,
    calls: int,
    grid: str | Spacing | Grid = "karras",
    *,
    churn: float = 0.0,
    churn_low: float = 0.05,
    churn_high: float = 50.0,
    noise_scale: float = 1.003,
    end: float | None = None,
) -> Plan:
    """EDM's Heun sampler: the trapezoid rule for y = x/alpha in rho = sigma/alpha, dy/d rho = eps. Order 2 without churn.

    n times cost 2n - 1 calls (the last step, to clean data, is a plain denoise), the largest n with 2n - 1 ≤ calls.
    `churn` (S_churn) raises the noise of a step from rho to rho·(1 + min(churn/n, √2 - 1)) where churn_low ≤ rho ≤ churn_high,
    with normals scaled by `noise_scale`, never above the process's own largest noise.
    Source: Karras et al. 2022, arXiv 2206.00364, algorithm 2.
    """
    frame, rows = Frame(process, "eps"), []
    jumps = frame.jumps(len(_repeated(calls, 2, end)) + (end is None), grid, end)
    gamma = min(churn / len(jumps), math.sqrt(2) - 1)
    for t, s in jumps:
        if s is None:
            rows.append(frame.denoise(t))
            continue
        high, lift, noise, rho = t, 1.0, 0.0, frame.growth(t)
        if gamma > 0 and churn_low <= rho <= churn_high:
            high = frame.time_at(-math.log(rho * (1 + gamma)))
            raised = max(frame.growth(high) ** 2 - rho**2, 0.0)
            lift, noise = frame.scale(high) / frame.scale(t), frame.scale(high) * math.sqrt(raised) * noise_scale
        rows += step_rows(high, s, _in_growth(frame, high, s, TABLEAUX["heun"]), lift, noise)
    return Plan(f"heun(churn={churn:g})" if churn else "heun", "eps", tuple(rows))


def deis_rho_rk(
    process: GaussianProcess,
    calls: int,
    grid: str | Spacing | Grid = "karras",
    *,
    method: str = "kutta3",
    end: float | None = None,
) -> Plan:
    """DEIS ρRK: Runge-Kutta for x/alpha in rho = sigma/alpha; "heun" 2, "kutta3" 3, "rk4" 4 are order and calls per step.

    Source: Zhang and Chen 2023, arXiv 2204.13902, section 3.4; "heun" equals EDM's.
    """
    return runge_kutta(process, calls, grid, method=method, variable="ratio", end=end)


def dpm_solver(
    process: GaussianProcess,
    calls: int,
    grid: str | Spacing | Grid = "log_snr",
    *,
    order: int = 3,
    fast: bool = True,
    end: float | None = None,
) -> Plan:
    """DPM-Solver single-step on eps, order 1 (= DDIM), 2 (midpoint in lambda) or 3.

    With `fast` every call is used: N calls of order 3 are [3]·(K-2) + [2, 1], [3]·(K-1) + [1] or [3]·(K-1) + [2] with
    K = ⌊N/3⌋ + 1, and an odd call of order 2 is a step of order 1. Without it only whole steps are made, for which the
    declared order holds. Source: Lu et al. 2022, arXiv 2206.00927, algorithms 1-2, appendix D.
    """
    return _dpm(Frame(process, "eps"), "dpm_solver", calls, grid, order, fast, end)


def dpm_solver_pp_single(
    process: GaussianProcess,
    calls: int,
    grid: str | Spacing | Grid = "log_snr",
    *,
    order: int = 2,
    fast: bool = True,
    end: float | None = None,
) -> Plan:
    """DPM-Solver++ single-step on x0, order 1 (= DDIM), 2 (2S) or 3: `dpm_solver` in the other frame.

    Source: Lu et al. 2022, arXiv 2211.01095, algorithm 1.
    """
    return _dpm(Frame(process, "x0"), "dpm_solver_pp_single", calls, grid, order, fast, end)


def _dpm(frame: Frame, name: str, calls: int, grid: str | Spacing | Grid, order: int, fast: bool, end: float | None) -> Plan:
    if order not in (1, 2, 3):
        raise ValueError(f"order={order} is not one of 1, 2, 3")
    pattern = _fast(calls - (end is None), order) if fast and calls > 0 else _repeated(calls, order, end)
    return _assemble(frame, f"{name}({order}S)", pattern, grid, end, exponential)


def _fast(calls: int, order: int) -> list[int]:
    """Orders of the steps that use exactly so many calls."""
    if order < 3:
        return [order] * (calls // order) + [1] * (calls % order)
    whole, rest = divmod(calls, 3)
    if rest == 0:
        return [3] * (whole - 1) + [2, 1] if whole else []
    return [3] * whole + [rest]
