"""Samplers that choose their steps: independence of the batch, costs as counted, laws, increments, arguments."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from adaptive_cases import ORACLES, SOLVERS, Counting, Either, truth
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_cases import PROCESSES, f64, lam, mixture, time_at
from torch import Tensor, nn

from ornstein import progress
from ornstein.denoiser import Condition, Denoiser, Prediction
from ornstein.noise import Noise
from ornstein.process import VE, VP, GaussianProcess, Rectified, SubVP
from ornstein.process.gaussian import Time
from ornstein.samplers import (
    ADAPTIVE,
    RK45,
    Adaptive,
    AdaptiveDPMSolver,
    FixedSteps,
    GottaGoFast,
    adaptive,
    dpm_solver,
    run,
    sample_adaptive,
)
from ornstein.samplers.adaptive import _increment
from ornstein.testing import GaussianDenoiser, Oracle

SAMPLES = 9

# -------------------------------------------------------------------------------------------------------- every solver


def test_every_solver_is_tested() -> None:
    assert {type(solver) for solver in SOLVERS.values()} == {*ADAPTIVE.values(), FixedSteps}


@pytest.mark.parametrize("name", ["vp", "edm"])
@pytest.mark.parametrize("key", SOLVERS)
def test_a_sample_costs_and_gives_what_it_does_alone(key: str, name: str) -> None:
    o, given_ = mixture(PROCESSES[name]), {"noise": Noise(0), "dtype": torch.float64}
    whole = sample_adaptive(o, SOLVERS[key], shape=(SAMPLES, 2), **given_)
    assert key == "fixed_steps" or len(set(whole.calls.tolist())) > 1
    for batch_size in (1, 7):
        parts = sample_adaptive(o, SOLVERS[key], shape=(SAMPLES, 2), batch_size=batch_size, **given_)
        assert torch.equal(parts.calls, whole.calls)
        torch.testing.assert_close(parts.x0, whole.x0, rtol=1e-12, atol=1e-12)
    assert whole.x0.unique(dim=0).shape == (SAMPLES, 2)


@settings(max_examples=10)
@given(key=st.sampled_from(sorted(SOLVERS)), cut=st.integers(1, 9), first=st.integers(0, 10**6), batch=st.integers(1, 12))
def test_any_chunk_is_a_slice_of_the_whole(key: str, cut: int, first: int, batch: int) -> None:
    o, given_ = mixture(VP()), {"noise": Noise(0), "dtype": torch.float64}
    whole = sample_adaptive(o, SOLVERS[key], shape=(10, 2), first=first, **given_)
    tail = sample_adaptive(o, SOLVERS[key], shape=(10 - cut, 2), first=first + cut, batch_size=batch, **given_)
    assert torch.equal(tail.calls, whole.calls[cut:])
    torch.testing.assert_close(tail.x0, whole.x0[cut:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("key", SOLVERS)
def test_calls_are_the_rows_that_the_denoiser_saw(key: str) -> None:
    o = Counting(mixture(VP()))
    found = sample_adaptive(o, SOLVERS[key], shape=(SAMPLES, 2), noise=Noise(0), dtype=torch.float64)
    assert o.rows == int(found.calls.sum())
    for i in (0, SAMPLES - 1):
        one = Counting(o.denoiser)
        sample_adaptive(one, SOLVERS[key], shape=(1, 2), noise=Noise(0), dtype=torch.float64, first=i)
        assert one.rows == int(found.calls[i])


@pytest.mark.parametrize("solver", [GottaGoFast(first_step=1.0), *(AdaptiveDPMSolver(order, first_step=9.0) for order in (2, 3))])
def test_a_retry_does_not_call_again_where_it_stands(solver: Adaptive) -> None:
    """The first attempts go the whole way, and are rejected: each costs its later stages only."""
    o, stages = Counting(mixture(VP())), solver.order - 1 if isinstance(solver, AdaptiveDPMSolver) else 1
    sample_adaptive(o, solver, shape=(1, 2), noise=Noise(0), dtype=torch.float64)
    assert o.times[0] == pytest.approx(1)
    assert max(o.times[1:]) < 1 - 1e-9
    assert o.times[stages] < o.times[2 * stages]  # a second attempt, and a shorter one


@pytest.mark.parametrize("key", SOLVERS)
def test_conditions_stay_with_their_samples(key: str) -> None:
    p = VP()
    narrow, wide = mixture(p), GaussianDenoiser(f64(0.5, -2.0), f64(4.0, 1.0, 1.0, 1.0).reshape(2, 2), p)
    which = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0, 1])
    given_ = {"shape": (12, 2), "noise": Noise(0), "dtype": torch.float64}
    alone = [sample_adaptive(o, SOLVERS[key], **given_) for o in (narrow, wide)]
    for batch_size in (None, 5):
        found = sample_adaptive(Either((narrow, wide)), SOLVERS[key], cond={"which": which}, batch_size=batch_size, **given_)
        for one, mine in zip(alone, (which == 0, which == 1), strict=True):
            assert torch.equal(found.calls[mine], one.calls[mine])
            torch.testing.assert_close(found.x0[mine], one.x0[mine], rtol=1e-12, atol=1e-12)
    assert float((alone[0].x0 - alone[1].x0).norm(dim=1).min()) > 1e-3


@pytest.mark.parametrize("key", SOLVERS)
def test_images_are_samples_of_any_shape(key: str) -> None:
    flat = sample_adaptive(mixture_of_four(), SOLVERS[key], shape=(5, 4), noise=Noise(0), dtype=torch.float64)
    image = sample_adaptive(mixture_of_four(), SOLVERS[key], shape=(5, 1, 2, 2), noise=Noise(0), dtype=torch.float64)
    assert torch.equal(image.calls, flat.calls)
    torch.testing.assert_close(image.x0.flatten(1), flat.x0, rtol=1e-12, atol=1e-12)


def mixture_of_four() -> Oracle:
    return GaussianDenoiser(f64(1.0, 0.0, -1.0, 0.5), torch.diag(f64(1.0, 0.3, 0.1, 2.0)), VP())


@pytest.mark.parametrize("key", SOLVERS)
def test_a_denoiser_that_fails_for_one_sample_is_an_error_that_names_it(key: str) -> None:
    seen = itertools.count()

    @dataclass(frozen=True)
    class Failing(Either):
        def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
            assert cond is not None
            assert next(seen) < 3000, "no end"
            made = self.both[0](x_t, t)
            spoilt = (cond["which"][:, None] == 1) & (made.sigma.reshape(-1, 1) < 0.5)
            return made.with_x0(made.x0.masked_fill(spoilt, math.nan))

    o, which = mixture(VP()), torch.arange(6) == 4
    given_ = {"shape": (6, 2), "noise": Noise(0), "cond": {"which": which}}
    if key == "fixed_steps":  # which asks nothing of what it meets
        found = sample_adaptive(Failing((o, o)), SOLVERS[key], **given_).x0
        assert torch.equal(found.isnan().any(1), which)
    else:
        with pytest.raises(FloatingPointError, match="steps of sample 4 shrank"):
            sample_adaptive(Failing((o, o)), SOLVERS[key], **given_)


# ------------------------------------------------------------------------------------------------------- Gotta Go Fast

NARROW = GaussianDenoiser(f64(0.3, -0.2), f64(0.25, 0.1, 0.1, 0.2).reshape(2, 2), VP())


@cache
def standard(p: GaussianProcess, solver: GottaGoFast, n: int = 3000) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of samples along the axes of the data, as they should be 0 and 1; from the exact x_1."""
    o = GaussianDenoiser(NARROW.mean, NARROW.covariance, p)
    x = p.corrupt(o.sample(n, Noise(1)), 1.0, Noise(2).normal((n, 2), dtype=torch.float64))
    z = (sample_adaptive(o, solver, start=x, noise=Noise(0)).x0 - o.mean) @ o.directions / o.variances.sqrt()
    return z.mean(0), z.std(0)


