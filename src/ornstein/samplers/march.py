"""The one loop of solvers that choose their own steps: every sample has its own position and step, and leaves when it arrives.

A solver is an `Attempt` function: it tries a step of every sample still on its way and says how large the error is beside the
tolerance. The loop accepts or rejects sample by sample, sets the next steps, and drops finished samples from the batch, so that
a sample costs what it would cost alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]

_ARRIVED = 1e-12
"""Part of the way below which a rest is rounding, and a step is too small to be taken."""
_MOST = 20_000
"""Attempts after which a way is given up: the tightest tolerances take hundreds."""


class Tried(NamedTuple):
    """An attempted step of m samples: the `state` after it, its `error` in units of the tolerance (m,), the length (m,) of the
    step actually tried, the network `calls` (m,) it took, and what the solver keeps in either case (`accepted`, `rejected`)."""

    state: Tensors
    error: Tensor
    step: Tensor
    calls: Tensor
    accepted: Tensors
    rejected: Tensors


Attempt = Callable[[Tensor, Tensors, Tensors, Tensor, Tensor], Tried]
"""(rows, state, memory, position, step) -> Tried: `rows` (m,) are the samples' places in the batch; position and step (m,) are
float64 on the CPU; every tensor of state and memory has m rows."""


@dataclass(frozen=True)
class Control:
    """The next step is the last one times safety·error^-exponent, kept within [smallest, largest]; it never grows on rejection.

    No step is longer than `longest`: what happens between the stages of a long step, its error estimate does not see.
    """

    exponent: float
    safety: float = 0.9
    smallest: float = 0.2
    largest: float = 5.0
    longest: float = math.inf

    def factor(self, error: Tensor) -> Tensor:
        """The factor for errors (m,) in units of the tolerance; an error that is not a number counts as infinite."""
        error = error.nan_to_num(torch.inf, torch.inf)
        factor = self.safety * error.clamp(min=1e-300) ** -self.exponent
        return factor.clamp(self.smallest, self.largest).where(error <= 1, factor.clamp(self.smallest, 1.0))


class Marched(NamedTuple):
    """The state on arrival, and per sample (n,): network calls, steps accepted, steps rejected."""

    state: Tensors
    calls: Tensor
    accepted: Tensor
    rejected: Tensor


def march(
    attempt: Attempt,
    state: Tensors,
    memory: Tensors,
    start: float,
    end: float,
    step: Tensor,
    control: Control,
    tick: Callable[[float], None] | None = None,
) -> Marched:
    """Bring a batch from position `start` to `end`, `step` (n,) being the lengths of the first attempts.

    `tick` is told the part of the way that is done, in [0, 1]. Raises FloatingPointError, naming a sample, where steps have
    shrunk to nothing or do not come to an end: the denoiser returned NaN, or the tolerance lies below its rounding.
    """
    n, span = len(step), end - start
    sign, least = (1.0 if span > 0 else -1.0), _ARRIVED * abs(span)
    rows, position = torch.arange(n), torch.full((n,), start, dtype=torch.float64)
    counts = torch.zeros(3, n, dtype=torch.long)
    places: list[Tensor] = []
    arrived: list[Tensors] = []
    attempts = 0
    while len(rows):
        if attempts == _MOST:
            raise FloatingPointError(
                f"sample {int(rows[0])} stands at {float(position[0]):.6g} between {start:.6g} and {end:.6g} after {_MOST} "
                "steps: the tolerance lies below what the denoiser resolves; raise rtol and atol"
            )
        attempts += 1
        ahead = sign * (end - position)
        tried = attempt(rows, state, memory, position, sign * torch.minimum(step.clamp(max=control.longest), ahead))
        good = tried.error <= 1
        counts[0, rows] += tried.calls
        counts[1, rows] += good
        counts[2, rows] += ~good
        state = _either(good, tried.state, state)
        memory = _either(good, tried.accepted, tried.rejected)
        position = torch.where(good, position + tried.step, position)
        step = tried.step.abs() * control.factor(tried.error)
        there = sign * (end - position) <= least
        if bool((stuck := (step < least) & ~there).any()):
            worst = int(stuck.nonzero()[0])
            raise FloatingPointError(
                f"steps of sample {int(rows[worst])} shrank to {float(step[worst]):.1e} at {float(position[worst]):.6g} between "
                f"{start:.6g} and {end:.6g}: the denoiser returned NaN, or the tolerance lies below its rounding; raise rtol "
                "and atol, or give dtype=torch.float64"
            )
        if bool(there.any()):
            places.append(rows[there])
            arrived.append(_rows(there, state))
            rows, position, step = rows[~there], position[~there], step[~there]
            state, memory = _rows(~there, state), _rows(~there, memory)
        if tick is not None:
            tick(1 - float((sign * (end - position)).sum()) / (n * abs(span)))
    if n:
        order = torch.cat(places).argsort()
        state = tuple(torch.cat(column)[order.to(column[0].device)] for column in zip(*arrived, strict=True))
    return Marched(state, *counts)


def root_mean_square(x: Tensor) -> Tensor:
    """sqrt of the mean of x² over each sample of x (m, *): (m,), float64 on the CPU."""
    return x.flatten(1).square().mean(1).sqrt().to("cpu", torch.float64)


def _mask(good: Tensor, like: Tensor) -> Tensor:
    return good.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def _either(good: Tensor, yes: Tensors, no: Tensors) -> Tensors:
    if bool(good.all()):
        return yes
    return tuple(torch.where(_mask(good, a), a, b) for a, b in zip(yes, no, strict=True))


def _rows(chosen: Tensor, tensors: Tensors) -> Tensors:
    return tuple(tensor[chosen.to(tensor.device)] for tensor in tensors)
