"""What a model of series says about numbers that are not known: draws with their stamps and names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ornstein.files import InputError, write_atomic

if TYPE_CHECKING:
    import pandas as pd

SHOWN = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles of a table unless told otherwise."""


@dataclass(frozen=True, eq=False)
class Forecast:
    """Draws (n, time, channel) of a series, in the data's units; statistics are over the draws, for every number on its own.

    `index` holds the stamp of every time and `channels` the names. `item` is the name within a panel. `observed` (time, channel)
    is given for imputations: True where the number was known, so that all draws agree. Arrays are kept as they are given, not
    copied. InputError for draws that are not float64, hold NaN or infinity, or do not fit the index, the names and `observed`.
    """

    draws: NDArray[np.float64]
    index: pd.Index
    channels: tuple[str, ...]
    item: str = ""
    observed: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.draws, np.ndarray) or self.draws.dtype != np.float64:
            kind = getattr(self.draws, "dtype", type(self.draws).__name__)
            raise InputError(f"draws are {kind}; give a NumPy array of float64")
        if self.draws.ndim != 3 or 0 in self.draws.shape:
            raise InputError(f"draws have shape {self.draws.shape}; give (draws, time, channel), none of them 0")
        if not np.isfinite(self.draws).all():
            raise InputError("draws hold NaN or infinity; the model diverged, draw again with more calls or train it longer")
        _, time, channels = self.draws.shape
        if len(self.index) != time:
            raise InputError(f"index has {len(self.index)} stamps for draws of {time} times; give one stamp per time")
        if len(self.channels) != channels or len(set(self.channels)) != channels:
            raise InputError(f"channels={self.channels} for draws of {channels} channels; give each a name of its own")
        if self.observed is not None and (self.observed.shape != (time, channels) or self.observed.dtype != np.bool_):
            raise InputError(
                f"observed is {self.observed.dtype} of shape {self.observed.shape}; give bool of {(time, channels)}, as the draws"
            )

    def __len__(self) -> int:
        """The number of times."""
        return self.draws.shape[1]

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean of the draws, (time, channel): the estimate with the least square error."""
        return self.draws.mean(0)

    @property
    def median(self) -> NDArray[np.float64]:
        """The median of the draws, (time, channel): the estimate with the least absolute error."""
        return self.quantile(0.5)

    def quantile(self, q: float | Sequence[float]) -> NDArray[np.float64]:
        """Quantiles q in [0, 1], (time, channel), or (len(q), time, channel) for several; linear between draws."""
        levels = np.asarray(q, np.float64)
        if levels.ndim > 1 or not ((levels >= 0) & (levels <= 1)).all():
            raise InputError(f"q={q} must lie in [0, 1]: one number, or a sequence of them")
        found: NDArray[np.float64] = np.quantile(self.draws, levels, axis=0)
        return found

    def interval(self, level: float = 0.9) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The ends, each (time, channel), of the central interval that holds the share `level` of the draws."""
        if not 0 < level < 1:
            raise InputError(f"level={level} must lie between 0 and 1, such as 0.9")
        low, high = self.quantile(((1 - level) / 2, (1 + level) / 2))
        return low, high

    def to_pandas(self, quantiles: Sequence[float] = SHOWN) -> pd.DataFrame:
        """A table with a row per time: for every channel `NAME mean`, then a quantile each, `NAME 0.05`, `NAME 0.25`, ….

        Column names are plain, so that a CSV keeps them; the word after the last space is the statistic.
        """
        import pandas as pd

        names = [f"{q:g}" for q in quantiles]
        if len(set(names)) < len(names):
            raise InputError(f"quantiles={tuple(quantiles)} have one twice; give each once")
        values = np.concatenate([self.mean[None], self.quantile(list(quantiles))])
        columns = [f"{channel} {name}" for channel in self.channels for name in ("mean", *names)]
        return pd.DataFrame(values.transpose(1, 2, 0).reshape(len(self), -1), index=self.index, columns=columns)

    def to_csv(self, path: str | os.PathLike[str], quantiles: Sequence[float] = SHOWN) -> None:
        """Write `to_pandas` as CSV, whole or not at all: the time first, every number in full."""
        frame = self.to_pandas(quantiles)
        with write_atomic(path) as temporary:
            frame.to_csv(temporary, index_label=self._time_name)

    def samples_frame(self) -> pd.DataFrame:
        """The draws themselves as a long table: `draw`, time, and a column per channel, draw by draw.

        InputError for a channel that is called as one of the first two columns.
        """
        import pandas as pd

        n = len(self.draws)
        keys = {"draw": np.repeat(np.arange(n), len(self)), self._time_name: self.index.take(np.tile(np.arange(len(self)), n))}
        if taken := [channel for channel in self.channels if channel in keys]:
            raise InputError(f"channels={self.channels}: {taken[0]!r} is the name of a column of this table; rename the channel")
        values = self.draws.reshape(-1, self.draws.shape[-1])
        return pd.DataFrame(keys | {channel: values[:, k] for k, channel in enumerate(self.channels)})

    @property
    def _time_name(self) -> str:
        return str(self.index.name) if self.index.name is not None else "time"
