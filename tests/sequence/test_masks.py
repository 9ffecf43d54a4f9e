"""Masks: what each law hides, that shares are kept, and that windows are keyed by themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ornstein.files import InputError
from ornstein.noise import Noise
from ornstein.sequence.masks import MASKS, mask, mixed


def stretches(row: torch.Tensor) -> int:
    """How many separate stretches of a row (L,) are hidden."""
    hidden = (~row).int()
    return int(hidden[0]) + int((hidden[1:] > hidden[:-1]).sum())


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["block", "blackout"]), st.integers(4, 60), st.floats(0.05, 1.0), st.integers(0, 99))
def test_stretches_have_their_length(law: str, length: int, share: float, seed: int) -> None:
    seen = mask(law, 8, (3, length), 2, Noise(seed), share=share)
    assert seen.shape == (8, 3, length)
    assert bool(((~seen).sum(-1) == max(1, round(share * length))).all())
    assert all(stretches(row) == 1 for row in seen.flatten(0, 1))
    if law == "blackout":
        assert bool((seen == seen[:, :1]).all())


def test_block_hides_every_channel_elsewhere() -> None:
    seen = mask("block", 50, (2, 40), 2, Noise(0), share=0.2)
    assert float((seen[:, 0] == seen[:, 1]).all(-1).float().mean()) < 0.3


def test_stretches_lie_anywhere() -> None:
    # of a stretch of 2 in 5 steps there are four places, each with a quarter of the chance
    seen = mask("blackout", 4000, (1, 5), 2, Noise(3), share=0.4)[:, 0]
    first = (~seen).int().argmax(-1)
    share = torch.bincount(first, minlength=4) / len(first)
    assert float((share - 0.25).abs().max()) < 0.03


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_random_hides_its_share(share: float) -> None:
    seen = mask("random", 200, (4, 50), 2, Noise(1), share=share)
    assert float((~seen).float().mean()) == pytest.approx(share, abs=0.01)


def test_random_share_is_uniform_unless_said() -> None:
    hidden = (~mask("random", 2000, (10, 40), 2, Noise(1))).float().mean((1, 2))
    assert float(hidden.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(hidden.var()) == pytest.approx(1 / 12, abs=0.01)


def test_forecast_and_nothing() -> None:
    assert mask("forecast", 1, (2, 6), 2, Noise(0))[0].tolist() == [[True] * 4 + [False] * 2] * 2
    assert not bool(mask("nothing", 3, (2, 6), 2, Noise(0)).any())


@pytest.mark.parametrize("law", MASKS)
def test_a_window_is_the_same_in_any_batch(law: str) -> None:
    whole = mask(law, 12, (3, 20), 5, Noise(4), step=7)
    part = mask(law, 5, (3, 20), 5, Noise(4), step=7, first=4)
    assert torch.equal(whole[4:9], part)


def test_mixture_has_its_weights() -> None:
    weights = {"nothing": 1.0, "forecast": 3.0, "random": 0.0}
    seen = mixed(weights, 4000, (1, 8), 2, Noise(0))
    empty = ~seen.flatten(1).any(1)
    assert float(empty.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert bool((seen[~empty] == mask("forecast", 1, (1, 8), 2, Noise(0))).all())
    assert torch.equal(mixed(weights, 4, (1, 8), 2, Noise(0), first=10), seen[10:14])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: mask("holes", 1, (1, 4), 2, Noise(0)), "mask='holes'"),
        (lambda: mask("random", 1, (1, 4), 2, Noise(0), share=0.0), "share=0.0"),
        (lambda: mixed({"holes": 1.0}, 1, (1, 4), 2, Noise(0)), "'holes'"),
        (lambda: mixed({"random": 0.0}, 1, (1, 4), 2, Noise(0)), "above 0"),
    ],
)
def test_what_is_no_law_is_refused(call: object, told: str) -> None:
    with pytest.raises(InputError, match=told):
        call()  # type: ignore[operator]
