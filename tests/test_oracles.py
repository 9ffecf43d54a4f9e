"""The oracles against themselves: densities, scores, moments, flows and the bound are derived here in other ways."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ornstein import grid
from ornstein.noise import Noise
from ornstein.process import EDM, VE, VP, Chain, GaussianProcess, Rectified, SubVP
from ornstein.process.chain import linear_betas
from ornstein.testing import GaussianDenoiser, MixtureDenoiser, Oracle, empirical_denoiser

PROCESSES: dict[str, GaussianProcess] = {"vp": VP(), "ve": VE(0.02, 10.0), "sub_vp": SubVP(), "edm": EDM(), "flow": Rectified()}
KINDS = ("gaussian", "mixture")
D = 3


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, stream: str = "x") -> Tensor:
    return Noise(1).normal(shape, stream=stream, dtype=torch.float64)


def oracle(kind: str, process: GaussianProcess) -> Oracle:
    if kind == "gaussian":
        root = normal(D, D, stream="root")
        return GaussianDenoiser(f64(0.5, -1.0, 2.0), root @ root.T + 0.05 * torch.eye(D), process)
    return MixtureDenoiser(normal(4, D, stream="means"), f64(0.1, 0.5, 0.3, 1.0), f64(0.1, 0.4, 0.3, 0.2), process)


def noisy(o: Oracle, t: float, n: int = 5) -> Tensor:
    return o.process.corrupt(o.sample(n, Noise(2)), t, normal(n, D, stream="eps"))


CASES = [(kind, name) for kind in KINDS for name in PROCESSES]


@pytest.mark.parametrize(("kind", "name"), CASES)
@settings(max_examples=6)
@given(t=st.floats(0.05, 0.99))
def test_score_is_the_gradient_of_log_prob(kind: str, name: str, t: float) -> None:
    o = oracle(kind, PROCESSES[name])
    x = noisy(o, t).requires_grad_()
    (slope,) = torch.autograd.grad(o.log_prob(x, t).sum(), x)
    torch.testing.assert_close(o(x, t).score, slope, rtol=1e-9, atol=1e-9 * float(slope.abs().max()))
    # Tweedie: E[x0|x] = (x + sigma² score)/alpha
    alpha, sigma = o.process.moments(t)
    torch.testing.assert_close(o(x, t).x0, (x + sigma**2 * slope) / alpha, rtol=1e-8, atol=1e-7 / float(alpha))


@pytest.mark.parametrize(("kind", "name"), CASES)
@pytest.mark.parametrize("t", [0.1, 0.6, 0.97])
def test_posterior_covariance_is_the_slope_of_the_mean(kind: str, name: str, t: float) -> None:
    o = oracle(kind, PROCESSES[name])
    x = noisy(o, t)
    alpha, sigma = o.process.moments(t)
    slope = torch.autograd.functional.jacobian(lambda y: o._mean(y, alpha, sigma).sum(0), x).transpose(0, 1)
    exact = sigma**2 / alpha * slope
    torch.testing.assert_close(o.posterior_covariance(x, t), exact, rtol=1e-8, atol=1e-9 * float(exact.abs().max()))


def test_posterior_moments_are_bayes_on_a_grid() -> None:
    o = MixtureDenoiser(f64(-1.0, 0.5, 2.0)[:, None], f64(0.2, 0.4, 0.1), f64(0.5, 0.2, 0.3), VP())
    x0 = torch.linspace(-8, 8, 40_001, dtype=torch.float64)
    alpha, sigma = VP().moments(0.3)
    for x_t in (-1.0, 0.3, 1.5):
        weight = torch.exp(o.log_prob(x0[:, None]) - 0.5 * ((x_t - alpha * x0) / sigma) ** 2)
        weight /= weight.sum()
        mean = (weight * x0).sum()
        at = f64(x_t)[:, None]
        assert float(o(at, 0.3).x0) == pytest.approx(float(mean), abs=1e-9)
        assert float(o.posterior_covariance(at, 0.3)) == pytest.approx(float((weight * (x0 - mean) ** 2).sum()), abs=1e-9)


@pytest.mark.parametrize("t", [None, 0.01, 0.4, 1.0])
def test_densities_integrate_to_one(t: float | None) -> None:
    x = torch.linspace(-60, 60, 400_001, dtype=torch.float64)
    for o in (
        MixtureDenoiser(f64(-1.0, 2.0)[:, None], f64(0.3, 0.05), f64(0.4, 0.6), VE(0.01, 5.0)),
        GaussianDenoiser(f64(1.5), f64(0.04)[:, None], VP()),
    ):
        assert float(torch.trapezoid(o.log_prob(x[:, None], t).exp(), x)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_gaussian_is_a_mixture_of_one(name: str) -> None:
    p, mean = PROCESSES[name], f64(0.5, -1.0, 2.0)
    a = GaussianDenoiser(mean, 0.36 * torch.eye(D, dtype=torch.float64), p)
    b = MixtureDenoiser(mean[None], f64(0.6), f64(1.0), p)
    c = MixtureDenoiser(mean.expand(3, D), f64(0.6, 0.6, 0.6), f64(0.2, 0.3, 0.5), p)
    for t in (0.1, 0.5, 0.98):
        x = noisy(a, t)
        for other in (b, c):
            torch.testing.assert_close(other(x, t).x0, a(x, t).x0, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(other.log_prob(x, t), a.log_prob(x, t), rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(other.posterior_covariance(x, t), a.posterior_covariance(x, t), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(b.log_prob(x), a.log_prob(x))


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_the_flow_in_closed_form_solves_the_equation(name: str) -> None:
    p, mean = PROCESSES[name], f64(0.5, -1.0, 2.0)
    closed = GaussianDenoiser(mean, 0.36 * torch.eye(D, dtype=torch.float64), p)
    solved = MixtureDenoiser(mean[None], f64(0.6), f64(1.0), p)
    x = noisy(closed, 0.9)
    torch.testing.assert_close(solved.flow(x, 0.9, 0.2), closed.flow(x, 0.9, 0.2), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(solved.flow(x, 0.9, None), closed.flow(x, 0.9, None), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(closed.flow(closed.flow(x, 0.9, 0.2), 0.2, 0.9), x)
    # the equation itself: dx/dt = f x - ½ g² score
    h, t = 1e-5, 0.4
    slope = (closed.flow(x, t, t + h) - closed.flow(x, t, t - h)) / (2 * h)
    exact = p.drift(t) * x - 0.5 * p.diffusion(t) ** 2 * closed(x, t).score
    torch.testing.assert_close(slope, exact, rtol=1e-5, atol=1e-6)


def test_the_flow_carries_density_along() -> None:
    o = MixtureDenoiser(f64(-1.0, 1.5)[:, None], f64(0.3, 0.5), f64(0.4, 0.6), VP())
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    h = 1e-4
    ends = [o.flow(x + shift, 0.6, 0.1, tolerance=1e-12) for shift in (-h, 0.0, h)]
    stretch = (ends[2] - ends[0])[:, 0] / (2 * h)
    assert bool((stretch > 0).all())
    # change of variables: log p_s(flow x) + log |d flow/dx| = log p_t(x)
    torch.testing.assert_close(o.log_prob(ends[1], 0.1) + stretch.log(), o.log_prob(x, 0.6), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_flow_preserves_the_measure(kind: str) -> None:
    o, n = oracle(kind, VP()), 4000
    x = VP().corrupt(o.sample(n, Noise(3)), 0.7, normal(n, D, stream="push"))
    pushed, drawn = o.flow(x, 0.7, 0.05, tolerance=1e-6), VP().corrupt(o.sample(n, Noise(4)), 0.05, normal(n, D, stream="draw"))
    for power in (1, 2):
        a, b = pushed**power, drawn**power
        spread = torch.sqrt((a.var(0) + b.var(0)) / n)
        assert bool(((a.mean(0) - b.mean(0)).abs() < 5 * spread).all())
    gap = o.log_prob(pushed, 0.05).mean() - o.log_prob(drawn, 0.05).mean()
    assert abs(gap) < 5 * math.sqrt(2 / n) * o.log_prob(drawn, 0.05).std()


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_law_and_are_keyed(kind: str) -> None:
    o, n = oracle(kind, VP()), 20_000
    x = o.sample(n, Noise(5))
    if isinstance(o, GaussianDenoiser):
        mean, covariance = o.mean, o.covariance
    else:
        assert isinstance(o, MixtureDenoiser)
        mean = o.weights @ o.means
        centred = o.means - mean
        covariance = (o.weights @ o.stds**2) * torch.eye(D) + torch.einsum("k,ki,kj->ij", o.weights, centred, centred)
    assert bool(((x.mean(0) - mean).abs() < 5 * (covariance.diagonal() / n).sqrt()).all())
    diagonal = covariance.diagonal()
    assert bool(((torch.cov(x.T) - covariance).abs() < 8 * torch.sqrt(2 * torch.outer(diagonal, diagonal) / n)).all())
    assert torch.equal(o.sample(5, Noise(5), first=100), x[100:105])


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_batch_of_times_agrees_with_numbers(kind: str, name: str) -> None:
    o, times = oracle(kind, PROCESSES[name]), f64(0.2, 0.5, 0.9)  # as many samples as dimensions: a wrong axis would broadcast
    x = noisy(o, 0.5, D)
    for i, t in enumerate(times.tolist()):
        one = x[i : i + 1]
        torch.testing.assert_close(o(x, times).x0[i : i + 1], o(one, t).x0)
        torch.testing.assert_close(o.log_prob(x, times)[i : i + 1], o.log_prob(one, t))
        torch.testing.assert_close(o.posterior_covariance(x, times)[i : i + 1], o.posterior_covariance(one, t))
        if isinstance(o, GaussianDenoiser):
            torch.testing.assert_close(o.flow(x, times, times / 2)[i : i + 1], o.flow(one, t, t / 2))


def test_images_and_float32_are_flattened_and_given_back() -> None:
    o = MixtureDenoiser(normal(2, 1, 3, 2), f64(0.2, 0.3), f64(0.5, 0.5), VP())
    x = normal(4, 1, 3, 2).float()
    assert o(x, 0.5).x0.shape == x.shape
    assert o(x, 0.5).x0.dtype == torch.float32
    torch.testing.assert_close(o(x, 0.5).x0.flatten(1), o(x.flatten(1), 0.5).x0)


def test_the_empirical_oracle_finds_the_nearest_point() -> None:
    data = normal(20, 2, 3)
    o = empirical_denoiser(data, EDM(1e-4, 80.0))
    x = data + 0.05 * normal(20, 2, 3, stream="shift")
    torch.testing.assert_close(o(x, 0.0).x0, data)
    torch.testing.assert_close(o(1e-3 * x, 1.0).x0, data.mean(0).expand_as(x), rtol=0, atol=1e-2)
    # in between: the softmax of distances, written out
    sigma = EDM(1e-4, 80.0).moments(0.5)[1]
    distance = ((x[:, None] - data) ** 2).flatten(2).sum(2)
    r = torch.softmax(-distance / (2 * sigma**2), 1)
    torch.testing.assert_close(o(x, 0.5).x0, torch.einsum("bn,nij->bij", r, data))


# --- the variational bound of Gaussian data, in closed form ---


def even_chain(steps: int) -> tuple[Chain, tuple[float, ...]]:
    """The discretisation of VP in `steps` equal steps, and all its levels."""
    p = Chain(linear_betas(steps, 0.1 / steps, 20 / steps))
    return p, grid.uniform(p, steps)


def correlated(p: GaussianProcess) -> GaussianDenoiser:
    root = f64(1.0, 0.0, 0.0, 0.4, 0.7, 0.0, -0.3, 0.2, 0.5).reshape(3, 3)
    return GaussianDenoiser(f64(0.3, -0.2, 0.1), root @ root.T, p)


@settings(max_examples=40)
@given(steps=st.integers(21, 120), seed=st.integers(0, 50), mean=st.floats(-1, 1), name=st.sampled_from(["chain", *PROCESSES]))
def test_with_the_full_covariance_the_bound_misses_the_terminal_kl_alone(steps: int, seed: int, mean: float, name: str) -> None:
    if name == "chain":
        p, times = even_chain(steps)
    else:
        p = PROCESSES[name]
        # the flow's end has alpha = 0, which is no obstacle to a bound
        times = grid.uniform(p, steps)
    root = Noise(seed).normal((D, D), dtype=torch.float64)
    o = GaussianDenoiser(mean * torch.ones(D), root @ root.T + 0.1 * torch.eye(D), p)
    gap = o.bound_terms(times, "full").total - o.entropy()
    torch.testing.assert_close(gap, o.terminal_kl(times[0]), rtol=1e-9, atol=1e-10)


def gaps(variance: str, steps: list[int]) -> list[float]:
    """(bound - entropy - terminal KL) per dimension on correlated data, for each number of steps."""
    found = []
    for n in steps:
        p, times = even_chain(n)
        o = correlated(p)
        found.append(float(o.bound_terms(times, variance).total - o.entropy() - o.terminal_kl()) / D)
    return found


@pytest.mark.parametrize("variance", ["isotropic", "transition"])
def test_the_gap_of_one_number_per_step_falls_as_one_over_t(variance: str) -> None:
    found = gaps(variance, [1000, 2000, 4000])
    assert min(found) > 0
    for k in range(2):
        slope = math.log(found[k + 1] / found[k]) / math.log(2)
        assert slope == pytest.approx(-1, abs=0.05), found


def test_the_gap_of_the_posterior_variance_stays_at_half_of_eulers_constant() -> None:
    # Near the data beta is constant, so sigma_k² ~ k, β̃_k/β_k = (k-1)/k, and the step k costs ½ (1/(k-1) - log(k/(k-1))) per
    # dimension, whatever the data and however small the steps. The sum over k >= 2 is ½ lim (H_n - log n) = ½ gamma. beta grows
    # by 199/T of itself with every step, hence a correction of order log(T)/T, which is why T must be large.
    limit = 0.5 * 0.5772156649015329
    misses = [gap - limit for gap in gaps("posterior", [1_000, 10_000, 100_000, 600_000])]
    assert all(later < earlier / 4 for earlier, later in pairwise(misses))
    assert 0 < misses[-1] < 1e-3


@pytest.mark.parametrize("variance", [1.0, 0.2])
def test_the_gap_of_the_posterior_variance_is_the_sum_over_steps(variance: float) -> None:
    p, times = even_chain(300)
    o = GaussianDenoiser(f64(0.0), f64(variance)[:, None], p)
    gap = float(o.bound_terms(times, "posterior").total - o.entropy() - o.terminal_kl())
    alpha2, noise = 1.0, 0.0
    exact = 0.0
    for k, beta in enumerate(p.betas):
        before, noise_before = alpha2, noise
        alpha2, noise = alpha2 * (1 - beta), (1 - beta) * noise + beta
        left = variance * noise / (alpha2 * variance + noise)  # Var[x0|x_k]
        tilde = beta * noise_before / noise
        # the last step, where β̃ = 0, takes the variance of the jump
        ratio = (tilde + before * (beta / noise) ** 2 * left) / tilde if k else left / beta
        exact += 0.5 * (ratio - 1 - math.log(ratio))
    assert gap == pytest.approx(exact, rel=1e-9)


def test_terms_are_the_divergences_they_stand_for() -> None:
    p, times = even_chain(30)
    o = correlated(p)
    terms = o.bound_terms(times, "transition")
    assert terms.steps.shape == (29,)
    n = 40_000
    x0 = o.sample(n, Noise(6))
    t, s = times[4], times[5]
    x_t = p.corrupt(x0, t, normal(n, D, stream="bound"))
    q = p.posterior(t, s)
    law = torch.distributions.Normal
    true, model = law(q.mean(x_t, x0), q.variance.sqrt()), law(q.mean(x_t, o(x_t, t).x0), q.transition.sqrt())
    kl = torch.distributions.kl_divergence(true, model).sum(1)
    assert abs(kl.mean() - terms.steps[4]) < 5 * kl.std() / math.sqrt(n)
    alpha, sigma = p.moments(times[0])
    end = torch.distributions.kl_divergence(law(alpha * x0, sigma), law(torch.zeros(D).double(), 1.0)).sum(1)
    assert abs(end.mean() - terms.prior) < 5 * end.std() / math.sqrt(n)
    x_1 = p.corrupt(x0, times[-1], normal(n, D, stream="last"))
    spread = p.posterior(times[-1], None).transition.sqrt()
    nll = -law(o(x_1, times[-1]).x0, spread).log_prob(x0).sum(1)
    assert abs(nll.mean() - terms.decoder) < 5 * nll.std() / math.sqrt(n)
    torch.testing.assert_close(terms.total, terms.prior + terms.steps.sum() + terms.decoder)


def test_full_is_best_and_each_restriction_costs() -> None:
    p, times = even_chain(50)
    o = correlated(p)
    full, isotropic, transition, posterior = (
        float(o.bound_terms(times, v).total) for v in ("full", "isotropic", "transition", "posterior")
    )
    assert full < isotropic < min(transition, posterior)


def test_wrong_arguments_are_refused() -> None:
    o = oracle("mixture", VP())
    with pytest.raises(ValueError, match=r"cond=\['label'\] was given to MixtureDenoiser"):
        o(normal(2, D), 0.5, {"label": torch.zeros(2)})
    with pytest.raises(ValueError, match="holds no signal"):
        oracle("mixture", Rectified()).flow(normal(2, D), 1.0, 0.5)
    with pytest.raises(ValueError, match="variance='best' is not one of"):
        correlated(VP()).bound_terms((1.0, 0.5), "best")
    with pytest.raises(ValueError, match="non-negative and sum to 1"):
        MixtureDenoiser(normal(2, D), f64(1.0, 1.0), f64(0.5, 0.6), VP())
    with pytest.raises(ValueError, match="must be \\(K, D\\)"):
        MixtureDenoiser(normal(2, D), f64(1.0, 1.0, 1.0), f64(0.5, 0.5), VP())
