"""The linear map of windows: exact where data are linear, as good as the law where they are autoregressive, honest errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ornstein.files import InputError
from ornstein.metrics import forecast as measures
from ornstein.noise import Noise
from ornstein.sequence.linear import fit_linear

NAN = np.nan
A = np.array([0.7, 0.5])
C = np.array([1.0, -2.0])
L = np.array([[1.0, 0.0], [0.5, 0.7]])


def normals(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return Noise(seed).normal(shape, stream="x", dtype=torch.float64).numpy()


def test_a_linear_trend_is_exact_for_the_linear_map() -> None:
    trend = np.arange(300.0)[:, None] * [0.5, -2.0] + [7.0, 1e3]
    found = fit_linear(trend[:200], 24, 12)(trend[:250], 12, 3, noise=Noise(0))
    assert found == pytest.approx(np.stack([trend[250:262]] * 3), abs=1e-6)
    wave = np.sin(np.arange(400.0) / 5)[:, None]
    assert fit_linear(wave[:300], 24, 12)(wave[:350], 6, 1, noise=Noise(0))[0] == pytest.approx(wave[350:356], abs=1e-6)


def test_the_linear_map_is_as_good_as_the_law_of_an_autoregression() -> None:
    """Errors grow and are correlated over time and channels as the law says: sums over both are honest too."""
    start = C / (1 - A)
    rows, x, z = [], start, normals(22_000, 2) @ L.T
    for shock in z:
        x = C + A * x + shock
        rows.append(x)
    series = np.stack(rows)
    model = fit_linear(series[:12_000], 8, 10, relative=False)
    origins = range(12_100, 21_900, 60)
    truth = np.stack([series[at : at + 10] for at in origins])
    found = np.stack([model(series[:at], 10, 80, noise=Noise(3), first=at * 80) for at in origins])
    exact = np.zeros_like(found)
    state = np.stack([series[at - 1] for at in origins])[:, None].repeat(80, 1)
    shocks = normals(len(truth), 80, 10, 2, seed=8) @ L.T
    for step in range(10):
        state = C + A * state + shocks[:, :, step]
        exact[:, :, step] = state
    for score in (measures.crps_sum, measures.crps, measures.energy_score):
        assert score(found, truth) == pytest.approx(score(exact, truth), rel=0.02)
    assert measures.coverage(found, truth, 0.9) == pytest.approx(0.9, abs=0.02)
    # variances of sums see the dependence over time and between channels
    assert found.sum((2, 3)).std(1).mean() == pytest.approx(exact.sum((2, 3)).std(1).mean(), rel=0.06)


@pytest.mark.parametrize("coefficients", [(0.7, 0.5), (0.95, 0.3), (0.9, -0.5), (0.6, 0.0)])
def test_the_linear_maps_errors_keep_the_correlation_of_channels(coefficients: tuple[float, float]) -> None:
    shocks = normals(12_000, 2) @ np.linalg.cholesky(np.array([[1.0, 0.9], [0.9, 1.0]])).T
    x = np.zeros_like(shocks)
    for t in range(1, len(x)):
        x[t] = np.asarray(coefficients) * x[t - 1] + shocks[t]
    found = fit_linear(x, 8, 10, relative=False)(x, 10, 4000, noise=Noise(3))
    first = np.corrcoef(found[:, 0].T)[0, 1]
    assert first == pytest.approx(0.9, abs=0.03)
    # at step k the covariance is 0.9 Σ (ab)^j over j < k
    a, b = coefficients
    powers = np.arange(10)
    cross = 0.9 * ((a * b) ** powers).sum() / math.sqrt((a ** (2 * powers)).sum() * (b ** (2 * powers)).sum())
    assert np.corrcoef(found[:, -1].T)[0, 1] == pytest.approx(cross, abs=0.08)


def test_the_linear_map_steps_over_gaps_and_shrinks_with_a_ridge() -> None:
    x = normals(1500, 2).cumsum(0)
    x[::29, 1] = NAN
    x[-3, 0] = NAN
    model = fit_linear(x, 6, 4, windows=700)
    found = model(x, 4, 10, noise=Noise(0))
    assert np.isfinite(found).all()
    shrunk = fit_linear(x, 6, 4, ridge=1e9)
    assert np.abs(shrunk.weights).max() < 1e-6
    assert np.abs(model.weights).max() > 1e-3


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "short": (lambda: fit_linear(normals(50, 1), 24, 12), "train has 50 steps"),
    "gaps": (lambda: fit_linear(normals(500, 1) + np.where(np.arange(500) % 9, 0, NAN)[:, None], 24, 12), "channel 0"),
    "shape": (lambda: fit_linear(normals(500), 24, 12), "train has shape"),
    "ridge": (lambda: fit_linear(normals(500, 1), 24, 12, ridge=-1), "ridge=-1"),
    "history": (lambda: fit_linear(normals(99, 1), 9, 2)(normals(8, 1), 2, 1, noise=Noise(0)), "history has shape"),
    "far": (lambda: fit_linear(normals(99, 1), 9, 2)(normals(9, 1), 3, 1, noise=Noise(0)), "horizon=3"),
    "unseen": (
        lambda: fit_linear(normals(99, 1), 9, 2)(np.concatenate([normals(3, 1), np.full((9, 1), NAN)]), 2, 1, noise=Noise(0)),
        "the last 9 steps of history",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_wrong_input_is_one_line(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
