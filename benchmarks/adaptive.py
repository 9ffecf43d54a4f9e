"""Samplers that choose their steps, and the corrector, on oracles whose law is known.

    python benchmarks/adaptive.py --part ggf --out ggf.json
    python benchmarks/adaptive.py --part bridge
    python benchmarks/adaptive.py --part rk45
    python benchmarks/adaptive.py --part corrector

Calls are network evaluations per sample. Sliced Wasserstein-2 distances are taken to the exact law: sorted projections against
the quantiles of the projected mixture; "floor" is what as many exact samples have. Seeds are fixed here.

- ggf: Gotta Go Fast against Euler-Maruyama on uniform grids: the calls that Euler-Maruyama needs for the same distance, by
  interpolation of its own curve. Target: at least twice as many.
- bridge: standard deviation of Gaussian data sampled with bridged and with redrawn increments.
- rk45: error over tolerance against the exact flow, calls, and a mixed batch against its samples alone (target 1.1); beside it
  scipy's RK45 in t on the whole batch, as the published code of Song et al. runs it.
- corrector: plan with corrector against the plan alone at equal calls, exact score and score with a smooth random error.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ornstein.denoiser import Condition, Denoises, Prediction
from ornstein.files import write_json
from ornstein.noise import Noise
from ornstein.process import EDM, VE, VP, GaussianProcess, SubVP
from ornstein.process.gaussian import Time
from ornstein.samplers import (
    ALL,
    RK45,
    GottaGoFast,
    LangevinCorrector,
    euler_maruyama,
    sample,
    sample_adaptive,
)
from ornstein.testing import GaussianDenoiser, MixtureDenoiser

DIRECTIONS = 32
Rows = list[dict[str, Any]]


def blobs(process: GaussianProcess, dimensions: int = 16, modes: int = 8, seed: int = 7) -> MixtureDenoiser:
    """Well separated modes, standardised."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(modes, dimensions, generator=generator, dtype=torch.float64)
    means = (means - means.mean(0)) / means.std()
    stds = 0.15 * (0.5 + torch.rand(modes, generator=generator, dtype=torch.float64))
    return MixtureDenoiser(means, stds, torch.randn(modes, generator=generator, dtype=torch.float64).softmax(0), process)


def scales(process: GaussianProcess) -> MixtureDenoiser:
    """Two widths around one point, in the plane: no mode can be missed, so that small errors can be seen."""
    return MixtureDenoiser(torch.zeros(2, 2), torch.tensor([0.1, 1.0]), torch.tensor([0.5, 0.5]), process)


def tails(process: GaussianProcess) -> MixtureDenoiser:
    """Three widths, slightly apart, in four dimensions."""
    means = torch.tensor([[0.0] * 4, [0.2] * 4, [-0.3] * 4])
    return MixtureDenoiser(means, torch.tensor([0.05, 0.3, 1.5]), torch.tensor([0.4, 0.3, 0.3]), process)


def plane(process: GaussianProcess) -> MixtureDenoiser:
    """Three modes of unequal width in the plane."""
    means = torch.tensor([[1.2, 0.3], [-0.8, 0.8], [-0.2, -1.1]])
    return MixtureDenoiser(means, torch.tensor([0.25, 0.1, 0.06]), torch.tensor([0.45, 0.25, 0.3]), process)


