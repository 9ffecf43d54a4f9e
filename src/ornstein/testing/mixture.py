"""Mixtures of normal laws, round or of any covariance, and a finite data set."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from ornstein.noise import Noise
from ornstein.operator import Operator
from ornstein.process import GaussianProcess, align
from ornstein.process.gaussian import Time
from ornstein.testing.conditioning import condition, demand_density, eigen, independent_rows, ratio
from ornstein.testing.oracle import Oracle, column


class MixtureDenoiser(Oracle):
    """Data Σ_k w_k N(m_k, s_k² I): means (K, D), stds (K,), weights (K,) that sum to 1. A std may be 0.

    E[x0|x_t] = Σ r_k (m_k + alpha s_k²/V_k (x_t - alpha m_k)), V_k = alpha² s_k² + sigma², r the responsibilities.
    """

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor, process: GaussianProcess) -> None:
        self.means = means.to("cpu", torch.float64).flatten(1)
        self.stds = stds.to("cpu", torch.float64)
        self.weights = weights.to("cpu", torch.float64)
        self.process = process
        if self.stds.shape != self.weights.shape or self.stds.shape != self.means.shape[:1]:
            raise ValueError(
                f"means {tuple(means.shape)}, stds {tuple(stds.shape)}, weights {tuple(weights.shape)} must be (K, D), (K,), (K,)"
            )
        _check_weights(self.weights)

    def _components(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Joint log-densities (B, K), and the factor that shrinks x_t - alpha m_k, and V_k, both (B or 1, K)."""
        variance = (alpha * self.stds) ** 2 + sigma**2
        scaled = self.means * alpha.unsqueeze(-1) if alpha.ndim else self.means * alpha
        # the direct difference keeps the digits that |x|² - 2xm + |m|² would lose at small noise
        distance = torch.cdist(x_t.unsqueeze(1), scaled, compute_mode="donot_use_mm_for_euclid_dist").squeeze(1)
        normaliser = -0.5 * x_t.shape[1] * torch.log(2 * math.pi * variance)
        return self.weights.log() + normaliser - 0.5 * distance**2 / variance, alpha * self.stds**2 / variance, variance

    def _mean(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        joint, shrink, _ = self._components(x_t, alpha, sigma)
        r = joint.softmax(1)
        pulled = r * shrink
        return r @ self.means + pulled.sum(1, keepdim=True) * x_t - alpha * (pulled @ self.means)

    def posterior_covariance(self, x_t: Tensor, t: Time) -> Tensor:
        """Σ r_k (C_k I + μ_k μ_kᵀ) - E[x0|x_t] E[x0|x_t]ᵀ with C_k = s_k² sigma²/V_k, (B, D, D)."""
        flat = x_t.flatten(1).to("cpu", torch.float64)
        alpha, sigma = (align(m, flat) for m in self.process.moments(t))
        joint, shrink, variance = self._components(flat, alpha, sigma)
        r = joint.softmax(1)
        centres = self.means + shrink.unsqueeze(-1) * (flat.unsqueeze(1) - column(alpha) * self.means)
        mean = (r.unsqueeze(-1) * centres).sum(1)
        spread = (r * self.stds**2 * sigma**2 / variance).sum(1)[:, None, None] * torch.eye(flat.shape[1], dtype=torch.float64)
        offset = centres - mean.unsqueeze(1)
        return spread + torch.einsum("bk,bki,bkj->bij", r, offset, offset)

    def log_prob(self, x_t: Tensor, t: Time = None) -> Tensor:
        """log Σ w_k N(x_t; alpha m_k, V_k I)."""
        flat = x_t.flatten(1).to("cpu", torch.float64)
        alpha, sigma = (align(m, flat) for m in self.process.moments(t))
        return self._components(flat, alpha, sigma)[0].logsumexp(1)

    def sample(self, n: int, noise: Noise, *, first: int = 0) -> Tensor:
        """A component by its weight, then a normal."""
        k = _choose(self.weights, n, noise, first)
        z = noise.normal((n, self.means.shape[1]), stream="oracle", first=first, dtype=torch.float64)
        return self.means[k] + self.stds[k].unsqueeze(1) * z

    def full(self) -> FullMixtureDenoiser:
        """The same law with its covariances s_k² I written out, (K, D, D)."""
        covariances = self.stds.square()[:, None, None] * torch.eye(self.means.shape[1], dtype=torch.float64)
        return FullMixtureDenoiser(self.means, covariances, self.weights, self.process)

    def given(self, values: Tensor, operator: Operator | Tensor, noise_std: float | None = 0.0) -> FullMixtureDenoiser:
        """The mixture of the components' posteriors, weighted by w_k p_k(y); see `FullMixtureDenoiser.given`."""
        return self.full().given(values, operator, noise_std)


class FullMixtureDenoiser(Oracle):
    """Data Σ_k w_k N(m_k, C_k): means (K, D), covariances (K, D, D) positive semi-definite, weights (K,) that sum to 1.

    E[x0|x_t] = Σ r_k (m_k + alpha C_k V_k⁻¹ (x_t - alpha m_k)), V_k = alpha² C_k + sigma² I, r the responsibilities.
    `MixtureDenoiser` is the case C_k = s_k² I, and far cheaper.
    """

    def __init__(self, means: Tensor, covariances: Tensor, weights: Tensor, process: GaussianProcess) -> None:
        self.means = means.to("cpu", torch.float64)
        self.covariances = covariances.to("cpu", torch.float64)
        self.weights = weights.to("cpu", torch.float64)
        self.process = process
        k, d = self.means.shape
        if self.covariances.shape != (k, d, d) or self.weights.shape != (k,):
            raise ValueError(
                f"means {tuple(means.shape)}, covariances {tuple(covariances.shape)}, weights {tuple(weights.shape)} must be "
                "(K, D), (K, D, D), (K,)"
            )
        _check_weights(self.weights)
        self.variances, self.directions = eigen(self.covariances)

    def _components(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Responsibilities (B, K) in logs, up to a constant where some V_k is singular; U_kᵀ(x_t - alpha m_k) and V_k's
        eigenvalues, (B or 1, K, D)."""
        along = torch.einsum("bkd,kde->bke", x_t.unsqueeze(1) - column(alpha) * self.means, self.directions)
        spread = column(alpha) ** 2 * self.variances + column(sigma) ** 2
        normaliser = torch.where(spread > 0, (2 * math.pi * spread.clamp(min=1e-300)).log(), 0.0)
        return self.weights.log() - 0.5 * (ratio(along.square(), spread) + normaliser).sum(-1), along, spread

    def _posteriors(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Responsibilities (B, K), E[x0|x_t, k] (B, K, D), and V_k's eigenvalues."""
        joint, along, spread = self._components(x_t, alpha, sigma)
        pulled = along * ratio(column(alpha) * self.variances, spread)
        return joint.softmax(1), self.means + torch.einsum("bke,kde->bkd", pulled, self.directions), spread

    def _mean(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        r, centres, _ = self._posteriors(x_t, alpha, sigma)
        return torch.einsum("bk,bkd->bd", r, centres)

    def posterior_covariance(self, x_t: Tensor, t: Time) -> Tensor:
        """Σ r_k (S_k + μ_k μ_kᵀ) - E[x0|x_t] E[x0|x_t]ᵀ with S_k = sigma² C_k V_k⁻¹, (B, D, D)."""
        flat = x_t.flatten(1).to("cpu", torch.float64)
        alpha, sigma = (align(m, flat) for m in self.process.moments(t))
        r, centres, spread = self._posteriors(flat, alpha, sigma)
        inner = ratio(self.variances * column(sigma) ** 2, spread).expand(len(flat), -1, -1)
        within = torch.einsum("bk,bke,kde,kfe->bdf", r, inner, self.directions, self.directions)
        offset = centres - torch.einsum("bk,bkd->bd", r, centres).unsqueeze(1)
        return within + torch.einsum("bk,bki,bkj->bij", r, offset, offset)

    def log_prob(self, x_t: Tensor, t: Time = None) -> Tensor:
        """log Σ w_k N(x_t; alpha m_k, V_k); ValueError where some V_k is singular."""
        flat = x_t.flatten(1).to("cpu", torch.float64)
        alpha, sigma = (align(m, flat) for m in self.process.moments(t))
        joint, _, spread = self._components(flat, alpha, sigma)
        demand_density(spread)
        return joint.logsumexp(1)

    def sample(self, n: int, noise: Noise, *, first: int = 0) -> Tensor:
        """A component by its weight, then m_k + U_k sqrt(l_k) z."""
        k = _choose(self.weights, n, noise, first)
        z = noise.normal((n, self.means.shape[1]), stream="oracle", first=first, dtype=torch.float64)
        stretched = z * self.variances.clamp(min=0).sqrt()[k]
        return self.means[k] + torch.einsum("nde,ne->nd", self.directions[k], stretched)

    @cached_property
    def mean(self) -> Tensor:
        """E[x0], (D,)."""
        return self.weights @ self.means

    @cached_property
    def covariance(self) -> Tensor:
        """Cov[x0] = Σ w_k (C_k + (m_k - mean)(m_k - mean)ᵀ), (D, D)."""
        centred = self.means - self.mean
        within = torch.einsum("k,kij->ij", self.weights, self.covariances)
        return within + torch.einsum("k,ki,kj->ij", self.weights, centred, centred)

    def given(self, values: Tensor, operator: Operator | Tensor, noise_std: float | None = 0.0) -> FullMixtureDenoiser:
        """The mixture of the components' posteriors, weighted by w_k p_k(y); see `Oracle.given`.

        Without noise a component that the measurement confines to fewer dimensions, and that can give y, outweighs the others
        altogether, as a point does a density.
        """
        measurement = independent_rows(values, operator, noise_std, self.means.shape[1])
        after = condition(self.means, self.covariances, measurement)
        possible = after.log_evidence.isfinite() & (self.weights > 0)
        if not bool(possible.any()):
            raise ValueError("values have probability 0 under every component and noise_std=0; give a noise_std")
        kept = possible & (after.ranks == after.ranks[possible].min())
        weights = (self.weights[kept].log() + after.log_evidence[kept]).softmax(0)
        return FullMixtureDenoiser(after.means[kept], after.covariances[kept], weights, self.process)


def _check_weights(weights: Tensor) -> None:
    if abs(float(weights.sum()) - 1) > 1e-6 or bool((weights < 0).any()):
        raise ValueError(f"weights={weights.tolist()} must be non-negative and sum to 1; divide them by their sum")


def _choose(weights: Tensor, n: int, noise: Noise, first: int) -> Tensor:
    """Components (n,) by weight."""
    u = noise.uniform((n,), stream="oracle/component", first=first)
    return torch.searchsorted(weights.cumsum(0), u).clamp(max=len(weights) - 1)


def empirical_denoiser(data: Tensor, process: GaussianProcess) -> MixtureDenoiser:
    """The exact denoiser of a finite data set (N, *): what a network that memorises perfectly would learn.

    E[x0|x_t] = Σ_i softmax(-|x_t - alpha x_i|²/(2 sigma²)) x_i: a mixture of N equal points.
    """
    n = len(data)
    return MixtureDenoiser(data, torch.zeros(n), torch.full((n,), 1 / n, dtype=torch.float64), process)
