"""From a series' own units to those of a network, window by window: where its numbers lie and how far they spread.

Only what is seen of a window counts, never what is asked for. With few numbers seen, the law of all training data takes over:
it counts as `PRIOR` observations. Source: Salinas et al. 2020, arXiv 1704.04110, section 3.3, for scales by window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.contract import Contract

PRIOR = 1.0
"""Numbers that the training data's mean and variance count for in a window's own."""
LEAST_STEP = 0.01
"""Of the training data's standard deviation, what counts as a step where nothing moves."""


@dataclass(frozen=True)
class Frame:
    """Units of windows: x = shift + scale·z, with `shift` and `scale` (B, C, 1)."""

    shift: Tensor
    scale: Tensor

    def encode(self, x: Tensor) -> Tensor:
        """z of x (B, C, L), NaN kept."""
        return (x - self.shift) / self.scale

    def decode(self, z: Tensor) -> Tensor:
        """x of z (B, C, L)."""
        return self.shift + self.scale * z

    def repeat(self, times: int) -> Frame:
        """The units of every window `times` times in turn."""
        return Frame(self.shift.repeat_interleave(times, 0), self.scale.repeat_interleave(times, 0))


def _standard(x: Tensor, seen: Tensor, mean: Tensor, std: Tensor) -> Frame:
    """The training data's mean and standard deviation, for all windows."""
    return Frame(mean.expand(len(x), -1, -1), std.expand(len(x), -1, -1))


def _mean_abs(x: Tensor, seen: Tensor, mean: Tensor, std: Tensor) -> Frame:
    """The mean absolute value of what is seen of the window, without a shift (TimeGrad's)."""
    count = seen.sum(-1, keepdim=True)
    size = (_kept(x, seen).abs().sum(-1, keepdim=True) + PRIOR * (mean.abs() + std)) / (count + PRIOR)
    return Frame(torch.zeros_like(size), size)


def _window(x: Tensor, seen: Tensor, mean: Tensor, std: Tensor) -> Frame:
    """Mean and standard deviation of what is seen of the window."""
    count = seen.sum(-1, keepdim=True)
    shift = (_kept(x, seen).sum(-1, keepdim=True) + PRIOR * mean) / (count + PRIOR)
    square = _kept(x - shift, seen).square().sum(-1, keepdim=True) + PRIOR * std**2
    return Frame(shift, (square / (count + PRIOR)).sqrt())


def _kept(x: Tensor, seen: Tensor) -> Tensor:
    return torch.where(seen, x, torch.zeros_like(x))


SCALINGS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Frame]] = {
    "standard": _standard,
    "window": _window,
    "mean_abs": _mean_abs,
}
"""(x, seen, mean, std) -> Frame: by the training data's mean and standard deviation; by the window's own; by the window's mean
absolute value without a shift (TimeGrad's)."""


def frame(name: str, x: Tensor, seen: Tensor, contract: Contract) -> Frame:
    """The units of windows x (B, C, L) of which `seen` (B, C, L) is known, by one of `SCALINGS`."""
    mean, std = (
        torch.tensor(part, dtype=x.dtype, device=x.device).reshape(1, -1, 1) for part in (contract.shift, contract.scale)
    )
    return SCALINGS[name](x, seen, mean, std)


def carried(x: Tensor, seen: Tensor, fallback: Tensor) -> Tensor:
    """At every step the last number seen before it or at it, (B, C, L); `fallback` (B, C, 1) where there is none yet."""
    places = torch.arange(x.shape[-1], device=x.device).expand_as(x)
    last = torch.where(seen, places, -1).cummax(-1).values
    found = _kept(x, seen).gather(-1, last.clamp(min=0))
    return torch.where(last >= 0, found, fallback)


def interpolated(x: Tensor, seen: Tensor) -> Tensor:
    """Lines over time between what is seen of x (B, C, L), level before the first and after the last; 0 where there is none."""
    length = x.shape[-1]
    places = torch.arange(length, device=x.device).expand_as(x)
    before = torch.where(seen, places, -1).cummax(-1).values
    after = torch.where(seen, places, length).flip(-1).cummin(-1).values.flip(-1)
    left = torch.where(before < 0, after, before).clamp(max=length - 1)
    right = torch.where(after == length, before, after).clamp(min=0)
    kept = _kept(x, seen)
    share = (places - left).to(x) / (right - left).clamp(min=1)
    return torch.lerp(kept.gather(-1, left), kept.gather(-1, right), share)


def step_scale(x: Tensor, seen: Tensor, contract: Contract) -> Tensor:
    """Root mean square of the changes from step to step that are seen of x (B, C, L), (B, C, 1), and never below `LEAST_STEP` of
    the training data's standard deviation: sqrt(rms² + least²), so that the end of a fixed rate is no change of thousands."""
    std = torch.tensor(contract.scale, dtype=x.dtype, device=x.device).reshape(1, -1, 1)
    both = seen[..., 1:] & seen[..., :-1]
    square = _kept(x[..., 1:] - x[..., :-1], both).square().sum(-1, keepdim=True)
    return (square / both.sum(-1, keepdim=True).clamp(min=1) + (LEAST_STEP * std) ** 2).sqrt()
