"""What is measured of a datum: y = A(x), with the adjoint, the singular values and the pseudo-inverse of a linear A."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ornstein.files import InputError

LARGEST = 4096
"""Numbers of a datum (of one channel, where channels are measured alike) up to which a map is decomposed as a dense matrix."""
_RANK = 1e-6
"""Singular values below this part of the largest count as zero: float32 data say nothing about them."""
_STEPS = 200
"""Conjugate gradients stop here at the latest."""
_SOLVED = 1e-6
"""The residual, relative to the right-hand side, at which they stop."""


class Constant:
    """A float64 tensor of any shape that is asked for in the dtype and on the device of data; each is converted once."""

    def __init__(self, value: Tensor) -> None:
        self.value = value.to("cpu", torch.float64)
        self._copies: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, x: Tensor) -> Tensor:
        """The value for computing with x."""
        key = (x.dtype, x.device)
        if key not in self._copies:
            with torch.inference_mode(False):  # a copy made in inference could not be differentiated through later
                self._copies[key] = self.value.to(x.device, x.dtype)
        return self._copies[key]


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
    `spectrum` a dense decomposition. Inverse problems and cold diffusion take the same operators. `str(operator)` is its name,
    in the words of `parse` where it has one. `channelwise` says that no channel mixes with another, on which the coefficients
    of the spectrum are sorted by channel, each with equally many.
    """

    shape: tuple[int, ...]
    linear: bool = True
    channelwise: bool = False
    name: str = ""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A(x) for x (B, *shape), in the dtype and on the device of x; differentiable."""

    def __str__(self) -> str:
        return self.name or type(self).__name__.lower()

    @cached_property
    def measured_shape(self) -> tuple[int, ...]:
        """The shape of one measurement."""
        with torch.inference_mode(False), torch.no_grad():
            return tuple(self(torch.zeros(1, *self.shape)).shape[1:])

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀy (B, *shape) of y (B, *measured_shape): ⟨Ax, y⟩ = ⟨x, Aᵀy⟩; differentiable in y."""
        self._demand_linear("an adjoint")
        wanted = y.requires_grad and torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.zeros(len(y), *self.shape, dtype=y.dtype, device=y.device, requires_grad=True)
            (gradient,) = torch.autograd.grad(self(x), x, y, create_graph=wanted)
        return gradient

    @cached_property
    def matrix(self) -> Tensor:
        """A as a matrix (M, D), float64 on the CPU."""
        self._demand_linear("a matrix")
        return as_matrix(self, self.shape)

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

        By the spectrum where it is known; an inverse of 0 counts as 0, so that gain = 1, variance = 0 is the pseudo-inverse.
        Otherwise by conjugate gradients, each sample's own, to a relative 1e-6 or 200 steps: where A is badly conditioned and
        the variance small, the directions it hardly measures are then left at 0. The limit is the pseudo-inverse there too.
        """
        self._demand_linear("a pseudo-inverse")
        with torch.inference_mode(False), torch.no_grad():  # made once: gradients may be asked through it later
            spectrum = self.spectrum
        gain, variance = (torch.as_tensor(part, dtype=torch.float64, device="cpu").reshape(-1, 1) for part in (gain, variance))
        if spectrum is None:
            # the normal equations, whose right-hand side is always in range
            a, b = (part.to(y).reshape(-1, *[1] * len(self.shape)) for part in (gain, variance))
            return conjugate_gradients(lambda v: a * self.adjoint(self(v)) + b * v, self.adjoint(y), _STEPS, _SOLVED)
        s = spectrum.values
        below = gain * s**2 + variance
        weight = torch.where(below > 0, s / below.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        return spectrum.backward(weight.to(y) * spectrum.measured(y))

    def _demand_linear(self, what: str) -> None:
        if not self.linear:
            raise InputError(f"{self} is not linear and has not {what}; take a method that only needs A: dps")

    def _demand_shape(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(
                f"{self} measures data of shape {self.shape}, but was given {tuple(x.shape)}; "
                f"give (samples, {', '.join(map(str, self.shape))}), or make the operator for {tuple(x.shape[1:])}"
            )


def as_matrix(function: Callable[[Tensor], Tensor], shape: Sequence[int]) -> Tensor:
    """The matrix (M, D) of a linear function of x (B, *shape), float64 on the CPU: its values on the unit vectors."""
    numbers = math.prod(shape)
    with torch.inference_mode(False), torch.no_grad():
        basis = torch.eye(numbers, dtype=torch.float64).reshape(numbers, *shape)
        return torch.cat([function(part).flatten(1) for part in basis.split(512)]).T.contiguous()


def significant(values: Tensor) -> Tensor:
    """The singular values (D,), with zeros for those that are round-off beside the largest."""
    return torch.where(values > _RANK * values.max().clamp(min=1e-300), values, 0.0)


def dense_spectrum(matrix: Tensor, shape: Sequence[int]) -> Spectrum:
    """The decomposition A = U diag(s) Vᵀ of a matrix (M, D) that acts on flattened data of `shape`."""
    m, d = matrix.shape
    u, s, vt = torch.linalg.svd(matrix, full_matrices=m < d)  # V whole, of U no more than is used
    values = significant(torch.nn.functional.pad(s, (0, d - len(s))))
    rank = int((values > 0).sum())
    left, right = Constant(u[:, :rank]), Constant(vt)
    return Spectrum(
        values,
        lambda x: x.flatten(1) @ right.like(x).T,
        lambda c: (c @ right.like(c)).reshape(-1, *shape),
        lambda y: torch.nn.functional.pad(y.flatten(1) @ left.like(y), (0, d - rank)),
    )


def conjugate_gradients(product: Callable[[Tensor], Tensor], y: Tensor, iterations: int, tolerance: float) -> Tensor:
    """product⁻¹ y (B, *), sample by sample, for a linear product that is symmetric and positive, or nearly so.

    A sample stands still, while others go on, once its residual is below `tolerance` times |y|, or where the product shows no
    positive curvature; at most `iterations` products. Source: Hestenes and Stiefel 1952.
    """

    def dot(v: Tensor, w: Tensor) -> Tensor:
        return (v * w).flatten(1).sum(1).reshape(-1, *[1] * (y.ndim - 1))

    x, r, p, rr = torch.zeros_like(y), y, y, dot(y, y)
    solved = tolerance**2 * rr
    going = rr > solved
    for _ in range(iterations):
        if not bool(going.any()):
            break
        q = product(p)
        curvature = dot(p, q)
        going = going & (curvature > 0)
        step = torch.where(going, rr / torch.where(going, curvature, 1.0), 0.0)
        x, r = x + step * p, r - step * q
        new = dot(r, r)
        p = r + torch.where(going, new / torch.where(going, rr, 1.0), 0.0) * p
        rr = torch.where(going, new, rr)
        going = going & (rr > solved)
    return x


class Mask(Operator):
    """y = mask·x: the numbers of x where `mask` (*shape) is True, zeros elsewhere; y has the shape of x."""

    channelwise = True

    def __init__(self, mask: Tensor, name: str = "") -> None:
        if mask.dtype != torch.bool:
            raise InputError(f"mask has dtype {mask.dtype}; give booleans, True where x is measured")
        self.mask = mask.cpu()
        self.shape = tuple(mask.shape)
        self.name = name

    def __call__(self, x: Tensor) -> Tensor:
        self._demand_shape(x)
        return torch.where(self.mask.to(x.device), x, 0.0)

    def adjoint(self, y: Tensor) -> Tensor:
        """mask·y: a mask is its own transpose."""
        return self(y)

    @cached_property
    def spectrum(self) -> Spectrum:
        """Values 1 where the mask measures, 0 elsewhere, with V = I."""
        return Spectrum(
            self.mask.flatten().double(),
            lambda x: x.flatten(1),
            lambda c: c.reshape(-1, *self.shape),
            lambda y: self(y).flatten(1),
        )


class Matrix(Operator):
    """y = M x for a matrix M (m, D) acting on x (B, *shape) flattened; `shape` is (D,) unless given. y is (B, m)."""

    def __init__(self, matrix: Tensor, shape: Sequence[int] | None = None, name: str = "") -> None:
        if matrix.ndim != 2 or (shape is not None and math.prod(shape) != matrix.shape[1]):
            raise InputError(f"matrix of shape {tuple(matrix.shape)} does not act on data of shape {shape}; give (m, D)")
        self.given = Constant(matrix)
        self.shape = tuple(shape) if shape is not None else (matrix.shape[1],)
        self.name = name

    def __call__(self, x: Tensor) -> Tensor:
        self._demand_shape(x)
        return x.flatten(1) @ self.given.like(x).T

    def adjoint(self, y: Tensor) -> Tensor:
        """Mᵀy, (B, *shape)."""
        return (y @ self.given.like(y)).reshape(-1, *self.shape)

    @cached_property
    def matrix(self) -> Tensor:
        """M, float64 on the CPU."""
        return self.given.value


class Nonlinear(Operator):
    """y = f(x) for a differentiable function f of x (B, *shape) that treats samples alike and apart; only DPS takes it."""

    linear = False

    def __init__(self, shape: Sequence[int], function: Callable[[Tensor], Tensor], name: str = "") -> None:
        self.shape = tuple(shape)
        self.function = function
        self.name = name

    def __call__(self, x: Tensor) -> Tensor:
        self._demand_shape(x)
        return self.function(x)
