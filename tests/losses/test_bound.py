"""The variational bound against exact Gaussian answers, and the discretised decoder against direct integration."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor, nn

from ornstein.denoiser import Condition, Denoiser
from ornstein.losses import Bound, Discretised, GaussianDecoder, bound
from ornstein.noise import Noise
from ornstein.process import EDM, VE, VP, GaussianProcess, Rectified, chain
from ornstein.testing import GaussianDenoiser, MixtureDenoiser

F64 = torch.float64
VARIANCES = torch.tensor([0.3, 1.0, 2.5], dtype=F64)
MEAN = torch.tensor([0.5, -1.0, 0.0], dtype=F64)


def oracle_of(process: GaussianProcess) -> GaussianDenoiser:
    """Correlated Gaussian data: `VARIANCES` along rotated axes."""
    q = torch.linalg.qr(Noise(9).normal((3, 3), dtype=F64)).Q
    return GaussianDenoiser(MEAN, q @ torch.diag(VARIANCES) @ q.T, process)


def levels(steps: int) -> tuple[float, ...]:
    return tuple(k / steps for k in range(steps, 0, -1))


def expected_steps(process: GaussianProcess, times: tuple[float, ...], variance: str) -> list[float]:
    """E[L_{t-1}] from nothing but (alpha, sigma): precisions add in Bayes' rule."""
    terms = []
    for t, s in pairwise(times):
        (a_t, s_t), (a_s, s_s) = ((float(m) for m in process.moments(time)) for time in (t, s))
        jump = a_t / a_s
        beta = s_t**2 - jump**2 * s_s**2
        small = 1 / (1 / s_s**2 + jump**2 / beta)
        on_x0 = small * a_s / s_s**2
        tau = beta if variance == "transition" else small
        left = [1 / (1 / v + a_t**2 / s_t**2) for v in VARIANCES.tolist()]
        terms.append(sum(0.5 * (small / tau - 1 - math.log(small / tau)) + on_x0**2 * v / (2 * tau) for v in left))
    return terms


CHAINS: dict[str, tuple[GaussianProcess, tuple[float, ...]]] = {
    "chain": (chain("linear", 12), levels(12)),
    "zero_terminal": (chain("cosine", 8, True), levels(8)),
    "vp": (VP(), (1.0, 0.7, 0.4, 0.2, 0.05)),
    "ve": (VE(), (1.0, 0.8, 0.5, 0.3)),
    "edm": (EDM(), (1.0, 0.6, 0.3, 0.2)),
    "rectified": (Rectified(), (0.95, 0.5, 0.2)),
}


@pytest.mark.parametrize("variance", ["transition", "posterior"])
@pytest.mark.parametrize("name", list(CHAINS))
def test_bound_of_the_oracle_is_exact_term_by_term(name: str, variance: str) -> None:
    process, times = CHAINS[name]
    oracle = oracle_of(process)
    exact = oracle.bound_terms(times, variance)
    chunks, size = 20, 200
    x0 = oracle.sample(chunks * size, Noise(0))
    parts = [
        bound(oracle, x0[i * size : (i + 1) * size], times, Noise(1), variance=variance, first=i * size) for i in range(chunks)
    ]
    total = torch.cat([p.total for p in parts])
    assert abs(float(total.mean() - exact.total)) < 4 * float(total.std()) / math.sqrt(len(total))
    for got, want in (
        (torch.cat([p.prior for p in parts]), exact.prior),
        (torch.cat([p.steps for p in parts]), exact.steps.sum()),
        (torch.cat([p.decoder for p in parts]), exact.decoder),
    ):
        assert abs(float(got.mean() - want)) < 4 * float(got.std()) / math.sqrt(len(got)) + 1e-12
    terms = torch.stack([p.terms for p in parts if p.terms is not None])
    assert terms.shape == (chunks, len(times) - 1)
    error = terms.std(0) / math.sqrt(chunks) + 1e-12
    assert float(((terms.mean(0) - exact.steps) / error).abs().max()) < 4.5  # the largest of a dozen, by Student's law
    assert parts[0].calls == len(times)
    if name != "zero_terminal":  # the oracle of the oracle; without signal the ratio of precisions is undefined
        torch.testing.assert_close(exact.steps, torch.tensor(expected_steps(process, times, variance), dtype=F64))


def test_prior_term_is_the_divergence_of_each_datum() -> None:
    process = VE()
    x0 = Noise(0).normal((4, 2, 2), dtype=F64)
    got = bound(oracle_free(process), x0, (0.9, 0.5), Noise(0))
    alpha, sigma = (float(m) for m in process.moments(0.9))
    q = torch.distributions.Normal(alpha * x0, sigma)
    want = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, process.prior_std)).flatten(1).sum(1)
    torch.testing.assert_close(got.prior, want, rtol=1e-9, atol=0)
    assert got.dimensions == 4


