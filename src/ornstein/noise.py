"""Randomness as an argument: normals keyed by (seed, stream, step, sample index).

A `Noise` holds a seed and nothing else. What it returns for sample `i` depends on the key alone, never on the batch
size, on the order in which chunks are drawn, or on what was drawn before. The generator is Philox-4x64
(Salmon et al. 2011): a (seed, stream, step) gives the 128-bit key and the sample's index gives the counter, so a whole
batch is one call. Numbers are drawn on the CPU, so that every device sees the same ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_BLOCK = 8  # one Philox block is 4 words of 64 bits, that is 8 of 32 bits
_CACHED = 49152  # numbers drawn at a time, so that the intermediate arrays stay in the processor's cache
_BROWNIAN_DEPTH = 26  # the bridge is linear below 2^-26: the variance it misses is under 4e-9


@dataclass(frozen=True)
class Noise:
    """A seed that is asked for normals, uniforms, permutations and Brownian increments.

    `seed` is any integer. Two `Noise` of the same seed are equal and interchangeable; `stream` separates uses
    (start noise, step noise, training times), `step` separates moments within a use.
    """

    seed: int

    def key(self, stream: str, step: int = 0) -> int:
        """The 128-bit integer that a (seed, stream, step) stands for; BLAKE2b, hence without collisions in practice."""
        return int.from_bytes(hashlib.blake2b(f"{self.seed}/{stream}/{step}".encode(), digest_size=16).digest(), "little")

    def _words(self, samples: int, numbers: int, stream: str, step: int, first: int) -> np.ndarray:
        """Uniform 32-bit words (samples, numbers), `numbers` a multiple of 8; row i belongs to sample first + i."""
        key = self.key(stream, step)
        blocks = numbers // _BLOCK
        generator = np.random.Philox(key=np.array([key & (2**64 - 1), key >> 64], np.uint64), counter=first * blocks)
        return generator.random_raw(samples * blocks * 4).astype("<u8", copy=False).view("<u4").reshape(samples, numbers)

    def normal(
        self,
        shape: Sequence[int],
        *,
        stream: str = "x",
        step: int = 0,
        first: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Standard normals of `shape` = (samples, ...); row i is a function of (seed, stream, step, first + i) alone.

        Box-Muller on 32-bit uniforms: |z| < 6.77. float64 and float32 share their random bits and agree to 1e-6 root mean
        square (to 2.5e-4 where the radius is nearly 0).
        Source: Box and Muller 1958.
        """
        samples, numbers = _layout(shape)
        padded = -(-numbers // _BLOCK) * _BLOCK
        out = np.empty((samples, padded), np.float64 if dtype == torch.float64 else np.float32)
        rows = max(1, _CACHED // padded) if padded else samples
        for start in range(0, samples, rows):
            part = out[start : start + rows]
            _box_muller(self._words(len(part), padded, stream, step, first + start), part)
        return torch.from_numpy(out)[:, :numbers].reshape(tuple(shape)).to(device=device, dtype=dtype)

    def uniform(
        self,
        shape: Sequence[int],
        *,
        stream: str = "u",
        step: int = 0,
        first: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """Uniforms in the open interval (0, 1), of `shape` = (samples, ...), keyed as in `normal`."""
        samples, numbers = _layout(shape)
        words = self._words(samples, -(-numbers // _BLOCK) * _BLOCK, stream, step, first)[:, :numbers]
        u = torch.from_numpy((words + 0.5) * 2.0**-32).reshape(tuple(shape)).to(dtype)
        limits = torch.finfo(dtype)  # a narrower dtype would round the ends to 0 and 1
        return u.clamp(min=limits.tiny, max=1 - limits.eps / 2)

    def permutation(self, n: int, *, stream: str = "order", step: int = 0) -> Tensor:
        """A permutation of 0 … n-1 (int64), for data order and splits."""
        return torch.from_numpy(np.random.Generator(np.random.PCG64(self.key(stream, step))).permutation(n))

    def brownian(
        self,
        shape: Sequence[int],
        t: float | Tensor,
        *,
        stream: str = "w",
        first: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """Brownian motion W(t) on [0, 1] with W(0) = 0, of `shape`; t is a number or one per sample.

        The path is fixed by (seed, stream, sample): W is found by halving [0, 1] towards t, each midpoint by its bridge
        W(m) = (W(l) + W(r))/2 + ½·√(r - l)·z. So any set of times, nested or rejected, sees one and the same path.
        Source: Gaines and Lyons 1997; Li et al. 2020, arXiv 2001.01328.
        """
        times = torch.as_tensor(t, dtype=torch.float64)
        if not bool(((times >= 0) & (times <= 1)).all()):
            raise ValueError(f"t={t} leaves [0, 1], the interval on which the Brownian path lives")
        if times.ndim and times.shape != (shape[0],):
            raise ValueError(f"t has shape {tuple(times.shape)} for {shape[0]} samples; give a number or one per sample")
        if times.ndim == 0:
            return self._bridge(tuple(shape), float(times), stream, first, dtype)
        rows = [self._bridge((1, *shape[1:]), float(time), stream, first + i, dtype) for i, time in enumerate(times)]
        return torch.cat(rows)

    def _bridge(self, shape: tuple[int, ...], t: float, stream: str, first: int, dtype: torch.dtype) -> Tensor:
        left, right = torch.zeros(shape, dtype=dtype), self.normal(shape, stream=stream, first=first, dtype=dtype)
        low, width, node = 0.0, 1.0, 1
        for _ in range(_BROWNIAN_DEPTH):
            if t == low:
                return left
            if t == low + width:
                return right
            z = self.normal(shape, stream=stream, step=node, first=first, dtype=dtype)
            middle = (left + right) / 2 + math.sqrt(width) / 2 * z
            width /= 2
            if t < low + width:
                right, node = middle, 2 * node
            else:
                left, low, node = middle, low + width, 2 * node + 1
        return left + (right - left) * ((t - low) / width)

    def increments(
        self,
        shape: Sequence[int],
        t: float | Tensor,
        s: float | Tensor,
        *,
        stream: str = "w",
        first: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """W(s) - W(t) on the path of `brownian`; increments over [t, m] and [m, s] add up to that over [t, s]."""
        return self.brownian(shape, s, stream=stream, first=first, dtype=dtype) - self.brownian(
            shape, t, stream=stream, first=first, dtype=dtype
        )


def _box_muller(words: np.ndarray, out: np.ndarray) -> None:
    """Normals from uniform words, both (samples, numbers): the first half of a row gives radii, the second angles."""
    kind, half = out.dtype.type, out.shape[1] // 2
    radius: npt.NDArray[np.floating] = words[:, :half].astype(kind)
    radius += kind(0.5)
    radius *= kind(2.0**-32)
    np.log(radius, out=radius)
    radius *= kind(-2)
    np.sqrt(radius, out=radius)
    angle: npt.NDArray[np.floating] = words[:, half:].astype(kind)
    angle *= kind(2 * math.pi * 2.0**-32)
    np.cos(angle, out=out[:, :half])
    np.sin(angle, out=out[:, half:])
    out[:, :half] *= radius
    out[:, half:] *= radius


def _layout(shape: Sequence[int]) -> tuple[int, int]:
    if len(shape) == 0:
        raise ValueError("shape=() has no sample axis; give (samples, ...)")
    return int(shape[0]), math.prod(int(n) for n in shape[1:])
