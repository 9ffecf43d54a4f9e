"""What stamps say by themselves: the frequency of an index, its natural season, lags and the features of the calendar.

Frequencies are aliases of pandas ("h", "15min", "D", "B", "W-MON", "MS", "QE-DEC"), "" for numbers at a regular step and None for
irregular times. Days and longer are counted on the wall clock of the index's time zone, shorter steps in elapsed time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ornstein.files import InputError

if TYPE_CHECKING:
    import pandas as pd

LONGER = 20
"""Filling the gaps of a regular index may make it so many times longer."""
_STEPS = 5
"""A step that holds for so many differences before or after a place is a frequency of its own."""
_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_TICKS = {"h": 3600 * 10**9, "min": 60 * 10**9, **_NANOSECONDS}
_UNITS: dict[str, tuple[float, int]] = {
    **{unit: (length / 1e9, {"h": 24, "min": 1440, "s": 3600}.get(unit, 0)) for unit, length in _TICKS.items()},
    "D": (86400.0, 7),
    "B": (86400.0, 5),
    "W": (7 * 86400.0, 52),
    **{prefix + "M" + end: (28 * 86400.0, 12) for prefix in ("", "B") for end in ("", "S", "E")},
    **{prefix + "Q" + end: (90 * 86400.0, 4) for prefix in ("", "B") for end in ("", "S", "E")},
    **{prefix + "Y" + end: (365 * 86400.0, 0) for prefix in ("", "B") for end in ("", "S", "E")},
}
"""Aliases without number and anchor: at least so many seconds, and the steps of their season."""
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
Where = Callable[[int], str]


@dataclass(frozen=True, eq=False)
class Grid:
    """The regular index on which stamps lie.

    frequency  an alias, "" for numbers, None for irregular times, whose index is the one that was given
    step       the step of numbers; None for dates and irregular times
    index      the stamps with those that were missing
    places     (T,) int64: where the given stamps stand in `index`
    """

    frequency: str | None
    step: float | None
    index: pd.Index
    places: NDArray[np.int64]


def frequency_of(index: pd.Index) -> str | None:
    """The frequency of strictly increasing stamps: that of the regular index on which they all lie, or None.

    Stamps may be missing, up to `LONGER`. InputError where the step changes for good or the gaps are too long (see `grid_of`).
    """
    return grid_of(index).frequency


def grid_of(index: pd.Index, where: Where = lambda row: f"row {row + 1}") -> Grid:
    """The regular index on which strictly increasing stamps lie, if all differences are multiples of the smallest.

    Multiples are counted in days, business days, weeks or months (their starts or ends) where stamps share the time of day, and
    in elapsed time otherwise. InputError where the step changes for good, or the index would be more than `LONGER` times as long
    though most of it is regular; `where` names a row.
    """
    import pandas as pd

    if isinstance(index, pd.DatetimeIndex):
        return _of_dates(index, where)
    return _of_numbers(index, where)


def _of_numbers(index: pd.Index, where: Where) -> Grid:
    import pandas as pd

    irregular = Grid(None, None, index, np.arange(len(index)))
    if len(index) < 2:
        return irregular
    stamps = index.to_numpy()
    exact = stamps.dtype.kind in "iu"
    steps = np.diff(stamps if exact else stamps.astype(np.float64))
    least = float(steps.min())
    counts = np.round(steps / least)
    # decimal stamps such as 0.1·k carry rounding of their own size, which weighs more the smaller the step is
    slack = 1e-6 * counts + 8 * np.finfo(np.float64).eps * float(np.abs(stamps).max()) / least
    regular = not bool((np.abs(steps / least - counts) > slack).any())
    _demand_one_step(counts if regular else steps / least, where, f"{least:g}")
    length = int(counts.sum()) + 1
    if not regular or _too_long(length, counts, where, f"{least:g}"):
        return irregular
    step = int(least) if exact else float(stamps[-1] - stamps[0]) / (length - 1)
    places = np.concatenate([[0], np.cumsum(counts.astype(np.int64))])
    if length == len(index):
        return Grid("", float(step), index, places)
    full = stamps[0] + step * np.arange(length)
    full[places] = stamps
    return Grid("", float(step), pd.Index(full, name=index.name), places)


def _of_dates(index: pd.DatetimeIndex, where: Where) -> Grid:
    import pandas as pd

    irregular = Grid(None, None, index, np.arange(len(index)))
    if len(index) < 2:
        return irregular
    steps = np.diff(index.asi8).astype(np.float64) * (_NANOSECONDS[index.unit] / 1e9)
    for alias, seconds in _candidates(index):
        # most of the length of an index that would be far too long is never made
        if (length := int(steps.sum() / seconds) + 1) > 2 * LONGER * len(index):
            counts = np.round(steps / seconds)
        else:
            full = pd.date_range(index[0], index[-1], freq=alias, unit=index.unit, name=index.name)
            places = full.get_indexer(index)
            if bool((places < 0).any()):
                continue
            counts, length = np.diff(places).astype(np.float64), len(full)
        _demand_one_step(counts, where, repr(alias))
        if _too_long(length, counts, where, repr(alias)):
            return irregular
        return Grid(alias, None, pd.DatetimeIndex(full, freq=None) if length > len(index) else index, places)
    _demand_one_step(steps, where, "one second")
    return irregular


def _candidates(index: pd.DatetimeIndex) -> Iterator[tuple[str, float]]:
    """Aliases whose smallest step is that of the index, longest first, each with its length in seconds."""
    wall = index.tz_localize(None)
    days = wall.normalize()
    if bool((wall - days == wall[0] - days[0]).all()):
        numbers = (days - days[0]).days.to_numpy()
        least = int(np.diff(numbers).min())
        if least >= 28:
            yield from _monthly(days)
        if least == 1:
            weekend = bool((days.dayofweek >= 5).any())
            crossed = numbers[-1] >= 7 or days.dayofweek[-1] < days.dayofweek[0]
            # where no weekend was crossed nothing tells business days from days
            yield ("D", 86400.0) if weekend or not crossed else ("B", 86400.0 * 7 / 5)
        elif least > 1:
            weekday = _WEEKDAYS[days.dayofweek[0]]
            yield (_times(least // 7, f"W-{weekday}") if least % 7 == 0 else f"{least}D"), 86400.0 * least
        return
    least = int(np.diff(index.asi8).min()) * _NANOSECONDS[index.unit]
    unit = next(name for name, length in _TICKS.items() if least % length == 0)
    yield _times(least // _TICKS[unit], unit), least / 1e9


def _monthly(days: pd.DatetimeIndex) -> Iterator[tuple[str, float]]:
    import pandas as pd

    months = days.year.to_numpy() * 12 + days.month.to_numpy() - 1
    least = int(np.diff(months).min())
    month = int(months[0]) % 12
    for kind, prefix, offset in (
        ("S", "", pd.offsets.MonthBegin()),
        ("E", "", pd.offsets.MonthEnd()),
        ("S", "B", pd.offsets.BusinessMonthBegin()),
        ("E", "B", pd.offsets.BusinessMonthEnd()),
    ):
        if not all(offset.is_on_offset(day) for day in days):
            continue
        if least % 12 == 0:
            alias = _times(least // 12, f"{prefix}Y{kind}-{_MONTHS[month]}")
        elif least == 3:
            # quarters are named by their first month when they start, by their year's last when they end
            alias = f"{prefix}Q{kind}-{_MONTHS[month % 3 if kind == 'S' else 9 + month % 3]}"
        else:
            alias = _times(least, f"{prefix}M{kind}")
        yield alias, 86400.0 * 30.4 * least


def _times(count: int, alias: str) -> str:
    return alias if count == 1 else f"{count}{alias}"


def _demand_one_step(steps: NDArray[np.float64], where: Where, unit: str) -> None:
    """InputError where nearly all steps are of one length before a row and of another after it."""
    if len(steps) < 2 * _STEPS:
        return
    first, last = float(np.median(steps[:_STEPS])), float(np.median(steps[-_STEPS:]))
    if max(first, last) < 1.2 * min(first, last):
        return
    # months differ by a tenth among themselves
    before, after = (np.abs(steps - step) <= 0.15 * step for step in (first, last))
    right = np.concatenate([[0], np.cumsum(before)]) + np.concatenate([np.cumsum(after[::-1])[::-1], [0]])
    split = int(right.argmax())
    if _STEPS <= split <= len(steps) - _STEPS and before[:split].mean() >= 0.9 and after[split:].mean() >= 0.9:
        raise InputError(
            f"{where(split)}: mixed frequencies: steps of {first:g} × {unit} before and {last:g} × {unit} from there on; "
            "resample to one step, or give one part alone"
        )


def _too_long(length: int, counts: NDArray[np.float64], where: Where, unit: str) -> bool:
    """Whether an index of `length` is just a unit of irregular stamps; InputError where it is a grid with huge gaps."""
    if length <= LONGER * (len(counts) + 1):
        return False
    if float((counts == 1).mean()) < 0.5:
        return True
    widest = int(counts.argmax())
    raise InputError(
        f"{where(widest)}: {counts[widest]:g} steps of {unit} until the next row; with the missing rows the series would be more "
        f"than {LONGER} times as long ({length} rows); give the parts before and after it alone"
    )


def _unit(frequency: str | None) -> tuple[int, float, int]:
    """How many units a step is, the least seconds of one and the steps of its season; zeros where there is none."""
    found = re.fullmatch(r"(\d*)([A-Za-z]+)(-[A-Z]+)?", frequency or "")
    return (int(found[1] or 1), *_UNITS.get(found[2], (0.0, 0))) if found else (0, 0.0, 0)


def season(frequency: str | None) -> int | None:
    """The natural seasonal period in steps: a day of hours or minutes, a week of days, a year of weeks, months or quarters.

    h 24, 30min 48, 15min 96, D 7, B 5, W 52, MS 12, QS 4, s 3600 (an hour); None where nothing is known or the season is no whole
    number of steps, and for years, numbers and irregular times.
    """
    count, _, whole = _unit(frequency)
    return whole // count if count and whole % count == 0 and whole // count >= 2 else None


def lags(frequency: str | None, context: int) -> tuple[int, ...]:
    """Lags worth looking at, increasing and at most `context`: the last three steps, and around the season and its multiples.

    Of hours they are 1, 2, 3, 23, 24, 25, 48 and 168, of months 1, 2, 3, 11, 12, 13, 24 and 36.
    """
    wanted = {1, 2, 3}
    if period := season(frequency):
        within_a_day = _unit(frequency)[1] < 86400
        several = 7 if within_a_day else {12: 3, 5: 4, 7: 4, 4: 3}.get(period, 2)
        wanted |= {period - 1, period, period + 1, 2 * period, several * period}
    return tuple(sorted(lag for lag in wanted if 1 <= lag <= context))


def features(
    index: pd.Index, frequency: str | None, *, before: pd.Index | None = None, step: float | None = None
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Names and values (T, F) of what the calendar tells of stamps: sine and cosine of each cycle that is longer than a step.

    Cycles: the time of day, and days of the week, of the month and of the year (the month where steps are months), by the wall
    clock; none for numbers. For irregular times also "elapsed", log(1 + time since the stamp before/step), with `step` in seconds
    or in the index's own unit. A row is a function of its stamp alone, so that a piece gives the same as the whole; of irregular
    times if `before` holds the stamp before the first and `step` is given. Without them the first counts as one step, and the
    step is the median of those seen.
    """
    import pandas as pd

    names: list[str] = []
    columns: list[Any] = []
    if isinstance(index, pd.DatetimeIndex):
        wall = index.tz_localize(None)
        for name, share in _cycles(wall, math.prod(_unit(frequency)[:2])):
            angle = 2 * math.pi * np.asarray(share, np.float64)
            names += [f"{name} sine", f"{name} cosine"]
            columns += [np.sin(angle), np.cos(angle)]
    if frequency is None:
        names.append("elapsed")
        columns.append(_elapsed(index, before, step))
    return tuple(names), np.stack(columns, 1) if columns else np.zeros((len(index), 0))


