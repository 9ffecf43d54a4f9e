"""Imputation by SSSD and CSDI against exact laws and honest baselines.

    python benchmarks/imputation.py --part exact [--kind csdi]
    python benchmarks/imputation.py --part ecg5000 --data ../shared/data/ecg5000/ecg5000_dev.csv
    python benchmarks/imputation.py --part pm25 [--kind sssd] --data ../shared/data/pm25/pm25_ground_dev.csv
    python benchmarks/imputation.py --part physionet --data ../shared/data/physionet2012/set_a_hourly.npz
    python benchmarks/imputation.py --part curve --data ../shared/data/physionet2012/set_a_hourly.npz
    python benchmarks/imputation.py --part given --data ../shared/data/ecg5000/ecg5000_dev.csv

- exact: 4,000 draws of a Gaussian process train the model; on 100 more, CRPS beside that of draws of the exact conditional, and
  coverage of 90 % intervals, under random, block and forecast masks.
- ecg5000, pm25, physionet: a tenth (of items; of pm25 the last tenth of hours) is held out; MAE of the median, CRPS and coverage
  at random, block and blackout missing beside linear interpolation, the training mean and the last value.
- curve: CSDI's protocol on PhysioNet (70 / 10 / 20 % of stays, 10 and 50 % of the observed hidden) at 1, 2, 4, … minutes of
  training.
- given: one network of ECG5000, trained with the law "nothing" among its masks: amortised masks, replacement, and guidance of the
  unconditional model on the same windows.

Seeds, masks and settings are fixed here; every part prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common import show_rows
from ornstein import Given, Noise, config, model
from ornstein.files import InputError, write_json
from ornstein.metrics import forecast as measures
from ornstein.sequence import baselines, read_series, series
from ornstein.sequence.choose import prepare
from ornstein.sequence.data import Series
from ornstein.sequence.imputer import ImputerSystem
from ornstein.sequence.masks import mask
from ornstein.sequence.windows import SeriesData, windows
from ornstein.train import train

Draws = NDArray[np.float64]
LENGTH, HORIZON = 64, 16
LAWS = {"random": ("random", 0.5), "block": ("block", 0.25), "blackout": ("blackout", 0.25)}
"""Name of a row, mask law and share hidden."""
CHEAP, CALLS = 10, 25
"""Draws and network calls of every method where guidance stands beside masks: a gradient costs three calls."""
SETTINGS = {
    ("exact", "sssd"): ["net.options={width: 48, depth: 3, state: 16}", "train.batch=32", "train.learning_rate=2.0e-3"],
    ("exact", "csdi"): ["net.options={width: 48, depth: 2, heads: 2}", "train.batch=32"],
    ("ecg5000", "sssd"): ["net.options={width: 48, depth: 3, state: 32, dropout: 0.1}", "train.batch=16"],
    ("pm25", "csdi"): [
        "net.options={width: 32, depth: 2, heads: 2}",
        "train.batch=8",
        "train.steps=6000",
        "train.schedule=cosine",
        "sequence.interpolated=true",
    ],
    ("pm25", "sssd"): [
        "net.options={width: 64, depth: 3, state: 16, dropout: 0.1}",
        "train.batch=16",
        "sequence.interpolated=true",
    ],
    ("physionet", "sssd"): [
        "net.options={width: 96, depth: 3, state: 16, dropout: 0.1}",
        "train.batch=32",
        "train.steps=5000",
        "train.schedule=cosine",
        "sequence.interpolated=true",
    ],
    ("curve", "csdi"): ["net.options={width: 32, depth: 2, heads: 2}", "train.batch=8", "sequence.interpolated=true"],
}
"""What a part sets for a kind of model beside its recipe: the first kind of a part unless asked for; no other is run."""


def trained(
    name: str,
    kind: str,
    settings: list[str],
    data: SeriesData,
    held: SeriesData | None,
    minutes: float,
    before: Path | None = None,
) -> ImputerSystem:
    """The model of a part, trained for so many minutes, on from a copy of the directory `before`, unless it is in runs/."""
    folder = Path("runs") / f"{name}-{kind}"
    if not (folder / model.WEIGHTS).exists():
        steps = [f"train.minutes={minutes}", "train.steps=100000", "train.schedule=constant", "sequence.calendar=false"]
        shape = [f"sequence.context={data.context}", f"sequence.horizon={data.horizon}"]
        recipe = config.override(config.load_recipe(kind), [*shape, *steps, *settings])
        recipe, reasons = prepare(recipe, data)
        print(folder, *reasons, sep="\n", flush=True)
        if before is not None:
            shutil.copytree(before, folder)
        train(recipe, data, held, data.contract, folder, device="cpu", resume=before is not None)
    system = model.load(folder)
    assert isinstance(system, ImputerSystem)
    return system


def covariance() -> Draws:
    """That of the Gaussian process: Matérn 3/2 of length 6, and white noise of variance 0.01."""
    distance = np.abs(np.arange(LENGTH)[:, None] - np.arange(LENGTH)[None]) * np.sqrt(3) / 6
    return (1 + distance) * np.exp(-distance) + 0.01 * np.eye(LENGTH)


def conditional(k: Draws, values: Draws, seen: NDArray[np.bool_], z: Draws) -> Draws:
    """Draws (draws, L) of N(0, k) given what is seen of values (L,), from normals z (draws, L)."""
    hidden = ~seen
    gain = np.linalg.solve(k[np.ix_(seen, seen)], k[np.ix_(seen, hidden)]).T if seen.any() else np.zeros((hidden.sum(), 0))
    rest = k[np.ix_(hidden, hidden)] - gain @ k[np.ix_(seen, hidden)]
    out = np.repeat(values[None], len(z), 0)
    out[:, hidden] = gain @ values[seen] + z[:, hidden] @ np.linalg.cholesky(rest + 1e-10 * np.eye(len(rest))).T
    return out


def exact(kind: str, out: Path, minutes: float) -> None:
    """An imputer against the conditional of a Gaussian process."""
    k = covariance()
    root = np.linalg.cholesky(k).T
    items = [series(row[:, None]) for row in Noise(0).normal((4000, LENGTH), dtype=torch.float64).numpy() @ root]
    data = windows(items, context=LENGTH - HORIZON, horizon=HORIZON, calendar=False)
    system = trained("gp", kind, ["sequence.scaling=standard", *SETTINGS["exact", kind]], data, None, minutes)
    test = (Noise(1).normal((100, LENGTH), dtype=torch.float64).numpy() @ root)[:, None]
    rows: dict[str, dict[str, float]] = {}
    for law, share in (("random", 0.5), ("block", 0.25), ("forecast", None)):
        seen = mask(law, 100, (1, LENGTH), HORIZON, Noise(3), share=share)
        drawn = system.predict(Given(torch.from_numpy(test), mask=seen), torch.zeros(100, 0, LENGTH), draws=100, noise=Noise(4))
        z = Noise(5).normal((100, 100, LENGTH), dtype=torch.float64).numpy()
        law_draws = np.stack([conditional(k, test[i, 0], seen[i, 0].numpy(), z[i])[:, None] for i in range(100)])
        rows[f"{law}: {kind}"] = judged(drawn.draws.numpy(), test, seen)
        rows[f"{law}: exact"] = judged(law_draws, test, seen)
        ratio = rows[f"{law}: {kind}"]["CRPS"] / rows[f"{law}: exact"]["CRPS"]
        print(f"{law}: CRPS {ratio:.4f} of the exact conditional's", flush=True)
    show_rows(rows)
    write_json(out, rows)


def judged(draws: Draws, truth: Draws, seen: Tensor) -> dict[str, float]:
    """Figures of draws (cases, draws, C, L) where truth (cases, C, L) was hidden."""
    hidden = np.where(~seen.numpy() & np.isfinite(truth), truth, np.nan)
    drawn, told = draws.swapaxes(2, 3), hidden.swapaxes(1, 2)
    found = {"MAE": measures.mae(drawn, told), "CRPS": measures.crps(drawn, told)}
    found |= {"wQL": measures.weighted_quantile_loss(drawn, told)}
    return found | {"coverage 90 %": measures.coverage(drawn, told, 0.9)} if drawn.shape[1] > 18 else found


def table(name: str, kind: str, system: ImputerSystem, held: SeriesData, cases: int) -> dict[str, dict[str, float]]:
    """Model and baselines under every law of `LAWS`, on windows of held-out data in units of the training data's deviations."""
    places = np.unique(np.linspace(0, len(held) - 1, min(cases, len(held))).round().astype(int))
    batch = held.batch(places)
    x, rows = batch["x"].double(), {}
    mean, std = (np.asarray(part).reshape(1, -1, 1) for part in (system.contract.shift, system.contract.scale))
    truth = (x.numpy() - mean) / std
    channels = truth.shape[1]
    marginals = baselines.Marginals(np.zeros(channels), np.ones(channels))
    for row, (law, share) in LAWS.items():
        seen = mask(law, len(x), system.contract.shape, held.horizon, Noise(3), share=share) & x.isfinite()  # type: ignore[arg-type]
        asked = ~seen & x.isfinite()
        found = system.predict(
            Given(x, mask=seen), batch["features"], draws=50, noise=Noise(4), asked=asked, batch_size=128, progress=True
        )
        rows[f"{row}: {kind}"] = judged((found.draws.numpy() - mean[None]) / std[None], truth, seen)
        for other in ("mean", "last value", "linear interpolation"):
            filled = np.stack(
                [
                    baselines.IMPUTERS[other](
                        np.where(seen[i].numpy(), truth[i], np.nan).T, draws=2, noise=Noise(0), fallback=marginals
                    )
                    for i in range(len(x))
                ]
            )
            rows[f"{row}: {other}"] = judged(filled.swapaxes(2, 3), truth, seen)
        print(row, "done", flush=True)
    show_rows(rows)
    return rows


