"""Inverse problems where the posterior is known: every method's draws against exact ones.

    python benchmarks/inverse.py --part oracles --out oracles.json --figure docs/images/inverse-oracles.png
    python benchmarks/inverse.py --part alone --out alone.json
    python benchmarks/inverse.py --part tune

- oracles: y = A x + s z for priors N(0, I), N(m, C) and a mixture of three N(m_k, C_k), all on 8 numbers, with exact denoisers
  in float64 under VP. A is a mask, random rows, down-sampling (4 of 8 numbers each), or a blur with its matrix; s is 0.2 or 0
  (without noise the blur can be inverted: its posterior is a point, and it is left out). 8 measurements each and 64 draws of
  each measurement; printed are means over measurements and operators, the blur apart, with standard errors. Distances are in
  units of the problem's mean posterior standard deviation. "exact" are draws of the exact posterior judged like any method's:
  the Monte-Carlo error of 64 draws.
- alone: the largest difference between a method's sample in a batch and alone, and between what was measured without noise
  and what draws keep of it, in float32; plans of 20 rows.
- tune: how far DPS and MCG should travel, on problems of other seeds than those that `oracles` judges. `TRAVEL` is what it found.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein import VP, Noise
from ornstein.figures.canvas import DATA, SAMPLES, blank, plane, save
from ornstein.guidance import METHODS, Given, restore
from ornstein.metrics import Record, sliced_wasserstein, write_records
from ornstein.metrics.ensemble import Ensemble
from ornstein.operator import Mask, Matrix, Operator
from ornstein.samplers import Plan, ancestral
from ornstein.testing import FullMixtureDenoiser, GaussianDenoiser

F64 = torch.float64
D, CASES, DRAWS, REFERENCE = 8, 8, 64, 1000
SEED, TUNING = 0, 1000
"""Seeds of the problems that are judged, and of those that settings are chosen on."""
TRAVEL = {"dps": 64.0, "mcg": 16.0}
"""Chosen by `--part tune`."""

Prior = GaussianDenoiser | FullMixtureDenoiser


@dataclass(frozen=True)
class Way:
    """A row of the table: a method, its options and calls."""

    method: str
    options: Mapping[str, float] = field(default_factory=dict)
    calls: int | None = None

    def draw(self, prior: Prior, given: Given, draws: int, noise: Noise, dtype: torch.dtype = F64) -> Tensor:
        """(cases, draws, D)."""
        return restore(
            prior, given, method=self.method, draws=draws, noise=noise, options=self.options, calls=self.calls, dtype=dtype
        ).draws

    @property
    def network_calls(self) -> int:
        """Network calls of one sample."""
        return METHODS[self.method].network_calls(self.plan, **self.options)

    @property
    def plan(self) -> Plan:
        """Its plan."""
        method = METHODS[self.method]
        return method.plan(VP(), self.calls or method.calls)


WAYS: dict[str, Way] = {
    "moment_matching": Way("moment_matching", {"iterations": D}),
    "pigdm": Way("pigdm"),
    "dps": Way("dps", {"travel": TRAVEL["dps"]}),
    "mcg": Way("mcg", {"travel": TRAVEL["mcg"]}),
    "replacement": Way("replacement"),
    "repaint U=1": Way("repaint", {"resamplings": 1}, 100),
    "repaint U=10": Way("repaint", {"resamplings": 10}, 100),
    "ddrm": Way("ddrm"),
    "ddrm, 100 calls": Way("ddrm", {}, 100),
}


def covariance(noise: Noise, stream: str, length: float, scale: float) -> Tensor:
    """scale²·exp(-|i - j|/length), with a random sign and size of every number: neighbours depend on each other."""
    i = torch.arange(D, dtype=F64)
    size = 0.7 + 0.6 * noise.uniform((D,), stream=stream)
    return scale**2 * size * size[:, None] * torch.exp(-(i - i[:, None]).abs() / length)


def priors(seed: int) -> dict[str, Prior]:
    """The laws of the data, of about unit variance per number."""
    noise, process = Noise(seed), VP()
    mean = noise.normal((D,), stream="mean", dtype=F64)
    centres = 1.2 * noise.normal((3, D), stream="centres", dtype=F64)
    shapes = torch.stack([covariance(noise, f"shape {k}", 1.0 + k, 0.5) for k in range(3)])
    return {
        "standard": GaussianDenoiser(torch.zeros(D), torch.eye(D), process),
        "gaussian": GaussianDenoiser(0.5 * mean, covariance(noise, "gaussian", 3.0, 1.0), process),
        "mixture": FullMixtureDenoiser(centres, shapes, torch.tensor([0.5, 0.3, 0.2], dtype=F64), process),
    }


def operators(seed: int) -> dict[str, Operator]:
    """What is measured of the data: 4 of 8 numbers but for the blur."""
    noise = Noise(seed)
    i = torch.arange(D, dtype=F64)
    kernel = torch.exp(-0.5 * ((i - i[:, None]) / 1.2) ** 2)
    shown = torch.zeros(D, dtype=torch.bool)
    shown[noise.permutation(D, stream="mask")[: D // 2]] = True
    rows = noise.normal((D // 2, D), stream="rows", dtype=F64)
    return {
        "mask": Mask(shown),
        "blur": Matrix(kernel / kernel.sum(1, keepdim=True)),
        "rows": Matrix(rows / rows.norm(dim=1, keepdim=True)),
        "down": Matrix(torch.eye(D // 2, dtype=F64).repeat_interleave(2, dim=1) / 2),
    }


@dataclass(frozen=True)
class Problem:
    """A prior, what was measured of `truth` (cases, D), and the exact posterior of each case."""

    prior: Prior
    given: Given
    truth: Tensor
    posteriors: Sequence[Prior]


def problem(prior: Prior, operator: Operator, noise_std: float, seed: int, cases: int) -> Problem:
    """Truths of the prior, measured."""
    truth = prior.sample(cases, Noise(seed))
    clean = operator(truth)
    values = clean + noise_std * Noise(seed).normal(clean.shape, stream="measured", dtype=F64)
    given = Given(values, operator, noise_std=noise_std)
    laws = [prior.given(given.values[i : i + 1], given.measured, noise_std) for i in range(cases)]
    return Problem(prior, given, truth, laws)


def judged(draws: Tensor, p: Problem, reference: Sequence[Tensor]) -> dict[str, Tensor]:
    """Per case: sliced W2, error of the mean and of the covariance, in units of the posteriors'; and the cover of the truth."""
    rows: dict[str, list[float]] = {"w2": [], "mean": [], "covariance": []}
    # one unit for all cases: a case whose posterior is narrow would else outweigh the others
    unit = float(torch.stack([law.covariance.trace() / D for law in p.posteriors]).mean().sqrt())
    size = float(torch.stack([law.covariance.norm() for law in p.posteriors]).mean())
    for drawn, law, exact in zip(draws, p.posteriors, reference, strict=True):
        rows["w2"].append(sliced_wasserstein(drawn, exact, projections=64) / unit)
        rows["mean"].append(float((drawn.mean(0) - law.mean).square().mean().sqrt()) / unit)
        rows["covariance"].append(float((torch.cov(drawn.T) - law.covariance).norm()) / size)
    # numbers that the measurement fixes have no interval to cover
    open_ = torch.stack([law.covariance.diagonal() for law in p.posteriors]).amin(0) > 1e-9
    cover = [Ensemble(draws[i : i + 1, :, open_]).coverage(p.truth[i : i + 1, open_], 0.9) for i in range(len(draws))]
    return {name: torch.tensor(values, dtype=F64) for name, values in {**rows, "cover": cover}.items()}


