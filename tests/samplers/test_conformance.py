"""What every member of `samplers.ALL` keeps to: calls, ends, finite rows, files, the grid asked for, and refusals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_cases import CASES, PROCESSES, SILENT, Case, time_at

from ornstein.grid import GRIDS, Grid, uniform
from ornstein.process import VP, GaussianProcess
from ornstein.samplers import ALL, Plan, default_plan


def test_no_member_is_missing_from_the_table() -> None:
    assert {case.sampler for case in CASES.values()} == set(ALL), "add it to CASES in sampler_cases.py"


def begins(p: GaussianProcess) -> float:
    """Where plans of the eps view begin: at log(sigma/alpha) = 7, or the last noisy level with signal, if that is below 1."""
    high = float(p.log_ratio(1.0))
    if not math.isfinite(high) and hasattr(p, "steps"):
        high = float(p.log_ratio(1 - 1 / p.steps))
    return 1.0 if float(p.log_ratio(1.0)) <= 7 else time_at(p, -min(7.0, high))


def numbers(plan: Plan) -> Iterator[Any]:
    for row in plan.rows:
        yield from (row.t, row.a, row.c, row.p, row.q, *(w for _, w in row.b + row.prior), *(row.log_variances or ()))
        if row.s is not None:
            yield row.s


def conforms(case: Case, name: str, plan: Plan, calls: int, end: float | None) -> None:
    p = PROCESSES[name]
    # a step of several calls from where there is no signal is one of a single call: the others go unused
    silent = name in SILENT and plan.view == "x0" and ("single" in case.sampler or case.options.get("starts") == "single_step")
    asked = case.calls(calls, end)
    assert plan.calls == len(plan.rows) == len(plan.times)
    assert asked - (2 if silent else 0) <= plan.calls <= asked <= calls

    assert plan.rows[-1].s == end
    assert all(row.s is not None and row.s >= (p.t_min if end is None else end) - 1e-12 for row in plan.rows[:-1])
    if "churn" not in case.options:  # which goes up
        assert all(later is None or later <= earlier for earlier, later in pairwise(row.s for row in plan.rows))
    assert plan.times[0] == pytest.approx(begins(p) if plan.view == "eps" else 1, abs=1e-12)

    assert all(type(number) is float for number in numbers(plan)), "a number that is not a plain float"
    assert all(abs(number) < float("inf") for number in numbers(plan))
    assert len(str(plan).splitlines()) == plan.calls + 2


@pytest.mark.parametrize("key", CASES)
def test_on_its_own_grid(key: str) -> None:
    case, noisy = CASES[key], ("ancestral", "euler_maruyama", "reverse_diffusion", "annealed_langevin")
    assert case.plan(VP(), 14).stochastic == (case.kind == "law" or case.sampler in noisy or "churn" in case.options)
    for name, p in PROCESSES.items():
        conforms(case, name, case.plan(p, 14), 14, None)
    for name in ("vp", "edm", "zero_cosine"):
        conforms(case, name, case.plan(PROCESSES[name], 13, end=0.15), 13, 0.15)


@pytest.mark.parametrize("sampler", ALL)
def test_files_give_every_plan_back(sampler: str, tmp_path: Path) -> None:
    for key in (key for key in CASES if CASES[key].sampler == sampler):
        plan = CASES[key].plan(PROCESSES["chain"], 14, end=0.1)
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == plan


@settings(max_examples=200)
@given(
    key=st.sampled_from(sorted(CASES)), name=st.sampled_from(sorted(PROCESSES)), calls=st.integers(-2, 30),
    spacing=st.sampled_from([None, *sorted(GRIDS)]), end=st.sampled_from([None, 0.05, 0.4, 0.9]),
)  # fmt: skip
def test_on_any_grid_with_any_calls(key: str, name: str, calls: int, spacing: str | None, end: float | None) -> None:
    case, p = CASES[key], PROCESSES[name]
    if calls < case.fewest(end):
        with pytest.raises(ValueError, match="at least"):
            case.plan(p, calls, spacing, end)
    else:
        conforms(case, name, case.plan(p, calls, spacing, end), calls, end)


@pytest.mark.parametrize("end", [None, 0.4])
@pytest.mark.parametrize("sampler", ALL)
def test_too_few_calls_are_refused(sampler: str, end: float | None) -> None:
    for case in (case for case in CASES.values() if case.sampler == sampler):
        assert case.plan(VP(), case.fewest(end), end=end).calls == case.fewest(end)
        for calls in (-3, -1, 0, case.fewest(end) - 1):
            with pytest.raises(ValueError, match="at least"):
                case.plan(VP(), calls, end=end)


def test_pndm_says_how_many_calls_it_needs() -> None:
    for end in (None, 0.1):
        with pytest.raises(ValueError, match=r"calls=12: .* at least 13, or use ipndm"):
            ALL["pndm"](VP(), 12, end=end)


@given(name=st.sampled_from(sorted(PROCESSES)), calls=st.integers(1, 30))
def test_the_default_plan_uses_every_call(name: str, calls: int) -> None:
    plan = default_plan(PROCESSES[name], calls)
    assert plan.calls == calls
    assert plan.rows[-1].s is None


@pytest.mark.parametrize("key", CASES)
def test_wrong_ends_and_options_are_refused(key: str) -> None:
    case = CASES[key]
    for end in (1.0, 1.5, -0.1):
        with pytest.raises(ValueError, match=f"end={end}"):
            case.plan(VP(), 20, end=end)
    with pytest.raises(TypeError):
        ALL[case.sampler](VP(), 20, sharpness=3)


def test_an_end_without_noise_is_reached_or_refused_by_name() -> None:
    for case in CASES.values():
        try:
            assert case.plan(VP(), 20, end=0.0).rows[-1].s == 0
        except ValueError as error:
            assert "end=0" in str(error), case  # noqa: PT017


WRONG: dict[str, dict[str, Any]] = {
    "ddim": {"eta": 1.5}, "ancestral": {"variance": "best"}, "runge_kutta": {"method": "ralston"}, "midpoint": {"variable": "x"},
    "lms": {"order": 0}, "ipndm": {"order": 5}, "deis": {"degree": -1}, "deis_rho_rk": {"method": "rk45"},
    "dpm_solver": {"order": 4}, "dpm_solver_multistep": {"order": 0}, "dpm_solver_pp": {"order": 4},
    "dpm_solver_pp_single": {"order": 4}, "dpm_solver_pp_sde": {"order": 4}, "unipc": {"order": 4}, "sa_solver": {"tau": -1.0},
    "adams": {"order": 0}, "annealed_langevin": {"rate": 2.0, "steps": 0},
}  # fmt: skip


@pytest.mark.parametrize("sampler", WRONG)
def test_wrong_options_are_named(sampler: str) -> None:
    for option, value in WRONG[sampler].items():
        with pytest.raises(ValueError, match=f"{option}={value!r}|degree at least 0"):
            ALL[sampler](VP(), 20, **{option: value})
    if "starts" in {k for case in CASES.values() if case.sampler == sampler for k in case.options}:
        with pytest.raises(ValueError, match="starts='warm'"):
            ALL[sampler](VP(), 20, starts="warm")


def test_more_options_are_named() -> None:
    for sampler, options in (
        ("unipc", {"variant": "bh3"}), ("deis", {"variable": "x"}), ("runge_kutta", {"variable": "x"}),
        ("sa_solver", {"predictor": 0}), ("sa_solver", {"corrector": -1}),
        ("adams", {"view": "score"}), ("adams", {"variable": "r"}),
    ):  # fmt: skip
        ((option, value),) = options.items()
        with pytest.raises(ValueError, match=f"{option}={value!r}"):
            ALL[sampler](VP(), 20, **options)


def number_of_times(case: Case, calls: int, stop: float | None = None) -> int:
    """How many times a grid must have for `calls` calls."""
    seen: list[int] = []

    def spy(p: GaussianProcess, n: int, *, start: float = 1.0, end: float | None = None) -> Grid:
        seen.append(n)
        return uniform(p, n, start=start, end=end)

    case.plan(VP(), calls, spy, stop)
    return seen[0] - (stop is not None)


@pytest.mark.parametrize("key", CASES)
def test_times_given_as_such_are_those_of_the_calls(key: str) -> None:
    case = CASES[key]
    n = number_of_times(case, 20)
    times = uniform(VP(), n, start=0.83)
    if "churn" not in case.options:  # which looks at noisier times
        assert set(times) <= set(case.plan(VP(), 20, times).times)
    assert case.plan(VP(), 20, uniform(VP(), number_of_times(case, 20, 0.04), end=0.05), 0.04).rows[-1].s == 0.04
    with pytest.raises(ValueError, match=rf"grid has {n + 1} times where {n} calls"):
        case.plan(VP(), 20, (*times, 1e-4))
    with pytest.raises(ValueError, match=r"must stay above end=0\.5"):
        case.plan(VP(), 20, times, 0.5)


EPS = [key for key, case in CASES.items() if case.plan(VP(), case.least).view == "eps"]


@pytest.mark.parametrize("name", SILENT)
@pytest.mark.parametrize("key", ["ddim()", "heun()", "deis(degree=2, variable=t)", "unipc(order=2, variant=bh2)", "adams()"])
def test_where_the_prior_holds_no_signal_the_eps_view_starts_with_a_little(key: str, name: str) -> None:
    p = PROCESSES[name]
    assert not math.isfinite(float(p.log_ratio(1.0)))
    plan = CASES[key].plan(p, 20)
    if key not in EPS:
        assert plan.times[0] == 1
    else:
        last = float(p.log_ratio(1 - 1 / p.steps)) if hasattr(p, "steps") else 99.0  # type: ignore[attr-defined]
        assert float(p.log_ratio(plan.times[0])) == pytest.approx(min(7.0, last), abs=1e-9)


@pytest.mark.parametrize("name", ["rectified", "zero_cosine"])
@pytest.mark.parametrize("sampler", sorted({CASES[key].sampler for key in EPS}))
def test_times_without_signal_are_refused_by_the_eps_view(sampler: str, name: str) -> None:
    for case in (CASES[key] for key in EPS if CASES[key].sampler == sampler):
        times = uniform(PROCESSES[name], number_of_times(case, 20))
        with pytest.raises(ValueError, match="alpha > 0"):
            case.plan(PROCESSES[name], 20, times)
