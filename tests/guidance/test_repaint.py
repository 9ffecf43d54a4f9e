"""RePaint: the order of its passes, algorithm 1 written out, and what time travel gains."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given as cases
from hypothesis import strategies as st
from torch import Tensor

from ornstein.files import InputError
from ornstein.guidance.given import Given
from ornstein.guidance.observed import Replacement
from ornstein.guidance.repaint import _order, repaint, repaint_calls, travelled
from ornstein.noise import Noise
from ornstein.operator import Mask, Matrix, Nonlinear, Operator
from ornstein.process import EDM, VP, GaussianProcess, Rectified
from ornstein.samplers import ancestral, annealed_langevin, ddim, dpm_solver_multistep, dpm_solver_pp, heun, pndm, sample
from ornstein.testing import GaussianDenoiser, MixtureDenoiser

F64 = torch.float64
PROCESSES: dict[str, GaussianProcess] = {"vp": VP(), "edm": EDM(), "flow": Rectified()}
SHOWN = torch.tensor([True, False, True, False])


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def normal(*shape: int, stream: str = "x") -> Tensor:
    return Noise(1).normal(shape, stream=stream, dtype=F64)


def mixture(process: GaussianProcess, d: int = 4) -> MixtureDenoiser:
    return MixtureDenoiser(normal(3, d, stream="means"), f64(0.2, 0.4, 0.3), f64(0.5, 0.2, 0.3), process)


def test_the_order_of_the_passes() -> None:
    assert _order(7, 1, 3) == [0, 1, 2, 3, 4, 5, 6]
    # turning points after 3 and after 6 rows: the last row runs once
    assert _order(7, 2, 3) == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5, 6]
    assert _order(4, 3, 1) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    # the first turning point needs a whole jump above it
    assert _order(6, 2, 2) == [0, 1, 2, 1, 2, 3, 4, 3, 4, 5]


@cases(rows=st.integers(2, 60), resamplings=st.integers(1, 6), jump=st.integers(1, 12))
def test_calls_are_those_stated(rows: int, resamplings: int, jump: int) -> None:
    if jump >= rows:
        return
    order = _order(rows, resamplings, jump)
    assert len(order) == rows + (resamplings - 1) * jump * (math.ceil(rows / jump) - 1)
    assert {b - a for a, b in itertools.pairwise(order)} <= {1, 1 - jump}
    assert max(order.count(k) for k in range(rows)) <= resamplings
    plan = ddim(VP(), rows)
    assert repaint_calls(plan, resamplings, jump) == travelled(plan, resamplings, jump).calls == len(order)


def test_the_default_of_a_hundred_rows_takes_910_calls() -> None:
    assert repaint_calls(ancestral(VP(), 100)) == 910
    # the paper's own setting, 250 steps
    assert repaint_calls(ancestral(VP(), 250)) == 2410


@pytest.mark.parametrize("name", PROCESSES)
def test_one_resampling_is_replacement(name: str) -> None:
    o = mixture(PROCESSES[name])
    plan, given = ancestral(o.process, 12), Given(o.sample(1, Noise(2)), mask=SHOWN)
    x = o.process.prior((5, 4), Noise(3), dtype=F64)
    replaced = sample(o, plan, start=x, noise=Noise(4), after=Replacement(given, o.process))
    assert torch.equal(repaint(o, plan, x, given, noise=Noise(4), resamplings=1), replaced)
    assert not torch.equal(repaint(o, plan, x, given, noise=Noise(4), resamplings=2), replaced)


@pytest.mark.parametrize("name", PROCESSES)
def test_it_is_algorithm_1_written_out(name: str) -> None:
    """Jump length 1: every level three times, each from the state that was noised again."""
    process, n = PROCESSES[name], 6
    o, noise = mixture(process), Noise(4)
    y = o.sample(1, Noise(2))
    plan = ancestral(process, n)
    x = process.prior((5, 4), Noise(3), dtype=F64)
    drawn = repaint(o, plan, x, Given(y, mask=SHOWN), noise=noise, resamplings=3, jump=1)
    pass_ = 0
    for k, t in enumerate(plan.times):
        s = plan.times[k + 1] if k + 1 < n else None
        for u in range(3):
            q = process.posterior(t, s)
            z = noise.normal(x.shape, stream="step", step=pass_, dtype=F64)
            unknown = q.on_x_t * x + q.on_x0 * o(x, t).x0 + q.variance.sqrt() * (z if s is not None else 0)
            alpha, sigma = process.moments(s)
            known = alpha * y + sigma * noise.normal(x.shape, stream="given", step=pass_, dtype=F64)
            lower = torch.where(SHOWN, known, unknown)
            if u == 2 or s is None:
                x = lower
                pass_ += 1
                break
            # x_t ~ q(x_t | x_s), from the moments of the process alone
            ratio = process.moments(t)[0] / alpha
            std = (process.moments(t)[1] ** 2 - (ratio * sigma) ** 2).sqrt()
            x = ratio * lower + std * noise.normal(x.shape, stream="travel", step=pass_, dtype=F64)
            pass_ += 1
    assert pass_ == repaint_calls(plan, 3, 1)
    torch.testing.assert_close(drawn, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("operator", [Mask(SHOWN), Matrix(normal(2, 4, stream="a"))])
@pytest.mark.parametrize("name", PROCESSES)
def test_a_measurement_without_noise_is_kept(name: str, operator: Operator) -> None:
    o = mixture(PROCESSES[name])
    y = operator(o.sample(6, Noise(2)).float())
    drawn = repaint(o, ddim(o.process, 12), o.process.prior((6, 4), Noise(3)), Given(y, operator), noise=Noise(4), jump=4)
    assert drawn.dtype == torch.float32
    assert float((operator(drawn) - y).abs().max()) < 1e-6


def test_time_travel_brings_the_law_closer() -> None:
    o = GaussianDenoiser(f64(0.0, 0.0), f64(1.0, 0.9, 0.9, 1.0).reshape(2, 2), VP())
    given, n = Given(f64(1.5, 0.0)[None], mask=torch.tensor([True, False])), 600
    exact = o.given(given.values, given.measured)
    x, plan = VP().prior((n, 2), Noise(3), dtype=F64), ancestral(VP(), 18, "log_snr")
    off = {}
    for resamplings in (1, 6):
        drawn = repaint(o, plan, x, given, noise=Noise(4), resamplings=resamplings, jump=3)[:, 1]
        off[resamplings] = abs(float(drawn.mean() - exact.mean[1])), abs(float(drawn.std() - exact.covariance[1, 1].sqrt()))
    # the truth: 1.35 ± 0.436, known here to 0.02
    assert off[1][0] > 0.1
    assert off[6][0] < 0.4 * off[1][0]
    assert off[6][1] < 0.08


@pytest.mark.parametrize("noise_std", [0.0, 0.4])
def test_every_sample_is_the_same_alone(noise_std: float) -> None:
    o = mixture(VP())
    operator, plan = Matrix(normal(2, 4, stream="a")), ancestral(VP(), 9)
    y = operator(o.sample(5, Noise(2)))
    x = VP().prior((5, 4), Noise(3), dtype=F64)
    together = repaint(o, plan, x, Given(y, operator, noise_std=noise_std), noise=Noise(4), resamplings=3, jump=2)
    for i in range(5):
        given = Given(y[i : i + 1], operator, noise_std=noise_std)
        alone = repaint(o, plan, x[i : i + 1], given, noise=Noise(4), first=i, resamplings=3, jump=2)
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-9, atol=1e-9)


def test_plans_it_cannot_go_back_on_are_refused() -> None:
    for plan in (heun(VP(), 9), pndm(VP(), 15), dpm_solver_pp(VP(), 9), annealed_langevin(VP(), 21)):
        with pytest.raises(InputError, match=r"row \d+ of .* does not: take ddim, ancestral"):
            travelled(plan, 2, 1)
    assert travelled(dpm_solver_multistep(VP(), 9, order=1), 2, 3).calls == 9 + 2 * 3
    with pytest.raises(InputError, match="jump=10 needs a plan of more than 10 rows, this has 10"):
        travelled(ddim(VP(), 10))
    for options in ({"resamplings": 0}, {"jump": 0}):
        with pytest.raises(InputError, match="must be at least 1"):
            travelled(ddim(VP(), 20), **options)
    o = mixture(VP())
    nonlinear = Given(torch.zeros(1, 4), Nonlinear((4,), torch.sin))
    with pytest.raises(InputError, match="linear"):
        repaint(o, ddim(VP(), 20), VP().prior((1, 4), Noise(0)), nonlinear, noise=Noise(0))