def exact_draws(p: Problem, n: int, seed: int) -> Tensor:
    """(cases, n, D)."""
    return torch.stack([law.sample(n, Noise(seed), first=i * n) for i, law in enumerate(p.posteriors)])


Scores = dict[str, dict[str, Tensor]]
COLUMNS = ("w2", "mean", "covariance", "cover")


HALF, BLUR = ("mask", "rows", "down"), ("blur",)


def run(
    law: str, noise_std: float, ways: Mapping[str, Way], seed: int, cases: int, names: Sequence[str] = HALF, draws: int = DRAWS
) -> Scores:
    """Some operators with one prior and noise level: per row of the table, the judgement of every case."""
    found: dict[str, dict[str, list[Tensor]]] = {}
    for k, name in enumerate(names):
        own = seed + 10 * k  # no two operators share draws, which would make their errors one
        p = problem(priors(seed)[law], operators(seed)[name], noise_std, own, cases)
        reference = list(exact_draws(p, REFERENCE, own + 1))
        drawn = {"exact": exact_draws(p, draws, own + 2)}
        drawn |= {way: how.draw(p.prior, p.given, draws, Noise(own + 3)) for way, how in ways.items()}
        for way, found_draws in drawn.items():
            if not bool(found_draws.isfinite().all()):
                raise ValueError(f"{way} on {law}, {name}, noise {noise_std}: not finite")
            for column, values in judged(found_draws, p, reference).items():
                found.setdefault(way, {}).setdefault(column, []).append(values)
    return {way: {column: torch.cat(parts) for column, parts in columns.items()} for way, columns in found.items()}


