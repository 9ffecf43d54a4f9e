"""Model directories: what was saved comes back, and what a stranger tampered with is refused before anything runs."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import tiny
from ornstein import cli, files, model
from ornstein.files import InputError
from ornstein.noise import Noise

CANARY = "canary.txt"


class Payload:
    """Unpickling this writes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"touch '{self.canary}'",)


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A model directory that a test may change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edit_yaml(folder: Path, **changes: object) -> None:
    path = folder / model.CONFIG
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def edit_json(folder: Path, **changes: object) -> None:
    path = folder / model.DATA
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / model.WEIGHTS)
    change(weights)
    save_file(weights, folder / model.WEIGHTS)


def pickled(folder: Path, name: str, protocol: int = 4) -> None:
    (folder / name).write_bytes(pickle.dumps(Payload(folder.parent / CANARY), protocol))


def torch_saved(folder: Path, name: str) -> None:
    torch.save({"x": Payload(folder.parent / CANARY)}, folder / name)


def truncate(folder: Path, share: float) -> None:
    path = folder / model.WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def tag(folder: Path, text: str) -> None:
    path = folder / model.CONFIG
    path.write_text(path.read_text().replace("description: ''", f"description: {text}"))
    assert text in path.read_text()


def link_outside(folder: Path, name: str) -> None:
    outside = folder.parent / f"outside-{name}"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pickle beside the weights": (lambda d: pickled(d, "optimizer.pkl"), "optimizer.pkl"),
    "a pickle of another name": (lambda d: pickled(d, "readme.md"), "readme.md"),
    "a text pickle": (lambda d: pickled(d, "notes.csv", 0), "notes.csv"),
    "a torch file": (lambda d: torch_saved(d, "extra.safetensors"), "extra.safetensors"),
    "weights that are a pickle": (lambda d: pickled(d, model.WEIGHTS), "pickle"),
    "weights that are a torch file": (lambda d: torch_saved(d, model.WEIGHTS), "pickle"),
    "weights without their end": (lambda d: truncate(d, 0.9), "truncated"),
    "weights without their head": (lambda d: truncate(d, 0.001), "truncated"),
    "empty weights": (lambda d: truncate(d, 0), "truncated"),
    "a wrong shape": (lambda d: edit_weights(d, lambda w: w.update({"head.bias": torch.zeros(7)})), "'head.bias' has shape (7,)"),
    "a missing tensor": (lambda d: edit_weights(d, lambda w: w.pop("head.bias")), "lacks tensor 'head.bias'"),
    "an unknown tensor": (lambda d: edit_weights(d, lambda w: w.update(evil=torch.zeros(1))), "unknown tensor 'evil'"),
    "NaN weights": (lambda d: edit_weights(d, lambda w: w["head.bias"].fill_(torch.nan)), "NaN"),
    "an unknown key": (lambda d: edit_yaml(d, payload="x"), "payload='x' is no key"),
    "another format": (lambda d: edit_yaml(d, format=99), "format=99"),
    "a function's name": (lambda d: edit_yaml(d, net={"name": "os.system"}), "net.name='os.system'"),
    "an unknown process": (lambda d: edit_yaml(d, process={"name": "os.system"}), "process.name='os.system'"),
    "a YAML tag": (lambda d: tag(d, f"!!python/object/apply:os.system ['touch {d.parent / CANARY}']"), "tag"),
    "a YAML alias": (lambda d: tag(d, "&a x\nprocess: *a"), "line"),
    "config that is no mapping": (lambda d: (d / model.CONFIG).write_text("[1, 2]"), "mapping"),
    "an unknown contract key": (lambda d: edit_json(d, payload=1), "unknown key 'payload'"),
    "another contract version": (lambda d: edit_json(d, version=99), "version = 99"),
    "a contract of another shape": (lambda d: edit_json(d, shape=[3, 8, 8]), "channels"),
    "a contract that is no JSON": (lambda d: (d / model.DATA).write_text("{"), "not valid JSON"),
    "a contract with NaN": (lambda d: (d / model.DATA).write_text('{"std": NaN}'), "not finite"),
    "weights outside": (lambda d: link_outside(d, model.WEIGHTS), "leads outside"),
    "a contract outside": (lambda d: link_outside(d, model.DATA), "leads outside"),
    "config outside": (lambda d: link_outside(d, model.CONFIG), "leads outside"),
    "a link to a system file": (lambda d: (d / "card.md").symlink_to("/etc/passwd"), "leads outside"),
    "no weights": (lambda d: (d / model.WEIGHTS).unlink(), "no model.safetensors"),
    "no contract": (lambda d: (d / model.DATA).unlink(), "no data.json"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_tampered_directory_is_refused_and_runs_nothing(
    case: str, copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, words = TAMPERED[case]
    change(copy)
    with pytest.raises(InputError) as caught:
        model.load(copy)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(sys, "argv", ["ornstein", "sample", str(copy), "--out", str(copy.parent / "x.png")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("ornstein: error: ")
    assert error.count("\n") == 1
    assert not (copy.parent / CANARY).exists()
    assert not (copy.parent / "x.png").exists()


def test_the_canary_can_sing(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    pickled(tmp_path / "model", "x.pkl")
    with (tmp_path / "model" / "x.pkl").open("rb") as stream:
        pickle.load(stream)
    assert (tmp_path / CANARY).exists()


def test_training_state_is_read_as_plain_tensors_only(copy: Path) -> None:
    torch.save({"state_dict": {}, "x": Payload(copy.parent / CANARY)}, copy / model.RESUME / "state.ckpt")
    assert model.load(copy).contract.shape == (1, 8, 8)
    with pytest.raises(InputError, match=r"state\.ckpt' is damaged or no training state"):
        tiny.trained(tiny.recipe(), copy, resume=True)
    assert not (copy.parent / CANARY).exists()


def test_what_was_saved_comes_back(tiny_model: Path, tmp_path: Path) -> None:
    system = model.load(tiny_model)
    model.save(tmp_path / "again", model.read_recipe(tiny_model), system)
    again = model.load(tmp_path / "again")
    first, second = (s.sample(3, cond={"label": 1}, noise=Noise(0)) for s in (system, again))
    assert torch.equal(first, second)
    assert again.contract == system.contract
    assert again.plan == system.plan
    assert not system.net.training
    assert not any(p.requires_grad for p in system.net.parameters())


def test_loading_leaves_a_generator_and_a_directory_as_they_were(tiny_model: Path) -> None:
    before, listing = torch.get_rng_state(), sorted(p.name for p in tiny_model.rglob("*"))
    model.load(tiny_model)
    assert torch.equal(before, torch.get_rng_state())
    assert sorted(p.name for p in tiny_model.rglob("*")) == listing


def test_another_process_may_be_given(tiny_model: Path) -> None:
    from ornstein import process

    chosen = process.VP()
    assert model.load(tiny_model, process=chosen).denoiser.process is chosen


def test_plans_beside_the_weights(copy: Path) -> None:
    plan = model.load(copy).plan
    assert plan is not None
    plan.save(copy / "plan-8.json")
    assert model.plans(copy) == {"8": plan}
    (copy / "plan-8.json").write_text("{}")
    with pytest.raises(InputError, match="not a plan"):
        model.plans(copy)


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a directory"):
        model.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no config\.yaml"):
        model.load(tmp_path)


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there(tiny_model: Path, device: str) -> None:
    with pytest.raises(InputError, match=f"device='{device}'"):
        model.load(tiny_model, device=device)


@pytest.mark.parametrize("name", [model.CONFIG, model.DATA, model.WEIGHTS])
def test_a_full_disk_leaves_the_previous_model(copy: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system, before = model.load(copy), {p.name: p.read_bytes() for p in copy.iterdir() if p.is_file()}
    real = files._sync

    def full(path: Path) -> None:
        if path.name.startswith(f".{Path(name).stem}."):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path)

    monkeypatch.setattr(files, "_sync", full)
    changed = {key: value + 1 for key, value in system.net.state_dict().items()}
    with pytest.raises(OSError, match="No space left"):
        model.save(copy, model.read_recipe(copy), system, changed)
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in copy.iterdir() if p.is_file()} == before
    assert model.load(copy).contract == system.contract
