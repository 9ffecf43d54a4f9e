"""Where images come from: folders, ZIPs, numpy and idx files, Hugging Face data sets. Nothing is decoded or unpickled here.

`find` turns what the user named into either `Arrays` (numbers as stored) or `Pictures` (encoded files still to be opened);
`ornstein.image.data` makes one `ImageData` of either.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ornstein.files import InputError

LIMIT = 4 * 2**30
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
TABLES = {".parquet", ".arrow", ".json", ".jsonl"}
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}
_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


@dataclass(frozen=True)
class Picture:
    """One encoded image: its name for messages and a function that opens its bytes."""

    name: str
    open: Callable[[], IO[bytes]]


@dataclass(frozen=True)
class Pictures:
    """Encoded images with, or without, one label name each; `classes` when the source declares their order."""

    items: tuple[Picture, ...]
    labels: tuple[object, ...] | None
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Arrays:
    """Images as numbers (N, H, W), (N, H, W, C) or (N, C, H, W) with labels of any kind; `levels` when the source knows."""

    images: NDArray[Any]
    labels: NDArray[Any] | None
    classes: tuple[str, ...] | None = None
    levels: int | None = None


def find(
    source: str | os.PathLike[str],
    *,
    image_key: str | None = None,
    label_key: str | None = None,
    split: str | None = None,
) -> Arrays | Pictures:
    """Locate the images of `source`; see `ornstein.image.data.load_images` for what it may be. Raises InputError."""
    from ornstein.image import hub  # which imports Arrays and Pictures from here

    text = os.fspath(source)
    if text == "digits":
        found: Arrays | Pictures = _digits()
    elif text.startswith("hf:"):
        return hub.from_hub(text, image_key, label_key, split)
    else:
        path = Path(text).expanduser()
        if not path.exists():
            raise InputError(f"data {text!r} does not exist; give a folder, a file, 'digits' or 'hf:NAME'")
        if path.is_dir():
            return _directory(path, image_key, label_key, split)
        return _file(path, image_key, label_key, split)
    return _labels_present(text, found, label_key)


def _labels_present(source: str, found: Arrays | Pictures, label_key: str | None) -> Arrays | Pictures:
    if label_key is not None and found.labels is None:
        raise InputError(f"label_key={label_key!r}: {source!r} has no labels; put the images into one sub-folder per class")
    return found


def no_split(source: Path, split: str | None) -> None:
    """InputError when a named part is asked of a source that has none."""
    if split is not None:
        raise InputError(f"split={split!r}: {str(source)!r} has no named parts; leave split out")


def check_memory(source: str, bytes_needed: int, remedy: str = "load smaller images: --set data.size=64") -> None:
    """Refuse data that would take more than 4 GiB decoded; InputError with the size and the remedy."""
    if bytes_needed > LIMIT:
        raise InputError(f"{source!r} would take {bytes_needed / 2**30:.1f} GiB of memory (limit {LIMIT / 2**30:g}); {remedy}")


def reason(error: BaseException) -> str:
    """The first line of an error's text, short enough for one line."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]


def _digits() -> Arrays:
    from sklearn.datasets import load_digits

    bundle = load_digits()
    return Arrays(bundle.images.astype(np.uint8), bundle.target, tuple(map(str, range(10))), levels=17)


def _directory(path: Path, image_key: str | None, label_key: str | None, split: str | None) -> Arrays | Pictures:
    from ornstein.image import hub

    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    if {"state.json", "dataset_info.json"} <= set(names) or "dataset_dict.json" in names:
        return hub.from_saved(path, image_key, label_key, split)
    if idx := [name for name in names if "-images" in name and "idx3" in name]:
        wanted = [name for name in idx if split is None or name.startswith({"test": "t10k"}.get(split, split))]
        if len(wanted) != 1:
            raise InputError(f"split={split!r}: {str(path)!r} holds {', '.join(idx)}; choose one with split=train or split=test")
        return _labels_present(str(path), _idx(path / wanted[0]), label_key)
    files = sorted(
        entry for entry in path.rglob("*") if entry.suffix.lower() in SUFFIXES and entry.is_file() and _visible(entry, path)
    )
    if files:
        relative = [PurePosixPath(entry.relative_to(path).as_posix()) for entry in files]
        found = _tree(str(path), relative, [opener(entry) for entry in files], split)
        return _labels_present(str(path), found, label_key)
    tables = [path / name for name in names if Path(name).suffix in TABLES]
    if len(tables) > 1:
        return hub.from_tables(path, tables, image_key, label_key, split)
    single = [path / name for name in names if Path(name).suffix in TABLES | {".zip", ".npz", ".npy"}]
    if len(single) == 1:
        return _file(single[0], image_key, label_key, split)
    if single:
        listed = ", ".join(entry.name for entry in single)
        raise InputError(f"data {str(path)!r} holds several data files ({listed}); name one of them")
    raise InputError(f"data folder {str(path)!r} holds no images; supported are {', '.join(sorted(SUFFIXES))}")


