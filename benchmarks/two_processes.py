"""Two gloo processes under torchrun against one process with the whole batch: the losses of the first steps, and samples.

Both train the same recipe (train.batch is the batch over all processes, so two processes take half of it each) in float32
and record the loss of every step; then both draw the same samples from one model. Targets: losses within 1e-4, samples
within 1e-4 of their span. Exit code 1 on a miss.

    python benchmarks/two_processes.py [--steps 50] [--out two_processes.json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-4
SETTINGS = (
    "data={source: digits, held_out: 0.2}",
    "condition=label",
    "net.options={width: 16, multipliers: [1, 2], blocks: 1}",
    "loss={weighting: edm, times: log_normal, mean: -0.4, std: 1.4}",
    "sampler={name: heun, calls: 5}",
    "train={batch: 64, learning_rate: 1.0e-3, warmup: 10, ema: 0.99, validate_every: 5}",
)


def worker(out: Path, steps: int) -> None:
    """Train into `out`, writing every step's loss to losses.json there; called in each process."""
    import torch

    from ornstein import config
    from ornstein.evaluate import divide
    from ornstein.kinds import load_data
    from ornstein.train import engine

    torch.set_num_threads(1)
    losses: list[float] = []

    class Recording(engine.Progress):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            losses.append(float(trainer.callback_metrics["loss"]))

    engine.Progress = Recording  # type: ignore[misc]
    recipe = config.override(config.Recipe(), [*SETTINGS, f"train.steps={steps}"])
    training, held = divide(recipe.data, load_data(recipe))
    engine.train(recipe, training, held, training.contract, out, device="cpu", progress=False)
    if int(os.environ.get("RANK", "0")) == 0:
        (out / "losses.json").write_text(json.dumps(losses))


def torchrun(*arguments: str) -> list[str]:
    """A command in two processes on this machine."""
    return [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2", *arguments]


def run(command: list[str]) -> None:
    """Run a command quietly; its output is shown only if it fails."""
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")


def compare(folder: Path, steps: int, samples: int) -> dict[str, float]:
    """Train and sample in one process and in two; the largest differences."""
    one, two = folder / "one", folder / "two"
    work = [str(Path(__file__).resolve()), "--worker", "--steps", str(steps), "--out"]
    run([sys.executable, *work, str(one)])
    run(torchrun(*work, str(two)))
    losses = [np.asarray(json.loads((out / "losses.json").read_text())) for out in (one, two)]
    if [len(values) for values in losses] != [steps, steps]:
        raise SystemExit(f"{[len(values) for values in losses]} losses were recorded for {steps} steps")
    draw = ["-m", "ornstein", "sample", str(one), "-n", str(samples), "--cond", "label=0,1,2", "--quiet", "--out"]
    run([sys.executable, *draw, str(folder / "one.npz")])
    run(torchrun(*draw, str(folder / "two.npz")))
    with np.load(folder / "one.npz") as first, np.load(folder / "two.npz") as second:
        if not np.array_equal(first["label"], second["label"]):
            raise SystemExit("the labels of the samples differ")
        gap = np.abs(first["samples"].astype(float) - second["samples"].astype(float))
    return {
        "steps": steps,
        "loss_gap": float(np.abs(losses[0] - losses[1]).max()),
        "first_loss": float(losses[0][0]),
        "last_loss": float(losses[0][-1]),
        "samples": samples,
        "levels_that_differ": int((gap > 0).sum()),
        "levels": int(gap.size),
        "largest_difference_in_levels": float(gap.max()),
    }


def main() -> int:
    """Compare, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--samples", type=int, default=33)
    parser.add_argument("--out", type=Path, default=Path("two_processes.json"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.out, options.steps)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        result = compare(Path(folder), options.steps, options.samples)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    # a number within rounding of the border between two levels may fall on either side of it
    met = result["loss_gap"] < TOLERANCE and result["levels_that_differ"] <= 1e-3 * result["levels"]
    print("met" if met else "MISSED")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
