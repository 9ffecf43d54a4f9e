"""Series read from tables, GluonTS's JSON lines and arrays, with their covariates."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ornstein.files import InputError
from ornstein.sequence import sheets
from ornstein.sequence.data import Series, demand_alike, made_of, number_of, with_future

if TYPE_CHECKING:
    import pandas as pd

ITEMS = ("item", "item_id", "unique_id", "series")
"""Names of columns that hold the items of a long table."""
VALUES = ("value", "y", "target")
"""Names of columns that hold the values of a long table."""
_ALIASES = {"H": "h", "T": "min", "S": "s", "L": "ms", "U": "us", "M": "MS", "ME": "MS", "Q": "QS", "A": "YS", "Y": "YS"}


def read_series(
    source: Any,
    *,
    time: str | None = None,
    item: str | None = None,
    value: str | None = None,
    columns: Sequence[str] | None = None,
    future: str | os.PathLike[str] | pd.DataFrame | None = None,
    static: str | os.PathLike[str] | pd.DataFrame | None = None,
) -> tuple[Series, ...]:
    """The series of a file (.csv, .tsv, .txt, .parquet, .json, .jsonl, .npy, .npz), a table of pandas or an array.

    *Wide* tables have a column per channel, and times in the column `time`: unless given, an index of dates, a column named time,
    date, datetime, timestamp or ds, the only one that holds dates, or a first one without a name; without any, rows are numbered.
    Empty cells, NA and NaN are missing. In text cells are parted by commas, semicolons (then 1,5 is a number) or tabs. `columns`
    takes some of the channels.
    *Long* tables are panels: one Series per item of the column `item`, with the channel `value` (or `columns`). A column named
    item, item_id, unique_id or series, beside times and value, y or target, is taken so by itself, and further ones are left out.
    *JSON* is GluonTS's: a line per item with start, target (1-d, or channels by time), and item_id, freq (or that of a file
    metadata.json), feat_dynamic_real, feat_static_real. Several univariate lines of one start and length, without static numbers
    and with the same covariates, are one Series of as many channels, named by item_id or "0", "1", …, as the papers' sets are
    meant; lines that differ are a panel.
    *Arrays* are (T,), (T, C) or a panel (N, T, C); of an .npz "values", with "channels" and "time" if there.

    `future` is a table of known-future covariates by the same kind of time, for every stamp and beyond, shared by all items
    unless it has their column. `static` is a table of numbers for every item. Missing rows and times are treated as by `series`
    and `sheets.stamps`. InputError, one line, for whatever cannot be read, naming the line, and for items of different frequency.
    """
    import pandas as pd

    if isinstance(columns, str):
        raise InputError(f"columns={columns!r} is one text; give a list of names")
    if isinstance(source, str | os.PathLike):
        path = sheets.existing(source)
        suffix = path.suffix.lower()
        if suffix in (".json", ".jsonl"):
            items = _of_entries(path, entries_of(path), columns)
        elif suffix in (".npy", ".npz"):
            items = _of_array(*arrays_of(path), columns)
        else:
            items = _of_sheet(sheets.of_file(path), time, item, value, columns)
    elif isinstance(source, pd.DataFrame | pd.Series):
        frame = source if isinstance(source, pd.DataFrame) else source.to_frame("value" if source.name is None else source.name)
        items = _of_sheet(sheets.of_frame(frame), time, item, value, columns)
    else:
        items = _of_array(np.asarray(source), None, None, columns)
    demand_alike(items)
    if future is not None:
        sheet = _sheet(future, "future")
        clock = sheet.time_column(time if time in sheet.columns else None)
        column = _item_column(sheet, item)
        items = [with_future(one, _rows_of(sheet, column, one.item), clock, (column,)) for one in items]
    if static is not None:
        sheet = _sheet(static, "static")
        column = _item_column(sheet, item) or (None if len(items) == len(sheet) == 1 else next(iter(sheet.columns)))
        items = [_with_static(one, _rows_of(sheet, column, one.item), column) for one in items]
    return tuple(items)


def _of_sheet(
    sheet: sheets.Sheet, time: str | None, item: str | None, value: str | None, columns: Sequence[str] | None
) -> list[Series]:
    clock = sheet.time_column(time)
    named = next((name for name in sheet.columns if name.lower() in VALUES), None)
    column = None
    if item is not None:
        column = sheet.demand(item, "item")
    elif clock is not None and (value or named):
        column = _item_column(sheet, None)
    taken = [sheet.demand(value, "value")] if value is not None else list(columns or ())
    if not taken and column is not None and named is not None:
        taken = [named]
    unused = sheet.index if sheet.index != clock else None
    names = [sheet.demand(one, "columns") for one in taken] or [
        one for one in sheet.columns if one not in (clock, column, unused)
    ]
    if not names:
        raise InputError(f"{sheet.origin}: has no column of numbers beside {clock!r}; give one per channel")
    if column is None:
        return [_of_rows(sheet, clock, names, "")]
    labels = _labels(sheet, column)
    return [_of_rows(_rows_of(sheet, column, label), clock, names, label) for label in dict.fromkeys(labels)]


def _of_rows(sheet: sheets.Sheet, clock: str | None, names: Sequence[str], item: str) -> Series:
    wide = np.stack([sheet.numbers(name) for name in names], 1)
    if len(wide) < 2:
        rows = "no rows" if not len(wide) else "a single row"
        raise InputError(f"{sheet.origin}: {f'item {item!r} ' if item else ''}has {rows}; give at least 2 to each series")
    index = None if clock is None else sheet.times(clock)
    return made_of(wide, index, names, item, sheet.where)


def _labels(sheet: sheets.Sheet, column: str) -> list[str]:
    labels = ["" if cell is None else str(cell) for cell in sheet.columns[column]]
    if "" in labels:
        raise InputError(f"{sheet.where(labels.index(''))}: the item {column!r} is missing; fill it in or remove the row")
    return labels


def _rows_of(sheet: sheets.Sheet, column: str | None, item: str) -> sheets.Sheet:
    """The rows of an item; all where there is no column of items."""
    if column is None:
        return sheet
    return sheet.rows(np.flatnonzero(np.asarray(_labels(sheet, column), dtype=object) == item))


def _item_column(sheet: sheets.Sheet, item: str | None) -> str | None:
    if item is not None and item in sheet.columns:
        return item
    return next((name for name in sheet.columns if name.lower() in ITEMS), None)


def _of_array(
    values: NDArray[Any], names: tuple[str, ...] | None, times: NDArray[Any] | None, columns: Sequence[str] | None
) -> list[Series]:
    if values.ndim == 3:
        items = [made_of(one, times, names, str(number)) for number, one in enumerate(values)]
    else:
        items = [made_of(values, times, names, "")]
    return [_chosen(one, columns) for one in items]


def _chosen(one: Series, columns: Sequence[str] | None) -> Series:
    if columns is None:
        return one
    for name in columns:
        if name not in one.channels:
            raise InputError(f"columns={name!r} is no channel; there are {', '.join(one.channels[:12])}")
    places = [one.channels.index(name) for name in columns]
    return replace(one, values=one.values[:, places], channels=tuple(columns))


def _of_entries(path: Path, entries: Sequence[Entry], columns: Sequence[str] | None) -> list[Series]:
    first = entries[0]
    alike = len(entries) > 1 and all(
        one.target.shape == (len(first.target), 1)
        and (one.start, one.frequency, one.static) == (first.start, first.frequency, None)
        and (one.future is first.future or np.array_equal(np.asarray(one.future, float), np.asarray(first.future, float)))
        for one in entries
    )
    ids = [one.item for one in entries]
    named = None not in ids and len(set(ids)) == len(ids)
    names = [str(one.item) if named else str(number) for number, one in enumerate(entries)]
    if alike:
        whole = replace(first, target=np.concatenate([one.target for one in entries], 1))
        return [_chosen(_of_entry(path, whole, names, ""), columns)]
    single = len(entries) == 1
    return [
        _chosen(_of_entry(path, one, None, (one.item or "") if single else name), columns)
        for one, name in zip(entries, names, strict=True)
    ]


def _of_entry(path: Path, entry: Entry, channels: Sequence[str] | None, item: str) -> Series:
    import pandas as pd

    index, told = None, f"{path} line {entry.line}"
    length, known = len(entry.target), 0 if entry.future is None else len(entry.future)
    if entry.start is not None:
        if entry.frequency is None:
            raise InputError(f'{told}: has a start and no frequency; add "freq": "h", or a metadata.json beside the file')
        unit = entry.frequency.lstrip("0123456789")
        count = entry.frequency.removesuffix(unit)
        try:
            offset = pd.tseries.frequencies.to_offset(count + _ALIASES.get(unit, unit))
            start = pd.Timestamp(entry.start)
            start = offset.rollback(start) if unit not in ("B", "W") else start
            index = pd.date_range(start, periods=length, freq=f"{count}W-{start:%a}".upper() if unit == "W" else offset)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(
                f"{told}: start {entry.start!r} or frequency {entry.frequency!r} is no date or alias of pandas"
            ) from error
    made = made_of(entry.target, index, channels, item, lambda row: f"{told}, number {row + 1}")
    if isinstance(index, pd.DatetimeIndex):
        # a short series may look like another frequency than it is said to have
        made = replace(made, frequency=index.freqstr)
    if entry.future is not None:
        if known < length or not np.isfinite(entry.future).all():
            raise InputError(
                f"{told}: feat_dynamic_real has {known} steps or gaps for {length} of target; give a number for each"
            )
        made = replace(made, future=entry.future, future_names=tuple(f"future {k + 1}" for k in range(entry.future.shape[1])))
    if entry.static is not None:
        numbers = np.asarray([number_of(one, f"{told}: feat_static_real") for one in entry.static])
        made = replace(made, static=numbers, static_names=tuple(f"static {k + 1}" for k in range(len(numbers))))
    return made


def _sheet(table: str | os.PathLike[str] | pd.DataFrame, argument: str) -> sheets.Sheet:
    if isinstance(table, str | os.PathLike):
        return sheets.of_file(sheets.existing(table))
    return sheets.of_frame(table, argument)


def _with_static(one: Series, sheet: sheets.Sheet, column: str | None) -> Series:
    if len(sheet) != 1:
        raise InputError(f"{sheet.origin}: has {len(sheet)} rows for the item {one.item!r}; give one for each item")
    names = tuple(name for name in sheet.columns if name not in (column, sheet.index))
    numbers = np.asarray([number_of(sheet.numbers(name)[0], f"{sheet.where(0)}: {name!r}") for name in names])
    return replace(one, static=numbers, static_names=names)


@dataclass(frozen=True, eq=False)
class Entry:
    """One line of GluonTS's JSON: target (T, C), and what stands beside it."""

    line: int
    target: NDArray[np.float64]
    start: str | None
    frequency: str | None
    item: str | None
    future: NDArray[np.float64] | None
    static: NDArray[np.float64] | None


