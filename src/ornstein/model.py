"""Model directories: config.yaml, model.safetensors, data.json (the contract), plans, metrics and a card. Never a pickle.

`save` writes to a temporary name and renames; `load` reads only what it knows, checks versions, names and shapes, and executes
nothing that it finds.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from ornstein import config as configs
from ornstein import process as processes
from ornstein.assemble import OWN, make_process
from ornstein.calibration import weights_digest
from ornstein.config import Named, Recipe
from ornstein.contract import Contract
from ornstein.denoiser import Denoiser
from ornstein.files import (
    InputError,
    check_model_directory,
    inside,
    read_json,
    read_tensors,
    read_yaml,
    write_atomic,
    write_json,
    write_tensors,
)
from ornstein.image.classifier import ClassifierSystem
from ornstein.image.cold import ColdSystem, make_degradation
from ornstein.kinds import KINDS, Model
from ornstein.process import Process
from ornstein.samplers import Plan
from ornstein.sequence.imputer import ImputerSystem
from ornstein.sequence.timegrad import TimeGradSystem
from ornstein.system import System
from ornstein.vector import DPMSystem

CONFIG, WEIGHTS, DATA, CARD, METRICS, RESUME = (
    "config.yaml",
    "model.safetensors",
    "data.json",
    "card.md",
    "metrics.json",
    "resume",
)


def build(recipe: Recipe, contract: Contract, process: Process | None = None) -> Model:
    """A freshly initialised system from a recipe and the contract of its data."""
    return KINDS[recipe.system].build(recipe, contract, process)


def save(directory: str | Path, recipe: Recipe, system: Model, weights: dict[str, Tensor] | None = None) -> None:
    """Write config, contract and weights (the system's own unless given), each to a temporary file and then renamed."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    state = weights if weights is not None else system.net.state_dict()
    if not isinstance(system, DPMSystem) and not _same_process(recipe, system):
        recipe = recipe.model_copy(update={"process": Named(name=OWN)})
    with write_atomic(folder / CONFIG) as temporary:
        temporary.write_text(configs.dump(recipe), encoding="utf-8")
    write_json(folder / DATA, system.contract.to_json())
    write_tensors(folder / WEIGHTS, state)


def _same_process(recipe: Recipe, system: Model) -> bool:
    """Whether the recipe's name and options give the system's process."""
    if isinstance(system, ColdSystem):
        return recipe.process.name in processes.COLD and make_degradation(recipe) == system.process
    assert not isinstance(system, DPMSystem)
    process = system.process if isinstance(system, ClassifierSystem) else system.denoiser.process
    return recipe.process.name in processes.ALL and make_process(recipe.process) == process


def read_recipe(directory: str | Path) -> Recipe:
    """The recipe of a model directory."""
    return configs.parse(read_yaml(inside(_checked(directory), CONFIG)), f"{directory}/{CONFIG}")


def load(directory: str | Path, *, device: torch.device | str | None = None, process: Process | None = None) -> Model:
    """The trained system of a model directory, on `device` (CPU unless given), ready to sample.

    InputError for a missing or foreign file, an unknown format version or key, a YAML tag, a path outside the directory, a
    pickle, truncated weights, or weights whose names or shapes are not those of the network. `process` replaces the recipe's
    (for one that the user wrote as functions).
    """
    folder = _checked(directory)
    recipe = read_recipe(folder)
    contract = Contract.from_json(read_json(inside(folder, DATA)))
    weights = read_tensors(inside(folder, WEIGHTS))
    system = build(recipe, contract, process)
    expected = system.net.state_dict()
    where = f"{folder}/{WEIGHTS}"
    if odd := sorted(set(expected) ^ set(weights)):
        kind = "lacks" if odd[0] in expected else "holds the unknown"
        raise InputError(f"{where}: {kind} tensor {odd[0]!r}; the weights do not belong to this {CONFIG}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"{where}: {name!r} has shape {tuple(tensor.shape)}, the network of {CONFIG} needs {tuple(expected[name].shape)}"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(f"{where}: {name!r} holds NaN or infinity; train again, or resume from an earlier state")
    system.net.load_state_dict(weights)
    if device is not None:
        system.net.to(usable(device))
    system.net.requires_grad_(False).eval()
    if isinstance(system, System | TimeGradSystem | ImputerSystem):
        system.calibrated = _calibrated(folder, system.denoiser)
    if recipe.train.channels_last:
        arrange(system)
    return system


def usable(device: torch.device | str) -> torch.device:
    """The device, after a tensor was put there; InputError if this machine, or this build of torch, has none such."""
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={str(device)!r} cannot be used here ({str(error).splitlines()[0]}); use cpu") from error
    return chosen


def arrange(system: Model) -> None:
    """Put convolution weights into the channels-last layout, which the processor's convolutions prefer."""
    for parameter in system.net.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def plans(directory: str | Path) -> dict[str, Plan]:
    """The plans saved beside the weights, by name (plan-8.json is "8")."""
    folder = _checked(directory)
    return {path.stem.removeprefix("plan-"): Plan.load(inside(folder, path.name)) for path in sorted(folder.glob("plan-*.json"))}


def save_plan(directory: str | Path, plan: Plan, guidance: float = 1.0) -> Path:
    """Save a plan beside the weights: plan-8.json, with guidance plan-8-guidance-2.json, a stochastic one plan-8-noise.json."""
    name = f"plan-{plan.calls}" + ("-noise" if plan.stochastic else "") + (f"-guidance-{guidance:g}" if guidance != 1 else "")
    path = _checked(directory) / f"{name}.json"
    plan.save(path)
    return path


def _calibrated(folder: Path, denoiser: Denoiser) -> tuple[Plan, ...]:
    """The saved plans that were calibrated to these weights; a warning for those that were calibrated to others."""
    found = {name: plan for name, plan in plans(folder).items() if plan.calibration is not None}
    if not found:
        return ()
    mine = weights_digest(denoiser)
    for name, plan in list(found.items()):
        if plan.calibration is not None and plan.calibration.weights != mine:
            warnings.warn(
                f"{folder}/plan-{name}.json was calibrated to other weights and is not used; calibrate again", stacklevel=3
            )
            del found[name]
    return tuple(found.values())


def _checked(directory: str | Path) -> Path:
    folder = Path(directory)
    if not folder.is_dir():
        raise InputError(f"model={str(directory)!r} is not a directory; give the --out folder of `ornstein train`")
    missing = [name for name in (CONFIG, DATA, WEIGHTS) if not (folder / name).exists()]
    if missing:
        raise InputError(f"model={str(directory)!r} has no {missing[0]}; it is no model directory, or nothing is saved there yet")
    check_model_directory(folder)
    return folder
