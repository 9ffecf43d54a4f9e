from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ornstein.files import InputError
from ornstein.metrics import (
    frechet_distance,
    frechet_interval,
    kernel_distance,
    maximum_mean_discrepancy,
    precision_recall,
    sliced_wasserstein,
)
from ornstein.metrics.distribution import _unbiased_mmd

SEEDS = st.integers(0, 2**31)


def normal(n: int, width: int, seed: int) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(n: int, mean: Tensor, root: Tensor, seed: int) -> Tensor:
    """A sample whose mean and unbiased covariance are exactly mean and rootᵀ·root."""
    z = normal(n, len(root), seed)
    q = torch.linalg.qr(z - z.mean(0)).Q
    return mean + math.sqrt(n - 1) * q @ root


def test_frechet_equals_closed_form_of_commuting_gaussians() -> None:
    # C_a = U diag(p) Uᵀ, C_b = U diag(q) Uᵀ: d² = |Δμ|² + Σ (√p − √q)².
    u = torch.linalg.qr(normal(5, 5, 0)).Q
    p, q = torch.tensor([4.0, 1.0, 0.25, 9.0, 0.0]).double(), torch.tensor([1.0, 1.0, 4.0, 0.0, 0.0]).double()
    shift = torch.tensor([3.0, 0.0, 0.0, 4.0, 0.0]).double()
    a = with_moments(40, torch.zeros(5).double(), p.sqrt()[:, None] * u.T, 1)
    b = with_moments(90, shift, q.sqrt()[:, None] * u.T, 2)
    expected = 25 + (1 + 0 + 2.25 + 9 + 0)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_frechet_equals_scipy_and_torchmetrics_on_full_rank_features() -> None:
    from scipy.linalg import sqrtm
    from torchmetrics.image.fid import _compute_fid

    a, b = normal(200, 12, 0) @ normal(12, 12, 1), normal(150, 12, 2) @ normal(12, 12, 3) + 0.3
    covariances = [np.cov(x.numpy(), rowvar=False) for x in (a, b)]
    trace = np.trace(covariances[0] + covariances[1] - 2 * sqrtm(covariances[0] @ covariances[1]).real)
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + float(trace)
    peer = _compute_fid(a.mean(0), torch.tensor(covariances[0]), b.mean(0), torch.tensor(covariances[1]))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(peer.item(), rel=1e-9)


def test_frechet_is_exact_for_fewer_rows_than_columns() -> None:
    # Two sets in orthogonal subspaces: the cross term is 0 and d² is the sum of both variances.
    a, b = torch.zeros(20, 60).double(), torch.zeros(30, 60).double()
    a[:, :30], b[:, 30:] = normal(20, 30, 0), normal(30, 30, 1)
    expected = sum(float(x.mean(0).square().sum() + x.var(0).sum()) for x in (a, b))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.integers(2, 40), st.integers(1, 30))