@pytest.mark.parametrize("p", [VP(), VE(0.02, 10.0), SubVP()], ids=["vp", "ve", "sub_vp"])
def test_gotta_go_fast_has_the_law_of_the_data(p: GaussianProcess) -> None:
    """To 4 standard errors and 2 per cent: mean 1/sqrt(n), standard deviation 1/sqrt(2 n)."""
    mean, std = standard(p, GottaGoFast())
    assert float(mean.abs().max()) < 4 / 3000**0.5 + 0.02
    assert float((std - 1).abs().max()) < 4 / 6000**0.5 + 0.02


@pytest.mark.parametrize("p", [VP(), VE(0.02, 10.0)], ids=["vp", "ve"])
def test_the_law_comes_with_the_tolerance_and_with_the_bridge(p: GaussianProcess) -> None:
    off = [float((standard(p, GottaGoFast(rtol, 0.15 * rtol))[1] - 1).abs().max()) for rtol in (2.0, 1.0, 0.2)]
    assert off[0] > 2 * off[1] > 4 * off[2]
    assert float((standard(p, GottaGoFast(bridge=False))[1] - 1).abs().max()) > 0.1


@pytest.mark.parametrize("p", [Rectified(), PROCESSES["zero_linear"]], ids=["rectified", "zero_linear"])
def test_gotta_go_fast_does_not_start_where_the_drift_is_infinite(p: GaussianProcess) -> None:
    with pytest.raises(ValueError, match=rf"{type(p).__name__} has no finite f and g at t = 1.* take RK45"):
        sample_adaptive(mixture(p), GottaGoFast(), shape=(2, 2), noise=Noise(0))