def ecg5000(path: Path) -> list[Series]:
    """400 beats of 140 samples."""
    beats = np.genfromtxt(path, delimiter=",", skip_header=1)[:, 1:]
    return [series(beat[:, None], channels=["ecg"], item=str(number)) for number, beat in enumerate(beats)]


def physionet(path: Path) -> list[Series]:
    """Stays of 48 hours x 35 variables that have a measurement."""
    return [one for one in read_series(str(path)) if np.isfinite(one.values).any()]


def real(part: str, kind: str, path: Path, out: Path, minutes: float, cases: int) -> None:
    """One real data set."""
    if part == "pm25":
        whole = read_series(str(path))
        data, held = windows(whole, context=24, horizon=12, calendar=False).split(0.9, 0)
    else:
        items = ecg5000(path) if part == "ecg5000" else physionet(path)
        length = len(items[0])
        data, held = windows(items, context=3 * length // 4, horizon=length - 3 * length // 4, calendar=False).split(0.9, 0)
    laws = ["sequence.masks={random: 1, block: 1, blackout: 1, nothing: 0.5}", "sequence.scaling=standard"]
    system = trained(part, kind, [*laws, *SETTINGS[part, kind]], data, held, minutes)
    write_json(out, table(part, kind, system, held, cases))


def curve(path: Path, out: Path, minutes: float) -> None:
    """CSDI's protocol as training goes on."""
    items = physionet(path)
    order = Noise(0).permutation(len(items), stream="fold").tolist()
    cuts = round(0.7 * len(items)), round(0.8 * len(items))
    shape = {"context": 36, "horizon": 12, "calendar": False}
    data = windows([items[i] for i in order[: cuts[0]]], **shape)  # type: ignore[arg-type]
    test = windows([items[i] for i in order[cuts[1] :]], **shape, like=data)  # type: ignore[arg-type]
    settings = ["sequence.masks={random: 1}", "sequence.scaling=standard", *SETTINGS["curve", "csdi"]]
    rows: dict[str, dict[str, float]] = {}
    stops = [stop for stop in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0) if stop <= minutes]
    before, spent = None, 0.0
    for stop in stops:
        system = trained(f"physionet-curve-{stop:g}", "csdi", settings, data, None, stop - spent, before)
        before, spent = Path("runs") / f"physionet-curve-{stop:g}-csdi", stop
        begun = time.monotonic()
        places = np.unique(np.linspace(0, len(test) - 1, 30).round().astype(int))
        x = test.batch(places)["x"].double()
        mean, std = (np.asarray(part).reshape(1, -1, 1) for part in (system.contract.shift, system.contract.scale))
        for share in (0.1, 0.5):
            seen = mask("random", len(x), system.contract.shape, 12, Noise(3), share=share) & x.isfinite()  # type: ignore[arg-type]
            asked = ~seen & x.isfinite()
            known = torch.zeros(len(x), 0, 48)
            found = system.predict(Given(x, mask=seen), known, draws=20, noise=Noise(4), asked=asked, sampler=10, batch_size=64)
            figures = judged((found.draws.numpy() - mean[None]) / std[None], (x.numpy() - mean) / std, seen)
            rows[f"{stop:g} min, {share:.0%} missing"] = figures
        print(f"{stop:g} minutes, and {time.monotonic() - begun:.0f} s of sampling", flush=True)
    show_rows(rows)
    print("the paper: CRPS (wQL) 0.238 at 10 %, 0.330 at 50 %, after 200 epochs on a GPU")
    write_json(out, rows)


