"""A conditional denoiser for tests, made of others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoiser import Condition, Denoises, Prediction
from ornstein.process import GaussianProcess
from ornstein.process.gaussian import Time


@dataclass(frozen=True)
class Chosen:
    """One of several denoisers for every row, by cond["label"]."""

    denoisers: tuple[Denoises, ...]

    @property
    def process(self) -> GaussianProcess:
        return self.denoisers[0].process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        assert cond is not None
        predictions = [denoiser(x_t, t) for denoiser in self.denoisers]
        x0 = torch.stack([p.x0 for p in predictions])[cond["label"], torch.arange(len(x_t))]
        return predictions[0].with_x0(x0)
