"""The classifier as a system: its loss, training, resuming, saving, measuring, guiding, and what the commands refuse."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from ornstein import config, model
from ornstein.config import Recipe
from ornstein.contract import Contract
from ornstein.evaluate import evaluate, likelihood
from ornstein.files import InputError
from ornstein.guidance import ClassifierGuided
from ornstein.image import classifier
from ornstein.image.classifier import LEVELS, ClassifierSystem, accuracy_by_level, levels_of
from ornstein.image.data import ImageData, from_arrays
from ornstein.metrics import Pixels, read_records
from ornstein.noise import Noise
from ornstein.process import EDM, VP, chain
from ornstein.system import System
from tiny import Run

QUICK = (
    "net.options={width: 16, multipliers: [1, 2], blocks: 1, middle: 0, attention: [false, false], head_width: 8}",
    "train={steps: 60, batch: 64, learning_rate: 1.0e-2, warmup: 4, ema: 0.9, validate_every: 30}",
)


def recipe(*settings: str) -> Recipe:
    """The bundled classifier with a tiny network and sixty steps of training, changed."""
    return config.override(config.load_recipe("classifier"), [*QUICK, *settings])


def fresh(*settings: str) -> tuple[ClassifierSystem, ImageData]:
    chosen = recipe(*settings)
    data, _ = tiny.digits(chosen)
    system = model.build(chosen, data.contract)
    assert isinstance(system, ClassifierSystem)
    with torch.no_grad():  # so that logits are not all zero
        system.net.pool.output.weight.normal_(generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr, operator]
    return system, data


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("classifier") / "model"
    tiny.trained(recipe(), out)
    return out


def loaded(directory: Path) -> ClassifierSystem:
    system = model.load(directory)
    assert isinstance(system, ClassifierSystem)
    return system


# --- the loss


def test_the_loss_is_minus_the_log_probability_of_the_own_class() -> None:
    system, data = fresh()
    batch, noise = data.batch(range(6)), Noise(3)
    found = system.loss(batch, noise, step=4, first=2, total=64)
    t, _ = system.times.draw(system.process, 6, noise, step=4, first=2, total=64)
    x0 = system.contract.encode(batch["x"])
    x_t = system.process.corrupt(x0, t, noise.normal(x0.shape, stream="train", step=4, first=2))
    log_prob = system.log_prob(x_t, t).detach()
    expected = [-float(log_prob[k, label]) for k, label in enumerate(batch["label"].tolist())]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(log_prob.exp().sum(1), torch.ones(6))
    # a part of the batch alone has the same losses
    part = system.loss(data.batch(range(2, 4)), noise, step=4, first=4, total=64)
    torch.testing.assert_close(part, found[2:4], rtol=1e-5, atol=1e-6)
    # before training all classes are as likely
    untrained = model.build(recipe(), data.contract)
    assert untrained.loss(batch, noise).tolist() == pytest.approx([math.log(10)] * 6, rel=1e-6)


def test_flipping_mirrors_half_of_the_images() -> None:
    system, data = fresh()
    flipping = model.build(recipe("data.flip=true"), data.contract)
    assert isinstance(flipping, ClassifierSystem)
    flipping.net.load_state_dict(system.net.state_dict())
    batch = data.batch(range(32))
    plain, mirrored = (s.loss(batch, Noise(0)) for s in (system, flipping))
    turned = system.loss({"x": batch["x"].flip(-1), "label": batch["label"]}, Noise(0))
    as_plain, as_turned = torch.isclose(mirrored, plain), torch.isclose(mirrored, turned)
    assert bool((as_plain | as_turned).all())
    assert 8 <= int(as_turned.sum()) <= 24


# --- training, saving, resuming


def test_training_teaches_and_the_directory_holds_it_all(trained: Path) -> None:
    system, chosen = loaded(trained), recipe()
    _, held = tiny.digits(chosen)
    records = accuracy_by_level(system, held)
    by_level = {record.note: record for record in records}
    assert by_level["sigma/alpha = 0.01"].value > 0.35
    assert by_level["sigma/alpha = 30"].value < 0.2
    assert all(r.interval is not None and 0 <= r.interval[0] < r.value < r.interval[1] <= 1 for r in records if 0 < r.value < 1)
    assert all(record.n == len(held) for record in records)
    assert system.process == EDM()
    assert system.classifier.sigma_data == pytest.approx(system.contract.std)
    assert not any(p.requires_grad for p in system.net.parameters())
    assert not system.net.training
    # what is measured does not hang on how it is divided
    again = accuracy_by_level(system, held, batch=50)
    assert [r.value for r in again] == pytest.approx([r.value for r in records], abs=1.1 / len(held))


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path: Path) -> None:
    small = ("net.options.width=8", "train.batch=16")
    tiny.trained(recipe(*small, "train.steps=8"), tmp_path / "whole")
    tiny.trained(recipe(*small, "train.steps=3"), tmp_path / "parts")
    tiny.trained(recipe(*small, "train.steps=8"), tmp_path / "parts", resume=True)
    before, after = loaded(tmp_path / "whole"), loaded(tmp_path / "parts")
    for a, b in zip(before.net.parameters(), after.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)
    start = model.build(recipe(*small), before.contract)
    assert any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(before.net.parameters(), start.net.parameters(), strict=True))


def test_an_own_process_is_not_passed_off_as_the_recipes(tmp_path: Path) -> None:
    data, _ = tiny.digits(recipe())
    model.save(tmp_path / "m", recipe(), model.build(recipe(), data.contract, VP()))
    with pytest.raises(InputError, match="process of its author's own"):
        model.load(tmp_path / "m")
    system = model.load(tmp_path / "m", process=VP())
    assert isinstance(system, ClassifierSystem)
    assert system.process == VP()


# --- levels


@pytest.mark.parametrize("process", [EDM(), VP(), chain(steps=50)], ids=["edm", "vp", "chain"])
def test_levels_are_those_that_the_process_reaches(process: VP) -> None:
    times = levels_of(process)
    low, high = (float(process.log_ratio(t).exp()) for t in (process.t_min, 1.0))
    assert list(times) == [level for level in LEVELS if low <= level <= high]
    assert len(times) > 3
    for level, t in times.items():
        alpha, sigma = process.moments(t)
        assert float(sigma / alpha) == pytest.approx(level, rel=1e-5)


# --- guiding


def diffusion(*settings: str) -> System:
    chosen = tiny.recipe("condition_dropout=0.1", *settings)
    data, _ = tiny.digits(chosen)
    system = model.build(chosen, data.contract)
    assert isinstance(system, System)
    return system


def test_it_guides_a_model_of_the_same_data_on_any_process(trained: Path) -> None:
    guide = loaded(trained)
    for settings in ((), ("condition=null",), tiny.CHAIN):
        system = diffusion(*settings)
        made = guide.guide(2.0, system.contract)(system.denoiser)
        assert isinstance(made, ClassifierGuided)
        x = Noise(0).normal((4, 1, 8, 8))
        cond = {"label": torch.tensor([0, 3, 3, 9])}
        t = 0.5
        shift = made(x, t, cond).x0 - system.denoiser(x, t).x0
        assert float(shift.detach().abs().amax((1, 2, 3)).min()) > 0
        alone = made(x[2:3], t, {"label": torch.tensor([3])}).x0 - system.denoiser(x[2:3], t).x0
        torch.testing.assert_close(alone, shift[2:3], rtol=1e-3, atol=1e-5)
    told = guide.guide(1.0, system.contract, told=True)(system.denoiser)
    assert isinstance(told, ClassifierGuided)
    assert told.told


def test_samples_become_what_is_asked(trained: Path) -> None:
    guide, system = loaded(trained), diffusion("sampler={name: ddim, calls: 8}")
    asked = torch.arange(40) % 10
    clean = 0.1
    t = float(guide.process.time_of(torch.tensor(math.log(clean), dtype=torch.float64)))

    def agreed(scale: float) -> float:
        drawn = system.sample(40, cond={"label": asked.tolist()}, guidance=guide.guide(scale, system.contract), noise=Noise(1))
        guess = guide.log_prob(system.contract.encode(drawn), t).argmax(1)
        return float((guess == asked).double().mean())

    # the model is untrained: what the classifier sees in its samples comes from the classifier
    assert agreed(0.0) < 0.3
    assert agreed(3.0) > 0.45


def test_it_refuses_to_guide_models_of_other_data(trained: Path) -> None:
    guide, other = loaded(trained), diffusion().contract
    rng = np.random.default_rng(0)
    for images, labels, words in (
        (rng.integers(0, 256, (8, 1, 8, 8)).astype(np.uint8), None, "data of shift"),
        (rng.integers(0, 256, (8, 3, 8, 8)).astype(np.uint8), None, "data of shape"),
    ):
        with pytest.raises(InputError, match=words):
            guide.guide(1.0, from_arrays(images, labels).contract)
    fewer = Contract(**{**other.__dict__, "classes": tuple("abcdefghij")})
    with pytest.raises(InputError, match=r"knows the classes 0, 1, .* the model a, b"):
        guide.guide(1.0, fewer)
    unlabelled = Contract(**{**other.__dict__, "classes": None})
    assert callable(guide.guide(1.0, unlabelled))


# --- recipes and commands


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("condition=label", "condition='label' says nothing to a classifier; set it to null"),
        ("predicts=eps", "predicts='eps' says nothing to a classifier; set it to 'edm'"),
        ("learned_variance=true", "learned_variance=True says nothing to a classifier"),
        ("sampler.calls=7", "says nothing to a classifier; leave it out"),
        ("loss.weighting=edm", "whose loss has times, mean, std, low_discrepancy alone"),
        ("loss.loss_aware=true", "whose loss has times"),
        ("net.level_free=true", "whose net has options alone"),
        ("net.options.widht=8", "net.options"),
        ("loss.times=foo", "distribution='foo'"),
        ("loss.times=discrete", "needs the levels of a Chain"),
        ("process.name=foo", "process.name='foo'"),
    ],
)
def test_recipes_that_ask_for_what_is_not_there(setting: str, words: str) -> None:
    data, _ = tiny.digits(recipe())
    with pytest.raises(InputError) as caught:
        model.build(recipe(setting), data.contract)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_without_labels_are_one_line(run: Run, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "bare.npz", images=images)
    np.savez(tmp_path / "one.npz", images=images, labels=np.zeros(20, np.int64))
    for name, words in (("bare", "no labels"), ("one", "one class")):
        ended = run("train", "classifier", "--data", tmp_path / f"{name}.npz", "--out", name)
        assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
        assert words in ended.err
        assert not Path(name).exists()
    with pytest.raises(InputError, match="no labels"):
        classifier.initialise(recipe(), from_arrays(images).contract)


def test_what_needs_a_denoiser_refuses_a_classifier(trained: Path, run: Run) -> None:
    for words in (
        ("sample", trained),
        ("sample", trained, "--calls", 4),
        ("sample", trained, "--precision", "float32"),
        ("sample", trained, "--cond", "label=3"),
        ("calibrate", trained, "--calls", 4),
        ("nll", trained),
        ("nll", trained, "--by", "ode"),
        ("evaluate", trained, "--calls", 4),
        ("evaluate", trained, "--extractor", "pixels"),
    ):
        ended = run(*words)
        assert (ended.code, ended.err.count("\n")) == (2, 1), words
        assert "classifier" in ended.err, words


def test_training_and_evaluating_by_command(run: Run) -> None:
    quick = [part for setting in QUICK for part in ("--set", setting)]
    ended = run("train", "classifier", *quick, "--set", "train.steps=3", "--out", "m", "--quiet")
    assert ended.code == 0, ended.err
    assert Path("m/accuracy.png").stat().st_size > 5000
    card = Path("m/card.md").read_text()
    assert "![accuracy](accuracy.png)" in card
    assert "sigma/alpha = 0.3" in card
    ended = run("evaluate", "m", "-n", 100, "--quiet")
    assert ended.code == 0, ended.err
    assert ended.out.count("accuracy") == len(LEVELS)
    records = read_records("m/metrics.json")
    assert {record.metric for record in records} == {"accuracy"}
    assert {record.n for record in records} == {100}
    assert "classes: 0, 1" in run("info", "m").out


def test_in_python_too_it_is_measured_by_its_accuracy_alone(trained: Path) -> None:
    system, (data, held) = loaded(trained), tiny.digits(recipe())
    assert [r.metric for r in evaluate(system, data, held, n=50)] == ["accuracy"] * len(LEVELS)
    with pytest.raises(InputError, match="extractor says nothing to a classifier"):
        evaluate(system, data, held, extractor=Pixels())
    with pytest.raises(InputError, match="the likelihood needs a model with a denoiser"):
        likelihood(system, data, held)
    with pytest.raises(InputError, match="draws none"):
        system.sample(3, noise=Noise(0))
