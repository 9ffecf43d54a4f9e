"""The loop over a plan's rows equals each sampler written out as its paper prints it, with the same noise."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ornstein.denoiser import Prediction
from ornstein.grid import karras, log_snr, quadratic, uniform
from ornstein.noise import Noise
from ornstein.process import EDM, VE, VP, Chain, GaussianProcess, SubVP, chain
from ornstein.samplers import Plan, ancestral, ddim, dpm_solver_pp, euler_maruyama, heun, sample
from ornstein.testing import MixtureDenoiser

N, D = 6, 2
NOISE = Noise(11)
PROCESSES: dict[str, GaussianProcess] = {
    "vp": VP(),
    "ve": VE(0.02, 10.0),
    "sub_vp": SubVP(),
    "edm": EDM(),
    "chain": chain("linear"),
}


def oracle(p: GaussianProcess) -> MixtureDenoiser:
    means = Noise(1).normal((3, D), dtype=torch.float64)
    return MixtureDenoiser(means, torch.tensor([0.1, 0.4, 0.2]), torch.tensor([0.25, 0.25, 0.5]), p)


def z(step: int) -> Tensor:
    return NOISE.normal((N, D), stream="step", step=step, dtype=torch.float64)


def start(p: GaussianProcess) -> Tensor:
    return p.prior((N, D), NOISE, dtype=torch.float64)


def close(plan: Plan, p: GaussianProcess, direct: Tensor) -> None:
    found = sample(oracle(p), plan, shape=(N, D), noise=NOISE, dtype=torch.float64)
    torch.testing.assert_close(found, direct, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["vp", "chain"])
def test_ddim(name: str, eta: float) -> None:
    """Song et al. 2020, eq. 12 and 16, in alpha-bar."""
    p = PROCESSES[name]
    times, x = quadratic(p, 12), start(p)
    for k, (t, s) in enumerate(pairwise([*times, None])):
        x0 = oracle(p)(x, t).x0
        bar_t, bar_s = float(p.moments(t)[0]) ** 2, float(p.moments(s)[0]) ** 2
        eps = (x - math.sqrt(bar_t) * x0) / math.sqrt(1 - bar_t)
        spread = eta * math.sqrt((1 - bar_s) / (1 - bar_t)) * math.sqrt(1 - bar_t / bar_s)
        x = math.sqrt(bar_s) * x0 + math.sqrt(max(1 - bar_s - spread**2, 0)) * eps + spread * z(k)
    close(ddim(p, 12, "quadratic", eta=eta), p, x)


@pytest.mark.parametrize("variance", ["posterior", "transition"])
def test_ancestral(variance: str) -> None:
    """Ho et al. 2020, algorithm 2, from the betas."""
    p = chain("linear", 30)
    bars = torch.cumprod(1 - torch.tensor(p.betas, dtype=torch.float64), 0).tolist()
    x = start(p)
    for k in range(p.steps, 0, -1):
        beta, bar, before = p.betas[k - 1], bars[k - 1], bars[k - 2] if k > 1 else 1.0
        eps = oracle(p)(x, k / p.steps).eps
        x = (x - beta / math.sqrt(1 - bar) * eps) / math.sqrt(1 - beta)
        if k > 1:
            tau = beta if variance == "transition" else (1 - before) / (1 - bar) * beta
            x = x + math.sqrt(tau) * z(p.steps - k)
    close(ancestral(p, p.steps, variance=variance), p, x)


class Between:
    """An oracle that also learnt a variance, different for every element."""

    def __init__(self, p: GaussianProcess) -> None:
        self.inner, self.process = oracle(p), p

    def fraction(self, x: Tensor) -> Tensor:
        return torch.sigmoid(3 * x)

    def __call__(self, x_t: Tensor, t: float, cond: None = None) -> Prediction:
        found = self.inner(x_t, t)
        return Prediction.from_x0(x_t, found.alpha, found.sigma, found.x0, self.fraction(x_t))


def test_learned_variance() -> None:
    """Nichol and Dhariwal 2021, eq. 15: sigma² = beta^v β̃^(1-v)."""
    p = chain("cosine", 20)
    denoiser, x = Between(p), start(p)
    for k in range(p.steps, 0, -1):
        t = k / p.steps
        found, beta = denoiser(x, t), p.betas[k - 1]
        bar, before = float(p.moments(t)[0]) ** 2, float(p.moments((k - 1) / p.steps)[0]) ** 2
        mean = (x - beta / math.sqrt(1 - bar) * found.eps) / math.sqrt(1 - beta)
        if k > 1:
            v, tilde = denoiser.fraction(x), (1 - before) / (1 - bar) * beta
            mean = mean + torch.sqrt(beta**v * tilde ** (1 - v)) * z(p.steps - k)
        x = mean
    plan = ancestral(p, p.steps, variance="learned")
    found_x = sample(denoiser, plan, shape=(N, D), noise=NOISE, dtype=torch.float64)
    torch.testing.assert_close(found_x, x, rtol=1e-11, atol=1e-11)
    with pytest.raises(ValueError, match="needs a denoiser with learned_variance=True"):
        sample(oracle(p), plan, shape=(N, D), noise=NOISE)


@pytest.mark.parametrize("name", ["vp", "ve", "sub_vp"])
def test_euler_maruyama(name: str) -> None:
    """Song et al. 2021, eq. 6, with f and g² as printed there."""
    p = PROCESSES[name]
    times, x = uniform(p, 25), start(p)
    for k, (t, s) in enumerate(pairwise(times)):
        beta, alpha4 = 0.1 + 19.9 * t, math.exp(-2 * (0.1 * t + 9.95 * t * t))
        f, g2 = {
            "vp": (-beta / 2, beta),
            "sub_vp": (-beta / 2, beta * (1 - alpha4)),
            "ve": (0.0, 2 * math.log(500) * (0.02 * 500**t) ** 2),
        }[name]
        h = t - s
        x = x - h * (f * x - g2 * oracle(p)(x, t).score) + math.sqrt(g2 * h) * z(k)
    close(euler_maruyama(p, 25), p, oracle(p)(x, times[-1]).x0)


@pytest.mark.parametrize("churn", [0.0, 6.0, 400.0])
def test_heun_with_churn(churn: float) -> None:
    """Karras et al. 2022, algorithm 2, on sigma."""
    p, n = PROCESSES["edm"], 10
    sigmas = [(80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(n)]
    x = start(p)

    def denoise(y: Tensor, sigma: float) -> Tensor:
        return oracle(p)(y, float(p.time_of(torch.tensor(math.log(sigma), dtype=torch.float64)))).x0

    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        gamma = min(churn / n, math.sqrt(2) - 1) if 0.05 <= sigma <= 50 else 0.0
        hat = sigma * (1 + gamma)
        x = x + math.sqrt(hat**2 - sigma**2) * 1.003 * z(2 * i)
        d = (x - denoise(x, hat)) / hat
        ahead = x + (following - hat) * d
        x = x + (following - hat) * (d + (ahead - denoise(ahead, following)) / following) / 2
    direct = denoise(x, sigmas[-1])
    found = sample(oracle(p), heun(p, 2 * n - 1, churn=churn), shape=(N, D), noise=NOISE, dtype=torch.float64)
    # the times of sigma go through time_of and back: a few ulp, enlarged 80/0.002 times at most
    torch.testing.assert_close(found, direct, rtol=1e-12, atol=1e-12)


def test_heun_on_vp_works_in_the_scaled_state() -> None:
    """The same algorithm for y = x/alpha."""
    p = PROCESSES["vp"]
    times, x = karras(p, 8), start(p)
    y = x / p.moments(times[0])[0]
    for t, s in pairwise(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = p.moments(t), p.moments(s)
        rho, following = sigma_t / alpha_t, sigma_s / alpha_s
        d = oracle(p)(alpha_t * y, t).eps
        ahead = y + (following - rho) * d
        y = y + (following - rho) * (d + oracle(p)(alpha_s * ahead, s).eps) / 2
    close(heun(p, 15), p, oracle(p)(p.moments(times[-1])[0] * y, times[-1]).x0)


def test_churn_never_leaves_the_process() -> None:
    plan = heun(VE(0.02, 10.0), 21, churn=1000.0, churn_high=1e9)
    assert plan.rows[0].t == 1
    assert plan.rows[0].c == 0
    assert plan.rows[2].t > plan.rows[1].t


@pytest.mark.parametrize("spacing", [log_snr, karras])
@pytest.mark.parametrize("name", PROCESSES)
def test_dpm_solver_pp(name: str, spacing: object) -> None:
    """Lu et al. 2022, arXiv 2211.01095, algorithm 2, in lambda = log(alpha/sigma)."""
    p = PROCESSES[name]
    times, x = spacing(p, 9), start(p)  # type: ignore[operator]
    lam = [-float(p.log_ratio(t)) for t in times]
    previous = None
    for i, (t, s) in enumerate(pairwise(times)):
        (_, sigma_t), (alpha_s, sigma_s) = p.moments(t), p.moments(s)
        h, x0 = lam[i + 1] - lam[i], oracle(p)(x, t).x0
        mixed = x0
        if previous is not None:
            r = (lam[i] - lam[i - 1]) / h
            mixed = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous
        x, previous = sigma_s / sigma_t * x - alpha_s * math.expm1(-h) * mixed, x0
    close(dpm_solver_pp(p, 9, spacing), p, oracle(p)(x, times[-1]).x0)  # type: ignore[arg-type]


def same_rows(one: Plan, other: Plan) -> None:
    assert one.view == other.view
    for a, b in zip(one.rows, other.rows, strict=True):
        assert (a.t, a.s) == (b.t, b.s)
        assert [a.a, a.c, a.b[0][1]] == pytest.approx([b.a, b.c, b.b[0][1]], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_relatives_are_one_plan(name: str) -> None:
    p = PROCESSES[name]
    same_rows(ddim(p, 15, eta=1.0), ancestral(p, 15, variance="posterior"))
    same_rows(ddim(p, 15, "log_snr"), dpm_solver_pp(p, 15, order=1))


def test_levels_of_a_chain_are_all_visited() -> None:
    p = PROCESSES["chain"]
    assert isinstance(p, Chain)
    assert [round(t * 1000) for t in ancestral(p, 1000).times] == list(range(1000, 0, -1))
