"""What single operators measure, against direct computations and known facts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from operator_cases import normal, spectrum_of
from torch import Tensor
from torch.nn import functional

from ornstein.files import InputError
from ornstein.noise import Noise
from ornstein.operator import (
    Compose,
    Convolution,
    Fourier,
    Mask,
    Matrix,
    Operator,
    Radon,
    Scaled,
    Separable,
    clip,
    desaturate,
    down_sample,
    fourier_lines,
    fourier_random,
    gaussian_blur,
    grey,
    masks,
    motion_blur,
    phase,
)
from ornstein.operator.filters import filter_matrix, gaussian_taps, motion_kernel


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def line(operator: Mask, axis: int) -> list[int]:
    """Where a mask measures along one axis, the same at all other places."""
    seen = operator.mask.movedim(axis, 0).flatten(1)
    assert bool((seen == seen[:, :1]).all())
    return seen[:, 0].int().tolist()


def test_masks_hide_what_they_say() -> None:
    shape = (3, 8, 6)
    box = masks.box(shape, size=(3, 2), corner=(1, 4))
    assert not box.mask[:, 1:4, 4:6].any()
    assert int((~box.mask).sum()) == 3 * 6
    middle = masks.box((1, 28, 28), size=(14,))
    assert not middle.mask[:, 7:21, 7:21].any()
    assert int((~middle.mask).sum()) == 196
    assert line(masks.half(shape), -1) == [1, 1, 1, 0, 0, 0]
    assert line(masks.half(shape, side="left"), -1) == [0, 0, 0, 1, 1, 1]
    assert line(masks.half(shape, side="top"), -2) == [0] * 4 + [1] * 4
    assert line(masks.half((1, 5, 2), side="bottom"), -2) == [1, 1, 1, 0, 0]
    assert line(masks.rows(shape, every=3), -2) == [1, 0, 0] * 2 + [1, 0]
    assert line(masks.columns(shape, every=4), -1) == [1, 0, 0, 0, 1, 0]


def test_random_masks_are_keyed() -> None:
    one = masks.random((3, 10, 10), share=0.92, noise=Noise(1))
    assert int(one.mask[0].sum()) == 8
    assert bool((one.mask == one.mask[:1]).all())
    assert torch.equal(one.mask, masks.random((3, 10, 10), share=0.92, noise=Noise(1)).mask)
    assert not torch.equal(one.mask, masks.random((3, 10, 10), share=0.92, noise=Noise(2)).mask)
    scratched = [masks.scratches((1, 32, 32), count=n, width=2, noise=Noise(1)).mask for n in (2, 9)]
    assert bool((scratched[1] <= scratched[0]).all())  # more scratches, at the same first places
    assert 0 < int((~scratched[0]).sum()) < int((~scratched[1]).sum()) < 900


def test_a_mask_does_not_look_at_what_it_hides() -> None:
    x = torch.tensor([[1.0, float("nan")]])
    assert Mask(torch.tensor([True, False]))(x).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("padding", ["reflect", "circular", "zeros"])
def test_blurs_against_padded_convolution(padding: str) -> None:
    x = normal(2, 3, 9, 8)
    taps = gaussian_taps(1.3, 7)
    mode = "constant" if padding == "zeros" else padding
    padded = functional.pad(x, (3, 3, 3, 3), mode=mode)
    direct = functional.conv2d(padded.flatten(0, 1)[:, None], torch.outer(taps, taps)[None, None]).reshape(x.shape)
    close(gaussian_blur((3, 9, 8), std=1.3, size=7, padding=padding)(x), direct)  # type: ignore[arg-type]
    kernel = normal(5, 3)
    padded = functional.pad(x, (1, 1, 2, 2), mode=mode).flatten(0, 1)[:, None]
    direct = functional.conv2d(padded, kernel.flip(0, 1)[None, None]).reshape(x.shape)
    close(Convolution((3, 9, 8), kernel, padding)(x), direct)  # type: ignore[arg-type]


def test_convolution_is_one_with_the_kernel_as_it_lies() -> None:
    impulse = torch.zeros(1, 1, 7, 7, dtype=torch.float64)
    impulse[..., 3, 3] = 1
    kernel = normal(3, 5)
    close(Convolution((1, 7, 7), kernel)(impulse)[0, 0, 2:5, 1:6], kernel)
    close(filter_matrix(5, torch.tensor([1.0, 2.0, 3.0]), "zeros")[:, 2], torch.tensor([0.0, 1, 2, 3, 0]).double())


def test_blur_keeps_what_it_should() -> None:
    flat = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    x = normal(1, 1, 8, 8)
    for padding in ("reflect", "circular"):
        close(gaussian_blur((1, 8, 8), std=1, padding=padding)(flat), flat)  # type: ignore[arg-type]
    ring = gaussian_blur((1, 8, 8), std=1, padding="circular")
    close(ring(x).sum(), x.sum())
    close(ring(x.roll((2, 3), (-2, -1))), ring(x).roll((2, 3), (-2, -1)))
    twice = Compose(gaussian_blur((1, 64), std=3, padding="circular"), gaussian_blur((1, 64), std=4, padding="circular"))
    close(twice(normal(1, 1, 64)), gaussian_blur((1, 64), std=5, padding="circular")(normal(1, 1, 64)), 1e-4)
    assert spectrum_of(gaussian_blur((3, 64, 64), std=2)).values.max() == pytest.approx(1, abs=0.05)


def test_motion_kernels() -> None:
    for angle in (0.0, 30.0, 90.0, 135.0):
        kernel = motion_kernel(9, angle, 0, None)
        assert float(kernel.sum()) == pytest.approx(1, abs=1e-12)
        radius = len(kernel) // 2
        rows, columns = torch.meshgrid(*[torch.arange(-radius, radius + 1).double()] * 2, indexing="ij")
        assert float((kernel * rows).sum()) == pytest.approx(0, abs=1e-12)
        right, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        along = (kernel * (columns * right - rows * up) ** 2).sum()
        across = (kernel * (columns * up + rows * right) ** 2).sum()
        assert float(along) == pytest.approx(81 / 12, abs=0.2)  # a uniform law of length 9, and the pixels' width
        assert float(across) < 0.2
    shaken = motion_kernel(9, 0, 60, Noise(0))
    assert torch.equal(shaken, motion_kernel(9, 0, 60, Noise(0)))
    assert not torch.equal(shaken, motion_kernel(9, 0, 60, Noise(1)))
    with pytest.raises(InputError, match="noise"):
        motion_blur((1, 8, 8), shake=10)


def test_circular_convolution_has_the_spectrum_of_its_kernel() -> None:
    kernel = torch.tensor([[0.0, 0, 0], [0, 0.5, 0.5], [0, 0, 0]])
    values = spectrum_of(Convolution((1, 4, 8), kernel)).values.reshape(4, 8)
    expected = torch.cos(math.pi * torch.arange(8, dtype=torch.float64) / 8).abs()
    close(values[1], torch.where(expected > 1e-6, expected, 0.0))


def test_down_sampling() -> None:
    x = normal(2, 3, 8, 12)
    close(down_sample((3, 8, 12), factor=4)(x), functional.avg_pool2d(x, 4))
    bicubic = functional.interpolate(x, size=(4, 6), mode="bicubic", antialias=True)
    close(down_sample((3, 8, 12), method="bicubic")(x), bicubic, 1e-10)
    a = down_sample((2, 8, 8), factor=2).matrix
    close(a @ a.T, torch.eye(32, dtype=torch.float64) / 4)
    assert spectrum_of(down_sample((3, 64, 64), factor=4)).values.count_nonzero() == 3 * 16 * 16
    y = normal(1, 2, 4, 4)
    close(down_sample((2, 8, 8)).pseudo_inverse(y), functional.interpolate(y, scale_factor=2, mode="nearest"))


def test_shades_of_grey() -> None:
    x = normal(2, 3, 4, 5)
    close(grey((3, 4, 5))(x), x.mean(1, keepdim=True))
    close(grey((3, 4, 5), weights="luma")(x)[0, 0, 0, 0], 0.299 * x[0, 0, 0, 0] + 0.587 * x[0, 1, 0, 0] + 0.114 * x[0, 2, 0, 0])
    close(desaturate((3, 4, 5), amount=0.25)(x), 0.75 * x + 0.25 * x.mean(1, keepdim=True))
    close(desaturate((3, 4, 5), amount=0)(x), x)


def test_fourier_measures_the_frequencies_of_numpy() -> None:
    kept = torch.from_numpy(np.random.default_rng(0).random((5, 6)) < 0.5)
    x = normal(2, 3, 5, 6)
    y = Fourier((3, 5, 6), kept)(x)
    direct = torch.from_numpy(np.fft.fft2(x.numpy(), norm="ortho")[:, :, kept.numpy()])
    close(y, torch.stack([direct.real, direct.imag], 2))
    whole = Fourier((3, 5, 6), torch.ones(5, 6, dtype=torch.bool))
    close(whole(x).square().sum(), x.square().sum())
    close(whole.pseudo_inverse(whole(x)), x)


def test_fourier_counts_conjugate_frequencies_once() -> None:
    def values(*places: int) -> list[float]:
        kept = torch.zeros(8, dtype=torch.bool)
        kept[list(places)] = True
        return spectrum_of(Fourier((1, 8), kept)).values.tolist()

    root = math.sqrt(0.5)
    assert values(0) == pytest.approx([1, 0, 0, 0, 0, 0, 0, 0])
    assert values(1) == pytest.approx([0, root, 0, 0, 0, 0, 0, root])
    assert values(1, 7, 4) == pytest.approx([0, 1, 0, 0, 1, 0, 0, 1])


def test_fourier_draws_are_keyed_and_keep_the_centre() -> None:
    one = fourier_lines((1, 16, 50), share=0.3, centre=0.1, noise=Noise(1))
    assert int(one.kept[0].sum()) == 15
    assert bool((one.kept == one.kept[:1]).all())
    assert bool(one.kept[0, [0, 1, 2, 48, 49]].all())
    assert torch.equal(one.kept, fourier_lines((1, 16, 50), share=0.3, centre=0.1, noise=Noise(1)).kept)
    assert not torch.equal(one.kept, fourier_lines((1, 16, 50), share=0.3, centre=0.1, noise=Noise(2)).kept)
    points = fourier_random((1, 16, 50), share=0.25, noise=Noise(1))
    assert int(points.kept.sum()) == 200
    assert bool(points.kept[0, 0])


def test_radon_projections() -> None:
    x = normal(2, 2, 7, 9).abs()
    radon = Radon((2, 7, 9), 12)
    y = radon(x) * 9
    close(y.sum(-1), x.sum((-2, -1))[..., None].expand(-1, -1, 12))  # every shadow has the mass of the body
    edge = (radon.bins - 9) // 2
    close(y[:, :, 0, edge : edge + 9], x.sum(-2))
    upright = Radon((2, 7, 9), 2)(x)[:, :, 1] * 9
    close(upright[..., edge + 1 : edge + 8], x.sum(-1).flip(-1))
    around = Radon((2, 7, 9), 8, 360.0)(x)
    close(around[:, :, 4:], around[:, :, :4].flip(-1))


def test_radon_of_a_disc_is_its_chords() -> None:
    n, radius = 64, 24.0
    place = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    disc = ((place[:, None] ** 2 + place**2).sqrt() < radius).double()[None, None]
    radon = Radon((1, n, n), 7)
    bins = torch.arange(radon.bins, dtype=torch.float64) - (radon.bins - 1) / 2
    chords = 2 * (radius**2 - bins**2).clamp(min=0).sqrt() / n
    inner = bins.abs() < 20
    assert float((radon(disc)[0, 0] - chords)[:, inner].abs().max()) < 0.04  # about a pixel of 64 at each end


def test_phase_and_clip() -> None:
    x = normal(2, 1, 4, 4)
    measured = phase((1, 4, 4))(x)
    assert measured.shape == (2, 1, 8, 8)
    close(measured, phase((1, 4, 4))(-x))
    close(measured, phase((1, 4, 4))(x.flip((-2, -1))))  # turned about
    close(measured.square().sum(), x.square().sum())
    assert clip((1, 2), factor=2, low=0, high=255)(torch.tensor([[[100.0, 200.0]]])).tolist() == [[[200.0, 255.0]]]


def test_compose_applies_the_inner_one_first() -> None:
    x = normal(2, 3, 4, 4)
    outer, inner = grey((3, 2, 2)), down_sample((3, 4, 4))
    both = Compose(outer, inner)
    close(both(x), outer(inner(x)))
    assert str(both) == f"{inner} then {outer}"
    big = Compose(down_sample((3, 64, 64)), gaussian_blur((3, 64, 64), std=1))
    assert spectrum_of(big).values.count_nonzero() == 3 * 32 * 32
    with pytest.raises(InputError, match=r"takes .* measures .* make it"):
        Compose(inner, inner)


def test_scaled_is_the_operator_in_other_units() -> None:
    scale, shift = torch.tensor([2.0, 3.0]), torch.tensor([-1.0, 5.0])
    x = normal(3, 2, 4, 4)
    u = scale[:, None, None] * x + shift[:, None, None]
    operators: tuple[Operator, ...] = (gaussian_blur((2, 4, 4), std=1, padding="zeros"), grey((2, 4, 4)), phase((2, 4, 4)))
    for operator in operators:
        scaled = Scaled(operator, scale, shift)
        close(scaled(x), scaled.relative(operator(u)))
    linear = Scaled(gaussian_blur((2, 64, 64), std=1), 127.5, 127.5)
    inner = spectrum_of(gaussian_blur((2, 64, 64), std=1)).values
    assert torch.equal(spectrum_of(linear).values, inner * 127.5)
    for wrong in (0.0, torch.ones(3), torch.tensor(float("nan")), torch.ones(1, 2)):
        with pytest.raises(InputError, match="scale"):
            Scaled(operators[0], wrong)


def test_singular_values_below_round_off_count_as_none() -> None:
    operator = gaussian_blur((1, 28, 28), std=3)
    x = normal(1, 1, 28, 28).float()
    back = operator.pseudo_inverse(operator(x))
    assert float((operator(back) - operator(x)).abs().max()) < 1e-4
    assert spectrum_of(operator).values.count_nonzero() < 784 / 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Mask(torch.ones(3)), "booleans"),
        (lambda: Matrix(torch.ones(3)), "give"),
        (lambda: Matrix(torch.ones(2, 3), (2, 2)), "give"),
        (lambda: Separable((2, 3), [None]), "one per axis"),
        (lambda: Separable((2, 3), [None, torch.ones(2, 2)]), "axis of length 3"),
        (lambda: Convolution((1, 4, 4), torch.ones(2, 3)), "odd"),
        (lambda: Convolution((1, 4, 4), torch.ones(3)), "odd"),
        (lambda: Convolution((1, 4, 4), torch.ones(3, 3), "mirror"), "reflect, circular, zeros"),  # type: ignore[arg-type]
        (lambda: Fourier((1, 4), torch.zeros(4, dtype=torch.bool)), "some of them True"),
        (lambda: gaussian_blur((5,)), "channels"),
        (lambda: masks.half((1, 4), side="top"), "two axes"),
        (lambda: masks.half((1, 4), side="up"), "left, right"),  # type: ignore[arg-type]
        (lambda: masks.rows((1, 4)), "mask:columns"),
        (lambda: down_sample((1, 4), method="cubic"), "area, bicubic"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_name_the_remedy(make: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()  # type: ignore[operator]
