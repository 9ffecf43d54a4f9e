"""`ornstein sample`, `evaluate` and `nll`: what is done with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ornstein.cli.app import Cond, Count, app, at_least

if TYPE_CHECKING:
    from ornstein.config import Recipe
    from ornstein.image.data import ImageData
    from ornstein.samplers import Plan
    from ornstein.system import System


@app.command
def sample(
    directory: Path,
    *,
    number: Count = 16,
    sampler: str | None = None,
    calls: int | None = None,
    grid: str | None = None,
    cond: Cond = None,
    seed: int = 0,
    batch: int | None = None,
    out: Path = Path("samples.png"),
    device: str = "cpu",
    precision: Literal["float32", "bf16"] | None = None,
    quiet: bool = False,
) -> None:
    """Draw samples from a trained model into a picture or an array file.

    Parameters
    ----------
    directory
        A model directory.
    number
        How many samples.
    sampler
        A sampler by name (see `ornstein list`) or a plan's JSON file; the model's default unless given.
    calls
        Network calls per sample.
    grid
        Time grid by name.
    cond
        Condition, name=value; several values by commas are dealt to the samples in turn: label=0,1,2.
    seed
        Sample i of a seed is the same in any batch size and on any device.
    batch
        Samples drawn at a time; 64 unless given.
    out
        A .png (a grid), or a .npz whose array `samples` is in the data's own range.
    device
        cpu, cuda or mps.
    precision
        float32, or bf16 for the network alone, in place of the recipe's.
    quiet
        No progress line.
    """
    from ornstein import figures, model
    from ornstein.evaluate import as_data
    from ornstein.files import InputError
    from ornstein.noise import Noise
    from ornstein.parallel import shares

    if out.suffix not in (".png", ".npz"):
        raise InputError(f"--out {str(out)!r} must end in .png or .npz")
    at_least("-n", number)
    at_least("--batch", batch)
    system = model.load(directory, device=device)
    if precision is not None:
        system.half_precision = precision == "bf16"
    plan = _plan(directory, system, sampler, calls, grid)
    conditions = _conditions(cond, number)
    with shares(number) as share:
        mine = None if conditions is None else {k: v[share.first : share.first + share.count] for k, v in conditions.items()}
        part = system.sample(
            share.count, cond=mine, sampler=plan, noise=Noise(seed), first=share.first, batch_size=batch, progress=not quiet
        )
        samples = share.gather(part.cpu())
        if not share.main:
            return
    data = as_data(system, samples)
    if out.suffix == ".png":
        figures.image_grid(data, system.contract, out)
    else:
        _write_npz(out, system, samples, conditions)
    print(f"{out}: {number} samples, {plan.name if plan else 'default plan'}, {plan.calls if plan else '?'} calls each")


@app.command
def evaluate(
    directory: Path,
    *,
    data: str | None = None,
    number: Count = 1000,
    extractor: str = "pixels",
    sampler: str | None = None,
    calls: int | None = None,
    grid: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    quiet: bool = False,
) -> None:
    """Measure a trained model against held-out data, and write metrics.json and card.md beside it.

    Parameters
    ----------
    directory
        A model directory.
    data
        Reference data; the held-out part of the training data unless given.
    number
        How many samples to draw.
    extractor
        pixels, or a classifier's .safetensors file.
    sampler
        A sampler by name or a plan's JSON file.
    calls
        Network calls per sample.
    grid
        Time grid by name.
    seed
        Seed of the samples.
    device
        cpu, cuda or mps.
    quiet
        No progress line.
    """
    from ornstein import metrics, model
    from ornstein.evaluate import evaluate as measure
    from ornstein.evaluate import likelihood, write_card

    at_least("-n", number)
    system = model.load(directory, device=device)
    recipe = model.read_recipe(directory)
    training, reference = _references(recipe, system, data)
    features = metrics.load_extractor(extractor)
    plan = _plan(directory, system, sampler, calls, grid)
    records = measure(
        system, training, reference, n=number, extractor=features, sampler=plan, seed=seed, progress=not quiet
    ) + likelihood(system, training, reference, n=number, seed=seed, progress=not quiet)
    metrics.write_records(directory / model.METRICS, records)
    write_card(directory, recipe, system, records)
    print(metrics.table(records))


@app.command
def nll(
    directory: Path,
    *,
    data: str | None = None,
    number: Count = 1000,
    draws: int = 20,
    seed: int = 0,
    device: str = "cpu",
    quiet: bool = False,
) -> None:
    """Bound the negative log-likelihood of data, in bits/dim where they have grey levels.

    Parameters
    ----------
    directory
        A model directory.
    data
        Data to judge; the held-out part of the training data unless given.
    number
        At most so many data.
    draws
        Noise levels drawn per datum, out of 1000.
    seed
        Seed of levels and noise.
    device
        cpu, cuda or mps.
    quiet
        No progress line.
    """
    from ornstein import metrics, model
    from ornstein.evaluate import likelihood

    at_least("-n", number, 2)
    at_least("--draws", draws)
    system = model.load(directory, device=device)
    training, reference = _references(model.read_recipe(directory), system, data)
    print(metrics.table(likelihood(system, training, reference, n=number, draws=draws, seed=seed, progress=not quiet)))


def _plan(directory: Path, system: System, sampler: str | None, calls: int | None, grid: str | None) -> Plan | None:
    """The plan asked for, or None for the model's default."""
    from ornstein import config, model
    from ornstein.files import InputError
    from ornstein.image.ddpm import make_plan
    from ornstein.samplers import Plan

    if sampler is None and calls is None and grid is None:
        return system.plan
    if sampler is not None and sampler.endswith(".json"):
        if calls is not None or grid is not None:
            raise InputError("--calls and --grid do not go with a plan's file, which fixes both")
        return Plan.load(sampler)
    default = model.read_recipe(directory).sampler
    at_least("--calls", calls)
    own = sampler is None or sampler == default.name
    changed = config.SamplerConfig(
        name=sampler or default.name,
        calls=calls or default.calls,
        grid=grid or (default.grid if own else None),
        options=default.options if own else {},
    )
    return make_plan(system.denoiser.process, changed)


