"""Baselines are what they say: exact where the data are of their kind, calibrated where they claim a law."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ornstein.files import InputError
from ornstein.metrics import forecast as measures
from ornstein.noise import Noise
from ornstein.sequence.baselines import (
    FORECASTERS,
    IMPUTERS,
    Forecaster,
    Marginals,
    gaussian_walk,
    impute_process,
    last_value,
    seasonal_naive,
    vector_autoregression,
)

Array = NDArray[np.float64]
NAN = np.nan


def normals(*shape: int, seed: int = 0, stream: str = "x") -> Array:
    return Noise(seed).normal(shape, stream=stream, dtype=torch.float64).numpy()


def walks(windows: int, time: int, mixing: Array, seed: int = 0) -> Array:
    return (normals(windows, time, len(mixing), seed=seed) @ mixing.T).cumsum(1)


def rolled(forecaster: Forecaster, past: Array, horizon: int, draws: int, season: int | None = None) -> Array:
    """Draws (windows, draws, horizon, C) of a forecaster for histories (windows, T, C)."""
    return np.stack([
        forecaster(one, horizon, draws, season=season, noise=Noise(9), first=k * draws) for k, one in enumerate(past)
    ])  # fmt: skip


def test_last_value_holds_what_was_last_known() -> None:
    history = np.array([[1.0, 5.0], [2.0, NAN], [NAN, NAN]])
    found = last_value(history, 3, 4, season=None, noise=Noise(0))
    assert found.shape == (4, 3, 2)
    assert (found == [2.0, 5.0]).all()


@pytest.mark.parametrize("steps", [48, 61, 100])
@pytest.mark.parametrize("name", ["seasonal naive", "seasonal naive + residuals"])
def test_a_sine_is_forecast_exactly_by_its_season(steps: int, name: str) -> None:
    wave = np.sin(2 * np.pi * np.arange(steps + 60) / 24)[:, None] * [1.0, -3.0]
    found = FORECASTERS[name](wave[:steps], 60, 5, season=24, noise=Noise(0))
    assert found == pytest.approx(np.stack([wave[steps:]] * 5), abs=1e-12)


def test_seasonal_naive_steps_over_gaps() -> None:
    history = np.array([1.0, 2, 3, 4, 5, NAN, 7, NAN])[:, None]
    found = seasonal_naive(history, 5, 1, season=4, noise=Noise(0))
    assert found[0, :, 0].tolist() == [5, 2, 7, 4, 5]
    never = np.array([1.0, NAN, 3, NAN])[:, None]
    assert seasonal_naive(never, 2, 1, season=2, noise=Noise(0))[0, :, 0].tolist() == [3, 3]


def test_seasonal_residuals_have_the_law_of_a_seasonal_walk() -> None:
    """y_t = y_{t-4} + e: k seasons ahead the variance is k·Σ, jointly over channels."""
    mixing = np.array([[1.0, 0.0], [1.5, 0.5]])
    history = (normals(2000, 4, 2) @ mixing.T).cumsum(0).reshape(-1, 2)
    found = FORECASTERS["seasonal naive + residuals"](history, 8, 4000, season=4, noise=Noise(1))
    error = found - seasonal_naive(history, 8, 1, season=4, noise=Noise(1))
    for step, seasons in ((0, 1), (3, 1), (7, 2)):
        expected = seasons * mixing @ mixing.T
        assert np.cov(error[:, step].T) == pytest.approx(expected, abs=0.12 * seasons * expected.max())


def test_a_random_walk_is_forecast_as_by_its_own_law() -> None:
    mixing = np.array([[1.0, 0.0], [0.8, 0.6]])
    x = walks(150, 271, mixing)
    past, truth = x[:, :251], x[:, 251:]
    found = rolled(gaussian_walk, past, 20, 60)
    exact = past[:, None, -1:] + walks(150 * 60, 20, mixing, seed=5).reshape(150, 60, 20, 2)
    for score in (measures.crps_sum, measures.crps, measures.energy_score):
        assert score(found, truth) == pytest.approx(score(exact, truth), rel=0.02)
    assert measures.coverage(found, truth, 0.8) == pytest.approx(measures.coverage(exact, truth, 0.8), abs=0.02)
    assert measures.pit_uniformity(measures.pit(found, truth, Noise(2))[:, 0, 0]) > 1e-3


def test_a_walk_with_gaps_has_the_variance_of_all_its_steps() -> None:
    x = walks(1, 30_000, np.eye(1))[0]
    x[Noise(0).uniform((len(x),)).numpy() < 0.6] = NAN
    x[-8] = x[-8] if np.isfinite(x[-8, 0]) else x[np.isfinite(x[:, 0])][-1]
    x[-7:] = NAN
    x += 3.0 - x[-8]  # the whole walk is moved: a jump would be a step too
    tail = x[-251:]
    held = tail[np.isfinite(tail[:, 0]), 0]
    per_step = np.square(np.diff(held)).sum() / 250 if np.isfinite(tail[0, 0]) else None
    found = gaussian_walk(x, 5, 20_000, season=None, noise=Noise(1))
    assert found.mean((0, 2)) == pytest.approx(3.0, abs=0.2)
    # the last value is 7 steps old: 8 steps of variance lie before the first forecast
    ratio = found[..., 0].var(0) / found[:, 0, 0].var()
    assert ratio == pytest.approx([(8 + k) / 8 for k in range(5)], rel=0.03)
    if per_step is not None:
        assert found[:, 0, 0].var() == pytest.approx(8 * per_step, rel=0.03)


def test_gaps_do_not_change_the_size_of_a_walks_steps() -> None:
    variance = []
    for seed in range(60):
        x = walks(1, 251, np.eye(1), seed)[0]
        x[1:-1][Noise(seed).uniform((249,)).numpy() < 0.5] = NAN
        variance.append(gaussian_walk(x, 1, 500, season=None, noise=Noise(seed)).var())
    assert float(np.mean(variance)) == pytest.approx(1, abs=0.1)


A = np.array([[0.7, 0.2], [-0.1, 0.5]])
C = np.array([1.0, -2.0])
L = np.array([[1.0, 0.0], [0.5, 0.7]])


def autoregression(start: Array, steps: int, z: Array) -> Array:
    """x_t = C + A x_{t-1} + L z_t from start (…, 2), (…, steps, 2)."""
    rows, x = [], start
    for step in range(steps):
        x = C + x @ A.T + z[..., step, :] @ L.T
        rows.append(x)
    return np.stack(rows, -2)


def test_a_vector_autoregression_is_forecast_as_by_its_own_law() -> None:
    start = np.linalg.solve(np.eye(2) - A, C)
    x = autoregression(start, 3000, normals(3000, 2))
    origins = range(1000, 2950, 130)
    truth = np.stack([x[at : at + 10] for at in origins])
    found = np.stack([
        vector_autoregression(x[at - 800 : at], 10, 200, season=None, noise=Noise(1), first=at * 200) for at in origins
    ])  # fmt: skip
    z = normals(len(origins), 200, 10, 2, seed=7)
    exact = autoregression(np.stack([x[at - 1] for at in origins])[:, None].repeat(200, 1), 10, z)
    for score in (measures.crps_sum, measures.crps, measures.energy_score):
        assert score(found, truth) < 1.03 * score(exact, truth)
    # the law itself, at the last origin: mean and covariance at every step
    many = vector_autoregression(x, 3, 20_000, season=None, noise=Noise(2))
    mean, covariance = x[-1], np.zeros((2, 2))
    for step in range(3):
        mean, covariance = C + A @ mean, A @ covariance @ A.T + L @ L.T
        assert many[:, step].mean(0) == pytest.approx(mean, abs=0.15)
        assert np.cov(many[:, step].T) == pytest.approx(covariance, abs=0.12)


def test_a_vector_autoregression_of_higher_order_finds_its_lags() -> None:
    """x_t = 0.9 x_{t-3} + e: one step ahead the error is e alone, and the mean is 0.9 of what was three steps before."""
    x = np.zeros((4000, 1))
    z = normals(4000, 1)
    for t in range(3, 4000):
        x[t] = 0.9 * x[t - 3] + z[t]
    found = vector_autoregression(x, 3, 5000, season=None, noise=Noise(1))
    assert found.mean(0)[:, 0] == pytest.approx(0.9 * x[-3:, 0], abs=0.25)
    assert found.std(0)[:, 0] == pytest.approx(1, abs=0.05)


UNFIT: dict[str, tuple[Array, str]] = {
    "short": (normals(9, 2), "history has 9 steps since its last gap"),
    "gap": (np.concatenate([normals(300, 2), [[NAN, 1.0]], normals(5, 2)]), "history has 5 steps since its last gap"),
    "flat": (np.concatenate([normals(300, 1), np.ones((300, 1))], 1), "channel 1 of history never changes"),
    "same": (normals(300, 1).repeat(2, 1), "history of 300 steps has no VAR"),
    "sum": (normals(300, 2) @ np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), "history of 300 steps has no VAR"),
    "many": (normals(400, 250), "250 channels"),
}


@pytest.mark.parametrize("name", sorted(UNFIT))
def test_a_vector_autoregression_says_why_it_cannot_be_fitted(name: str) -> None:
    with pytest.raises(InputError, match=UNFIT[name][1]) as error:
        vector_autoregression(UNFIT[name][0], 3, 10, season=None, noise=Noise(0))
    assert "\n" not in str(error.value)


EXACT_GAPS = np.array([[NAN, 1.0], [2.0, NAN], [NAN, NAN], [NAN, 7.0], [8.0, NAN]])
FILLED = {
    "mean": [[5.0, 1], [2, 4], [5, 4], [5, 7], [8, 4]],
    "last value": [[2.0, 1], [2, 1], [2, 1], [2, 7], [8, 7]],
    "linear interpolation": [[2.0, 1], [2, 3], [4, 5], [6, 7], [8, 7]],
}


@pytest.mark.parametrize("name", sorted(FILLED))
def test_imputers_by_hand(name: str) -> None:
    found = IMPUTERS[name](EXACT_GAPS, draws=3, noise=Noise(0))
    assert found == pytest.approx(np.stack([FILLED[name]] * 3))


def test_a_straight_line_with_gaps_is_interpolated_exactly() -> None:
    line = np.arange(200.0)[:, None] * [0.25, -3.0]
    gaps = line.copy()
    gaps[1:-1][Noise(0).uniform((198, 2)).numpy() < 0.7] = NAN
    assert IMPUTERS["linear interpolation"](gaps, draws=1, noise=Noise(0))[0] == pytest.approx(line, abs=1e-9)


def process(length: float, noise: float, time: int, windows: int, seed: int) -> Array:
    places = np.arange(time)
    distance = math.sqrt(5) * np.abs(places[:, None] - places) / length
    covariance = (1 + distance + distance**2 / 3) * np.exp(-distance) + noise**2 * np.eye(time)
    return normals(windows, time, seed=seed) @ np.linalg.cholesky(covariance).T


def conditional(covariance: Array, x: Array, there: NDArray[np.bool_], z: Array) -> Array:
    gain = covariance[np.ix_(~there, there)] @ np.linalg.inv(covariance[np.ix_(there, there)])
    spread = covariance[np.ix_(~there, ~there)] - gain @ covariance[np.ix_(there, ~there)]
    return gain @ x[there] + z @ np.linalg.cholesky(spread).T


def test_the_gaussian_process_is_calibrated_on_its_own_kind_of_data() -> None:
    windows, time = 30, 80
    x = 100 + 20 * process(6.0, 0.2, time, windows, 0)
    gaps = x.copy()
    gaps[Noise(4).uniform(gaps.shape).numpy() < 0.4] = NAN
    gaps[:, 30:38] = NAN
    found = np.stack([
        impute_process(one[:, None], draws=100, noise=Noise(1), first=k * 100)[:, :, 0] for k, one in enumerate(gaps)
    ])  # fmt: skip
    places = np.arange(time)
    distance = math.sqrt(5) * np.abs(places[:, None] - places) / 6.0
    covariance = 400 * ((1 + distance + distance**2 / 3) * np.exp(-distance) + 0.04 * np.eye(time))
    exact = found.copy()
    for k, one in enumerate(gaps):
        there = np.isfinite(one)
        z = normals(100, int((~there).sum()), seed=100 + k)
        exact[k][:, ~there] = 100 + conditional(covariance, one - 100, there, z)
    truth = np.where(np.isfinite(gaps), NAN, x)[..., None]
    assert measures.coverage(found[..., None], truth, 0.9) == pytest.approx(0.9, abs=0.05)
    assert measures.crps(found[..., None], truth) < 1.1 * measures.crps(exact[..., None], truth)
    # joint: the mean over the whole gap of eight
    block, whole = found[:, :, None, 30:38].mean(-1, keepdims=True), x[:, None, 30:38].mean(-1, keepdims=True)
    ideal = exact[:, :, None, 30:38].mean(-1, keepdims=True)
    assert block.std(1).mean() == pytest.approx(ideal.std(1).mean(), rel=0.3)
    assert measures.crps(block, whole) < 1.3 * measures.crps(ideal, whole)


def test_a_channel_that_was_not_seen_takes_the_fallback() -> None:
    values = np.stack([normals(12), np.full(12, NAN)], 1)
    values[3, 0] = NAN
    fallback = Marginals.of(np.stack([5 + normals(4, 300), 40 + 3 * normals(4, 300, seed=1)], -1))
    assert fallback.mean == pytest.approx([5, 40], abs=0.5)
    for name, imputer in IMPUTERS.items():
        found = imputer(values, draws=2000, noise=Noise(0), fallback=fallback)
        assert found[:, :, 1].mean() == pytest.approx(fallback.mean[1], abs=0.1), name
        assert (found[:, [0, 1, 2], 0] == values[[0, 1, 2], 0]).all()
        with pytest.raises(InputError, match=r"channel 1 of values has 0 known numbers.*fallback"):
            imputer(values, draws=2, noise=Noise(0))
    found = impute_process(values, draws=2000, noise=Noise(0), fallback=fallback)
    assert found[:, 5, 1].std() == pytest.approx(fallback.std[1], rel=0.1)


@pytest.mark.parametrize("name", sorted(IMPUTERS))
def test_imputers_keep_what_is_known_and_their_argument(name: str) -> None:
    values = normals(30, 2)
    values[4:9, 0] = NAN
    values[:, 1] = np.round(values[:, 1], 3)
    before = values.copy()
    found = IMPUTERS[name](values, draws=4, noise=Noise(0))
    known = np.isfinite(values)
    assert found.shape == (4, 30, 2)
    assert np.isfinite(found).all()
    assert (found[:, known] == values[known]).all()
    assert np.array_equal(values, before, equal_nan=True)


@pytest.mark.parametrize("name", sorted(FORECASTERS))
def test_a_draw_is_its_own_whatever_the_batch(name: str) -> None:
    history = walks(1, 120, L)[0]
    whole = FORECASTERS[name](history, 7, 10, season=5, noise=Noise(3))
    part = FORECASTERS[name](history, 7, 4, season=5, noise=Noise(3), first=6)
    assert whole.shape == (10, 7, 2)
    assert whole.dtype == np.float64
    assert part == pytest.approx(whole[6:], rel=1e-12)
    assert np.array_equal(whole, FORECASTERS[name](history, 7, 10, season=5, noise=Noise(3)))


@pytest.mark.parametrize("name", sorted(FORECASTERS))
@pytest.mark.parametrize("history", [normals(60)[:, None] * [1.0, NAN], normals(60), normals(0, 2), normals(60, 1) + np.inf])
def test_forecasters_refuse_what_is_no_history(name: str, history: Array) -> None:
    with pytest.raises(InputError, match="history") as error:
        FORECASTERS[name](history, 3, 2, season=5, noise=Noise(0))
    assert "\n" not in str(error.value)


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "horizon": (lambda: last_value(normals(9, 1), 0, 2, season=None, noise=Noise(0)), "horizon=0"),
    "draws": (lambda: last_value(normals(9, 1), 2, 0, season=None, noise=Noise(0)), "draws=0"),
    "season": (lambda: seasonal_naive(normals(9, 1), 2, 2, season=None, noise=Noise(0)), "season=None"),
    "one season": (lambda: seasonal_naive(normals(9, 1), 2, 2, season=10, noise=Noise(0)), "history has 9 steps"),
    "two seasons": (
        lambda: FORECASTERS["seasonal naive + residuals"](normals(9, 1), 2, 2, season=5, noise=Noise(0)),
        "history has 9 steps",
    ),
    "late channel": (
        lambda: FORECASTERS["seasonal naive + residuals"](
            np.concatenate([np.full((6, 1), NAN), normals(6, 1)]), 2, 2, season=4, noise=Noise(0)
        ),
        "history has 6 steps in which",
    ),
    "walk": (lambda: gaussian_walk(normals(1, 1), 2, 2, season=None, noise=Noise(0)), "history has 1 steps in which"),
    "values": (lambda: IMPUTERS["mean"](normals(5), draws=2, noise=Noise(0)), "values have shape"),
    "fallback": (
        lambda: IMPUTERS["mean"](normals(5, 2), draws=2, noise=Noise(0), fallback=Marginals.of(normals(9, 3))),
        "fallback is of shape",
    ),
    "train": (lambda: Marginals.of(np.full((4, 1), NAN)), "channel 0 of train"),
    "process long": (
        lambda: impute_process(np.concatenate([normals(2001, 1), [[NAN]]]), draws=1, noise=Noise(0)),
        "2001 known numbers",
    ),
    "process unseen": (lambda: impute_process(np.array([[1.0], [2.0], [NAN]]), draws=1, noise=Noise(0)), "3 needed"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_wrong_input_is_one_line(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_naive_rows_of_the_exchange_rates_are_the_known_ones(shared: Path) -> None:
    """The reference: on the last 150 training days, five windows of 30, last value 0.0110 and Gaussian walk about 0.0086."""
    rates = np.genfromtxt(shared / "exchange_rate" / "exchange_rate_train.csv", delimiter=",", skip_header=1)[:, 1:]
    assert rates.shape == (6071, 8)
    origins = range(6071 - 150, 6071, 30)
    truth = np.stack([rates[at : at + 30] for at in origins])
    scores = {}
    for name in ("last value", "gaussian walk"):
        found = np.stack([
            FORECASTERS[name](rates[:at], 30, 400, season=5, noise=Noise(0), first=k * 400) for k, at in enumerate(origins)
        ])  # fmt: skip
        scores[name] = measures.crps_sum(found, truth)
    assert scores["last value"] == pytest.approx(0.0110, abs=0.0002)
    assert scores["gaussian walk"] == pytest.approx(0.0084, abs=0.0005)
