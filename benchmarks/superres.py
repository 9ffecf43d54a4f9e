"""Strong conditions lower the variance of the target: spread, skill and calls of conditional models, as the condition grows.

    python benchmarks/superres.py train --data ../shared/data/mnist --out runs/superres
    python benchmarks/superres.py measure --data ../shared/data/mnist --out runs/superres
    python benchmarks/superres.py picture runs/superres-mnist --data ../shared/data/mnist --out docs/images/superres.png

- train: MNIST averaged to 8x8, one network and one budget for every condition: nothing, the mean grey (down:8), 2x2 (down:4), 4x4
  (down:2); then 2x2 with noise-augmented conditions, and 2x2 by a network that only regresses. --quick takes scikit-learn's
  digits and a smaller network.
- measure, on data that no model was trained on: the loss; spread, skill and coverage of the draws; errors of one draw, of their
  mean, of the network's single call at the noisy end (which is regression), of a network trained for nothing else, of bilinear
  interpolation and the pseudo-inverse; the distance of samples of few calls from those of 80; and errors, spread and coverage
  under noisy conditions, with and without augmentation. All but coverage in standard deviations of the data. Into superres.json.
- picture: some held-out data, what is measured of them, draws, mean, standard deviation and error, with PSNR and SSIM.

Sizes and seeds are fixed here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ornstein import Noise, config, figures, metrics, model
from ornstein.evaluate import divide
from ornstein.files import InputError, write_json
from ornstein.image.data import ImageData
from ornstein.kinds import load_data
from ornstein.metrics import Ensemble, Record, write_records
from ornstein.system import System
from ornstein.train import train

FULL = [
    "data={source: mnist, size: 8, crop: 'off', held_out_last: 10000}",
    "condition_dropout=0",
    "net.options={width: 32, multipliers: [1, 2], blocks: 1, middle: 2}",
    "sampler={name: dpm_solver_pp, calls: 20, grid: karras}",
    "train={steps: 2000, batch: 128, learning_rate: 2.0e-3, warmup: 50, schedule: cosine, ema: 0.995, validate_every: 500}",
]
"""What all models have in common, over the recipe superres-mnist."""
QUICK = [
    "data={source: digits, held_out: 0.2}",
    "condition_dropout=0",
    "net.options={width: 16, multipliers: [1, 2], blocks: 1, middle: 1, attention: [false, false]}",
    "sampler={name: dpm_solver_pp, calls: 20, grid: karras}",
    "train={steps: 400, batch: 64, learning_rate: 4.0e-3, warmup: 20, schedule: cosine, ema: 0.98, validate_every: 200}",
]
"""The same on scikit-learn's digits, for a machine without time."""
MODELS = {
    "down-4": ["grid={operator: 'down:4'}"],
    "none": ["condition=null", "grid=null"],
    "down-2": ["grid={operator: 'down:2'}"],
    "down-8": ["grid={operator: 'down:8'}"],
    "down-4-noised": ["grid={operator: 'down:4', augmentation: 0.5}"],
    # all the budget at the noisy end, where x_t says nothing: what is learned is E[x | y]
    "down-4-regression": ["grid={operator: 'down:4'}", "loss={weighting: edm, times: log_normal, mean: 4.0, std: 0.1}"],
}
"""What sets each model apart."""


CALLS = (1, 2, 3, 5, 8, 12, 20)
REFERENCE = 80
LEVELS = (0.0, 0.1, 0.2, 0.4)
"""Noise in the condition at test time, in model units (half of the range from black to white is 1)."""


@dataclass(frozen=True)
class Setting:
    """How much is trained and measured."""

    base: list[str]
    cases: int
    draws: int
    calls: int


SETTINGS = {False: Setting(FULL, 400, 40, 20), True: Setting(QUICK, 60, 20, 12)}
"""By whether it must be quick."""


def load(name: str, data: Path, setting: Setting) -> tuple[config.Recipe, ImageData, ImageData]:
    """A model's recipe, its training data and the held-out data."""
    source = [] if setting.base is QUICK else [f"data.source={str(data)!r}"]
    recipe = config.override(config.load_recipe("superres-mnist"), [*setting.base, *source, *MODELS[name]])
    training, held = divide(recipe.data, load_data(recipe))
    assert isinstance(training, ImageData)
    assert isinstance(held, ImageData)
    return recipe, training, held


