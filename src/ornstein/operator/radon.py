"""Projections of a picture (C, H, W) at several angles, as a tomograph takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ornstein.files import InputError
from ornstein.operator.base import Constant
from ornstein.operator.channels import Channelwise, sized
from ornstein.operator.masks import spelled


class Radon(Channelwise):
    """Shadows of the picture at `angles` angles over `span` degrees, as a tomograph takes them.

    y[a, k] = the integral over the k-th strip of width 1 across angle a, per longer side: y (B, C, angles, bins).
    The picture is constant on its pixels and the integral is exact, so that every projection has the mass of the image, and
    angle 0 gives the sums of the columns. Angles are `span`·a/angles degrees; the bins span the image's diagonal; division by
    the longer side keeps y in the units and size of x. InputError for less than one angle or another number of axes.
    Source: Kak and Slaney 1988, Principles of Computerized Tomographic Imaging, chapter 7.
    """

    def __init__(self, shape: Sequence[int], angles: int = 20, span: float = 180.0) -> None:
        self.shape = sized(shape, "radon")
        if len(self.shape) != 3:
            raise InputError(f"radon acts on images (channels, rows, columns), not on {tuple(shape)}; take fourier:random")
        if not 1 <= angles <= 720 or not 0 < span <= 360:
            raise InputError(f"angles={angles}, span={span:g}: take 1 ≤ angles ≤ 720 and 0 < span ≤ 360 degrees")
        self.angles = angles
        self.span = span
        self.bins = _bins(*self.shape[1:])
        self.weights = Constant(_strips(self.shape[1], self.shape[2], angles, span))
        self.name = spelled("radon", angles=angles, span=float(span))

    def channel(self, x: Tensor) -> Tensor:
        """The shadows of x (N, H, W): (N, angles, bins)."""
        return torch.sparse.mm(self.weights.like(x), x.flatten(1).T).T.unflatten(1, (self.angles, self.bins))

    def adjoint(self, y: Tensor) -> Tensor:
        """Back-projection of y (B, C, angles, bins): every pixel gets its share of every strip."""
        flat = y.reshape(y.shape[0] * y.shape[1], self.angles * self.bins)
        return torch.sparse.mm(self.weights.like(y).t(), flat.T).T.reshape(-1, *self.shape)


def _bins(height: int, width: int) -> int:
    """Bins of width 1 that cover the diagonal, odd with an odd width so that angle 0 has a bin on each column."""
    bins = math.ceil(math.hypot(height, width))
    return bins + (bins - width) % 2


def _strips(height: int, width: int, angles: int, span: float) -> Tensor:
    """The sparse matrix (angles·bins, H·W) of the shares of every pixel that lie in every strip, over the longer side.

    Across angle θ a pixel's shadow is the convolution of boxes of width |cos θ| and |sin θ|; a share is a difference of its
    cumulative mass.
    """
    bins = _bins(height, width)
    up = (height - 1) / 2 - torch.arange(height, dtype=torch.float64)
    right = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    pixel = torch.arange(height * width)
    places, values = [], []
    for a in range(angles):
        theta = math.radians(span * a / angles)
        middle = (right * math.cos(theta) + up[:, None] * math.sin(theta)).flatten() + (bins - 1) / 2
        for offset in (-1, 0, 1, 2):  # a shadow is at most √2 wide
            k = middle.floor() + offset
            share = _mass(k + 0.5 - middle, theta) - _mass(k - 0.5 - middle, theta)
            inside = (k >= 0) & (k < bins) & (share > 1e-14)
            places.append(torch.stack([a * bins + k[inside].long(), pixel[inside]]))
            values.append(share[inside] / max(height, width))
    size = (angles * bins, height * width)
    return torch.sparse_coo_tensor(torch.cat(places, 1), torch.cat(values), size, check_invariants=True).coalesce()


def _mass(x: Tensor, theta: float) -> Tensor:
    """The mass below x of the shadow of a unit pixel at 0 across the angle."""
    a, b = abs(math.cos(theta)), abs(math.sin(theta))
    if min(a, b) < 1e-6:
        return (x / max(a, b) + 0.5).clamp(0, 1)
    total = torch.zeros_like(x)
    for sign, corner in ((1, -(a + b) / 2), (-1, -(a - b) / 2), (-1, (a - b) / 2), (1, (a + b) / 2)):
        total = total + sign * (x - corner).clamp(min=0) ** 2
    return total / (2 * a * b)
