"""A student's run with the graph of every call kept apart, and the pullback of a cotangent of its end through it.

Memory is that of the graphs of one chunk's calls, or of a single call where even those would be too many (`again`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.calibration.reference import Pairs
from ornstein.calibration.student import Table
from ornstein.denoiser import Condition, Denoises
from ornstein.noise import Noise
from ornstein.samplers.loop import module_of


@dataclass(frozen=True)
class Call:
    """One call of a run: what the network saw, `y` (B, *) and `time` (B,), what it answered, `x0`, and the row's normal."""

    y: Tensor
    time: Tensor
    x0: Tensor
    normal: Tensor | None


@dataclass(frozen=True)
class Chunk:
    """Some samples of a set: their places in it, start noise, conditions, and the number of the first."""

    places: slice
    start: Tensor
    cond: Condition
    first: int


def chunks(draws: Pairs, size: int) -> Iterator[Chunk]:
    """The samples of a set, `size` at a time."""
    for low in range(0, len(draws), size):
        places = slice(low, min(low + size, len(draws)))
        cond = None if draws.cond is None else {name: value[places] for name, value in draws.cond.items()}
        yield Chunk(places, draws.start[places], cond, draws.first + low)


def trace(denoiser: Denoises, table: Table, chunk: Chunk, noise: Noise, *, graphs: bool) -> tuple[Tensor, list[Call]]:
    """(samples, calls); with `graphs` every call's x0 can be differentiated in its y and time, and in nothing else."""
    y, calls = chunk.start, []
    data: list[Tensor] = []
    for k, (weights, c) in enumerate(zip(table.weights, table.noises.tolist(), strict=True)):
        call = evaluate(denoiser, y, table.times[k], chunk.cond, graphs)
        data.insert(0, call.x0.detach())
        normal = None
        if c:
            normal = noise.normal(y.shape, stream="step", step=k, first=chunk.first, dtype=y.dtype, device=y.device)
        calls.append(Call(call.y, call.time, call.x0, normal))
        y = _combined(weights.tolist(), [y, *data])
        if normal is not None:
            y = y.add(normal, alpha=c)
    return y, calls


def evaluate(denoiser: Denoises, y: Tensor, time: Tensor, cond: Condition, graphs: bool) -> Call:
    """One call at y (B, *) and a time, () or (B,)."""
    leaf = y.detach().requires_grad_(graphs)
    times = time.detach().expand(len(y)).clone().requires_grad_(graphs)
    with torch.set_grad_enabled(graphs):
        return Call(leaf, times, denoiser(leaf, times, cond).x0, None)


def pullback(denoiser: Denoises, table: Table, calls: list[Call], end: Tensor, cond: Condition, *, again: bool = False) -> Tensor:
    """Gradients of <end, samples> with respect to every number of the table, per sample: (numbers, B), float64.

    Numbers are the weights row by row, the times after the first, and the noises that are not 0. `calls` hold their graphs,
    or with `again` none, and are evaluated again one by one. The graphs outlive it, so that many cotangents can be pulled.
    """
    n = len(calls)
    on_y = end
    on_data = [torch.zeros_like(end) for _ in calls]
    weights: list[Tensor] = []
    times: list[Tensor] = []
    noises: list[Tensor] = []
    for k in reversed(range(n)):
        row = table.weights[k].tolist()
        seen = [calls[k].y, *(calls[k - j].x0 for j in range(len(row) - 1))]
        weights.insert(0, torch.stack([_inner(on_y, part.detach()) for part in seen]))
        normal = calls[k].normal
        if normal is not None:
            noises.insert(0, _inner(on_y, normal))
        for j, w in enumerate(row[1:]):
            on_data[k - j].add_(on_y, alpha=w)
        call = evaluate(denoiser, calls[k].y, calls[k].time, cond, graphs=True) if again else calls[k]
        try:
            gradients = torch.autograd.grad(
                call.x0, (call.y, call.time), on_data[k].to(call.x0.dtype), retain_graph=not again, allow_unused=True
            )
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            raise ValueError(f"{type(denoiser).__name__} has no gradients ({why}); give steps=0: least squares alone") from error
        on_x, on_time = gradients
        on_y = row[0] * on_y if on_x is None else on_x.add(on_y, alpha=row[0])
        times.insert(0, torch.zeros_like(call.time) if on_time is None else on_time)
    parts = [*weights, torch.stack(times[1:]).cpu() if n > 1 else weights[0].new_zeros(0, len(end)).cpu()]
    return torch.cat([part.cpu() for part in [*parts, *([torch.stack(noises)] if noises else [])]])


def _combined(weights: list[float], parts: list[Tensor]) -> Tensor:
    total = weights[0] * parts[0]
    for w, part in zip(weights[1:], parts[1:], strict=False):
        total.add_(part, alpha=w)
    return total


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> per sample, (B,), float64 (where the device has it)."""
    return (a * b).flatten(1).sum(1).cpu().double()


def graph_bytes(denoiser: Denoises, chunk: Chunk, time: float) -> int:
    """What the graph of one call keeps per sample, measured on a chunk of one or more samples, parameters left out."""
    kept: dict[int, int] = {}
    module = module_of(denoiser)
    own = set() if module is None else {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:  # a linear layer keeps a view of its weight
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        evaluate(denoiser, chunk.start, torch.tensor(time, dtype=torch.float64), chunk.cond, graphs=True)
    return sum(kept.values()) // max(len(chunk.start), 1)
