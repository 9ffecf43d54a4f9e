"""Where in [0, 1] a training step looks: distributions of t by their inverse CDF, from independent or stratified uniforms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ornstein.noise import Noise
from ornstein.process import Chain, GaussianProcess


class TimeSampler(Protocol):
    """What a loss asks: n times with their importance weights; and to be told the losses found there."""

    def draw(
        self, process: GaussianProcess, n: int, noise: Noise, *, step: int = 0, first: int = 0, total: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """(t, weight), both (n,) float64, for samples first … first + n - 1 of a batch of `total`."""

    def update(self, process: GaussianProcess, t: Tensor, loss: Tensor) -> None:
        """Learn from unweighted losses (n,) at times t (n,)."""


def _uniform(process: GaussianProcess, u: Tensor, mean: float, std: float) -> Tensor:
    return process.t_min + u * (1 - process.t_min)


def _discrete(process: GaussianProcess, u: Tensor, mean: float, std: float) -> Tensor:
    if not isinstance(process, Chain):
        raise ValueError(f"times='discrete' needs the levels of a Chain, not {type(process).__name__}; use 'uniform'")
    return (1 + (u * process.steps).floor().clamp(max=process.steps - 1)) / process.steps


def _log_normal(process: GaussianProcess, u: Tensor, mean: float, std: float) -> Tensor:
    return process.time_of(mean + std * torch.special.ndtri(u)).clamp(min=process.t_min)


DISTRIBUTIONS: dict[str, Callable[[GaussianProcess, Tensor, float, float], Tensor]] = {
    "uniform": _uniform,
    "discrete": _discrete,
    "log_normal": _log_normal,
}
"""Inverse CDFs: u in (0, 1) -> t. "log_normal" is of sigma/alpha with the given mean and std of its logarithm."""


@dataclass(frozen=True)
class Times:
    """Times from one of `DISTRIBUTIONS`; `low_discrepancy` spreads a batch evenly: u_i = (u + i/total) mod 1.

    `mean` and `std` are those of log(sigma/alpha) under "log_normal" (Karras et al. 2022, arXiv 2206.00364, -1.2 and 1.2);
    "discrete" draws a chain's levels k = 1 … T. Low discrepancy: Kingma et al. 2021, arXiv 2107.00630, appendix I.1.
    """

    distribution: str = "uniform"
    mean: float = -1.2
    std: float = 1.2
    low_discrepancy: bool = True

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution={self.distribution!r} is not one of {', '.join(DISTRIBUTIONS)}")
        if not self.std > 0:
            raise ValueError(f"std={self.std} must be positive")

    def uniforms(self, n: int, noise: Noise, *, step: int, first: int, total: int | None) -> Tensor:
        """The uniforms (n,) behind the times."""
        if not self.low_discrepancy:
            return noise.uniform((n,), stream="time", step=step, first=first)
        shared = noise.uniform((1,), stream="time", step=step)
        return (shared + (first + torch.arange(n, dtype=torch.float64)) / (total or n)) % 1.0

    def draw(
        self, process: GaussianProcess, n: int, noise: Noise, *, step: int = 0, first: int = 0, total: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """(t, ones)."""
        u = self.uniforms(n, noise, step=step, first=first, total=total).clamp(1e-9, 1 - 1e-9)
        return DISTRIBUTIONS[self.distribution](process, u, self.mean, self.std), torch.ones(n, dtype=torch.float64)

    def update(self, process: GaussianProcess, t: Tensor, loss: Tensor) -> None:
        """Nothing to learn."""


@dataclass
class LossAware:
    """Times drawn where the loss is large: p_b ∝ sqrt(mean of the last `memory` squared losses in bin b), weight 1/(bins·p_b).

    Uniform until every bin has `memory` losses; a share `floor` stays uniform so that no weight explodes. Unbiased whatever
    the history. The history is the sampler's only state: keep `state()` with a checkpoint.
    Source: Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 18.
    """

    bins: int = 100
    memory: int = 10
    floor: float = 0.001
    history: Tensor = field(default_factory=lambda: torch.empty(0))
    counts: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        if not self.history.numel():
            self.history = torch.zeros(self.bins, self.memory, dtype=torch.float64)
            self.counts = torch.zeros(self.bins, dtype=torch.long)

    def probabilities(self) -> Tensor:
        """p over the bins, (bins,) float64."""
        uniform = torch.full((self.bins,), 1 / self.bins, dtype=torch.float64)
        if bool((self.counts < self.memory).any()):
            return uniform
        p = self.history.square().mean(1).sqrt()
        if not 0 < float(p.sum()) < math.inf:  # all zero, or not a number: nothing to prefer
            return uniform
        return (1 - self.floor) * p / p.sum() + self.floor * uniform

    def draw(
        self, process: GaussianProcess, n: int, noise: Noise, *, step: int = 0, first: int = 0, total: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """(t, weight): a bin by its probability, then a uniform place within it."""
        u = noise.uniform((n, 2), stream="time", step=step, first=first)
        p = self.probabilities()
        b = torch.searchsorted(p.cumsum(0), u[:, 0].contiguous()).clamp(max=self.bins - 1)
        place = (b + u[:, 1]) / self.bins
        name = "discrete" if isinstance(process, Chain) else "uniform"
        return DISTRIBUTIONS[name](process, place, 0.0, 1.0), 1 / (self.bins * p[b])

    def update(self, process: GaussianProcess, t: Tensor, loss: Tensor) -> None:
        """Remember the losses (n,), unweighted, at times t (n,)."""
        if isinstance(process, Chain):
            # level k is drawn from the places (k - 1)/T … k/T: it belongs to every bin they touch, or short chains never fill
            k = (t * process.steps).round().long()
            low, high = (k - 1) * self.bins // process.steps, (k * self.bins - 1) // process.steps
        else:
            low = high = ((t - process.t_min) / (1 - process.t_min) * self.bins).long().clamp(0, self.bins - 1)
        for start, end, value in zip(low.tolist(), high.tolist(), loss.detach().tolist(), strict=True):
            for b in range(start, end + 1):
                self.history[b, int(self.counts[b]) % self.memory] = value
                self.counts[b] += 1

    def state(self) -> dict[str, Tensor]:
        """The history, for a checkpoint."""
        return {"history": self.history.clone(), "counts": self.counts.clone()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Put a history back."""
        if state["history"].shape != self.history.shape:
            raise ValueError(f"history of shape {tuple(state['history'].shape)} does not fit {tuple(self.history.shape)}")
        self.history.copy_(state["history"])
        self.counts.copy_(state["counts"])
