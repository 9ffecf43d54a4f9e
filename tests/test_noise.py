"""Noise is a function of (seed, stream, step, sample): nothing else may show, and its law must be right."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from ornstein.noise import Noise

SHAPES = st.lists(st.integers(1, 9), max_size=3).map(tuple)
SEEDS = st.integers(-(2**70), 2**70)
DTYPES = st.sampled_from([torch.float32, torch.float64])
TIMES = st.floats(0, 1)
LARGE = 500_000


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


@given(
    seed=SEEDS, shape=SHAPES, first=st.integers(0, 2**40), dtype=DTYPES, cuts=st.sets(st.integers(1, 63), max_size=5),
    method=st.sampled_from(["normal", "uniform"]),
)  # fmt: skip
@example(seed=0, shape=(3, 5, 7), first=0, dtype=torch.float32, cuts=set(range(1, 64)), method="normal")
@example(seed=0, shape=(3, 5, 7), first=0, dtype=torch.float32, cuts=set(range(7, 64, 7)), method="normal")
@example(seed=0, shape=(129,), first=5, dtype=torch.float64, cuts=set(range(7, 64, 7)), method="normal")
def test_a_sample_keeps_its_noise_bit_for_bit_in_any_chunk(
    seed: int, shape: tuple[int, ...], first: int, dtype: torch.dtype, cuts: set[int], method: str
) -> None:
    draw = getattr(Noise(seed), method)
    whole = draw((64, *shape), step=3, first=first, dtype=dtype)
    bounds = list(pairwise([0, *sorted(cuts), 64]))
    parts = {a: draw((b - a, *shape), step=3, first=first + a, dtype=dtype) for a, b in reversed(bounds)}
    assert torch.equal(torch.cat([parts[a] for a, _ in bounds]), whole)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_of_1_7_and_64_give_one_result(batch: int) -> None:
    noise = Noise(4)
    whole = noise.normal((128, 3, 9, 11), stream="a", first=1000)
    parts = [noise.normal((min(batch, 128 - i), 3, 9, 11), stream="a", first=1000 + i) for i in range(0, 128, batch)]
    assert torch.equal(torch.cat(parts), whole)


def test_drawing_leaves_no_trace() -> None:
    noise, before, state = Noise(1), torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = noise.normal((5, 4))
    noise.uniform((9, 2))
    noise.permutation(10)
    noise.brownian((2, 3), 0.3)
    assert torch.equal(noise.normal((5, 4)), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert Noise(1) == noise


def test_float32_is_float64_rounded() -> None:
    gap = (Noise(2).normal((LARGE, 1)).double() - Noise(2).normal((LARGE, 1), dtype=torch.float64)).abs()
    assert gap.square().mean().sqrt() < 1e-6
    # where the radius is nearly 0 the 24 bits of a float32 uniform near 1 do not resolve it: sqrt(2·2^-25)
    assert gap.max() < 2.5e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_and_law_are_normal(dtype: torch.dtype) -> None:
    z = Noise(3).normal((LARGE // 10, 10), dtype=dtype).double().flatten()
    # standard errors of the first four moments of a normal are sqrt(1, 2, 6, 24 + 72)/sqrt(n)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - moment) < 5 * math.sqrt(spread / LARGE), f"moment {power}"
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3


def test_tails_have_their_mass() -> None:
    z = Noise(5).normal((LARGE, 4)).abs()
    assert z.max() < 6.77
    for k in (2.0, 3.0, 4.0, 4.5):
        expected = math.erfc(k / math.sqrt(2)) * z.numel()
        assert abs(int((z > k).sum()) - expected) < 5 * math.sqrt(expected), f"beyond {k}"


def test_uniforms_are_uniform_and_inside() -> None:
    u = Noise(6).uniform((LARGE,))
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3
    assert 0 < u.min() < u.max() < 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("word", [0, 2**32 - 1])
def test_extreme_words_stay_in_the_open_interval(word: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noise, "_words", lambda self, samples, numbers, *_: np.full((samples, numbers), word, "<u4"))
    u = Noise(0).uniform((2,), dtype=dtype)
    assert bool(((u > 0) & (u < 1)).all())
    assert bool(Noise(0).normal((2, 8), dtype=dtype).isfinite().all())


def test_keys_that_differ_in_anything_are_independent() -> None:
    n, shape = Noise(7), (2000, 100)
    base = n.normal(shape)
    others = {
        "seed": Noise(8).normal(shape),
        "stream": n.normal(shape, stream="y"),
        "step": n.normal(shape, step=1),
        "sample": n.normal(shape, first=1),
        "far sample": n.normal(shape, first=2000),
        "numbers that look alike": Noise(70).normal(shape, stream="x", step=0),
    }
    for name, other in others.items():
        assert abs(correlation(base, other)) < 5 / math.sqrt(base.numel()), name
        assert abs(correlation(base.abs(), other.abs())) < 5 / math.sqrt(base.numel()), name


def test_numbers_within_a_sample_are_independent() -> None:
    z = Noise(9).normal((40_000, 11), dtype=torch.float64)
    off_diagonal = torch.corrcoef(z.T) - torch.eye(11)
    assert off_diagonal.abs().max() < 5 / math.sqrt(40_000)
    # both numbers of a Box-Muller pair share a radius, so squares would give a wrong pairing away
    assert (torch.corrcoef(z.square().T) - torch.eye(11)).abs().max() < 5 / math.sqrt(40_000)


@given(n=st.integers(0, 300), seed=SEEDS)
def test_permutation_holds_every_index_once(n: int, seed: int) -> None:
    order = Noise(seed).permutation(n)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(n))


def test_permutations_differ_by_step_and_spread_evenly() -> None:
    firsts = torch.stack([Noise(1).permutation(5, step=k) for k in range(2000)])
    assert stats.chisquare(torch.bincount(firsts[:, 0]).numpy()).pvalue > 1e-3
    assert torch.equal(Noise(1).permutation(50, step=2), Noise(1).permutation(50, step=2))


@given(t=TIMES, s=TIMES, m=TIMES, seed=SEEDS)
def test_brownian_increments_add_up(t: float, s: float, m: float, seed: int) -> None:
    w = Noise(seed)
    whole = w.increments((3, 2), t, s)
    assert torch.allclose(w.increments((3, 2), t, m) + w.increments((3, 2), m, s), whole, rtol=0, atol=1e-14)
    assert torch.equal(whole, w.brownian((3, 2), s) - w.brownian((3, 2), t))


@given(times=st.lists(TIMES, min_size=1, max_size=5), first=st.integers(0, 1000))
def test_brownian_per_sample_times_agree_with_scalar_ones(times: list[float], first: int) -> None:
    together = Noise(1).brownian((len(times), 3), torch.tensor(times, dtype=torch.float64), first=first)
    whole = [Noise(1).brownian((len(times), 3), t, first=first)[i] for i, t in enumerate(times)]
    alone = [Noise(1).brownian((1, 3), t, first=first + i)[0] for i, t in enumerate(times)]
    assert torch.equal(together, torch.stack(whole))
    assert torch.equal(together, torch.stack(alone))


def test_brownian_covariance_is_the_smaller_time() -> None:
    n, times = 40_000, [0.0, 0.1, 1 / 3, 0.5, 0.7, 0.75, 1.0]
    w = torch.stack([Noise(11).brownian((n,), t) for t in times])
    exact = torch.minimum(torch.tensor(times)[:, None], torch.tensor(times))
    spread = torch.sqrt((exact.square() + torch.outer(exact.diagonal(), exact.diagonal())) / n)
    assert bool(((w @ w.T / n - exact).abs() <= 5 * spread).all())
    assert bool((w[0] == 0).all())
    assert torch.equal(w[-1], Noise(11).brownian((n,), 1))


def test_brownian_is_continuous_at_every_scale() -> None:
    n = 20_000
    for gap in (1e-2, 1e-4, 1e-6):
        step = Noise(12).increments((n,), 0.3, 0.3 + gap)
        assert abs(float(step.square().mean()) / gap - 1) < 5 * math.sqrt(2 / n), gap


def test_nested_refinement_sees_one_path() -> None:
    coarse = [Noise(13).increments((4, 2), k / 4, (k + 1) / 4) for k in range(4)]
    fine = [Noise(13).increments((4, 2), k / 12, (k + 1) / 12) for k in range(12)]
    for k in range(4):
        assert torch.allclose(sum(fine[3 * k : 3 * k + 3]), coarse[k], rtol=0, atol=1e-14)


def test_wrong_arguments_are_refused() -> None:
    for t in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="leaves \\[0, 1\\]"):
            Noise(0).brownian((2,), t)
    with pytest.raises(ValueError, match="one per sample"):
        Noise(0).brownian((3,), torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match="no sample axis"):
        Noise(0).normal(())
    assert Noise(0).normal((0, 3)).shape == (0, 3)
    assert Noise(0).normal((2, 0, 3)).shape == (2, 0, 3)
