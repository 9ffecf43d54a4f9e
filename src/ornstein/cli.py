"""The `ornstein` command: each subcommand is a plain typed function that calls the public API.

Exit codes: 0 done, 1 failed while running, 2 wrong input. Heavy imports wait until a command runs.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

if TYPE_CHECKING:
    from ornstein.config import Recipe
    from ornstein.image.data import ImageData
    from ornstein.samplers import Plan
    from ornstein.system import System

app = App(
    name="ornstein",
    help="Diffusion models for images, series, fields and vectors: train, sample, measure.",
    suppress_keyboard_interrupt=False,
)

Set = Annotated[list[str] | None, Parameter(name="--set", help="Change a key of the recipe: a.b=value. May be repeated.")]
Cond = Annotated[list[str] | None, Parameter(name="--cond", help="Condition, name=value: label=3. May be repeated.")]
Count = Annotated[int, Parameter(name=["-n", "--number"])]


@app.command
def train(
    recipe: str | None = None,
    *,
    data: str | None = None,
    out: Path | None = None,
    settings: Set = None,
    resume: bool = False,
    init: Path | None = None,
    max_time: str | None = None,
    device: str = "auto",
    precision: Literal["float32", "bf16", "fp16"] | None = None,
    strategy: Literal["auto", "ddp", "fsdp"] = "auto",
    nodes: int = 1,
    strict: bool = False,
    quiet: bool = False,
) -> None:
    """Train a model.

    Parameters
    ----------
    recipe
        A bundled recipe (see `ornstein list`) or a YAML file. Without one, size and width are chosen from the data.
    data
        Where the data lie, in place of the recipe's: a folder, ZIP, .npz, .npy, idx files, `digits`, or hf:NAME.
    out
        The model directory to write; runs/RECIPE unless given.
    resume
        Go on exactly where the run in --out stands.
    init
        Start from the weights of this model directory (fine-tuning).
    max_time
        End after this time with everything saved: 90s, 10m, 2h.
    device
        auto, cpu, cuda or mps.
    precision
        float32, bf16 or fp16, in place of the recipe's.
    strategy
        auto, ddp or fsdp, for runs under torchrun.
    nodes
        Number of machines, for runs under torchrun.
    strict
        Stop at the first unreadable file, instead of naming it and going on.
    quiet
        No progress line.
    """
    from ornstein import config, model
    from ornstein.evaluate import divide, draw_figures, load_data, write_card
    from ornstein.files import InputError
    from ornstein.image.data import describe
    from ornstein.train import train as run

    main_process = int(os.environ.get("RANK", "0")) == 0
    if recipe is None and data is None and not resume:
        raise InputError("train needs a recipe or --data; see `ornstein list` for recipes")
    if resume and recipe is None:
        chosen = model.read_recipe(_needed(out, "--out", "--resume needs the directory of the run"))
    else:
        chosen = config.load_recipe(recipe) if recipe is not None else config.Recipe()
    target = out or Path("runs") / (Path(recipe).stem if recipe else Path(str(data).rstrip("/")).stem or "model")
    # quoted: a folder may be called 2024 or yes, which YAML would not take for a name
    changes = [f"data.source={json.dumps(data)}"] if data is not None else []
    if max_time is not None:
        changes.append(f"train.minutes={_minutes(max_time)}")
    if strict:
        changes.append("data.strict=true")
    if precision is not None:
        changes.append(f"train.precision={precision}")
    chosen = config.override(chosen, [*changes, *(settings or [])])
    if not resume and (target / model.WEIGHTS).exists() and main_process:
        raise InputError(f"--out {str(target)!r} already holds a model; add --resume, or give another --out")
    everything = load_data(chosen.data)
    if recipe is None and not resume:
        chosen = _automatic(chosen, everything, settings or [])
    training, held = divide(chosen.data, everything)
    if main_process and not quiet:
        print(describe(everything), file=sys.stderr)
        print(f"training on {len(training)}, held out {len(held) if held else 0}; writing to {target}", file=sys.stderr)
    system = run(
        chosen,
        training,
        held,
        training.contract,
        target,
        resume=resume,
        init=init,
        device=device,
        strategy=strategy,
        nodes=nodes,
        progress=not quiet,
    )
    if main_process:
        draw_figures(target, system, held or training)
        write_card(target, chosen, system, [])
        print(f"{target}: model, samples.png, strip.png, loss.png, card.md")


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
    _at_least("-n", number)
    _at_least("--batch", batch)
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

    _at_least("-n", number)
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

    _at_least("-n", number, 2)
    _at_least("--draws", draws)
    system = model.load(directory, device=device)
    training, reference = _references(model.read_recipe(directory), system, data)
    print(metrics.table(likelihood(system, training, reference, n=number, draws=draws, seed=seed, progress=not quiet)))


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
    for title, table in (("samplers", samplers.ALL), ("processes", process.ALL), ("grids", grid.GRIDS)):
        print(title)
        for name, entry in table.items():
            print(f"  {name:<16} {(entry.__doc__ or '').strip().splitlines()[0]}")


def main() -> None:
    """Run the command line; exit with 0, 1 or 2."""
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail(re.sub(r"\s+", " ", str(error)), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 1)
    except BrokenPipeError:
        # the reader of our output (head, less) has gone: nothing is left to tell it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        from ornstein.files import InputError

        if isinstance(error, InputError):
            _fail(str(error), 2)
        if isinstance(error, OSError | FloatingPointError):
            _fail(f"{type(error).__name__}: {error}", 1)
        raise


def _fail(message: str, code: int) -> None:
    print(f"ornstein: error: {message}", file=sys.stderr)
    raise SystemExit(code)


def _minutes(text: str) -> float:
    from ornstein.files import InputError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)", text.strip())
    if match is None:
        raise InputError(f"--max-time {text!r} is not a time; write 90s, 10m or 2h")
    return float(match[1]) * {"s": 1 / 60, "m": 1.0, "h": 60.0}[match[2]]


def _needed(value: Path | None, name: str, why: str) -> Path:
    from ornstein.files import InputError

    if value is None:
        raise InputError(f"{name} is missing: {why}")
    return value


def _at_least(name: str, value: int | None, least: int = 1) -> None:
    from ornstein.files import InputError

    if value is not None and value < least:
        raise InputError(f"{name} {value} must be at least {least}")


def _automatic(recipe: Recipe, data: ImageData, settings: list[str]) -> Recipe:
    """A recipe for data that came without one, and the reasons on standard error."""
    from ornstein import config
    from ornstein.image.automatic import suggest

    choice = suggest(data)
    for reason in choice["reasons"]:
        print(reason, file=sys.stderr)
    labelled = data.labels is not None
    chosen = recipe.model_copy(
        update={
            "description": f"{recipe.data.source}, chosen by ornstein train without a recipe",
            "condition": "label" if labelled else None,
            "net": config.NetConfig(options=choice["net"]),
            "loss": config.LossConfig(weighting="edm", times="log_normal", mean=-0.4, std=1.4),
            "train": recipe.train.model_copy(update={"batch": choice["batch"], "learning_rate": 5e-4}),
        }
    )
    return config.override(chosen, settings)


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
    _at_least("--calls", calls)
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
