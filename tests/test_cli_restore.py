"""`ornstein restore` and `System.restore`: units, what is kept, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from ornstein import figures, model
from ornstein.contract import Contract, fit
from ornstein.guidance import METHODS, Given
from ornstein.measured import in_model_units
from ornstein.metrics import Ensemble
from ornstein.noise import Noise
from ornstein.operator import Mask, parse
from test_cli import refused
from tiny import Run

QUICK = ("--calls", 3, "--draws", 2, "-n", 2, "--quiet")


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Three held-out digits as a .npz."""
    _, held = tiny.digits(tiny.recipe())
    np.savez(tmp_path / "digits.npz", images=held.batch(range(3))["x"].numpy().astype(np.uint8))
    return tmp_path / "digits.npz"


def contract(*, quantised: bool) -> Contract:
    values = np.random.default_rng(0).normal(100, [[[[1.0]], [[20.0]]]], (50, 2, 6, 6))
    return fit(values.round().clip(0, 255).astype(np.uint8), levels=256) if quantised else fit(values)


@pytest.mark.parametrize("quantised", [True, False])
@pytest.mark.parametrize("text", ["mask:box,size=2", "down:2", "blur:gaussian,std=1", "radon:4", "clip", "down:2 then down:3"])
def test_a_measurement_of_data_is_the_measurement_of_their_encoding(text: str, quantised: bool) -> None:
    """values' = A'(encode(x)) for values = A(x): what a noiseless measurement says is the same in both units."""
    known = contract(quantised=quantised)
    operator = parse(text, known.shape, Noise(3))
    x = known.decode(Noise(1).normal((4, *known.shape)))
    given = in_model_units(Given(operator(x.double()), operator, noise_std=2.0), known)
    expected = given.measured(known.encode(x).double())
    if isinstance(operator, Mask):
        expected = expected * operator.mask
    torch.testing.assert_close(given.values.double(), expected, rtol=1e-4, atol=1e-4)
    unit = np.sqrt(np.mean(np.square(known.scale)))
    assert given.noise_std == pytest.approx(2.0 / unit)


def test_noise_is_divided_by_the_same_unit_as_values() -> None:
    """A measurement that is off by 2 in the data's units is off by noise_std' of 2 in the model's."""
    known = contract(quantised=True)
    operator = parse("down:3", known.shape, Noise(0))
    y = operator(torch.full((1, *known.shape), 90.0))
    first, second = (in_model_units(Given(values, operator, noise_std=2.0), known) for values in (y, y + 2.0))
    torch.testing.assert_close(second.values - first.values, torch.full_like(y, first.noise_std or 0.0), rtol=1e-4, atol=1e-5)


def test_an_operator_of_another_shape_is_refused() -> None:
    operator = parse("down:2", (1, 8, 8), Noise(0))
    with pytest.raises(Exception, match=r"\(1, 8, 8\).*\(2, 6, 6\)"):
        in_model_units(Given(torch.zeros(1, 1, 4, 4), operator), contract(quantised=True))


def test_what_is_measured_without_noise_comes_back(tiny_model: Path) -> None:
    system = model.load(tiny_model)
    _, held = tiny.digits(tiny.recipe())
    x = held.batch(range(2))["x"]
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :, ::2] = True
    given = Given(torch.where(mask, x, float("nan")), mask=mask)
    for method in ("ddrm", "replacement", "mcg", "repaint"):
        options = {"resamplings": 2, "jump": 1} if method == "repaint" else None
        found = system.restore(given, method=method, options=options, draws=2, sampler=4, noise=Noise(0), cond={"label": [1, 2]})
        assert found.draws.shape == (2, 2, 1, 8, 8)
        kept = (found.draws - x[:, None]).abs()[mask.expand(2, 2, 1, 8, 8)]
        assert float(kept.max()) < 16 * 1e-6, method


def test_the_command_gives_what_python_gives(run: Run, tiny_model: Path, digits: Path) -> None:
    ended = run(
        "restore",
        tiny_model,
        "--input",
        digits,
        "--operator",
        "down:2",
        "--noise-std",
        0.5,
        "--seed",
        5,
        *QUICK,
        "--out",
        "x.npz",
    )
    assert ended.code == 0, ended.err
    assert "x.npz: 2 x 2 draws, pigdm from " in ended.out
    assert "PSNR: mean of the draws " in ended.out
    with np.load("x.npz") as written:
        found = {name: torch.from_numpy(written[name]) for name in written.files}
    assert set(found) == {"draws", "mean", "std", "measured", "truth"}
    system = model.load(tiny_model)
    given = Given(found["measured"], parse("down:2", (1, 8, 8), Noise(5)), noise_std=0.5)
    expected = system.restore(given, draws=2, sampler=3, noise=Noise(5))
    torch.testing.assert_close(found["draws"], expected.draws)
    torch.testing.assert_close(found["std"], expected.std)
    noise = found["measured"] - given.measured(found["truth"])
    assert 0.3 < float(noise.std()) < 0.7


