"""`ornstein sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ornstein.cli.app import Cond, Count, Guidance, app, at_least
from ornstein.cli.guides import cost, guidance_of
from ornstein.cli.inputs import budgeted, conditions_of, corrector_of, picture, sampler_of, samples_of, write_csv, write_npz

if TYPE_CHECKING:
    from ornstein.samplers import Adaptive


@app.command
def sample(
    directory: Path,
    *,
    number: Count = 16,
    sampler: str | None = None,
    calls: int | Literal["auto"] | None = None,
    tol: float | None = None,
    rtol: float | None = None,
    grid: str | None = None,
    corrector: int = 0,
    snr: float | None = None,
    cond: Cond = None,
    guidance: Guidance = 1.0,
    guidance_interval: str | None = None,
    rescale: float | None = None,
    negative: str | None = None,
    weaker: Path | None = None,
    classifier: Path | None = None,
    seed: int = 0,
    batch: int | None = None,
    out: Path = Path("samples.png"),
    device: str = "cpu",
    precision: Literal["float32", "bf16", "auto"] | None = None,
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
        Network calls per sample, by the plan that `ornstein calibrate` fitted to them where there is one; `auto`: as many as
        bring the discretisation error below the Monte-Carlo error of -n samples.
    tol
        Choose the calls so that nine samples in ten lie within this distance of the exact flow's, in standard deviations of the
        data: 0.01. A pilot batch finds out, and prints its table.
    rtol
        Tolerance of a sampler that chooses its own steps: rk45, gotta_go_fast, dpm_solver_adaptive.
    grid
        Time grid by name.
    corrector
        Langevin corrector steps after every row of the sampler, a call each.
    snr
        Signal-to-noise ratio of the corrector's steps; 0.3 unless given.
    cond
        Condition, name=value; several values by commas are dealt to the samples in turn: label=0,1,2.
    guidance
        Scale of guidance: 1 is the model itself, and any other evaluates the network twice at every call.
    guidance_interval
        Noise-to-signal ratios between which to guide, low,high: 0.3,5. Elsewhere a call evaluates once.
    rescale
        Part, 0 to 1, of the way that the spread of every guided prediction is taken back to that of the unguided one: 0.7.
    negative
        A condition to be guided away from, in place of none: label=5.
    weaker
        The directory of a less trained or smaller model of the same data to be guided away from (autoguidance).
    classifier
        The directory of a classifier of noisy data (`ornstein train classifier`) that guides to the label of --cond; the model
        itself is then asked without a condition. Here --guidance 1 is Bayes' rule.
    seed
        Sample i of a seed is the same in any batch size and on any device.
    batch
        Samples drawn at a time; 64 unless given.
    out
        A .png (a grid, or points), a .npz whose array `samples` is in the data's own range, or a .csv for tables.
    device
        cpu, cuda or mps.
    precision
        float32, bf16 for the network alone, or auto (bf16 where the processor has it), in place of the recipe's.
    quiet
        No progress line.
    """
    from ornstein import model
    from ornstein.files import InputError
    from ornstein.image.cold import ColdSystem, Restoration
    from ornstein.kinds import sampled, with_denoiser
    from ornstein.noise import Noise
    from ornstein.parallel import shares
    from ornstein.samplers import Plan
    from ornstein.system import System

    if out.suffix not in (".png", ".npz", ".csv"):
        raise InputError(f"--out {str(out)!r} must end in .png, .npz or .csv")
    at_least("-n", number)
    at_least("--batch", batch)
    system = sampled(model.load(directory, device=device), "sample")
    if out.suffix == ".csv" and len(system.contract.shape) != 1:
        raise InputError(f"--out {str(out)!r}: only rows of a table fit into a .csv; give a .npz")
    if precision is not None:
        with_denoiser(system, "--precision").precision = precision
    conditions = conditions_of(cond, number)
    guide = guidance_of(system, guidance, guidance_interval, rescale, negative, weaker, classifier)
    after = None
    if not isinstance(system, System):
        cold = isinstance(system, ColdSystem)
        asked = {
            "--sampler": None if cold else sampler,
            "--calls": None if cold and calls != "auto" else calls,
            "--tol": tol,
            "--rtol": rtol,
            "--grid": grid,
            "--corrector": corrector or None,
        }
        for name, value in asked.items():
            if value is not None:
                with_denoiser(system, name)
        chosen: Plan | Adaptive | Restoration | None = None
        if isinstance(system, ColdSystem):
            chosen = system.sampler_for(sampler, calls=None if calls == "auto" else calls)
    elif tol is not None or calls == "auto":
        chosen = budgeted(directory, system, sampler, calls, tol, rtol, grid, number, cond, guide, seed, quiet)
    else:
        chosen = sampler_of(directory, system, sampler, calls, rtol, grid, guide)
    if isinstance(system, System) and not isinstance(chosen, Restoration):
        after = corrector_of(system, chosen, corrector, snr, guide)
    with shares(number) as share:
        mine = None if conditions is None else {k: v[share.first : share.first + share.count] for k, v in conditions.items()}
        part = system.draw(
            share.count, cond=mine, guidance=guide, sampler=chosen,  # type: ignore[arg-type]  # its own kind's
            noise=Noise(seed), first=share.first, batch_size=batch, after=after, progress=not quiet,
        )  # fmt: skip
        samples, counted = share.gather(part.x0.cpu()), share.gather(part.calls)
        if not share.main:
            return
    if out.suffix == ".png":
        picture(out, system, samples)
    elif out.suffix == ".csv":
        write_csv(out, system, samples)
    else:
        write_npz(out, system, {"samples": samples_of(system, samples)}, conditions)
    low, high, mean = int(counted.min()), int(counted.max()), float(counted.double().mean())
    spread = f"{low} calls each" if low == high else f"{mean:.0f} calls each on average ({low} to {high})"
    if isinstance(system, System):
        fixed = chosen if isinstance(chosen, Plan) and after is None else None
        spread += cost(system.shaped_denoiser(guidance=guide), fixed)
    print(f"{out}: {number} samples, {chosen.name if chosen else 'default plan'}{' with corrector' if after else ''}, {spread}")