def test_frechet_of_equal_sets_is_zero_and_rows_may_be_permuted(seed: int, n: int, width: int) -> None:
    a, b = 5 * normal(n, width, seed), normal(n + 3, width, seed + 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert frechet_distance(a, a[order]) <= 1e-12 * float(a.square().sum())
    assert frechet_distance(a[order], b) == pytest.approx(frechet_distance(a, b), rel=1e-9, abs=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9, abs=1e-9)


def test_frechet_interval_covers_new_samples_and_depends_on_the_seed_alone() -> None:
    pairs = [(normal(150, 4, 2 * i), 1.2 * normal(200, 4, 2 * i + 1) + 0.5) for i in range(40)]
    values = [frechet_distance(a, b) for a, b in pairs]
    centre = sum(values) / len(values)
    intervals = [frechet_interval(a, b, draws=60, seed=7) for a, b in pairs]
    covered = sum(low <= centre <= high for low, high in intervals)
    assert 33 <= covered <= 40  # nominal 38 of 40; an interval of half the width covers about 27
    wide = float(np.quantile(values, 0.975) - np.quantile(values, 0.025))
    assert 0.6 * wide < np.mean([high - low for low, high in intervals]) < 1.6 * wide
    assert frechet_interval(*pairs[0], draws=60, seed=7) == intervals[0]
    assert frechet_interval(*pairs[0], draws=60, seed=8) != intervals[0]


def test_frechet_interval_holds_the_estimate_where_resampling_is_strongly_biased() -> None:
    a, b = normal(60, 25, 0), normal(60, 25, 1)  # plain percentiles start at 1.7 times the estimate here
    low, high = frechet_interval(a, b, draws=40)
    assert low < frechet_distance(a, b) < high


def test_kernel_distance_is_unbiased_and_its_standard_error_honest() -> None:
    # Under equal distributions the mean over data sets is 0; with the diagonal kept it would be near +0.5.
    null = [kernel_distance(normal(80, 3, 2 * i), normal(80, 3, 2 * i + 1), subsets=10, size=40) for i in range(60)]
    values = torch.tensor([x.value for x in null])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
    shifted = [kernel_distance(normal(80, 3, 2 * i), normal(80, 3, 2 * i + 1) + 0.7, subsets=20, size=40) for i in range(60)]
    spread = float(torch.tensor([x.value for x in shifted]).std())
    typical = float(np.mean([x.standard_error for x in shifted]))
    assert 0.7 < typical / spread < 1.5


def test_kernel_distance_equals_closed_form() -> None:
    # D = 1, a ~ N(0, 1), b ~ N(s, 1): E(xy + 1)³ = Σ_k binom(3, k) m_k m'_k with the raw moments m.
    s = 1.0
    moments_a, moments_b = (1, 0, 1, 0), (1, s, 1 + s**2, 3 * s + s**3)
    expected = sum(math.comb(3, k) * (moments_a[k] - moments_b[k]) ** 2 for k in range(4))
    found = [kernel_distance(normal(2000, 1, 2 * i), normal(2000, 1, 2 * i + 1) + s, size=500) for i in range(6)]
    mean, error = np.mean([x.value for x in found]), np.mean([x.standard_error for x in found]) / math.sqrt(6)
    assert abs(mean - expected) < 4 * error
    assert error < 0.1 * expected


def test_mmd_of_two_point_sets_by_hand() -> None:
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0], [4.0]])

    def k(*differences: float) -> float:
        return sum(math.exp(-(d**2) / 8) for d in differences)

    expected = k(1) + k(2, 2, 4) / 3 - 2 * k(0, 2, 4, 1, 1, 3) / 6
    assert maximum_mean_discrepancy(a, b, bandwidths=[2.0]) == pytest.approx(expected, rel=1e-12)
    mixed = maximum_mean_discrepancy(a, b, bandwidths=[2.0, 5.0])
    alone = [maximum_mean_discrepancy(a, b, bandwidths=[h]) for h in (2.0, 5.0)]
    assert mixed == pytest.approx(sum(alone) / 2, rel=1e-12)


def test_mmd_vanishes_under_the_null_and_matches_the_gaussian_closed_form() -> None:
    # k of width h between N(0, I) and N(s, I): (h²/(h² + 2))^(D/2) exp(−|s|²/(2(h² + 2))).
    width, h, s = 3, 1.5, 1.0
    scale = (h**2 / (h**2 + 2)) ** (width / 2)
    expected = 2 * scale * (1 - math.exp(-width * s**2 / (2 * (h**2 + 2))))
    pairs = [(normal(300, width, 2 * i), normal(200, width, 2 * i + 1)) for i in range(20)]
    for shift, truth in ((0.0, 0.0), (s, expected)):
        values = torch.tensor([maximum_mean_discrepancy(a, b + shift, bandwidths=[h]) for a, b in pairs])
        assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(len(values))
    a, b = pairs[0]
    scaled = maximum_mean_discrepancy(100 * a, 100 * (b + s))  # the median heuristic makes it scale-free
    assert scaled == pytest.approx(maximum_mean_discrepancy(a, b + s), rel=1e-9)
    assert scaled > 0.02


def test_mmd_in_several_blocks_equals_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(50, 2, 0), normal(37, 2, 1)
    whole = _unbiased_mmd(a, b, lambda x, y: (x @ y.T + 1) ** 3)
    share = precision_recall(a, b)
    monkeypatch.setattr("ornstein.metrics.distribution._BLOCK", 200)
    assert _unbiased_mmd(a, b, lambda x, y: (x @ y.T + 1) ** 3) == pytest.approx(whole, rel=1e-12)
    assert precision_recall(a, b) == share


