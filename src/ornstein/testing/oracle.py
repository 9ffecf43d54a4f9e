"""What every denoiser with exact answers offers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from ornstein.denoiser import Condition, Prediction
from ornstein.noise import Noise
from ornstein.operator import Operator
from ornstein.process import GaussianProcess, align
from ornstein.process.gaussian import Time


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

    @abstractmethod
    def given(self, values: Tensor, operator: Operator | Tensor, noise_std: float | None = 0.0) -> Oracle:
        """The oracle of x | y, where values = y = A x + noise_std·z is one measurement of one datum x; 0 is exact.

        `operator` is a linear A or its matrix (M, D). The posterior's own prediction is the exact guided denoiser
        E[x0 | x_t, y]. ValueError for an unknown noise level, a non-linear A, or values of probability 0.
        """

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


def column(alpha: Tensor) -> Tensor:
    """A coefficient () or (B,) with an axis more in the second case."""
    return alpha.unsqueeze(-1) if alpha.ndim else alpha
