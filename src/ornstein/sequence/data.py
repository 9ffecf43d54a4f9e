"""Series: channels over time with their stamps and covariates, made of arrays; whatever is wrong is told in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ornstein.files import InputError
from ornstein.sequence import sheets
from ornstein.sequence.calendar import Where, grid_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Series:
    """One item: channels over time.

    values        (T, C) float64, NaN where missing
    index         T stamps, strictly increasing: dates (the time zone is kept) or numbers
    channels      C names
    item          its name within a panel
    frequency     an alias of pandas ("h", "B", "D", "MS", "15min"), "" for numbers at a regular step, None for irregular times
    future        (T + known, F) covariates that are known ahead: rows for the stamps of the index and for `known` later ones
    future_names  F names
    static        (S,) numbers of the item
    static_names  S names
    step          the step of a regular index of numbers
    """

    values: NDArray[np.float64]
    index: pd.Index
    channels: tuple[str, ...]
    item: str = ""
    frequency: str | None = None
    future: NDArray[np.float64] | None = None
    future_names: tuple[str, ...] = ()
    static: NDArray[np.float64] | None = None
    static_names: tuple[str, ...] = ()
    step: float | None = None

    def __len__(self) -> int:
        """The number of stamps."""
        return len(self.values)

    def head(self, stop: int) -> Series:
        """The first `stop` rows; covariates that are known ahead keep all of theirs."""
        return replace(self, values=self.values[:stop], index=self.index[:stop])

    def tail(self, start: int) -> Series:
        """The rows from `start` on, all where it is below 0, with their covariates."""
        first = max(start, 0)
        future = None if self.future is None else self.future[first:]
        return replace(self, values=self.values[first:], index=self.index[first:], future=future)

    def stamps(self, n: int) -> pd.Index:
        """The `n` stamps after the end; InputError for irregular times, which do not tell them."""
        import pandas as pd

        if self.frequency is None:
            name = f" of {self.item!r}" if self.item else ""
            raise InputError(f"the times{name} are irregular, what follows the last is not known; resample to a regular step")
        if n < 0:
            raise InputError(f"n={n} stamps must be at least 0")
        if isinstance(self.index, pd.DatetimeIndex):
            unit, last = self.index.unit, self.index[-1]
            later = pd.date_range(last, periods=n + 1, freq=self.frequency, unit=unit, name=self.index.name)[1:]
            return pd.DatetimeIndex(later, freq=None)
        step = self.step if self.step is not None else 1.0
        later = self.index[-1] + step * np.arange(1, n + 1)
        return pd.Index(later.astype(self.index.dtype), name=self.index.name)

    def frame(self) -> pd.DataFrame:
        """The values as a table of pandas."""
        import pandas as pd

        return pd.DataFrame(self.values, index=self.index, columns=list(self.channels))


def series(
    values: Any,
    index: Any = None,
    channels: Sequence[str] | None = None,
    *,
    item: str = "",
    future: Any = None,
    static: Any = None,
) -> Series:
    """A Series of values (T,) or (T, C), NaN where missing, and stamps: dates, numbers, or none for 0, 1, …

    Rows that are missing of a regular index are inserted, as NaN. `future` is (T + known, F), or a table of pandas by stamps, and
    `static` is (S,) or a mapping of names to numbers. Channels are named "value" or "0", "1", … unless given. InputError, one
    line, for fewer than two rows, infinity, a channel without a number, names that do not fit, stamps that are unsorted or given
    twice, and a step that changes for good.
    """
    import pandas as pd

    made = made_of(values, index, channels, item)
    if future is not None:
        sheet = sheets.of_frame(future if isinstance(future, pd.DataFrame) else _numbered(future, made), "future")
        made = with_future(made, sheet, sheet.time_column(None), ())
    if static is not None:
        known = static if isinstance(static, Mapping) else {f"static {k + 1}": one for k, one in enumerate(static)}
        numbers = np.asarray([number_of(one, f"static={name!r}") for name, one in known.items()])
        made = replace(made, static=numbers, static_names=tuple(known))
    demand_alike((made,))
    return made


def _numbered(future: Any, one: Series) -> pd.DataFrame:
    """Covariates by position as a table by stamps."""
    import pandas as pd

    wide = _numbers(future, "future")
    index = one.index.append(one.stamps(len(wide) - len(one))) if len(wide) > len(one) else one.index
    if len(wide) < len(one):
        raise InputError(
            f"future has {len(wide)} rows for {len(one)} stamps (missing ones included); give one for each and later ones"
        )
    return pd.DataFrame(wide, index=index.rename("time"), columns=[f"future {k + 1}" for k in range(wide.shape[1])])


def number_of(number: Any, told: str) -> float:
    """A finite number; InputError, with what was `told` of it, for anything else."""
    try:
        found = float(number)
    except (TypeError, ValueError) as error:
        raise InputError(f"{told} is {number!r}, not a number; give one") from error
    if not np.isfinite(found):
        raise InputError(f"{told} is {found}; give a number")
    return found


def _numbers(values: Any, name: str) -> NDArray[np.float64]:
    """Values as (T, C) float64."""
    try:
        found = np.asarray(values)
        if found.dtype.kind not in "biufO":
            raise InputError(f"{name} have dtype {found.dtype}; give numbers")
        wide = found.astype(np.float64)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} are not all numbers ({sheets.first_line(error)}); give an array (T,) or (T, C)") from error
    wide = wide[:, None] if wide.ndim == 1 else wide
    if wide.ndim != 2 or wide.shape[1] < 1:
        raise InputError(f"{name} have shape {found.shape}; give (T,) or (T, C)")
    return wide


def made_of(values: Any, index: Any, channels: Sequence[str] | None, item: str, where: Where | None = None) -> Series:
    """A Series without covariates, its gaps filled; channels may still be empty, as those of one item of a panel are."""
    import pandas as pd

    wide = _numbers(values, "values")
    names = (
        tuple(channels) if channels is not None else ("value",) if wide.shape[1] == 1 else tuple(map(str, range(wide.shape[1])))
    )
    if len(names) != wide.shape[1] or len(set(names)) != len(names):
        raise InputError(
            f"channels={names[:8]} for values of shape {wide.shape}; give each of the {wide.shape[1]} a name of its own"
        )
    of = f"item {item!r}: " if item else ""
    told: Where = where or (lambda row: f"{of}row {row + 1}")
    if len(wide) < 2:
        rows = "no row" if not len(wide) else "a single row"
        raise InputError(f"{of or 'the series '}has {rows}; at least 2 are needed, and a model's context to forecast")
    endless = np.argwhere(np.isinf(wide))
    if len(endless):
        row, channel = (int(place) for place in endless[0])
        raise InputError(f"{told(row)}: {names[channel]!r} is {wide[row, channel]}; write a number, or leave it empty as missing")
    if index is None or isinstance(index, pd.RangeIndex):
        found = pd.RangeIndex(len(wide)) if index is None else index
        if len(found) == len(wide) and found.step > 0:
            return Series(np.ascontiguousarray(wide), found, names, item, "", step=float(found.step))
    name = getattr(index, "name", None)
    found = sheets.stamps(index, "time" if name is None else str(name), told)
    if len(found) != len(wide):
        raise InputError(f"index has {len(found)} stamps for {len(wide)} rows of values; give one for each")
    grid = grid_of(found.rename(name), told)
    full = np.full((len(grid.index), len(names)), np.nan)
    full[grid.places] = wide
    return Series(full, grid.index, names, item, grid.frequency, step=grid.step)


def with_future(one: Series, sheet: sheets.Sheet, clock: str | None, apart: Sequence[str | None]) -> Series:
    """A series with the covariates of a table: rows before its first stamp are left out, those after its last must follow on."""
    import pandas as pd

    of = f" of {one.item!r}" if one.item else ""
    names = [name for name in sheet.columns if name not in (clock, sheet.index, *apart)]
    if not names or not len(sheet):
        raise InputError(f"{sheet.origin}: has no covariates{of}; give a column for each, and a row for every stamp")
    dated = isinstance(one.index, pd.DatetimeIndex)
    index = pd.RangeIndex(len(sheet)) if clock is None else sheet.times(clock)
    if isinstance(index, pd.DatetimeIndex) != dated:
        raise InputError(
            f"{sheet.origin}: the series{of} has {'dates' if dated else 'numbers'} for times; give the same kind here"
        )
    if dated and (index.tz is None) != (one.index.tz is None):
        raise InputError(
            f"{sheet.origin}: only one of series{of} and covariates has a time zone; write an offset in both or none"
        )
    # decimal stamps are matched within rounding
    near = {} if dated or not one.step else {"method": "nearest", "tolerance": 1e-6 * one.step}
    places = index.get_indexer(one.index, **near)
    if (places < 0).any():
        absent = one.index[int((places < 0).argmax())]
        raise InputError(f"{sheet.origin}: has no row for time {absent}, which the series{of} has (or lacks in a gap); add it")
    later = np.arange(int(places[-1]) + 1, len(index))
    if one.frequency is not None:
        wanted = one.stamps(len(later))
        wrong = np.flatnonzero(index[later] != wanted if dated else ~np.isclose(index[later], wanted, 0, 1e-6 * (one.step or 1)))
        if len(wrong):
            row = int(later[wrong[0]])
            raise InputError(
                f"{sheet.where(row)}: time {index[row]} is not the next step after the one before it; add what is missing"
            )
    chosen = sheet.rows(np.concatenate([places, later]))
    wide = np.stack([chosen.numbers(name) for name in names], 1)
    if len(gaps := np.argwhere(~np.isfinite(wide))):
        row, column = (int(place) for place in gaps[0])
        raise InputError(
            f"{chosen.where(row)}: covariate {names[column]!r} is {wide[row, column]}; known-future covariates have no gaps"
        )
    return replace(one, future=wide, future_names=tuple(names))


def demand_alike(items: Sequence[Series]) -> None:
    """InputError for a channel without a number in any item, and items of another frequency than the first."""
    first = items[0]
    observed = np.zeros(len(first.channels), bool)
    for one in items:
        if (one.frequency, one.channels, one.step) != (first.frequency, first.channels, first.step):
            told = [repr(each.frequency or (f"{each.step:g}" if each.step else "irregular")) for each in (first, one)]
            if one.channels != first.channels:
                told = [f"channels {', '.join(each.channels[:4])}" for each in (first, one)]
            raise InputError(
                f"items {first.item!r} and {one.item!r} differ: {told[0]} and {told[1]}; resample, or give them alone"
            )
        observed |= np.isfinite(one.values).any(0)
    if not observed.all():
        name = first.channels[int((~observed).argmax())]
        raise InputError(f"channel {name!r} has no number at all; remove it, or take others (--columns)")


def describe(series: Sequence[Series]) -> str:
    """One paragraph for the user: items, channels, length, span, frequency and the share that is missing."""
    first, lengths = series[0], [len(one) for one in series]
    count = f"{len(series):,} series, each of" if len(series) > 1 else "One series of"
    length = f"{lengths[0]:,}" if min(lengths) == max(lengths) else f"{min(lengths):,} to {max(lengths):,}"
    channels = ", ".join(first.channels[:8]) + (", …" if len(first.channels) > 8 else "")
    begin, end = min(one.index[0] for one in series), max(one.index[-1] for one in series)
    step = f"every {first.frequency}" if first.frequency else f"every {first.step:g}" if first.step else "at irregular times"
    total = sum(one.values.size for one in series)
    missing = sum(int(np.isnan(one.values).sum()) for one in series) / total
    share = "nothing missing" if not missing else f"{100 * missing:.1f} % missing"
    more = [
        f"{len(first.future_names)} known-future" if first.future_names else "",
        f"{len(first.static_names)} static" if first.static_names else "",
    ]
    covariates = " and ".join(part for part in more if part)
    plural = "s" if len(first.channels) > 1 else ""
    return (
        f"{count} {length} rows of {len(first.channels)} channel{plural} ({channels}), {begin} to {end}, {step}, {share}"
        f"{f', {covariates} covariates' if covariates else ''}."
    )
