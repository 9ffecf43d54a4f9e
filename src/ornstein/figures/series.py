"""What a model of series makes of data that it was not trained on."""

from __future__ import annotations

from pathlib import Path

from ornstein.figures.fan import fan_chart
from ornstein.noise import Noise
from ornstein.sequence import Forecast
from ornstein.sequence.predict import SequenceModel, forecasts
from ornstein.sequence.windows import SeriesData

DRAWS = 60
"""Draws of the picture: enough for its quantiles."""


def held_out_forecast(model: SequenceModel, held: SeriesData, out: Path, *, seed: int = 0) -> None:
    """The fan chart of the last held-out window, beside what came."""
    item, start = (int(number) for number in held.places[-1])
    one, origin = held.series[item], start + held.context
    drawn = forecasts(model, one, [origin], horizon=held.horizon, draws=DRAWS, noise=Noise(seed))
    stop = origin + held.horizon
    shown = Forecast(drawn[0], one.index[origin:stop], one.channels, one.item)
    fan_chart(shown, out, history=one.head(origin).tail(start).frame(), truth=one.values[origin:stop])
