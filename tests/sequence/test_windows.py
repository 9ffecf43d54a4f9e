"""Windows: what is cut where, splits that keep the future apart, rolling origins, and covariates that reach as far as asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ornstein.files import InputError
from ornstein.sequence import Series, series
from ornstein.sequence.windows import MANY, known, rolling_origins, windows


def counted(rows: int = 100, channels: int = 2, item: str = "") -> Series:
    """Values that say where they stand: row + channel/10."""
    return series(np.arange(rows)[:, None] + np.arange(channels) / 10, item=item)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 8), st.integers(1, 30))
def test_rolling_origins_end_with_the_series(length: int, horizon: int, count: int, stride: int) -> None:
    try:
        origins = rolling_origins(length, horizon, count, stride=stride)
    except InputError:
        assert length - horizon - (count - 1) * stride < 1
        return
    assert origins[-1] + horizon == length
    assert np.diff(origins).tolist() == [stride] * (count - 1)
    assert len(origins) == count
    assert origins[0] >= 1


def test_origins_of_the_exchange_benchmark() -> None:
    assert rolling_origins(6221, 30, 5, first=6071, stride=30) == [6071, 6101, 6131, 6161, 6191]
    with pytest.raises(InputError, match="the series has 6220"):
        rolling_origins(6220, 30, 5, first=6071, stride=30)


def test_windows_are_rows_in_their_order() -> None:
    data = windows([counted()], context=6, horizon=3)
    assert len(data) == 92
    x = data.batch([0, 91])["x"]
    assert x.shape == (2, 2, 9)
    assert x[1, 0].tolist() == list(range(91, 100))
    assert data.contract.shape == (2, 9)
    assert data.contract.shift[0] == pytest.approx(49.5)
    assert data.contract.scale[0] == pytest.approx(np.arange(100).std())


def test_windows_without_numbers_are_left_out() -> None:
    one = counted()
    values = one.values.copy()
    values[30:60] = np.nan
    data = windows([series(values)], context=6, horizon=3)
    x = data.batch(range(len(data)))["x"]
    assert bool(x[..., :6].isfinite().any(-1).any(-1).all())
    assert bool(x[..., 6:].isfinite().any(-1).any(-1).all())
    # starts whose context (25 … 54) or horizon lies within the gap are gone
    starts = {int(start) for _, start in data.places}
    assert 30 - 6 in set(range(92)) - starts
    assert set(range(92)) - starts == {
        s for s in range(92) if np.isnan(values[s : s + 6]).all() or np.isnan(values[s + 6 : s + 9]).all()
    }


@settings(max_examples=25, deadline=None)
@given(st.floats(0.2, 0.95), st.integers(2, 10), st.integers(1, 6))
def test_held_out_steps_were_never_trained_on(fraction: float, context: int, horizon: int) -> None:
    data = windows([counted(200)], context=context, horizon=horizon)
    cut = round(fraction * 200)
    if cut < context + horizon or 200 - cut < horizon:
        return
    training, held = data.split(fraction, 0)
    latest = float(training.batch(range(len(training)))["x"].max())
    asked = held.batch(range(len(held)))["x"][..., context:]
    assert float(asked.min()) == cut
    assert latest < cut
    assert training.contract.shift[0] == pytest.approx((cut - 1) / 2)
    assert held.contract == training.contract


def test_of_many_items_whole_ones_are_held_out() -> None:
    items = [replace(counted(12, item=str(k)), values=counted(12).values + 1000 * k) for k in range(MANY + 10)]
    data = windows(items, context=8, horizon=4)
    training, held = data.split(0.8, 0)
    names = [{one.item for one in part.series} for part in (training, held)]
    assert names[0] | names[1] == {str(k) for k in range(MANY + 10)}
    assert not names[0] & names[1]
    assert len(names[1]) == 6


def test_too_short_is_one_line() -> None:
    with pytest.raises(InputError, match=r"12 rows with numbers are needed, the longest has 10; lower sequence\.context"):
        windows([counted(10)], context=8, horizon=4)


def dated(rows: int = 50, beyond: int = 10) -> Series:
    index = pd.date_range("2024-01-01", periods=rows, freq="h")
    one = series(np.arange(rows, dtype=float), index, ["load"])
    future = np.arange(rows + beyond, dtype=float)[:, None]
    return replace(one, future=future, future_names=("price",), static=np.array([3.0]), static_names=("area",))


def test_what_is_known_of_a_window() -> None:
    one = dated()
    data = windows([one], context=10, horizon=5)
    assert data.feature_names[-2:] == ("price", "area")
    mean, std = data.covariates["price"]
    assert mean == pytest.approx(24.5)
    batch = data.batch([7])["features"]
    assert batch.shape == (1, len(data.feature_names), 15)
    assert torch.allclose(batch[0, -2], (torch.arange(7.0, 22.0) - mean) / std)
    assert float(batch[0, -1].abs().max()) == 0  # the only item is the average one


def test_known_goes_beyond_the_end_as_far_as_covariates_do() -> None:
    one, data = dated(), windows([dated()], context=10, horizon=5)
    whole = known(one, 40, 20, True, data.covariates)
    assert whole.shape == (len(data.feature_names), 20)
    with pytest.raises(InputError, match="'price' ends 2 steps before"):
        known(one, 40, 22, True, data.covariates)
    padded = known(one, 40, 22, True, data.covariates, needed=20)
    assert np.array_equal(padded[:, :20], whole)
    assert padded[-2, 20:].tolist() == [0, 0]
    with pytest.raises(InputError, match="'price' was there in training"):
        known(replace(one, future=None, future_names=()), 0, 10, True, data.covariates)


def test_features_of_a_piece_are_those_of_the_whole() -> None:
    one = dated()
    whole = known(one, 0, 50, True, {})
    assert np.allclose(known(one, 13, 20, True, {}), whole[:, 13:33])
    irregular = series(
        np.arange(40.0), pd.DatetimeIndex(np.datetime64("2024-01-01") + np.cumsum(np.arange(1, 41) ** 2 % 97 + 1).astype("m8[s]"))
    )
    assert irregular.frequency is None
    whole = known(irregular, 0, 40, True, {})
    assert np.allclose(known(irregular, 11, 9, True, {}), whole[:, 11:20], atol=1e-6)
