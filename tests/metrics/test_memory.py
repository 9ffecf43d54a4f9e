from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ornstein.files import InputError
from ornstein.metrics import nearest_distances, nearest_neighbour


def normal(n: int, width: int, seed: int) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


TRAIN, HELD_OUT, FRESH = normal(400, 10, 0), normal(300, 10, 1), normal(300, 10, 2)


def test_distances_equal_brute_force_and_copies_are_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.cat([FRESH, TRAIN[:5]]) + 1000  # far from the origin, where |x|² − 2x·y + |y|² alone would lose digits
    table = TRAIN + 1000
    brute = (points.double()[:, None] - table.double()).norm(dim=2).min(1).values
    assert torch.equal(nearest_distances(points, table)[-5:], torch.zeros(5).double())
    assert torch.allclose(nearest_distances(points, table), brute, rtol=1e-6)
    monkeypatch.setattr("ornstein.metrics.memory._BLOCK", 1000)
    assert torch.allclose(nearest_distances(points, table), brute, rtol=1e-6)


def test_independent_samples_pass() -> None:
    result = nearest_neighbour(FRESH, TRAIN, HELD_OUT)
    assert not result.copied
    assert result.median_ratio == pytest.approx(1, abs=0.1)
    assert result.low_ratio == pytest.approx(1, abs=0.3)
    assert "No sign" in result.verdict


def test_copies_near_copies_and_a_few_copies_are_flagged() -> None:
    exact = nearest_neighbour(TRAIN[:200], TRAIN, HELD_OUT)
    assert (exact.median_ratio, exact.low_ratio) == (0, 0)
    assert exact.verdict.startswith("Memorised")
    near = nearest_neighbour(TRAIN + 0.1 * normal(400, 10, 3), TRAIN, HELD_OUT)
    assert near.copied
    assert 0 < near.median_ratio < 0.5
    few = nearest_neighbour(torch.cat([FRESH, TRAIN[:10]]), TRAIN, HELD_OUT)
    assert few.copied
    assert few.median_ratio > 0.8
    assert few.verdict.startswith("Partly")


def test_ratio_is_distance_over_distance() -> None:
    train = torch.zeros(1, 2)
    generated, held_out = torch.tensor([[3.0, 4.0]] * 4), torch.tensor([[0.0, 2.0]] * 6)
    result = nearest_neighbour(generated, train, held_out)
    assert (result.median_ratio, result.low_ratio, result.n) == (2.5, 2.5, 4)


def test_repetitions_in_the_data_do_not_divide_by_zero() -> None:
    held_out = torch.cat([HELD_OUT, TRAIN[:10]])  # 3 % of unseen images repeat training images
    assert nearest_neighbour(torch.cat([FRESH, TRAIN[:10]]), TRAIN, held_out).low_ratio == 1
    assert nearest_neighbour(FRESH, TRAIN, held_out).low_ratio == math.inf
    with pytest.raises(InputError, match="held_out"):
        nearest_neighbour(FRESH, TRAIN, TRAIN[:20])


def test_wrong_input_is_refused() -> None:
    spoiled = FRESH.clone()
    spoiled[0, 0] = math.inf
    for points, reason in [(FRESH[:, :9], "widths 9 and 10"), (FRESH[:0], "non-empty"), (spoiled, "NaN or infinite")]:
        with pytest.raises(InputError, match=reason):
            nearest_neighbour(points, TRAIN, HELD_OUT)
    with pytest.raises(InputError, match="quantile"):
        nearest_neighbour(FRESH, TRAIN, HELD_OUT, quantile=0.5)
    assert nearest_neighbour(FRESH, TRAIN, HELD_OUT, quantile=0.25).quantile == 0.25
