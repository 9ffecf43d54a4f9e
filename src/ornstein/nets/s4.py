"""S4, a layer that mixes time by a state-space model, and SSSDNet, the residual stack of such layers for imputation.

| paper | here |
|---|---|
| S4 (arXiv 2111.00396), figure 1: recurrence and convolution of one system | `S4.step`, `S4.forward` |
| SSSD (arXiv 2208.09399), section 3.1 and figure 1: the block with two S4 layers | `SSSDNet` |
| kernels, their starts and discretisations | `ornstein.nets.ssm` |
"""

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.files import InputError
from ornstein.nets.blocks import group_norm, zeroed
from ornstein.nets.embed import Condition, NoiseEmbedding
from ornstein.nets.ssm import KERNELS, Recurrence, fast_length


class State(NamedTuple):
    """What a causal S4 layer remembers, and the recurrence that it goes on by, computed once for all steps."""

    memory: Tensor
    recurrence: Recurrence


class S4(nn.Module):
    """Convolution over time with a state-space kernel for every channel, y = K * x + D·x: (B, width, L) -> (B, width, L).

    `kernel` is a name of `ornstein.nets.ssm.KERNELS`: "s4d" (diagonal) or "dplr" (HiPPO-LegS with its low-rank part);
    `state` is N, the real numbers that a channel remembers. A causal layer (`bidirectional=False`) also runs step by step, from
    `initial_state`, with equal results. A bidirectional one has two kernels and adds a pass over reversed time,
    y = K * x + reverse(K' * reverse(x)) + D·x, in the same FFT. Any length ≥ 1. Computed in float32 or better, given back in
    x's dtype. Raises `InputError` for arguments or an x that do not fit, and for a step of a bidirectional layer.
    Source: Gu et al., arXiv:2111.00396, section 3.4.
    """

    def __init__(self, width: int, state: int = 64, kernel: str = "s4d", bidirectional: bool = True) -> None:
        super().__init__()
        if kernel not in KERNELS:
            raise InputError(f"kernel is {kernel!r}: take one of {', '.join(KERNELS)}")
        self.width, self.bidirectional = width, bidirectional
        self.kernel = KERNELS[kernel](2 * width if bidirectional else width, state)
        self.D = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[1] != self.width or x.shape[2] < 1:
            raise InputError(f"x has shape {tuple(x.shape)}: this layer takes (batch, {self.width}, length)")
        # There is no FFT in bfloat16, and none in float16 on a CPU. Autocast leaves FFTs and float64 alone.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        taps = self._taps(x.shape[2], fast_length(2 * x.shape[2] - 1)).to(wide.dtype)
        return cast(Tensor, _Convolution.apply(wide, taps)).to(x.dtype)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The output (B, width) at the next time, whose input is x (B, width), and the state after it."""
        if x.ndim != 2 or x.shape != state.memory.shape[:2]:
            raise InputError(f"x has shape {tuple(x.shape)}: this state takes {tuple(state.memory.shape[:2])}")
        y, memory = self.kernel.advance(state.recurrence, state.memory, x)
        return y + self.D * x, State(memory, state.recurrence)

    def initial_state(self, batch: int) -> State:
        """The state before the first step of so many sequences: nothing remembered."""
        if self.bidirectional:
            raise InputError("bidirectional is True: such a layer sees the future and has no steps; set it to False")
        recurrence = self.kernel.recurrence()
        return State(recurrence.C.new_zeros(batch, *recurrence.C.shape), recurrence)

    def _taps(self, length: int, points: int) -> Tensor:
        """D and the kernels (width, points) as a circle: lag 0, the past's lags, zeros, and the future's lags backwards."""
        kernel = self.kernel.kernel(length)
        past, future = kernel.split(self.width) if self.bidirectional else (kernel, torch.zeros_like(kernel))
        now = past[:, :1] + future[:, :1] + self.D[:, None]
        idle = past.new_zeros(self.width, points - 2 * length + 1)
        return torch.cat([now, past[:, 1:], idle, future[:, 1:].flip(1)], 1)


class _Convolution(torch.autograd.Function):
    """Circular convolution of x (B, W, L), padded by zeros, with taps (W, points): its first L numbers, (B, W, L).

    Autograd's own rule for a real FFT transforms complex numbers of full length; with the rule below a training step of a layer
    takes half as long. It consists of differentiable operations on what was put in, so second derivatives are right too.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, taps: Tensor) -> Tensor:
        points = taps.shape[-1]
        product = torch.fft.rfft(x, points) * torch.fft.rfft(taps)
        return torch.fft.irfft(product, points)[..., : x.shape[-1]]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, taps = ctx.saved_tensors
        points, gradient = taps.shape[-1], torch.fft.rfft(gradients[0], taps.shape[-1])
        for_x = torch.fft.irfft(gradient * torch.fft.rfft(taps).conj(), points)[..., : x.shape[-1]]
        for_taps = (gradient * torch.fft.rfft(x, points).conj()).sum(0)
        return for_x, torch.fft.irfft(for_taps, points)


