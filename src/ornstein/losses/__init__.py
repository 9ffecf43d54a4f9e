"""Training losses and the variational bound."""

from __future__ import annotations

from ornstein.losses.augment import mirrored
from ornstein.losses.bound import Bound, Discretised, GaussianDecoder, bound
from ornstein.losses.denoising import WEIGHTS, DenoisingLoss
from ornstein.losses.matching import MatchingLoss, score_at
from ornstein.losses.times import DISTRIBUTIONS, LossAware, Times

__all__ = [
    "DISTRIBUTIONS",
    "WEIGHTS",
    "Bound",
    "DenoisingLoss",
    "Discretised",
    "GaussianDecoder",
    "LossAware",
    "MatchingLoss",
    "Times",
    "bound",
    "mirrored",
    "score_at",
]