def opener(entry: Path) -> Callable[[], IO[bytes]]:
    """A function that opens a file to read its bytes."""
    return lambda: entry.open("rb")


def _visible(entry: Path, root: Path) -> bool:
    return not any(part.startswith((".", "__MACOSX")) for part in entry.relative_to(root).parts)


def _file(path: Path, image_key: str | None, label_key: str | None, split: str | None) -> Arrays | Pictures:
    from ornstein.image import hub

    suffix = path.suffix.lower()
    if suffix in TABLES:
        return hub.from_tables(path, [path], image_key, label_key, split)
    if suffix == ".zip":
        return _labels_present(str(path), _zip(path, split), label_key)
    no_split(path, split)
    if suffix in {".npz", ".npy"}:
        return _numpy(path, image_key, label_key)
    if "idx" in path.name:
        return _labels_present(str(path), _idx(path), label_key)
    if suffix in SUFFIXES:
        raise InputError(f"data {str(path)!r} is a single image; give the folder that holds the images")
    raise InputError(f"data {str(path)!r}: unknown kind of file; give a folder, .zip, .npz, .npy, idx or .parquet file")


def _tree(source: str, paths: Sequence[PurePosixPath], openers: Sequence[Callable[[], IO[bytes]]], split: str | None) -> Pictures:
    """Pictures of a file tree: the first folder below the common one is the label; a flat tree has none."""
    parts = [path.parts for path in paths]
    while all(len(part) > 1 for part in parts) and len({part[0] for part in parts}) == 1 and parts[0][0] not in SPLITS:
        if all(len(part) == 2 for part in parts):
            break  # a single class folder: nothing is gained by another level
        parts = [part[1:] for part in parts]
    heads = {part[0] for part in parts if len(part) > 1}
    named = heads & SPLITS
    keep = list(range(len(parts)))
    if split is not None:
        if split not in heads:
            raise InputError(
                f"split={split!r}: {source!r} has no folder of that name; it has {', '.join(sorted(heads)) or 'none'}"
            )
        keep = [index for index in keep if parts[index][0] == split and len(parts[index]) > 1]
        parts = [part[1:] for part in parts]
    elif heads and heads <= SPLITS and len(named) > 1:
        raise InputError(f"{source!r} holds the parts {', '.join(sorted(named))}; choose one, for instance split={min(named)}")
    elif heads and heads <= SPLITS:
        parts = [part[1:] if part[0] in SPLITS else part for part in parts]
    beside = [index for index in keep if len(parts[index]) == 1]
    below = [index for index in keep if len(parts[index]) > 1]
    if beside and below:
        raise InputError(
            f"{source!r} holds images both beside and inside sub-folders ({paths[beside[0]]}, {paths[below[0]]}); "
            "keep a flat folder, or one sub-folder per class"
        )
    items = tuple(Picture(str(paths[index]), openers[index]) for index in keep)
    labels = tuple(parts[index][0] for index in keep) if below and len({parts[i][0] for i in below}) > 1 else None
    return Pictures(items, labels)


def _zip(path: Path, split: str | None) -> Pictures:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"data {str(path)!r} is not a readable ZIP file ({error}); copy it again from its source") from error
    names = sorted(
        name
        for name in archive.namelist()
        if PurePosixPath(name).suffix.lower() in SUFFIXES
        and not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
    )
    if not names:
        raise InputError(f"data {str(path)!r} holds no images; supported are {', '.join(sorted(SUFFIXES))}")

    def opener(name: str) -> Callable[[], IO[bytes]]:
        def opened() -> IO[bytes]:
            if archive.getinfo(name).file_size > 2**28:
                raise OSError("larger than 256 MiB")
            return io.BytesIO(archive.read(name))

        return opened

    return _tree(str(path), [PurePosixPath(name) for name in names], [opener(name) for name in names], split)


