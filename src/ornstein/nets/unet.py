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
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.files import InputError
from ornstein.nets.blocks import Stage, arranged, check_levels, convolution, descend, group_norm, way_down, zeroed
from ornstein.nets.embed import Condition, ConditionEmbedding, NoiseEmbedding


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
        check_levels(dims, width, list(multipliers), counts, attends, middle)
        self.dims, self.in_channels = dims, in_channels
        widths = [width * multiplier for multiplier in multipliers]
        embed = 4 * width
        self.noise = NoiseEmbedding(embed, max(2, width // 2))
        self.condition = ConditionEmbedding(embed, classes, values, grid_channels)

        def stage(inputs: int, outputs: int, attend: bool) -> Stage:
            return Stage(dims, inputs, outputs, embed, dropout, head_width if attend else None)

        self.stem = convolution(dims, in_channels + self.condition.extra_channels, widths[0], 3)
        self.down, self.shrink = way_down(dims, widths, counts, attends, stage)
        self.middle = nn.ModuleList(stage(widths[-1], widths[-1], any(attends) and index < middle - 1) for index in range(middle))
        self.grow = nn.ModuleList(convolution(dims, b, a, 3) for a, b in pairwise(widths))
        self.up = nn.ModuleList(
            nn.ModuleList(stage(2 * wide, wide, attend) for _ in range(count))
            for wide, count, attend in zip(widths, counts, attends, strict=True)
        )
        self.norm = group_norm(widths[0])
        self.head = zeroed(convolution(dims, widths[0], in_channels if out_channels is None else out_channels, 3))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        if x.ndim != self.dims + 2 or x.shape[1] != self.in_channels:
            sizes = ", ".join(["size"] * self.dims)
            raise InputError(f"x has shape {tuple(x.shape)}: this UNet takes (batch, {self.in_channels}, {sizes})")
        if c_noise.shape != x.shape[:1]:
            raise InputError(f"c_noise has shape {tuple(c_noise.shape)}: make it ({len(x)},), one level per sample")
        condition = self.condition(x, cond)
        code = self.noise(c_noise)
        code = functional.silu(code if condition is None else code + condition)

        h = self.stem(arranged(self.condition.attach_grid(x.to(self.stem.weight.dtype), cond), self.head.weight))
        skips = descend(arranged(h, self.head.weight), code, self.down, self.shrink)
        h = skips[-1]
        for stage in self.middle:
            h = stage(h, code)
        for level in reversed(range(len(self.up))):
            if level < len(self.grow):
                h = functional.interpolate(self.grow[level](h), size=skips[-1].shape[2:], mode="nearest")
            for stage in cast(nn.ModuleList, self.up[level]):
                h = stage(torch.cat([h, skips.pop()], dim=1), code)
        return self.head(functional.silu(self.norm(h))).to(x.dtype)