def test_a_measurement_from_a_file(run: Run, tiny_model: Path) -> None:
    np.save("y.npy", np.full((1, 4, 4), 7.0))
    asked = ("restore", tiny_model, "--input", "y.npy", "--operator", "down:2", "--measured", *QUICK)
    ended = run(*asked, "--noise-std", "unknown", "--out", "y.png")
    assert ended.code == 0, ended.err
    assert "PSNR" not in ended.out
    with Image.open("y.png") as picture:
        assert picture.size[0] > picture.size[1]
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save("low.png")
    assert run(*asked[:3], "low.png", *asked[4:]).code == 0
    refused(run(*asked[:5], "mask:box", *asked[6:]), "(1, 4, 4)", "(1, 8, 8)")


@pytest.mark.parametrize(("arguments", "words"), [
    (["--operator", "mask:bix"], ["mask:bix", "mask:box"]),
    (["--operator", "down:3,size=2"], ["size"]),
    ([], ["--operator is missing"]),
    (["--operator", "down:2", "--method", "magic"], ["method='magic'", *METHODS]),
    (["--operator", "down:2", "--method", "amortised"], ["condition: grid"]),
    (["--operator", "down:2", "--method", "dps", "--option", "stride=2"], ["stride", "travel"]),
    (["--operator", "down:2", "--option", "travel"], ["--option 'travel'", "name=number"]),
    (["--operator", "clip"], ["linear", "dps"]),
    (["--operator", "down:2", "--cond", "label=12"], ["label='12'", "10 classes"]),
    (["--operator", "down:2", "--noise-std", "unknown"], ["--measured"]),
    (["--operator", "down:2", "--noise-std", "-1"], ["noise_std=-1"]),
    (["--operator", "down:2", "--noise-std", "much"], ["noise-std"]),
    (["--operator", "down:2", "--out", "x.csv"], ["x.csv", ".npz"]),
    (["--operator", "down:2", "--draws", "0"], ["--draws 0"]),
    (["--operator", "down:2", "--sampler", "rk45"], ["rk45", "plan"]),
    (["--operator", "down:2", "--measured"], ["(1, 8, 8)", "(1, 4, 4)", "--measured"]),
])  # fmt: skip
def test_wrong_input_is_one_line(run: Run, tiny_model: Path, digits: Path, arguments: list[str], words: list[str]) -> None:
    refused(run("restore", tiny_model, "--input", digits, "-n", 1, "--quiet", *arguments), *words)


def test_unusable_files(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    asked = ("restore", tiny_model, "--operator", "mask:half", "--quiet", "--input")
    refused(run(*asked, "nothing.png"), "nothing.png")
    np.savez("wide.npz", images=np.zeros((2, 8, 9), np.uint8))
    refused(run(*asked, "wide.npz"), "(1, 8, 9)", "(1, 8, 8)")
    holes = np.ones((2, 1, 8, 8), np.float32)
    holes[0, 0, 0, 0] = np.nan
    np.savez("holes.npz", images=holes)
    refused(run(*asked, "holes.npz"), "1 NaN")
    refused(run("restore", tiny_model, "--operator", "down:1", "--input", "holes.npz", "--measured", "--quiet"), "1 NaN")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG but not much")
    refused(run(*asked, "torn.png"), "torn.png")


def test_nan_outside_the_mask_is_no_measurement(run: Run, tiny_model: Path) -> None:
    holes = np.ones((1, 1, 8, 8), np.float32)
    holes[..., 4:] = np.nan  # mask:half measures the left one
    measured = parse("mask:half", (1, 8, 8), Noise(0))
    assert isinstance(measured, Mask)
    holes = np.where(measured.mask.numpy(), 1.0, np.nan).astype(np.float32)[None]
    np.save("holes.npy", holes)
    ended = run("restore", tiny_model, "--operator", "mask:half", "--input", "holes.npy", "--measured", *QUICK, "--out", "x.npz")
    assert ended.code == 0, ended.err


def test_the_picture_has_a_column_for_everything_known(tmp_path: Path) -> None:
    known = fit(np.random.default_rng(0).integers(0, 256, (9, 3, 12, 12)).astype(np.uint8), levels=256)
    truth = 255 * torch.rand(3, 3, 12, 12)
    several, one = Ensemble(truth[:, None] + torch.randn(3, 4, 3, 12, 12)), Ensemble(truth[:, None] + 1)
    sizes = []
    for ensemble, whole, low in (
        (several, truth, truth[:, :, ::4, ::4]),
        (several, None, None),
        (one, truth, None),
        (one, None, None),
    ):
        figures.restored_picture(low, ensemble, known, tmp_path / "x.png", truth=whole)
        with Image.open(tmp_path / "x.png") as picture:
            sizes.append(picture.size[0])
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_pigdm_is_told_the_variance_of_the_data(tiny_model: Path) -> None:
    system = model.load(tiny_model)
    given = Given(torch.full((1, 1, 4, 4), 7.0), parse("down:2", (1, 8, 8), Noise(0)), noise_std=0.5)
    drawn = [
        system.restore(given, options=options, draws=2, sampler=3, noise=Noise(5)).draws
        for options in (None, {"data_variance": system.contract.std**2}, {"data_variance": 1.0})
    ]
    torch.testing.assert_close(drawn[0], drawn[1])
    assert float((drawn[0] - drawn[2]).abs().max()) > 1e-3