def test_precision_and_recall_of_equal_disjoint_and_half_sets() -> None:
    real = normal(100, 5, 0)
    equal = precision_recall(real, real)
    assert (equal.precision, equal.recall) == (1.0, 1.0)
    apart = precision_recall(real, real + 100)
    assert (apart.precision, apart.recall) == (0.0, 0.0)
    two_modes = torch.cat([real, real + 100])
    dropped = precision_recall(two_modes, real)  # one of two modes is missing
    assert (dropped.precision, dropped.recall) == (1.0, 0.5)
    invented = precision_recall(real, two_modes)
    assert (invented.precision, invented.recall) == (0.5, 1.0)


def test_precision_radius_is_the_distance_to_the_kth_other_row() -> None:
    real = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    # Radii for k = 2 are 3, 2, 3, 6: the union covers [-3, 13].
    inside, outside = torch.tensor([[-3.0], [13.0]]), torch.tensor([[-3.001], [13.001]])
    assert precision_recall(real, torch.cat([inside, outside, outside]), k=2).precision == pytest.approx(1 / 3)


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.integers(2, 12), st.integers(2, 12))
def test_line_distance_equals_repetition_to_a_common_size(seed: int, n: int, m: int) -> None:
    a, b = normal(n, 1, seed), 2 * normal(m, 1, seed + 1)
    long_a, long_b = (x.sort(0).values.repeat_interleave(math.lcm(n, m) // len(x), 0) for x in (a, b))
    expected = (long_a - long_b).square().mean().sqrt().item()
    assert sliced_wasserstein(a, b, projections=1) == pytest.approx(expected, rel=1e-12)


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.integers(1, 6))
def test_sliced_wasserstein_of_a_shift_is_its_length_over_root_d(seed: int, width: int) -> None:
    a, shift = normal(15, width, seed), normal(1, width, seed + 1)
    expected = shift.norm().item() / math.sqrt(width)  # E⟨u, s⟩² = |s|²/D
    assert sliced_wasserstein(a, a + shift, projections=4 * width, seed=seed) == pytest.approx(expected, rel=1e-9)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(seed))
    assert sliced_wasserstein(a, a[order], projections=5) == 0


def test_sliced_wasserstein_directions_are_uniform() -> None:
    # a and 3a: W₂² along u is 4·mean⟨u, a⟩², whose mean over the sphere is 4·mean|a|²/D. 7 = an incomplete block.
    a = normal(30, 5, 0) * torch.tensor([5.0, 1.0, 1.0, 1.0, 1.0])
    expected = 4 * a.square().sum(1).mean().item() / 5
    squares = torch.tensor([sliced_wasserstein(a, 3 * a, projections=7, seed=i) ** 2 for i in range(300)])
    assert abs(squares.mean() - expected) < 4 * squares.std() / math.sqrt(300)


@pytest.mark.parametrize(
    "metric", [frechet_distance, kernel_distance, maximum_mean_discrepancy, precision_recall, sliced_wasserstein]
)
def test_wrong_sets_are_refused_with_the_reason(metric) -> None:  # type: ignore[no-untyped-def]
    good = normal(10, 3, 0)
    spoiled = good.clone()
    spoiled[4, 1] = math.nan
    for a, b, reason in [
        (good, normal(10, 4, 0), "widths 3 and 4"),
        (good, spoiled, "second set has NaN or infinite entries in 1 of 10"),
        (good[:1], good, r"first set has shape \(1, 3\)"),
        (good[0], good, "expected"),
    ]:
        with pytest.raises(InputError, match=reason) as caught:
            metric(a, b)
        assert "\n" not in str(caught.value)


def test_wrong_settings_are_refused() -> None:
    a = normal(10, 3, 0)
    refused = [
        lambda: precision_recall(a, a, k=10),
        lambda: precision_recall(a, a, k=0),
        lambda: sliced_wasserstein(a, a, projections=0),
        lambda: maximum_mean_discrepancy(a, a, bandwidths=[0.0]),
        lambda: maximum_mean_discrepancy(torch.ones(4, 2), torch.ones(4, 2)),
        lambda: kernel_distance(a[:3], a),
        lambda: kernel_distance(a, a, subsets=1),
        lambda: frechet_interval(a, a, level=1.0),
        lambda: frechet_interval(a, a, draws=1),
    ]
    for call in refused:
        with pytest.raises(InputError):
            call()
    assert len(refused) == 9
