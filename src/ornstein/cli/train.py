"""`ornstein train`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ornstein.cli.app import Set, app, minutes, needed

if TYPE_CHECKING:
    from ornstein.config import Recipe
    from ornstein.image.data import ImageData


@app.command
def train(
    recipe: str | None = None,
    *,
    data: str | None = None,
    horizon: int | None = None,
    future: str | None = None,
    static: str | None = None,
    columns: str | None = None,
    out: Path | None = None,
    settings: Set = None,
    resume: bool = False,
    init: Path | None = None,
    max_time: str | None = None,
    device: str = "auto",
    precision: Literal["float32", "bf16", "fp16", "auto"] | None = None,
    strategy: Literal["auto", "ddp", "fsdp"] = "auto",
    nodes: int = 1,
    strict: bool = False,
    quiet: bool = False,
) -> None:
    """Train a model.

    Parameters
    ----------
    recipe
        A bundled recipe (see `ornstein list`) or a YAML file. Without one, size and width are chosen from the data, and with
        --horizon the model of series.
    data
        Where the data lie, in place of the recipe's: a folder, ZIP, .npz, .npy, idx files, `digits`, or hf:NAME; of
        series a table (.csv, .parquet, .jsonl), a .npy, or a bundled series (see `ornstein list`).
    horizon
        Of series: steps that may be asked for after those that are seen.
    future
        Of series: a table of covariates that are known beyond the end too.
    static
        Of series: a table of numbers for every item.
    columns
        Of series: the channels to take, by commas; all unless given.
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
        float32, bf16, fp16 or auto (bf16 where the processor has it), in place of the recipe's.
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
    from ornstein.evaluate import divide, draw_figures, write_card
    from ornstein.files import InputError
    from ornstein.image.data import ImageData
    from ornstein.kinds import KINDS, describe, load_data
    from ornstein.parallel import main_process as is_main
    from ornstein.sequence.choose import suggest
    from ornstein.sequence.windows import SeriesData
    from ornstein.train import train as run

    main_process = is_main()
    if recipe is None and data is None and not resume:
        raise InputError("train needs a recipe or --data; see `ornstein list` for recipes")
    if resume and recipe is None:
        chosen = model.read_recipe(needed(out, "--out", "--resume needs the directory of the run"))
    elif recipe is not None:
        chosen = config.load_recipe(recipe)
    else:
        chosen = config.load_recipe("timegrad") if horizon is not None else config.Recipe()
    by_data = recipe is None and not resume
    target = out or Path("runs") / (Path(recipe).stem if recipe else Path(str(data).rstrip("/")).stem or "model")
    # quoted: a folder may be called 2024 or yes, which YAML would not take for a name
    changes = [f"data.source={json.dumps(data)}"] if data is not None else []
    if max_time is not None:
        changes.append(f"train.minutes={minutes(max_time)}")
    if strict:
        changes.append("data.strict=true")
    if precision is not None:
        changes.append(f"train.precision={precision}")
    changes += [
        f"data.{name}={json.dumps(value)}" for name, value in (("future", future), ("static", static)) if value is not None
    ]
    if columns is not None:
        changes.append(f"data.columns={json.dumps([name.strip() for name in columns.split(',')])}")
    if horizon is not None:
        if chosen.sequence is None:
            raise InputError(f"--horizon {horizon} belongs to a model of series; name one: timegrad, sssd or csdi")
        changes.append(f"sequence.horizon={horizon}")
    chosen = config.override(chosen, [*changes, *(settings or [])])
    if not resume and (target / model.WEIGHTS).exists() and main_process:
        raise InputError(f"--out {str(target)!r} already holds a model; add --resume, or give another --out")
    if by_data and horizon is None and _is_table(str(data)):
        chosen = config.override(config.load_recipe("points"), [*changes, *(settings or [])])
    everything = load_data(chosen)
    if by_data and isinstance(everything, ImageData):
        chosen = _automatic(chosen, everything, settings or [])
    if by_data and isinstance(everything, SeriesData):
        name, reason = suggest(everything)
        chosen = config.override(config.load_recipe(name), [*changes, *(settings or [])])
        everything = load_data(chosen)  # cut into windows as that recipe does
        if main_process and not quiet:
            print(reason, file=sys.stderr)
    training, held = divide(chosen.data, everything)
    chosen, reasons = KINDS[chosen.system].prepare(chosen, training)
    if main_process and not quiet:
        print(*reasons, sep="\n", end="\n" if reasons else "", file=sys.stderr)
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
        records = draw_figures(target, system, held or training)
        write_card(target, chosen, system, records)
        print(f"{target}: model, {', '.join(path.name for path in sorted(target.glob('*.png')))}, card.md")


def _is_table(source: str) -> bool:
    """Whether data given without a recipe are rows of numbers, by their name."""
    from ornstein.vector import DISTRIBUTIONS

    return source in DISTRIBUTIONS or Path(source).suffix in (".csv", ".tsv", ".txt")


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
