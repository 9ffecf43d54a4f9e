"""The two stages: least squares that are least, gradients that are the error's, and the distance between laws."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from calibration_cases import F64, PROCESSES, by_table, coarse, f64, made, mixture, named, normal
from torch import Tensor

from ornstein.calibration import calibrate, table_of
from ornstein.calibration.fit import EnergyDistance, FlowError, Measure, Problem, _Descent, _row, least_squares
from ornstein.calibration.reference import rms
from ornstein.calibration.student import Student
from ornstein.calibration.trace import chunks
from ornstein.denoiser import Condition, Denoises, Prediction
from ornstein.grid import make, vp_time
from ornstein.noise import Noise
from ornstein.process import VP, GaussianProcess
from ornstein.process.gaussian import Time
from ornstein.samplers import ddim, run
from ornstein.testing import GaussianDenoiser

NOISE = Noise(6)


def isotropic(process: GaussianProcess) -> GaussianDenoiser:
    """A law whose flow moves every state along the line through its answer: two weights say all."""
    return GaussianDenoiser(f64(0.4, -0.3), 0.5 * torch.eye(2), process)


@pytest.mark.parametrize("process", ["vp", "edm", "cosine", "rectified", "zero_linear"])
def test_least_squares_find_a_flow_that_two_weights_can_say(process: str) -> None:
    p = PROCESSES[process]
    oracle = isotropic(p)
    found = coarse(oracle, fine_calls=200)
    table = least_squares(oracle, found.fit, found.path, make(p, 4, vp_time), 64)
    fresh = p.prior((20, 2), Noise(9), dtype=F64)
    begin = 1.0 if float(p.moments(1.0)[0]) > 0 else 0.999
    truth = oracle.flow(fresh, begin, None)
    least = float(rms(by_table(oracle, table, fresh)[-1], truth).mean())
    assert least < (2e-4 if begin == 1 else 5e-3)  # what the fine flow itself leaves, and the start that has no signal
    assert least < 0.02 * float(rms(run(oracle, ddim(p, 4, vp_time), fresh, noise=NOISE), truth).mean())


@pytest.mark.parametrize("process", ["vp", "edm"])
def test_least_squares_beat_ddim_on_its_own_times(process: str) -> None:
    p = PROCESSES[process]
    oracle = mixture(p)
    found = coarse(oracle, trajectories=64)
    plan = ddim(p, 6)
    table = least_squares(oracle, found.fit, found.path, plan.times, 64)
    assert table.times.tolist() == list(plan.times)
    assert [len(w) for w in table.weights] == [2, 3, 4, 5, 6, 7]
    assert float(table.noises.abs().max()) == 0
    judge = found.judge
    fitted, before = (judge.error(by_table(oracle, one, judge.start)[-1]).mean() for one in (table, table_of(plan, p)))
    assert float(fitted) < 0.5 * float(before)


def test_least_squares_do_not_depend_on_batches() -> None:
    oracle = mixture(VP())
    found = coarse(oracle, trajectories=20, fine_calls=32)
    one, other = (least_squares(oracle, found.fit, found.path, make(VP(), 4, vp_time), size) for size in (3, 64))
    for a, b in zip(one.weights, other.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_every_weight_of_a_row_is_best() -> None:
    features = [normal(50, 3, stream=f"feature {k}") for k in range(4)]
    features[3] = features[2] + 0.3 * features[3]  # answers of two calls are alike
    target = features[0] - 0.5 * features[1] + 2 * features[2] + 0.2 * normal(50, 3, stream="left")
    target[:4] *= 20  # a few trajectories go elsewhere
    prior = f64(0.9, 0.0, 1.0, 0.0)

    def left(weights: Tensor) -> Tensor:
        return rms(target, sum(w * part for w, part in zip(weights, features, strict=True)))

    found = _row(features, target, prior)
    each = 1 / (left(found) + 0.1 * left(found).mean())  # the weights of the samples that the answer itself asks for

    def weighted(weights: Tensor) -> float:
        return float((each * left(weights).square()).sum())

    for k, feature in enumerate(features):
        size = 0.05 / float(feature.square().mean().sqrt())
        for sign in (1, -1):
            moved = found.clone()
            moved[k] += sign * size
            assert weighted(moved) > weighted(found), k
    # the mean distance is lower than that of plain least squares, which the few draw away
    stacked = torch.stack([part.flatten() for part in features], 1)
    plain = torch.linalg.lstsq(stacked, target.flatten()).solution
    assert float(left(found).mean()) < 0.98 * float(left(plain).mean())


def test_a_row_without_information_is_the_step_for_constant_data() -> None:
    prior = f64(0.3, 0.7, 0.0)
    same = normal(10, 2)
    features = [same, same, same]  # any weights of the same sum would do
    found = _row(features, same * float(prior.sum()), prior)
    torch.testing.assert_close(found, prior, rtol=0, atol=1e-6)


CASES: list[tuple[str, int, dict[str, Any]]] = [("ipndm", 4, {}), ("ddim", 3, {"eta": 1.0})]
MEASURES: dict[str, Measure] = {"flow": FlowError(0.02), "energy": EnergyDistance()}


def descent(case: tuple[str, int, dict[str, Any]], measure: str, process: str, size: int = 64, again: bool = False) -> _Descent:
    oracle = mixture(PROCESSES[process])
    found = coarse(oracle, trajectories=16, fine_calls=16)
    problem = Problem(oracle, found.fit, found.choose, MEASURES[measure], NOISE, size, 1.0)
    student = Student(oracle.process, table_of(made(case, oracle.process), oracle.process))
    return _Descent(student, problem, MEASURES[measure], list(chunks(found.fit, size)), again)


@pytest.mark.parametrize("process", ["vp", "edm"])
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("case", CASES, ids=named)
def test_the_gradient_is_that_of_the_error(case: tuple[str, int, dict[str, Any]], measure: str, process: str) -> None:
    fitted = descent(case, measure, process)
    student, problem = fitted.student, fitted.problem
    q = 0.1 * normal(student.size, stream="q")
    value, gradient = fitted.value_and_gradient(q)

    def error(knobs: Tensor) -> float:
        x0 = by_table(problem.denoiser, student(knobs), problem.fit.start, NOISE, first=problem.fit.first)[-1]
        return float(problem.measure(x0, problem.fit.end).mean())

    assert value == pytest.approx(error(q), rel=1e-9)
    truth = torch.stack([f64(error(q + h) - error(q - h)) / 2e-6 for h in 1e-6 * torch.eye(student.size, dtype=F64)]).flatten()
    torch.testing.assert_close(gradient, truth, rtol=1e-5, atol=1e-6 * max(1.0, float(truth.abs().max())))
    for size, again in ((5, False), (64, True), (1, True)):
        other = descent(case, measure, process, size, again)
        same, pulled = other.value_and_gradient(q)
        assert same == pytest.approx(value, rel=1e-10)
        torch.testing.assert_close(pulled, gradient, rtol=1e-8, atol=1e-10 * float(gradient.abs().max()))


@dataclass
class Counting:
    """A denoiser that counts how many of its answers are alive whenever it is asked."""

    denoiser: Denoises
    answers: list[weakref.ref[Tensor]] = field(default_factory=list)
    most: int = 0

    @property
    def process(self) -> GaussianProcess:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        self.most = max(self.most, sum(answer() is not None for answer in self.answers))
        prediction = self.denoiser(x_t, t, cond)
        self.answers.append(weakref.ref(prediction.raw))
        return prediction


def test_the_graphs_of_one_chunk_are_alive_at_a_time() -> None:
    whole = descent(CASES[0], "flow", "vp", size=8)
    counting = Counting(whole.problem.denoiser)
    fitted = replace(whole, problem=replace(whole.problem, denoiser=counting))
    q = torch.zeros(fitted.student.size, dtype=F64)
    fitted.value_and_gradient(q)
    assert 0 < counting.most < fitted.student.calls
    counting.most = 0
    fitted.directions(q)
    assert 0 < counting.most < fitted.student.calls


def test_directions_make_the_samples_move_alike() -> None:
    fitted = descent(CASES[0], "flow", "vp")
    start = torch.zeros(fitted.student.size, dtype=F64)
    directions = fitted.directions(start)
    assert directions.shape == (fitted.student.size, fitted.student.size)

    def moves(steps: Tensor) -> Tensor:
        """How far a short step along each column moves the samples, in their errors."""
        h, problem = 1e-6, fitted.problem
        ends = [problem.samples(fitted.student(sign * h * step), problem.fit) for step in steps.T for sign in (1, -1)]
        size = problem.fit.error(problem.samples(fitted.student(start), problem.fit))
        moved = [rms(a, b) / (2 * h) for a, b in zip(ends[::2], ends[1::2], strict=True)]
        return torch.stack([(one.square() / size).mean().sqrt() for one in moved])

    plain, shaped = moves(torch.eye(fitted.student.size, dtype=F64)), moves(directions)
    # the last half of the columns, the stiff ones, which is where an untamed step would do harm
    stiff = shaped[len(shaped) // 2 :]
    assert float(stiff.max() / stiff.min()) < 8 < float(plain.max() / plain.min())


def test_memory_changes_nothing_but_the_way() -> None:
    oracle = mixture(VP())
    found = coarse(oracle, trajectories=16, fine_calls=32)
    options: dict[str, Any] = {"calls": 3, "shape": (2,), "noise": NOISE, "reference": found, "steps": 3}
    one, other = (calibrate(oracle, memory=memory, **options) for memory in (2.0, 1e-6))
    for a, b in zip(one.rows, other.rows, strict=True):
        assert a.t == pytest.approx(b.t, rel=1e-6)
        assert a.a == pytest.approx(b.a, rel=1e-5, abs=1e-7)


def by_hand(x: Tensor, y: Tensor) -> list[float]:
    n, shares = len(x), []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        to_y, to_x, between = (sum(math.dist(a[i], b[j]) for j in others) / (n - 1) for a, b in ((x, y), (x, x), (y, y)))
        shares.append((2 * to_y - to_x - between) / math.sqrt(x.shape[1]))
    return shares


@pytest.mark.parametrize("n", [8, 40])
def test_the_energy_distance_is_its_double_sum(n: int) -> None:
    x, y = normal(n, 3, stream="x"), 1.5 * normal(n, 3, stream="y") + 0.2
    found = EnergyDistance()(x, y)
    assert found.dtype == F64
    torch.testing.assert_close(found, f64(*by_hand(x, y)), rtol=0, atol=1e-9)
    # of any shape, and of the shape's size alone
    torch.testing.assert_close(EnergyDistance()(x.reshape(n, 3, 1), y.reshape(n, 3, 1)), found, rtol=0, atol=1e-12)


def test_the_energy_distance_tells_laws_apart_and_is_unbiased() -> None:
    def over_seeds(scale: float, shift: float, n: int = 24, seeds: int = 200) -> Tensor:
        pairs = ((normal(n, 1, stream="x", seed=k), scale * normal(n, 1, stream="y", seed=k) + shift) for k in range(seeds))
        return torch.stack([EnergyDistance()(x, y).mean() for x, y in pairs])

    def folded(mean: float, variance: float) -> float:
        """E|N(mean, variance)|."""
        s = math.sqrt(variance)
        return s * math.sqrt(2 / math.pi) * math.exp(-(mean**2) / (2 * variance)) + mean * math.erf(mean / (s * math.sqrt(2)))

    for scale, shift in ((1.0, 0.0), (1.0, 0.7), (2.0, 0.0)):
        truth = 2 * folded(shift, 1 + scale**2) - folded(0, 2) - folded(0, 2 * scale**2)
        found = over_seeds(scale, shift)
        assert abs(float(found.mean()) - truth) < 4 * float(found.std()) / math.sqrt(len(found))
        assert (truth > 0.05) == (shift > 0 or scale > 1)


def test_samples_at_their_ends_have_no_distance_and_a_gradient() -> None:
    y = normal(64, 2)  # so many that torch may take products for distances
    x = y.clone().requires_grad_()
    total = EnergyDistance()(x, y).sum()
    assert abs(float(total.detach())) < 1e-9
    (gradient,) = torch.autograd.grad(total, x)
    assert bool(gradient.isfinite().all())
    torch.testing.assert_close(FlowError()(y, y), torch.zeros(64, dtype=F64))
    smooth = FlowError(0.1)(x, y)
    torch.testing.assert_close(smooth, torch.full((64,), 0.1, dtype=F64))
    assert float(torch.autograd.grad(smooth.sum(), x)[0].abs().max()) == 0
    assert (FlowError().joint, EnergyDistance().joint) == (False, True)


def test_the_flow_error_is_a_distance_per_root_of_the_size() -> None:
    x = torch.zeros(2, 4, 1, dtype=F64)
    end = torch.stack([torch.full((4, 1), 3.0), torch.tensor([[2.0], [0.0], [0.0], [0.0]])]).double()
    torch.testing.assert_close(FlowError()(x, end), f64(3.0, 1.0))
    torch.testing.assert_close(FlowError(4.0)(x, end), f64(5.0, math.sqrt(17)))