def given(path: Path, out: Path, minutes: float) -> None:
    """Amortised masks, replacement and guidance by one and the same network."""
    items = ecg5000(path)
    data, held = windows(items, context=105, horizon=35, calendar=False).split(0.9, 0)
    laws = ["sequence.masks={random: 1, block: 1, blackout: 1, nothing: 0.5}", "sequence.scaling=standard"]
    system = trained("ecg5000", "sssd", [*laws, *SETTINGS["ecg5000", "sssd"]], data, held, minutes)
    x, known = held.batch(np.arange(len(held)))["x"].double(), torch.zeros(len(held), 0, 140)
    rows: dict[str, dict[str, float]] = {}
    draw: dict[str, Callable[[Given], Tensor]] = {
        "amortised": lambda g: system.predict(g, known, draws=CHEAP, noise=Noise(4), sampler=CALLS).draws,
        "guidance (pigdm)": lambda g: system.restore(g, known, method="pigdm", calls=CALLS, draws=CHEAP, noise=Noise(4)).draws,
        "replacement": lambda g: system.restore(g, known, method="replacement", calls=CALLS, draws=CHEAP, noise=Noise(4)).draws,
    }
    for row, (law, share) in LAWS.items():
        if law == "blackout":
            continue  # of one channel that is a block
        seen = mask(law, len(x), system.contract.shape, 35, Noise(3), share=share)  # type: ignore[arg-type]
        for name, function in draw.items():
            begun = time.monotonic()
            rows[f"{row}: {name}"] = judged(function(Given(x, mask=seen)).numpy(), x.numpy(), seen)
            print(f"{row}: {name}, {time.monotonic() - begun:.0f} s", flush=True)
    show_rows(rows)
    write_json(out, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("exact", "ecg5000", "pm25", "physionet", "curve", "given"), required=True)
    parser.add_argument("--kind", choices=("sssd", "csdi"), help="the first of a part in SETTINGS unless given")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--cases", type=int, default=100, help="windows that ecg5000, pm25 and physionet are judged on")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    part, out = arguments.part, arguments.out or Path(f"imputation-{arguments.part}.json")
    if part != "exact" and arguments.data is None:
        raise InputError(f"--part {part} needs --data")
    kinds = [kind for name, kind in SETTINGS if name == ("ecg5000" if part == "given" else part)]
    kind = arguments.kind or kinds[0]
    if kind not in kinds:
        raise InputError(f"--part {part} has no settings for --kind {kind}: add a row to SETTINGS")
    if part == "exact":
        exact(kind, out, arguments.minutes)
    elif part == "curve":
        curve(arguments.data, out, arguments.minutes)
    elif part == "given":
        given(arguments.data, out, arguments.minutes)
    else:
        real(part, kind, arguments.data, out, arguments.minutes, arguments.cases)


if __name__ == "__main__":
    main()
