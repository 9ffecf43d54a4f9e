"""Every process and chain: iterated kernels = closed form = Bayes; (f, g) and (alpha, sigma) agree; laws and divergences."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ornstein import process
from ornstein.noise import Noise
from ornstein.process import (
    BETAS,
    EDM,
    VE,
    VP,
    Chain,
    Cosine,
    GaussianProcess,
    LinearSDE,
    Rectified,
    SubVP,
    chain,
    gaussian_kl,
    gaussian_kl_full,
    gaussian_log_density,
    reparameterise,
)

OWN = LinearSDE(lambda t: -torch.cos(3 * t), lambda t: 0.5 + t**2, initial_variance=0.01)
CONTINUOUS: dict[str, GaussianProcess] = {
    "vp": VP(),
    "vp_mild": VP(0.5, 4.0),
    "cosine": Cosine(),
    "ve": VE(),
    "sub_vp": SubVP(),
    "edm": EDM(),
    "rectified": Rectified(),
    "linear_sde": OWN,
}
CHAINS: dict[str, Chain] = {
    **{f"chain_{name}": chain(name) for name in BETAS},
    **{f"zero_{name}": chain(name, zero_terminal=True) for name in BETAS},
    "short": chain("cosine", 7),
    "sssd": chain("linear", 200),
}
EVERY = CONTINUOUS | CHAINS
NAMES = st.sampled_from(sorted(EVERY))
UNIT = st.floats(0, 1)


def f64(value: float) -> Tensor:
    """A float64 scalar; torch.tensor(value).double() would round to float32 on the way."""
    return torch.tensor(value, dtype=torch.float64)


def place(p: GaussianProcess, u: float) -> float:
    """u in [0, 1] as a time the process defines."""
    if isinstance(p, Chain):
        # a chain takes times within 1e-9 of a level for that level; between two such times without signal there is no kernel
        u = round(u, 8)
    return min(p.t_min + u * (1 - p.t_min), 1.0)


def test_no_process_is_left_out() -> None:
    tested = {type(p) for p in EVERY.values()}
    assert {type(make()) for make in process.ALL.values()} <= tested
    assert len(EVERY) == len(CONTINUOUS) + len(CHAINS)


@settings(max_examples=100)
@given(name=NAMES, places=st.lists(UNIT, min_size=1, max_size=30, unique=True))
def test_iterated_kernels_are_the_closed_form(name: str, places: list[float]) -> None:
    p = EVERY[name]
    times = [None, *sorted({place(p, u) for u in places})]
    alpha, variance = torch.tensor(1.0).double(), torch.tensor(0.0).double()
    for s, t in pairwise(times):
        step = p.transition(s, t)
        alpha, variance = step.alpha * alpha, step.alpha**2 * variance + step.variance
        exact_alpha, exact_sigma = p.moments(t)
        assert step.variance >= 0
        torch.testing.assert_close(alpha, exact_alpha, rtol=1e-10, atol=1e-15)
        torch.testing.assert_close(variance, exact_sigma**2, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", CHAINS)
def test_every_level_of_a_chain_follows_from_its_betas(name: str) -> None:
    p, alpha2, variance = CHAINS[name], 1.0, 0.0
    levels = [(1.0, 0.0)]
    for beta in p.betas:
        alpha2, variance = (1 - beta) * alpha2, (1 - beta) * variance + beta
        levels.append((math.sqrt(alpha2), math.sqrt(variance)))
    alpha, sigma = p.moments(torch.arange(p.steps + 1, dtype=torch.float64) / p.steps)
    torch.testing.assert_close(torch.stack([alpha, sigma], 1), torch.tensor(levels, dtype=torch.float64), rtol=1e-10, atol=1e-14)
    for k in {1, 2, p.steps // 2, p.steps - 1}:
        one = p.transition((k - 1) / p.steps, k / p.steps)
        assert math.isclose(float(one.variance), p.betas[k - 1], rel_tol=1e-9)
        assert math.isclose(float(one.alpha), math.sqrt(1 - p.betas[k - 1]), rel_tol=1e-10)


@settings(max_examples=100)
@given(name=NAMES, u=UNIT, w=UNIT, x_t=st.floats(-3, 3), x0=st.floats(-3, 3))
def test_posterior_is_bayes(name: str, u: float, w: float, x_t: float, x0: float) -> None:
    p = EVERY[name]
    s, t = sorted((place(p, u), place(p, w)))
    (alpha_s, sigma_s), (alpha_t, sigma_t) = ((float(m) for m in p.moments(time)) for time in (s, t))
    a = alpha_t / alpha_s if alpha_s else 0.0
    v = sigma_t**2 - (a * sigma_s) ** 2
    if v < 1e-4 * sigma_t**2:  # the reference, a plain difference, would have lost its digits
        t, a, v = 1.0, float(p.moments(1.0)[0]) / alpha_s if alpha_s else 0.0, 0.0
        v = float(p.moments(1.0)[1]) ** 2 - (a * sigma_s) ** 2
    if v < 1e-4:
        return
    precision = 1 / sigma_s**2 + a**2 / v
    q = p.posterior(t, s)
    mean = (x0 * alpha_s / sigma_s**2 + x_t * a / v) / precision
    assert math.isclose(float(q.variance), 1 / precision, rel_tol=1e-10)
    assert math.isclose(float(q.on_x_t), a / v / precision, rel_tol=1e-10, abs_tol=1e-14)
    assert math.isclose(float(q.on_x0), alpha_s / sigma_s**2 / precision, rel_tol=1e-10)
    assert math.isclose(float(q.transition), v, rel_tol=1e-10)
    both = q.mean(f64(x_t), f64(x0))
    assert math.isclose(float(both), mean, rel_tol=1e-9, abs_tol=1e-9)


@settings(max_examples=100)
@given(name=NAMES, u=UNIT, gap=st.floats(1e-8, 1e-3))
def test_posterior_keeps_its_digits_in_short_jumps(name: str, u: float, gap: float) -> None:
    p = EVERY[name]
    t = place(p, u)
    s = max(t - gap, p.t_min)
    q = p.posterior(t, s)
    assert 0 <= q.variance <= q.transition * (1 + 1e-12)
    # x_t = alpha_t x0 without noise must be sent to alpha_s x0: on_x_t alpha_t + on_x0 = alpha_s
    (alpha_s, _), (alpha_t, _) = p.moments(s), p.moments(t)
    torch.testing.assert_close(q.on_x_t * alpha_t + q.on_x0, alpha_s, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", EVERY)
def test_the_jump_to_clean_data_is_the_data(name: str) -> None:
    p = EVERY[name]
    assert [float(m) for m in p.moments(None)] == [1.0, 0.0]
    q = p.posterior(p.t_min, None)
    assert [float(q.on_x_t), float(q.on_x0), float(q.variance)] == [0.0, 1.0, 0.0]
    torch.testing.assert_close(q.transition, p.moments(p.t_min)[1] ** 2)
    torch.testing.assert_close(p.transition(None, 1.0).variance, p.moments(1.0)[1] ** 2)


# f and g² as the papers print them, typed here a second time on purpose
PRINTED: dict[str, tuple[GaussianProcess, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "vp": (VP(), lambda t: -(0.1 + 19.9 * t) / 2, lambda t: 0.1 + 19.9 * t),
    "sub_vp": (
        SubVP(),
        lambda t: -(0.1 + 19.9 * t) / 2,
        lambda t: (0.1 + 19.9 * t) * -torch.expm1(-2 * (0.1 * t + 9.95 * t**2)),
    ),
    "ve": (VE(), torch.zeros_like, lambda t: 2 * math.log(5000) * (0.01 * 5000**t) ** 2),
    "rectified": (Rectified(), lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
}


class Derived(process.gaussian.MomentProcess):
    """(alpha, sigma²) of another process, so that f and g² come back by differentiation."""

    def __init__(self, other: GaussianProcess) -> None:
        self.other = other

    def mean_variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.other.mean_variance(t)

    def time_of(self, log_ratio: Tensor) -> Tensor:
        return self.other.time_of(log_ratio)


@pytest.mark.parametrize("name", PRINTED)
def test_moments_and_drift_agree_both_ways(name: str) -> None:
    p, f, g2 = PRINTED[name]
    t = torch.linspace(p.t_min, 0.99 if name == "rectified" else 1.0, 41, dtype=torch.float64)
    # (alpha, sigma) -> (f, g)
    torch.testing.assert_close(p.drift(t), f(t), rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(p.diffusion(t) ** 2, g2(t), rtol=1e-9, atol=0)
    # (f, g) -> (alpha, sigma)
    start = float(p.moments(0.0)[1]) ** 2
    integrated = LinearSDE(f, lambda t: g2(t).sqrt(), start)
    torch.testing.assert_close(torch.stack(integrated.moments(t)), torch.stack(p.moments(t)), rtol=1e-9, atol=0)
    # and round: (f, g) -> (alpha, sigma) -> (f, g)
    back = Derived(integrated)
    torch.testing.assert_close(back.drift(t), f(t), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(back.diffusion(t) ** 2, g2(t), rtol=1e-9, atol=0)


@settings(max_examples=50)
@given(name=st.sampled_from(sorted(CONTINUOUS)), u=st.floats(0, 0.98))
def test_integrated_drift_gives_the_moments(name: str, u: float) -> None:
    p = CONTINUOUS[name]
    t = place(p, u)
    again = LinearSDE(p.drift, p.diffusion, float(p.moments(0.0)[1]) ** 2)
    for one, other in zip(again.moments(t), p.moments(t), strict=True):
        assert math.isclose(float(one), float(other), rel_tol=1e-9)


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_has_finite_drift_wherever_it_has_signal(name: str) -> None:
    p = CHAINS[name]
    k = torch.tensor([1, 1.5, p.steps / 2, p.steps - 1.5, p.steps - 1, p.steps - 0.5], dtype=torch.float64)
    f, g = p.drift(k / p.steps), p.diffusion(k / p.steps)
    assert bool((f.isfinite() & (f < 0) & g.isfinite() & (g > 0)).all())
    # a level has the rate of the step that led to it (k = 1 takes the one above)
    gap = 1e-5 / p.steps
    slope = (p.moments(k[1:] / p.steps)[0].log() - p.moments(k[1:] / p.steps - gap)[0].log()) / gap
    torch.testing.assert_close(f[1:], slope, rtol=1e-3, atol=1e-6)
    # variance preserving: g² = -2 f
    torch.testing.assert_close(g**2, -2 * f, rtol=1e-6, atol=1e-9)


@settings(max_examples=100)
@given(name=NAMES, u=UNIT)
def test_time_of_inverts_log_ratio(name: str, u: float) -> None:
    p = EVERY[name]
    # the last step of a zero-terminal chain has a linear alpha, and alpha = 0 at its end has no finite ratio
    last = 1 - 1 / p.steps if isinstance(p, Chain) and p.betas[-1] == 1 else 1 - 1e-6
    t = p.t_min + u * (last - p.t_min)
    assert math.isclose(float(p.time_of(p.log_ratio(t))), t, rel_tol=1e-8, abs_tol=1e-9)
    assert p.log_ratio(place(p, u * 0.9)) < p.log_ratio(place(p, u * 0.9 + 0.05))


def test_times_out_of_reach_are_clamped() -> None:
    for p in EVERY.values():
        low, high = p.time_of(torch.tensor([-40.0, 60.0], dtype=torch.float64)).tolist()
        assert 0 <= low <= high <= 1


@pytest.mark.parametrize("t", [-0.01, 1.01, math.nan, torch.tensor([0.5, 2.0])])
def test_times_outside_are_refused(t: float | Tensor) -> None:
    for p in EVERY.values():
        with pytest.raises(ValueError, match="leaves \\[0, 1\\]"):
            p.moments(t)


def test_corrupt_takes_numbers_batches_and_clean_data() -> None:
    p, noise = VE(), Noise(0)
    x0, eps = noise.normal((3, 2, 4)), noise.normal((3, 2, 4), stream="eps")
    times = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    together = p.corrupt(x0, times, eps)
    assert together.dtype == torch.float32
    for i, t in enumerate(times.tolist()):
        sigma = 0.01 * 5000**t
        torch.testing.assert_close(together[i], x0[i] + sigma * eps[i])
        torch.testing.assert_close(p.corrupt(x0, t, eps)[i], together[i])
    assert torch.equal(p.corrupt(x0, None, eps), x0)


@pytest.mark.parametrize("name", ["vp", "ve", "edm", "sub_vp", "rectified", "chain_linear"])
def test_prior_is_the_end_law_and_keyed_by_sample(name: str) -> None:
    p = EVERY[name]
    x = p.prior((20_000, 2), Noise(3), dtype=torch.float64)
    sigma = float(p.moments(1.0)[1])
    assert abs(float(x.std()) / sigma - 1) < 5 / math.sqrt(80_000)
    assert torch.equal(p.prior((5, 2), Noise(3), first=7, dtype=torch.float64), x[7:12])


@settings(max_examples=100)
@given(name=NAMES, mean=st.floats(-2, 2), std=st.floats(0.2, 3))
def test_terminal_gap_is_the_divergence_of_the_end_law(name: str, mean: float, std: float) -> None:
    p = EVERY[name]
    alpha, sigma = (float(m) for m in p.moments(1.0))
    normal = torch.distributions.Normal
    end = normal(f64(alpha * mean), f64(math.hypot(alpha * std, sigma)))
    exact = torch.distributions.kl_divergence(end, normal(f64(0.0), f64(p.prior_std)))
    assert math.isclose(p.terminal_gap(mean, std), float(exact), rel_tol=1e-6, abs_tol=1e-12)


def test_terminal_gap_says_which_chain_ends_in_noise() -> None:
    assert chain("linear").terminal_gap(1.0) == pytest.approx(4.0358e-5 / 2, rel=1e-3)
    assert chain("linear", 200).terminal_gap(1.0) > 0.05
    assert chain("linear", 200, zero_terminal=True).terminal_gap(1.0) == 0


KL_NUMBERS = st.floats(-3, 3)
SPREADS = st.floats(0.05, 5)


@given(m1=KL_NUMBERS, m2=KL_NUMBERS, s1=SPREADS, s2=SPREADS)
def test_kl_is_torchs(m1: float, m2: float, s1: float, s2: float) -> None:
    a, b, c, d = (f64(value) for value in (m1, s1, m2, s2))
    exact = torch.distributions.kl_divergence(torch.distributions.Normal(a, b), torch.distributions.Normal(c, d))
    torch.testing.assert_close(gaussian_kl(a, b**2, c, d**2), exact, rtol=1e-9, atol=1e-12)


def test_kl_of_neighbours_keeps_its_digits() -> None:
    one, zero, e = torch.ones(()).double(), torch.zeros(()).double(), 1e-6
    assert float(gaussian_kl(zero, one + e, zero, one)) == pytest.approx(e**2 / 4, rel=1e-4)
    assert float(gaussian_kl(zero, one, zero, one)) == 0


def spread_matrix(seed: int, d: int) -> Tensor:
    root = Noise(seed).normal((d, d), dtype=torch.float64)
    return root @ root.T + 0.3 * torch.eye(d, dtype=torch.float64)


@given(seed=st.integers(0, 1000), d=st.integers(1, 6))
def test_full_kl_is_torchs(seed: int, d: int) -> None:
    c1, c2 = spread_matrix(seed, d), spread_matrix(seed + 1, d)
    noise = Noise(seed)
    m1, m2 = noise.normal((3, d), stream="m", dtype=torch.float64), noise.normal((d,), stream="n", dtype=torch.float64)
    law = torch.distributions.MultivariateNormal
    exact = torch.distributions.kl_divergence(law(m1, c1), law(m2.expand(3, d), c2))
    torch.testing.assert_close(gaussian_kl_full(m1, c1, m2, c2), exact, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(gaussian_kl_full(m1[0], c1, m2, c2), exact[0], rtol=1e-8, atol=1e-10)


def test_full_kl_of_diagonal_laws_is_the_sum_and_monte_carlo_agrees() -> None:
    v1, v2 = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64), torch.tensor([1.0, 1.5, 0.2], dtype=torch.float64)
    m1, m2 = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64), torch.tensor([0.3, 0.0, -0.8], dtype=torch.float64)
    exact = gaussian_kl(m1, v1, m2, v2).sum()
    torch.testing.assert_close(gaussian_kl_full(m1, v1.diag(), m2, v2.diag()), exact)
    x = reparameterise(m1, v1, Noise(5).normal((100_000, 3), dtype=torch.float64))
    ratio = (gaussian_log_density(x, m1, v1) - gaussian_log_density(x, m2, v2)).sum(1)
    assert abs(ratio.mean() - exact) < 5 * ratio.std() / math.sqrt(len(ratio))


def test_log_density_is_torchs_and_reparameterise_is_differentiable() -> None:
    x, mean, variance = Noise(1).normal((5,), dtype=torch.float64), f64(0.3), f64(2.5)
    exact = torch.distributions.Normal(mean, variance.sqrt()).log_prob(x)
    torch.testing.assert_close(gaussian_log_density(x, mean, variance), exact, rtol=1e-12, atol=0)
    free = variance.clone().requires_grad_()
    (slope,) = torch.autograd.grad(reparameterise(mean, free, x).sum(), free)
    torch.testing.assert_close(slope, (x / (2 * variance.sqrt())).sum())
