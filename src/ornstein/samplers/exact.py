"""What a plan does to Gaussian data, exactly: its rows are affine, so mean and covariance go through without sampling."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ornstein.denoiser import VIEWS
from ornstein.samplers.plan import Plan, Terms
from ornstein.testing import GaussianDenoiser


class Law(NamedTuple):
    """The law of a state in the oracle's eigenbasis: mean (D,) and variances (D,), float64."""

    mean: Tensor
    variances: Tensor


def propagate(plan: Plan, oracle: GaussianDenoiser, *, start: Law | None = None) -> list[Law]:
    """The exact law of the state before the first row and after each one, for the exact denoiser of Gaussian data.

    Every quantity is a vector of coefficients on (1, x_T, z_0, z_1, …) per eigendirection: a row maps such vectors to such
    vectors, and the variance is the sum of squares. `start` is the law of x_T; by default that of q(x_T), so that the error
    is the plan's alone. Rows with a learned variance are refused: their std is not affine.
    """
    dimensions, rows = len(oracle.variances), len(plan.rows)
    mean = oracle.mean @ oracle.directions
    if start is None:
        alpha, _ = oracle.process.moments(plan.rows[0].t)
        start = Law(alpha * mean, oracle.marginal_variances(plan.rows[0].t))
    basis = torch.eye(2 + rows, dtype=torch.float64)
    x = start.mean[:, None] * basis[0] + start.variances.sqrt()[:, None] * basis[1]
    history: list[Tensor] = []
    laws = [start]

    def combine(factor: float, terms: Terms, skip: int) -> Tensor:
        return factor * x + sum((w * history[-1 - j + skip] for j, w in terms), torch.zeros(dimensions, 2 + rows))

    for k, row in enumerate(plan.rows):
        if row.log_variances is not None:
            raise ValueError(f"plan {plan.name!r} learns its variance; propagate one with a fixed variance")
        z = basis[2 + k]
        y = combine(row.p, row.prior, 1) + row.q * z
        alpha, sigma = oracle.process.moments(row.t)
        gain = alpha * oracle.variances / (alpha**2 * oracle.variances + sigma**2)
        x0 = gain[:, None] * y + (mean * (1 - alpha * gain))[:, None] * basis[0]
        on_y, on_x0 = VIEWS[plan.view](alpha, sigma)
        history.append(on_y * y + on_x0 * x0)
        x = combine(row.a, row.b, 0) + row.c * z
        laws.append(Law(x[:, 0], x[:, 1:].square().sum(1)))
    return laws
