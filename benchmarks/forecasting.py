"""Forecasts by TimeGrad, SSSD and CSDI against exact laws and honest baselines.

    python benchmarks/forecasting.py --part exact
    python benchmarks/forecasting.py --part exchange --data ../shared/data/exchange_rate/exchange_rate_train.csv
    python benchmarks/forecasting.py --part etth1 --data ../shared/data/etth1/ETTh1.csv
    python benchmarks/forecasting.py --part calls --model runs/exchange-0 --data …/exchange_rate_train.csv

- exact: a vector autoregression of known law is simulated, a TimeGrad trained on it; CRPS-sum beside that of draws of the exact
  predictive law, and one-step PIT over 500 disjoint origins.
- exchange: three seeds, trained by the command line on the days before the last 150, and backtested on five windows of 30 days
  there; the mean of CRPS-sum beside every baseline.
- etth1: hours 0 … 8,639 are for training, the next 2,880 for validation (which chooses the model), the next 2,880 are judged;
  z-scored by training. A linear least-squares forecaster with Gaussian residuals and all naive rows stand beside.
- calls: CRPS and seconds of plans of 100, 10 and 5 calls and of the plan calibrated for 5.

Seeds and settings are fixed here; every part prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from common import show_rows
from ornstein import Noise, config, model
from ornstein.cli.app import app
from ornstein.config import Recipe
from ornstein.files import InputError, write_json
from ornstein.metrics import forecast as measures
from ornstein.sequence import baselines, calendar, read_series, series
from ornstein.sequence.backtest import figures, rolled
from ornstein.sequence.choose import prepare
from ornstein.sequence.data import Series
from ornstein.sequence.linear import fit_linear
from ornstein.sequence.predict import SequenceModel, forecasts
from ornstein.sequence.windows import rolling_origins, windows
from ornstein.train import train

Draws = NDArray[np.float64]
COEFFICIENTS = np.array([[0.7, 0.2], [-0.3, 0.6]])
SHOCKS = np.array([[1.0, 0.5], [0.5, 1.0]])
EXACT = [
    "sequence={horizon: 8, context: 16, scaling: standard, differences: false, level: false, lags: [1, 2]}",
    "net.options={width: 48, layers: 1, head_width: 96, depth: 3}",
    "data.held_out=0",
    "train={steps: 3000, batch: 64, learning_rate: 2.0e-3, weight_decay: 0.0, schedule: cosine, ema: 0.995}",
]
ETTH1 = {
    "timegrad": [
        "train.batch=32",
        "train.weight_decay=0.1",
        "net.options={width: 96, layers: 1, head_width: 96, depth: 2, dropout: 0.5}",
    ],
    "sssd": ["train.batch=16", "net.options={width: 32, depth: 3, state: 16, dropout: 0.1}", "sequence.masks={forecast: 1}"],
    "csdi": ["train.batch=8", "net.options={width: 32, depth: 2, heads: 2, dropout: 0.1}", "sequence.masks={forecast: 1}"],
}
"""What is set for hourly data beside the recipes, the same for every horizon."""
TRAINING, VALIDATION, JUDGED = 8640, 2880, 2880


def simulate(rows: int, noise: Noise) -> Draws:
    """The vector autoregression x_t = A x_{t-1} + e, e ~ N(0, S), started in its stationary law's middle and run in."""
    shocks = noise.normal((rows + 100, 2), dtype=torch.float64).numpy() @ np.linalg.cholesky(SHOCKS).T
    x = np.zeros_like(shocks)
    for t in range(1, len(x)):
        x[t] = COEFFICIENTS @ x[t - 1] + shocks[t]
    return x[100:]


def exact_draws(last: Draws, horizon: int, draws: int, noise: Noise) -> Draws:
    """Draws (origins, draws, horizon, 2) of the exact law after the last values (origins, 2)."""
    state = np.repeat(last[:, None], draws, 1)
    root, out = np.linalg.cholesky(SHOCKS).T, []
    for step in range(horizon):
        shocks = noise.normal((len(last) * draws, 2), stream="exact", step=step, dtype=torch.float64).numpy()
        state = state @ COEFFICIENTS.T + shocks.reshape(state.shape) @ root
        out.append(state)
    return np.stack(out, 2)


