"""RePaint: replacement of the measured part, with time travel that lets the rest make its peace with it.

    algorithm 1        `Replacement` after each row, then a step back by the forward kernel: `TimeTravel`
    section 4.2        resamplings U and jump length j, as one longer plan: `travelled`

Source: Lugmayr et al. 2022, arXiv 2201.09865.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from ornstein.denoiser import Condition, Denoises
from ornstein.files import InputError
from ornstein.guidance.given import Given
from ornstein.guidance.observed import Replacement
from ornstein.noise import Noise
from ornstein.process import GaussianProcess, align
from ornstein.samplers import Plan, Step, run


def repaint(
    denoiser: Denoises,
    plan: Plan,
    x: Tensor,
    given: Given,
    *,
    noise: Noise,
    cond: Condition = None,
    first: int = 0,
    ticks: Iterator[object] | None = None,
    resamplings: int = 10,
    jump: int = 10,
) -> Tensor:
    """Draws x0 (B, *) from a start x (B, *) of the prior by a plan of one-step rows (ddim, ancestral) run back and forth.

    After each row A⁺A x ← alpha A⁺y + sigma A⁺A eps at the level reached (`Replacement`). After every `jump` rows the whole
    state goes back as many by the forward kernel, x_t = (alpha_t/alpha_s) x_s + std·z, and down again, until these rows have
    run `resamplings` times; from the state so noised, which the baseline of MCG's public code forgets. One resampling equals
    `Replacement` bit for bit. A measurement without noise is kept to rounding; one with noise is kept too, which is not the
    posterior. `repaint_calls` says how many network calls that is. Noise is keyed by pass. InputError for an A that is not
    linear, a plan that `travelled` refuses, or numbers below 1. Source: Lugmayr et al. 2022, arXiv 2201.09865, algorithm 1.
    """
    passes = travelled(plan, resamplings, jump)
    hook = TimeTravel(Replacement(given, denoiser.process), denoiser.process, passes)
    return run(denoiser, passes, x, noise=noise, cond=cond, first=first, after=hook, ticks=ticks)


def repaint_calls(plan: Plan, resamplings: int = 10, jump: int = 10) -> int:
    """Network calls of `repaint`: N + (resamplings - 1)·jump·(ceil(N/jump) - 1) for N rows, 910 for 100 of them by default."""
    return len(_order(plan.calls, resamplings, jump))


def travelled(plan: Plan, resamplings: int = 10, jump: int = 10) -> Plan:
    """The plan with its rows in the order that RePaint runs them, one row per pass; a row may begin above where the last ended.

    The level before the last row, and every `jump`-th above it that has `jump` rows above itself, is a turning point.
    InputError for rows that look ahead, remember, or do not move on (heun, adams, pndm: a state taken back would meet old
    evaluations), or a plan too short for a jump.
    """
    levels = [*plan.times, None]
    for k, row in enumerate(plan.rows):
        one_step = row.p == 1 and not row.prior and row.q == 0 and all(lag == 0 for lag, _ in row.b)
        if not one_step or row.s != levels[k + 1] or (row.s is not None and row.s >= row.t):
            raise InputError(
                f"repaint goes back and forth on rows that each make one step of their own; row {k} of {plan.name!r} does not: "
                "take ddim, ancestral or dpm_solver_multistep of order 1"
            )
    rows = tuple(plan.rows[k] for k in _order(plan.calls, resamplings, jump))
    return replace(plan, name=f"{plan.name}, {resamplings} resamplings of {jump} rows", rows=rows, calibration=None)


def _order(rows: int, resamplings: int, jump: int) -> list[int]:
    """The rows by number in the order of the passes."""
    for name, value in (("resamplings", resamplings), ("jump", jump)):
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1; the paper's is 10")
    if resamplings > 1 and jump >= rows:
        raise InputError(
            f"jump={jump} needs a plan of more than {jump} rows, this has {rows}; give more calls, or a shorter jump"
        )
    left = dict.fromkeys(range(rows - 1, jump - 1, -jump), resamplings - 1)  # by level, the number of rows above it
    order, k = [], 0
    while k < rows:
        order.append(k)
        k += 1
        if left.get(k, 0) > 0:
            left[k] -= 1
            k -= jump
    return order


@dataclass(frozen=True)
class TimeTravel:
    """A hook for the plan that `travelled` made: `replacement`, then the forward kernel wherever the next row begins higher.

    x_t = (alpha_t/alpha_s) x_s + std·z for the state x_s (B, *), z keyed by stream "travel", pass and sample. Source: Lugmayr et
    al. 2022, arXiv 2201.09865, algorithm 1, line 10.
    """

    replacement: Replacement
    process: GaussianProcess
    plan: Plan

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """The state after a pass, at the level where the next one begins."""
        x = self.replacement(x, replace(step, before=step.t))  # after travel the loop knows only where the last row ended
        if step.s is None:
            return x
        following = self.plan.rows[step.index + 1].t
        if following == step.s:
            return x
        forward = self.process.transition(step.s, following)
        z = step.noise.normal(x.shape, stream="travel", step=step.index, first=step.first, dtype=x.dtype, device=x.device)
        return align(forward.alpha, x) * x + align(forward.variance.sqrt(), x) * z
