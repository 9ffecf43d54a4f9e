"""The probability flow in its angle: RK45 is as accurate as asked, fixed steps have their order, tableaux their conditions."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from adaptive_cases import ORACLES, error, truth
from sampler_cases import PROCESSES, f64, mixture

from ornstein.noise import Noise
from ornstein.process import EDM, VP, GaussianProcess
from ornstein.samplers import RK45, FixedSteps, run, runge_kutta, sample_adaptive
from ornstein.samplers.flow import Velocity, norm
from ornstein.samplers.singlestep import TABLEAUX

DECADES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


@pytest.mark.parametrize("name", ["vp", "ve", "sub_vp", "edm", "rectified"])
@pytest.mark.parametrize("kind", ORACLES)
def test_rk45_is_as_accurate_as_asked(kind: str, name: str) -> None:
    errors = [error(kind, name, RK45(rtol, end=PROCESSES[name].t_min)) for rtol in DECADES]
    for found, rtol in zip(errors, DECADES, strict=True):
        assert found <= 10 * rtol
    assert all(fine < coarse for coarse, fine in itertools.pairwise(errors))


@pytest.mark.parametrize("kind", ORACLES)
@pytest.mark.parametrize("name", ["zero_linear", "zero_cosine"])
def test_rk45_starts_without_signal(name: str, kind: str) -> None:
    for rtol in (1e-3, 1e-4):
        assert error(kind, name, RK45(rtol, end=PROCESSES[name].t_min)) <= 10 * rtol


@pytest.mark.parametrize("name", ["vp", "edm", "rectified"])
@pytest.mark.parametrize("solver", [RK45(1e-5), FixedSteps(49)])
def test_the_last_denoise_is_that_of_the_state_at_t_min(solver: RK45 | FixedSteps, name: str) -> None:
    o, x, _ = truth("mixture", name)
    t = o.process.t_min
    state = sample_adaptive(o, replace(solver, end=t), start=x, noise=Noise(0))
    clean = sample_adaptive(o, solver, start=x, noise=Noise(0))
    assert torch.equal(clean.calls, state.calls)
    torch.testing.assert_close(clean.x0, o(state.x0, t).x0, rtol=1e-9, atol=1e-9)
    assert float((clean.x0 - state.x0).abs().max()) > 1e-5


@pytest.mark.parametrize("p", [VP(), EDM()], ids=["vp", "edm"])
@pytest.mark.parametrize("solver", [RK45(1e-8), FixedSteps(257)])
def test_the_flow_runs_upwards_too(solver: RK45 | FixedSteps, p: GaussianProcess) -> None:
    o = mixture(p)
    x = o.sample(8, Noise(3)) + p.moments(0.2)[1] * Noise(4).normal((8, 2), dtype=torch.float64)
    ticks: list[float] = []
    solved = solver.solve(Velocity(o), (x / norm(p, 0.2),), 0.2, 0.9, ticks.append)
    exact = o.flow(x, 0.2, 0.9) / norm(p, 0.9)
    torch.testing.assert_close(solved.parts[0], exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(solved.slopes[0], o(exact * norm(p, 0.9), 0.9).v, rtol=0, atol=1e-5)
    assert ticks[-1] == pytest.approx(1)
    assert ticks == sorted(ticks)


def test_a_tolerance_finer_than_the_dtype_is_refused() -> None:
    o = mixture(VP())
    with pytest.raises(ValueError, match=r"rtol=1e-06.*at least 1\.2e-06 for torch\.float32.*give dtype=torch\.float64"):
        sample_adaptive(o, RK45(1e-6), shape=(2, 2), noise=Noise(0))
    for bad in (RK45(1e-16), RK45(0.0), RK45(-1.0), RK45(1e-3, atol=0.0), RK45(math.nan)):
        with pytest.raises(ValueError, match="rtol must be at least"):
            sample_adaptive(o, bad, shape=(2, 2), noise=Noise(0), dtype=torch.float64)
    single = sample_adaptive(o, RK45(1e-5), shape=(9, 2), noise=Noise(0))
    double = sample_adaptive(o, RK45(1e-5), shape=(9, 2), noise=Noise(0), dtype=torch.float64)
    assert (single.x0.dtype, double.x0.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(single.x0.double(), double.x0, rtol=0, atol=1e-3)


# ------------------------------------------------------------------------------------------ fixed steps, and the tableaux


@pytest.mark.parametrize("name", ["vp", "edm"])
@pytest.mark.parametrize(("method", "order"), [("heun", 2), ("kutta3", 3), ("rk4", 4), ("dormand_prince", 5)])
def test_order_of_fixed_steps(method: str, order: int, name: str) -> None:
    cost, end = len(TABLEAUX[method].nodes), PROCESSES[name].t_min
    coarse, fine = (error("mixture", name, FixedSteps(n * cost + 1, method, end=end)) for n in (64, 128))
    assert 0.9 * order < math.log2(coarse / fine) < order + 1


@pytest.mark.parametrize("kind", ORACLES)
@pytest.mark.parametrize("name", ["vp", "edm"])
def test_dormand_prince_is_a_plan_of_order_5(name: str, kind: str) -> None:
    o, x, exact = truth(kind, name)
    coarse, fine = (
        run(o, runge_kutta(o.process, 6 * n, method="dormand_prince", variable="ratio", end=o.process.t_min), x, noise=Noise(0))
        for n in (64, 128)
    )
    assert math.log2(float((coarse - exact).norm() / (fine - exact).norm())) > 4.5


@pytest.mark.parametrize("method", TABLEAUX)
def test_tableaux_meet_the_conditions_of_their_order(method: str) -> None:
    """Row sums, the bushy trees Σ b c^k = 1/(k+1) as far as the order goes and no further, and of the others two."""
    t = TABLEAUX[method]
    a, b, c = torch.zeros(len(t.nodes), len(t.nodes), dtype=torch.float64), f64(*t.weights), f64(*t.nodes)
    for i, row in enumerate(t.stages):
        a[i, : len(row)] = f64(*row)
    assert [len(row) for row in t.stages] == list(range(len(t.nodes)))
    torch.testing.assert_close(a.sum(1), c, rtol=0, atol=1e-14)
    met = [abs(float(b @ c**k) * (k + 1) - 1) < 1e-13 for k in range(6)]
    assert all(met[: t.order])
    if t.order >= 3:
        assert float(b @ a @ c) == pytest.approx(1 / 6, abs=1e-14)
    if t.order >= 4:
        assert [float(b * c @ a @ c), float(b @ a @ c**2), float(b @ a @ a @ c)] == pytest.approx([1 / 8, 1 / 12, 1 / 24])
    if t.order == 5:
        assert [float(b @ a @ c**3), float(b @ a @ a @ c**2)] == pytest.approx([1 / 20, 1 / 60], abs=1e-14)


def test_the_embedded_method_is_of_order_4() -> None:
    t = TABLEAUX["dormand_prince"]
    e, c = f64(*t.error), f64(*t.nodes, 1.0)  # the last slope is that after the step
    found = [float(e @ c**k) for k in range(5)]
    assert found[:4] == pytest.approx([0.0] * 4, abs=1e-15)
    assert abs(found[4]) > 1e-4


def test_fixed_steps_refuse_what_they_cannot_do() -> None:
    o = mixture(VP())
    with pytest.raises(ValueError, match=r"method='rk5' is not one of euler, midpoint, .*dormand_prince"):
        sample_adaptive(o, FixedSteps(method="rk5"), shape=(2, 2), noise=Noise(0))
    for method, least in (("euler", 2), ("rk4", 5), ("dormand_prince", 7)):
        with pytest.raises(ValueError, match=f"calls={least - 1} do not suffice for a step of {method}; ask for {least}"):
            sample_adaptive(o, FixedSteps(least - 1, method), shape=(2, 2), noise=Noise(0))
        assert sample_adaptive(o, FixedSteps(least, method), shape=(2, 2), noise=Noise(0)).calls.tolist() == [least] * 2


@pytest.mark.parametrize("end", [0.0, 1.0, -0.1])
def test_an_end_without_way_or_noise_is_refused(end: float) -> None:
    with pytest.raises(ValueError, match=rf"end={end} must lie in \[0, 1\) and hold some noise"):
        sample_adaptive(mixture(VP()), RK45(end=end), shape=(2, 2), noise=Noise(0))
