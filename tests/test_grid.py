"""Time grids fall strictly from the noise to t_min and are equally spaced in what they say they are."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ornstein.grid import GRIDS, karras, log_snr, make, quadratic, trailing, uniform, vp_time
from ornstein.process import EDM, VE, VP, Cosine, GaussianProcess, Rectified, SubVP, chain

PROCESSES: dict[str, GaussianProcess] = {
    "vp": VP(),
    "cosine": Cosine(),
    "ve": VE(),
    "sub_vp": SubVP(),
    "edm": EDM(),
    "rectified": Rectified(),
    "chain": chain("linear"),
    "zero": chain("cosine", 200, zero_terminal=True),
}


@settings(max_examples=100)
@given(
    name=st.sampled_from(sorted(PROCESSES)), spacing=st.sampled_from(sorted(GRIDS)), n=st.integers(1, 60),
    start=st.sampled_from([1.0, 0.7]),
)  # fmt: skip
def test_grids_fall_from_start_to_the_data(name: str, spacing: str, n: int, start: float) -> None:
    p = PROCESSES[name]
    times = GRIDS[spacing](p, n, start=start)  # type: ignore[call-arg]
    assert len(times) == n
    assert times[0] == pytest.approx(start, abs=1e-15)
    assert all(t > s for t, s in pairwise(times))
    assert times[-1] >= p.t_min - 1e-15
    if n > 1 and spacing not in ("trailing", "vp_time"):  # which stay a step above the data
        assert times[-1] == pytest.approx(p.t_min, abs=1e-15)


@settings(max_examples=100)
@given(
    name=st.sampled_from(sorted(PROCESSES)), spacing=st.sampled_from(sorted(GRIDS)), n=st.integers(2, 60),
    start=st.sampled_from([1.0, 0.7]), end=st.sampled_from([0.01, 0.3, 0.6]),
)  # fmt: skip
def test_grids_fall_from_start_to_the_end_asked_for(name: str, spacing: str, n: int, start: float, end: float) -> None:
    p = PROCESSES[name]
    times = GRIDS[spacing](p, n, start=start, end=end)
    assert len(times) == n
    assert times[0] == pytest.approx(start, abs=1e-15)
    assert times[-1] == pytest.approx(end, abs=1e-15)
    assert all(t > s for t, s in pairwise(times))
    assert GRIDS[spacing](p, 1, start=start, end=end) == pytest.approx((start,), abs=1e-15)


@settings(max_examples=60)
@given(
    name=st.sampled_from(sorted(PROCESSES)), spacing=st.sampled_from(sorted(GRIDS)), n=st.integers(1, 60),
    start=st.sampled_from([1.0, 0.7]), end=st.sampled_from([0.01, 0.3, 0.6]),
)  # fmt: skip
def test_make_leaves_the_end_out(name: str, spacing: str, n: int, start: float, end: float) -> None:
    p = PROCESSES[name]
    times = make(p, n, spacing, start=start, end=end)
    assert len(times) == n
    assert times[0] == pytest.approx(start, abs=1e-15)
    assert times == GRIDS[spacing](p, n + 1, start=start, end=end)[:-1]
    assert times == make(p, n, GRIDS[spacing], start=start, end=end)
    assert times[-1] > end


def gaps(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).diff()


@pytest.mark.parametrize("name", ["vp", "ve", "edm", "chain", "cosine", "sub_vp"])
@pytest.mark.parametrize("n", [2, 9, 40])
def test_spacings_are_even_in_their_variable(name: str, n: int) -> None:
    p = PROCESSES[name]
    variable = {
        uniform: lambda t: t,
        quadratic: math.sqrt,
        log_snr: lambda t: float(p.log_ratio(t)),
        karras: lambda t: math.exp(float(p.log_ratio(t)) / 7),
    }
    for grid, transform in variable.items():
        steps = gaps([transform(t) for t in grid(p, n)])
        torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-7, atol=1e-9)
        steps = gaps([transform(t) for t in grid(p, n, start=0.9, end=0.05)])
        torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-7, atol=1e-9)
    steps = gaps([*trailing(p, n), 0.0])
    torch.testing.assert_close(steps, torch.full_like(steps, -1 / n), rtol=1e-9, atol=1e-12)
    assert trailing(p, n, start=0.9, end=0.05) == uniform(p, n, start=0.9, end=0.05)


@pytest.mark.parametrize("name", ["vp", "ve", "edm", "chain", "cosine", "sub_vp", "rectified"])
@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_vp_time_is_the_clock_of_vp(power: float, name: str) -> None:
    p = PROCESSES[name]

    def root(t: float) -> float:
        """VP's time of this noise level, which may lie beyond 1: log(1 + (sigma/alpha)²) = (19.9 t² + 0.2 t)/2."""
        loss = math.log1p(math.exp(2 * min(float(p.log_ratio(t)), 16.0)))
        return ((math.sqrt(0.01 + 39.8 * loss) - 0.1) / 19.9) ** (1 / power)

    for times in (vp_time(p, 9, power=power), vp_time(p, 9, power=power, start=0.9, end=0.05)):
        steps = gaps([root(t) for t in times])
        torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-5, atol=1e-9)
    # without an end the last call is a step above the data, and never below t_min
    few = vp_time(p, 4, power=power)
    assert root(few[-1]) == pytest.approx(max(root(few[0]) / 4, root(p.t_min)), rel=1e-6)
    if name == "vp":
        assert few == pytest.approx(tuple((1 - k / 4) ** power for k in range(4)), rel=1e-9)
        assert vp_time(p, 900, power=2.0)[-1] == pytest.approx(p.t_min, abs=1e-15)


