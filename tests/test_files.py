"""Files: nothing half-written, nothing executed, every refusal one line."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ornstein import files
from ornstein.files import InputError


class Bomb:
    """A pickle of this creates the file `fired` when loaded."""

    def __init__(self, fired: Path) -> None:
        self.fired = fired

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.fired),)


def refusal(call: object, *arguments: object) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)  # type: ignore[operator]
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- writing ---------------------------------------------------------------------------------------------------------------


def test_write_atomic_replaces_and_keeps_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "new" / "samples.npz"
    for value in (1, 2):
        with files.write_atomic(path) as temporary:
            assert temporary.parent == path.parent
            np.savez(temporary, x=np.full(3, value))
    assert np.load(path)["x"].tolist() == [2, 2, 2]
    assert [entry.name for entry in path.parent.iterdir()] == ["samples.npz"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("no")])
def test_write_atomic_loses_nothing_on_failure(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with files.write_atomic(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomic_full_disk_at_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), files.write_atomic(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomic_keeps_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with files.write_atomic(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_write_directory_replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for value in ("a", "b"):
        with files.write_directory(path) as temporary:
            (temporary / value).write_text(value)
    assert [entry.name for entry in path.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fail_at", [0, 1, 2])
def test_write_directory_every_failing_rename_keeps_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    path = tmp_path / "model"
    with files.write_directory(path) as temporary:
        (temporary / "old").write_text("old")
    rename, calls = os.rename, []

    def flaky(source: os.PathLike[str], target: os.PathLike[str]) -> None:
        calls.append(source)
        if len(calls) == fail_at:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", flaky)

    def write() -> None:
        with files.write_directory(path) as temporary:
            (temporary / "new").write_text("new")
            if fail_at == 0:
                raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write()
    assert [entry.name for entry in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_crash_between_the_renames_is_recovered(tmp_path: Path) -> None:
    path, old = tmp_path / "model", tmp_path / ".model.old"
    old.mkdir()
    (old / "old").write_text("old")
    assert ".model.old" in refusal(files.check_model_directory, path)
    assert files.recover_directory(path) == path
    assert [entry.name for entry in path.iterdir()] == ["old"]
    old.mkdir()  # a crash after both renames: the new one is whole, the parked one goes
    with files.write_directory(path) as temporary:
        (temporary / "new").write_text("new")
    assert [entry.name for entry in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_write_directory_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")

    def write() -> None:
        with files.write_directory(tmp_path / "model"):
            raise AssertionError("never reached")

    assert "is a file" in refusal(write)
    assert (tmp_path / "model").read_text() == "mine"


# --- YAML and JSON ---------------------------------------------------------------------------------------------------------


def test_yaml_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a: {b: [1, 2.5, -1e-4, 1E3, yes, null, '1e5', text]}\nc: 2.0e-3\nd: .inf\n")
    value = files.read_yaml(path)
    assert value == {"a": {"b": [1, 2.5, -1e-4, 1000.0, True, None, "1e5", "text"]}, "c": 0.002, "d": float("inf")}
    path.write_text("# nothing\n")
    assert files.read_yaml(path) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: !!python/object/apply:os.mkdir [FIRED]\n", "line 2: tag"),
        ("a: 1\nb: !mine 3\n", "line 2: tag"),
        ("a: 1\nb: 2\na: 3\n", "line 3: key 'a' is given twice"),
        ("x:\n  a: 1\n  a: 3\n", "line 3: key 'a' is given twice"),
        ("- 1\n- 2\n", "must be a mapping"),
        ("a: &x [1]\nb: *x\n", "alias"),
        ("a: &x {b: *x}\n", "alias"),
        ("a: 1\n<<: {b: 2}\n", "line 2: tag"),
        ("1: 2\n", "put it in quotes"),
        ("a: 1\nb: [1, 2\n", "not valid YAML"),
        ("a: !!int x\n", "line 1: 'x' is not a valid int"),
        ("a: 1\n---\nb: 1\n", "line 2: not valid YAML"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: \x07\n", "not valid YAML"),
    ],
)
def test_yaml_refusals(tmp_path: Path, text: str, expected: str) -> None:
    fired, path = tmp_path / "fired", tmp_path / "c.yaml"
    path.write_text(text.replace("FIRED", str(fired)))
    message = refusal(files.read_yaml, path)
    assert expected in message
    assert "c.yaml" in message
    assert not fired.exists()


def test_unreadable_text(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    assert "No such file" in refusal(files.read_yaml, path)
    assert "directory" in refusal(files.read_json, tmp_path)
    path.write_bytes(b"a: \xff\xfe")
    assert "UTF-8" in refusal(files.read_yaml, path)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_json_round_trip(value: object) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "v.json"
        files.write_json(path, value)
        assert files.read_json(path) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ('{"a": 1e999}', "1e999"),
        ('{"a": 1,\n"a": 2}', "'a' twice"),
        ('{"a":\n 1,}', "line 2"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_json_refusals(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "v.json"
    path.write_text(text)
    assert expected in refusal(files.read_json, path)


def test_json_size_cap_and_nan_on_write(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    path.write_text(json.dumps("x" * 100))
    with pytest.raises(InputError, match="larger than 50 bytes"):
        files.read_json(path, limit=50)
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"a": float("nan")})
    assert files.read_json(path) == "x" * 100


# --- tensors ---------------------------------------------------------------------------------------------------------------


def test_tensors_round_trip_with_shared_and_strided_memory(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).view(1, 4, 2, 3)
    tensors = {
        "a": base,
        "again": base,
        "view": base[:, ::2],
        "last": base.contiguous(memory_format=torch.channels_last),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "count": torch.tensor(7),
    }
    files.write_tensors(tmp_path / "m.safetensors", tensors, metadata={"k": "v"})
    back = files.read_tensors(tmp_path / "m.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) and back[name].dtype == tensors[name].dtype for name in tensors)


def test_damaged_tensors_are_refused(tmp_path: Path) -> None:
    path, fired = tmp_path / "m.safetensors", tmp_path / "fired"
    files.write_tensors(path, {"a": torch.zeros(100)})
    whole = path.read_bytes()
    for data in (whole[:-1], whole[:50], whole[:4], b"", b"version https://git-lfs.github.com/spec/v1\n" * 3, b"\xff" * 64):
        path.write_bytes(data)
        message = refusal(files.read_tensors, path)
        assert "truncated or not safetensors" in message
        assert "copy it again" in message
    path.write_bytes(pickle.dumps(Bomb(fired)))
    assert "is a pickle" in refusal(files.read_tensors, path)
    torch.save({"a": torch.zeros(1)}, path)
    assert "a torch file" in refusal(files.read_tensors, path)
    assert "No such file" in refusal(files.read_tensors, tmp_path / "absent")
    assert not fired.exists()


# --- model directories -----------------------------------------------------------------------------------------------------


def test_inside(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("s")
    (model / "out").symlink_to(tmp_path / "secret")
    (model / "up").symlink_to("..")
    (model / "fine").symlink_to("sub")
    assert files.inside(model, "data.json") == model.resolve() / "data.json"
    assert files.inside(model, "fine/x") == model.resolve() / "sub" / "x"
    for name in ("../secret", "/etc/passwd", "out", "up/secret", "sub/../../secret", ".", "a\0b"):
        message = refusal(files.inside, model, name)
        assert repr(name) in message


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    (directory / "resume").mkdir(parents=True)
    (directory / "config.yaml").write_text("format: 1\n")
    (directory / "plan-10.json").write_text("{}")
    files.write_tensors(directory / "model.safetensors", {"a": torch.zeros(2)})
    (directory / "resume" / "state.pt").write_bytes(pickle.dumps({"step": 1}))
    return directory


def test_a_sound_model_directory(model: Path) -> None:
    assert files.check_model_directory(model) == []
    (model / "notes.txt").write_text("hello")
    (model / "extra").mkdir()
    assert files.check_model_directory(model) == ["extra", "notes.txt"]
    assert "does not exist" in refusal(files.check_model_directory, model / "absent")


@pytest.mark.parametrize("name", ["model.pkl", "a.pt", "b.PTH", "c.ckpt", "pytorch_model.bin"])
def test_pickles_are_refused_by_name(model: Path, name: str) -> None:
    (model / name).write_bytes(b"harmless")
    assert name in refusal(files.check_model_directory, model)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_are_refused_by_their_bytes(model: Path, tmp_path: Path, protocol: int) -> None:
    fired = tmp_path / "fired"
    (model / "model.safetensors").write_bytes(pickle.dumps(Bomb(fired), protocol=protocol))
    assert "is a pickle" in refusal(files.check_model_directory, model)
    (model / "model.safetensors").write_bytes(pickle.dumps({"a": [Bomb(fired)]}, protocol=protocol))
    assert "is a pickle" in refusal(files.check_model_directory, model)
    assert not fired.exists()


def test_torch_and_numpy_pickles_are_refused(model: Path) -> None:
    torch.save({"a": torch.zeros(1)}, model / "card.md")
    assert "torch file" in refusal(files.check_model_directory, model)
    np.save(model / "x.npy", np.array([{}], dtype=object))
    (model / "card.md").write_bytes((model / "x.npy").read_bytes())
    (model / "x.npy").unlink()
    assert "pickled objects" in refusal(files.check_model_directory, model)
    (model / "card.md").write_text("fine")
    np.savez(model / "samples.npz", x=np.zeros(3))
    assert files.check_model_directory(model) == ["samples.npz"]


def test_a_link_out_of_the_directory_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (model / "card.md").symlink_to(tmp_path / "secret")
    assert "leads outside" in refusal(files.check_model_directory, model)
