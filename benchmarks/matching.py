"""Score matching: the variance of sliced estimators, and learned scores of a mixture whose weights Langevin must find.

    python benchmarks/matching.py --part variance --out variance.json
    python benchmarks/matching.py --part learned --out learned.json

- variance: SSM against SSM-VR at the optimum s = -Px of N(0, P⁻¹), by formula and by Monte Carlo: the variance of the value, and
  of the gradient in P. With q = vᵀPv the value's is ½ E[q]² + ¾ Var q for SSM and ½ tr P² + Var q for SSM-VR.
- learned: 0.2 N((-5, -5), I) + 0.8 N((5, 5), I) learned by denoising and by sliced matching at all noise levels, and by sliced
  matching of the clean density; relative root-mean-square errors under p_sigma (target 5 %). Then Langevin dynamics with learned
  and exact scores: the weight of the smaller mode, 0.20 in truth, by plain dynamics from a uniform box and by annealed dynamics.

Seeds are fixed here. `learned_scores` gives the learned nets to other scripts.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ornstein import MLP, VE, Denoiser, Noise
from ornstein.files import write_json
from ornstein.losses import MatchingLoss, score_at
from ornstein.losses.matching import DIRECTIONS, Score, sliced
from ornstein.process.gaussian import Time
from ornstein.progress import track
from ornstein.samplers import annealed_langevin, sample
from ornstein.testing import MixtureDenoiser

F64 = torch.float64
Rows = list[dict[str, Any]]

# --- variance of the sliced estimators


def precisions(d: int) -> dict[str, Tensor]:
    """Σ⁻¹ of four kinds: the identity; eigenvalues 1 to 2, rotated; 1 to 100, rotated; 1 to 100 along the axes."""
    generator = torch.Generator().manual_seed(d)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=F64))[0]
    grow = torch.linspace(0, 1, d, dtype=F64)
    turned = {name: rotation @ torch.diag(top**grow) @ rotation.T for name, top in (("well", 2.0), ("ill", 100.0))}
    return {"identity": torch.eye(d, dtype=F64), **turned, "ill, axes": torch.diag(100.0**grow)}


def variance_of_slope(p: Tensor, directions: str) -> float:
    """Var[vᵀPv] by the fourth moments of v."""
    d, square = len(p), float((p @ p).trace())
    return {
        "gaussian": 2 * square,
        "rademacher": 2 * (square - float(p.diagonal().square().sum())),
        "sphere": (2 * d * square - 2 * float(p.trace()) ** 2) / (d + 2),
    }[directions]


def exact_variances(p: Tensor, directions: str) -> tuple[float, float]:
    """(SSM, SSM-VR): variances of one datum's value with one slice, at the optimum."""
    spread = variance_of_slope(p, directions)
    return 0.5 * float(p.trace()) ** 2 + 0.75 * spread, 0.5 * float((p @ p).trace()) + spread


def gradient_variance(p: Tensor, x: Tensor, v: Tensor, reduced: bool) -> float:
    """Total variance of a datum's gradient in A at A = P, where its mean is 0: (vᵀAx) v xᵀ - v vᵀ, or A x xᵀ - v vᵀ."""
    pulled = x @ p
    left = pulled if reduced else v * (v * pulled).sum(1, keepdim=True)
    # |l xᵀ - v vᵀ|² in the Frobenius norm
    parts = left.square().sum(1) * x.square().sum(1) - 2 * (left * v).sum(1) * (x * v).sum(1) + v.square().sum(1).square()
    return float(parts.mean())


