"""What is done to training data before they are noised."""

from __future__ import annotations

import torch
from torch import Tensor

from ornstein.noise import Noise


def mirrored(x0: Tensor, noise: Noise, *, step: int = 0, first: int = 0) -> Tensor:
    """x0 (B, *, W) with half of the data mirrored along the last axis, at random; datum i is keyed by (step, first + i)."""
    chosen = noise.uniform((len(x0),), stream="flip", step=step, first=first) < 0.5
    return torch.where(chosen.to(x0.device).reshape(-1, *[1] * (x0.ndim - 1)), x0.flip(-1), x0)
