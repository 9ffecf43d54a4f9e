"""Forecast objects: their numbers are those of the draws, and survive a file bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ornstein.files import InputError
from ornstein.noise import Noise
from ornstein.sequence.forecast import Forecast

DAYS = pd.date_range("2024-03-01", periods=4, freq="D", name="day")


def drawn(n: int = 200, time: int = 4, channels: int = 2, seed: int = 0) -> NDArray[np.float64]:
    return Noise(seed).normal((n, time, channels), dtype=torch.float64).numpy()


def forecast(n: int = 200) -> Forecast:
    return Forecast(drawn(n), DAYS, ("usd", "new zealand dollar"), "rates")


@given(n=st.integers(1, 40), q=st.floats(0, 1), seed=st.integers(0, 20))
def test_quantiles_lie_between_their_neighbours(n: int, q: float, seed: int) -> None:
    one = Forecast(drawn(n, seed=seed), DAYS, ("a", "b"))
    ordered = np.sort(one.draws, 0)
    place = q * (n - 1)
    found = one.quantile(q)
    assert found.shape == (4, 2)
    assert (found >= ordered[int(np.floor(place))] - 1e-12).all()
    assert (found <= ordered[int(np.ceil(place))] + 1e-12).all()


def test_statistics_by_hand() -> None:
    draws = np.arange(11.0)[::-1, None, None] * np.ones((1, 4, 2))
    one = Forecast(draws, DAYS, ("a", "b"))
    assert (one.mean == 5).all()
    assert (one.median == 5).all()
    assert one.quantile((0.25, 0.9)).shape == (2, 4, 2)
    assert one.quantile((0.25, 0.9))[:, 0, 0].tolist() == [2.5, 9.0]
    low, high = one.interval(0.8)
    assert low[0, 0] == pytest.approx(1)
    assert high[0, 0] == pytest.approx(9)
    assert len(one) == 4


def test_intervals_of_normal_draws_are_the_normal_ones() -> None:
    low, high = Forecast(drawn(20_000, 1, 2), DAYS[:1], ("a", "b")).interval(0.9)
    assert low == pytest.approx(-1.645, abs=0.05)
    assert high == pytest.approx(1.645, abs=0.05)


def test_table() -> None:
    one = forecast()
    frame = one.to_pandas((0.1, 0.5))
    assert list(frame.columns) == [f"{name} {kind}" for name in one.channels for kind in ("mean", "0.1", "0.5")]
    assert frame.index.equals(DAYS)
    assert np.array_equal(frame["usd mean"], one.mean[:, 0])
    assert np.array_equal(frame["new zealand dollar 0.1"], one.quantile(0.1)[:, 1])
    assert list(one.to_pandas(()).columns) == ["usd mean", "new zealand dollar mean"]


@pytest.mark.parametrize(
    "index",
    [
        DAYS,
        pd.date_range("2024-03-31", periods=4, freq="h", tz="Europe/Berlin"),
        pd.RangeIndex(7, 11),
        pd.Index([0.5, 0.75, 2.0, 9.0]),
    ],
)
def test_a_file_keeps_every_bit(index: pd.Index, tmp_path: Path) -> None:
    one = Forecast(drawn(30), index, ("a", "b, c"))
    one.to_csv(tmp_path / "x.csv")
    read = pd.read_csv(tmp_path / "x.csv", float_precision="round_trip")
    assert read.columns[0] == (index.name or "time")
    stamps = read.iloc[:, 0]
    if isinstance(index, pd.DatetimeIndex):
        assert (pd.to_datetime(stamps, utc=index.tz is not None).to_numpy() == index.to_numpy()).all()
    else:
        assert stamps.tolist() == index.tolist()
    assert np.array_equal(read.iloc[:, 1:].to_numpy(), one.to_pandas().to_numpy())
    assert list(read.columns[1:]) == list(one.to_pandas().columns)
    assert list(tmp_path.iterdir()) == [tmp_path / "x.csv"]


def test_draws_as_a_long_table() -> None:
    one = forecast(3)
    frame = one.samples_frame()
    assert list(frame.columns) == ["draw", "day", *one.channels]
    assert frame["draw"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (frame["day"] == pd.DatetimeIndex(np.tile(DAYS, 3))).all()
    assert np.array_equal(frame[list(one.channels)].to_numpy().reshape(3, 4, 2), one.draws)


def test_draws_are_kept_as_they_are() -> None:
    draws = drawn()
    before = draws.copy()
    one = Forecast(draws, DAYS, ("a", "b"))
    one.to_pandas()
    one.interval()
    assert one.draws is draws
    assert np.array_equal(draws, before)


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "kind": (lambda: Forecast(drawn().astype(np.float32), DAYS, ("a", "b")), "draws are float32"),
    "list": (lambda: Forecast([[[1.0]]], DAYS[:1], ("a",)), "draws are list"),  # type: ignore[arg-type]
    "axes": (lambda: Forecast(drawn()[0], DAYS, ("a", "b")), "draws have shape"),
    "none": (lambda: Forecast(drawn()[:0], DAYS, ("a", "b")), "draws have shape"),
    "nan": (lambda: Forecast(np.full((2, 4, 2), np.nan), DAYS, ("a", "b")), "NaN or infinity"),
    "index": (lambda: Forecast(drawn(), DAYS[:3], ("a", "b")), "index has 3 stamps"),
    "names": (lambda: Forecast(drawn(), DAYS, ("a",)), "channels="),
    "name twice": (lambda: Forecast(drawn(), DAYS, ("a", "a")), "channels="),
    "observed": (lambda: Forecast(drawn(), DAYS, ("a", "b"), observed=np.ones((4, 1), bool)), "observed is bool"),
    "observed kind": (lambda: Forecast(drawn(), DAYS, ("a", "b"), observed=np.ones((4, 2))), "observed is float64"),  # type: ignore[arg-type]
    "q": (lambda: forecast().quantile(1.5), "q=1.5"),
    "level": (lambda: forecast().interval(1.0), "level=1"),
    "same quantile": (lambda: forecast().to_pandas((0.5, 0.5)), "one twice"),
    "column taken": (lambda: Forecast(drawn(), DAYS, ("draw", "b")).samples_frame(), "'draw' is the name"),
    "time taken": (lambda: Forecast(drawn(), DAYS, ("b", "day")).samples_frame(), "'day' is the name"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_wrong_input_is_one_line(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
