"""Annealed Langevin dynamics: the law it settles in, exactly, and what it repairs that plain Langevin does not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sampler_cases import f64

from ornstein.noise import Noise
from ornstein.process import VE, VP, Rectified
from ornstein.samplers import annealed_langevin, propagate, sample
from ornstein.samplers.langevin import best_rate, steady_variance
from ornstein.testing import GaussianDenoiser, MixtureDenoiser


def settled(rate: float, ratio: float, steps: int, levels: int = 4000) -> float:
    """The variance over sigma² after so many levels, step by step."""
    v = 1.0
    for _ in range(levels):
        v *= ratio**2
        for _ in range(steps):
            v = (1 - rate) ** 2 * v + 2 * rate
    return v


@given(rate=st.floats(0.05, 0.95), ratio=st.floats(1.001, 1.3), steps=st.integers(1, 8))
def test_the_steady_variance_is_where_the_recursion_ends(rate: float, ratio: float, steps: int) -> None:
    if ratio**2 * (1 - rate) ** (2 * steps) < 0.98:
        assert steady_variance(rate, ratio, steps) == pytest.approx(settled(rate, ratio, steps), rel=1e-9)
    if ratio**2 * (1 - rate) ** (2 * steps) >= 1:
        assert steady_variance(rate, ratio, steps) == math.inf


@given(ratio=st.floats(1.0001, 4), steps=st.integers(1, 20), other=st.floats(0.001, 0.999))
def test_the_best_rate_is_best(ratio: float, steps: int, other: float) -> None:
    best = steady_variance(best_rate(ratio, steps), ratio, steps)
    assert 1 < best <= steady_variance(other, ratio, steps) * (1 + 1e-6)


def test_close_levels_have_the_rate_of_the_limit() -> None:
    for ratio, steps in ((1.001, 1), (1.002, 5), (1.0005, 20)):
        assert best_rate(ratio, steps) == pytest.approx(math.sqrt((ratio**2 - 1) / steps), rel=0.05)


def test_the_plan_has_one_rate_per_level_and_ends_in_a_denoising_step() -> None:
    process = VE(0.01, 10.0)
    plan = annealed_langevin(process, 4 * 5 + 1, steps=5)
    sigmas = [float(process.moments(row.t)[1]) for row in plan.rows]
    assert sigmas[::5] == pytest.approx([10.0, 1.0, 0.1, 0.01, 0.01])
    assert all(row.c == pytest.approx(math.sqrt(2 * (1 - row.a)) * s) for row, s in zip(plan.rows[:-1], sigmas, strict=False))
    assert len({round(1 - row.a, 12) for row in plan.rows[:-1]}) == 1  # levels are geometric: one ratio, one rate
    assert (plan.rows[-1].a, plan.rows[-1].b, plan.rows[-1].s) == (0.0, ((0, 1.0),), None)
    assert annealed_langevin(process, 23, steps=5).calls == 21
    given = annealed_langevin(process, 21, steps=5, rate=0.25)
    assert all(1 - row.a == pytest.approx(0.25) for row in given.rows[:-1])


@pytest.mark.parametrize("process", [VE(0.01, 20.0), VP()])
def test_the_law_on_a_gaussian_lags_by_the_steady_variance(process: VE | VP) -> None:
    # a point has no variance of its own: what is left at the end is the noise's, and the lag is all there is to see
    oracle = GaussianDenoiser(torch.zeros(1), torch.zeros(1, 1), process)
    end, levels, steps = 0.2, 40, 3
    plan = annealed_langevin(process, steps * (levels + 1), steps=steps, end=end)
    noise = [float(process.log_ratio(row.t)) for row in plan.rows]
    ratio = math.exp(noise[-1 - steps] - noise[-1])
    found = propagate(plan, oracle)[-1].variances / process.moments(end)[1] ** 2
    assert float(found) == pytest.approx(steady_variance(best_rate(ratio, steps), ratio, steps), rel=2e-3)


def test_more_calls_come_nearer_whatever_the_split() -> None:
    process = VE(0.01, 20.0)
    oracle = GaussianDenoiser(f64(0.5, -1.0), torch.diag(f64(1.0, 0.25)), process)
    gaps = []
    for calls in (100, 400, 1600):
        law = propagate(annealed_langevin(process, calls + 1, steps=5), oracle)[-1]
        gaps.append(float((law.variances / oracle.variances - 1).abs().max()))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[1] / gaps[2] == pytest.approx(2, rel=0.35)  # order ½


def test_weights_of_separated_modes_come_out_right() -> None:
    process = VE(0.1, 15.0)
    oracle = MixtureDenoiser(f64(-5, -5, 5, 5).reshape(2, 2), f64(1, 1), f64(0.2, 0.8), process)
    n = 4000
    x = sample(oracle, annealed_langevin(process, 301), shape=(n, 2), noise=Noise(0), dtype=torch.float64)
    share = float((x.sum(1) < 0).double().mean())
    assert abs(share - 0.2) < 3 * math.sqrt(0.2 * 0.8 / n) + 0.005


def test_it_runs_where_the_prior_holds_no_signal() -> None:
    process = Rectified()
    oracle = GaussianDenoiser(f64(0.3), torch.diag(f64(0.5)), process)
    coarse, fine = (propagate(annealed_langevin(process, calls + 1, steps=3), oracle)[-1] for calls in (600, 2400))
    assert float(fine.mean[0].abs()) == pytest.approx(0.3, abs=1e-6)
    assert 0 < 2 * float(fine.variances[0] - 0.5) < 1.2 * float(coarse.variances[0] - 0.5) < 0.15
