"""The command line: what it writes, what it prints, and how it ends. `main` is called here where a new process adds nothing."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from ornstein import config, figures, model, operator, process, samplers
from ornstein.evaluate import relabel
from ornstein.grid import GRIDS
from ornstein.guidance import METHODS
from ornstein.image.data import from_arrays
from ornstein.process.cold import COLD
from ornstein.sequence.baselines import FORECASTERS
from ornstein.sequence.masks import MASKS
from ornstein.sequence.scaling import SCALINGS
from ornstein.sequence.sources import SOURCES
from tiny import Ended, Run


def pictures(folder: Path, sizes: list[int], labels: str = "") -> Path:
    """Random grey images of these sides in pixels, in folders of one-letter names if there are `labels`."""
    rng = np.random.default_rng(0)
    for index, size in enumerate(sizes):
        place = folder / labels[index % len(labels)] if labels else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, size)).astype(np.uint8)).save(place / f"{index:03d}.png")
    return folder


def refused(ended: Ended, *words: str) -> None:
    """Exit code 2 and one line of error, the last, with the words; nothing on standard output."""
    assert ended.code == 2, ended.err
    lines = ended.err.strip().splitlines()
    assert [line for line in lines if "error" in line] == lines[-1:]
    assert lines[-1].startswith("ornstein: error: ")
    assert "Traceback" not in ended.err
    assert ended.out == ""
    for word in words:
        assert word in lines[-1]


NET = "net.options={width: 8, multipliers: [1], attention: [false]}"
SMALL = ("--set", "train.steps=2", "--set", NET, "--set", "sampler.calls=2", "--set", "train.batch=8")


# --- train


def test_train_a_recipe_by_name(run: Run) -> None:
    ended = run("train", "digits", *SMALL, "--set", "net.options.blocks=1", "--out", "runs/x", "--quiet")
    assert ended.code == 0, ended.err
    assert ended.out.strip() == "runs/x: model, samples.png, strip.png, card.md"  # two steps are too few for a loss curve
    names = {path.name for path in Path("runs/x").iterdir()}
    assert names >= {"config.yaml", "model.safetensors", "data.json", "card.md", "samples.png", "strip.png", "log.csv", "resume"}
    card = Path("runs/x/card.md").read_text()
    assert "not measured yet" in card
    assert "10 classes" in card
    assert model.read_recipe("runs/x").train.steps == 2
    refused(run("train", "digits", "--out", "runs/x"), "already holds a model", "--resume")
    before = Path("runs/x/model.safetensors").read_bytes()
    assert run("train", "--resume", "--out", "runs/x", "--set", "train.steps=4", "--quiet").code == 0
    assert tiny.state(Path("runs/x"))["global_step"] == 4
    assert Path("runs/x/model.safetensors").read_bytes() != before


def test_train_tells_what_it_does(run: Run, tmp_path: Path) -> None:
    recipe = tiny.written(tiny.recipe("train.steps=3"), tmp_path / "small.yaml")
    ended = run("train", recipe)
    assert ended.code == 0, ended.err
    assert "1,797 images of 8x8 pixels" in ended.err
    assert "training on 1438, held out 359; writing to runs/small" in ended.err
    assert re.search(r"trained step 3/3, loss \d+\.\d+, \d+ data/s", ended.err)
    assert len(ended.err.strip().splitlines()) == 3
    assert model.load("runs/small").contract.levels == 17


def test_train_without_a_recipe_chooses_and_says_why(run: Run, tmp_path: Path) -> None:
    pictures(tmp_path / "2024", [8] * 20, labels="ab")
    ended = run("train", "--data", "2024", "--set", "train.steps=1", "--set", "net.options.width=8", "--set", "sampler.calls=2")
    assert ended.code == 0, ended.err
    for words in ("Resolution 8x8", "levels with multipliers", "Width", "Batch", "sigma_data"):
        assert words in ended.err
    recipe = model.read_recipe("runs/2024")
    assert (recipe.condition, recipe.data.source, recipe.net.options["width"]) == ("label", "2024", 8)
    assert model.load("runs/2024").contract.classes == ("a", "b")


@pytest.mark.parametrize("name", ["no", "null", "a: b", "#1", "0x10", "[x]", "x,y"])
def test_a_folder_may_have_any_name(name: str, run: Run, tmp_path: Path) -> None:
    refused(run("train", "digits", "--data", name), f"data {name!r} does not exist")


def test_max_time_ends_the_run(run: Run) -> None:
    recipe = tiny.written(tiny.recipe("train.steps=1000000"), Path("long.yaml"))
    begun = time.monotonic()
    ended = run("train", recipe, "--max-time", "0.5s", "--out", "x", "--quiet")
    assert ended.code == 0, ended.err
    assert time.monotonic() - begun < 30
    assert model.read_recipe("x").train.minutes == pytest.approx(0.5 / 60)


@pytest.mark.parametrize("text", ["10", "ten", "-3m", "5 days", "", "1m30s"])
def test_bad_max_time(text: str, run: Run) -> None:
    refused(run("train", "digits", f"--max-time={text}"), "--max-time", "90s, 10m or 2h")


def test_fine_tuning(run: Run, tiny_model: Path) -> None:
    recipe = tiny.written(tiny.recipe("train.steps=2"), Path("r.yaml"))
    assert run("train", recipe, "--init", tiny_model, "--out", "tuned", "--quiet").code == 0
    wide = ("--set", "net.options.width=16", "--out", "y", "--quiet")
    refused(run("train", recipe, "--init", tiny_model, *wide), "--init", "same net")
    refused(run("train", recipe, "--init", "nowhere", "--out", "y", "--quiet"), "'nowhere' is not a directory")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "needs a recipe or --data"),
        (["train", "digitz"], "'digitz' is not one of"),
        (["train", "none.yaml"], "none.yaml"),
        (["train", "digits", "--set", "train.stepz=3"], "train.stepz"),
        (["train", "digits", "--set", "nonsense"], "no '='"),
        (["train", "digits", "--resume", "--out", "none"], "holds no training state"),
        (["train", "--resume"], "--out is missing"),
        (["train", "--resume", "--out", "none"], "is not a directory"),
        (["train", "digits", "--device", "cuda:77", *SMALL], "device='cuda:77'"),
        (["train", "digits", "--precision", "int8"], "precision"),
        (["train", "digits", "--strategy", "magic"], "strategy"),
        (["train", "digits", "--set", "sampler.name=magic"], "'magic' is not one of"),
        (["train", "digits", "--set", "data.held_out_last=5000"], "data.held_out_last=5000"),
        (["train", "digits", "--data", "empty"], "holds no images"),
        (["train", "digits", "--data", "mixed"], "mixes sizes"),
        (["train", "digits", "--data", "flat", *SMALL], "no labels"),
        (["train", "mnist", "--data", "nan.npy"], "NaN"),
        (["train", "mnist", "--data", "text.npy"], "text.npy"),
        (["train", "mnist", "--data", "broken", "--set", "data.strict=true"], "bad.png"),
        (["train", "mnist", "--data", "unknown.xyz"], "unknown kind of file"),
        (["train", "mnist"], "'mnist' does not exist"),
        (["sample", "none"], "is not a directory"),
        (["sample"], "directory"),
        (["sample", "none", "--colour", "red"], "--colour"),
        (["info", "none.json"], "none.json"),
        (["info", "empty"], "no config.yaml"),
        (["evaluate", "none"], "is not a directory"),
        (["nll", "none"], "is not a directory"),
        (["paint"], "paint"),
    ],
    ids=lambda value: " ".join(value[:5]) if isinstance(value, list) else None,
)
def test_wrong_input(arguments: list[str], words: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    pictures(tmp_path / "mixed", [8, 9, 8])
    pictures(tmp_path / "flat", [8] * 30)
    (pictures(tmp_path / "broken", [8] * 30) / "bad.png").write_bytes(b"\x89PNG and nothing more")
    np.save(tmp_path / "nan.npy", np.full((30, 8, 8), np.nan, np.float32))
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "unknown.xyz").write_text("hello")
    refused(run(*arguments), words)
    assert not list(tmp_path.rglob("model.safetensors"))


def test_an_unreadable_image_is_named_and_counted(run: Run, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "folder", [8] * 20)
    (folder / "bad.png").write_bytes(b"\x89PNG and nothing more")
    ended = run("train", "--data", "folder", *SMALL, "--out", "x")
    assert ended.code == 0, ended.err
    assert "20 images" in ended.err
    assert "bad.png" in ended.err
    assert re.search(r"\b1\b", next(line for line in ended.err.splitlines() if "bad.png" in line))


def test_a_full_disk_is_a_failure_not_wrong_input(run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Path(shutil.copytree(tiny_model, "model"))

    def full(*arguments: object, **rest: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lightning.Trainer.save_checkpoint", full)
    ended = run("train", "--resume", "--out", out, "--set", "train.steps=33", "--quiet")
    assert ended.code == 1
    assert ended.err == "ornstein: error: OSError: [Errno 28] No space left on device\n"
    assert (out / model.WEIGHTS).read_bytes() == (tiny_model / model.WEIGHTS).read_bytes()
    assert run("sample", out, "-n", 1, "--calls", 1).code == 0


# --- sample


def test_sample_writes_a_picture(run: Run, tiny_model: Path) -> None:
    ended = run("sample", tiny_model, "-n", 6, "--cond", "label=3", "--out", "deep/x.png", "--quiet")
    assert ended.code == 0, ended.err
    assert ended.out == "deep/x.png: 6 samples, heun, 5 calls each\n"
    assert ended.err == ""
    with Image.open("deep/x.png") as picture:
        assert picture.mode == "RGB"
        assert picture.size[0] > picture.size[1] > 48


def test_sample_writes_arrays_in_the_data_s_own_range(run: Run, tiny_model: Path) -> None:
    assert run("sample", tiny_model, "-n", 5, "--cond", "label=7,2", "--out", "x.npz").code == 0
    with np.load("x.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["label", "samples"]
        samples, labels = arrays["samples"], arrays["label"]
    assert (samples.shape, samples.dtype) == ((5, 1, 8, 8), np.uint8)
    assert 0 <= samples.min() < samples.max() <= 16
    assert labels.tolist() == [7, 2, 7, 2, 7]


def test_float_data_come_back_as_floats(run: Run, tmp_path: Path) -> None:
    np.save("field.npy", (1000 + 50 * np.random.default_rng(0).standard_normal((40, 8, 8))).astype(np.float32))
    ended = run("train", "--data", "field.npy", *SMALL, "--out", "field", "--quiet")
    assert ended.code == 0, ended.err
    assert run("sample", "field", "-n", 20, "--out", "x.npz").code == 0
    with np.load("x.npz") as arrays:
        assert sorted(arrays) == ["samples"]
        assert arrays["samples"].dtype == np.float32
        assert 800 < arrays["samples"].mean() < 1200
    assert run("nll", "field", "-n", 3, "--draws", 2, "--quiet").out.count("nats_per_dim") == 1


def test_samples_are_a_function_of_seed_and_plan(run: Run, tiny_model: Path) -> None:
    def draw(*arguments: object) -> np.ndarray:
        assert run("sample", tiny_model, "-n", 4, "--out", "x.npz", "--quiet", *arguments).code == 0
        with np.load("x.npz") as arrays:
            return np.asarray(arrays["samples"], dtype=int)

    base = draw()
    assert np.array_equal(base, draw("--seed", 0, "--batch", 3))
    assert np.array_equal(base, draw("--sampler", "heun", "--calls", 5))
    others = [("--seed", 1), ("--calls", 3), ("--sampler", "ddim"), ("--cond", "label=1")]
    others += [("--sampler", "ddim", "--grid", "log_snr")]
    for first, arguments in enumerate(others):
        assert not np.array_equal(base, draw(*arguments)), arguments
        assert first or not np.array_equal(base, draw(*arguments))
    assert not np.array_equal(draw("--sampler", "ddim"), draw("--sampler", "ddim", "--grid", "log_snr"))


@pytest.mark.parametrize("name", samplers.ALL)
def test_every_sampler_has_a_name_on_the_command_line(name: str, run: Run, tiny_model: Path) -> None:
    ended = run("sample", tiny_model, "-n", 1, "--sampler", name, "--calls", 14, "--quiet")
    assert ended.code == 0, ended.err
    calls = re.search(r"(\d+) calls each", ended.out)
    assert calls is not None
    assert int(calls[1]) <= 14


def test_a_plan_s_file_is_a_sampler(run: Run, tiny_model: Path) -> None:
    plan = samplers.ddim(model.load(tiny_model).denoiser.process, calls=3)
    plan.save("plan.json")
    assert run("sample", tiny_model, "--sampler", "plan.json", "-n", 2, "--quiet").out.endswith("2 samples, ddim, 3 calls each\n")
    shown = run("info", "plan.json")
    assert shown.code == 0
    assert str(plan) in shown.out
    refused(run("sample", tiny_model, "--sampler", "plan.json", "--calls", 4), "--calls and --grid")
    Path("plan.json").write_text('{"format": 1, "name": "x", "view": "eps", "rows": [{"t": "now"}]}')
    refused(run("sample", tiny_model, "--sampler", "plan.json"), "plan.json")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sampler", "magic"], "'magic' is not one of"),
        (["--sampler", "ddim", "--grid", "magic"], "grid='magic'"),
        (["--sampler", "none.json"], "none.json"),
        (["--calls", "0"], "--calls 0"),
        (["--batch", "0"], "--batch 0"),
        (["-n", "0"], "-n 0"),
        (["-n", "many"], "many"),
        (["--cond", "label"], "name=value"),
        (["--cond", "label="], "name=value"),
        (["--cond", "label=10"], "label='10'"),
        (["--cond", "label=1,x"], "label='x'"),
        (["--cond", "colour=1"], "'colour'"),
        (["--out", "x.jpg"], "must end in .png, .npz or .csv"),
        (["--device", "abacus"], "device='abacus'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_for_sampling(arguments: list[str], words: str, run: Run, tiny_model: Path) -> None:
    refused(run("sample", tiny_model, *arguments), words)
    assert not list(Path().iterdir())


# --- evaluate, nll, info, list


def test_evaluate_writes_records(run: Run, tiny_model: Path) -> None:
    out = Path(shutil.copytree(tiny_model, "model"))
    ended = run("evaluate", out, "-n", 60, "--seed", 3, "--quiet")
    assert ended.code == 0, ended.err
    records = {record["metric"]: record for record in _records(json.loads((out / "metrics.json").read_text()))}
    wanted = {"frechet_distance", "kernel_distance", "precision", "recall", "nearest_training_ratio", "label_accuracy"}
    wanted.add("bits_per_dim")
    assert set(records) >= wanted
    for record in records.values():
        assert {"metric", "value", "n", "extractor", "seed", "seconds"} <= set(record)
        assert record["seed"] == 3
        assert record["n"] <= 60
    assert records["frechet_distance (training data)"]["value"] < records["frechet_distance"]["value"]
    assert 0 <= records["label_accuracy"]["value"] <= 1
    assert all(name in ended.out for name in wanted)
    assert "frechet_distance" in (out / "card.md").read_text()
    for folder, side, labels, words in (
        ("none", 8, "", "no labels"),
        ("other", 8, "ab", "class 'a', which the model does not know"),
        ("large", 12, "12", "shape"),
    ):
        pictures(Path(folder), [side] * 30, labels)
        refused(run("evaluate", out, "-n", 20, "--data", folder, "--quiet"), words)
    refused(run("evaluate", out, "-n", 0), "-n 0")
    refused(run("evaluate", out, "-n", 9, "--extractor", "none.safetensors"), "none.safetensors")


def test_labels_are_compared_by_name() -> None:
    model_knows = from_arrays(np.arange(48, dtype=np.uint8).reshape(12, 1, 2, 2), np.arange(12) % 4, classes=("a", "b", "c", "d"))
    some = from_arrays(np.arange(16, dtype=np.uint8).reshape(4, 1, 2, 2), np.array([0, 1, 1, 0]), classes=("b", "d"))
    assert relabel(some, model_knows.contract).require_labels().tolist() == [1, 3, 3, 1]
    assert relabel(model_knows, model_knows.contract).require_labels().tolist() == [0, 1, 2, 3] * 3


def _records(content: object) -> list[dict[str, object]]:
    records = content["records"] if isinstance(content, dict) else content
    assert isinstance(records, list)
    return records


def test_nll_prints_bits(run: Run, tiny_model: Path) -> None:
    ended = run("nll", tiny_model, "-n", 20, "--draws", 5, "--quiet")
    assert ended.code == 0, ended.err
    row = next(line.split() for line in ended.out.splitlines() if line.startswith("bits_per_dim "))
    assert 0.5 < float(row[1]) < 30
    assert "bits_per_dim (Gaussian)" in ended.out
    assert not (tiny_model / "metrics.json").exists()
    refused(run("nll", tiny_model, "-n", 1), "-n 1 must be at least 2")
    refused(run("nll", tiny_model, "--draws", 0), "--draws 0")
    refused(run("nll", tiny_model, "-n", 2, "--draws", 100000), "draws")


def test_info_describes_a_model(run: Run, tiny_model: Path) -> None:
    ended = run("info", tiny_model)
    assert ended.code == 0, ended.err
    for words in ("width: 8", "shape (1, 8, 8)", "range 0.0 … 16.0", "classes: 0, 1, 2", "parameters: 9,", "heun: 5 calls"):
        assert words in ended.out


def test_list_names_everything(run: Run) -> None:
    ended = run("list")
    assert ended.code == 0
    named = {line.strip().split("  ")[0].split()[0] for line in ended.out.splitlines() if line.startswith("  ")}
    of_series = ({name.split()[0] for name in table} for table in (SOURCES, FORECASTERS, MASKS, SCALINGS))
    tables = (samplers.ALL, samplers.ADAPTIVE, process.ALL, GRIDS, figures.GALLERY, COLD, METHODS, operator.usage(), *of_series)
    assert named == {*config.bundled(), *(name for table in tables for name in table)}
    assert all(len(line.split()) > 2 for line in ended.out.splitlines() if line.startswith("  "))


def test_an_interrupt_outside_of_training_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(config, "bundled", interrupt)
    ended = run("list")
    assert (ended.code, ended.err) == (1, "ornstein: error: interrupted\n")


def test_a_bug_shows_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug() -> list[str]:
        raise ZeroDivisionError

    monkeypatch.setattr(config, "bundled", bug)
    with pytest.raises(ZeroDivisionError):
        run("list")


# --- in a process of its own


def test_help_is_quick_and_the_module_can_be_run() -> None:
    command = Path(sys.executable).with_name("ornstein")
    seconds = []
    for _ in range(3):
        begun = time.monotonic()
        ended = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.monotonic() - begun)
        if seconds[-1] < 2:
            break  # a busy machine has two more chances
    assert min(seconds) < 2
    assert all(name in ended.stdout for name in ("train", "sample", "evaluate", "nll", "info", "list"))
    same = subprocess.run([sys.executable, "-m", "ornstein", "--help"], capture_output=True, text=True, check=True)
    assert same.stdout == ended.stdout
    wrong = subprocess.run([command, "train", "digitz"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("ornstein: error: recipe='digitz'")
    assert wrong.stderr.count("\n") == 1


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, ornstein.cli; print([m for m in ('torch', 'numpy', 'lightning', 'pydantic', 'yaml') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
