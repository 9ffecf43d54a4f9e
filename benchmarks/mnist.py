"""MNIST in so many minutes: train, draw, and judge beside diffusers' public recipe given the same minutes in the same run.

    python benchmarks/classifier.py --data ../shared/data/mnist --out runs/classifiers
    python benchmarks/mnist.py --data ../shared/data/mnist --classifiers runs/classifiers --minutes 10 --out runs/mnist \\
        --peer-python /tmp/peer/bin/python

Both train on digits 0 … 49,999, one after the other, each with the whole machine and a clock that starts with its first
step (ours compiles within its minutes, from an empty cache). The peer needs an environment with torch and diffusers. Every
stage leaves its figures in OUT, so that --skip-train judges what is there already.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from classifier import Score, score
from common import Usage, watch
from ornstein import model
from ornstein.files import InputError, read_json, write_json
from score import read_samples

CALLS = 20
PEER_CALLS = 50
REAL_TARGET, REAL_AIM, PEER_TARGET = 6.0, 3.0, 0.15
SAMPLE_SECONDS, MEMORY_GIB = 60.0, 2.0
MODEL, SAMPLES, PEER, FIGURES = "ornstein", "ornstein.npz", "peer.npz", "mnist.json"


@dataclass(frozen=True)
class Check:
    """A measured figure beside the most it may be."""

    name: str
    value: float
    limit: float

    @property
    def met(self) -> bool:
        """Whether the figure keeps its limit."""
        return self.value <= self.limit


def train_ours(data: Path, minutes: float, out: Path) -> dict[str, object]:
    """Train the bundled recipe as a user would; wall time, images/s and peak memory, also kept as train.json."""
    target = out / MODEL
    if (target / model.WEIGHTS).exists():
        raise InputError(f"--out {str(out)!r} already holds a trained model; add --skip-train, or give another --out")
    limits = ["--max-time", f"{60 * minutes:g}s"]
    command: list[str | Path] = [ornstein(), "train", "mnist", "--data", data, *limits, "--out", target]
    usage = watch(command, environment={"TORCHINDUCTOR_CACHE_DIR": str((out / "inductor").resolve())})
    with (target / "log.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["seconds"]]
    if not rows:
        raise InputError(f"--minutes {minutes:g} ended before the tenth step, the first that is logged; give more")
    batch = model.read_recipe(target).train.batch
    steps, seconds = int(rows[-1]["step"]), float(rows[-1]["seconds"])
    figures = {**asdict(usage), "steps": steps, "images_per_second": steps * batch / seconds, "batch": batch}
    write_json(out / "train.json", figures)
    return figures


def draw_ours(n: int, out: Path) -> dict[str, object]:
    """Draw n samples with 20 calls as a user would; wall time and peak memory, start-up included."""
    command: list[str | Path] = [ornstein(), "sample", out / MODEL, "-n", str(n), "--calls", str(CALLS), "--out", out / SAMPLES]
    return asdict(watch(command))


def run_peer(python: Path, data: Path, minutes: float, n: int, out: Path) -> dict[str, object]:
    """Train the peer and draw its samples; the figures it reports itself, and its process's wall time and memory."""
    script = Path(__file__).with_name("peer_diffusers.py")
    options: list[str | Path] = ["--data", data, "--minutes", f"{minutes:g}", "-n", str(n), "--calls", str(PEER_CALLS)]
    usage: Usage = watch([python, script, *options, "--out", out / PEER])
    figures = {**figures_of(out / PEER), "process": asdict(usage)}
    write_json((out / PEER).with_suffix(".json"), figures)
    return figures


def figures_of(samples: Path) -> dict[str, object]:
    """The JSON object that the peer wrote beside its samples."""
    content = read_json(samples.with_suffix(".json"))
    if not isinstance(content, dict):
        raise InputError(f"{samples.with_suffix('.json')} holds no JSON object; run the peer again")
    return content


def ornstein() -> Path:
    """The command line of the environment that runs this script."""
    return Path(sys.executable).with_name("ornstein")


