"""Reading and writing files so that nothing is lost and nothing is executed.

Layer 0. Every reader of a file that a stranger may have written lives here: YAML without tags, JSON without NaN, tensors
as safetensors; nothing in this package ever unpickles. Every writer goes to a temporary sibling that is renamed when it
is complete.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

JSON_LIMIT = 64 * 2**20
YAML_LIMIT = 2**20
KNOWN_FILES = ("config.yaml", "model.safetensors", "data.json", "plan-*.json", "metrics.json", "card.md", "*.png", "*.csv")
RESUME = "resume"

_PICKLE_SUFFIXES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib", ".dill"}
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp")}
EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
"""Numbers like 1e-4, which YAML 1.1 takes for strings."""
# Protocols 0 and 1 are text: an opcode, then a dotted module name, a newline and an attribute; or a marked empty container.
_TEXT_PICKLE = re.compile(rb"\(?c[A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n|\([dlti]p0?\n|[\]}\)][qr(]")


class InputError(ValueError):
    """Wrong input by the user: one line with the argument, its value and the remedy; the CLI turns it into exit code 2."""


def _sync(path: Path) -> None:
    """Flush a file or a directory to the disk; a full disk shows itself here at the latest."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sibling(target: Path) -> Path:
    """A fresh hidden name beside `target`; the suffix is kept because writers such as Pillow and numpy go by it."""
    return target.with_name(f".{target.stem}.{secrets.token_hex(4)}.tmp{target.suffix}")


@contextmanager
def write_atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary sibling of `path` to write to; on success it is synced and renamed to `path` in one step.

    On any failure (an exception in the block, an interrupt, a full disk) the temporary file is removed and an older file
    at `path` stays as it was. The parent directory is created. Raises whatever the block raises, and OSError from the disk.
    """
    target = Path(os.path.realpath(path))  # a symbolic link keeps pointing where it pointed
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(target)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def recover_directory(path: str | os.PathLike[str]) -> Path:
    """Finish or undo a replacement of directory `path` that a crash cut short; return `path`. Without a crash: no effect.

    `write_directory` parks the old directory at `.NAME.old`. If `path` is missing the old one is put back; if `path`
    exists the new one had arrived complete and the old one is removed.
    """
    target = Path(path)
    old = target.with_name(f".{target.name}.old")
    if old.exists():
        if target.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, target)
    return target


@contextmanager
def write_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty temporary sibling directory to fill; on success it takes the place of `path`.

    An existing directory is replaced by two renames: `path` → `.NAME.old`, temporary → `path`; only then is the old one
    removed. At every instant `path`, or `.NAME.old` with the complete temporary beside it, is whole; a crash between the
    renames is put right by `recover_directory`, which the next `write_directory` calls first. On failure the temporary
    directory is removed and `path` is as before. Raises whatever the block raises, and InputError when `path` is a file.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_dir():
        raise InputError(f"directory {str(path)!r} is a file; choose another name or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    recover_directory(target)
    old = target.with_name(f".{target.name}.old")
    temporary = _sibling(target)
    temporary.mkdir()
    try:
        yield temporary
        for entry in sorted(temporary.rglob("*"), reverse=True):
            if not entry.is_symlink():
                _sync(entry)
        _sync(temporary)
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(temporary, target)
        except BaseException:
            recover_directory(target)
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)  # the new directory is in place; leftovers go at the next write


def _read_bytes(path: str | os.PathLike[str], limit: int) -> bytes:
    try:
        with open(path, "rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise InputError(f"cannot read {os.fspath(path)!r}: {error.strerror or error}; check the path") from error
    if len(data) > limit:
        raise InputError(f"{os.fspath(path)!r} is larger than {limit} bytes; this is not a file written by ornstein")
    return data


def _read_text(path: str | os.PathLike[str], limit: int) -> str:
    try:
        return _read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{os.fspath(path)!r} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML mapping of plain values; `1e-4` is a number here, though YAML 1.1 calls it a string.

    Refused with InputError and the line: any tag, a duplicate key, an anchor's alias, a key that is not a string, a root
    that is not a mapping, a syntax error, a file over 1 MiB. Nothing in the file is executed. An empty file is {}.
    """
    import yaml

    name = os.fspath(path)
    text = _read_text(path, YAML_LIMIT)
    seen: set[int] = set()
    constructor = yaml.SafeLoader("")

    def fail(node: Any, problem: str) -> NoReturn:
        raise InputError(f"{name!r} line {node.start_mark.line + 1}: {problem}")

    def build(node: Any) -> Any:
        if id(node) in seen:  # also keeps out self-reference and exponential expansion
            fail(node, "an alias (*name) refers here; write the value out")
        seen.add(id(node))
        if node.tag not in _PLAIN_TAGS:
            fail(node, f"tag {node.tag!r} is not allowed; only plain values, lists and mappings are read")
        if isinstance(node, yaml.SequenceNode):
            return [build(child) for child in node.value]
        if isinstance(node, yaml.MappingNode):
            result: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = build(key_node)
                if not isinstance(key, str):
                    fail(key_node, f"key {key!r} is not a name; put it in quotes")
                if key in result:
                    fail(key_node, f"key {key!r} is given twice; remove one")
                result[key] = build(value_node)
            return result
        if node.style is None and node.tag.endswith(":str") and EXPONENT.fullmatch(node.value):
            return float(node.value)
        try:
            return constructor.construct_object(node)
        except (ValueError, yaml.YAMLError) as error:
            fail(node, f"{node.value!r} is not a valid {node.tag.rsplit(':', 1)[-1]} ({error})")

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return {}
        if not isinstance(root, yaml.MappingNode):
            fail(root, "the file must be a mapping of names to values (name: value)")
        return dict(build(root))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" line {mark.line + 1}"
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"{name!r}{line}: not valid YAML ({problem}); correct the file") from error
    except RecursionError as error:
        raise InputError(f"{name!r} is nested too deeply; this is not a configuration") from error


