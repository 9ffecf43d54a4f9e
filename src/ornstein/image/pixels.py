"""Pixels: decoding files, resizing, cropping, grey and colour, finding the channel axis. Pillow does the work on use."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ornstein.files import InputError

T = TypeVar("T")
Size = tuple[int, int]
CROPS = ("center", "off")
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's own conversion to grey
_SWAPPED = {5, 6, 7, 8}  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Header:
    """What the head of an image file says: (height, width), grey or colour, and the dtype it decodes to."""

    size: Size
    grey: bool
    dtype: str


def _dtype(mode: str) -> str:
    if mode.startswith("I;16"):
        return "uint16"
    return "float32" if mode in ("I", "F") else "uint8"


def read_header(stream: IO[bytes]) -> Header:
    """The header of an encoded image, without decoding it; an error of Pillow's when the file is no image."""
    from PIL import Image

    with stream, Image.open(stream) as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION) in _SWAPPED
        grey = image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")
        return Header((width, height) if turned else (height, width), grey, _dtype(image.mode))


def decode(stream: IO[bytes], channels: int) -> NDArray[Any]:
    """One image (C, H, W), C = 1 or 3, uint8 (uint16 or float32 for such files); an error of Pillow's when it is damaged.

    The camera's orientation is applied, transparency is laid on white, and only the first picture of an animation is taken.
    """
    from PIL import Image, ImageOps

    with stream, Image.open(stream) as opened:
        image = ImageOps.exif_transpose(opened)
        dtype = _dtype(image.mode)
        if dtype != "uint8":
            return np.repeat(np.asarray(image).astype(dtype)[None], channels, axis=0)
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            overlay = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", overlay.size, "white"), overlay)
        if channels == 1:
            return np.array(image.convert("L"))[None]
        return np.ascontiguousarray(np.moveaxis(np.asarray(image.convert("RGB")), -1, 0))


def resize(image: NDArray[Any], size: Size, crop: str) -> NDArray[Any]:
    """One image (C, H, W) brought to size (H', W'), antialiased, its dtype and range kept.

    crop="center" keeps the aspect ratio: the largest centred part of the target's shape is used. crop="off" uses all of the
    image and changes the ratio if it must. Pillow's Hamming filter has no negative lobes, so no value leaves the range.
    """
    from PIL import Image

    height, width = image.shape[1:]
    if (height, width) == size:
        return image
    box = (0.0, 0.0, float(width), float(height))
    if crop == "center":
        scale = min(height / size[0], width / size[1])
        used_height, used_width = size[0] * scale, size[1] * scale
        left, top = (width - used_width) / 2, (height - used_height) / 2
        box = (max(0.0, left), max(0.0, top), min(float(width), left + used_width), min(float(height), top + used_height))
    exact = image.dtype == np.uint8
    planes = []
    for plane in image:
        source = Image.fromarray(np.ascontiguousarray(plane if exact else plane.astype(np.float32)))
        planes.append(np.asarray(source.resize((size[1], size[0]), Image.Resampling.HAMMING, box=box)))
    return _as(np.stack(planes), image.dtype)


def _as(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values in another dtype, rounded when it holds whole numbers."""
    return (np.rint(values) if dtype.kind in "iu" and values.dtype.kind == "f" else values).astype(dtype, copy=False)


def recolour(image: NDArray[Any], channels: int) -> NDArray[Any]:
    """One image (C, H, W) with 1 or 3 channels made grey (BT.601 luma) or colour (three equal planes)."""
    if len(image) == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=0)
    return _as(np.tensordot(_LUMA, image.astype(np.float64), axes=1)[None], image.dtype)


def channels_first(images: NDArray[Any]) -> NDArray[Any]:
    """A view (N, C, H, W) of (N, H, W), (N, H, W, C) or (N, C, H, W): of axes 1 and 3 the shorter one holds the channels."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4:
        raise InputError(f"images have shape {images.shape}; give (N, H, W), (N, H, W, C) or (N, C, H, W)")
    if images.shape[1] == images.shape[3]:
        raise InputError(f"images of shape {images.shape}: channels could be axis 1 or 3; save them as (N, H, W) or larger")
    return images if images.shape[1] < images.shape[3] else np.moveaxis(images, -1, 1)


def check_finite(images: NDArray[Any]) -> None:
    """InputError with the count and the first index when float images (N, ...) hold NaN or infinity."""
    if images.dtype.kind != "f":
        return
    count, first = 0, -1
    for index, image in enumerate(images):
        bad = image.size - int(np.count_nonzero(np.isfinite(image)))
        if bad and first < 0:
            first = index
        count += bad
    if count:
        raise InputError(f"the images hold {count} NaN or infinite values, first in image {first}; replace or remove them")


def progress(items: Sequence[T], text: str) -> Iterator[T]:
    """The items one by one, with a bar on stderr once they have taken more than two seconds."""
    from rich.console import Console
    from rich.progress import Progress

    began, bar, shown = time.monotonic(), Progress(console=Console(stderr=True), transient=True), False
    task = bar.add_task(text, total=len(items))
    try:
        for index, item in enumerate(items):
            if not shown and time.monotonic() - began > 2:
                bar.start()
                shown = True
            if shown:
                bar.update(task, completed=index)
            yield item
    finally:
        if shown:
            bar.stop()
