"""Tables through the command line: diffusion and DPM 2015 train, sample in the data's own units, and refuse what they lack."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein import config, model
from ornstein.config import Recipe
from ornstein.files import InputError
from ornstein.kinds import KINDS, load_data
from ornstein.noise import Noise
from ornstein.process import VP, LinearSDE
from ornstein.samplers import ddim
from ornstein.system import System
from ornstein.train import train
from ornstein.vector import DPMSystem
from ornstein.vector.data import heartbeat
from tiny import Ended, Run, written

COLUMNS = ("height", "weight", "age")
MEAN, STD = np.array([170.0, 70.0, -0.4]), np.array([8.0, 12.0, 0.05])
SMALL = (
    "--set", "train={steps: 30, batch: 64, warmup: 4, validate_every: 15}", "--set", "net.options={width: 16, depth: 1}",
    "--set", "sampler.calls=6", "--quiet",
)  # fmt: skip
CHAIN = (
    "system=dpm2015", "predicts=mean", "net={name: mlp, options: {width: 16, depth: 1}}",
    "process={name: log_snr, options: {steps: 6}}", "train={steps: 30, batch: 64, warmup: 4, validate_every: 15}",
)  # fmt: skip


def people(path: Path, n: int = 400, columns: int = 3) -> Path:
    values = np.random.default_rng(0).normal(MEAN, STD, (n, 3))[:, :columns]
    np.savetxt(path, values, delimiter=",", header=",".join(COLUMNS[:columns]), comments="")
    return path


def chain(*settings: str) -> Recipe:
    """A DPM of 2015 with few steps and a small network, on 600 points of the swiss roll unless changed."""
    data = "data={source: swiss_roll, rows: 600, held_out: 0.2}"
    return config.override(Recipe(), [data, *CHAIN, *settings])


def refused(ended: Ended, *words: str) -> None:
    """Exit code 2 and one line of error with the words; nothing on standard output."""
    assert (ended.code, ended.out) == (2, ""), ended
    assert ended.err.startswith("ornstein: error: ")
    assert ended.err.count("\n") == 1
    for word in words:
        assert word in ended.err


def rows(path: Path) -> tuple[list[str], np.ndarray]:
    """The column names and the numbers of a CSV that was written."""
    with path.open(newline="", encoding="utf-8") as stream:
        first, *others = csv.reader(stream)
    return first, np.array(others, float)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with people.csv and models, trained for 30 steps: `table` of it, `roll` and `beats` of DPM 2015."""
    folder = tmp_path_factory.mktemp("tables")
    settings = [text for text in SMALL if "=" in text]
    source = f"data={{source: {people(folder / 'people.csv')}, held_out: 0.1}}"
    recipes = {
        "table": config.override(config.load_recipe("points"), [*settings, source]),
        "roll": chain("learned_variance=true"),
        "beats": chain("data={source: heartbeat, rows: 600}", "process.name=harmonic"),
    }
    for name, recipe in recipes.items():
        training, held = load_data(recipe).split(1 - recipe.data.held_out, 0)
        train(recipe, training, held, training.contract, folder / name, device="cpu", progress=False)
    return folder


# --- diffusion


def test_a_csv_trains_without_a_recipe_and_resumes(run: Run, tmp_path: Path) -> None:
    people(tmp_path / "people.csv")
    ended = run("train", "--data", "people.csv", *SMALL)
    assert ended.code == 0, ended.err
    assert ended.out.strip() == "runs/people: model, loss.png, samples.png, card.md"
    recipe = model.read_recipe("runs/people")
    assert (recipe.system, recipe.net.name, recipe.train.steps) == ("vector", "mlp", 30)
    contract = model.load("runs/people").contract
    assert contract.channels == COLUMNS
    assert contract.scale == pytest.approx(STD.tolist(), rel=0.2)
    before = Path("runs/people/model.safetensors").read_bytes()
    ended = run("train", "--resume", "--out", "runs/people", "--set", "train.steps=40")
    assert ended.code == 0, ended.err
    assert "400 rows of 3 columns (height" in ended.err
    assert "training on 360, held out 40" in ended.err
    assert "step 40/40" in ended.err
    assert Path("runs/people/model.safetensors").read_bytes() != before
    refused(run("train", "--data", "people.csv", *SMALL), "already holds a model")
    people(Path("two.csv"), columns=2)
    ended = run("train", "points", "--data", "two.csv", *SMALL, "--out", "plane")
    assert ended.out.strip() == "plane: model, loss.png, samples.png, strip.png, card.md"
    assert "Lower row: where they are driven" in Path("plane/card.md").read_text()


