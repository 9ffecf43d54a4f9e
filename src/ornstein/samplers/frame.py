"""The frame in which a view H of the denoiser drives the probability flow alone, and the steps that use it.

With X = x/scale(t) and the growth r(t) of the table below, the flow is dX = H dr: no linear drift is left, and a step is

    x_s = scale_s (x_t/scale_t + Σ_j W_j H_j)         W_j = ∫_t^s ℓ_j dr

with ℓ_j the Lagrange polynomials, in a variable of the sampler's choice, on the nodes where H_j was evaluated. Every
exponential integrator (DDIM, DPM-Solver, DPM-Solver++, DEIS, UniPC, LMS) is a choice of view, variable and nodes; all of
them are exact for a constant H. Source: Zhang and Chen 2023, arXiv 2204.13902; Lu et al. 2022, arXiv 2206.00927.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ornstein.denoiser import COEFFICIENTS
from ornstein.grid import Grid, Spacing, make
from ornstein.process import GaussianProcess
from ornstein.samplers.plan import Row, Terms

Jump = tuple[float, float | None]
Weights = Sequence[float]

_QUIETEST = 7.0
"""Largest log(sigma/alpha) at which plans of the eps view start: the law there differs from the prior's by 4e-7 nats per
dimension, and noisier starts would lose x0 to the rounding of float32."""

Array = NDArray[np.float64]


class Motion(NamedTuple):
    """What a view's frame is: scale from (alpha, sigma), growth r and its slope dr/dlambda from lambda = log(alpha/sigma)."""

    scale: Callable[[float, float], float]
    growth: Callable[[Array], Array]
    slope: Callable[[Array], Array]


FRAMES: dict[str, Motion] = {
    "eps": Motion(lambda a, s: a, lambda u: np.exp(-u), lambda u: -np.exp(-u)),
    "x0": Motion(lambda a, s: s, np.exp, np.exp),
    "v": Motion(math.hypot, lambda u: np.arctan(np.exp(-u)), lambda u: -0.5 / np.cosh(u)),
}
"""r is sigma/alpha, alpha/sigma, and the angle atan(sigma/alpha)."""


