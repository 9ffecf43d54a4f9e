"""Series and their covariates: what is given is kept, gaps are filled with NaN, and whatever is wrong is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ornstein.files import InputError
from ornstein.noise import Noise
from ornstein.sequence.data import Series, describe, series
from ornstein.sequence.reading import read_series

DAYS = pd.date_range("2024-01-01", periods=6, freq="D")


def one(source: object, **options: object) -> Series:
    (found,) = read_series(source, **options)  # type: ignore[arg-type]
    return found


def numbers(rows: int, columns: int, seed: int = 0, missing: float = 0.0) -> np.ndarray:
    noise = Noise(seed)
    values = noise.normal((rows, columns), stream="values").double().numpy() * 1e3
    gone = noise.uniform((rows, columns), stream="gone").numpy() < missing
    gone[0] = False
    return np.where(gone, np.nan, values)


def test_gaps_become_rows() -> None:
    found = series([1.0, 2.0, 3.0], DAYS[[0, 1, 4]], ["a"])
    assert found.index.equals(DAYS[:5])
    assert np.array_equal(found.values[:, 0], [1, 2, np.nan, np.nan, 3], equal_nan=True)
    assert found.frequency == "D"
    irregular = series([1.0, 2.0, 3.0], [0.0, 1.0, 1.7])
    assert irregular.frequency is None
    assert len(irregular) == 3
    with pytest.raises(InputError, match="irregular"):
        irregular.stamps(1)


def test_arrays(tmp_path: Path) -> None:
    values = numbers(5, 3)
    assert series(values[:, 0]).channels == ("value",)
    assert series(values.tolist()).channels == ("0", "1", "2")
    assert np.array_equal(series(values.astype(np.float32)).values, values.astype(np.float32))
    before = values.copy()
    assert one(values, columns=["2", "0"]).values.tolist() == values[:, [2, 0]].tolist()
    assert np.array_equal(values, before)
    np.save(tmp_path / "x.npy", values)
    assert np.array_equal(one(tmp_path / "x.npy").values, values)
    panel = np.stack([values, np.full_like(values, np.nan)])
    np.savez(tmp_path / "x.npz", values=panel, channels=["a", "b", "c"], other=[1])
    found = read_series(tmp_path / "x.npz")
    assert [item.item for item in found] == ["0", "1"]
    assert np.array_equal(found[0].values, values)
    assert found[1].channels == ("a", "b", "c")


# covariates


def test_covariates(tmp_path: Path) -> None:
    frame = pd.DataFrame({"date": DAYS, "a": range(6)})
    later = pd.date_range("2023-12-30", periods=10, freq="D")
    ahead = pd.DataFrame({"date": later, "price": np.arange(10.0), "open": 1})
    ahead.to_csv(tmp_path / "f.csv", index=False)
    found = one(frame, future=tmp_path / "f.csv", static=pd.DataFrame({"size": [3.0]}))
    assert found.future_names == ("price", "open")
    assert found.future is not None
    assert found.future[:, 0].tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert found.static_names == ("size",)
    part = found.head(4)
    assert len(part) == 4
    assert part.future is not None
    assert part.future.shape == (8, 2)
    end = found.tail(4)
    assert end.future is not None
    assert end.future[:, 0].tolist() == [6, 7, 8, 9]
    assert len(found.tail(-3)) == 6
    assert found.frame().equals(pd.DataFrame({"a": np.arange(6.0)}, index=DAYS.rename("date")))
    array = series(range(6), DAYS, future=np.arange(16).reshape(8, 2), static={"size": 2})
    assert array.future is not None
    assert array.future.shape == (8, 2)
    # decimal steps, which round otherwise when they are summed
    steps, summed = 0.1 * np.arange(12), np.cumsum([0, *[0.1] * 11])
    assert (steps != summed)[:10].any()
    assert series(range(10), steps[:10], future=pd.DataFrame({"time": summed, "x": range(12)})).future_names == ("x",)


def test_covariates_of_a_panel() -> None:
    frame = pd.DataFrame({"item": ["a"] * 3 + ["b"] * 3, "date": [*DAYS[:3]] * 2, "value": range(6)})
    shared = pd.DataFrame({"date": DAYS, "x": range(6)})
    own = pd.concat([shared.assign(item="b", x=range(10, 16)), shared.assign(item="a")])
    sizes = pd.DataFrame({"item": ["b", "a"], "size": [2.0, 1.0]})
    for table, first in ((shared, [0, 0]), (own, [0, 10])):
        found = read_series(frame, future=table, static=sizes)
        assert [each.future[0, 0] for each in found if each.future is not None] == first
        assert [each.static.tolist() for each in found if each.static is not None] == [[1.0], [2.0]]
    with pytest.raises(InputError, match="has 0 rows for the item 'b'"):
        read_series(frame, static=sizes[1:])


FRAME = pd.DataFrame({"date": DAYS, "a": range(6)})
AHEAD = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=8), "x": np.arange(8.0)})
PANEL = pd.DataFrame({"item": ["a"] * 3 + ["b"] * 3, "date": [*DAYS[:3], *DAYS[::2]], "value": range(6)})
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "covariate stamps": (lambda: one(FRAME, future=AHEAD.drop(3)), "no row for time 2024-01-04"),
    "covariate too short": (lambda: one(FRAME, future=AHEAD[:5]), "no row for time 2024-01-06"),
    "covariate gap ahead": (lambda: one(FRAME, future=AHEAD.drop(6)), "row 7: time 2024-01-08.* is not the next step"),
    "covariate nan": (lambda: one(FRAME, future=AHEAD.replace(3.0, np.nan)), "row 4: covariate 'x' is nan"),
    "covariate kind": (lambda: one(FRAME, future=AHEAD[["x"]]), "has dates for times"),
    "covariate zone": (lambda: one(FRAME, future=AHEAD.assign(date=AHEAD["date"].dt.tz_localize("UTC"))), "time zone"),
    "covariate array": (lambda: series(range(6), future=np.ones(5)), "future has 5 rows for 6 stamps"),
    "covariate array gap": (lambda: series(range(3), DAYS[[0, 1, 4]], future=np.ones(3)), "3 rows for 5 stamps"),
    "static": (lambda: one(FRAME, static=pd.DataFrame({"size": ["big"]})), "'size' is 'big', not a number"),
    "static nan": (lambda: series([1, 2], static={"size": np.nan}), "static='size' is nan"),
    "one row": (lambda: series([1.0]), "a single row"),
    "no rows": (lambda: series([]), "no row"),
    "no number": (lambda: series([[1, np.nan], [2, np.nan]], channels=["a", "b"]), "channel 'b' has no number"),
    "infinity": (lambda: series([1, np.inf]), "row 2: 'value' is inf"),
    "text": (lambda: series(["a", "b"]), "values have dtype"),
    "objects": (lambda: series([1, object()]), "values are not all numbers"),
    "axes": (lambda: series(np.zeros((2, 2, 2))), "values have shape"),
    "names": (lambda: series([[1, 2], [3, 4]], channels=["a"]), "channels="),
    "same names": (lambda: series([[1, 2], [3, 4]], channels=["a", "a"]), "channels="),
    "index length": (lambda: series([1, 2, 3], DAYS), "index has 6 stamps for 3 rows"),
    "unsorted": (lambda: series([1, 2, 3], DAYS[[0, 2, 1]]), "row 3: time 2024-01-02.* comes after 2024-01-03.*sort"),
    "twice": (lambda: series([1, 2, 3], [0, 1, 1]), "row 3: time 1 is given twice"),
    "time nan": (lambda: series([1, 2, 3], [0, np.nan, 1]), "row 2: the time 'time' is nan"),
    "nat": (lambda: series([1, 2], pd.DatetimeIndex(["2024-01-01", None])), "row 2: the time 'time' is NaT"),
    "changing step": (lambda: series(range(20), [*range(10), *range(16, 76, 6)]), "row 10: mixed frequencies"),
    "item": (lambda: read_series(PANEL, item="store"), "item='store' is no column of data; it has item, date, value"),
    "value": (lambda: read_series(PANEL, item="item", value="price"), "value='price' is no column"),
    "time": (lambda: read_series(FRAME, time="when"), "time='when' is no column"),
    "column": (lambda: read_series(FRAME, columns=["b"]), "columns='b' is no column"),
    "columns": (lambda: read_series(FRAME, columns="a"), "is one text"),
    "steps": (lambda: read_series(PANEL), "items 'a' and 'b' differ: 'D' and '2D'"),
    "short item": (lambda: read_series(PANEL[:4]), "item 'b' has a single row"),
    "item missing": (lambda: read_series(PANEL.assign(item=["a", None, *"abbb"])), "row 2: the item 'item' is missing"),
    "only times": (lambda: read_series(FRAME[["date"]]), "no column of numbers beside 'date'"),
    "same column": (lambda: read_series(pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"])), "two columns are named 'a'"),
    "folder": (lambda: read_series("/tmp"), "'/tmp' is a folder"),
    "absent": (lambda: read_series("/nowhere/x.csv"), "is not there"),
    "suffix": (lambda: read_series("x.xlsx"), "does not end in one of"),
    "n": (lambda: series([1, 2]).stamps(-1), "n=-1"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BAD))
def test_wrong_input_is_one_line(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_describe() -> None:
    text = describe([series([[1.0, 2.0], [np.nan, 3.0]], DAYS[:2], ["a", "b"], static={"size": 1})])
    assert "2 rows of 2 channels (a, b), 2024-01-01 00:00:00 to 2024-01-02 00:00:00, every D, 25.0 % missing" in text
    assert "1 static covariates" in text
    panel = describe(read_series(PANEL[:3]) + read_series(PANEL[:3].assign(item="c")))
    assert panel.startswith("2 series, each of 3 rows of 1 channel (value)")
