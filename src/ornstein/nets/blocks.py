"""The blocks that the U-Net and the half U-Net are made of, and the way down that they share; for 1-D, 2-D and 3-D grids."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.files import InputError

CONVOLUTIONS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
Layer = TypeVar("Layer", bound=nn.Module)
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


class Stage(nn.Module):
    """Residual block: x' + conv(silu(norm(conv(silu(norm(x))))·(1 + s) + b)), then attention where asked for."""

    def __init__(self, dims: int, inputs: int, outputs: int, embed: int, dropout: float, head_width: int | None) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = convolution(dims, inputs, outputs, 3)
        self.affine = nn.Linear(embed, 2 * outputs)
        self.norm2 = group_norm(outputs, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(convolution(dims, outputs, outputs, 3))
        self.shortcut = nn.Identity() if inputs == outputs else convolution(dims, inputs, outputs, 1)
        self.attention = nn.Identity() if head_width is None else Attention(dims, outputs, head_width)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        h = self.norm2(self.conv1(functional.silu(self.norm1(x))))
        scale, shift = self.affine(code).reshape(*code.shape[:1], -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        h = functional.silu(torch.addcmul(shift, h, 1 + scale))
        return self.attention(self.conv2(self.dropout(h)) + self.shortcut(x))


class Attention(nn.Module):
    """Self-attention over all positions, x + W·attention(norm(x)), with heads of at least `head_width` channels.

    The projections are 1-wide convolutions: the same map as a linear layer, but they keep x's layout, and on a CPU
    oneDNN's convolution is several times faster than the float32 matrix product.
    """

    def __init__(self, dims: int, channels: int, head_width: int) -> None:
        super().__init__()
        self.heads = divisor(channels, channels // head_width)
        self.norm = group_norm(channels)
        self.inputs = convolution(dims, channels, 3 * channels, 1)
        self.output = zeroed(convolution(dims, channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        # (B, 3C, *size) -> (B, positions, 3, heads, C/heads) -> 3 of (B, heads, positions, C/heads): views when x is
        # channels-last.
        flat = self.inputs(self.norm(x)).flatten(2).transpose(1, 2)
        # On a CPU the fused attention's backward pass is four times slower in bfloat16 than in float32.
        widen = flat.device.type == "cpu" and flat.dtype == torch.bfloat16
        heads = (flat.float() if widen else flat).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        with torch.autocast(flat.device.type, enabled=not widen and torch.is_autocast_enabled(flat.device.type)):
            mixed = functional.scaled_dot_product_attention(query, key, value)
        return x + self.output(mixed.transpose(1, 2).flatten(2).transpose(1, 2).reshape(x.shape).to(flat.dtype))


def convolution(dims: int, inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """A convolution in so many dimensions that keeps the size, or divides it by its stride, rounded up."""
    return CONVOLUTIONS[dims](inputs, outputs, size, stride=stride, padding=size // 2)


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """Group norm of as many groups as 16 channels each allow."""
    # 16 channels per group was the best fixed number in Wu and He (arXiv:1803.08494, table 3), and the backward pass of
    # narrower groups is up to eight times slower in bfloat16 channels-last.
    return nn.GroupNorm(divisor(channels, channels // 16), channels, affine=affine)


def zeroed(layer: Layer) -> Layer:
    """The layer with all parameters 0: what it is added to starts unchanged."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def divisor(number: int, at_most: int) -> int:
    """Largest divisor of `number` that is not above `at_most`, and at least 1."""
    return next(candidate for candidate in range(max(1, at_most), 0, -1) if number % candidate == 0)


def way_down(
    dims: int, widths: Sequence[int], counts: Sequence[int], attends: Sequence[bool], stage: Callable[[int, int, bool], Stage]
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The stages of every level, `counts[l]` of `widths[l]` channels each, and the strided convolutions between levels."""
    down = nn.ModuleList(
        nn.ModuleList(stage(wide, wide, attend) for _ in range(count))
        for wide, count, attend in zip(widths, counts, attends, strict=True)
    )
    return down, nn.ModuleList(convolution(dims, a, b, 3, stride=2) for a, b in pairwise(widths))


def descend(h: Tensor, code: Tensor, down: nn.ModuleList, shrink: nn.ModuleList) -> list[Tensor]:
    """What every stage on the way down gives for h (B, C, *size) under the code (B, embed), first to last."""
    skips: list[Tensor] = []
    for level, stages in enumerate(down):
        h = shrink[level - 1](h) if level else h
        for stage in cast(nn.ModuleList, stages):
            h = stage(h, code)
            skips.append(h)
    return skips


def arranged(x: Tensor, like: Tensor) -> Tensor:
    """x (B, C, *size) in the memory layout of a convolution's weight.

    A convolution takes its layout from its input or its weight, but a stem's weight may be too thin to show one (a single
    channel): give that of a wide layer.
    """
    layout = _CHANNELS_LAST.get(x.ndim - 2)
    if layout is None or not like.is_contiguous(memory_format=layout):
        return x
    return x.contiguous(memory_format=layout)


def check_levels(dims: int, width: int, multipliers: list[int], counts: list[int], attends: list[bool], middle: int) -> None:
    """InputError for numbers of which no way down can be made."""
    if dims not in CONVOLUTIONS:
        raise InputError(f"dims is {dims}: make it 1, 2 or 3")
    if not multipliers or width < 1 or min(multipliers) < 1:
        raise InputError(f"width {width} with multipliers {multipliers}: give at least one level and positive numbers")
    if len(counts) != len(multipliers) or min(counts) < 1:
        raise InputError(f"blocks is {counts}: give a positive number, or one for each of {len(multipliers)} levels")
    if middle < 0:
        raise InputError(f"middle is {middle}: give a number of blocks, or 0 for none")
    if len(attends) != len(multipliers):
        raise InputError(f"attention is {attends}: give one truth value for each of {len(multipliers)} levels")
