"""The denoising loss against its definition, typed here a second time in plain float64, and its optima against oracles."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from ornstein.denoiser import COEFFICIENTS, Condition, Denoiser, Prediction
from ornstein.losses import WEIGHTS, DenoisingLoss, Discretised, LossAware, Times
from ornstein.losses.bound import step_term
from ornstein.noise import Noise
from ornstein.process import EDM, VE, VP, Chain, Cosine, GaussianProcess, LinearSDE, Rectified, SubVP, chain
from ornstein.testing import GaussianDenoiser

F64 = torch.float64
SIGMA_DATA = 0.7
GAMMA = 5.0
PROCESSES: dict[str, GaussianProcess] = {
    "vp": VP(),
    "ve": VE(),
    "sub_vp": SubVP(),
    "cosine": Cosine(),
    "edm": EDM(),
    "rectified": Rectified(),
    "linear_sde": LinearSDE(lambda t: -0.5 - t, lambda t: 1 + t),
    "chain": chain("linear", 20),
}
COARSE = Chain(tuple(torch.linspace(0.05, 0.6, 10, dtype=F64).tolist()))
"""Large steps, where β and β̃ differ at every level."""
CASES = [(p, w, q) for p in PROCESSES for w in ("simple", *WEIGHTS) for q in COEFFICIENTS if q != "mean" or p == "chain"]


def bayes(process: Chain, k: int) -> tuple[float, float, float, float]:
    """(on x_t, on x0, β̃, β) of q(x_{k-1}|x_k, x0), by conditioning the two Gaussians written from the betas alone."""
    kept = math.prod(1 - b for b in process.betas[: k - 1])
    beta = process.betas[k - 1]
    variance = 1 - kept
    total = (1 - beta) * variance + beta  # Var[x_k | x0]
    gain = math.sqrt(1 - beta) * variance / total
    return gain, math.sqrt(kept) * (1 - gain * math.sqrt(1 - beta)), variance * beta / total, beta


def expected_x0(predicts: str, raw: Tensor, x_t: Tensor, a: float, s: float, process: GaussianProcess, k: int) -> Tensor:
    """x0 from what the network says, solving the definition of each target for it."""
    if predicts == "mean":
        on_x_t, on_x0, *_ = bayes(process, k)  # type: ignore[arg-type]
        return (raw - on_x_t * x_t) / on_x0
    r, d = math.hypot(a, s), SIGMA_DATA
    eps = {"eps": raw, "score": -s * raw, "v": (s / r**2) * x_t + (a / r) * raw}.get(predicts)
    if eps is not None:
        return (x_t - s * eps) / a
    total = s**2 + (a * d) ** 2
    return raw if predicts == "x0" else a * d**2 / total * x_t + s * d / math.sqrt(total) * raw


def expected_error(name: str, x0: Tensor, eps: Tensor, seen: Tensor, a: float, s: float, bound_weight: float) -> Tensor:
    """The square error of each weighting, elementwise, from the true (x0, eps) and the predicted x0."""
    x_t = a * x0 + s * eps
    eps_seen = (x_t - a * seen) / s
    r = math.hypot(a, s)
    square = (x0 - seen) ** 2
    return {
        "x0": square,
        "eps": (eps - eps_seen) ** 2,
        "v": ((a * eps - s * x0) / r - (a * eps_seen - s * seen) / r) ** 2,
        "score": (-eps / s + eps_seen / s) ** 2,
        "sigma2": s**2 * (-eps / s + eps_seen / s) ** 2,
        "edm": (s**2 + a**2 * SIGMA_DATA**2) / (s * SIGMA_DATA) ** 2 * square,
        "min_snr": min(a**2 / s**2, GAMMA) * square,
        "bound": bound_weight * square,
    }[name]


def simple_target(predicts: str, x0: Tensor, eps: Tensor, a: float, s: float, process: GaussianProcess, k: int) -> Tensor:
    """What the network is asked for."""
    x_t = a * x0 + s * eps
    if predicts == "mean":
        on_x_t, on_x0, *_ = bayes(process, k)  # type: ignore[arg-type]
        return on_x_t * x_t + on_x0 * x0
    d = SIGMA_DATA
    total = s**2 + (a * d) ** 2
    edm = (x0 - a * d**2 / total * x_t) * math.sqrt(total) / (s * d)
    return {"x0": x0, "eps": eps, "score": -eps / s, "v": (a * eps - s * x0) / math.hypot(a, s), "edm": edm}[predicts]


def bound_weight(process: GaussianProcess, t: float, k: int) -> float:
    """T·B²/(2β̃) on a chain (β at the last step); else minus half the slope of the signal-to-noise ratio."""
    if isinstance(process, Chain):
        _, on_x0, small, beta = bayes(process, k)
        return process.steps * on_x0**2 / (2 * (small if k > 1 else beta))
    time = torch.tensor(t, dtype=F64, requires_grad=True)
    alpha, variance = process.mean_variance(time)
    (slope,) = torch.autograd.grad(alpha**2 / variance, time)
    return -0.5 * float(slope)


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return Noise(seed).normal(shape, dtype=F64)


def constant_net(raw: Tensor) -> nn.Module:
    class Net(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
            return raw

    return Net()


@pytest.mark.parametrize(("name", "weighting", "predicts"), CASES)
@settings(max_examples=4, deadline=None)
@given(where=st.floats(0.0, 1.0), seed=st.integers(0, 10**6))
def test_error_is_its_definition(name: str, weighting: str, predicts: str, where: float, seed: int) -> None:
    process = PROCESSES[name]
    shape = (3, 2, 2)
    k = 1 + round(where * 19)
    t = k / 20 if name == "chain" else process.t_min + where * (0.99 - process.t_min)
    times = torch.full((3,), t, dtype=F64)
    x0, eps, raw = draw(shape, seed), draw(shape, seed + 1), draw(shape, seed + 2)
    a, s = (float(m) for m in process.moments(t))
    denoiser = Denoiser(constant_net(raw), process, predicts, sigma_data=SIGMA_DATA)
    prediction = denoiser(process.corrupt(x0, times, eps), times)
    got = DenoisingLoss(weighting, sigma_data=SIGMA_DATA, gamma=GAMMA).error(prediction, x0, eps, process, times)
    if weighting == "simple":
        want = (raw - simple_target(predicts, x0, eps, a, s, process, k)) ** 2
    else:
        seen = expected_x0(predicts, raw, a * x0 + s * eps, a, s, process, k)
        want = expected_error(weighting, x0, eps, seen, a, s, bound_weight(process, t, k))
    assert got.shape == (3,)
    torch.testing.assert_close(got, want.flatten(1).mean(1), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 4), (5, 1, 4, 3)])
def test_each_datum_has_its_own_time_and_value(shape: tuple[int, ...]) -> None:
    process = VP()
    times = torch.linspace(0.1, 0.9, 5, dtype=F64)
    x0, eps, raw = draw(shape, 0), draw(shape, 1), draw(shape, 2)
    loss = DenoisingLoss("score")
    whole = Denoiser(constant_net(raw), process, "v")(process.corrupt(x0, times, eps), times)
    got = loss.error(whole, x0, eps, process, times)
    assert got.shape == (5,)
    for i in range(5):
        one = slice(i, i + 1)
        alone = Denoiser(constant_net(raw[one]), process, "v")(process.corrupt(x0[one], times[one], eps[one]), times[one])
        torch.testing.assert_close(loss.error(alone, x0[one], eps[one], process, times[one]), got[one], rtol=1e-12, atol=0)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_bound_weight_of_a_chain_sums_to_its_divergences(schedule: str) -> None:
    process = chain(schedule, 30)
    oracle = GaussianDenoiser(torch.tensor([0.3, -1.0]), torch.diag(torch.tensor([0.5, 2.0])), process)
    levels = torch.arange(2, 31, dtype=F64) / 30
    alpha, sigma = process.moments(levels)
    weight = WEIGHTS["bound"](alpha, sigma, process, levels, DenoisingLoss())
    residual = torch.stack([oracle.posterior_variances(float(t)).sum() for t in levels])
    terms = oracle.bound_terms(tuple(k / 30 for k in range(30, 0, -1)), "posterior")
    torch.testing.assert_close(weight * residual / 30, terms.steps.flip(0), rtol=1e-9, atol=0)
    # and for any prediction, datum by datum, not only in the mean
    x0, eps = draw((29, 2), 3), draw((29, 2), 4)
    prediction = Denoiser(constant_net(draw((29, 2), 5)), process, "x0")(process.corrupt(x0, levels, eps), levels)
    error = DenoisingLoss("bound").error(prediction, x0, eps, process, levels)
    term = step_term(process, prediction, x0, levels, levels - 1 / 30, "posterior").mean(1)
    torch.testing.assert_close(error / 30, term, rtol=1e-9, atol=1e-12)


def test_continuous_bound_weight_is_the_limit_of_fine_chains() -> None:
    process = VP()
    times = torch.tensor([0.1, 0.25, 0.5, 1.0], dtype=F64)
    limit = WEIGHTS["bound"](*process.moments(times), process, times, DenoisingLoss())
    gaps = []
    for steps in (1000, 2000, 4000):
        alpha = process.moments(torch.arange(steps + 1, dtype=F64) / steps)[0]
        fine = Chain(tuple((1 - (alpha[1:] / alpha[:-1]) ** 2).tolist()))
        weight = WEIGHTS["bound"](*fine.moments(times), fine, times, DenoisingLoss())
        gaps.append((weight / limit - 1).abs())
    assert bool((gaps[2] < 0.02).all())
    for coarse, finer in pairwise(gaps):
        assert bool((finer / coarse - 0.5).abs().max() < 0.05), "the gap must halve with the step"


@pytest.mark.parametrize("k", [1, 7, 20])
@pytest.mark.parametrize("predicts", list(COEFFICIENTS))
@pytest.mark.parametrize("weighting", ["simple", "bound", "edm"])
def test_all_targets_share_the_oracles_optimum(predicts: str, weighting: str, k: int) -> None:
    process = chain("linear", 20)
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=F64)
    mean = torch.tensor([0.5, -1.0], dtype=F64)
    oracle = GaussianDenoiser(mean, covariance, process)
    # samples whose first two moments are those of the law: a linear regression on them is the regression on the law
    z = draw((40, 4), k)
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / len(z))).T
    x0, eps = mean + z[:, :2] @ torch.linalg.cholesky(covariance).T, z[:, 2:]
    times = torch.full((40,), k / 20, dtype=F64)
    x_t = process.corrupt(x0, times, eps)
    loss = DenoisingLoss(weighting)

    def predict(theta: Tensor) -> Prediction:
        class Net(nn.Module):
            def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
                return x @ theta[:4].reshape(2, 2) + theta[4:]

        return Denoiser(Net(), process, predicts)(x_t, times)

    def objective(theta: Tensor) -> Tensor:
        return loss.error(predict(theta), x0, eps, process, times).mean()

    start = torch.zeros(6, dtype=F64)
    slope = torch.autograd.functional.jacobian(objective, start)
    curvature = torch.autograd.functional.hessian(objective, start)
    best = start - torch.linalg.solve(curvature, slope)  # the loss is a parabola: one Newton step
    torch.testing.assert_close(predict(best).x0, oracle(x_t, times).x0, rtol=1e-8, atol=1e-8)


class TwoHeads(nn.Module):
    """A mean and a variance output that share no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(3, 3, dtype=F64)
        self.variance = nn.Linear(3, 3, dtype=F64)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(0.3 * draw(tuple(p.shape), i))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        return torch.cat([self.mean(x), self.variance(x)], 1)