def checks(ours: list[Score], peer: list[Score], trained: dict[str, object] | None, drawn: dict[str, object]) -> list[Check]:
    """Every target with its figure; the ratios are judged in the worst of the classifiers."""
    result = [Check("Fréchet over real, worst classifier", max(item.ratio for item in ours), REAL_TARGET)]
    if peer:
        worst = max(a.frechet / b.frechet for a, b in zip(ours, peer, strict=True))
        result.append(Check("Fréchet over the peer's, worst classifier", worst, PEER_TARGET))
    result.append(Check("sampling, seconds", float(str(drawn["seconds"])), SAMPLE_SECONDS))
    if trained is not None:
        result.append(Check("training memory, GiB", float(str(trained["peak_gib"])), MEMORY_GIB))
    return result


def busy(*stages: dict[str, object] | None) -> bool:
    """Whether other work ran beside a stage: a load average above what our own threads explain.

    Small batches on two threads suffer most (the peer's steps were seen tens of times slower), so a comparison is void.
    """
    loads = [float(str(stage["load_after"])) for stage in stages if stage is not None]
    return any(load > (os.cpu_count() or 1) + 1 for load in loads)


def report(ours: list[Score], peer: list[Score], found: list[Check]) -> None:
    """Print distances per classifier, then the targets."""
    print(f"\n{'classifier':<16}{'ours':>9}{'real':>9}{'± draws':>9}{'ours/real':>11}{'peer':>9}{'ours/peer':>11}")
    for k, item in enumerate(ours):
        other = f"{peer[k].frechet:9.2f}{item.frechet / peer[k].frechet:11.4f}" if peer else f"{'-':>9}{'-':>11}"
        print(
            f"{item.classifier:<16}{item.frechet:9.2f}{item.real:9.2f}{item.real_std:9.2f}{item.ratio:11.2f}{other}",
        )
    mean = sum(item.ratio for item in ours) / len(ours)
    print(f"mean ratio to real {mean:.2f} (aim {REAL_AIM:g})\n")
    for check in found:
        print(f"{check.name:<44}{check.value:9.3f}  at most {check.limit:g}: {'met' if check.met else 'MISSED'}")


def run(arguments: argparse.Namespace) -> None:
    """All stages, the report, and its JSON."""
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if arguments.skip_train:
        kept = out / "train.json"
        trained = figures_of(kept) if kept.exists() else None
    else:
        trained = train_ours(arguments.data, arguments.minutes, out)
    drawn = draw_ours(arguments.number, out)
    peer_figures: dict[str, object] | None = None
    if not arguments.skip_peer:
        if arguments.skip_train:
            peer_figures = figures_of(out / PEER)
        else:
            peer_figures = run_peer(arguments.peer_python, arguments.data, arguments.minutes, arguments.number, out)
    ours = score(read_samples(out / SAMPLES), arguments.classifiers, arguments.data)
    peer = [] if arguments.skip_peer else score(read_samples(out / PEER), arguments.classifiers, arguments.data)
    found = checks(ours, peer, trained, drawn)
    report(ours, peer, found)
    peer_process = peer_figures.get("process") if peer_figures is not None else None
    crowded = busy(trained, drawn, peer_process if isinstance(peer_process, dict) else None)
    if crowded:
        print("VOID: other work ran on this machine meanwhile; run it again on a quiet one")
    record = {
        "void": crowded,
        "minutes": arguments.minutes,
        "n": arguments.number,
        "machine": platform.processor() or platform.machine(),
        "train": trained,
        "sample": drawn,
        "peer": peer_figures,
        "ours_scores": [asdict(item) for item in ours],
        "peer_scores": [asdict(item) for item in peer],
        "checks": [{**asdict(check), "met": check.met} for check in found],
    }
    print(json.dumps(record))
    write_json(out / FIGURES, record)


def main() -> int:
    """Run the benchmark; return 0, or 2 for wrong input or a stage that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mnist"), help="folder of the MNIST idx files")
    parser.add_argument("--classifiers", type=Path, required=True, help="the --out folder of benchmarks/classifier.py")
    parser.add_argument("--minutes", type=float, default=10.0, help="training time of each contestant")
    parser.add_argument("-n", "--number", type=int, default=2000, help="samples drawn from each")
    parser.add_argument("--out", type=Path, default=Path("runs/mnist"))
    parser.add_argument("--peer-python", type=Path, default=Path("/tmp/peer/bin/python"), help="has torch and diffusers")
    parser.add_argument("--skip-peer", action="store_true", help="judge ours alone")
    parser.add_argument("--skip-train", action="store_true", help="judge the model and the peer's samples already in --out")
    arguments = parser.parse_args()
    try:
        run(arguments)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
