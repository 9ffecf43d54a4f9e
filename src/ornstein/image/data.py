"""Image data: one call from a folder, an archive or an array file to checked images, labels and their data contract."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ornstein.contract import Contract, fit
from ornstein.files import InputError
from ornstein.image.pixels import (
    CROPS,
    Size,
    channels_first,
    check_finite,
    decode,
    progress,
    read_header,
    recolour,
    resize,
)
from ornstein.image.sources import SUFFIXES, Picture, Pictures, check_memory, find, opener, reason

_COLOURS = {1: ("grey",), 3: ("red", "green", "blue")}
# What Pillow and zipfile raise for a damaged file; MemoryError and interrupts are not among them.
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images with their contract.

    images    (N, C, H, W) in the data's own dtype and range
    labels    (N,) int64, indices into contract.classes, or None
    contract  shape, range, transform and σ_data; fitted on these images unless `with_contract` was used
    skipped   (name, reason) of every file that could not be read
    """

    images: NDArray[Any]
    labels: NDArray[np.int64] | None
    contract: Contract
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int] | NDArray[Any] | Tensor) -> dict[str, Tensor]:
        """Images at `indices` as {"x": float32 (B, C, H, W) in the data's own range[, "label": int64 (B,)]}; not encoded."""
        chosen = np.asarray(indices, dtype=np.int64)
        result = {"x": torch.from_numpy(self.images[chosen].astype(np.float32))}
        if self.labels is not None:
            result["label"] = torch.from_numpy(self.labels[chosen])
        return result

    def require_labels(self) -> NDArray[np.int64]:
        """The labels (N,) int64; InputError when the data has none."""
        if self.labels is None:
            raise InputError("the data has no labels; put the images into one sub-folder per class, or name label_key")
        return self.labels

    def with_contract(self, contract: Contract) -> ImageData:
        """The same images under another contract (a trained model's); InputError when the shapes differ."""
        if contract.shape != self.contract.shape:
            raise InputError(
                f"the images have shape {self.contract.shape} but the contract says {contract.shape}; "
                f"load them with size={contract.shape[-1]} and channels={contract.shape[0]}"
            )
        return replace(self, contract=contract)

    def refit(self) -> ImageData:
        """The same images with the contract's transform and σ_data measured on them alone; InputError when constant."""
        old = self.contract
        return replace(
            self,
            contract=fit(
                self.images, levels=old.levels, low=old.low or 0.0, channels=old.channels, units=old.units, classes=old.classes
            ),
        )

    def take(self, indices: NDArray[np.int64]) -> ImageData:
        """The images at `indices`, contract unchanged."""
        return replace(self, images=self.images[indices], labels=None if self.labels is None else self.labels[indices])

    def split(self, fraction: float, seed: int) -> tuple[ImageData, ImageData]:
        """Two disjoint parts (training, validation); `fraction` is the share of TRAINING images (0.8 → 80 %).

        The same seed gives the same parts. With labels every class is divided in the same ratio, to an image or two. Both
        parts carry the contract fitted on the training part alone. InputError when a part would have fewer than one image.
        """
        count = round(fraction * len(self)) if 0.0 < fraction < 1.0 else 0
        if not 1 <= count < len(self):
            raise InputError(
                f"fraction={fraction}: of {len(self)} images {count} would be for training; give one between 0 and 1"
            )
        generator = np.random.default_rng(seed)
        order = generator.permutation(len(self))
        labels = np.zeros(len(self), np.int64) if self.labels is None else self.labels
        rank = np.empty(len(self))
        for label in np.unique(labels):
            members = order[labels[order] == label]
            # a place in (0, 1) within the class: cutting all classes at one height divides each in the same ratio
            rank[members] = (np.arange(len(members)) + generator.uniform()) / len(members)
        chosen = np.argsort(rank, kind="stable")
        training = self.take(np.sort(chosen[:count])).refit()
        return training, self.take(np.sort(chosen[count:])).with_contract(training.contract)


