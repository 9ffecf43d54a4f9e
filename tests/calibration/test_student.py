"""A table is its plan, and the knobs move it as the module says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from calibration_cases import (
    DETERMINISTIC,
    F64,
    PROCESSES,
    STOCHASTIC,
    Constant,
    by_table,
    f64,
    made,
    mixture,
    named,
    normal,
)  # fmt: skip
from hypothesis import given
from hypothesis import strategies as st

from ornstein.calibration import Table, beside, shares_of, table_of
from ornstein.calibration.student import Student
from ornstein.calibration.trace import Chunk, trace
from ornstein.noise import Noise
from ornstein.process import EDM, VE, VP, GaussianProcess, chain
from ornstein.samplers import ALL, Plan, Row, adams, ancestral, ddim, default_plan, dpm_solver_pp, heun, sa_solver, sample

Case = tuple[str, int, dict[str, Any]]


def close(x: torch.Tensor, y: torch.Tensor, tolerance: float) -> None:
    assert float((x - y).abs().max()) < tolerance * max(1.0, float(y.abs().max()))


def knobs(student: Student, size: float, *, stream: str = "knobs") -> torch.Tensor:
    return size * normal(student.size, stream=stream)


def test_every_sampler_is_in_the_lists() -> None:
    assert {case[0] for case in DETERMINISTIC + STOCHASTIC} == set(ALL)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("case", DETERMINISTIC, ids=named)
def test_the_table_of_a_plan_gives_its_samples(case: Case, process: str) -> None:
    oracle = mixture(PROCESSES[process])
    plan = made(case, oracle.process)
    assert not plan.stochastic
    start = oracle.process.prior((6, 2), Noise(0), dtype=F64)
    table = table_of(plan, oracle.process)
    assert [len(w) - 2 for w in table.weights] == list(range(plan.calls))
    close(by_table(oracle, table, start)[-1], sample(oracle, plan, start=start, noise=Noise(0)), 1e-9)


@pytest.mark.parametrize("process", ["vp", "ve", "edm", "chain"])
@pytest.mark.parametrize("case", STOCHASTIC, ids=named)
def test_the_table_of_a_noisy_plan_gives_its_samples(case: Case, process: str) -> None:
    oracle = mixture(PROCESSES[process])
    plan = made(case, oracle.process)
    assert plan.stochastic
    start, noise = oracle.process.prior((6, 2), Noise(3), first=5, dtype=F64), Noise(3)
    expected = sample(oracle, plan, start=start, noise=noise, first=5)
    close(by_table(oracle, table_of(plan, oracle.process), start, noise, first=5)[-1], expected, 1e-9)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("case", [*DETERMINISTIC[::3], *STOCHASTIC], ids=named)
def test_no_knob_turned_is_the_plan_itself(case: Case, process: str) -> None:
    p = PROCESSES[process]
    table = table_of(made(case, p), p)
    student = Student(p, table)
    same = student(torch.zeros(student.size, dtype=F64))
    # up to the millionth in log(sigma/alpha) by which calls that meet at the lowest noise are drawn apart
    levels = [p.log_ratio(times).clamp(max=16.0) for times in (same.times, table.times)]
    torch.testing.assert_close(*levels, rtol=0, atol=1e-9)
    torch.testing.assert_close(same.noises, table.noises, rtol=1e-9, atol=0)
    for a, b in zip(same.weights, table.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))


@pytest.mark.parametrize("process", ["vp", "edm", "zero_linear"])
@pytest.mark.parametrize("case", [("adams", 5, {}), ("ddim", 4, {"eta": 1.0}), ("dpm_solver_pp_sde", 4, {})], ids=named)
def test_the_plan_at_any_knobs_is_what_was_traced(case: Case, process: str) -> None:
    oracle = mixture(PROCESSES[process])
    student = Student(oracle.process, table_of(made(case, oracle.process), oracle.process))
    q = knobs(student, 0.2)
    plan = student.plan(q, "turned")
    assert (plan.name, plan.view, plan.stochastic) == ("turned", "x0", bool(student.noisy))
    start = oracle.process.prior((5, 2), Noise(2), first=7, dtype=F64)
    traced, calls = trace(oracle, student(q), Chunk(slice(0, 5), start, None, 7), Noise(2), graphs=False)
    assert len(calls) == plan.calls
    drawn = sample(oracle, plan, start=start, noise=Noise(2), first=7)
    close(drawn, traced, 1e-12)
    close(drawn, by_table(oracle, student(q), start, Noise(2), first=7)[-1], 1e-12)
    assert float((drawn - sample(oracle, made(case, oracle.process), start=start, noise=Noise(2), first=7)).abs().max()) > 1e-3


@given(process=st.sampled_from(sorted(PROCESSES)), calls=st.integers(2, 9), size=st.floats(0, 4), seed=st.integers(0, 1000))
def test_times_fall_strictly_to_no_less_than_the_least(process: str, calls: int, size: float, seed: int) -> None:
    p = PROCESSES[process]
    student = Student(p, table_of(default_plan(p, calls), p))
    times = student(size * normal(student.size, seed=seed)).times
    assert float(times[0]) == float(student.table.times[0])
    assert bool((times.diff() < 0).all())
    assert float(times[-1]) >= p.t_min
    # and a plan takes them
    assert student.plan(size * normal(student.size, seed=seed), "any").calls == calls


@pytest.mark.parametrize("process", PROCESSES)
def test_a_moved_time_keeps_every_row_exact_for_constant_data(process: str) -> None:
    p = PROCESSES[process]
    student = Student(p, table_of(ddim(p, 5), p))
    q = torch.zeros(student.size, dtype=F64)
    q[sum(student.rows) :] = 0.5 * normal(student.size - sum(student.rows))
    table = student(q)
    assert float((table.times - student.table.times).abs().max()) > 1e-3
    value, eps = f64(0.7, -1.3), normal(4, 2, stream="eps")
    alpha, sigma = p.moments(table.times)
    states = by_table(Constant(p, value), table, alpha[0] * value + sigma[0] * eps)
    for k, state in enumerate(states[:-1]):
        close(state, alpha[k] * value + sigma[k] * eps, 1e-9)
    close(states[-1], value.expand(4, 2), 1e-9)


@pytest.mark.parametrize("process", ["vp", "ve", "edm", "chain"])
def test_a_moved_noise_keeps_the_law_of_constant_data(process: str) -> None:
    p = PROCESSES[process]
    student = Student(p, table_of(ddim(p, 5, eta=1.0), p))
    q = torch.zeros(student.size, dtype=F64)
    q[sum(student.rows) :] = -normal(student.size - sum(student.rows)).abs()  # more noise than a level holds has no such step
    table = student(q)
    shares = [one.noises[:4] / p.moments(one.times)[1][1:] for one in (table, student.table)]
    assert bool((shares[0] < shares[1]).all())
    alpha, sigma = (torch.cat([m, f64(end)]) for m, end in zip(p.moments(table.times), (1.0, 0.0), strict=True))
    for k, weights in enumerate(table.weights):
        mean = weights[0] * alpha[k] + weights[1:].sum()
        variance = (weights[0] * sigma[k]) ** 2 + table.noises[k] ** 2
        assert float(mean) == pytest.approx(float(alpha[k + 1]), rel=1e-8, abs=1e-9)
        assert float(variance) == pytest.approx(float(sigma[k + 1] ** 2), rel=1e-8, abs=1e-12)


def test_knobs_are_what_they_are_called() -> None:
    p = VP()
    student = Student(p, table_of(ddim(p, 4, eta=1.0), p))
    at = sum(student.rows)
    assert student.size == at + 3 + 3
    q = torch.zeros(student.size, dtype=F64)
    q[0], q[at + 1], q[at + 3] = 0.1, math.log(0.5), math.log(0.5)
    table, before = student(q), student.table
    gaps, old = p.log_ratio(table.times).diff(), p.log_ratio(before.times).diff()
    torch.testing.assert_close(gaps / old, f64(1, 0.5, 1), rtol=1e-5, atol=0)
    # the first noise alone was halved; the others follow the level that they lead to
    assert float(table.noises[0]) == pytest.approx(float(before.noises[0]) / 2, rel=1e-9)
    sigma, was = p.moments(table.times)[1], p.moments(before.times)[1]
    assert float(table.noises[1] / before.noises[1]) == pytest.approx(float(sigma[2] / was[2]), rel=1e-9)
    without = q.clone()
    without[0] = 0
    torch.testing.assert_close(table.weights[0] - student(without).weights[0], f64(0.1, 0), rtol=0, atol=1e-12)


def refused(plan: Plan, process: GaussianProcess, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        table_of(plan, process)


def test_plans_without_a_table_are_refused_by_name() -> None:
    p = VP()
    for plan in (sa_solver(p, 5, predictor=2, corrector=2, tau=1.0), heun(EDM(), 7, churn=10.0)):
        refused(plan, EDM() if plan.name.startswith("heun") else p, f"{plan.name[:4]}.*draws noise before its calls")
    refused(ancestral(chain("linear", 50), 4, variance="learned"), chain("linear", 50), "ancestral.*a learned one")
    forgetful = Plan("forgetful", "x0", (Row(1.0, 0.5, 0.0, ((0, 1.0),)), Row(0.5, None, 0.0, ((0, 1.0),))))
    refused(forgetful, p, "forgets where it started")
    past = Plan("past", "eps", (Row(1.0, 0.5, 1.0, ((0, 1.0),), 0.1), Row(0.5, None, 1.0, ((0, 1.0), (1, 0.5)))))
    refused(past, p, "'past' remembers eps across its noise")


@pytest.mark.parametrize("process", [VP(), VE(), EDM()], ids=["vp", "ve", "edm"])
def test_shares_of_a_consistent_plan_sum_to_one(process: GaussianProcess) -> None:
    for plan in (dpm_solver_pp(process, 5), adams(process, 5, view="x0", order=2, correct=False)):
        shares = shares_of(table_of(plan, process), process)
        assert torch.equal(shares.isnan(), torch.ones(5, 5).triu(1).bool())
        torch.testing.assert_close(shares.nansum(1), torch.ones(5, dtype=F64), rtol=0, atol=1e-9)
    # of DDIM, each row holds its own answer alone
    own = shares_of(table_of(ddim(process, 4), process), process).nan_to_num()
    torch.testing.assert_close(own, torch.eye(4, dtype=F64), rtol=0, atol=1e-9)


def test_two_plans_stand_side_by_side() -> None:
    p = VP()
    lines = beside(ddim(p, 3), dpm_solver_pp(p, 3), p).splitlines()
    assert len(lines) == 5
    assert "ddim" in lines[0]
    assert "dpm_solver_pp" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["0", "1", "2"]
    assert f"{float(p.log_ratio(1.0)):.3f}" in lines[2]


def test_one_call_has_no_times_to_turn() -> None:
    p = VP()
    student = Student(p, table_of(ddim(p, 1), p))
    assert student.size == 2
    table = student(f64(0.0, 0.25))
    assert isinstance(table, Table)
    assert table.times.tolist() == [1.0]
    torch.testing.assert_close(table.weights[0], student.table.weights[0] + f64(0, 0.25), rtol=0, atol=1e-12)