def distance(x: Tensor, oracle: MixtureDenoiser) -> float:
    """Sliced Wasserstein-2 between samples (n, D) and the oracle's exact law."""
    generator = torch.Generator().manual_seed(5)
    directions = torch.randn(DIRECTIONS, x.shape[1], generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    parts = (torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x)
    total = 0.0
    for along in directions:
        centres = oracle.means @ along
        low, high = float((centres - 8 * oracle.stds).min()), float((centres + 8 * oracle.stds).max())
        places = torch.linspace(low, high, 40_001, dtype=torch.float64)
        cdf = (oracle.weights * torch.special.ndtr((places[:, None] - centres) / oracle.stds)).sum(1)
        quantiles = np.interp(parts.numpy(), cdf.numpy(), places.numpy())
        total += float(((x.double() @ along).sort().values - torch.from_numpy(quantiles)).square().mean())
    return math.sqrt(total / DIRECTIONS)


def gotta_go_fast(n: int) -> Rows:
    """Distance by calls of both samplers, and the ratio of calls at equal distance."""
    rows: Rows = []
    for name, build in (("scales", scales), ("tails", tails)):
        process = VP()
        oracle = build(process)
        size = oracle.means.shape[1]
        floor = distance(oracle.sample(n, Noise(50)), oracle)
        start = process.prior((n, size), Noise(0))
        print(f"\n{name}, VP, {n} samples, floor {floor:.4f}")
        print(f"{'sampler':<28}{'calls':>7}{'distance':>10}{'EM calls':>10}{'ratio':>7}")
        counts, distances = [40, 80, 160, 320, 640], []
        for calls in counts:
            distances.append(distance(sample(oracle, euler_maruyama(process, calls), start=start, noise=Noise(1)), oracle))
            print(f"{'euler_maruyama':<28}{calls:>7}{distances[-1]:>10.4f}", flush=True)
            row = {"mixture": name, "sampler": "euler_maruyama", "calls": calls, "distance": distances[-1]}
            rows.append(row | {"floor": floor})
        for rtol in (0.5, 0.2, 0.1, 0.05, 0.02):
            drawn = sample_adaptive(oracle, GottaGoFast(rtol), start=start, noise=Noise(1))
            calls, found = float(drawn.calls.double().mean()), distance(drawn.x0, oracle)
            equal = math.exp(np.interp(-math.log(found), -np.log(distances), np.log(counts)))
            inside = min(distances) <= found <= max(distances)
            text = f"{equal:>10.0f}{equal / calls:>7.2f}" if inside else f"{'beyond':>10}"
            print(f"{f'gotta_go_fast({rtol:g})':<28}{calls:>7.0f}{found:>10.4f}{text}", flush=True)
            ratio = equal / calls if inside else None
            rows.append(
                {"mixture": name, "sampler": "gotta_go_fast", "rtol": rtol, "calls": calls, "distance": found, "ratio": ratio}
            )
    return rows


def bridge(n: int) -> Rows:
    """Standard deviation of samples of N(0, 0.5² I) beside the truth, for bridged and redrawn increments."""
    rows: Rows = []
    print(f"standard error of a bias {1 / math.sqrt(8 * n):.1e}")
    print(f"{'process':<8}{'rtol':>6}{'noise':>10}{'calls':>7}{'std/true - 1':>14}")
    for process in (VP(), VE()):
        oracle = GaussianDenoiser(torch.zeros(4), 0.25 * torch.eye(4, dtype=torch.float64), process)
        start = process.prior((n, 4), Noise(0))
        for rtol in (0.02, 0.1, 0.5):
            for bridged in (True, False):
                drawn = sample_adaptive(oracle, GottaGoFast(rtol, bridge=bridged), start=start, noise=Noise(1))
                bias, calls = float(drawn.x0.double().std()) / 0.5 - 1, float(drawn.calls.double().mean())
                name, kind = type(process).__name__, "bridged" if bridged else "redrawn"
                print(f"{name:<8}{rtol:>6g}{kind:>10}{calls:>7.0f}{bias:>14.2%}", flush=True)
                rows.append({"process": name, "rtol": rtol, "noise": kind, "calls": calls, "bias": bias})
    return rows


def runge_kutta(n: int) -> Rows:
    """Error over tolerance and calls of RK45, alone and in a mixed batch, beside scipy's on the whole batch in t."""
    rows: Rows = []
    covariance = torch.tensor([[1, 0.8, 0], [0.8, 1, 0.1], [0, 0.1, 0.05]], dtype=torch.float64)
    print(
        f"{'process':<8}{'data':<9}{'rtol':>7}{'error/rtol':>12}{'worst':>8}{'calls':>7}{'alone':>7}"
        f"{'scipy calls':>13}{'error/rtol':>12}"
    )
    for process in (VP(), VE(), SubVP(), EDM()):
        for name, oracle in (("blobs", blobs(process)), ("gaussian", GaussianDenoiser(torch.zeros(3), covariance, process))):
            size = oracle.sample(1, Noise(0)).shape[1]
            start = process.prior((n, size), Noise(0), dtype=torch.float64)
            truth = oracle.flow(start, 1.0, process.t_min)
            for rtol in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
                solver = RK45(rtol, end=process.t_min)
                drawn = sample_adaptive(oracle, solver, start=start, noise=Noise(0))
                alone = sum(int(sample_adaptive(oracle, solver, start=x[None], noise=Noise(0)).calls) for x in start)
                off = (drawn.x0 - truth).square().mean(1).sqrt() / rtol
                error, worst = float(off.square().mean().sqrt()), float(off.max())
                calls, other, peer = float(drawn.calls.double().mean()), *scipy_in_t(oracle, start, truth, rtol)
                ratio = int(drawn.calls.sum()) / alone
                title = type(process).__name__
                print(
                    f"{title:<8}{name:<9}{rtol:>7.0e}{error:>12.2f}{worst:>8.1f}{calls:>7.0f}{ratio:>7.3f}{other:>13.0f}{peer:>12.2f}",
                    flush=True,
                )
                rows.append(
                    {"process": title, "data": name, "rtol": rtol, "error": error, "worst": worst, "calls": calls}
                    | {"batch_over_alone": ratio, "scipy_calls": other, "scipy_error": peer}
                )
    return rows


def scipy_in_t(oracle: Any, start: Tensor, truth: Tensor, rtol: float) -> tuple[float, float]:
    """(calls, error/rtol) of scipy's RK45 on dx/dt = f x - ½ g² score of the whole batch at once."""
    process = oracle.process

    def slope(t: float, flat: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(flat).reshape(start.shape)
        f, g = float(process.drift(t)), float(process.diffusion(t))
        return (f * x - 0.5 * g**2 * oracle(x, t).score).reshape(-1).numpy()

    solved = solve_ivp(slope, (1.0, process.t_min), start.reshape(-1).numpy(), method="RK45", rtol=rtol, atol=rtol)
    off = torch.from_numpy(solved.y[:, -1]).reshape(start.shape) - truth
    return float(solved.nfev), float(off.square().mean().sqrt()) / rtol


@dataclass(frozen=True)
class Imperfect:
    """An oracle whose eps has a smooth random error of root mean square `size`, the same function in every call."""

    oracle: MixtureDenoiser
    size: float
    seed: int = 11
    waves: int = 64
    drawn: dict[str, Tensor] = field(default_factory=dict)

    @property
    def process(self) -> GaussianProcess:
        return self.oracle.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        if not self.drawn:
            generator, size = torch.Generator().manual_seed(self.seed), x_t.shape[1]
            options: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
            self.drawn["space"], self.drawn["time"] = (
                torch.randn(size, self.waves, **options),
                3 * torch.randn(self.waves, **options),
            )
            self.drawn["phase"] = 2 * math.pi * torch.rand(self.waves, **options)
            self.drawn["out"] = torch.randn(self.waves, size, **options) * math.sqrt(2 / self.waves)
        prediction = self.oracle(x_t, t)
        alpha, sigma = self.process.moments(t)
        waves = (x_t.double() / torch.hypot(alpha, sigma)) @ self.drawn["space"] + self.drawn["time"] * (sigma / alpha).log()
        error = torch.cos(waves + self.drawn["phase"]) @ self.drawn["out"]
        return prediction.with_x0(((x_t - sigma * (prediction.eps + self.size * error)) / alpha).to(x_t))


def corrector(n: int) -> Rows:
    """Distance with and without the corrector at equal calls: means over three seeds."""
    rows: Rows = []
    seeds, calls = (0, 1, 2), 200
    print(f"at most {calls} calls, {n} samples")
    print(f"{'process':<8}{'data':<7}{'error of eps':>13}{'predictor':>20}{'alone':>16}{'with corrector':>18}")
    builders: tuple[tuple[str, Callable[[GaussianProcess], MixtureDenoiser]], ...] = (("plane", plane), ("blobs", blobs))
    for process in (VP(), VE(), SubVP()):
        for name, build in builders:
            oracle = build(process)
            for size in (0.0, 0.1, 0.3):
                denoiser: Denoises = Imperfect(oracle, size) if size else oracle
                hook = LangevinCorrector(denoiser)
                for predictor in ("ddim", "reverse_diffusion"):
                    make = ALL[predictor]
                    whole, half = make(process, calls), make(process, (calls + 1) // 2)
                    if hook.calls(half) > calls:
                        raise ValueError(f"{predictor} with corrector takes {hook.calls(half)} calls, more than {calls}")
                    found: dict[str, list[float]] = {"alone": [], "corrected": []}
                    for seed in seeds:
                        start = process.prior((n, oracle.means.shape[1]), Noise(seed), dtype=torch.float64)
                        noise = Noise(100 + seed)
                        found["alone"].append(distance(sample(denoiser, whole, start=start, noise=noise), oracle))
                        found["corrected"].append(distance(sample(denoiser, half, start=start, noise=noise, after=hook), oracle))
                    mean = {key: float(np.mean(values)) for key, values in found.items()}
                    spread = {key: float(np.std(values, ddof=1) / math.sqrt(len(values))) for key, values in found.items()}
                    title = type(process).__name__
                    print(
                        f"{title:<8}{name:<7}{size:>13g}{predictor:>20}{mean['alone']:>9.4f} ± {spread['alone']:.4f}"
                        f"{mean['corrected']:>9.4f} ± {spread['corrected']:.4f}",
                        flush=True,
                    )
                    rows.append({"process": title, "data": name, "error": size, "predictor": predictor, "spread": spread, **mean})
    return rows


PARTS: dict[str, tuple[Callable[[int], Rows], int]] = {
    "ggf": (gotta_go_fast, 200_000),
    "bridge": (bridge, 20_000),
    "rk45": (runge_kutta, 64),
    "corrector": (corrector, 10_000),
}
"""Parts, and how many samples each draws."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("-n", type=int, help="samples, in place of the part's own number")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    run, n = PARTS[arguments.part]
    rows = run(arguments.n or n)
    if arguments.out:
        write_json(arguments.out, rows)


if __name__ == "__main__":
    main()
