"""`ornstein calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ornstein.cli.app import Cond, Guidance, app, at_least, minutes
from ornstein.cli.inputs import conditions_of, named_plan

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.denoiser import Denoises
    from ornstein.kinds import OfSeries
    from ornstein.samplers import Plan
    from ornstein.system import System


@app.command
def calibrate(
    directory: Path,
    *,
    calls: str,
    sampler: str | None = None,
    grid: str | None = None,
    cond: Cond = None,
    guidance: Guidance = 1.0,
    trajectories: int = 160,
    steps: int = 24,
    max_time: str | None = None,
    seed: int = 0,
    batch: int = 64,
    memory: float = 2.0,
    device: str = "cpu",
    quiet: bool = False,
) -> None:
    """Fit a sampler to a trained model: for every number of calls a plan-N.json beside the weights, and its picture.

    `ornstein sample --calls N` then takes it. Where nothing better than the starting plan is found, that is saved, and said.

    Parameters
    ----------
    directory
        A model directory.
    calls
        Numbers of network calls, by commas: 5,8,10.
    sampler
        A sampler by name to start from; the default rule's plan unless given. A stochastic one is fitted by its law.
    grid
        Time grid of that sampler by name.
    cond
        Condition, name=value; several values by commas are dealt to the trajectories in turn. All classes unless given.
    guidance
        Scale of classifier-free guidance that the plans are for.
    trajectories
        Trajectories of the model's own flow to fit; half as many choose, and as many judge.
    steps
        Gradients through the run, at most; 0 is least squares alone.
    max_time
        Time for all plans together: 90s, 10m. The least squares are not cut short.
    seed
        Seed of the trajectories.
    batch
        Trajectories evaluated at a time.
    memory
        GiB that the gradients' graphs may take.
    device
        cpu, cuda or mps.
    quiet
        No progress line.
    """
    from ornstein import figures, model
    from ornstein.calibration import calibrate as fit
    from ornstein.calibration import fine_flow
    from ornstein.files import InputError
    from ornstein.kinds import OfSeries, with_denoiser
    from ornstein.noise import Noise
    from ornstein.parallel import main_process

    counts = _counts(calls)
    for name, value, least in (("--trajectories", trajectories, 8), ("--steps", steps, 0), ("--batch", batch, 1)):
        at_least(name, value, least)
    if not memory > 0:
        raise InputError(f"--memory {memory:g} must be above 0")
    limit = None if max_time is None else minutes(max_time) / len(counts)
    if not main_process():
        return
    loaded = model.load(directory, device=device)
    system: System | OfSeries
    if isinstance(loaded, OfSeries):
        if cond or guidance != 1:
            raise InputError(
                "--cond and --guidance are not for a model of series, whose plans are fitted to its training windows"
            )
        system, shape = loaded, loaded.drawn_shape
        denoiser: Denoises = loaded.denoiser
        conditions: dict[str, Tensor] | None = _windows(directory, loaded, trajectories)
    else:
        system = with_denoiser(loaded, "calibration")
        shape = system.contract.shape
        denoiser = system.shaped_denoiser(full_precision=True, guidance=guidance)
        conditions = _everyone(system, cond, trajectories)
    process, noise = system.denoiser.process, Noise(seed)
    starts = [_start(directory, system, sampler, grid, count) for count in counts]
    reference = fine_flow(
        denoiser, shape=shape, noise=noise, cond=conditions, calls=max(counts), trajectories=trajectories, batch_size=batch,
        device=system.device, progress=not quiet,
    )  # fmt: skip
    print(f"fine flow: {reference.calls} calls, its own error {reference.error:.2g}")
    fitted = []
    for start in starts:
        try:
            plan = fit(
                denoiser, start=start, shape=shape, noise=noise, cond=conditions, steps=steps, minutes=limit, reference=reference,
                batch_size=batch, memory=memory, device=system.device, progress=not quiet,
            )  # fmt: skip
        except ValueError as error:
            raise InputError(f"--sampler {start.name}: {error}") from error
        path = model.save_plan(directory, plan, guidance)
        figures.plan_picture(plan, process, path.with_suffix(".png"))
        assert plan.calibration is not None
        print(f"{path}: {plan.calibration}, {plan.calibration.seconds:.0f} s")
        fitted.append(plan)
    if len(shape) == 3:
        picture = directory / path.name.replace(f"plan-{counts[-1]}", "calibration").replace(".json", ".png")
        pairs = list(zip(starts, fitted, strict=True))
        figures.calibration_picture(denoiser, system.contract, pairs, reference.judge, picture)
        print(f"{picture}: the same start noise by every start and its plan, and by the fine flow")


def _counts(text: str) -> list[int]:
    from ornstein.files import InputError

    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--calls {text!r} is not a list of numbers; write --calls 5,8,10") from error
    for count in counts:
        at_least("--calls", count)
    return list(dict.fromkeys(counts))


def _start(directory: Path, system: System | OfSeries, sampler: str | None, grid: str | None, calls: int) -> Plan:
    """The plan to start from."""
    from ornstein.files import InputError
    from ornstein.samplers import ADAPTIVE, default_plan

    if sampler is None and grid is None:
        return default_plan(system.denoiser.process, calls)
    if sampler is not None and (sampler in ADAPTIVE or sampler.endswith(".json")):
        raise InputError(f"--sampler {sampler} is not the name of a sampler with a fixed number of calls; see `ornstein list`")
    plan = named_plan(directory, system, sampler, calls, grid)
    if plan.calls != calls:
        raise InputError(
            f"--calls {calls}: {plan.name} makes {plan.calls} of them; ask for {plan.calls}, or take another sampler"
        )
    return plan


def _windows(directory: Path, system: OfSeries, n: int) -> dict[str, Tensor]:
    """What a model of series knows at the ends of n contexts, spread evenly over its training windows."""
    import numpy as np

    from ornstein import model
    from ornstein.evaluate import divide
    from ornstein.kinds import load_data

    recipe = model.read_recipe(directory)
    training, _ = divide(recipe.data, load_data(recipe))
    places = np.linspace(0, len(training) - 1, min(n, len(training))).round().astype(np.int64)
    return system.memories(training.batch(places))


def _everyone(system: System, cond: list[str] | None, n: int) -> dict[str, Tensor] | None:
    """The conditions asked for, or all classes in turn where the model takes a class."""
    from ornstein.files import InputError

    if system.grid is not None and not cond:
        raise InputError("a model that takes a measurement is calibrated to some: give --cond grid=FILE")
    if cond or system.condition is None:
        return system.conditions(conditions_of(cond, n), n)
    classes = len(system.contract.classes or ())
    return system.conditions({system.condition: [k % classes for k in range(n)]}, n)
