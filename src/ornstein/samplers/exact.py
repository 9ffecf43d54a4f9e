"""What a plan does to Gaussian data, exactly: its rows are affine, so mean and covariance go through without sampling."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ornstein.denoiser import VIEWS, Condition, Denoises
from ornstein.samplers.plan import Plan, Terms
from ornstein.testing import GaussianDenoiser


class Law(NamedTuple):
    """The law of a state in the oracle's eigenbasis: mean (D,) and variances (D,), float64."""

    mean: Tensor
    variances: Tensor


def propagate(plan: Plan, denoiser: Denoises, *, start: Law | None = None, cond: Condition = None) -> list[Law]:
    """The exact law of the state before the first row and after each one, for a denoiser of Gaussian data.

    Every quantity is a vector of coefficients on (1, x_T, z_0, z_1, …) per eigendirection: a row maps such vectors to such
    vectors, and the variance is the sum of squares. `start` is the law of x_T; for a `GaussianDenoiser` it is by default that of
    q(x_T), so that the error is the plan's alone. Any other denoiser needs one, and an x0 (B, D) each of whose numbers is affine
    in that of x_t, as of such denoisers under guidance; `cond` of one row is its condition. ValueError where the start is
    missing, where x0 is not so, or for rows with a learned variance: their std is not affine.
    """
    if start is None:
        if not isinstance(denoiser, GaussianDenoiser):
            raise ValueError(f"start=None: the law of x_T is known for a GaussianDenoiser, not for {type(denoiser).__name__}")
        alpha, _ = denoiser.process.moments(plan.rows[0].t)
        start = Law(alpha * denoiser.mean @ denoiser.directions, denoiser.marginal_variances(plan.rows[0].t))
    dimensions, rows = len(start.mean), len(plan.rows)
    basis = torch.eye(2 + rows, dtype=torch.float64)
    x = start.mean[:, None] * basis[0] + start.variances.sqrt()[:, None] * basis[1]
    history: list[Tensor] = []
    laws = [start]

    def combine(factor: float, terms: Terms, skip: int) -> Tensor:
        out = factor * x
        for j, w in terms:
            out.add_(history[-1 - j + skip], alpha=w)
        return out

    for k, row in enumerate(plan.rows):
        if row.log_variances is not None:
            raise ValueError(f"plan {plan.name!r} learns its variance; propagate one with a fixed variance")
        z = basis[2 + k]
        y = combine(row.p, row.prior, 1) + row.q * z
        alpha, sigma = denoiser.process.moments(row.t)
        gain, constant = _affine(denoiser, row.t, (alpha, sigma), cond, dimensions)
        x0 = gain[:, None] * y + constant[:, None] * basis[0]
        on_y, on_x0 = VIEWS[plan.view](alpha, sigma)
        history.append(on_y * y + on_x0 * x0)
        x = combine(row.a, row.b, 0) + row.c * z
        laws.append(Law(x[:, 0], x[:, 1:].square().sum(1)))
    return laws


def _affine(
    denoiser: Denoises, t: float, moments: tuple[Tensor, Tensor], cond: Condition, dimensions: int
) -> tuple[Tensor, Tensor]:
    """(gain, constant), both (D,), of x0 = gain·x_t + constant in every eigendirection, at t of moments (alpha, sigma)."""
    alpha, sigma = moments
    if isinstance(denoiser, GaussianDenoiser):
        gain = alpha * denoiser.variances / (alpha**2 * denoiser.variances + sigma**2)
        return gain, (denoiser.mean @ denoiser.directions) * (1 - alpha * gain)
    unit = (alpha**2 + sigma**2).sqrt()
    places = torch.stack([torch.zeros(dimensions), torch.ones(dimensions), -1.5 - torch.arange(dimensions)]).double() * unit
    rows = None if cond is None else {name: value.expand(3, *value.shape[1:]) for name, value in cond.items()}
    constant, moved, other = denoiser(places, t, rows).x0
    gain = (moved - constant) / unit
    if not torch.allclose(gain * places[2] + constant, other, rtol=1e-9, atol=1e-9):
        raise ValueError(f"x0 of {type(denoiser).__name__} at t={t:g} is not affine in each number of x_t: the law is not normal")
    return gain, constant
