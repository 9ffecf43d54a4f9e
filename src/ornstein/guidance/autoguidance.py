"""Autoguidance: a model guided by a bad version of itself (Karras et al. 2024, arXiv 2406.02507)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoiser import Condition, Denoises, Prediction
from ornstein.guidance.line import Interval, Scale, check, evaluations, extrapolate, guided_rows, strength
from ornstein.process import GaussianProcess
from ornstein.process.gaussian import Time


@dataclass(frozen=True)
class Autoguidance:
    """A denoiser guided away from a `weaker` one of the same data: x0 = x0(weaker) + γ·(x0 - x0(weaker)).

    Both take the same condition, or none: what is amplified is not the class but what training, or capacity, has added.
    `weaker` is a denoiser of the same process, less trained or smaller; γ = 1 is the denoiser itself and 0 the weaker one, a
    network evaluation each, any other γ costs one of each. `scale`, `interval` and `rescale` are those of `ClassifierFree`.
    ValueError for what that refuses, or a weaker denoiser of another process. Source: Karras et al. 2024, arXiv 2406.02507.
    """

    denoiser: Denoises
    weaker: Denoises
    scale: Scale
    interval: Interval = None
    rescale: float | None = None

    def __post_init__(self) -> None:
        check(self.scale, self.interval, self.rescale)
        times = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
        mine, other = (torch.stack(d.process.moments(times)) for d in (self.denoiser, self.weaker))
        if not torch.allclose(mine, other, rtol=1e-6, atol=1e-9):
            raise ValueError(
                f"weaker is a denoiser of another process ({type(self.weaker.process).__name__}, or other options) than the "
                f"{type(self.process).__name__} it is to guide; train it with the same one"
            )

    @property
    def process(self) -> GaussianProcess:
        """The wrapped denoiser's process."""
        return self.denoiser.process

    def evaluations(self, t: float) -> int:
        """Network evaluations of a call at t in [0, 1], per sample, those of the weaker network among them."""
        scale = strength(self.scale, self.interval, self.process, t)
        own = evaluations(self.denoiser, t) if scale != 0 or self.rescale is not None else 0
        return own + (evaluations(self.weaker, t) if scale != 1 else 0)

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        """The guided prediction at x_t (B, *) and t, a number or (B,)."""
        scale = strength(self.scale, self.interval, self.process, t)
        if isinstance(scale, float) and scale == 0 and self.rescale is None:
            return self.weaker(x_t, t, cond)
        given, rows = self.denoiser(x_t, t, cond), guided_rows(scale)
        if (isinstance(rows, Tensor) and len(rows) == 0) or (isinstance(scale, float) and scale == 1):
            return given
        times = t if not isinstance(t, Tensor) or t.ndim == 0 else t[rows]
        own = None if cond is None else {name: value[rows] for name, value in cond.items()}
        return extrapolate(given, self.weaker(x_t[rows], times, own).x0, rows, scale, self.rescale)
