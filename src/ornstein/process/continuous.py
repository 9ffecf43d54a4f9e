"""The processes of the literature in continuous time; one's own f(t) and g(t) are `sde.LinearSDE`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.process.gaussian import MomentProcess


@dataclass(frozen=True)
class VP(MomentProcess):
    """Variance preserving: log alpha = -¼ t² (beta_max - beta_min) - ½ t beta_min, alpha² + sigma² = 1.

    The limit of the linear DDPM chain; f = -½ beta(t), g² = beta(t) = beta_min + t (beta_max - beta_min).
    Source: Song et al. 2021, arXiv 2011.13456, eq. 33.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3

    @property
    def prior_std(self) -> float:
        """1: the end law is taken as N(0, I)."""
        return 1.0

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def mean_variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(exp(log alpha), 1 - alpha²)."""
        log_alpha = self._log_alpha(t)
        return log_alpha.exp(), -torch.expm1(2 * log_alpha)

    def time_of(self, log_ratio: Tensor) -> Tensor:
        """The root of -2 log alpha = log(1 + (sigma/alpha)²)."""
        return self._time_of_loss(torch.nn.functional.softplus(2 * log_ratio))

    def _time_of_loss(self, loss: Tensor) -> Tensor:
        """t from -2 log alpha = loss, a quadratic in t written without cancellation."""
        slope, start = self.beta_max - self.beta_min, self.beta_min
        return (2 * loss / (start + torch.sqrt(start**2 + 2 * slope * loss))).clamp(0, 1)


@dataclass(frozen=True)
class SubVP(MomentProcess):
    """Sub-variance preserving: VP's alpha with sigma = 1 - alpha² (no square root), so g² = beta (1 - alpha⁴).

    Source: Song et al. 2021, arXiv 2011.13456, eq. 29.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3

    def mean_variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha of VP, (1 - alpha²)²)."""
        alpha, variance = VP(self.beta_min, self.beta_max).mean_variance(t)
        return alpha, variance**2

    def time_of(self, log_ratio: Tensor) -> Tensor:
        """alpha is the positive root of 1 - alpha² = alpha·ratio."""
        # alpha = sqrt(1 + r²/4) - r/2, so log alpha = -asinh(r/2)
        loss = 2 * torch.asinh(0.5 * log_ratio.exp())
        return VP(self.beta_min, self.beta_max)._time_of_loss(loss)


@dataclass(frozen=True)
class Cosine(MomentProcess):
    """alpha = cos(u)/cos(u_0) with u linear in t from u_0 = offset·π/2/(1 + offset), and alpha² + sigma² = 1.

    The limit of the cosine chain. u stops where log-SNR = `log_snr_end`: at u = π/2 alpha would be 0 and f infinite.
    Source: Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17.
    """

    offset: float = 0.008
    log_snr_end: float = -20.0
    t_min: float = 1e-3

    @property
    def prior_std(self) -> float:
        """1: the end law is taken as N(0, I)."""
        return 1.0

    @property
    def _range(self) -> tuple[float, float]:
        start = 0.5 * math.pi * self.offset / (1 + self.offset)
        alpha_end = math.sqrt(1 / (1 + math.exp(-self.log_snr_end)))
        return start, math.acos(alpha_end * math.cos(start))

    def mean_variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(cos u/cos u_0, sin(u - u_0) sin(u + u_0)/cos² u_0), the second free of cancellation."""
        start, end = self._range
        u = start + t * (end - start)
        return u.cos() / math.cos(start), torch.sin(u - start) * torch.sin(u + start) / math.cos(start) ** 2

    def time_of(self, log_ratio: Tensor) -> Tensor:
        """alpha = (1 + ratio²)^(-1/2), u = arccos(alpha cos u_0)."""
        start, end = self._range
        # tan² u = (1 - cos² u)/cos² u, written in sigma² = sigmoid(2 log_ratio) to keep digits near the data
        variance = torch.sigmoid(2 * log_ratio)
        sine = torch.sqrt(math.sin(start) ** 2 + variance * math.cos(start) ** 2)
        cosine = torch.sigmoid(-2 * log_ratio).sqrt() * math.cos(start)
        return ((torch.atan2(sine, cosine) - start) / (end - start)).clamp(0, 1)


@dataclass(frozen=True)
class VE(MomentProcess):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t; it starts at sigma_min.

    Source: Song et al. 2021, arXiv 2011.13456, eq. 30.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def mean_variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(1, sigma²)."""
        log_sigma = math.log(self.sigma_min) + t * math.log(self.sigma_max / self.sigma_min)
        return torch.ones_like(t), torch.exp(2 * log_sigma)

    def time_of(self, log_ratio: Tensor) -> Tensor:
        """log(sigma/sigma_min)/log(sigma_max/sigma_min)."""
        return ((log_ratio - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)).clamp(0, 1)


@dataclass(frozen=True)
class EDM(MomentProcess):
    """alpha = 1, sigma^(1/ρ) linear in t between sigma_min and sigma_max, so that a uniform grid in t is Karras's.

    Source: Karras et al. 2022, arXiv 2206.00364, eq. 5.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def mean_variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(1, (sigma_min^(1/ρ) + t (sigma_max^(1/ρ) - sigma_min^(1/ρ)))^(2ρ))."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return torch.ones_like(t), (low + t * (high - low)) ** (2 * self.rho)

    def time_of(self, log_ratio: Tensor) -> Tensor:
        """(sigma^(1/ρ) - sigma_min^(1/ρ))/(sigma_max^(1/ρ) - sigma_min^(1/ρ))."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return ((torch.exp(log_ratio / self.rho) - low) / (high - low)).clamp(0, 1)


@dataclass(frozen=True)
class Rectified(MomentProcess):
    """alpha = 1 - t, sigma = t: straight lines from data to noise. alpha(1) = 0 exactly.

    Source: Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2022, arXiv 2210.02747.
    """

    t_min: float = 1e-3

    def mean_variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(1 - t, t²)."""
        return 1 - t, t**2

    def time_of(self, log_ratio: Tensor) -> Tensor:
        """ratio/(1 + ratio)."""
        return torch.sigmoid(log_ratio)

    def noise_label(self, t: Tensor) -> Tensor:
        """1000·t: half the log ratio is infinite at t = 1."""
        return 1000 * t
