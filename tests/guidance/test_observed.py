"""Hooks that act on the state: what they keep, whose gradient they take, and the faults of MCG's public code."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from measured import D, measurement, network, normal, prior
from torch import Tensor

from ornstein.denoiser import Clipped, Denoises, Differentiable
from ornstein.files import InputError
from ornstein.guidance import DPS, MCG, Given, Replacement, dps_step
from ornstein.noise import Noise
from ornstein.operator import Mask, Matrix, Nonlinear, Operator
from ornstein.process import EDM, VE, VP, GaussianProcess, Rectified
from ornstein.samplers import ALL, Hook, Step, ancestral, ddim, heun, sample

MASK = torch.tensor([True, False, True, False, False])
OPERATORS: list[Operator] = [Mask(MASK), Matrix(normal(2, D, stream="matrix"))]


def draw(denoiser: Denoises, hook: Hook | None, calls: int = 12, plan: str = "ancestral", **more: object) -> Tensor:
    chosen = ALL[plan](denoiser.process, calls)
    return sample(denoiser, chosen, shape=(4, D), noise=Noise(0), after=hook, dtype=torch.float64, **more)


def seen(
    process: GaussianProcess, t: float, s: float | None, *, before: float | None = None, index: int = 0
) -> tuple[Tensor, Step]:
    """A state after a row of a network's, and the step that led to it."""
    x_t, net = normal(4, D, stream="x_t"), Differentiable(network(process))
    step = Step(index, t, s, t if before is None else before, net(x_t, t), Noise(3), 0, None)
    return normal(4, D, stream="x_s"), step


def known(values: Tensor, operator: Operator, **more: float) -> Given:
    return Given(values, operator, **more)


# --- replacement


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
@pytest.mark.parametrize("process", [VP(), EDM()], ids=lambda p: type(p).__name__)
@drawn(s=st.floats(0.01, 0.4))
def test_replacement_puts_the_measured_part_at_its_noised_value(operator: Operator, process: GaussianProcess, s: float) -> None:
    given = known(operator(normal(4, D, stream="x0")), operator)
    x, step = seen(process, 0.5, s, index=3)
    moved = Replacement(given, process)(x, step)
    alpha, sigma = (float(m) for m in process.moments(s))
    eps = Noise(3).normal((4, D), stream="given", step=3, dtype=torch.float64)
    torch.testing.assert_close(operator(moved), alpha * given.values + sigma * operator(eps), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved - operator.project(moved), x - operator.project(x), rtol=0, atol=1e-9)


def test_replacement_leaves_the_law_of_what_is_measured() -> None:
    # over many draws, a forward-noised measurement: mean alpha y, variance sigma²
    process, values = VP(), torch.tensor([[1.0, 0, -2, 0, 0]], dtype=torch.float64)
    x, step = seen(process, 0.5, 0.3)
    many = replace(step, prediction=replace(step.prediction, x_t=x[:1].expand(20000, D)))
    moved = Replacement(Given(values, mask=MASK), process)(x[:1].expand(20000, D), many)
    alpha, sigma = (float(m) for m in process.moments(0.3))
    torch.testing.assert_close(moved.mean(0)[MASK], alpha * values[0, MASK], rtol=0, atol=0.03)
    torch.testing.assert_close(moved.std(0)[MASK], torch.full((2,), sigma, dtype=torch.float64), rtol=0.03, atol=0)
    assert float(moved[:, ~MASK].std(0).max()) == 0


@pytest.mark.parametrize("method", [Replacement, MCG])
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
@pytest.mark.parametrize("process", [VP(), EDM(), Rectified()], ids=lambda p: type(p).__name__)
def test_exact_measurements_are_kept(method: type, operator: Operator, process: GaussianProcess) -> None:
    given = known(operator(normal(4, D, stream="x0")), operator)
    hook = method(given, process) if method is Replacement else MCG(given, process, 0.1)
    x0 = draw(Differentiable(network(process)), hook)
    assert float((operator(x0) - given.values).abs().max()) < 1e-6 / 1e3
    free = draw(Differentiable(network(process)), None)
    assert float((operator(free) - given.values).abs().max()) > 0.1


@pytest.mark.parametrize("plan", ["ancestral", "ddim", "heun", "dpm_solver_pp", "unipc", "adams", "ipndm", "euler_maruyama"])
def test_replacement_goes_with_every_plan(plan: str) -> None:
    given = known(normal(4, D, stream="x0"), Mask(MASK))
    x0 = draw(prior(VP()), Replacement(given, VP()), 13, plan)
    assert float((x0 - given.values)[:, MASK].abs().max()) < 1e-9


# --- the gradient


