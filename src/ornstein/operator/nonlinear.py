"""Examples of measurements that are not linear, which only DPS inverts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ornstein.files import InputError
from ornstein.operator.base import Nonlinear
from ornstein.operator.channels import sized
from ornstein.operator.masks import spelled


def phase(shape: Sequence[int], *, oversampling: float = 2.0) -> Nonlinear:
    """The magnitude of the Fourier transform without its phase, of the image in a frame of zeros `oversampling` times as large.

    y = |FFT(pad x)|, orthonormal, for every channel. InputError for oversampling outside [1, 8].
    Source: Fienup 1982, doi 10.1364/AO.21.002758; Chung et al. 2023, arXiv 2209.14687.
    """
    size = sized(shape, "phase")[1:]
    if not 1 <= oversampling <= 8:
        raise InputError(f"oversampling={oversampling:g} must be in [1, 8]; 2 determines most images")
    frame = tuple(math.ceil(oversampling * n) for n in size)
    axes = tuple(range(-len(size), 0))
    name = spelled("phase", oversampling=float(oversampling))
    return Nonlinear(shape, lambda x: torch.fft.fftn(x, s=frame, dim=axes, norm="ortho").abs(), name)


def clip(shape: Sequence[int], *, factor: float = 2.0, low: float = 0.0, high: float = 255.0) -> Nonlinear:
    """An over-exposed picture, in the units of x: made `factor` times brighter, then clipped to low … high.

    y = min(max(factor·x, low), high). InputError unless factor > 0 and low < high.
    Source: the high dynamic range task of Mardani et al. 2023, arXiv 2305.04391.
    """
    if not (0 < factor < math.inf and low < high):
        raise InputError(f"factor={factor:g}, low={low:g}, high={high:g}: take factor > 0 and low < high")
    name = spelled("clip", factor=float(factor), low=float(low), high=float(high))
    return Nonlinear(sized(shape, "clip"), lambda x: (factor * x).clamp(low, high), name)