def test_hybrid_leaves_the_mean_alone() -> None:
    x0 = draw((40, 3), 0)
    gradients: dict[float, list[Tensor]] = {}
    for hybrid in (0.0, 0.5):
        net = TwoHeads()
        denoiser = Denoiser(net, chain("linear", 10), "eps", learned_variance=True)
        DenoisingLoss(times=Times("discrete"), hybrid=hybrid)(denoiser, x0, Noise(1)).sum().backward()
        gradients[hybrid] = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
    for without, with_term in zip(gradients[0.0][:2], gradients[0.5][:2], strict=True):
        assert float(without.abs().min()) > 0
        torch.testing.assert_close(with_term, without, rtol=0, atol=0)
    assert all(float(g.abs().max()) == 0 for g in gradients[0.0][2:])
    assert all(float(g.abs().min()) > 1e-6 for g in gradients[0.5][2:])


@pytest.mark.parametrize("discretised", [False, True])
def test_variance_term_is_the_bounds_term(discretised: bool) -> None:
    process = COARSE
    t = torch.arange(1, 11, dtype=F64) / 10
    x0 = (draw((10, 3), 0) > 0).to(F64) * 2 - 1
    seen, fraction = 0.5 * draw((10, 3), 1), torch.sigmoid(draw((10, 3), 2))
    x_t = process.corrupt(x0, t, draw((10, 3), 3))
    prediction = Prediction.from_x0(x_t, *process.moments(t), seen, fraction)
    decoder = Discretised(2)
    loss = DenoisingLoss(hybrid=1.0, decoder=decoder) if discretised else DenoisingLoss(hybrid=1.0)
    got = loss.variance_term(prediction, x0, process, t)
    last = Normal(seen[0], math.sqrt(process.betas[0]))
    decoded = -last.log_prob(x0[0])
    if discretised:
        # two levels split at 0
        decoded = -torch.where(x0[0] > 0, 1 - last.cdf(torch.zeros(())), last.cdf(torch.zeros(()))).log()
    want = [decoded.mean()]
    for k in range(2, 11):
        on_x_t, on_x0, small, beta = bayes(process, k)
        i = k - 1
        true = Normal(on_x_t * x_t[i] + on_x0 * x0[i], math.sqrt(small))
        spread = small ** (1 - fraction[i]) * beta ** fraction[i]
        want.append(kl_divergence(true, Normal(on_x_t * x_t[i] + on_x0 * seen[i], spread.sqrt())).mean())
    torch.testing.assert_close(got, 10 * torch.stack(want), rtol=1e-8, atol=0)