def train_all(data: Path, out: Path, names: list[str], setting: Setting) -> None:
    """Train the models that are not there yet."""
    for name in names:
        if (out / name / model.WEIGHTS).exists():
            continue
        recipe, training, held = load(name, data, setting)
        begun, used = time.monotonic(), time.process_time()
        train(recipe, training, held, training.contract, out / name, device="cpu", progress=False)
        seconds = {"seconds": time.monotonic() - begun, "cpu_seconds": time.process_time() - used}
        write_json(out / name / "train.json", seconds)
        print(f"{name}: {seconds['seconds']:.0f} s, {seconds['cpu_seconds']:.0f} s of one core", flush=True)


def error(x: Tensor, truth: Tensor) -> float:
    """The root mean square difference."""
    return float((x - truth).double().square().mean().sqrt())


def draws_of(system: System, y: Tensor, draws: int, calls: int, std: float = 0.0) -> Ensemble:
    """The ensemble under the condition y, or without one: other samples for every case."""
    if system.grid is not None:
        return system.predict(y, draws=draws, noise_std=std, sampler=calls, noise=Noise(1), batch_size=500)
    x = system.sample(len(y) * draws, sampler=calls, noise=Noise(1), batch_size=500)
    return Ensemble(x.reshape(len(y), draws, *x.shape[1:]))


def measured(system: System, x: Tensor, std: float = 0.0) -> Tensor:
    """What is measured of x, with noise of standard deviation `std` in the data's units; x itself without a condition."""
    y = x if system.grid is None else system.grid.measure(x)
    return y + std * Noise(2).normal(y.shape)


def single_call(system: System, y: Tensor) -> Tensor:
    """E[x | y] as the network says it in one call at the noisy end, where x_t holds nothing of x."""
    process = system.denoiser.process
    cond = None if system.grid is None else system.grid.rows({"grid": y}, len(y))
    x_t = process.prior((len(y), *system.contract.shape), Noise(3))
    with torch.no_grad():
        return system.contract.decode(system.denoiser(x_t, 1.0, cond).x0)


def honest(name: str, ensemble: Ensemble, x: Tensor, unit: float) -> dict[str, float]:
    """Spread, skill, their ratio, coverage, and the errors of the mean and of one draw."""
    spread, skill = ensemble.spread(), ensemble.skill(x)
    return {
        f"{name} spread": spread / unit,
        f"{name} skill": skill / unit,
        f"{name} spread/skill": spread / skill,
        f"{name} coverage": ensemble.coverage(x),
        f"{name} mean": error(ensemble.mean, x) / unit,
        f"{name} draw": error(ensemble.draws[:, 0], x) / unit,
    }


def figures_of(name: str, system: System, x: Tensor, draws: int, calls: int) -> dict[str, float]:
    """All figures of one model on held-out data x (cases, C, H, W)."""
    contract = system.contract
    unit = float(x.double().std())
    y = measured(system, x)
    with torch.no_grad():
        losses = [system.loss({"x": x}, Noise(4), step=k).mean() for k in range(8)]
    found = {f"{name} loss": float(torch.stack(losses).mean()), f"{name} single call": error(single_call(system, y), x) / unit}
    if name.endswith("regression"):
        return found
    found |= honest(name, draws_of(system, y, draws, calls), x, unit)
    if system.grid is not None and not name.endswith("noised"):
        linear = interpolate(y, size=contract.shape[1:], mode="bilinear", align_corners=False)
        found[f"{name} bilinear"] = error(linear, x) / unit
        found[f"{name} pseudo-inverse"] = error(system.grid.lift(y), x) / unit
    reference = draws_of(system, y, 1, REFERENCE).draws
    for few in CALLS:
        found[f"{name} off after {few} calls"] = error(draws_of(system, y, 1, few).draws, reference) / unit
    if name.startswith("down-4"):
        scale = abs(contract.scale[0])
        for level in LEVELS[1:]:
            noisy = measured(system, x, level * scale)
            told = level * scale if name.endswith("noised") else 0.0
            found |= honest(f"{name}, noise {level:g},", draws_of(system, noisy, draws, calls, told), x, unit)
    return found


