"""Denoisers guided by a measurement y = A(x) + noise: the likelihood of y given x_t as a normal about A(x0hat).

With x0hat = E[x0 | x_t], J = d x0hat/d x_t and a covariance C for what y is about A x0hat, the score of the likelihood moves

    x0 = x0hat + (sigma²/alpha) Jᵀ Aᵀ C⁻¹ (y - A x0hat)

(the weights of C held fixed). `PiGDM`, `MomentMatching` and `Reconstruction` are three choices of C; each costs one call and at
least one backward pass through the network, and works with every sampler. Values are in the units of the denoiser's x0.
Source: Song et al. 2023, openreview 9_gsMA8MRKQ; Ho et al. 2022, arXiv 2204.03458; Boys et al. 2023, arXiv 2310.06721.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ornstein.denoiser import Clipped, Condition, Denoises, Differentiable, DynamicThreshold, Prediction
from ornstein.files import InputError
from ornstein.guidance.given import Given
from ornstein.noise import Noise
from ornstein.operator import conjugate_gradients
from ornstein.process import GaussianProcess, align
from ornstein.process.gaussian import Time

_FAINTEST = 6.0
"""Largest log(sigma/alpha) at which (sigma²/alpha) J, which tends to Var[x0], is formed: beyond it alpha only divides rounding
and a network's error, and x_t says less than 1/400 of a standard deviation of x0."""


@dataclass(frozen=True)
class PiGDM:
    """A denoiser guided by `given` with C = r² A Aᵀ + noise_std² I, r² = v sigma²/(alpha² v + sigma²): pseudo-inverse guidance.

    v = `data_variance` is the variance that the data are taken to have in every direction; E[x0 | x_t, y] is exact for a prior
    N(m, v I). v = 1 is the paper's r²: sigma²/(1 + sigma²) where alpha = 1, sigma² where variance is preserved. The paper then
    adds alpha_t r² h to its DDIM step, h = Jᵀ Aᵀ C⁻¹ (y - A x0hat), in place of the (alpha_s sigma_t²/alpha_t - c sigma_t) h that
    the score asks for (c: the step's factor on eps): a weight found on images, left out here for the exactness.

    One call and one backward pass. With noise_std None the noise of every sample is what makes the mean of |y - A x0hat|² come
    out, noise_std² = max(0, (|y - A x0hat|² - r² tr A Aᵀ)/M) over the M numbers that A determines: good as far as v is, and
    while x_t is not yet fitted to the noise. Where x_t is nearly all noise (alpha = 0 included) the prediction at sigma/alpha =
    400 serves. InputError for an A that is not linear, or shapes that disagree.
    Source: Song et al. 2023, openreview 9_gsMA8MRKQ, algorithm 1.
    """

    denoiser: Denoises
    given: Given
    data_variance: float = 1.0

    def __post_init__(self) -> None:
        demand_linear(self.given, "PiGDM")
        if not (math.isfinite(self.data_variance) and self.data_variance > 0):
            raise InputError(f"data_variance={self.data_variance} must be positive: about the variance of the data's numbers")

    @property
    def process(self) -> GaussianProcess:
        """The wrapped denoiser's process."""
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        """The guided prediction at x_t (B, *) and t, a number or (B,)."""
        look = _Look(self.denoiser, self.given, x_t, t, cond)
        alpha2, sigma2 = look.seen.alpha**2, look.seen.sigma**2
        r2 = self.data_variance * sigma2 / (alpha2 * self.data_variance + sigma2)
        noise = look.noise_variance(lambda: r2 * _trace(look.given))
        return look.moved(look.given.measured.solve(look.residual, r2, noise))


@dataclass(frozen=True)
class MomentMatching:
    """A denoiser guided by `given` with C = A Var[x0 | x_t] Aᵀ + noise_std² I, Var[x0 | x_t] = (sigma²/alpha) J.

    Exact, E[x0 | x_t, y], for every Gaussian prior, and right in its first two moments at every x_t for any other. C is never
    formed: `iterations` of conjugate gradients solve it for each sample apart, fewer where that converges sooner. One call and
    at most iterations + 1 backward passes, one more with noise_std None: the noise is then found as `PiGDM` says, with
    tr A Var Aᵀ from one random probe. Few iterations hold back the directions that y says least of, and are what a network,
    whose J is not quite symmetric, is best asked for. InputError for an A that is not linear, or shapes that disagree.
    Source: Boys et al. 2023, arXiv 2310.06721; Rozet et al. 2024, arXiv 2405.13712.
    """

    denoiser: Denoises
    given: Given
    iterations: int = 5

    def __post_init__(self) -> None:
        demand_linear(self.given, "MomentMatching")
        if self.iterations < 1:
            raise InputError(f"iterations={self.iterations} must be at least 1")

    @property
    def process(self) -> GaussianProcess:
        """The wrapped denoiser's process."""
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        """The guided prediction at x_t (B, *) and t, a number or (B,)."""
        look = _Look(self.denoiser, self.given, x_t, t, cond)
        operator = look.given.measured

        def signal(w: Tensor) -> Tensor:
            return operator(look.covariance(operator.adjoint(w)))

        def probed() -> Tensor:
            # one probe for all samples: none may depend on its place in the batch
            probe = Noise(0).normal((1, *operator.measured_shape), stream="trace", dtype=x_t.dtype, device=x_t.device)
            return _dot(probe, signal(probe.expand_as(look.residual))).to("cpu", torch.float64)

        noise = torch.as_tensor(look.noise_variance(probed), dtype=torch.float64)
        solved = conjugate_gradients(
            lambda w: signal(w) + align(noise, w) * w, look.residual, self.iterations, 10 * torch.finfo(x_t.dtype).eps
        )
        return look.moved(operator.adjoint(solved))