def _conditions(pairs: list[str] | None, n: int) -> dict[str, list[str]] | None:
    from ornstein.files import InputError

    if not pairs:
        return None
    conditions = {}
    for pair in pairs:
        name, equals, values = pair.partition("=")
        if not equals or not values:
            raise InputError(f"--cond {pair!r} is not name=value; write --cond label=3")
        choices = values.split(",")
        conditions[name] = [choices[i % len(choices)] for i in range(n)]
    return conditions


def _references(recipe: Recipe, system: System, source: str | None) -> tuple[ImageData, ImageData]:
    """(training data, reference data), both under the model's contract."""
    from ornstein.evaluate import divide, load_data, relabel
    from ornstein.files import InputError

    training, held = divide(recipe.data, load_data(recipe.data))
    if source is not None:
        held = load_data(recipe.data, source)
    if held is None:
        raise InputError("the model was trained without held-out data; give --data")
    if system.condition == "label":
        held = relabel(held, system.contract)
    return training.with_contract(system.contract), held.with_contract(system.contract)


def _write_npz(out: Path, system: System, samples: object, conditions: dict[str, list[str]] | None) -> None:
    import numpy as np

    from ornstein.files import write_atomic

    contract = system.contract
    arrays = {"samples": contract.quantise(samples) if contract.levels is not None else samples.numpy()}  # type: ignore[arg-type,attr-defined]
    if conditions and system.condition:
        arrays[system.condition] = np.asarray(system.conditions(conditions, len(arrays["samples"]))[system.condition])  # type: ignore[index]
    with write_atomic(out) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)