def test_samples_of_a_table_have_its_columns_and_units(run: Run, made: Path) -> None:
    for name in ("s.csv", "s.npz", "s.png"):
        ended = run("sample", made / "table", "-n", 500, "--out", name, "--quiet")
        assert ended.code == 0, ended.err
        assert ended.out.startswith(f"{name}: 500 samples, dpm_solver_pp")
    names, values = rows(Path("s.csv"))
    assert tuple(names) == COLUMNS
    assert values.shape == (500, 3)
    # 30 steps have hardly moved a network that begins at 0, which with v is right for standard normals: 5 standard errors
    assert bool((np.abs(values.mean(0) - MEAN) < 5 * STD / math.sqrt(360)).all())
    assert values.std(0) == pytest.approx(STD, rel=0.25)
    with np.load("s.npz") as arrays:
        assert np.allclose(arrays["samples"], values, rtol=1e-6)
    with Image.open("s.png") as picture:
        assert np.asarray(picture).std() > 5
    drawn = model.load(made / "table").sample(500, noise=Noise(0))
    assert np.allclose(drawn.numpy(), values, rtol=1e-6)


@pytest.mark.parametrize("name", ["table", "roll", "beats"])
def test_sample_i_is_the_same_in_any_batch_size(name: str, made: Path) -> None:
    system = model.load(made / name)
    whole = system.sample(23, noise=Noise(3))
    for size in (1, 7):
        assert torch.allclose(system.sample(23, noise=Noise(3), batch_size=size), whole, rtol=1e-4, atol=1e-4)
    assert torch.allclose(system.sample(5, noise=Noise(3), first=9), whole[9:14], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(system.sample(23, noise=Noise(4)), whole, rtol=1e-4, atol=1e-4)


def test_a_table_is_measured(run: Run, made: Path) -> None:
    folder = Path(shutil.copytree(made / "table", "m"))
    ended = run("evaluate", folder, "-n", 40, "--quiet")
    assert ended.code == 0, ended.err
    found = {record["metric"]: record for record in json.loads((folder / "metrics.json").read_text())}
    for name in ("frechet_distance", "kernel_distance", "sliced_wasserstein", "precision", "recall", "nearest_training_ratio"):
        assert math.isfinite(found[name]["value"])
    assert found["sliced_wasserstein"]["extractor"] == "columns"
    assert "sliced_wasserstein (training data)" in found
    assert "nats_per_dim" in found
    assert "bits_per_dim" not in found
    assert "sliced_wasserstein" in (folder / "card.md").read_text()
    ended = run("nll", folder, "-n", 40, "--by", "both", "--divergence", "exact", "--quiet")
    values = {name.strip(): float(value) for name, value in re.findall(r"^(nats[^\d]*?)  +(\S+)", ended.out, re.MULTILINE)}
    normal = 0.5 * math.log(2 * math.pi * math.e)  # of a standard normal, which the model still is
    assert values["nats_per_dim (flow)"] == pytest.approx(normal, abs=0.25)
    assert values["nats_per_dim"] > values["nats_per_dim (flow)"] - 0.5
    refused(
        run("evaluate", folder, "-n", 40, "--data", people(Path("two.csv"), columns=2), "--quiet"), "2 columns", "the model 3"
    )


def test_latents_of_a_table_lead_back_to_it(run: Run, made: Path) -> None:
    data = people(Path("fresh.csv"), n=30)
    folder = made / "table"
    ended = run("encode", folder, "--data", data, "--rtol", "2e-6", "--out", "z.npz", "--quiet")
    assert ended.code == 0, ended.err
    with np.load("z.npz") as arrays:
        assert arrays["latent"].shape == (30, 3)
    assert run("decode", folder, "z.npz", "--rtol", "2e-6", "--out", "x.npz", "--quiet").code == 0
    with np.load("x.npz") as arrays:
        assert bool((np.abs(arrays["samples"] - rows(data)[1]) < 2e-3 * STD).all())
    assert run("interpolate", folder, "--pairs", 2, "--steps", 5, "--out", "w.npz", "--quiet").code == 0
    with np.load("w.npz") as arrays:
        assert arrays["samples"].shape == (10, 3)
    assert run("decode", folder, "z.npz", "--out", "x.png", "--quiet").code == 0


WRONG = {
    "data.size=8": "data.size=8 says nothing about tables",
    "data.flip=true": "data.flip=True says nothing about tables",
    "data.image_key=x": "data.image_key='x'",
    "net.name=unet": "net.name='unet' is not for tables",
    "net.options.magic=1": "magic",
    "learned_variance=true": "learned_variance=true",
    "condition=label": "no labels",
    "sampler.clip=true": "no bounds",
    "system=magic": "system='magic'",
}


@pytest.mark.parametrize("setting", WRONG)
def test_wrong_keys_of_a_table(setting: str, run: Run) -> None:
    people(Path("people.csv"))
    refused(run("train", "points", "--data", "people.csv", *SMALL, "--set", setting, "--out", "w"), WRONG[setting])
    assert not Path("w/model.safetensors").exists()


def test_wrong_data_and_conditions(run: Run, made: Path) -> None:
    text = people(Path("people.csv")).read_text().splitlines()
    Path("nan.csv").write_text("\n".join([*text[:3], "nan,1,2", *text[3:]]))
    refused(run("train", "--data", "nan.csv", *SMALL), "row 3", "'height'", "nan")
    refused(run("train", "points", *SMALL), "'points.csv'")
    for setting in ("data.rows=50", "data.noise_std=0.1"):
        refused(run("train", "digits", "--set", setting, "--out", "w"), setting, "says nothing about images")
    images = ("--set", "system=image", "--set", "net.name=unet")
    refused(run("train", "points", "--data", "people.csv", *SMALL, *images, "--out", "w"), "people.csv")
    refused(run("sample", made / "table", "--cond", "label=1", "--quiet"), "trained without a condition")
    refused(run("sample", made / "table", "--out", "x.txt"), ".png, .npz or .csv")


# --- DPM 2015


@pytest.mark.parametrize(("name", "columns"), [("roll", 2), ("beats", 20)])
def test_a_chain_trains_and_samples(name: str, columns: int, run: Run, made: Path) -> None:
    recipe = model.read_recipe(made / name)
    ended = run("train", written(recipe, Path("r.yaml")), "--out", "again", "--quiet")
    assert ended.code == 0, ended.err
    assert ended.out.strip() == "again: model, loss.png, samples.png, card.md"
    assert "- chain: 6 steps" in Path("again/card.md").read_text()
    system = model.load("again")
    assert isinstance(system, DPMSystem)
    assert torch.equal(system.sample(40, noise=Noise(0)), model.load(made / name).sample(40, noise=Noise(0)))
    for out in ("s.csv", "s.npz", "s.png"):
        ended = run("sample", "again", "-n", 40, "--out", out, "--batch", 9, "--quiet")
        assert ended.code == 0, ended.err
        assert "40 samples" in ended.out
        assert "5 calls each" in ended.out
    names, values = rows(Path("s.csv"))
    assert names == list(system.contract.channels)
    assert values.shape == (40, columns)
    with np.load("s.npz") as arrays:
        assert np.allclose(arrays["samples"], values, rtol=1e-6)
    if name == "beats":
        assert set(np.unique(values)) == {0, 1}
    else:
        assert 0.5 < values.std() < 2
    assert run("info", "again").code == 0


def test_the_bound_of_a_chain_in_bits(run: Run, made: Path) -> None:
    folder = Path(shutil.copytree(made / "roll", "m"))
    ended = run("evaluate", folder, "-n", 50, "--quiet")
    assert ended.code == 0, ended.err
    found = {record["metric"]: record for record in json.loads((folder / "metrics.json").read_text())}
    assert found["bits_per_row"]["note"].startswith("upper bound of -log2 of a row's density of the standardised row; 5 calls")
    system = model.load(folder)
    assert isinstance(system, DPMSystem)
    held = load_data(model.read_recipe(folder)).split(0.8, 0)[1].with_contract(system.contract)
    bits = -system.bound(held.batch(range(50))["x"], Noise(0))
    assert found["bits_per_row"]["value"] == pytest.approx(float(bits.mean()), abs=1e-4)
    # a network that has not learned says what a normal says, log2 of whose entropy is ½ log2(2πe) per column, or a little less
    assert 2.5 < float(bits.mean()) < 4.5
    ended = run("nll", made / "beats", "-n", 40, "--quiet")
    value = float(ended.out.splitlines()[2].split()[1])
    assert ended.out.splitlines()[2].startswith("bits_per_row")
    assert "probability" in ended.out
    assert math.log2(5) < value < 20.5  # 20 fair coins; no model is below the entropy


def test_a_chain_sees_zeros_and_ones_or_standardised_columns(made: Path) -> None:
    beats, roll = model.load(made / "beats"), model.load(made / "roll")
    assert isinstance(beats, DPMSystem)
    assert isinstance(roll, DPMSystem)
    bits = heartbeat(9, Noise(1))
    assert torch.equal(beats.encode(bits), bits)
    x = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    assert torch.equal(roll.encode(x), roll.contract.encode(x))
    assert (type(beats.net.kernel).__name__, type(roll.net.kernel).__name__) == ("Bernoulli", "Gaussian")
    assert roll.net.kernel.outputs == 2
    fixed = KINDS["dpm2015"].build(chain(), roll.contract, None)
    assert isinstance(fixed, DPMSystem)
    assert fixed.net.kernel.outputs == 1


@pytest.mark.parametrize(
    "asked", ["--sampler ddim", "--calls 5", "--calls auto", "--tol 0.1", "--rtol 0.1", "--grid karras", "--corrector 1",
              "--precision bf16", "--cond label=1", "--guidance 2"],
)  # fmt: skip
def test_a_chain_is_its_own_sampler(asked: str, run: Run, made: Path) -> None:
    ended = run("sample", made / "beats", *asked.split(), "--out", "x.npz", "--quiet")
    refused(ended, asked.split(maxsplit=1)[0].removeprefix("--"), "dpm2015")
    assert not Path("x.npz").exists()


def test_what_needs_a_denoiser_refuses_a_chain(run: Run, made: Path) -> None:
    np.savez("z.npz", latent=np.zeros((2, 2)))
    roll = made / "roll"
    for command in (["calibrate", roll, "--calls", 5], ["encode", roll], ["decode", roll, "z.npz"], ["interpolate", roll],
                    ["nll", roll, "--by", "ode"], ["nll", roll, "--by", "both"], ["evaluate", roll, "--calls", 5],
                    ["evaluate", roll, "--sampler", "ddim"], ["figure", "swiss_roll", "--model", roll]):  # fmt: skip
        refused(run(*command, *([] if command[0] == "figure" else ["--quiet"])), "dpm2015", "denoiser")
    system = model.load(roll)
    for options in ({"cond": {"label": 1}}, {"guidance": 2.0}, {"sampler": 5}, {"after": lambda x, step: x}):
        with pytest.raises(InputError, match=rf"{next(iter(options))} does not go with a dpm2015 model"):
            system.sample(2, noise=Noise(0), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size=0"):
        system.sample(2, noise=Noise(0), batch_size=0)
    with pytest.raises(InputError, match="takes no other process"):
        model.load(roll, process=VP())


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("loss.weighting=edm", "loss says nothing to dpm2015"),
        ("sampler.calls=7", "sampler says nothing to dpm2015"),
        ("process.name=vp", "process.name='vp' is not one of log_snr, harmonic"),
        ("process.options.steps=1", "betas"),
        ("process.options.magic=1", "magic"),
        ("net.options.magic=1", "magic"),
        ("net.name=unet", "net.name='unet'"),
        ("net.level_free=true", "net.level_free=True"),
        ("predicts=v", "predicts='v'"),
        ("condition=label", "condition='label' is not for dpm2015; set it to null"),
        ("data.size=8", "data.size=8 says nothing about tables"),
    ],
)
def test_a_recipe_for_a_chain_says_nothing_else(setting: str, words: str, run: Run) -> None:
    recipe = written(chain(), Path("r.yaml"))
    refused(run("train", recipe, "--set", setting, "--out", "w", "--quiet"), words)


