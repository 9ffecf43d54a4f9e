"""From a recipe to the parts of a system that every kind of data shares: process, loss and plan, and the system around a net."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from ornstein import operator as operators
from ornstein import process as processes
from ornstein import samplers
from ornstein.condition import GridCondition
from ornstein.config import Named, Recipe, SamplerConfig
from ornstein.contract import Contract
from ornstein.denoiser import Denoiser
from ornstein.files import InputError
from ornstein.grid import GRIDS
from ornstein.losses import DenoisingLoss, Discretised, GaussianDecoder, LossAware, MatchingLoss, Times
from ornstein.nets import LevelFree
from ornstein.noise import Noise
from ornstein.process import GaussianProcess
from ornstein.system import System

T = TypeVar("T")
OWN = "own"
"""What `process.name` says of a model whose process was given in Python."""


def assemble(
    recipe: Recipe,
    contract: Contract,
    net: Callable[[int, dict[str, Any]], nn.Module],
    process: GaussianProcess | None = None,
) -> System:
    """The system of a recipe: `net(outputs, conditions)` makes its network with so many output channels, freshly initialised;
    `conditions` are its arguments `classes`, or `grid_channels` and `values`, or nothing.

    Weights come from torch's default generator, seeded by the recipe and left as it was. `process` replaces the recipe's.
    InputError for names and options that do not exist, or a recipe that contradicts the data.
    """
    if recipe.condition == "label" and not contract.classes:
        raise InputError("condition='label' but the data have no labels; put images into class folders, or set condition: null")
    if (recipe.sampler.clip or recipe.sampler.threshold) and contract.bounds is None:
        raise InputError("sampler.clip or sampler.threshold is set but the data declare no bounds; remove it")
    process = process if process is not None else make_process(recipe.process)
    outputs = contract.shape[0] * (2 if recipe.learned_variance else 1)
    grid = _grid(recipe, contract)
    conditions: dict[str, Any] = {} if grid is None else {"grid_channels": grid.channels, "values": grid.values}
    if recipe.condition == "label" and contract.classes:
        conditions = {"classes": len(contract.classes)}
    sigma_data = recipe.sigma_data or contract.std
    free = recipe.net.level_free
    made = seeded(recipe, lambda: net(outputs, conditions))
    denoiser = called(
        Denoiser,
        {
            "net": LevelFree(made) if free else made,
            "process": process,
            "predicts": recipe.predicts,
            "sigma_data": sigma_data,
            "learned_variance": recipe.learned_variance,
            "scale_input": not free,
        },
        "predicts",
    )
    return System(
        contract=contract,
        denoiser=denoiser,
        loss_function=make_loss(recipe, contract, process, sigma_data),
        plan=make_plan(process, recipe.sampler),
        condition=recipe.condition,
        condition_dropout=recipe.condition_dropout if recipe.condition else 0.0,
        flip=recipe.data.flip,
        bounds=contract.bounds if recipe.sampler.clip else None,
        threshold=recipe.sampler.threshold,
        precision=recipe.sampler.precision,
        grid=grid,
    )


def _grid(recipe: Recipe, contract: Contract) -> GridCondition | None:
    """What a recipe's condition "grid" shows; random operators are drawn by the data's seed."""
    if (recipe.condition == "grid") != (recipe.grid is not None):
        raise InputError(
            f"condition={recipe.condition!r} with grid={recipe.grid}: condition: grid and grid: {{operator: …}} go together"
        )
    if recipe.grid is None:
        return None
    operator = operators.parse(recipe.grid.operator, contract.shape, Noise(recipe.data.seed))
    return GridCondition(contract, operator, recipe.grid.augmentation)


def seeded(recipe: Recipe, make: Callable[[], T]) -> T:
    """make() with weights from torch's default generator, seeded by the recipe; the generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.train.seed)
        return make()


def make_loss(recipe: Recipe, contract: Contract, process: GaussianProcess, sigma_data: float) -> DenoisingLoss | MatchingLoss:
    """The loss of a recipe for data under a contract."""
    config = recipe.loss
    times = (
        LossAware()
        if config.loss_aware
        else called(
            Times,
            {
                "distribution": config.times,
                "mean": config.mean,
                "std": config.std,
                "low_discrepancy": config.low_discrepancy,
            },
            "loss",
        )
    )
    if config.times == "discrete" and not isinstance(process, processes.Chain):
        raise InputError(f"loss.times='discrete' needs process: {{name: chain}}, not {recipe.process.name}; use 'uniform'")
    if config.hybrid and not (recipe.learned_variance and isinstance(process, processes.Chain)):
        raise InputError(f"loss.hybrid={config.hybrid} needs learned_variance: true and process: {{name: chain}}; set it to 0")
    if config.objective != "denoising":
        weighting = "sigma2" if config.weighting == "simple" else config.weighting
        given = {"objective": config.objective, "weighting": weighting, "times": times}
        return called(MatchingLoss, {**given, "directions": config.directions, "slices": config.slices}, "loss")
    quantised = contract.levels is not None and contract.bounds is not None
    decoder = Discretised(contract.levels or 2, *(contract.bounds or (-1, 1))) if quantised else GaussianDecoder()
    return called(
        DenoisingLoss,
        {
            "weighting": config.weighting,
            "times": times,
            "hybrid": config.hybrid,
            "decoder": decoder,
            "sigma_data": sigma_data,
            "gamma": config.gamma,
        },
        "loss",
    )


def make_process(config: Named) -> GaussianProcess:
    """The process of a recipe, from `process.ALL`; InputError for one that only its author can give."""
    if config.name == OWN:
        raise InputError("the model has a process of its author's own, which no file holds; load it in Python with process=…")
    if config.name not in processes.ALL:
        raise InputError(f"process.name={config.name!r} is not one of {', '.join(processes.ALL)}")
    return called(processes.ALL[config.name], dict(config.options), f"process.options of {config.name}")


def make_plan(process: GaussianProcess, config: SamplerConfig) -> samplers.Plan:
    """The plan of a recipe or of `ornstein sample`, from `samplers.ALL`."""
    if config.name not in samplers.ALL:
        raise InputError(f"sampler={config.name!r} is not one of {', '.join(samplers.ALL)}")
    if config.grid is not None and config.grid not in GRIDS:
        raise InputError(f"grid={config.grid!r} is not one of {', '.join(GRIDS)}")
    options: dict[str, Any] = {"process": process, "calls": config.calls, **config.options}
    if config.grid is not None:
        options["grid"] = config.grid
    return called(samplers.ALL[config.name], options, f"sampler options of {config.name}")


def called(function: Callable[..., T], arguments: dict[str, Any], where: str) -> T:
    """function(**arguments), with what it refuses told as wrong input of `where`."""
    try:
        return function(**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {str(error).replace(getattr(function, '__name__', ''), '').lstrip('. ')}") from error
