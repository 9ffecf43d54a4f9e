"""Tables of any make as columns with the lines they came from, so that whatever is wrong can be named by its line."""

from __future__ import annotations

import csv
import os
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ornstein.files import InputError
from ornstein.sequence.calendar import Where

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".json", ".jsonl", ".npy", ".npz")
TIMES = ("time", "date", "datetime", "timestamp", "ds")
"""Names of columns that are taken for the time, the first of them that is there."""
_MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "<na>", "-"))
_YEAR = re.compile(r"\d{4}\D")
_COMPACT = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_OFFSET = re.compile(r":\d\d(?:\.\d+)?(Z|[+-]\d\d(?::?\d\d)?)$")
_DATE = re.compile(r"\d{4}\D|\d{1,4}[./-]\d{1,2}[./-]\d{1,4}|\d{1,2}[ -][A-Za-z]{3}|[A-Za-z]{3,9}[ -]\d")


@dataclass(frozen=True, eq=False)
class Sheet:
    """Columns of cells as they were found, text or numbers.

    origin   the file, or "data"
    columns  (T,) each, by name
    lines    (T,) the line of a file, or the row of a table from 1 on
    place    "line" or "row"
    comma    whether text writes decimals with a comma
    index    the column that was the index of a pandas table and holds times, if there was one
    """

    origin: str
    columns: dict[str, NDArray[Any]]
    lines: NDArray[np.int64]
    place: str = "row"
    comma: bool = False
    index: str | None = None

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """A row in words: the file and its line."""
        return f"{self.origin} {self.place} {self.lines[row]}"

    def rows(self, chosen: NDArray[np.int64]) -> Sheet:
        """The rows at `chosen`."""
        columns = {name: cells[chosen] for name, cells in self.columns.items()}
        return replace(self, columns=columns, lines=self.lines[chosen])

    def demand(self, name: str, argument: str) -> str:
        """`name`, if it is a column; else InputError that lists those there are."""
        if name not in self.columns:
            some = ", ".join(list(self.columns)[:12])
            raise InputError(f"{argument}={name!r} is no column of {self.origin}; it has {some}")
        return name

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column as float64, NaN where it is missing; InputError that names the first cell which is no number."""
        found = _numeric(self.columns[name], self.comma)
        if isinstance(found, int):
            raise InputError(
                f"{self.where(found)}: column {name!r} is {str(self.columns[name][found])[:40]!r}, not a number; correct it, "
                "remove the column, or take others (--columns a,b)"
            )
        return found

    def times(self, name: str) -> pd.Index:
        """A column as strictly increasing stamps; see `stamps`."""
        return stamps(self.columns[name], name or "time", self.where)

    def time_column(self, wanted: str | None) -> str | None:
        """The column of times: the one that is wanted, an index of times, one of `TIMES`, the only one of dates, or a first
        one without a name; None where there is none, InputError where two hold dates."""
        if wanted is not None:
            return self.demand(wanted, "time")
        if self.index is not None and _dated(self.columns[self.index]):
            return self.index
        by_name = {name.strip().lower(): name for name in reversed(self.columns)}
        for known in TIMES:
            if known in by_name:
                return by_name[known]
        dated = [name for name, cells in self.columns.items() if _dated(cells)]
        if len(dated) > 1:
            raise InputError(
                f"{self.origin}: columns {dated[0]!r} and {dated[1]!r} both hold dates; name the time (--time {dated[0]})"
            )
        if dated:
            return dated[0]
        return self.index if self.index is not None else "" if next(iter(self.columns), None) == "" else None


def _numeric(cells: NDArray[Any], comma: bool) -> NDArray[np.float64] | int:
    """Cells as float64, or the row of the first that is no number."""
    if cells.dtype.kind in "biuf":
        return cells.astype(np.float64)
    if cells.dtype.kind in "mMc":
        return 0
    if all(isinstance(cell, str) for cell in cells) and "_" not in "".join(cells):
        try:
            return cells.astype(np.float64)
        except ValueError:
            pass  # something is missing or no number: cell by cell
    found = np.empty(len(cells))
    decimal = comma and any("," in cell for cell in cells if isinstance(cell, str))
    for row, cell in enumerate(cells):
        text = "" if cell is None else str(cell).strip()
        if text.lower() in _MISSING:
            found[row] = np.nan
            continue
        if decimal:
            # a point beside decimal commas would be one of thousands, which are not guessed
            text = text.replace(",", ".") if "." not in text else "?"
        try:
            # digits in groups (1_000) are Python's, not those of a table
            found[row] = float(text if "_" not in text else "?")
        except ValueError:
            return row
    return found


def _dated(cells: NDArray[Any]) -> bool:
    """Whether a column is of dates, judged by its type or its first cell."""
    if cells.dtype.kind == "M":
        return True
    if cells.dtype.kind != "O" or not len(cells):
        return False
    if not isinstance(cells[0], str):
        return hasattr(cells[0], "year")
    return isinstance(_numeric(cells[:1], True), int) and _DATE.match(cells[0].strip()) is not None


def stamps(cells: Any, name: str, where: Where) -> pd.Index:
    """Cells as strictly increasing stamps: dates (ISO 8601 or one other format throughout; 20240131 too) or numbers.

    One offset or time zone is kept. Times whose offsets differ, as over a change to summer time, become UTC; if all share the
    hour on their own clocks (as days do) they keep it and lose the zone, so that a day stays a day. InputError for a missing or
    unreadable time, a date that may be day or month first, times out of order and times that are given twice.
    """
    import pandas as pd

    if isinstance(cells, pd.PeriodIndex):
        cells = cells.to_timestamp()
    found = pd.Index(cells if isinstance(cells, pd.DatetimeIndex) else _parsed(np.asarray(cells), name, where), name=name or None)
    if isinstance(found, pd.DatetimeIndex):
        found = pd.DatetimeIndex(found, freq=None)
        known, order = ~found.isna(), found.asi8
    else:
        order = found.to_numpy()
        known = np.isfinite(order)
    if not known.all():
        row = int(np.flatnonzero(~known)[0])
        raise InputError(f"{where(row)}: the time {name!r} is {found[row]}; fill it in or remove the row")
    wrong = np.flatnonzero(order[1:] <= order[:-1])
    if len(wrong):
        row = int(wrong[0]) + 1
        if order[row] == order[row - 1]:
            remedy = "is given twice; remove or average the rows, write an offset where a clock was set back"
        else:
            remedy = f"comes after {found[row - 1]}; sort the rows by {name!r}"
        raise InputError(f"{where(row)}: time {found[row]} {remedy}, or name the column of items (--item) if there are several")
    return found


def _parsed(cells: NDArray[Any], name: str, where: Where) -> pd.Index:
    import pandas as pd

    if cells.dtype.kind == "M":
        return pd.DatetimeIndex(cells)
    if cells.dtype.kind == "O" and len(cells) and hasattr(cells[0], "year"):
        try:
            return pd.DatetimeIndex(pd.to_datetime(list(cells)))
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(
                f"time {name!r} is not of dates alone ({first_line(error)}); give one time zone throughout"
            ) from error
    numbers = cells
    if cells.dtype.kind not in "iuf":
        texts = ["" if cell is None else str(cell).strip() for cell in cells]
        try:
            numbers = np.asarray(texts, dtype=str).astype(np.float64)
        except ValueError:
            return _dates(texts, name, where)
    if not np.isfinite(numbers).all() or bool((numbers != np.round(numbers)).any()) or np.abs(numbers).max(initial=0) > 2**53:
        return pd.Index(numbers)
    whole = numbers.astype(np.int64)
    if len(whole) and all(_COMPACT.fullmatch(str(number)) for number in whole):
        return pd.DatetimeIndex(pd.to_datetime(whole.astype(str), format="%Y%m%d", errors="coerce"))
    return pd.Index(whole)


def _dates(texts: list[str], name: str, where: Where) -> pd.DatetimeIndex:
    offsets = [match[1] if (match := _OFFSET.search(text)) else None for text in texts]
    mixed = len(set(offsets)) > 1
    if mixed and None not in offsets:
        wall = _attempt([text.removesuffix(offset or "") for text, offset in zip(texts, offsets, strict=True)], False)
        if wall is not None and bool((wall - wall.normalize() == wall[0] - wall[0].normalize()).all()):
            return wall
    # what begins with the year has the month next
    orders = (False,) if texts and _YEAR.match(texts[0]) else (False, True)
    ways = [found for day_first in orders if (found := _attempt(texts, day_first, utc=mixed)) is not None]
    if len(ways) == 2 and not ways[0].equals(ways[1]):
        row = int(np.flatnonzero(ways[0] != ways[1])[0])
        raise InputError(f"{where(row)}: {texts[row]!r} may have the day or the month first; write dates as 2024-01-31")
    if ways and not (mixed and None in offsets):
        return ways[0]
    # the longest beginning that can be read ends before the first time that does not fit
    good, bad = 0, len(texts)
    while bad - good > 1:
        middle = (good + bad) // 2
        fits = len(set(offsets[:middle])) == 1 or None not in offsets[:middle]
        if fits and any(_attempt(texts[:middle], day_first, utc=mixed) is not None for day_first in orders):
            good = middle
        else:
            bad = middle
    told = f"time {texts[good][:40]!r} in {name!r} cannot be read" + (" as those before it" if good else "")
    raise InputError(f"{where(good)}: {told}; write all as 2024-01-31 18:00, with an offset everywhere or nowhere")


def _attempt(texts: list[str], day_first: bool, *, utc: bool = False) -> pd.DatetimeIndex | None:
    """Texts as dates, if all of them are of ISO 8601 or of the format of the first."""
    import pandas as pd

    for form in ("ISO8601", None):
        with warnings.catch_warnings():
            # pandas warns where it turns to a parser that takes each text as it likes, and where it swaps day and month itself
            warnings.filterwarnings("error", message="Could not infer format", category=UserWarning)
            warnings.filterwarnings("ignore", message="Parsing dates in", category=UserWarning)
            try:
                found = pd.DatetimeIndex(pd.to_datetime(texts, format=form, dayfirst=day_first, utc=utc))
            except (ValueError, TypeError, OverflowError, UserWarning):
                continue
        if not found.isna().any():
            return found
    return None


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def of_frame(frame: pd.DataFrame, origin: str = "data") -> Sheet:
    """A pandas table; an index that is not just row numbers becomes a column, several levels several."""
    import pandas as pd

    index: str | None = None
    if isinstance(frame.index, pd.MultiIndex):
        frame = frame.reset_index()
    elif not (
        isinstance(frame.index, pd.RangeIndex) and frame.index.equals(pd.RangeIndex(len(frame))) and frame.index.name is None
    ):
        index = "" if frame.index.name is None else str(frame.index.name)
        given = frame.index.to_timestamp() if isinstance(frame.index, pd.PeriodIndex) else frame.index
        frame = frame.copy(deep=False)
        if index in [str(name) for name in frame.columns]:
            raise InputError(f"{origin}: the index and a column are both named {index!r}; rename one")
        frame.insert(0, index, given)
    names = [str(name) for name in frame.columns]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{origin}: two columns are named {repeated!r}; rename one")
    columns = {name: _cells(frame.iloc[:, place]) for place, name in enumerate(names)}
    return Sheet(origin, columns, np.arange(1, len(frame) + 1), index=index)


def _cells(column: pd.Series) -> NDArray[Any]:
    import pandas as pd

    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    kind = column.dtype.kind
    if isinstance(column.dtype, np.dtype) and kind in "biufM":
        return np.asarray(column.to_numpy())
    if pd.api.types.is_numeric_dtype(column.dtype) and not isinstance(column.dtype, pd.CategoricalDtype):
        # nullable types of pandas and Arrow
        return np.asarray(column.to_numpy(dtype=np.float64 if column.hasnans or kind != "i" else np.int64, na_value=np.nan))
    blank = column.isna().to_numpy()
    return np.asarray([None if gone else cell for gone, cell in zip(blank, column, strict=True)] or [None], object)[: len(column)]


def of_file(path: Path) -> Sheet:
    """A table of a .csv, .tsv, .txt or .parquet file; InputError, one line, for anything else."""
    import pandas as pd

    if path.suffix.lower() == ".parquet":
        try:
            return of_frame(pd.read_parquet(path), str(path))
        except (OSError, ValueError, ImportError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: cannot be read as parquet ({first_line(error)}); write it again, or as CSV") from error
    return _of_text(path)


def text_of(path: Path) -> str:
    """The text of a file; InputError for one that is not text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8 CSV") from error
    if "\0" in text:
        raise InputError(f"{path}: is not text (it holds zero bytes); save it as UTF-8 CSV")
    if not text.strip():
        raise InputError(f"{path}: is empty; give a table with a time column and one column per channel")
    return text