def variance(n: int) -> Rows:
    """Both variances and their ratio for every dimension, condition and law of v."""
    rows: Rows = []
    print("ratios are SSM-VR over SSM: below 1 the reduced form wins; z is the Monte-Carlo value's distance in standard errors")
    titles = f"{'SSM':>10}{'SSM-VR':>10}{'ratio':>7}{'z':>6}{'z VR':>6}{'gradient ratio':>16}"
    print(f"{'d':>3} {'precision':<10}{'slices':<12}{titles}")
    for d in (1, 2, 3, 4, 8, 16):
        for kind, p in precisions(d).items():
            if d == 1 and kind != "identity":
                continue
            z = Noise(0).normal((n, d), stream="data", dtype=F64)
            x = torch.linalg.solve_triangular(torch.linalg.cholesky(p).mT, z.mT, upper=True).mT
            for directions in ("gaussian", "rademacher", "sphere"):
                exact, off = exact_variances(p, directions), []
                for reduced, truth in zip((False, True), exact, strict=True):
                    value = sliced(lambda x, p=p: -x @ p, x, Noise(1), directions=directions, variance_reduced=reduced)
                    square = (value + 0.5 * p.trace()).square()
                    off.append(float((square.mean() - truth) / (square.std() / math.sqrt(n)).clamp(min=1e-12)))
                v = DIRECTIONS[directions](Noise(2).normal((n, d), stream="slice", dtype=F64))
                slope = gradient_variance(p, x, v, True) / gradient_variance(p, x, v, False)
                ratio = exact[1] / exact[0]
                print(
                    f"{d:>3} {kind:<10}{directions:<12}{exact[0]:>10.4g}{exact[1]:>10.4g}{ratio:>7.3f}"
                    f"{off[0]:>6.1f}{off[1]:>6.1f}{slope:>16.3f}",
                    flush=True,
                )
                row = {"d": d, "precision": kind, "directions": directions, "ssm": exact[0], "ssm_vr": exact[1]}
                rows.append(row | {"ratio": ratio, "z": off, "gradient_ratio": slope})
    return rows


# --- learned scores of the mixture

PROCESS = VE(sigma_min=0.15, sigma_max=20.0)
BOX = 8.0


def mixture() -> MixtureDenoiser:
    """0.2 N((-5, -5), I) + 0.8 N((5, 5), I) under `PROCESS`."""
    means = torch.tensor([[-5.0, -5.0], [5.0, 5.0]])
    return MixtureDenoiser(means, torch.ones(2), torch.tensor([0.2, 0.8], dtype=F64), PROCESS)


def exact_score(x: Tensor) -> Tensor:
    """The score of the clean mixture."""
    m = mixture()
    centred = m.means.to(x) - x[:, None]
    shares = (m.weights.to(x).log() - 0.5 * centred.square().sum(2)).softmax(1)
    return (shares[..., None] * centred).sum(1)


def fit(net: nn.Module, loss: Callable[[Tensor, int], Tensor], steps: int, batch: int, rate: float, title: str) -> None:
    """Adam with a cosine rate on fresh data at every step; the net is left with averaged weights."""
    oracle = mixture()
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    for step in track(range(steps), steps, title):
        x = oracle.sample(batch, Noise(10), first=step * batch).float()
        optimizer.zero_grad(set_to_none=True)
        loss(x, step).mean().backward()
        optimizer.step()
        schedule.step()
        average.update_parameters(net)
    net.load_state_dict(average.module.state_dict())


def conditional(objective: str, steps: int, batch: int) -> Denoiser:
    """A score at every noise level of `PROCESS`, by one objective of `MatchingLoss`."""
    torch.manual_seed(0)
    denoiser = Denoiser(MLP(2, width=64, depth=2), PROCESS, predicts="edm", sigma_data=4.0)
    loss = MatchingLoss(objective)
    fit(denoiser.net, lambda x, step: loss(denoiser, x, Noise(11), step=step), steps, batch, 2e-3, objective)
    return denoiser.eval()


