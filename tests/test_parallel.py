"""Two processes under torchrun are one process with the whole batch; shares of samples make up the whole."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ornstein import cli
from ornstein.parallel import Share, shares
from ornstein.train import engine

STEPS, SAMPLES = 10, 9
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "two_processes.py"

WORKER = """
import sys
sys.path.insert(0, {folder!r})
import two_processes
from pathlib import Path
two_processes.worker(Path({out!r}), {steps})
from ornstein import cli
for words in (
    ["sample", {out!r}, "-n", "{samples}", "--cond", "label=0,1,2", "--out", {array!r}],
    ["nll", {out!r}, *{nll!r}],
    ["encode", {out!r}, "-n", "5", "--rtol", "0.01", "--out", {latents!r}],
    ["train", "timegrad", "--out", {out!r} + "-series", *{series!r}],
):
    sys.argv = ["ornstein", *words, "--quiet"]
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            raise
"""
SERIES = ["--set", "train={steps: 10, batch: 8, validate_every: 5}", "--set", "net.options={width: 8, layers: 1, head_width: 8}"]
NLL = ["-n", "7", "--by", "both", "--draws", "3", "--probes", "1", "--rtol", "0.05"]


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark of this name as a module; it records losses in place of the engine's progress line."""
    monkeypatch.setattr(engine, "Progress", engine.Progress)
    spec = importlib.util.spec_from_file_location("two_processes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_processes_are_one_with_the_whole_batch(
    two_processes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    script = tmp_path / "worker.py"
    script.write_text(
        WORKER.format(
            folder=str(SCRIPT.parent), out=str(two), steps=STEPS, samples=SAMPLES, array=str(tmp_path / "two.npz"),
            latents=str(tmp_path / "two-latents.npz"), nll=NLL, series=SERIES,
        )
    )  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        two_processes.torchrun(str(script)), capture_output=True, text=True, check=False, env=environment, timeout=200
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("9 samples") == 1
    threads = torch.get_num_threads()
    try:
        two_processes.worker(one, STEPS)
    finally:
        torch.set_num_threads(threads)
    losses = [np.asarray(json.loads((out / "losses.json").read_text())) for out in (one, two)]
    assert losses[0].shape == losses[1].shape == (STEPS,)
    assert np.abs(losses[0] - losses[1]).max() < 1e-4
    assert np.ptp(losses[0]) > 1e-2
    assert command(["train", "timegrad", "--out", str(tmp_path / "series"), *SERIES], monkeypatch) == 0
    for alone, together in ((one, two), (tmp_path / "series", tmp_path / "two-series")):
        rows = [pd.read_csv(folder / "log.csv").set_index("step")["validation"].dropna() for folder in (alone, together)]
        assert rows[0].index.tolist() == rows[1].index.tolist() == [5, 10]
        assert rows[0].to_numpy() == pytest.approx(rows[1].to_numpy(), rel=1e-4)
    draw = ["sample", str(two), "-n", str(SAMPLES), "--cond", "label=0,1,2", "--out", str(tmp_path / "one.npz")]
    capsys.readouterr()
    for words in (draw, ["encode", str(two), "-n", "5", "--rtol", "0.01", "--out", str(tmp_path / "one-latents.npz")]):
        assert command(words, monkeypatch) == 0
    capsys.readouterr()
    assert command(["nll", str(two), *NLL], monkeypatch) == 0
    # the numbers of `ornstein nll`; how long it took may differ
    row = re.compile(r"^(bits_per_dim\S*(?: \(\w+\))?) +([\d.]+)", re.MULTILINE)
    alone, together = (row.findall(text) for text in (capsys.readouterr().out, ended.stdout))
    assert [name for name, _ in alone] == ["bits_per_dim", "bits_per_dim (flow)", "bits_per_dim (Gaussian)"]
    assert [name for name, _ in together] == [name for name, _ in alone]
    assert [float(value) for _, value in alone] == pytest.approx([float(value) for _, value in together], abs=2e-3)
    with np.load(tmp_path / "one-latents.npz") as first, np.load(tmp_path / "two-latents.npz") as second:
        assert np.abs(first["latent"] - second["latent"]).max() < 1e-3
    with np.load(tmp_path / "one.npz") as first, np.load(tmp_path / "two.npz") as second:
        assert first["label"].tolist() == second["label"].tolist() == [0, 1, 2] * 3
        assert first["samples"].shape == second["samples"].shape == (SAMPLES, 1, 8, 8)
        gap = np.abs(first["samples"].astype(int) - second["samples"].astype(int))
    # a number within rounding of the border between two grey levels may fall on either side
    assert gap.max() <= 1
    assert (gap > 0).mean() < 0.01


def command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """`ornstein WORDS --quiet` in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["ornstein", *words, "--quiet"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    return int(done.value.code or 0)


@given(n=st.integers(1, 40), world=st.integers(1, 9))
def test_shares_cover_every_sample_once(n: int, world: int) -> None:
    drawn: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "init_process_group", lambda backend: None)
        patch.setattr(torch.distributed, "destroy_process_group", lambda: None)
        patch.setattr(torch.distributed, "barrier", lambda: None)
        patch.setenv("WORLD_SIZE", str(world))
        for rank in range(world):
            patch.setenv("RANK", str(rank))
            with shares(n) as share:
                assert share.main == (rank == 0)
                assert share.count <= -(-n // world)
                drawn += range(share.first, share.first + share.count)
    assert drawn == list(range(n))


def test_one_process_gathers_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with shares(5) as share:
        part = torch.arange(5.0)
        assert share == Share(5, 0, 5, 0, 1)
        assert share.gather(part) is part
    assert not torch.distributed.is_initialized()


def test_the_group_is_given_up_when_sampling_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(torch.distributed, "init_process_group", ended.append)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: ended.append("destroyed"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ZeroDivisionError), shares(5):
        raise ZeroDivisionError
    assert ended == ["gloo", "destroyed"]
