"""TimeGrad: nothing is told of the future, draws follow the law that the denoiser states, and a trained one that of its data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ornstein import config, testing
from ornstein.config import Recipe
from ornstein.denoiser import Condition, Prediction
from ornstein.files import InputError
from ornstein.metrics.forecast import weighted_quantile_loss
from ornstein.noise import Noise
from ornstein.process.gaussian import Time
from ornstein.sequence import choose, series
from ornstein.sequence.predict import forecasts
from ornstein.sequence.timegrad import TimeGradSystem, initialise
from ornstein.sequence.windows import SeriesData, windows

SMALL = (
    "net.options={width: 16, layers: 1, head_width: 32, depth: 1}",
    "sequence={horizon: 4, context: 12, lags: [1, 2, 5]}",
    "train.batch=16",
)


def made(values: np.ndarray, *settings: str) -> tuple[TimeGradSystem, SeriesData, Recipe]:
    """An untrained small forecaster of values (T, C), its windows and its settled recipe."""
    recipe = config.override(config.load_recipe("timegrad"), [*SMALL, *settings])
    assert recipe.sequence is not None
    assert recipe.sequence.context is not None
    data = windows([series(values)], context=recipe.sequence.context, horizon=recipe.sequence.horizon)
    recipe, _ = choose.prepare(recipe, data)
    return initialise(recipe, data.contract), data, recipe


def walk(rows: int = 400, channels: int = 2, seed: int = 0) -> np.ndarray:
    return 50 + Noise(seed).normal((rows, channels), dtype=torch.float64).cumsum(0).numpy()


class Stated:
    """A denoiser whose law is N(0, I) whatever it is told: the oracle's, with the condition left out."""

    def __init__(self, system: TimeGradSystem) -> None:
        channels = system.contract.shape[0]
        self.oracle = testing.GaussianDenoiser(torch.zeros(channels), torch.eye(channels), system.denoiser.process)
        self.process = system.denoiser.process

    def __call__(self, x_t: torch.Tensor, t: Time, cond: Condition = None) -> Prediction:
        return self.oracle(x_t, t)


MODES = ("sequence.differences=true", "sequence.differences=false")


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=10, deadline=None)
@given(step=st.integers(6, 14))
def test_what_is_told_of_a_step_comes_before_it(mode: str, step: int) -> None:
    system, data, _ = made(walk(), mode)
    options, batch = system.windowing, data.batch([3, 40])
    steps, _ = system._steps(batch["x"], batch["features"])  # all L steps taken as seen, and the last one dropped
    steps = replace(steps, z=steps.z[..., :-1], seen=steps.seen[..., :-1])
    told = steps.inputs(options.reach, options.lags, options.differences, options.level)
    changed = replace(steps, z=torch.cat([steps.z[..., :step], steps.z[..., step:] + 5], -1))
    other = changed.inputs(options.reach, options.lags, options.differences, options.level)
    place = step - options.reach + 1  # the first row that may know of step `step`
    assert torch.equal(told[:, :place], other[:, :place])
    assert not torch.equal(told[:, place], other[:, place])


@pytest.mark.parametrize("mode", MODES)
def test_units_come_from_the_context_alone(mode: str) -> None:
    system, data, _ = made(walk(), mode)
    batch, told = data.batch([5]), []
    system.net.register_forward_pre_hook(lambda net, arguments: told.append(arguments[0]))
    wild = batch["x"].clone()
    wild[..., 12:] += 100.0
    for x in (batch["x"], wild):
        system.loss({**batch, "x": x}, Noise(0))
    before = 12 - system.windowing.reach + 1  # inputs of the steps of the context, and of the first after it
    assert torch.equal(told[0][:, :before], told[1][:, :before])
    assert not torch.equal(told[0], told[1])


