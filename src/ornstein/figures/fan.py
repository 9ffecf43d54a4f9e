"""Fan charts: what was, and how wide apart the draws lie of what comes or was missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ornstein.figures.canvas import ACCENT, DATA, SAMPLES, blank, save
from ornstein.sequence import Forecast

if TYPE_CHECKING:
    import pandas
    from numpy.typing import NDArray

PANELS = 8
"""Channels that are drawn at most."""


def fan_chart(
    forecast: Forecast,
    out: Path,
    *,
    history: pandas.DataFrame | None = None,
    truth: NDArray[Any] | None = None,
    levels: Sequence[float] = (0.5, 0.9),
    limit: int = PANELS,
) -> None:
    """The median of draws and their central intervals of probability `levels`, a panel for each of the first `limit` channels.

    `history` is drawn before them, its gaps left open, `truth` (time, channel) over them. Of an imputation (`observed` is set)
    what was observed stands as dots, and the fan only where numbers were missing.
    """
    names = forecast.channels[:limit]
    figure = blank(8, 1.2 + 1.6 * len(names))
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    median = forecast.median
    missing = None if forecast.observed is None else ~forecast.observed
    for channel, (name, axis) in enumerate(zip(names, axes, strict=True)):
        shown = np.ones(len(median), bool) if missing is None else missing[:, channel]
        for level in sorted(levels, reverse=True):
            low, high = forecast.interval(level)
            axis.fill_between(
                forecast.index, low[:, channel], high[:, channel], where=shown, color=SAMPLES, alpha=0.25, linewidth=0,
                label=f"{level:.0%}",
            )  # fmt: skip
        axis.plot(forecast.index, np.where(shown, median[:, channel], np.nan), color=SAMPLES, linewidth=1, label="median")
        if missing is not None:
            axis.plot(
                forecast.index, np.where(shown, np.nan, median[:, channel]), ".", color=DATA, markersize=2, label="observed"
            )
        elif history is not None:
            axis.plot(history.index, history.iloc[:, channel], color=DATA, linewidth=1, label="history")
        if truth is not None:
            axis.plot(forecast.index, truth[:, channel], color=ACCENT, linewidth=1, label="what came")
        axis.set_ylabel(name, fontsize="small")
    axes[0].legend(loc="upper left", fontsize="x-small", ncols=5)
    if len(forecast.channels) > limit:
        figure.suptitle(f"{limit} of {len(forecast.channels)} channels", fontsize="small")
    figure.autofmt_xdate()
    save(figure, out)
