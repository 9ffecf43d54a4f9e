"""Whether an error budget keeps its promise: the error that a pilot predicts against that of fresh samples.

    python benchmarks/budget.py --out budget.json
    python benchmarks/budget.py --model runs/digits

Mixtures (`adaptive.blobs`, `adaptive.plane`) on VP and EDM, and a trained model: 64 pilot samples, 1,000 fresh ones, three
seeds. The error is the distance to the exact flow that nine in ten samples stay below, over the standard deviation of the data.
Target: delivered within a factor 2 of promised.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from adaptive import blobs, plane
from ornstein import model
from ornstein.denoiser import Condition, Denoises
from ornstein.files import write_json
from ornstein.noise import Noise
from ornstein.process import EDM, VP
from ornstein.samplers import RK45, default_plan, pilot, sample, sample_adaptive

PILOT, FRESH, SEEDS = 64, 1000, (0, 1, 2)


def problems(directory: Path | None) -> Iterator[tuple[str, Denoises, tuple[int, ...], float, tuple[float, ...]]]:
    """(name, denoiser, shape, standard deviation of the data, tolerances)."""
    for process in (VP(), EDM()):
        for name, build in (("blobs", blobs), ("plane", plane)):
            oracle = build(process)
            std = float(oracle.sample(20_000, Noise(5)).std())
            title = f"{name}, {type(process).__name__}"
            yield title, oracle, tuple(oracle.means.shape[1:]), std, (0.1, 0.03, 0.01, 0.003, 0.001)
    if directory is not None:
        system = model.load(directory)
        yield str(directory), system.shaped_denoiser(), system.contract.shape, system.contract.std, (0.1, 0.03, 0.01, 0.003)


def labels(denoiser: Denoises, directory: Path | None, n: int) -> Condition:
    """Labels 0, 1, … in turn, for a model that takes them."""
    if directory is None:
        return None
    system = model.load(directory)
    if system.condition is None:
        return None
    return system.conditions({system.condition: [k % len(system.contract.classes or ()) for k in range(n)]}, n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"{'problem':<16}{'seed':>5}{'asked':>8}{'calls':>7}{'promised':>10}{'delivered':>11}{'ratio':>7}{'mean':>9}")
    for name, denoiser, shape, std, tolerances in problems(arguments.model):
        directory = arguments.model if name == str(arguments.model) else None
        for seed in SEEDS:
            options: dict[str, Any] = {"noise": Noise(1000 + seed), "cond": labels(denoiser, directory, FRESH), "batch_size": 250}
            exact = sample_adaptive(denoiser, RK45(1e-5), shape=(FRESH, *shape), **options).x0
            for tolerance in tolerances:
                found = pilot(
                    denoiser, shape=(PILOT, *shape), noise=Noise(seed), tolerance=tolerance, scale=std,
                    cond=labels(denoiser, directory, PILOT),
                )  # fmt: skip
                x0 = sample(denoiser, default_plan(denoiser.process, found.calls), shape=(FRESH, *shape), **options)
                distance = (x0 - exact).flatten(1).double().square().mean(1).sqrt() / std
                delivered = float(torch.quantile(distance, 0.9))
                ratio = delivered / found.error
                row = {"problem": name, "seed": seed, "asked": tolerance, "calls": found.calls, "promised": found.error}
                rows.append(row | {"delivered": delivered, "ratio": ratio, "mean": float(distance.mean())})
                print(
                    f"{name:<16}{seed:>5}{tolerance:>8g}{found.calls:>7}{found.error:>10.2g}{delivered:>11.2g}{ratio:>7.2f}"
                    f"{rows[-1]['mean']:>9.2g}",
                    flush=True,
                )
    inside = sum(0.5 <= row["ratio"] <= 2 for row in rows)
    ratios = sorted(row["ratio"] for row in rows)
    print(f"{inside} of {len(rows)} within a factor 2; ratios {ratios[0]:.2f} … {ratios[-1]:.2f}")
    if arguments.out:
        write_json(arguments.out, rows)


if __name__ == "__main__":
    main()
