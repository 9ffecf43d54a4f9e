"""A run that is killed, interrupted or ended by the clock goes on to the same bits as one that was not."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from ornstein import config, model

STEPS = 90
VARIANTS = {
    "dropout, accumulation": ("net.options.dropout=0.2", "train.accumulate=2"),
    "loss-aware chain": (*tiny.CHAIN, "loss={weighting: simple, loss_aware: true}"),
}


def wait_for(condition: Path, process: object, seconds: float = 90) -> None:
    """Wait until a file exists."""
    end = time.monotonic() + seconds
    while not condition.exists():
        assert time.monotonic() < end, f"{condition} did not appear"
        assert process.is_alive(), f"the process ended before {condition} appeared"  # type: ignore[attr-defined]
        time.sleep(0.002)


def same_tensors(first: object, second: object, where: str = "state") -> int:
    """Assert that two nested states hold the same bits; the number of tensors compared."""
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where  # type: ignore[arg-type]
        return 1
    if isinstance(first, dict):
        assert set(first) == set(second), where  # type: ignore[call-overload]
        return sum(same_tensors(first[k], second[k], f"{where}.{k}") for k in first)  # type: ignore[index]
    if isinstance(first, list | tuple):
        return sum(same_tensors(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(first, second, strict=True)))  # type: ignore[call-overload]
    return 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_twice_and_resumed_gives_the_same_bits(variant: str, tmp_path: Path) -> None:
    chosen = tiny.recipe(f"train.steps={STEPS}", "train.checkpoint_steps=7", "train.validate_every=40", *VARIANTS[variant])
    recipe = tiny.written(chosen, tmp_path / "recipe.yaml")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    uninterrupted = tiny.command("train", recipe, "--out", whole, "--quiet", log=tmp_path / "whole.log")
    assert tiny.finish(uninterrupted) == 0, (tmp_path / "whole.log").read_text()
    moments = np.random.default_rng(len(variant)).uniform(0, 0.3, 2)
    reached = []
    for attempt, moment in enumerate(moments):
        log = tmp_path / f"{attempt}.log"
        before = (cut / model.RESUME / "state.ckpt").stat().st_mtime_ns if attempt else 0
        process = tiny.command("train", recipe, "--out", cut, "--quiet", *["--resume"] * (attempt > 0), log=log)
        wait_for(cut / model.WEIGHTS, process)
        while (cut / model.RESUME / "state.ckpt").stat().st_mtime_ns == before:
            assert process.is_alive(), log.read_text()
            time.sleep(0.002)
        wait_for(cut / model.WEIGHTS, process)
        time.sleep(moment)
        os.kill(process.pid or 0, signal.SIGKILL)
        assert tiny.finish(process) == -signal.SIGKILL, log.read_text()
        reached.append(tiny.state(cut)["global_step"])
        assert model.load(cut).contract.shape == (1, 8, 8)
    assert 0 < reached[0] < reached[1] < STEPS
    last = tiny.command("train", "--out", cut, "--resume", "--quiet", log=tmp_path / "last.log")
    assert tiny.finish(last) == 0, (tmp_path / "last.log").read_text()
    assert (cut / model.WEIGHTS).read_bytes() == (whole / model.WEIGHTS).read_bytes()
    names = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "times")
    first, second = ({k: v for k, v in tiny.state(out).items() if k in names} for out in (whole, cut))
    assert same_tensors(first, second) > 20
    assert ("times" in first) == ("loss-aware" in variant)
    assert not list(cut.rglob("*.tmp*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_everything_saved(number: signal.Signals, tmp_path: Path) -> None:
    recipe = tiny.written(tiny.recipe("train.steps=1000000"), tmp_path / "recipe.yaml")
    out, log = tmp_path / "out", tmp_path / "log"
    process = tiny.command("train", recipe, "--out", out, "--quiet", log=log)
    wait_for(out / "log.csv", process)
    while (out / "log.csv").read_text().count("\n") < 3:
        assert process.is_alive(), log.read_text()
        time.sleep(0.01)
    os.kill(process.pid or 0, number)
    assert tiny.finish(process) == 0, log.read_text()
    step = tiny.state(out)["global_step"]
    assert isinstance(step, int)
    assert 10 < step < 10**6
    assert model.load(out).contract.shape == (1, 8, 8)
    assert {"samples.png", "strip.png", "loss.png", "card.md"} <= {path.name for path in out.iterdir()}
    more = config.override(model.read_recipe(out), [f"train.steps={step + 3}"])
    tiny.trained(more, out, resume=True)
    assert tiny.state(out)["global_step"] == step + 3


def test_the_clock_ends_a_run_with_everything_saved(tmp_path: Path) -> None:
    out = tmp_path / "out"
    begun = time.monotonic()
    tiny.trained(tiny.recipe("train.steps=1000000", "train.minutes=0.02"), out)
    assert time.monotonic() - begun < 30
    step = tiny.state(out)["global_step"]
    assert isinstance(step, int)
    assert step >= 1
    tiny.trained(tiny.recipe(f"train.steps={step}"), tmp_path / "whole")
    assert (out / model.WEIGHTS).read_bytes() == (tmp_path / "whole" / model.WEIGHTS).read_bytes()
