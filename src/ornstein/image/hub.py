"""Hugging Face data sets as a source of images: from the hub, saved to disk, or bare parquet, arrow and json files.

The library is imported on use. Data sets are tables with declared column types; no loading script is ever run.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ornstein.files import InputError, read_json
from ornstein.image.sources import SPLITS, Arrays, Picture, Pictures, choose, no_split, reason


def from_hub(source: str, image_key: str | None, label_key: str | None, split: str | None) -> Arrays | Pictures:
    """Images of a data set `hf:NAME` of the Hugging Face hub (or its local cache); InputError when it cannot be had."""
    import datasets
    import huggingface_hub

    name = source.removeprefix("hf:")
    cached = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
    try:
        if not cached.exists():  # ask once before the client spends half a minute on retries
            huggingface_hub.HfApi().dataset_info(name, timeout=10)
        loaded = datasets.load_dataset(name, split=split)
    except Exception as error:  # the client raises a dozen unrelated kinds; all mean that the data cannot be had
        raise InputError(
            f"cannot load {source!r} from the Hugging Face hub ({reason(error)}); check the name and the network, or give a path"
        ) from error
    return _columns(source, _one_split(source, loaded, split), image_key, label_key)


def from_saved(path: Path, image_key: str | None, label_key: str | None, split: str | None) -> Arrays | Pictures:
    """Images of a folder written by `save_to_disk` of Hugging Face datasets; InputError when it is damaged."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        raise InputError(f"cannot read the data set saved at {str(path)!r} ({reason(error)}); save it again") from error
    if not isinstance(loaded, datasets.DatasetDict):
        no_split(path, split)
    return _columns(str(path), _one_split(str(path), loaded, split), image_key, label_key)


def _one_split(source: str, loaded: Any, split: str | None) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    name = split or ("train" if "train" in loaded else next(iter(loaded)) if len(loaded) == 1 else None)
    if name not in loaded:
        raise InputError(f"split={split!r}: {source!r} has the parts {', '.join(loaded)}; choose one with split=NAME")
    return loaded[name]


def from_tables(
    path: Path, files: Sequence[Path], image_key: str | None, label_key: str | None, split: str | None
) -> Arrays | Pictures:
    """Images of parquet, arrow, json or jsonl files; InputError when they cannot be read or hold no images."""
    import datasets

    if split is not None:
        files = [file for file in files if file.name.startswith(split)]
        if not files:
            raise InputError(f"split={split!r}: no file of {str(path)!r} begins with it; leave split out")
    elif len({head for file in files for head in SPLITS if file.name.startswith(f"{head}-")}) > 1:
        raise InputError(f"{str(path)!r} holds several parts ({files[0].name}, {files[-1].name}); choose one with split=train")
    try:
        parts = [_table(file) for file in files]
        table = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    except InputError:
        raise
    except Exception as error:  # pyarrow, json and datasets each raise their own kinds for a damaged file
        raise InputError(f"cannot read {str(path)!r} as a table ({reason(error)}); check the files") from error
    return _columns(str(path), table, image_key, label_key)


def _table(file: Path) -> Any:
    import datasets
    import pyarrow.parquet  # type: ignore[import-untyped]

    if file.suffix == ".parquet":
        # read directly: datasets would first copy the file into a cache in the user's home
        return datasets.Dataset(datasets.table.InMemoryTable(pyarrow.parquet.read_table(file)))
    if file.suffix == ".arrow":
        return datasets.Dataset.from_file(str(file))
    if file.suffix == ".jsonl":
        return datasets.Dataset.from_list([json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()])
    rows = read_json(file)
    return datasets.Dataset.from_list(rows) if isinstance(rows, list) else datasets.Dataset.from_dict(rows)


def _columns(source: str, table: Any, image_key: str | None, label_key: str | None) -> Arrays | Pictures:
    """Choose the image and the label column of a data set by their declared types."""
    import datasets

    features = table.features
    holds = {name: type(kind).__name__ for name, kind in features.items()}
    encoded = [name for name, kind in features.items() if isinstance(kind, datasets.Image) or _is_file(kind)]
    nested = [name for name, kind in features.items() if not _is_file(kind) and _deep(kind)]
    image_key = choose(source, "image_key", image_key, encoded or nested, holds)
    named = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    whole = [name for name, kind in features.items() if isinstance(kind, datasets.Value) and "int" in kind.dtype]
    if label_key is not None or named or whole:
        label_key = choose(source, "label_key", label_key, named or whole, holds)
    labels = None if label_key is None else list(table[label_key])
    classes = tuple(features[label_key].names) if label_key in named else None
    if labels is not None and (None in labels or (classes is not None and min(labels, default=0) < 0)):
        raise InputError(f"label_key={label_key!r}: {source!r} has rows without a label; remove them or choose another column")
    if image_key in encoded:
        if isinstance(features[image_key], datasets.Image):
            table = table.cast_column(image_key, datasets.Image(decode=False))
        items = tuple(Picture(f"row {index}", _cell(table, image_key, index)) for index in range(len(table)))
        return Pictures(items, None if labels is None else tuple(labels), classes)
    images = np.asarray(table.with_format("numpy")[:][image_key])
    if images.ndim not in (3, 4) or images.dtype.kind not in "biuf":
        raise InputError(f"image_key={image_key!r} of {source!r} is no array of equal images; columns: {', '.join(holds)}")
    return Arrays(images, None if labels is None else np.asarray(labels), classes)


def _is_file(kind: object) -> bool:
    return isinstance(kind, dict) and "bytes" in kind


def _deep(kind: object) -> bool:
    return hasattr(kind, "shape") or hasattr(getattr(kind, "feature", None), "feature")


def _cell(table: Any, key: str, index: int) -> Callable[[], IO[bytes]]:
    def opened() -> IO[bytes]:
        cell = table[index][key]
        if cell is None:
            raise OSError("no image in this row")
        return io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else open(cell["path"], "rb")

    return opened
