"""Data to latents along the probability flow, back, and between."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ornstein.denoiser import Condition, Denoises
from ornstein.likelihood.common import SOLVER, begin_at, in_chunks, onto_flow
from ornstein.process import align
from ornstein.samplers.flow import Solver, Tick, Velocity, angle, norm
from ornstein.samplers.loop import Batch


class Latents(NamedTuple):
    """x at t = 1 of data (n, *), and the network evaluations per datum (n,)."""

    latent: Tensor
    calls: Tensor


def encode(
    denoiser: Denoises,
    x: Tensor,
    *,
    cond: Condition = None,
    solver: Solver | None = None,
    start: float | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Latents:
    """The latents of clean data x (n, *): where the probability flow takes them at t = 1, about N(0, prior_std² I).

    The flow begins at time `start`, t_min unless given, in alpha(start)·x; `decode` is its inverse. `solver` is `RK45(1e-5)`
    unless given. `cond` holds one row per datum.
    """
    process, begin = denoiser.process, begin_at(denoiser.process, start)
    solver = SOLVER if solver is None else solver

    def run(part: Batch, tick: Tick) -> tuple[Tensor, ...]:
        x = part.state()
        solved = solver.solve(Velocity(denoiser, part.cond), (onto_flow(process, x, begin),), begin, 1.0, tick)
        return solved.parts[0] * align(norm(process, 1.0), x), solved.calls

    with torch.no_grad():
        return Latents(*in_chunks(denoiser, x, cond, 0, batch_size, "encode", progress, run))


def decode(
    denoiser: Denoises,
    latent: Tensor,
    *,
    cond: Condition = None,
    solver: Solver | None = None,
    start: float | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """The data x (n, *) of latents (n, *), the inverse of `encode` for the same `start` and `cond`: x_start/alpha(start)."""
    process, end = denoiser.process, begin_at(denoiser.process, start)
    solver = SOLVER if solver is None else solver

    def run(part: Batch, tick: Tick) -> tuple[Tensor, ...]:
        x = part.state()
        solved = solver.solve(Velocity(denoiser, part.cond), (x / align(norm(process, 1.0), x),), 1.0, end, tick)
        return (solved.parts[0] / align(angle(process, end).cos(), x),)

    with torch.no_grad():
        return in_chunks(denoiser, latent, cond, 0, batch_size, "decode", progress, run)[0]


def slerp(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    """Spherical interpolation of latents a, b (n, *), sample by sample; weight in [0, 1], a number or (n,).

    sin((1 - w) φ)/sin φ·a + sin(w φ)/sin φ·b with φ the angle between a and b: between two normals of many dimensions the length
    stays that of a normal, which straight interpolation would shrink. Lengths are interpolated along. Where φ is below 1e-4 it
    is a straight line. Source: White 2016, arXiv 1609.04468.
    """
    if a.shape != b.shape:
        raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} must have one shape")
    w = torch.as_tensor(weight, dtype=torch.float64)
    first, second = a.flatten(1).cpu().double(), b.flatten(1).cpu().double()
    lengths = [x.norm(dim=1).clamp(min=1e-300) for x in (first, second)]
    cosine = ((first * second).sum(1) / (lengths[0] * lengths[1])).clamp(-1, 1)
    phi = cosine.acos()
    if bool((phi > math.pi - 1e-4).any()):
        raise ValueError("a and b point in opposite directions, between which there is no one way; take other latents")
    flat = phi < 1e-4
    sine = phi.sin().where(~flat, 1.0)
    on_a = (((1 - w) * phi).sin() / sine).where(~flat, 1 - w)
    on_b = ((w * phi).sin() / sine).where(~flat, w.expand_as(phi))
    return align(on_a, a) * a + align(on_b, b) * b
