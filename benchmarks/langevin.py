"""Langevin dynamics: stationary laws, over-damped against under-damped per gradient, and simulated annealing.

    python benchmarks/langevin.py --part stationary
    python benchmarks/langevin.py --part friction
    python benchmarks/langevin.py --part annealing --out annealing.png

Seeds are fixed here; numbers go to a JSON file, for `annealing` beside the picture.

- stationary: mean, variance and energy histogram of the double well (x² - 1)² against quadrature, in Monte-Carlo standard errors
  (by effective sample size) and in per cent.
- friction: effective samples per 1000 gradients, the fewest over all coordinates, their squares and the energy. The rule of the
  step size, stated beforehand: without Metropolis the largest of a ladder of ratio sqrt(2) at which the largest relative bias of
  the coordinates' second moments is below 2 % (or not beyond it by two standard errors of the pilot runs), and at all smaller
  ones too; with Metropolis, which has no bias, the step with the most effective samples. Friction of the under-damped is chosen
  on the same pilot runs, the figures are those of other seeds. "averaged" is under-damped with infinite friction.
- annealing: wells, depths and barriers of `tilted_wells` by numerical search, then the share of 100 runs from random starts that
  met the global minimum's well, by cooling time and schedule.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ornstein.files import write_json
from ornstein.noise import Noise
from ornstein.samplers.annealing import CENTRE, COOLING, anneal, tilted_wells, tilted_wells_minima
from ornstein.samplers.boltzmann import (
    Chains,
    Dynamics,
    Energy,
    Overdamped,
    Underdamped,
    effective_sample_size,
    r_hat,
    sample_boltzmann,
)

Rows = list[dict[str, Any]]
CHAINS = 64
FRICTIONS = (0.3, 1.0, 3.0)


def double_well(x: Tensor) -> Tensor:
    """(x² - 1)²."""
    return (x.square() - 1).square().sum(1)


def four_wells(x: Tensor) -> Tensor:
    """In the plane: (x² - 1)² + (y² - 1)² + x y/4, four wells in two depths."""
    return (x.square() - 1).square().sum(1) + 0.25 * x.prod(1)


VARIANCES = 100.0 ** -torch.linspace(0, 1, 5, dtype=torch.float64)
TURN = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
COVARIANCE = TURN @ VARIANCES.diag() @ TURN.T
PRECISION = TURN @ (1 / VARIANCES).diag() @ TURN.T


def gaussian(x: Tensor) -> Tensor:
    """Five correlated coordinates, variances 1 to 0.01 along the axes: condition number 100."""
    return 0.5 * ((x @ PRECISION) * x).sum(1)


def grid_law(energy: Energy, dimensions: int, points: int = 1201, reach: float = 3.5) -> tuple[Tensor, Tensor]:
    """Places (n, D) and the Boltzmann weights at T = 1, on a grid."""
    line = torch.linspace(-reach, reach, points, dtype=torch.float64)
    places = torch.cartesian_prod(*[line] * dimensions).reshape(-1, dimensions)
    weights = (-energy(places)).exp()
    return places, weights / weights.sum()


@dataclass(frozen=True)
class Target:
    """An energy, its exact second moments (D,), starts, and the largest curvature met at T = 1 (for the ladders)."""

    energy: Energy
    moments: Tensor
    start: Tensor
    curvature: float


def targets() -> dict[str, Target]:
    """The three energies, at T = 1; every chain begins in the exact law, so that no warm-up enters the figures."""
    out = {"gaussian": Target(gaussian, COVARIANCE.diag(), Noise(5).normal((CHAINS, 5), dtype=torch.float64), 100.0)}
    root = torch.linalg.cholesky(COVARIANCE)
    out["gaussian"] = Target(gaussian, COVARIANCE.diag(), out["gaussian"].start @ root.T, 100.0)
    for name, energy, dimensions in (("double_well", double_well, 1), ("four_wells", four_wells, 2)):
        places, weights = grid_law(energy, dimensions)
        picked = torch.searchsorted(weights.cumsum(0), Noise(5).uniform((CHAINS,)))
        out[name] = Target(energy, weights @ places.square(), places[picked], 20.0)
    return out


def efficiency(chains: Chains) -> float:
    """Effective samples per chain and 1000 gradients: the fewest over coordinates, squares and energy."""
    assert chains.energies is not None
    values = torch.cat([chains.states, chains.states.square(), chains.energies[..., None]], 2)
    fewest = float(effective_sample_size(values).nan_to_num(nan=0.0).min())
    return fewest / chains.states.shape[1] / chains.gradients * 1000


def biased(chains: Chains, target: Target) -> bool:
    """Whether a coordinate's second moment is off by more than 2 % and two standard errors."""
    squares = chains.states.square()
    error = squares.std((0, 1)) / effective_sample_size(squares).sqrt() / target.moments
    off = (squares.mean((0, 1)) / target.moments - 1).abs()
    return bool((off > 0.02 + 2 * error).any()) or bool(off.isnan().any())


