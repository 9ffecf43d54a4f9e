"""What guidance samples: exactly, on normal laws; and on MNIST, accuracy bought with diversity, and what a guided call costs.

    python benchmarks/guidance.py --part exact --out guidance-exact.json
    python benchmarks/guidance.py --part samplers --out guidance-samplers.json
    python benchmarks/guidance.py --part mnist --model runs/mnist-label --classifiers runs/classifiers --out guidance-mnist.json
    python benchmarks/guidance.py --part cost --model runs/mnist-label --out guidance-cost.json

- exact: p(x) = N(0, 1), p(x | c) = N(1, 0.25): mean and standard deviation at γ by the flow of the guided score and by its
  reverse equation (scipy, 1e-10), by plans whose law is propagated through their rows, by samples, and of the tilted density.
- samplers: the same at γ = 2 for every member of `samplers.ALL`, at 100 and 400 calls.
- mnist: 1000 digits, a tenth of each class asked for, at γ = 0, 1, 2, 4, and at γ = 2 within a guidance interval, rescaled, and
  (with --weaker) autoguided: accuracy, Fréchet distance, variance within classes and recall in the features of classifiers
  that were trained on digits 0 … 49,999, against digits 50,000 … 59,999. Samples are kept in --samples, so that a run resumes.
- cost: a guided call against one unguided call of twice the samples; median of interleaved runs on one thread.

Seeds and settings are fixed here; none was chosen on these figures.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classifier import SEEDS, TRAIN, classifier_path, read_digits
from ornstein import model
from ornstein.files import write_json
from ornstein.guidance import Autoguidance, ClassifierFree, Guidance, evaluations
from ornstein.kinds import with_denoiser
from ornstein.metrics import accuracy, classifier_features, frechet_distance, load_classifier, precision_recall
from ornstein.noise import Noise
from ornstein.process import EDM, VE, VP, Cosine, GaussianProcess
from ornstein.samplers import ALL, Law, Plan, adams, annealed_langevin, propagate, sa_solver, sample
from ornstein.testing import GuidedNormal

F64 = torch.float64
Rows = list[dict[str, Any]]
SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
LIMIT = 1e-3


def normal(process: GaussianProcess) -> GuidedNormal:
    """p(x) = N(0, 1), p(x | c) = N(1, 0.5²)."""
    return GuidedNormal(mean=1.0, std=0.5, free_std=1.0, process=process)


def by_plan(law: GuidedNormal, plan: Plan, scale: float) -> tuple[float, float]:
    """Mean and standard deviation of what a plan makes of the prior under guidance, without Monte Carlo."""
    prior = Law(torch.zeros(1, dtype=F64), torch.tensor([law.process.prior_std**2], dtype=F64))
    end = propagate(plan, ClassifierFree(law.oracle, scale), start=prior, cond={"label": torch.zeros(1, dtype=torch.long)})[-1]
    return float(end.mean), float(end.variances.sqrt())


def by_samples(law: GuidedNormal, plan: Plan, scale: float, n: int) -> tuple[float, float]:
    """The same of n samples by the loop that users run."""
    cond = {"label": torch.zeros(n, dtype=torch.long)}
    x = sample(ClassifierFree(law.oracle, scale), plan, shape=(n, 1), noise=Noise(0), cond=cond, dtype=F64)
    return float(x.mean()), float(x.std())


def verdict(what: str, value: float, limit: float, above: bool = False) -> bool:
    """Print a figure against its limit."""
    ok = value >= limit if above else value <= limit
    print(f"{'ok  ' if ok else 'MISS'} {what}: {value:.4g} ({'at least' if above else 'at most'} {limit:g})", flush=True)
    return ok


def exact(arguments: argparse.Namespace) -> tuple[Rows, bool]:
    """Guided moments against γ: flow, reverse equation, plans, samples, tilted density."""
    rows: Rows = []
    titles = ("flow", "plan", "samples", "reverse SDE", "plan", "samples", "tilted")
    print(f"{'process':<8}{'γ':>5}  " + "".join(f"{title:<16}" for title in titles))
    for name, process in {"edm": EDM(), "vp": VP()}.items():
        law = normal(process)
        plans = adams(process, 100), sa_solver(process, 150)
        for scale in SCALES:
            row: dict[str, Any] = {"process": name, "scale": scale, "tilted": law.tilted(scale)}
            for kind, tau, plan in (("flow", 0.0, plans[0]), ("sde", 1.0, plans[1])):
                row[kind] = law.moments(scale, tau)
                row[f"{kind} plan"] = by_plan(law, plan, scale)
                row[f"{kind} samples"] = by_samples(law, plan, scale, arguments.number or 4000)
            rows.append(row)
            shown = [row[key] for key in ("flow", "flow plan", "flow samples", "sde", "sde plan", "sde samples", "tilted")]
            print(f"{name:<8}{scale:>5g}  " + "".join(f"{f'{m:.4f}, {s:.4f}':<16}" for m, s in shown), flush=True)
    off = max(abs(a - b) for row in rows for kind in ("flow", "sde") for a, b in zip(row[kind], row[f"{kind} plan"], strict=True))
    ok = verdict("plans against the equations they discretise, largest difference of a mean or std", off, LIMIT)
    print("\nγ = 2 by the flow, for the last noise level of each process")
    limit = 1 + math.log(2 + math.sqrt(3)) / (2 * math.sqrt(3))
    for process in (VE(0.01, 50.0), EDM(), VP(), Cosine()):
        mean, std = normal(process).moments(2.0)
        level = math.exp(float(process.log_ratio(1.0)))
        rows.append({"process": type(process).__name__, "last noise-to-signal": level, "flow": (mean, std)})
        expected = limit - 0.5 / level
        print(f"{type(process).__name__:<8} sigma/alpha {level:>8.1f}: {mean:.5f}, {std:.5f}; to first order {expected:.5f}")
    # at every noise level Langevin steps keep the density whose score the guided score is there: at the last, the tilted one
    law = normal(EDM())
    found = by_plan(law, annealed_langevin(law.process, 2001, steps=20), 2.0)
    rows.append({"process": "edm", "langevin": found, "tilted": law.tilted(2.0)})
    print(f"annealed Langevin, 20 steps at each of 100 levels: {found[0]:.4f}, {found[1]:.4f}; tilted {law.tilted(2.0)}")
    return rows, ok


def samplers(arguments: argparse.Namespace) -> tuple[Rows, bool]:
    """Every sampler under guidance 2 against the equation it follows."""
    rows: Rows = []
    for process in (EDM(), VP()):
        law = normal(process)
        for name, make in ALL.items():
            row: dict[str, Any] = {"process": type(process).__name__, "sampler": name}
            target = law.tilted(2.0) if name == "annealed_langevin" else law.moments(2.0, float(make(process, 20).stochastic))
            for calls in (100, 400):
                row[f"{calls}"] = by_plan(law, make(process, calls), 2.0)
                row[f"error {calls}"] = max(abs(a - b) for a, b in zip(row[f"{calls}"], target, strict=True))
            rows.append(row)
            print(f"{row['process']:<6}{name:<24}{row['error 100']:>10.5f}{row['error 400']:>10.5f}", flush=True)
    return rows, all(row["error 400"] < row["error 100"] or row["error 400"] < LIMIT for row in rows)


# --- MNIST

ASKED = (0.0, 1.0, 2.0, 4.0)
INTERVAL, RESCALE, SEED = (0.3, 5.0), 0.7, 0


def guides(arguments: argparse.Namespace) -> dict[str, Guidance]:
    """What is compared, by name."""
    table: dict[str, Guidance] = {f"{scale:g}": scale for scale in ASKED}
    table["2, interval 0.3-5"] = partial(ClassifierFree, scale=2.0, interval=INTERVAL)
    table["2, rescale 0.7"] = partial(ClassifierFree, scale=2.0, rescale=RESCALE)
    if arguments.weaker:
        weaker = with_denoiser(model.load(arguments.weaker), "--weaker")
        table["2, autoguidance"] = partial(Autoguidance, weaker=weaker.denoiser, scale=2.0)
    return table


def drawn(arguments: argparse.Namespace, name: str, guidance: Guidance, labels: Tensor) -> Tensor:
    """uint8-ranged samples (N, 1, 28, 28) of the asked labels, from the file of an earlier run if there is one."""
    path = arguments.samples / f"guidance-{name.replace(', ', '-').replace(' ', '-')}-{len(labels)}.npy"
    if path.exists():
        return torch.from_numpy(np.load(path))
    system = with_denoiser(model.load(arguments.model), "--model")
    x = system.sample(len(labels), cond={"label": labels}, guidance=guidance, noise=Noise(SEED), progress=True).clamp(0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, x.numpy())
    return x


def within_variance(features: Tensor, labels: Tensor) -> float:
    """Mean over the classes of the total variance of the features of what was asked as this class."""
    return float(torch.stack([features[labels == k].double().var(0).sum() for k in range(10)]).mean())


def balanced(labels: Tensor, each: int) -> Tensor:
    """Places of the first `each` data of every class, class after class."""
    return torch.cat([(labels == k).nonzero()[:each, 0] for k in range(10)])


def mnist(arguments: argparse.Namespace) -> tuple[Rows, bool]:
    """Accuracy, Fréchet distance, variance within classes, precision and recall against γ."""
    n = arguments.number or 1000
    labels = torch.arange(n) % 10
    images, truth = read_digits(arguments.data)
    found = {name: drawn(arguments, name, guidance, labels) for name, guidance in guides(arguments).items()}
    asked = dict.fromkeys(found, labels)
    real = balanced(truth[:TRAIN], n // 10)
    found["training digits"], asked["training digits"] = images[:TRAIN][real].float(), truth[:TRAIN][real]
    rows: Rows = []
    paths = [path for seed in SEEDS if (path := classifier_path(arguments.classifiers, seed)).exists()]
    for path in paths:
        net = load_classifier(path)
        extract = classifier_features(net)
        reference, ceiling = extract(images[TRAIN:]), accuracy(net, images[TRAIN:], truth[TRAIN:])
        equal = reference[balanced(truth[TRAIN:], n // 10)]
        for name, x in found.items():
            features = extract(x)
            spread = precision_recall(equal, features)
            row = {
                "guidance": name,
                "judge": path.stem,
                "judge_accuracy": ceiling,
                "accuracy": accuracy(net, x, asked[name]),
                "frechet": frechet_distance(features, reference),
                "variance": within_variance(features, asked[name]),
                "precision": spread.precision,
                "recall": spread.recall,
            }
            rows.append(row)
    names = ("accuracy", "frechet", "variance", "precision", "recall", "judge_accuracy")
    mean = {name: {key: statistics.mean(row[key] for row in rows if row["guidance"] == name) for key in names} for name in found}
    print(f"{n} digits a row, means over {len(paths)} judges")
    print(f"{'γ':<20}" + "".join(f"{key:>16}" for key in names))
    for name, row in mean.items():
        print(f"{name:<20}" + "".join(f"{row[key]:>16.4f}" for key in names), flush=True)
    chain = [mean[f"{scale:g}"] for scale in ASKED]
    ok = verdict("accuracy at γ = 2", mean["2"]["accuracy"], 0.99, above=True)
    for key, sign in (("accuracy", 1), ("variance", -1), ("recall", -1)):
        steps = [sign * (b[key] - a[key]) for a, b in pairwise(chain)]
        ok &= verdict(f"{key} against γ: smallest step in the expected direction", min(steps), 0.0, above=True)
    chance = abs(mean["0"]["accuracy"] - 0.1) / math.sqrt(0.09 / n)
    return rows, ok & verdict("accuracy at γ = 0, distance from chance in standard errors", chance, 4.0)


def cost(arguments: argparse.Namespace) -> tuple[Rows, bool]:
    """Seconds of a guided call of 32 samples over those of an unguided call of 64, and of 32."""
    torch.set_num_threads(1)
    system = with_denoiser(model.load(arguments.model), "--model")
    net, n = system.denoiser, 32
    x = Noise(0).normal((2 * n, *system.contract.shape))
    label = torch.arange(2 * n) % 10
    calls: dict[str, Callable[[], object]] = {
        "guided": lambda: ClassifierFree(net, 2.0)(x[:n], 0.5, {"label": label[:n]}).x0,
        "doubled": lambda: net(x, 0.5, {"label": label}).x0,
        "single": lambda: net(x[:n], 0.5, {"label": label[:n]}).x0,
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for _ in range(arguments.number or 41):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["guided"][1:], seconds["doubled"][1:], strict=True)]
    row = {**median, "ratio": statistics.median(ratios), "over single": median["guided"] / median["single"]}
    plan = system.plan
    if plan is not None:
        part = ClassifierFree(net, 2.0, interval=INTERVAL)
        row["evaluations of the default plan, interval"] = sum(evaluations(part, t) for t in plan.times)
        row["evaluations of the default plan"] = 2 * plan.calls
    print(row)
    return [row], verdict("a guided call over one unguided call of twice the samples", row["ratio"], 1.15)


PARTS = {"exact": exact, "samplers": samplers, "mnist": mnist, "cost": cost}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--model", type=Path, default=Path("runs/mnist-label"))
    parser.add_argument("--weaker", type=Path, help="a weaker model of the same data, for autoguidance")
    parser.add_argument("--classifiers", type=Path, default=Path("runs/classifiers"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mnist"))
    parser.add_argument("--samples", type=Path, default=Path("runs/guidance"), help="where samples are kept")
    parser.add_argument("-n", "--number", type=int, help="samples, or runs of cost")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows, ok = PARTS[arguments.part](arguments)
    if arguments.out:
        write_json(arguments.out, rows)
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
