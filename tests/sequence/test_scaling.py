"""Units of windows: equivariance, what is not seen does not count, and the law of the training data where little is seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ornstein.contract import Contract
from ornstein.noise import Noise
from ornstein.sequence.scaling import SCALINGS, carried, frame, interpolated, step_scale


def contract(mean: float = 0.0, std: float = 1.0, length: int = 40) -> Contract:
    return Contract((2, length), ("a", "b"), ("", ""), None, None, None, (mean, mean), (std, std), False, 1.0)


def windows(seed: int = 0, n: int = 5, length: int = 40) -> torch.Tensor:
    return Noise(seed).normal((n, 2, length), dtype=torch.float64)


@pytest.mark.parametrize("name", SCALINGS)
def test_decode_inverts_encode(name: str) -> None:
    x = windows()
    units = frame(name, x, torch.ones_like(x, dtype=torch.bool), contract())
    assert torch.allclose(units.decode(units.encode(x)), x, atol=1e-12)
    assert torch.equal(units.repeat(3).shift[3:6], units.shift[1:2].expand(3, -1, -1))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(SCALINGS)), st.floats(0.01, 100), st.floats(-50, 50))
def test_model_units_do_not_depend_on_the_datas(name: str, factor: float, offset: float) -> None:
    moved = 0.0 if name == "mean_abs" else offset  # that one has no shift
    x = windows()
    seen = torch.ones_like(x, dtype=torch.bool)
    y = factor * x + moved
    plain, other = frame(name, x, seen, contract()), frame(name, y, seen, contract(moved, factor))
    assert torch.allclose(plain.encode(x), other.encode(y), atol=1e-6)
    ratio = step_scale(y, seen, contract(moved, factor)) / step_scale(x, seen, contract())
    assert torch.allclose(ratio, torch.full_like(ratio, factor), rtol=1e-6)


@pytest.mark.parametrize("name", SCALINGS)
def test_what_is_not_seen_does_not_count(name: str) -> None:
    x = windows()
    seen = Noise(1).uniform(x.shape) < 0.6
    hidden = torch.where(seen, x, torch.nan)
    wild = torch.where(seen, x, 1e9)
    for units in (frame(name, wild, seen, contract()), frame(name, hidden, seen, contract())):
        expected = frame(name, x, seen, contract())
        assert torch.equal(units.shift, expected.shift)
        assert torch.equal(units.scale, expected.scale)
    assert torch.equal(step_scale(hidden, seen, contract()), step_scale(x, seen, contract()))


def test_a_window_of_many_numbers_has_its_own_units() -> None:
    x = 3 + 0.5 * windows(n=2, length=4000)
    units = frame("window", x, torch.ones_like(x, dtype=torch.bool), contract(0, 10))
    assert torch.allclose(units.shift, torch.full_like(units.shift, 3), atol=0.05)
    assert torch.allclose(units.scale, torch.full_like(units.scale, 0.5), atol=0.2)


@pytest.mark.parametrize("name", SCALINGS)
def test_nothing_seen_leaves_the_training_datas_law(name: str) -> None:
    x = torch.full((1, 2, 40), torch.nan, dtype=torch.float64)
    units = frame(name, x, torch.zeros_like(x, dtype=torch.bool), contract(5, 2))
    assert bool((units.scale > 0).all())
    if name != "mean_abs":
        assert torch.allclose(units.shift, torch.full_like(units.shift, 5.0))
        assert torch.allclose(units.scale, torch.full_like(units.scale, 2.0))


def test_constants_have_a_scale() -> None:
    x = torch.full((1, 2, 40), 7.0, dtype=torch.float64)
    seen = torch.ones_like(x, dtype=torch.bool)
    for name in SCALINGS:
        assert bool((frame(name, x, seen, contract(7, 1)).scale > 0.01).all())
    assert bool((step_scale(x, seen, contract()) > 1e-5).all())


def test_step_scale_is_that_of_the_steps() -> None:
    x = 0.3 * windows(n=1, length=20_000).cumsum(-1)
    found = step_scale(x, torch.ones_like(x, dtype=torch.bool), contract(0, 2))
    assert torch.allclose(found, torch.full_like(found, 0.3), rtol=0.03)


def test_the_last_number_seen_is_carried() -> None:
    x = torch.tensor([[[torch.nan, 1.0, torch.nan, torch.nan, 4.0]]])
    found = carried(x, x.isfinite(), torch.full((1, 1, 1), -9.0))
    assert found.flatten().tolist() == [-9, 1, 1, 1, 4]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 0.95))
def test_lines_between_what_is_seen(seed: int, share: float) -> None:
    x = windows(seed)
    seen = Noise(seed).uniform(x.shape, stream="seen") < share
    found = interpolated(torch.where(seen, x, torch.nan), seen)
    places = np.arange(x.shape[-1])
    for row, shown, line in zip(x.flatten(0, 1).numpy(), seen.flatten(0, 1).numpy(), found.flatten(0, 1).numpy(), strict=True):
        wanted = np.interp(places, places[shown], row[shown]) if shown.any() else np.zeros(len(places))
        np.testing.assert_allclose(line, wanted, atol=1e-12)