def run(target: Target, dynamics: Dynamics, metropolis: bool, steps: int, seed: int, chains: int = CHAINS) -> Chains | None:
    """Chains from the exact law, every second state kept; None if one explodes."""
    start = target.start.repeat(chains // CHAINS, 1)
    try:
        return sample_boltzmann(target.energy, start, steps, dynamics=dynamics, noise=Noise(seed), keep=2, metropolis=metropolis)
    except FloatingPointError:
        return None


def build(kind: str, step: float, friction: float) -> Dynamics:
    return Overdamped(step**2 / 2) if kind == "overdamped" else Underdamped(step, friction)


def friction(scale: float) -> Rows:
    """The comparison; every dynamics has the same ladder of durations (h for the under-damped, sqrt(2 h) for the over-damped)."""
    rows: Rows = []
    print(
        f"{'energy':<13}{'dynamics':<13}{'metropolis':>11}{'step':>9}{'friction':>9}{'ESS/1000':>10}{'R-hat':>8}{'bias':>9}{'accept':>8}"
    )
    for name, target in targets().items():
        ladder = [2 / math.sqrt(target.curvature) * 2 ** (-k / 2) for k in range(-1, 6)]
        for kind, metropolis in itertools.product(("overdamped", "averaged", "underdamped"), (False, True)):
            frictions = FRICTIONS if kind == "underdamped" else (math.inf,)
            best: tuple[float, float, float] | None = None
            for gamma in frictions:
                candidates: list[tuple[float, float, float]] = []
                for step in reversed(ladder):  # small to large
                    dynamics, chains = build(kind, step, gamma), CHAINS if metropolis else 4 * CHAINS
                    found = run(target, dynamics, metropolis, round(1000 * scale), 11, chains)
                    if found is None or (not metropolis and biased(found, target)):
                        break
                    candidates.append((efficiency(found), step, gamma))
                if candidates:
                    chosen = max(candidates) if metropolis else candidates[-1]
                    best = max(best, chosen) if best else chosen
            if best is None:
                print(f"{name:<13}{kind:<13}{metropolis!s:>11}   no step of the ladder has a bias below 2 %", flush=True)
                continue
            _, step, gamma = best
            final = run(target, build(kind, step, gamma), metropolis, round(4000 * scale), 12)
            if final is None:
                print(f"{name:<13}{kind:<13}{metropolis!s:>11}   step {step:.3g} exploded in the long run", flush=True)
                rows.append({"energy": name, "dynamics": kind, "metropolis": metropolis, "step": step, "exploded": True})
                continue
            row = {
                "energy": name,
                "dynamics": kind,
                "metropolis": metropolis,
                "step": step**2 / 2 if kind == "overdamped" else step,
                "friction": None if gamma == math.inf else gamma,
                "per_1000": efficiency(final),
                "rhat": float(final.rhat().max()),
                "bias": float((final.states.square().mean((0, 1)) / target.moments - 1).abs().max()),
                "acceptance": None if final.acceptance is None else float(final.acceptance.mean()),
            }
            rows.append(row)
            accept = "" if row["acceptance"] is None else f"{row['acceptance']:.0%}"
            print(
                f"{name:<13}{kind:<13}{metropolis!s:>11}{row['step']:>9.3g}{gamma:>9.3g}{row['per_1000']:>10.2f}"
                f"{row['rhat']:>8.4f}{row['bias']:>9.2%}{accept:>8}",
                flush=True,
            )
    return rows


WAYS: dict[str, tuple[Dynamics, bool]] = {
    "over-damped 0.01": (Overdamped(0.01), False),
    "over-damped 0.15, Metropolis": (Overdamped(0.15), True),
    "under-damped 0.1": (Underdamped(0.1), False),
    "under-damped 0.4, Metropolis": (Underdamped(0.4), True),
}


def stationary(scale: float) -> Rows:
    """The double well's law, at two temperatures."""
    rows: Rows = []
    heads = ("mean/s.e.", "E x²", "exact", "off", "off/s.e.", "bin/s.e.", "ESS", "R-hat")
    print(f"{'dynamics':<30}{'T':>5}" + "".join(f"{head:>10}" for head in heads))
    x = np.linspace(-4, 4, 40_001)
    energy = (x**2 - 1) ** 2
    for temperature in (1.0, 0.5):
        weights = np.exp(-energy / temperature)
        weights /= weights.sum()
        order = np.argsort(energy)
        edges = np.interp(np.arange(1, 16) / 16, np.cumsum(weights[order]), energy[order])
        truth = torch.from_numpy(np.bincount(np.digitize(energy, edges), weights, 16))
        start = torch.where(torch.arange(500) % 2 == 0, 1.0, -1.0).double()[:, None]
        for name, (dynamics, metropolis) in WAYS.items():
            found = sample_boltzmann(
                double_well, start, round(4000 * scale), dynamics=dynamics, noise=Noise(2), temperature=temperature,
                warmup=500, keep=4, metropolis=metropolis,
            )  # fmt: skip
            assert found.energies is not None
            bins = torch.nn.functional.one_hot(torch.bucketize(found.energies, torch.from_numpy(edges)), 16).double()
            second = float(weights @ x**2)
            values = torch.cat([found.states, found.states.square(), bins], 2)
            error = values.std((0, 1)) / effective_sample_size(values).sqrt()
            off = values.mean((0, 1)) - torch.cat([torch.tensor([0.0, second], dtype=torch.float64), truth])
            scores = off / error
            ess, rhat = float(found.ess()), float(r_hat(found.states))
            row = {"dynamics": name, "temperature": temperature, "mean_score": float(scores[0]), "second": second + float(off[1])}
            row |= {"exact": second, "second_score": float(scores[1]), "bin_score": float(scores[2:].abs().max())}
            rows.append(row | {"worst_bin": float((off[2:] / truth).abs().max()), "ess": ess, "rhat": rhat})
            part = float(off[1]) / second
            print(
                f"{name:<30}{temperature:>5}{row['mean_score']:>10.2f}{row['second']:>10.4f}{second:>10.4f}{part:>10.2%}"
                f"{row['second_score']:>10.2f}{row['bin_score']:>10.2f}{ess:>10.0f}{rhat:>10.4f}",
                flush=True,
            )
    return rows


def landscape() -> dict[str, Any]:
    """Wells, depths and barriers of `tilted_wells`: descent from a grid; saddles by Newton from the middle of neighbours."""
    gradient = torch.func.vmap(torch.func.grad(lambda y: tilted_wells(y[None])[0]))
    hessian = torch.func.vmap(torch.func.hessian(lambda y: tilted_wells(y[None])[0]))
    line = torch.linspace(-5.03, 5.01, 80, dtype=torch.float64)
    x = torch.cartesian_prod(line, line) + torch.tensor(CENTRE)
    for _ in range(1500):
        x = x - 0.03 * gradient(x)
    x = x[torch.linalg.eigvalsh(hessian(x)).amin(1) > 0]
    wells = torch.unique((x * 1e6).round() / 1e6, dim=0)
    known = tilted_wells_minima()
    assert len(wells) == len(known)
    assert float(torch.cdist(wells, known).amin(1).max()) < 1e-5
    pairs = [(i, j) for i, j in itertools.combinations(range(len(known)), 2) if (known[i] - known[j]).norm() < 1.3]
    low, high = known[[i for i, _ in pairs]], known[[j for _, j in pairs]]
    share = torch.linspace(0, 1, 401, dtype=torch.float64)[:, None, None]
    path = low + share * (high - low)
    top = tilted_wells(path.reshape(-1, 2)).reshape(path.shape[:2]).argmax(0)
    saddle = path[top, torch.arange(len(pairs))]
    for _ in range(30):
        saddle = saddle - torch.linalg.solve(hessian(saddle), gradient(saddle))
    assert bool(((torch.linalg.eigvalsh(hessian(saddle)) < 0).sum(1) == 1).all())
    difference = tilted_wells(high) - tilted_wells(low)
    barrier, uphill = tilted_wells(saddle) - tilted_wells(high), tilted_wells(saddle) - tilted_wells(low)
    depths = tilted_wells(known)
    out = {
        "wells": len(known),
        "global": depths[0].item(),
        "second": depths[1].item(),
        "highest": depths[-1].item(),
        "pairs": len(pairs),
        "difference": [float(difference.min()), float(difference.max())],
        "barrier": [float(barrier.min()), float(barrier.max())],
        "ratio": float((barrier / difference).max()),
        "ratio_from_lower": float((uphill / difference).max()),
    }
    print("\n".join(f"{key:<18}{value}" for key, value in out.items()))
    return out


TIMES = (30, 100, 300, 1000, 3000, 10_000, 30_000)
HOT, COLD = 1.0, 0.08
"""About the highest barrier between wells, and a sixth of the least difference between them."""
DYNAMICS: dict[str, Dynamics] = {"over-damped": Overdamped(0.02), "under-damped": Underdamped(0.15, 1.0)}


def annealing(scale: float) -> Rows:
    """Share of 100 runs that met the global minimum's well, and that ended in it."""
    rows: Rows = [landscape()]
    centre = torch.tensor(CENTRE, dtype=torch.float64)
    start = 7 * Noise(3).uniform((100, 2)) - 3.5 + centre
    at_once = int(((start - centre).abs().amax(1) < 0.4).sum())
    print(f"\nhot {HOT:g}, cold {COLD:g}, 100 runs of which {at_once} begin in the well")
    print(f"{'dynamics':<14}{'schedule':<13}{'steps':>7}{'met':>6}{'ended in':>10}")
    for name, dynamics in DYNAMICS.items():
        for schedule in ("geometric", "linear", "logarithmic"):
            for steps in (max(2, round(n * scale)) for n in TIMES):
                ladder = COOLING[schedule](steps, HOT, COLD)
                found = anneal(tilted_wells, start, ladder, dynamics=dynamics, noise=Noise(1), keep=steps)
                met, ended = (int(((place - centre).abs().amax(1) < 0.48).sum()) for place in (found.best, found.states[-1]))
                print(f"{name:<14}{schedule:<13}{steps:>7}{met:>6}{ended:>10}", flush=True)
                rows.append({"dynamics": name, "schedule": schedule, "steps": steps, "met": met, "ended": ended})
    return rows


COLOURS = {"geometric": "#0072B2", "linear": "#009E73", "logarithmic": "#D55E00"}


def picture(rows: Rows, path: Path) -> None:
    """Success against cooling time beside the energy, as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, (left, *panels) = plt.subplots(1, 3, figsize=(14, 4.2), width_ratios=(1.1, 1, 1), layout="constrained")
        line = torch.linspace(-4.2, 4.2, 241, dtype=torch.float64)
        grid = torch.cartesian_prod(line, line) + torch.tensor(CENTRE)
        shown = left.contourf(
            line + CENTRE[0], line + CENTRE[1], tilted_wells(grid).reshape(241, 241).T.clamp(max=12), 24, cmap="Greys_r"
        )
        wells = tilted_wells_minima()
        left.plot(*wells[1:].T, ".", color="#56B4E9", markersize=5, label=f"{len(wells) - 1} local minima")
        left.plot(*wells[0], "*", color="#D55E00", markersize=15, label="global minimum")
        left.set(title="energy", xlabel="x₁", ylabel="x₂", aspect="equal")
        left.legend(loc="upper left", fontsize=8)
        figure.colorbar(shown, ax=left, label="U", shrink=0.85)
        for right, what, title in zip(panels, ("met", "ended"), ("met it on the way", "ended in it"), strict=True):
            for name, style in (("over-damped", "-"), ("under-damped", "--")):
                for schedule, colour in COLOURS.items():
                    mine = [row for row in rows if row.get("dynamics") == name and row["schedule"] == schedule]
                    share = np.array([row[what] / 100 for row in mine])
                    n = 100  # Wilson's interval, one standard error wide on either side
                    middle, half = (share + 0.5 / n) / (1 + 1 / n), np.sqrt(share * (1 - share) / n + 0.25 / n**2) / (1 + 1 / n)
                    steps = [row["steps"] for row in mine]
                    right.plot(steps, 100 * share, style, marker="o", color=colour, label=f"{schedule}, {name}", markersize=4.5)
                    right.fill_between(steps, 100 * (middle - half), 100 * (middle + half), color=colour, alpha=0.12, linewidth=0)
            right.axhline(95, color="0.6", linewidth=0.8, linestyle=":")
            right.text(TIMES[0], 95.6, "95 %", color="0.4", fontsize=8, va="bottom")
            right.set(xscale="log", xlabel="cooling time (gradients per run)", ylim=(0, 103))
            right.set(title=f"runs of 100 that {title} (global minimum)")
            right.set_xticks(TIMES, [str(n) for n in TIMES], fontsize=8)
            right.minorticks_off()
        panels[1].legend(fontsize=8, loc="lower right")
        figure.savefig(path, dpi=200)
        plt.close(figure)


PARTS: dict[str, Callable[[float], Rows]] = {"stationary": stationary, "friction": friction, "annealing": annealing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--scale", type=float, default=1.0, help="length of the runs, in parts of the usual one")
    parser.add_argument("--out", type=Path, help="a JSON file; for annealing the picture, a PNG, with a JSON file beside it")
    arguments = parser.parse_args()
    rows = PARTS[arguments.part](arguments.scale)
    if arguments.out:
        if arguments.part == "annealing":
            picture(rows, arguments.out)
        write_json(arguments.out.with_suffix(".json"), rows)


if __name__ == "__main__":
    main()