def measure(data: Path, out: Path, names: list[str], setting: Setting) -> None:
    """Every figure as a record, and tables of them."""
    records: list[Record] = []
    found: dict[str, float] = {}
    for name in names:
        if not (out / name / model.WEIGHTS).exists():
            print(f"{name} is not trained: left out")
            continue
        _, _, held = load(name, data, setting)
        x = held.batch(range(setting.cases))["x"]
        system = model.load(out / name)
        assert isinstance(system, System)
        begun = time.monotonic()
        mine = figures_of(name, system, x, setting.draws, setting.calls)
        seconds = time.monotonic() - begun
        records += [Record(key, value, len(x), "none", 1, seconds / len(mine)) for key, value in mine.items()]
        found |= mine
    write_records(out / "superres.json", records)
    columns = ("loss", "spread", "skill", "spread/skill", "coverage", "draw", "mean", "single call", "bilinear", "pseudo-inverse")
    noisy = [f"{name}, noise {level:g}," for level in LEVELS[1:] for name in ("down-4", "down-4-noised")]
    show(found, [*names, *noisy], columns)
    show(found, names, [f"off after {calls} calls" for calls in CALLS])


def show(found: dict[str, float], names: Sequence[str], columns: Sequence[str]) -> None:
    """A table with a row per name."""
    print(f"\n{'':<26}" + "".join(f"{column.removeprefix('off after '):>15}" for column in columns))
    for name in names:
        values = [found.get(f"{name} {column}") for column in columns]
        print(f"{name.rstrip(','):<26}" + "".join(f"{'' if value is None else f'{value:.4f}':>15}" for value in values))


def picture(directory: Path, data: Path | None, out: Path, cases: int = 6, draws: int = 20) -> None:
    """A picture of some held-out data restored, and how near draw and mean are."""
    recipe, system = model.read_recipe(directory), model.load(directory)
    assert isinstance(system, System)
    assert system.grid is not None
    _, held = divide(recipe.data, load_data(recipe, None if data is None else str(data)))
    assert held is not None
    x = held.batch(range(cases))["x"]
    y = system.grid.measure(x)
    ensemble = system.predict(y, draws=draws, noise=Noise(0), progress=True)
    figures.restored_picture(y, Ensemble(ensemble.draws[:, :4]), system.contract, out, truth=x)
    full = (system.contract.high or 1.0) - (system.contract.low or 0.0)
    linear = interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)
    for title, images in (("draw", ensemble.draws[:, 0]), ("mean", ensemble.mean), ("bilinear", linear)):
        similar = f", SSIM {float(metrics.ssim(images, x, full).mean()):.3f}" if min(x.shape[2:]) >= 11 else ""
        print(f"{title:<10} PSNR {float(metrics.psnr(images, x, full).mean()):.2f} dB{similar}")
    print(f"spread/skill {ensemble.spread() / ensemble.skill(x):.3f}, coverage {ensemble.coverage(x):.3f}; {out}")


def main() -> int:
    """Run one part; return 0, or 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("train", "measure", "picture"))
    parser.add_argument("model", type=Path, nargs="?", help="for picture: a model directory")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mnist"), help="folder of the MNIST idx files")
    parser.add_argument("--out", type=Path, default=Path("runs/superres"))
    parser.add_argument("--only", nargs="*", default=list(MODELS), choices=list(MODELS), help="train or measure only these")
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, smaller networks, fewer cases")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting = SETTINGS[arguments.quick]
    try:
        if arguments.part == "train":
            train_all(arguments.data, arguments.out, arguments.only, setting)
        elif arguments.part == "measure":
            measure(arguments.data, arguments.out, arguments.only, setting)
        elif arguments.model is None:
            raise InputError("picture needs a model directory: picture runs/superres-mnist")
        else:
            picture(arguments.model, None if arguments.quick else arguments.data, arguments.out)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