class Shrink(nn.Module):
    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        return 0.5 * x


class WithFraction(nn.Module):
    def __init__(self, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        return torch.cat([0.5 * x, torch.full_like(x, 2 * self.fraction - 1)], 1)


def oracle_free(process: GaussianProcess) -> Denoiser:
    return Denoiser(Shrink(), process, "x0")


def test_learned_variance_runs_from_the_small_to_the_large_one() -> None:
    process, x0 = chain("linear", 6), Noise(0).normal((50, 3), dtype=F64)

    def total(fraction: float | None, variance: str) -> Tensor:
        net = Shrink() if fraction is None else WithFraction(fraction)
        denoiser = Denoiser(net, process, "x0", learned_variance=fraction is not None)
        return bound(denoiser, x0, levels(6), Noise(1), variance=variance).total

    torch.testing.assert_close(total(0.0, "learned"), total(None, "posterior"), rtol=1e-9, atol=0)
    torch.testing.assert_close(total(1.0, "learned"), total(None, "transition"), rtol=1e-9, atol=0)
    assert not torch.allclose(total(0.5, "learned"), total(0.0, "learned"))


@pytest.mark.parametrize("samples", [1, 3, 8])
def test_sampled_levels_are_unbiased(samples: int) -> None:
    process = chain("linear", 9)
    oracle = oracle_of(process)
    x0 = oracle.sample(4000, Noise(2))
    got = bound(oracle, x0, levels(9), Noise(3), samples=samples)
    exact = oracle.bound_terms(levels(9), "transition")
    assert abs(got.mean - float(exact.total)) < 4 * got.standard_error
    assert got.calls == samples + 1
    assert got.terms is None
    # the strata alone: with as many as there are levels, each is visited once
    every = bound(oracle, x0[:50], levels(9), Noise(3), samples=8)
    torch.testing.assert_close(every.steps, bound(oracle, x0[:50], levels(9), Noise(3)).steps, rtol=1e-9, atol=0)


def test_standard_error_is_calibrated() -> None:
    process = chain("linear", 9)
    oracle = oracle_of(process)
    n, repeats = 40, 250
    x0 = oracle.sample(n * repeats, Noise(4))
    runs = [bound(oracle, x0[i * n : (i + 1) * n], levels(9), Noise(5), samples=2, first=i * n) for i in range(repeats)]
    spread = float(torch.tensor([r.mean for r in runs]).std())
    claimed = math.sqrt(sum(r.standard_error**2 for r in runs) / repeats)
    assert abs(spread / claimed - 1) < 0.2  # four standard errors of a spread over 250 runs


@pytest.mark.parametrize("variance", ["transition", "posterior"])
@pytest.mark.parametrize("steps", [3, 30])
def test_bound_lies_above_the_entropy(steps: int, variance: str) -> None:
    process = chain("cosine", steps)
    oracle = oracle_of(process)
    x0 = oracle.sample(2000, Noise(6))
    excess = bound(oracle, x0, levels(steps), Noise(7), variance=variance).total + oracle.log_prob(x0)
    assert float(excess.mean()) > -4 * float(excess.std()) / math.sqrt(2000)
    assert float(oracle.bound_terms(levels(steps), variance).total) >= float(oracle.entropy())
    # a denoiser that is wrong pays for it
    worse = bound(oracle_free(process), x0, levels(steps), Noise(7), variance=variance).total + oracle.log_prob(x0)
    assert float(worse.mean()) > float(excess.mean()) + 0.1


def test_bound_of_a_mixture_lies_above_its_negative_log_likelihood() -> None:
    process = chain("linear", 40)
    mixture = MixtureDenoiser(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.2, 0.4]), torch.tensor([0.3, 0.7]), process)
    x0 = mixture.sample(1000, Noise(0))
    excess = bound(mixture, x0, levels(40), Noise(1)).total + mixture.log_prob(x0)
    error = float(excess.std()) / math.sqrt(1000)
    assert -4 * error < float(excess.mean()) < 1.0