@dataclass(frozen=True)
class Reconstruction:
    """A denoiser guided by `given`: x0 = x0hat - weight·(alpha/2) d|y - A(x0hat)|²/d x_t, reconstruction guidance.

    It is C = sigma²/(weight·alpha²) I: a normal about A(x0hat) of the variance that x_t/alpha has, divided by the weight. The
    square is a sum, so that the best weight depends on how many numbers are measured together; noise_std plays no part. The
    paper uses it with the measured part of the state kept at forward-noised measurements: `sample(after=Replacement(…))`. A
    may be any differentiable function. One call and one backward pass. InputError for shapes that disagree.
    Source: Ho et al. 2022, arXiv 2204.03458.
    """

    denoiser: Denoises
    given: Given
    weight: float = 2.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise InputError(f"weight={self.weight} must be a finite number; 0 does not guide")

    @property
    def process(self) -> GaussianProcess:
        """The wrapped denoiser's process."""
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        """The guided prediction at x_t (B, *) and t, a number or (B,)."""
        prediction = Differentiable(self.denoiser)(x_t, t, cond)
        assert prediction.pullback is not None
        _, pulled = residual(self.given.to(x_t), prediction.x0)
        shift = align(self.weight * prediction.alpha, x_t) * prediction.pullback(pulled)
        return replace(prediction.with_x0(prediction.x0 + shift), pullback=None)


class _Look:
    """The prediction at x_t, and what the guidance of a linear A needs of it, at a level where that can be formed."""

    def __init__(self, denoiser: Denoises, given: Given, x_t: Tensor, t: Time, cond: Condition) -> None:
        process = denoiser.process
        self.x_t, self.moments, self.given = x_t, process.moments(t), given.to(x_t)
        level = process.log_ratio(t)
        if bool((level > _FAINTEST).any()):
            # the same state, in units of its own size, at the faintest level that is used
            faint = process.time_of(level.clamp(max=_FAINTEST))
            t = torch.where(level > _FAINTEST, faint, torch.as_tensor(t, dtype=torch.float64, device="cpu"))
            size = torch.hypot(*process.moments(t)) / torch.hypot(*self.moments)
            x_t = align(size, x_t) * x_t
        self.seen = Differentiable(denoiser)(x_t, t, cond)
        self.residual, _ = residual(self.given, self.seen.x0, pull=False)

    def covariance(self, u: Tensor) -> Tensor:
        """Var[x0 | x_t] u = (sigma²/alpha) Jᵀ u for u like x0."""
        assert self.seen.pullback is not None
        return align(self.seen.sigma**2 / self.seen.alpha, u) * self.seen.pullback(u)

    def noise_variance(self, signal: Callable[[], Tensor]) -> float | Tensor:
        """The variance of the measurement's noise, or where that is unknown its moment estimate (B,), given what `signal` says
        the trace of A Var[x0 | x_t] Aᵀ is, () or (B,) float64."""
        if self.given.noise_std is not None:
            return self.given.noise_std**2
        spectrum = self.given.measured.spectrum
        parts = self.residual.flatten(1) if spectrum is None else spectrum.measured(self.residual)
        count = parts.shape[1] if spectrum is None else int((spectrum.values > 0).sum())
        square = parts.to("cpu", torch.float64).square().sum(1)
        return ((square - signal()) / max(count, 1)).clamp(min=0)

    def moved(self, u: Tensor) -> Prediction:
        """The prediction at x_t itself with x0 moved by Var[x0 | x_t] u; it keeps no graph."""
        x0 = self.seen.x0 + self.covariance(u)
        return Prediction.from_x0(self.x_t, *self.moments, x0, self.seen.variance_fraction)


def residual(given: Given, x0: Tensor, *, pull: bool = True) -> tuple[Tensor, Tensor]:
    """y - A(x0), and A'(x0)ᵀ (y - A(x0)) like x0, which is minus half the gradient of |y - A(x0)|² (zeros unless `pull`)."""
    operator = given.measured
    if operator.linear or not pull:
        left = given.values - operator(x0)
        return left, operator.adjoint(left) if pull else torch.zeros_like(x0)
    with torch.enable_grad():
        leaf = x0.detach().requires_grad_()
        left = given.values - operator(leaf)
        (gradient,) = torch.autograd.grad(left, leaf, -left)
    return left.detach(), gradient


def beneath_clipping(denoiser: Denoises, wrap: Callable[[Denoises], Denoises]) -> Denoises:
    """wrap(denoiser) with `Clipped` and `DynamicThreshold` left on the outside: a clamped x0 has no gradient to guide by."""
    if isinstance(denoiser, Clipped | DynamicThreshold):
        return replace(denoiser, denoiser=beneath_clipping(denoiser.denoiser, wrap))
    return wrap(denoiser)


def demand_linear(given: Given, method: str) -> None:
    """InputError for a measurement that is not linear."""
    if not given.measured.linear:
        raise InputError(f"{method} needs a linear operator, which {given.measured} is not; take dps, or reconstruction")


def _trace(given: Given) -> Tensor:
    """tr A Aᵀ: exact where the spectrum is known, from one random probe elsewhere."""
    operator = given.measured
    if operator.spectrum is not None:
        return operator.spectrum.values.square().sum()
    probe = Noise(0).normal((1, *operator.measured_shape), stream="trace", dtype=torch.float64)
    return operator.adjoint(probe).square().sum()


def _dot(v: Tensor, w: Tensor) -> Tensor:
    """⟨v, w⟩ of every sample, (B,)."""
    return (v * w).flatten(1).sum(1)
