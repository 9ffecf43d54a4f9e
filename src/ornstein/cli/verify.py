"""`ornstein verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ornstein.cli.app import app

if TYPE_CHECKING:
    from ornstein.process import GaussianProcess
    from ornstein.verify import Claim

Names = Annotated[list[str] | None, Parameter(consume_multiple=True)]


@app.command
def verify(
    *,
    sampler: Names = None,
    process: Names = None,
    order: float | None = None,
    grid: str = "log_snr",
    out: Path | None = None,
    page: Path | None = None,
    quiet: bool = False,
) -> None:
    """Hold samplers against exact answers: measured order, bias, error against calls. Ends with 1 when a claim fails.

    Parameters
    ----------
    sampler
        Samplers by name (`ddim`, `unipc(3, bh2)`, …) or your own as module:function, (process, calls, grid) -> Plan, with `end=`
        to stop at a noise level. All that Ornstein has unless given.
    process
        Processes by name, or your own as module:object. All unless given.
    order
        The order that your own sampler claims; its attribute `order` or 1 unless given.
    grid
        The time grid of your own sampler.
    out
        Write the figures to this JSON file.
    page
        Write the page "How to choose a sampler" to this Markdown file, pictures beside it in images/.
    quiet
        No progress line.
    """
    import json
    import os
    from dataclasses import asdict

    from ornstein import verify as bench
    from ornstein.files import write_atomic

    own = any(":" in name for name in (sampler or []) + (process or []))  # may hold what cannot be sent to another process
    workers = 1 if own else max(1, min(os.cpu_count() or 1, 8))
    results = bench.verify(_claims(sampler, order, grid), _processes(process), workers=workers, progress=not quiet)
    print(bench.table(results))
    if out is not None:
        with write_atomic(out) as temporary:
            temporary.write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")
    if page is not None:
        bench.page(results, page)
    failed = [result for result in results if result.failures]
    if failed:
        raise SystemExit(1)


def _claims(names: list[str] | None, order: float | None, grid: str) -> dict[str, Claim]:
    from ornstein.files import InputError
    from ornstein.grid import GRIDS
    from ornstein.process import VP
    from ornstein.verify import CLAIMS, Claim

    if grid not in GRIDS:
        raise InputError(f"--grid {grid!r} is not one of {', '.join(GRIDS)}")
    if names is None:
        return dict(CLAIMS)
    chosen: dict[str, Claim] = {}
    for name in names:
        variants = {key: claim for key, claim in CLAIMS.items() if key == name or key.split("(")[0] == name}
        if ":" in name:
            make = _imported(name, "--sampler")
            if not callable(make):
                raise InputError(f"--sampler {name!r} is no function (process, calls, grid) -> Plan")
            try:
                make(VP(), 4, grid, end=0.1)
            except (TypeError, ValueError) as error:
                needs = "must take (process, calls, grid, end=time) and give a Plan"
                raise InputError(f"--sampler {name!r} {needs}: {error}") from error
            chosen[name] = Claim(make, float(order if order is not None else getattr(make, "order", 1)), grid)
        elif variants:
            chosen |= variants
        else:
            raise InputError(f"--sampler {name!r} is not one of {', '.join(CLAIMS)}; nor module:function")
    return chosen


def _processes(names: list[str] | None) -> dict[str, GaussianProcess] | None:
    from ornstein import process
    from ornstein.files import InputError

    if names is None:
        return None
    chosen: dict[str, GaussianProcess] = {}
    for name in names:
        if ":" in name:
            found = _imported(name, "--process")
            made = found() if callable(found) and not isinstance(found, process.GaussianProcess) else found
            if not isinstance(made, process.GaussianProcess):
                raise InputError(f"--process {name!r} is no GaussianProcess, nor a function that makes one")
            chosen[name] = made
        elif name in process.ALL:
            chosen[name] = process.ALL[name]()
        else:
            raise InputError(f"--process {name!r} is not one of {', '.join(process.ALL)}; nor module:object")
    return chosen


def _imported(name: str, option: str) -> object:
    """The object `module:name`, its module looked for in the working directory too."""
    import sys
    from importlib import import_module

    from ornstein.files import InputError

    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{option} {name!r} cannot be imported: {error}") from error
    finally:
        sys.path.remove(str(Path.cwd()))
