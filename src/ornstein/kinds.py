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
from ornstein.sequence import choose, csdi, sssd, timegrad
from ornstein.sequence import describe as describe_series
from ornstein.sequence.imputer import ImputerSystem
from ornstein.sequence.timegrad import TimeGradSystem
from ornstein.sequence.windows import SeriesData
from ornstein.system import System
from ornstein.vector import DPMSystem, Table, diffusion, dpm_system, load_table
from ornstein.vector import describe as describe_table

Dataset = ImageData | Table | SeriesData
Model = System | ColdSystem | ClassifierSystem | DPMSystem | TimeGradSystem | ImputerSystem
"""What can be trained and saved: `contract`, `net` and `loss` are all that this asks."""
OfSeries = TimeGradSystem | ImputerSystem
"""What draws steps of series given others: it cannot `sample` without them."""
_OF_IMAGES = ("size", "channels", "image_key", "label_key", "split", "flip")
_OF_LAWS = ("rows", "noise_std")
_OF_SERIES = ("time", "item", "value", "columns", "future", "static")


def _images(recipe: Recipe, source: str) -> ImageData:
    config = recipe.data
    _refuse(recipe, (*_OF_LAWS, *_OF_SERIES), "images")
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


def _table(recipe: Recipe, source: str) -> Table:
    config = recipe.data
    _refuse(recipe, (*_OF_IMAGES, *_OF_SERIES), "tables")
    return load_table(source, rows=config.rows, std=config.noise_std, seed=config.seed)


def _series(recipe: Recipe, source: str) -> SeriesData:
    _refuse(recipe, (*_OF_IMAGES, *_OF_LAWS), "series", sequence=True)
    return choose.load(recipe, source)


def _refuse(recipe: Recipe, names: tuple[str, ...], kind: str, *, sequence: bool = False) -> None:
    for name in names:
        if getattr(recipe.data, name) != DataConfig.model_fields[name].default:
            raise InputError(f"data.{name}={getattr(recipe.data, name)!r} says nothing about {kind}; remove it")
    if recipe.sequence is not None and not sequence:
        raise InputError(f"sequence={{…}} says nothing about {kind}; remove it")
    for name in ("condition", "grid") if sequence else ():
        if getattr(recipe, name) is not None:
            raise InputError(f"{name}={getattr(recipe, name)!r} says nothing about {kind}; remove it")


def _as_is(recipe: Recipe, data: Dataset) -> tuple[Recipe, list[str]]:
    return recipe, []


@dataclass(frozen=True)
class Kind:
    """One kind of system: `load(recipe, source)` its data, `prepare(recipe, data)` the recipe with choices made and their
    reasons, `build(recipe, contract, process)` the system, freshly initialised."""

    load: Callable[[Recipe, str], Dataset]
    prepare: Callable[..., tuple[Recipe, list[str]]]
    build: Callable[..., Model]


KINDS: dict[str, Kind] = {
    "image": Kind(_images, _as_is, ddpm.initialise),
    "ncsn": Kind(_images, ncsn.prepare, ddpm.initialise),
    "cold": Kind(_images, _as_is, cold.initialise),
    "classifier": Kind(_images, classifier.prepare, classifier.initialise),
    "vector": Kind(_table, _as_is, diffusion.initialise),
    "dpm2015": Kind(_table, _as_is, dpm_system.initialise),
    "timegrad": Kind(_series, choose.prepare, timegrad.initialise),
    "sssd": Kind(_series, choose.prepare, sssd.initialise),
    "csdi": Kind(_series, choose.prepare, csdi.initialise),
}
"""By the name that `system:` in a recipe has."""


def load_data(recipe: Recipe, source: str | None = None) -> Dataset:
    """The data of a recipe, or of another source brought to the same form."""
    return KINDS[recipe.system].load(recipe, source or recipe.data.source)


def describe(data: Dataset) -> str:
    """One paragraph about data for the user: count, shape, range, transform."""
    if isinstance(data, SeriesData):
        return describe_series(data.series)
    return describe_images(data) if isinstance(data, ImageData) else describe_table(data)


def sampled(model: Model, wanted: str) -> System | ColdSystem | ClassifierSystem | DPMSystem:
    """The model, if it draws data by themselves; InputError that says what it was `wanted` for."""
    if isinstance(model, OfSeries):
        raise InputError(
            f"{wanted} is not for a model of series, which draws steps given others; take forecast, impute or backtest"
        )
    return model


def with_denoiser(model: Model, wanted: str) -> System:
    """The model, if it has a denoiser; InputError that says what it was `wanted` for."""
    if isinstance(model, System):
        return model
    why = "a dpm2015 model has the steps of its chain alone"
    if isinstance(model, ColdSystem):
        why = "a cold model undoes a degradation without noise"
    if isinstance(model, OfSeries):
        why = "a model of series draws steps given others (ornstein forecast, impute, backtest)"
    if isinstance(model, ClassifierSystem):
        why = "a classifier guides another one (--classifier)"
    raise InputError(f"{wanted} needs a model with a denoiser at every noise level; {why}")