@pytest.mark.parametrize("p", [VP(), VE(), SubVP()], ids=["vp", "ve", "sub_vp"])
def test_steps_are_those_of_the_formula(p: GaussianProcess) -> None:
    """Where all are accepted, a step is five times the last."""
    o, end = mixture(p), p.t_min
    x = exact = p.prior((6, 2), Noise(0), dtype=torch.float64)
    found, calls = GottaGoFast(rtol=0.0, atol=1e9, first_step=0.03).run(o, x, noise=Noise(7), first=20)
    for k, (t, s) in enumerate(itertools.pairwise((1.0, 0.97, 0.82, 0.07, end))):
        dw = math.sqrt(t - s) * Noise(7).normal((6, 2), stream="step", step=k, first=20, dtype=torch.float64)
        ahead, again = exact, exact
        for time in (t, s):
            slope = p.drift(time) * again - p.diffusion(time) ** 2 * o(again, time).score
            ahead, again = again, exact - (t - s) * slope + p.diffusion(time) * dw
        exact = (ahead + again) / 2
    torch.testing.assert_close(found, o(exact, end).x0, rtol=1e-9, atol=1e-9)
    assert calls.tolist() == [2 * 4 + 1] * 6


stretches = st.lists(st.lists(st.floats(0.01, 1), min_size=0, max_size=4), min_size=1, max_size=4)


@given(
    given_=stretches, steps=st.lists(st.floats(1e-3, 1.5), min_size=1, max_size=12), shape=st.sampled_from([(), (2,), (2, 1, 3)])
)
def test_increments_use_up_what_was_drawn(given_: list[list[float]], steps: list[float], shape: tuple[int, ...]) -> None:
    m, depth = len(given_), max(len(row) for row in given_)
    lengths = torch.tensor([row + [0.0] * (depth - len(row)) for row in given_], dtype=torch.float64).reshape(m, depth)
    increments = Noise(1).normal((m, depth, *shape), dtype=torch.float64)
    for k, size in enumerate(steps):
        asked = torch.full((m,), size, dtype=torch.float64) / torch.arange(1, m + 1)
        z = Noise(2).normal((m, *shape), step=k, dtype=torch.float64)
        h, dw, after, rest = _increment(asked, z, lengths, increments)
        assert after.shape == rest.shape[:2]
        for i in range(m):
            drawn = [(float(long), w) for long, w in zip(lengths[i], increments[i], strict=True) if long > 0]
            left = [(float(long), w) for long, w in zip(after[i], rest[i], strict=True) if long > 0]
            if not drawn:  # a new piece of path
                assert left == []
                assert float(h[i]) == float(asked[i])
                torch.testing.assert_close(dw[i], h[i].sqrt() * z[i], rtol=1e-12, atol=1e-12)
                continue
            (nearest, w), later = drawn[0], drawn[1:]
            assert float(h[i]) == min(float(asked[i]), nearest)
            if asked[i] >= nearest:  # the stretch is used up, and all that is left is later
                torch.testing.assert_close(dw[i], w, rtol=1e-12, atol=1e-12)
            else:
                share = float(h[i]) / nearest
                exact = share * w + (float(h[i]) * (1 - share)) ** 0.5 * z[i]
                torch.testing.assert_close(dw[i], exact, rtol=1e-12, atol=1e-12)
                later = [(nearest - float(h[i]), w - dw[i]), *later]
            assert len(left) == len(later)
            for (length, one), (expected, other) in zip(left, later, strict=True):
                assert length == pytest.approx(expected, rel=1e-12)
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        lengths, increments = after, rest


