"""Plans with memory against their papers' algorithms in plain loops, on an oracle with the same noise."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sampler_cases import integral, lagrange, lam, level, mixture, time_at
from torch import Tensor

from ornstein.grid import Spacing, karras, log_snr, quadratic, uniform
from ornstein.noise import Noise
from ornstein.process import EDM, VE, VP, GaussianProcess, SubVP
from ornstein.samplers import (
    Plan,
    adams,
    deis,
    dpm_solver_multistep,
    dpm_solver_pp,
    dpm_solver_pp_sde,
    ipndm,
    lms,
    run,
    sa_solver,
    unipc,
)

N, D = 6, 2
NOISE = Noise(11)
PROCESSES: dict[str, GaussianProcess] = {"vp": VP(), "ve": VE(0.02, 10.0), "sub_vp": SubVP(), "edm": EDM()}
every = pytest.mark.parametrize("name", PROCESSES)
uneven = pytest.mark.parametrize("spacing", [log_snr, karras])
"""Equal steps hide a ratio that is upside down."""


def z(step: int) -> Tensor:
    return NOISE.normal((N, D), stream="step", step=step, dtype=torch.float64)


def start(p: GaussianProcess) -> Tensor:
    return p.prior((N, D), NOISE, dtype=torch.float64)


def close(plan: Plan, p: GaussianProcess, direct: Tensor) -> None:
    found = run(mixture(p), plan, start(p), noise=NOISE)
    torch.testing.assert_close(found, direct, rtol=1e-10, atol=1e-10)


def many(weights: list[float], history: list[Tensor]) -> Tensor:
    """Σ weights[j]·(the j-th latest)."""
    return sum((w * h for w, h in zip(weights, reversed(history), strict=False)), torch.zeros(N, D, dtype=torch.float64))


@every
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm(order: int, name: str) -> None:
    """Zhang and Chen 2023, arXiv 2204.13902, appendix: DDIM's transfer of the Adams-Bashforth mean, warmed up from order 1."""
    p, seen = PROCESSES[name], []
    tables = ([1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])
    times, x = uniform(p, 11), start(p)
    for t, s in pairwise(times):
        seen.append(mixture(p)(x, t).eps)
        e = many(tables[min(len(seen), order) - 1], seen)
        x0 = (x - level(p, t)[1] * e) / level(p, t)[0]
        x = level(p, s)[0] * x0 + level(p, s)[1] * e
    close(ipndm(p, 11, order=order), p, mixture(p)(x, times[-1]).x0)


@every
@pytest.mark.parametrize("order", [2, 4])
def test_lms(order: int, name: str) -> None:
    """Crowson's k-diffusion, `lms`: for y = x/alpha in rho, ∫ of the Lagrange polynomials through the last eps."""
    p, seen, nodes = PROCESSES[name], [], []
    times = karras(p, 9)
    y = start(p) / level(p, times[0])[0]
    for t, s in pairwise(times):
        (alpha, sigma), (alpha_s, sigma_s) = level(p, t), level(p, s)
        seen.append(mixture(p)(alpha * y, t).eps)
        nodes = [sigma / alpha, *nodes][:order]
        weights = [
            integral(lambda u, j=j: lagrange(nodes, j, u), sigma / alpha, sigma_s / alpha_s)  # noqa: B023
            for j in range(len(nodes))
        ]
        y = y + many(weights, seen)
    close(lms(p, 9, order=order), p, mixture(p)(level(p, times[-1])[0] * y, times[-1]).x0)


@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve"])
def test_deis_in_time(name: str) -> None:
    """Zhang and Chen 2023, arXiv 2204.13902, eq. 15: C_j = ∫_t^s ½ Ψ(s, u) g(u)² / sigma(u) ℓ_j(u) du, Ψ = alpha_s/alpha_u."""
    p, seen = PROCESSES[name], []
    times, x = quadratic(p, 9, end=0.02), start(p)
    for k, (t, s) in enumerate(pairwise(times)):
        seen.append(mixture(p)(x, t).eps)
        nodes = list(reversed(times[max(0, k - 2) : k + 1]))

        def density(u: float) -> float:
            alpha, sigma = level(p, u)
            return 0.5 * level(p, s)[0] / alpha * float(p.diffusion(u)) ** 2 / sigma  # noqa: B023

        weights = [integral(lambda u, j=j: density(u) * lagrange(nodes, j, u), t, s) for j in range(len(nodes))]  # noqa: B023
        x = level(p, s)[0] / level(p, t)[0] * x + many(weights, seen)
    close(deis(p, 8, degree=2, end=0.02), p, x)


