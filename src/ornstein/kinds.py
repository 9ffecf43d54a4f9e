"""What `system:` in a recipe may say: for each kind how its data are loaded, its open choices made, and its system built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ornstein.config import DataConfig, Recipe
from ornstein.files import InputError
from ornstein.image import classifier, cold, ddpm, ncsn
from ornstein.image import describe as describe_images
from ornstein.image.classifier import ClassifierSystem
from ornstein.image.cold import ColdSystem
from ornstein.image.data import ImageData, load_images
from ornstein.system import System
from ornstein.vector import DPMSystem, Table, diffusion, dpm_system, load_table
from ornstein.vector import describe as describe_table

Dataset = ImageData | Table
Model = System | ColdSystem | ClassifierSystem | DPMSystem
"""What can be trained, saved and sampled: `contract`, `net`, `loss` and `sample` are all that this asks."""
_OF_IMAGES = ("size", "channels", "image_key", "label_key", "split", "flip")
_OF_LAWS = ("rows", "noise_std")


def _images(config: DataConfig, source: str) -> ImageData:
    _refuse(config, _OF_LAWS, "images")
    return load_images(
        source,
        size=config.size,
        channels=config.channels,
        crop=config.crop,
        image_key=config.image_key,
        label_key=config.label_key,
        split=config.split,
        strict=config.strict,
    )


def _table(config: DataConfig, source: str) -> Table:
    _refuse(config, _OF_IMAGES, "tables")
    return load_table(source, rows=config.rows, std=config.noise_std, seed=config.seed)


def _refuse(config: DataConfig, names: tuple[str, ...], kind: str) -> None:
    for name in names:
        if getattr(config, name) != DataConfig.model_fields[name].default:
            raise InputError(f"data.{name}={getattr(config, name)!r} says nothing about {kind}; remove it")


def _as_is(recipe: Recipe, data: Dataset) -> tuple[Recipe, list[str]]:
    return recipe, []


@dataclass(frozen=True)
class Kind:
    """One kind of system: `load(config, source)` its data, `prepare(recipe, data)` the recipe with choices made and their
    reasons, `build(recipe, contract, process)` the system, freshly initialised."""

    load: Callable[[DataConfig, str], Dataset]
    prepare: Callable[..., tuple[Recipe, list[str]]]
    build: Callable[..., Model]


KINDS: dict[str, Kind] = {
    "image": Kind(_images, _as_is, ddpm.initialise),
    "ncsn": Kind(_images, ncsn.prepare, ddpm.initialise),
    "cold": Kind(_images, _as_is, cold.initialise),
    "classifier": Kind(_images, classifier.prepare, classifier.initialise),
    "vector": Kind(_table, _as_is, diffusion.initialise),
    "dpm2015": Kind(_table, _as_is, dpm_system.initialise),
}
"""By the name that `system:` in a recipe has."""


def load_data(recipe: Recipe, source: str | None = None) -> Dataset:
    """The data of a recipe, or of another source brought to the same form."""
    return KINDS[recipe.system].load(recipe.data, source or recipe.data.source)


def describe(data: Dataset) -> str:
    """One paragraph about data for the user: count, shape, range, transform."""
    return describe_images(data) if isinstance(data, ImageData) else describe_table(data)


def with_denoiser(model: Model, wanted: str) -> System:
    """The model, if it has a denoiser; InputError that says what it was `wanted` for."""
    if isinstance(model, System):
        return model
    why = "a dpm2015 model has the steps of its chain alone"
    if isinstance(model, ColdSystem):
        why = "a cold model undoes a degradation without noise"
    if isinstance(model, ClassifierSystem):
        why = "a classifier guides another one (--classifier)"
    raise InputError(f"{wanted} needs a model with a denoiser at every noise level; {why}")
