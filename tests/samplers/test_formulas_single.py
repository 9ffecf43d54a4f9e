"""One-step and single-step plans against their papers' algorithms in plain loops, on an oracle with the same noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from sampler_cases import lam, level, mixture, time_at
from torch import Tensor

from ornstein.grid import karras, log_snr, uniform
from ornstein.noise import Noise
from ornstein.process import EDM, VE, VP, GaussianProcess, SubVP, chain
from ornstein.samplers import (
    Plan,
    deis_rho_rk,
    dpm_solver,
    dpm_solver_pp_single,
    midpoint,
    pndm,
    probability_flow_euler,
    reverse_diffusion,
    run,
    runge_kutta,
)

N, D = 6, 2
NOISE = Noise(11)
PROCESSES: dict[str, GaussianProcess] = {
    "vp": VP(),
    "ve": VE(0.02, 10.0),
    "sub_vp": SubVP(),
    "edm": EDM(),
    "chain": chain("linear"),
}
every = pytest.mark.parametrize("name", PROCESSES)


def z(step: int) -> Tensor:
    return NOISE.normal((N, D), stream="step", step=step, dtype=torch.float64)


def start(p: GaussianProcess) -> Tensor:
    return p.prior((N, D), NOISE, dtype=torch.float64)


def close(plan: Plan, p: GaussianProcess, direct: Tensor) -> None:
    found = run(mixture(p), plan, start(p), noise=NOISE)
    torch.testing.assert_close(found, direct, rtol=1e-10, atol=1e-10)


def in_ratio(p: GaussianProcess, y: Tensor, rho: float) -> Tensor:
    """eps as the slope dy/d rho at y = x/alpha and rho = sigma/alpha."""
    t = time_at(p, -math.log(rho))
    return mixture(p)(level(p, t)[0] * y, t).eps


def midpoint_step(f: Callable[[Tensor, float], Tensor], y: Tensor, u: float, h: float) -> Tensor:
    return y + h * f(y + h / 2 * f(y, u), u + h / 2)


def heun_step(f: Callable[[Tensor, float], Tensor], y: Tensor, u: float, h: float) -> Tensor:
    first = f(y, u)
    return y + h / 2 * (first + f(y + h * first, u + h))


def kutta3_step(f: Callable[[Tensor, float], Tensor], y: Tensor, u: float, h: float) -> Tensor:
    k1 = f(y, u)
    k2 = f(y + h / 2 * k1, u + h / 2)
    k3 = f(y - h * k1 + 2 * h * k2, u + h)
    return y + h / 6 * (k1 + 4 * k2 + k3)


def rk4_step(f: Callable[[Tensor, float], Tensor], y: Tensor, u: float, h: float) -> Tensor:
    k1 = f(y, u)
    k2 = f(y + h / 2 * k1, u + h / 2)
    k3 = f(y + h / 2 * k2, u + h / 2)
    k4 = f(y + h * k3, u + h)
    return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


STEPS = {"midpoint": (midpoint_step, 2), "heun": (heun_step, 2), "kutta3": (kutta3_step, 3), "rk4": (rk4_step, 4)}


@every
@pytest.mark.parametrize("method", STEPS)
def test_runge_kutta_in_the_ratio(method: str, name: str) -> None:
    """DEIS ρRK (arXiv 2204.13902, section 3.4): dy/d rho = eps for y = x/alpha; to clean data by a last denoise."""
    p, (step, stages) = PROCESSES[name], STEPS[method]
    times = karras(p, 8)
    y = start(p) / level(p, times[0])[0]
    for t, s in pairwise(times):
        rho, following = (sigma / alpha for alpha, sigma in (level(p, t), level(p, s)))
        y = step(lambda y, rho: in_ratio(p, y, rho), y, rho, following - rho)
    calls = 7 * stages + 1
    direct = mixture(p)(level(p, times[-1])[0] * y, times[-1]).x0
    close(runge_kutta(p, calls, "karras", method=method, variable="ratio"), p, direct)
    close(deis_rho_rk(p, calls, method=method), p, direct)
    if method == "midpoint":
        close(midpoint(p, calls), p, direct)


@pytest.mark.parametrize("name", ["vp", "ve", "sub_vp"])
@pytest.mark.parametrize("method", [*STEPS, "euler"])
def test_runge_kutta_in_time(method: str, name: str) -> None:
    """dx/dt = f x - ½ g² score (arXiv 2011.13456, eq. 13), with f and g² as printed there."""
    p, stages = PROCESSES[name], STEPS[method][1] if method in STEPS else 1

    def slope(x: Tensor, t: float) -> Tensor:
        t = max(t, 0.0)
        beta, alpha4 = 0.1 + 19.9 * t, math.exp(-2 * (0.1 * t + 9.95 * t * t))
        f, g2 = {
            "vp": (-beta / 2, beta),
            "sub_vp": (-beta / 2, beta * (1 - alpha4)),
            "ve": (0.0, 2 * math.log(500) * (0.02 * 500**t) ** 2),
        }[name]
        return f * x - g2 / 2 * mixture(p)(x, t).score

    times, x = uniform(p, 11, end=0.1), start(p)
    for t, s in pairwise(times):
        x = x + (s - t) * slope(x, t) if method == "euler" else STEPS[method][0](slope, x, t, s - t)
    close(runge_kutta(p, 10 * stages, method=method, end=0.1), p, x)
    if method == "euler":
        close(probability_flow_euler(p, 10, end=0.1), p, x)
    if method == "midpoint":
        close(midpoint(p, 20, "uniform", variable="t", end=0.1), p, x)


@every
def test_pndm(name: str) -> None:
    """Liu et al. 2022, arXiv 2202.09778, algorithm 2 with eq. 11-13."""
    p, o = PROCESSES[name], mixture(PROCESSES[name])
    times, x = uniform(p, 11), start(p)

    def transfer(x: Tensor, e: Tensor, t: float, s: float) -> Tensor:  # eq. 11, in alpha-bar where they are not 1
        (a, b), (c, d) = level(p, t), level(p, s)
        return c / a * x - (b * c / a - d) * e

    seen: list[Tensor] = []
    for k, (t, s) in enumerate(pairwise(times)):
        e1 = o(x, t).eps
        seen.append(e1)
        if k < 3:
            middle = (t + s) / 2
            e2 = o(transfer(x, e1, t, middle), middle).eps
            e3 = o(transfer(x, e2, t, middle), middle).eps
            e4 = o(transfer(x, e3, t, s), s).eps
            e = (e1 + 2 * e2 + 2 * e3 + e4) / 6
        else:
            e = (55 * seen[-1] - 59 * seen[-2] + 37 * seen[-3] - 9 * seen[-4]) / 24
        x = transfer(x, e, t, s)
    plan = pndm(p, 20)
    close(plan, p, o(x, times[-1]).x0)
    assert plan.calls == 20


@every
def test_dpm_solver_2(name: str) -> None:
    """Lu et al. 2022, arXiv 2206.00927, algorithm 1, r1 = ½."""
    p, o = PROCESSES[name], mixture(PROCESSES[name])
    times, x = log_snr(p, 9), start(p)
    for t, s in pairwise(times):
        (alpha, _), (alpha_s, sigma_s), h = level(p, t), level(p, s), lam(p, s) - lam(p, t)
        middle = time_at(p, lam(p, t) + h / 2)
        alpha_m, sigma_m = level(p, middle)
        u = alpha_m / alpha * x - sigma_m * math.expm1(h / 2) * o(x, t).eps
        x = alpha_s / alpha * x - sigma_s * math.expm1(h) * o(u, middle).eps
    close(dpm_solver(p, 17, order=2), p, o(x, times[-1]).x0)
    close(dpm_solver(p, 18, order=2, fast=False), p, o(x, times[-1]).x0)


def dpm_3_step(p: GaussianProcess, x: Tensor, t: float, s: float) -> Tensor:
    o, r1, r2 = mixture(p), 1 / 3, 2 / 3
    (alpha, _), (alpha_s, sigma_s), h = level(p, t), level(p, s), lam(p, s) - lam(p, t)
    one, two = time_at(p, lam(p, t) + r1 * h), time_at(p, lam(p, t) + r2 * h)
    (alpha_1, sigma_1), (alpha_2, sigma_2) = level(p, one), level(p, two)
    eps = o(x, t).eps
    u1 = alpha_1 / alpha * x - sigma_1 * math.expm1(r1 * h) * eps
    d1 = o(u1, one).eps - eps
    u2 = alpha_2 / alpha * x - sigma_2 * math.expm1(r2 * h) * eps - sigma_2 * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = o(u2, two).eps - eps
    return alpha_s / alpha * x - sigma_s * math.expm1(h) * eps - sigma_s / r2 * (math.expm1(h) / h - 1) * d2


@every
def test_dpm_solver_3(name: str) -> None:
    """Lu et al. 2022, arXiv 2206.00927, algorithm 2, r1 = ⅓, r2 = ⅔."""
    p = PROCESSES[name]
    times, x = log_snr(p, 9), start(p)
    for t, s in pairwise(times):
        x = dpm_3_step(p, x, t, s)
    close(dpm_solver(p, 25, fast=False), p, mixture(p)(x, times[-1]).x0)


def orders(plan: Plan) -> list[int]:
    """How many calls each step takes, the final denoise left out: a step ends where the state's time changes."""
    ends, steps = [row.s for row in plan.rows], []
    for k in range(len(ends)):
        if k == len(ends) - 1 or ends[k] != (1.0 if k == 0 else ends[k - 1]):
            steps.append(k)
    return [after - before for before, after in pairwise([-1, *steps[:-1]])]


