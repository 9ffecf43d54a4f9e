"""The loop of adaptive solvers: rules for steps, sample by sample; counts, order, ticks and failures."""

from __future__ import annotations

import importlib
import itertools
import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sampler_cases import f64
from torch import Tensor

from ornstein.samplers.march import Control, Marched, Tensors, Tried, march, root_mean_square

CONTROL = Control(0.5)
sizes = st.one_of(st.floats(0, 2), st.floats(0, 1e12, allow_subnormal=False))


@dataclass
class Linear:
    """dx/dt = rate·x by Heun's step, whose distance from Euler's is the error; x (n,). Keeps what it was asked.

    Memory is (place in the batch, accepted so far, rejected so far).
    """

    rates: Tensor
    tolerance: float = 1e-3
    seen: list[tuple[list[int], Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, rows: Tensor, state: Tensors, memory: Tensors, at: Tensor, h: Tensor) -> Tried:
        self.seen.append((rows.tolist(), at.clone(), h.clone()))
        assert len(rows) > 0
        assert len(self.seen) < 5000, "no end"
        (x,), (place, good, bad), rate = state, memory, self.rates[rows]
        assert torch.equal(place, rows)
        euler = x + h * rate * x
        heun = x + h * rate * (x + euler) / 2
        error = (heun - euler).abs() / (self.tolerance * x.abs())
        return Tried((heun,), error, h, torch.ones_like(rows), (place, good + 1, bad), (place, good, bad + 1))

    def run(self, start: float, end: float, step: float = 0.3, control: Control = CONTROL, **kwargs: object) -> Marched:
        n = len(self.rates)
        zero, rows = torch.zeros(n, dtype=torch.long), torch.arange(n)
        steps = torch.full((n,), step, dtype=torch.float64)
        x = torch.ones(n, dtype=torch.float64)
        return march(self, (x,), (rows, zero, zero), start, end, steps, control, **kwargs)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- control


@given(
    error=sizes, exponent=st.floats(0.1, 1), safety=st.floats(0.5, 1), smallest=st.floats(0.05, 0.9), largest=st.floats(1.5, 9)
)
def test_the_factor_is_the_formula_within_its_bounds(
    error: float, exponent: float, safety: float, smallest: float, largest: float
) -> None:
    control = Control(exponent, safety, smallest, largest)
    found = float(control.factor(f64(error)))
    plain = math.inf if error == 0 else safety * error**-exponent
    highest = largest if error <= 1 else 1.0
    assert found == pytest.approx(min(max(plain, smallest), highest), rel=1e-12)


def test_steps_grow_after_small_errors_and_never_on_rejection() -> None:
    generous = Control(0.5, safety=10.0, smallest=0.2, largest=5.0)  # whose formula grows beyond an error of 1
    assert generous.factor(f64(1e-9, 1.0, 1.0 + 1e-9, 4.0, 1e9)).tolist() == pytest.approx([5.0, 5.0, 1.0, 1.0, 0.2])
    assert Control(0.5, safety=0.1, smallest=0.4).factor(f64(1.0, 0.01)).tolist() == pytest.approx([0.4, 1.0])
    assert CONTROL.factor(f64(0.0, 0.25, 1.0, 4.0)).tolist() == pytest.approx([5.0, 1.8, 0.9, 0.45])


def test_an_error_that_is_no_number_shrinks_the_step_most() -> None:
    assert CONTROL.factor(f64(math.nan, math.inf, 1e300)).tolist() == [0.2, 0.2, 0.2]


@pytest.mark.parametrize("longest", [math.inf, 0.05])
def test_no_step_is_longer_than_the_longest(longest: float) -> None:
    attempt = Linear(f64(1e-3, 1e-2))
    attempt.run(0.0, 1.0, step=1.0, control=Control(0.5, longest=longest))
    found = max(float(h.max()) for _, _, h in attempt.seen)
    assert found == pytest.approx(min(longest, 1.0))


# ---------------------------------------------------------------------------------------------------------- an equation


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.5), (1.5, 0.0), (-2.0, -0.7)])
def test_a_linear_equation_is_solved_in_either_direction(start: float, end: float) -> None:
    rates = f64(-3.0, 0.1, 2.0, 0.0, 5.0)
    errors = []
    for tolerance in (1e-3, 1e-5):
        attempt = Linear(rates, tolerance)
        found = attempt.run(start, end).state[0]
        errors.append(float((found / torch.exp(rates * (end - start)) - 1).abs().max()))
        for _, at, h in attempt.seen:  # a step has the sign of the way, and does not leave it
            assert bool(((h > 0) == (end > start)).all())
            low, high = min(start, end) - 1e-12, max(start, end) + 1e-12
            assert bool(((at + h >= low) & (at + h <= high)).all())
    assert errors[0] < 0.1
    assert errors[1] < 0.02 * errors[0]


