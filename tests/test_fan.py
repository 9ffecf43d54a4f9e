"""Fan charts: a panel per channel, gaps left open, and any index."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from ornstein import figures
from ornstein.figures import fan
from ornstein.noise import Noise
from ornstein.sequence import Forecast

INDICES = {
    "days": pd.date_range("2024-01-01", periods=30, freq="D"),
    "zone": pd.date_range("2024-03-30", periods=30, freq="h", tz="Europe/Berlin"),
    "numbers": pd.RangeIndex(30),
    "years": pd.Index(np.arange(1900, 1930)),
}


def draws(steps: int, channels: int) -> np.ndarray:
    return Noise(0).normal((50, steps, channels), dtype=torch.float64).numpy().cumsum(1)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    found: list[Figure] = []
    save = fan.save

    def keep(figure: Figure, path: Path) -> None:
        found.append(figure)
        save(figure, path)

    monkeypatch.setattr(fan, "save", keep)
    return found


@pytest.mark.parametrize("index", INDICES)
def test_a_forecast_on_any_index(index: str, tmp_path: Path, drawn: list[Figure]) -> None:
    stamps = INDICES[index]
    history = pd.DataFrame(draws(20, 2)[0], index=stamps[:20], columns=["a", "b"])
    history.iloc[5:8, 0] = np.nan
    forecast = Forecast(draws(10, 2), stamps[20:], ("a", "b"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.fan_chart(forecast, tmp_path / "fan.png", history=history, truth=np.zeros((10, 2)))
    assert (tmp_path / "fan.png").stat().st_size > 1000
    panels = drawn[0].axes
    assert [panel.get_ylabel() for panel in panels] == ["a", "b"]
    lines = {line.get_label(): line for line in panels[0].get_lines()}
    assert np.isnan(np.asarray(lines["history"].get_ydata(), float)).sum() == 3
    assert np.allclose(np.asarray(lines["median"].get_ydata(), float), forecast.median[:, 0])
    assert np.allclose(np.asarray(lines["what came"].get_ydata(), float), 0)


def test_of_many_channels_the_first_are_drawn(tmp_path: Path, drawn: list[Figure]) -> None:
    forecast = Forecast(draws(10, 12), pd.RangeIndex(10), tuple(map(str, range(12))))
    figures.fan_chart(forecast, tmp_path / "fan.png")
    assert len(drawn[0].axes) == fan.PANELS


def test_of_an_imputation_only_gaps_have_a_fan(tmp_path: Path, drawn: list[Figure]) -> None:
    observed = np.ones((30, 1), bool)
    observed[10:14] = False
    filled = np.where(observed, 1.0, draws(30, 1))
    figures.fan_chart(Forecast(filled, INDICES["days"], ("a",), observed=observed), tmp_path / "fan.png")
    lines = {line.get_label(): np.asarray(line.get_ydata(), float) for line in drawn[0].axes[0].get_lines()}
    assert np.isfinite(lines["median"]).sum() == 4
    assert np.isfinite(lines["observed"]).sum() == 26