def test_parts_of_an_increment_are_independent_with_their_own_variance() -> None:
    n, whole = 40_000, 0.8
    w = (whole**0.5 * Noise(1).normal((n, 1), dtype=torch.float64)).unsqueeze(1)
    lengths, parts = torch.full((n, 1), whole, dtype=torch.float64), []
    for k, h in enumerate((0.3, 0.1, 9.0)):
        step, dw, lengths, w = _increment(torch.full((n,), h).double(), Noise(2).normal((n, 1), step=k).double(), lengths, w)
        parts.append(dw[:, 0] / step.sqrt())
    torch.testing.assert_close(torch.stack(parts).cov(), torch.eye(3, dtype=torch.float64), rtol=0, atol=0.03)
    assert not bool(lengths.any())


# ------------------------------------------------------------------------------------------------- adaptive DPM-Solver


@pytest.mark.parametrize("name", ["vp", "ve", "edm"])
@pytest.mark.parametrize("order", [2, 3])
def test_adaptive_dpm_solver_is_as_accurate_as_asked(order: int, name: str) -> None:
    for kind in ORACLES:
        o, x, state = truth(kind, name)
        exact, errors = o(state, o.process.t_min).x0, []
        for rtol in (1e-1, 1e-2, 1e-3, 1e-4):
            found = sample_adaptive(o, AdaptiveDPMSolver(order, rtol, rtol), start=x, noise=Noise(0)).x0
            errors.append(float((found - exact).square().mean().sqrt()))
            assert errors[-1] < 20 * rtol
        assert all(fine < coarse for coarse, fine in itertools.pairwise(errors))
        assert errors[-1] < errors[0] / 100


@pytest.mark.parametrize("order", [2, 3])
def test_steps_are_those_of_the_plan_of_the_order(order: int) -> None:
    """Where all are accepted, a step is five times the last in log(alpha/sigma)."""
    p, places = VE(), [lam(VE(), 1.0)]
    for h in (0.2, 1.0, 5.0):
        places.append(places[-1] + h)
    times, x = (1.0, *(time_at(p, place) for place in places[1:])), p.prior((6, 2), Noise(0), dtype=torch.float64)
    plan = dpm_solver(p, 4 * order + 1, (*times, p.t_min), order=order, fast=False)
    found, calls = AdaptiveDPMSolver(order, rtol=0.0, atol=1e9, first_step=0.2).run(mixture(p), x, noise=Noise(0))
    torch.testing.assert_close(found, run(mixture(p), plan, x, noise=Noise(0)), rtol=1e-9, atol=1e-9)
    assert calls.tolist() == [plan.calls] * 6


def test_arguments_of_solvers_are_checked() -> None:
    for order in (1, 4):
        with pytest.raises(ValueError, match=f"order={order} is not one of 2, 3"):
            sample_adaptive(mixture(VP()), AdaptiveDPMSolver(order), shape=(2, 2), noise=Noise(0))
    for solver in (AdaptiveDPMSolver, GottaGoFast):
        for bad in ({"rtol": -0.1}, {"atol": 0.0}, {"rtol": math.nan}):
            with pytest.raises(ValueError, match="rtol must not be negative, and atol must be above 0"):
                sample_adaptive(mixture(VP()), solver(**bad), shape=(2, 2), noise=Noise(0))
        assert sample_adaptive(mixture(VP()), solver(rtol=0.0, atol=0.1), shape=(2, 2), noise=Noise(0)).x0.shape == (2, 2)