def load_images(
    source: str | os.PathLike[str],
    *,
    size: int | Size | None = None,
    channels: int | None = None,
    crop: str = "center",
    label_key: str | None = None,
    image_key: str | None = None,
    strict: bool = False,
    split: str | None = None,
) -> ImageData:
    """Load all images of `source` into memory, checked, with labels if it has any, and fit the data contract.

    source     "digits" (scikit-learn's 8×8 digits, 17 levels), a folder or ZIP of images (sub-folders are classes), .npz or
               .npy, an idx file or a folder of them (.gz too), a folder of Hugging Face `save_to_disk`, parquet, arrow or
               json files, "hf:NAME"; a folder that holds exactly one such file stands for it
    size       side in pixels, or (height, width); None keeps the size, which must then be the same for all
    channels   1 (grey) or 3 (colour); None keeps what is there (colour when a folder mixes both)
    crop       "center" keeps the aspect ratio and cuts the rest when resizing, "off" squeezes
    label_key, image_key   names of arrays or columns, needed only when the choice is not unique
    strict     raise at the first unreadable file instead of going on and listing it in `skipped`
    split      a named part (train, test) of a data set that has several

    8-bit data keeps uint8 and goes to [−1, 1] in model units, 16-bit likewise, floats are standardised by channel. Pillow
    reads 16-bit colour files as 8 bits. Raises InputError, one line each, for every kind of unusable data.
    """
    if channels not in (None, 1, 3):
        raise InputError(f"channels={channels} is not supported; give 1 (grey), 3 (colour) or leave it out")
    if crop not in CROPS:
        raise InputError(f"crop={crop!r} is unknown; give one of {', '.join(CROPS)}")
    target = (size, size) if isinstance(size, int) else None if size is None else (int(size[0]), int(size[1]))
    if target is not None and min(target) < 1:
        raise InputError(f"size={size} is not a size in pixels; give at least 1")
    name = os.fspath(source)
    found = find(source, image_key=image_key, label_key=label_key, split=split)
    if isinstance(found, Pictures):
        images, kept, skipped = _decoded(name, found, target, channels, crop, strict)
        labels = None if found.labels is None else np.asarray(found.labels)
        indices, classes = _classes(name, labels, found.classes)
        return from_arrays(images, None if indices is None else indices[kept], classes=classes, skipped=skipped)
    images, levels = _fitted(name, found.images, target, channels, crop), found.levels
    indices, classes = _classes(name, found.labels, found.classes)
    return from_arrays(images, indices, classes=classes, levels=levels)


def read_images(source: str | os.PathLike[str], channels: int | None = None) -> Tensor:
    """Images (n, C, H, W) as they are stored, float32 in their own range: one file, or whatever `load_images` takes.

    For inputs and measurements, from which nothing is learned; NaN may mark what was not measured. InputError for what cannot
    be read.
    """
    name = os.fspath(source)
    single = Path(source).suffix.lower() in SUFFIXES and Path(source).is_file()
    found = Pictures((Picture(name, opener(Path(source))),), None) if single else find(source)
    if isinstance(found, Pictures):
        images, _, _ = _decoded(name, found, None, channels, "center", strict=True)
    else:
        images = _fitted(name, found.images, None, channels, "center")
    return torch.from_numpy(images.astype(np.float32))


