"""Operators on images whose channels are measured alike: what is known of one channel serves for all."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ornstein.files import InputError
from ornstein.operator.base import LARGEST, Constant, Operator, Spectrum, as_matrix, dense_spectrum, significant


def sized(shape: Sequence[int], name: str) -> tuple[int, ...]:
    """The shape (C, *size) of data with channels; InputError where there is no size."""
    if len(shape) < 2 or min(shape) < 1:
        raise InputError(f"{name} acts on data of shape (channels, *size), not on {tuple(shape)}; a Matrix acts on plain vectors")
    return tuple(shape)


class Channelwise(Operator):
    """A linear map of every channel alike and apart: x (B, C, *size) -> y (B, C, *m), by `channel` (N, *size) -> (N, *m).

    The decomposition is that of one channel, dense unless `channel_spectrum` knows better, and serves for all.
    """

    channelwise = True

    @abstractmethod
    def channel(self, x: Tensor) -> Tensor:
        """The map of single channels x (N, *size) -> (N, *m)."""

    def __call__(self, x: Tensor) -> Tensor:
        self._demand_shape(x)
        return self.channel(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    @cached_property
    def matrix(self) -> Tensor:
        """The matrix of one channel on the diagonal, once for every channel: I ⊗ A, (C·M, C·D)."""
        return torch.kron(torch.eye(self.shape[0], dtype=torch.float64), as_matrix(self.channel, self.shape[1:]))

    def channel_spectrum(self) -> Spectrum | None:
        """The decomposition for one channel (N, *size), None beyond `LARGEST` numbers."""
        size = self.shape[1:]
        return None if math.prod(size) > LARGEST else dense_spectrum(as_matrix(self.channel, size), size)

    @cached_property
    def spectrum(self) -> Spectrum | None:
        """The decomposition of one channel for every channel, coefficients sorted by channel; None where there is none."""
        one = self.channel_spectrum()
        if one is None:
            return None
        channels, numbers = self.shape[0], math.prod(self.shape)
        each = numbers // channels
        return Spectrum(
            one.values.repeat(channels),
            lambda x: one.forward(x.flatten(0, 1)).reshape(len(x), numbers),
            lambda c: one.backward(c.reshape(len(c) * channels, each)).unflatten(0, (len(c), channels)),
            lambda y: one.measured(y.flatten(0, 1)).reshape(len(y), numbers),
        )


class Separable(Operator):
    """y = (M_0 ⊗ M_1 ⊗ …) x: a matrix M_i (m_i, d_i) along every axis i of x (B, d_0, d_1, …), None where nothing is done.

    Its singular vectors are products of those of the small matrices, its singular values their products, so that any size that
    can be held can be decomposed: Gaussian blur, down-sampling, shades of grey.
    """

    def __init__(self, shape: Sequence[int], matrices: Sequence[Tensor | None], name: str = "") -> None:
        if len(matrices) != len(shape):
            raise InputError(f"{len(matrices)} matrices for data of shape {tuple(shape)}; give one per axis, None for no change")
        for axis, (length, matrix) in enumerate(zip(shape, matrices, strict=True)):
            if matrix is not None and (matrix.ndim != 2 or matrix.shape[1] != length):
                raise InputError(f"matrix {axis} of shape {tuple(matrix.shape)} does not act on an axis of length {length}")
        self.shape = tuple(shape)
        self.factors = tuple(None if matrix is None else Constant(matrix) for matrix in matrices)
        self.channelwise = self.factors[0] is None
        self.name = name

    def __call__(self, x: Tensor) -> Tensor:
        self._demand_shape(x)
        return _along_axes(x, self.factors)

    def adjoint(self, y: Tensor) -> Tensor:
        """(M_0ᵀ ⊗ M_1ᵀ ⊗ …) y."""
        return _along_axes(y, self.factors, transposed=True)

    def after(self, inner: Separable) -> Separable:
        """This map of what `inner` gives, again separable: the products M_i N_i of their matrices."""
        products = [_product(a, b) for a, b in zip(self.factors, inner.factors, strict=True)]
        return Separable(inner.shape, products)

    @cached_property
    def matrix(self) -> Tensor:
        """The Kronecker product of the matrices, (M, D)."""
        whole = torch.ones(1, 1, dtype=torch.float64)
        for length, factor in zip(self.shape, self.factors, strict=True):
            whole = torch.kron(whole, torch.eye(length, dtype=torch.float64) if factor is None else factor.value)
        return whole

    @cached_property
    def spectrum(self) -> Spectrum:
        """The Kronecker products of the decompositions of the small matrices."""
        values = torch.ones((), dtype=torch.float64)
        left: list[Constant | None] = []
        right: list[Constant | None] = []
        for length, factor in zip(self.shape, self.factors, strict=True):
            s = torch.ones(length, dtype=torch.float64)
            if factor is not None:
                u, s, vt = torch.linalg.svd(factor.value, full_matrices=True)
                s = torch.nn.functional.pad(s, (0, length - len(s)))
                # as many left vectors as right ones: those that lack are zeros, as their values are
                u = torch.nn.functional.pad(u[:, :length], (0, max(0, length - u.shape[1])))
                left.append(Constant(u.T))
                right.append(Constant(vt))
            else:
                left.append(None)
                right.append(None)
            values = values.unsqueeze(-1) * s
        values = significant(values.flatten())
        seen = Constant((values > 0).double())
        return Spectrum(
            values,
            lambda x: _along_axes(x, right).flatten(1),
            lambda c: _along_axes(c.reshape(-1, *self.shape), right, transposed=True),
            lambda y: _along_axes(y, left).flatten(1) * seen.like(y),
        )


def _product(a: Constant | None, b: Constant | None) -> Tensor | None:
    if a is None or b is None:
        return a.value if a is not None else b.value if b is not None else None
    return a.value @ b.value


def _along_axes(x: Tensor, factors: Sequence[Constant | None], transposed: bool = False) -> Tensor:
    """Every factor along its axis of x (B, d_0, d_1, …)."""
    for axis, factor in enumerate(factors, start=1):
        if factor is not None:
            matrix = factor.like(x)
            x = (x.movedim(axis, -1) @ (matrix if transposed else matrix.T)).movedim(-1, axis)
    return x