@pytest.mark.parametrize("process", [VP(), EDM()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("operator", [*OPERATORS, Nonlinear((D,), lambda x: (x[:, :3] ** 2).sin())], ids=str)
def test_dps_is_the_gradient_of_the_norm_at_the_state_before_the_row(process: GaussianProcess, operator: Operator) -> None:
    given = known(operator(normal(4, D, stream="x0")), operator)
    x, step = seen(process, 0.4, 0.3)
    x_t, net = step.prediction.x_t, network(process)

    def norm(x_t: Tensor) -> Tensor:
        return (given.values - operator(net(x_t, 0.4).x0)).norm(dim=1)

    with torch.no_grad():
        steps = 1e-5 * torch.eye(D, dtype=torch.float64)
        gradient = torch.stack([(norm(x_t + h) - norm(x_t - h)) / 2e-5 for h in steps], dim=1)
    size = math.prod(math.hypot(*map(float, process.moments(t))) for t in (0.4, 0.3))
    torch.testing.assert_close(DPS(given, process, 0.7)(x, step), x - 0.7 * size * gradient, rtol=0, atol=1e-7)


def test_dps_at_the_solution_stands_still() -> None:
    x, step = seen(VP(), 0.4, 0.3)
    given = known(Mask(MASK)(step.prediction.x0), Mask(MASK))
    assert bool((DPS(given, VP(), 1.0)(x, step) == x).all())


@pytest.mark.parametrize("method", [DPS, MCG])
@pytest.mark.parametrize("other", [VE(sigma_min=0.01, sigma_max=50.0), EDM(0.01, 50.0)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_same_trajectory_whatever_the_scale_of_the_state(method: type, other: GaussianProcess, eta: float) -> None:
    # the network's part is an oracle: exactly the same E[x0 | x_t/alpha] for every process
    base = VP()
    ratios = torch.linspace(3.5, -3.5, 15, dtype=torch.float64)
    given = known(normal(4, D, stream="x0"), Mask(MASK))
    found = []
    for process in (base, other):
        times = tuple(process.time_of(ratios).tolist())
        alpha, sigma = (float(m) for m in process.moments(times[0]))
        start = math.hypot(alpha, sigma) * normal(4, D, stream="start")
        hook = method(given, process, 0.3)
        plan = ddim(process, 15, times, eta=eta)
        found.append(sample(Differentiable(prior(process)), plan, start=start, noise=Noise(0), after=hook))
    free = sample(prior(base), ddim(base, 15, tuple(base.time_of(ratios).tolist()), eta=eta), start=normal(4, D, stream="start"),
                  noise=Noise(0))  # fmt: skip
    torch.testing.assert_close(found[0], found[1], rtol=1e-7, atol=1e-7)
    assert float((found[0] - free)[:, ~MASK].abs().max()) > 0.05


# --- the faults of MCG's public code


@pytest.mark.parametrize("method", [DPS, MCG])
def test_the_norm_is_each_samples_own(method: type) -> None:
    # fault: a norm over the batch lets a far sample shorten the step of all others
    values = normal(4, D, stream="x0")
    far = values.clone()
    far[3] = 1e4
    x, step = seen(VP(), 0.4, 0.3)
    near, distant = (method(known(y, Mask(MASK)), VP(), 0.5)(x, step) for y in (values, far))
    torch.testing.assert_close(near[:3], distant[:3], rtol=0, atol=1e-12)
    # and the gradient of a norm is as long however far y is
    assert float((distant[3] - x[3])[~MASK].norm()) < 5


def test_mcg_projects_at_the_level_that_the_state_has() -> None:
    # fault: the noise of level t, which leaves the last state noisy
    process, given = VP(), known(normal(4, D, stream="x0"), Mask(MASK))
    hook = MCG(given, process, 0.2)
    x, step = seen(process, 0.4, None)
    assert float((hook(x, step) - given.values)[:, MASK].abs().max()) < 1e-12
    x, step = seen(process, 0.4, 0.1, index=5)
    alpha, sigma = (float(m) for m in process.moments(0.1))
    eps = Noise(3).normal((4, D), stream="given", step=5, dtype=torch.float64)
    torch.testing.assert_close(hook(x, step)[:, MASK], (alpha * given.values + sigma * eps)[:, MASK])


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_mcg_moves_only_what_is_not_measured(operator: Operator) -> None:
    given = known(operator(normal(4, D, stream="x0")), operator)
    x, step = seen(VP(), 0.4, 0.3)
    moved = MCG(given, VP(), 0.5)(x, step)
    full = DPS(given, VP(), 0.5)(x, step)
    torch.testing.assert_close(operator(moved), operator(Replacement(given, VP())(x, step)), rtol=0, atol=1e-9)
    hidden, expected, before = (part - operator.project(part) for part in (moved, full, x))
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-9)
    assert float((hidden - before).abs().max()) > 1e-3


# --- plans


@pytest.mark.parametrize("method", [DPS, MCG])
@pytest.mark.parametrize("plan", ["heun", "unipc", "adams", "sa_solver"])
def test_plans_that_look_ahead_are_refused(method: type, plan: str) -> None:
    hook = method(known(normal(4, D, stream="x0"), Mask(MASK)), VP(), 0.1)
    with pytest.raises(InputError, match=r"row 1 is evaluated elsewhere.*take ancestral"):
        draw(Differentiable(prior(VP())), hook, plan=plan)


@pytest.mark.parametrize("plan", ["ancestral", "ddim", "dpm_solver_pp", "dpm_solver_pp_sde", "ipndm", "euler_maruyama", "deis"])
def test_plans_that_start_from_the_state_bring_dps_nearer_to_the_measurement(plan: str) -> None:
    oracle = prior(VP())
    given = known(oracle.sample(4, Noise(2)), Mask(MASK))
    hooks = (None, DPS(given, VP(), dps_step(given.measured, 60, 10.0)))
    free, guided = (draw(Differentiable(oracle), hook, 60, plan) - given.values for hook in hooks)
    assert float(guided[:, MASK].norm()) < 0.3 * float(free[:, MASK].norm())


def test_a_row_that_looks_ahead_is_left_alone() -> None:
    given = known(normal(4, D, stream="x0"), Mask(MASK))
    x, step = seen(VP(), 0.4, 0.4)
    for hook in (Replacement(given, VP()), DPS(given, VP(), 1.0), MCG(given, VP(), 1.0)):
        assert hook(x, step) is x
    states: list[float | None] = []

    class Watching:
        inner = Replacement(given, VP())

        def __call__(self, x: Tensor, step: Step) -> Tensor:
            moved = self.inner(x, step)
            if moved is not x:
                states.append(step.s)
            return moved

    sample(prior(VP()), heun(VP(), 9), shape=(4, D), noise=Noise(0), after=Watching(), dtype=torch.float64)
    assert len(states) == 5


def test_without_the_gradient_the_remedy_is_told() -> None:
    given = known(normal(4, D, stream="x0"), Mask(MASK))
    for hook in (DPS(given, VP(), 0.1), MCG(given, VP(), 0.1)):
        for denoiser in (prior(VP()), Clipped(prior(VP()), -1, 1)):
            with pytest.raises(ValueError, match=r"needs the gradient at x_t: sample Differentiable\(denoiser\)"):
                draw(denoiser, hook)
        draw(Clipped(Differentiable(prior(VP())), -1, 1), hook)


@pytest.mark.parametrize("hook", [Replacement, lambda g, p: DPS(g, p, 0.2), lambda g, p: MCG(g, p, 0.2)])
def test_each_sample_is_the_same_alone(hook: type) -> None:
    given, net = known(normal(4, D, stream="x0"), Mask(MASK)), Differentiable(network(VP()))
    together = draw(net, hook(given, VP()))
    plan = ancestral(VP(), 12)
    for i in range(4):
        own = hook(given.rows(torch.tensor([i])), VP())
        alone = sample(net, plan, shape=(1, D), first=i, noise=Noise(0), after=own, dtype=torch.float64)
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-10, atol=1e-10)


# --- the step


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_the_step_knows_the_size_of_the_measurement_and_the_calls(scale: float) -> None:
    matrix = normal(3, D, stream="wide")
    expected = 2.0 * math.sqrt(3) / (50 * scale * float(torch.linalg.matrix_norm(matrix, 2)))
    assert dps_step(Matrix(scale * matrix), 50, 2.0) == pytest.approx(expected, rel=1e-3)
    assert dps_step(Mask(MASK), 100) == pytest.approx(8 * math.sqrt(2) / 100)
    assert dps_step(Nonlinear((D,), torch.sin), 100) == pytest.approx(8 * math.sqrt(D) / 100)
    assert dps_step(Mask(torch.zeros(D, dtype=torch.bool)), 100) == 0


@drawn(scale=st.sampled_from([0.01, 1.0, 30.0]))
def test_the_units_of_the_measurement_do_not_matter(scale: float) -> None:
    x, step = seen(VP(), 0.4, 0.3)
    given = measurement(4)
    matrix = Matrix(scale * given.measured.matrix)
    found = [DPS(g, VP(), dps_step(g.measured, 50))(x, step) for g in (given, known(scale * given.values, matrix))]
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-9)


def test_what_is_refused() -> None:
    given, curved = measurement(4), Given(normal(4, D), Nonlinear((D,), torch.sin))
    for method in (Replacement, lambda g, p: MCG(g, p, 0.1)):
        with pytest.raises(InputError, match="needs a linear operator"):
            method(curved, VP())
    for step in (-1.0, math.nan):
        with pytest.raises(InputError, match=r"step=.* must be a number from 0"):
            DPS(given, VP(), step)
    x, step = seen(VP(), 0.4, 0.3)
    for hook in (Replacement(measurement(3), VP()), DPS(measurement(3), VP(), 0.1)):
        with pytest.raises(InputError, match="3 measurements for 4 samples"):
            hook(x, step)
