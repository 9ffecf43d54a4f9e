"""A conditional denoiser with exact answers, and what guidance makes of normal laws, which is no tilted density."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ornstein.denoiser import Condition, Prediction
from ornstein.process import GaussianProcess
from ornstein.process.gaussian import Time
from ornstein.testing.gaussian import GaussianDenoiser
from ornstein.testing.oracle import Oracle


@dataclass(frozen=True)
class ClassOracle:
    """What a network trained with condition dropout would learn: E[x0 | x_t, c] where `label` says c, and E[x0 | x_t].

    `laws` (K) are oracles of the classes, `marginal` that of all data, on one process. The condition is that of the networks:
    `label` (B,) integer, and `null` (B,) bool, True where it is withheld. ValueError for laws of several processes.
    """

    laws: Sequence[Oracle]
    marginal: Oracle

    def __post_init__(self) -> None:
        if any(law.process != self.marginal.process for law in self.laws):
            raise ValueError("the laws of the classes and the marginal are on different processes; give them one")

    @property
    def process(self) -> GaussianProcess:
        """The process of the laws."""
        return self.marginal.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        """The exact prediction at x_t (B, *) and t, a number or (B,), under a condition of B rows or none."""
        free = self.marginal(x_t, t)
        if cond is None or "label" not in cond:
            return free
        null = cond.get("null", torch.zeros_like(cond["label"], dtype=torch.bool))
        x0 = free.x0
        for k, law in enumerate(self.laws):
            mine = (cond["label"] == k) & ~null
            if bool(mine.any()):
                x0 = torch.where(mine.reshape(-1, *[1] * (x_t.ndim - 1)), law(x_t, t).x0, x0)
        return free.with_x0(x0)


@dataclass(frozen=True)
class GuidedNormal:
    """p(x) = N(0, free_std²) and p(x | c) = N(mean, std²) in one dimension: all that guidance by γ makes of them, exactly.

    The guided score is (1-γ)·∇ log p_t(x) + γ·∇ log p_t(x | c). Its flow and its reverse equation keep normal laws normal, but
    end in different ones, and neither in the tilted density ∝ p(x)^(1-γ) p(x | c)^γ whose score it is at t = 0: at t > 0 it is
    not the score of the noised tilted density. `oracle` is the denoiser to be guided.
    """

    mean: float
    std: float
    free_std: float
    process: GaussianProcess

    @property
    def oracle(self) -> ClassOracle:
        """The denoiser of class 0, and of no class."""
        laws = (
            GaussianDenoiser(torch.tensor([mean]), torch.tensor([[std**2]]), self.process)
            for mean, std in ((self.mean, self.std), (0.0, self.free_std))
        )
        conditional, marginal = laws
        return ClassOracle((conditional,), marginal)

    def tilted(self, scale: float) -> tuple[float, float]:
        """(mean, std) of the density ∝ p(x)^(1-γ) p(x | c)^γ; NaN where there is none."""
        precision = (1 - scale) / self.free_std**2 + scale / self.std**2
        if precision <= 0:
            return math.nan, math.nan
        return scale * self.mean / self.std**2 / precision, precision**-0.5

    def moments(self, scale: float | Callable[[float], float], tau: float = 0.0) -> tuple[float, float]:
        """(mean, std) at t = 0 of dx = (f x - ½(1 + tau²) g² score) dt + tau g dw̄ begun at the prior N(0, prior_std²).

        tau = 0 is the flow, 1 the reverse equation; `scale` γ is a number or a function of t. With y = x/alpha and
        u = log(sigma/alpha): E[y]' = (1+tau²)(E[y] - x0(E[y])), Var[y]' = 2(1+tau²)(1 - x0')Var[y] - 2 tau² e^2u, where x0 is
        affine, by DOP853 to 1e-10. The process matters through its last noise level alone.
        """
        from scipy.integrate import solve_ivp

        def slope(u: float, state: np.ndarray) -> list[float]:
            noise = math.exp(2 * u)
            gamma = scale(float(self.process.time_of(torch.tensor(u, dtype=torch.float64)))) if callable(scale) else scale
            free, given = noise / (self.free_std**2 + noise), noise / (self.std**2 + noise)
            pull = (1 - gamma) * free + gamma * given
            factor = 1 + tau**2
            return [factor * (pull * state[0] - gamma * self.mean * given), 2 * factor * pull * state[1] - 2 * tau**2 * noise]

        alpha, sigma = (float(m) for m in self.process.moments(1.0))
        if alpha == 0:
            raise ValueError("the process ends without signal (alpha = 0): its flow in x/alpha starts at infinity; take another")
        begin = [0.0, (self.process.prior_std / alpha) ** 2]
        start = math.log(sigma / alpha)
        end = solve_ivp(slope, (start, -14.0), begin, method="DOP853", rtol=1e-10, atol=1e-13).y[:, -1]
        return float(end[0]), math.sqrt(float(end[1]))
