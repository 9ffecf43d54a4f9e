"""What the operator tests share: a small operator of every class and of every name in `OPERATORS`, and helpers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ornstein.noise import Noise
from ornstein.operator import (
    Compose,
    Convolution,
    Fourier,
    Mask,
    Matrix,
    Nonlinear,
    Operator,
    Radon,
    Scaled,
    Spectrum,
    desaturate,
    down_sample,
    fourier_lines,
    fourier_random,
    gaussian_blur,
    grey,
    parse,
)

NOISE = Noise(3)
CLASSES = {"Compose", "Convolution", "Fourier", "Mask", "Matrix", "Nonlinear", "Radon", "Scaled", "Separable"}
"""Every final class of operators."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return Noise(seed).normal(shape, dtype=torch.float64)


def matrix(rows: int, columns: int, rank: int, seed: int = 1) -> Tensor:
    return normal(rows, rank, seed=seed) @ normal(rank, columns, seed=seed + 1)


def _named(text: str, *shape: int) -> Callable[[], Operator]:
    return lambda: parse(text, shape, NOISE)


PER_CHANNEL = torch.tensor([2.0, -0.5, 3.0])
CASES: dict[str, Callable[[], Operator]] = {
    "mask:box": _named("mask:box,size=3x2,corner=0x1", 2, 6, 5),
    "mask:box/series": _named("mask:box", 2, 7),
    "mask:box/volume": _named("mask:box", 1, 3, 4, 5),
    "mask:random": _named("mask:random,share=0.7", 3, 5, 4),
    "mask:half": _named("mask:half,side=top", 1, 5, 4),
    "mask:rows": _named("mask:rows,every=3", 1, 5, 4),
    "mask:columns": _named("mask:columns", 2, 5),
    "mask:scratches": _named("mask:scratches,count=2,width=1", 2, 8, 7),
    "blur:gaussian": _named("blur:gaussian,std=1", 2, 7, 6),
    "blur:gaussian/circular": _named("blur:gaussian,std=0.8,size=5,padding=circular", 1, 7, 6),
    "blur:gaussian/zeros": _named("blur:gaussian,std=0.8,size=3,padding=zeros", 1, 5, 6),
    "blur:gaussian/wide": _named("blur:gaussian,std=3", 1, 7, 6),
    "blur:gaussian/series": _named("blur:gaussian,std=1", 2, 9),
    "blur:motion": _named("blur:motion,length=5,angle=30", 3, 7, 6),
    "blur:motion/shake": _named("blur:motion,length=4,angle=80,shake=90,padding=reflect", 2, 6, 5),
    "down": _named("down:2", 2, 6, 4),
    "down/bicubic": _named("down:2,method=bicubic", 2, 6, 8),
    "down/volume": _named("down:2", 1, 2, 4, 2),
    "grey": _named("grey", 3, 3, 2),
    "grey/luma": _named("grey:weights=luma", 3, 3, 2),
    "desaturate": _named("desaturate:0.7", 4, 3, 2),
    "desaturate/whole": _named("desaturate", 3, 3, 2),
    "fourier:lines": _named("fourier:lines,share=0.5", 2, 6, 5),
    "fourier:lines/series": _named("fourier:lines,share=0.4", 1, 12),
    "fourier:random": _named("fourier:random,share=0.4", 2, 5, 6),
    "radon": _named("radon:angles=3", 2, 5, 4),
    "radon/many": _named("radon:angles=9,span=120", 1, 4, 5),
    "phase": _named("phase", 2, 3, 2),
    "clip": _named("clip:low=-1,high=1", 2, 5, 4),
    "Matrix/wide": lambda: Matrix(matrix(4, 7, 4)),
    "Matrix/tall": lambda: Matrix(matrix(9, 6, 4), (1, 2, 3)),
    "Matrix/zero": lambda: Matrix(torch.zeros(3, 4)),
    "Mask/vector": lambda: Mask(torch.tensor([True, False, True])),
    "Mask/nothing": lambda: Mask(torch.zeros(1, 2, 2, dtype=torch.bool)),
    "Convolution/zeros": lambda: Convolution((2, 5, 6), normal(3, 5), "zeros"),
    "Convolution/series": lambda: Convolution((2, 8), normal(5)),
    "Convolution/larger": lambda: Convolution((1, 4, 3), normal(5, 7)),
    "Convolution/volume": lambda: Convolution((1, 3, 2, 4), normal(3, 1, 3), "reflect"),
    "Fourier/one": lambda: Fourier((1, 4, 4), torch.arange(16).reshape(4, 4) == 6),
    "Radon": lambda: Radon((1, 3, 3), 2),
    "Nonlinear": lambda: Nonlinear((3,), lambda x: x**2),
    "Compose/separable": lambda: Compose(down_sample((2, 6, 4)), gaussian_blur((2, 6, 4), std=0.7)),
    "Compose/mixed": lambda: Compose(Mask(normal(3, 3, 2) > 0), down_sample((3, 6, 4))),
    "Compose/colours": lambda: Compose(grey((3, 2, 3)), desaturate((3, 2, 3), amount=0.3)),
    "Compose/clip": _named("down:2 then clip:low=-1,high=1", 1, 4, 4),
    "Scaled": lambda: Scaled(fourier_random((2, 4, 5), noise=NOISE, share=0.5), -0.3, 0.7),
    "Scaled/channels": lambda: Scaled(gaussian_blur((3, 4, 5), std=0.6), PER_CHANNEL, torch.tensor([1.0, 2.0, 3.0])),
    "Scaled/mixing": lambda: Scaled(grey((3, 2, 3)), PER_CHANNEL, 1.0),
    "Scaled/mask": lambda: Scaled(Mask(normal(3, 4) > 0), PER_CHANNEL),
    "Scaled/vector": lambda: Scaled(Matrix(matrix(2, 3, 2)), PER_CHANNEL),
    "Scaled/clip": lambda: Scaled(parse("clip:low=-1,high=1", (3, 2, 2), NOISE), PER_CHANNEL, 0.1),
    "Scaled/lines": lambda: Scaled(fourier_lines((3, 4, 5), noise=NOISE, share=0.7), PER_CHANNEL),
}
MADE: dict[str, Operator] = {name: make() for name, make in CASES.items()}
LINEAR = [name for name, operator in MADE.items() if operator.linear]
NONLINEAR = [name for name, operator in MADE.items() if not operator.linear]


class Blind(Operator):
    """The same map, of which nothing is known but its values: automatic adjoint, no decomposition."""

    spectrum = None  # type: ignore[assignment]

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.shape = operator.shape

    def __call__(self, x: Tensor) -> Tensor:
        return self.operator(x)


def spectrum_of(operator: Operator) -> Spectrum:
    assert operator.spectrum is not None
    return operator.spectrum


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10, message: str | None = None) -> None:
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=message)


def pairs(operator: Operator, seed: int, n: int = 2) -> tuple[Tensor, Tensor]:
    return normal(n, *operator.shape, seed=seed), normal(n, *operator.measured_shape, seed=seed + 1)


def dense(operator: Operator) -> Tensor:
    """The matrix by the call alone, one unit vector at a time."""
    units = torch.eye(math.prod(operator.shape), dtype=torch.float64)
    return torch.stack([operator(unit.reshape(1, *operator.shape)).flatten() for unit in units], 1)
