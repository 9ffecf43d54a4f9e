"""Exponential plans: exact for constant predictions, and many names for the same plan."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_cases import (
    CASES,
    PROCESSES,
    SILENT,
    Constant,
    f64,
    level,
    mixture,
    of_kind,
    states,
)
from torch import Tensor

from ornstein.grid import GRIDS, make
from ornstein.noise import Noise
from ornstein.process import VE, VP, Cosine, GaussianProcess, SubVP
from ornstein.samplers import (
    ALL,
    Plan,
    adams,
    ancestral,
    ddim,
    deis,
    deis_rho_rk,
    dpm_solver,
    dpm_solver_multistep,
    dpm_solver_pp,
    dpm_solver_pp_sde,
    dpm_solver_pp_single,
    heun,
    ipndm,
    lms,
    midpoint,
    probability_flow_euler,
    propagate,
    run,
    runge_kutta,
    sa_solver,
    unipc,
)
from ornstein.testing import GaussianDenoiser

# where sigma is 1000 times alpha the rounding of x/alpha is 1e-13, and the first steps of PNDM or Kutta multiply it by 1e5:
# noise of 150 times the signal is enough to tell whether a plan is exact
TAMED = {**PROCESSES, "cosine": Cosine(log_snr_end=-10.0)}
CLEAN, EPS = f64(0.7, -1.9, 0.2), f64(-1.1, 0.4, 0.9)


class Silence(Noise):
    """No noise: a stochastic plan then runs as its mean does."""

    def normal(self, shape, **kwargs):  # type: ignore[no-untyped-def,override]
        return torch.zeros(tuple(shape), dtype=torch.float64)


def constants(p: GaussianProcess, plan: Plan, end: float | None, view: str) -> float:
    """How far the plan ends from alpha·c + sigma·e, started at alpha·c + sigma·e, in units of alpha + sigma."""
    (alpha, sigma), (alpha_end, sigma_end) = level(p, plan.rows[0].t), level(p, end)
    denoiser = Constant(p, view, CLEAN if view == "x0" else EPS)
    found = run(denoiser, plan, (alpha * CLEAN + sigma * EPS)[None], noise=Silence(0))[0]
    exact = alpha_end * CLEAN + sigma_end * EPS
    if view == "v":  # x turns by the angle
        angle = math.atan2(sigma_end, alpha_end) - math.atan2(sigma, alpha)
        exact = math.hypot(alpha_end, sigma_end) * ((alpha * CLEAN + sigma * EPS) / math.hypot(alpha, sigma) + angle * EPS)
    return float((found - exact).abs().max()) / (alpha_end + sigma_end)


@pytest.mark.parametrize("key", of_kind("flow"))
def test_constant_x0_and_constant_eps_are_integrated_exactly(key: str) -> None:
    for name in ("vp", "cosine", "ve", "rectified", "zero_cosine"):
        p = TAMED[name]
        plan = CASES[key].plan(p, 20, end=0.07)
        assert constants(p, plan, 0.07, "x0") < 1e-9
        if level(p, plan.rows[0].t)[0] > 0:  # else a constant eps says nothing of x0
            assert constants(p, plan, 0.07, "eps") < 1e-9
    assert constants(VP(), CASES[key].plan(VP(), 20), None, "x0") < 1e-9
    assert constants(VP(), CASES[key].plan(VP(), 20), None, "eps") < 1e-9


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("key", of_kind("turn"))
def test_constant_v_is_integrated_exactly(key: str, name: str) -> None:
    p, end = TAMED[name], 0.07
    assert constants(p, CASES[key].plan(p, 20, end=end), end, "v") < 1e-9


@settings(max_examples=100)
@given(
    key=st.sampled_from(of_kind("flow")), name=st.sampled_from(sorted(set(PROCESSES) - set(SILENT))), calls=st.integers(13, 40),
    spacing=st.sampled_from(sorted(GRIDS)), end=st.sampled_from([0.03, 0.3, 0.8]),
)  # fmt: skip
def test_constants_on_any_grid(key: str, name: str, calls: int, spacing: str, end: float) -> None:
    p = TAMED[name]
    plan = CASES[key].plan(p, calls, spacing, end)
    assert constants(p, plan, end, "x0") < 1e-9
    assert constants(p, plan, end, "eps") < 1e-9


@pytest.mark.parametrize("p", [VP(), VE(0.02, 10.0), SubVP()], ids=["vp", "ve", "sub_vp"])
@pytest.mark.parametrize("key", of_kind("drift"))
def test_plans_that_discretise_the_drift_do_not(key: str, p: GaussianProcess) -> None:
    plan = CASES[key].plan(p, 24, end=0.07)
    assert constants(p, plan, 0.07, "x0") > 1e-6
    assert constants(p, plan, 0.07, "eps") > 1e-6


@pytest.mark.parametrize("key", of_kind("law"))
@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(set(PROCESSES) - set(SILENT))), spacing=st.sampled_from([None, *sorted(GRIDS)]),
    calls=st.integers(2, 16), end=st.sampled_from([0.05, 0.4]),
)  # fmt: skip
def test_constant_x0_is_exact_in_law(key: str, name: str, spacing: str | None, calls: int, end: float) -> None:
    p = PROCESSES[name]
    point = GaussianDenoiser(f64(0.7, -1.9), torch.zeros(2, 2, dtype=torch.float64), p)
    final = propagate(CASES[key].plan(p, calls, spacing, end), point)[-1]
    alpha, sigma = level(p, end)
    torch.testing.assert_close(final.mean, alpha * point.mean @ point.directions, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(final.variances, torch.full_like(final.variances, sigma**2), rtol=1e-9, atol=0)


def test_plans_of_other_kinds_are_not_exact_in_law() -> None:
    p = VP()
    point = GaussianDenoiser(f64(0.7), torch.zeros(1, 1, dtype=torch.float64), p)
    for plan in (ALL["ancestral"](p, 12, variance="transition", end=0.2), ALL["euler_maruyama"](p, 12, end=0.2)):
        assert float(propagate(plan, point)[-1].variances) > 1.05 * level(p, 0.2)[1] ** 2


# --------------------------------------------------------------------------------------------------- identities

N = 5
grids = st.tuples(st.sampled_from(sorted(GRIDS)), st.integers(2, 24), st.sampled_from([0.98, 0.6]), st.sampled_from([None, 0.06]))
names = st.sampled_from(sorted(PROCESSES))


def times_of(p: GaussianProcess, spacing: tuple[str, int, float, float | None]) -> tuple[float, ...]:
    """Times from below 1, so that every process has signal."""
    name, n, start, end = spacing
    return make(p, n, name, start=start, end=end)


def begin(p: GaussianProcess, t: float) -> Tensor:
    return p.corrupt(CLEAN[:2].expand(N, 2), t, Noise(4).normal((N, 2), dtype=torch.float64))


def same_states(p: GaussianProcess, one: Plan, other: Plan) -> None:
    """The plans do the same to every oracle, whatever their views."""
    assert one.times == pytest.approx(other.times, abs=1e-14)
    o, x = mixture(p), begin(p, one.times[0])
    for a, b, row in zip(states(o, one, x, Noise(6)), states(o, other, x, Noise(6)), one.rows, strict=True):
        assert float((a - b).abs().max()) < 1e-9 * (1 + level(p, row.t)[1])


def same_rows(one: Plan, other: Plan, first: int = 0) -> None:
    assert (one.view, one.calls) == (other.view, other.calls)
    for a, b in zip(one.rows[first:], other.rows[first:], strict=True):
        assert (a.t, a.s) == pytest.approx((b.t, b.s))
        assert [a.a, a.c, a.p, a.q] == pytest.approx([b.a, b.c, b.p, b.q], rel=1e-9, abs=1e-12)
        assert dict(a.b) == pytest.approx(dict(b.b), rel=1e-9, abs=1e-11)
        assert dict(a.prior) == pytest.approx(dict(b.prior), rel=1e-9, abs=1e-11)


@settings(max_examples=20)
@given(name=names, spacing=grids)
def test_first_order_has_one_plan_and_many_names(name: str, spacing: tuple[str, int, float, float | None]) -> None:
    p = PROCESSES[name]
    times, end = times_of(p, spacing), spacing[3]
    n, one = len(times), ddim(p, len(times), times, end=end)
    for other in (
        dpm_solver(p, n, times, order=1, end=end),
        dpm_solver(p, n, times, order=1, fast=False, end=end),
        dpm_solver_multistep(p, n, times, order=1, end=end),
        dpm_solver_pp(p, n, times, order=1, end=end),
        dpm_solver_pp_single(p, n, times, order=1, end=end),
        deis(p, n, times, degree=0, end=end),
        deis(p, n, times, degree=0, variable="rho", end=end),
        lms(p, n, times, order=1, end=end),
        ipndm(p, n, times, order=1, end=end),
        runge_kutta(p, n, times, method="euler", variable="ratio", end=end),
        sa_solver(p, n, times, predictor=1, corrector=0, tau=0.0, end=end),
    ):
        same_states(p, one, other)


@settings(max_examples=20)
@given(name=names, spacing=grids)
def test_first_order_with_noise_too(name: str, spacing: tuple[str, int, float, float | None]) -> None:
    p = PROCESSES[name]
    times, end = times_of(p, spacing), spacing[3]
    one = ddim(p, len(times), times, eta=1.0, end=end)
    for other in (
        ancestral(p, len(times), times, variance="posterior", end=end),
        dpm_solver_pp_sde(p, len(times), times, order=1, end=end),
        sa_solver(p, len(times), times, predictor=1, corrector=0, tau=1.0, end=end),
    ):
        same_rows(one, other)
        same_states(p, one, other)


def test_they_start_without_signal_alike() -> None:
    for name in SILENT:
        p = PROCESSES[name]
        one = ddim(p, 9, "uniform", eta=1.0)
        assert one.times[0] == 1
        for other in (
            ancestral(p, 9, "uniform"),
            dpm_solver_pp_sde(p, 9, "uniform", order=1),
            sa_solver(p, 9, "uniform", predictor=1, corrector=0),
        ):
            same_rows(one, other)
        for other in (dpm_solver_pp(p, 9, "uniform", order=1), dpm_solver_pp_single(p, 9, "uniform", order=1)):
            same_rows(ddim(p, 9, "uniform"), other)


@settings(max_examples=20)
@given(name=names, spacing=grids)
def test_the_predictor_of_unipc_1_is_ddim(name: str, spacing: tuple[str, int, float, float | None]) -> None:
    p = PROCESSES[name]
    times = times_of(p, spacing)
    for variant in ("bh1", "bh2"):
        plan, plain = unipc(p, len(times), times, order=1, variant=variant), ddim(p, len(times), times)
        for row, step in zip(plan.rows[1:], plain.rows, strict=False):
            assert row.t == step.s
            assert row.p == pytest.approx(step.a, rel=1e-9)
            ((lag, weight),) = row.prior
            assert (lag, weight) == pytest.approx((1, step.b[0][1]), rel=1e-9)
    # and without their corrector, the predictions of UniPC-2 (bh2) are DPM-Solver++(2M)'s steps
    bare = [(row.p, dict(row.prior)) for row in unipc(p, len(times), times, order=2).rows[1:]]
    for (a, prior), step in zip(bare, dpm_solver_pp(p, len(times), times).rows, strict=False):
        assert a == pytest.approx(step.a, rel=1e-9)
        assert prior == pytest.approx({j + 1: w for j, w in step.b}, rel=1e-9, abs=1e-12)


@settings(max_examples=20)
@given(name=names, spacing=grids)
def test_unipc_is_sa_solver_without_noise_once_warm(name: str, spacing: tuple[str, int, float, float | None]) -> None:
    p = PROCESSES[name]
    times, end = times_of(p, spacing), spacing[3]
    calls = len(times) + (end is not None)
    for order, warm in ((1, None), (2, None), (3, 3)):
        one = unipc(p, calls, times, order=order, end=end)
        other = sa_solver(p, calls, times, predictor=order, corrector=order, tau=0.0, end=end)
        if warm is not None and one.calls > warm:
            same_rows(one, other, warm)
        elif warm is None and one.calls > 3:  # the halves of the orders 1 and 2 are not exact weights
            with pytest.raises(AssertionError):
                same_rows(one, other, 2)


@settings(max_examples=20)
@given(name=names, spacing=grids)
def test_runge_kutta_in_the_ratio_has_other_names(name: str, spacing: tuple[str, int, float, float | None]) -> None:
    p = PROCESSES[name]
    times, end = times_of(p, spacing), spacing[3]
    n = len(times) - (end is None)
    calls = 2 * n + (end is None)
    same_rows(heun(p, calls, times, end=end), runge_kutta(p, calls, times, method="heun", variable="ratio", end=end))
    same_rows(heun(p, calls, times, end=end), deis_rho_rk(p, calls, times, method="heun", end=end))
    same_rows(midpoint(p, calls, times, end=end), deis_rho_rk(p, calls, times, method="midpoint", end=end))
    same_rows(
        midpoint(p, calls, times, variable="t", end=end),
        runge_kutta(p, calls, times, method="midpoint", variable="t", end=end),
    )
    same_rows(
        probability_flow_euler(p, len(times), times, end=end),
        runge_kutta(p, len(times), times, method="euler", variable="t", end=end),
    )


@settings(max_examples=20)
@given(name=names, spacing=grids, order=st.integers(1, 5), starts=st.sampled_from(["climb", "single_step"]))
def test_lms_is_deis_in_the_ratio(name: str, spacing: tuple[str, int, float, float | None], order: int, starts: str) -> None:
    p = PROCESSES[name]
    times, end = times_of(p, spacing), spacing[3]
    calls = len(times)
    if starts == "single_step" and calls + 2 * (order - 1) > 3 * order:
        calls += 2 * (order - 1)
    else:
        starts = "climb"
    one = lms(p, calls, times, order=order, end=end, starts=starts)
    same_rows(one, deis(p, calls, times, degree=order - 1, variable="rho", end=end, starts=starts))
    # a polynomial of the degree in rho is integrated exactly, which is what the weights are
    for k, row in enumerate(one.rows):
        if starts == "climb" and row.s is not None:
            nodes = [sigma / alpha for alpha, sigma in (level(p, one.times[k - j]) for j, _ in row.b)]
            (alpha, sigma), start = level(p, row.s), nodes[0]
            for power in range(len(nodes)):
                unit = max(start, sigma / alpha) ** (power + 1)
                exact = alpha * ((sigma / alpha) ** (power + 1) - start ** (power + 1)) / (power + 1)
                found = sum(w * node**power for (_, w), node in zip(row.b, nodes, strict=True))
                size = sum(abs(w) * node**power for (_, w), node in zip(row.b, nodes, strict=True))
                assert abs(found - exact) < 1e-9 * (alpha * unit + size)


@settings(max_examples=20)
@given(name=names, spacing=grids, order=st.integers(1, 4))
def test_adams_of_other_views_has_other_names(name: str, spacing: tuple[str, int, float, float | None], order: int) -> None:
    p = PROCESSES[name]
    times, end = times_of(p, spacing), spacing[3]
    n, given = len(times), {"order": order, "end": end}
    same_rows(adams(p, n, times, view="eps", variable="growth", correct=False, **given), lms(p, n, times, **given))
    same_rows(adams(p, n, times, view="eps", variable="t", correct=False, **given), deis(p, n, times, degree=order - 1, end=end))
    same_rows(
        adams(p, n + (end is not None), times, view="x0", variable="lambda", **given),
        sa_solver(p, n + (end is not None), times, predictor=order, corrector=order, tau=0.0, end=end),
    )


ROW_TEST = [
    key
    for key in of_kind("flow")
    if CASES[key].sampler in ("ddim", "lms", "ipndm", "deis", "dpm_solver_multistep", "dpm_solver_pp")
    and "starts" not in CASES[key].options
]


@settings(max_examples=60)
@given(key=st.sampled_from(ROW_TEST), name=names, spacing=grids)
def test_rows_of_one_call_a_step_pass_the_row_test(key: str, name: str, spacing: tuple[str, int, float, float | None]) -> None:
    """DESIGN: in the eps view a = alpha_s/alpha_t and ΣB = sigma_s - sigma_t a, in the x0 view the reverse."""
    plan = CASES[key].plan(PROCESSES[name], spacing[1], spacing[0], spacing[3])
    for row in plan.rows:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = level(PROCESSES[name], row.t), level(PROCESSES[name], row.s)
        if plan.view == "eps":
            alpha_t, sigma_t, alpha_s, sigma_s = sigma_t, alpha_t, sigma_s, alpha_s
        a, size = sigma_s / sigma_t, sum(abs(w) for _, w in row.b)
        assert row.a == pytest.approx(a, rel=1e-9)
        assert abs(sum(w for _, w in row.b) - alpha_s + alpha_t * a) < 1e-9 * (alpha_s + alpha_t * a + size)