@every
@uneven
def test_dpm_solver_multistep(spacing: Spacing, name: str) -> None:
    """Lu et al. 2022, arXiv 2211.01095, appendix: the multistep solver on eps."""
    p, seen = PROCESSES[name], []
    times, x = spacing(p, 9), start(p)
    for k, (t, s) in enumerate(pairwise(times)):
        seen.append(mixture(p)(x, t).eps)
        h = lam(p, s) - lam(p, t)
        x = level(p, s)[0] / level(p, t)[0] * x - level(p, s)[1] * math.expm1(h) * seen[-1]
        if k:
            r = (lam(p, t) - lam(p, times[k - 1])) / h
            x = x - level(p, s)[1] * math.expm1(h) / (2 * r) * (seen[-1] - seen[-2])
    close(dpm_solver_multistep(p, 9, spacing), p, mixture(p)(x, times[-1]).x0)


def moments(h: float, rate: float) -> tuple[float, float, float]:
    """rate·∫_0^h e^{rate (u - h)} u^n du for n = 0, 1, 2, by parts."""
    zero = -math.expm1(-rate * h)
    one = h - zero / rate
    return zero, one, h**2 - 2 * one / rate


@every
@uneven
def test_dpm_solver_pp_3m(spacing: Spacing, name: str) -> None:
    """Lu et al. 2022, arXiv 2211.01095: x_s = sigma_s/sigma x + alpha_s ∫_0^h e^{u-h} x0(u) du, x0(u) Newton's parabola."""
    p, seen = PROCESSES[name], []
    times, x = spacing(p, 9), start(p)
    for k, (t, s) in enumerate(pairwise(times)):
        seen.append(mixture(p)(x, t).x0)
        h = lam(p, s) - lam(p, t)
        zero, one, two = moments(h, 1.0)
        mixed = zero * seen[-1]
        before = lam(p, t) - lam(p, times[k - 1]) if k else math.nan
        if k == 1:
            mixed = mixed + zero * h / (2 * before) * (seen[-1] - seen[-2])
        elif k > 1:
            slope = (seen[-1] - seen[-2]) / before
            earlier = lam(p, times[k - 1]) - lam(p, times[k - 2])
            bend = (slope - (seen[-2] - seen[-3]) / earlier) / (before + earlier)
            mixed = mixed + one * slope + (two + before * one) * bend
        x = level(p, s)[1] / level(p, t)[1] * x + level(p, s)[0] * mixed
    close(dpm_solver_pp(p, 9, spacing, order=3), p, mixture(p)(x, times[-1]).x0)


@every
@pytest.mark.parametrize("order", [2, 3])
@uneven
def test_dpm_solver_pp_sde(spacing: Spacing, order: int, name: str) -> None:
    """Lu et al. 2022, arXiv 2211.01095, section 5: SDE-DPM-Solver++(2M), and its parabola at order 3."""
    p, seen = PROCESSES[name], []
    times, x = spacing(p, 9), start(p)
    for k, (t, s) in enumerate(pairwise(times)):
        seen.append(mixture(p)(x, t).x0)
        (_, sigma), (alpha_s, sigma_s), h = level(p, t), level(p, s), lam(p, s) - lam(p, t)
        zero, one, two = moments(h, 2.0)
        mixed = zero * seen[-1]
        before = lam(p, t) - lam(p, times[k - 1]) if k else math.nan
        if k == 1 or (k > 1 and order == 2):
            mixed = mixed + zero * h / (2 * before) * (seen[-1] - seen[-2])
        elif k > 1:
            slope = (seen[-1] - seen[-2]) / before
            earlier = lam(p, times[k - 1]) - lam(p, times[k - 2])
            bend = (slope - (seen[-2] - seen[-3]) / earlier) / (before + earlier)
            mixed = mixed + one * slope + (two + before * one) * bend
        x = sigma_s / sigma * math.exp(-h) * x + alpha_s * mixed + sigma_s * math.sqrt(-math.expm1(-2 * h)) * z(k)
    close(dpm_solver_pp_sde(p, 9, spacing, order=order), p, mixture(p)(x, times[-1]).x0)


