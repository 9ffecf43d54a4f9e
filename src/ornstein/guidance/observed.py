"""What a measurement y = A(x) + noise does to the state between the rows of a plan: hooks for `sample(after=…)`.

All act where a row has moved the state to another noise level, and leave it alone where a row only looked ahead. In chunks
give one measurement for all samples, or use `restore`. Source: Song et al. 2021, arXiv 2011.13456; Choi et al. 2021, arXiv
2108.02938; Chung et al. 2022, arXiv 2206.00941 and 2209.14687.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.files import InputError
from ornstein.guidance.given import Given
from ornstein.guidance.inverse import demand_linear, residual
from ornstein.noise import Noise
from ornstein.operator import Operator
from ornstein.process import GaussianProcess
from ornstein.samplers import Step

_POWERS = 30


@dataclass(frozen=True)
class Replacement:
    """A hook that keeps what was measured at its own forward-noised value: A⁺A x_s ← alpha_s A⁺y + sigma_s A⁺A eps.

    eps is fresh for each row, keyed by stream "given", at the level s that the state has after the row; clean data get A⁺y
    itself, so that a measurement without noise is kept to rounding, and one with noise is kept too. The rest of the state
    learns of y only through the denoiser, which makes its law wrong wherever the two depend on each other. Every plan.
    InputError for an A that is not linear. Source: Song et al. 2021, arXiv 2011.13456, appendix I.2; ILVR, arXiv 2108.02938.
    """

    given: Given
    process: GaussianProcess

    def __post_init__(self) -> None:
        demand_linear(self.given, "Replacement")

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """The state (B, *) after a row with its measured part replaced."""
        if step.s == step.before:
            return x
        given, operator = self.given.to(x), self.given.measured
        alpha, sigma = (float(m) for m in self.process.moments(step.s))
        known = alpha * operator.pseudo_inverse(given.values)
        if sigma == 0:
            return x - operator.project(x) + known
        eps = step.noise.normal(x.shape, stream="given", step=step.index, first=step.first, dtype=x.dtype, device=x.device)
        return x + operator.project(sigma * eps - x) + known


@dataclass(frozen=True)
class DPS:
    """A hook of diffusion posterior sampling: x_s ← x_s - step·c_s·c_t·d|y - A(x0hat)|/d x_t, c = sqrt(alpha² + sigma²).

    The gradient is at x_t, before the row, through the network; the norm is each sample's own. c = 1 where variance is
    preserved, and makes other processes follow the same trajectory in x/c. The gradient of a norm does not shrink as y is met,
    so that x0 keeps moving by about `step` times the largest singular value of A: see `dps_step`. A may be any differentiable
    function; noise_std plays no part. It goes with `Differentiable(denoiser)`, clipped, if at all, outside of it, and a plan
    whose rows are evaluated at the state before them (ancestral, ddim, dpm_solver_pp): InputError for one that looks ahead
    (heun, adams, unipc), ValueError without the gradient. Source: Chung et al. 2023, arXiv 2209.14687, algorithm 1.
    """

    given: Given
    process: GaussianProcess
    step: float

    def __post_init__(self) -> None:
        _check_step(self.step)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """The state (B, *) after a row, moved towards the measurement."""
        if step.s == step.before:
            return x
        return x - self.step * _size(self.process, step) * _norm_gradient(self.given.to(x), step, "DPS")


@dataclass(frozen=True)
class MCG:
    """A hook of manifold constrained gradients: the step of `DPS` on what A does not see, then `Replacement`.

        x_s ← x_s - step·c_s·c_t (I - A⁺A) d|y - A x0hat|/d x_t,   A⁺A x_s ← alpha_s A⁺y + sigma_s A⁺A eps

    The published code takes the norm over the batch, and the noise of level t for the state at s, so that samples depend on
    one another and the last is left noisy: here the norm is each sample's own and the level that of s, so that a measurement
    without noise is kept to rounding. One with noise is kept too, and the rest is made to fit it. Plans and errors as for
    `DPS`, and InputError for an A that is not linear. Source: Chung et al. 2022, arXiv 2206.00941, algorithm 1.
    """

    given: Given
    process: GaussianProcess
    step: float

    def __post_init__(self) -> None:
        demand_linear(self.given, "MCG")
        _check_step(self.step)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """The state (B, *) after a row, moved and replaced."""
        if step.s == step.before:
            return x
        moved = x - self.step * _size(self.process, step) * _norm_gradient(self.given.to(x), step, "MCG")
        # what the gradient did to the part that A sees is overwritten: only (I - A⁺A) of it stays
        return Replacement(self.given, self.process)(moved, step)


def dps_step(operator: Operator, calls: int, travel: float = 8.0) -> float:
    """The `step` of `DPS` for a plan of so many calls: travel·sqrt(M)/(calls·|A|), M the numbers that A measures.

    Each step then moves x0hat by at most about travel/calls in each measured number and all steps together by `travel`, whatever
    the size of the data, the number of calls and the units of A; |A| is its largest singular value (power iteration; 1 where A
    is not linear). `travel` is in the units of x: 8 suits data of standard deviation 0.5 to 1 at 50 to 200 calls, less leaves
    y unmet, more makes x0 tremble. The paper's 0.3 to 1 at 1000 calls, for 256 x 256 images in [-1, 1], is a travel of 0.7 for
    blurs and super-resolution, 1.4 for a box and 4 for 8 % of the pixels.
    """
    x = Noise(0).normal((1, *operator.shape), stream="travel", dtype=torch.float64)
    measured = operator(x)
    count, size = int((measured != 0).sum()), 1.0
    if operator.linear:
        for _ in range(_POWERS):
            x = operator.adjoint(operator(x / x.norm().clamp(min=1e-300)))
        size = math.sqrt(float(x.norm()))
    return travel * math.sqrt(count) / (calls * size) if size > 0 else 0.0


def _check_step(step: float) -> None:
    if not (math.isfinite(step) and step >= 0):
        raise InputError(f"step={step} must be a number from 0; dps_step gives one for a number of calls")


def _size(process: GaussianProcess, step: Step) -> float:
    """c_s·c_t: what a step in x/sqrt(alpha² + sigma²) is in x_s, for a gradient in x_t."""
    return math.prod(math.hypot(*map(float, process.moments(time))) for time in (step.t, step.s))


def _norm_gradient(given: Given, step: Step, method: str) -> Tensor:
    """d|y - A(x0hat)|/d x_t of each sample (B, *), at the state before the row."""
    if step.t != step.before:
        raise InputError(
            f"{method} steps along the gradient at the state before a row, and row {step.index} is evaluated elsewhere: "
            f"at t={step.t:g} with the state at {step.before:g}; take ancestral, ddim or dpm_solver_pp"
        )
    prediction = step.prediction
    if prediction.pullback is None:
        raise ValueError(
            f"{method} needs the gradient at x_t: sample Differentiable(denoiser), and clip, if at all, outside of it"
        )
    left, pulled = residual(given, prediction.x0)
    length = left.flatten(1).norm(dim=1).clamp(min=torch.finfo(left.dtype).tiny)
    return -prediction.pullback(pulled / length.reshape(-1, *[1] * (pulled.ndim - 1)))
