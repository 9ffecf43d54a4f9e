"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoiser import Condition, Denoises, Prediction
from ornstein.process import GaussianProcess
from ornstein.process.gaussian import Time


@dataclass(frozen=True)
class ClassifierFree:
    """A conditional denoiser guided by its own unconditional branch: x0 = x0(∅) + scale·(x0(cond) - x0(∅)).

    The same holds for eps, score and v, which are lines in x0. scale γ = 1 is the conditional model and 0 the unconditional
    one, a network evaluation each; any other γ evaluates both in one batch of twice the samples. γ = 1 + w for papers that
    write (1 + w)·eps(cond) - w·eps(∅). The network must have been trained with its condition withheld at times (`null`).
    Without a condition nothing is guided. ValueError for a scale that is not finite.
    """

    denoiser: Denoises
    scale: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"scale={self.scale} must be a finite number: 1 is the conditional model, 0 the unconditional one")

    @property
    def process(self) -> GaussianProcess:
        """The wrapped denoiser's process."""
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        """The guided prediction at x_t (B, *) and t, a number or (B,), under a condition of B rows."""
        if cond is None or self.scale == 1:
            return self.denoiser(x_t, t, cond)
        n = len(x_t)
        withheld = torch.ones(n, dtype=torch.bool, device=x_t.device)
        if self.scale == 0:
            return self.denoiser(x_t, t, {**cond, "null": withheld})
        both = {name: torch.cat([value, value]) for name, value in cond.items()}
        both["null"] = torch.cat([cond.get("null", torch.zeros_like(withheld)), withheld])
        times = t if not isinstance(t, Tensor) or t.ndim == 0 else torch.cat([t, t])
        prediction = self.denoiser(torch.cat([x_t, x_t]), times, both)
        given, free = prediction.x0.chunk(2)
        alpha, sigma = (m if m.ndim == 0 else m[:n] for m in (prediction.alpha, prediction.sigma))
        fraction = None if prediction.variance_fraction is None else prediction.variance_fraction[:n]
        return Prediction.from_x0(x_t, alpha, sigma, torch.lerp(free, given, self.scale), fraction)