def read_json(path: str | os.PathLike[str], *, limit: int = JSON_LIMIT) -> Any:
    """Read a JSON file of at most `limit` bytes.

    Refused with InputError: a larger file, a syntax error (with line), a duplicate key, and any number that is not finite
    (NaN, Infinity, 1e999).
    """
    name = os.fspath(path)

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise InputError(f"{name!r} holds the number {text}, which is not finite; write the file again")
        return value

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            keys = [key for key, _ in items]
            repeated = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"{name!r} gives key {repeated!r} twice; remove one")
        return result

    try:
        return json.loads(_read_text(path, limit), parse_float=number, parse_constant=number, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise InputError(f"{name!r} line {error.lineno}: not valid JSON ({error.msg}); correct the file") from error
    except RecursionError as error:
        raise InputError(f"{name!r} is nested too deeply; this is not a file written by ornstein") from error


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically; ValueError when it holds a number that is not finite."""
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    with write_atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _pickled(path: Path) -> str | None:
    """What kind of pickle the file `path` is, judged by its first bytes and never by loading it; None for anything else."""
    with open(path, "rb") as stream:
        head = stream.read(256)
    if (len(head) > 1 and head[0] == 0x80 and head[1] <= 5) or _TEXT_PICKLE.match(head):
        return "a pickle"
    if head.startswith(b"\x93NUMPY") and b"|O" in head:
        return "a numpy file of pickled objects"
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile:
            return "a damaged ZIP file"
        if any(name.endswith(".pkl") for name in names):
            return "a torch file (a ZIP with a pickle inside)"
    return None


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read named tensors from a safetensors file, on the CPU; InputError when it is missing, truncated or something else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name = os.fspath(path)
    try:
        if kind := _pickled(Path(path)):
            raise InputError(f"{name!r} is {kind}, not safetensors; it is never loaded, ask for a safetensors file")
        return dict(load_file(path))
    except OSError as error:
        raise InputError(f"cannot read {name!r}: {error.strerror or error}; check the path") from error
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        size = os.path.getsize(path)
        raise InputError(
            f"{name!r} is truncated or not safetensors ({reason}; {size} bytes); copy it again from its source"
        ) from error


def read_arrays(path: str | os.PathLike[str], *, missing: bool = False) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file by name; InputError for another kind of file, a pickle, and numbers that are not finite (NaN is
    one where `missing` numbers are allowed)."""
    try:
        with np.load(path, allow_pickle=False) as loaded:
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise InputError(f"{path}: not an .npz file; save named arrays with numpy.savez")
            arrays = {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as .npz ({error}); nothing in it was run") from error
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not (np.isfinite(array) | (missing & np.isnan(array))).all():
            raise InputError(f"{path}: {name!r} holds NaN or infinity; remove these rows")
    return arrays


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors of any shape as safetensors, atomically; shared or strided memory is copied first."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    with write_atomic(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(plain, temporary, metadata=None if metadata is None else dict(metadata))
        temporary.chmod(mode)  # safetensors writes 0600, which would hide a shared model from others


def inside(directory: str | os.PathLike[str], name: str) -> Path:
    """The resolved path of `name` within `directory`; InputError when it is absolute or leads outside, links included."""
    root = Path(directory).resolve()
    if os.path.isabs(name) or "\0" in name:
        raise InputError(f"file name {name!r} must be relative to {str(directory)!r}; give a name within it")
    path = (root / name).resolve()
    if path == root or not path.is_relative_to(root):
        raise InputError(f"file name {name!r} leads outside {str(directory)!r}; give the name of a file within it")
    return path


def check_model_directory(path: str | os.PathLike[str]) -> list[str]:
    """Refuse a model directory that holds pickles or links leading outside; return the names of unknown files.

    Looks at names and first bytes at the top level only; the folder `resume/` may hold training state, which loading a
    model does not read. Raises InputError for a missing directory, a pickle of any kind, or a link that leaves it.
    """
    directory = Path(path)
    if not directory.is_dir():
        old = directory.with_name(f".{directory.name}.old")
        remedy = f"an interrupted save left the previous model at {str(old)!r}: rename it" if old.is_dir() else "check the path"
        raise InputError(f"model directory {str(path)!r} does not exist; {remedy}")
    unknown: list[str] = []
    for entry in sorted(directory.iterdir()):
        if entry.name == RESUME:
            continue
        real = inside(directory, entry.name)
        if real.is_file():
            kind = "a pickle by its name" if entry.suffix.lower() in _PICKLE_SUFFIXES else _pickled(real)
            if kind is not None:
                raise InputError(
                    f"model directory {str(path)!r}: {entry.name!r} is {kind}, which could run code; "
                    "remove it, or ask its author for safetensors"
                )
        if real.is_dir() or not any(entry.match(pattern) for pattern in KNOWN_FILES):
            unknown.append(entry.name)
    return unknown