def test_irregular_times_after_what_is_asked_for_change_nothing() -> None:
    passed = 0.5 + Noise(0).uniform((60,)).numpy()
    later = passed.copy()
    later[40:] *= 50
    one, other = (series(walk(60), step.cumsum()) for step in (passed, later))
    recipe = config.override(config.load_recipe("timegrad"), SMALL)
    data = windows([one], context=12, horizon=4)
    recipe, _ = choose.prepare(recipe, data)
    system = initialise(recipe, data.contract)
    with torch.no_grad():
        for parameter in system.net.parameters():  # what is zero before training would hear nothing
            parameter.add_(0.1)
    first, second = (forecasts(system, x, [36], horizon=4, draws=2, noise=Noise(0)) for x in (one, other))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("mode", MODES)
def test_after_inverts_target(mode: str) -> None:
    system, data, _ = made(walk(), mode)
    batch = data.batch([0, 9])
    steps, _ = system._steps(batch["x"], batch["features"])
    drawn = steps.target(10, system.windowing.differences)[..., 0]
    before = replace(steps, z=steps.z[..., :10], seen=steps.seen[..., :10])
    assert torch.allclose(before.after(drawn, system.windowing.differences), steps.z[..., 10], atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_memory_step_by_step_is_memory_at_once(mode: str) -> None:
    system, data, _ = made(walk(), mode)
    system.net.eval()
    options, batch = system.windowing, data.batch([0, 9])
    steps, _ = system._steps(batch["x"], batch["features"])
    rest = (options.lags, options.differences, options.level)
    whole, _ = system.net(replace(steps, z=steps.z[..., :-1], seen=steps.seen[..., :-1]).inputs(options.reach, *rest))
    now = replace(steps, z=steps.z[..., :12], seen=steps.seen[..., :12])
    h, state = system.net(now.inputs(options.reach, *rest))
    for step in range(12, 15):
        now = now.appended(steps.z[..., step])
        h, state = system.net(now.inputs(step + 1, *rest), state)
        assert torch.allclose(h[:, -1], whole[:, step + 1 - options.reach], atol=1e-5)


def test_a_stated_walk_is_drawn() -> None:
    # changes N(0, I) in units of the context's steps: the forecast is a walk from the last value with these steps
    system, data, _ = made(walk(), "sequence.differences=true")
    system.denoiser = Stated(system)  # type: ignore[assignment]
    past, known = data.batch([7])["x"][..., :12].double(), torch.zeros(1, 0, 12 + 4)
    drawn = system.predict(past, known, draws=4000, noise=Noise(1), sampler=12).draws[0]
    step = (past[0, :, 1:] - past[0, :, :-1]).square().mean(-1).sqrt()
    for k in range(4):
        spread = drawn[:, :, k].std(0) / step / (k + 1) ** 0.5
        assert torch.allclose(spread, torch.ones(2, dtype=torch.float64), atol=0.06)
        assert bool(((drawn[:, :, k].mean(0) - past[0, :, -1]).abs() < 0.1 * step * (k + 1) ** 0.5).all())
    together = torch.corrcoef(drawn[:, :, 0].T)[0, 1]
    assert abs(float(together)) < 0.06


@pytest.mark.parametrize("mode", MODES)
def test_a_case_is_the_same_in_any_batch(mode: str) -> None:
    system, data, _ = made(walk(), mode)
    batch = data.batch([2, 50, 90])
    past, known = batch["x"][..., :12].double(), batch["features"]
    options = {"draws": 3, "noise": Noise(2), "sampler": 3}
    whole = system.predict(past, known, **options).draws  # type: ignore[arg-type]
    small = system.predict(past, known, batch_size=4, **options).draws  # type: ignore[arg-type]
    alone = system.predict(past[1:2], known[1:2], first=1, **options).draws  # type: ignore[arg-type]
    assert torch.allclose(whole, small, atol=1e-4)
    assert torch.allclose(whole[1:2], alone, atol=1e-4)
    assert torch.equal(system.predict(past, known, **options).draws, whole)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
def test_gaps_neither_count_nor_spread(mode: str) -> None:
    values = walk()
    values[30:60, 0] = np.nan
    values[100:103] = np.nan
    system, data, _ = made(values, mode)
    batch = data.batch([24, 40, 95])
    losses = system.loss(batch, Noise(0))
    assert bool(losses.isfinite().all())
    past = batch["x"][..., :12].double()
    drawn = system.predict(past, torch.zeros(3, 0, 16), draws=2, noise=Noise(0), sampler=2).draws
    assert bool(drawn.isfinite().all())


def test_missing_numbers_carry_no_loss() -> None:
    system, data, _ = made(walk(), "sequence.differences=false")
    batch = data.batch([5])
    gap = {**batch, "x": batch["x"].clone()}
    gap["x"][:, 0, -1] = torch.nan
    with torch.no_grad():
        last = system.loss(gap, Noise(0))
        gap["x"][:, :, -1] = torch.nan
        assert float(system.loss(gap, Noise(0))) < float(last) < float(system.loss(batch, Noise(0)))


def test_past_of_another_length_is_refused() -> None:
    system, _, _ = made(walk())
    with pytest.raises(InputError, match="give \\(cases, 2, 12\\)"):
        system.predict(torch.zeros(1, 2, 9), torch.zeros(1, 0, 13), draws=2, noise=Noise(0))


@pytest.mark.slow
def test_a_trained_one_forecasts_as_the_exact_law_does() -> None:
    # x_t = 0.8 x_{t-1} + e: mean 0.8^k x, variance (1 - 0.64^k)/0.36
    shocks = Noise(3).normal((6000,), dtype=torch.float64).numpy()
    values = np.zeros(6000)
    for t in range(1, 6000):
        values[t] = 0.8 * values[t - 1] + shocks[t]
    system, data, _ = made(
        values[:5000, None],
        "sequence.differences=false",
        "sequence.scaling=standard",
        "sequence.level=false",
        "sequence.lags=[1]",
    )
    rate, steps = 5e-3, 250
    optimizer = torch.optim.AdamW(system.net.parameters(), lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        loss = system.loss(data.batch(Noise(0).permutation(len(data), step=step)[:64]), Noise(0), step=step).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    origins = np.arange(5012, 5990, 4)
    past = torch.stack([torch.from_numpy(values[None, at - 12 : at].copy()) for at in origins])
    drawn = (
        system.predict(past, torch.zeros(len(origins), 0, 16), draws=100, noise=Noise(1), sampler=8).draws.movedim(-1, -2).numpy()
    )
    truth = np.stack([values[at : at + 4, None] for at in origins])
    k = np.arange(1, 5)
    mean, std = 0.8**k * values[origins - 1][:, None], np.sqrt((1 - 0.64**k) / 0.36)
    z = Noise(9).normal((len(origins), 100, 4), dtype=torch.float64).numpy()
    exact = (mean[:, None] + std * z)[..., None]
    assert weighted_quantile_loss(drawn, truth) < 1.1 * weighted_quantile_loss(exact, truth)


@pytest.mark.parametrize(
    "settings",
    [
        # as in the paper: a chain of 100 steps, eps predicted, ancestral sampling
        (
            "process={name: chain, options: {schedule: linear, steps: 100}}",
            "predicts=eps",
            "loss={weighting: simple, times: discrete}",
            "sampler={name: ancestral, calls: 20}",
        ),
        ("process={name: vp}", "predicts=v", "loss={weighting: simple}", "sampler={name: heun, calls: 6}"),
        ("process={name: rectified}", "predicts=v", "loss={weighting: simple}", "sampler={name: ddim, calls: 6}"),
    ],
    ids=["chain", "vp", "rectified"],
)
def test_any_process_and_plan(settings: tuple[str, ...]) -> None:
    system, data, _ = made(walk(), "sampler.options={}", *settings)
    batch = data.batch([0, 7])
    assert bool(system.loss(batch, Noise(0)).isfinite().all())
    drawn = system.predict(batch["x"][..., :12].double(), batch["features"], draws=2, noise=Noise(0)).draws
    assert drawn.shape == (2, 2, 2, 4)
    assert bool(drawn.isfinite().all())
