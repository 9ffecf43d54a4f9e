"""Exact posteriors under linear measurements, held against Bayes: on grids, by weighting, by conditioning twice, by sampling."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ornstein.noise import Noise
from ornstein.operator import Mask, Matrix, Nonlinear
from ornstein.process import EDM, VP, Rectified
from ornstein.samplers import heun, propagate, sample
from ornstein.testing import FullMixtureDenoiser, GaussianDenoiser, MixtureDenoiser, Oracle, empirical_denoiser

F64 = torch.float64
KINDS = ("gaussian", "round", "full")
PROCESSES = {"vp": VP(), "edm": EDM(), "flow": Rectified()}
D = 3


def normal(*shape: int, stream: str = "x") -> Tensor:
    return Noise(1).normal(shape, stream=stream, dtype=F64)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def covariances(k: int, d: int) -> Tensor:
    root = normal(k, d, d, stream="root")
    return root @ root.mT / d + 0.02 * torch.eye(d, dtype=F64)


def prior(kind: str, d: int = D, process: object = None) -> Oracle:
    p = process or VP()
    if kind == "gaussian":
        return GaussianDenoiser(normal(d, stream="means"), covariances(1, d)[0], p)  # type: ignore[arg-type]
    means, weights = normal(3, d, stream="means"), f64(0.2, 0.5, 0.3)
    if kind == "round":
        return MixtureDenoiser(means, f64(0.3, 0.5, 0.8), weights, p)  # type: ignore[arg-type]
    return FullMixtureDenoiser(means, covariances(3, d), weights, p)  # type: ignore[arg-type]


def noisy(o: Oracle, t: float, n: int = 6, d: int = D) -> Tensor:
    return o.process.corrupt(o.sample(n, Noise(2)), t, normal(n, d, stream="eps"))


# --- the general mixture as an oracle


def test_round_covariances_written_out_are_the_round_mixture() -> None:
    a = prior("round")
    assert isinstance(a, MixtureDenoiser)
    b = a.full()
    times = f64(0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    for t in (0.05, 0.5, times):
        x = noisy(a, 0.5)
        torch.testing.assert_close(b(x, t).x0, a(x, t).x0)
        torch.testing.assert_close(b.log_prob(x, t), a.log_prob(x, t))
        torch.testing.assert_close(b.posterior_covariance(x, t), a.posterior_covariance(x, t))
    torch.testing.assert_close(b.sample(9, Noise(3)), a.sample(9, Noise(3)))
    torch.testing.assert_close(b.flow(x, 0.8, 0.2, tolerance=1e-5), a.flow(x, 0.8, 0.2, tolerance=1e-5), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", PROCESSES)
@settings(max_examples=5)
@given(t=st.floats(0.05, 0.99))
def test_the_general_mixture_follows_from_its_density(name: str, t: float) -> None:
    o = prior("full", process=PROCESSES[name])
    x = noisy(o, t).requires_grad_()
    (slope,) = torch.autograd.grad(o.log_prob(x, t).sum(), x)
    torch.testing.assert_close(o(x, t).score, slope, rtol=1e-9, atol=1e-9 * float(slope.abs().max()))
    alpha, sigma = o.process.moments(t)
    tangent = torch.autograd.functional.jacobian(lambda y: o._mean(y, alpha, sigma).sum(0), x.detach()).transpose(0, 1)
    exact = sigma**2 / alpha * tangent
    torch.testing.assert_close(o.posterior_covariance(x.detach(), t), exact, rtol=1e-8, atol=1e-9 * float(exact.abs().max()))


def test_draws_of_the_general_mixture_have_its_law_and_are_keyed() -> None:
    o, n = prior("full"), 20_000
    assert isinstance(o, FullMixtureDenoiser)
    x = o.sample(n, Noise(5))
    assert bool(((x.mean(0) - o.mean).abs() < 5 * (o.covariance.diagonal() / n).sqrt()).all())
    v = o.covariance.diagonal()
    assert bool(((torch.cov(x.T) - o.covariance).abs() < 8 * torch.sqrt(torch.outer(v, v) / n)).all())
    # not only two moments: the mean log density is the one that importance weights of another law give
    wide = GaussianDenoiser(o.mean, 1.5 * o.covariance, VP())
    y = wide.sample(n, Noise(6))
    weight = (o.log_prob(y) - wide.log_prob(y)).softmax(0)
    entropy = float((weight * o.log_prob(y)).sum())
    assert float(o.log_prob(x).mean()) == pytest.approx(entropy, abs=0.05)
    assert torch.equal(o.sample(5, Noise(5), first=100), x[100:105])


# --- posteriors


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8)
@given(noise_std=st.floats(0.05, 2.0), seed=st.integers(0, 20), rows=st.integers(1, 4))
def test_bayes_rule_holds_for_densities(kind: str, noise_std: float, seed: int, rows: int) -> None:
    o = prior(kind)
    a = Noise(seed).normal((rows, D), stream="a", dtype=F64)
    y = Noise(seed).normal((rows,), stream="y", dtype=F64)
    after = o.given(y, a, noise_std)
    # log p(x|y) = log p(x) + log N(y; A x, s² I) - log p(y): the difference is the same for all x
    x = normal(7, D, stream="at")
    likelihood = -0.5 * ((y - x @ a.T) / noise_std).square().sum(1)
    gap = after.log_prob(x) - o.log_prob(x) - likelihood
    torch.testing.assert_close(gap, gap[:1].expand(7), rtol=0, atol=1e-7 * (1 + float(likelihood.abs().max())))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_moments_are_bayes_on_a_grid(kind: str, noise_std: float) -> None:
    o, a, y = prior(kind, 2), f64(0.8, -0.6)[None], f64(0.4)
    after = o.given(y, a, noise_std)
    line = torch.linspace(-7, 7, 1001, dtype=F64)
    across = torch.linspace(-8 * noise_std, 8 * noise_std, 201, dtype=F64) if noise_std else torch.zeros(1, dtype=F64)
    # points y·a + u·a + v·b, a and b orthonormal
    u, v = torch.meshgrid(across, line, indexing="ij")
    x = ((y + u.reshape(-1, 1)) * a) + v.reshape(-1, 1) * f64(0.6, 0.8)
    penalty = 0.5 * (u.reshape(-1) / noise_std).square() if noise_std else 0.0
    weight = (o.log_prob(x) - penalty).softmax(0)
    mean = weight @ x
    covariance = torch.einsum("n,ni,nj->ij", weight, x - mean, x - mean)
    torch.testing.assert_close(after.mean, mean, rtol=0, atol=1e-7)  # type: ignore[attr-defined]
    torch.testing.assert_close(after.covariance, covariance, rtol=0, atol=1e-7)  # type: ignore[attr-defined]
    # and the guided denoiser E[x0|x_t, y]: the same weights times the likelihood of x_t
    alpha, sigma = o.process.moments(0.3)
    for x_t in (f64(0.3, 0.7), f64(-1.0, 0.2)):
        w = (weight.log() - 0.5 * ((x_t - alpha * x) / sigma).square().sum(1)).softmax(0)
        torch.testing.assert_close(after(x_t[None], 0.3).x0[0], w @ x, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_posterior_draws_are_the_prior_draws_weighted(kind: str) -> None:
    n, a, y, s = 60_000, f64(0.5, 1.0, -0.4)[None], f64(0.6), 0.5
    o = prior(kind)
    x = o.sample(n, Noise(7))
    weight = (-0.5 * ((x @ a.T - y) / s).square().sum(1)).softmax(0)
    drawn = o.given(y, a, s).sample(n, Noise(8))
    effective = 1 / float(weight.square().sum())
    for f in (lambda z: z, lambda z: z**2, lambda z: z.sin() * z[:, :1]):
        expected = weight @ f(x)
        spread = (weight @ (f(x) - expected).square()).sqrt()
        assert bool(((f(drawn).mean(0) - expected).abs() < 5 * spread * math.sqrt(1 / effective + 1 / n)).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise_std", [0.0, 0.4])
def test_two_measurements_in_turn_are_both_at_once(kind: str, noise_std: float) -> None:
    d = 4
    o, a, y = prior(kind, d), normal(3, d, stream="a"), normal(3, stream="y")
    both = o.given(y, a, noise_std)
    in_turn = o.given(y[:1], a[:1], noise_std).given(y[1:], a[1:], noise_std)
    x = normal(5, d, stream="at")
    torch.testing.assert_close(in_turn(x, 0.4).x0, both(x, 0.4).x0, rtol=0, atol=1e-9)
    torch.testing.assert_close(in_turn.posterior_covariance(x, 0.4), both.posterior_covariance(x, 0.4), rtol=0, atol=1e-9)
    # a measurement repeated without noise says nothing new; with noise it halves the variance
    again = both.given(y, a, noise_std)
    halved = o.given(y, a, noise_std / math.sqrt(2))
    torch.testing.assert_close(again(x, 0.4).x0, halved(x, 0.4).x0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_a_mask_is_its_matrix_and_keeps_exact_numbers(kind: str, noise_std: float) -> None:
    o, shown = prior(kind), torch.tensor([True, False, True])
    y = f64(0.7, 0.0, -0.2)
    after = o.given(y[None], Mask(shown), noise_std)
    rows = o.given(y[shown], torch.eye(D, dtype=F64)[shown], noise_std)
    image = o.given(y.reshape(1, 3, 1), Mask(shown.reshape(3, 1)), noise_std)
    x = normal(5, D, stream="at")
    for other in (rows, image):
        torch.testing.assert_close(after(x, 0.4).x0, other(x, 0.4).x0, rtol=0, atol=1e-12)
    if noise_std == 0:
        for values in (
            after.sample(100, Noise(0)),
            after(x, 0.4).x0,
            after(x, 0.01).x0,
        ):
            assert float((values - y)[:, shown].abs().max()) < 1e-12
        with pytest.raises(ValueError, match="has no density"):
            after.log_prob(x)
        assert bool(after.log_prob(x, 0.2).isfinite().all())


def test_repeated_rows_and_float32_values_are_one_measurement() -> None:
    o = prior("full")
    a = f64(1.0, 2.0, 0.0)
    x = normal(5, D, stream="at")
    once = o.given(f64(0.3), a[None])
    for value in (f64(0.3, 0.6), torch.tensor([0.3, 0.6])):
        torch.testing.assert_close(o.given(value, torch.stack([a, 2 * a]))(x, 0.4).x0, once(x, 0.4).x0, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="no x fits; give a noise_std"):
        o.given(f64(0.3, 0.5), torch.stack([a, 2 * a]))


def test_an_ill_conditioned_operator_without_noise_still_says_all() -> None:
    o, truth = prior("gaussian"), f64(0.3, -0.4, 0.9)
    a = torch.diag(f64(1.0, 1e-3, 1e-5))
    torch.testing.assert_close(o.given(a @ truth, a).sample(3, Noise(0)), truth.expand(3, D), rtol=0, atol=1e-9)


def test_an_exact_measurement_of_points_leaves_the_points_that_fit() -> None:
    points = torch.tensor([[0.0, 1.0], [0.0, -2.0], [1.0, 3.0]], dtype=F64)
    after = empirical_denoiser(points, VP()).given(f64(0.0, 0.0), Mask(torch.tensor([True, False])))
    torch.testing.assert_close(after.means, points[:2])
    torch.testing.assert_close(after.weights, f64(0.5, 0.5))
    # a point that fits outweighs a density
    mixed = FullMixtureDenoiser(points[1:], torch.stack([torch.zeros(2, 2), torch.eye(2)]), f64(0.01, 0.99), VP())
    assert len(mixed.given(f64(0.0, 0.0), Mask(torch.tensor([True, False]))).weights) == 1
    with pytest.raises(ValueError, match="probability 0 under every component"):
        empirical_denoiser(points, VP()).given(f64(0.5, 0.0), Mask(torch.tensor([True, False])))
    flat = GaussianDenoiser(f64(0.0, 0.0), torch.diag(f64(1.0, 0.0)), VP())
    with pytest.raises(ValueError, match="they leave the subspace"):
        flat.given(f64(0.0, 0.1), Mask(torch.tensor([False, True])))


@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_sampling_the_posterior_oracle_by_a_plan_gives_its_law(noise_std: float) -> None:
    o = prior("gaussian")
    assert isinstance(o, GaussianDenoiser)
    after = o.given(f64(0.5), f64(0.5, 1.0, -0.4)[None], noise_std)
    law = propagate(heun(o.process, 101, "log_snr"), after)[-1]
    torch.testing.assert_close(law.mean @ after.directions.T, after.mean, rtol=0, atol=2e-3)
    torch.testing.assert_close(law.variances, after.variances, rtol=0.02, atol=1e-9)
    mixture, n = prior("full"), 3000
    exact = mixture.given(f64(0.5), f64(0.5, 1.0, -0.4)[None], noise_std)
    assert isinstance(exact, FullMixtureDenoiser)
    drawn = sample(exact, heun(exact.process, 41, "log_snr"), shape=(n, D), noise=Noise(9), dtype=F64)
    spread = (exact.covariance.diagonal() / n).sqrt()
    assert bool(((drawn.mean(0) - exact.mean).abs() < 4 * spread + 0.01).all())
    assert bool(((torch.cov(drawn.T) - exact.covariance).abs() < 0.08 * exact.covariance.diagonal().max()).all())
    if noise_std == 0:
        assert float((drawn @ f64(0.5, 1.0, -0.4) - 0.5).abs().max()) < 1e-10


def test_wrong_arguments_are_refused() -> None:
    o = prior("full")
    with pytest.raises(ValueError, match="needs the noise level"):
        o.given(f64(0.0), f64(1.0, 0.0, 0.0)[None], None)
    with pytest.raises(ValueError, match="give one measurement of one datum"):
        o.given(normal(2, D), Mask(torch.ones(D, dtype=torch.bool)))
    with pytest.raises(ValueError, match="give one measurement of one datum"):
        o.given(f64(0.0), f64(1.0, 0.0)[None])
    with pytest.raises(ValueError, match="is not linear"):
        o.given(normal(1, D), Nonlinear((D,), torch.sin))
    with pytest.raises(ValueError, match=r"must be \(K, D\), \(K, D, D\), \(K,\)"):
        FullMixtureDenoiser(normal(2, D), covariances(3, D), f64(0.5, 0.5), VP())
    with pytest.raises(ValueError, match="non-negative and sum to 1"):
        FullMixtureDenoiser(normal(2, D), covariances(2, D), f64(0.5, 0.6), VP())
    assert Matrix(f64(1.0, 0.0, 0.0)[None]).measured_shape == (1,)
