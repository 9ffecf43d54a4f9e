"""Degradations: what each does by its definition, that severity 0 is the identity, and that samples go alike and apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ornstein.noise import Noise
from ornstein.operator import Mask, down_sample, gaussian_blur
from ornstein.process import EDM
from ornstein.process.cold import (
    COLD,
    Custom,
    Degradation,
    Desaturation,
    Downsampling,
    GaussianBlur,
    GrowingMask,
    Noising,
    Snow,
    noising,
    operators,
)

F64 = torch.float64
SHAPE = (3, 12, 10)


def everything() -> dict[str, Degradation]:
    """A small member of every class and name."""
    return {
        "blur": GaussianBlur(6, 5, 1.5),
        "blur, linear": GaussianBlur(6, 5, 0.35, "linear", 0.1),
        "mask": GrowingMask(7, 1.0, 0.5),
        "downsample": Downsampling(3),
        "snow": Snow(8),
        "desaturate": Desaturation(5),
        "noise": noising(9, "cosine"),
        "noise, never clean": Noising(9, EDM(sigma_max=3.0)),
        "custom": Custom(4, lambda x, s, eps: x * (1 - s / 4)),
        "random custom": Custom(4, lambda x, s, eps: x + s * eps, random=True),
        "operators": operators(2, lambda s: down_sample(SHAPE, factor=2) if s == 2 else gaussian_blur(SHAPE, std=1.0)),
    }


ALL = everything()


def images(n: int = 5, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return Noise(0).uniform((n, *shape)) * 2 - 1


def states(process: Degradation, x: Tensor) -> Tensor | None:
    eps = process.state(x.shape, Noise(1))
    return None if eps is None else eps.double()


def test_every_name_is_here() -> None:
    assert set(COLD) <= set(ALL)
    assert {type(ALL[name]) for name in COLD} == {type(make()) for make in COLD.values()}


@pytest.mark.parametrize("name", ALL)
def test_severity_0_is_the_identity_and_others_are_not(name: str) -> None:
    process, x = ALL[name], images()
    eps = states(process, x)
    assert torch.equal(process.degrade(x, 0, eps), x)
    mixed = process.degrade(x, torch.tensor([0, 1, process.steps, 0, 1]), eps)
    assert torch.equal(mixed[[0, 3]], x[[0, 3]])
    for row in (1, 2, 4):
        assert not torch.allclose(mixed[row], x[row], atol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_each_sample_is_the_same_alone(name: str) -> None:
    process, x = ALL[name], images()
    eps = states(process, x)
    s = torch.tensor([1, process.steps, 2, 0, 1])
    whole = process.degrade(x, s, eps)
    assert whole.shape == x.shape
    for i in range(5):
        own = None if eps is None else eps[i : i + 1]
        assert torch.allclose(process.degrade(x[i : i + 1], int(s[i]), own), whole[i : i + 1], rtol=0, atol=1e-12)
    single = process.degrade(x.float(), s, None if eps is None else eps.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), whole, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_what_a_degraded_datum_says_by_itself(name: str) -> None:
    """Linear ones: the minimum of |D(x, s) - x_s|² + noise_std²|x|², by a dense solution; the others know nothing."""
    process, x = ALL[name], images()
    s = torch.tensor([1, process.steps, 2, 1, process.steps]).clamp(max=process.steps)
    x_s = process.degrade(x, s, states(process, x))
    found = process.undo(x_s, s, 0.1)
    if name not in ("blur", "blur, linear", "downsample", "desaturate"):
        assert torch.equal(found, x_s)
        return
    eye = torch.eye(x[0].numel(), dtype=F64)
    for i, level in enumerate(s.tolist()):
        a = process.degrade(eye.reshape(-1, *SHAPE), level).flatten(1).mT
        want = torch.linalg.solve(a.mT @ a + 0.01 * eye, a.mT @ x_s[i].flatten())
        assert torch.allclose(found[i].flatten(), want, atol=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_half_precision_around_it_changes_nothing(name: str) -> None:
    """A network may run in bfloat16; what it is to undo is not rounded to three digits."""
    process, x = ALL[name], images().float()
    eps = None if process.state(x.shape, Noise(1)) is None else Noise(1).normal(x.shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        degraded = process.degrade(x, process.steps, eps)
        undone = process.undo(degraded, process.steps, 0.01)
    assert torch.equal(degraded, process.degrade(x, process.steps, eps))
    assert torch.equal(undone, process.undo(degraded, process.steps, 0.01))


@pytest.mark.parametrize("name", ALL)
def test_corrupt_takes_the_nearest_severity_of_t(name: str) -> None:
    process, x = ALL[name], images()
    eps = states(process, x)
    given = x if eps is None else eps
    t = torch.tensor([0.0, 0.4, 0.5, 0.9, 1.0], dtype=F64)
    assert torch.equal(process.corrupt(x, t, given), process.degrade(x, (t * process.steps).round().long(), eps))
    assert torch.equal(process.corrupt(x, None, given), x)
    assert torch.equal(process.level(1.0), torch.tensor(process.steps))


@pytest.mark.parametrize("name", ALL)
def test_random_ones_ask_for_their_state(name: str) -> None:
    process, x = ALL[name], images(2)
    assert process.random == (name in ("mask", "snow", "noise", "noise, never clean", "random custom"))
    eps = process.state(x.shape, Noise(1))
    assert (eps is not None) == process.random
    if eps is None:
        return
    assert torch.equal(process.state((1, *x.shape[1:]), Noise(1), first=1), eps[1:])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eps=None must be normals of shape"):
        process.degrade(x, 1)
    with pytest.raises(ValueError, match=r"eps=\(1, 3, 12, 10\)"):
        process.degrade(x, 1, eps[:1].double())
    other = process.degrade(x, process.steps, -eps.double())
    assert not torch.allclose(other, process.degrade(x, process.steps, eps.double()))


@pytest.mark.parametrize("name", ALL)
def test_severities_outside_are_refused(name: str) -> None:
    process, x = ALL[name], images(2)
    for s in (-1, process.steps + 1, 0.5, torch.tensor([0, process.steps + 1])):
        with pytest.raises(ValueError, match=f"from 0 to {process.steps}"):
            process.degrade(x, s, states(process, x))  # type: ignore[arg-type]


# --- each by its definition


@pytest.mark.parametrize("growth", ["constant", "linear", "exponential"])
def test_blur_is_composed(growth: str) -> None:
    process = GaussianBlur(3, 5, 0.8, growth, 0.2)
    x, place = images(2), torch.arange(-2, 3, dtype=F64)
    want = x
    for i in (1, 2, 3):
        std = {"constant": 0.8, "linear": 0.8 + 0.2 * i, "exponential": 0.8 * math.exp(0.2 * i)}[growth]
        line = torch.exp(-0.5 * (place / std) ** 2)
        kernel = torch.outer(line, line) / line.sum() ** 2
        padded = functional.pad(want, (2, 2, 2, 2), mode="reflect")
        want = functional.conv2d(padded, kernel.expand(3, 1, 5, 5), groups=3)
        assert torch.allclose(process.degrade(x, i), want, rtol=0, atol=1e-13)


def test_mask_is_a_product_of_bumps_around_a_uniform_centre() -> None:
    process, n = GrowingMask(7, 1.5, 0.3), 2000
    eps = Noise(3).normal((n, *SHAPE), dtype=F64)
    u = torch.special.ndtr(eps.flatten(1)[:, :2])
    assert float((u.mean(0) - 0.5).abs().max()) < 4 / math.sqrt(12 * n)
    y, x = torch.meshgrid(torch.arange(12.0, dtype=F64), torch.arange(10.0, dtype=F64), indexing="ij")
    for row, s in ((0, 1), (1, 7), (2, 4)):
        square = (y - 11 * u[row, 0]) ** 2 + (x - 9 * u[row, 1]) ** 2
        want = torch.ones_like(square)
        for i in range(s):
            want = want * (1 - torch.exp(-square / (2 * (1.5 + 0.3 * i))))
        data = images(3)
        found = process.degrade(data, torch.tensor([s, s, s]), eps[:3])[row]
        assert torch.allclose(found, data[row] * want, rtol=0, atol=1e-13)
    masks = [process.mask((50, *SHAPE), s, eps[:50]) for s in range(8)]
    assert torch.equal(masks[0], torch.ones(50, 1, 12, 10, dtype=F64))
    assert all(bool((b <= a).all()) for a, b in pairwise(masks))


def test_down_sampling_is_repeated_averaging() -> None:
    x = images(2, (1, 16, 8))
    process = Downsampling(3)
    pooled = x
    for s in (1, 2, 3):
        pooled = functional.avg_pool2d(pooled, 2)
        want = pooled.repeat_interleave(2**s, 2).repeat_interleave(2**s, 3)
        assert torch.allclose(process.degrade(x, s), want, rtol=0, atol=1e-14)
    odd = Downsampling(5).degrade(images(2, (1, 28, 28)), 5)
    assert float((odd.amax((2, 3)) - odd.amin((2, 3))).abs().max()) < 1e-14  # one pixel is left
    with pytest.raises(ValueError, match="steps=6 is more than the 5 halvings"):
        Downsampling(6).degrade(images(2, (1, 28, 28)), 1)


def test_snow_covers_its_share_and_stays_snow() -> None:
    process = Snow(10, coverage=0.8)
    x = images(400)
    eps = Noise(4).normal(x.shape, dtype=F64)
    assert bool((x < 1).all())
    before = x
    for s in range(1, 11):
        now = process.degrade(x, s, eps)
        assert bool((now >= before).all())
        assert float(now.max()) <= 1
        share = float((now > x).double().mean())
        assert share == pytest.approx(0.08 * s, abs=0.01)
        before = now
    grey = (before - x) / (1 - x)
    assert float((grey[:, 0] - grey[:, 2]).abs().max()) < 1e-9  # the same flake on all colours


def test_desaturation_ends_in_grey() -> None:
    process, x = Desaturation(4), images()
    luma = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    for s in range(5):
        assert torch.allclose(process.degrade(x, s), (1 - s / 4) * x + s / 4 * luma, rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="not for 1 channels"):
        process.degrade(images(2, (1, 8, 8)), 1)


def test_noise_is_its_process_and_infers_its_state() -> None:
    process, x = noising(10, "cosine"), images()
    eps = Noise(5).normal(x.shape, dtype=F64)
    x_s = process.degrade(x, 7, eps)
    assert torch.equal(x_s, process.process.corrupt(x, torch.full((5,), 0.7, dtype=F64), eps))
    assert torch.allclose(process.infer(x_s, x, 7, None), eps, rtol=0, atol=1e-12)  # type: ignore[arg-type]
    assert torch.equal(process.prior((3, 2), Noise(0)), process.process.prior((3, 2), Noise(0)))
    with pytest.raises(ValueError, match="no end law without data"):
        Snow().prior((3, 2), Noise(0))


def test_operators_are_taken_as_they_measure_or_by_what_they_see() -> None:
    mask = torch.ones(SHAPE, dtype=torch.bool)
    mask[:, :, 5:] = False
    asked = []

    def family(s: int) -> Mask | object:
        asked.append(s)
        return Mask(mask) if s == 1 else down_sample(SHAPE, factor=2)

    process, x = operators(2, family), images()  # type: ignore[arg-type]
    out = process.degrade(x, torch.tensor([1, 2, 0, 2, 1]))
    assert torch.equal(out[0], x[0] * mask)
    blocks = functional.avg_pool2d(x[1:2], 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(out[1:2], blocks, atol=1e-10)
    process.degrade(x, 2)
    assert sorted(asked) == [1, 2]  # each is made once
    with pytest.raises(ValueError, match=r"made shape \(2, 1\) of \(2, 3, 12, 10\)"):
        Custom(2, lambda x, s, eps: x[:, :1, 0, 0]).degrade(images(2), 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GaussianBlur(0), "steps=0 must be at least 1"),
        (lambda: GaussianBlur(2, 4), "size=4 must be odd"),
        (lambda: GaussianBlur(2, 5, 0.0), "std=0 must be positive"),
        (lambda: GaussianBlur(4, 5, 0.1, "linear", -0.1), "must be positive"),
        (lambda: GaussianBlur(2, 5, 1.0, "wild"), "growth='wild' is not one of constant, linear, exponential"),
        (lambda: GrowingMask(5, 0.0), "variance=0.0 must be positive"),
        (lambda: Snow(5, 1.0), "coverage=1.0 must lie between 0 and 1"),
        (lambda: Snow(5, 0.5, 0), "length=0 must be at least 1"),
        (lambda: noising(5, "ve"), "schedule='ve' is not one of vp, cosine"),
        (lambda: Downsampling(1).degrade(torch.zeros(2, 5), 1), "not images"),
        (lambda: GrowingMask(1).degrade(torch.zeros(2, 5), 1, torch.zeros(2, 5)), "not images"),
    ],
)
def test_wrong_arguments_are_named(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_equal_settings_are_equal_processes() -> None:
    assert GaussianBlur() == GaussianBlur()
    assert GaussianBlur() != GaussianBlur(std=6.0)
    assert noising(5) == Noising(5)
    assert noising(5) != noising(5, "cosine")