def exact(out: Path) -> None:
    """TimeGrad against the law of a vector autoregression."""
    recipe = config.override(config.load_recipe("timegrad"), EXACT)
    assert recipe.sequence is not None
    data = windows([series(simulate(20_000, Noise(0)))], context=16, horizon=8)
    recipe, _ = prepare(recipe, data)
    system = train(recipe, data, None, data.contract, Path("runs/forecasting-exact"), device="cpu")
    test = simulate(500 * 8 + 20, Noise(1))
    origins = [16 + 8 * k for k in range(500)]
    drawn = forecasts(system, series(test), origins, horizon=8, draws=200, noise=Noise(2))  # type: ignore[arg-type]
    truth = np.stack([test[at : at + 8] for at in origins])
    law = exact_draws(test[np.array(origins) - 1], 8, 200, Noise(3))
    again = exact_draws(test[np.array(origins) - 1], 8, 200, Noise(4))
    rows = {
        name: figures(part, truth, test, None) for name, part in (("timegrad", drawn), ("exact", law), ("exact again", again))
    }
    uniformity = {}
    for name, part in (("timegrad", drawn), ("exact", law)):
        ranks = measures.pit(part[:, :, :1], truth[:, :1], Noise(5))
        uniformity[name] = [measures.pit_uniformity(ranks[..., channel]) for channel in range(2)]
    show_rows(rows)
    ratio = rows["timegrad"]["CRPS-sum"] / rows["exact"]["CRPS-sum"]
    print(f"CRPS-sum {ratio:.4f} of the exact law's; one-step PIT over 500 origins, p by channel: {uniformity}")
    write_json(out, {"rows": rows, "ratio": ratio, "pit_p": uniformity})


def exchange(data: Path, out: Path, seeds: list[int]) -> None:
    """Three seeds through the command line, five windows over the last 150 days."""
    everything = read_series(str(data))[0]
    known = data_before(everything, len(everything) - 150, Path("runs/forecasting-exchange.csv"))
    reports, sums = {}, []
    for seed in seeds:
        folder = Path("runs") / f"exchange-{seed}"
        report = folder / "backtest.json"
        if not (folder / model.WEIGHTS).exists():
            settings = ["--set", f"train.seed={seed}"]
            run(["train", "timegrad", "--data", str(known), "--horizon", "30", "--out", str(folder), *settings])
        five = ["--horizon", "30", "--windows", "5", "--draws", "200", "--seed", str(seed)]
        run(
            ["backtest", str(folder), "--data", str(data), *five, "--json", str(report), "--draws-out", str(folder / "draws.npz")]
        )
        reports[seed] = json.loads(report.read_text())
        sums.append(reports[seed]["rows"][folder.name]["CRPS-sum"])
    naive = {name: row["CRPS-sum"] for name, row in reports[seeds[0]]["rows"].items() if not name.startswith("exchange-")}
    best = min(naive, key=lambda name: naive[name])
    mean = float(np.mean(sums))
    print(f"CRPS-sum of seeds {sums}, mean {mean:.5f}; {naive}; best naive {best}: ratio {mean / naive[best]:.3f}")
    write_json(out, {"seeds": sums, "mean": mean, "naive": naive, "ratio": mean / naive[best]})


def data_before(one: Series, rows: int, path: Path) -> Path:
    """The first rows of a series as a file."""
    path.parent.mkdir(exist_ok=True)
    one.head(rows).frame().to_csv(path)
    return path


