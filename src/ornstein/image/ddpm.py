"""Denoising diffusion on images (rows A4, D1, E1): digits, faces, flowers, or a folder of one's own.

| paper (arXiv 2006.11239) | here |
|---|---|
| eq. 1-4, forward process | `process.Chain`, or any `GaussianProcess` |
| eq. 6-7, posterior | `GaussianProcess.posterior` |
| eq. 5, bound; eq. 13, decoder | `losses.bound`, `losses.Discretised` |
| eq. 14, L_simple; algorithm 1 | `losses.DenoisingLoss`, called by `System.loss` |
| algorithm 2 | `samplers.ancestral`, run by `System.sample` |
| appendix B, U-Net | `nets.UNet` |

Class conditions with dropout follow Ho and Salimans, arXiv 2207.12598; learned variances Nichol and Dhariwal, arXiv 2102.09672;
the "edm" parameterisation and its times Karras et al., arXiv 2206.00364.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ornstein import process as processes
from ornstein import samplers
from ornstein.config import Named, Recipe, SamplerConfig
from ornstein.contract import Contract
from ornstein.denoiser import Denoiser
from ornstein.files import InputError
from ornstein.grid import GRIDS
from ornstein.losses import DenoisingLoss, Discretised, GaussianDecoder, LossAware, Times
from ornstein.nets import UNet
from ornstein.process import GaussianProcess
from ornstein.system import System

T = TypeVar("T")


def image_system(recipe: Recipe, contract: Contract, process: GaussianProcess | None = None) -> System:
    """The system that a recipe describes for images (C, H, W) under a contract, its network freshly initialised.

    Weights come from torch's default generator, which the caller forks and seeds. `process` replaces the recipe's.
    InputError for names and options that do not exist, or a recipe that contradicts the data.
    """
    if len(contract.shape) != 3:
        raise InputError(f"data of shape {contract.shape} are not images (channels, height, width); use another system")
    if recipe.condition == "label" and not contract.classes:
        raise InputError("condition='label' but the data have no labels; put images into class folders, or set condition: null")
    process = process if process is not None else make_process(recipe.process)
    channels = contract.shape[0]
    net = _call(
        UNet,
        {
            "dims": 2,
            "in_channels": channels,
            "out_channels": channels * (2 if recipe.learned_variance else 1),
            "classes": len(contract.classes) if recipe.condition and contract.classes else None,
            **recipe.net.options,
        },
        "net.options",
    )
    sigma_data = recipe.sigma_data or contract.std
    denoiser = _call(
        Denoiser,
        {
            "net": net,
            "process": process,
            "predicts": recipe.predicts,
            "sigma_data": sigma_data,
            "learned_variance": recipe.learned_variance,
        },
        "predicts",
    )
    if (recipe.sampler.clip or recipe.sampler.threshold) and contract.bounds is None:
        raise InputError("sampler.clip or sampler.threshold is set but the data declare no bounds; remove it")
    return System(
        contract=contract,
        denoiser=denoiser,
        loss_function=_loss(recipe, contract, process, sigma_data),
        plan=make_plan(process, recipe.sampler),
        condition=recipe.condition,
        condition_dropout=recipe.condition_dropout if recipe.condition else 0.0,
        flip=recipe.data.flip,
        bounds=contract.bounds if recipe.sampler.clip else None,
        threshold=recipe.sampler.threshold,
        half_precision=recipe.sampler.precision == "bf16",
    )


def _loss(recipe: Recipe, contract: Contract, process: GaussianProcess, sigma_data: float) -> DenoisingLoss:
    config = recipe.loss
    times = (
        LossAware()
        if config.loss_aware
        else _call(
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
    quantised = contract.levels is not None and contract.bounds is not None
    decoder = Discretised(contract.levels or 2, *(contract.bounds or (-1, 1))) if quantised else GaussianDecoder()
    return _call(
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
    """The process of a recipe, from `process.ALL`."""
    if config.name not in processes.ALL:
        raise InputError(f"process.name={config.name!r} is not one of {', '.join(processes.ALL)}")
    return _call(processes.ALL[config.name], dict(config.options), f"process.options of {config.name}")


def make_plan(process: GaussianProcess, config: SamplerConfig) -> samplers.Plan:
    """The plan of a recipe or of `ornstein sample`, from `samplers.ALL`."""
    if config.name not in samplers.ALL:
        raise InputError(f"sampler={config.name!r} is not one of {', '.join(samplers.ALL)}")
    if config.grid is not None and config.grid not in GRIDS:
        raise InputError(f"grid={config.grid!r} is not one of {', '.join(GRIDS)}")
    options: dict[str, Any] = {"process": process, "calls": config.calls, **config.options}
    if config.grid is not None:
        options["grid"] = config.grid
    return _call(samplers.ALL[config.name], options, f"sampler options of {config.name}")


def _call(function: Callable[..., T], arguments: dict[str, Any], where: str) -> T:
    """function(**arguments), with what it refuses told as wrong input of `where`."""
    try:
        return function(**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {str(error).replace(getattr(function, '__name__', ''), '').lstrip('. ')}") from error


def initialise(recipe: Recipe, contract: Contract, process: GaussianProcess | None = None) -> System:
    """`image_system` with weights drawn from the recipe's seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.train.seed)
        return image_system(recipe, contract, process)
