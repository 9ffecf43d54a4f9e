"""One's own f(t) and g(t): moments against closed forms and scipy, the stated error, refusals; what `SDE` finds out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ornstein import samplers
from ornstein.likelihood import log_prob
from ornstein.noise import Noise
from ornstein.process import SDE, VE, VP, GaussianProcess, LinearSDE, SubVP
from ornstein.samplers import ALL, FixedSteps
from ornstein.testing import MixtureDenoiser


def beta(t: Tensor) -> Tensor:
    return 0.1 + 19.9 * t


def lost(t: Tensor) -> Tensor:
    return -torch.expm1(-2 * (0.1 * t + 9.95 * t**2))


PAIRS: dict[str, tuple[GaussianProcess, LinearSDE]] = {
    "vp": (VP(), LinearSDE(drift=lambda t: -0.5 * beta(t), diffusion=lambda t: beta(t).sqrt(), prior_std=1.0)),
    "ve": (VE(), LinearSDE(lambda t: 0.0, lambda t: math.sqrt(2 * math.log(5000)) * 0.01 * 5000**t, 0.01**2, t_min=0.0)),
    "sub_vp": (SubVP(), LinearSDE(lambda t: -0.5 * beta(t), lambda t: (beta(t) * lost(t)).sqrt())),
}
TIMES = torch.cat([torch.logspace(-6, 0, 121, dtype=torch.float64), torch.linspace(0, 1, 201, dtype=torch.float64)[1:]])


def largest(a: Tensor, b: Tensor) -> float:
    return float((a / b - 1).abs().max())


@pytest.mark.parametrize("name", PAIRS)
def test_moments_are_those_of_the_built_in_class(name: str) -> None:
    built, own = PAIRS[name]
    for one, other in zip(own.mean_variance(TIMES), built.mean_variance(TIMES), strict=True):
        assert largest(one, other) < 1e-12  # 1e-9 is promised
        assert largest(one, other) <= own.quadrature_error
    assert own.prior_std == pytest.approx(built.prior_std, rel=1e-12)
    assert own.t_min == built.t_min
    alone = torch.stack([own.moments(float(t))[1] for t in TIMES[::40]])
    torch.testing.assert_close(alone, own.moments(TIMES[::40])[1], rtol=1e-15, atol=0)


def mixture(process: GaussianProcess) -> MixtureDenoiser:
    means = torch.tensor([[1.2, 0.3], [-0.8, 0.8], [-0.2, -1.1]])
    return MixtureDenoiser(means, torch.tensor([0.25, 0.1, 0.06]), torch.tensor([0.45, 0.25, 0.3]), process)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver_pp", "ancestral"])
def test_samples_are_those_of_the_built_in_class(name: str, sampler: str) -> None:
    built, own = PAIRS[name]
    start = built.prior((32, 2), Noise(0), dtype=torch.float64)
    truth = samplers.sample(mixture(built), ALL[sampler](built, 15), start=start, noise=Noise(1))
    found = samplers.sample(mixture(own), ALL[sampler](own, 15), start=start, noise=Noise(1))
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", PAIRS)
def test_log_likelihoods_are_those_of_the_built_in_class(name: str) -> None:
    x = mixture(VP()).sample(16, Noise(2))
    one, other = (log_prob(mixture(p), x, divergence="exact", solver=FixedSteps(65)).value for p in PAIRS[name])
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sampler", ALL)
def test_every_sampler_makes_the_same_plan(sampler: str) -> None:
    built, own = PAIRS["vp"]
    plans = [ALL[sampler](p, 16) for p in (built, own)]
    assert len(plans[0].rows) == len(plans[1].rows)
    for one, other in zip(*(plan.rows for plan in plans), strict=True):
        assert (one.s is None) == (other.s is None)
        for key in ("t", "s", "a", "c", "p", "q"):
            assert math.isclose(getattr(one, key) or 0, getattr(other, key) or 0, rel_tol=1e-9, abs_tol=1e-9)
        for (i, a), (j, b) in zip(one.b + one.prior, other.b + other.prior, strict=True):
            assert i == j
            assert math.isclose(a, b, rel_tol=1e-8, abs_tol=1e-9)


@pytest.mark.parametrize("place", [0.5, 1 / 3, 1e-3, 0.999])
def test_a_jump_in_beta_is_found(place: float) -> None:
    def step(t: Tensor) -> Tensor:
        return torch.where(t < place, 2.0, 12.0).double()

    own = LinearSDE(lambda t: -0.5 * step(t), lambda t: step(t).sqrt())
    loss = 2 * TIMES + 10 * (TIMES - place).clamp(min=0)
    alpha, variance = own.mean_variance(TIMES)
    assert largest(alpha, torch.exp(-0.5 * loss)) <= own.quadrature_error
    assert largest(variance, -torch.expm1(-loss)) <= own.quadrature_error
    assert own.quadrature_error < 5e-11


@given(
    rates=st.tuples(*[st.floats(-3, 3)] * 3),
    waves=st.integers(0, 40),
    sizes=st.tuples(st.floats(0.1, 3), st.floats(0.1, 3)),
    start=st.sampled_from([0.0, 1e-4, 1.0]),
    t=st.floats(0.01, 1),
)
def test_moments_are_scipys(
    rates: tuple[float, float, float], waves: int, sizes: tuple[float, float], start: float, t: float
) -> None:
    from scipy.integrate import quad

    def f(u: Tensor) -> Tensor:
        return rates[0] + rates[1] * u + 5 * rates[2] * torch.sin(2 * math.pi * waves * u)

    def g(u: Tensor) -> Tensor:
        return sizes[0] + sizes[1] * torch.cos(2 * math.pi * waves * u) ** 2

    wave = 2 * math.pi * waves

    def log_alpha(u: float) -> float:
        turning = 5 * rates[2] * (1 - math.cos(wave * u)) / wave if waves else 0.0
        return rates[0] * u + rates[1] * u**2 / 2 + turning

    def slope(u: float) -> float:
        return (sizes[0] + sizes[1] * math.cos(wave * u) ** 2) ** 2 * math.exp(2 * (log_alpha(t) - log_alpha(u)))

    own = LinearSDE(f, g, start)
    variance = start * math.exp(2 * log_alpha(t)) + quad(slope, 0, t, epsabs=0, epsrel=1e-12, limit=1000)[0]
    found = [float(v) for v in own.mean_variance(torch.tensor(t, dtype=torch.float64))]
    assert math.isclose(found[0], math.exp(log_alpha(t)), rel_tol=1e-11)
    assert math.isclose(found[1], variance, rel_tol=1e-10)
    assert own.quadrature_error < 1e-10


def test_what_cannot_be_integrated_says_so() -> None:
    bridge = LinearSDE(lambda t: -1 / (1 - t), lambda t: (2 * t / (1 - t)).sqrt())
    assert bridge.quadrature_error > 1e-3
    t = TIMES[TIMES < 0.99]
    assert largest(bridge.mean_variance(t)[0], 1 - t) < 1e-10
    assert largest(bridge.mean_variance(t)[1], t**2) < 1e-10


def test_time_of_is_exact_and_takes_what_is_out_of_reach() -> None:
    for built, own in PAIRS.values():
        t = TIMES[max(built.t_min, 1e-6) <= TIMES]
        torch.testing.assert_close(own.time_of(built.log_ratio(t)), t, rtol=1e-12, atol=1e-15)
        low, high = own.time_of(torch.tensor([-60.0, 60.0], dtype=torch.float64)).tolist()
        assert 0 <= low < 1e-12
        assert high == pytest.approx(1, abs=1e-12)


def test_time_of_survives_a_stretch_without_noise() -> None:
    own = LinearSDE(lambda t: -1.0, lambda t: torch.where((t > 0.3) & (t < 0.5), 0.0, 2.0))
    ratios = own.log_ratio(TIMES[::7])
    torch.testing.assert_close(own.log_ratio(own.time_of(ratios)), ratios, rtol=1e-12, atol=1e-12)


def test_numbers_and_one_time_at_once_are_taken() -> None:
    own = LinearSDE(lambda t: -3, lambda t: torch.tensor(6.0).sqrt())
    alpha, sigma = own.moments(1.0)
    assert float(alpha) == pytest.approx(math.exp(-3), rel=1e-13)
    assert float(sigma**2) == pytest.approx(1 - math.exp(-6), rel=1e-7)  # sqrt(6) was given in float32
    assert own.moments(torch.rand(2, 3))[0].shape == (2, 3)
    assert own.moments(torch.empty(0))[0].shape == (0,)
    assert float(own.drift(0.3)) == -3


BAD: dict[str, tuple[Callable[[Tensor], Tensor | float], Callable[[Tensor], Tensor | float], str]] = {
    "nan drift": (lambda t: (t - 0.25).sqrt(), lambda t: 1.0, "drift is nan at t=0"),
    "infinite diffusion": (lambda t: 0.0, lambda t: torch.where(t > 0.5, math.inf, 1.0), r"diffusion is inf at t=0\.5"),
    "shape": (lambda t: t[:3], lambda t: 1.0, r"drift\(t\) returned shape \(3,\)"),
    "column": (lambda t: 0.0, lambda t: t.unsqueeze(-1), r"diffusion\(t\) returned shape \(\d+, 1\)"),
    "math": (math.exp, lambda t: 1.0, r"drift\(t\) failed .* torch functions"),
    "text": (lambda t: "x", lambda t: 1.0, r"drift\(t\) failed"),  # type: ignore[dict-item, return-value]
}


@pytest.mark.parametrize("name", BAD)
def test_misbehaving_coefficients_are_named(name: str) -> None:
    f, g, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        LinearSDE(f, g).moments(0.7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial_variance": -1.0}, "initial_variance=-1"),
        ({"initial_variance": math.inf}, "initial_variance=inf"),
        ({"t_min": 1.0}, "t_min=1"),
        ({"prior_std": 0.0}, "prior_std=0"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearSDE(lambda t: 0.0, lambda t: 1.0, **options)


def test_equality_and_repr_are_those_of_a_value() -> None:
    def f(t: Tensor) -> float:
        return -1.0

    def g(t: Tensor) -> float:
        return 1.0

    one = LinearSDE(f, g, 0.1)
    assert one == LinearSDE(f, g, 0.1)
    assert hash(one) == hash(LinearSDE(f, g, 0.1))
    assert one != LinearSDE(f, g, 0.2)
    assert one != VP()
    assert repr(one) == "LinearSDE(drift=f, diffusion=g, initial_variance=0.1, t_min=0.001, prior_std=None)"


def test_moments_found_in_inference_mode_serve_under_autograd() -> None:
    own = LinearSDE(lambda t: -t, lambda t: 1.0)
    with torch.inference_mode():
        own.moments(0.5)
    t = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(own.mean_variance(t)[0].log().sum(), t)
    torch.testing.assert_close(slope, -t.detach(), rtol=1e-9, atol=1e-12)


def test_loss_weight_is_the_inverse_size_of_the_kernels_score() -> None:
    n = 40_000
    x0, eps = Noise(1).normal((n, 2), dtype=torch.float64), Noise(2).normal((n, 2), dtype=torch.float64)
    for process in (VP(), PAIRS["sub_vp"][1], VE()):
        for t in (0.05, 0.5, 1.0):
            x_t = process.corrupt(x0, t, eps).requires_grad_()
            alpha, sigma = process.moments(t)
            log_q = torch.distributions.Normal(alpha * x0, sigma).log_prob(x_t).sum()
            (score,) = torch.autograd.grad(log_q, x_t)
            found = score.square() * process.loss_weight(t)
            assert abs(float(found.mean()) - 1) < 5 * float(found.std()) / math.sqrt(found.numel())


def test_backward_has_the_marginals_of_forward() -> None:
    """On normal data the laws are known: Var stays on course under any amount of noise; d Var/dt = -2 slope Var + amount² g²."""
    process, spread, t = PAIRS["vp"][1], 0.5, torch.tensor([0.2, 0.6], dtype=torch.float64)
    x = torch.ones(2, 3, dtype=torch.float64)
    alpha, sigma = process.moments(t)
    variance = alpha**2 * spread**2 + sigma**2
    for amount in (0.0, 0.5, 1.0):
        drift, g = process.backward(x, t, -x / variance[:, None], amount=amount)
        falling = -2 * drift[:, 0] * variance + (g[:, 0] * 1.0) ** 2  # of time running down
        f, g2 = process.drift(t), process.diffusion(t) ** 2
        torch.testing.assert_close(-falling, 2 * f * variance + g2)


# what SDE finds out


def rate(t: Tensor) -> Tensor:
    return -0.5 * (0.1 + 19.9 * t)


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 4)])
def test_a_linear_drift_becomes_a_linear_sde(shape: tuple[int, ...]) -> None:
    found = SDE(lambda x, t: rate(t) * x, lambda t: beta(t).sqrt(), shape=shape, prior=1.0)
    assert isinstance(found, LinearSDE)
    torch.testing.assert_close(torch.stack(found.moments(TIMES)), torch.stack(VP().moments(TIMES)), rtol=1e-12, atol=0)
    assert found.prior_std == 1.0
    assert "slope of" in repr(found)


@given(a=st.floats(-20, 20), b=st.floats(-20, 20))
def test_any_linear_drift_is_seen(a: float, b: float) -> None:
    found = SDE(lambda x, t: a * x + torch.sin(b * t) * x, lambda t: 1.0)
    assert isinstance(found, LinearSDE)
    torch.testing.assert_close(found.drift(TIMES), a + torch.sin(b * TIMES), rtol=1e-14, atol=1e-14)


ODD: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "cubic": (lambda x, t: x - x**3, r"not linear: f\(2x\) ≠ 2 f\(x\) by \d"),
    "weakly cubic": (lambda x, t: -x - 1e-6 * x**3, "not linear"),
    "later cubic": (lambda x, t: -x - (t > 0.8) * x**3, r"not linear.* t=0\.9"),
    "saturating": (lambda x, t: -30 * torch.tanh(x / 30), "not linear"),
    "modulus": (lambda x, t: -x.abs(), r"not linear: f\(x \+ y\)"),
    "exploding": (lambda x, t: -x * torch.exp(x**2), "not linear|not finite"),
    "pulled elsewhere": (lambda x, t: 2 - x, r"affine: f\(0, t\) = \(2, 2\)"),
    "far away": (lambda x, t: 1e4 - x, "affine"),
    "constant": (lambda x, t: torch.ones_like(x), "affine"),
    "swapped": (lambda x, t: -x - x.flip(1), "mixes numbers .* number 0 of x moves number 1 at rate -1"),
    "scaled": (lambda x, t: x * torch.tensor([-1.0, -2.0], dtype=x.dtype), "scales numbers differently"),
    "crowd": (lambda x, t: x.mean(0) - x, "other samples"),
    "nan": (lambda x, t: x / (t - 0.5), "not finite at t=0.5"),
}


@pytest.mark.parametrize("name", ODD)
def test_any_other_drift_is_refused_with_its_reason(name: str) -> None:
    drift, reason = ODD[name]
    with pytest.raises(ValueError, match=reason):
        SDE(drift, lambda t: 1.0)
    with pytest.raises(ValueError, match="prior=None"):
        SDE(drift, lambda t: 1.0, nonlinear="simulate")
    assert not isinstance(SDE(drift, lambda t: 1.0, nonlinear="simulate", prior=1.0), LinearSDE)


def test_other_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="more than t: noise whose size depends on x"):
        SDE(lambda x, t: -x, lambda x, t: x)  # type: ignore[arg-type, misc]
    with pytest.raises(ValueError, match=r"drift returned shape \(1,\)"):
        SDE(lambda x, t: x[:, 0], lambda t: 1.0)
    with pytest.raises(ValueError, match="nonlinear='maybe'"):
        SDE(lambda x, t: -x, lambda t: 1.0, nonlinear="maybe")
    with pytest.raises(ValueError, match="prior is a function"):
        SDE(lambda x, t: -x, lambda t: 1.0, prior=lambda shape, noise: noise.normal(shape))