def from_arrays(
    images: NDArray[Any],
    labels: NDArray[np.int64] | None = None,
    *,
    classes: tuple[str, ...] | None = None,
    levels: int | None = None,
    skipped: tuple[tuple[str, str], ...] = (),
) -> ImageData:
    """ImageData of images (N, C, H, W) and labels (N,) 0, 1, …; the contract is fitted on all of them.

    Whole numbers count as quantised with 2^8 or 2^16 levels, or `levels` from 0 on. Raises InputError for fewer than two
    images, NaN or infinity, labels of another length, constant data.
    """
    if images.ndim != 4:
        raise InputError(f"images have shape {images.shape}; give (N, C, H, W)")
    if len(images) < 2:
        raise InputError(f"the data has {len(images)} image(s); at least 2 are needed to learn anything")
    if labels is not None and labels.shape != images.shape[:1]:
        raise InputError(f"labels have shape {labels.shape} for {len(images)} images; give one label per image")
    check_finite(images)
    images, found, low = _quantised(images)
    names = _COLOURS.get(images.shape[1])
    if labels is not None and classes is None:
        classes = tuple(str(index) for index in range(int(labels.max()) + 1))
    contract = fit(images, levels=levels or found, low=low, channels=names, classes=classes)
    return ImageData(images, None if labels is None else labels.astype(np.int64), contract, skipped)


def _quantised(images: NDArray[Any]) -> tuple[NDArray[Any], int | None, float]:
    """Images in the dtype to keep, their number of levels (None for floats) and the lowest level."""
    kind = images.dtype
    if kind.kind == "f":
        return images, None, 0.0
    if kind == np.bool_:
        return images.astype(np.uint8), 2, 0.0
    if kind in (np.uint8, np.uint16):
        return images, 2 ** (8 * kind.itemsize), 0.0
    if kind.kind not in "iu":
        raise InputError(f"images have dtype {kind}; give whole numbers or floats")
    low, high = int(images.min()), int(images.max())
    for dtype in (np.uint8, np.uint16, np.int8, np.int16):
        limits = np.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            return images.astype(dtype, copy=False), int(limits.max) - int(limits.min) + 1, float(limits.min)
    raise InputError(f"images hold whole numbers from {low} to {high}, more than 16 bits; save them as float32")


