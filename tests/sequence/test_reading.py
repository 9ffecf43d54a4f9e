"""Reading series: what is read equals what was written, and a file that is wrong is one line that names the place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ornstein.files import InputError
from ornstein.noise import Noise
from ornstein.sequence.data import Series
from ornstein.sequence.reading import read_series

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"NO SHARED DATA at {SHARED}: real tables are not tested")
DAYS = pd.date_range("2024-01-01", periods=6, freq="D")


def one(source: object, **options: object) -> Series:
    (found,) = read_series(source, **options)  # type: ignore[arg-type]
    return found


def written(directory: Path, text: str | bytes, name: str = "x.csv") -> Path:
    path = directory / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def numbers(rows: int, columns: int, seed: int = 0, missing: float = 0.0) -> np.ndarray:
    noise = Noise(seed)
    values = noise.normal((rows, columns), stream="values").double().numpy() * 1e3
    gone = noise.uniform((rows, columns), stream="gone").numpy() < missing
    gone[0] = False
    return np.where(gone, np.nan, values)


# what is read equals what was written


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    alias=st.sampled_from(["h", "15min", "D", "B", "W-SUN", "MS", "QE-DEC", "s"]),
    zone=st.sampled_from([None, "UTC", "Asia/Tokyo"]),
    rows=st.integers(3, 40), columns=st.integers(1, 4), missing=st.floats(0, 0.5), seed=st.integers(0, 1000),
    kind=st.sampled_from(["csv", "semicolon", "tsv", "parquet", "frame", "index"]),
)  # fmt: skip
def test_tables_are_read_back_bit_for_bit(
    tmp_path: Path, alias: str, zone: str | None, rows: int, columns: int, missing: float, seed: int, kind: str
) -> None:
    index = pd.date_range("2024-01-05", periods=rows, freq=alias, tz=zone, name="when")
    values = numbers(rows, columns, seed, missing)
    frame = pd.DataFrame(values, index=index, columns=[f"c{k}" for k in range(columns)])
    source: object = frame
    if kind == "csv":
        frame.to_csv(source := tmp_path / "x.csv")
    elif kind == "semicolon":
        frame.to_csv(source := tmp_path / "x.csv", sep=";", decimal=",", encoding="utf-8-sig")
    elif kind == "tsv":
        frame.to_csv(source := tmp_path / "x.tsv", sep="\t")
    elif kind == "parquet":
        frame.reset_index().to_parquet(source := tmp_path / "x.parquet")
    elif kind == "frame":
        source = frame.reset_index()
    found = one(source)
    assert np.array_equal(found.values, values, equal_nan=True)
    assert found.values.dtype == np.float64
    assert (found.index == index).all()
    assert str(found.index.tz) in (str(index.tz), "UTC+09:00")
    assert found.channels == tuple(frame.columns)
    assert found.index.name == "when"
    assert found.frequency == alias or rows < 8
    again = found.stamps(5)
    if found.frequency == alias:
        assert (again == pd.date_range(index[-1], periods=6, freq=alias)[1:]).all()
        assert again.name == "when"


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
def test_offsets_that_change_become_utc_and_days_stay_days(zone: str, tmp_path: Path) -> None:
    hours = pd.date_range("2024-03-01", periods=24 * 40, freq="h", tz=zone, name="time")
    pd.DataFrame({"a": np.arange(len(hours))}, index=hours).to_csv(tmp_path / "h.csv")
    found = one(tmp_path / "h.csv")
    assert str(found.index.tz) == "UTC"
    assert (found.index == hours).all()
    assert found.frequency == "h"
    assert not np.isnan(found.values).any()
    days = pd.date_range("2024-03-01", periods=40, freq="D", tz=zone, name="time")
    pd.DataFrame({"a": np.arange(40)}, index=days).to_csv(tmp_path / "d.csv")
    found = one(tmp_path / "d.csv")
    assert found.index.tz is None
    assert (found.index == days.tz_localize(None)).all()
    assert found.frequency == "D"
    # a zone that has a name is kept as it is
    kept = one(pd.DataFrame({"a": np.arange(40)}, index=days))
    assert str(kept.index.tz) == zone
    assert kept.frequency == "D"
    assert (kept.stamps(1) == pd.DatetimeIndex([days[-1] + pd.offsets.Day(1)])).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("date,a\n2024-01-01,1\n2024-01-02,\n2024-01-03,3\n", [1, np.nan, 3]),
        ("\ufeffdate;a\n31.01.2024;1,5\n01.02.2024;NA\n02.02.2024;-2,25e1\n", [1.5, np.nan, -22.5]),
        ("b,ds\nnan,20240131\n2,20240201\n3,20240202\n", [np.nan, 2, 3]),
        (",a\n2024-01-01,1\n2024-01-02,2\n2024-01-03,3\n", [1, 2, 3]),
        ("2024-01-01 10:00,1\n2024-01-01 11:00,2\n", [1, 2]),
        ("a\n1\n2\n\n3\n", [1, 2, 3]),
        ("1\n2\n3\n", [1, 2, 3]),
        ("time,a\n2024-01-01T00:00:00Z,1\n2024-01-01T01:00:00Z,2\n", [1, 2]),
        ("when,a\n13/01/2024,1\n14/01/2024,2\n", [1, 2]),
        ("when,a\n30 Jan 2024,1\n31 Jan 2024,2\n", [1, 2]),
        ('"date","a",\n"2024-01-01","1",\n"2024-01-02","2",\n', [1, 2]),
    ],
)
def test_ways_to_write_a_table(text: str, expected: list[float], tmp_path: Path) -> None:
    found = one(written(tmp_path, text))
    assert np.array_equal(found.values[:, 0], expected, equal_nan=True)
    assert found.frequency is not None


def test_spaces_and_headerless_text(tmp_path: Path) -> None:
    found = one(written(tmp_path, "  1.0   2.0\n3 4\n", "x.txt"))
    assert found.values.tolist() == [[1, 2], [3, 4]]
    assert found.channels == ("column 1", "column 2")
    assert (found.frequency, found.step) == ("", 1.0)
    assert list(found.stamps(2)) == [2, 3]


def test_the_time_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"made": DAYS + pd.Timedelta("1D"), "timestamp": DAYS, "a": range(6)})
    assert one(frame.drop(columns="made")).index.equals(DAYS.rename("timestamp"))
    assert one(frame.drop(columns="timestamp")).index[0] == DAYS[1]
    assert one(frame, time="made", columns=["a"]).index[0] == DAYS[1]
    with pytest.raises(InputError, match=r"column 'made' is '2024-01-02.*not a number"):
        read_series(frame)
    with pytest.raises(InputError, match="'made' and 'other' both hold dates"):
        read_series(frame.rename(columns={"timestamp": "other"}))
    # row numbers left by a filter are no times beside a column of dates, and the times where there is nothing else
    some = frame.drop(columns="made")[frame["a"] % 2 == 0]
    assert one(some).channels == ("a",)
    assert list(one(some[["a"]]).index) == [0, 2, 4]
    assert one(pd.Series(range(6), index=DAYS, name="x")).channels == ("x",)
    assert one(pd.DataFrame({"a": [1.0, 2.0]}, index=pd.period_range("2024-01", periods=2, freq="M"))).frequency == "MS"
    sparse = one(written(tmp_path, "year,time,a\n1,2000,1\n2,2001,2\n3,2003,4\n"), columns=["a"])
    assert list(sparse.index) == [2000, 2001, 2002, 2003]
    assert np.isnan(sparse.values[2, 0])


@pytest.mark.parametrize("names", [("item", "time", "value"), ("unique_id", "ds", "y"), ("store", "day", "sold")])
def test_a_long_table_is_a_panel(names: tuple[str, str, str], tmp_path: Path) -> None:
    item, time, value = names
    rows = [(str(k), str(day.date()), k + 0.5 * row) for k in (7, 3) for row, day in enumerate(DAYS[: 3 + k % 2])]
    pd.DataFrame(rows, columns=list(names)).to_csv(tmp_path / "x.csv", index=False)
    told = {} if item != "store" else {"item": item, "time": time, "value": value}
    found = read_series(tmp_path / "x.csv", **told)  # type: ignore[arg-type]
    assert [each.item for each in found] == ["7", "3"]
    assert [len(each) for each in found] == [4, 4]
    assert found[1].values[:, 0].tolist() == [3, 3.5, 4, 4.5]
    assert found[0].channels == (value,)
    # rows in the order of time, as long tables often are
    mixed = pd.DataFrame(rows, columns=list(names)).sort_values([time, item])
    again = read_series(mixed, **told)  # type: ignore[arg-type]
    assert {each.item: each.values.tolist() for each in again} == {each.item: each.values.tolist() for each in found}


# GluonTS


def lines(directory: Path, *entries: dict[str, object], freq: str | None = None) -> Path:
    if freq is not None:
        written(directory, json.dumps({"freq": freq}), "metadata.json")
    return written(directory, "\n".join(json.dumps(entry) for entry in entries) + "\n", "train.json")


def test_json_lines(tmp_path: Path) -> None:
    a = {"start": "2024-01-31 10:00", "target": [1, "NaN", 3], "item_id": "a"}
    b = {**a, "target": [4, 5, None], "item_id": "b"}
    whole = one(lines(tmp_path, a, b, freq="H"))
    assert whole.channels == ("a", "b")
    assert np.array_equal(whole.values, [[1, 4], [np.nan, 5], [3, np.nan]], equal_nan=True)
    assert whole.frequency == "h"
    assert whole.index[0] == pd.Timestamp("2024-01-31 10:00")
    panel = read_series(lines(tmp_path, a, {**b, "start": "2024-02-01"}))
    assert [each.item for each in panel] == ["a", "b"]
    panel = read_series(lines(tmp_path, {**a, "feat_static_real": [1.5]}, {**b, "feat_static_real": [2]}))
    assert [each.static.tolist() for each in panel if each.static is not None] == [[1.5], [2.0]]
    wide = one(lines(tmp_path, {**a, "target": [[1, 2, 3], [4, 5, 6]], "feat_dynamic_real": [[0, 1, 2, 3]]}))
    assert wide.values.tolist() == [[1, 4], [2, 5], [3, 6]]
    assert wide.item == "a"
    assert wide.future is not None
    assert wide.future.tolist() == [[0], [1], [2], [3]]


@pytest.mark.parametrize(
    ("freq", "frequency", "start"),
    [("1D", "D", "2024-01-31"), ("15T", "15min", "2024-01-31"), ("B", "B", "2024-01-31"), ("W", "W-WED", "2024-01-31"),
     ("M", "MS", "2024-01-01"), ("Q", "QS-JAN", "2024-01-01"), ("Y", "YS-JAN", "2024-01-01"), ("ME", "MS", "2024-01-01")],
)  # fmt: skip
def test_frequencies_as_gluonts_writes_them(freq: str, frequency: str, start: str, tmp_path: Path) -> None:
    found = one(lines(tmp_path, {"start": "2024-01-31", "target": [1, 2, 3], "freq": freq}))
    assert found.frequency == frequency
    assert found.index[0] == pd.Timestamp(start)
    assert len(found.stamps(2)) == 2


FILES: dict[str, tuple[str, str | bytes, str]] = {
    "word": ("x.csv", "date,a,b\n2024-01-01,1,2\n2024-01-02,2,high\n", "line 3: column 'b' is 'high', not a number.*--columns"),
    "unsorted": ("x.csv", "date,a\n2024-01-01,1\n\n2024-01-03,2\n2024-01-02,3\n", "line 5: .*sort the rows by 'date'"),
    "twice": ("x.csv", "date,a\n2024-01-01,1\n2024-01-01,2\n", "line 3: .* is given twice"),
    "clock set back": ("x.csv", "date,a\n2024-10-27 02:00,1\n2024-10-27 02:00,2\n", "write an offset"),
    "bad time": ("x.csv", "date,a\n2024-01-01,1\n2024-13-02,2\n2024-01-03,3\n", "line 3: time '2024-13-02' in .* cannot be read"),
    "no time": ("x.csv", "date,a\n2024-01-01,1\n,2\n2024-01-03,3\n", "line 3: time '' in 'date' cannot be read"),
    "some offsets": ("x.csv", "date,a\n2024-01-01T00:00Z,1\n2024-01-01T01:00,2\n", "line 3: .*offset everywhere or nowhere"),
    "day or month": ("x.csv", "date,a\n01/02/2024,1\n01/03/2024,2\n", "may have the day or the month first"),
    "infinity": ("x.csv", "date,a\n2024-01-01,1\n2024-01-02,inf\n", "line 3: 'a' is inf"),
    "empty column": ("x.csv", "date,a,b\n2024-01-01,1,\n2024-01-02,2,NA\n", "channel 'b' has no number"),
    "cells": ("x.csv", "date,a\n2024-01-01,1\n2024-01-02,1,2\n", "line 3: has 3 cells where there are 2 columns"),
    "thousands": ("x.csv", "date;a\n2024-01-01;1,5\n2024-01-02;1.234,5\n", "line 3: column 'a' is '1.234,5'"),
    "empty": ("x.csv", "\n \n", "is empty"),
    "header": ("x.csv", "date,a\n", "no row below it"),
    "one row": ("x.csv", "date,a\n2024-01-01,1\n", "a single row"),
    "binary": ("x.csv", bytes(range(256)), "is not UTF-8 text"),
    "zeros": ("x.csv", b"a\n\0\0\n", "zero bytes"),
    "same names": ("x.csv", "a,a\n1,2\n3,4\n", "two columns are named 'a'"),
    "parquet": ("x.parquet", b"rubbish", "cannot be read as parquet"),
    "npy": ("x.npy", b"rubbish", "cannot be read as .npy"),
    "npz": ("x.npz", b"PK\x03\x04rubbish", "cannot be read as .npz"),
    "json": ("x.json", '{"target": [1, 2]}\n{"target": [1,\n', "line 2: not valid JSON"),
    "json target": ("x.jsonl", '{"start": "2024-01-01"}\n', 'line 1: has no "target"'),
    "json freq": ("x.json", '{"start": "2024-01-01", "target": [1, 2]}\n', "has a start and no frequency"),
    "json alias": ("x.json", '{"start": "2024-01-01", "target": [1, 2], "freq": "moon"}\n', "'moon' is no date or alias"),
    "json infinity": ("x.json", '{"target": [1, 1e999]}\n', "line 1, number 2: 'value' is inf"),
    "json ragged": ("x.json", '{"target": [[1, 2], [3]]}\n', "'target' is not an array of numbers"),
    "json words": ("x.json", '{"target": ["one", 2]}\n', "'target' is not an array of numbers"),
    "json list": ("x.json", "[]", "holds no series"),
    "json short": ("x.json", '{"target": [1, 2], "feat_dynamic_real": [[1]]}\n', "feat_dynamic_real has 1 steps"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_wrong_file_is_one_line(name: str, tmp_path: Path) -> None:
    suffix, text, message = FILES[name]
    with pytest.raises(InputError, match=message) as error:
        read_series(written(tmp_path, text, suffix))
    assert "\n" not in str(error.value)


def test_pickles_are_not_run(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.asarray([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(InputError, match="nothing in it was run"):
        read_series(tmp_path / "x.npy")


# the tables this library is measured on


@needs_data
def test_etth1() -> None:
    found = one(SHARED / "etth1" / "ETTh1.csv")
    frame = pd.read_csv(SHARED / "etth1" / "ETTh1.csv", index_col="date", parse_dates=True, float_precision="round_trip")
    assert np.array_equal(found.values, frame.to_numpy())
    assert (found.index == frame.index).all()
    assert (found.frequency, found.channels) == ("h", tuple(frame.columns))


@needs_data
def test_pm25_months_that_are_missing_become_rows() -> None:
    found = one(SHARED / "pm25" / "pm25_ground_dev.csv")
    frame = pd.read_csv(SHARED / "pm25" / "pm25_ground_dev.csv", index_col="datetime", parse_dates=True)
    assert len(frame) == 5831
    assert found.values.shape == (8759, 36)
    assert found.frequency == "h"
    there = found.index.isin(frame.index)
    assert np.array_equal(found.values[there], frame.to_numpy(), equal_nan=True)
    assert np.isnan(found.values[~there]).all()
    assert set(found.index[~there].month) >= {3, 6, 9, 12}


@needs_data
def test_exchange_rates_agree_however_they_are_written() -> None:
    table = one(SHARED / "exchange_rate" / "exchange_rate_train.csv")
    entries = one(SHARED / "exchange_rate" / "train.json")
    assert table.values.shape == (6071, 8)
    assert np.array_equal(table.values, entries.values)
    assert (table.index == entries.index).all()
    assert table.frequency == entries.frequency == "B"
    assert entries.channels == tuple("01234567")