def test_fast_uses_every_call() -> None:
    """arXiv 2206.00927, appendix D: K = ⌊N/3⌋ + 1 steps of N calls."""
    for sampler in (dpm_solver, dpm_solver_pp_single):
        for n, expected in ((9, [3, 3, 2, 1]), (10, [3, 3, 3, 1]), (11, [3, 3, 3, 2]), (3, [2, 1]), (2, [2]), (1, [1])):
            assert orders(sampler(VP(), n + 1, order=3)) == expected
            assert sampler(VP(), n, order=3, end=0.1).calls == n
        assert orders(sampler(VP(), 8, order=2)) == [2, 2, 2, 1]
        assert orders(sampler(VP(), 9, order=3, fast=False)) == [3, 3]


def test_fast_steps_are_those_orders() -> None:
    p = VP()
    o, times, x = mixture(p), log_snr(p, 5), start(p)
    x = dpm_3_step(p, x, times[0], times[1])
    x = dpm_3_step(p, x, times[1], times[2])
    t, s = times[2:4]
    (alpha, _), (alpha_s, sigma_s), h = level(p, t), level(p, s), lam(p, s) - lam(p, t)
    middle = time_at(p, lam(p, t) + h / 2)
    u = level(p, middle)[0] / alpha * x - level(p, middle)[1] * math.expm1(h / 2) * o(x, t).eps
    x = alpha_s / alpha * x - sigma_s * math.expm1(h) * o(u, middle).eps
    t, s = times[3:5]
    (alpha, _), (alpha_s, sigma_s), h = level(p, t), level(p, s), lam(p, s) - lam(p, t)
    x = alpha_s / alpha * x - sigma_s * math.expm1(h) * o(x, t).eps
    close(dpm_solver(p, 10), p, o(x, times[-1]).x0)  # 9 = 3 + 3 + 2 + 1


