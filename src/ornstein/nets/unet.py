"""The U-Net, written once for 1-D, 2-D and 3-D grids.

Ho et al. (arXiv:2006.11239, appendix B) is the ancestor; the differences, each for speed at equal parameters:

- the embedding scales and shifts the second norm, in place of that norm's own affine (Nichol and Dhariwal,
  arXiv:2102.09672, section 3);
- the way up has as many blocks as the way down, one for each skip, and up-sampling comes after its convolution, as in
  the "efficient U-Net" (Saharia et al., arXiv:2205.11487, appendix B): both take work from the finest level, where a
  parameter costs most;
- every tensor keeps the memory layout of the weights, so `net.to(memory_format=torch.channels_last)` runs the whole
  net channels-last, attention included, without a permuting copy.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.files import InputError
from ornstein.nets.embed import Condition, ConditionEmbedding, NoiseEmbedding

_CONV: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_Layer = TypeVar("_Layer", bound=nn.Module)
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


class UNet(nn.Module):
    """U-Net: x (B, in_channels, *size), c_noise (B,), cond -> (B, out_channels, *size), zero before training.

    Level l has ``width * multipliers[l]`` channels and half the size of the level above, rounded up; any size ≥ 1 per
    dimension works. Every argument is a plain value, so a recipe can hold it.

    - `dims`: 1, 2 or 3 spatial dimensions; `out_channels`: None for as many as come in;
    - `blocks`: residual blocks per level on the way down, and again on the way up: a number, or one per level;
    - `attention`: per level, whether attention follows every block; None for the lowest level only;
    - `middle`: blocks between the two ways, where a parameter costs least; all but the last have attention when any
      level has; `head_width`: least number of channels per head;
    - `dropout`: probability before each block's second convolution;
    - `classes`, `values`, `grid_channels`: conditions, see `ornstein.nets.embed`.

    Raises `InputError` for arguments, x, c_noise or cond that do not fit. Weights start from torch's default generator,
    which the caller forks and seeds. Under autocast the output has x's dtype. Source: Ho et al., arXiv:2006.11239,
    appendix B, with the changes listed above. `MLP` is its sibling for vectors.
    """

    def __init__(
        self,
        dims: int = 2,
        in_channels: int = 1,
        out_channels: int | None = None,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int | Sequence[int] = 2,
        attention: Sequence[bool] | None = None,
        middle: int = 2,
        head_width: int = 32,
        dropout: float = 0.0,
        classes: int | None = None,
        values: int | None = None,
        grid_channels: int = 0,
    ) -> None:
        super().__init__()
        levels = len(multipliers)
        counts = [blocks] * levels if isinstance(blocks, int) else list(blocks)
        attends = [level == levels - 1 for level in range(levels)] if attention is None else list(attention)
        _check(dims, width, list(multipliers), counts, attends, middle)
        self.dims, self.in_channels = dims, in_channels
        widths = [width * multiplier for multiplier in multipliers]
        embed = 4 * width
        self.noise = NoiseEmbedding(embed, max(2, width // 2))
        self.condition = ConditionEmbedding(embed, classes, values, grid_channels)

        def stage(inputs: int, outputs: int, attend: bool) -> _Stage:
            return _Stage(dims, inputs, outputs, embed, dropout, head_width if attend else None)

        self.stem = _conv(dims, in_channels + self.condition.extra_channels, widths[0], 3)
        self.down = nn.ModuleList(
            nn.ModuleList(stage(wide, wide, attend) for _ in range(count))
            for wide, count, attend in zip(widths, counts, attends, strict=True)
        )
        self.shrink = nn.ModuleList(_conv(dims, a, b, 3, stride=2) for a, b in pairwise(widths))
        self.middle = nn.ModuleList(stage(widths[-1], widths[-1], any(attends) and index < middle - 1) for index in range(middle))
        self.grow = nn.ModuleList(_conv(dims, b, a, 3) for a, b in pairwise(widths))
        self.up = nn.ModuleList(
            nn.ModuleList(stage(2 * wide, wide, attend) for _ in range(count))
            for wide, count, attend in zip(widths, counts, attends, strict=True)
        )
        self.norm = _norm(widths[0])
        self.head = _zeroed(_conv(dims, widths[0], in_channels if out_channels is None else out_channels, 3))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        if x.ndim != self.dims + 2 or x.shape[1] != self.in_channels:
            sizes = ", ".join(["size"] * self.dims)
            raise InputError(f"x has shape {tuple(x.shape)}: this UNet takes (batch, {self.in_channels}, {sizes})")
        if c_noise.shape != x.shape[:1]:
            raise InputError(f"c_noise has shape {tuple(c_noise.shape)}: make it ({len(x)},), one level per sample")
        condition = self.condition(x, cond)
        code = self.noise(c_noise)
        code = functional.silu(code if condition is None else code + condition)

        h = self.stem(self._arranged(self.condition.attach_grid(x.to(self.stem.weight.dtype), cond)))
        h = self._arranged(h)
        skips: list[Tensor] = []
        for level, stages in enumerate(self.down):
            h = self.shrink[level - 1](h) if level else h
            for stage in cast(nn.ModuleList, stages):
                h = stage(h, code)
                skips.append(h)
        for stage in self.middle:
            h = stage(h, code)
        for level in reversed(range(len(self.up))):
            if level < len(self.grow):
                h = functional.interpolate(self.grow[level](h), size=skips[-1].shape[2:], mode="nearest")
            for stage in cast(nn.ModuleList, self.up[level]):
                h = stage(torch.cat([h, skips.pop()], dim=1), code)
        return self.head(functional.silu(self.norm(h))).to(x.dtype)

    def _arranged(self, x: Tensor) -> Tensor:
        # A convolution takes its layout from its input or its weight, but the stem's weight may be too thin to show
        # one (a single channel); the head's cannot.
        layout = _CHANNELS_LAST.get(self.dims)
        if layout is None or not self.head.weight.is_contiguous(memory_format=layout):
            return x
        return x.contiguous(memory_format=layout)


class _Stage(nn.Module):
    """Residual block: x' + conv(silu(norm(conv(silu(norm(x))))·(1 + s) + b)), then attention where asked for."""

    def __init__(self, dims: int, inputs: int, outputs: int, embed: int, dropout: float, head_width: int | None) -> None:
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = _conv(dims, inputs, outputs, 3)
        self.affine = nn.Linear(embed, 2 * outputs)
        self.norm2 = _norm(outputs, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zeroed(_conv(dims, outputs, outputs, 3))
        self.shortcut = nn.Identity() if inputs == outputs else _conv(dims, inputs, outputs, 1)
        self.attention = nn.Identity() if head_width is None else _Attention(dims, outputs, head_width)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        h = self.norm2(self.conv1(functional.silu(self.norm1(x))))
        scale, shift = self.affine(code).reshape(*code.shape[:1], -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        h = functional.silu(torch.addcmul(shift, h, 1 + scale))
        return self.attention(self.conv2(self.dropout(h)) + self.shortcut(x))


class _Attention(nn.Module):
    """Self-attention over all positions, x + W·attention(norm(x)), with heads of at least `head_width` channels.

    The projections are 1-wide convolutions: the same map as a linear layer, but they keep x's layout, and on a CPU
    oneDNN's convolution is several times faster than the float32 matrix product.
    """

    def __init__(self, dims: int, channels: int, head_width: int) -> None:
        super().__init__()
        self.heads = _divisor(channels, channels // head_width)
        self.norm = _norm(channels)
        self.inputs = _conv(dims, channels, 3 * channels, 1)
        self.output = _zeroed(_conv(dims, channels, channels, 1))

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


def _conv(dims: int, inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    return _CONV[dims](inputs, outputs, size, stride=stride, padding=size // 2)


def _norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    # 16 channels per group was the best fixed number in Wu and He (arXiv:1803.08494, table 3), and the backward pass of
    # narrower groups is up to eight times slower in bfloat16 channels-last.
    return nn.GroupNorm(_divisor(channels, channels // 16), channels, affine=affine)


def _zeroed(layer: _Layer) -> _Layer:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _divisor(number: int, at_most: int) -> int:
    """Largest divisor of `number` that is not above `at_most`, and at least 1."""
    return next(candidate for candidate in range(max(1, at_most), 0, -1) if number % candidate == 0)


def _check(dims: int, width: int, multipliers: list[int], counts: list[int], attends: list[bool], middle: int) -> None:
    if dims not in _CONV:
        raise InputError(f"dims is {dims}: make it 1, 2 or 3")
    if not multipliers or width < 1 or min(multipliers) < 1:
        raise InputError(f"width {width} with multipliers {multipliers}: give at least one level and positive numbers")
    if len(counts) != len(multipliers) or min(counts) < 1:
        raise InputError(f"blocks is {counts}: give a positive number, or one for each of {len(multipliers)} levels")
    if middle < 0:
        raise InputError(f"middle is {middle}: give a number of blocks, or 0 for none")
    if len(attends) != len(multipliers):
        raise InputError(f"attention is {attends}: give one truth value for each of {len(multipliers)} levels")