class SSSDNet(nn.Module):
    """Residual stack of S4 layers for series with gaps: x (B, C, L), c_noise (B,), cond -> (B, C, L), zero before training.

    Every block: h + code of the noise level, 1-wide convolution to twice the width, S4, + projection of what is told, S4,
    tanh·sigmoid gate, 1-wide convolution to a residual, added to h, and a skip, summed over blocks. Each S4 is a residual layer
    of its own, z + W·gelu(S4(norm(z))), bidirectional. `cond` holds

    - ``given`` (B, 3C, L): known values (0 elsewhere), the mask of what is known, the mask of what is asked for;
    - ``features`` (B, features, L), if `features` > 0: what is known of every time.

    x counts where it is asked for and nowhere else. `state` and `kernel` are those of `S4`. Raises `InputError` for arguments, x,
    c_noise or cond that do not fit. Weights start from torch's default generator, which the caller forks and seeds.
    Source: Alcaraz and Strodthoff, arXiv:2208.09399, section 3.1. `CSDINet`, its sibling, pays for attention over channels.
    """

    def __init__(
        self,
        channels: int,
        features: int = 0,
        width: int = 64,
        depth: int = 4,
        state: int = 64,
        kernel: str = "s4d",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, width=width, depth=depth)
        self.channels, self.features = channels, features
        self.noise = NoiseEmbedding(width)
        self.stem = nn.Conv1d(channels, width, 1)
        told = 3 * channels + features
        self.blocks = nn.ModuleList(_Block(width, told, state, kernel, dropout) for _ in range(depth))
        self.hidden = nn.Conv1d(width, width, 1)
        self.head = zeroed(nn.Conv1d(width, channels, 1))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        asked, parts = checked_series(x, c_noise, cond, self.channels, self.features)
        dtype = self.stem.weight.dtype
        code, told = functional.silu(self.noise(c_noise)), torch.cat(parts, 1).to(dtype)
        h = functional.silu(self.stem(torch.where(asked, x, 0).to(dtype)))
        total: Tensor | float = 0.0
        for block in self.blocks:
            h, skip = block(h, code, told)
            total = total + skip
        total = functional.silu(self.hidden(total / math.sqrt(len(self.blocks))))
        return self.head(total).to(x.dtype)


class _Block(nn.Module):
    def __init__(self, width: int, told: int, state: int, kernel: str, dropout: float) -> None:
        super().__init__()
        self.code = nn.Linear(width, width)
        self.widen = nn.Conv1d(width, 2 * width, 1)
        self.before = _Layer(2 * width, state, kernel, dropout)
        self.told = nn.Conv1d(told, 2 * width, 1)
        self.after = _Layer(2 * width, state, kernel, dropout)
        self.output = nn.Conv1d(width, 2 * width, 1)

    def forward(self, h: Tensor, code: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        z = self.before(self.widen(h + self.code(code)[..., None]))
        gate, value = self.after(z + self.told(told)).chunk(2, 1)
        residual, skip = self.output(torch.sigmoid(gate) * torch.tanh(value)).chunk(2, 1)
        return (h + residual) / math.sqrt(2), skip


class _Layer(nn.Module):
    def __init__(self, width: int, state: int, kernel: str, dropout: float) -> None:
        super().__init__()
        self.norm = group_norm(width)
        self.s4 = S4(width, state, kernel)
        self.mix = nn.Conv1d(width, width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, z: Tensor) -> Tensor:
        return z + self.dropout(self.mix(functional.gelu(self.s4(self.norm(z)))))


def check_sizes(**sizes: int) -> None:
    """InputError for a size of a network that is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} is {size}: make it at least 1")


def checked_series(
    x: Tensor, c_noise: Tensor, cond: Condition | None, channels: int, features: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Where x is asked for, (B, C, L) bool, and what is told, ``given`` and any ``features``; InputError if it does not fit."""
    if x.ndim != 3 or x.shape[1] != channels or x.shape[2] < 1:
        raise InputError(f"x has shape {tuple(x.shape)}: this net takes (batch, {channels}, length)")
    if c_noise.shape != x.shape[:1]:
        raise InputError(f"c_noise has shape {tuple(c_noise.shape)}: make it ({len(x)},), one level per sample")
    rows = {"given": 3 * channels} | ({"features": features} if features else {})
    present = {} if cond is None else cond
    for name in present.keys() - rows.keys():
        raise InputError(f"cond has the key {name!r}, but this net accepts only {', '.join(rows)}")
    for name, count in rows.items():
        wanted = (len(x), count, x.shape[2])
        if name not in present:
            raise InputError(f"cond has no {name!r}: give a tensor of shape {wanted}")
        if tuple(present[name].shape) != wanted:
            raise InputError(f"cond[{name!r}] has shape {tuple(present[name].shape)}: make it {wanted}")
        if not present[name].is_floating_point():
            raise InputError(f"cond[{name!r}] has dtype {present[name].dtype}: convert it with .float()")
    return present["given"][:, 2 * channels :] > 0, tuple(present[name] for name in rows)
