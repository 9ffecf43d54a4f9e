"""The data contract: what the numbers of a data set mean and how they become the numbers a network sees.

Layer 5. A contract is saved as `data.json` beside the weights, so that samples come back in the data's own range and units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ornstein.files import InputError

VERSION = 1
T = TypeVar("T")
_CHUNK = 2**22  # elements turned to float64 at a time, so that moments of large data need no second copy of it


@dataclass(frozen=True)
class Contract:
    """Shape, meaning and affine transform of one data set: encode(x) = (x − shift) / scale, channel by channel.

    shape     (C, *spatial) of one sample
    channels  C names
    units     C units, "" for none
    low, high declared range in the data's own units, or None
    levels    number of grey levels low, low + 1, …, high of integer data (256; 17 for the digits), None for continuous data
    shift     C numbers in the data's units
    scale     C numbers in the data's units, not zero
    bounded   whether low and high are hard limits; only then may a denoiser clip
    std       σ_data: standard deviation of the encoded training data over all elements, > 0
    classes   names of labels 0, 1, …, or None
    version   format version of data.json

    The constructor only stores; `checked` verifies, and both `to_json` and `from_json` call it.
    """

    shape: tuple[int, ...]
    channels: tuple[str, ...]
    units: tuple[str, ...]
    low: float | None
    high: float | None
    levels: int | None
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    bounded: bool
    std: float
    classes: tuple[str, ...] | None = None
    version: int = VERSION

    def checked(self) -> Contract:
        """Return self, or raise InputError naming the first field that contradicts the others."""
        if self.version != VERSION:
            _refuse("version", self.version, f"this ornstein reads version {VERSION}; use the one that wrote the file")
        if len(self.shape) < 1 or any(size < 1 for size in self.shape):
            _refuse("shape", self.shape, "give (channels, *spatial), all at least 1")
        for name in ("channels", "units", "shift", "scale"):
            if len(getattr(self, name)) != self.shape[0]:
                _refuse(name, getattr(self, name), f"give one entry for each of the {self.shape[0]} channels")
        if len(set(self.channels)) < len(self.channels):
            _refuse("channels", self.channels, "give every channel its own name")
        if not all(math.isfinite(value) for value in self.shift):
            _refuse("shift", self.shift, "every shift must be finite")
        if not all(math.isfinite(value) and value != 0 for value in self.scale):
            _refuse("scale", self.scale, "every scale must be finite and not zero")
        if not (math.isfinite(self.std) and self.std > 0):
            _refuse("std", self.std, "it must be finite and above 0")
        if (self.low is None) != (self.high is None):
            _refuse("low, high", (self.low, self.high), "give both or neither")
        low, high = self.low, self.high
        if low is not None and high is not None and not (math.isfinite(low) and math.isfinite(high) and low < high):
            _refuse("low, high", (low, high), "both must be finite, low below high")
        if self.levels is not None:
            if self.low is None or self.high is None:
                _refuse("levels", self.levels, "levels need a declared range: give low and high")
            if self.low != int(self.low) or self.high - self.low != self.levels - 1:
                _refuse("levels", self.levels, f"low {self.low} and high {self.high} must be whole, levels - 1 apart")
            if not -(2**15) <= self.low <= self.high < 2**16 or (self.low < 0 and self.high >= 2**15):
                _refuse("levels", self.levels, "quantised data must fit into 16 bits; declare it continuous (levels null)")
            if len(set(self.scale)) > 1:
                _refuse("scale", self.scale, "quantised data needs one scale for all channels")
        if self.bounded:
            if self.low is None:
                _refuse("bounded", self.bounded, "bounded data needs a declared range: give low and high")
            if len(set(zip(self.shift, self.scale, strict=True))) > 1:
                _refuse("shift", self.shift, "bounded data needs one shift and scale for all channels")
        if self.classes is not None and (len(self.classes) < 1 or len(set(self.classes)) < len(self.classes)):
            _refuse("classes", self.classes, "give every class its own name, or null")
        return self

    def _affine(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if x.ndim < len(self.shape) or x.shape[-len(self.shape)] != self.shape[0]:
            raise InputError(
                f"x has shape {tuple(x.shape)} but the data contract says (..., {', '.join(map(str, self.shape))}); "
                f"give {self.shape[0]} channels ({', '.join(self.channels)})"
            )
        # float64 input keeps its precision until the transform has removed a large offset
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        column = (self.shape[0], *[1] * (len(self.shape) - 1))
        shift = torch.tensor(self.shift, dtype=dtype, device=x.device).view(column)
        scale = torch.tensor(self.scale, dtype=dtype, device=x.device).view(column)
        return x.to(dtype), shift, scale

    def encode(self, x: Tensor) -> Tensor:
        """Model units (x − shift) / scale, float32, of x (..., C, *spatial) in the data's units; InputError on other channels."""
        values, shift, scale = self._affine(x)
        return ((values - shift) / scale).float()

    def decode(self, x: Tensor) -> Tensor:
        """The data's units x · scale + shift of x (..., C, *spatial) in model units; inverse of `encode`; nothing is clipped."""
        values, shift, scale = self._affine(x)
        return values * scale + shift

    def quantise(self, x: Tensor) -> NDArray[Any]:
        """Round and clamp x, in the data's units (after `decode`), to the declared levels.

        Returns an integer array of x's shape, uint8 or uint16 (int16 when low < 0). InputError for continuous data and NaN.
        """
        if self.levels is None or self.low is None or self.high is None:
            raise InputError(f"levels is {self.levels}: continuous data cannot be quantised; keep the floats")
        if torch.isnan(x).any():
            raise InputError(f"x holds {int(torch.isnan(x).sum())} NaN, which have no grey level; look for a diverged sampler")
        dtype = np.int16 if self.low < 0 else np.uint8 if self.high < 2**8 else np.uint16
        whole: NDArray[Any] = x.detach().cpu().double().round().clamp(self.low, self.high).numpy().astype(dtype)
        return whole

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The hard limits in model units, (−1, 1) for 8-bit images; None unless `bounded`: then nothing may be clipped."""
        if not self.bounded or self.low is None or self.high is None:
            return None
        ends = [(value - self.shift[0]) / self.scale[0] for value in (self.low, self.high)]
        return min(ends), max(ends)

    @property
    def bin_width(self) -> float | None:
        """Distance 1/|scale| of two grey levels in model units (2/255 for 8-bit images); None for continuous data."""
        return None if self.levels is None else 1.0 / abs(self.scale[0])

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON values for `ornstein.files.write_json`; InputError when the contract contradicts itself."""
        self.checked()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @staticmethod
    def from_json(value: object) -> Contract:
        """The contract of a dict from `ornstein.files.read_json`.

        InputError for an unknown or missing key, a wrong type (true is no number, "3" is no 3), and all that `checked` refuses.
        """
        if not isinstance(value, dict):
            raise InputError(f"data.json must hold a mapping, not {type(value).__name__}; write it with Contract.to_json")
        names = [field.name for field in fields(Contract)]
        if unknown := [key for key in value if key not in names]:
            raise InputError(f"data.json has the unknown key {unknown[0]!r}; the keys are {', '.join(names)}")
        if missing := [name for name in names if name not in value]:
            raise InputError(f"data.json lacks the key {missing[0]!r}; write it with Contract.to_json")
        classes = value["classes"]
        return Contract(
            shape=tuple(_typed("shape", item, int) for item in _sequence("shape", value["shape"])),
            channels=tuple(_typed("channels", item, str) for item in _sequence("channels", value["channels"])),
            units=tuple(_typed("units", item, str) for item in _sequence("units", value["units"])),
            low=None if value["low"] is None else _number("low", value["low"]),
            high=None if value["high"] is None else _number("high", value["high"]),
            levels=None if value["levels"] is None else _typed("levels", value["levels"], int),
            shift=tuple(_number("shift", item) for item in _sequence("shift", value["shift"])),
            scale=tuple(_number("scale", item) for item in _sequence("scale", value["scale"])),
            bounded=_typed("bounded", value["bounded"], bool),
            std=_number("std", value["std"]),
            classes=None if classes is None else tuple(_typed("classes", item, str) for item in _sequence("classes", classes)),
            version=_typed("version", value["version"], int),
        ).checked()


