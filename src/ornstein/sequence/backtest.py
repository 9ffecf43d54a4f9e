"""Backtests: a model and honest baselines forecast from the same origins, and are held against what came."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ornstein.files import InputError
from ornstein.metrics import forecast as measures
from ornstein.noise import Noise
from ornstein.progress import track
from ornstein.samplers import Plan
from ornstein.sequence.baselines import FORECASTERS
from ornstein.sequence.data import Series
from ornstein.sequence.predict import SequenceModel, forecasts

Draws = NDArray[np.float64]
Columns = dict[str, float]
COVERED = 0.8
"""The probability of the central intervals whose coverage is measured."""
LEAST_FOR_COVERAGE = 9
"""Fewer draws hold no such interval."""


@dataclass(frozen=True, eq=False)
class Backtest:
    """What was forecast of `truth` (windows, horizon, C): a row of figures for every forecaster, and the model's draws (windows,
    draws, horizon, C), in the data's own units. `refused` names baselines that could not be fitted, and why."""

    rows: dict[str, Columns]
    truth: Draws
    draws: Draws
    origins: tuple[int, ...]
    seconds: dict[str, float]
    refused: dict[str, str]

    def table(self) -> str:
        """The rows as text, in columns."""
        columns = list(next(iter(self.rows.values())))
        width = max(len(name) for name in self.rows)
        lines = [" " * width + "".join(f"{column:>14}" for column in columns)]
        lines += [f"{name:<{width}}" + "".join(f"{row[column]:>14.5g}" for column in columns) for name, row in self.rows.items()]
        lines += [f"{name}: {why}" for name, why in self.refused.items()]
        return "\n".join(lines)


def backtest(
    model: SequenceModel,
    series: Series,
    origins: Sequence[int],
    *,
    horizon: int,
    draws: int,
    noise: Noise,
    season: int | None,
    sampler: Plan | int | None = None,
    baselines: Sequence[str] = tuple(FORECASTERS),
    name: str = "model",
    batch_size: int | None = None,
    progress: bool = False,
) -> Backtest:
    """The figures of a model and of baselines (see `FORECASTERS`) from rolling origins; each sees the rows before it alone.

    InputError for an unknown baseline, or windows that go beyond the series.
    """
    if unknown := [wanted for wanted in baselines if wanted not in FORECASTERS]:
        raise InputError(f"baseline={unknown[0]!r} is not one of {', '.join(FORECASTERS)}")
    if origins[-1] + horizon > len(series):
        raise InputError(
            f"the last window ends at row {origins[-1] + horizon}, the series at {len(series)}; ask for fewer windows"
        )
    truth = np.stack([series.values[at : at + horizon] for at in origins])
    history = series.values[: origins[0]]
    seconds: dict[str, float] = {}
    begun = time.monotonic()
    own = forecasts(
        model,
        series,
        origins,
        horizon=horizon,
        draws=draws,
        noise=noise,
        sampler=sampler,
        batch_size=batch_size,
        progress=progress,
    )
    seconds[name] = time.monotonic() - begun
    rows, refused = {name: figures(own, truth, history, season)}, {}
    for baseline in track(baselines, len(baselines), "baselines", enabled=progress):
        begun = time.monotonic()
        try:
            drawn = rolled(FORECASTERS[baseline], series, origins, horizon, draws, season, noise)
        except InputError as error:
            refused[baseline] = str(error)
            continue
        seconds[baseline] = time.monotonic() - begun
        rows[baseline] = figures(drawn, truth, history, season)
    return Backtest(rows, truth, own, tuple(origins), seconds, refused)


def rolled(
    forecaster: Callable[..., Draws], series: Series, origins: Sequence[int], horizon: int, draws: int, season: int | None,
    noise: Noise,
) -> Draws:  # fmt: skip
    """Draws (origins, draws, horizon, C) of a baseline; draw j at origin i is sample i·draws + j of the noise."""
    return np.stack(
        [
            forecaster(series.values[:at], horizon, draws, season=season, noise=noise, first=number * draws)
            for number, at in enumerate(origins)
        ]
    )


def figures(draws: Draws, truth: Draws, history: Draws, season: int | None) -> Columns:
    """CRPS-sum and CRPS by quantiles (GluonTS's), CRPS and energy score by draws, errors of median and mean, and coverage where
    there are `LEAST_FOR_COVERAGE` draws."""
    found: dict[str, Callable[[], float]] = {
        "CRPS-sum": lambda: measures.crps_sum(draws, truth),
        "wQL": lambda: measures.weighted_quantile_loss(draws, truth),
        "CRPS": lambda: measures.crps(draws, truth),
        "energy score": lambda: measures.energy_score(draws, truth),
        "MAE": lambda: measures.mae(draws, truth),
        "RMSE": lambda: measures.rmse(draws, truth),
        "MASE": lambda: measures.mase(draws, truth, history, season),
    }
    if draws.shape[1] >= LEAST_FOR_COVERAGE:
        found["coverage 80 %"] = lambda: measures.coverage(draws, truth, COVERED)
    return {column: float(value()) for column, value in found.items()}