def test_chunks_do_not_change_the_bound() -> None:
    oracle = oracle_of(VP())
    x0 = oracle.sample(12, Noise(8))
    for samples in (None, 2):
        times = (1.0, 0.6, 0.3, 0.1)
        whole = bound(oracle, x0, times, Noise(9), samples=samples)
        parts = [bound(oracle, x0[i : i + 4], times, Noise(9), samples=samples, first=i) for i in (0, 4, 8)]
        torch.testing.assert_close(torch.cat([p.total for p in parts]), whole.total, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(bound(oracle, x0, times, Noise(10), samples=samples).total, whole.total)


def test_float32_agrees_with_float64() -> None:
    process = chain("linear", 50)
    x0 = Noise(0).normal((8, 1, 4, 4), dtype=F64)
    double = bound(oracle_free(process), x0, levels(50), Noise(1))
    single = bound(oracle_free(process), x0.float(), levels(50), Noise(1))
    assert single.total.dtype == F64
    torch.testing.assert_close(single.total, double.total, rtol=1e-5, atol=0)


def test_statistics_of_a_bound() -> None:
    value = Bound(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0]), torch.tensor([0.5, 0.5]), dimensions=3, calls=2)
    assert value.total.tolist() == [4.5, 7.5]
    assert value.mean == pytest.approx(6.0)
    assert value.standard_error == pytest.approx(1.5)  # std 3/√2 over √2
    assert value.per_dimension() == pytest.approx((6 / 3 / math.log(2), 1.5 / 3 / math.log(2)))
    assert value.per_dimension(1.0) == pytest.approx((2.0, 0.5))


def test_decoder_sees_the_last_prediction_and_the_jumps_variance() -> None:
    process = chain("linear", 5)
    x0 = (Noise(0).uniform((6, 2)) > 0.5).to(F64) * 2 - 1
    eps = Noise(1).normal((6, 2), stream="bound/last", dtype=F64)
    seen = oracle_free(process)(process.corrupt(x0, 0.2, eps), 0.2).x0
    density = stats.norm(seen.numpy(), math.sqrt(process.betas[0]))
    got = bound(oracle_free(process), x0, levels(5), Noise(1))
    np.testing.assert_allclose(got.decoder.numpy(), -density.logpdf(x0.numpy()).sum(1), rtol=1e-9)
    mass = bound(oracle_free(process), x0, levels(5), Noise(1), decoder=Discretised(2))
    side = np.where(x0.numpy() > 0, density.logsf(0), density.logcdf(0))
    np.testing.assert_allclose(mass.decoder.numpy(), -side.sum(1), rtol=1e-9)


def test_errors_name_argument_and_remedy() -> None:
    process, x0 = chain("linear", 5), Noise(0).normal((4, 2), dtype=F64)
    plain = oracle_free(process)
    for call, words in (
        (lambda: bound(plain, x0, levels(5), Noise(0), variance="full"), "variance='full'.*transition.*posterior.*learned"),
        (lambda: bound(plain, x0, (0.2,), Noise(0), variance="full"), "variance='full'"),
        (lambda: bound(plain, x0, levels(5), Noise(0), variance="learned"), "learned_variance=True"),
        (lambda: bound(plain, x0, levels(5), Noise(0), samples=0), "samples=0.*4"),
        (lambda: bound(plain, x0, levels(5), Noise(0), samples=5), "samples=5.*4"),
        (lambda: bound(plain, x0, levels(5)[::-1], Noise(0)), "times=.*fall"),
        (lambda: bound(plain, x0, (), Noise(0)), "times=.*fall"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    single = bound(plain, x0, (0.2,), Noise(0))  # no steps at all is a chain too
    assert single.steps.tolist() == [0.0] * 4


# --- the discretised decoder


def grid(levels: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.linspace(-1, 1, levels, dtype=dtype)


@pytest.mark.parametrize("count", [2, 17, 256])
@settings(max_examples=40, deadline=None)
@given(mean=st.floats(-4, 4), log_std=st.floats(-9, 4))
def test_probabilities_sum_to_one(count: int, mean: float, log_std: float) -> None:
    variance = torch.tensor(math.exp(2 * log_std), dtype=F64)
    log_p = Discretised(count).log_prob(grid(count), torch.full((count,), mean, dtype=F64), variance)
    assert abs(float(log_p.exp().sum()) - 1) < 1e-6
    assert bool((log_p <= 1e-12).all())
    assert bool(log_p.isfinite().all())


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 5.0)])
def test_other_ranges_sum_to_one(low: float, high: float) -> None:
    decoder = Discretised(9, low, high)
    assert decoder.width == pytest.approx((high - low) / 8)
    x = torch.linspace(low, high, 9, dtype=F64)
    for mean in (low - 1, 0.3, high + 2):
        log_p = decoder.log_prob(x, torch.full((9,), mean, dtype=F64), torch.tensor(0.4, dtype=F64))
        assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("count", [2, 17, 256])
