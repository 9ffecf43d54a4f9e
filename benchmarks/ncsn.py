"""NCSN: digits against a fitted Gaussian, what each technique of NCSNv2 buys there, and MNIST against the DDPM of equal time.

    python benchmarks/ncsn.py --part digits --out ncsn-digits.json
    python benchmarks/ncsn.py --part mnist --model runs/ncsn-mnist --ddpm runs/mnist --classifiers runs/classifiers
                              --data ../shared/data/mnist --out ncsn-mnist.json

- digits: three classifiers are trained on the training digits; every variant of the recipe `ncsn-digits` has the same number of
  training steps, and 1000 samples of the same number of calls are held against the training digits in the classifiers' features.
  Beside them samples of a Gaussian with the training digits' mean and covariance, and the held-out digits.
- mnist: 500 samples of either model against the reference digits, in the features of benchmarks/classifier.py's classifiers.
  Both models are trained beforehand, for the same time: ornstein train ncsn-mnist --max-time 10m, ornstein train mnist
  --max-time 10m.

Seeds are fixed here.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from classifier import score
from ornstein import config, model
from ornstein.evaluate import divide
from ornstein.files import InputError, write_json
from ornstein.image.data import ImageData
from ornstein.image.ncsn import prepare
from ornstein.kinds import load_data
from ornstein.metrics import Extractor, classifier_features, frechet_distance, train_classifier
from ornstein.noise import Noise
from ornstein.samplers import Plan, annealed_langevin
from ornstein.system import System
from ornstein.train import train

STEPS, N, SEEDS = 800, 1000, (0, 1, 2)


@dataclass(frozen=True)
class Variant:
    """A technique left out: what replaces it, settings of the recipe, options of the sampler (of the same calls)."""

    without: str
    settings: Sequence[str] = ()
    steps: int | None = None
    rate: float | None = None
    denoise: bool = True


TOLD = ("net.level_free=false",)
VARIANTS = (
    Variant("nothing: NCSNv2"),
    Variant("1, first level: sigma_max = 2 of the first paper", ("process.options.sigma_max=2.0",)),
    Variant("2, ratio of levels: 10 levels of the first paper", steps=24),
    Variant("3, s/sigma without label: told the level, s itself", (*TOLD, "predicts=score", "loss.weighting=sigma2")),
    Variant("3, the label alone: told the level, s/sigma", TOLD),
    Variant("4, step size: a tenth", rate=0.0156),
    Variant("4, step size: four times", rate=0.624),
    Variant("5, averaged weights", ("train.ema=0",)),
    Variant("the last denoising step", denoise=False),
)


def extractors(data: ImageData) -> list[Extractor]:
    """Three classifiers of the digits, as extractors of features."""
    batch = data.batch(np.arange(len(data)))
    made = []
    for seed in SEEDS:
        net = train_classifier(batch["x"], batch["label"], seed=seed, epochs=40, batch=64)
        made.append(classifier_features(net, label=f"digits-seed{seed}"))
    return made


def distances(extract: Sequence[Extractor], x: Tensor, reference: Tensor) -> list[float]:
    """Fréchet distances to the reference digits, one per extractor."""
    return [frechet_distance(one(x), one(reference)) for one in extract]


def plan_of(system: System, variant: Variant) -> Plan:
    """The variant's sampler, with as many calls as the whole recipe's."""
    plan = system.plan
    assert plan is not None
    if variant.steps is None and variant.rate is None and variant.denoise:
        return plan
    steps = variant.steps
    if steps is None:
        times = plan.times
        steps = sum(1 for t in times if t == times[0])
    made = annealed_langevin(system.denoiser.process, plan.calls, steps=steps, rate=variant.rate)
    return made if variant.denoise else replace(made, rows=made.rows[:-1])


def digits() -> dict[str, object]:
    """The table of techniques."""
    base = config.override(config.load_recipe("ncsn-digits"), [f"train.steps={STEPS}", "train.minutes=30"])
    everything = load_data(base)
    training, held = divide(base.data, everything)
    assert isinstance(training, ImageData)
    assert isinstance(held, ImageData)
    extract = extractors(training)
    real = training.batch(np.arange(len(training)))["x"]
    others = held.batch(np.arange(len(held)))["x"]
    flat = real.flatten(1).double()
    root = torch.linalg.cholesky(torch.cov(flat.T) + 1e-6 * torch.eye(flat.shape[1], dtype=torch.float64))
    normal = flat.mean(0) + Noise(7).normal((N, flat.shape[1]), dtype=torch.float64) @ root.T
    gaussian = normal.round().clamp(0, 16).reshape(N, *real.shape[1:]).float()
    rows: list[dict[str, object]] = []

    def tell(name: str, found: list[float], seconds: float, note: str = "") -> None:
        shown = "  ".join(f"{value:8.2f}" for value in found)
        print(f"{name:<54}{shown}{np.mean(found):10.2f}{seconds:8.0f}  {note}", flush=True)
        rows.append({"name": name, "frechet": found, "mean": float(np.mean(found)), "seconds": seconds, "note": note})

    print(f"{'without technique':<54}{'classifiers 0, 1, 2':>28}{'mean':>10}{'train s':>8}", flush=True)
    tell("held-out digits (359)", distances(extract, others, real), 0.0)
    tell("Gaussian fitted to the training digits", distances(extract, gaussian, real), 0.0)
    trained: dict[tuple[str, ...], tuple[System, float]] = {}
    for variant in VARIANTS:
        key = tuple(variant.settings)
        if key not in trained:
            recipe, _ = prepare(config.override(base, list(key)), training)
            begun = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                made = train(recipe, training, held, training.contract, Path(folder) / "model", progress=False)
            assert isinstance(made, System)
            trained[key] = made, time.monotonic() - begun
        system, seconds = trained[key]
        plan = plan_of(system, variant)
        x = system.sample(N, sampler=plan, noise=Noise(1), batch_size=N)
        levels = len(set(plan.times))
        if not bool(x.isfinite().all()):
            tell(variant.without, [math.inf] * len(SEEDS), seconds, "samples exploded")
            continue
        whole = torch.from_numpy(system.contract.quantise(x).astype(np.float32))
        tell(variant.without, distances(extract, whole, real), seconds, f"{plan.calls} calls, {levels} levels")
    means = {str(row["name"]): float(row["mean"]) for row in rows}  # type: ignore[arg-type]
    ratio = means[VARIANTS[0].without] / means["Gaussian fitted to the training digits"]
    print(f"NCSNv2 over the fitted Gaussian: {ratio:.3f} (asked: at most 0.2)")
    return {"steps": STEPS, "samples": N, "rows": rows, "over_gaussian": ratio}


def mnist(ncsn: Path, ddpm: Path, classifiers: Path, data: Path) -> dict[str, object]:
    """500 samples of both, by three classifiers."""
    found: dict[str, list[float]] = {}
    for name, folder in (("ncsn", ncsn), ("ddpm", ddpm)):
        system = model.load(folder)
        begun = time.monotonic()
        x = system.sample(500, noise=Noise(0), batch_size=100, progress=True)
        seconds = time.monotonic() - begun
        whole = torch.from_numpy(system.contract.quantise(x).astype(np.float32))
        found[name] = [one.frechet for one in score(whole, classifiers, data)]
        plan = system.plan
        print(
            f"{name:<6}{plan.calls if plan else 0:>5} calls {found[name]} mean {np.mean(found[name]):.2f}, {seconds:.0f} s",
            flush=True,
        )
    ratio = float(np.mean(found["ncsn"]) / np.mean(found["ddpm"]))
    print(f"NCSN over DDPM: {ratio:.2f} (asked: at most 3)")
    return {"samples": 500, **found, "ratio": ratio}


def main() -> int:
    """Print the tables, write JSON; return 0, or 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("digits", "mnist"), required=True)
    parser.add_argument("--model", type=Path, default=Path("runs/ncsn-mnist"))
    parser.add_argument("--ddpm", type=Path, default=Path("runs/mnist"))
    parser.add_argument("--classifiers", type=Path, default=Path("runs/classifiers"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mnist"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    try:
        if arguments.part == "digits":
            result = digits()
        else:
            result = mnist(arguments.model, arguments.ddpm, arguments.classifiers, arguments.data)
    except InputError as error:
        print(f"ncsn.py: error: {error}", file=sys.stderr)
        return 2
    if arguments.out is not None:
        write_json(arguments.out, json.loads(json.dumps(result).replace("Infinity", "null")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
