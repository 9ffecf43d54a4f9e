"""Likelihood by the probability flow against exact densities, and bits per dimension of a trained model by flow and by bound.

    python benchmarks/likelihood.py --part oracles --out oracles.json
    python benchmarks/likelihood.py --part hutchinson
    python benchmarks/likelihood.py --part model --model runs/digits --out digits.json

- oracles: exact divergence on a mixture and a correlated Gaussian (both of mean 0 and unit mean variance), 200 points, from
  t = 1e-5 (VE: from its smallest noise, 0.01). Target: mean error below 1e-4 nat per dimension for VP and sub-VP, 1e-3 for VE.
  "solver alone" puts the exact marginal at t = 1 in place of the prior and the exact density at the start in place of the data's.
  Round trip: RMSE of encode → decode.
- hutchinson: part of the points, and of the means over all points, that lie within 3 standard errors of the exact divergence;
  a mixture in 64 dimensions, ten seeds. Target: 95 %.
- model: bits/dim of the held-out data by the bound and by the flow under both dequantisations.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptive import blobs
from ornstein import model
from ornstein.cli.inputs import references
from ornstein.evaluate import ESTIMATES, likelihood
from ornstein.files import write_json
from ornstein.likelihood import decode, encode, log_prob
from ornstein.metrics import table
from ornstein.noise import Noise
from ornstein.process import EDM, VE, VP, Cosine, GaussianProcess, SubVP
from ornstein.samplers import RK45, FixedSteps
from ornstein.testing import GaussianDenoiser, MixtureDenoiser

Rows = list[dict[str, Any]]
POINTS, SEEDS = 200, 10


def centred(process: GaussianProcess) -> MixtureDenoiser:
    """`adaptive.blobs` moved to mean 0 and scaled to a mean variance of 1 per dimension."""
    found = blobs(process)
    mean = found.weights @ found.means
    spread = (found.weights @ (found.means - mean).square()).mean() + (found.weights * found.stds**2).sum()
    return MixtureDenoiser((found.means - mean) / spread.sqrt(), found.stds / spread.sqrt(), found.weights, process)


def correlated(process: GaussianProcess) -> GaussianDenoiser:
    """Ten dimensions, correlation 0.8^|i - j|."""
    place = torch.arange(10, dtype=torch.float64)
    return GaussianDenoiser(torch.zeros(10), 0.8 ** (place[:, None] - place).abs(), process)


def oracles(arguments: argparse.Namespace) -> Rows:
    """One row per process and law."""
    rows: Rows = []
    print(f"{'process':<8}{'data':<12}{'start':>8}{'noise':>9}{'mean error':>12}{'mean |error|':>13}{'solver alone':>13}", end="")
    print(f"{'calls':>7}{'65 fixed':>10}{'round trip':>12}")
    builders: tuple[tuple[str, Callable[[GaussianProcess], Any]], ...] = (("mixture", centred), ("correlated", correlated))
    for process in (VP(), SubVP(), VE(), Cosine(), EDM()):
        for name, build in builders:
            oracle = build(process)
            x = oracle.sample(POINTS, Noise(4))
            size, start = x.shape[1], 1e-5
            found = log_prob(oracle, x, divergence="exact", solver=RK45(1e-6), start=start)
            fixed = log_prob(oracle, x, divergence="exact", solver=FixedSteps(65), start=start)
            error = (found.value - oracle.log_prob(x)) / size
            alone = (found.value - prior(process, found.latent) + oracle.log_prob(found.latent, 1.0)) / size
            alpha = process.moments(start)[0]
            alone = alone - (oracle.log_prob(alpha * x, start) / size + alpha.log())
            back = decode(oracle, encode(oracle, x, start=start).latent, start=start)
            row = {
                "process": type(process).__name__, "data": name, "start": start, "noise": found.noise_std,
                "mean_error": float(error.mean()), "mean_absolute_error": float(error.abs().mean()),
                "solver_alone": float(alone.abs().mean()), "calls": float(found.calls.double().mean()),
                "fixed_mean_gap": float((fixed.value - found.value).abs().mean()) / size,
                "round_trip": float((back - x).square().mean().sqrt()),
            }  # fmt: skip
            rows.append(row)
            print(
                f"{row['process']:<8}{name:<12}{start:>8.0e}{found.noise_std:>9.1e}{row['mean_error']:>12.1e}"
                f"{row['mean_absolute_error']:>13.1e}{row['solver_alone']:>13.1e}{row['calls']:>7.0f}{row['fixed_mean_gap']:>10.1e}"
                f"{row['round_trip']:>12.1e}",
                flush=True,
            )
    return rows


def hutchinson(arguments: argparse.Namespace) -> Rows:
    """One row per process, kind and number of probes."""
    rows: Rows = []
    print(f"{'process':<8}{'probes':<12}{'number':>7}{'points within':>15}{'means within':>14}{'s.e./dim':>10}")
    for process in (VP(), SubVP(), VE()):
        oracle, solver = blobs(process, dimensions=64), RK45(1e-4)
        x = oracle.sample(POINTS, Noise(4))
        exact = log_prob(oracle, x, divergence="exact", solver=solver).value
        for kind in ("rademacher", "gaussian"):
            for probes in (8, 16, 32):
                points, means, size = [], [], 0.0
                for seed in range(SEEDS):
                    found = log_prob(oracle, x, divergence=kind, probes=probes, noise=Noise(seed), solver=solver)
                    off, error = found.value - exact, found.standard_error
                    points.append(float((off.abs() <= 3 * error).double().mean()))
                    means.append(float(off.sum().abs() <= 3 * error.square().sum().sqrt()))
                    size += float(error.mean()) / 64 / SEEDS
                row = {"process": type(process).__name__, "kind": kind, "probes": probes, "points": sum(points) / SEEDS}
                rows.append(row | {"means": sum(means) / SEEDS, "standard_error": size})
                print(
                    f"{row['process']:<8}{kind:<12}{probes:>7}{row['points']:>15.1%}{rows[-1]['means']:>14.0%}{size:>10.1e}",
                    flush=True,
                )
    return rows


def prior(process: GaussianProcess, latent: Tensor) -> Tensor:
    """log N(x_1; 0, prior_std² I)."""
    scale = process.prior_std
    return -0.5 * ((latent / scale).square() + math.log(2 * math.pi * scale**2)).sum(1)


def trained(arguments: argparse.Namespace) -> Rows:
    """The tables of `ornstein nll --by both` for both dequantisations."""
    system = model.load(arguments.model)
    training, held = references(model.read_recipe(arguments.model), system, arguments.data)
    rows: Rows = []
    for dequantisation in ("uniform", "gaussian"):
        by = ESTIMATES if dequantisation == "uniform" else ("ode",)
        begun = time.monotonic()
        records = likelihood(system, training, held, n=arguments.number, by=by, draws=100, dequantisation=dequantisation)
        print(table(records), f"\n{time.monotonic() - begun:.0f} s\n", flush=True)
        rows += [
            {"dequantisation": dequantisation, "metric": r.metric, "value": r.value, "interval": r.interval} for r in records
        ]
    return rows


PARTS: dict[str, Callable[[argparse.Namespace], Rows]] = {"oracles": oracles, "hutchinson": hutchinson, "model": trained}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--model", type=Path, default=Path("runs/digits"))
    parser.add_argument("--data", help="data to judge; the model's held-out part unless given")
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = PARTS[arguments.part](arguments)
    if arguments.out:
        write_json(arguments.out, rows)


if __name__ == "__main__":
    main()