def _classes(
    source: str, labels: NDArray[Any] | None, classes: tuple[str, ...] | None
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Labels as indices 0, 1, … into class names: declared ones, or the sorted distinct values (by number if they are)."""
    if labels is None:
        return None, None
    if labels.ndim != 1 or labels.dtype.kind not in "iubU":
        raise InputError(f"labels of {source!r} have shape {labels.shape} and dtype {labels.dtype}; give whole numbers or names")
    if classes is not None:
        if labels.size and (labels.min() < 0 or labels.max() >= len(classes)):
            raise InputError(f"labels of {source!r} go up to {labels.max()} but {len(classes)} classes are declared")
        return labels.astype(np.int64), classes
    values, inverse = np.unique(labels, return_inverse=True)
    names = [str(value) for value in values]
    numeric = all(name.isdecimal() for name in names)
    order = sorted(range(len(names)), key=lambda index: int(names[index]) if numeric else index)
    position = np.empty(len(names), np.int64)
    position[order] = np.arange(len(names))
    return position[inverse], tuple(names[index] for index in order)


def _fitted(name: str, images: NDArray[Any], size: Size | None, channels: int | None, crop: str) -> NDArray[Any]:
    """Array images as (N, C, H, W), resized and recoloured one by one (the source may be larger than memory)."""
    images = channels_first(images)
    count, present, *shape = images.shape
    if images.dtype.kind not in "biuf":
        raise InputError(f"images of {name!r} have dtype {images.dtype}; give whole numbers or floats")
    wanted = present if channels is None else channels
    if wanted != present and present not in (1, 3):
        raise InputError(f"channels={channels}: images of {name!r} have {present} channels; only 1 and 3 can be converted")
    final = tuple(shape) if size is None else size
    check_memory(name, count * wanted * final[0] * final[1] * images.dtype.itemsize)
    if (wanted, *final) == images.shape[1:]:
        return np.ascontiguousarray(images)
    kind = np.dtype(np.uint8) if images.dtype == np.bool_ else images.dtype
    if images.dtype == np.bool_:
        images = images.astype(np.uint8)
    check_finite(images)
    result = np.empty((count, wanted, *final), kind)
    for index in progress(range(count), "resizing"):
        result[index] = resize(recolour(images[index], wanted), (final[0], final[1]), crop)
    return result


def _decoded(
    name: str, found: Pictures, size: Size | None, channels: int | None, crop: str, strict: bool
) -> tuple[NDArray[Any], list[int], tuple[tuple[str, str], ...]]:
    """Decode files into one array: first all heads (sizes, kinds, memory), so that bad input costs seconds; then all pixels."""
    skipped: list[tuple[str, str]] = []

    def skip(index: int, error: BaseException) -> None:
        why = reason(error)
        if strict:
            raise InputError(f"cannot read image {found.items[index].name!r} of {name!r} ({why}); remove it or leave strict out")
        skipped.append((found.items[index].name, why))

    heads = {}
    for index in progress(range(len(found.items)), "looking"):
        try:
            heads[index] = read_header(found.items[index].open())
        except _UNREADABLE as error:
            skip(index, error)
    if not heads:
        first = f" (first: {skipped[0][0]}: {skipped[0][1]})" if skipped else ""
        raise InputError(f"none of the {len(found.items)} images of {name!r} could be read{first}; check the files")
    first_index, first_head = next(iter(heads.items()))
    for index, head in heads.items():
        pair = f"{found.items[first_index].name!r} and {found.items[index].name!r}"
        if head.dtype != first_head.dtype:
            raise InputError(f"{name!r} mixes {first_head.dtype} and {head.dtype} images ({pair}); convert them to one kind")
        if size is None and head.size != first_head.size:
            (h1, w1), (h2, w2) = first_head.size, head.size
            raise InputError(
                f"{name!r} mixes sizes: {pair} have {w1}x{h1} and {w2}x{h2} pixels; choose one with --set data.size=64"
            )
    wanted = channels or (1 if all(head.grey for head in heads.values()) else 3)
    final = size or first_head.size
    check_memory(name, len(heads) * wanted * final[0] * final[1] * np.dtype(first_head.dtype).itemsize)
    images = np.empty((len(heads), wanted, *final), first_head.dtype)
    kept: list[int] = []
    for index in progress(list(heads), "loading"):
        try:
            images[len(kept)] = resize(decode(found.items[index].open(), wanted), final, crop)
        except _UNREADABLE as error:
            skip(index, error)
        else:
            kept.append(index)
    if not kept:
        raise InputError(f"none of the {len(found.items)} images of {name!r} could be decoded; check the files")
    return images[: len(kept)], kept, tuple(skipped)


def describe(data: ImageData) -> str:
    """One paragraph for the user: count, shape, dtype, range, classes, transform, skipped files."""
    contract, (count, height, width) = data.contract, data.contract.shape
    levels = "continuous" if contract.levels is None else f"{contract.levels} levels"
    transform = "mapped to [-1, 1]" if contract.bounded else "standardised by channel"
    text = (
        f"{len(data):,} images of {width}x{height} pixels, "
        f"{count} channel{'s' if count > 1 else ''} ({', '.join(contract.channels)}), "
        f"{data.images.dtype} from {data.images.min():g} to {data.images.max():g} ({levels}), {transform}, "
        f"standard deviation {contract.std:.3g} in model units"
    )
    if data.labels is not None and contract.classes is not None:
        sizes = np.bincount(data.labels, minlength=len(contract.classes))
        names = ", ".join(contract.classes[:10]) + (", …" if len(contract.classes) > 10 else "")
        text += f"; {len(contract.classes)} classes ({names}) with {sizes.min():,} to {sizes.max():,} images each"
    else:
        text += "; no labels"
    if data.skipped:
        listed = ", ".join(f"{name} ({why})" for name, why in data.skipped[:3]) + (", …" if len(data.skipped) > 3 else "")
        text += f"; {len(data.skipped)} unreadable file{'s' if len(data.skipped) > 1 else ''} skipped: {listed}"
    return text + "."
