"""Recipes: everything that decides a training run, as checked plain values (YAML in, YAML out).

An unknown key, a wrong type or a value out of range is one line of `InputError`. What a name stands for is looked up where it
is used: processes in `process.ALL`, samplers in `samplers.ALL`, weightings in `losses.WEIGHTS`, grids in `grid.GRIDS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ornstein.files import EXPONENT, InputError, read_yaml

FORMAT = 1
Scalar = bool | int | float | str | None
Options = dict[str, Scalar | list[Scalar]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Named(_Strict):
    """Something chosen by name with its options, as in a table of constructors."""

    name: str
    options: Options = Field(default_factory=dict)


class DataConfig(_Strict):
    """Where data come from and how they are brought to shape; `held_out` is the share kept out of training.

    `rows` and `noise_std` are for laws by name (swiss_roll): how many points are drawn, with how much noise. `time`, `item` and
    `value` name columns of series, `columns` their channels, `future` and `static` files of covariates.
    """

    source: str = "digits"
    size: int | None = Field(default=None, ge=1)
    channels: Literal[1, 3] | None = None
    crop: str = "center"
    image_key: str | None = None
    label_key: str | None = None
    split: str | None = None
    strict: bool = False
    held_out: float = Field(default=0.1, ge=0, lt=1)
    held_out_last: int = Field(default=0, ge=0)
    seed: int = 0
    flip: bool = False
    rows: int = Field(default=20_000, ge=2)
    noise_std: float | None = Field(default=None, ge=0)
    time: str | None = None
    item: str | None = None
    value: str | None = None
    columns: list[str] | None = None
    future: str | None = None
    static: str | None = None


class NetConfig(_Strict):
    """The network; its channels and classes come from the data contract.

    A `level_free` network is not told the noise level: what it gives must be of one size at all levels, as eps is.
    """

    name: Literal["unet", "mlp", "recurrent", "s4", "axial"] = "unet"
    level_free: bool = False
    options: Options = Field(default_factory=dict)


class LossConfig(_Strict):
    """The denoising loss: see `losses.DenoisingLoss` and `losses.Times`. `loss_aware` draws t where the loss is large.

    Another `objective` than denoising is score matching without the noise being told: see `losses.MatchingLoss`, whose
    weightings are sigma2 (which "simple" means there), likelihood and none.
    """

    objective: str = "denoising"
    directions: str = "rademacher"
    slices: int = Field(default=1, ge=1)
    weighting: str = "simple"
    times: str = "uniform"
    mean: float = -1.2
    std: float = Field(default=1.2, gt=0)
    low_discrepancy: bool = True
    loss_aware: bool = False
    hybrid: float = Field(default=0.0, ge=0)
    gamma: float = Field(default=5.0, gt=0)


class SamplerConfig(_Strict):
    """The default sampler. `clip` clamps x0 to the data's declared bounds, `threshold` scales it by its own quantile.

    `precision` bf16 runs the network under autocast: samples then depend on their batch by bf16's rounding. auto is bf16 where
    the processor multiplies it in hardware, and float32 elsewhere.
    """

    name: str = "dpm_solver_pp"
    calls: int = Field(default=50, ge=1)
    grid: str | None = None
    options: Options = Field(default_factory=dict)
    clip: bool = False
    threshold: float | None = Field(default=None, gt=0, lt=1)
    precision: Literal["float32", "bf16", "auto"] = "float32"


class TrainConfig(_Strict):
    """The training run. `batch` is the number of data per optimiser step over all processes and accumulations.

    `ema` is the decay of the averaged weights, warmed up as min(ema, (1 + k)/(10 + k)); `minutes` ends a run by the clock.
    `precision` auto is bf16 where the processor multiplies it in hardware, and float32 elsewhere.
    """

    steps: int = Field(default=10_000, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    batch: int = Field(default=128, ge=1)
    accumulate: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: int = Field(default=100, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    clip_norm: float = Field(default=1.0, ge=0)
    ema: float = Field(default=0.999, ge=0, lt=1)
    precision: Literal["float32", "bf16", "fp16", "auto"] = "float32"
    channels_last: bool = True
    compile: bool = False
    workers: int = Field(default=0, ge=0)
    seed: int = 0
    validate_every: int = Field(default=500, ge=1)
    checkpoint_minutes: float = Field(default=5.0, gt=0)
    checkpoint_steps: int | None = Field(default=None, ge=1)
    sample_minutes: float = Field(default=5.0, gt=0)


class GridConfig(_Strict):
    """The condition "grid": a measurement by an `operator` (see `operator.parse`), noised in training with a standard deviation
    of up to `augmentation` in model units."""

    operator: str
    augmentation: float = Field(default=0.0, ge=0)


class SequenceConfig(_Strict):
    """Windows of series: `context` steps that are seen, then `horizon` that may be asked for.

    Units of a window are by `scaling` (see `sequence.scaling.SCALINGS`). TimeGrad draws each step's change if `differences`, is
    told the values at `lags` before it, and, if `level`, where the window lies and how far it spreads. Imputers are trained on
    `masks`, laws by name with their weights. If `interpolated` they are shown lines between what is known and draw how far the
    numbers depart from them, in units of each channel's `departures`; else they draw the numbers. With `calendar`, features of
    the times are told. What is None is chosen from the data and written down, as `frequency`, `features` and `covariates` (name:
    mean and standard deviation) are.
    """

    horizon: int = Field(default=24, ge=1)
    context: int | None = Field(default=None, ge=2)
    scaling: str | None = None
    differences: bool | None = None
    lags: list[int] | None = None
    level: bool | None = None
    calendar: bool = True
    masks: dict[str, float] = Field(default_factory=lambda: {"random": 1.0, "block": 1.0, "blackout": 1.0, "forecast": 1.0})
    interpolated: bool = False
    departures: list[float] | None = None
    frequency: str | None = None
    features: list[str] | None = None
    covariates: dict[str, tuple[float, float]] = Field(default_factory=dict)


class Recipe(_Strict):
    """One system, from data to default sampler. `sigma_data` None means: measured on the training data."""

    format: Literal[1] = 1
    system: Literal["image", "ncsn", "cold", "classifier", "vector", "dpm2015", "timegrad", "sssd", "csdi"] = "image"
    description: str = ""
    data: DataConfig = Field(default_factory=DataConfig)
    condition: Literal["label", "grid"] | None = None
    grid: GridConfig | None = None
    sequence: SequenceConfig | None = None
    condition_dropout: float = Field(default=0.1, ge=0, le=1)
    process: Named = Field(default_factory=lambda: Named(name="edm"))
    predicts: str = "edm"
    learned_variance: bool = False
    sigma_data: float | None = Field(default=None, gt=0)
    net: NetConfig = Field(default_factory=NetConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    sampler: SamplerConfig = Field(default_factory=SamplerConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)


def parse(content: dict[str, Any], where: str) -> Recipe:
    """A recipe from plain values; InputError names the first wrong key of `where`, its value and what is expected."""
    if content.get("format", FORMAT) != FORMAT:
        raise InputError(
            f"{where}: format={content['format']!r} is not the format {FORMAT} that this version of ornstein reads; "
            "upgrade ornstein, or train again"
        )
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        if first["type"] == "extra_forbidden":
            raise InputError(f"{where}: {key}={first['input']!r} is no key of a recipe; remove it or correct its name") from error
        raise InputError(f"{where}: {key}={first['input']!r} is refused: {first['msg']}") from error


def load_recipe(name: str) -> Recipe:
    """A bundled recipe by name, or a YAML file by path."""
    return parse(read_yaml(recipe_path(name)), str(name))


def recipe_path(name: str) -> Path:
    """Where a recipe lies: a file ending in .yaml or .yml, or one of `bundled()`."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    if name not in bundled():
        raise InputError(f"recipe={name!r} is not one of {', '.join(bundled())}; or give a .yaml file")
    return _FOLDER / f"{name}.yaml"


def bundled() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


_FOLDER = Path(__file__).parent / "recipes"


def override(recipe: Recipe, settings: list[str]) -> Recipe:
    """The recipe with `a.b=value` settings applied; values are read as YAML. InputError for an unknown key."""
    import yaml

    for setting in settings:
        content = recipe.model_dump()
        key, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting!r} has no '='; write --set train.steps=2000")
        *path, last = key.strip().split(".")
        place: Any = content
        for part in path:
            place = place.get(part) if isinstance(place, dict) else None
        if not isinstance(place, dict) or (last not in place and (not path or path[-1] != "options")):
            raise InputError(f"--set {setting!r}: {key!r} is not a key of a recipe; see `ornstein info` or recipes/*.yaml")
        try:
            place[last] = float(text) if EXPONENT.fullmatch(text.strip()) else yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"--set {setting!r}: {text!r} is not a YAML value") from error
        recipe = parse(content, "--set")
    return recipe


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, every key written out."""
    import yaml

    return str(yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True))
