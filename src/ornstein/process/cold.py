"""Cold processes: data are destroyed by blur, masks, pixels, snow, loss of colour, or anything with a severity, without moments.

    x_s = D(x0, s, eps)        s = 0 … T        D(x0, 0, eps) = x0        t = s/T

`eps`, standard normals like x0, is the random state of one datum: where the mask lies, which flakes fall. Two calls of D for one
datum take the same eps; deterministic degradations do not look at it. How such a process is reversed says `ornstein.image.cold`.
Source: Bansal et al. 2022, arXiv 2208.09392.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from ornstein.noise import Noise
from ornstein.operator import Constant, Operator, desaturate
from ornstein.operator.filters import Weights, filter_matrix, gaussian_taps
from ornstein.process.continuous import VP, Cosine
from ornstein.process.gaussian import GaussianProcess, Process, Time, align

Level = int | Tensor
"""A severity s = 0 … T, one for all or one per sample, (B,) whole numbers."""


class Degradation(Process):
    """D(x0, s, eps) with severities s = 0 … `steps`; `random` tells whether eps matters, `linear` whether `undo` inverts it.

    A subclass gives `steps` and `_degrade`, which is called for s ≥ 1 (rows of s = 0 are put back as they were).
    """

    steps: int
    random: bool = False
    linear: bool = False

    @abstractmethod
    def _degrade(self, x0: Tensor, s: Tensor, eps: Tensor | None) -> Tensor:
        """D for x0 (B, *) and s (B,) int64 on the CPU."""

    def degrade(self, x0: Tensor, s: Level, eps: Tensor | None = None) -> Tensor:
        """D(x0, s, eps) like x0 (B, *); ValueError for s outside 0 … steps, or a random degradation without eps like x0."""
        levels = torch.as_tensor(s, device="cpu").expand(len(x0))
        if levels.is_floating_point() or bool(((levels < 0) | (levels > self.steps)).any()):
            raise ValueError(f"s={s} must be whole numbers from 0 to {self.steps}, the steps of {type(self).__name__}")
        if not bool(levels.any()):
            return x0
        if self.random and (eps is None or eps.shape != x0.shape):
            have = None if eps is None else tuple(eps.shape)
            raise ValueError(f"eps={have} must be normals of shape {tuple(x0.shape)}: they say what happens to each datum")
        with torch.autocast(x0.device.type, enabled=False):  # training in half precision must not round what is undone later
            degraded = self._degrade(x0, levels, eps)
        return degraded if bool(levels.all()) else torch.where(align(levels == 0, x0).bool(), x0, degraded)

    def undo(self, x_s: Tensor, s: Level, noise_std: float) -> Tensor:
        """What x_s (B, *) says of x0 by itself, without a network: x_s, unless the degradation is `linear`.

        There it is the regularised inverse, argmin |D(x, s) - x_s|² + noise_std²|x|²: what noise of `noise_std` would drown is 0.
        """
        return x_s

    def level(self, t: Time) -> Tensor:
        """The severity nearest to t·steps, int64 of t's shape; 0 for None, clean data."""
        times = torch.as_tensor(0.0 if t is None else t, dtype=torch.float64, device="cpu")
        return (times * self.steps).round().long()

    def corrupt(self, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
        """D(x0, s, eps) at the severity of t in [0, 1]."""
        return self.degrade(x0, self.level(t), eps)

    def prior(self, shape: Sequence[int], noise: Noise, *, first: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """ValueError: where a cold process ends depends on the data; see `ornstein.image.cold.EndState`."""
        raise ValueError(f"{type(self).__name__} has no end law without data; fit one: ornstein.image.cold.EndState")

    def state(self, shape: Sequence[int], noise: Noise, *, step: int = 0, first: int = 0) -> Tensor | None:
        """The random states eps of `shape` = (samples, …), keyed by stream "state"; None if the degradation is not random."""
        return noise.normal(shape, stream="state", step=step, first=first) if self.random else None

    def infer(self, x_s: Tensor, x0: Tensor, s: int, eps: Tensor | None) -> Tensor | None:
        """The state that a reverse step from x_s goes on with, if x0 is the datum: the given eps, unless x_s tells it."""
        return eps


class _Axes(Degradation):
    """A linear degradation that acts along single axes: x_s = M_s x, a matrix for each axis."""

    linear = True

    @abstractmethod
    def _maps(self, shape: tuple[int, ...]) -> dict[int, Tensor]:
        """For some axes of data of `shape`, counted from the end, the matrices M_0 … M_T, (T + 1, n, n) float64."""

    def _degrade(self, x0: Tensor, s: Tensor, eps: Tensor | None) -> Tensor:
        x = x0
        for axis, matrices in self._maps(tuple(x0.shape[1:])).items():
            x = _along(axis, matrices[s], x)
        return x

    def undo(self, x_s: Tensor, s: Level, noise_std: float) -> Tensor:
        """The regularised inverse in the singular vectors of the maps, U diag(a) Vᵀ: a / (a² + noise_std²) for each product a."""
        levels = torch.as_tensor(s, device="cpu").expand(len(x_s))
        factors = _decomposed(self, tuple(x_s.shape[1:]))
        x, gains = x_s, torch.ones(len(x_s), *[1] * (x_s.ndim - 1), dtype=torch.float64)
        with torch.autocast(x_s.device.type, enabled=False):
            for axis, (u, values, _) in factors.items():
                x = _along(axis, u[levels].mT, x)
                along = [len(x_s)] + [1] * (x_s.ndim - 1)
                along[axis] = values.shape[-1]
                gains = gains * values[levels].reshape(along)
            gains = gains / (gains.square() + max(noise_std, 1e-7) ** 2)  # float32 data say no more, whatever their noise
            x = x * gains.to(x)
            for axis, (_, _, v) in factors.items():
                x = _along(axis, v[levels].mT, x)
        return x


def _along(axis: int, matrices: Tensor, x: Tensor) -> Tensor:
    """x (B, *) times the matrices (B, n, n), each along an axis of its datum."""
    chosen = matrices.to(x).reshape(len(x), *[1] * (x.ndim - 3), *matrices.shape[1:])
    return (x.movedim(axis, -1) @ chosen.mT).movedim(-1, axis)


@lru_cache(maxsize=16)
def _decomposed(degradation: _Axes, shape: tuple[int, ...]) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """For each axis U (T + 1, n, n), the singular values (T + 1, n) and Vᵀ of a degradation's maps."""
    maps = degradation._maps(shape)
    return {axis: tuple(torch.linalg.svd(matrices)) for axis, matrices in maps.items()}


GROWTH: dict[str, Callable[[float, float, int], float]] = {
    "constant": lambda std, rate, i: std,
    "linear": lambda std, rate, i: std + rate * i,
    "exponential": lambda std, rate, i: std * math.exp(rate * i),
}
"""The standard deviation of the i-th blur, i = 1 … T."""


@dataclass(frozen=True)
class GaussianBlur(_Axes):
    """s successive blurs of images (B, C, H, W), each with a Gaussian kernel of `size` pixels (odd), reflected at the edge.

    The i-th has a standard deviation of `std`, std + rate·i or std·exp(rate·i) pixels: one of `GROWTH`. In the paper MNIST has
    T = 20, size 11, std 7 constant; CIFAR-10 50, 11, 0.35 + 0.01 i; CelebA 200, 15, exp(0.01 i).
    """

    steps: int = 20
    size: int = 11
    std: float = 7.0
    growth: str = "constant"
    rate: float = 0.01

    def __post_init__(self) -> None:
        _positive(self.steps)
        if self.growth not in GROWTH:
            raise ValueError(f"growth={self.growth!r} is not one of {', '.join(GROWTH)}")
        for i in (1, self.steps):
            gaussian_taps(GROWTH[self.growth](self.std, self.rate, i), self.size)  # refuses what makes no filter

    def _maps(self, shape: tuple[int, ...]) -> dict[int, Tensor]:
        _image(shape)
        return {axis: _blurs(shape[axis], self) for axis in (-2, -1)}


@lru_cache(maxsize=16)
def _blurs(n: int, blur: GaussianBlur) -> Tensor:
    maps = [torch.eye(n, dtype=torch.float64)]
    for i in range(1, blur.steps + 1):
        taps = gaussian_taps(GROWTH[blur.growth](blur.std, blur.rate, i), blur.size)
        maps.append(filter_matrix(n, taps, "reflect") @ maps[-1])
    return torch.stack(maps)


@dataclass(frozen=True)
class Downsampling(_Axes):
    """s-fold halving of images (B, C, H, W) by averages of 2x2 pixels, enlarged again to their size; odd sizes are rounded up."""

    steps: int = 3

    def __post_init__(self) -> None:
        _positive(self.steps)

    def _maps(self, shape: tuple[int, ...]) -> dict[int, Tensor]:
        _image(shape)
        return {axis: _halvings(shape[axis], self.steps) for axis in (-2, -1)}


@lru_cache(maxsize=16)
def _halvings(n: int, steps: int) -> Tensor:
    most = math.ceil(math.log2(n))
    if steps > most:
        raise ValueError(f"steps={steps} is more than the {most} halvings that leave one of {n} pixels; lower it")
    pooled = torch.eye(n, dtype=torch.float64).unsqueeze(1)  # one row for every unit vector
    maps = [pooled.squeeze(1)]
    for _ in range(steps):
        pooled = functional.adaptive_avg_pool1d(pooled, (pooled.shape[-1] + 1) // 2)
        maps.append(functional.interpolate(pooled, size=n, mode="nearest").squeeze(1).mT)
    return torch.stack(maps)


@dataclass(frozen=True)
class Desaturation(_Axes):
    """Colour fades out of images (B, C, H, W): x_s = (1 - s/T) x + (s/T) grey(x), the operator `desaturate` in T steps.

    `weights` of the grey: "luma" of red, green and blue, or the "mean" of any channels.
    """

    steps: int = 20
    weights: Weights = "luma"

    def __post_init__(self) -> None:
        _positive(self.steps)

    def _maps(self, shape: tuple[int, ...]) -> dict[int, Tensor]:
        _image(shape)
        return {-3: _fadings(shape[0], self)}


@lru_cache(maxsize=16)
def _fadings(channels: int, fading: Desaturation) -> Tensor:
    amounts = [s / fading.steps for s in range(fading.steps + 1)]
    operators = [desaturate((channels, 1, 1), amount=amount, weights=fading.weights) for amount in amounts]
    return torch.stack([cast("Constant", operator.factors[0]).value for operator in operators])


@dataclass(frozen=True)
class GrowingMask(Degradation):
    """A hole that grows from a random centre: x_s = x0·Π_{i ≤ s} (1 - exp(-r²/(2 v_i))) on images (B, C, H, W), with 0 in it.

    r is the distance in pixels from the centre, which the first two numbers of eps place uniformly in the image; the variances
    are v_i = variance + growth·(i - 1). In the paper MNIST and CIFAR-10 have T = 50.
    """

    steps: int = 50
    variance: float = 1.0
    growth: float = 0.1
    random = True

    def __post_init__(self) -> None:
        _positive(self.steps)
        if not (math.isfinite(self.variance) and self.variance > 0 and math.isfinite(self.growth) and self.growth >= 0):
            raise ValueError(f"variance={self.variance} must be positive, growth={self.growth} 0 or more, in squared pixels")

    def mask(self, shape: Sequence[int], s: Level, eps: Tensor) -> Tensor:
        """What x0 of `shape` (B, C, H, W) is multiplied by, (B, 1, H, W), with severities s and random states eps like x0."""
        _image(tuple(shape[1:]))
        levels = torch.as_tensor(s, device=eps.device).expand(shape[0])
        i = torch.arange(int(levels.max()), device=eps.device)
        double = -2 * (self.variance + self.growth * i.to(eps)).reshape(1, -1, 1)
        u = torch.special.ndtr(eps.flatten(1)[:, :2])
        bumps = []
        for side, place in zip(shape[2:], u.unbind(1), strict=True):
            offset = torch.arange(side, device=eps.device).to(eps) - place.unsqueeze(1) * (side - 1)
            bumps.append((offset.square().unsqueeze(1) / double).exp())  # (B, i, side): a Gaussian is a product of its axes
        rows = torch.where((i < levels.unsqueeze(1)).unsqueeze(2), bumps[0], 0.0)
        return (1 - rows.unsqueeze(3) * bumps[1].unsqueeze(2)).prod(1).unsqueeze(1)

    def _degrade(self, x0: Tensor, s: Tensor, eps: Tensor | None) -> Tensor:
        assert eps is not None
        return x0 * self.mask(x0.shape, s, eps.to(x0))


@dataclass(frozen=True)
class Snow(Degradation):
    """Flakes that cover images (B, C, H, W): x_s = x0 + w_s·(white - x0), where w_s grows over s from nowhere to nearly all.

    f is the first channel of eps averaged along a diagonal of `length` pixels (the motion of a flake) and again standard normal;
    a pixel is snowed upon, w_s = clamp((f - q_s)/softness, 0, 1), where f exceeds the quantile q_s that a share coverage·s/T of
    pixels exceed. After the paper's snowification, which takes its flakes from Hendrycks and Dietterich 2019, arXiv 1903.12261.
    """

    steps: int = 50
    coverage: float = 0.9
    length: int = 3
    softness: float = 0.5
    white: float = 1.0
    random = True

    def __post_init__(self) -> None:
        _positive(self.steps)
        if not 0 < self.coverage < 1:
            raise ValueError(f"coverage={self.coverage} must lie between 0 and 1: the share of pixels with snow at the end")
        if self.length < 1 or not self.softness > 0:
            raise ValueError(f"length={self.length} must be at least 1 pixel and softness={self.softness} above 0")

    def _degrade(self, x0: Tensor, s: Tensor, eps: Tensor | None) -> Tensor:
        assert eps is not None
        _image(tuple(x0.shape[1:]))
        layer = eps[:, :1].to(x0)
        f = sum(torch.roll(layer, (k, k), (-2, -1)) for k in range(self.length)) / math.sqrt(self.length)
        quantile = align(torch.special.ndtri(1 - self.coverage * s.double() / self.steps), x0)
        weight = ((f - quantile) / self.softness).clamp(0, 1)
        return x0 + weight * (self.white - x0)


@dataclass(frozen=True)
class Noising(Degradation):
    """Gaussian noise as a degradation: D(x0, s, eps) = alpha x0 + sigma eps of a Gaussian process at t = s/T; s = 0 is clean.

    A reverse step takes the noise that x_s and its restoration imply, eps = (x_s - alpha x0)/sigma: the improved sampler is then
    DDIM with eta = 0 (Song et al. 2021, arXiv 2010.02502).
    """

    steps: int = 50
    process: GaussianProcess = field(default_factory=VP)
    random = True

    def __post_init__(self) -> None:
        _positive(self.steps)

    def _degrade(self, x0: Tensor, s: Tensor, eps: Tensor | None) -> Tensor:
        assert eps is not None
        return self.process.corrupt(x0, s.double() / self.steps, eps.to(x0))

    def prior(self, shape: Sequence[int], noise: Noise, *, first: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """The Gaussian process's end law."""
        return self.process.prior(shape, noise, first=first, dtype=dtype)

    def infer(self, x_s: Tensor, x0: Tensor, s: int, eps: Tensor | None) -> Tensor | None:
        """(x_s - alpha x0)/sigma."""
        alpha, sigma = self.process.moments(s / self.steps, like=x_s)
        return (x_s - alpha * x0) / sigma


@dataclass(frozen=True)
class Custom(Degradation):
    """One's own degradation: `function(x0, s, eps)` takes data (b, *) of one severity s ≥ 1 and, if `random`, their eps.

    It must return data like x0, and treat samples alike and apart.
    """

    steps: int
    function: Callable[[Tensor, int, Tensor | None], Tensor]
    random: bool = False

    def __post_init__(self) -> None:
        _positive(self.steps)

    def _degrade(self, x0: Tensor, s: Tensor, eps: Tensor | None) -> Tensor:
        out = x0.clone()
        for level in s.unique().tolist():
            if level == 0:
                continue
            rows = (s == level).nonzero().squeeze(1).to(x0.device)
            part = self.function(x0[rows], level, None if eps is None else eps.to(x0)[rows])
            if part.shape != x0[rows].shape:
                raise ValueError(f"the degradation made shape {tuple(part.shape)} of {tuple(x0[rows].shape)}; they must agree")
            out[rows] = part
        return out


def operators(steps: int, family: Callable[[int], Operator]) -> Custom:
    """The degradation by operators A_s = family(s), s = 1 … steps: x_s = A_s x0 where that has the shape of x0, A⁺A x0 elsewhere.

    A⁺A x0 is the part of x0 that the measurement sees (for a down-sampling by averages: the averages, enlarged).
    """
    known = lru_cache(maxsize=None)(family)

    def function(x0: Tensor, s: int, eps: Tensor | None) -> Tensor:
        operator = known(s)
        return operator(x0) if operator.measured_shape == tuple(x0.shape[1:]) else operator.project(x0)

    return Custom(steps, function)


def noising(steps: int = 50, schedule: str = "vp") -> Noising:
    """Gaussian noise with `steps` severities of a process by name, "vp" or "cosine"."""
    laws: dict[str, Callable[[], GaussianProcess]] = {"vp": VP, "cosine": Cosine}
    if schedule not in laws:
        raise ValueError(f"schedule={schedule!r} is not one of {', '.join(laws)}; in Python give Noising a process")
    return Noising(steps, laws[schedule]())


COLD: dict[str, Callable[..., Degradation]] = {
    "blur": GaussianBlur,
    "mask": GrowingMask,
    "downsample": Downsampling,
    "snow": Snow,
    "desaturate": Desaturation,
    "noise": noising,
}
"""Degradations that recipes know by name; one's own, `Custom` or `operators`, is handed over as an object."""


def _positive(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")


def _image(shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise ValueError(f"data of shape {shape} are not images (channels, height, width)")
