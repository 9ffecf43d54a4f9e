"""Gradients of a run in every number of its table, against finite differences of the run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from calibration_cases import F64, PROCESSES, Watched, by_table, coarse, made, mixture, named, normal
from torch import Tensor

from chosen import Chosen
from ornstein.calibration import Pairs, Table, calibrate, table_of
from ornstein.calibration.trace import Chunk, chunks, graph_bytes, pullback, trace
from ornstein.denoiser import Condition, Denoiser, Denoises
from ornstein.nets import MLP
from ornstein.noise import Noise
from ornstein.process import VP
from ornstein.samplers import ddim

NOISE = Noise(4)
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("adams", 4, {}),
    ("ddim", 3, {"eta": 1.0}),
    ("dpm_solver_pp_sde", 3, {}),
    ("ddim", 1, {}),
]


def numbers(table: Table) -> Tensor:
    """All numbers in the order that `pullback` promises."""
    return torch.cat([*table.weights, table.times[1:], table.noises[table.noises > 0]])


def with_numbers(table: Table, values: Tensor) -> Table:
    sizes = [*(len(w) for w in table.weights), len(table.times) - 1, int((table.noises > 0).sum())]
    *weights, times, noises = values.split(sizes)
    c = table.noises.clone()
    c[c > 0] = noises
    return Table(torch.cat([table.times[:1], times]), tuple(weights), c)


def shaken(case: tuple[str, int, dict[str, Any]], denoiser: Denoises) -> Table:
    table = table_of(made(case, denoiser.process), denoiser.process)
    values = numbers(table)
    shaken = with_numbers(table, values * (1 + 0.05 * normal(len(values), stream="shake")))
    # differences on both sides of a time need room within [0, 1]
    return shaken._replace(times=torch.cat([table.times[:1], 0.005 + 0.98 * table.times[1:]]))


def drawn(denoiser: Denoises, n: int, cond: Condition = None, first: int = 3) -> Chunk:
    return Chunk(slice(0, n), denoiser.process.prior((n, 2), NOISE, first=first, dtype=F64), cond, first)


def differences(denoiser: Denoises, table: Table, chunk: Chunk, cotangent: Tensor) -> Tensor:
    """Central differences of <cotangent, samples> per sample, (numbers, B)."""
    values, columns = numbers(table), []
    for k in range(len(values)):
        step = torch.zeros_like(values)
        step[k] = 1e-6 * max(1.0, abs(float(values[k])))
        ends = [
            by_table(denoiser, with_numbers(table, values + sign * step), chunk.start, NOISE, first=chunk.first, cond=chunk.cond)[
                -1
            ]
            for sign in (1, -1)
        ]
        columns.append((cotangent * (ends[0] - ends[1])).sum(1) / (2 * step[k]))
    return torch.stack(columns)


@pytest.mark.parametrize("process", ["vp", "edm", "cosine"])
@pytest.mark.parametrize("case", CASES, ids=named)
def test_gradients_are_those_of_finite_differences(case: tuple[str, int, dict[str, Any]], process: str) -> None:
    oracle = mixture(PROCESSES[process])
    table, chunk = shaken(case, oracle), drawn(oracle, 4)
    samples, calls = trace(oracle, table, chunk, NOISE, graphs=True)
    torch.testing.assert_close(samples, by_table(oracle, table, chunk.start, NOISE, first=3)[-1], rtol=1e-12, atol=1e-12)
    bare = trace(oracle, table, chunk, NOISE, graphs=False)
    assert torch.equal(bare[0], samples)
    assert not any(call.x0.requires_grad for call in bare[1])
    # two cotangents from one trace: the graphs stay
    for stream in ("first", "second"):
        cotangent = normal(4, 2, stream=stream)
        pulled = pullback(oracle, table, calls, cotangent, None)
        expected = differences(oracle, table, chunk, cotangent)
        assert pulled.shape == expected.shape
        assert pulled.dtype == F64
        for found, truth in zip(pulled, expected, strict=True):
            assert float((found - truth).abs().max()) < 1e-6 * max(
                1.0, float(expected.abs().max()) * 0.1, float(truth.abs().max())
            )
        again = pullback(oracle, table, bare[1], cotangent, None, again=True)
        torch.testing.assert_close(again, pulled, rtol=1e-12, atol=1e-12)


def test_columns_belong_to_their_samples() -> None:
    oracle = Chosen((mixture(VP()), mixture(VP(), shift=1.0)))
    cond = {"label": torch.tensor([0, 1, 1, 0, 1])}
    table, chunk, cotangent = shaken(CASES[1], oracle), drawn(oracle, 5, cond), normal(5, 2)
    _, calls = trace(oracle, table, chunk, NOISE, graphs=True)
    whole = pullback(oracle, table, calls, cotangent, cond)
    for k in range(5):
        own = Chunk(slice(k, k + 1), chunk.start[k : k + 1], {"label": cond["label"][k : k + 1]}, chunk.first + k)
        _, calls = trace(oracle, table, own, NOISE, graphs=False)
        alone = pullback(oracle, table, calls, cotangent[k : k + 1], own.cond, again=True)
        torch.testing.assert_close(whole[:, k : k + 1], alone, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(whole[:, 0], whole[:, 1])


def test_a_denoiser_without_gradients_is_told_what_to_do() -> None:
    oracle = Watched(mixture(VP()), lambda prediction: prediction.with_x0(prediction.x0.detach()))
    table, chunk = shaken(CASES[0], oracle), drawn(oracle, 2)
    _, calls = trace(oracle, table, chunk, NOISE, graphs=True)
    with pytest.raises(ValueError, match=r"Watched has no gradients \(.*\); give steps=0"):
        pullback(oracle, table, calls, normal(2, 2), None)
    options: dict[str, Any] = {"calls": 3, "shape": (2,), "noise": NOISE, "reference": coarse(oracle, trajectories=8)}
    with pytest.raises(ValueError, match="give steps=0"):
        calibrate(oracle, steps=2, **options)
    assert calibrate(oracle, steps=0, **options).calls == 3


def net(width: int, depth: int = 2) -> Denoiser:
    torch.manual_seed(0)
    made = MLP(2, width=width, depth=depth)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Denoiser(made, VP())


def test_graphs_grow_with_the_net_and_not_with_the_chunk() -> None:
    sizes = [graph_bytes(net(width), drawn(net(width), 64), 0.3) for width in (16, 32, 64)]
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    deep = net(32, depth=6)
    assert graph_bytes(deep, drawn(deep, 64), 0.3) > 1.5 * sizes[1]
    # whatever is counted for one sample, a large chunk's share is no larger
    assert sizes[1] <= graph_bytes(net(32), drawn(net(32), 1), 0.3)


def test_weights_are_no_part_of_a_graph() -> None:
    wide = net(256)
    one, many = (graph_bytes(wide, drawn(wide, n), 0.3) for n in (1, 64))
    assert one < 1.2 * many
    assert one < sum(p.numel() * p.element_size() for p in wide.parameters()) / 8


def test_parameters_gather_no_gradients() -> None:
    denoiser = net(16)
    table, chunk = shaken(CASES[0], denoiser), drawn(denoiser, 3)
    chunk = Chunk(chunk.places, chunk.start.float(), None, chunk.first)
    _, calls = trace(denoiser, table, chunk, NOISE, graphs=True)
    pulled = pullback(denoiser, table, calls, normal(3, 2).float(), None)
    assert bool(pulled.isfinite().all())
    assert float(pulled.abs().max()) > 0
    assert all(parameter.grad is None for parameter in denoiser.parameters())


def test_chunks_are_a_set_cut_up() -> None:
    draws = Pairs(normal(7, 2), normal(7, 2, stream="end"), {"label": torch.arange(7)}, 40)
    parts = list(chunks(draws, 3))
    assert [part.places for part in parts] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert [part.first for part in parts] == [40, 43, 46]
    assert torch.equal(torch.cat([part.start for part in parts]), draws.start)
    assert torch.cat([part.cond["label"] for part in parts if part.cond is not None]).tolist() == list(range(7))
    assert table_of(ddim(VP(), 2), VP()).times.dtype == F64
