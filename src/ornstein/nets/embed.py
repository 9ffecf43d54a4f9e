"""Embeddings of the noise level and of conditions, shared by every network.

A condition is a dict of named tensors or None. The names are fixed:

=========  =====================  ==============================================================
``label``  (B,) integer           class index, for a net built with ``classes=n``
``values`` (B, d) float           continuous condition, for a net built with ``values=d``
``grid``   (B, Cg, \\*size) float  another grid, for a net built with ``grid_channels=Cg``
``null``   (B,) bool              True withholds every condition of that sample
=========  =====================  ==============================================================

A withheld or missing condition is replaced by a learned null vector (a grid: by zeros and an indicator channel), which
is what classifier-free guidance needs (Ho and Salimans, arXiv:2207.12598). Nothing here is random: the loss decides
which samples are withheld and says so through ``null``.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.files import InputError
from ornstein.hardware import widest

Condition = Mapping[str, Tensor]

# Fastest and slowest angular frequency. A chain hands in k = 0..1000, whose fastest unaliased frequency is pi and whose
# slowest useful one is about pi/1000; a continuous process hands in half a log noise-to-signal ratio, about -5..5, for
# which the faster half of the same range is the useful one. One range therefore serves both without a switch.
_FASTEST = math.pi
_SLOWEST = 1e-3
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


class NoiseEmbedding(nn.Module):
    """Sinusoidal code of the noise level followed by a two-layer perceptron.

    code(c) = [cos(w_i c), sin(w_i c)] with w_i geometric from pi down to 1e-3, so that c may be ½·log(σ/α) or a chain's
    integer step. Input (B,), output (B, width), in the dtype of the weights. `frequencies` must be at least 2.
    Source: Ho et al., arXiv:2006.11239, appendix B, after Vaswani et al., arXiv:1706.03762, section 3.5.
    """

    def __init__(self, width: int, frequencies: int = 64) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.inner = nn.Linear(2 * frequencies, width)
        self.outer = nn.Linear(width, width)

    def forward(self, c_noise: Tensor) -> Tensor:
        exponent = torch.linspace(0, 1, self.frequencies, dtype=torch.float64, device=widest(c_noise.device))
        frequency = _FASTEST * (_SLOWEST / _FASTEST) ** exponent
        # Half precision cannot tell k = 999 from k = 1000, so the angle is formed in float32 or better.
        wide = torch.promote_types(c_noise.dtype, torch.float32)
        angle = c_noise.to(wide)[:, None] * frequency.to(c_noise.device, wide)
        code = torch.cat([angle.cos(), angle.sin()], dim=1).to(self.inner.weight.dtype)
        return self.outer(functional.silu(self.inner(code)))


class LevelFree(nn.Module):
    """A network that is not told the noise level: net(x, 0, cond), with the shapes of the net within.

    One function then serves all levels, s(x, sigma) = net(x)/sigma for a score; it has to see the level in x, so x must not
    be scaled beforehand (`Denoiser(scale_input=False)`). Source: Song and Ermon 2020, arXiv:2006.09011, technique 3.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None) -> Tensor:
        return self.net(x, torch.zeros_like(c_noise), cond)


