"""CSDINet: attention over time and over channels in turn, for imputing series of many channels.

| paper (arXiv 2107.03502) | here |
|---|---|
| section 5, figure 3: time, then feature transformer in every residual block | `_Block` |
| appendix E.1: gate, residual and skip as in DiffWave | `_Block` |
| side information: time code of 128, learned channel code of 16, mask | `_Side` |
| two input channels, values known and values asked for | four: both, and both masks |
| 8 heads of width 8 | 4 of 16: narrower heads cost three times as much on a CPU |
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.files import InputError
from ornstein.hardware import widest
from ornstein.nets.blocks import zeroed
from ornstein.nets.embed import Condition, NoiseEmbedding
from ornstein.nets.s4 import check_sizes, checked_series

_TIME_CODE = 128
_SLOWEST = 1e-4  # slowest angular frequency of the time code, in radians a step; the fastest is 1


class CSDINet(nn.Module):
    """Axial transformer for series with gaps: x (B, C, L), c_noise (B,), cond -> (B, C, L), zero before training.

    A token is one channel at one time, told x where it is asked for, the known value, both masks, its time, its channel and the
    features of its time. Every block: h + code of the noise level, attention over the times of each channel, attention over the
    channels at each time, + projection of time, channel and features, tanh·sigmoid gate, residual and skip.
    `channel_code` is the length of a channel's learned code, `heads` must divide `width`. `cond`, the part of x that counts,
    errors and the start of the weights are as for `SSSDNet`, whose cost grows as L·log L where this one's grows as C·L² + L·C².
    Source: Tashiro et al., arXiv:2107.03502, section 5 and appendix E.1.
    """

    def __init__(
        self,
        channels: int,
        features: int = 0,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        channel_code: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, width=width, depth=depth, heads=heads, channel_code=channel_code)
        if width % heads:
            raise InputError(f"heads is {heads}: take a divisor of the width {width}")
        self.channels, self.features = channels, features
        self.noise = NoiseEmbedding(width)
        self.token = nn.Linear(4, width)
        self.side = _Side(width, features, channel_code)
        self.channel = nn.Parameter(torch.randn(channels, channel_code))
        self.blocks = nn.ModuleList(_Block(width, features, heads, channel_code, dropout) for _ in range(depth))
        self.hidden = nn.Linear(width, width)
        self.head = zeroed(nn.Linear(width, 1))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        asked, told = checked_series(x, c_noise, cond, self.channels, self.features)
        dtype = self.token.weight.dtype
        numbers = [torch.where(asked, x, 0).to(dtype), *told[0].to(dtype).chunk(3, 1)]
        known = told[1].to(dtype).mT if self.features else None
        code, time = functional.silu(self.noise(c_noise)), _time_code(x.shape[2], like=self.token.weight)
        h = functional.silu(self.token(torch.stack(numbers, -1)) + self.side(time, self.channel, known))
        total: Tensor | float = 0.0
        for block in self.blocks:
            h, skip = block(h, code, time, self.channel, known)
            total = total + skip
        total = functional.silu(self.hidden(total / math.sqrt(len(self.blocks))))
        return self.head(total).squeeze(-1).to(x.dtype)


class _Side(nn.Module):
    """Projection of time (L, 128), channel (C, code) and features (B, L, F) to (B or 1, C, L, outputs): a sum of small ones."""

    def __init__(self, outputs: int, features: int, channel_code: int) -> None:
        super().__init__()
        self.time = nn.Linear(_TIME_CODE, outputs)
        self.channel = nn.Linear(channel_code, outputs, bias=False)
        self.known = nn.Linear(features, outputs, bias=False) if features else None

    def forward(self, time: Tensor, channel: Tensor, known: Tensor | None) -> Tensor:
        total = self.channel(channel)[None, :, None] + self.time(time)
        return total if self.known is None else total + self.known(known)[:, None]


class _Block(nn.Module):
    def __init__(self, width: int, features: int, heads: int, channel_code: int, dropout: float) -> None:
        super().__init__()
        self.code = nn.Linear(width, width)
        self.over_time = _Layer(width, heads, dropout)
        self.over_channels = _Layer(width, heads, dropout)
        self.widen = nn.Linear(width, 2 * width)
        self.side = _Side(2 * width, features, channel_code)
        self.output = nn.Linear(width, 2 * width)

    def forward(self, h: Tensor, code: Tensor, time: Tensor, channel: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
        z = self.over_time(h + self.code(code)[:, None, None])
        z = self.over_channels(z.transpose(1, 2)).transpose(1, 2)
        gate, value = (self.widen(z) + self.side(time, channel, known)).chunk(2, -1)
        residual, skip = self.output(torch.sigmoid(gate) * torch.tanh(value)).chunk(2, -1)
        return (h + residual) / math.sqrt(2), skip


class _Layer(nn.Module):
    """Transformer layer along the last axis but one: z + attention(norm(z)), then z + W·gelu(W'·norm(z))."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.inputs = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, z: Tensor) -> Tensor:
        # (…, tokens, 3·width) -> 3 of (rows, heads, tokens, width/heads)
        split = self.inputs(self.norm1(z)).flatten(0, 1).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*split.unbind(0)).transpose(1, 2).reshape(z.shape)
        z = z + self.dropout(self.mixed(mixed))
        return z + self.dropout(self.outer(functional.gelu(self.inner(self.norm2(z)))))


def _time_code(length: int, like: Tensor) -> Tensor:
    """[sin(w_i l), cos(w_i l)] of the positions l = 0 to length − 1, (length, 128), with w_i geometric from 1 to 1e-4."""
    place = widest(like.device)
    position = torch.arange(length, dtype=torch.float64, device=place)
    frequency = _SLOWEST ** torch.linspace(0, 1, _TIME_CODE // 2, dtype=torch.float64, device=place)
    angle = position[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1).to(like)
