"""Ensembles: statistics written out, and honest draws that must be found honest."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ornstein.metrics import Ensemble
from ornstein.noise import Noise

F64 = torch.float64
LAWS = {
    "normal": lambda z, u: z,
    "exponential": lambda z, u: -u.log(),
    "two modes": lambda z, u: 0.3 * z + 4 * (u < 0.2),
    "heavy tails": lambda z, u: z / u.sqrt(),
}


def drawn(law: str, cases: int, draws: int, seed: int, numbers: int = 3) -> tuple[Ensemble, Tensor]:
    """Draws and truths of one law per case, each with its own place and size."""
    shape = (cases, draws + 1, numbers)
    z = Noise(seed).normal(shape, dtype=F64)
    x = LAWS[law](z, Noise(seed).uniform(shape))
    place = 5 * Noise(seed).normal((cases, 1, numbers), stream="place", dtype=F64)
    size = (Noise(seed).normal((cases, 1, numbers), stream="size", dtype=F64)).exp()
    x = place + size * x
    return Ensemble(x[:, 1:]), x[:, 0]


@settings(max_examples=12)
@given(law=st.sampled_from(sorted(LAWS)), draws=st.integers(19, 70), level=st.floats(0.1, 0.9), seed=st.integers(0, 99))
def test_honest_draws_cover_what_they_say(law: str, draws: int, level: float, seed: int) -> None:
    ensemble, truth = drawn(law, 1500, draws, seed)
    error = math.sqrt(level * (1 - level) / truth.numel())
    assert ensemble.coverage(truth, level) == pytest.approx(level, abs=5 * error)


@given(draws=st.integers(1, 60), level=st.floats(0.02, 0.98))
def test_coverage_is_exact_over_the_ranks(draws: int, level: float) -> None:
    """A truth that is exchangeable with the draws has each of the n + 1 ranks equally often."""
    ensemble = Ensemble(torch.arange(1, draws + 1, dtype=F64).expand(draws + 1, draws))
    truth = torch.arange(draws + 1, dtype=F64) + 0.5
    if draws < (1 + level) / (1 - level) * (1 - 1e-12):
        with pytest.raises(ValueError, match="hold no interval of probability"):
            ensemble.coverage(truth, level)
    else:
        assert ensemble.coverage(truth, level) == pytest.approx(level, abs=1e-9)


def test_the_fewest_draws_for_a_level_are_named() -> None:
    ensemble, truth = drawn("normal", 4, 18, 0)
    with pytest.raises(ValueError, match=r"18 draws hold no interval of probability 0.9; ask for draws=19 or more"):
        ensemble.coverage(truth)
    more, truth = drawn("normal", 4, 19, 0)
    assert 0 <= more.coverage(truth) <= 1


def test_draws_that_are_too_narrow_or_off_are_found_out() -> None:
    ensemble, truth = drawn("normal", 2000, 40, 1)
    mean = ensemble.mean.unsqueeze(1)
    narrow, wide = (Ensemble(mean + factor * (ensemble.draws - mean)) for factor in (0.5, 2.0))
    off = Ensemble(ensemble.draws + 2 * ensemble.std.unsqueeze(1))
    assert narrow.coverage(truth) < 0.7
    assert wide.coverage(truth) > 0.98
    assert off.coverage(truth) < 0.7


@settings(max_examples=6)
@given(draws=st.integers(2, 20), seed=st.integers(0, 20))
def test_honest_draws_have_spread_equal_to_skill(draws: int, seed: int) -> None:
    ensemble, truth = drawn("normal", 4000, draws, seed, 1)
    size = ensemble.std.mean()  # sizes differ by case: compare in units of the whole
    scaled = Ensemble(ensemble.draws / size)
    square = ((scaled.mean - truth / size).square() / (1 + 1 / draws) - scaled.std.square()).flatten()
    error = float(square.std()) / math.sqrt(len(square))
    assert abs(scaled.skill(truth / size) ** 2 - scaled.spread() ** 2) < 5 * error
    narrow = Ensemble(0.5 * scaled.draws + 0.5 * scaled.mean.unsqueeze(1))
    assert narrow.spread() == pytest.approx(0.5 * scaled.spread())
    assert narrow.skill(truth / size) == pytest.approx(scaled.skill(truth / size))


def test_statistics_are_those_of_the_draws() -> None:
    x = torch.tensor([[[4.0, 1.0], [2.0, 3.0], [0.0, 8.0]]], dtype=F64)
    ensemble = Ensemble(x)
    assert len(ensemble) == 1
    assert ensemble.mean.tolist() == [[2.0, 4.0]]
    torch.testing.assert_close(ensemble.std, torch.tensor([[2.0, math.sqrt(13)]], dtype=F64))
    assert ensemble.quantile(0.5).tolist() == [[2.0, 3.0]]
    assert ensemble.quantile([0.0, 0.25, 1.0]).tolist() == [[[0.0, 1.0]], [[1.0, 2.0]], [[4.0, 8.0]]]
    assert ensemble.spread() == pytest.approx(math.sqrt((4 + 13) / 2))
    assert ensemble.skill(torch.tensor([[2.0, 6.0]])) == pytest.approx(math.sqrt(2 / (1 + 1 / 3)))


@given(draws=st.integers(1, 30), q=st.floats(0, 1), seed=st.integers(0, 9))
def test_quantiles_are_those_of_torch(draws: int, q: float, seed: int) -> None:
    x = Noise(seed).normal((3, draws, 2, 2), dtype=F64)
    torch.testing.assert_close(Ensemble(x).quantile(q), torch.quantile(x, q, dim=1), rtol=1e-9, atol=1e-12)
    assert Ensemble(x).quantile([q, 0.5]).shape == (2, 3, 2, 2)


def test_wrong_arguments_are_refused() -> None:
    ensemble, truth = drawn("normal", 5, 20, 0)
    with pytest.raises(ValueError, match="one draw has no spread; ask for draws=2"):
        _ = Ensemble(truth[:, None]).std
    with pytest.raises(ValueError, match="must lie in"):
        ensemble.quantile(1.5)
    with pytest.raises(ValueError, match=r"level=1.0 must lie between 0 and 1"):
        ensemble.coverage(truth, 1.0)
    for wrong in (truth[:1], truth[:, :1], truth[0]):  # each would broadcast
        with pytest.raises(ValueError, match="give one truth per case"):
            ensemble.coverage(wrong)
        with pytest.raises(ValueError, match="give one truth per case"):
            ensemble.skill(wrong)
    for draws in (torch.zeros(4), torch.zeros(4, 0, 2)):
        with pytest.raises(ValueError, match=r"give \(cases, draws, …\)"):
            Ensemble(draws)