def entries_of(path: Path) -> list[Entry]:
    """The lines of a JSON-lines file, or the list in a JSON file, with the frequency of a metadata.json beside it."""
    text = sheets.text_of(path)
    found: list[tuple[int, Any]] = []
    try:
        if text.lstrip().startswith("["):
            found = list(enumerate(json.loads(text), 1))
        else:
            for line, one in enumerate(text.splitlines(), 1):
                if one.strip():
                    found.append((line, json.loads(one)))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(
            f"{path} line {len(found) + 1}: not valid JSON ({sheets.first_line(error)}); write one object per line"
        ) from error
    beside = _metadata(path)
    if not found:
        raise InputError(f"{path}: holds no series; write one object per line")
    return [_entry(path, line, one, beside) for line, one in found]


def _metadata(path: Path) -> str | None:
    for other in (path.parent / "metadata.json", path.parent.parent / "metadata" / "metadata.json"):
        if other.is_file() and other != path:
            try:
                held = json.loads(sheets.text_of(other))
            except (json.JSONDecodeError, RecursionError) as error:
                raise InputError(f"{other}: not valid JSON ({sheets.first_line(error)}); correct or remove it") from error
            told = (held.get("freq") or held.get("time_granularity")) if isinstance(held, dict) else None
            return str(told) if told else None
    return None


