"""Where training looks in time: the laws, the even spread, the keys, and the importance sampler's promises."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from ornstein.losses import DISTRIBUTIONS, LossAware, Times
from ornstein.noise import Noise
from ornstein.process import EDM, VE, VP, Cosine, GaussianProcess, Rectified, SubVP, chain

F64 = torch.float64
CONTINUOUS: list[GaussianProcess] = [VP(), VE(), SubVP(), Cosine(), EDM(), Rectified()]


def spread(t: Tensor, process: GaussianProcess) -> Tensor:
    """t mapped back to uniforms if its law is uniform on [t_min, 1]."""
    return (t - process.t_min) / (1 - process.t_min)


@pytest.mark.parametrize("process", CONTINUOUS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("low_discrepancy", [False, True])
def test_uniform_law(process: GaussianProcess, low_discrepancy: bool) -> None:
    t, weight = Times(low_discrepancy=low_discrepancy).draw(process, 4000, Noise(1))
    assert t.shape == weight.shape == (4000,)
    assert t.dtype == weight.dtype == F64
    assert bool((weight == 1).all())
    result = stats.kstest(spread(t, process).numpy(), "uniform")
    assert result.pvalue > 1e-3
    assert not low_discrepancy or result.statistic <= 1 / 4000 + 1e-9


@pytest.mark.parametrize("process", CONTINUOUS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(("mean", "std"), [(-1.2, 0.8), (-0.4, 0.5)])
def test_log_normal_law(process: GaussianProcess, mean: float, std: float) -> None:
    # mean ± 3.5 std stay inside every process's noise levels, so that at most a few in 10,000 are clamped
    for low_discrepancy in (False, True):
        times = Times("log_normal", mean=mean, std=std, low_discrepancy=low_discrepancy)
        ratio = process.log_ratio(times.draw(process, 4000, Noise(2))[0])
        result = stats.kstest(ratio.numpy(), "norm", args=(mean, std))
        assert result.pvalue > 1e-3
        if low_discrepancy:
            assert result.statistic < 2e-3
            assert abs(float(ratio.mean()) - mean) < 2e-3
            assert abs(float(ratio.std()) - std) < 5e-3


def test_log_normal_stays_above_the_lowest_time() -> None:
    process = VP()
    t, _ = Times("log_normal", mean=-9.0, std=1.0).draw(process, 100, Noise(0))
    assert float(t.min()) == float(t.max()) == process.t_min


def test_defaults_are_those_of_karras() -> None:
    assert (Times().mean, Times().std) == (-1.2, 1.2)
    ratio = EDM().log_ratio(Times("log_normal").draw(EDM(), 2000, Noise(0))[0])
    assert abs(float(ratio.mean()) + 1.2) < 0.01
    assert abs(float(ratio.std()) - 1.2) < 0.01


@pytest.mark.parametrize("steps", [7, 50])
def test_discrete_levels_are_uniform(steps: int) -> None:
    process = chain("linear", steps)
    t, _ = Times("discrete", low_discrepancy=False).draw(process, 6000, Noise(3))
    level = (t * steps).round()
    torch.testing.assert_close(t, level / steps, rtol=0, atol=1e-12)
    counts = level.long().bincount(minlength=steps + 1)
    assert int(counts[0]) == 0
    assert len(counts) == steps + 1
    assert stats.chisquare(counts[1:].numpy()).pvalue > 1e-3
    # spread evenly, a batch of 3T holds each level three times
    even = (Times("discrete").draw(process, 3 * steps, Noise(3))[0] * steps).round().long()
    assert even.bincount(minlength=steps + 1)[1:].tolist() == [3] * steps


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 10**6), step=st.integers(0, 10**4))
def test_low_discrepancy_is_evenly_spaced(n: int, seed: int, step: int) -> None:
    u = Times().uniforms(n, Noise(seed), step=step, first=0, total=None).sort().values
    gaps = torch.cat([u, u[:1] + 1]).diff()
    torch.testing.assert_close(gaps, torch.full((n,), 1 / n, dtype=F64), rtol=0, atol=1e-12)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1


@settings(max_examples=25, deadline=None)
@given(
    total=st.integers(2, 30),
    cut=st.integers(1, 29),
    step=st.integers(0, 100),
    low_discrepancy=st.booleans(),
    seed=st.integers(0, 99),
)
def test_split_batches_draw_what_the_whole_draws(total: int, cut: int, step: int, low_discrepancy: bool, seed: int) -> None:
    cut = min(cut, total - 1)
    process = VP()
    for sampler in (Times(low_discrepancy=low_discrepancy), LossAware()):
        whole, _ = sampler.draw(process, total, Noise(seed), step=step)
        left, _ = sampler.draw(process, cut, Noise(seed), step=step, first=0, total=total)
        right, _ = sampler.draw(process, total - cut, Noise(seed), step=step, first=cut, total=total)
        torch.testing.assert_close(torch.cat([left, right]), whole, rtol=0, atol=1e-15)


@pytest.mark.parametrize("sampler", [Times(), Times(low_discrepancy=False), LossAware()])
def test_times_are_keyed_by_seed_and_step(sampler: Times | LossAware) -> None:
    def drawn(seed: int, step: int) -> Tensor:
        return sampler.draw(VP(), 5, Noise(seed), step=step)[0]

    assert torch.equal(drawn(0, 7), drawn(0, 7))
    assert float((drawn(0, 7) - drawn(0, 8)).abs().min()) > 1e-6
    assert float((drawn(0, 7) - drawn(1, 7)).abs().min()) > 1e-6


def test_shared_uniform_of_low_discrepancy_is_uniform_over_steps() -> None:
    first = torch.cat([Times().uniforms(1, Noise(0), step=k, first=0, total=8) for k in range(500)])
    assert stats.kstest(first.numpy(), "uniform").pvalue > 1e-3


def test_low_discrepancy_lowers_the_variance_of_a_batch() -> None:
    def variance(low_discrepancy: bool) -> float:
        times = Times(low_discrepancy=low_discrepancy)
        return float(torch.stack([times.draw(VP(), 16, Noise(0), step=k)[0].exp().mean() for k in range(200)]).var())

    # a jump of e - 1 at the wrap costs (e - 1)²/(12·16²) against Var[e^u]/16: a factor of 15.7
    assert variance(True) < variance(False) / 10


def filled(bins: int, memory: int, loss: Tensor, process: GaussianProcess) -> LossAware:
    """A sampler with `memory` equal losses in every bin of a process in continuous time."""
    sampler = LossAware(bins, memory)
    place = (torch.arange(bins, dtype=F64) + 0.5) / bins
    for _ in range(memory):
        sampler.update(process, process.t_min + place * (1 - process.t_min), loss)
    return sampler


def test_loss_aware_is_uniform_until_full_then_follows_the_root_mean_square() -> None:
    process = VP()
    sampler = LossAware(bins=3, memory=2, floor=0.1)
    t = process.t_min + torch.tensor([0.1, 0.5, 0.9], dtype=F64) * (1 - process.t_min)
    for losses in ([9.0, 9.0, 9.0], [1.0, 2.0, 3.0]):
        assert sampler.probabilities().tolist() == pytest.approx([1 / 3] * 3)
        sampler.update(process, t, torch.tensor(losses))
    sampler.update(process, t[:1], torch.tensor([7.0]))  # the oldest of bin 0, a 9, is forgotten
    rms = torch.tensor([math.sqrt((49 + 1) / 2), math.sqrt((81 + 4) / 2), math.sqrt((81 + 9) / 2)], dtype=F64)
    torch.testing.assert_close(sampler.probabilities(), 0.9 * rms / rms.sum() + 0.1 / 3, rtol=1e-12, atol=0)
    sampler.update(process, t[:1], torch.tensor([4.0]))  # and now the 1
    rms[0] = math.sqrt((49 + 16) / 2)
    torch.testing.assert_close(sampler.probabilities(), 0.9 * rms / rms.sum() + 0.1 / 3, rtol=1e-12, atol=0)


def test_loss_aware_draws_its_probabilities() -> None:
    process = VP()
    sampler = filled(5, 3, torch.tensor([1.0, 4.0, 2.0, 0.5, 3.0]), process)
    t, weight = sampler.draw(process, 8000, Noise(4))
    place = spread(t, process) * 5
    counts = place.long().bincount(minlength=5)
    p = sampler.probabilities()
    assert stats.chisquare(counts.numpy(), (8000 * p).numpy()).pvalue > 1e-3
    torch.testing.assert_close(weight, 1 / (5 * p[place.long()]), rtol=1e-12, atol=0)
    assert stats.kstest((place - place.floor()).numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("process", [VP(), chain("linear", 13), chain("linear", 64)], ids=["VP", "T=13", "T=64"])
def test_loss_aware_is_unbiased(process: GaussianProcess) -> None:
    n = 20_000
    sampler = LossAware(bins=16, memory=2)
    for step in range(40):
        t, _ = sampler.draw(process, 64, Noise(5), step=step)
        sampler.update(process, t, (3 * t).exp())
    assert float(sampler.probabilities().max()) > 2 * float(sampler.probabilities().min()), "it must have learned"
    t, weight = sampler.draw(process, n, Noise(6))
    name = "uniform" if isinstance(process, VP) else "discrete"
    exact = DISTRIBUTIONS[name](process, (torch.arange(n, dtype=F64) + 0.5) / n, 0.0, 1.0)
    for function in (torch.ones_like, torch.cos, lambda x: torch.exp(-4 * x)):
        values = weight * function(t)
        assert abs(float(values.mean() - function(exact).mean())) < 4 * float(values.std()) / math.sqrt(n) + 1e-4


def test_loss_aware_lowers_the_variance() -> None:
    process = VP()

    def loss(t: Tensor) -> Tensor:
        return torch.exp(-12 * t)

    place = (torch.arange(20, dtype=F64) + 0.5) / 20
    learned = filled(20, 4, loss(process.t_min + place * (1 - process.t_min)), process)
    t, weight = learned.draw(process, 4000, Noise(7))
    u, ones = LossAware(20, 4).draw(process, 4000, Noise(7))
    assert bool((ones == 1).all())
    # weight·loss is level between bins; what remains is the slope within one
    assert float((weight * loss(t)).var()) < float(loss(u).var()) / 50


@pytest.mark.parametrize(("steps", "bins"), [(5, 16), (13, 16), (16, 16), (40, 16), (1000, 100)])
def test_loss_aware_bins_of_a_chain_are_those_it_draws_from(steps: int, bins: int) -> None:
    process = chain("linear", steps)
    sampler = LossAware(bins, memory=1, floor=0.0)
    t = torch.arange(1, steps + 1, dtype=F64) / steps
    sampler.update(process, t, torch.ones(steps))
    assert bool((sampler.counts >= 1).all()), "a chain shorter than the bins must still fill them"
    # a loss at one level alone: the sampler must look at that level or one that shares a bin with it
    for k in (1, steps // 2, steps):
        # the last level informed in each bin is kept (memory 1), so silence every other level first
        sampler.update(process, t, torch.zeros(steps))
        sampler.update(process, t[k - 1 : k], torch.ones(1))
        drawn, _ = sampler.draw(process, 200, Noise(k))
        assert float((drawn * steps - k).abs().max()) <= math.ceil(steps / bins)
        assert bool(((drawn * steps).round() == k).any())


def test_loss_aware_survives_losses_of_zero() -> None:
    process = VP()
    sampler = filled(4, 2, torch.zeros(4), process)
    assert sampler.probabilities().tolist() == pytest.approx([0.25] * 4)
    t, weight = sampler.draw(process, 10, Noise(0))
    assert bool(weight.isfinite().all())
    assert bool(((t >= process.t_min) & (t <= 1)).all())


def test_loss_aware_floor_bounds_the_weights() -> None:
    sampler = filled(10, 2, torch.tensor([1.0] + [0.0] * 9), VP())
    p = sampler.probabilities()
    assert float(p.sum()) == pytest.approx(1)
    assert float(p.min()) == pytest.approx(0.001 / 10)


def test_loss_aware_state_round_trip() -> None:
    process = VP()
    sampler = filled(6, 2, torch.arange(1.0, 7.0), process)
    kept = sampler.state()
    fresh = LossAware(6, 2)
    fresh.load(kept)
    for step in range(3):
        a, b = (s.draw(process, 20, Noise(8), step=step) for s in (sampler, fresh))
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
        for s, (t, _) in ((sampler, a), (fresh, b)):
            s.update(process, t, t)
    assert torch.equal(sampler.history, fresh.history)
    assert torch.equal(sampler.counts, fresh.counts)
    # neither the checkpoint nor another sampler follows what is learned later
    assert float(kept["history"][0, 0]) == 1.0
    assert int(LossAware(6, 2).counts.sum()) == 0


def test_errors_name_argument_and_remedy() -> None:
    for make, words in (
        (lambda: Times("gaussian"), "distribution='gaussian'.*uniform.*discrete"),
        (lambda: Times(std=0.0), "std=0.0.*positive"),
        (lambda: Times("discrete").draw(VP(), 2, Noise(0)), "discrete.*Chain.*VP.*uniform"),
        (lambda: LossAware(4, 2).load(LossAware(5, 2).state()), r"\(5, 2\).*\(4, 2\)"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    assert set(DISTRIBUTIONS) == {"uniform", "discrete", "log_normal"}