def unipc_line(
    p: GaussianProcess, x: Tensor, m0: Tensor, t: float, s: float, others: list[tuple[float, Tensor]], variant: str
) -> Tensor:
    """Eq. 8-9 of the paper on x0: R ρ = b with R_ik = r_k^{i-1} and b_i = hh φ_{i+1}(hh) i!/B, hh = -h; ρ = ½ if alone."""
    hh = lam(p, t) - lam(p, s)
    big = hh if variant == "bh1" else math.expm1(hh)
    phi, b = math.expm1(hh) / hh, []
    for i in range(1, len(others) + 1):
        phi = (phi - 1 / math.factorial(i)) / hh  # φ_{i+1}
        b.append(hh * phi * math.factorial(i) / big)
    r = [(lam(p, time) - lam(p, t)) / -hh for time, _ in others]
    if len(others) == 1:
        rho = [0.5]
    else:
        rho = list(np.linalg.solve(np.array([[x**i for x in r] for i in range(len(r))]), np.array(b))) if others else []
    differences = sum((w / x * (m - m0) for w, x, (_, m) in zip(rho, r, others, strict=True)), torch.zeros_like(x))
    sigma, (alpha_s, sigma_s) = level(p, t)[1], level(p, s)
    return sigma_s / sigma * x - alpha_s * math.expm1(hh) * m0 - alpha_s * big * differences


@every
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@uneven
def test_unipc(spacing: Spacing, order: int, variant: str, name: str) -> None:
    """Zhao et al. 2023, arXiv 2302.04867, algorithms 5-8 (UniP-p, then UniC-p), on x0, warmed up from order 1."""
    p, o = PROCESSES[name], mixture(PROCESSES[name])
    times, x = spacing(p, 9), start(p)
    seen = [(times[0], o(x, times[0]).x0)]  # the latest first
    ahead = x
    for t, s in pairwise(times):
        used = min(len(seen), order)
        m0, others = seen[0][1], seen[1:used]
        ahead = unipc_line(p, x, m0, t, s, others, variant)
        new = o(ahead, s).x0
        # the paper's order: r_1 … r_{p-1} of the past, r_p = 1
        x = unipc_line(p, x, m0, t, s, [*others, (s, new)], variant)
        seen = [(s, new), *seen]
    # the last evaluation is the clean data; with an end, the corrected state is what is left
    close(unipc(p, 9, spacing, order=order, variant=variant), p, seen[0][1])
    close(unipc(p, 9, times[:-1], order=order, variant=variant, end=times[-1]), p, x)


def stochastic_weights(p: GaussianProcess, nodes: list[float], t: float, s: float, tau: float) -> list[float]:
    """Xue et al. 2023, arXiv 2309.05019, eq. 14: sigma_s ∫ e^{-τ² (λ_s - λ)} (1 + τ²) e^λ ℓ_j(λ) dλ."""
    at = [lam(p, node) for node in nodes]
    return [
        level(p, s)[1]
        * integral(
            lambda u, j=j: math.exp(-(tau**2) * (lam(p, s) - u) + u) * (1 + tau**2) * lagrange(at, j, u), lam(p, t), lam(p, s)
        )
        for j in range(len(at))
    ]


