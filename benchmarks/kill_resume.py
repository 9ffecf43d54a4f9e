"""Killed with SIGKILL at ten random moments and resumed: the weights are those of a run that was not killed, bit for bit.

One reference run, then ten runs of `ornstein train`, each killed once at a moment drawn from a seed fixed beforehand and
resumed to the end. Compared: model.safetensors, byte for byte, and every tensor of the training state (current weights,
averaged weights, optimiser). A run killed before anything was saved starts again. Exit code 1 on any mismatch.

    python benchmarks/kill_resume.py [--moments 10] [--steps 150] [--seed 0] [--out kill_resume.json]
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

RECIPE = """
data: {source: digits, held_out: 0.2}
condition: label
net: {options: {width: 16, multipliers: [1, 2], blocks: 1, dropout: 0.1}}
loss: {weighting: edm, times: log_normal, mean: -0.4, std: 1.4}
sampler: {name: heun, calls: 5}
train: {batch: 32, learning_rate: 1.0e-3, warmup: 10, ema: 0.99, validate_every: 40, checkpoint_steps: 7, steps: STEPS}
"""
EPOCH = 1438 / 32
"""Optimiser steps per pass through the data."""


@dataclass(frozen=True)
class Row:
    """One killed run: seconds into training when it was killed, the step it then went on from, and what agreed."""

    moment: float
    kept_step: int
    epoch: float
    weights_equal: bool
    state_equal: bool


def command(recipe: Path, out: Path, resume: bool) -> list[str]:
    """`ornstein train` as a command."""
    return [sys.executable, "-m", "ornstein", "train", str(recipe), "--out", str(out), "--quiet", *["--resume"] * resume]


def killed(arguments: list[str], started: Path, moment: float, log: Path) -> None:
    """Start, wait until training has begun and then `moment` seconds, and kill."""
    with log.open("w") as stream:
        process = subprocess.Popen(arguments, stdout=stream, stderr=stream)
        while not started.exists():
            if process.poll() is not None:
                raise SystemExit(f"the run ended before it began:\n{log.read_text()}")
            time.sleep(0.002)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise SystemExit(f"the run had ended {moment:.2f} s after its start; give more --steps")


def state(out: Path) -> dict[str, object]:
    """The training state, without Lightning's counters of wall-clock progress."""
    whole = torch.load(out / "resume" / "state.ckpt", weights_only=True)
    names = ("global_step", "state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers")
    return {name: whole[name] for name in names}


def same(first: object, second: object) -> bool:
    """Whether two nested states hold the same bits."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def main() -> int:
    """Run all of it, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("kill_resume.json"))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        recipe, whole, log = home / "recipe.yaml", home / "whole", home / "log"
        recipe.write_text(RECIPE.replace("STEPS", str(options.steps)))
        subprocess.run(command(recipe, whole, False), check=True, capture_output=True)
        seconds = max(float(line.split(",")[-1] or 0) for line in (whole / "log.csv").read_text().splitlines()[1:])
        moments = np.random.default_rng(options.seed).uniform(0, 0.8 * seconds, options.moments)
        print(f"an uninterrupted run trains {options.steps} steps in {seconds:.1f} s", flush=True)
        print("moment s   kept step   epoch   weights   state", flush=True)
        for index, moment in enumerate(moments):
            out = home / f"cut-{index}"
            killed(command(recipe, out, False), out / "log.csv", float(moment), log)
            saved = (out / "resume" / "state.ckpt").exists()
            step = int(state(out)["global_step"]) if saved else 0  # type: ignore[call-overload]
            subprocess.run(command(recipe, out, saved), check=True, capture_output=True)
            weights = (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
            row = Row(float(moment), step, step / EPOCH, weights, same(state(out), state(whole)))
            rows.append(row)
            print(f"{moment:8.2f} {step:11d} {row.epoch:7.2f}   {row.weights_equal!s:7}   {row.state_equal}", flush=True)
    agreed = all(row.weights_equal and row.state_equal for row in rows)
    content = {"steps": options.steps, "seed": options.seed, "all_equal": agreed, "rows": [asdict(row) for row in rows]}
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{sum(r.weights_equal and r.state_equal for r in rows)} of {len(rows)} bit-identical")
    return 0 if agreed else 1


if __name__ == "__main__":
    raise SystemExit(main())
