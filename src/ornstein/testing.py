"""Denoisers with exact answers: Gaussian data, mixtures of Gaussians, and a finite data set.

They have the interface of a `Denoiser`, so that every loss, sampler and likelihood can be held against the truth. All
arithmetic is in float64 on the CPU; predictions come back in the dtype and on the device of x_t. Data may have any shape
(B, *); means and covariances are over the D flattened numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ornstein.denoiser import Condition, Prediction
from ornstein.noise import Noise
from ornstein.process import GaussianProcess, Posterior, align, gaussian_kl
from ornstein.process.gaussian import Time

REVERSE_VARIANCES = ("full", "isotropic", "transition", "posterior")
"""Reverse variances of the exact bound: the optimum per direction, the best single number, β, and β̃."""


class Oracle(ABC):
    """A denoiser that knows the law of its data; `process` is the process that corrupts them."""

    process: GaussianProcess

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        """The exact prediction at x_t (B, *) and t, a number or (B,). An oracle takes no condition."""
        if cond is not None:
            raise ValueError(f"cond={sorted(cond)} was given to {type(self).__name__}, which has no condition; pass None")
        alpha, sigma = self.process.moments(t)
        flat = x_t.flatten(1).to(device="cpu", dtype=torch.float64)
        x0 = self._mean(flat, align(alpha, flat), align(sigma, flat))
        return Prediction.from_x0(x_t, alpha, sigma, x0.reshape(x_t.shape).to(x_t))

    @abstractmethod
    def _mean(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x_t] for x_t (B, D)."""

    @abstractmethod
    def posterior_covariance(self, x_t: Tensor, t: Time) -> Tensor:
        """Var[x0 | x_t], (B, D, D), float64."""

    @abstractmethod
    def log_prob(self, x_t: Tensor, t: Time = None) -> Tensor:
        """log p_t(x_t) in nats, (B,), float64; t = None is the density of the data."""

    @abstractmethod
    def sample(self, n: int, noise: Noise, *, first: int = 0) -> Tensor:
        """n data, (n, D) in float64, keyed by stream "oracle"."""

    def flow(self, x_t: Tensor, t: Time, s: Time, *, tolerance: float = 1e-11) -> Tensor:
        """The probability-flow map from time t to s of x_t (B, *), float64.

        With y = x/alpha and u = log(sigma/alpha): dy/du = y - x0, solved by DOP853 to a relative `tolerance`. s = None (clean
        data) goes to the lowest noise at which the posterior has collapsed, exp(-18) of the data's scale, and denoises.
        """
        from scipy.integrate import solve_ivp

        alpha, sigma = (float(m) for m in self.process.moments(t))
        if alpha == 0:
            raise ValueError(f"t={t} holds no signal (alpha = 0): the flow in x/alpha starts at infinity; start below it")
        start = math.log(sigma / alpha)
        end = -18.0 if s is None else float(self.process.log_ratio(s))
        shape = x_t.shape
        one = torch.ones((), dtype=torch.float64)

        def slope(u: float, flat: np.ndarray) -> np.ndarray:
            y = torch.as_tensor(flat).reshape(shape[0], -1)
            return (y - self._mean(y, one, torch.tensor(math.exp(u), dtype=torch.float64))).reshape(-1).numpy()

        begin = (x_t.to("cpu", torch.float64) / alpha).reshape(-1).numpy()
        solved = solve_ivp(slope, (start, end), begin, method="DOP853", rtol=tolerance, atol=tolerance * 1e-2)
        y = torch.as_tensor(solved.y[:, -1]).reshape(shape[0], -1)
        if s is None:
            return self._mean(y, one, torch.tensor(math.exp(end), dtype=torch.float64)).reshape(shape)
        return (y * self.process.moments(s)[0]).reshape(shape)


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
        self.variances, self.directions = torch.linalg.eigh(self.covariance)

    def _mean(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
        return self.mean + ((x_t - alpha * self.mean) @ self.directions * gain) @ self.directions.T

    def posterior_variances(self, t: Time) -> Tensor:
        """Eigenvalues of Var[x0 | x_t] = l sigma²/(alpha² l + sigma²), (D,) or (B, D) for times (B,), whatever x_t."""
        alpha, sigma = (m.unsqueeze(-1) for m in self.process.moments(t))
        return self.variances * sigma**2 / (alpha**2 * self.variances + sigma**2)

    def posterior_covariance(self, x_t: Tensor, t: Time) -> Tensor:
        """Var[x0 | x_t], the same for all x_t: (B, D, D)."""
        covariance = self.directions * self.posterior_variances(t).unsqueeze(-2) @ self.directions.T
        return covariance.expand(x_t.shape[0], -1, -1)

    def marginal_variances(self, t: Time) -> Tensor:
        """Eigenvalues of Var[x_t] = alpha² l + sigma², (D,), or (B, D) for times (B,)."""
        alpha, sigma = (m.unsqueeze(-1) for m in self.process.moments(t))
        return alpha**2 * self.variances + sigma**2

    def log_prob(self, x_t: Tensor, t: Time = None) -> Tensor:
        """log N(x_t; alpha m, alpha² covariance + sigma² I)."""
        alpha, _ = self.process.moments(t)
        variances = self.marginal_variances(t)
        centred = (x_t.flatten(1).to("cpu", torch.float64) - _column(alpha) * self.mean) @ self.directions
        return -0.5 * (centred**2 / variances + variances.log() + math.log(2 * math.pi)).sum(1)

    def sample(self, n: int, noise: Noise, *, first: int = 0) -> Tensor:
        """m + U sqrt(l) z."""
        z = noise.normal((n, len(self.mean)), stream="oracle", first=first, dtype=torch.float64)
        return self.mean + (z * self.variances.clamp(min=0).sqrt()) @ self.directions.T

    def flow(self, x_t: Tensor, t: Time, s: Time, *, tolerance: float = 1e-11) -> Tensor:
        """The closed form: alpha_s m + U diag(sqrt(Var_s/Var_t)) Uᵀ (x_t - alpha_t m); `tolerance` is not needed."""
        alpha_t, alpha_s = self.process.moments(t)[0], self.process.moments(s)[0]
        scale = (self.marginal_variances(s) / self.marginal_variances(t)).sqrt()
        centred = x_t.flatten(1).to("cpu", torch.float64) - _column(alpha_t) * self.mean
        return (_column(alpha_s) * self.mean + (centred @ self.directions * scale) @ self.directions.T).reshape(x_t.shape)

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
        if abs(float(self.weights.sum()) - 1) > 1e-6 or bool((self.weights < 0).any()):
            raise ValueError(f"weights={weights.tolist()} must be non-negative and sum to 1; divide them by their sum")

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
        centres = self.means + shrink.unsqueeze(-1) * (flat.unsqueeze(1) - _column(alpha) * self.means)
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
        u = noise.uniform((n,), stream="oracle/component", first=first)
        k = torch.searchsorted(self.weights.cumsum(0), u).clamp(max=len(self.weights) - 1)
        z = noise.normal((n, self.means.shape[1]), stream="oracle", first=first, dtype=torch.float64)
        return self.means[k] + self.stds[k].unsqueeze(1) * z


def _column(alpha: Tensor) -> Tensor:
    return alpha.unsqueeze(-1) if alpha.ndim else alpha


def empirical_denoiser(data: Tensor, process: GaussianProcess) -> MixtureDenoiser:
    """The exact denoiser of a finite data set (N, *): what a network that memorises perfectly would learn.

    E[x0|x_t] = Σ_i softmax(-|x_t - alpha x_i|²/(2 sigma²)) x_i: a mixture of N equal points.
    """
    n = len(data)
    return MixtureDenoiser(data, torch.zeros(n), torch.full((n,), 1 / n, dtype=torch.float64), process)
