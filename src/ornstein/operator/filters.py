"""Filters of images (C, *size): blurs, down-sampling, shades of grey. Boundaries are `reflect`, `circular` or `zeros`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ornstein.files import InputError
from ornstein.noise import Noise
from ornstein.operator.base import Constant, Spectrum, significant
from ornstein.operator.channels import Channelwise, Separable, sized
from ornstein.operator.masks import spelled

Padding = Literal["reflect", "circular", "zeros"]
_NUMPY = {"reflect": "reflect", "circular": "wrap"}
_CONVOLUTIONS = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}


def _sources(length: int, radius: int, padding: str) -> Tensor:
    """The place that each place of an axis padded by `radius` on both sides repeats; -1 for zeros."""
    if padding == "zeros":
        return torch.nn.functional.pad(torch.arange(length), (radius, radius), value=-1)
    if padding not in _NUMPY:
        raise InputError(f"padding={padding!r} is not one of reflect, circular, zeros")
    return torch.from_numpy(np.pad(np.arange(length), radius, mode=_NUMPY[padding]))  # type: ignore[call-overload]


def gaussian_taps(std: float, size: int | None = None) -> Tensor:
    """Weights ∝ exp(-j²/(2 std²)), j = -r … r, of sum 1: float64 (size,), odd; ±4 std unless `size` is given. In pixels."""
    if not (math.isfinite(std) and std > 0):
        raise InputError(f"std={std:g} must be positive: the width of the blur in pixels")
    taps = size if size is not None else 2 * math.ceil(4 * std) + 1
    if taps < 1 or taps % 2 == 0:
        raise InputError(f"size={taps} must be odd and positive: a filter has a middle")
    j = torch.arange(taps, dtype=torch.float64) - taps // 2
    weights = torch.exp(-0.5 * (j / std) ** 2)
    return weights / weights.sum()


def filter_matrix(length: int, taps: Tensor, padding: Padding = "reflect") -> Tensor:
    """The matrix (length, length) of the convolution with `taps` (odd,) along an axis, float64."""
    radius = len(taps) // 2
    source = _sources(length, radius, padding)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    places = torch.arange(length)
    for j, weight in enumerate(taps.double().flip(0)):
        column = source[j : j + length]
        inside = column >= 0
        matrix.index_put_((places[inside], column[inside]), weight, accumulate=True)
    return matrix


def gaussian_blur(shape: Sequence[int], *, std: float = 2.0, size: int | None = None, padding: Padding = "reflect") -> Separable:
    """Blur with a Gaussian of `std` pixels, cut off at `size` pixels (±4 std unless given).

    y = (B ⊗ B) x for every channel with one banded matrix B per axis. InputError for std ≤ 0 or an even size.
    """
    lengths = sized(shape, "blur:gaussian")[1:]
    if max(std, (size or 1) / 8) > 4 * max(lengths):
        raise InputError(f"std={std:g}, size={size} is more than four images {lengths} wide; take std below {4 * max(lengths)}")
    taps = gaussian_taps(std, size)
    matrices = [None, *(filter_matrix(n, taps, padding) for n in lengths)]
    return Separable(shape, matrices, spelled("blur:gaussian", std=float(std), size=size, padding=padding))


class Convolution(Channelwise):
    """y = kernel * x for every channel: a kernel (odd, …) with an axis for each of x (C, *size), as many as 3.

    With circular padding A is diagonal in frequency, so that the decomposition costs nothing at any size: V is the Hartley
    basis and the values are |FFT of the kernel|. Otherwise it is dense.
    """

    def __init__(self, shape: Sequence[int], kernel: Tensor, padding: Padding = "circular", name: str = "") -> None:
        self.shape = sized(shape, "a convolution")
        axes = len(self.shape) - 1
        if kernel.ndim != axes or axes not in _CONVOLUTIONS or not all(n % 2 for n in kernel.shape):
            raise InputError(f"kernel of shape {tuple(kernel.shape)} must be odd along each of the axes {self.shape[1:]}")
        self.kernel = Constant(kernel)
        self.padding = padding
        self.sources = [_sources(n, k // 2, padding) for n, k in zip(self.shape[1:], kernel.shape, strict=True)]
        self.name = name

    def channel(self, x: Tensor) -> Tensor:
        """kernel * x for single channels x (N, *size)."""
        kernel = self.kernel.like(x)
        if self.padding == "zeros":
            x = torch.nn.functional.pad(x, [k // 2 for k in reversed(kernel.shape) for _ in range(2)])
        else:
            for axis, source in enumerate(self.sources, start=1):
                x = x.index_select(axis, source.to(x.device))
        axes = tuple(range(kernel.ndim))
        return _CONVOLUTIONS[kernel.ndim](x.unsqueeze(1), kernel.flip(axes)[None, None]).squeeze(1)

    def channel_spectrum(self) -> Spectrum | None:
        """By the FFT where padding is circular, else dense."""
        if self.padding != "circular":
            return super().channel_spectrum()
        size = self.shape[1:]
        impulse = torch.zeros(1, *size, dtype=torch.float64)
        impulse[(0, *[0] * len(size))] = 1
        gain = torch.fft.fftn(self.channel(impulse), dim=_axes(size))[0]
        return hartley_spectrum(gain, size)


def hartley(x: Tensor, size: Sequence[int]) -> Tensor:
    """The Hartley transform Re X - Im X of x (N, *size), X its orthonormal FFT: real, orthogonal, its own inverse."""
    spectrum = torch.fft.fftn(x, dim=_axes(size), norm="ortho")
    return spectrum.real - spectrum.imag


def hartley_spectrum(gain: Tensor, size: Sequence[int]) -> Spectrum:
    """The decomposition of x -> IFFT(gain·FFT(x)) for the complex `gain` (*size) of a real filter: V Hartley, values |gain|.

    A turns the plane of the frequencies k and -k by the phase of gain[k] and stretches it by |gain[k]|, so that any orthonormal
    basis of the plane does for V; Uᵀ undoes the turn.
    """
    values = significant(gain.abs().flatten())
    turn = torch.where(values.reshape(gain.shape) > 0, gain.conj() / gain.abs().clamp(min=1e-300), 0.0)
    real, imaginary = Constant(turn.real), Constant(turn.imag)

    def measured(y: Tensor) -> Tensor:
        seen = torch.fft.fftn(y, dim=_axes(size), norm="ortho") * torch.complex(real.like(y), imaginary.like(y))
        return (seen.real - seen.imag).flatten(1)

    return Spectrum(values, lambda x: hartley(x, size).flatten(1), lambda c: hartley(c.reshape(-1, *size), size), measured)


def _axes(size: Sequence[int]) -> tuple[int, ...]:
    return tuple(range(-len(size), 0))


def motion_kernel(length: float, angle: float, shake: float, noise: Noise | None) -> Tensor:
    """The path of a camera that moves `length` pixels towards `angle` degrees (0 right, 90 up), as weights (k, k) of sum 1.

    With `shake` > 0 the direction does a random walk that has turned by `shake` degrees (one standard deviation) at the end.
    """
    steps = max(2, math.ceil(16 * length))
    turn = torch.zeros(steps, dtype=torch.float64)
    if shake > 0:
        if noise is None:
            raise InputError(f"shake={shake:g} draws a random path; give noise=Noise(seed)")
        turn = noise.normal((steps,), stream="operator/motion", dtype=torch.float64).cumsum(0) * shake / math.sqrt(steps)
    heading = torch.deg2rad(angle + turn)
    path = torch.stack([-heading.sin(), heading.cos()], 1).cumsum(0) * length / steps
    path = path - path.mean(0)
    radius = max(1, math.ceil(float(path.abs().max())))
    kernel = torch.zeros(2 * radius + 1, 2 * radius + 1, dtype=torch.float64)
    low = path.floor()
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        at = low + torch.tensor(corner, dtype=torch.float64)
        weight = (1 - (path - at).abs()).clamp(min=0).prod(1)
        index = (at + radius).long().clamp(0, 2 * radius)  # weight 0 beyond the last whole pixel
        kernel.index_put_((index[:, 0], index[:, 1]), weight, accumulate=True)
    return kernel / kernel.sum()


def motion_blur(
    shape: Sequence[int],
    *,
    length: float = 9.0,
    angle: float = 0.0,
    shake: float = 0.0,
    padding: Padding = "circular",
    noise: Noise | None = None,
) -> Convolution:
    """Blur along a camera's path of `length` pixels towards `angle` degrees, which trembles by `shake` degrees.

    y = kernel * x for every channel of x (C, H, W), the path by `motion_kernel`. Padding is circular, which is decomposed at
    once; reflect and zeros take a dense decomposition. InputError for length ≤ 0 or shake < 0.
    """
    if len(shape) != 3:
        raise InputError(f"blur:motion acts on images (channels, rows, columns), not on {tuple(shape)}; take blur:gaussian")
    if not (0 < length <= 4 * max(shape[1:]) and math.isfinite(angle) and 0 <= shake < math.inf):
        raise InputError(f"length={length:g}, angle={angle:g}, shake={shake:g}: 0 < length ≤ {4 * max(shape[1:])}, shake ≥ 0")
    name = spelled("blur:motion", length=float(length), angle=float(angle), shake=float(shake), padding=padding)
    return Convolution(shape, motion_kernel(length, angle, shake, noise), padding, name)


def down_sample(shape: Sequence[int], *, factor: int = 2, method: Literal["area", "bicubic"] = "area") -> Separable:
    """Make every side `factor` times shorter, by the mean of each block or by a bicubic filter.

    y = (D ⊗ D) x for every channel, D (n/factor, n). Bicubic is that of Pillow, anti-aliased. InputError unless factor divides
    all sides.
    """
    lengths = sized(shape, "down")[1:]
    if factor < 1 or any(n % factor for n in lengths):
        raise InputError(f"factor={factor} must divide the sides {lengths}; take a common divisor")
    if method not in ("area", "bicubic"):
        raise InputError(f"method={method!r} is not one of area, bicubic")
    matrices = [None, *(_shrink(n, factor, method) for n in lengths)]
    return Separable(shape, matrices, spelled("down", factor=factor, method=method))


def _shrink(length: int, factor: int, method: str) -> Tensor:
    eye = torch.eye(length, dtype=torch.float64)
    if method == "area":
        return eye.reshape(length // factor, factor, length).mean(1)
    strips = eye.reshape(1, length, 1, length).movedim(1, 0)  # one image of one row for each unit vector
    small = torch.nn.functional.interpolate(strips, size=(1, length // factor), mode="bicubic", antialias=True)
    return small.reshape(length, -1).T.contiguous()


Weights = Literal["mean", "luma"]


def grey(shape: Sequence[int], *, weights: Weights = "mean") -> Separable:
    """One grey channel from all: their mean, or the luma of red, green and blue.

    y = wᵀx over the channels, (C, *size) -> (1, *size), w = 1/C or ITU-R BT.601's (0.299, 0.587, 0.114).
    """
    matrices = [_grey(sized(shape, "grey"), weights)[None], *[None] * (len(shape) - 1)]
    return Separable(shape, matrices, spelled("grey", weights=weights))


def desaturate(shape: Sequence[int], *, amount: float = 1.0, weights: Weights = "mean") -> Separable:
    """Take `amount` of the colour away: 0 leaves the image, 1 gives equal channels.

    y = (1 - amount) x + amount·1wᵀx over the channels, of x's shape. InputError for an amount outside [0, 1].
    """
    if not 0 <= amount <= 1:
        raise InputError(f"amount={amount:g} must be in [0, 1]: 0 leaves the colours, 1 takes them")
    channels = sized(shape, "desaturate")[0]
    matrix = (1 - amount) * torch.eye(channels, dtype=torch.float64) + amount * _grey(shape, weights).expand(channels, -1)
    return Separable(shape, [matrix, *[None] * (len(shape) - 1)], spelled("desaturate", amount=float(amount), weights=weights))


def _grey(shape: Sequence[int], weights: str) -> Tensor:
    if weights not in ("mean", "luma"):
        raise InputError(f"weights={weights!r} is not one of mean, luma")
    if weights == "luma" and shape[0] != 3:
        raise InputError(f"weights='luma' is for red, green and blue, not for {shape[0]} channels; take mean")
    return torch.tensor([0.299, 0.587, 0.114] if weights == "luma" else [1 / shape[0]] * shape[0], dtype=torch.float64)
