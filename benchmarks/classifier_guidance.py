"""Classifier guidance on MNIST: asked-digit accuracy and diversity against the scale.

    ornstein train classifier-mnist --data ../shared/data/mnist --out runs/classifier-mnist
    python benchmarks/classifier_guidance.py --model runs/mnist --clean --out runs/classifier_guidance.json

An unconditional model, or the unconditional branch of a label-conditional one, is guided by the noise-conditional classifier at
each scale, and by the classifier of clean images (seed 1 of runs/classifiers) through the predicted x0. The classifiers of seeds
0 and 2, which judge, have not guided. Diversity is the mean, over the digits asked for, of the variance of the judges' features.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from classifier import classifier_path
from ornstein import model
from ornstein.files import InputError
from ornstein.guidance import CleanClassifierGuided, Guide
from ornstein.image.classifier import ClassifierSystem
from ornstein.metrics import Record, classifier_features, load_classifier, table, write_records
from ornstein.noise import Noise
from ornstein.system import System

SCALES = (0.0, 1.0, 2.0, 4.0)
JUDGES, GUIDE = (0, 2), 1


def judged(samples: Tensor, asked: Tensor, classifiers: Path) -> tuple[float, float]:
    """(share of samples (N, 1, 28, 28) that are the digit asked for, variance of features within a digit), mean of the judges."""
    shares, spreads = [], []
    for seed in JUDGES:
        net = load_classifier(classifier_path(classifiers, seed))
        with torch.no_grad():
            shares.append(float((net(samples).argmax(1) == asked).double().mean()))
        features = classifier_features(net)(samples)
        spreads.append(float(torch.stack([features[asked == digit].var(0).sum() for digit in range(10)]).mean()))
    return sum(shares) / len(shares), sum(spreads) / len(spreads)


def measure(arguments: argparse.Namespace) -> None:
    """Draw at every scale, judge, print the tables, write JSON; InputError for models that do not suit or are missing."""
    system, guide = model.load(arguments.model), model.load(arguments.classifier)
    if not isinstance(system, System) or not isinstance(guide, ClassifierSystem):
        raise InputError("--model must be a diffusion model and --classifier a directory of ornstein train classifier-mnist")
    clean = load_classifier(classifier_path(arguments.classifiers, GUIDE)) if arguments.clean else None
    asked = torch.arange(arguments.n) % 10
    cond = {"label": asked.tolist()}
    records = []

    def draw(name: str, by: Guide, sampler: int | None = None) -> None:
        begun = time.monotonic()
        x = system.sample(arguments.n, cond=cond, guidance=by, sampler=sampler or arguments.calls, noise=Noise(arguments.seed))
        seconds = time.monotonic() - begun
        share, spread = judged(x.float(), asked, arguments.classifiers)
        error = 2 * math.sqrt(max(share * (1 - share), 1 / arguments.n) / arguments.n)
        interval = (max(share - error, 0.0), min(share + error, 1.0))
        records.append(Record("asked-digit accuracy", share, arguments.n, "judges", arguments.seed, seconds, interval, name))
        records.append(Record("variance of features", spread, arguments.n, "judges", arguments.seed, 0.0, None, name))
        print(table(records[-2:]), flush=True)

    for scale in SCALES:
        draw(f"noisy classifier, scale {scale:g}", guide.guide(scale, system.contract))
    if clean is not None:
        for scale in SCALES[1:]:

            def by_clean(denoiser: object, scale: float = scale) -> CleanClassifierGuided:
                return CleanClassifierGuided(denoiser, clean, scale, system.contract.decode)  # type: ignore[arg-type]

            draw(f"clean classifier, scale {scale:g}", by_clean)
    print(table(records))
    if arguments.out:
        write_records(arguments.out, records)


def main() -> int:
    """Draw, judge, print the table, write JSON; return 0, or 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/mnist-label"))
    parser.add_argument("--classifier", type=Path, default=Path("runs/classifier-mnist"))
    parser.add_argument("--classifiers", type=Path, default=Path("runs/classifiers"), help="--out of classifier.py")
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clean", action="store_true", help="also guide by a classifier of clean images")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    try:
        measure(arguments)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