def _of_text(path: Path) -> Sheet:
    text = text_of(path)
    head = next(line for line in text.splitlines() if line.strip())
    separator = next((sign for sign in ("\t", ";", ",") if sign in head), "," if path.suffix.lower() != ".txt" else " ")
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator, skipinitialspace=separator == " ")
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append(cells)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num}: cannot be read as a table ({error}); write it again") from error
    comma = separator == ";"
    if _is_data(rows[0], comma):
        width = len(rows[0])
        names = [
            "time" if place == 0 and _dated(np.asarray(rows[0][:1], object)) else f"column {place + 1}" for place in range(width)
        ]
    else:
        names = list(rows.pop(0))
        lines.pop(0)
    if not rows:
        raise InputError(f"{path}: has a line of column names and no row below it; give at least two rows")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(names):
            raise InputError(f"{path} line {line}: has {len(row)} cells where there are {len(names)} columns; correct the line")
    columns: dict[str, NDArray[Any]] = {}
    for place, name in enumerate(names):
        cells = [row[place] for row in rows]
        if not name and place and not any(cells):
            continue  # a separator at the end of every line
        called = name if name or not place else f"column {place + 1}"
        if called in columns:
            raise InputError(f"{path}: two columns are named {called!r}; rename one")
        columns[called] = np.asarray(cells, object)
    return Sheet(str(path), columns, np.asarray(lines, np.int64), "line", comma)


def _is_data(cells: list[str], comma: bool) -> bool:
    """Whether a first line is already one of numbers, after a time or a number."""
    if not cells[0]:
        return False
    first = np.asarray(cells[:1], object)
    rest = _numeric(np.asarray(cells[1:], object), comma)
    return not isinstance(rest, int) and (_dated(first) or not isinstance(_numeric(first, comma), int))


def existing(source: str | os.PathLike[str]) -> Path:
    """The path of a readable file of a known kind; InputError for a folder, nothing at all, or another suffix."""
    path = Path(source)
    if path.is_dir():
        raise InputError(f"{os.fspath(source)!r} is a folder; give a file ending in {', '.join(SUFFIXES)}")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{os.fspath(source)!r} does not end in one of {', '.join(SUFFIXES)}; save the table as one of them")
    if not path.is_file():
        raise InputError(f"{os.fspath(source)!r} is not there; check the path")
    return path
