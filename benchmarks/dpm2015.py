"""The bound of DPM 2015 against exact entropies, in bits per datum.

    python benchmarks/dpm2015.py --part identity
    python benchmarks/dpm2015.py --part roll40 --out roll40.json
    python benchmarks/dpm2015.py --part roll200 --out roll200.json
    python benchmarks/dpm2015.py --part heartbeat

Gaps are E[log2 p(x0) - K], with the standard error of the mean over fresh data; on one thread. Seeds are fixed here, and so is
the training: AdamW, cosine rate, averaged weights, the same number of steps for every row of a part.

- identity: untrained models on N(0, I), whose reverse steps are exact. "exact" takes the expectation by the two-point rule
  x0, z = ±1, which is exact since the terms are quadratic; "drawn" is Monte Carlo. Target: 0 ± 1e-3.
- roll40, roll200: swiss roll with noise 0.05 and so many steps. Mean and covariance learned against the mean alone, betas fixed
  and learned; "covariance buys" is the mean paired difference of K, "kept" the share of the signal's variance that is left in
  x_T. Targets: gap at most 0.5 at T = 40 and 0.2 at T = 200, the difference positive.
- heartbeat: binary sequences of length 20, T = 2000. Target: K at least -2.6 (the truth is -2.322). "valid" is the share of
  samples that are one of the five sequences.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ornstein.files import write_json
from ornstein.noise import Noise
from ornstein.progress import track
from ornstein.vector.data import heartbeat, swiss_roll, swiss_roll_law
from ornstein.vector.dpm2015 import DPM, SCHEDULES, dpm

BITS = math.log(2)
BATCH = 512
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Signs(Noise):
    """Normals replaced by signs: row i holds the binary digits of i, so that 2^n rows of n numbers have exact second moments."""

    def normal(
        self,
        shape: Sequence[int],
        *,
        stream: str = "x",
        step: int = 0,
        first: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Signs (rows, columns)."""
        digits = torch.arange(first, first + shape[0])[:, None] >> torch.arange(shape[1])
        return (2 * (digits & 1) - 1).to(device=device, dtype=dtype)


def trained(model: DPM, data: Tensor, steps: int, title: str, rate: float = 2e-3, seed: int = 0) -> tuple[DPM, float]:
    """(the model with averaged weights, seconds of processor time)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, betas=(0.9, 0.99))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    noise, start = Noise(seed), time.process_time()
    for step in track(range(steps), steps, title):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = torch.arange(step * BATCH, (step + 1) * BATCH) % len(data)
        optimizer.zero_grad()
        model.loss(data[rows], noise, step=step).mean().backward()
        optimizer.step()
        average.update_parameters(model)
    return average.module, time.process_time() - start


def mean_error(values: Tensor) -> tuple[float, float]:
    """(mean, its standard error)."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def identity(n: int) -> Rows:
    """Gaps of untrained models on N(0, I) in two dimensions."""
    rows: Rows = []
    print(f"{'schedule':<10}{'T':>6}{'exact':>12}{'drawn':>24}")
    for schedule in SCHEDULES:
        for steps in (2, 10, 40, 200, 1000):
            model = dpm(2, steps=steps, schedule=schedule, width=2, depth=0)

            def gap(x0: Tensor, noise: Noise, model: DPM = model) -> Tensor:
                rest = -0.5 * (math.log(2 * math.pi) * 2 + x0.square().sum(1))
                return rest / BITS - model.bound(x0, noise)

            signs = Signs(0).normal((16, 4), dtype=torch.float64)  # digits 0, 1 are z, digits 2, 3 are x0
            exact = float(gap(signs[:, 2:], Signs(0)).mean())
            drawn, error = mean_error(gap(Noise(1).normal((n, 2), dtype=torch.float64), Noise(2)))
            print(f"{schedule:<10}{steps:>6}{exact:>12.1e}{drawn:>14.4f} ± {error:.4f}", flush=True)
            rows.append({"schedule": schedule, "steps": steps, "exact": exact, "drawn": drawn, "standard_error": error})
    return rows


def roll(steps: int, n: int) -> Rows:
    """Gaps on the swiss roll by kernel and betas."""
    rows: Rows = []
    data = swiss_roll(400_000, Noise(1)).float()
    x0 = swiss_roll(n, Noise(2))
    print(f"{'T':>4}  {'betas':<9}{'kernel':<16}{'seconds':>8}{'kept':>8}{'K':>9}{'gap':>9}{'':>9}{'covariance buys':>20}")
    for learned in (False, True):
        found: dict[str, Tensor] = {}
        for kernel in ("gaussian_fixed", "gaussian"):
            torch.manual_seed(0)
            model = dpm(2, kernel=kernel, steps=steps, learned_betas=learned, depth=3)
            model, seconds = trained(model, data, 5000, f"T={steps} {kernel}")
            found[kernel] = model.bound(x0.float(), Noise(3), progress=True)
            gap, error = mean_error(swiss_roll_law(model.chain).log_prob(x0) / BITS - found[kernel])
            kept = float(model.chain.moments(1.0)[0]) ** 2
            row = {"steps": steps, "learned_betas": learned, "kernel": kernel, "seconds": seconds, "kept": kept}
            row |= {"K": float(found[kernel].mean()), "gap": gap, "standard_error": error}
            text = ""
            if kernel == "gaussian":
                row["buys"], row["buys_error"] = mean_error(found["gaussian"] - found["gaussian_fixed"])
                text = f"{row['buys']:>11.4f} ± {row['buys_error']:.4f}"
            print(
                f"{steps:>4}  {'learned' if learned else 'fixed':<9}{kernel:<16}{seconds:>8.0f}{kept:>8.4f}{row['K']:>9.3f}"
                f"{gap:>9.4f} ± {error:.4f}{text}",
                flush=True,
            )
            rows.append(row)
    return rows


def beats(n: int) -> Rows:
    """K on binary heartbeats."""
    torch.manual_seed(0)
    model = dpm(20, kernel="bernoulli", steps=2000, width=64, depth=2)
    model, seconds = trained(model, heartbeat(100_000, Noise(1)), 6000, "heartbeat")
    k, error = mean_error(model.bound(heartbeat(n, Noise(2)), Noise(3), progress=True))
    samples = model.sample(n, Noise(4), progress=True)
    shares = [float((samples == (torch.arange(20) % 5 == phase)).all(1).float().mean()) for phase in range(5)]
    print(f"{'T':>5}{'seconds':>9}{'K':>9}{'':>9}{'exact':>8}{'valid':>8}")
    print(f"{2000:>5}{seconds:>9.0f}{k:>9.3f} ± {error:.4f}{-math.log2(5):>8.3f}{sum(shares):>8.1%}")
    row = {"steps": 2000, "seconds": seconds, "K": k, "standard_error": error, "exact": -math.log2(5), "shares": shares}
    return [row]


PARTS: dict[str, tuple[Callable[[int], Rows], int]] = {
    "identity": (identity, 20_000),
    "roll40": (partial(roll, 40), 10_000),
    "roll200": (partial(roll, 200), 10_000),
    "heartbeat": (beats, 2000),
}
"""Parts, and on how many fresh data each is judged."""


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("-n", type=int, help="fresh data, in place of the part's own number")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    run, n = PARTS[arguments.part]
    rows = run(arguments.n or n)
    if arguments.out:
        write_json(arguments.out, rows)


if __name__ == "__main__":
    main()
