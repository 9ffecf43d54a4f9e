"""The denoising loss for every target, as one weighted error of x0, and the hybrid loss for a learned variance.

Every target's squared error is the squared error of x0 times a function of the noise level: |Δeps|² = (alpha/sigma)² |Δx0|²,
and so on. `WEIGHTS` is that table. The error itself is taken on what the network outputs, where it loses no digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ornstein.denoiser import Condition, Denoises, Prediction
from ornstein.losses.bound import Decoder, GaussianDecoder, step_term
from ornstein.losses.times import Times, TimeSampler
from ornstein.noise import Noise
from ornstein.process import Chain, GaussianProcess, align


def _level_below(process: Chain, t: Tensor) -> Tensor:
    """The level s = t - 1/T under each t, which must be a level itself: between levels the bound has no term."""
    k = (t * process.steps).round()
    if bool(((t * process.steps - k).abs() > 1e-6).any()):
        raise ValueError(f"t={t.tolist()[:3]}… lie between a Chain's levels, where the bound has no term; use Times('discrete')")
    return (k - 1) / process.steps


_Weight = Callable[[Tensor, Tensor, GaussianProcess, Tensor, "DenoisingLoss"], Tensor]


def _bound_weight(a: Tensor, s: Tensor, process: GaussianProcess, t: Tensor, loss: DenoisingLoss) -> Tensor:
    """The weight under which the mean over t is the bound, in nats per dimension (up to what no network can change)."""
    if isinstance(process, Chain):
        q = process.posterior(t, _level_below(process, t))
        variance = torch.where(q.variance > 0, q.variance, q.transition)
        return process.steps * q.on_x0**2 / (2 * variance)
    return 0.5 * a**2 * process.diffusion(t) ** 2 / s**4


def _edm(a: Tensor, s: Tensor, process: GaussianProcess, t: Tensor, loss: DenoisingLoss) -> Tensor:
    return (s**2 + (a * loss.sigma_data) ** 2) / (s * loss.sigma_data) ** 2


WEIGHTS: dict[str, _Weight] = {
    "x0": lambda a, s, process, t, loss: torch.ones_like(a),
    "eps": lambda a, s, process, t, loss: (a / s) ** 2,
    "v": lambda a, s, process, t, loss: (a**2 + s**2) / s**2,
    "score": lambda a, s, process, t, loss: (a / s**2) ** 2,
    "sigma2": lambda a, s, process, t, loss: (a / s) ** 2,
    "edm": _edm,
    "min_snr": lambda a, s, process, t, loss: (a / s).square().clamp(max=loss.gamma),
    "bound": _bound_weight,
}
"""Weights on |Δx0|² from (alpha, sigma, process, t, loss): the plain square error of x0, eps, v or score; lambda = sigma² on
the score (which is that of eps); EDM's; min(SNR, gamma) of arXiv 2303.09556; and the variational bound's."""


@dataclass(frozen=True)
class DenoisingLoss:
    """E_t w(t) |x0 - x0(x_t)|², averaged over the numbers of a datum: one value per datum, (B,).

    `weighting` is one of `WEIGHTS`, or "simple": the plain square error of whatever the network predicts. `times` says
    where in t. `hybrid` > 0 adds hybrid·L_bound in nats per dimension for a learned variance, its mean detached, so that
    it trains the variance alone (0.001 in Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 16); it needs a `Chain`.
    `sigma_data` and `gamma` belong to "edm" and "min_snr". Source: Ho et al. 2020, arXiv 2006.11239, eq. 14.
    """

    weighting: str = "simple"
    times: TimeSampler = field(default_factory=Times)
    hybrid: float = 0.0
    decoder: Decoder = field(default_factory=GaussianDecoder)
    sigma_data: float = 1.0
    gamma: float = 5.0

    def __post_init__(self) -> None:
        if self.weighting != "simple" and self.weighting not in WEIGHTS:
            raise ValueError(f"weighting={self.weighting!r} is not one of simple, {', '.join(WEIGHTS)}")

    def __call__(
        self,
        denoiser: Denoises,
        x0: Tensor,
        noise: Noise,
        *,
        step: int = 0,
        first: int = 0,
        total: int | None = None,
        cond: Condition = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of data x0 (B, *), (B,). Sample i of the batch uses the noise of (step, first + i); `total` is the size of
        the whole batch over all processes (B if None). `weight` (B, *) multiplies the square errors: 0 where nothing is known or
        asked."""
        process = denoiser.process
        t, importance = self.times.draw(process, len(x0), noise, step=step, first=first, total=total)
        eps = noise.normal(x0.shape, stream="train", step=step, first=first, dtype=x0.dtype, device=x0.device)
        prediction = denoiser(process.corrupt(x0, t, eps), t, cond)
        loss = self.error(prediction, x0, eps, process, t, weight)
        if self.hybrid:
            if weight is not None:
                raise ValueError(f"hybrid={self.hybrid} weighs all numbers alike; set it to 0 where some are not asked for")
            loss = loss + self.hybrid * self.variance_term(prediction, x0, process, t)
        self.times.update(process, t, loss.detach().cpu())
        return loss * importance.to(loss)

    def error(
        self,
        prediction: Prediction,
        x0: Tensor,
        eps: Tensor,
        process: GaussianProcess,
        t: Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:
        """w(t)·|x0 - prediction.x0|² averaged over a datum, (B,), computed on the network's own output."""
        p = prediction
        # raw = (x0 - skip·x_t)/out with x_t = alpha·x0 + sigma·eps: exact even where 1 - alpha·skip is small
        on_x0, on_eps = (1 - p.skip * p.alpha) / p.out, -p.skip * p.sigma / p.out
        target = align(on_x0, x0) * x0 + align(on_eps, x0) * eps
        square = (p.raw - target).square()
        square = (square if weight is None else square * weight).flatten(1).mean(1)
        if self.weighting == "simple":
            return square
        level = WEIGHTS[self.weighting](p.alpha, p.sigma, process, t, self) * p.out**2
        return square * level.to(square)

    def variance_term(self, prediction: Prediction, x0: Tensor, process: GaussianProcess, t: Tensor) -> Tensor:
        """T times the bound's term at t in nats per dimension, (B,), with the mean detached."""
        if not isinstance(process, Chain):
            raise ValueError(f"hybrid={self.hybrid} needs the steps of a Chain, not {type(process).__name__}; set it to 0")
        s = _level_below(process, t)
        fixed = Prediction.from_x0(
            prediction.x_t, prediction.alpha, prediction.sigma, prediction.x0.detach(), prediction.variance_fraction
        )
        first = s < 0.5 / process.steps
        # the last step, to clean data, is the decoder's; its row of step_term is evaluated one level up and not used
        stand_in = torch.where(first, torch.full_like(t, 2 / process.steps), t)
        kl = step_term(process, fixed, x0, stand_in, stand_in - 1 / process.steps, "learned")
        spread = align(process.posterior(t, s).transition, x0)
        nll = -self.decoder.log_prob(x0, fixed.x0, spread.expand_as(x0))
        term = torch.where(align(first.to(x0.dtype), x0) > 0, nll, kl)
        return process.steps * term.flatten(1).mean(1)