def test_recipes_of_the_package_are_for_their_data() -> None:
    for name in config.bundled():
        recipe = config.load_recipe(name)
        if recipe.system not in ("vector", "dpm2015") or recipe.data.source.endswith(".csv"):
            continue
        data = load_data(config.override(recipe, ["data.rows=50"]))
        system = KINDS[recipe.system].build(recipe, data.contract, None)
        assert isinstance(system, DPMSystem if recipe.system == "dpm2015" else System)
        assert bool(system.loss(data.batch(range(8)), Noise(0)).isfinite().all())
        assert system.sample(2, noise=Noise(0)).shape == (2, *data.contract.shape)


# --- a process of one's own


def test_a_process_of_one_s_own_is_saved_by_that_name_and_given_again(run: Run, made: Path) -> None:
    recipe = model.read_recipe(made / "table")
    contract = model.load(made / "table").contract
    own = LinearSDE(lambda t: -0.5 * (0.1 + 9 * t), lambda t: (0.1 + 9 * t).sqrt(), prior_std=1.0)
    for process, kept in ((own, "own"), (VP(0.2, 10.0), "own"), (VP(), "vp"), (None, "vp")):
        system = model.build(recipe, contract, process)
        model.save("m", recipe, system)
        assert model.read_recipe("m").process.name == kept
        if kept == "vp":
            assert torch.equal(model.load("m").sample(3, noise=Noise(0)), system.sample(3, noise=Noise(0)))
            continue
        with pytest.raises(InputError, match="process of its author's own"):
            model.load("m")
        refused(run("sample", "m", "--quiet"), "process=")
        again = model.load("m", process=process)
        assert isinstance(again, System)
        assert again.denoiser.process is process
        assert torch.equal(again.sample(3, noise=Noise(0)), system.sample(3, noise=Noise(0)))
        assert again.sample(3, sampler=ddim(process, 4), noise=Noise(0)).isfinite().all()
        model.save("twice", model.read_recipe("m"), again)
        assert model.read_recipe("twice").process.name == "own"
