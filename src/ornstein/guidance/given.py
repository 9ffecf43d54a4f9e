"""Partial observation: y = A(x) + noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ornstein.files import InputError
from ornstein.operator import Mask, Operator


@dataclass(frozen=True)
class Given:
    """What is known of data: values = A(x) + noise_std·z, for one datum or for each of B.

    `values` (B, *measured_shape), or (1, *measured_shape) for all samples; a boolean `mask` (*shape), True where x is measured,
    stands for the operator that keeps these numbers, and then what values say elsewhere, NaN included, counts for nothing. A mask
    (B, *shape) is one for each: it stays a mask, and there is no one operator.
    `noise_std` is in the units of x (model units unless `System.restore` is asked, which takes the data's); 0 is exact, None
    unknown. InputError for shapes that disagree, numbers that are not finite where they are measured, or a negative noise_std.
    """

    values: Tensor
    operator: Operator | None = None
    mask: Tensor | None = None
    noise_std: float | None = 0.0

    def __post_init__(self) -> None:
        if (self.operator is None) == (self.mask is None):
            raise InputError("Given needs one of operator=… and mask=…: how the values were measured")
        if self.mask is not None and (self.mask.ndim < self.values.ndim or self.values.ndim < 2):
            object.__setattr__(self, "operator", Mask(self.mask))
            object.__setattr__(self, "mask", None)
        if self.mask is not None:
            self._check_each(self.mask)
            return
        shape = self.measured.measured_shape
        if tuple(self.values.shape[1:]) != shape:
            raise InputError(
                f"values have shape {tuple(self.values.shape)}, but the operator measures data of shape {self.measured.shape} as "
                f"(samples, {', '.join(map(str, shape))}); give the measurement of an operator made for this size"
            )
        if isinstance(self.operator, Mask):
            object.__setattr__(self, "values", torch.where(self.operator.mask.to(self.values.device), self.values, 0.0))
        self._check_numbers()

    def _check_each(self, mask: Tensor) -> None:
        if mask.dtype != torch.bool or mask.shape != self.values.shape:
            raise InputError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}; give booleans like the values {tuple(self.values.shape)}, "
                "True where they are measured, or one mask for all without the first axis"
            )
        object.__setattr__(self, "values", torch.where(mask.to(self.values.device), self.values, 0.0))
        self._check_numbers()

    def _check_numbers(self) -> None:
        if not bool(self.values.isfinite().all()):
            bad = int((~self.values.isfinite()).sum())
            raise InputError(f"values hold {bad} NaN or infinite numbers where they are measured; mask them out")
        if self.noise_std is not None and not (math.isfinite(self.noise_std) and self.noise_std >= 0):
            raise InputError(f"noise_std={self.noise_std} must be 0 (exact), positive, or None (unknown)")

    @property
    def measured(self) -> Operator:
        """The operator; InputError where every case has its own mask."""
        if self.operator is None:
            raise InputError(f"each of {len(self)} cases has its own mask; take one() of them, or restore, which does so")
        return self.operator

    @property
    def masks(self) -> Tensor | None:
        """What is measured of every case, (B, *shape) boolean; None where the operator is no mask."""
        if self.mask is not None:
            return self.mask
        return self.measured.mask.expand_as(self.values) if isinstance(self.measured, Mask) else None

    def one(self, case: int) -> Given:
        """The measurement of one case, for any number of samples."""
        values = self.values[case : case + 1]
        if self.mask is None:
            return replace(self, values=values)
        return Given(values, mask=self.mask[case], noise_std=self.noise_std)

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, places: Tensor) -> Given:
        """The measurements of the samples at `places` (n,) int64, where there is one for each; else the same for all."""
        return self if len(self) == 1 else replace(self, values=self.values[places])

    def to(self, x: Tensor) -> Given:
        """The same in the dtype and on the device of the data x (B, *); InputError where it does not belong to them."""
        if tuple(x.shape[1:]) != self.measured.shape:
            raise InputError(f"{self.measured} measures data of shape {self.measured.shape}, but these are {tuple(x.shape[1:])}")
        if len(self) not in (1, len(x)):
            raise InputError(
                f"{len(self)} measurements for {len(x)} samples; give one for all or one for each (restore does so in chunks)"
            )
        return replace(self, values=self.values.to(x))