class ConditionEmbedding(nn.Module):
    """Turn a condition into one vector per sample, and attach a grid condition to the input of a net.

    e = Table[label or null] + (MLP(values) or null vector), shape (B, width); zero where the net takes no such
    condition. `null` = True and a missing key mean the same. Raises `InputError` for an unknown key, a wrong shape or
    dtype, and, on CPU tensors, a label outside [0, classes). It is added to `NoiseEmbedding`'s vector.
    Source: Ho and Salimans, arXiv:2207.12598, section 3.
    """

    def __init__(self, width: int, classes: int | None = None, values: int | None = None, grid_channels: int = 0) -> None:
        super().__init__()
        self.width, self.classes, self.values, self.grid_channels = width, classes, values, grid_channels
        self.table = None if classes is None else nn.Embedding(classes + 1, width)  # the last row is the null vector
        self.perceptron = None if values is None else nn.Sequential(nn.Linear(values, width), nn.SiLU(), nn.Linear(width, width))
        self.no_values = None if values is None else nn.Parameter(torch.randn(width))

    @property
    def accepted(self) -> tuple[str, ...]:
        """Keys that a condition may hold."""
        taken = {"label": self.classes is not None, "values": self.values is not None, "grid": self.grid_channels > 0}
        return (*(name for name, is_taken in taken.items() if is_taken), "null")

    @property
    def extra_channels(self) -> int:
        """Channels that `attach_grid` adds to x: the grid's and one that says whether it is present."""
        return self.grid_channels + 1 if self.grid_channels else 0

    def forward(self, x: Tensor, cond: Condition | None) -> Tensor | None:
        """Vector (B, width) for the batch x (B, ...), or None when the net takes neither labels nor values."""
        present = self._checked(x, cond)
        null = present.get("null")
        total: Tensor | None = None
        if self.table is not None and self.classes is not None:
            label = present.get("label")
            nobody = torch.full((len(x),), self.classes, dtype=torch.long, device=x.device)
            total = self.table(nobody if label is None else _withhold(label.long(), null, nobody))
        if self.perceptron is not None and self.no_values is not None:
            values = present.get("values")
            vector = self.no_values.expand(len(x), -1)
            if values is not None:
                # Withheld values are zeroed before the perceptron too: a NaN there would reach its gradients.
                values = _withhold(values.to(vector.dtype), null, torch.zeros_like(values, dtype=vector.dtype))
                vector = _withhold(self.perceptron(values), null, vector)
            total = vector if total is None else total + vector
        return total

    def attach_grid(self, x: Tensor, cond: Condition | None) -> Tensor:
        """Append the grid condition, resized to x (B, C, *size), and its indicator: (B, C + Cg + 1, *size)."""
        if not self.grid_channels:
            return x
        present = self._checked(x, cond)
        grid, null = present.get("grid"), present.get("null")
        if grid is None:
            return torch.cat([x, x.new_zeros(len(x), self.extra_channels, *x.shape[2:])], dim=1)
        known = x.new_ones(len(x), 1, *x.shape[2:])
        resized = _resized(grid.to(x.dtype), x.shape[2:])
        extra = torch.cat([_withhold(part, null, torch.zeros_like(part)) for part in (resized, known)], dim=1)
        return torch.cat([x, extra], dim=1)

    def _checked(self, x: Tensor, cond: Condition | None) -> Condition:
        present = {} if cond is None else cond
        for name, tensor in present.items():
            if name not in self.accepted:
                raise InputError(f"cond has the key {name!r}, but this net accepts only {', '.join(self.accepted)}")
            if tensor.ndim == 0 or len(tensor) != len(x):
                raise InputError(
                    f"cond[{name!r}] has shape {tuple(tensor.shape)}, but x has {len(x)} samples: give one entry each"
                )
        wanted = {"label": (), "null": (), "values": (self.values,)}
        for name in present.keys() & wanted.keys():
            if tuple(present[name].shape[1:]) != wanted[name]:
                raise InputError(f"cond[{name!r}] has shape {tuple(present[name].shape)}: make it {(len(x), *wanted[name])}")
        if "null" in present and present["null"].dtype != torch.bool:
            raise InputError(f"cond['null'] has dtype {present['null'].dtype}: make it torch.bool")
        if "values" in present and not present["values"].is_floating_point():
            raise InputError(f"cond['values'] has dtype {present['values'].dtype}: convert it with .float()")
        self._check_label(present.get("label"), present.get("null"))
        self._check_grid(present.get("grid"), x)
        return present

    def _check_label(self, label: Tensor | None, null: Tensor | None) -> None:
        if label is None or self.classes is None:
            return
        if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
            raise InputError(f"cond['label'] has dtype {label.dtype}: convert it to class indices with .long()")
        # Looking at values would wait for an accelerator and would break a compiled graph in two.
        if label.device.type != "cpu" or torch.compiler.is_compiling():
            return
        wrong = (label < 0) | (label >= self.classes)
        wrong = wrong if null is None else wrong & ~null
        if bool(wrong.any()):
            raise InputError(
                f"cond['label'] holds {int(label[wrong][0])}, but the classes are 0 to {self.classes - 1}: "
                "give a class in that range, or null=True for none"
            )

    def _check_grid(self, grid: Tensor | None, x: Tensor) -> None:
        if grid is None:
            return
        if grid.ndim != x.ndim or grid.shape[1] != self.grid_channels:
            raise InputError(
                f"cond['grid'] has shape {tuple(grid.shape)}: make it (batch, {self.grid_channels}, "
                f"{', '.join(['size'] * (x.ndim - 2))}); any size will be resized to x"
            )
        if not grid.is_floating_point():
            raise InputError(f"cond['grid'] has dtype {grid.dtype}: convert it with .float()")


def _withhold(given: Tensor, null: Tensor | None, instead: Tensor) -> Tensor:
    """`instead` for the samples where `null` is True, `given` for the others."""
    return given if null is None else torch.where(null.reshape(-1, *[1] * (given.ndim - 1)), instead, given)


def _resized(grid: Tensor, size: torch.Size) -> Tensor:
    if grid.shape[2:] == size:
        return grid
    # Linear interpolation skips values when it shrinks a grid; averaging uses them all.
    if any(have > want for have, want in zip(grid.shape[2:], size, strict=True)):
        return functional.interpolate(grid, size=size, mode="area")
    return functional.interpolate(grid, size=size, mode=_LINEAR[len(size)], align_corners=False)
