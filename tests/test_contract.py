"""The data contract: invertible transforms, honest bounds, strict JSON."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ornstein.contract import Contract, channel_moments, fit
from ornstein.files import InputError

EIGHT_BIT = Contract(
    shape=(3, 4, 5),
    channels=("red", "green", "blue"),
    units=("", "", ""),
    low=0.0,
    high=255.0,
    levels=256,
    shift=(127.5,) * 3,
    scale=(127.5,) * 3,
    bounded=True,
    std=0.5,
    classes=("cat", "dog"),
)
WIND = Contract(
    shape=(2, 7),
    channels=("u", "v"),
    units=("m/s", "m/s"),
    low=None,
    high=None,
    levels=None,
    shift=(3.0, -2.0),
    scale=(2.0, 0.5),
    bounded=False,
    std=1.0,
)


def test_eight_bit_goes_to_plus_minus_one() -> None:
    x = torch.tensor([0.0, 255.0, 127.5]).view(3, 1, 1, 1).expand(3, 3, 4, 5)
    assert EIGHT_BIT.encode(x)[:, 0, 0, 0].tolist() == [-1.0, 1.0, 0.0]
    assert EIGHT_BIT.bounds == (-1.0, 1.0)
    assert replace(EIGHT_BIT, bounded=False).bounds is None  # a declared range alone allows no clipping
    assert EIGHT_BIT.bin_width == pytest.approx(2 / 255)


def test_channels_have_their_own_transform_and_no_bounds() -> None:
    x = torch.tensor([[5.0], [-1.0]]).expand(2, 7)
    assert torch.equal(WIND.encode(x), torch.tensor([[1.0], [2.0]]).expand(2, 7))
    assert WIND.bounds is None
    assert WIND.bin_width is None
    with pytest.raises(InputError, match="continuous data cannot be quantised"):
        WIND.quantise(x)


@given(st.sampled_from([17, 256, 4096, 65536]), st.sampled_from([0, -8]), st.integers(0, 2**32 - 1))
def test_every_level_survives_the_round_trip(levels: int, low: int, seed: int) -> None:
    if low < 0 and levels > 2**15:
        low = -(2**15)
    values = np.random.default_rng(seed).integers(low, low + levels, size=(5, 2, 3, 4))
    values[0, 0, 0, :2] = low, low + levels - 1
    contract = fit(values, levels=levels, low=low)
    back = contract.quantise(contract.decode(contract.encode(torch.from_numpy(values))))
    assert np.array_equal(back, values)
    assert back.dtype == (np.int16 if low < 0 else np.uint8 if levels <= 256 else np.uint16)
    assert contract.bounds == (-1.0, 1.0)
    # the transform sends neighbouring levels one bin apart
    assert contract.bin_width == pytest.approx(2 / (levels - 1))


@given(
    hnp.arrays(np.float32, (6, 2, 3), elements=st.floats(-1000, 1000, width=32)),
    st.floats(-100, 100),
    st.floats(0.01, 100),
)
def test_float_round_trip(values: np.ndarray, shift: float, scale: float) -> None:
    contract = replace(WIND, shape=(2, 3), shift=(shift, -shift), scale=(scale, -scale)).checked()
    x = torch.from_numpy(values)
    back = contract.decode(contract.encode(x))
    assert torch.allclose(back, x, rtol=1e-5, atol=1e-3)


def test_a_large_offset_in_float64_keeps_its_precision() -> None:
    x = 1e9 + torch.linspace(-1, 1, 14, dtype=torch.float64).view(1, 2, 7)
    contract = replace(WIND, shift=(1e9, 1e9), scale=(1.0, 1.0))
    assert torch.allclose(contract.encode(x), (x - 1e9).float(), atol=1e-6)


def test_quantise_rounds_clamps_and_refuses_nan() -> None:
    x = torch.tensor([-3.0, 0.4, 0.6, 254.6, 300.0, float("inf")])
    assert EIGHT_BIT.quantise(x).tolist() == [0, 0, 1, 255, 255, 255]
    with pytest.raises(InputError, match="1 NaN"):
        EIGHT_BIT.quantise(torch.tensor([float("nan")]))


def test_wrong_channels_are_named() -> None:
    with pytest.raises(InputError, match=r"shape \(2, 1, 4, 5\).*3 channels \(red, green, blue\)"):
        EIGHT_BIT.encode(torch.zeros(2, 1, 4, 5))


def test_arguments_are_not_mutated() -> None:
    x = torch.ones(3, 4, 5)
    EIGHT_BIT.encode(x)
    EIGHT_BIT.decode(x)
    EIGHT_BIT.quantise(x)
    assert torch.equal(x, torch.ones(3, 4, 5))


@pytest.mark.parametrize("contract", [EIGHT_BIT, WIND])
def test_json_round_trip(contract: Contract) -> None:
    assert Contract.from_json(contract.to_json()) == contract


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"extra": 1}, "unknown key 'extra'"),
        ({"std": None}, "std"),
        ({"std": 0.0}, "above 0"),
        ({"std": float("nan")}, "above 0"),
        ({"scale": [1.0, 0.0, 1.0]}, "not zero"),
        ({"scale": [1.0, float("inf"), 1.0]}, "finite"),
        ({"scale": [127.5, 127.5, 100.0]}, "one scale"),
        ({"shift": [0.0, 1.0, float("nan")]}, "finite"),
        ({"shift": [0.0, 1.0, 2.0]}, "one shift"),
        ({"shift": [127.5]}, "3 channels"),
        ({"shape": [3, 4.0, 5]}, "not int"),
        ({"shape": [3, True, 5]}, "not int"),
        ({"shape": []}, "at least 1"),
        ({"shape": "345"}, "not list"),
        ({"channels": ["a", "a", "b"]}, "own name"),
        ({"levels": 255}, "levels - 1 apart"),
        ({"levels": 70000, "high": 69999.0}, "16 bits"),
        ({"bounded": 1}, "not bool"),
        ({"low": None}, "both or neither"),
        ({"low": None, "high": None, "levels": None}, "declared range"),
        ({"low": 256.0}, "low below high"),
        ({"classes": ["cat", "cat"]}, "own name"),
        ({"version": 2}, "version"),
    ],
)
def test_strict_json(change: dict[str, object], expected: str) -> None:
    value = EIGHT_BIT.to_json() | change
    with pytest.raises(InputError) as caught:
        Contract.from_json(value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_and_a_list_are_refused() -> None:
    value = EIGHT_BIT.to_json()
    del value["std"]
    with pytest.raises(InputError, match="lacks the key 'std'"):
        Contract.from_json(value)
    with pytest.raises(InputError, match="mapping"):
        Contract.from_json([1])


@given(hnp.arrays(np.float64, (23, 3, 5), elements=st.floats(-100, 100)), st.integers(1, 400))
def test_moments_in_chunks_equal_moments_at_once(values: np.ndarray, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ornstein.contract._CHUNK", chunk)
        mean, variance = channel_moments(values)
    assert np.allclose(mean, values.mean(axis=(0, 2)), atol=1e-10)
    assert np.allclose(variance, values.var(axis=(0, 2)), atol=1e-8)


def test_fit_measures_sigma_data() -> None:
    values = np.random.default_rng(0).integers(0, 256, size=(50, 3, 4, 5)).astype(np.uint8)
    contract = fit(values, levels=256)
    assert contract.std == pytest.approx(float((values / 127.5 - 1).std()), rel=1e-9)
    floats = np.random.default_rng(1).normal([[[5.0]], [[-3.0]]], [[[2.0]], [[0.1]]], size=(200, 2, 9, 1)).astype(np.float32)
    contract = fit(floats)
    encoded = contract.encode(torch.from_numpy(floats))
    assert contract.bounded is False
    assert contract.std == pytest.approx(1.0, abs=1e-6)
    assert torch.allclose(encoded.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(encoded.std(dim=(0, 2, 3)), torch.ones(2), atol=1e-3)


def test_constant_data() -> None:
    with pytest.raises(InputError, match="constant"):
        fit(np.full((5, 1, 2, 2), 7, np.uint8), levels=256)
    with pytest.raises(InputError, match="constant"):
        fit(np.full((5, 1, 2, 2), 0.1, np.float32))
    half = np.random.default_rng(0).normal(size=(9, 2, 4))
    half[:, 1] = 0.3
    contract = fit(half)
    assert contract.scale[1] == 1.0
    assert torch.isfinite(contract.encode(torch.from_numpy(half))).all()