def _entry(path: Path, line: int, one: Any, beside: str | None) -> Entry:
    if not isinstance(one, dict) or "target" not in one:
        raise InputError(f'{path} line {line}: has no "target"; write {{"start": "2024-01-01", "target": [1.0, 2.0]}}')

    def array(key: str, dimensions: Sequence[int]) -> NDArray[np.float64] | None:
        if one.get(key) is None:
            return None
        try:
            values = np.asarray(one[key], object)
            wide = np.asarray(np.where(values == None, np.nan, values), np.float64)  # noqa: E711
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path} line {line}: {key!r} is not an array of numbers ({sheets.first_line(error)}); correct it"
            ) from error
        if wide.ndim not in dimensions:
            raise InputError(f"{path} line {line}: {key!r} has shape {wide.shape}; give {dimensions[0]} dimension(s)")
        return wide

    target, future = array("target", (1, 2)), array("feat_dynamic_real", (2,))
    if target is None:
        raise InputError(f'{path} line {line}: "target" is null; give numbers')
    start, frequency, item = one.get("start"), one.get("freq") or beside, one.get("item_id")
    return Entry(
        line, np.atleast_2d(target).T, None if start is None else str(start), None if frequency is None else str(frequency),
        None if item is None else str(item), None if future is None else future.T, array("feat_static_real", (1,)),
    )  # fmt: skip


def arrays_of(path: Path) -> tuple[NDArray[Any], tuple[str, ...] | None, NDArray[Any] | None]:
    """Values, channel names and stamps of an .npy or .npz file: of an .npz "values" or its only array, "channels" or "attributes"
    if there, and "time" or "index". Nothing in it is run."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                held = {name: loaded[name] for name in loaded.files}
        else:
            return np.asarray(loaded), None, None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = sheets.first_line(error)
        raise InputError(f"{path}: cannot be read as {path.suffix} ({reason}); nothing in it was run") from error
    if "values" not in held and len(held) != 1:
        raise InputError(f"{path}: holds {', '.join(held)}; name the array of the series 'values'")
    values = held["values"] if "values" in held else next(iter(held.values()))
    names = next((held[name] for name in ("channels", "attributes") if name in held), None)
    times = next((held[name] for name in ("time", "index") if name in held), None)
    return values, None if names is None else tuple(str(name) for name in names.ravel()), times
