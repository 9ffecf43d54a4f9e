"""`ornstein forecast`, `ornstein impute` and `ornstein backtest`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ornstein.cli.app import app, at_least

if TYPE_CHECKING:
    from ornstein.config import DataConfig
    from ornstein.sequence import Forecast, Series
    from ornstein.sequence.predict import SequenceModel

Columns = Annotated[
    str | None, Parameter(name="--columns", help="The channels to take, by commas; those of the model unless given.")
]


@app.command
def forecast(
    directory: Path,
    *,
    data: str,
    horizon: int | None = None,
    draws: int = 200,
    calls: int | None = None,
    out: Path = Path("forecast.csv"),
    samples: Path | None = None,
    future: str | None = None,
    static: str | None = None,
    columns: Columns = None,
    seed: int = 0,
    batch: int | None = None,
    device: str = "cpu",
    quiet: bool = False,
) -> None:
    """Forecast the steps after the end of a table: mean and quantiles of draws, and a fan chart beside them.

    Parameters
    ----------
    directory
        A model directory of timegrad, sssd or csdi.
    data
        The history: a table as in training (.csv, .parquet, .jsonl, .npy), or a bundled series by name.
    horizon
        Steps to forecast; the model's unless given.
    draws
        Draws of the whole forecast.
    calls
        Network calls for every draw (timegrad: every step); a plan calibrated for so many is taken. The recipe's unless given.
    out
        A .csv of mean and quantiles; a picture of the same name is drawn too.
    samples
        A .npz for the draws themselves, (draw, time, channel).
    future
        A table of covariates that are known beyond the end, if the model was trained with them.
    static
        A table of numbers for every item, if the model was trained with them.
    seed
        Seed of the draws.
    batch
        Draws at a time; changes memory only.
    device
        cpu, cuda or mps.
    quiet
        No progress line.
    """
    from ornstein import figures
    from ornstein.noise import Noise
    from ornstein.sequence import forecast as draw

    _demand(out, ".csv", "--out")
    for name, value in (("--draws", draws), ("--horizon", horizon), ("--calls", calls), ("--batch", batch)):
        at_least(name, value)
    model, items = _loaded(directory, data, device, future, static, columns)
    found = [
        draw(
            model, one, horizon=horizon, draws=draws, noise=Noise(_item_seed(seed, number)), sampler=calls, batch_size=batch,
            progress=not quiet,
        )
        for number, one in enumerate(items)
    ]  # fmt: skip
    _write(out, found)
    picture = out.with_suffix(".png")
    look_back = max(2 * found[0].draws.shape[1], model.windowing.context)
    figures.fan_chart(found[0], picture, history=items[0].frame().tail(look_back))
    if samples is not None:
        _write_draws(samples, {_key(one, number): one.draws for number, one in enumerate(found)})
    print(
        f"{out}, {picture}: {found[0].draws.shape[1]} steps of {len(found)} item(s), {draws} draws, {model.plan_of(calls).name}"
    )


@app.command
def impute(
    directory: Path,
    *,
    data: str,
    draws: int = 100,
    calls: int | None = None,
    out: Path = Path("filled.csv"),
    samples: Path | None = None,
    future: str | None = None,
    static: str | None = None,
    columns: Columns = None,
    seed: int = 0,
    batch: int | None = None,
    device: str = "cpu",
    quiet: bool = False,
) -> None:
    """Fill what is missing of a table: its median, and beside it a picture of the draws. What is there stays as it is.

    Parameters
    ----------
    directory
        A model directory of sssd or csdi.
    data
        The table with gaps: empty cells, NaN, or rows that are not there.
    draws
        Draws of everything that is missing.
    calls
        Network calls for every window; the recipe's unless given.
    out
        A .csv of the filled table; NAME-quantiles.csv holds mean and quantiles.
    samples
        A .npz for the draws themselves, (draw, time, channel).
    future
        A table of covariates, if the model was trained with them.
    static
        A table of numbers for every item, if the model was trained with them.
    seed
        Seed of the draws.
    batch
        Draws at a time; changes memory only.
    device
        cpu, cuda or mps.
    quiet
        No progress line.
    """
    import numpy as np

    from ornstein import figures
    from ornstein.noise import Noise
    from ornstein.sequence import impute as draw

    _demand(out, ".csv", "--out")
    for name, value in (("--draws", draws), ("--calls", calls), ("--batch", batch)):
        at_least(name, value)
    model, items = _loaded(directory, data, device, future, static, columns)
    found = [
        draw(model, one, draws=draws, noise=Noise(_item_seed(seed, number)), sampler=calls, batch_size=batch, progress=not quiet)
        for number, one in enumerate(items)
    ]
    _write(out, found, filled=True)
    _write(out.with_name(f"{out.stem}-quantiles.csv"), found)
    picture = out.with_suffix(".png")
    figures.fan_chart(found[0], picture, history=items[0].frame())
    if samples is not None:
        _write_draws(samples, {_key(one, number): one.draws for number, one in enumerate(found)})
    missing = sum(int((~np.isfinite(one.values)).sum()) for one in items)
    print(f"{out}, {picture}: {missing} numbers filled, {draws} draws, {model.plan_of(calls).name}")


@app.command
def backtest(
    directory: Path,
    *,
    data: str,
    horizon: int | None = None,
    windows: int = 5,
    first: int | None = None,
    stride: int | None = None,
    draws: int = 200,
    calls: int | None = None,
    season: int | None = None,
    baselines: str | None = None,
    json_out: Annotated[Path | None, Parameter(name="--json")] = None,
    draws_out: Path | None = None,
    picture: Path | None = None,
    future: str | None = None,
    static: str | None = None,
    columns: Columns = None,
    seed: int = 0,
    batch: int | None = None,
    device: str = "cpu",
    quiet: bool = False,
) -> None:
    """Forecast from rolling origins and hold model and baselines against what came; each sees the rows before its origin alone.

    Parameters
    ----------
    directory
        A model directory of timegrad, sssd or csdi.
    data
        The whole table: history and what came.
    horizon
        Steps of every forecast; the model's unless given.
    windows
        How many forecasts.
    first
        Rows known at the first of them; such that the last ends with the table, unless given.
    stride
        Rows from one to the next; a horizon unless given.
    draws
        Draws of every forecast.
    calls
        Network calls for every draw (timegrad: for every step); the recipe's unless given.
    season
        Steps after which things repeat, for the seasonal baselines and MASE; by the data's frequency unless given.
    baselines
        Baselines by name, by commas; all unless given.
    json_out
        A .json for the report.
    draws_out
        A .npz for `draws` (window, draw, time, channel) and `truth` (window, time, channel), in the data's own units.
    picture
        A .png for the fan charts of the first window.
    future
        A table of covariates, if the model was trained with them.
    static
        A table of numbers for every item, if the model was trained with them.
    seed
        Seed of the draws.
    batch
        Draws at a time; changes memory only.
    device
        cpu, cuda or mps.
    quiet
        No progress line.
    """
    from ornstein import figures
    from ornstein.files import InputError, write_json
    from ornstein.noise import Noise
    from ornstein.sequence import Forecast, calendar
    from ornstein.sequence.backtest import FORECASTERS
    from ornstein.sequence.backtest import backtest as run
    from ornstein.sequence.windows import rolling_origins

    for name, value in (("--draws", draws), ("--horizon", horizon), ("--calls", calls), ("--batch", batch), ("--season", season)):
        at_least(name, value)
    for path, ending, name in ((json_out, ".json", "--json"), (draws_out, ".npz", "--draws-out"), (picture, ".png", "--picture")):
        if path is not None:
            _demand(path, ending, name)
    model, items = _loaded(directory, data, device, future, static, columns)
    if len(items) > 1:
        raise InputError(f"--data {data!r} holds {len(items)} items; backtest takes one series of one or more channels")
    one, steps = items[0], horizon or model.windowing.horizon
    origins = rolling_origins(len(one), steps, windows, first=first, stride=stride)
    period = season if season is not None else calendar.season(one.frequency)
    chosen = tuple(FORECASTERS) if baselines is None else tuple(part.strip() for part in baselines.split(","))
    found = run(
        model, one, origins, horizon=steps, draws=draws, noise=Noise(seed), season=period, sampler=calls, baselines=chosen,
        name=directory.name, batch_size=batch, progress=not quiet,
    )  # fmt: skip
    print(found.table())
    print(
        f"{windows} windows of {steps} steps after rows {origins[0]} … {origins[-1]}, {draws} draws, {model.plan_of(calls).name}"
    )
    if draws_out is not None:
        _write_draws(draws_out, {"draws": found.draws, "truth": found.truth})
    if json_out is not None:
        settings = {"horizon": steps, "windows": windows, "draws": draws, "season": period, "seed": seed}
        report = {"settings": settings, "origins": list(origins), "rows": found.rows, "seconds": found.seconds}
        write_json(json_out, {**report, "refused": found.refused, "sampler": model.plan_of(calls).name})
    if picture is not None:
        at = origins[0]
        shown = Forecast(found.draws[0], one.index[at : at + steps], one.channels)
        figures.fan_chart(shown, picture, history=one.head(at).frame().tail(2 * steps), truth=found.truth[0])


def _loaded(
    directory: Path, data: str, device: str, future: str | None, static: str | None, columns: str | None
) -> tuple[SequenceModel, tuple[Series, ...]]:
    """The model of series, and the items of a source read as in training."""
    from ornstein import model
    from ornstein.files import InputError
    from ornstein.sequence import read_series
    from ornstein.sequence.imputer import ImputerSystem
    from ornstein.sequence.sources import SOURCES
    from ornstein.sequence.timegrad import TimeGradSystem

    system = model.load(directory, device=device)
    if not isinstance(system, TimeGradSystem | ImputerSystem):
        raise InputError(f"model={str(directory)!r} is no model of series; train timegrad, sssd or csdi")
    config: DataConfig = model.read_recipe(directory).data
    if data in SOURCES:
        return system, SOURCES[data]()
    wanted = columns.split(",") if columns is not None else config.columns
    return system, read_series(
        data, time=config.time, item=config.item, value=config.value, columns=wanted, future=future, static=static
    )


def _demand(path: Path, ending: str, name: str) -> None:
    from ornstein.files import InputError

    if path.suffix != ending:
        raise InputError(f"{name} {str(path)!r} must end in {ending}")


def _item_seed(seed: int, number: int) -> int:
    """A seed of its own for every item of a panel; the first has the user's."""
    from ornstein.noise import Noise

    return seed if number == 0 else Noise(seed).key("item", number)


def _key(one: Forecast, number: int) -> str:
    return one.item or f"item {number}"


def _write(out: Path, found: list[Forecast], *, filled: bool = False) -> None:
    """One table of all forecasts, or of filled series by their medians; a column `item` where there are several."""
    import pandas

    from ornstein.files import write_atomic

    frames = []
    for number, one in enumerate(found):
        frame = pandas.DataFrame(one.median, index=one.index, columns=list(one.channels)) if filled else one.to_pandas()
        frame.index.name = frame.index.name or "time"
        if len(found) > 1:
            frame.insert(0, "item", _key(one, number))
        frames.append(frame)
    with write_atomic(out) as temporary:
        pandas.concat(frames).to_csv(temporary, date_format=None)


def _write_draws(out: Path, arrays: dict[str, object]) -> None:
    import numpy as np

    from ornstein.files import write_atomic

    with write_atomic(out) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    print(f"{out}: {', '.join(arrays)}", file=sys.stderr)
