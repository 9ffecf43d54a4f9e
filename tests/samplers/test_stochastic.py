"""Stochastic plans on Gaussian data: weak order from the exact law, strong order on one Brownian path, published biases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from sampler_cases import correlated, f64, lam, level
from torch import Tensor

from ornstein.noise import Noise
from ornstein.process import VP
from ornstein.samplers import (
    Law,
    Plan,
    ancestral,
    ddim,
    dpm_solver_pp_sde,
    euler_maruyama,
    propagate,
    reverse_diffusion,
    run,
    sa_solver,
)
from ornstein.testing import GaussianDenoiser

P = VP()
Sampler = Callable[..., Plan]


def errors(plan: Plan, end: float, tau: float) -> tuple[float, float]:
    """Of the mean and of the standard deviations at the end, started with one standard deviation too much mean.

    The reverse equation with noise tau·g leaves sqrt(V_s/V_t)·(alpha_t/alpha_s sqrt(V_s/V_t))^tau² of the surplus, V = Var[x].
    """
    o = correlated(P)
    (alpha, _), (alpha_end, _) = level(P, 1.0), level(P, end)
    before, after, centre = o.marginal_variances(1.0).sqrt(), o.marginal_variances(end).sqrt(), o.mean @ o.directions
    law = propagate(plan, o, start=Law(alpha * centre + before, before**2))[-1]
    mean = alpha_end * centre + after * (alpha / alpha_end * after / before) ** tau**2
    return float((law.mean - mean).norm()), float((law.variances.sqrt() - after).norm())


EXACT = 99
WEAK: dict[str, tuple[Sampler, dict[str, Any], float | None, float]] = {
    # sampler, options, order of the mean (None: not that of the reverse equation), order of the deviations; with the noise of the
    # reverse equation the mean of E[x0|x_t] stays what it is, so that no plan of the x0 view is wrong about the mean
    "ancestral": (ancestral, {}, EXACT, 1),
    "transition": (ancestral, {"variance": "transition"}, EXACT, 1),
    "euler_maruyama": (euler_maruyama, {}, 1, 1),
    "reverse_diffusion": (reverse_diffusion, {}, 1, 1),
    "ddim_half": (ddim, {"eta": 0.5}, None, 1),
    "ddim_1": (ddim, {"eta": 1.0}, EXACT, 1),
    "sde_1": (dpm_solver_pp_sde, {"order": 1}, EXACT, 1),
    "sde_2": (dpm_solver_pp_sde, {}, EXACT, 2),
    "sde_3": (dpm_solver_pp_sde, {"order": 3}, EXACT, 2),
    "sa_1_0": (sa_solver, {"predictor": 1, "corrector": 0}, EXACT, 1),
    "sa_1_1": (sa_solver, {"predictor": 1, "corrector": 1}, EXACT, 2),
    "sa_2_2": (sa_solver, {}, EXACT, 2),
    "sa_1_1_half": (sa_solver, {"predictor": 1, "corrector": 1, "tau": 0.5}, 2, 2),
    "sa_2_0_half": (sa_solver, {"corrector": 0, "tau": 0.5}, 2, 2),
    "sa_2_2_half": (sa_solver, {"tau": 0.5}, 3, 2),
}


@pytest.mark.parametrize("name", WEAK)
def test_weak_order(name: str) -> None:
    sampler, options, of_mean, of_std = WEAK[name]
    tau = options.get("tau", 1.0)
    coarse, fine = (errors(sampler(P, calls, end=0.05, **options), 0.05, tau) for calls in (128, 256))
    found = [math.log2(one / other) for one, other in zip(coarse, fine, strict=True)]
    if of_mean == EXACT:
        assert max(coarse[0], fine[0]) < 1e-12
    elif of_mean is not None:
        assert found[0] > 0.9 * of_mean, (found, coarse, fine)
    assert found[1] > 0.9 * of_std, (found, coarse, fine)


BIAS: dict[str, tuple[Sampler, dict[str, Any], float]] = {
    "euler_maruyama": (euler_maruyama, {}, 0.07),
    "sde_2": (dpm_solver_pp_sde, {}, 0.04),
    "transition": (ancestral, {"variance": "transition"}, 0.12),
    "posterior": (ancestral, {}, -0.65),
}


@pytest.mark.parametrize("name", BIAS)
def test_bias_after_a_thousand_uniform_steps(name: str) -> None:
    """In percent of the standard deviation at t_min, for data N(0, 0.6²)."""
    sampler, options, percent = BIAS[name]
    o = GaussianDenoiser(f64(0.0), f64(0.36)[None], P)
    law = propagate(sampler(P, 1000, "uniform", end=P.t_min, **options), o)[-1]
    assert 100 * (float(law.variances / o.marginal_variances(P.t_min)) ** 0.5 - 1) == pytest.approx(percent, abs=0.005)


# ------------------------------------------------------------------------------------------------------ strong order


@dataclass(frozen=True)
class Path(Noise):
    """Normals of a plan's rows as the increments of one Brownian path, in a clock that rises to 1 over the run.

    Plans of other numbers of calls with the same seed see the same path, each in its own steps.
    """

    steps: tuple[tuple[float, float], ...] = ()
    """The clock before and after the noise of each row."""

    def normal(self, shape, *, step=0, first=0, dtype=torch.float32, **kwargs):  # type: ignore[no-untyped-def,override]
        before, after = self.steps[step]
        return (_walk(self.seed, after, tuple(shape)) - _walk(self.seed, before, tuple(shape))) / math.sqrt(after - before)


@cache
def _walk(seed: int, clock: float, shape: tuple[int, ...]) -> Tensor:
    return Noise(seed).brownian(shape, clock)


STOP = 0.08


def time(t: float) -> float:
    """From 0 at the noise to 1 at the data: g sqrt(h) z is then ∫ g dW with g held over the step."""
    return round(1 - t, 12)


def signal(t: float) -> float:
    """e^{2 lambda}, 1 at the end: sigma_s sqrt(1 - e^{-2h}) z is then sigma_s e^{-lambda_s} times an increment, exactly."""
    return round(min(math.exp(2 * (lam(P, t) - lam(P, STOP))), 1.0), 12)


STRONG: dict[str, tuple[Sampler, dict[str, Any], Callable[[float], float]]] = {
    "euler_maruyama": (euler_maruyama, {}, time),
    "reverse_diffusion": (reverse_diffusion, {}, time),
    "sde_1": (dpm_solver_pp_sde, {"order": 1}, signal),
    "sde_2": (dpm_solver_pp_sde, {}, signal),
    "sa_2_2": (sa_solver, {}, signal),
}


def on_the_path(name: str, calls: int, x: Tensor) -> Tensor:
    sampler, options, clock = STRONG[name]
    plan = sampler(P, calls, end=STOP, **options)
    corrected = name.startswith("sa")  # whose row k holds the noise of the step before it
    steps = [(row.t, row.s) if not corrected else (plan.rows[k - 1].t, row.t) for k, row in enumerate(plan.rows)]
    noise = Path(3, tuple((clock(t), clock(s)) for t, s in steps))  # type: ignore[arg-type]
    return run(correlated(P), plan, x, noise=noise)


@pytest.mark.parametrize("name", STRONG)
def test_strong_order_1(name: str) -> None:
    """Plans of twice the calls end closer and closer on the same path: half the distance each time."""
    extra = int(name.startswith("sa"))  # a call at the end
    x = Noise(2).normal((128, 3), dtype=torch.float64)
    ends = [on_the_path(name, n + extra, x) for n in (32, 64, 128, 256)]
    gaps = [float((coarse - fine).square().mean().sqrt()) for coarse, fine in pairwise(ends)]
    assert 0.8 < math.log2(gaps[0] / gaps[-1]) / (len(gaps) - 1) < 1.25, gaps


def test_the_path_gives_standard_normals_and_adds_up() -> None:
    coarse, fine = Path(3, ((0.25, 0.75),)), Path(3, ((0.25, 0.5), (0.5, 0.75)))
    draw = {"shape": (20_000, 1), "dtype": torch.float64}
    whole, parts = coarse.normal(**draw), [fine.normal(**draw, step=k) for k in (0, 1)]
    torch.testing.assert_close(whole, (parts[0] + parts[1]) / math.sqrt(2))
    for z in (whole, *parts):
        assert float(z.std()) == pytest.approx(1, abs=0.02)
    assert abs(float((parts[0] * parts[1]).mean())) < 0.03


def test_independent_noise_has_no_strong_order() -> None:
    x = Noise(2).normal((64, 3), dtype=torch.float64)
    plans = [euler_maruyama(P, n, end=STOP) for n in (128, 512)]
    ends = [run(correlated(P), plan, x, noise=Noise(3)) for plan in plans]
    assert float((ends[0] - ends[1]).square().mean().sqrt()) > 0.3
