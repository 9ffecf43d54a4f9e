"""Frequencies, seasons, lags and calendar features: held against pandas' own date ranges and against clocks read by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ornstein.files import InputError
from ornstein.noise import Noise
from ornstein.sequence.calendar import LONGER, features, frequency_of, grid_of, lags, season, typical_step

ALIASES = ["h", "2h", "30min", "15min", "s", "36h", "D", "2D", "B", "W-WED", "2W-SUN", "MS", "ME", "2MS", "QS-FEB", "QE-DEC",
           "YS-JAN", "YE-JUN", "BME", "BMS"]  # fmt: skip
ZONES = [None, "UTC", "Europe/Berlin", "Asia/Kolkata"]


def keep(n: int, share: float, seed: int) -> np.ndarray:
    """Which of n rows are kept at random: always the first three and the last, which tell the step."""
    kept = Noise(seed).uniform((n,), stream="kept").numpy() < share
    kept[[0, 1, 2, n - 1]] = True
    return np.flatnonzero(kept)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("alias", ALIASES)
def test_the_frequency_is_the_one_that_made_the_stamps(alias: str, zone: str | None) -> None:
    index = pd.date_range("2019-02-05 00:00", periods=60, freq=alias, tz=zone)
    assert frequency_of(index) == alias
    assert frequency_of(index + pd.Timedelta("7h30min") if zone is None else index) == alias


@given(alias=st.sampled_from(ALIASES), zone=st.sampled_from(ZONES), share=st.floats(0.3, 1), seed=st.integers(0, 100))
def test_missing_rows_are_found(alias: str, zone: str | None, share: float, seed: int) -> None:
    index = pd.date_range("2019-02-05", periods=40, freq=alias, tz=zone, name="when")
    kept = keep(40, share, seed)
    grid = grid_of(index[kept])
    assert grid.frequency == alias
    assert grid.index.equals(index)
    assert grid.index.name == "when"
    assert grid.places.tolist() == kept.tolist()


@given(
    start=st.integers(-1000, 1000), step=st.sampled_from([1, 3, 0.1, 0.25, 1e-3, 7.5]), share=st.floats(0.3, 1),
    seed=st.integers(0, 50),
)  # fmt: skip
def test_numbers_have_a_step(start: int, step: float, share: float, seed: int) -> None:
    whole = pd.Index(start + step * np.arange(40))
    kept = keep(40, share, seed)
    grid = grid_of(whole[kept])
    assert grid.frequency == ""
    assert grid.step == pytest.approx(step, rel=1e-9)
    assert np.allclose(grid.index.to_numpy(), whole.to_numpy(), rtol=0, atol=1e-9)
    assert np.array_equal(grid.index[grid.places], whole[kept])
    assert grid.index.dtype == whole.dtype


def test_days_stay_days_over_a_change_of_the_clock() -> None:
    days = pd.date_range("2024-03-25", periods=14, freq="D", tz="Europe/Berlin")
    assert len(set(np.diff(days.asi8).tolist())) == 2
    assert frequency_of(days) == "D"
    hours = pd.date_range("2024-03-30", periods=60, freq="h", tz="Europe/Berlin")
    assert frequency_of(hours) == "h"
    assert len(grid_of(hours).index) == 60


def test_days_and_business_days() -> None:
    days = pd.date_range("2024-01-01", periods=3)
    assert frequency_of(days) == "D"
    assert frequency_of(pd.DatetimeIndex(["2024-01-04", "2024-01-05", "2024-01-08"])) == "B"
    assert frequency_of(pd.date_range("2024-01-01", periods=2, freq="MS")) == "MS"
    assert frequency_of(pd.DatetimeIndex(["2024-01-01"])) is None
    holidays = pd.bdate_range("2024-01-01", periods=30).delete([7, 8, 20])
    assert grid_of(holidays).index.equals(pd.bdate_range("2024-01-01", periods=30))


def test_irregular_times_stay_as_they_are() -> None:
    for index in (
        pd.DatetimeIndex(["2024-01-01 00:00", "2024-01-01 00:07", "2024-01-01 00:18", "2024-01-01 00:20:30"]),
        pd.Index([0.0, 1.0, 1.7, 4.0]),
        # whole seconds, but no grid of them: it would be hundreds of times as long
        pd.DatetimeIndex(pd.Timestamp("2024-01-01") + pd.to_timedelta([0, 1, 500, 2000, 2900, 4711], unit="s")),
        pd.Index([0, 1, 500, 2000, 2900, 4711]),
    ):
        grid = grid_of(index)
        assert grid.frequency is None
        assert grid.index.equals(index)


def test_a_step_that_changes_for_good_is_refused_where_it_does() -> None:
    hours = pd.date_range("2024-01-01", periods=48, freq="h")
    days = pd.date_range("2024-01-03", periods=30, freq="D")
    quarters = pd.date_range("2024-01-03", periods=30, freq="7min")
    for later, row in ((days, 48), (quarters, 49)):
        with pytest.raises(InputError, match=f"row ({row}|{row + 1}): mixed frequencies"):
            grid_of(hours.append(later))
    with pytest.raises(InputError, match="row 31: mixed frequencies"):
        grid_of(pd.Index([*range(31), *range(37, 100, 7)]))


def test_gaps_may_make_a_series_so_long_and_no_longer() -> None:
    parts = pd.date_range("2024-01-01", periods=10, freq="h")
    near, far = parts + pd.Timedelta(LONGER * 20 - 11, unit="h"), parts + pd.Timedelta(LONGER * 20, unit="h")
    assert len(grid_of(parts.append(near)).index) == LONGER * 20 - 1
    with pytest.raises(InputError, match=r"row 10: 391 steps of 'h' until the next row; .* more than 20 times as long"):
        grid_of(parts.append(far))
    with pytest.raises(InputError, match="more than 20 times as long"):
        grid_of(parts.append(parts + pd.Timedelta("36500D")))


SEASONS = {
    "h": 24, "2h": 12, "30min": 48, "15min": 96, "5min": 288, "s": 3600, "D": 7, "B": 5, "W-SUN": 52, "W": 52, "2W-MON": 26,
           "MS": 12, "ME": 12, "M": 12, "3MS": 4, "QS-JAN": 4, "QE-DEC": 4, "Q": 4, "YS-JAN": None, "2D": None, "7h": None,
           "12MS": None, "": None, None: None, "nonsense": None,
}  # fmt: skip


@pytest.mark.parametrize("frequency", SEASONS)
def test_season(frequency: str | None) -> None:
    assert season(frequency) == SEASONS[frequency]


def test_lags() -> None:
    assert lags("h", 1000) == (1, 2, 3, 23, 24, 25, 48, 168)
    assert lags("h", 30) == (1, 2, 3, 23, 24, 25)
    assert lags("MS", 1000) == (1, 2, 3, 11, 12, 13, 24, 36)
    assert lags("B", 15) == (1, 2, 3, 4, 5, 6, 10)
    assert lags(None, 2) == (1, 2)
    assert lags("h", 0) == ()


@given(frequency=st.sampled_from(list(SEASONS)), context=st.integers(0, 2000))
def test_lags_increase_and_stay_within_the_context(frequency: str | None, context: int) -> None:
    found = lags(frequency, context)
    assert list(found) == sorted(set(found))
    assert all(1 <= lag <= context for lag in found)


def test_features_by_hand() -> None:
    # Wednesday 2025-01-01, 6 o'clock: a quarter of a day, two sevenths of a week, the start of month and year
    index = pd.DatetimeIndex(["2025-01-01 06:00", "2025-07-02 12:00"])
    names, values = features(index, "h")
    found = dict(zip(names, values[0], strict=True))
    assert found["time of day sine"] == pytest.approx(1)
    assert found["time of day cosine"] == pytest.approx(0, abs=1e-12)
    assert found["day of week sine"] == pytest.approx(math.sin(2 * math.pi * 2 / 7))
    assert found["day of month sine"] == found["day of year sine"] == 0
    assert found["day of year cosine"] == 1
    assert dict(zip(names, values[1], strict=True))["day of year cosine"] == pytest.approx(math.cos(2 * math.pi * 182 / 365))
    local = features(index.tz_localize("Asia/Tokyo"), "h")[1]
    assert np.array_equal(local, values)


@pytest.mark.parametrize(
    ("alias", "cycles"),
    [
        ("15min", ["time of day", "day of week", "day of month", "day of year"]),
        ("B", ["day of week", "day of month", "day of year"]),
        ("W-MON", ["day of month", "day of year"]),
        ("MS", ["month of year"]),
        ("QE-DEC", ["month of year"]),
        ("YS-JAN", []),
    ],
)
def test_a_frequency_sees_the_cycles_longer_than_its_step(alias: str, cycles: list[str]) -> None:
    index = pd.date_range("2024-01-01", periods=30, freq=alias)
    names, values = features(index, alias)
    assert list(names) == [f"{cycle} {part}" for cycle in cycles for part in ("sine", "cosine")]
    assert values.shape == (30, len(names))


def test_numbers_have_no_calendar() -> None:
    assert features(pd.RangeIndex(5), "") == ((), pytest.approx(np.zeros((5, 0))))
    names, values = features(pd.Index([0.0, 1.0, 3.0, 4.0]), None)
    assert names == ("elapsed",)
    assert values[:, 0] == pytest.approx(np.log1p([1, 1, 2, 1]))


@given(
    alias=st.sampled_from(["h", "15min", "D", "B", "W-MON", "MS", None]), zone=st.sampled_from(ZONES), begin=st.integers(1, 60),
    length=st.integers(1, 60), seed=st.integers(0, 20),
)  # fmt: skip
def test_a_piece_gives_the_same_as_the_whole(alias: str | None, zone: str | None, begin: int, length: int, seed: int) -> None:
    index = pd.date_range("2023-10-20", periods=120, freq=alias or "37min", tz=zone)
    if alias is None:
        index = index[keep(120, 0.6, seed)]
    names, whole = features(index, alias, step=2220.0)
    piece = index[begin : begin + length]
    same, part = features(piece, alias, before=index[begin - 1 : begin], step=2220.0)
    assert same == names
    assert np.array_equal(part, whole[begin : begin + length])
    cyclic = [place for place, name in enumerate(names) if name != "elapsed"]
    assert np.abs(whole[:, cyclic]).max() <= 1


def test_elapsed() -> None:
    index = pd.DatetimeIndex(["2024-01-01 00:00", "2024-01-01 00:10", "2024-01-01 00:40"])
    # without being told, the median step of those seen (20 minutes) is the unit
    assert features(index, None)[1][:, -1] == pytest.approx(np.log1p([1, 0.5, 1.5]))
    assert features(index, None, before=index[:1], step=600)[1][:, -1] == pytest.approx(np.log1p([0, 1, 3]))
    assert features(index[:1], None)[1][:, -1] == pytest.approx(np.log1p([1]))
    assert typical_step(index) == 1200
    assert typical_step(pd.Index([0.0, 1.0, 5.0])) == 2.5
    assert typical_step(index[:1]) is None
    with pytest.raises(InputError, match="step=0 must be above 0"):
        features(index, None, step=0)
