"""Guided denoisers: against Bayes' rule for Gaussian priors, and what they share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from measured import D, bayes, correlated, measurement, network, normal, prior
from torch import Tensor, nn

from ornstein.denoiser import Clipped, Denoiser, Denoises, DynamicThreshold, HalfPrecision, Prediction, describe
from ornstein.files import InputError
from ornstein.guidance import Given, MomentMatching, PiGDM, Reconstruction, beneath_clipping
from ornstein.nets import MLP
from ornstein.noise import Noise
from ornstein.operator import Mask, Matrix, Nonlinear
from ornstein.process import EDM, VE, VP, Cosine, GaussianProcess, Rectified
from ornstein.testing import GaussianDenoiser, MixtureDenoiser

PROCESSES = [VP(), VE(), EDM(), Rectified(), Cosine()]
GUIDED = [PiGDM, MomentMatching, Reconstruction]


def isotropic(process: GaussianProcess, variance: float = 1.0) -> GaussianDenoiser:
    return GaussianDenoiser(correlated()[0], variance * torch.eye(D, dtype=torch.float64), process)


def named(value: object) -> str:
    return type(value).__name__ if isinstance(value, GaussianProcess) else str(value)


@pytest.mark.parametrize("process", PROCESSES, ids=named)
@drawn(t=st.floats(0.02, 0.97), noise_std=st.sampled_from([0.0, 0.05, 1.0]), rows=st.integers(1, 4))
def test_moment_matching_is_bayes_for_any_gaussian(process: GaussianProcess, t: float, noise_std: float, rows: int) -> None:
    given, oracle = measurement(rows=rows, noise_std=noise_std), prior(process)
    alpha, sigma = (float(m) for m in process.moments(t))
    x_t = (alpha**2 + sigma**2) ** 0.5 * normal(3, D, stream="x_t")
    expected = bayes(oracle.mean, oracle.covariance, x_t, alpha, sigma, given, noise_std)
    found = MomentMatching(oracle, given, iterations=30)(x_t, t).x0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 if noise_std else 1e-6)


@pytest.mark.parametrize("process", PROCESSES, ids=named)
@drawn(
    t=st.floats(0.02, 0.97), noise_std=st.sampled_from([0.0, 0.05, 1.0]), rows=st.integers(1, 4),
    variance=st.sampled_from([0.3, 1.0, 4.0]),
)  # fmt: skip
def test_pigdm_is_bayes_for_the_prior_it_assumes(
    process: GaussianProcess, t: float, noise_std: float, rows: int, variance: float
) -> None:
    given, oracle = measurement(rows=rows, noise_std=noise_std), isotropic(process, variance)
    alpha, sigma = (float(m) for m in process.moments(t))
    x_t = (alpha**2 + sigma**2) ** 0.5 * normal(3, D, stream="x_t")
    expected = bayes(oracle.mean, oracle.covariance, x_t, alpha, sigma, given, noise_std)
    torch.testing.assert_close(PiGDM(oracle, given, variance)(x_t, t).x0, expected, rtol=0, atol=1e-9)


def test_pigdm_is_not_bayes_for_another_prior() -> None:
    process, given = VP(), measurement()
    alpha, sigma = (float(m) for m in process.moments(0.4))
    x_t, oracle = normal(3, D, stream="x_t"), prior(process)
    expected = bayes(oracle.mean, oracle.covariance, x_t, alpha, sigma, given, 0.3)
    assert float((PiGDM(oracle, given)(x_t, 0.4).x0 - expected).abs().max()) > 0.05


@pytest.mark.parametrize("process", [Rectified(), Cosine(), VE(sigma_max=5000.0)], ids=named)
@pytest.mark.parametrize("guided", [PiGDM, MomentMatching])
def test_pure_noise_has_the_limit(guided: type, process: GaussianProcess) -> None:
    # at t = 1 x_t says nothing: what is left is E[x0 | y]
    given, oracle = measurement(), isotropic(process) if guided is PiGDM else prior(process)
    x_t = process.prior_std * normal(3, D, stream="x_t")
    alone = GaussianDenoiser(oracle.mean, oracle.covariance, VP())
    expected = bayes(alone.mean, alone.covariance, 0 * x_t, 0.0, 1.0, given, 0.3)
    prediction = guided(oracle, given)(x_t, 1.0)
    torch.testing.assert_close(prediction.x0, expected, rtol=0, atol=0.02)
    assert prediction.x_t is x_t
    assert float(prediction.sigma) == float(process.moments(1.0)[1])


def test_the_covariance_of_moment_matching_is_the_oracles() -> None:
    process = VP()
    means, weights = normal(4, D, stream="means"), torch.full((4,), 0.25, dtype=torch.float64)
    oracle = MixtureDenoiser(means, torch.full((4,), 0.4, dtype=torch.float64), weights, process)
    given, x_t = measurement(), normal(3, D, stream="x_t")
    covariance, a = oracle.posterior_covariance(x_t, 0.3), given.measured.matrix
    x0 = oracle(x_t, 0.3).x0
    left = given.values - x0 @ a.T
    solved = torch.linalg.solve(a @ covariance @ a.T + 0.09 * torch.eye(2, dtype=torch.float64), left)
    expected = x0 + torch.einsum("bij,bj->bi", covariance @ a.T, solved)
    torch.testing.assert_close(MomentMatching(oracle, given)(x_t, 0.3).x0, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("process", [VP(), EDM()], ids=named)
def test_reconstruction_is_the_gradient_by_finite_differences(process: GaussianProcess) -> None:
    net, x_t, t = network(process), normal(2, D, stream="x_t"), 0.4
    square = Nonlinear((D,), lambda x: x[:, :3] ** 2)
    for given in (measurement(2), Given(normal(2, 3, stream="y"), square)):

        def loss(x: Tensor, given: Given = given) -> Tensor:
            return (given.values - given.measured(net(x, t).x0)).square().sum(1)

        with torch.no_grad():
            steps = 1e-5 * torch.eye(D, dtype=torch.float64)
            gradient = torch.stack([(loss(x_t + h) - loss(x_t - h)) / 2e-5 for h in steps], dim=1)
            expected = net(x_t, t).x0 - 1.5 * float(process.moments(t)[0]) / 2 * gradient
            found = Reconstruction(net, given, weight=1.5)(x_t, t).x0
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_reconstruction_is_a_normal_of_the_noise_over_the_weight() -> None:
    process, given, x_t = VP(), measurement(), normal(3, D, stream="x_t")
    alpha, sigma = (float(m) for m in process.moments(0.4))
    net = network(process)
    with torch.enable_grad():
        x = x_t.clone().requires_grad_()
        left = given.values - given.measured(net(x, 0.4).x0)
        likelihood = -0.5 * left.square().sum() / (sigma**2 / (2.5 * alpha**2))
        (score,) = torch.autograd.grad(likelihood, x)
    expected = net(x_t, 0.4).x0 + sigma**2 / alpha * score
    torch.testing.assert_close(Reconstruction(net, given, 2.5)(x_t, 0.4).x0, expected.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("guided", GUIDED)
@pytest.mark.parametrize("noise_std", [0.2, None])
def test_each_sample_alone_and_each_time_its_own(guided: type, noise_std: float | None) -> None:
    given, net, x_t = measurement(4, noise_std=noise_std), network(Cosine()), 3 * normal(4, D, stream="x_t")
    times = torch.tensor([0.1, 1.0, 0.5, 0.9], dtype=torch.float64)
    together = guided(net, given)(x_t, times).x0
    for i in range(4):
        alone = guided(net, given.rows(torch.tensor([i])))(x_t[i : i + 1], float(times[i])).x0
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("guided", GUIDED)
def test_one_call_and_a_prediction_without_a_graph(guided: type) -> None:
    calls = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = MLP(D, width=8, depth=1).double()

        def forward(self, x: Tensor, label: Tensor, cond: None) -> Tensor:
            calls.append(len(x))
            return self.inner(x, label, cond)

    with torch.no_grad():
        prediction = guided(Denoiser(Counting(), VP(), "v"), measurement())(normal(3, D), 0.5)
    assert calls == [3]
    assert prediction.pullback is None
    assert not prediction.x0.requires_grad


@pytest.mark.parametrize("guided", [PiGDM, MomentMatching])
@pytest.mark.parametrize("t", [0.1, 0.4, 0.8])
@pytest.mark.parametrize("masked", [False, True])
def test_an_unknown_noise_level_is_found(guided: type, t: float, masked: bool) -> None:
    d, process, truth = 600, VP(), 0.5
    covariance = torch.diag(torch.full((d,), 1.0 if guided is PiGDM else 0.5, dtype=torch.float64))
    oracle = GaussianDenoiser(torch.zeros(d), covariance, process)
    x0 = oracle.sample(2, Noise(3))
    x_t = process.corrupt(x0, t, normal(2, d, stream="eps"))
    operator = Mask(torch.arange(d) % 3 > 0) if masked else Matrix(normal(400, d, stream="wide") / d**0.5)
    y = operator(x0)
    y = y + truth * normal(*y.shape, stream="z")
    known = guided(oracle, Given(y, operator, noise_std=truth))(x_t, t).x0
    found = guided(oracle, Given(y, operator, noise_std=None))(x_t, t).x0
    exact = guided(oracle, Given(y, operator, noise_std=0.0))(x_t, t).x0
    assert float((found - known).norm()) < 0.3 * float((exact - known).norm())


class Unit:
    """E[x0 | x_t] = alpha x_t of N(0, I) under VP, without a D x D matrix."""

    process = VP()

    def __call__(self, x_t: Tensor, t: float, cond: None = None) -> Prediction:
        alpha, sigma = self.process.moments(t)
        return Prediction.from_x0(x_t, alpha, sigma, float(alpha) * x_t)


def test_the_noise_estimate_itself() -> None:
    d, t, stds = 4000, 0.3, torch.tensor([[0.0], [0.3], [2.0]], dtype=torch.float64)
    x0 = normal(3, d, stream="x0")
    x_t = VP().corrupt(x0, t, normal(3, d, stream="eps"))
    y = x0 + stds * normal(3, d, stream="z")
    found = PiGDM(Unit(), Given(y, mask=torch.ones(d, dtype=torch.bool), noise_std=None))(x_t, t).x0  # type: ignore[arg-type]
    x0hat, r2 = Unit()(x_t, t).x0, float(VP().moments(t)[1]) ** 2
    # x0 = x0hat + r²/(r² + noise²)(y - x0hat): the weight gives each sample's noise² away
    weight = ((found - x0hat) / (y - x0hat)).mean(1)
    torch.testing.assert_close(r2 / weight - r2, stds[:, 0] ** 2, rtol=0.1, atol=0.03)


@pytest.mark.parametrize("outer", [lambda d: Clipped(d, -1, 1), DynamicThreshold])
def test_clipping_stays_outside(outer: type) -> None:
    net, given = network(VP()), measurement()
    guided = beneath_clipping(outer(HalfPrecision(net)), lambda inner: PiGDM(inner, given))
    assert describe(guided).split(" of ")[1:] == ["PiGDM(given=Given, data_variance=1)", "Denoiser(v)"]
    x_t = normal(3, D, stream="x_t")
    found = beneath_clipping(outer(net), lambda inner: PiGDM(inner, given))(x_t, 0.5).x0
    torch.testing.assert_close(found, outer(PiGDM(net, given))(x_t, 0.5).x0)
    assert describe(beneath_clipping(net, lambda inner: PiGDM(inner, given))).startswith("PiGDM")


@pytest.mark.parametrize("guided", GUIDED)
def test_wrong_input_is_refused(guided: type) -> None:
    net: Denoises = network(VP())
    with pytest.raises(InputError, match=r"4 measurements for 3 samples"):
        guided(net, measurement(4))(normal(3, D), 0.5)
    with pytest.raises(InputError, match=r"measures data of shape \(4,\), but these are \(5,\)"):
        guided(net, measurement(3, d=4))(normal(3, D), 0.5)
    if guided is not Reconstruction:
        with pytest.raises(InputError, match="needs a linear operator"):
            guided(net, Given(normal(3, D), Nonlinear((D,), torch.sin)))
    assert "0x" not in describe(guided(net, measurement()))


def test_wrong_options_are_refused() -> None:
    net, given = network(VP()), measurement()
    with pytest.raises(InputError, match="data_variance=0 must be positive"):
        PiGDM(net, given, 0)
    with pytest.raises(InputError, match="iterations=0 must be at least 1"):
        MomentMatching(net, given, 0)
    with pytest.raises(InputError, match="weight=inf must be a finite number"):
        Reconstruction(net, given, float("inf"))