@settings(max_examples=40, deadline=None)
@given(mean=st.floats(-1.5, 1.5), log_std=st.floats(-3, 2))
def test_mass_is_that_of_the_bin(count: int, mean: float, log_std: float) -> None:
    std, half = math.exp(log_std), 1 / (count - 1)
    x = grid(count)
    got = Discretised(count).log_prob(x, torch.full((count,), mean, dtype=F64), torch.tensor(std**2, dtype=F64)).exp().numpy()
    edges = np.concatenate([[-np.inf], x.numpy()[:-1] + half, [np.inf]])
    want = np.diff(stats.norm(mean, std).cdf(edges))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)
    safe = want > 1e-6  # there the difference of two distribution functions keeps ten digits
    np.testing.assert_allclose(got[safe], want[safe], rtol=1e-9)


def test_outermost_bins_are_open() -> None:
    decoder, std = Discretised(256), torch.tensor(0.01, dtype=F64)
    ends = torch.tensor([-1.0, 1.0], dtype=F64)
    for mean, inside in ((5.0, 1), (-5.0, 0)):
        log_p = decoder.log_prob(ends, torch.full((2,), mean, dtype=F64), std**2)
        assert float(log_p[inside]) == pytest.approx(0.0, abs=1e-12)
        edge = (2 - 1 / 255 + 4) / 0.01  # from the mean to the far open bin
        assert float(log_p[1 - inside]) == pytest.approx(float(special.log_ndtr(-edge)), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(level=st.integers(1, 254), mean=st.floats(-6, 6), log_std=st.floats(-5, 1))
def test_tails_are_accurate(level: int, mean: float, log_std: float) -> None:
    std, half = math.exp(log_std), 1 / 255
    x = -1 + 2 * level / 255
    got = Discretised(256).log_prob(*(torch.tensor([v], dtype=F64) for v in (x, mean, std**2)))
    # by symmetry the bin lies at z … z + h above the mean; ∫ φ = φ(z) ∫₀ʰ exp(-zu - u²/2) du, by panels of Gauss-Legendre
    h = 2 * half / std
    z = max((x - half - mean) / std, -(x + half - mean) / std)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    reach = min(h, 40 / max(z, 1.0)) if z > 0 else h
    panels = np.linspace(0, reach, 41)
    u = panels[:-1, None] + (panels[1] / 2) * (nodes + 1)
    integral = float((panels[1] / 2 * weights * np.exp(-z * u - u**2 / 2)).sum())
    want = -0.5 * z**2 - 0.5 * math.log(2 * math.pi) + math.log(integral)
    assert float(got) == pytest.approx(want, rel=1e-9, abs=1e-9)
    # and the same from scipy's tails
    upper, lower = special.log_ndtr(-z), special.log_ndtr(-(z + h))
    assert float(got) == pytest.approx(upper + math.log(-math.expm1(lower - upper)), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@settings(max_examples=60, deadline=None)
@given(level=st.integers(0, 255), mean=st.floats(-4, 4), log_std=st.floats(-5, 3))
def test_gradients_are_finite_and_point_to_the_datum(dtype: torch.dtype, level: int, mean: float, log_std: float) -> None:
    x = grid(256, dtype)[level : level + 1]
    m = torch.tensor([mean], dtype=dtype, requires_grad=True)
    log_variance = torch.tensor([2 * log_std], dtype=dtype, requires_grad=True)
    log_p = Discretised(256).log_prob(x, m, log_variance.exp())
    slope, curve = torch.autograd.grad(log_p.sum(), (m, log_variance))
    assert bool(log_p.isfinite().all() & slope.isfinite().all() & curve.isfinite().all())
    gap = float(x) - mean
    if abs(gap) > 1 / 255 and math.exp(log_std) < 1 and 0 < level < 255:
        assert float(slope) * gap > 0


@pytest.mark.parametrize("level", [0, 3, 100, 255])
def test_gradient_is_the_slope(level: int) -> None:
    x = grid(256)[level : level + 1]
    mean, variance = (torch.tensor([v], dtype=F64, requires_grad=True) for v in (0.4, 0.02))
    assert torch.autograd.gradcheck(lambda m, v: Discretised(256).log_prob(x, m, v), (mean, variance))


def test_a_fine_grid_becomes_a_density() -> None:
    decoder, x = Discretised(65536), torch.tensor([-0.2, 0.1, 0.6], dtype=F64)
    x = ((x + 1) / decoder.width).round() * decoder.width - 1
    mean, variance = torch.tensor([0.0, 0.5, -0.3], dtype=F64), torch.tensor(0.04, dtype=F64)
    want = GaussianDecoder().log_prob(x, mean, variance)
    np.testing.assert_allclose(want.numpy(), stats.norm(mean.numpy(), 0.2).logpdf(x.numpy()), rtol=1e-12)
    torch.testing.assert_close(decoder.log_prob(x, mean, variance) - math.log(decoder.width), want, rtol=0, atol=1e-6)