def etth1(data: Path, out: Path, tasks: list[str], ending: list[str]) -> None:
    """Every model and baseline at every task, on validation and judged windows."""
    whole = read_series(str(data))[0]
    rows = whole.values[: TRAINING + VALIDATION + JUDGED]
    mean, std = rows[:TRAINING].mean(0), rows[:TRAINING].std(0)
    scaled = series((rows - mean) / std, whole.index[: len(rows)], whole.channels)
    season = calendar.season(scaled.frequency)
    report: dict[str, object] = {}
    for task in tasks:
        context, horizon = (int(part) for part in task.split("-"))
        parts = {"validation": (TRAINING, VALIDATION), "judged": (TRAINING + VALIDATION, JUDGED)}
        origins = {}
        for part, (begin, length) in parts.items():
            count = min((length - horizon) // horizon + 1, 30)
            stride = (length - horizon) // max(count - 1, 1)
            origins[part] = rolling_origins(len(scaled), horizon, count, first=begin, stride=stride)
        tables: dict[str, dict[str, dict[str, float]]] = {part: {} for part in parts}

        def judge(name: str, draw: object, tables: dict = tables, origins: dict = origins, horizon: int = horizon) -> None:
            for part, places in origins.items():
                truth = np.stack([scaled.values[at : at + horizon] for at in places])
                drawn = draw(places)  # type: ignore[operator]
                tables[part][name] = figures(drawn, truth, scaled.values[:TRAINING], season)

        for kind, settings in ETTH1.items():
            folder = Path("runs") / f"etth1-{kind}-{task}"
            system = etth1_model(kind, [*settings, *ending], scaled, context, horizon, folder)
            begun = time.monotonic()
            judge(
                kind,
                lambda places, system=system, horizon=horizon: forecasts(
                    system, scaled, places, horizon=horizon, draws=50, noise=Noise(1), progress=True
                ),
            )
            print(f"{folder}: judged in {time.monotonic() - begun:.0f} s", flush=True)
        linear = {
            name: fit_linear(scaled.values[:TRAINING], context, horizon, relative=relative)
            for name, relative in (("linear (NLinear)", True), ("linear (of values)", False))
        }
        named = {**baselines.FORECASTERS, **linear}
        for name, forecaster in named.items():
            if name == "var":
                continue  # refitted at every origin it would take hours
            judge(name, lambda places, f=forecaster, horizon=horizon: rolled(f, scaled, places, horizon, 50, season, Noise(1)))
        for part, table in tables.items():
            print(f"\n{task}, {part}, {len(origins[part])} windows")
            show_rows(table)
        best = min(ETTH1, key=lambda kind: tables["validation"][kind]["CRPS"])
        own, against = tables["judged"][best]["CRPS"], {name: tables["judged"][name]["CRPS"] for name in named if name != "var"}
        told = ", ".join(f"{name} {own / value:.3f}" for name, value in against.items())
        print(f"{task}: {best} by validation, CRPS {own:.4f}; ratios to {told}")
        report[task] = {"tables": tables, "best": best, "windows": {part: len(places) for part, places in origins.items()}}
        write_json(out, report)


def etth1_model(kind: str, settings: list[str], scaled: Series, context: int, horizon: int, folder: Path) -> SequenceModel:
    """The trained model of a task; trained now if there is none."""
    if not (folder / model.WEIGHTS).exists():
        shape = [f"sequence.context={context}", f"sequence.horizon={horizon}"]
        recipe: Recipe = config.override(config.load_recipe(kind), [*shape, *settings])
        data = windows([scaled.head(TRAINING)], context=context, horizon=horizon)
        held = windows([scaled.head(TRAINING + VALIDATION).tail(TRAINING - context)], context=context, horizon=horizon, like=data)
        recipe, reasons = prepare(recipe, data)
        print(folder, *reasons, sep="\n")
        train(recipe, data, held, data.contract, folder, device="cpu")
    return model.load(folder)  # type: ignore[return-value]


def budget(steps: int | None, minutes: float) -> list[str]:
    """Settings that end training after so many steps, the rate falling along a cosine, or by the clock at a constant rate."""
    if steps is not None:
        return [f"train.steps={steps}", "train.schedule=cosine"]
    return [f"train.minutes={minutes}", "train.steps=100000", "train.schedule=constant"]


def calls(folder: Path, data: Path, out: Path) -> None:
    """What few calls cost: CRPS by the exact same start noise, and seconds."""
    system = model.load(folder)
    one = read_series(str(data))[0]
    origins = rolling_origins(len(one), 30, 20)
    truth = np.stack([one.values[at : at + 30] for at in origins])
    rows, seconds = {}, {}
    for name, sampler in (("100 calls", 100), ("10 calls", 10), ("5 calls calibrated", 5)):
        begun = time.monotonic()
        drawn = forecasts(system, one, origins, horizon=30, draws=200, noise=Noise(0), sampler=sampler)  # type: ignore[arg-type]
        seconds[name] = time.monotonic() - begun
        rows[name] = figures(drawn, truth, one.values, None)
        print(name, system.plan_of(sampler).name, f"{seconds[name]:.1f} s", flush=True)  # type: ignore[union-attr]
    times = []
    for _ in range(5):
        begun = time.monotonic()
        forecasts(system, one, origins[-1:], horizon=30, draws=200, noise=Noise(0))  # type: ignore[arg-type]
        times.append(time.monotonic() - begun)
    show_rows(rows)
    loss = rows["5 calls calibrated"]["CRPS"] / rows["100 calls"]["CRPS"] - 1
    print(
        f"CRPS of the calibrated plan {100 * loss:+.2f} %, "
        f"{seconds['100 calls'] / seconds['5 calls calibrated']:.1f} times faster"
    )
    print(f"200 draws x 30 steps x {one.values.shape[1]} channels: {np.median(times):.2f} s (median of 5)")
    write_json(out, {"rows": rows, "seconds": seconds, "forecast_seconds": float(np.median(times))})


def run(words: list[str]) -> None:
    """A command of ornstein in this process."""
    print("ornstein", *words, flush=True)
    try:
        app(words, exit_on_error=False, print_error=False)
    except SystemExit as ended:
        if ended.code:
            raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("exact", "exchange", "etth1", "calls"), required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["96-96", "96-24", "24-24"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=6.0, help="etth1: training of each model by the clock")
    parser.add_argument("--steps", type=int, help="etth1: so many steps of each model instead, whatever the load")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    out = arguments.out or Path(f"forecasting-{arguments.part}.json")
    if arguments.part != "exact" and arguments.data is None:
        raise InputError(f"--part {arguments.part} needs --data")
    if arguments.part == "exact":
        exact(out)
    elif arguments.part == "exchange":
        exchange(arguments.data, out, arguments.seeds)
    elif arguments.part == "etth1":
        etth1(arguments.data, out, arguments.tasks, budget(arguments.steps, arguments.minutes))
    else:
        calls(arguments.model, arguments.data, out)


if __name__ == "__main__":
    main()