def test_karras_on_edm_is_the_published_formula() -> None:
    sigmas = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    found = [float(EDM().moments(t)[1]) for t in karras(EDM(), 18)]
    assert found == pytest.approx(sigmas, rel=1e-10)
    # EDM's t is the variable itself
    assert karras(EDM(), 18) == pytest.approx(uniform(EDM(), 18), abs=1e-10)
    other = [(50 ** (1 / 3) + i / 9 * (0.01 ** (1 / 3) - 50 ** (1 / 3))) ** 3 for i in range(10)]
    assert [float(VE().moments(t)[1]) for t in karras(VE(), 10, rho=3.0)] == pytest.approx(other, rel=1e-10)


def test_all_levels_of_a_chain() -> None:
    for p in (PROCESSES["chain"], PROCESSES["zero"]):
        levels = [k / p.steps for k in range(p.steps, 0, -1)]  # type: ignore[attr-defined]
        assert uniform(p, len(levels)) == pytest.approx(levels, abs=1e-14)
        assert trailing(p, len(levels)) == pytest.approx(levels, abs=1e-14)


def test_one_call_is_made_at_the_noise() -> None:
    for p in PROCESSES.values():
        assert {grid(p, 1) for grid in GRIDS.values()} == {(1.0,)}


def test_make_takes_names_functions_and_times() -> None:
    p = VP()
    assert make(p, 5, "karras") == make(p, 5, karras) == karras(p, 5)
    assert make(p, 3, (0.9, 0.5, 0.1)) == (0.9, 0.5, 0.1)


def test_make_takes_start_and_end() -> None:
    p = VP()
    assert make(p, 5, "karras", start=0.8) == karras(p, 5, start=0.8)
    assert make(p, 4, "uniform", start=0.9, end=0.1) == pytest.approx((0.9, 0.7, 0.5, 0.3))
    assert make(p, 4, "trailing", end=0.2) == pytest.approx((1.0, 0.8, 0.6, 0.4))
    # times given as such are those of the calls, whatever the start, and stay above the end
    assert make(p, 3, (0.9, 0.5, 0.1), start=1.0, end=0.05) == (0.9, 0.5, 0.1)
    for end in (0.1, 0.3):
        with pytest.raises(ValueError, match=rf"must stay above end={end}"):
            make(p, 3, (0.9, 0.5, 0.1), end=end)
    with pytest.raises(ValueError, match="grid has 3 times where 2 calls"):
        make(p, 2, (0.9, 0.5, 0.1), end=0.05)
    for spacing in GRIDS:
        with pytest.raises(ValueError, match="must fall strictly"):
            make(p, 4, spacing, start=0.3, end=0.4)


def test_a_grid_without_signal_at_the_start_is_spaced_from_the_last_signal() -> None:
    for name in ("rectified", "zero"):
        p = PROCESSES[name]
        for spacing in (log_snr, karras):
            times = spacing(p, 7, end=0.1)
            assert times[0] == 1
            assert not math.isfinite(float(p.log_ratio(times[0])))
            ratios = [float(p.log_ratio(t)) for t in times[1:]]
            steps = gaps(ratios if spacing is log_snr else [math.exp(ratio / 7) for ratio in ratios])
            torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-7, atol=1e-9)


def test_wrong_grids_are_refused() -> None:
    p = VP()
    with pytest.raises(ValueError, match="grid='cubic' is not one of"):
        make(p, 5, "cubic")
    with pytest.raises(ValueError, match="grid has 2 times where 3 calls"):
        make(p, 3, (0.9, 0.5))
    for bad in ((0.5, 0.9), (0.5, 0.5), (1.2, 0.5), (0.5, -0.1), (math.nan, 0.5)):
        with pytest.raises(ValueError, match="must fall strictly"):
            make(p, 2, bad)
    with pytest.raises(ValueError, match="use fewer calls"):
        trailing(p, 5000)
    for name, grid in GRIDS.items():
        with pytest.raises(ValueError, match="n=0"):
            grid(p, 0)
        with pytest.raises(ValueError, match="n=0"):
            make(p, 0, name)
        with pytest.raises(ValueError, match="n=0"):
            make(p, 0, name, end=0.3)