class Plain(nn.Module):
    """A smooth perceptron, (B, 2) -> (B, 2): a score without a noise level."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        hidden = [layer for _ in range(2) for layer in (nn.Linear(width, width), nn.SiLU())]
        self.layers = nn.Sequential(nn.Linear(2, width), nn.SiLU(), *hidden, nn.Linear(width, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x / 5)


def plain(steps: int, batch: int) -> Plain:
    """The score of the clean density, by sliced matching, variance reduced."""
    torch.manual_seed(0)
    net = Plain()
    fit(net, lambda x, step: sliced(net, x, Noise(11), step=step), steps, batch, 3e-3, "sliced, clean")
    return net.eval()


CALLS = 1001
"""Scores of the annealed dynamics."""
LEARNERS: dict[str, Callable[[], Denoiser | Plain]] = {
    "denoising": lambda: conditional("denoising", 10_000, 1024),
    "sliced": lambda: plain(12_000, 512),
    "sliced_conditional": lambda: conditional("sliced_vr", 8_000, 512),
}
"""What is learned, and how: a denoiser at all noise levels, or a score callable of the clean density."""


def learned_scores(names: Sequence[str] = tuple(LEARNERS)) -> dict[str, Denoiser | Plain]:
    """The learned scores by name, trained here and now (about a minute each on one thread)."""
    return {name: LEARNERS[name]() for name in names}


@torch.no_grad()
def relative_error(score: Score, truth: Score, x: Tensor) -> float:
    """sqrt(E|s - s*|² / E|s*|²) over the points x."""
    exact = truth(x)
    return float((score(x) - exact).square().sum().div(exact.square().sum()).sqrt())


@torch.no_grad()
def plain_langevin(score: Score, chains: int, steps: int = 500, size: float = 0.1) -> Tensor:
    """x ← x + ½a·s + sqrt(a)·z from a uniform box; (chains, 2)."""
    x = (2 * Noise(20).uniform((chains, 2), stream="box") - 1).float() * BOX
    for k in track(range(steps), steps, "plain Langevin"):
        x = x + 0.5 * size * score(x) + math.sqrt(size) * Noise(21).normal(x.shape, step=k)
    return x


def shares(x: Tensor) -> dict[str, float]:
    """The weight of the mode at (-5, -5), its standard error, and the standard deviation of the larger mode."""
    small = (x.sum(1) < 0).double()
    weight = float(small.mean())
    stray = float(((x.abs() - 5).abs().amax(1) > 4).double().mean())
    spread = float(x[small == 0].std(0).mean())
    return {"weight": weight, "standard_error": math.sqrt(weight * (1 - weight) / len(x)), "std": spread, "stray": stray}


def learned(n: int) -> Rows:
    """Errors of the learned scores, and what Langevin dynamics makes of them."""
    rows: Rows = []
    oracle, nets = mixture(), {}
    clean = oracle.sample(50_000, Noise(30)).float()
    print(f"{'objective':<20}{'seconds':>8}{'sigma':>8}{'error':>9}   against the score of")
    for name in LEARNERS:
        start = time.perf_counter()
        nets |= learned_scores([name])
        net, seconds = nets[name], time.perf_counter() - start
        places: list[tuple[float, Score, Score, Tensor, str]] = []
        if isinstance(net, Denoiser):
            places.append((PROCESS.sigma_min, score_at(net, 0.0), exact_score, clean, "p"))
            for sigma in (PROCESS.sigma_min, 0.3, 1.0, 3.0, 10.0, PROCESS.sigma_max):
                t: Time = float(PROCESS.time_of(torch.tensor(math.log(sigma), dtype=F64)))
                noised = clean + sigma * Noise(31).normal(clean.shape)
                places.append((sigma, score_at(net, t), score_at(oracle, t), noised, "p_sigma"))
        else:
            places.append((0.0, net, exact_score, clean, "p"))
        for sigma, score, truth, x, law in places:
            error = relative_error(score, truth, x)
            print(f"{name:<20}{seconds:>8.0f}{sigma:>8g}{error:>9.2%}   {law}", flush=True)
            rows.append({"objective": name, "seconds": seconds, "sigma": sigma, "error": error, "law": law})
    print(f"\n{n} chains; the small mode weighs 0.20")
    print(f"{'dynamics':<10}{'score':<20}{'weight':>8}{'± s.e.':>8}{'std':>7}{'stray':>8}")
    plain_scores: dict[str, Score] = {"exact": exact_score, "sliced": nets["sliced"]}
    runs = [("plain", name, plain_langevin(score, n)) for name, score in plain_scores.items()]
    conditionals = {"exact": oracle, **{name: net for name, net in nets.items() if isinstance(net, Denoiser)}}
    plan = annealed_langevin(PROCESS, CALLS)
    for name, denoiser in conditionals.items():
        runs.append(("annealed", name, sample(denoiser, plan, shape=(n, 2), noise=Noise(22), progress=True)))
    for dynamics, name, x in runs:
        found = shares(x)
        print(
            f"{dynamics:<10}{name:<20}{found['weight']:>8.4f}{found['standard_error']:>8.4f}{found['std']:>7.3f}{found['stray']:>8.4f}"
        )
        rows.append({"dynamics": dynamics, "score": name, **found})
    return rows


PARTS: dict[str, tuple[Callable[[int], Rows], int]] = {"variance": (variance, 100_000), "learned": (learned, 10_000)}
"""Parts, and how many samples or chains each draws."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("-n", type=int, help="samples or chains, in place of the part's own number")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    run, n = PARTS[arguments.part]
    rows = run(arguments.n or n)
    if arguments.out:
        write_json(arguments.out, rows)


if __name__ == "__main__":
    main()
