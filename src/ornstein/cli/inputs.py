"""From options to what the public API takes, for the commands that use a trained model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ornstein.cli.app import at_least

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from ornstein.config import Recipe
    from ornstein.guidance import Guidance
    from ornstein.kinds import Dataset, Model, OfSeries
    from ornstein.process import GaussianProcess
    from ornstein.samplers import Adaptive, LangevinCorrector, Plan
    from ornstein.system import System

    Conditions = Mapping[str, Sequence[int] | Sequence[str]] | None

PILOT_SAMPLES = 64
"""Samples of the pilot batch of --tol."""
LEAST_TOLERANCE = 1e-3
"""Smaller ones are below what a network in float32 resolves."""


def plan_of(
    directory: Path, system: System, sampler: str | None, calls: int | None, grid: str | None, guidance: Guidance = 1.0
) -> Plan | None:
    """The plan asked for, or None for the model's default; a number of calls alone takes the plan calibrated for it."""
    from ornstein.files import InputError
    from ornstein.samplers import Plan
    from ornstein.samplers.loop import misfit

    if sampler is None and calls is None and grid is None:
        return system.plan
    if sampler is not None and sampler.endswith(".json"):
        if calls is not None or grid is not None:
            raise InputError("--calls and --grid do not go with a plan's file, which fixes both")
        plan = Plan.load(sampler)
        try:
            why = misfit(plan, system.shaped_denoiser(guidance=guidance))
        except ValueError as error:
            raise InputError(f"--sampler {sampler}: {error}") from error
        if why:
            raise InputError(f"--sampler {sampler} {why}; run ornstein calibrate with these options, or take another sampler")
        return plan
    if sampler is None and grid is None and calls is not None and (fitted := system.plan_for(calls, guidance=guidance)):
        return fitted
    return named_plan(directory, system, sampler, calls, grid)


def named_plan(directory: Path, system: System | OfSeries, sampler: str | None, calls: int | None, grid: str | None) -> Plan:
    """The plan of a sampler by name; what is not given is the recipe's, its grid and options for its own sampler only."""
    from ornstein import config, model
    from ornstein.assemble import make_plan

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


def chosen(conditions: Conditions, rows: Sequence[int]) -> Conditions:
    """The conditions of some of the samples; numbers stay numbers, since a class may be called 3 and have another place."""
    return None if conditions is None else {name: [values[row] for row in rows] for name, values in conditions.items()}  # type: ignore[misc]


def sampler_of(
    directory: Path,
    system: System,
    sampler: str | None,
    calls: int | None,
    rtol: float | None,
    grid: str | None,
    guidance: Guidance = 1.0,
) -> Plan | Adaptive | None:
    """The plan or the solver that chooses its own steps; None for the model's default."""
    from ornstein.files import InputError
    from ornstein.samplers import ADAPTIVE

    if sampler not in ADAPTIVE:
        if rtol is not None:
            raise InputError(f"--rtol {rtol:g} goes with --sampler {', '.join(ADAPTIVE)}; for a plan give --tol or --calls")
        return plan_of(directory, system, sampler, calls, grid, guidance)
    if calls is not None or grid is not None:
        raise InputError(f"--calls and --grid do not go with --sampler {sampler}, which chooses its own steps; give --rtol")
    if rtol is not None and not rtol > 0:
        raise InputError(f"--rtol {rtol:g} must be above 0")
    return ADAPTIVE[sampler]() if rtol is None else ADAPTIVE[sampler](rtol=rtol)


def corrector_of(
    system: System, sampler: Plan | Adaptive | None, steps: int, snr: float | None, guidance: Guidance = 1.0
) -> LangevinCorrector | None:
    """The corrector that --corrector and --snr ask for."""
    from ornstein.files import InputError
    from ornstein.samplers import LangevinCorrector, Plan

    at_least("--corrector", steps, 0)
    if steps == 0:
        if snr is not None:
            raise InputError(f"--snr {snr:g} belongs to a corrector; add --corrector 1")
        return None
    if snr is not None and not snr > 0:
        raise InputError(f"--snr {snr:g} must be above 0")
    if not isinstance(sampler, Plan | None):
        raise InputError(f"--corrector does not go with {sampler.name}, which has no rows to correct between; choose a plan")
    corrector = LangevinCorrector(system.shaped_denoiser(guidance=guidance), steps=steps)
    return corrector if snr is None else replace(corrector, snr=snr)