def _numpy(path: Path, image_key: str | None, label_key: str | None) -> Arrays:
    try:
        if path.suffix.lower() == ".npy":
            images = np.load(path, mmap_mode="r", allow_pickle=False)
            if label_key is not None:
                raise InputError(f"label_key={label_key!r}: {str(path)!r} is one array; save images and labels as .npz")
            if images.ndim not in (3, 4):
                raise InputError(f"{str(path)!r} has shape {images.shape}; give (N, H, W), (N, H, W, C) or (N, C, H, W)")
            return Arrays(images, None)
        headers = _headers(path)
        holds = {key: f"{shape} {dtype}" for key, (shape, dtype) in headers.items()}
        stacks = [key for key, (shape, _) in headers.items() if len(shape) in (3, 4)]
        image_key = choose(str(path), "image_key", image_key, stacks, holds)
        shape, dtype = headers[image_key]
        if len(shape) not in (3, 4):
            raise InputError(f"image_key={image_key!r} has shape {shape}; give (N, H, W), (N, H, W, C) or (N, C, H, W)")
        check_memory(str(path), math.prod(shape) * dtype.itemsize, "save it as .npy and use --set data.size=64")
        fitting = [key for key, (size, kind) in headers.items() if size == shape[:1] and kind.kind in "iu"]
        if label_key is not None or fitting:
            label_key = choose(str(path), "label_key", label_key, fitting, holds)
        with np.load(path, allow_pickle=False) as data:
            return Arrays(data[image_key], None if label_key is None else data[label_key])
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise InputError(f"cannot read {str(path)!r} ({reason(error)}); copy it again from its source") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {str(path)!r} ({reason(error)}); save plain numbers with numpy.savez") from error


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of every array of an .npz file, from its headers alone."""
    result: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".npy"):
                with archive.open(name) as stream:
                    version = np.lib.format.read_magic(stream)
                    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                    shape, _, dtype = read(stream)
                if not dtype.hasobject:
                    result[name.removesuffix(".npy")] = (shape, dtype)
    return result


def choose(source: str, argument: str, given: str | None, fitting: Sequence[str], holds: Mapping[str, str]) -> str:
    """The key the user gave if `holds` (key → description) has it, else the only fitting one; InputError listing all keys."""
    listing = ", ".join(f"{key} {description}" for key, description in holds.items()) or "nothing"
    if given is not None:
        if given not in holds:
            raise InputError(f"{argument}={given!r} is not in {source!r}; it holds {listing}")
        return given
    if len(fitting) != 1:
        why = "several fit" if fitting else "nothing fits"
        raise InputError(f"{argument} is needed for {source!r} ({why}); it holds {listing}")
    return fitting[0]


def _idx(path: Path) -> Arrays:
    images = _idx_array(path)
    if images.ndim != 3:
        raise InputError(f"{str(path)!r} has shape {images.shape}; name the idx3 file that holds the images")
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    choices = [beside, beside.with_name(beside.name.removesuffix(".gz")), beside.with_name(beside.name + ".gz")]
    found = next((choice for choice in choices if choice != path and choice.is_file()), None)
    labels = None if found is None else _idx_array(found)
    if found is not None and labels is not None and labels.shape != images.shape[:1]:
        raise InputError(f"{str(found)!r} holds {labels.shape} labels for {len(images)} images; take both from one source")
    return Arrays(images, labels)


def _idx_array(path: Path) -> NDArray[Any]:
    """The array of an idx file: two zero bytes, type, number of axes, big-endian sizes, then the values row by row."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            head = stream.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_TYPES:
                raise InputError(f"{str(path)!r} is not an idx file (it begins with {head.hex()}); give the original file")
            dtype = np.dtype(_IDX_TYPES[head[2]])
            shape = tuple(int(size) for size in np.frombuffer(stream.read(4 * head[3]), ">u4"))
            size = math.prod(shape) * dtype.itemsize
            check_memory(str(path), size, "cut the file into parts")
            data = stream.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {str(path)!r} ({reason(error)}); copy it again from its source") from error
    if len(data) != size or len(shape) != head[3]:
        raise InputError(f"{str(path)!r} holds {len(data)} bytes where its head says {size}; copy it again from its source")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