def _refuse(name: str, value: object, remedy: str) -> NoReturn:
    raise InputError(f"data contract: {name} = {value!r}; {remedy}")


def _typed(name: str, value: object, kind: type[T]) -> T:
    if type(value) is not kind:  # not isinstance: True would pass for 1
        raise InputError(f"data.json: {name} holds {value!r}, which is not {kind.__name__}; correct the file")
    return value


def _sequence(name: str, value: object) -> list[object]:
    return _typed(name, value, list)


def _number(name: str, value: object) -> float:
    return float(_typed(name, value, int) if type(value) is int else _typed(name, value, float))


def channel_moments(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance (population) of every channel of values (N, C, *spatial), each (C,) float64, chunk by chunk."""
    n, channels = values.shape[:2]
    step = max(1, _CHUNK // max(1, values[:1].size))
    count, mean, squares = 0, np.zeros(channels), np.zeros(channels)
    for start in range(0, n, step):
        part = values[start : start + step].astype(np.float64)
        part = np.moveaxis(part, 1, 0).reshape(channels, -1)
        size = part.shape[1]
        part_mean = part.mean(axis=1)
        delta = part_mean - mean
        total = count + size
        squares += ((part - part_mean[:, None]) ** 2).sum(axis=1) + delta**2 * (count * size / total)
        mean = mean + delta * (size / total)
        count = total
    return mean, squares / count


def fit(
    values: NDArray[Any],
    *,
    levels: int | None = None,
    low: float = 0.0,
    channels: tuple[str, ...] | None = None,
    units: tuple[str, ...] | None = None,
    classes: tuple[str, ...] | None = None,
) -> Contract:
    """The contract of training values (N, C, *spatial): the usual transform for their kind, σ_data measured.

    With `levels`, integer data low, …, low + levels − 1 goes to [−1, 1], bounded. Without, every channel is standardised by
    its own mean and standard deviation (a constant channel is only shifted), unbounded. Raises InputError for constant data.
    """
    count = values.shape[1]
    mean, variance = channel_moments(values)
    if not (variance.max() > 0 or np.ptp(mean) > 0):
        raise InputError(f"the data is constant (every value is {mean[0]:g}); there is nothing to learn, check the source")
    if levels is None:
        # rounding leaves a constant channel a variance of about (eps · mean)²; that is not a scale
        flat = variance <= (1e-7 * np.abs(mean)) ** 2 if values.dtype != np.float64 else variance <= (1e-14 * np.abs(mean)) ** 2
        if flat.all():
            raise InputError(f"the data is constant in every channel ({mean[0]:g} in the first); there is nothing to learn")
        shift, scale = mean, np.where(flat, 1.0, np.sqrt(variance))
    else:
        shift, scale = np.full(count, low + (levels - 1) / 2), np.full(count, (levels - 1) / 2)
    encoded_mean = (mean - shift) / scale
    std = math.sqrt(float((variance / scale**2 + (encoded_mean - encoded_mean.mean()) ** 2).mean()))
    return Contract(
        shape=tuple(int(size) for size in values.shape[1:]),
        channels=channels or tuple(f"channel {index}" for index in range(count)),
        units=units or ("",) * count,
        low=None if levels is None else float(low),
        high=None if levels is None else float(low + levels - 1),
        levels=levels,
        shift=tuple(shift.tolist()),
        scale=tuple(scale.tolist()),
        bounded=levels is not None,
        std=std,
        classes=classes,
    ).checked()
