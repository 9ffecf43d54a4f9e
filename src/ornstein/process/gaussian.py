"""Gaussian processes of corruption: x_t = alpha(t) x_0 + sigma(t) eps, with t in [0, 1] and the data at 0.

A class states (alpha, sigma²) or (f, g, initial variance); the other is derived, in float64, and never typed twice:

    f(t) = d log alpha / dt            g(t)² = d sigma²/dt - 2 f sigma²              dx = f x dt + g dw

`None` as a time is clean data, (alpha, sigma) = (1, 0): VE and EDM reach it only by a denoising step, since their
sigma(0) is sigma_min. Source: Song et al. 2021, arXiv 2011.13456; Kingma et al. 2021, arXiv 2107.00630.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ornstein.noise import Noise

if TYPE_CHECKING:
    from ornstein.process.check import Check

Time = float | Tensor | None


class Process(ABC):
    """A way of destroying data: `corrupt(x0, t, eps) -> x_t` and the law it ends in, `prior`."""

    @abstractmethod
    def corrupt(self, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
        """x_t for data x0 (B, *), time t (a number, (B,), or None for clean data) and standard normals eps like x0."""

    @abstractmethod
    def prior(self, shape: Sequence[int], noise: Noise, *, first: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draws of the end law, of `shape` = (samples, ...), keyed by stream "prior"."""


