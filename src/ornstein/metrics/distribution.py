"""Distances between two sets of feature vectors: Fréchet, kernel, precision/recall, sliced Wasserstein, MMD.

Every function takes tensors of shape (N, D), one row per sample, and computes in float64 on the CPU; a row order never
matters beyond rounding. Random choices (subsets, directions, resampling) come from the given seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.files import InputError

_BLOCK = 2**24  # entries of one block of a pairwise matrix: 128 MiB in float64

Kernel = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error, both in the units of the metric."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class PrecisionRecall:
    """Share of generated samples inside the real manifold (precision), of real ones inside the generated (recall)."""

    precision: float
    recall: float


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared 2-Wasserstein distance of the Gaussians fitted to a (N, D) and b (M, D), in squared feature units.

    d² = |μ_a − μ_b|² + tr C_a + tr C_b − 2 tr (C_a^½ C_b C_a^½)^½, with unbiased covariances. For any factors C = RᵀR
    the last trace is the nuclear norm of R_a R_bᵀ, and R comes from a QR decomposition of the centred rows: no
    covariance is formed and no square root of a rounded zero eigenvalue taken, so rank-deficient sets (N ≤ D, dead
    pixels) are exact to rounding. The estimate is biased upwards by about tr C·(…)/N: compare only values at equal N
    and M. Equals torchmetrics' and pytorch-fid's value on full-rank features. Raises InputError for fewer than two
    rows, unequal widths, non-finite entries. Source: Dowson and Landau 1982; Heusel et al. 2017, arXiv 1706.08500.
    `kernel_distance` is the unbiased neighbour.
    """
    a, b = _pair(a, b)
    return _frechet(a, b)