def shown(values: Tensor) -> tuple[float, float]:
    """Mean and standard error over cases."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def printed(law: str, noise_std: float, scores: Scores, what: str) -> list[Record]:
    """The table of one prior and noise level, and its records."""
    records = []
    print(f"\n{law} prior, {what}, noise_std = {noise_std:g}: {len(scores['exact']['w2'])} measurements, {DRAWS} draws each")
    print(f"{'':<18}{'calls':>6}{'sliced W2':>16}{'mean':>16}{'covariance':>16}{'cover of 90 %':>16}")
    for way, columns in scores.items():
        calls = WAYS[way].network_calls if way in WAYS else 0
        cells = []
        for column in COLUMNS:
            value, error = shown(columns[column])
            scale = 100 if column == "cover" else 1
            cells.append(f"{scale * value:.1f} ± {scale * error:.1f}" if scale > 1 else f"{value:.3f} ± {error:.3f}")
            interval = (value - 2 * error, value + 2 * error)
            note = f"{law}, {what}, noise {noise_std:g}, {way}, {calls} calls"
            records.append(Record(column, value, len(columns[column]), "", SEED, 0.0, interval, note))
        print(f"{way:<18}{calls:>6}" + "".join(f"{cell:>16}" for cell in cells), flush=True)
    return records


def oracles(cases: int, figure: Path | None) -> list[Record]:
    """All priors and noise levels, and what must hold."""
    records, tables = [], {}
    problems = [*itertools.product(("standard", "gaussian", "mixture"), (0.2, 0.0), (HALF,))]
    for law, noise_std, names in (*problems, ("gaussian", 0.2, BLUR), ("mixture", 0.2, BLUR)):
        begun = time.perf_counter()
        ways = {way: WAYS[way] for way in ("moment_matching", "pigdm")} if law == "standard" else WAYS
        scores = run(law, noise_std, ways, SEED, cases, names)
        records += printed(law, noise_std, scores, " ".join(names))
        if names == HALF:
            tables[law, noise_std] = scores
        print(f"({time.perf_counter() - begun:.0f} s)")
    claims(tables)
    reasons()
    if figure is not None:
        draw(figure)
    return records


def claims(tables: Mapping[tuple[str, float], Scores]) -> None:
    """What the issue says must be seen, and whether it is."""

    def mean(law: str, noise_std: float, way: str, column: str = "w2") -> float:
        return float(tables[law, noise_std][way][column].mean())

    def differs(law: str, noise_std: float, low: str, high: str, column: str = "w2") -> float:
        """How many standard errors `high` lies above `low`, case by case."""
        gap = tables[law, noise_std][high][column] - tables[law, noise_std][low][column]
        return float(gap.mean() / (gap.std() / math.sqrt(len(gap))).clamp(min=1e-12))

    print("\nMust hold (z: case by case, in standard errors)")
    for law, way in (("standard", "pigdm"), ("standard", "moment_matching"), ("gaussian", "moment_matching")):
        for s in (0.2, 0.0):
            print(f"  {way} is exact for the {law} prior, noise {s:g}: W2 {mean(law, s, way):.3f} against", end=" ")
            print(f"{mean(law, s, 'exact'):.3f} of exact draws, z = {differs(law, s, 'exact', way):+.1f}")
    for law, s in itertools.product(("gaussian", "mixture"), (0.2, 0.0)):
        order = sorted(tables[law, s], key=lambda way: mean(law, s, way))
        print(f"  order, {law}, noise {s:g}: {' < '.join(order)}")
        expected = ["exact", "pigdm", "dps", "mcg", "replacement"]
        pairs = [f"{a} < {b}: z = {differs(law, s, a, b):+.1f}" for a, b in itertools.pairwise(expected)]
        print(f"    expected order: {'; '.join(pairs)}")
        z = differs(law, s, "repaint U=10", "repaint U=1")
        ten, one = (mean(law, s, f"repaint U={u}") for u in (10, 1))
        print(f"    repaint with 10 resamplings against 1: {ten:.3f}, {one:.3f}, z = {z:+.1f}")
    covers = torch.cat([table["exact"]["cover"] for table in tables.values()])
    print(f"  exact draws cover {100 * covers.mean():.1f} % of the truths (85 to 95 % wanted)")


def components(prior: FullMixtureDenoiser, x: Tensor) -> Tensor:
    """The probability (B, K) that x (B, D) came from each component."""
    laws = [GaussianDenoiser(m, c, prior.process) for m, c in zip(prior.means, prior.covariances, strict=True)]
    return (torch.stack([law.log_prob(x) for law in laws], 1) + prior.weights.log()).softmax(1)


def reasons() -> None:
    """Why the order is what it is (mixture prior, noisy y): spread along what was measured and across it, misfit, and modes."""
    print("\nMixture, noise 0.2, ratios to exact draws: standard deviation along what was measured and across it, and root mean")
    print("square of y - A x (1 is right); modes: share of the draws that is in a wrong component (0 is right)")
    print(f"{'':<26}{'std seen':>10}{'std unseen':>12}{'misfit':>8}{'modes':>8}")
    ways = {way: (how, how.plan) for way, how in WAYS.items() if how.network_calls <= 200}
    for way in ("pigdm", "moment_matching"):
        ways[f"{way}, ancestral"] = WAYS[way], ancestral(VP(), 100)
    sums: dict[str, list[Tensor]] = {}
    wrong: dict[str, list[Tensor]] = {}
    prior = priors(SEED)["mixture"]
    assert isinstance(prior, FullMixtureDenoiser)
    for k, name in enumerate(HALF):
        p = problem(prior, operators(SEED)[name], 0.2, SEED + 10 * k, CASES)
        a, spectrum = p.given.measured, p.given.measured.spectrum
        assert spectrum is not None
        seen = spectrum.values > 0
        drawn = {"exact": exact_draws(p, REFERENCE, SEED + 2)}
        for way, (how, plan) in ways.items():
            drawn[way] = restore(
                prior, p.given, method=how.method, plan=plan, draws=DRAWS, noise=Noise(SEED + 3), options=how.options, dtype=F64
            ).draws
        shares = {way: components(prior, x.reshape(-1, D)).reshape(*x.shape[:2], -1).mean(1) for way, x in drawn.items()}
        for way, draws in drawn.items():
            flat = draws.reshape(-1, D)
            along = spectrum.forward(flat).reshape(*draws.shape).var(1)
            gap = (a(flat) - p.given.values.repeat_interleave(draws.shape[1], 0)).square().mean()
            sums.setdefault(way, []).append(torch.stack([along[:, seen].mean(), along[:, ~seen].mean(), gap]))
            wrong.setdefault(way, []).append(0.5 * (shares[way] - shares["exact"]).abs().sum(1).mean())
    exact = torch.stack(sums["exact"])
    for way, parts in sums.items():
        numbers = (torch.stack(parts) / exact).mean(0).sqrt().tolist()
        modes = float(torch.stack(wrong[way]).mean())
        print(f"{way:<26}{numbers[0]:>10.2f}{numbers[1]:>12.2f}{numbers[2]:>8.2f}{modes:>8.3f}", flush=True)


def tune(cases: int) -> list[Record]:
    """DPS and MCG for several travels on the tuning problems, 32 draws each."""
    print(f"sliced W2, mean over gaussian and mixture priors, operators and noise 0.2 and 0, seed {TUNING}", flush=True)
    for method, travel in itertools.product(("dps", "mcg"), (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)):
        parts = []
        for law, s in itertools.product(("gaussian", "mixture"), (0.2, 0.0)):
            scores = run(law, s, {method: Way(method, {"travel": travel})}, TUNING, cases, draws=32)
            parts.append(scores[method]["w2"])
        value, error = shown(torch.cat(parts))
        noisy = float(torch.cat(parts[0::2]).mean())
        print(f"{method:<6} travel {travel:<6g} {value:.3f} ± {error:.3f}   (noisy y alone {noisy:.3f})", flush=True)
    return []


def alone(cases: int) -> list[Record]:
    """Each sample alone against the batch, in float64, and what is kept of a measurement without noise, in float32."""
    records = []
    print(f"{'':<18}{'alone':>12}{'|A x - y|':>12}{'mask':>12}   (largest differences)")
    ways = {**WAYS, "reconstruction": Way("reconstruction")}
    ways["repaint U=10"] = Way("repaint", {"resamplings": 10, "jump": 4})
    for way, how in ((way, replace(how, calls=20)) for way, how in ways.items() if way != "ddrm, 100 calls"):
        begun, worst, kept = time.perf_counter(), 0.0, {}
        method, plan, options = METHODS[how.method], how.plan, dict(how.options)
        for name in ("mask", "rows"):
            prior, operator = priors(SEED)["mixture"], operators(SEED)[name]
            for noise_std in (0.2, 0.0):
                p = problem(prior, operator, noise_std, SEED, cases)
                x = prior.process.prior((cases, D), Noise(1), dtype=F64)
                together = method.run(prior, plan, x, p.given, noise=Noise(2), **options)
                for i in range(cases):
                    one = p.given.rows(torch.tensor([i]))
                    single = method.run(prior, plan, x[i : i + 1], one, noise=Noise(2), first=i, **options)
                    worst = max(worst, float((single[0] - together[i]).abs().max()))
            drawn = how.draw(prior, p.given, 4, Noise(3), torch.float32)
            gap = operator(drawn.reshape(-1, D)) - p.given.values.float().repeat_interleave(4, 0)
            kept[name] = float(gap.abs().max())
        print(f"{way:<18}{worst:>12.1e}{kept['rows']:>12.1e}{kept['mask']:>12.1e}", flush=True)
        seconds = time.perf_counter() - begun
        for metric, value in (("alone", worst), ("kept, mask", kept["mask"]), ("kept, rows", kept["rows"])):
            records.append(Record(metric, value, cases, "", SEED, seconds, None, way))
    return records


def draw(path: Path) -> None:
    """Draws of every method against the exact posterior, in the plane."""
    turn = torch.arange(6, dtype=F64) * (2 * math.pi / 6) + 0.3
    means = 2 * torch.stack([turn.cos(), turn.sin()], 1)
    root = torch.stack([torch.stack([-turn.sin(), turn.cos()], 1) * 0.6, torch.stack([turn.cos(), turn.sin()], 1) * 0.15], 2)
    prior = FullMixtureDenoiser(means, root @ root.mT, torch.full((6,), 1 / 6, dtype=F64), VP())
    operator, s = Matrix(torch.tensor([[0.8, 0.6]], dtype=F64)), 0.2
    given = Given(torch.tensor([[0.9]], dtype=F64), operator, noise_std=s)
    law = prior.given(given.values, operator, s)
    n = 400
    cloud, exact = prior.sample(1500, Noise(1)), law.sample(n, Noise(2))
    ways = {way: how for way, how in WAYS.items() if way != "ddrm, 100 calls"}
    clouds = {"exact": exact} | {way: how.draw(prior, given, n, Noise(3))[0] for way, how in ways.items()}
    columns = math.ceil(len(clouds) / 2)
    figure = blank(2.3 * columns, 5.1)
    for axes, (way, x) in zip(figure.subplots(2, columns).flat, clouds.items(), strict=False):
        plane(axes, 3.2)
        axes.scatter(*cloud.T, s=2, color="0.85", linewidths=0)
        axes.scatter(*exact.T, s=3, color=DATA, alpha=0.35, linewidths=0)
        if way != "exact":
            axes.scatter(*x.T, s=3, color=SAMPLES, alpha=0.6, linewidths=0)
        axes.set_title(way, fontsize=9)
    for axes in figure.axes[len(clouds) :]:
        axes.remove()
    save(figure, path)
    print(f"\nwrote {path}")


PARTS: dict[str, Callable[[int, Any], list[Record]]] = {
    "oracles": oracles,
    "alone": lambda cases, _: alone(min(cases, 6)),
    "tune": lambda cases, _: tune(min(cases, 3)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("-n", type=int, default=CASES, help="measurements per problem")
    parser.add_argument("--figure", type=Path, help="where to draw, .png")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    records = PARTS[arguments.part](arguments.n, arguments.figure)
    if arguments.out and records:
        write_records(arguments.out, records)


if __name__ == "__main__":
    main()
