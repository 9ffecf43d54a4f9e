"""What guides along the line through two predictions share: how far at which time, the line itself, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ornstein.denoiser import Denoises, Prediction
from ornstein.process import GaussianProcess, align
from ornstein.process.gaussian import Time

Scale = float | Callable[[float], float]
"""γ, a number or a function of t in [0, 1]."""
Interval = tuple[float, float] | None
"""Noise-to-signal ratios low < sigma/alpha <= high within which to guide; None is everywhere."""
Guide = Callable[[Denoises], Denoises]
"""What makes a guided denoiser of a denoiser: `functools.partial(ClassifierFree, scale=2)`."""
Guidance = float | Guide
"""The scale of classifier-free guidance, or any guide."""


def check(scale: Scale, interval: Interval, rescale: float | None) -> None:
    """ValueError for a number γ that is not finite, a ratio interval that is empty or negative, or a φ outside (0, 1]."""
    if not callable(scale) and not math.isfinite(scale):
        raise ValueError(f"scale={scale} must be a finite number: 1 is the denoiser itself, 0 what it is guided away from")
    if interval is not None and not (len(interval) == 2 and 0 <= interval[0] < interval[1]):
        raise ValueError(f"interval={interval} must be two noise-to-signal ratios, 0 <= low < high")
    if rescale is not None and not 0 < rescale <= 1:
        raise ValueError(f"rescale={rescale} must lie in (0, 1]; leave it out for none")


def strength(scale: Scale, interval: Interval, process: GaussianProcess, t: Time) -> float | Tensor:
    """γ at t: a number, or float64 (B,) where it differs between samples; outside the interval γ = 1.

    ValueError where a function of t gives what is not a finite number.
    """
    if not callable(scale) and interval is None:
        return float(scale)

    def at(time: float) -> float:
        if interval is not None and not interval[0] < math.exp(float(process.log_ratio(time))) <= interval[1]:
            return 1.0
        value = float(scale(time)) if callable(scale) else float(scale)
        if not math.isfinite(value):
            raise ValueError(f"scale gives {value} at t={time:g}; it must be finite for every t in [0, 1]")
        return value

    times = torch.as_tensor(t, dtype=torch.float64, device="cpu")
    if times.ndim == 0:
        return at(float(times))
    known = {time: at(time) for time in set(times.tolist())}
    return torch.tensor([known[time] for time in times.tolist()], dtype=torch.float64)


def guided_rows(scale: float | Tensor) -> slice | Tensor:
    """The samples whose γ is not 1: all of them for a number, or their places (int64)."""
    return (scale != 1).nonzero()[:, 0] if isinstance(scale, Tensor) else slice(None)


def extrapolate(
    given: Prediction, other: Tensor, rows: slice | Tensor, scale: float | Tensor, rescale: float | None
) -> Prediction:
    """x0 = other + γ (given - other), with `other` the x0 (b, *) of the samples at `rows`; those of no row stay as given.

    `rescale` φ brings the standard deviation of each guided x0, over its own numbers, to φ parts back to that of the given
    one. ValueError for rescaling a single number, which has no spread.
    """
    x0 = given.x0
    if isinstance(rows, Tensor):
        rows = rows.to(x0.device)
        other = x0.index_copy(0, rows, other)
    moved = torch.lerp(other, x0, align(scale, x0) if isinstance(scale, Tensor) else scale)
    if rescale is not None:
        if x0[0].numel() < 2:
            raise ValueError(f"rescale={rescale} needs data of several numbers, whose spread it restores; leave it out")
        wanted, found = (part.flatten(1).std(1) for part in (x0, moved))
        factor = 1 + rescale * (torch.where(found > 0, wanted / found, 1.0) - 1)
        moved = align(factor, moved) * moved
    return Prediction.from_x0(given.x_t, given.alpha, given.sigma, moved, given.variance_fraction)


def evaluations(denoiser: object, t: float) -> int:
    """Network evaluations that one call of a denoiser, guided or not, costs a sample at t in [0, 1], under a condition."""
    own = getattr(denoiser, "evaluations", None)
    if own is not None:
        return int(own(t))
    inner = getattr(denoiser, "denoiser", None)
    return 1 if inner is None else evaluations(inner, t)