def budgeted(
    directory: Path,
    system: System,
    sampler: str | None,
    calls: int | str | None,
    tol: float | None,
    rtol: float | None,
    grid: str | None,
    number: int,
    cond: list[str] | None,
    guidance: Guidance,
    seed: int,
    quiet: bool,
) -> Plan:
    """The plan with the fewest calls whose discretisation error a pilot batch finds below the tolerance; prints the table.

    Without a sampler or grid by name, the default plan of each number of calls is tried.
    """
    from ornstein.files import InputError
    from ornstein.guided import takes_label
    from ornstein.noise import Noise
    from ornstein.parallel import main_process
    from ornstein.samplers import ADAPTIVE, default_plan, monte_carlo_error, pilot

    if (tol is not None and calls is not None) or (sampler is not None and sampler.endswith(".json")):
        raise InputError("--tol and --calls auto choose the number of calls: leave out --calls N and plans' files")
    if rtol is not None or sampler in ADAPTIVE:
        raise InputError("--tol and --calls auto choose the calls of a plan; a sampler that chooses its steps takes --rtol alone")
    if tol is not None and not tol >= LEAST_TOLERANCE:
        raise InputError(f"--tol {tol:g} must be at least {LEAST_TOLERANCE:g}")

    def plan(process: GaussianProcess, count: int) -> Plan:
        if sampler is None and grid is None:
            return default_plan(process, count)
        made = plan_of(directory, system, sampler, count, grid)
        if made is None or made.stochastic:
            raise InputError(f"--tol needs a deterministic sampler, and {sampler} draws noise on its way; take ddim or adams")
        return made

    denoiser = system.shaped_denoiser(full_precision=True, guidance=guidance)
    asked = system.conditions(conditions_of(cond, PILOT_SAMPLES), PILOT_SAMPLES, by_classifier=takes_label(denoiser))
    found = pilot(
        denoiser, shape=(PILOT_SAMPLES, *system.contract.shape),
        noise=Noise(seed), plan=plan,
        tolerance=max(monte_carlo_error(number), LEAST_TOLERANCE) if tol is None else tol, scale=system.contract.std,
        cond=asked, device=system.device, progress=not quiet,
    )  # fmt: skip
    if not found.met:
        raise InputError(
            f"--tol {found.tolerance:g} is not met: {found.calls} calls leave an error of {found.error:.2g}; give a larger one"
        )
    if main_process():
        print(found.table(number))
        print(f"{found.calls} calls: error {found.error:.2g}, asked {found.tolerance:.2g}")
    return plan(system.denoiser.process, found.calls)


def conditions_of(pairs: list[str] | None, n: int) -> dict[str, list[Any]] | None:
    """`--cond` name=value pairs as n values each, dealt in turn; grid=FILE is the measurement that an image or array file holds,
    or each of those it holds."""
    from ornstein.files import InputError
    from ornstein.image.data import read_images

    if not pairs:
        return None
    conditions: dict[str, list[Any]] = {}
    for pair in pairs:
        name, equals, values = pair.partition("=")
        if not equals or not values:
            raise InputError(f"--cond {pair!r} is not name=value; write --cond label=3")
        choices: list[Any] = values.split(",")
        if name == "grid":
            choices = [measured for path in choices for measured in read_images(path)]
        conditions[name] = [choices[i % len(choices)] for i in range(n)]
    return conditions


def references(recipe: Recipe, system: Model, source: str | None) -> tuple[Dataset, Dataset]:
    """(training data, reference data), both under the model's contract."""
    from ornstein.evaluate import divide, relabel
    from ornstein.files import InputError
    from ornstein.image.data import ImageData
    from ornstein.kinds import load_data

    training, held = divide(recipe.data, load_data(recipe))
    if source is not None:
        held = load_data(recipe, source)
    if held is None:
        raise InputError("the model was trained without held-out data; give --data")
    if system.condition == "label" and isinstance(held, ImageData):
        held = relabel(held, system.contract)
    return training.with_contract(system.contract), held.with_contract(system.contract)


def samples_of(system: Model, x: Tensor) -> NDArray[Any]:
    """Samples x (n, *) as an array in the data's own range, whole grey levels if the data have them."""
    return system.contract.quantise(x) if system.contract.levels is not None else x.numpy()


def write_npz(out: Path, system: Model, arrays: dict[str, NDArray[Any]], conditions: Conditions) -> None:
    """Arrays with a row per sample, and beside them the samples' conditions."""
    import numpy as np

    from ornstein.files import write_atomic
    from ornstein.system import System

    n = len(next(iter(arrays.values())))
    if conditions and isinstance(system, System) and system.condition:
        numbered = system.conditions(conditions, n)
        assert numbered is not None
        kept = numbered[system.condition].numpy()
        if system.grid is not None:  # measurements are kept as they were given, in their own units
            kept = np.stack([np.asarray(measured) for measured in conditions["grid"]])
        arrays = arrays | {system.condition: kept}
    with write_atomic(out) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def picture(out: Path, system: Model, x: Tensor, columns: int | None = None) -> None:
    """Samples x (n, *) as a picture: a grid of images, or points."""
    from ornstein import figures
    from ornstein.evaluate import as_data

    if len(system.contract.shape) == 1:
        figures.rows_picture(x, system.contract, out)
    else:
        figures.image_grid(as_data(system, x), system.contract, out, columns=columns)


def write_csv(out: Path, system: Model, x: Tensor) -> None:
    """Samples x (n, D) as a CSV with a line of column names."""
    import csv

    from ornstein.files import write_atomic

    with write_atomic(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(system.contract.channels)
        writer.writerows([f"{value:.9g}" for value in row] for row in x.tolist())
