"""Discrete chains: T steps x_k = sqrt(1 - beta_k) x_{k-1} + sqrt(beta_k) z, from any array of betas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ornstein.process.gaussian import MomentProcess


@dataclass(frozen=True)
class Chain(MomentProcess):
    """The chain of `betas` (T of them, the variances of the forward steps); step k sits at t = k/T, k = 0 is the data.

    alpha_k² = Π_{i ≤ k} (1 - beta_i), sigma_k² = 1 - alpha_k². Between levels log-SNR is linear (alpha is, in the last
    step of a chain whose last beta is 1); between 0 and 1/T the chain is not defined: plans stop at k = 1 and denoise.
    Source: Ho et al. 2020, arXiv 2006.11239.
    """

    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.betas) < 2 or not all(0 < beta <= 1 for beta in self.betas) or any(b == 1 for b in self.betas[:-1]):
            raise ValueError(f"betas={_abridged(self.betas)} must be at least two variances in (0, 1); only the last may be 1")

    @property
    def steps(self) -> int:
        """T, the number of forward steps."""
        return len(self.betas)

    @property
    def t_min(self) -> float:  # type: ignore[override]
        """1/T, the time of the first noisy level."""
        return 1 / self.steps

    @property
    def prior_std(self) -> float:
        """1: the end law is taken as N(0, I)."""
        return 1.0

    @cached_property
    def _log_alpha2(self) -> Tensor:
        """log of the cumulative product, k = 0 … T."""
        steps = torch.log1p(-torch.tensor(self.betas, dtype=torch.float64)).cumsum(0)
        return torch.cat([torch.zeros(1, dtype=torch.float64), steps])

    @cached_property
    def _log_ratios(self) -> Tensor:
        """log(sigma/alpha) at k = 1 … T."""
        return 0.5 * torch.log(torch.expm1(-self._log_alpha2[1:]))

    def mean_variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma²) at t = k/T from the product, in between from the linear log-SNR."""
        k = t * self.steps
        nearest = k.detach().round()
        on_level = (k - nearest).abs() < 1e-9 * self.steps
        if bool(((k < 1) & ~on_level).any()):
            raise ValueError(f"t={t.min().item():g} lies between the data and the chain's first level 1/T={self.t_min:g}")
        # a level belongs to the step that led to it, so that its rates are those of its own beta
        lower = (torch.where(on_level, nearest, k.detach()).ceil() - 1).clamp(1, self.steps - 1).long()
        weight = k - lower
        ratios = self._log_ratios.nan_to_num(posinf=0.0)  # alpha = 0 is handled below; inf here would spoil the gradient
        ratio = ratios[lower - 1] * (1 - weight) + ratios[lower] * weight
        alpha2, variance = torch.sigmoid(-2 * ratio), torch.sigmoid(2 * ratio)
        if self.betas[-1] == 1:
            last = lower == self.steps - 1
            alpha = torch.exp(0.5 * self._log_alpha2[-2]) * (self.steps - k)
            alpha2 = torch.where(last, alpha**2, alpha2)
            variance = torch.where(last, 1 - alpha**2, variance)
        exact = self._log_alpha2[nearest.long()]
        if not t.requires_grad:
            alpha2 = torch.where(on_level, exact.exp(), alpha2)
            variance = torch.where(on_level, -torch.expm1(exact), variance)
        return alpha2.sqrt(), variance

    def time_of(self, log_ratio: Tensor) -> Tensor:
        """By linear interpolation, exact since log-SNR is piecewise linear; never below 1/T."""
        import numpy as np

        finite = self._log_ratios[self._log_ratios.isfinite()]
        k = np.interp(log_ratio.numpy(), finite.numpy(), np.arange(1, len(finite) + 1, dtype=np.float64))
        return torch.as_tensor(k, dtype=torch.float64) / self.steps

    def noise_label(self, t: Tensor) -> Tensor:
        """k = T·t, the index that a DDPM network is told."""
        return t * self.steps


def linear_betas(steps: int = 1000, low: float = 1e-4, high: float = 0.02) -> tuple[float, ...]:
    """Linear from low to high: the DDPM chain for T = 1000 (arXiv 2006.11239)."""
    return tuple(torch.linspace(low, high, steps, dtype=torch.float64).tolist())


def scaled_linear_betas(steps: int = 1000, low: float = 0.0015, high: float = 0.0195) -> tuple[float, ...]:
    """Square of a linear ramp of standard deviations: the latent-diffusion chain (arXiv 2112.10752)."""
    return tuple((torch.linspace(low**0.5, high**0.5, steps, dtype=torch.float64) ** 2).tolist())


def cosine_betas(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> tuple[float, ...]:
    """From alpha_k² = cos²(½π (k/T + offset)/(1 + offset)), with beta ≤ `largest` (arXiv 2102.09672, eq. 17)."""
    u = [0.5 * math.pi * (k / steps + offset) / (1 + offset) for k in range(steps + 1)]
    return tuple(min(1 - (math.cos(u[k + 1]) / math.cos(u[k])) ** 2, largest) for k in range(steps))


def sigmoid_betas(
    steps: int = 1000, start: float = -3.0, end: float = 3.0, temperature: float = 1.0, largest: float = 0.999
) -> tuple[float, ...]:
    """From alpha_k² falling like a sigmoid between `start` and `end` (Jabri et al. 2022, arXiv 2212.11972)."""
    u = torch.linspace(start, end, steps + 1, dtype=torch.float64) / temperature
    curve = torch.sigmoid(-u)
    alpha2 = (curve - curve[-1]) / (curve[0] - curve[-1])
    return tuple((1 - alpha2[1:] / alpha2[:-1]).clamp(max=largest).tolist())


def zero_terminal_snr(betas: Sequence[float]) -> tuple[float, ...]:
    """`betas` with sqrt(alpha²) shifted and scaled so that the last level holds no signal and the first stays as it was.

    Source: Lin et al. 2023, arXiv 2305.08891, algorithm 1.
    """
    alpha = torch.exp(0.5 * torch.log1p(-torch.tensor(betas, dtype=torch.float64)).cumsum(0))
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha[:-1]])
    return tuple((1 - (alpha / previous) ** 2).tolist())


BETAS: dict[str, Callable[..., tuple[float, ...]]] = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "cosine": cosine_betas,
    "sigmoid": sigmoid_betas,
}


def _abridged(betas: Sequence[float]) -> str:
    return str(list(betas)) if len(betas) <= 4 else f"[{betas[0]:g}, {betas[1]:g}, …, {betas[-1]:g}] ({len(betas)})"