@every
def test_dpm_solver_pp_2s(name: str) -> None:
    """Lu et al. 2022, arXiv 2211.01095, algorithm 1, r = ½."""
    p, o, r = PROCESSES[name], mixture(PROCESSES[name]), 0.5
    times, x = log_snr(p, 9), start(p)
    for t, s in pairwise(times):
        (_, sigma), (alpha_s, sigma_s), h = level(p, t), level(p, s), lam(p, s) - lam(p, t)
        middle = time_at(p, lam(p, t) + r * h)
        alpha_m, sigma_m = level(p, middle)
        x0 = o(x, t).x0
        u = sigma_m / sigma * x - alpha_m * math.expm1(-r * h) * x0
        mixed = (1 - 1 / (2 * r)) * x0 + 1 / (2 * r) * o(u, middle).x0
        x = sigma_s / sigma * x - alpha_s * math.expm1(-h) * mixed
    close(dpm_solver_pp_single(p, 17), p, o(x, times[-1]).x0)


@every
def test_dpm_solver_pp_3s(name: str) -> None:
    """`dpm_solver` of order 3 with x0: x_s = sigma_s/sigma x + alpha_s ∫_0^h e^{u-h} (x0 + u·slope) du, slope from ⅔h."""
    p, o, r1, r2 = PROCESSES[name], mixture(PROCESSES[name]), 1 / 3, 2 / 3
    times, x = log_snr(p, 9), start(p)

    def move(x: Tensor, t: float, s: float, x0: Tensor, slope: Tensor | float) -> Tensor:
        (_, sigma), (alpha_s, sigma_s), h = level(p, t), level(p, s), lam(p, s) - lam(p, t)
        return sigma_s / sigma * x + alpha_s * (-math.expm1(-h) * x0 + (h + math.expm1(-h)) * slope)

    for t, s in pairwise(times):
        h = lam(p, s) - lam(p, t)
        one, two = time_at(p, lam(p, t) + r1 * h), time_at(p, lam(p, t) + r2 * h)
        x0 = o(x, t).x0
        first = o(move(x, t, one, x0, 0.0), one).x0
        second = o(move(x, t, two, x0, (first - x0) / (r1 * h)), two).x0
        x = move(x, t, s, x0, (second - x0) / (r2 * h))
    close(dpm_solver_pp_single(p, 25, order=3, fast=False), p, o(x, times[-1]).x0)


