"""`ornstein info` and `list`."""

from __future__ import annotations

from pathlib import Path

from ornstein.cli.app import app


@app.command
def info(path: Path) -> None:
    """Describe a model directory or a plan's JSON file.

    Parameters
    ----------
    path
        A model directory, or a plan saved as JSON.
    """
    from ornstein import config, model
    from ornstein.samplers import Plan

    if path.suffix == ".json":
        print(Plan.load(path))
        return
    system = model.load(path)
    print(config.dump(model.read_recipe(path)))
    contract = system.contract
    print(f"data: shape {contract.shape}, channels {', '.join(contract.channels)}, range {contract.low} … {contract.high}")
    print(f"classes: {', '.join(contract.classes) if contract.classes else 'none'}")
    print(f"parameters: {sum(p.numel() for p in system.net.parameters()):,}")
    for name in sorted(model.plans(path)):
        print(f"plan: {name}")
    if system.plan is not None:
        print(system.plan)


@app.command(name="list")
def list_() -> None:
    """List recipes, samplers, processes and time grids."""
    from ornstein import config, grid, process, samplers

    print("recipes")
    for name in config.bundled():
        print(f"  {name:<12} {config.load_recipe(name).description}")
    tables: dict[str, dict[str, object]] = {
        "samplers": dict(samplers.ALL),
        "samplers that choose their own steps": dict(samplers.ADAPTIVE),
        "processes": dict(process.ALL),
        "grids": dict(grid.GRIDS),
    }
    for title, table in tables.items():
        print(title)
        for name, entry in table.items():
            print(f"  {name:<20} {(entry.__doc__ or '').strip().splitlines()[0]}")
