"""Gaussian data of any covariance, and the exact variational bound of a chain on them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ornstein.noise import Noise
from ornstein.operator import Operator
from ornstein.process import GaussianProcess, Posterior, gaussian_kl
from ornstein.process.gaussian import Time
from ornstein.testing.conditioning import condition, demand_density, eigen, independent_rows, ratio
from ornstein.testing.oracle import Oracle, column

REVERSE_VARIANCES = ("full", "isotropic", "transition", "posterior")
"""Reverse variances of the exact bound: the optimum per direction, the best single number, β, and β̃."""


class BoundTerms(NamedTuple):
    """Expected terms of the variational bound in nats, summed over dimensions: L_T, every L_{t-1} from noise to data, L_0."""

    prior: Tensor
    steps: Tensor
    decoder: Tensor

    @property
    def total(self) -> Tensor:
        """L_T + sum of L_{t-1} + L_0, an upper bound on the expected -log p(x0)."""
        return self.prior + self.steps.sum() + self.decoder


class GaussianDenoiser(Oracle):
    """Data N(mean, covariance): mean (D,), covariance (D, D) symmetric, positive semi-definite.

    E[x0|x_t] = m + U diag(alpha l/(alpha² l + sigma²)) Uᵀ (x_t - alpha m) with covariance = U diag(l) Uᵀ.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, process: GaussianProcess) -> None:
        self.mean = mean.to("cpu", torch.float64)
        self.covariance = covariance.to("cpu", torch.float64)
        self.process = process
        self.variances, self.directions = eigen(self.covariance)

    def _mean(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        gain = ratio(alpha * self.variances, alpha**2 * self.variances + sigma**2)
        return self.mean + ((x_t - alpha * self.mean) @ self.directions * gain) @ self.directions.T

    def posterior_variances(self, t: Time) -> Tensor:
        """Eigenvalues of Var[x0 | x_t] = l sigma²/(alpha² l + sigma²), (D,) or (B, D) for times (B,), whatever x_t."""
        alpha, sigma = (m.unsqueeze(-1) for m in self.process.moments(t))
        return ratio(self.variances * sigma**2, alpha**2 * self.variances + sigma**2)

    def posterior_covariance(self, x_t: Tensor, t: Time) -> Tensor:
        """Var[x0 | x_t], the same for all x_t: (B, D, D)."""
        covariance = self.directions * self.posterior_variances(t).unsqueeze(-2) @ self.directions.T
        return covariance.expand(x_t.shape[0], -1, -1)

    def marginal_variances(self, t: Time) -> Tensor:
        """Eigenvalues of Var[x_t] = alpha² l + sigma², (D,), or (B, D) for times (B,)."""
        alpha, sigma = (m.unsqueeze(-1) for m in self.process.moments(t))
        return alpha**2 * self.variances + sigma**2

    def log_prob(self, x_t: Tensor, t: Time = None) -> Tensor:
        """log N(x_t; alpha m, alpha² covariance + sigma² I); ValueError where that has no density."""
        alpha, _ = self.process.moments(t)
        variances = self.marginal_variances(t)
        demand_density(variances)
        centred = (x_t.flatten(1).to("cpu", torch.float64) - column(alpha) * self.mean) @ self.directions
        return -0.5 * (centred**2 / variances + variances.log() + math.log(2 * math.pi)).sum(1)

    def sample(self, n: int, noise: Noise, *, first: int = 0) -> Tensor:
        """m + U sqrt(l) z."""
        z = noise.normal((n, len(self.mean)), stream="oracle", first=first, dtype=torch.float64)
        return self.mean + (z * self.variances.clamp(min=0).sqrt()) @ self.directions.T

    def given(self, values: Tensor, operator: Operator | Tensor, noise_std: float | None = 0.0) -> GaussianDenoiser:
        """N(m + G (y - A m), C - G A C) with the gain G = C Aᵀ (A C Aᵀ + noise_std² I)⁺; see `Oracle.given`."""
        measurement = independent_rows(values, operator, noise_std, len(self.mean))
        after = condition(self.mean[None], self.covariance[None], measurement)
        if not bool(after.log_evidence.isfinite()):
            raise ValueError("values have probability 0: they leave the subspace of the data and noise_std=0; give a noise_std")
        return GaussianDenoiser(after.means[0], after.covariances[0], self.process)

    def flow(self, x_t: Tensor, t: Time, s: Time, *, tolerance: float = 1e-11) -> Tensor:
        """The closed form: alpha_s m + U diag(sqrt(Var_s/Var_t)) Uᵀ (x_t - alpha_t m); `tolerance` is not needed."""
        alpha_t, alpha_s = self.process.moments(t)[0], self.process.moments(s)[0]
        scale = ratio(self.marginal_variances(s), self.marginal_variances(t)).sqrt()
        centred = x_t.flatten(1).to("cpu", torch.float64) - column(alpha_t) * self.mean
        return (column(alpha_s) * self.mean + (centred @ self.directions * scale) @ self.directions.T).reshape(x_t.shape)

    def entropy(self) -> Tensor:
        """½ Σ log(2πe l) in nats."""
        return 0.5 * (self.variances.log() + math.log(2 * math.pi * math.e)).sum()

    def terminal_kl(self, t: Time = 1.0) -> Tensor:
        """KL(q(x_t) ‖ prior) in nats, of the marginal at time t."""
        alpha, _ = self.process.moments(t)
        prior = torch.tensor(self.process.prior_std**2, dtype=torch.float64)
        return gaussian_kl(alpha * self.mean @ self.directions, self.marginal_variances(t), torch.zeros_like(prior), prior).sum()

    def bound_terms(self, times: tuple[float, ...], variance: str = "full") -> BoundTerms:
        """The exact expected bound of the chain times[0] > times[1] > … → clean data, with the exact means.

        Reverse variances: "full" β̃ + B² Var[x0|x_t] per direction, "isotropic" its mean, "transition" β, "posterior" β̃
        (whose last step, where β̃ = 0, takes β). One term is, with V = Var[x0|x_t] and B the posterior's factor on x0,
        ½ Σ (β̃/τ - 1 - log(β̃/τ)) + B² V/(2τ). Source: Ho et al. 2020, arXiv 2006.11239, eq. 5; Bao et al. 2022, arXiv 2201.06503.
        """
        if variance not in REVERSE_VARIANCES:
            raise ValueError(f"variance={variance!r} is not one of {', '.join(REVERSE_VARIANCES)}")
        alpha, sigma = self.process.moments(times[0])
        prior = torch.tensor(self.process.prior_std**2, dtype=torch.float64)
        second_moment = alpha**2 * (self.variances + (self.mean @ self.directions) ** 2)
        zero = torch.zeros((), dtype=torch.float64)
        start = (gaussian_kl(zero, sigma**2, zero, prior) + second_moment / (2 * prior)).sum()
        levels = torch.tensor(times, dtype=torch.float64)
        p = Posterior(*(m.unsqueeze(-1) for m in self.process.posterior(levels[:-1], levels[1:])))  # (steps, 1)
        uncertain = p.on_x0**2 * self.posterior_variances(levels[:-1])  # (steps, D)
        tau = {
            "full": p.variance + uncertain,
            "isotropic": p.variance + uncertain.mean(-1, keepdim=True),
            "transition": p.transition,
            "posterior": p.variance,
        }[variance]
        steps = (gaussian_kl(zero, p.variance, zero, tau) + uncertain / (2 * tau)).sum(-1)
        uncertain = self.posterior_variances(times[-1])
        jump = self.process.posterior(times[-1], None).transition
        tau = {"full": uncertain, "isotropic": uncertain.mean()}.get(variance, jump)
        decoder = 0.5 * (torch.log(2 * math.pi * tau) + uncertain / tau).sum()
        return BoundTerms(start, steps, decoder)
