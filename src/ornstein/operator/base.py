"""What is measured of a datum: y = A(x), with the adjoint, the singular values and the pseudo-inverse of a linear A."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

LARGEST = 4096
"""Numbers of a datum up to which a map without a known decomposition is decomposed as a dense matrix."""
_RANK = 1e-9
"""Singular values below this part of the largest count as zero."""


@dataclass(frozen=True)
class Spectrum:
    """A singular value decomposition A = U diag(values) Vᵀ in coefficients (B, D), one per number of a datum.

    `values` (D,) float64, ≥ 0, exactly zero where A measures nothing; `forward` x (B, *) -> Vᵀx, `backward` c -> V c (B, *),
    `measured` y -> Uᵀy at the coefficients that are measured, 0 elsewhere. V is orthogonal.
    """

    values: Tensor
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor]
    measured: Callable[[Tensor], Tensor]


class Operator(ABC):
    """A map y = A(x) of data x (B, *shape) to measurements y (B, *measured_shape), sample by sample; linear unless it says not.

    A subclass gives `shape` and `__call__`; `adjoint` by default is the transpose that automatic differentiation finds, and
    `spectrum` a dense decomposition. Inverse problems and cold diffusion take the same operators.
    """

    shape: tuple[int, ...]
    linear: bool = True

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A(x) for x (B, *shape), in the dtype and on the device of x; differentiable."""

    @cached_property
    def measured_shape(self) -> tuple[int, ...]:
        """The shape of one measurement."""
        return tuple(self(torch.zeros(1, *self.shape)).shape[1:])

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀy (B, *shape) of y (B, *measured_shape): ⟨Ax, y⟩ = ⟨x, Aᵀy⟩."""
        self._demand_linear("an adjoint")
        with torch.enable_grad():
            x = torch.zeros(len(y), *self.shape, dtype=y.dtype, device=y.device, requires_grad=True)
            (gradient,) = torch.autograd.grad(self(x), x, y)
        return gradient

    @cached_property
    def matrix(self) -> Tensor:
        """A as a matrix (M, D), float64 on the CPU."""
        self._demand_linear("a matrix")
        numbers = math.prod(self.shape)
        basis = torch.eye(numbers, dtype=torch.float64).reshape(numbers, *self.shape)
        return torch.cat([self(part).flatten(1) for part in basis.split(512)]).T.contiguous()

    @cached_property
    def spectrum(self) -> Spectrum | None:
        """The decomposition, dense unless the operator knows a better one; None beyond `LARGEST` numbers."""
        self._demand_linear("singular values")
        if math.prod(self.shape) > LARGEST:
            return None
        return dense_spectrum(self.matrix, self.shape)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A⁺y (B, *shape): of all x that fit y best, the one nearest to 0."""
        return self.solve(y, 1.0, 0.0)

    def project(self, x: Tensor) -> Tensor:
        """A⁺A x: the part of x (B, *shape) that the measurement sees."""
        return self.pseudo_inverse(self(x))

    def solve(self, y: Tensor, gain: float | Tensor, variance: float | Tensor) -> Tensor:
        """Aᵀ (gain·A Aᵀ + variance·I)⁻¹ y, (B, *shape); gain and variance ≥ 0 are numbers or (B,), float64.

        By the spectrum where it is known, where 0/0 counts as 0: gain = 1, variance = 0 is the pseudo-inverse. Otherwise by
        conjugate gradients on the measurement, each sample's own, to a relative 1e-6.
        """
        spectrum = self.spectrum
        gain, variance = (torch.as_tensor(part, dtype=torch.float64, device="cpu").reshape(-1, 1) for part in (gain, variance))
        if spectrum is None:
            return self.adjoint(_conjugate_gradients(self, y, gain, variance))
        s = spectrum.values
        below = gain * s**2 + variance
        weight = torch.where(s > 0, s / below.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        return spectrum.backward(weight.to(y) * spectrum.measured(y))

    def _demand_linear(self, what: str) -> None:
        if not self.linear:
            raise ValueError(f"{type(self).__name__} is not linear and has not {what}; take a method that only needs A: dps")


def dense_spectrum(matrix: Tensor, shape: Sequence[int]) -> Spectrum:
    """The decomposition of a matrix (M, D) that acts on flattened data of `shape`."""
    m, d = matrix.shape
    u, s, vt = torch.linalg.svd(matrix, full_matrices=True)
    rank = int((s > _RANK * s.max().clamp(min=1e-300)).sum())
    values = torch.zeros(d, dtype=torch.float64)
    values[:rank] = s[:rank]
    left = u[:, :rank]

    def measured(y: Tensor) -> Tensor:
        seen = y.flatten(1) @ left.to(y)
        return torch.nn.functional.pad(seen, (0, d - rank))

    return Spectrum(
        values,
        lambda x: x.flatten(1) @ vt.T.to(x),
        lambda c: (c @ vt.to(c)).reshape(-1, *shape),
        measured,
    )


def _conjugate_gradients(operator: Operator, y: Tensor, gain: Tensor, variance: Tensor, steps: int = 200) -> Tensor:
    """(gain·A Aᵀ + variance·I)⁻¹ y, sample by sample."""
    column = (-1, *[1] * (y.ndim - 1))
    a, b = gain.reshape(-1).to(y).reshape(column), variance.reshape(-1).to(y).reshape(column)

    def product(v: Tensor) -> Tensor:
        return a * operator(operator.adjoint(v)) + b * v

    def dot(v: Tensor, w: Tensor) -> Tensor:
        return (v * w).flatten(1).sum(1).reshape(column)

    x, r = torch.zeros_like(y), y
    p, rr = r, dot(r, r)
    goal = 1e-12 * rr
    for _ in range(steps):
        going = rr > goal
        if not bool(going.any()):
            break
        q = product(p)
        step = torch.where(going, rr / dot(p, q).clamp(min=1e-30), 0.0)  # a sample that has converged stands still
        x, r = x + step * p, r - step * q
        new = dot(r, r)
        p, rr = r + torch.where(going, new / rr.clamp(min=1e-30), 0.0) * p, torch.where(going, new, rr)
    return x


class Mask(Operator):
    """y = mask·x: the numbers of x where `mask` (*shape) is True, zeros elsewhere; y has the shape of x."""

    def __init__(self, mask: Tensor) -> None:
        if mask.dtype != torch.bool:
            raise ValueError(f"mask has dtype {mask.dtype}; give booleans, True where x is measured")
        self.mask = mask.cpu()
        self.shape = tuple(mask.shape)

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.mask.to(x)

    @cached_property
    def spectrum(self) -> Spectrum:
        return Spectrum(
            self.mask.flatten().double(),
            lambda x: x.flatten(1),
            lambda c: c.reshape(-1, *self.shape),
            lambda y: (y * self.mask.to(y)).flatten(1),
        )


class Matrix(Operator):
    """y = M x for a matrix M (m, D) acting on x (B, *shape) flattened; `shape` is (D,) unless given. y is (B, m)."""

    def __init__(self, matrix: Tensor, shape: Sequence[int] | None = None) -> None:
        if matrix.ndim != 2 or (shape is not None and math.prod(shape) != matrix.shape[1]):
            raise ValueError(f"matrix of shape {tuple(matrix.shape)} does not act on data of shape {shape}; give (m, D)")
        self.given = matrix.to("cpu", torch.float64)
        self.shape = tuple(shape) if shape is not None else (matrix.shape[1],)

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.given.T.to(x)

    @cached_property
    def matrix(self) -> Tensor:
        return self.given


class Nonlinear(Operator):
    """y = f(x) for a differentiable function f of x (B, *shape) that treats samples alike and apart; only DPS takes it."""

    linear = False

    def __init__(self, shape: Sequence[int], function: Callable[[Tensor], Tensor]) -> None:
        self.shape = tuple(shape)
        self.function = function

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)
