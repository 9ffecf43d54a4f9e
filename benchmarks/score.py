"""Judge MNIST samples by the classifiers that benchmarks/classifier.py trained: a table, then JSON.

    python benchmarks/score.py SAMPLES.npz --classifiers runs/classifiers --data ../shared/data/mnist [--out score.json]

SAMPLES.npz holds `samples`, (N, 1, 28, 28) or (N, 28, 28) in 0 … 255.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from classifier import score, score_records
from ornstein.files import InputError
from ornstein.metrics import table, write_records


def read_samples(path: Path) -> Tensor:
    """Return the file's samples, float32 (N, 1, 28, 28); raises InputError where file or key `samples` is missing."""
    try:
        with np.load(path, allow_pickle=False) as file:
            array = file["samples"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: no array 'samples' to read ({error}); write it with ornstein sample --out x.npz") from error
    samples = torch.from_numpy(array.astype(np.float32))
    return samples[:, None] if samples.ndim == 3 else samples


def main() -> int:
    """Print the table and the JSON; return 0, or 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--classifiers", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mnist"))
    parser.add_argument("--out", type=Path, default=None, help="also write the records here")
    arguments = parser.parse_args()
    try:
        records = score_records(score(read_samples(arguments.samples), arguments.classifiers, arguments.data))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(records))
    print(json.dumps([record.to_json() for record in records]))
    if arguments.out is not None:
        write_records(arguments.out, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
