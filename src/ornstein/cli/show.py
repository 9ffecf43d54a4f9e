"""`ornstein info` and `list`."""

from __future__ import annotations

from pathlib import Path

from ornstein.cli.app import app


@app.command
def info(path: Path, *, out: Path | None = None) -> None:
    """Describe a model directory or a plan's JSON file; a plan beside a model's weights is compared with DPM-Solver++.

    Parameters
    ----------
    path
        A model directory, or a plan saved as JSON.
    out
        A .png for the plan's times and coefficients beside those of DPM-Solver++.
    """
    from ornstein import config, model
    from ornstein.files import InputError

    if path.suffix == ".json":
        _plan(path, out)
        return
    if out is not None:
        raise InputError(f"--out {str(out)!r} draws a plan; give its JSON file in place of {str(path)!r}")
    system = model.load(path)
    print(config.dump(model.read_recipe(path)))
    contract = system.contract
    print(f"data: shape {contract.shape}, channels {', '.join(contract.channels)}, range {contract.low} … {contract.high}")
    print(f"classes: {', '.join(contract.classes) if contract.classes else 'none'}")
    print(f"parameters: {sum(p.numel() for p in system.net.parameters()):,}")
    for name, plan in sorted(model.plans(path).items()):
        print(f"plan: {name}" + (f", {plan.calibration}" if plan.calibration is not None else ""))
    if system.plan is not None:
        print(system.plan)


def _plan(path: Path, out: Path | None) -> None:
    """Print a plan, how it was calibrated, and beside which it stands; draw it if asked."""
    from ornstein import figures, model
    from ornstein.calibration import beside
    from ornstein.files import InputError
    from ornstein.kinds import with_denoiser
    from ornstein.samplers import Plan, dpm_solver_pp

    plan = Plan.load(path)
    print(plan)
    facts = plan.calibration
    if facts is not None:
        print(f"\n{facts}")
        print(f"calibrated for {facts.denoiser}, weights {facts.weights}, conditions {', '.join(facts.conditions) or 'none'}")
        accuracy = "" if facts.fine_error is None else f" (error {facts.fine_error:.2g})"
        print(
            f"{facts.trajectories} trajectories of seed {facts.seed}, {facts.evaluations} gradients, fine flow of "
            f"{facts.fine_calls} calls{accuracy}, {facts.seconds:.0f} s, ornstein {facts.version}"
        )
    if not (path.parent / model.CONFIG).exists():
        if out is not None:
            raise InputError(f"--out {str(out)!r} needs the model's process: keep {path.name} in its model directory")
        return
    process = with_denoiser(model.load(path.parent), "a plan").denoiser.process
    try:
        print(f"\n{beside(plan, dpm_solver_pp(process, plan.calls), process)}")
        if out is not None:
            figures.plan_picture(plan, process, out)
            print(f"{out}: times and coefficients")
    except ValueError as error:
        if out is not None:
            raise InputError(f"--out {str(out)!r}: {error}") from error


@app.command(name="list")
def list_() -> None:
    """List recipes, samplers, processes, time grids, figures, operators, methods that restore what they measured, and of series
    those that are bundled, baselines, masks and scalings."""
    from ornstein import config, figures, grid, guidance, operator, process, samplers
    from ornstein.process.cold import COLD
    from ornstein.sequence.baselines import FORECASTERS
    from ornstein.sequence.masks import MASKS
    from ornstein.sequence.scaling import SCALINGS
    from ornstein.sequence.sources import SOURCES

    print("recipes")
    for name in config.bundled():
        print(f"  {name:<16} {config.load_recipe(name).description}")
    tables: dict[str, dict[str, object]] = {
        "samplers": dict(samplers.ALL),
        "samplers that choose their own steps": dict(samplers.ADAPTIVE),
        "processes": dict(process.ALL),
        "grids": dict(grid.GRIDS),
        "figures": dict(figures.GALLERY),
        "degradations of cold diffusion": dict(COLD),
        "methods of restore": {name: method.run for name, method in guidance.METHODS.items()},
        "bundled series": dict(SOURCES),
        "baselines of backtest": dict(FORECASTERS),
        "masks of sssd and csdi (sequence.masks)": dict(MASKS),
        "units of windows (sequence.scaling)": dict(SCALINGS),
    }
    for title, table in tables.items():
        print(title)
        for name, entry in table.items():
            print(f"  {name:<26} {(entry.__doc__ or '').strip().splitlines()[0]}")
    print("operators of restore, and of condition: grid")
    for name, text in operator.usage().items():
        print(f"  {name:<40} {text}")
