"""Plans that remember earlier evaluations: DPM-Solver++ (multistep)."""

from __future__ import annotations

import math

from ornstein.grid import Grid, Spacing, make
from ornstein.process import GaussianProcess
from ornstein.samplers.onestep import _floats, _jumps
from ornstein.samplers.plan import Plan, Row


def dpm_solver_pp(process: GaussianProcess, calls: int, grid: str | Spacing | Grid = "log_snr", *, order: int = 2) -> Plan:
    """DPM-Solver++ multistep on the data prediction, order 1 (= DDIM) or 2 (2M); the first step is always of order 1.

    With lambda = log(alpha/sigma), h = lambda_s - lambda_t and r = h_previous/h:
    x_s = (sigma_s/sigma_t) x + alpha_s (1 - e^{-h}) ((1 + 1/(2r)) x0 - 1/(2r) x0_previous).
    Source: Lu et al. 2022, arXiv 2211.01095, algorithm 2.
    """
    if order not in (1, 2):
        raise ValueError(f"order={order} is not one of 1, 2")
    rows: list[Row] = []
    previous: float | None = None
    for t, s in _jumps(make(process, calls, grid)):
        (_, sigma_t), (alpha_s, sigma_s) = _floats(process, t), _floats(process, s)
        if s is None:
            rows.append(Row(t, s, 0.0, ((0, 1.0),)))
            continue
        h = float(process.log_ratio(t) - process.log_ratio(s))
        weight = -alpha_s * math.expm1(-h)
        # r is infinite after a step that started at alpha = 0, and the correction vanishes with 1/r
        extra = 0.0 if order == 1 or previous is None else 0.5 * h / previous
        terms = ((0, weight * (1 + extra)), *(((1, -weight * extra),) if extra else ()))
        rows.append(Row(t, s, sigma_s / sigma_t, terms))
        previous = h
    return Plan(f"dpm_solver_pp({order}M)", "x0", tuple(rows))


def default_plan(process: GaussianProcess, calls: int) -> Plan:
    """The plan that `sample(calls=…)` runs: DPM-Solver++(2M) on Karras's grid."""
    return dpm_solver_pp(process, calls, "karras")