@dataclass(frozen=True)
class Frame:
    """The frame of one view ("x0", "eps" or "v") of a process; times are floats, None is clean data."""

    process: GaussianProcess
    view: str
    _levels: dict[float | None, tuple[float, float, float]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.view not in FRAMES:
            raise ValueError(f"view={self.view!r} is not one of {', '.join(FRAMES)}")

    def jumps(self, calls: int, grid: str | Spacing | Grid, end: float | None) -> list[Jump]:
        """(t, s) of `calls` steps: to clean data, or to the noise level at time `end`.

        Times given as such are those of the calls; a grid by name begins at `start`.
        """
        if end is not None and not (0 <= end < self.start and floats(self.process, end)[1] > 0):
            raise ValueError(f"end={end} must lie below {self.start:g} and hold some noise; None goes to clean data")
        times = make(self.process, calls, grid, start=self.start, end=end)
        if self.view == "eps" and self._level(times[0])[0] == 0:
            raise ValueError(f"grid starts at t={times[0]:g}, where eps says nothing of x0; start it where alpha > 0")
        return list(zip(times, (*times[1:], end), strict=True))

    @property
    def start(self) -> float:
        """The time at which grids begin: 1, or for the eps view where log(sigma/alpha) = 7 if the process goes beyond."""
        if self.view != "eps" or float(self.process.log_ratio(1.0)) <= _QUIETEST:
            return 1.0
        return self.time_at(-_QUIETEST)

    def scale(self, t: float | None) -> float:
        """The factor between x and X."""
        return FRAMES[self.view].scale(*self._level(t)[:2])

    def growth(self, t: float | None) -> float:
        """r(t)."""
        return float(FRAMES[self.view].growth(np.array(self._level(t)[2])))

    def log_snr(self, t: float) -> float:
        """lambda = log(alpha/sigma); -inf where alpha = 0."""
        return self._level(t)[2]

    def _level(self, t: float | None) -> tuple[float, float, float]:
        """(alpha, sigma, lambda) at t, computed once for all the weights of a plan that ask for it."""
        if t not in self._levels:
            alpha, sigma = floats(self.process, t)
            self._levels[t] = alpha, sigma, -float(self.process.log_ratio(t))
        return self._levels[t]

    def time_at(self, log_snr: float) -> float:
        """The time of lambda."""
        return float(self.process.time_of(torch.tensor(-log_snr, dtype=torch.float64)))

    def integrals(self, variable: str, nodes: Sequence[float], t: float, s: float, tau: float = 0.0) -> list[float]:
        """W_j = ∫_t^s ℓ_j(u) dr for the nodes, which are times; u is time "t", "lambda" or the growth "r" itself.

        `tau` > 0 (x0 view) weighs by (1 + tau²) e^{-tau² (lambda_s - lambda)}: the mean of the reverse equation with noise
        tau·g instead of the flow. By Gauss-Legendre quadrature in lambda; a node without signal has no lambda and is left
        out, as is a step's curvature where it starts there.
        """
        kept = [j for j, node in enumerate(nodes) if variable != "lambda" or math.isfinite(self.log_snr(node))]
        weights = [0.0] * len(nodes)
        if len(nodes) == 1 or not math.isfinite(self.log_snr(t)):
            weights[list(nodes).index(t)] = self.constant(t, s, tau)
            return weights
        low, high = self.log_snr(t), self.log_snr(s)
        points, quadrature = _legendre(32)
        lambdas = low + (high - low) * points
        density = FRAMES[self.view].slope(lambdas) * (1 + tau**2) * np.exp(-(tau**2) * (high - lambdas))
        density *= quadrature * (high - low)
        chosen = [nodes[j] for j in kept]
        if variable == "t":
            where, centres = self.process.time_of(torch.from_numpy(-lambdas)).numpy(), np.array(chosen)
        else:
            where, centres = lambdas, np.array([self.log_snr(node) for node in chosen])
        if variable == "r":
            where, centres = (FRAMES[self.view].growth(u) for u in (where, centres))
        for i, j in enumerate(kept):
            others = np.delete(centres, i)
            basis = np.prod((where[:, None] - others) / (centres[i] - others), axis=1)
            weights[j] = float(density @ basis)
        # constants are integrated exactly, whatever the quadrature
        weights[kept[0]] += self.constant(t, s, tau) - sum(weights)
        return weights

    def constant(self, t: float, s: float | None, tau: float = 0.0) -> float:
        """∫_t^s dr, with the weight of `tau`: what a constant H is multiplied by."""
        if tau == 0 or s is None:
            return self.growth(s) - self.growth(t)
        return -self.growth(s) * math.expm1(-(1 + tau**2) * (self.log_snr(s) - self.log_snr(t)))

    def step(self, t: float, s: float, weights: Weights, decay: float = 1.0) -> tuple[float, Terms]:
        """(a, terms) of x_s = scale_s (decay·x_t/scale_t + Σ W_j H_j), W_j belonging to lag j."""
        scale = self.scale(s)
        return decay * scale / self.scale(t), tuple((j, scale * w) for j, w in enumerate(weights) if w)

    def diffuse(self, t: float, s: float, tau: float) -> tuple[float, float]:
        """(decay, standard deviation) of a step of the reverse equation with noise tau·g, x0 view; (1, 0) for tau = 0.

        x_s = sigma_s (e^{-tau² h} x_t/sigma_t + Σ_j W_j H_j) + sigma_s sqrt(1 - e^{-2 tau² h}) z with h = lambda_s - lambda_t.
        """
        if tau == 0:
            return 1.0, 0.0
        h = self.log_snr(s) - self.log_snr(t)
        return math.exp(-(tau**2) * h), self.scale(s) * math.sqrt(-math.expm1(-2 * tau**2 * h))

    def denoise(self, t: float, row: Row | None = None) -> Row:
        """The last row: clean data from the view at t, of x as it is or as `row`, which evaluates there, updates it."""
        row = row or Row(t, t, 1.0)
        alpha, sigma = self.process.moments(t)
        skip, out = COEFFICIENTS[self.view](alpha, sigma, 1.0, self.process, torch.tensor(t, dtype=torch.float64))
        if float(skip) == 0:
            return replace(row, s=None, a=0.0, b=((0, float(out)),), c=0.0)
        terms = {j: float(skip) * w for j, w in row.b}
        terms[0] = terms.get(0, 0.0) + float(out)
        return replace(row, s=None, a=float(skip) * row.a, b=tuple(terms.items()), c=float(skip) * row.c)


def floats(process: GaussianProcess, t: float | None) -> tuple[float, float]:
    """(alpha, sigma) as numbers."""
    alpha, sigma = process.moments(t)
    return float(alpha), float(sigma)


@cache
def _legendre(order: int) -> tuple[Array, Array]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    return (nodes + 1) / 2, weights / 2
