"""Time grids fall strictly from the noise to t_min and are equally spaced in what they say they are."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ornstein.grid import GRIDS, karras, log_snr, make, quadratic, trailing, uniform
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
    if n > 1 and spacing != "trailing":
        assert times[-1] == pytest.approx(p.t_min, abs=1e-15)


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
    steps = gaps([*trailing(p, n), 0.0])
    torch.testing.assert_close(steps, torch.full_like(steps, -1 / n), rtol=1e-9, atol=1e-12)


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
    for grid in GRIDS.values():
        with pytest.raises(ValueError, match="n=0"):
            grid(p, 0)
