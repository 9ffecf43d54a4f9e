"""`Given`: what is told of a measurement, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st

from ornstein.files import InputError
from ornstein.guidance import Given
from ornstein.operator import Mask, Matrix

MASK = torch.tensor([True, False, True])


def test_a_mask_is_an_operator_and_hides_what_it_does_not_measure() -> None:
    known = Given(torch.tensor([[1.0, math.nan, 3.0]]), mask=MASK)
    assert isinstance(known.measured, Mask)
    assert known.values.tolist() == [[1, 0, 3]]
    assert known.mask is None
    assert Given(torch.tensor([[1.0, math.inf, 3.0]]), Mask(MASK)).values.tolist() == [[1, 0, 3]]


@pytest.mark.parametrize(("arguments", "reason"), [
    ({"values": torch.zeros(1, 3)}, "one of operator=… and mask=…"),
    ({"values": torch.zeros(1, 3), "mask": MASK, "operator": Mask(MASK)}, "one of operator=… and mask=…"),
    ({"values": torch.zeros(3), "mask": MASK}, r"values have shape \(3,\)"),
    ({"values": torch.zeros(2, 4), "mask": MASK}, r"values have shape \(2, 4\).*\(samples, 3\)"),
    ({"values": torch.zeros(2, 3), "operator": Matrix(torch.ones(2, 3))}, r"values have shape \(2, 3\).*\(samples, 2\)"),
    ({"values": torch.tensor([[math.nan, 0, math.inf]]), "mask": MASK}, "2 NaN or infinite numbers where they are measured"),
    ({"values": torch.tensor([[math.nan, 0]]), "operator": Matrix(torch.ones(2, 3))}, "1 NaN or infinite"),
    ({"values": torch.zeros(1, 3), "mask": MASK, "noise_std": -0.1}, "noise_std=-0.1 must be 0"),
    ({"values": torch.zeros(1, 3), "mask": MASK, "noise_std": math.nan}, "noise_std=nan must be 0"),
    ({"values": torch.zeros(1, 3), "mask": MASK.float()}, "dtype torch.float32; give booleans"),
])  # fmt: skip
def test_what_is_refused(arguments: dict, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Given(**arguments)


def test_measurements_without_noise_level_are_unknown() -> None:
    assert Given(torch.zeros(1, 3), mask=MASK, noise_std=None).noise_std is None
    assert Given(torch.zeros(1, 3), mask=MASK).noise_std == 0


@drawn(samples=st.integers(1, 5), places=st.lists(st.integers(0, 4), max_size=6))
def test_rows(samples: int, places: list[int]) -> None:
    values = torch.arange(samples * 2.0).reshape(samples, 2)
    known = Given(values, Matrix(torch.ones(2, 3)), noise_std=0.5)
    chosen = torch.tensor([place % samples for place in places], dtype=torch.long)
    some = known.rows(chosen)
    assert len(known) == samples
    assert some.noise_std == 0.5
    assert some.values.tolist() == (values if samples == 1 else values[chosen]).tolist()


def test_to_the_data() -> None:
    known = Given(torch.zeros(2, 3), mask=MASK)
    assert known.to(torch.zeros(2, 3, dtype=torch.float64)).values.dtype == torch.float64
    assert len(Given(torch.zeros(1, 3), mask=MASK).to(torch.zeros(7, 3))) == 1
    with pytest.raises(InputError, match="2 measurements for 3 samples"):
        known.to(torch.zeros(3, 3))
    with pytest.raises(InputError, match=r"measures data of shape \(3,\), but these are \(1, 3\)"):
        known.to(torch.zeros(2, 1, 3))


EACH = torch.tensor([[True, False, True], [False, True, True]])


def test_masks_of_their_own_stay_masks() -> None:
    known = Given(torch.tensor([[1.0, math.nan, 3.0], [math.nan, 5.0, 6.0]]), mask=EACH)
    assert known.values.tolist() == [[1, 0, 3], [0, 5, 6]]
    assert known.masks is not None
    assert torch.equal(known.masks, EACH)
    second = known.one(1)
    assert second.values.tolist() == [[0, 5, 6]]
    assert second.masks is not None
    assert second.masks.tolist() == EACH[1:].tolist()
    with pytest.raises(InputError, match="its own mask"):
        _ = known.measured


def test_one_mask_stands_for_all() -> None:
    known = Given(torch.ones(2, 3), mask=MASK)
    assert known.masks is not None
    assert known.masks.tolist() == [MASK.tolist()] * 2
    assert Given(torch.ones(2, 2), Matrix(torch.ones(2, 3))).masks is None


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="give booleans like the values"):
        Given(torch.ones(3, 3), mask=EACH)
    with pytest.raises(InputError, match="1 NaN or infinite"):
        Given(torch.tensor([[1.0, 0, math.nan], [0, 5.0, 6.0]]), mask=EACH)
