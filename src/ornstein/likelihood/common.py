"""What every use of the flow from data upwards shares: where it begins, and chunks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ornstein.denoiser import Condition, Denoises
from ornstein.noise import Noise
from ornstein.process import GaussianProcess, align
from ornstein.progress import gauge
from ornstein.samplers.flow import RK45, Tick, angle
from ornstein.samplers.loop import Batch, batches, evaluating

SOLVER = RK45(rtol=1e-5)
"""Solves the flow unless another is given."""


def begin_at(process: GaussianProcess, start: float | None) -> float:
    """The time at which the flow meets data; ValueError where there is no noise to begin in."""
    begin = process.t_min if start is None else start
    if not 0 <= begin < 1 or float(process.moments(begin)[1]) <= 0:
        raise ValueError(
            f"start={begin} must lie in [0, 1) and hold some noise; {process.t_min:g} is what networks are trained to"
        )
    return begin


def onto_flow(process: GaussianProcess, x: Tensor, begin: float) -> Tensor:
    """X of clean data x at the beginning: alpha x/sqrt(alpha² + sigma²)."""
    return x * align(angle(process, begin).cos(), x)


def in_chunks(
    denoiser: Denoises,
    x: Tensor,
    cond: Condition,
    first: int,
    batch_size: int | None,
    name: str,
    progress: bool,
    run: Callable[[Batch, Tick], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """What `run` gives for the chunks of x, joined; ValueError for NaN, and for no data."""
    if not len(x):
        raise ValueError(f"x has shape {tuple(x.shape)}: there are no data")
    if not bool(x.isfinite().all()):
        raise ValueError(f"x holds {int((~x.isfinite()).sum())} numbers that are NaN or infinite; remove these data")
    parts, _ = batches(denoiser, None, x, Noise(0), cond, first, batch_size, None, x.dtype)
    done = []
    with evaluating(denoiser), gauge(name, enabled=progress) as tell:
        for k, part in enumerate(parts):

            def tick(fraction: float, k: int = k) -> None:
                tell((k + fraction) / len(parts))

            done.append(run(part, tick))
    return tuple(torch.cat(column) for column in zip(*done, strict=True))
