"""Nearest-training-image check: does a model return its training set?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.files import InputError

_SUSPECT = 0.5  # a convention: independent samples of a good model lie far above, at about 0.8 to 1.1
_BLOCK = 2**25  # entries of one block of the distance matrix: 128 MiB in float32


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training row, generated over held-out, at the median and at a low quantile.

    A ratio near 1 is what unseen real images keep; towards 0 the samples are copies. ``quantile`` is the low quantile's
    probability, ``n`` the number of generated rows.
    """

    median_ratio: float
    low_ratio: float
    quantile: float
    n: int

    @property
    def copied(self) -> bool:
        """True where either ratio is below one half."""
        return min(self.median_ratio, self.low_ratio) < _SUSPECT

    @property
    def verdict(self) -> str:
        """One sentence for a report."""
        figures = f"median ratio {self.median_ratio:.2f}, {self.quantile:.0%} quantile ratio {self.low_ratio:.2f}, n={self.n}"
        if self.median_ratio < _SUSPECT:
            return f"Memorised: samples lie much closer to training data than unseen data do ({figures})."
        if self.low_ratio < _SUSPECT:
            return f"Partly memorised: the closest samples are near-copies of training data ({figures})."
        return f"No sign of memorisation: samples lie as far from training data as unseen data do ({figures})."


def nearest_distances(points: Tensor, train: Tensor) -> Tensor:
    """Euclidean distance (N,) float64 of each row of points (N, D) to the nearest row of train (M, D), feature units.

    The neighbour is searched in float32 blocks of at most 128 MiB (10,000 against 60,000 rows fit anywhere) and its
    distance then computed from the difference, so that an exact copy has distance 0. Raises InputError for empty sets,
    unequal widths and non-finite entries.
    """
    for name, x in (("points", points), ("train", train)):
        if x.ndim != 2 or x.numel() == 0:
            raise InputError(f"{name} has shape {tuple(x.shape)}: expected a non-empty (N, D); flatten images by Pixels()")
        if not bool(torch.isfinite(x).all()):
            raise InputError(f"{name} has NaN or infinite entries; remove those rows or check the samples")
    if points.shape[1] != train.shape[1]:
        raise InputError(f"widths {points.shape[1]} and {train.shape[1]} differ; use the same extractor and image size for both")
    centre = train.mean(0, dtype=torch.float64)  # smaller norms, less cancellation in |y|² − 2x·y
    table = (train - centre).float()
    norms = table.square().sum(1)
    rows = max(1, _BLOCK // len(table))
    nearest = [torch.addmm(norms, (block - centre).float(), table.T, alpha=-2).argmin(1) for block in points.detach().split(rows)]
    blocks = zip(points.split(rows), nearest, strict=True)
    return torch.cat([(block.double() - train[index].double()).norm(dim=1) for block, index in blocks])


def nearest_neighbour(generated: Tensor, train: Tensor, held_out: Tensor, *, quantile: float = 0.01) -> Memorisation:
    """Compare generated (N, D) with held_out (H, D) by their distances to the nearest row of train (M, D).

    median_ratio = median d(generated) / median d(held_out), low_ratio the same at the ``quantile``; fewer copies than
    that share go unseen. Two zero distances have ratio 1 (data with exact repetitions), a zero of held_out alone gives
    infinity. Raises InputError like `nearest_distances`, for a quantile outside (0, 0.5), and where half of held_out
    lies in train. Source: the copying check of Gulrajani et al. 2019 and Meehan et al. 2020 (arXiv 2004.05675) reduced
    to two ratios.
    """
    if not 0 < quantile < 0.5:
        raise InputError(f"quantile={quantile}: must lie between 0 and 0.5; the default is 0.01")
    levels = torch.tensor([0.5, quantile], dtype=torch.float64)
    ours = torch.quantile(nearest_distances(generated, train), levels).tolist()
    unseen = torch.quantile(nearest_distances(held_out, train), levels).tolist()
    if unseen[0] == 0:
        raise InputError("held_out: more than half of its rows are in train; pass rows that were not trained on")
    median_ratio, low_ratio = (_ratio(x, y) for x, y in zip(ours, unseen, strict=True))
    return Memorisation(median_ratio, low_ratio, quantile, len(generated))


def _ratio(x: float, y: float) -> float:
    if y == 0:
        return 1.0 if x == 0 else float("inf")
    return x / y