RATES = f64(6.0, 0.01, -2.0, 0.01, 12.0, 1.0, -7.0)


def test_arrived_samples_leave_the_batch_and_cost_nothing() -> None:
    attempt = Linear(RATES)
    done = attempt.run(0.0, 1.0)
    alone = [Linear(rate[None]) for rate in RATES]
    cost = [len(one.seen) for one in alone if one.run(0.0, 1.0)]
    assert done.calls.tolist() == cost
    assert len(set(cost)) > 3
    seen = [len(rows) for rows, _, _ in attempt.seen]
    assert sum(seen) == sum(cost)
    assert len(seen) == max(cost)
    assert all(sum(i in rows for rows, _, _ in attempt.seen) == cost[i] for i in range(len(RATES)))
    assert seen[-1] < len(RATES) == seen[0]


def test_results_are_those_of_each_sample_alone_in_the_given_order() -> None:
    together = Linear(RATES).run(0.0, 1.0)
    alone = [Linear(rate[None]).run(0.0, 1.0) for rate in RATES]
    for field_, dtype in (("calls", torch.long), ("accepted", torch.long), ("rejected", torch.long)):
        found = getattr(together, field_)
        assert found.dtype == dtype
        assert torch.equal(found, torch.cat([getattr(one, field_) for one in alone])), field_
    assert torch.equal(together.state[0], torch.cat([one.state[0] for one in alone]))


def test_counts_are_those_of_the_attempts() -> None:
    attempt = Linear(RATES)
    done = attempt.run(0.0, 1.0, step=1.0)
    for i in range(len(RATES)):
        positions = [float(at[rows.index(i)]) for rows, at, _ in attempt.seen if i in rows]
        # a retry is made from the position of the step that was rejected
        rejected = sum(a == b for a, b in itertools.pairwise(positions))
        assert (int(done.rejected[i]), int(done.accepted[i])) == (rejected, len(positions) - rejected)
    assert int(done.rejected.max()) > 1
    assert int(done.rejected.min()) == 0


def test_what_a_solver_keeps_follows_acceptance_and_its_sample() -> None:
    kept: dict[int, tuple[int, int]] = {}

    class Watched(Linear):
        def __call__(self, rows: Tensor, state: Tensors, memory: Tensors, at: Tensor, h: Tensor) -> Tried:
            tried = super().__call__(rows, state, memory, at, h)
            for i, row in enumerate(rows.tolist()):
                chosen = tried.accepted if tried.error[i] <= 1 else tried.rejected
                kept[row] = int(chosen[1][i]), int(chosen[2][i])
            return tried

    done = Watched(RATES).run(0.0, 1.0, step=1.0)
    assert [kept[i] for i in range(len(RATES))] == list(zip(done.accepted.tolist(), done.rejected.tolist(), strict=True))


def test_no_samples_need_no_attempt() -> None:
    attempt = Linear(f64())
    done = attempt.run(0.0, 1.0)
    assert attempt.seen == []
    assert done.state[0].shape == done.calls.shape == done.accepted.shape == done.rejected.shape == (0,)


# ------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("broken", [0, 2, 4])
def test_a_sample_that_is_no_number_is_named(broken: int) -> None:
    """Also where others have left and places have moved."""
    rates = f64(0.01, 5.0, 0.01, 0.01, 6.0)

    class Broken(Linear):
        def __call__(self, rows: Tensor, state: Tensors, memory: Tensors, at: Tensor, h: Tensor) -> Tried:
            tried = super().__call__(rows, state, memory, at, h)
            tried.error[(rows == broken) & (at + h > 0.9)] = math.nan
            return tried

    attempt = Broken(rates)
    with pytest.raises(FloatingPointError, match=rf"steps of sample {broken} shrank .* between 0 and 1: .*returned NaN"):
        attempt.run(0.0, 1.0)
    assert len(attempt.seen[-1][0]) < len(rates)


