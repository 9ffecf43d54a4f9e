"""What plans do to Gaussian data, exactly: orders of convergence, and which of them keep every marginal."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_cases import correlated, f64
from torch import Tensor

from ornstein.denoiser import Condition, Prediction
from ornstein.grid import make
from ornstein.noise import Noise
from ornstein.process import EDM, VE, VP, GaussianProcess, SubVP, chain
from ornstein.process.gaussian import Time
from ornstein.samplers import (
    Law,
    Plan,
    Trajectory,
    ancestral,
    ddim,
    dpm_solver_pp,
    euler_maruyama,
    heun,
    propagate,
    run,
    sample,
)
from ornstein.testing import GaussianDenoiser


def isotropic(variance: float, p: GaussianProcess) -> GaussianDenoiser:
    return GaussianDenoiser(f64(0.4, -0.7), variance * torch.eye(2, dtype=torch.float64), p)


def exact(o: GaussianDenoiser, t: Time) -> Law:
    return Law(o.process.moments(t)[0] * o.mean @ o.directions, o.marginal_variances(t))


def distance(one: Law, other: Law) -> float:
    return float((one.mean - other.mean).abs().max() + (one.variances - other.variances).abs().max())


# the noise levels end where the flow is smooth in the grid's variable: an order is a statement about the limit of small steps
SMOOTH: dict[str, GaussianProcess] = {"vp": VP(0.1, 10.0, t_min=0.05), "ve": VE(0.1, 10.0), "edm": EDM(0.1, 10.0)}
ORDERS: dict[str, tuple[Callable[[GaussianProcess, int], Plan], int]] = {
    "ddim": (ddim, 1),
    "euler_maruyama": (euler_maruyama, 1),
    "heun": (lambda p, n: heun(p, 2 * n - 1), 2),
    "heun_uniform": (lambda p, n: heun(p, 2 * n - 1, "uniform"), 2),
    "dpm_solver_pp_2m": (dpm_solver_pp, 2),
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("sampler", ORDERS)
def test_measured_order_is_the_declared_one(sampler: str, name: str) -> None:
    make_plan, order = ORDERS[sampler]
    o = correlated(SMOOTH[name])
    errors = []
    # Euler-Maruyama on exploding variance has two errors of opposite sign: the first order shows in smaller steps
    for n in (256, 512, 1024) if sampler == "euler_maruyama" and name != "vp" else (48, 96, 192):
        plan = make_plan(o.process, n + 1)
        laws = propagate(plan, o)  # started at the exact law of x_T: the error is the plan's alone
        errors.append(distance(laws[-2], exact(o, plan.rows[-1].t)))
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    # Richardson: the slope itself converges with the first power of the step
    limit = 2 * slopes[1] - slopes[0]
    assert limit == pytest.approx(order, abs=0.12), (errors, slopes)


def test_the_last_row_denoises() -> None:
    o = correlated(VP())
    for plan in (ddim(o.process, 9), euler_maruyama(o.process, 9), heun(o.process, 9), dpm_solver_pp(o.process, 9)):
        before, after = propagate(plan, o)[-2:]
        alpha, _ = o.process.moments(plan.rows[-1].t)
        gain = alpha * o.variances / o.marginal_variances(plan.rows[-1].t)
        mean = o.mean @ o.directions
        torch.testing.assert_close(after.mean, mean + gain * (before.mean - alpha * mean), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(after.variances, gain**2 * before.variances, rtol=1e-9, atol=0)


def optimum(o: GaussianDenoiser, row_t: float, row_s: float) -> float:
    """Var of q(x_s|x_t) for isotropic data: β̃ + B² Var[x0|x_t]."""
    q = o.process.posterior(row_t, row_s)
    return float(q.variance + q.on_x0**2 * o.posterior_variances(row_t)[0])


def with_optimum(plan: Plan, o: GaussianDenoiser) -> Plan:
    rows = [row if row.s is None else replace(row, c=math.sqrt(optimum(o, row.t, row.s))) for row in plan.rows]
    return Plan("optimal", plan.view, tuple(rows))


@settings(max_examples=40)
@given(
    variance=st.floats(0.05, 4.0), calls=st.integers(2, 25), spacing=st.sampled_from(["uniform", "karras", "log_snr"]),
    p=st.sampled_from([VP(), VE(), SubVP(), EDM(), chain("linear"), chain("cosine", zero_terminal=True)]),
)  # fmt: skip
def test_ancestral_with_the_optimal_variance_keeps_every_marginal(
    variance: float, calls: int, spacing: str, p: GaussianProcess
) -> None:
    o = isotropic(variance, p)
    plan = with_optimum(ancestral(p, calls, spacing), o)
    for law, s in zip(propagate(plan, o)[:-1], [1.0, *(row.s for row in plan.rows[:-1])], strict=True):
        torch.testing.assert_close(law.mean, exact(o, s).mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(law.variances, exact(o, s).variances, rtol=1e-10, atol=1e-10)


def test_ancestral_with_another_variance_does_not() -> None:
    for p in (VP(), chain("linear")):
        o = isotropic(0.5, p)
        for variance, sign in (("posterior", -1), ("transition", 1)):
            laws = propagate(ancestral(p, 10, variance=variance), o)
            gap = laws[5].variances - exact(o, ancestral(p, 10).rows[4].s).variances
            assert bool((sign * gap > 1e-3).all()), variance


def test_known_exact_cases_of_the_two_variances() -> None:
    # Ho et al. 2020: β is the optimum for N(0, I) data, β̃ for a single point
    p = chain("linear", 40)
    for variance, data in (("transition", 1.0), ("posterior", 0.0)):
        o = isotropic(data, p)
        plan = ancestral(p, 40, variance=variance)
        for law, row in zip(propagate(plan, o)[1:-1], plan.rows, strict=False):
            torch.testing.assert_close(law.variances, exact(o, row.s).variances, rtol=1e-9, atol=1e-12)


class LearnedOptimum:
    """The Gaussian oracle with the fraction at which log variance between β̃ and β meets the optimum of each jump."""

    def __init__(self, o: GaussianDenoiser, plan: Plan) -> None:
        self.inner, self.process = o, o.process
        self.next = {row.t: row.s for row in plan.rows}

    def fraction(self, t: float) -> float:
        s = self.next[t]
        assert s is not None
        q = self.process.posterior(t, s)
        low, high = float(q.variance.log()), float(q.transition.log())
        return (math.log(optimum(self.inner, t, s)) - low) / (high - low)

    def __call__(self, x_t: Tensor, t: float, cond: Condition = None) -> Prediction:
        found = self.inner(x_t, t)
        last = self.next[t] is None
        fraction = torch.zeros_like(x_t) if last else torch.full_like(x_t, self.fraction(t))
        return Prediction.from_x0(x_t, found.alpha, found.sigma, found.x0, fraction)


@settings(max_examples=40)
@given(variance=st.floats(0.001, 1.0), calls=st.integers(2, 30), spacing=st.sampled_from(["uniform", "karras", "quadratic"]))
def test_the_learned_range_holds_the_optimum_on_vp(variance: float, calls: int, spacing: str) -> None:
    o = isotropic(variance, VP())
    plan = ancestral(o.process, calls, spacing, variance="learned")
    denoiser = LearnedOptimum(o, plan)
    fractions = [denoiser.fraction(row.t) for row in plan.rows[:-1]]
    assert all(-1e-9 <= fraction <= 1 + 1e-9 for fraction in fractions)
    # data wider than the noise need more than β
    assert LearnedOptimum(isotropic(1.5, VP()), plan).fraction(plan.rows[0].t) > 1


def test_a_learned_variance_at_the_optimum_keeps_every_marginal() -> None:
    o = isotropic(0.3, VP())
    plan = ancestral(o.process, 12, variance="learned")
    best = with_optimum(ancestral(o.process, 12), o)
    for law, row in zip(propagate(best, o)[1:-1], best.rows, strict=False):
        assert distance(law, exact(o, row.s)) < 1e-10
    # and the learned rows, run, are those rows
    start = Noise(3).normal((5, 2), dtype=torch.float64)
    learned = sample(LearnedOptimum(o, plan), plan, start=start, noise=Noise(0))
    torch.testing.assert_close(learned, sample(o, best, start=start, noise=Noise(0)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "plan",
    [
        ddim(VP(), 6, eta=0.7),
        ancestral(VP(), 6),
        euler_maruyama(VP(0.1, 6.0), 12),
        heun(VP(), 11, churn=3.0),
        dpm_solver_pp(VP(), 6),
    ],
    ids=lambda plan: plan.name,
)
def test_propagate_agrees_with_monte_carlo(plan: Plan) -> None:
    p = VP(0.1, 6.0) if plan.name == "euler_maruyama" else VP()
    o, n = correlated(p), 20_000
    begin = exact(o, plan.rows[0].t)
    x = Noise(8).normal((n, 3), dtype=torch.float64) * begin.variances.sqrt() + begin.mean
    seen = Trajectory()
    run(o, plan, x @ o.directions.T, noise=Noise(9), after=seen)
    for law, state in zip(propagate(plan, o)[1:], seen.states, strict=True):
        found = state @ o.directions
        assert bool(((found.mean(0) - law.mean).abs() < 5 * (law.variances / n).sqrt()).all())
        assert bool(((found.var(0) / law.variances - 1).abs() < 5 * math.sqrt(2 / n)).all())


@pytest.mark.parametrize("plan", [ddim(VP(), 5), heun(VP(), 9), dpm_solver_pp(VP(), 5)], ids=lambda plan: plan.name)
def test_propagate_is_the_affine_map_of_a_run(plan: Plan) -> None:
    o = correlated(VP())
    unit = torch.eye(3, dtype=torch.float64)
    ends = run(o, plan, torch.cat([torch.zeros(1, 3, dtype=torch.float64), unit @ o.directions.T]), noise=Noise(0)) @ o.directions
    slopes = (ends[1:] - ends[0]).diagonal()
    law = propagate(plan, o, start=Law(f64(0.5, -1.0, 2.0), f64(0.3, 2.0, 0.0)))[-1]
    torch.testing.assert_close(law.mean, ends[0] + slopes * f64(0.5, -1.0, 2.0), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(law.variances, slopes**2 * f64(0.3, 2.0, 0.0), rtol=1e-10, atol=1e-14)


def test_learned_plans_are_not_propagated() -> None:
    with pytest.raises(ValueError, match="learns its variance"):
        propagate(ancestral(VP(), 3, variance="learned"), correlated(VP()))


def test_grids_given_as_times_are_used() -> None:
    times = (0.9, 0.4, 0.2)
    assert ddim(VP(), 3, times).times == make(VP(), 3, times) == times
