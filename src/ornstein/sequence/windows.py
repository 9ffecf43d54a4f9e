"""Windows of series: what training draws, how it is split in time, and where a backtest begins to forecast.

A window is `context` steps that a model sees and `horizon` steps that it may be asked for. Everything here is a function of the
series and of numbers: rows after an origin are never looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ornstein.contract import Contract
from ornstein.files import InputError
from ornstein.noise import Noise
from ornstein.sequence.calendar import features, typical_step
from ornstein.sequence.data import Series

MANY = 20
"""From so many items on, whole items are held out of training; of fewer the last part of each."""
Covariates = dict[str, tuple[float, float]]
"""Mean and standard deviation of every covariate in training, by its name."""


def rolling_origins(length: int, horizon: int, windows: int, *, first: int | None = None, stride: int | None = None) -> list[int]:
    """The numbers of rows that are known at each of `windows` forecasts of `horizon` steps of a series of `length` rows.

    From `first` on in steps of `stride`: a horizon unless given, and such that the last forecast ends with the series unless
    `first` is given. InputError where one would have no history, or go beyond the end.
    """
    for name, value in (("horizon", horizon), ("windows", windows), ("stride", stride)):
        if value is not None and value < 1:
            raise InputError(f"{name}={value} must be at least 1")
    step = horizon if stride is None else stride
    begin = length - horizon - (windows - 1) * step if first is None else first
    last = begin + (windows - 1) * step + horizon
    if begin < 1 or last > length:
        raise InputError(
            f"windows={windows} of horizon={horizon} from first={begin} in strides of {step} need rows 1 to {last}, but the "
            f"series has {length}; ask for fewer windows, or another first"
        )
    return [begin + k * step for k in range(windows)]


@dataclass(frozen=True, eq=False)
class SeriesData:
    """Windows of series as training asks for them.

    series      the items
    contract    channel names and their means and standard deviations in training; its shape is that of a window, (C, L)
    context     steps seen; L = context + horizon
    horizon     steps that may be asked for
    calendar    whether windows come with the calendar's features of their times
    covariates  names, means and standard deviations of known-future and static covariates, which come as features too
    places      (windows, 2) int64: item and first row of every window
    told        (F, T) float32 of every item: what is known of its times, see `known`
    """

    series: tuple[Series, ...]
    contract: Contract
    context: int
    horizon: int
    calendar: bool
    covariates: Covariates
    places: NDArray[np.int64]
    told: tuple[NDArray[np.float32], ...]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def labels(self) -> None:
        """None: windows have no labels."""
        return None

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What stands in the rows of a batch's "features"."""
        first = self.series[0]
        seen = features(first.index[:2], first.frequency)[0] if self.calendar else ()
        return (*seen, *self.covariates)

    def batch(self, indices: Sequence[int] | NDArray[Any] | Tensor) -> dict[str, Tensor]:
        """Windows at `indices` as {"x": (B, C, L) float64 in the data's own units, NaN where missing; "features": (B, F, L)}."""
        length = self.context + self.horizon
        chosen = [(int(item), int(start)) for item, start in self.places[np.asarray(indices, dtype=np.int64)]]
        x = np.stack([self.series[item].values[start : start + length].T for item, start in chosen])
        told = np.stack([self.told[item][:, start : start + length] for item, start in chosen])
        return {"x": torch.from_numpy(x), "features": torch.from_numpy(told)}

    def require_labels(self) -> NDArray[np.int64]:
        """Raises InputError: windows have no labels."""
        raise InputError("series have no labels; set condition: null")

    def with_contract(self, contract: Contract) -> SeriesData:
        """The same windows under another contract (a trained model's); InputError where channels or length differ."""
        if contract.channels != self.contract.channels:
            raise InputError(
                f"the data have channels {self.contract.channels}, the model {contract.channels}; give the same ones"
            )
        if contract.shape != self.contract.shape:
            raise InputError(f"windows have shape {self.contract.shape}, the model's {contract.shape}; cut them alike")
        return replace(self, contract=contract)

    def take(self, indices: NDArray[np.int64]) -> SeriesData:
        """The windows at `indices`, contract unchanged."""
        return replace(self, places=self.places[indices])

    def split(self, fraction: float, seed: int) -> tuple[SeriesData, SeriesData]:
        """Training and held-out windows; contract and covariates are measured on the first part's rows alone.

        Of `MANY` items or more a random share of whole items is held out; of fewer the last part of every item, a horizon or
        more: no step asked for in the second part was seen in the first. `fraction` is the share of the first. InputError where
        one part would be empty.
        """
        if len(self.series) >= MANY:
            order = Noise(seed).permutation(len(self.series), stream="split").numpy()
            count = round(fraction * len(self.series))
            parts = [sorted(order[:count]), sorted(order[count:])]
            training, held = (tuple(self.series[i] for i in part) for part in parts)
            if not training or not held:
                raise InputError(
                    f"data.held_out: {count} of {len(self.series)} items would be for training; give a share between"
                )
        else:
            # at least one window's worth of steps is asked for in the second part
            cuts = [min(round(fraction * len(one)), len(one) - self.horizon) for one in self.series]
            training = tuple(one.head(cut) for one, cut in zip(self.series, cuts, strict=True))
            held = tuple(one.tail(cut - self.context) for one, cut in zip(self.series, cuts, strict=True))
        first = windows(training, context=self.context, horizon=self.horizon, calendar=self.calendar)
        second = windows(
            held, context=self.context, horizon=self.horizon, calendar=self.calendar, like=first,
            what="held-out part (data.held_out)",
        )  # fmt: skip
        return first, second