class Equation(Process):
    """A process that follows dx = drift(x, t) dt + g(t) dw, and so can be run backwards given the score of its laws."""

    @abstractmethod
    def forward(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(drift, g) at x (B, *) and time t, a number or (B,): the drift has the shape of x, g broadcasts over it."""

    def backward(self, x: Tensor, t: float | Tensor, score: Tensor, *, amount: float = 1.0) -> tuple[Tensor, Tensor]:
        """(drift - ½(1 + amount²) g² score, amount·g) at x (B, *), t and the score there: the equation from t = 1 down to 0.

        dx = [drift - ½(1 + a²) g² score] dt + a g dw̄ has the laws of the forward equation for any a: amount = 1 is the reverse
        equation, 0 the probability flow. Source: Anderson 1982; Song et al. 2021, arXiv 2011.13456, eq. 6 and 13.
        """
        drift, g = self.forward(x, t)
        return drift - 0.5 * (1 + amount**2) * g**2 * score, amount * g


class Transition(NamedTuple):
    """q(x_t | x_s) = N(alpha x_s, variance I)."""

    alpha: Tensor
    variance: Tensor


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(on_x_t·x_t + on_x0·x_0, variance I); `transition` is the variance of the forward jump.

    `variance` is β̃ and `transition` is β when t → s is one step of a chain.
    """

    on_x_t: Tensor
    on_x0: Tensor
    variance: Tensor
    transition: Tensor

    def mean(self, x_t: Tensor, x0: Tensor) -> Tensor:
        """The mean, with the shape of x_t."""
        return align(self.on_x_t, x_t) * x_t + align(self.on_x0, x_t) * x0


class GaussianProcess(Equation):
    """A process with q(x_t | x_0) = N(alpha(t) x_0, sigma(t)² I); see the module for the two ways to define one."""

    t_min: float = 0.0
    """The time at which plans stop and denoise: below it sigma is too small to be learned, or zero."""

    @property
    def prior_std(self) -> float:
        """Standard deviation of the end law N(0, prior_std² I)."""
        return float(self.moments(1.0)[1])

    @abstractmethod
    def mean_variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma²) at float64 times t on the CPU, of t's shape."""

    @abstractmethod
    def drift_diffusion(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(f, g²) at float64 times t on the CPU, of t's shape."""

    @abstractmethod
    def time_of(self, log_ratio: Tensor) -> Tensor:
        """The time at which log(sigma/alpha) = log_ratio, the inverse of `log_ratio`; float64, clamped to [0, 1]."""

    def noise_label(self, t: Tensor) -> Tensor:
        """What a network is told of the noise level: c_noise = ½·log(sigma/alpha), float64 of t's shape."""
        return 0.5 * self.log_ratio(t)

    def moments(self, t: Time, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) in float64; with `like` they take its dtype and device and broadcast over its samples.

        t is a number, a tensor (B,), or None for clean data.
        """
        if t is None:
            alpha, sigma = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        else:
            alpha, variance = self.mean_variance(self._times(t))
            sigma = variance.sqrt()
        return (alpha, sigma) if like is None else (align(alpha, like), align(sigma, like))

    def drift(self, t: float | Tensor) -> Tensor:
        """f(t) of the forward equation dx = f x dt + g dw; float64, of t's shape."""
        return self.drift_diffusion(self._times(t))[0]

    def diffusion(self, t: float | Tensor) -> Tensor:
        """g(t) of the forward equation dx = f x dt + g dw; float64, of t's shape."""
        return self.drift_diffusion(self._times(t))[1].sqrt()

    def forward(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(f(t)·x, g(t)) for x (B, *) and t, a number or (B,)."""
        f, squared = self.drift_diffusion(self._times(t))
        return align(f, x) * x, align(squared.sqrt(), x)

    def loss_weight(self, t: float | Tensor) -> Tensor:
        """lambda(t) = sigma² = 1/E|d log q(x_t|x_0)/dx_t|² per number: what makes score matching equally hard at every t.

        float64, of t's shape. `DenoisingLoss("sigma2")` is the square error of the score with this weight.
        Source: Song et al. 2021, arXiv 2011.13456, section 3.3, with the square that its eq. 7 leaves out.
        """
        return self.mean_variance(self._times(t))[1]

    def check(self, data: Tensor | None = None, *, paths: int = 4096, steps: int = 1000, noise: Noise | None = None) -> Check:
        """Simulate the forward equation, hold it against (alpha, sigma) and the prior, and say in words what is wrong.

        `data` (N, *) float, ±1 unless given, start `paths` paths of `steps` Euler-Maruyama steps; see `Check`.
        """
        from ornstein.process.check import check_gaussian

        return check_gaussian(self, data, paths, steps, noise or Noise(0))

    def log_ratio(self, t: Time) -> Tensor:
        """log(sigma/alpha), minus half the log-SNR; float64. -inf for clean data, +inf where alpha = 0."""
        return _log_ratio(self.moments(t))

    def corrupt(self, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
        """x_t = alpha x_0 + sigma eps."""
        alpha, sigma = self.moments(t, like=x0)
        return alpha * x0 + sigma * eps

    def prior(self, shape: Sequence[int], noise: Noise, *, first: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draws of N(0, prior_std² I)."""
        return self.prior_std * noise.normal(shape, stream="prior", first=first, dtype=dtype)

    def transition(self, s: Time, t: Time) -> Transition:
        """The kernel q(x_t | x_s) of the forward jump s → t, s ≤ t.

        Its mean is (alpha_t/alpha_s) x_s, its variance sigma_t² - (alpha_t/alpha_s)² sigma_s², computed as
        sigma_t²·(1 - SNR_t/SNR_s), which loses no digits when t is close to s.
        """
        (alpha_s, _), (alpha_t, sigma_t) = before, after = self.moments(s), self.moments(t)
        return Transition(alpha_t / alpha_s, sigma_t**2 * _lost(before, after))

    def posterior(self, t: Time, s: Time) -> Posterior:
        """The coefficients of q(x_s | x_t, x_0) for the jump t → s, s ≤ t, with both variances; float64.

        With a = alpha_t/alpha_s and v = sigma_t² - a² sigma_s²: on_x_t = a sigma_s²/sigma_t², on_x0 = alpha_s v/sigma_t²,
        variance = sigma_s² v/sigma_t². The ancestral sampler and the variational bound both use it.
        Source: Ho et al. 2020, arXiv 2006.11239, eq. 6-7.
        """
        (alpha_s, sigma_s), (alpha_t, sigma_t) = before, after = self.moments(s), self.moments(t)
        lost = _lost(before, after)
        return Posterior(alpha_t / alpha_s * (sigma_s / sigma_t) ** 2, alpha_s * lost, sigma_s**2 * lost, sigma_t**2 * lost)

    def terminal_gap(self, mean: float | Tensor = 0.0, std: float | Tensor = 1.0) -> float:
        """KL(q(x_1) ‖ prior) in nats per dimension for data of given mean and standard deviation, taken as Gaussian.

        Samplers start from the prior: what they cannot see is this gap. Below 1e-3 it does not matter in practice.
        """
        alpha, sigma = self.moments(1.0)
        mean, std = torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(std, dtype=torch.float64)
        prior = torch.tensor(self.prior_std**2, dtype=torch.float64)
        return float(gaussian_kl(alpha * mean, alpha**2 * std**2 + sigma**2, torch.zeros_like(prior), prior).mean())

    def _times(self, t: float | Tensor) -> Tensor:
        times = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        # plans ask for one number at a time, ten thousand times: Python compares it six times faster than torch
        inside = 0 <= t <= 1 if isinstance(t, float) else bool(((times >= 0) & (times <= 1)).all())
        if not inside:
            raise ValueError(f"t={t} leaves [0, 1]; the data are at 0 and the noise at 1")
        return times


class MomentProcess(GaussianProcess):
    """A Gaussian process that states (alpha, sigma²); f and g² come from it by automatic differentiation."""

    def drift_diffusion(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """f = d log alpha/dt and g² = d sigma²/dt - 2 f sigma²."""
        with torch.enable_grad():
            time = t.detach().clone().requires_grad_()
            alpha, variance = self.mean_variance(time)
            slope_alpha = _derivative(alpha, time)
            slope_variance = _derivative(variance, time)
        f = slope_alpha / alpha.detach()
        return f, slope_variance - 2 * f * variance.detach()


def _log_ratio(moments: tuple[Tensor, Tensor]) -> Tensor:
    """log(sigma/alpha)."""
    alpha, sigma = moments
    return sigma.log() - alpha.log()


def _lost(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> Tensor:
    """1 - SNR_t/SNR_s, the part of the signal that a jump between two (alpha, sigma) destroys."""
    return -torch.expm1(2 * (_log_ratio(before) - _log_ratio(after)))


def _derivative(value: Tensor, time: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(time)
    (slope,) = torch.autograd.grad(value.sum(), time, retain_graph=True, allow_unused=True)
    return torch.zeros_like(time) if slope is None else slope


def align(coefficient: Tensor, like: Tensor) -> Tensor:
    """A coefficient () or (B,) in the dtype and on the device of `like` (B, *), with axes added to broadcast.

    A scalar stays a float64 tensor on the CPU: it mixes with any tensor without promoting it.
    """
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.to(device=like.device, dtype=like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def gaussian_kl(mean1: Tensor, variance1: Tensor, mean2: Tensor, variance2: Tensor) -> Tensor:
    """KL(N(mean1, variance1) ‖ N(mean2, variance2)) in nats, elementwise, for diagonal covariances.

    ½·(v1/v2 - 1 - log(v1/v2)) + (m1 - m2)²/(2 v2). Arguments broadcast.
    """
    excess = (variance1 - variance2) / variance2
    return 0.5 * (excess - torch.log1p(excess)) + (mean1 - mean2) ** 2 / (2 * variance2)


def gaussian_kl_full(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> Tensor:
    """KL(N(mean1, covariance1) ‖ N(mean2, covariance2)) in nats for full covariances (D, D); means (D,) or (B, D)."""
    chol1, chol2 = torch.linalg.cholesky(covariance1), torch.linalg.cholesky(covariance2)
    ratio = torch.linalg.solve_triangular(chol2, chol1, upper=False)
    shift = torch.linalg.solve_triangular(chol2, torch.atleast_2d(mean1 - mean2).mT, upper=False)
    log_det = chol2.diagonal().log().sum() - chol1.diagonal().log().sum()
    kl = 0.5 * (ratio.square().sum() - ratio.shape[0] + shift.square().sum(0)) + log_det
    return kl if (mean1 - mean2).ndim > 1 else kl[0]


def reparameterise(mean: Tensor, variance: Tensor, eps: Tensor) -> Tensor:
    """mean + sqrt(variance)·eps: a draw of N(mean, variance) as a differentiable function of its parameters."""
    return mean + variance.sqrt() * eps


def gaussian_log_density(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """log N(x; mean, variance) in nats, elementwise."""
    return -0.5 * (math.log(2 * math.pi) + variance.log() + (x - mean) ** 2 / variance)
