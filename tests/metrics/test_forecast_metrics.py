"""Scores of forecasts: closed forms, hand computations, and honest draws that must be found honest."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm

from ornstein import metrics
from ornstein.files import InputError
from ornstein.metrics import forecast
from ornstein.noise import Noise

Array = NDArray[np.float64]
SCORES: dict[str, Callable[[Array, Array], float]] = {
    "wQL": forecast.weighted_quantile_loss,
    "CRPS-sum": forecast.crps_sum,
    "CRPS": forecast.crps,
    "energy score": forecast.energy_score,
    "energy score of everything": lambda draws, truth: forecast.energy_score(draws, truth, over="all"),
    "MAE": forecast.mae,
    "RMSE": forecast.rmse,
}


def normals(*shape: int, seed: int = 0, stream: str = "x") -> Array:
    return Noise(seed).normal(shape, stream=stream, dtype=torch.float64).numpy()


def exact(windows: int, draws: int, time: int = 1, channels: int = 1, seed: int = 0) -> tuple[Array, Array]:
    """Draws and truth of one normal law per number, each with its own place and size."""
    place = 5 * normals(windows, 1, time, channels, seed=seed, stream="place")
    size = np.exp(normals(windows, 1, time, channels, seed=seed, stream="size"))
    x = place + size * normals(windows, draws + 1, time, channels, seed=seed)
    return x[:, 1:], x[:, 0]


def test_crps_of_normal_draws_is_the_closed_form() -> None:
    mean, std, truth = 0.7, 1.8, normals(4000, 1, 1, stream="truth") * 2
    draws = mean + std * normals(4000, 20, 1, 1)
    z = (truth - mean) / std
    closed = std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / math.sqrt(math.pi))
    # the fair estimator is unbiased at 20 draws; the plain one would be 5 % of sigma/sqrt(pi) too large
    assert forecast.crps(draws, truth) == pytest.approx(float(closed.mean()), rel=0.01)


@given(draws=st.integers(2, 30), seed=st.integers(0, 99), channels=st.integers(1, 4))
def test_crps_and_energy_score_are_their_definitions(draws: int, seed: int, channels: int) -> None:
    x, y = exact(3, draws, 2, channels, seed)
    pairs = draws * (draws - 1)
    crps = np.abs(x - y[:, None]).mean(1) - 0.5 * np.abs(x[:, :, None] - x[:, None]).sum((1, 2)) / pairs
    assert forecast.crps(x, y) == pytest.approx(float(crps.mean()), rel=1e-9)
    between = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1).sum((1, 2))
    score = np.linalg.norm(x - y[:, None], axis=-1).mean(1) - 0.5 * between / pairs
    assert forecast.energy_score(x, y) == pytest.approx(float(score.mean()), rel=1e-9)
    flat, one = x.reshape(3, draws, 1, -1), y.reshape(3, 1, -1)
    assert forecast.energy_score(x, y, over="all") == pytest.approx(forecast.energy_score(flat, one), rel=1e-9)
    if channels == 1:
        assert forecast.energy_score(x, y) == pytest.approx(forecast.crps(x, y), rel=1e-9)


def test_energy_score_in_pieces_is_that_of_the_whole() -> None:
    x, y = exact(400, 120, 2, 3)
    parts = [forecast.energy_score(x[k : k + 1], y[k : k + 1]) for k in range(400)]
    assert forecast.energy_score(x, y) == pytest.approx(float(np.mean(parts)), rel=1e-12)


def test_weighted_quantile_loss_by_hand() -> None:
    # 11 draws 0 … 10: the quantile at q is the draw of place round(10 q), halves to even
    draws = np.arange(11.0)[::-1].reshape(1, 11, 1, 1)
    truth = np.array([[[4.0]]])
    # q = 0.1: draw 1, 2·|4-1|·0.1 = 0.6;  q = 0.25: draw 2 (2.5 to even), 2·2·0.25 = 1;  q = 0.9: draw 9, 2·5·0.1 = 1
    assert forecast.weighted_quantile_loss(draws, truth, (0.1, 0.25, 0.9)) == pytest.approx((0.6 + 1 + 1) / 3 / 4)
    # q = 0.75: draw 8 (7.5 to even), 2·4·0.25 = 2;  q = 0.28: draw 3 (2.8), 2·1·0.28 = 0.56
    assert forecast.weighted_quantile_loss(draws, truth, (0.75, 0.28)) == pytest.approx((2 + 0.56) / 2 / 4)
    two = np.concatenate([draws, 2 * draws])
    truths = np.array([[[4.0]], [[-10.0]]])
    # q = 0.9 of the second: draw 18, 2·28·0.1 = 5.6; numerators and |y| are added up before they are divided
    assert forecast.weighted_quantile_loss(two, truths, (0.9,)) == pytest.approx((1 + 5.6) / 14)
    assert pytest.approx([0.05 * k for k in range(1, 20)]) == forecast.QUANTILES


def test_crps_sum_is_the_loss_of_the_summed_channels() -> None:
    x, y = exact(5, 50, 4, 3)
    summed = forecast.weighted_quantile_loss(x.sum(-1, keepdims=True), y.sum(-1, keepdims=True))
    assert forecast.crps_sum(x, y) == pytest.approx(summed, rel=1e-12)
    y[2, 1, 0] = np.nan  # a sum with an unknown term is unknown
    cut, rest = x.sum(-1), y.sum(-1)
    known = np.isfinite(rest)
    flat = cut.swapaxes(1, 2)[known][..., None, None]
    assert forecast.crps_sum(x, y) == pytest.approx(forecast.weighted_quantile_loss(flat, rest[known][:, None, None]), rel=1e-12)


def test_many_quantiles_integrate_to_crps() -> None:
    x, y = exact(60, 400)
    loss = forecast.weighted_quantile_loss(x, y, tuple((k + 0.5) / 400 for k in range(400)))
    assert loss * np.abs(y).mean() == pytest.approx(forecast.crps(x, y), rel=0.01)


@pytest.mark.parametrize("name", sorted(SCORES))
def test_a_perfect_forecast_scores_nothing(name: str) -> None:
    y = normals(3, 4, 2)
    assert SCORES[name](np.repeat(y[:, None], 25, 1), y) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["wQL", "CRPS", "energy score", "MAE", "RMSE"])
def test_what_is_not_known_is_not_evaluated(name: str) -> None:
    x, y = exact(6, 30, 5, 1)
    hidden = Noise(1).uniform(y.shape).numpy() < 0.4
    rest = SCORES[name](x.swapaxes(1, 2)[~hidden[..., 0]][..., None], y[~hidden][:, None, None])
    y[hidden] = np.nan
    x.swapaxes(1, 2)[hidden[..., 0]] = np.nan  # draws are not looked at there either
    assert SCORES[name](x, y) == pytest.approx(rest, rel=1e-12)


def test_energy_score_leaves_out_the_unknown_channel() -> None:
    x, y = exact(4, 20, 3, 3)
    y[..., 1] = np.nan
    assert forecast.energy_score(x, y) == pytest.approx(forecast.energy_score(x[..., [0, 2]], y[..., [0, 2]]), rel=1e-12)


def test_errors_of_median_and_mean() -> None:
    draws = np.array([0.0, 1.0, 8.0]).reshape(1, 3, 1, 1)
    assert forecast.mae(draws, np.array([[[3.0]]])) == 2
    assert forecast.rmse(draws, np.array([[[5.0]]])) == 2
    both = np.repeat(draws, 2, 0)
    assert forecast.rmse(both, np.array([[[5.0]], [[3.0]]])) == pytest.approx(math.sqrt(2))


def test_mase_is_scaled_by_the_seasonal_error_of_the_history() -> None:
    history = np.array([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0], [np.nan, 5.0], [5.0, 5.0]])
    draws = np.zeros((1, 3, 2, 2))
    truth = np.array([[[3.0, 1.0], [-6.0, 9.0]]])
    # first channel: season 1: |2-1|, |4-2| -> 1.5; season 2: |4-1|, |5-4| -> 2; the second never changes and has no scale
    assert forecast.mase(draws, truth, history) == pytest.approx(4.5 / 1.5)
    assert forecast.mase(draws, truth, history, 2) == pytest.approx(4.5 / 2)
    assert forecast.mase(draws, truth, history[None], 2) == pytest.approx(4.5 / 2)
    with pytest.raises(InputError, match="no channel of history"):
        forecast.mase(draws, truth, history[:2], 2)


def test_coverage_is_that_of_an_ensemble() -> None:
    x, y = exact(500, 39, 2, 2)
    assert forecast.coverage(x, y, 0.8) == metrics.Ensemble(torch.from_numpy(x)).coverage(torch.from_numpy(y), 0.8)
    assert forecast.coverage(x, y, 0.8) == pytest.approx(0.8, abs=0.035)
    y[::2] = np.nan
    assert forecast.coverage(x, y, 0.8) == forecast.coverage(x[1::2], y[1::2], 0.8)
    with pytest.raises(InputError, match=r"39 draws hold no interval of probability 0\.99"):
        forecast.coverage(x, y, 0.99)


@pytest.mark.parametrize("draws", [1, 4, 99])
@pytest.mark.parametrize("ties", [False, True])
def test_pit_of_honest_draws_is_uniform(draws: int, ties: bool) -> None:
    windows = 10_000
    x, y = exact(windows, draws)
    if ties:
        x, y = np.sign(normals(windows, draws, 1, 1)), np.sign(normals(windows, 1, 1, stream="truth"))
    values = forecast.pit(x, y, Noise(3))
    assert values.shape == y.shape
    # six cases share this bound: chance alone breaks one of them with probability 0.006 for a new seed; power comes from numbers
    assert forecast.pit_uniformity(values) > 1e-3
    counts = forecast.rank_histogram(x, y, Noise(3), bins=10)
    assert counts.sum() == windows
    assert np.abs(counts - windows / 10).max() < 5 * math.sqrt(windows * 0.09)


def test_pit_finds_dishonest_draws() -> None:
    x, y = exact(500, 50)
    centre = x.mean(1, keepdims=True)
    for dishonest in (centre + 0.6 * (x - centre), centre + 1.7 * (x - centre), x + 0.7 * x.std(1, keepdims=True)):
        assert forecast.pit_uniformity(forecast.pit(dishonest, y, Noise(0))) < 1e-3


def test_pit_and_ranks_by_hand() -> None:
    x = np.array([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1).repeat(5, 0)
    y = np.array([0.0, 1.5, 2.5, 9.0, np.nan]).reshape(5, 1, 1)
    values = forecast.pit(x, y, Noise(0))
    assert np.floor(4 * values[:4, 0, 0]).tolist() == [0, 1, 2, 3]
    assert np.isnan(values[4, 0, 0])
    assert forecast.rank_histogram(x, y, Noise(0)).tolist() == [1, 1, 1, 1]
    assert np.array_equal(values[2:], forecast.pit(x[2:], y[2:], Noise(0), first=2), equal_nan=True)


BAD: dict[str, tuple[Callable[[Array, Array], object], str]] = {
    "axes": (lambda x, y: forecast.mae(x[0], y), "draws have shape"),
    "shapes": (lambda x, y: forecast.mae(x[..., :1], y), "truth has shape"),
    "no draws": (lambda x, y: forecast.mae(x[:, :0], y), "draws have shape"),
    "nothing known": (lambda x, y: forecast.mae(x, y * np.nan), "truth holds no number"),
    "infinite truth": (lambda x, y: forecast.mae(x, y + np.inf), "truth holds infinity"),
    "draws not finite": (lambda x, y: forecast.mae(x * np.nan, y), "draws hold"),
    "one draw": (lambda x, y: forecast.crps(x[:, :1], y), "draws=2"),
    "one draw of several": (lambda x, y: forecast.energy_score(x[:, :1], y), "draws=2"),
    "over": (lambda x, y: forecast.energy_score(x, y, over="time"), "over='time'"),
    "zero truth": (lambda x, y: forecast.weighted_quantile_loss(x, 0 * y), "nothing but zeros"),
    "quantiles": (lambda x, y: forecast.weighted_quantile_loss(x, y, (0.5, 1.5)), "quantiles"),
    "no quantiles": (lambda x, y: forecast.weighted_quantile_loss(x, y, ()), "quantiles"),
    "level": (lambda x, y: forecast.coverage(x, y, 1.0), "level=1"),
    "season": (lambda x, y: forecast.mase(x, y, y[0], 0), "season=0"),
    "history": (lambda x, y: forecast.mase(x, y, y[0, :, :1]), "history has shape"),
    "pit": (lambda x, y: forecast.pit_uniformity(np.array([0.5, 1.5])), "values"),
    "bins": (lambda x, y: forecast.rank_histogram(x, y, Noise(0), bins=0), "bins=0"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_wrong_input_is_one_line(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(InputError, match=message) as error:
        call(*exact(2, 5, 3, 2))
    assert "\n" not in str(error.value)


def test_arguments_stay_as_they_were() -> None:
    x, y = exact(3, 25, 4, 2)
    y[0, 0, 0] = np.nan
    before = x.copy(), y.copy()
    for score in SCORES.values():
        score(x, y)
    forecast.pit(x, y, Noise(0))
    assert np.array_equal(x, before[0])
    assert np.array_equal(y, before[1], equal_nan=True)
