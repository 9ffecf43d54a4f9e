"""The variational bound of a chain of levels, term by term, and bits per dimension.

    -log p(x0) ≤ L_T + Σ L_{t-1} + L_0
    L_T = KL(q(x_T|x0) ‖ prior)    L_{t-1} = KL(q(x_s|x_t, x0) ‖ p(x_s|x_t))    L_0 = -log p(x0|x_1)

Any Gaussian process and any falling times define such a chain, so a network trained in continuous time has a bound too.
Source: Ho et al. 2020, arXiv 2006.11239, eq. 5; Kingma et al. 2021, arXiv 2107.00630.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ornstein.denoiser import Condition, Denoises, Prediction
from ornstein.hardware import doubled, widest
from ornstein.noise import Noise
from ornstein.process import GaussianProcess, Posterior, align, gaussian_kl, gaussian_log_density
from ornstein.progress import track

REVERSE_VARIANCES = ("transition", "posterior", "learned")


class Decoder(Protocol):
    """log p(x0 | mean, variance) elementwise, for L_0."""

    def log_prob(self, x0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Log-probability (or density) of x0 in nats, elementwise."""


@dataclass(frozen=True)
class GaussianDecoder:
    """A density: log N(x0; mean, variance)."""

    def log_prob(self, x0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """log N(x0; mean, variance), elementwise."""
        return gaussian_log_density(x0, mean, variance)


@dataclass(frozen=True)
class Discretised:
    """A probability on `levels` equally spaced grey levels from `low` to `high`: a Gaussian's mass in each level's bin.

    P(x) = Φ((x + w - m)/s) - Φ((x - w - m)/s) with w half the spacing (1/255 for 256 levels on [-1, 1]); the outermost
    bins are open, so that the probabilities sum to 1. Source: Ho et al. 2020, arXiv 2006.11239, eq. 13.
    """

    levels: int = 256
    low: float = -1.0
    high: float = 1.0

    @property
    def width(self) -> float:
        """The spacing of the levels."""
        return (self.high - self.low) / (self.levels - 1)

    def log_prob(self, x0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """log P(x0), elementwise, accurate far into the tails; x0 must lie on the levels."""
        std = variance.sqrt()
        upper = torch.where(x0 > self.high - self.width / 2, math.inf, (x0 - mean + self.width / 2) / std)
        lower = torch.where(x0 < self.low + self.width / 2, -math.inf, (x0 - mean - self.width / 2) / std)
        # Φ(b) - Φ(a) = Φ(-a) - Φ(-b): stay on the side where the tail is resolved
        mirrored = lower > 0
        a, b = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
        log_b = torch.special.log_ndtr(b)
        return log_b + torch.log(-torch.expm1((torch.special.log_ndtr(a) - log_b).clamp(max=-1e-30)))


@dataclass(frozen=True)
class Bound:
    """The bound of each datum in nats, summed over its `dimensions`: `prior` L_T, `steps` Σ L_{t-1}, `decoder` L_0, all (B,).

    `terms` holds the batch mean of each L_{t-1} from noise to data, if all were evaluated; `calls` counts network
    evaluations per datum. `total` estimates -log p(x0) from above.
    """

    prior: Tensor
    steps: Tensor
    decoder: Tensor
    dimensions: int
    calls: int
    terms: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """L_T + Σ L_{t-1} + L_0 per datum, (B,), nats."""
        return self.prior + self.steps + self.decoder

    @property
    def mean(self) -> float:
        """The mean bound in nats per datum."""
        return float(self.total.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of `mean`, from the spread over data and sampled levels."""
        return float(self.total.std() / math.sqrt(len(self.total)))

    def per_dimension(self, unit: float = math.log(2)) -> tuple[float, float]:
        """(mean, standard error) per dimension in units of `unit` nats: bits by default.

        These are bits/dim of the data only if the decoder is `Discretised`; with a density they depend on the data's scale.
        """
        return self.mean / (self.dimensions * unit), self.standard_error / (self.dimensions * unit)


def step_term(process: GaussianProcess, prediction: Prediction, x0: Tensor, t: Tensor, s: Tensor, variance: str) -> Tensor:
    """KL(q(x_s|x_t, x0) ‖ p(x_s|x_t)) in nats, elementwise like x0, for t, s of shape () or (B,)."""
    q = process.posterior(t, s)
    mean_gap = align(q.on_x0, x0) * (x0 - prediction.x0)
    log_model = reverse_log_variance(q, prediction, variance)
    true = align(q.variance, x0)
    zero = torch.zeros((), dtype=x0.dtype)
    return gaussian_kl(zero, true, zero, log_model.exp()) + 0.5 * mean_gap**2 * torch.exp(-log_model)


def reverse_log_variance(q: Posterior, prediction: Prediction, variance: str) -> Tensor:
    """log of the model's reverse variance for "transition" (β), "posterior" (β̃), or "learned" between them."""
    x = prediction.x_t
    if variance == "transition":
        return align(q.transition.log(), x)
    if variance == "posterior":
        return align(q.variance.log(), x)
    if variance != "learned":
        raise ValueError(f"variance={variance!r} is not one of {', '.join(REVERSE_VARIANCES)}")
    if prediction.variance_fraction is None:
        raise ValueError("variance='learned' needs a denoiser with learned_variance=True; use 'transition' or 'posterior'")
    low, high = align(q.variance.log(), x), align(q.transition.log(), x)
    return low + prediction.variance_fraction * (high - low)


def bound(
    denoiser: Denoises,
    x0: Tensor,
    times: tuple[float, ...],
    noise: Noise,
    *,
    variance: str = "transition",
    decoder: Decoder | None = None,
    cond: Condition = None,
    samples: int | None = None,
    first: int = 0,
    progress: bool = False,
) -> Bound:
    """The bound for data x0 (B, *) on the chain `times` (falling, from noise) → clean data.

    All len(times) - 1 steps are evaluated, or `samples` of them per datum, one in each of `samples` equal strata: unbiased,
    and the standard error holds both spreads. `decoder` is `GaussianDecoder` (a density) unless given; its variance is that
    of the forward jump. Sums are in float64. Raises ValueError for an unknown `variance`, for "learned" where none is, for
    `times` that do not fall and for more `samples` than steps.
    """
    if variance not in REVERSE_VARIANCES:
        raise ValueError(f"variance={variance!r} is not one of {', '.join(REVERSE_VARIANCES)}")
    if not times or any(t <= s for t, s in pairwise(times)):
        raise ValueError(f"times={times} must hold at least one level and fall from noise to data; sort them in descending order")
    process = denoiser.process
    decoder = decoder if decoder is not None else GaussianDecoder()
    levels = torch.tensor(times, dtype=torch.float64)
    n, dimensions, intervals = len(x0), x0[0].numel(), len(times) - 1
    with torch.no_grad():
        prior = _prior_term(process, x0, times[0])
        picks: list[Tensor] = [torch.full((n,), k) for k in range(intervals)]
        if samples is not None:
            if not 1 <= samples <= intervals:
                raise ValueError(f"samples={samples} must lie between 1 and the number of steps {intervals}")
            u = noise.uniform((n, samples), stream="bound/level", first=first)
            strata = (torch.arange(samples) + u) / samples * intervals
            picks = list(strata.long().clamp(max=intervals - 1).T)
        means = []
        steps = torch.zeros(n, dtype=torch.float64)
        for index, pick in enumerate(track(picks, len(picks), "bound", enabled=progress)):
            t, s = levels[pick], levels[pick + 1]
            eps = noise.normal(x0.shape, stream="bound/noise", step=index, first=first, dtype=x0.dtype, device=x0.device)
            prediction = denoiser(process.corrupt(x0, t, eps), t, cond)
            term = doubled(step_term(process, prediction, x0, t, s, variance).flatten(1)).sum(1).cpu()
            means.append(term.mean())
            steps += term
        eps = noise.normal(x0.shape, stream="bound/last", first=first, dtype=x0.dtype, device=x0.device)
        prediction = denoiser(process.corrupt(x0, times[-1], eps), times[-1], cond)
        spread = process.posterior(times[-1], None).transition.to(widest(x0.device))
        last = -decoder.log_prob(doubled(x0), doubled(prediction.x0), spread).flatten(1).sum(1).cpu()
    every = samples is None
    terms = torch.stack(means) if every and means else None
    steps = steps if every else steps * (intervals / len(picks))
    return Bound(prior, steps, last, dimensions, len(picks) + 1, terms)


def _prior_term(process: GaussianProcess, x0: Tensor, t: float) -> Tensor:
    alpha, sigma = process.moments(t)
    mean = alpha * x0.flatten(1).cpu().double()
    prior = torch.tensor(process.prior_std**2, dtype=torch.float64)
    return gaussian_kl(mean, sigma**2, torch.zeros_like(prior), prior).sum(1)
