"""`ornstein evaluate` and `nll`: a trained model against held-out data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ornstein.cli.app import Count, app, at_least
from ornstein.cli.inputs import references, sampler_of


@app.command
def evaluate(
    directory: Path,
    *,
    data: str | None = None,
    number: Count = 1000,
    extractor: str | None = None,
    sampler: str | None = None,
    calls: int | None = None,
    rtol: float | None = None,
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
        pixels, columns, or a classifier's .safetensors file; pixels for images and columns for tables unless given.
    sampler
        A sampler by name or a plan's JSON file.
    calls
        Network calls per sample.
    rtol
        Tolerance of a sampler that chooses its own steps.
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
    from ornstein.kinds import with_denoiser
    from ornstein.system import System
    from ornstein.vector import DPMSystem

    at_least("-n", number)
    system = model.load(directory, device=device)
    recipe = model.read_recipe(directory)
    training, reference = references(recipe, system, data)
    features = metrics.load_extractor(extractor) if extractor is not None else None
    chosen = None
    if any(option is not None for option in (sampler, calls, rtol, grid)):
        chosen = sampler_of(directory, with_denoiser(system, "a sampler"), sampler, calls, rtol, grid)
    records = measure(system, training, reference, n=number, extractor=features, sampler=chosen, seed=seed, progress=not quiet)
    if isinstance(system, System | DPMSystem):
        records += likelihood(system, training, reference, n=number, seed=seed, progress=not quiet)
    metrics.write_records(directory / model.METRICS, records)
    write_card(directory, recipe, system, records)
    print(metrics.table(records))


@app.command
def nll(
    directory: Path,
    *,
    data: str | None = None,
    number: Count = 1000,
    by: Literal["bound", "ode", "both"] = "bound",
    draws: int = 20,
    dequantisation: Literal["uniform", "gaussian"] = "uniform",
    divergence: Literal["exact", "rademacher", "gaussian"] = "rademacher",
    probes: int = 8,
    rtol: float = 1e-5,
    seed: int = 0,
    device: str = "cpu",
    quiet: bool = False,
) -> None:
    """Negative log-likelihood of data, in bits/dim where they have grey levels: the variational bound, or the probability flow.

    Parameters
    ----------
    directory
        A model directory.
    data
        Data to judge; the held-out part of the training data unless given.
    number
        At most so many data.
    by
        bound, ode (the probability flow, about a hundred calls with `probes` gradients each), or both side by side.
    draws
        Noise levels of the bound drawn per datum, out of 1000.
    dequantisation
        The noise that fills grey levels for the flow: uniform, as papers do, or gaussian with the bound's own decoder.
    divergence
        exact (a gradient per dimension), or estimated with rademacher or gaussian probes.
    probes
        Random vectors per datum for the divergence.
    rtol
        Tolerance of the flow's solver.
    seed
        Seed of levels, noise and probes.
    device
        cpu, cuda or mps.
    quiet
        No progress line.
    """
    from ornstein import metrics, model
    from ornstein.evaluate import ESTIMATES, likelihood
    from ornstein.files import InputError
    from ornstein.parallel import main_process

    at_least("-n", number, 2)
    at_least("--draws", draws)
    at_least("--probes", probes)
    if not 1.2e-6 <= rtol < 1:
        raise InputError(f"--rtol {rtol:g} must lie between 1.2e-6, what float32 resolves, and 1")
    system = model.load(directory, device=device)
    training, reference = references(model.read_recipe(directory), system, data)
    records = likelihood(
        system, training, reference, n=number, by=ESTIMATES if by == "both" else (by,), draws=draws, seed=seed,
        dequantisation=dequantisation, divergence=divergence, probes=probes, rtol=rtol, progress=not quiet,
    )  # fmt: skip
    if main_process():
        print(metrics.table(records))
