"""Series that come with statsmodels, by name: for demonstrations and tests, without a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ornstein.sequence.data import Series
from ornstein.sequence.reading import read_series

if TYPE_CHECKING:
    import pandas


def _frame(name: str) -> pandas.DataFrame:
    from importlib import import_module

    return import_module(f"statsmodels.datasets.{name}").load_pandas().data


def co2() -> tuple[Series, ...]:
    """Carbon dioxide at Mauna Loa, parts per million, weekly from 1958 to 2001, with 59 weeks missing."""
    return read_series(_frame("co2"))


def sunspots() -> tuple[Series, ...]:
    """Mean yearly sunspot number from 1700 to 2008, by the year's number."""
    frame = _frame("sunspots")
    return read_series(frame.set_index("YEAR").rename_axis("year"))


def macro() -> tuple[Series, ...]:
    """Twelve quarterly series of the economy of the United States from 1959 to 2009."""
    import pandas

    frame = _frame("macrodata")
    quarters = pandas.PeriodIndex.from_fields(year=frame["year"].astype(int), quarter=frame["quarter"].astype(int))
    return read_series(frame.drop(columns=["year", "quarter"]).set_index(quarters.to_timestamp()))


SOURCES: dict[str, Callable[[], tuple[Series, ...]]] = {"co2": co2, "sunspots": sunspots, "macro": macro}