@pytest.mark.parametrize("variance", [0.05, 0.5, 0.9])
def test_learned_variance_reaches_the_closed_form(variance: float) -> None:
    process, steps = COARSE, COARSE.steps
    oracle = GaussianDenoiser(torch.zeros(1), torch.full((1, 1), variance), process)
    k = torch.arange(2, steps + 1)
    t = (k / steps).to(F64).repeat_interleave(2)
    x_t = draw((len(t), 1), 0)
    seen = oracle(x_t, t).x0
    left = torch.stack([oracle.posterior_variances(float(time)) for time in t])
    # two points at one standard deviation carry the posterior's mean and variance: the sum over them is the expected loss
    x0 = seen + left.sqrt() * torch.tensor([1.0, -1.0]).repeat(len(k)).unsqueeze(1)
    levels = torch.zeros(steps + 1, dtype=F64, requires_grad=True)

    class Net(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
            return torch.cat([seen, levels[c_noise.round().long()].unsqueeze(1)], 1)

    denoiser = Denoiser(Net(), process, "x0", learned_variance=True)
    loss = DenoisingLoss(hybrid=1.0)
    optimiser = torch.optim.LBFGS([levels], lr=1.0, max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value: Tensor = loss.variance_term(denoiser(x_t, t), x0, process, t).sum()
        value.backward()
        return value

    optimiser.step(closure)  # type: ignore[arg-type]
    fraction = (levels.detach()[k] + 1) / 2
    want = []
    for level, v in zip(k.tolist(), left[::2, 0].tolist(), strict=True):
        _, on_x0, small, beta = bayes(process, level)
        want.append((math.log(small + on_x0**2 * v) - math.log(small)) / (math.log(beta) - math.log(small)))
    assert 0 < min(want) < max(want) - 0.05 < 0.95, "the optima must differ between levels for this to say anything"
    torch.testing.assert_close(fraction, torch.tensor(want, dtype=F64), rtol=0, atol=0.02)


def test_call_is_error_at_the_drawn_times_and_noise() -> None:
    process = VP()
    x0, raw = draw((6, 2), 0), draw((6, 2), 1)
    denoiser = Denoiser(constant_net(raw), process, "eps")
    loss = DenoisingLoss("min_snr", times=Times(low_discrepancy=False))
    got = loss(denoiser, x0, Noise(3), step=4, first=8, total=32)
    t, _ = loss.times.draw(process, 6, Noise(3), step=4, first=8, total=32)
    eps = Noise(3).normal((6, 2), stream="train", step=4, first=8, dtype=F64)
    want = loss.error(denoiser(process.corrupt(x0, t, eps), t), x0, eps, process, t)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


class Cubic(nn.Module):
    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        return 0.1 * x**3


def test_two_halves_of_a_batch_are_the_whole() -> None:
    denoiser = Denoiser(Cubic(), VP(), "eps")
    x0 = draw((8, 2), 0)
    loss = DenoisingLoss()
    whole = loss(denoiser, x0, Noise(5), step=2)
    halves = [loss(denoiser, x0[i : i + 4], Noise(5), step=2, first=i, total=8) for i in (0, 4)]
    torch.testing.assert_close(torch.cat(halves), whole, rtol=1e-12, atol=0)
    assert not torch.allclose(loss(denoiser, x0, Noise(5), step=3), whole)


def test_importance_weights_multiply_and_history_holds_the_plain_loss() -> None:
    class Fixed:
        def __init__(self) -> None:
            self.seen = torch.empty(0)

        def draw(
            self, process: GaussianProcess, n: int, noise: Noise, *, step: int = 0, first: int = 0, total: int | None = None
        ) -> tuple[Tensor, Tensor]:
            return torch.full((n,), 0.3, dtype=F64), torch.arange(1.0, n + 1, dtype=F64)

        def update(self, process: GaussianProcess, t: Tensor, loss: Tensor) -> None:
            self.seen = loss

    times = Fixed()
    x0 = draw((4, 2), 0).requires_grad_()
    got = DenoisingLoss(times=times)(Denoiser(Cubic(), VP(), "eps"), x0, Noise(0))
    assert not times.seen.requires_grad
    torch.testing.assert_close(got, times.seen * torch.arange(1.0, 5.0, dtype=F64), rtol=1e-12, atol=0)


def test_loss_aware_times_learn_from_the_loss() -> None:
    times = LossAware(bins=4, memory=2)
    DenoisingLoss(times=times)(Denoiser(Cubic(), VP(), "eps"), draw((64, 2), 0), Noise(0))
    assert int(times.counts.sum()) == 64
    assert float(times.probabilities().std()) > 0


def refuse(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_errors_name_argument_and_remedy() -> None:
    x0 = draw((64, 2), 0)
    two = Denoiser(constant_net(draw((64, 4), 1)), VP(), "eps", learned_variance=True)
    on_chain = Denoiser(constant_net(draw((64, 4), 1)), chain("linear", 1000), "eps", learned_variance=True)
    plain = Denoiser(constant_net(x0), chain("linear", 1000), "eps")
    refuse(lambda: DenoisingLoss("snr"), "weighting='snr'.*simple.*min_snr")
    refuse(lambda: DenoisingLoss(hybrid=0.1)(two, x0, Noise(0)), "hybrid=0.1.*Chain.*VP")
    refuse(lambda: DenoisingLoss(hybrid=0.1, times=Times("discrete"))(plain, x0, Noise(0)), "learned_variance=True")
    # between the levels of a chain there is no term of the bound
    refuse(lambda: DenoisingLoss(hybrid=0.1)(on_chain, x0, Noise(0)), "Times\\('discrete'\\)")
    refuse(lambda: DenoisingLoss("bound")(plain, x0, Noise(0)), "Times\\('discrete'\\)")
    assert DenoisingLoss("bound", times=Times("discrete"))(plain, x0, Noise(0)).shape == (64,)
