"""The half U-Net: the way down of the U-Net with attention pooling, a classifier of noisy grids."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.files import InputError
from ornstein.nets.blocks import Stage, arranged, check_levels, convolution, descend, divisor, group_norm, way_down, zeroed
from ornstein.nets.embed import NoiseEmbedding


class HalfUNet(nn.Module):
    """Half U-Net: x (B, in_channels, *size), c_noise (B,) -> logits (B, classes), zero before training.

    The way down and the middle are those of `UNet`, whose arguments these are too; `size` gives the spatial dimensions, 1 to 3,
    and their lengths, which the pooling's places need. Raises `InputError` for arguments, x or c_noise that do not fit. Weights
    start from torch's default generator, which the caller forks and seeds.
    Source: Dhariwal and Nichol, arXiv:2105.05233, section 4.
    """

    def __init__(
        self,
        size: Sequence[int],
        classes: int,
        in_channels: int = 1,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int | Sequence[int] = 2,
        attention: Sequence[bool] | None = None,
        middle: int = 2,
        head_width: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        dims, levels = len(size), len(multipliers)
        counts = [blocks] * levels if isinstance(blocks, int) else list(blocks)
        attends = [level == levels - 1 for level in range(levels)] if attention is None else list(attention)
        check_levels(dims, width, list(multipliers), counts, attends, middle)
        if classes < 2:
            raise InputError(f"classes is {classes}: a classifier needs at least 2")
        self.size, self.in_channels = tuple(size), in_channels
        widths = [width * multiplier for multiplier in multipliers]
        embed = 4 * width
        self.noise = NoiseEmbedding(embed, max(2, width // 2))

        def stage(inputs: int, outputs: int, attend: bool) -> Stage:
            return Stage(dims, inputs, outputs, embed, dropout, head_width if attend else None)

        self.stem = convolution(dims, in_channels, widths[0], 3)
        self.down, self.shrink = way_down(dims, widths, counts, attends, stage)
        self.middle = nn.ModuleList(stage(widths[-1], widths[-1], any(attends) and index < middle - 1) for index in range(middle))
        self.norm = group_norm(widths[-1])
        shrunk = math.prod(-(-side // 2 ** (levels - 1)) for side in size)
        self.pool = AttentionPool(widths[-1], shrunk, classes, head_width)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        if x.shape[1:] != (self.in_channels, *self.size):
            wanted = ", ".join(map(str, (self.in_channels, *self.size)))
            raise InputError(f"x has shape {tuple(x.shape)}: this HalfUNet takes (batch, {wanted})")
        if c_noise.shape != x.shape[:1]:
            raise InputError(f"c_noise has shape {tuple(c_noise.shape)}: make it ({len(x)},), one level per sample")
        code = functional.silu(self.noise(c_noise))
        wide = self.down[0][0].conv1.weight  # type: ignore[index]
        h = self.stem(arranged(x.to(self.stem.weight.dtype), wide))
        h = descend(arranged(h, wide), code, self.down, self.shrink)[-1]
        for stage in self.middle:
            h = stage(h, code)
        logits: Tensor = self.pool(functional.silu(self.norm(h))).to(x.dtype)
        return logits


class AttentionPool(nn.Module):
    """The mean over all positions attends over them: x (B, channels, *size) with `positions` = prod(size) -> (B, outputs).

    Each position and the mean have a learned place vector. Zero before training.
    Source: Radford et al., arXiv:2103.00020, section 2.4; Dhariwal and Nichol, arXiv:2105.05233, section 4.
    """

    def __init__(self, channels: int, positions: int, outputs: int, head_width: int = 32) -> None:
        super().__init__()
        self.heads = divisor(channels, channels // head_width)
        self.places = nn.Parameter(torch.randn(1 + positions, channels) / math.sqrt(channels))
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.output = zeroed(nn.Linear(channels, outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([flat.mean(1, keepdim=True), flat], dim=1) + self.places
        query = self.query(tokens[:, :1]).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(tokens).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        pooled: Tensor = self.output(mixed.transpose(1, 2).flatten(1))
        return pooled