@every
@pytest.mark.parametrize(("predictor", "corrector", "tau"), [(2, 1, 1.0), (3, 2, 0.7), (3, 0, 1.0), (1, 3, 0.0)])
def test_sa_solver(predictor: int, corrector: int, tau: float, name: str) -> None:
    """Xue et al. 2023, arXiv 2309.05019, algorithm 1: the predictor evaluates, the corrector uses that evaluation, one noise."""
    p, o = PROCESSES[name], mixture(PROCESSES[name])
    times, x = karras(p, 8), start(p)
    nodes, seen = [times[0]], [o(x, times[0]).x0]
    for k, (t, s) in enumerate(pairwise(times)):
        h = lam(p, s) - lam(p, t)
        # corrected rows draw with the call at s, plain ones with the call at t
        noise = level(p, s)[1] * math.sqrt(-math.expm1(-2 * tau**2 * h)) * z(k + 1 if corrector else k)
        kept = level(p, s)[1] / level(p, t)[1] * math.exp(-(tau**2) * h) * x + noise
        used = nodes[-predictor:][::-1]
        x = kept + many(stochastic_weights(p, used, t, s, tau), seen)
        new = o(x, s).x0
        if corrector:
            used = [s, *nodes[-corrector:][::-1]]
            x = kept + many(stochastic_weights(p, used, t, s, tau), [*seen, new])
        nodes.append(s)
        seen.append(new)
    plan = sa_solver(p, 8, "karras", predictor=predictor, corrector=corrector, tau=tau)
    close(plan, p, seen[-1])
    stopped = sa_solver(p, 8 - (corrector == 0), times[:-1], predictor=predictor, corrector=corrector, tau=tau, end=times[-1])
    close(stopped, p, x)


@every
@pytest.mark.parametrize("variable", ["lambda", "t", "growth"])
@pytest.mark.parametrize("correct", [True, False])
def test_adams_in_the_v_view(correct: bool, variable: str, name: str) -> None:
    """dX = v d angle for X = x/sqrt(alpha² + sigma²): ∫ of the polynomial through v, in the angle, in lambda or in t."""
    p, o = PROCESSES[name], mixture(PROCESSES[name])
    times, x = karras(p, 8), start(p)

    def place(angle: float) -> float:
        log_snr = -math.log(math.tan(angle))
        return {"growth": angle, "lambda": log_snr, "t": time_at(p, log_snr)}[variable]

    def turn(x: Tensor, t: float, s: float, nodes: list[float], seen: list[Tensor]) -> Tensor:
        angle = {time: math.atan2(*reversed(level(p, time))) for time in (t, s, *nodes)}
        at = [place(angle[node]) for node in nodes]
        weights = [integral(lambda u, j=j: lagrange(at, j, place(u)), angle[t], angle[s]) for j in range(len(at))]
        return math.hypot(*level(p, s)) * (x / math.hypot(*level(p, t)) + many(weights, seen))

    nodes, seen = [times[0]], [o(x, times[0]).v]
    for t, s in pairwise(times):
        ahead = turn(x, t, s, nodes[:2], seen)
        new = o(ahead, s)
        x = turn(x, t, s, [s, *nodes[:2]], [*seen, new.v]) if correct else ahead
        nodes, seen = [s, *nodes], [*seen, new.v]
    # clean data is alpha·x - sigma·v, with the state as it was corrected
    (alpha, sigma), scale = level(p, times[-1]), math.hypot(*level(p, times[-1]))
    close(adams(p, 8, "karras", variable=variable, correct=correct), p, alpha / scale**2 * x - sigma / scale * new.v)


def test_evaluations_are_remembered_past_a_single_step_start() -> None:
    """`starts="single_step"`: two DPM-Solver-3 steps, then the parabola through what was seen at the times themselves."""
    p = VP()
    plan = dpm_solver_pp(p, 12, order=3, starts="single_step")
    times = log_snr(p, 8)
    assert [plan.times[k] for k in (0, 3, *range(6, 12))] == pytest.approx(times)
    assert [j for j, _ in plan.rows[6].b] == [0, 3, 6]
    assert [j for j, _ in plan.rows[7].b] == [0, 1, 4]
    assert [j for j, _ in plan.rows[8].b] == [0, 1, 2]
    climbing = dpm_solver_pp(p, 8, times, order=3)
    for k in range(2, 7):  # the same steps
        assert [w for _, w in plan.rows[k + 4].b] == pytest.approx([w for _, w in climbing.rows[k].b])
    one = time_at(p, lam(p, times[0]) + (lam(p, times[1]) - lam(p, times[0])) / 3)
    assert plan.times[1] == pytest.approx(one)
