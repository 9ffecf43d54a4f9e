"""`ornstein sample` under guidance: what the options ask for, what a call costs, and wishes that contradict one another."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from ornstein import config, model
from ornstein.files import InputError
from ornstein.guidance import Autoguidance, ClassifierFree, ClassifierGuided, Guidance
from ornstein.image.classifier import ClassifierSystem
from ornstein.kinds import with_denoiser
from ornstein.noise import Noise
from ornstein.system import System
from tiny import Ended, Run

QUICK = ("-n", 3, "--cond", "label=1,2,3", "--quiet", "--out", "x.npz")


def refused(ended: Ended, *words: str) -> None:
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1), ended
    for word in words:
        assert word in ended.err


def written(folder: Path, *settings: str) -> Path:
    """The directory of an untrained model of the digits."""
    recipe = tiny.recipe(*settings)
    training, _ = tiny.digits(recipe)
    system = model.build(recipe, training.contract)
    with torch.no_grad():
        for k, parameter in enumerate(system.net.parameters()):  # what starts at zero guides nowhere
            parameter.add_(0.05 * Noise(k).normal((1, *parameter.shape))[0])
    model.save(folder, recipe, system)
    return folder


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("others")
    classifier = config.override(config.Recipe(), [
        "system=classifier", "data={source: digits, held_out: 0.2}", "net.options={width: 8, multipliers: [1], blocks: 1}",
        "loss={times: log_normal, mean: 0.0, std: 1.5}",
    ])  # fmt: skip
    training, _ = tiny.digits(classifier)
    made = model.build(classifier, training.contract)
    with torch.no_grad():
        for k, parameter in enumerate(made.net.parameters()):
            parameter.add_(0.1 * Noise(k).normal((1, *parameter.shape))[0])
    model.save(root / "classifier", classifier, made)
    return {
        "weaker": written(root / "weaker"),
        "free": written(root / "free", "condition=null"),
        "chain": written(root / "chain", *tiny.CHAIN),
        "undropped": written(root / "undropped", "condition_dropout=0"),
        "small": written(root / "small", "data={source: digits, held_out: 0.2, size: 4}"),
        "classifier": root / "classifier",
    }


def drawn(system: System, guidance: Guidance, labels: list[int] | None = None) -> np.ndarray:
    x = system.sample(3, cond={"label": labels or [1, 2, 3]}, guidance=guidance, noise=Noise(0))
    return system.contract.quantise(x)


def test_the_options_are_those_of_the_library(tiny_model: Path, others: dict[str, Path], run: Run) -> None:
    system = with_denoiser(model.load(tiny_model), "")
    weaker = with_denoiser(model.load(others["weaker"]), "").denoiser
    away = {"label": torch.tensor([5])}
    judge = model.load(others["classifier"])
    assert isinstance(judge, ClassifierSystem)
    for options, guide, said in (
        (("--guidance", 2), 2.0, "5 calls each, 10 network evaluations"),
        (
            ("--guidance", 2, "--guidance-interval", "0.3,5"), partial(ClassifierFree, scale=2.0, interval=(0.3, 5.0)),
            "5 calls each, 7 network evaluations",
        ),
        (("--guidance", 3, "--rescale", 0.7), partial(ClassifierFree, scale=3.0, rescale=0.7), "10 network evaluations"),
        (("--guidance", 2, "--negative", "label=5"), partial(ClassifierFree, scale=2.0, negative=away), "10 network"),
        (("--guidance", 2, "--weaker", others["weaker"]), partial(Autoguidance, weaker=weaker, scale=2.0), "10 network"),
        (
            ("--classifier", others["classifier"], "--guidance", 4), judge.guide(4.0, system.contract),
            "5 calls each, each with a gradient of the classifier\n",
        ),
    ):  # fmt: skip
        ended = run("sample", tiny_model, *QUICK, *options)
        assert ended.code == 0, ended.err
        assert said in ended.out, (options, ended.out)
        assert np.array_equal(np.load("x.npz")["samples"], drawn(system, guide)), options
    assert run("sample", tiny_model, *QUICK).out.endswith("5 calls each\n")
    assert "of up to 2 network evaluations" in run("sample", tiny_model, *QUICK, "--guidance", 2, "--corrector", 1).out


def test_a_classifier_guides_a_model_without_condition(others: dict[str, Path], run: Run) -> None:
    ended = run("sample", others["free"], *QUICK, "--classifier", others["classifier"])
    assert ended.code == 0, ended.err
    system = with_denoiser(model.load(others["free"]), "")
    judge = model.load(others["classifier"])
    assert isinstance(judge, ClassifierSystem)
    one, two = (drawn(system, judge.guide(6.0, system.contract), labels) for labels in ([1, 1, 1], [8, 8, 8]))
    assert not np.array_equal(one, two)
    refused(run("sample", others["free"], *QUICK), "trained without a condition")
    refused(
        run("sample", others["free"], "-n", 2, "--cond", "label=10", "--classifier", others["classifier"]),
        "label='10' is not one",
    )
    refused(run("sample", others["free"], "-n", 2, "--classifier", others["classifier"]), "needs a condition to guide to")
    unnamed = System(**{**vars(system), "contract": model.build(tiny.recipe("condition=null"), system.contract).contract})
    unnamed.contract = type(system.contract)(**{**vars(system.contract), "classes": None})
    guide = partial(ClassifierGuided, classifier=judge.classifier, scale=6.0)
    assert np.array_equal(drawn(unnamed, guide, [1, 1, 1]), one)
    with pytest.raises(InputError, match="knows 0 to 9"):
        drawn(unnamed, guide, [1, 10, 1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--guidance-interval", "0.3,5"), "--guidance-interval changes nothing at --guidance 1"),
        (("--weaker", "{weaker}"), "--weaker changes nothing at --guidance 1"),
        (("--guidance", 2, "--guidance-interval", "5,0.3"), "interval=(5.0, 0.3)"),
        (("--guidance", 2, "--guidance-interval", "0.3"), "--guidance-interval '0.3' is not two noise-to-signal ratios"),
        (("--guidance", 2, "--rescale", 1.5), "rescale=1.5 must lie in (0, 1]"),
        (("--guidance", 2, "--rescale", 0), "rescale=0.0 must lie in (0, 1]"),
        (("--guidance", "nan", "--rescale", 0.5), "scale=nan"),
        (("--guidance", "inf"), "guidance=inf must be a finite number"),
        (("--guidance", 2, "--negative", "5"), "--negative '5' is not name=value"),
        (("--guidance", 2, "--negative", "label=10"), "label='10' is not one of the 10 classes"),
        (("--guidance", 2, "--negative", "colour=1"), "takes only 'label'"),
        (("--guidance", 2, "--negative", "label=5", "--weaker", "{weaker}"), "--negative does not go with --weaker"),
        (("--guidance", 2, "--rescale", 0.7, "--classifier", "{classifier}"), "--rescale does not go with --classifier"),
        (("--guidance", 2, "--weaker", "{weaker}", "--classifier", "{classifier}"), "--weaker does not go with --classifier"),
        (("--guidance", 2, "--weaker", "{small}"), "is of data of shape (1, 4, 4), the model of (1, 8, 8)"),
        (("--guidance", 2, "--weaker", "{free}"), "takes another condition (None) or other classes"),
        (("--guidance", 2, "--weaker", "{chain}"), "denoiser of another process"),
        (("--guidance", 2, "--weaker", "{classifier}"), "a classifier guides another one (--classifier)"),
        (("--guidance", 2, "--weaker", "nowhere"), "'nowhere' is not a directory"),
        (("--classifier", "{weaker}"), "is no classifier of noisy data"),
    ],
)
def test_contradictions_are_one_line(
    options: tuple[object, ...], words: str, tiny_model: Path, others: dict[str, Path], run: Run
) -> None:
    filled = [str(option).format(**others) for option in options]
    refused(run("sample", tiny_model, *QUICK, *filled), words)
    assert list(Path().iterdir()) == []


def test_a_model_that_cannot_be_guided_so_says_why(tiny_model: Path, others: dict[str, Path], run: Run) -> None:
    refused(run("sample", tiny_model, "-n", 2, "--guidance", 2, "--rescale", 0.5), "guidance needs a condition to guide to")
    refused(
        run("sample", others["undropped"], *QUICK, "--guidance", 2), "guidance=2 needs a model trained with condition_dropout"
    )
    refused(
        run("sample", others["undropped"], *QUICK, "--classifier", others["classifier"]),
        "guidance by ClassifierGuided needs a model trained with condition_dropout",
    )
    # away from a class, or from a weaker model, no unconditional branch is asked
    for options in (("--negative", "label=5"), ("--weaker", others["weaker"])):
        assert run("sample", others["undropped"], *QUICK, "--guidance", 2, *options).code == 0
    assert run("sample", tiny_model, "-n", 2, "--quiet", "--guidance", 2, "--negative", "label=5").code == 0
    refused(run("sample", others["small"], *QUICK, "--classifier", others["classifier"]), "--classifier", "shape")


def test_guides_in_python(tiny_model: Path) -> None:
    system = with_denoiser(model.load(tiny_model), "")
    same = drawn(system, 2.0)
    assert np.array_equal(drawn(system, partial(ClassifierFree, scale=2.0)), same)
    assert np.array_equal(drawn(system, lambda denoiser: denoiser), drawn(system, 1.0))
    with pytest.raises(InputError, match="guidance: scale=inf must be a finite number"):
        drawn(system, partial(ClassifierFree, scale=float("inf")))
    with pytest.raises(InputError, match="needs a condition to guide to"):
        system.sample(2, guidance=partial(ClassifierFree, scale=2.0), noise=Noise(0))