# ----------------------------------------------------------------------------------------------------- sample_adaptive


def test_wrong_arguments_are_refused() -> None:
    o, solver, noise = mixture(VP()), FixedSteps(5), Noise(0)
    with pytest.raises(ValueError, match="give one of shape="):
        sample_adaptive(o, solver, noise=noise)
    with pytest.raises(ValueError, match="give one of shape="):
        sample_adaptive(o, solver, shape=(2, 2), start=torch.zeros(2, 2), noise=noise)
    with pytest.raises(ValueError, match="batch_size=0"):
        sample_adaptive(o, solver, shape=(2, 2), noise=noise, batch_size=0)
    with pytest.raises(ValueError, match=r"cond\['label'\] has 3 rows for 2 samples"):
        sample_adaptive(o, solver, shape=(2, 2), noise=noise, cond={"label": torch.zeros(3)})


@pytest.mark.parametrize("key", SOLVERS)
def test_draws_have_the_shape_and_dtype_asked_for(key: str) -> None:
    o, solver = mixture(VP()), SOLVERS[key]
    start = VP().prior((3, 2), Noise(0), dtype=torch.float64)
    kept = start.clone()
    for found, dtype in (
        (sample_adaptive(o, solver, shape=(3, 2), noise=Noise(0)), torch.float32),
        (sample_adaptive(o, solver, shape=(3, 2), noise=Noise(0), dtype=torch.float64), torch.float64),
        (sample_adaptive(o, solver, start=start, noise=Noise(0)), torch.float64),
    ):
        assert (found.x0.shape, found.x0.dtype) == ((3, 2), dtype)
        assert (found.calls.shape, found.calls.dtype) == ((3,), torch.long)
    assert torch.equal(start, kept)
    assert torch.equal(found.x0, sample_adaptive(o, solver, shape=(3, 2), noise=Noise(0), dtype=torch.float64).x0)
    none = sample_adaptive(o, solver, shape=(0, 2), noise=Noise(0))
    assert (none.x0.shape, none.calls.shape, none.calls.dtype) == ((0, 2), (0,), torch.long)
    assert none.x0.dtype == torch.float32


class Net(nn.Module):
    """Says x0 = 0, and notes the modes in which it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.modes = nn.Dropout(0.5), set()

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        self.modes.add((self.training, self.dropout.training, torch.is_grad_enabled()))
        if cond is not None:
            raise RuntimeError("net")
        return self.dropout(torch.zeros_like(x))


@pytest.mark.parametrize("key", SOLVERS)
def test_networks_are_evaluated_without_gradients_and_put_back(key: str) -> None:
    denoiser = Denoiser(net := Net(), VP(), "x0").train()
    sample_adaptive(denoiser, SOLVERS[key], shape=(2, 2), noise=Noise(0))
    with pytest.raises(RuntimeError, match="net"):
        sample_adaptive(denoiser, SOLVERS[key], shape=(2, 2), noise=Noise(0), cond={"label": torch.zeros(2)})
    assert net.modes == {(False, False, False)}
    assert (denoiser.training, net.dropout.training, torch.is_grad_enabled()) == (True, True, True)


@pytest.mark.parametrize("key", SOLVERS)
def test_progress_rises_to_one_over_all_chunks(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []

    @contextmanager
    def gauge(description: str, *, enabled: bool = True) -> Iterator[Callable[[float], None]]:
        assert (description, enabled) == (SOLVERS[key].name, True)
        yield told.append

    monkeypatch.setattr(adaptive, "gauge", gauge)
    sample_adaptive(mixture(VP()), SOLVERS[key], shape=(7, 2), noise=Noise(0), batch_size=3, progress=True)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)
    for whole in (1 / 3, 2 / 3):
        assert any(abs(part - whole) < 1e-9 for part in told)
    assert 0 <= told[0] < 1 / 3


def test_a_bar_is_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    drawn = []
    for terminal, wanted in ((False, True), (True, False), (True, True)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        sample_adaptive(mixture(VP()), RK45(), shape=(2, 2), noise=Noise(0), progress=wanted)
        out, err = capsys.readouterr()
        drawn.append((out, err != ""))
    assert drawn == [("", False), ("", False), ("", True)]