def _cycles(wall: pd.DatetimeIndex, seconds: float) -> Iterator[tuple[str, Any]]:
    of_day = ((wall - wall.normalize()).total_seconds() / 86400).to_numpy()
    if seconds < 86400:
        yield "time of day", of_day
    if seconds < 7 * 86400:
        yield "day of week", wall.dayofweek / 7
    if seconds < 28 * 86400:
        yield "day of month", (wall.day - 1) / wall.days_in_month
        yield "day of year", (wall.dayofyear - 1) / np.where(wall.is_leap_year, 366, 365)
    elif seconds < 365 * 86400:
        yield "month of year", (wall.month - 1) / 12


def typical_step(index: pd.Index) -> float | None:
    """The median step of stamps, in seconds or in the index's own unit; None for fewer than two."""
    passed = _passed(index)
    return float(np.median(passed)) if len(passed) else None


def _passed(stamps: pd.Index) -> NDArray[np.float64]:
    import pandas as pd

    if isinstance(stamps, pd.DatetimeIndex):
        return np.diff(stamps.asi8) * (_NANOSECONDS[stamps.unit] / 1e9)
    return np.diff(stamps.to_numpy().astype(np.float64))


def _elapsed(index: pd.Index, before: pd.Index | None, step: float | None) -> NDArray[np.float64]:
    passed = _passed(index if before is None else before[-1:].append(index))
    if step is not None and not step > 0:
        raise InputError(f"step={step} must be above 0: seconds, or units of the index")
    seen = passed[passed > 0]
    unit = step if step is not None else float(np.median(seen)) if len(seen) else 1.0
    if before is None:
        passed = np.concatenate([[unit], passed])[: len(index)]
    return np.log1p(passed / unit)
