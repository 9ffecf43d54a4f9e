"""Recipes: what is wrong is told in one line, what is right survives YAML, what is bundled can be built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ornstein import config, model
from ornstein.files import InputError
from ornstein.image.classifier import ClassifierSystem
from ornstein.image.cold import ColdSystem
from ornstein.image.data import from_arrays
from ornstein.losses import MatchingLoss
from ornstein.noise import Noise
from ornstein.system import System
from ornstein.vector import load_table

SHAPES = {
    "digits": (1, 8), "mnist": (1, 28), "faces": (1, 32), "flowers": (3, 32), "cifar10": (3, 32), "cifar10-small": (3, 32),
    "ncsn-digits": (1, 8), "ncsn-mnist": (1, 28),
    "superres-digits": (1, 8), "superres-mnist": (1, 28), "superres-faces": (1, 32),
}  # fmt: skip
CLASSIFIERS = {"classifier": (1, 8), "classifier-mnist": (1, 28)}
COLD = {"cold-digits": (1, 8), "cold-mnist": (1, 28), "cold-mnist-inpaint": (1, 28)}
SERIES = {"timegrad", "sssd", "csdi"}
TABLES = {
    "swiss_roll", "eight_gaussians", "moons", "pinwheel", "checkerboard", "points", "dpm-swiss_roll", "dpm-heartbeat",
}  # fmt: skip


def refusal(settings: list[str]) -> str:
    with pytest.raises(InputError) as caught:
        config.override(config.Recipe(), settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.steps", "no '='"),
        ("train.stepz=3", "'train.stepz' is not a key"),
        ("nonsense=3", "'nonsense' is not a key"),
        ("train.steps.more=3", "is not a key"),
        ("=3", "is not a key"),
        ("train.steps=0", "greater than or equal to 1"),
        ("train.steps=many", "train.steps='many'"),
        ("train.learning_rate=.nan", "train.learning_rate"),
        ("train=5", "train=5"),
        ("train.steps=[1", "not a YAML value"),
        ("description=!!python/object/apply:os.getcwd []", "not a YAML value"),
        ("data.channels=2", "data.channels=2"),
        ("condition=colour", "condition='colour'"),
        ("net.name=resnet", "net.name='resnet'"),
        ("format=2", "format=2"),
        ("data={source: digits, sise: 3}", "data.sise=3 is no key"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, words: str) -> None:
    assert words in refusal([setting])


def test_settings_are_applied_in_order_and_leave_the_recipe_alone() -> None:
    before = config.Recipe()
    after = config.override(before, ["train.steps=7", "train.steps=9", "net.options.width=8", "data.source=a b"])
    assert (after.train.steps, after.net.options, after.data.source) == (9, {"width": 8}, "a b")
    assert before == config.Recipe()


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("2.5E+1", 25.0), ("0.1", 0.1), ("3", 3), ("true", True), ("x", "x")]
)
def test_numbers_with_an_exponent_are_numbers(text: str, value: object) -> None:
    changed = config.override(config.Recipe(), [f"net.options.dropout={text}"]).net.options["dropout"]
    assert changed == value
    assert type(changed) is type(value)


@given(steps=st.integers(1, 10**9), rate=st.floats(1e-9, 1.0), text=st.text(max_size=20), flip=st.booleans())
def test_yaml_round_trip_of_any_recipe(
    tmp_path_factory: pytest.TempPathFactory, steps: int, rate: float, text: str, flip: bool
) -> None:
    recipe = config.Recipe(
        description=text,
        data=config.DataConfig(flip=flip),
        train=config.TrainConfig(steps=steps, learning_rate=rate),
    )
    path = tmp_path_factory.mktemp("yaml") / "recipe.yaml"
    path.write_text(config.dump(recipe), encoding="utf-8")
    assert config.load_recipe(str(path)) == recipe


def test_every_bundled_recipe_has_a_shape_here() -> None:
    assert set(config.bundled()) == set(SHAPES) | set(CLASSIFIERS) | set(COLD) | TABLES | SERIES


@pytest.mark.parametrize("name", config.bundled())
def test_bundled_recipes_survive_yaml(name: str, tmp_path: Path) -> None:
    recipe = config.load_recipe(name)
    path = tmp_path / "recipe.yaml"
    path.write_text(config.dump(recipe), encoding="utf-8")
    assert config.load_recipe(str(path)) == recipe
    assert recipe.description


@pytest.mark.parametrize("name", sorted(TABLES))
def test_bundled_recipes_of_tables_build_a_system_that_learns_and_samples(name: str) -> None:
    recipe = config.override(config.load_recipe(name), ["net.options.width=8", "net.options.depth=1"])
    data = load_table("swiss_roll" if name == "points" else recipe.data.source, rows=16)
    system = model.build(recipe, data.contract)
    losses = system.loss(data.batch(range(4)), Noise(0))
    assert losses.shape == (4,)
    assert bool(losses.isfinite().all())
    if name != "dpm-heartbeat":  # whose chain has 2000 steps
        assert system.sample(3, noise=Noise(0)).shape == (3, *data.contract.shape)


@pytest.mark.parametrize("objective", ["implicit", "sliced", "sliced_vr", "finite_difference"])
def test_score_matching_is_a_loss_of_recipes(objective: str) -> None:
    settings = ["net.options.width=8", "net.options.depth=1", f"loss.objective={objective}", "loss.slices=2"]
    recipe = config.override(config.load_recipe("swiss_roll"), settings)
    data = load_table("swiss_roll", rows=16)
    system = model.build(recipe, data.contract)
    assert isinstance(system.loss_function, MatchingLoss)
    assert (system.loss_function.objective, system.loss_function.slices) == (objective, 2)
    assert bool(system.loss(data.batch(range(4)), Noise(0)).isfinite().all())
    key, value = ("weighting", "edm") if objective == "sliced" else ("directions", "unit_sphere")
    wrong = config.override(recipe, [f"loss.{key}={value}"])
    with pytest.raises(InputError, match=f"{key}='{value}'"):
        model.build(wrong, data.contract)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_bundled_recipes_build_a_system_that_learns_and_samples(name: str) -> None:
    channels, side = SHAPES[name]
    recipe = config.override(config.load_recipe(name), ["net.options.width=8"])
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, channels, side, side)).astype(np.uint8)
    data = from_arrays(images, np.arange(8) % 4)
    system = model.build(recipe, data.contract)
    losses = system.loss(data.batch(range(4)), Noise(0))
    assert losses.shape == (4,)
    assert bool(losses.isfinite().all())
    assert isinstance(system, System)
    cond = system.examples(2, data.batch(range(2))["x"])
    assert system.sample(2, cond=cond, sampler=2, noise=Noise(0)).shape == (2, channels, side, side)
    assert system.plan is not None
    assert system.plan.calls <= recipe.sampler.calls
    assert system.flip == recipe.data.flip


@pytest.mark.parametrize("name", sorted(COLD))
def test_bundled_cold_recipes_build_a_system_that_learns_and_samples(name: str) -> None:
    channels, side = COLD[name]
    recipe = config.override(config.load_recipe(name), ["net.options.width=8"])
    images = np.random.default_rng(0).integers(0, 256, (40, channels, side, side)).astype(np.uint8)
    data = from_arrays(images)
    system = model.build(recipe, data.contract)
    assert isinstance(system, ColdSystem)
    assert bool(system.loss(data.batch(range(4)), Noise(0)).isfinite().all())
    system.begin(data.batch(range(40))["x"], Noise(0))
    assert system.sample(2, sampler=2, noise=Noise(0)).shape == (2, channels, side, side)
    assert system.sampler.calls == recipe.sampler.calls == system.process.steps


@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
def test_bundled_classifiers_build_a_system_that_learns(name: str) -> None:
    channels, side = CLASSIFIERS[name]
    images = np.random.default_rng(0).integers(0, 256, (8, channels, side, side)).astype(np.uint8)
    data = from_arrays(images, np.arange(8) % 4)
    system = model.build(config.override(config.load_recipe(name), ["net.options.width=8"]), data.contract)
    assert isinstance(system, ClassifierSystem)
    assert bool(system.loss(data.batch(range(4)), Noise(0)).isfinite().all())
    assert system.log_prob(torch.zeros(3, channels, side, side), 0.5).shape == (3, 4)


def test_building_leaves_the_global_generator_alone() -> None:
    contract = from_arrays(np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8)).astype(np.uint8)).contract
    recipe = config.override(config.Recipe(), ["net.options.width=8"])
    before = torch.get_rng_state()
    first, second = model.build(recipe, contract), model.build(recipe, contract)
    assert torch.equal(before, torch.get_rng_state())
    other = model.build(config.override(recipe, ["train.seed=1"]), contract)
    weights = [next(iter(s.net.parameters())) for s in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["condition=label"], "no labels"),
        (["process.name=foo"], "process.name='foo'"),
        (["process.options.foo=1"], "process.options of edm"),
        (["predicts=foo"], "predicts='foo'"),
        (["loss.weighting=foo"], "weighting='foo'"),
        (["loss.times=foo"], "distribution='foo'"),
        (["loss.times=discrete"], "needs process: {name: chain}"),
        (["loss.hybrid=0.001"], "needs learned_variance"),
        (["sampler.name=foo"], "sampler='foo'"),
        (["sampler.grid=foo"], "grid='foo'"),
        (["sampler.options.foo=1"], "sampler options"),
        (["net.options.foo=1"], "net.options"),
        (["net.options.width=wide"], "net.options"),
    ],
)
def test_a_recipe_that_cannot_be_built_is_refused_in_one_line(settings: list[str], words: str) -> None:
    contract = from_arrays(np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8)).astype(np.uint8)).contract
    with pytest.raises(InputError) as caught:
        model.build(config.override(config.Recipe(), settings), contract)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_clipping_needs_declared_bounds() -> None:
    contract = from_arrays(np.random.default_rng(0).standard_normal((4, 1, 8, 8)).astype(np.float32)).contract
    with pytest.raises(InputError, match="declare no bounds"):
        model.build(config.override(config.Recipe(), ["sampler.clip=true"]), contract)


def test_files_and_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'digitz' is not one of .*digits"):
        config.load_recipe("digitz")
    with pytest.raises(InputError, match=r"none\.yaml"):
        config.load_recipe(str(tmp_path / "none.yaml"))
    path = tmp_path / "one.yml"
    path.write_text(yaml.safe_dump({"train": {"stepz": 3}}))
    with pytest.raises(InputError, match=r"one\.yml: train\.stepz=3 is no key"):
        config.load_recipe(str(path))
    path.write_text("")
    assert config.load_recipe(str(path)) == config.Recipe()
