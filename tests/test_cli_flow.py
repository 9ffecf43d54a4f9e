"""The command line's adaptive samplers, error budget, flow likelihood and latents, as users call them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ornstein import model
from ornstein.evaluate import divide
from ornstein.image.data import ImageData
from ornstein.kinds import load_data
from ornstein.noise import Noise
from ornstein.samplers import ADAPTIVE, RK45, default_plan, sample_adaptive
from tiny import Ended, Run


def refused(ended: Ended, words: str) -> None:
    assert ended.code == 2, ended
    assert ended.err.startswith("ornstein: error: ")
    assert ended.err.count("\n") == 1
    assert words in ended.err


def arrays(path: str) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as loaded:
        return dict(loaded)


def held_out(directory: Path) -> ImageData:
    recipe = model.read_recipe(directory)
    data = divide(recipe.data, load_data(recipe))[1]
    assert data is not None
    return data


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_samplers_report_their_calls(name: str, run: Run, tiny_model: Path) -> None:
    ended = run(
        "sample", tiny_model, "-n", 5, "--sampler", name, "--rtol", 0.5, "--cond", "label=1,2", "--out", "x.npz", "--quiet"
    )
    assert ended.code == 0, ended.err
    found = re.search(r"(\d+) calls each(?: on average \((\d+) to (\d+)\))?", ended.out)
    assert found is not None
    drawn = model.load(tiny_model).draw(5, sampler=ADAPTIVE[name](rtol=0.5), cond={"label": [1, 2, 1, 2, 1]}, noise=Noise(0))
    assert int(found[2] or found[1]) == int(drawn.calls.min())
    assert int(found[3] or found[1]) == int(drawn.calls.max())
    assert np.array_equal(arrays("x.npz")["samples"], model.load(tiny_model).contract.quantise(drawn.x0))


def test_the_corrector_is_paid_for(run: Run, tiny_model: Path) -> None:
    plain = ("sample", tiny_model, "-n", 3, "--sampler", "ddim", "--calls", 6, "--out", "x.npz", "--quiet")
    assert run(*plain).out.endswith("6 calls each\n")
    before = arrays("x.npz")["samples"]
    ended = run(*plain, "--corrector", 2, "--snr", 0.2)
    assert ended.out.endswith("ddim with corrector, 16 calls each\n")
    assert not np.array_equal(before, arrays("x.npz")["samples"])


def test_a_tolerance_chooses_the_calls(run: Run, tiny_model: Path) -> None:
    ended = run("sample", tiny_model, "-n", 7, "--tol", 0.05, "--out", "x.npz", "--quiet")
    assert ended.code == 0, ended.err
    table = re.findall(r"^ +(\d+) +([\d.e-]+) +([\d.e-]+)$", ended.out, re.MULTILINE)
    calls, error = int(table[-1][0]), float(table[-1][1])
    assert error <= 0.05 < float(table[-2][1])
    assert "Monte-Carlo error of a mean over 7 samples: 0.38" in ended.out
    assert ended.out.endswith(f"{calls} calls each\n")
    # what was promised is what fresh samples have
    system = model.load(tiny_model)
    options = {"shape": (100, 1, 8, 8), "noise": Noise(12)}
    exact = sample_adaptive(system.shaped_denoiser(), RK45(1e-4), **options).x0
    drawn = system.contract.encode(system.sample(100, sampler=default_plan(system.denoiser.process, calls), noise=Noise(12)))
    delivered = (drawn - exact).flatten(1).square().mean(1).sqrt().quantile(0.9) / system.contract.std
    assert error / 2 < float(delivered) < error * 2


def test_auto_goes_by_the_monte_carlo_error(run: Run, tiny_model: Path) -> None:
    ended = run("sample", tiny_model, "-n", 4, "--calls", "auto", "--sampler", "ddim", "--out", "x.npz", "--quiet")
    assert ended.code == 0, ended.err
    assert "asked 0.5" in ended.out
    assert "ddim" in ended.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tol", "0.01", "--calls", "5"], "leave out --calls"),
        (["--tol", "0.01", "--sampler", "ancestral"], "deterministic"),
        (["--tol", "0.01", "--sampler", "rk45"], "--rtol"),
        (["--tol", "0"], "--tol 0 must be at least"),
        (["--calls", "some"], "some"),
        (["--rtol", "0.1"], "--rtol 0.1 goes with --sampler rk45"),
        (["--sampler", "rk45", "--rtol", "0"], "--rtol 0 must be above 0"),
        (["--sampler", "rk45", "--calls", "5"], "chooses its own steps"),
        (["--sampler", "rk45", "--corrector", "1"], "--corrector does not go with rk45"),
        (["--corrector", "-1"], "--corrector -1 must be at least 0"),
        (["--snr", "0.1"], "add --corrector"),
        (["--corrector", "1", "--snr", "0"], "--snr 0 must be above 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_for_sampling(arguments: list[str], words: str, run: Run, tiny_model: Path) -> None:
    refused(run("sample", tiny_model, "-n", 2, *arguments, "--quiet"), words)
    assert not list(Path().iterdir())


def test_nll_puts_both_estimates_side_by_side(run: Run, tiny_model: Path) -> None:
    ended = run("nll", tiny_model, "-n", 12, "--by", "both", "--draws", 5, "--probes", 2, "--rtol", 0.05, "--quiet")
    assert ended.code == 0, ended.err
    rows = {line.split("  ")[0]: line for line in ended.out.splitlines()}
    assert {"bits_per_dim", "bits_per_dim (flow)", "bits_per_dim (Gaussian)"} <= set(rows)
    assert "uniform dequantisation, 2 rademacher probes, noise 0.0361 at start" in rows["bits_per_dim (flow)"]
    alone = run(
        "nll", tiny_model, "-n", 3, "--by", "ode", "--dequantisation", "gaussian", "--divergence", "exact", "--rtol", 1e-2,
        "--quiet",
    )  # fmt: skip
    assert "gaussian dequantisation, exact divergence" in alone.out
    assert "upper bound" not in alone.out
    refused(run("nll", tiny_model, "--by", "magic"), "magic")
    refused(run("nll", tiny_model, "--by", "ode", "--probes", 0), "--probes 0")
    refused(run("nll", tiny_model, "--by", "ode", "--rtol", 1e-9), "--rtol 1e-09")


def test_encode_and_decode_return_the_data(run: Run, tiny_model: Path) -> None:
    ended = run("encode", tiny_model, "-n", 6, "--out", "latents.npz", "--quiet")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("latents.npz: 6 latents, standard deviation ")
    held = arrays("latents.npz")
    assert held["latent"].shape == (6, 1, 8, 8)
    assert 0.3 < held["latent"].std() < 1.5
    assert run("decode", tiny_model, "latents.npz", "--out", "x.npz", "--quiet").code == 0
    back = arrays("x.npz")
    assert np.array_equal(back["label"], held["label"])
    data = held_out(tiny_model)
    assert np.array_equal(back["samples"], data.batch(range(6))["x"].numpy().astype(np.uint8))
    assert run("decode", tiny_model, "latents.npz", "--cond", "label=3", "--out", "y.npz", "--quiet").code == 0
    assert not np.array_equal(arrays("y.npz")["samples"], back["samples"])
    assert run("decode", tiny_model, "latents.npz", "--out", "x.png", "--quiet").code == 0


def test_interpolations_end_at_the_data(run: Run, tiny_model: Path) -> None:
    ended = run("interpolate", tiny_model, "--rows", 0, 3, 5, 1, "--steps", 5, "--out", "x.npz", "--quiet")
    assert ended.code == 0, ended.err
    assert ended.out == "x.npz: 2 walks of 5\n"
    found = arrays("x.npz")
    data = held_out(tiny_model)
    ends = data.batch([0, 3, 5, 1])
    assert np.array_equal(found["samples"][[0, 4, 5, 9]], ends["x"].numpy().astype(np.uint8))
    assert found["label"].tolist() == [int(ends["label"][k]) for k in (0, 0, 0, 1, 1, 2, 2, 2, 3, 3)]
    assert run("interpolate", tiny_model, "--pairs", 2, "--steps", 3, "--cond", "label=4", "--quiet").code == 0
    with Image.open("interpolation.png") as picture:
        assert picture.size[0] > picture.size[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encode", "MODEL", "--out", "x.png"], "must end in .npz"),
        (["encode", "MODEL", "--rtol", "0"], "--rtol 0"),
        (["encode", "MODEL", "-n", "0"], "-n 0"),
        (["decode", "MODEL", "none.npz"], "none.npz"),
        (["decode", "MODEL", "pickle.npz"], "pickle.npz"),
        (["decode", "MODEL", "text.npz"], "text.npz"),
        (["decode", "MODEL", "nan.npz"], "NaN"),
        (["decode", "MODEL", "other.npz"], "not an array 'latent'"),
        (["decode", "MODEL", "good.npz", "--out", "x.jpg"], "must end in .png or .npz"),
        (["interpolate", "MODEL", "--rows", "1"], "pairs of data"),
        (["interpolate", "MODEL", "--rows", "1", "100000"], "--rows 100000"),
        (["interpolate", "MODEL", "--steps", "1"], "--steps 1"),
        (["interpolate", "MODEL", "--data", "digits"], "--rows"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_for_latents(arguments: list[str], words: str, run: Run, tiny_model: Path) -> None:
    np.savez("pickle.npz", latent=np.array([{"a": 1}], dtype=object))
    np.savez("nan.npz", latent=np.full((2, 1, 8, 8), np.nan, np.float32))
    np.savez("other.npz", latent=np.zeros((2, 8, 8), np.float32))
    np.savez("good.npz", latent=np.zeros((1, 1, 8, 8), np.float32))
    Path("text.npz").write_text("not an archive")
    refused(run(*[str(tiny_model) if word == "MODEL" else word for word in arguments], "--quiet"), words)
    assert not list(Path().glob("x.*"))


def test_half_precision_does_not_stop_adaptive_samplers(run: Run, tiny_model: Path) -> None:
    chosen = ("sample", tiny_model, "-n", 3, "--sampler", "rk45", "--rtol", 1e-3, "--out", "x.npz", "--quiet")
    assert run(*chosen).code == 0
    full = arrays("x.npz")["samples"]
    assert run(*chosen, "--precision", "bf16").code == 0
    assert np.array_equal(full, arrays("x.npz")["samples"])
    assert run("sample", tiny_model, "-n", 3, "--tol", 0.1, "--precision", "bf16", "--quiet").code == 0