def windows(
    series: Sequence[Series], *, context: int, horizon: int, calendar: bool = True, like: SeriesData | None = None,
    what: str = "data",
) -> SeriesData:  # fmt: skip
    """All windows of series, one from every row on; transforms are measured on them, or taken from `like`.

    Windows without a single number to see or to ask for are left out. InputError where none is left.
    """
    length = context + horizon
    places = []
    for number, one in enumerate(series):
        if len(one) < length:
            continue
        # running sums of observed rows tell which windows hold anything
        total = np.concatenate([[0], np.cumsum(np.isfinite(one.values).any(1))])
        starts = np.arange(len(one) - length + 1)
        some = (total[starts + length] - total[starts + context] > 0) & (total[starts + max(context, 1)] - total[starts] > 0)
        places += [(number, start) for start in starts[some]]
    if not places:
        longest = max((len(one) for one in series), default=0)
        raise InputError(
            f"{what}: no series is long enough for context={context} and horizon={horizon}: {length} rows with numbers are "
            f"needed, the longest has {longest}; lower sequence.context or --horizon, or give more rows"
        )
    kept = np.asarray(places, np.int64)
    contract = measured(series, length) if like is None else like.contract
    covariates = covariate_moments(series) if like is None else like.covariates
    told = tuple(known(one, 0, len(one), calendar, covariates) for one in series)
    return SeriesData(tuple(series), contract, context, horizon, calendar, covariates, kept, told)


def measured(series: Sequence[Series], length: int) -> Contract:
    """The contract of windows (C, length): every channel's mean and standard deviation over all its observed rows.

    A constant channel is only shifted. InputError for channels with nothing observed, or data that are constant altogether.
    """
    values = np.concatenate([one.values for one in series])
    names = series[0].channels
    for channel, name in enumerate(names):
        if not np.isfinite(values[:, channel]).any():
            raise InputError(f"channel {name!r} has no numbers in the part for training; remove it, or hold out less")
    mean, std = np.nanmean(values, 0), np.nanstd(values, 0)
    flat = std <= 1e-12 * np.maximum(np.abs(mean), 1e-300)
    if flat.all():
        raise InputError(f"the series are constant ({names[0]} is {mean[0]:g} throughout); there is nothing to learn")
    blank = ("",) * len(names)
    share = math.sqrt(float((~flat).mean()))
    scale = np.where(flat, 1.0, std)
    return Contract(
        (len(names), length), names, blank, None, None, None, tuple(mean.tolist()), tuple(scale.tolist()), False, share
    ).checked()


def covariate_moments(series: Sequence[Series]) -> Covariates:
    """Mean and standard deviation of every known-future and static covariate over the series' own rows; 1 where constant."""
    first, found = series[0], {}
    for column, name in enumerate(first.future_names):
        every = np.concatenate([one.future[: len(one), column] for one in series if one.future is not None])
        found[name] = (float(every.mean()), float(every.std()) or 1.0)
    for column, name in enumerate(first.static_names):
        every = np.asarray([one.static[column] for one in series if one.static is not None])
        found[name] = (float(every.mean()), float(every.std()) or 1.0)
    return found


def known(
    one: Series,
    start: int,
    length: int,
    calendar: bool,
    covariates: Covariates,
    *,
    needed: int | None = None,
    history: int | None = None,
) -> NDArray[np.float32]:
    """What is known of the times of rows start … start + length - 1, which may go beyond the series' end: (F, length) float32.

    The calendar's features, standardised known-future covariates, and static ones repeated at every step. Covariates must reach
    over the first `needed` steps (all unless given) and count as average beyond. What a typical step of irregular times is, the
    first `history` rows say (all unless given). InputError where covariates do not reach so far, or a model's are not there.
    """
    stop = start + length
    missing = [name for name in covariates if name not in (*one.future_names, *one.static_names)]
    if missing:
        raise InputError(f"covariate {missing[0]!r} was there in training; give it too (--future or --static)")
    index = one.index[start:stop] if stop <= len(one) else one.index[start:].append(one.stamps(stop - len(one)))
    before = one.index[start - 1 : start] if start else None
    step = one.step if one.frequency is not None else typical_step(one.index[:history])
    parts = [features(index, one.frequency, before=before, step=step)[1]] if calendar else []
    for name, (mean, std) in covariates.items():
        if name in one.future_names and one.future is not None:
            column = one.future[start:stop, one.future_names.index(name)]
            short = (length if needed is None else needed) - len(column)
            if short > 0:
                raise InputError(
                    f"covariate {name!r} ends {short} steps before the last one asked for; give it for the future too"
                )
            column = np.concatenate([column, np.full(length - len(column), mean)])
        else:
            assert one.static is not None
            column = np.full(length, one.static[one.static_names.index(name)])
        parts.append(((column - mean) / std)[:, None])
    wide = np.concatenate(parts, 1) if parts else np.zeros((length, 0))
    return np.ascontiguousarray(wide.T, np.float32)
