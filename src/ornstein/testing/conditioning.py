"""Bayes for normal laws: what a linear measurement with normal noise says of N(mean, covariance)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ornstein.operator import Matrix, Operator

_SINGULAR = 1e-13
"""Part of the largest variance below which a variance, known to float64's digits, counts as zero."""
_AGREES = 1e-6
"""Relative miss that a measurement without noise may show: its values may come in float32."""


class Measurement(NamedTuple):
    """y = A x + noise with independent rows: `matrix` (R, D), `values` (R,), the noise's `variance`; float64."""

    matrix: Tensor
    values: Tensor
    variance: float


class Conditioned(NamedTuple):
    """Laws after a measurement: means (K, D), covariances (K, D, D), and log p(y) of each under its prior, (K,).

    Where the measurement confines a law without noise, log p(y) is a density on what is left of the rank `ranks` (K,), and
    -inf if y is impossible.
    """

    means: Tensor
    covariances: Tensor
    log_evidence: Tensor
    ranks: Tensor


def independent_rows(values: Tensor, operator: Operator | Tensor, noise_std: float | None, numbers: int) -> Measurement:
    """The measurement in the coordinates of A's singular vectors, so that no row repeats another or is empty.

    ValueError for an unknown noise level, values that no x can give, or sizes that disagree.
    """
    a = Matrix(operator) if isinstance(operator, Tensor) else operator
    if noise_std is None or not (math.isfinite(noise_std) and noise_std >= 0):
        raise ValueError(f"noise_std={noise_std}: the exact posterior needs the noise level; give 0 or a positive number")
    if math.prod(a.shape) != numbers or values.numel() != math.prod(a.measured_shape):
        raise ValueError(
            f"values of shape {tuple(values.shape)} are not one measurement {a.measured_shape} by an operator on {a.shape} of a "
            f"datum of {numbers} numbers; give one measurement of one datum"
        )
    if (spectrum := a.spectrum) is None:
        raise ValueError(f"{type(a).__name__} on {a.shape} has no known singular values; take an operator that knows them")
    y = values.to("cpu", torch.float64).reshape(1, *a.measured_shape)
    seen = spectrum.values > 0
    s, rows = spectrum.values[seen], spectrum.backward(torch.eye(numbers, dtype=torch.float64)[seen]).flatten(1)
    measured = spectrum.measured(y)[0, seen]
    if noise_std > 0:
        return Measurement(s[:, None] * rows, measured, noise_std**2)
    miss = float((a(((measured / s) @ rows).reshape(1, *a.shape)) - y).abs().max())
    if miss > _AGREES * float(y.abs().max()):
        raise ValueError(f"values miss what the operator can give by {miss:.2g} and noise_std=0: no x fits; give a noise_std")
    return Measurement(rows, measured / s, 0.0)  # without noise the size of a row says nothing


def condition(means: Tensor, covariances: Tensor, measurement: Measurement) -> Conditioned:
    """N(mean, covariance) given A x + noise = y, for K laws at once: means (K, D), covariances (K, D, D).

    With S = A C Aᵀ + s² I and gain G = C Aᵀ S⁻¹: mean + G (y - A mean) and (I - G A) C (I - G A)ᵀ + s² G Gᵀ. S may be singular.
    """
    a, y, variance = measurement
    crossed = covariances @ a.mT  # (K, D, R)
    e, q = torch.linalg.eigh(a @ crossed + variance * torch.eye(len(y), dtype=torch.float64))
    floor = 0.0
    if variance == 0:
        floor = _SINGULAR * torch.linalg.matrix_norm(covariances, ord=2)[:, None] if len(y) else 0.0
    free = e > floor
    inverse = torch.where(free, 1 / e.clamp(min=1e-300), 0.0)
    missing = y - means @ a.mT
    along = (missing.unsqueeze(-2) @ q).squeeze(-2)  # (K, R)
    gain = crossed @ (q * inverse.unsqueeze(-2)) @ q.mT
    left = torch.eye(a.shape[1], dtype=torch.float64) - gain @ a
    after = left @ covariances @ left.mT + variance * gain @ gain.mT
    density = -0.5 * (along.square() * inverse + torch.where(free, (2 * math.pi * e.clamp(min=1e-300)).log(), 0.0)).sum(-1)
    scale = max([float(part.abs().max()) for part in (y, means) if part.numel()], default=0.0)
    impossible = (~free & (along.abs() > _AGREES * scale)).any(-1)
    moved = means + (gain @ missing.unsqueeze(-1)).squeeze(-1)
    return Conditioned(moved, 0.5 * (after + after.mT), density.masked_fill(impossible, -math.inf), free.sum(-1))


def eigen(covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (…, D) and directions (…, D, D) of covariances; variances of the size of rounding are exactly 0."""
    variances, directions = torch.linalg.eigh(covariances)
    rounding = 10 * covariances.shape[-1] * torch.finfo(torch.float64).eps * variances[..., -1:].abs()
    return torch.where(variances.abs() <= rounding, 0.0, variances), directions


def demand_density(variances: Tensor) -> None:
    """ValueError where a law with these variances (…, D) has no density."""
    if not bool((variances > 0).all()):
        raise ValueError(
            "this law has no density: some direction has variance 0 (measured without noise, or a singular covariance); "
            "take a time t with noise"
        )


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """above/below, 0 where both are 0."""
    return torch.where(below > 0, above / below.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
