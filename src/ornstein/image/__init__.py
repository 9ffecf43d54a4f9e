"""Images: data and its contract, and one file per paper."""

from ornstein.image.automatic import suggest
from ornstein.image.data import ImageData, describe, from_arrays, load_images

__all__ = ["ImageData", "describe", "from_arrays", "load_images", "suggest"]