def test_reverse_diffusion_on_exploding_variance() -> None:
    """Song et al. 2021, arXiv 2011.13456, algorithm 2's predictor: x + (σ_{i+1}² - σ_i²) score + sqrt(σ_{i+1}² - σ_i²) z."""
    p = VE(0.02, 10.0)
    times, x = uniform(p, 25), start(p)
    sigmas = [0.02 * 500**t for t in times]
    for k, t in enumerate(times[:-1]):
        gained = sigmas[k] ** 2 - sigmas[k + 1] ** 2
        x = x + gained * mixture(p)(x, t).score + math.sqrt(gained) * z(k)
    close(reverse_diffusion(p, 25), p, mixture(p)(x, times[-1]).x0)


def test_reverse_diffusion_on_preserved_variance() -> None:
    """Song et al. 2021, arXiv 2011.13456, algorithm 3's predictor: (2 - sqrt(1 - β)) x + β score + sqrt(β) z."""
    p = chain("linear", 40)
    x = start(p)
    for k in range(p.steps, 1, -1):
        beta = p.betas[k - 1]
        x = (2 - math.sqrt(1 - beta)) * x + beta * mixture(p)(x, k / p.steps).score + math.sqrt(beta) * z(p.steps - k)
    close(reverse_diffusion(p, p.steps), p, mixture(p)(x, 1 / p.steps).x0)


def test_a_stochastic_plan_that_stops_leaves_the_noise_in() -> None:
    p = VE(0.02, 10.0)
    times, x = uniform(p, 13, end=0.3), start(p)
    for k, (t, s) in enumerate(pairwise(times)):
        gained = level(p, t)[1] ** 2 - level(p, s)[1] ** 2
        x = x + gained * mixture(p)(x, t).score + math.sqrt(gained) * z(k)
    close(reverse_diffusion(p, 12, end=0.3), p, x)