def frechet_interval(a: Tensor, b: Tensor, *, draws: int = 200, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval (low, high) of `frechet_distance(a, b)` at these sample sizes.

    Rows of both sets are resampled with replacement ``draws`` times. Resampling adds a bias of its own (fewer distinct
    rows), so the percentiles are shifted by the difference between the estimate and the bootstrap mean; the interval
    covers the spread over new samples of the same sizes, not the bias that finite sizes give the estimate itself.
    ``level`` lies in (0, 1). Raises InputError like `frechet_distance`, and for draws < 2 or a level outside (0, 1).
    Source: Efron and Tibshirani 1993.
    """
    a, b = _pair(a, b)
    if draws < 2:
        raise InputError(f"draws={draws}: a bootstrap needs at least 2; the default is 200")
    if not 0 < level < 1:
        raise InputError(f"level={level}: must lie between 0 and 1; the default is 0.95")
    generator = torch.Generator().manual_seed(seed)

    def resample(x: Tensor) -> Tensor:
        return x[torch.randint(len(x), (len(x),), generator=generator)]

    values = torch.tensor([_frechet(resample(a), resample(b)) for _ in range(draws)], dtype=torch.float64)
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = (torch.quantile(values, edges) - values.mean() + _frechet(a, b)).tolist()
    return max(low, 0.0), high


def kernel_distance(a: Tensor, b: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> Estimate:
    """Kernel distance (KID): mean unbiased squared MMD, k(x, y) = (x·y/D + 1)³, over subsets of a (N, D), b (M, D).

    ``subsets`` pairs of ``size`` rows each are drawn without replacement inside a subset; size is lowered to half of
    the smaller set, which the standard error needs: it is the delete-d jackknife, s²·(m/(n − m) + 1/subsets) with m
    rows out of n and s² the variance between subsets, because subsets share rows and s/√subsets alone would be far too
    small. Zero in expectation for equal distributions at any size, hence sometimes negative. Raises InputError for
    fewer than four rows, unequal widths, non-finite entries, subsets < 2. Source: Bińkowski et al. 2018, arXiv
    1801.01401.
    """
    a, b = _pair(a, b)
    n = min(len(a), len(b))
    rows = min(size, n // 2)
    if rows < 2 or subsets < 2:
        raise InputError(f"size={size}, subsets={subsets} with {n} rows: needs 4 rows, subsets of 2 rows and 2 subsets at least")
    generator = torch.Generator().manual_seed(seed)

    def draw(x: Tensor) -> Tensor:
        return x[torch.randperm(len(x), generator=generator)[:rows]]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    values = torch.tensor([_unbiased_mmd(draw(a), draw(b), kernel) for _ in range(subsets)], dtype=torch.float64)
    variance = values.var().item() * (rows / (n - rows) + 1 / subsets)
    return Estimate(values.mean().item(), math.sqrt(variance))


def maximum_mean_discrepancy(a: Tensor, b: Tensor, *, bandwidths: Sequence[float] | None = None) -> float:
    """Unbiased squared MMD of a (N, D) and b (M, D) under the mean of k(x, y) = exp(−|x − y|²/(2h²)) over bandwidths h.

    Bandwidths are in feature units; without them h is the median distance between rows of both sets (of at most 1,000
    evenly spaced rows each). Zero in expectation for equal distributions, hence sometimes negative; at most 2. Raises
    InputError for fewer than two rows, unequal widths, non-finite entries, bandwidths that are not positive. Source:
    Gretton et al. 2012, JMLR 13. `kernel_distance` is the same statistic under a polynomial kernel.
    """
    a, b = _pair(a, b)
    scales = [_median_distance(a, b)] if bandwidths is None else list(bandwidths)
    if not scales or not all(math.isfinite(h) and h > 0 for h in scales):
        raise InputError(f"bandwidths={scales}: must be positive; give some in feature units (all rows may be equal)")

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = _squared_distances(x, y)
        return torch.stack([torch.exp(squared / (-2 * h * h)) for h in scales]).mean(0)

    return _unbiased_mmd(a, b, kernel)


def precision_recall(real: Tensor, generated: Tensor, *, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall of generated (M, D) against real (N, D), each in [0, 1].

    A set's manifold is the union of balls around its rows that reach to the k-th nearest other row; precision is the
    share of generated rows inside the real manifold, recall the share of real rows inside the generated one. Equal
    distributions give equal values below 1, which depend on N and k: compare at equal sizes. Raises InputError for
    unequal widths, non-finite entries, k < 1, or k rows or fewer. Source: Kynkäänniemi et al. 2019, arXiv 1904.06991.
    """
    real, generated = _pair(real, generated)
    if not 1 <= k < min(len(real), len(generated)):
        raise InputError(
            f"k={k}: must lie between 1 and {min(len(real), len(generated)) - 1}, the rows of the smaller set less 1"
        )
    return PrecisionRecall(precision=_share_inside(generated, real, k), recall=_share_inside(real, generated, k))


def sliced_wasserstein(a: Tensor, b: Tensor, *, projections: int = 128, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance of a (N, D) and b (M, D), in feature units.

    SW₂² = E_u W₂²(⟨u, a⟩, ⟨u, b⟩), u uniform on the sphere; the one-dimensional distances are exact for unequal N and M
    too (the quantile functions are steps). Directions are drawn in orthonormal blocks of up to D, each uniform by
    itself, so that a pure shift s gives |s|/√D without Monte Carlo error whenever projections is a multiple of D.
    Raises InputError for fewer than two rows, unequal widths, non-finite entries, projections < 1. Source: Bonneel et
    al. 2015, JMIV 51; orthonormal blocks: Rowland et al. 2019, AISTATS.
    """
    a, b = _pair(a, b)
    if projections < 1:
        raise InputError(f"projections={projections}: must be positive; the default is 128")
    u = _directions(a.shape[1], projections, seed)
    return math.sqrt(torch.cat([_line_wasserstein(a @ block, b @ block) for block in u.split(64, dim=1)]).mean().item())


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    for name, x in (("first", a), ("second", b)):
        if x.ndim != 2 or x.shape[0] < 2 or x.shape[1] < 1:
            raise InputError(f"{name} set has shape {tuple(x.shape)}: expected (N, D) with N >= 2; flatten images by Pixels()")
        bad = len(x) - int(torch.isfinite(x).all(1).sum())
        if bad:
            raise InputError(
                f"{name} set has NaN or infinite entries in {bad} of {len(x)} rows; remove them or check the samples"
            )
    if a.shape[1] != b.shape[1]:
        raise InputError(f"feature widths {a.shape[1]} and {b.shape[1]} differ; use the same extractor and image size for both")
    return a.detach().to("cpu", torch.float64), b.detach().to("cpu", torch.float64)


def _frechet(a: Tensor, b: Tensor) -> float:
    (mean_a, root_a), (mean_b, root_b) = _gaussian(a), _gaussian(b)
    overlap = torch.linalg.svdvals(root_a @ root_b.T).sum()
    total = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * overlap
    return max(total.item(), 0.0)


def _gaussian(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and a factor R of the covariance RᵀR."""
    mean = x.mean(0)
    return mean, torch.linalg.qr((x - mean) / math.sqrt(len(x) - 1), mode="r").R


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.addmm(x.square().sum(1)[:, None] + y.square().sum(1), x, y.T, alpha=-2).clamp_min(0)


def _rows(columns: int) -> int:
    return max(1, _BLOCK // columns)


def _mean_kernel(x: Tensor, y: Tensor, kernel: Kernel) -> float:
    return sum(kernel(block, y).sum().item() for block in x.split(_rows(len(y)))) / (len(x) * len(y))


def _mean_off_diagonal(x: Tensor, kernel: Kernel) -> float:
    total, rows = 0.0, _rows(len(x))
    for start in range(0, len(x), rows):
        block = kernel(x[start : start + rows], x)
        total += (block.sum() - block.diagonal(start).sum()).item()
    return total / (len(x) * (len(x) - 1))


def _unbiased_mmd(a: Tensor, b: Tensor, kernel: Kernel) -> float:
    return _mean_off_diagonal(a, kernel) + _mean_off_diagonal(b, kernel) - 2 * _mean_kernel(a, b, kernel)


def _median_distance(a: Tensor, b: Tensor) -> float:
    pooled = torch.cat([x[:: math.ceil(len(x) / 1000)] for x in (a, b)])
    above = torch.triu_indices(len(pooled), len(pooled), offset=1)
    return _squared_distances(pooled, pooled)[above[0], above[1]].median().sqrt().item()


def _share_inside(points: Tensor, centres: Tensor, k: int) -> float:
    # Rounding of |x|² + |y|² − 2x·y must not push a point out of a ball whose centre or rim it is.
    slack = 1e-12 * centres.square().sum(1).max()
    radii, rows = [], _rows(len(centres))
    for start in range(0, len(centres), rows):
        block = _squared_distances(centres[start : start + rows], centres)
        block.diagonal(start).fill_(math.inf)
        radii.append(block.kthvalue(k, dim=1).values)
    reach = torch.cat(radii) + slack
    inside = sum(int((_squared_distances(block, centres) <= reach).any(1).sum()) for block in points.split(rows))
    return inside / len(points)


def _directions(width: int, count: int, seed: int) -> Tensor:
    """Unit columns (width, count), orthonormal within each block of ``width``."""
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for start in range(0, count, width):
        normal = torch.randn(width, min(width, count - start), generator=generator, dtype=torch.float64)
        blocks.append(torch.linalg.qr(normal).Q)
    return torch.cat(blocks, dim=1)


def _line_wasserstein(a: Tensor, b: Tensor) -> Tensor:
    """W₂² of each column of a (N, P) against the same column of b (M, P)."""
    a, b = a.sort(0).values, b.sort(0).values
    n, m = len(a), len(b)
    # Both quantile functions are constant between edges i/n and j/m, counted in units of 1/(nm) to stay exact.
    edges = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique()
    start, length = edges[:-1], edges.diff()
    return ((a[start // m] - b[start // n]).square() * (length.double() / (n * m))[:, None]).sum(0)
