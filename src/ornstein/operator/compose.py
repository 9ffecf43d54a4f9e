"""One operator after another, and an operator in other units."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from ornstein.files import InputError
from ornstein.operator.base import Constant, Operator, Spectrum
from ornstein.operator.channels import Separable


class Compose(Operator):
    """y = outer(inner(x)), (B, *inner.shape) -> (B, *outer.measured_shape); linear if both are.

    Two separable maps keep their cheap decomposition; others are decomposed as a dense matrix. InputError for shapes that
    do not meet.
    """

    def __init__(self, outer: Operator, inner: Operator) -> None:
        if outer.shape != inner.measured_shape:
            raise InputError(f"{outer} takes {outer.shape}, but {inner} measures {inner.measured_shape}; make it for that shape")
        self.outer = outer
        self.inner = inner
        self.shape = inner.shape
        self.linear = outer.linear and inner.linear
        self.product = outer.after(inner) if isinstance(outer, Separable) and isinstance(inner, Separable) else None
        self.channelwise = self.product is not None and self.product.channelwise
        self.name = f"{inner} then {outer}"

    def __call__(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀy = innerᵀ(outerᵀ y)."""
        return self.inner.adjoint(self.outer.adjoint(y))

    @cached_property
    def spectrum(self) -> Spectrum | None:
        """That of the product where both maps are separable, else dense; None beyond `LARGEST` numbers."""
        return super().spectrum if self.product is None else self.product.spectrum


class Scaled(Operator):
    """An operator on data u = scale·x + shift, for x in other units: A(u) - A(shift) = A(scale·x) if linear, else A(u).

    `scale` ≠ 0 and `shift` are numbers or (C,), one per channel, float64. A measurement y of u is told in these units by
    `relative`; its noise keeps its size. The spectrum is that of A with values·|scale|, where scale is the same for all
    channels, or channels do not mix. InputError for scale 0, and for numbers that are not finite or not one per channel.
    """

    def __init__(self, operator: Operator, scale: float | Tensor, shift: float | Tensor = 0.0) -> None:
        self.operator = operator
        self.scale = Constant(_per_channel(scale, operator, "scale"))
        self.shift = Constant(_per_channel(shift, operator, "shift"))
        if bool((self.scale.value == 0).any()):
            raise InputError(f"scale={scale} is 0 somewhere: data in other units need a scale that can be undone")
        self.shape = operator.shape
        self.linear = operator.linear
        self.channelwise = operator.channelwise
        self.name = str(operator)

    def __call__(self, x: Tensor) -> Tensor:
        self._demand_shape(x)
        return self.operator(self.scale.like(x) * x if self.linear else self.scale.like(x) * x + self.shift.like(x))

    def relative(self, y: Tensor) -> Tensor:
        """What `self` measures where the operator measured y (B, *measured_shape) of u: y - A(shift) if linear, else y."""
        if not self.linear:
            return y
        return y - self.operator(self.shift.like(y).expand(1, *self.shape))

    def adjoint(self, y: Tensor) -> Tensor:
        """scale·Aᵀy."""
        return self.scale.like(y) * self.operator.adjoint(y)

    @cached_property
    def spectrum(self) -> Spectrum | None:
        """The spectrum of the operator with values·|scale|; dense where channels mix and their scales differ."""
        common = self.scale.value.numel() == 1 or bool((self.scale.value == self.scale.value.flatten()[0]).all())
        if not (common or self.channelwise):
            return super().spectrum
        inner = self.operator.spectrum
        if inner is None:
            return None
        each = self.scale.value.expand(self.shape[0], *[1] * (len(self.shape) - 1)).reshape(-1)
        scales = each[0].expand(math.prod(self.shape)) if common else each.repeat_interleave(math.prod(self.shape[1:]))
        sign = Constant(scales.sign())
        return Spectrum(
            inner.values * scales.abs(),
            lambda x: inner.forward(x) * sign.like(x),
            lambda c: inner.backward(c * sign.like(c)),
            inner.measured,
        )


def _per_channel(value: float | Tensor, operator: Operator, name: str) -> Tensor:
    """The value shaped to broadcast over (C, *size)."""
    numbers = torch.as_tensor(value, dtype=torch.float64)
    if numbers.ndim > 1 or (numbers.ndim == 1 and len(numbers) not in (1, operator.shape[0])):
        raise InputError(f"{name} of shape {tuple(numbers.shape)} must be a number or one per channel, ({operator.shape[0]},)")
    if not bool(numbers.isfinite().all()):
        raise InputError(f"{name}={numbers.tolist()} must be finite")
    return numbers.reshape(-1, *[1] * (len(operator.shape) - 1))
