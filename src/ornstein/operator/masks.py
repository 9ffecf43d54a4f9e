"""Masks: which numbers of a datum are measured. Shapes are (C, *size), and every channel is hidden at the same places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ornstein.files import InputError
from ornstein.noise import Noise
from ornstein.operator.base import Mask
from ornstein.operator.channels import sized

Sizes = tuple[int, ...]
Side = Literal["left", "right", "top", "bottom"]


def spelled(name: str, **options: object) -> str:
    """A name with its options as `parse` reads them; those that are None are left out. `mask:box,size=14x10,corner=0x3`."""

    def plain(value: object) -> str:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return "x".join(map(str, value))
        return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)

    pairs = [f"{key}={plain(value)}" for key, value in options.items() if value is not None]
    return name + ("," if ":" in name else ":" if pairs else "") * bool(pairs) + ",".join(pairs)


def box(shape: Sequence[int], *, size: Sizes | None = None, corner: Sizes | None = None) -> Mask:
    """Hide a box of `size` pixels (half of each side unless given) at `corner` (in the centre unless given).

    mask = 0 in corner ≤ place < corner + size, 1 elsewhere; one number stands for all axes. InputError for a box that leaves
    the image or leaves nothing of it.
    """
    lengths = sized(shape, "mask:box")[1:]
    name = spelled("mask:box", size=size, corner=corner)
    sizes = _each(size, lengths, "size") if size is not None else tuple(max(1, n // 2) for n in lengths)
    middle = tuple((n - k) // 2 for n, k in zip(lengths, sizes, strict=True))
    corners = _each(corner, lengths, "corner") if corner is not None else middle
    if any(k < 1 or c < 0 or c + k > n for n, k, c in zip(lengths, sizes, corners, strict=True)) or sizes == lengths:
        raise InputError(f"a box of size={sizes} at corner={corners} must lie within {lengths} and leave something of it")
    hidden = torch.ones(lengths, dtype=torch.bool)
    hidden[tuple(slice(c, c + k) for k, c in zip(sizes, corners, strict=True))] = False
    return _every_channel(hidden, shape, name)


def random(shape: Sequence[int], *, share: float = 0.5, noise: Noise) -> Mask:
    """Hide a random `share` of the pixels: exactly round(share·pixels), at places of `noise`, all channels alike.

    InputError for a share outside [0, 1), or so high that nothing is left.
    """
    lengths = sized(shape, "mask:random")[1:]
    pixels = math.prod(lengths)
    count = _count(share, pixels)
    measured = torch.ones(pixels, dtype=torch.bool)
    measured[noise.permutation(pixels, stream="operator/mask")[:count]] = False
    return _every_channel(measured.reshape(lengths), shape, spelled("mask:random", share=share))


def half(shape: Sequence[int], *, side: Side = "right") -> Mask:
    """Hide one half: the left, right, top or bottom one (of an odd number the smaller half).

    The mask is 0 there. Data (C, L) of one axis know left and right alone.
    """
    lengths = sized(shape, "mask:half")[1:]
    if side not in ("left", "right", "top", "bottom"):
        raise InputError(f"side={side!r} is not one of left, right, top, bottom")
    if len(lengths) < 2 and side in ("top", "bottom"):
        raise InputError(f"side={side!r} needs two axes, data are {lengths}; take left or right")
    axis = -1 if side in ("left", "right") else -2
    cut = lengths[axis] // 2
    place = _places(lengths, axis)
    measured = place >= cut if side in ("left", "top") else place < lengths[axis] - cut
    return _every_channel(measured.expand(lengths), shape, spelled("mask:half", side=side))


def rows(shape: Sequence[int], *, every: int = 2) -> Mask:
    """Keep every n-th row, from the first on, and hide the others.

    mask = 1 where row mod every = 0. InputError for data of one axis, or unless 1 ≤ every ≤ rows.
    """
    if len(shape) < 3:
        raise InputError(f"mask:rows acts on images (channels, rows, columns), not on {tuple(shape)}; take mask:columns")
    return _comb(shape, -2, every, "mask:rows")


def columns(shape: Sequence[int], *, every: int = 2) -> Mask:
    """Keep every n-th column (of a series: moment), from the first on, and hide the others.

    mask = 1 where column mod every = 0. InputError unless 1 ≤ every ≤ columns.
    """
    return _comb(shape, -1, every, "mask:columns")


def scratches(shape: Sequence[int], *, count: int = 8, width: float = 1.5, noise: Noise) -> Mask:
    """Hide `count` straight scratches of `width` pixels between random points of a picture (C, H, W).

    mask = 0 within width/2 of a segment whose ends are uniform on the image. InputError for another number of axes.
    """
    lengths = sized(shape, "mask:scratches")[1:]
    if len(lengths) != 2:
        raise InputError(f"mask:scratches acts on images (channels, rows, columns), not on {tuple(shape)}; take mask:random")
    if not 1 <= count <= 1000 or not 0 < width < min(lengths):
        raise InputError(f"count={count}, width={width:g} must be in 1 … 1000 and in (0, {min(lengths)})")
    ends = noise.uniform((count, 2, 2), stream="operator/scratches") * torch.tensor(lengths, dtype=torch.float64) - 0.5
    start, along = ends[:, 0], ends[:, 1] - ends[:, 0]
    grid = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in lengths), indexing="ij"), -1)
    offset = grid.unsqueeze(2) - start  # (H, W, count, 2)
    part = ((offset * along).sum(-1) / (along**2).sum(-1).clamp(min=1e-12)).clamp(0, 1)
    distance = (offset - part.unsqueeze(-1) * along).norm(dim=-1).amin(-1)
    if not bool((distance > width / 2).any()):
        raise InputError(f"count={count} scratches of width={width:g} hide all of {lengths}; take fewer")
    return _every_channel(distance > width / 2, shape, spelled("mask:scratches", count=count, width=width))


def _every_channel(measured: Tensor, shape: Sequence[int], name: str) -> Mask:
    return Mask(measured.expand(*shape).clone(), name)


def _places(lengths: Sizes, axis: int) -> Tensor:
    """The index along an axis, shaped to broadcast over an image."""
    view = [1] * len(lengths)
    view[axis] = -1
    return torch.arange(lengths[axis]).reshape(view)


def _comb(shape: Sequence[int], axis: int, every: int, name: str) -> Mask:
    lengths = sized(shape, name)[1:]
    if not 1 <= every <= lengths[axis]:
        raise InputError(f"every={every} must be in 1 … {lengths[axis]}, the length of that axis")
    return _every_channel((_places(lengths, axis) % every == 0).expand(lengths), shape, spelled(name, every=every))


def _each(value: Sizes, lengths: Sizes, name: str) -> Sizes:
    sizes = tuple(value) * (len(lengths) if len(value) == 1 else 1)
    if len(sizes) != len(lengths):
        raise InputError(f"{name}={value} has {len(value)} numbers for {len(lengths)} axes; give one for each")
    return sizes


def _count(share: float, pixels: int) -> int:
    """How many of the pixels a share is, at least one left over."""
    count = round(share * pixels) if 0 <= share < 1 else pixels
    if count >= pixels:
        raise InputError(f"share={share:g} of {pixels} leaves nothing to measure; take it in [0, 1), so that some are left")
    return count