def test_an_error_that_no_step_makes_small_ends_the_run() -> None:
    class Rounded(Linear):
        def __call__(self, rows: Tensor, state: Tensors, memory: Tensors, at: Tensor, h: Tensor) -> Tried:
            tried = super().__call__(rows, state, memory, at, h)
            return tried._replace(error=tried.error.clamp(min=3.0))

    attempt = Rounded(f64(1.0))
    with pytest.raises(FloatingPointError, match=r"sample 0 shrank .* tolerance lies below its rounding; raise rtol and atol"):
        attempt.run(0.0, 1.0)
    assert len(attempt.seen) < 50


# ----------------------------------------------------------------------------------------------- any outcome of attempts


@given(
    outcomes=st.lists(st.lists(st.one_of(st.floats(0, 1), st.floats(1, 30)), min_size=0, max_size=12), min_size=1, max_size=5),
    step=st.floats(0.01, 3), ends=st.sampled_from([(0.0, 1.0), (2.0, -1.0), (1.0, 0.001)]), cut=st.floats(0.3, 1),
)  # fmt: skip
def test_every_sample_walks_the_whole_way(
    outcomes: list[list[float]], step: float, ends: tuple[float, float], cut: float
) -> None:
    """The state is the distance walked, the errors are given (then small), and a step may be cut by the solver."""
    n, (start, end), ticks = len(outcomes), ends, []
    tries, control = torch.zeros(n, dtype=torch.long), Control(0.9)
    wanted = torch.full((n,), step, dtype=torch.float64)

    def attempt(rows: Tensor, state: Tensors, memory: Tensors, at: Tensor, h: Tensor) -> Tried:
        given = [outcomes[i][int(tries[i])] if int(tries[i]) < len(outcomes[i]) else 0.5 for i in rows.tolist()]
        tries[rows] += 1
        assert len(rows) > 0
        ahead = abs(end - start) - state[0].abs()
        torch.testing.assert_close(h.abs(), torch.minimum(wanted[rows], ahead), rtol=1e-9, atol=1e-12)
        short = (h.abs() > 0.01) & (tries[rows] % 2 == 0)
        h = torch.where(short, cut * h, h)
        wanted[rows] = h.abs() * control.factor(f64(*given))  # of what was tried, not what was asked
        assert torch.allclose(at - start, state[0], rtol=0, atol=1e-9)
        return Tried((state[0] + h,), f64(*given), h, 3 * torch.ones_like(rows), (), ())

    x = torch.zeros(n, dtype=torch.float64)
    done = march(attempt, (x,), (), start, end, torch.full_like(x, step), control, ticks.append)
    assert torch.allclose(done.state[0], torch.full_like(x, end - start), rtol=0, atol=1e-9)
    assert torch.equal(done.calls, 3 * tries)
    assert torch.equal(done.accepted + done.rejected, tries)
    refused = [sum(e > 1 for e in given[: int(k)]) for given, k in zip(outcomes, tries, strict=True)]
    assert done.rejected.tolist() == refused
    assert len(ticks) == int(tries.max())
    assert ticks[-1] == pytest.approx(1, abs=1e-12)
    assert ticks[0] > 0 or int(done.rejected.max()) > 0
    assert all(0 <= a <= b + 1e-12 <= 1 + 2e-12 for a, b in itertools.pairwise([0.0, *ticks]))


@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=3), n=st.integers(0, 4))
def test_root_mean_square_is_over_a_sample(shape: list[int], n: int) -> None:
    x = torch.arange(n, dtype=torch.float32).reshape(-1, *[1] * len(shape)).expand(n, *shape) * -3
    found = root_mean_square(x)
    assert (found.dtype, found.tolist()) == (torch.float64, [3.0 * i for i in range(n)])
    assert root_mean_square(f64(1.0, 7.0)[None]).tolist() == pytest.approx([5.0])


def test_a_way_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("ornstein.samplers.march"), "_MOST", 500)

    def attempt(rows: Tensor, state: Tensors, memory: Tensors, at: Tensor, h: Tensor) -> Tried:
        return Tried(state, torch.ones_like(h), h, torch.ones_like(rows), (), ())

    with pytest.raises(FloatingPointError, match=r"sample 0 stands at 5e-06 between 0 and 1 after 500 steps.*raise rtol"):
        march(attempt, (f64(1.0),), (), 0.0, 1.0, f64(1e-8), Control(0.5, safety=1.0))
