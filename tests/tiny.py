"""A model small enough to train within a test, and processes that can be started cheaply and killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from ornstein import config, model
from ornstein.config import Recipe
from ornstein.evaluate import divide
from ornstein.image.data import ImageData
from ornstein.kinds import load_data
from ornstein.system import System
from ornstein.train import train

SETTINGS = (
    "data={source: digits, held_out: 0.2}",
    "condition=label",
    "net.options={width: 8, multipliers: [1], blocks: 1, attention: [false]}",
    "loss={weighting: edm, times: log_normal, mean: -0.4, std: 1.4}",
    "sampler={name: heun, calls: 5}",
    "train={steps: 30, batch: 32, learning_rate: 1.0e-3, warmup: 4, ema: 0.9, validate_every: 15}",
)
CHAIN = ("process={name: chain, options: {schedule: linear, steps: 50}}", "predicts=eps", "sampler={name: ddim, calls: 5}")


def recipe(*settings: str) -> Recipe:
    """The class-conditional digits with a network of nine thousand parameters, changed by `a.b=value` settings."""
    return config.override(config.Recipe(), [*SETTINGS, *settings])


def digits(chosen: Recipe) -> tuple[ImageData, ImageData]:
    """(training, held-out) parts of a recipe's data."""
    training, held = divide(chosen.data, load_data(chosen))
    assert held is not None
    return training, held


def trained(chosen: Recipe, out: Path, *, resume: bool = False, init: Path | None = None) -> System:
    """Train a recipe in this process, on one thread, into `out`."""
    training, held = digits(chosen)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train(chosen, training, held, training.contract, out, resume=resume, init=init, device="cpu", progress=False)
    finally:
        torch.set_num_threads(threads)


def written(chosen: Recipe, path: Path) -> Path:
    """The recipe as a YAML file."""
    path.write_text(config.dump(chosen))
    return path


def state(out: Path) -> dict[str, object]:
    """The training state of a run."""
    return torch.load(out / model.RESUME / "state.ckpt", weights_only=True)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Ended:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]
"""What the fixture `run` is: `run(*arguments)` calls `ornstein ARGUMENTS` in an empty folder."""


def command(*arguments: object, log: Path) -> ForkServerProcess:
    """`ornstein ARGUMENTS` in a process of its own with its output in `log`; heavy modules are imported once for all."""
    context = multiprocessing.get_context("forkserver")
    heavy = ["ornstein.cli", "ornstein.evaluate", "ornstein.train", "sklearn.datasets", "matplotlib.backends.backend_agg"]
    context.set_forkserver_preload(heavy)
    process = context.Process(target=_main, args=([str(a) for a in arguments], log), daemon=True)
    process.start()
    return process


def finish(process: ForkServerProcess, seconds: float = 120) -> int | None:
    """Wait for a process and give its exit code."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"the process was still running after {seconds} s")
    return process.exitcode


def _main(arguments: list[str], log: Path) -> None:
    from ornstein.cli import main

    torch.set_num_threads(1)
    with log.open("w") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.argv = ["ornstein", *arguments]
        main()
