"""DPM 2015 against exact answers: Gaussians in closed form, binary chains by enumeration of all their paths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ornstein.noise import Noise
from ornstein.process import Chain, gaussian_kl_full
from ornstein.vector.data import heartbeat
from ornstein.vector.dpm2015 import DPM, KERNELS, SCHEDULES, Bernoulli, Gaussian, dpm, harmonic_betas, log_snr_betas

F64 = torch.float64
BITS = math.log(2)
MEAN = torch.tensor([0.3, -0.5], dtype=F64)
COVARIANCE = torch.tensor([[0.9, 0.4], [0.4, 0.3]], dtype=F64)
betas_of = st.lists(st.floats(1e-4, 0.95), min_size=2, max_size=12)


@dataclass(frozen=True)
class Signs(Noise):
    """Normals replaced by signs, the binary digits of the sample's index.

    The expectation of a quadratic is the mean over all combinations of signs, exactly: no Monte Carlo in these tests.
    """

    def normal(
        self,
        shape: Sequence[int],
        *,
        stream: str = "x",
        step: int = 0,
        first: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        digits = torch.arange(first, first + shape[0])[:, None] >> torch.arange(shape[1])
        return (2 * (digits & 1) - 1).to(dtype)


def gaussian_data(repeats: int = 1, mean: Tensor = MEAN, covariance: Tensor = COVARIANCE) -> Tensor:
    """Sixteen rows with the mean and covariance, whose signs (digits 2 and 3) are independent of those of `Signs` (0 and 1)."""
    signs = Signs(0).normal((16 * repeats, 4), dtype=F64)[:, 2:]
    return mean + signs @ torch.linalg.cholesky(covariance).T


class Exact(nn.Module):
    """The optimal diagonal reverse kernel of Gaussian data, found by conditioning in the joint law of x_{k-1} and x_k.

    `gain` and `spread` are the matrix on x_k - mean_k and the covariance of x_{k-1} given x_k, (T, 2, 2), k = 1 first.
    """

    def __init__(self, betas: Sequence[float], learned_covariance: bool = True) -> None:
        super().__init__()
        self.betas, self.learned = torch.tensor(betas, dtype=F64)[:, None], learned_covariance
        kept = torch.cat([torch.ones(1, dtype=F64), torch.cumprod(1 - self.betas[:, 0], 0)])[:, None]
        self.means = kept.sqrt() * MEAN
        self.covariances = kept[:, None] * COVARIANCE + (1 - kept[:, None]) * torch.eye(2, dtype=F64)
        jump = (1 - self.betas[:, None]).sqrt()
        self.gain = jump * self.covariances[:-1] @ torch.linalg.inv(self.covariances[1:])
        self.spread = self.covariances[:-1] - jump * self.gain @ self.covariances[:-1]

    def forward(self, x: Tensor, c_noise: Tensor, cond: None) -> Tensor:
        k, x = c_noise.long(), x[:, :2].double()
        beta = self.betas[k - 1]
        mean = self.means[k - 1] + (self.gain[k - 1] @ (x - self.means[k])[:, :, None])[:, :, 0]
        raw = (mean - (1 - beta).sqrt() * x) / beta.sqrt()
        if not self.learned:
            return raw
        odds = torch.logit(self.spread.diagonal(dim1=1, dim2=2)[k - 1]) - torch.logit(beta)
        return torch.cat([raw, math.sqrt(len(self.betas)) * odds], 1)


class Numbers(nn.Module):
    """An arbitrary fixed answer to every binary x_t and k."""

    def __init__(self, steps: int, features: int) -> None:
        super().__init__()
        self.table = 2 * Noise(3).normal((steps + 1, 2**features, features), dtype=F64)

    def forward(self, x: Tensor, c_noise: Tensor, cond: None) -> Tensor:
        code = (x.long() << torch.arange(x.shape[1])).sum(1)
        return self.table[c_noise.long(), code]


def entropy_gap(model: DPM, exact: Exact) -> float:
    """E[log2 q(x_0) - K] of the optimal diagonal kernel: both ends, and what diagonal covariances cannot say."""
    rest = (torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    kl = [float(gaussian_kl_full(m, c, *rest)) for m, c in zip(exact.means, exact.covariances, strict=True)]
    gap = kl[0] - kl[1] + kl[-1]
    for k in range(2, model.steps + 1):
        covariance = exact.spread[k - 1]
        gap += 0.5 * float(covariance.diagonal().log().sum() - torch.logdet(covariance))
    return gap / BITS


def bits(x: int, features: int = 2) -> tuple[int, ...]:
    return tuple((x >> i) & 1 for i in range(features))


# ---- the Gaussian chain


@pytest.mark.parametrize("kernel", ["gaussian", "gaussian_fixed"])
@pytest.mark.parametrize("steps", [2, 40, 200])
@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_identity_has_no_gap_on_normal_data(kernel: str, steps: int, schedule: str) -> None:
    model = dpm(2, kernel=kernel, steps=steps, schedule=schedule, width=4, depth=1)
    x0 = gaussian_data(mean=torch.zeros(2, dtype=F64), covariance=torch.eye(2, dtype=F64))
    entropy = -math.log2(2 * math.pi * math.e)
    assert float(model.bound(x0, Signs(0)).mean()) == pytest.approx(entropy, abs=1e-9)


@given(betas_of)
def test_bound_of_the_optimal_kernel_is_exact(betas: list[float]) -> None:
    exact = Exact(betas)
    model = DPM(Gaussian(), 2, betas, exact)
    entropy = -0.5 * math.log2((2 * math.pi * math.e) ** 2 * float(torch.linalg.det(COVARIANCE)))
    gap = entropy - float(model.bound(gaussian_data(), Signs(0)).mean())
    assert gap > 0
    assert gap == pytest.approx(entropy_gap(model, exact), rel=1e-6, abs=1e-6)


def test_gap_falls_with_steps_and_covariance_buys() -> None:
    x0, gaps = gaussian_data(), []
    entropy = -0.5 * math.log2((2 * math.pi * math.e) ** 2 * float(torch.linalg.det(COVARIANCE)))
    for steps in (5, 20, 80):
        betas = log_snr_betas(steps)
        learned, fixed = (
            entropy - float(DPM(kernel, 2, betas, Exact(betas, kernel.outputs == 2)).bound(x0, Signs(0)).mean())
            for kernel in (Gaussian(), Gaussian(learned_covariance=False))
        )
        assert 0 < learned < fixed
        gaps.append(learned)
    assert gaps[1] < 0.5 * gaps[0]
    assert gaps[2] < 0.5 * gaps[1]


def test_the_papers_entropies() -> None:
    # K = -Σ KL + H_q(X_T|X_0) - H_q(X_1|X_0) - H_p(X_T), for unit second moments; the identity's KL by its two moments
    betas = (0.1, 0.3, 0.6)
    model = DPM(Gaussian(), 1, betas, dpm(1, width=4, depth=1).net)
    x0 = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=F64)
    chain = Chain(betas)
    divergence = 0.0
    for k in (2, 3):
        q = chain.posterior(k / 3, (k - 1) / 3)
        ratio = float(q.variance) / betas[k - 1]
        alpha, sigma = (float(m) for m in chain.moments(k / 3))
        on_x_t = float(q.on_x_t) - math.sqrt(1 - betas[k - 1])
        mean_square = (on_x_t * alpha + float(q.on_x0)) ** 2 + (on_x_t * sigma) ** 2
        divergence += 0.5 * (ratio - 1 - math.log(ratio) + mean_square / betas[k - 1])
    first, last = betas[0], float(chain.moments(1.0)[1]) ** 2
    normal = 0.5 * math.log(2 * math.pi * math.e)
    k_paper = -divergence + (normal + 0.5 * math.log(last)) - (normal + 0.5 * math.log(first)) - normal
    assert float(model.bound(x0, Signs(0)).mean()) == pytest.approx(k_paper / BITS, abs=1e-12)


@given(betas_of, st.integers(1, 11))
def test_gaussian_posterior_is_the_chains(betas: list[float], k: int) -> None:
    steps = len(betas)
    k = min(k + 1, steps)
    chain = Chain(tuple(betas))
    x0, x_t = Noise(0).normal((5, 2), dtype=F64), Noise(1).normal((5, 2), dtype=F64)
    lost = chain.moments((k - 1) / steps)[1] ** 2
    mean, variance = Gaussian().posterior(x0, x_t, lost, torch.tensor(betas[k - 1], dtype=F64))
    want = chain.posterior(k / steps, (k - 1) / steps)
    torch.testing.assert_close(mean, want.mean(x_t, x0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(variance, want.variance, rtol=1e-9, atol=0)


def test_gaussian_samples_have_the_models_law() -> None:
    betas = log_snr_betas(12)
    exact = Exact(betas)
    mean, covariance = torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64)
    for k in range(12, 1, -1):
        gain, spread = exact.gain[k - 1], exact.spread[k - 1]
        mean = exact.means[k - 1] + gain @ (mean - exact.means[k])
        covariance = gain @ covariance @ gain.T + torch.diag(spread.diagonal())
    kept = 1 - betas[0]
    mean, covariance = math.sqrt(kept) * mean, kept * covariance + betas[0] * torch.eye(2, dtype=F64)
    n = 20_000
    x = DPM(Gaussian(), 2, betas, exact).sample(n, Noise(4)).double()
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (x - mean).T, upper=False)
    assert float(white.mean(1).abs().max()) < 4 / math.sqrt(n)
    assert float((white @ white.T / n - torch.eye(2)).abs().max()) < 4 * math.sqrt(2 / n)


# ---- the binary chain


def test_bernoulli_marginal_and_posterior_by_enumeration() -> None:
    betas = (0.1, 0.3, 0.25, 1.0)
    kernel = Bernoulli()

    def step(beta: float, before: int, after: int) -> float:
        one = before * (1 - beta) + 0.5 * beta
        return one if after else 1 - one

    for x0 in (0, 1):
        paths = {
            path: math.prod(step(b, *pair) for b, pair in zip(betas, itertools.pairwise((x0, *path)), strict=True))
            for path in itertools.product((0, 1), repeat=4)
        }
        for k in (1, 2, 3, 4):
            lost = 1 - math.prod(1 - b for b in betas[:k])
            (odds,) = kernel.forward(torch.tensor(float(x0)), torch.tensor(lost))
            assert float(odds.sigmoid()) == pytest.approx(sum(p for path, p in paths.items() if path[k - 1]), abs=1e-6)
        for k, x_t in itertools.product((2, 3, 4), (0, 1)):
            both = [sum(p for path, p in paths.items() if path[k - 1] == x_t and path[k - 2] == v) for v in (0, 1)]
            lost = torch.tensor(1 - math.prod(1 - b for b in betas[: k - 1]))
            (odds,) = kernel.posterior(torch.tensor(float(x0)), torch.tensor(float(x_t)), lost, torch.tensor(betas[k - 1]))
            assert float(odds.sigmoid()) == pytest.approx(both[1] / sum(both), abs=1e-6)


def enumerated(model: DPM, x0: tuple[int, ...]) -> tuple[float, float]:
    """(log2 p(x_0), its bound E_q log2 p(x_0 … x_T)/q(x_1 … x_T | x_0)) of a two-bit chain, by all paths."""
    states = torch.tensor([bits(i) for i in range(4)], dtype=F64)
    betas = model.betas()
    forward, reverse = [], []
    for k in range(1, model.steps + 1):
        beta = betas[k - 1]
        keep = (1 - beta) * torch.eye(2, dtype=F64) + beta / 2
        forward.append(torch.kron(keep, keep))  # [from, to]: the states count bit 0 fastest, and both bits move alike
        odds = model.reverse(states, torch.full((4,), k), beta)[0] if k > 1 else model.kernel.forward(states, beta)[0]
        p = odds.sigmoid()
        reverse.append(torch.stack([(states[i] * p + (1 - states[i]) * (1 - p)).prod(1) for i in range(4)], 1))
    start = sum(b << i for i, b in enumerate(x0))
    total, bound = 0.0, 0.0
    for path in itertools.product(range(4), repeat=model.steps):
        p, q = 0.25, 1.0
        for k, (before, after) in enumerate(itertools.pairwise((start, *path))):
            q *= float(forward[k][before, after])
            p *= float(reverse[k][after, before])
        total += p
        bound += q * math.log2(p / q)
    return math.log2(total), bound


@pytest.mark.parametrize("betas", [(0.2, 0.4, 0.5), harmonic_betas(3)])
def test_binary_bound_is_the_enumerated_one_and_below_the_truth(betas: tuple[float, ...]) -> None:
    model = DPM(Bernoulli(), 2, betas, Numbers(len(betas), 2))
    n = 20_000
    total = 0.0
    samples = model.sample(n, Noise(8))
    for i in range(4):
        x0 = bits(i)
        truth, bound = enumerated(model, x0)
        found = model.bound(torch.tensor([x0], dtype=F64).expand(n, 2), Noise(i))
        assert abs(float(found.mean()) - bound) < 4 * float(found.std()) / math.sqrt(n)
        assert bound < truth - 1e-3
        p = 2**truth
        total += p
        share = float((samples == torch.tensor(x0)).all(1).double().mean())
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n)
    assert total == pytest.approx(1)


class Marginals(nn.Module):
    """The exact reverse of independent bits: what they are before the step, whatever x_t is."""

    def __init__(self, ones: Tensor, betas: Sequence[float]) -> None:
        super().__init__()
        kept = torch.cat([torch.ones(1, dtype=F64), torch.cumprod(1 - torch.tensor(betas, dtype=F64), 0)])
        self.ones = kept[:, None] * ones + (1 - kept)[:, None] / 2

    def forward(self, x: Tensor, c_noise: Tensor, cond: None) -> Tensor:
        return torch.logit(self.ones[c_noise.long() - 1])


def test_exact_reverse_of_independent_bits_pays_for_the_ends_only() -> None:
    betas, ones = (0.01, 0.3, 0.4, 0.5), torch.tensor([0.1, 0.7], dtype=F64)
    net = Marginals(ones, betas)
    model = DPM(Bernoulli(), 2, betas, net)
    excess = [float((1 + (p * p.log2() + (1 - p) * (1 - p).log2())).sum()) for p in net.ones]  # bits below fair coins
    n = 40_000
    x0 = (Noise(0).uniform((n, 2)) < ones).double()
    truth = (x0 * ones + (1 - x0) * (1 - ones)).log2().sum(1)
    gap = truth - model.bound(x0, Noise(1))
    error = float(gap.std()) / math.sqrt(n)
    assert error < 0.01
    assert abs(float(gap.mean()) - (excess[0] - excess[1] + excess[-1])) < 4 * error


# ---- both


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_untrained_reverse_is_forward(kernel: str) -> None:
    model = dpm(3, kernel=kernel, steps=5, width=8, depth=1)
    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    for k in range(2, 6):
        beta = model.betas()[k - 1]
        for got, want in zip(model.reverse(x, torch.full((2,), k), beta), model.kernel.forward(x, beta), strict=True):
            torch.testing.assert_close(got.expand(2, 3).to(x), want.expand(2, 3).to(x))


def perturbed(kernel: str, learned_betas: bool = False) -> tuple[DPM, Tensor]:
    """A model with arbitrary weights, and binary data for it."""
    model = dpm(4, kernel=kernel, steps=6, width=16, depth=1, learned_betas=learned_betas)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(0.3 * Noise(index).normal((1, *parameter.shape))[0])
    return model, (Noise(9).uniform((64, 4)) < 0.3).float()


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_loss_is_unbiased_for_the_bound(kernel: str) -> None:
    model, x0 = perturbed(kernel)
    steps = 200
    with torch.no_grad():
        losses = torch.stack([model.loss(x0, Noise(0), step=s).double().mean() for s in range(steps)])
        bounds = torch.stack([model.bound(x0, Noise(100 + s)).mean() for s in range(40)])
    error = math.hypot(float(losses.std()) / math.sqrt(steps), float(bounds.std()) / math.sqrt(40))
    assert error < 0.02 * abs(float(bounds.mean()))
    assert abs(float(losses.mean() + bounds.mean())) < 3 * error


def test_a_spread_batch_sees_every_step_equally() -> None:
    betas = (0.1, 0.2, 0.3, 0.4)
    model = DPM(Gaussian(), 2, betas, Exact(betas))
    loss = model.loss(gaussian_data(repeats=3), Signs(0))
    assert float(loss.mean()) == pytest.approx(-float(model.bound(gaussian_data(), Signs(0)).mean()), abs=1e-9)


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_a_datum_does_not_depend_on_its_batch(kernel: str) -> None:
    model, x0 = perturbed(kernel)
    with torch.no_grad():
        whole = model.loss(x0, Noise(1), step=3, total=64)
        part = model.loss(x0[40:50], Noise(1), step=3, first=40, total=64)
        torch.testing.assert_close(part, whole[40:50], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.bound(x0[40:50], Noise(1), first=40), model.bound(x0, Noise(1))[40:50], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.sample(10, Noise(2), first=40), model.sample(64, Noise(2))[40:50], rtol=1e-4, atol=1e-4)


def test_float32_bound_keeps_its_digits() -> None:
    model = dpm(20, kernel="bernoulli", steps=2000, width=4, depth=0)
    x0, k = heartbeat(2000, Noise(0)), 2 + torch.arange(2000) % 1999  # every step on some datum, as `bound` weighs them
    with torch.no_grad():
        single, double = (model._step(x, k, model.betas(), Noise(1), "bound", 0, 0).double() for x in (x0, x0.double()))
    assert float(double.sum()) > 1
    assert float((single - double).abs().sum()) < 1e-4  # 3e-3 for the form with softplus, which cancels


def test_learned_betas_follow_the_gradient_of_the_bound() -> None:
    model, _ = perturbed("gaussian", learned_betas=True)
    model = model.double()
    linear = nn.Linear(8, 8, dtype=F64)
    with torch.no_grad():
        linear.weight.copy_(0.3 * Noise(5).normal((8, 8)))
        linear.bias.copy_(Noise(6).normal((8,)))

    class Means(nn.Module):
        """Linear means and constant covariances keep the terms quadratic, hence their expectations exact."""

        def forward(self, x: Tensor, c_noise: Tensor, cond: None) -> Tensor:
            raw = linear(x)
            return torch.cat([raw[:, :4], linear.bias[4:].expand(len(x), 4)], 1)

    model.net = Means()
    assert model.shift is not None
    every = Signs(0).normal((256 * 5, 8), dtype=F64)[:, 4:]
    model.loss(every, Signs(0)).mean().backward()
    for k in range(5):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                model.shift[k] += sign * 1e-4
                values.append(-float(model.bound(every[:256], Signs(0)).mean()))
                model.shift[k] -= sign * 1e-4
        assert model.shift.grad is not None
        assert float(model.shift.grad[k]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-5)


@given(st.lists(st.floats(-25, 25), min_size=7, max_size=7))
def test_learned_betas_stay_betas(shifts: list[float]) -> None:
    model = dpm(2, steps=8, learned_betas=True, width=4, depth=0)
    assert model.shift is not None
    with torch.no_grad():
        model.shift.copy_(torch.tensor(shifts))
    betas = model.betas().detach()
    assert float(betas[0]) == log_snr_betas(8)[0]
    assert bool(((betas > 0) & (betas < 1)).all())
    assert model.chain.betas == tuple(betas.tolist())


@pytest.mark.parametrize("steps", [2, 40, 1000])
def test_schedules(steps: int) -> None:
    lost = 1 - torch.cumprod(1 - torch.tensor(harmonic_betas(steps), dtype=F64), 0)
    torch.testing.assert_close(lost, torch.arange(1, steps + 1, dtype=F64) / steps)
    chain = Chain(log_snr_betas(steps, 1e-3, 0.02))
    ratios = chain.log_ratio(torch.arange(1, steps + 1, dtype=F64) / steps)
    torch.testing.assert_close(ratios.diff(), ratios.diff()[:1].expand(steps - 1))
    assert chain.betas[0] == pytest.approx(1e-3)
    assert float(chain.moments(1.0)[0]) ** 2 == pytest.approx(0.02)


def test_heartbeats_and_training() -> None:
    x0 = heartbeat(4000, Noise(0))
    shares = torch.stack([(x0 == (torch.arange(20) % 5 == phase)).all(1).double().mean() for phase in range(5)])
    assert float(shares.sum()) == 1
    assert float((shares - 0.2).abs().max()) < 4 * math.sqrt(0.16 / 4000)
    torch.manual_seed(0)
    model = dpm(20, kernel="bernoulli", steps=100, width=32, depth=1)
    before = float(model.bound(x0[:200], Noise(1)).mean())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(150):
        optimizer.zero_grad()
        model.loss(x0[:256], Noise(2), step=step).mean().backward()
        optimizer.step()
    after = model.bound(x0[:200], Noise(1))
    assert before < -10
    assert -6 < float(after.mean()) < -math.log2(5) + 4 * float(after.std()) / math.sqrt(200)


def test_errors() -> None:
    coins, roll = dpm(3, kernel="bernoulli", steps=4, width=4, depth=0), dpm(3, steps=4, width=4, depth=0)
    net = roll.net
    good = torch.zeros(2, 3)
    for call in (coins.loss, coins.bound):
        with pytest.raises(ValueError, match=r"x0 holds 0\.5.*zeros and ones"):
            call(good + 0.5, Noise(0))
        with pytest.raises(ValueError, match="x0 holds nan"):
            call(good * math.nan, Noise(0))
    for call in (roll.loss, roll.bound):
        with pytest.raises(ValueError, match="NaN"):
            call(good * math.nan, Noise(0))
        for wrong in (good[:, :2], good[0], good[None], good.long()):
            with pytest.raises(ValueError, match=r"x0 has shape .*floats of shape \(B, 3\)"):
                call(wrong, Noise(0))
    for betas in ((0.1, 1.2), (0.0, 0.5), (1.0, 0.5), (0.5,), (), (0.1, math.nan)):
        with pytest.raises(ValueError, match="betas="):
            DPM(Gaussian(), 3, betas, net)
    with pytest.raises(ValueError, match=r"learned_betas=True.*Bernoulli"):
        DPM(Bernoulli(), 3, (0.1, 0.2), net, learned_betas=True)
    with pytest.raises(ValueError, match="beta_4 is 1"):
        dpm(3, steps=4, schedule="harmonic", learned_betas=True)
    with pytest.raises(ValueError, match="kernel='poisson' is not one of gaussian"):
        dpm(3, kernel="poisson")
    with pytest.raises(ValueError, match="schedule='linear' is not one of log_snr"):
        dpm(3, schedule="linear")
