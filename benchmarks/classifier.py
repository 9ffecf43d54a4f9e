"""Train the small MNIST classifiers whose features judge MNIST samples, and measure real digits against real digits.

    python benchmarks/classifier.py --data ../shared/data/mnist --out runs/classifiers

Digits 0 … 49,999 of the training file train the classifiers (and the diffusion models); digits 50,000 … 59,999 are the
reference and are kept out of every training. `score` is what other benchmarks import.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ornstein.files import InputError
from ornstein.metrics import (
    Extractor,
    Record,
    accuracy,
    classifier_features,
    frechet_distance,
    load_extractor,
    save_classifier,
    table,
    train_classifier,
    write_records,
)

TRAIN = 50_000
SEEDS = (0, 1, 2)
DRAWS = 10


@dataclass(frozen=True)
class Score:
    """Fréchet distance of samples to the 10,000 reference digits in one classifier's features, and real digits' own.

    ``real`` is the mean over 10 draws of as many training digits against the same reference, ``real_std`` its spread
    between draws: single draws differ by tens of per cent, chiefly through their shares of the ten classes.
    """

    classifier: str
    n: int
    frechet: float
    real: float
    real_std: float
    ratio: float
    seconds: float


def read_digits(folder: Path) -> tuple[Tensor, Tensor]:
    """Return MNIST's 60,000 training digits, uint8 (60000, 1, 28, 28), and labels, int64 (60000,)."""
    images = gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / "train-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return torch.from_numpy(pixels.copy()), torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).astype(np.int64))


def classifier_path(folder: Path, seed: int) -> Path:
    """Where the classifier of this seed lies."""
    return folder / f"mnist-seed{seed}.safetensors"


def real_against_real(extract: Extractor, pool: Tensor, reference: Tensor, n: int, *, seed: int = 0) -> Tensor:
    """Fréchet distances (10,) of random draws of n images of the pool against the reference's features (M, D)."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.stack([torch.randperm(len(pool), generator=generator)[:n] for _ in range(DRAWS)])
    chosen, position = draws.unique(return_inverse=True)
    features = extract(pool[chosen])
    return torch.tensor([frechet_distance(features[index], reference) for index in position], dtype=torch.float64)


def score(samples: Tensor, classifiers: Path, data: Path) -> list[Score]:
    """Fréchet distances of samples (N, 1, 28, 28), 0 … 255, to the reference digits, one Score per trained classifier.

    ``classifiers`` is the --out folder of this script, ``data`` the MNIST folder. Raises InputError for a wrong shape
    or range, for more samples than there are training digits, and for a missing classifier.
    """
    if samples.ndim != 4 or samples.shape[1:] != (1, 28, 28) or not 128 <= len(samples) <= TRAIN:
        raise InputError(f"samples have shape {tuple(samples.shape)}: expected (N, 1, 28, 28) with 128 <= N <= {TRAIN}")
    low, high = float(samples.min()), float(samples.max())
    if not (low >= -64 and 32 <= high <= 320):
        raise InputError(f"samples range from {low:.3g} to {high:.3g}: expected 0 to 255, the data's own range")
    images, _ = read_digits(data)
    results = []
    for seed in SEEDS:
        start = time.perf_counter()
        path = classifier_path(classifiers, seed)
        extract = load_extractor(str(path))
        reference = extract(images[TRAIN:])
        frechet = frechet_distance(extract(samples), reference)
        real = real_against_real(extract, images[:TRAIN], reference, len(samples))
        mean, std = real.mean().item(), real.std().item()
        seconds = time.perf_counter() - start
        results.append(Score(extract.name, len(samples), frechet, mean, std, frechet / mean, seconds))
    return results


def score_records(scores: list[Score]) -> list[Record]:
    """The scores as records: per classifier the distance, the real one and their ratio, then the mean ratio."""
    records = []
    for item in scores:
        spread = f"10 draws, spread {item.real_std:.2f}"
        records += [
            Record("frechet", item.frechet, item.n, item.classifier, None, item.seconds, note="samples against reference"),
            Record(
                "frechet",
                item.real,
                item.n,
                item.classifier,
                0,
                0.0,
                note=f"training digits against reference, {spread}",
            ),
            Record("frechet ratio", item.ratio, item.n, item.classifier, 0, 0.0, note="samples over training digits"),
        ]
    mean = sum(item.ratio for item in scores) / len(scores)
    seconds = sum(item.seconds for item in scores)
    return [
        *records,
        Record("frechet ratio", mean, scores[0].n, "", 0, seconds, note=f"mean of {len(scores)} classifiers"),
    ]


def measure(seed: int, images: Tensor, labels: Tensor, out: Path, epochs: int, n: int) -> list[Record]:
    """Train and save one classifier; return its accuracy and real-against-real distances on n digits."""
    start = time.perf_counter()

    def progress(step: int, steps: int, loss: float) -> None:
        print(
            f"\rseed {seed}: step {step}/{steps}, loss {loss:.3f}, {time.perf_counter() - start:.0f} s",
            end="",
            flush=True,
        )

    net = train_classifier(images[:TRAIN], labels[:TRAIN], seed=seed, epochs=epochs, progress=progress)
    seconds = time.perf_counter() - start
    print()
    save_classifier(classifier_path(out, seed), net)
    extract = classifier_features(net, label=classifier_path(out, seed).stem)
    held_out = len(images) - TRAIN
    correct = accuracy(net, images[TRAIN:], labels[TRAIN:])
    records = [Record("accuracy", correct, held_out, extract.name, seed, seconds, note="on the reference; seconds of training")]
    reference = extract(images[TRAIN:])
    equal = reference[torch.randperm(held_out, generator=torch.Generator().manual_seed(1))]
    halves = [
        ("training digits against all of the reference", images[:TRAIN], reference),
        (f"training digits against {n} of the reference", images[:TRAIN], equal[:n]),
    ]
    for note, pool, target in halves:
        start = time.perf_counter()
        values = real_against_real(extract, pool, target, n)
        seconds, spread = time.perf_counter() - start, f"; 10 draws, spread {values.std():.3f}"
        records.append(Record("frechet", values.mean().item(), n, extract.name, 0, seconds, note=note + spread))
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(2)
    orders = [torch.randperm(held_out, generator=generator) for _ in range(DRAWS)]
    unseen = torch.tensor([frechet_distance(reference[order[:n]], reference[order[n:]]) for order in orders])
    note = f"{n} of the reference against its rest; 10 draws, spread {unseen.std():.3f}"
    return [
        *records,
        Record("frechet", unseen.mean().item(), n, extract.name, 2, time.perf_counter() - start, note=note),
    ]


def main() -> None:
    """Train the classifiers, print the table, write records-SEEDS.json beside the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mnist"), help="folder of the MNIST idx files")
    parser.add_argument("--out", type=Path, default=Path("runs/classifiers"), help="folder for weights and records")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=list(SEEDS), help="train only these, six minutes each on a slow core"
    )
    parser.add_argument("-n", type=int, default=2000, help="digits per real-against-real draw")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    images, labels = read_digits(arguments.data)
    records = [
        record
        for seed in arguments.seeds
        for record in measure(seed, images, labels, arguments.out, arguments.epochs, arguments.n)
    ]
    write_records(arguments.out / f"records-{'-'.join(map(str, arguments.seeds))}.json", records)
    print(table([dataclasses.replace(record, value=round(record.value, 4)) for record in records]))


if __name__ == "__main__":
    main()
