"""What one sampling row costs beside the network: `samplers.run` with a free network against bare tensor arithmetic.

The state is 64x3x32x32 float32 and the network returns a tensor that is already there. Per case the figure is the median
of many runs of a plan, divided by its rows; the yardsticks (`a*x + b*y` twice, one `torch.randn`) take turns with it, so
that a busy machine slows all alike.

    deterministic row <= 2   x two bare multiply-adds
    stochastic row    <= 1.3 x (one torch.randn + two bare multiply-adds)

    python benchmarks/row.py [--rounds 300] [--rows 1] [--out row.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ornstein.denoiser import Condition, Denoiser
from ornstein.noise import Noise
from ornstein.process import EDM, VP, GaussianProcess, chain
from ornstein.samplers import Plan, ancestral, ddim, run

SHAPE = (64, 3, 32, 32)
GRID = 50
TARGETS = {"deterministic": 2.0, "stochastic": 1.3}


@dataclass(frozen=True)
class Case:
    """One row and its yardstick: medians in microseconds per row, and whether their ratio keeps the target."""

    name: str
    kind: str
    row: float
    yardstick: float
    ratio: float
    target: float
    met: bool


class Free(nn.Module):
    """A network that costs nothing: it returns the tensor it was given, whatever it is asked."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        """The stored answer, like x."""
        return self.answer


def middle(plan: Plan, rows: int) -> Plan:
    """The `rows` rows in the middle of a plan whose rows look at one evaluation each, as a plan of their own."""
    start = (plan.calls - rows) // 2
    return Plan(plan.name, plan.view, plan.rows[start : start + rows])


def interleaved(jobs: dict[str, Callable[[], object]], rounds: int, warmup: int = 20) -> dict[str, list[float]]:
    """Microseconds of each job in each round; the jobs take turns in an order drawn anew each round.

    In a fixed order a job would always inherit the same neighbour's caches, heap and sleeping threads.
    """
    order = random.Random(0)
    names = list(jobs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        order.shuffle(names)
        for name in names:
            start = time.perf_counter_ns()
            jobs[name]()
            elapsed = (time.perf_counter_ns() - start) / 1000
            if turn >= warmup:
                seconds[name].append(elapsed)
    return seconds


def jobs(rows: int) -> dict[str, tuple[str, Callable[[], object]]]:
    """All cases, (kind, function) by name, each over `rows` rows."""
    generator = torch.Generator().manual_seed(0)
    x, answer = torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)
    processes: list[tuple[str, GaussianProcess, str]] = [
        ("Chain eps", chain(), "eps"),
        ("VP eps", VP(), "eps"),
        ("EDM edm", EDM(), "edm"),
    ]
    cases: dict[str, tuple[str, Callable[[], object]]] = {}
    for label, process, predicts in processes:
        denoiser = Denoiser(Free(answer), process, predicts).eval()
        for kind, sampler in (("deterministic", ddim), ("stochastic", ancestral)):
            plan = middle(sampler(process, GRID), rows)

            def job(denoiser: Denoiser = denoiser, plan: Plan = plan) -> Tensor:
                with torch.no_grad():
                    return run(denoiser, plan, x, noise=Noise(0))

            cases[f"{label} {sampler.__name__}"] = (kind, job)
    return cases


def yardsticks(rows: int) -> dict[str, Callable[[], object]]:
    """Two bare multiply-adds, and one randn, each `rows` times."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)

    def multiply_adds() -> Tensor:
        out = x
        for _ in range(rows):
            out = 0.9 * out + 0.1 * y
            out = 0.9 * out + 0.1 * y
        return out

    def normals() -> Tensor:
        out = x
        for _ in range(rows):
            out = torch.randn(SHAPE, generator=generator)
        return out

    return {"two multiply-adds": multiply_adds, "one randn": normals}


def compare(rounds: int, rows: int) -> tuple[list[Case], dict[str, float]]:
    """The cases with their ratios, and the yardsticks' medians in microseconds per row."""
    cases, bare = jobs(rows), yardsticks(rows)
    times = interleaved({**bare, **{name: job for name, (_, job) in cases.items()}}, rounds)
    medians = {name: statistics.median(values) / rows for name, values in times.items()}
    results = []
    for name, (kind, _) in cases.items():
        yardstick = medians["two multiply-adds"] + (medians["one randn"] if kind == "stochastic" else 0.0)
        ratio = medians[name] / yardstick
        results.append(Case(name, kind, medians[name], yardstick, ratio, TARGETS[kind], ratio <= TARGETS[kind]))
    return results, {name: medians[name] for name in bare}


def main() -> None:
    """Print the table, then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300, help="runs of each case, of which the median counts")
    parser.add_argument("--rows", type=int, default=1, help=f"rows per run, 1 … {GRID - 1}")
    parser.add_argument("--threads", type=int, help="torch's threads; all cores unless given")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    if not 1 <= arguments.rows < GRID:
        parser.error(f"--rows {arguments.rows} must lie in 1 … {GRID - 1}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    load = os.getloadavg()
    cases, bare = compare(arguments.rounds, arguments.rows)
    for name, value in bare.items():
        print(f"{name:<28}{value:9.1f} µs")
    print(f"\n{'case':<28}{'µs/row':>9}{'yardstick':>11}{'ratio':>8}{'target':>8}")
    for case in cases:
        verdict = "met" if case.met else "MISSED"
        print(f"{case.name:<28}{case.row:9.1f}{case.yardstick:11.1f}{case.ratio:8.2f}{case.target:8.1f}  {verdict}")
    record = {
        "shape": list(SHAPE),
        "rounds": arguments.rounds,
        "rows": arguments.rows,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "load_before_and_after": [load, os.getloadavg()],
        "microseconds": bare,
        "cases": [asdict(case) for case in cases],
    }
    print(json.dumps(record))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
