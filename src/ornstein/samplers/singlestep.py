"""Plans that look ahead within a step: Heun with churn."""

from __future__ import annotations

import math

import torch

from ornstein.grid import Grid, Spacing, make
from ornstein.process import GaussianProcess
from ornstein.samplers.onestep import _denoise, _floats, _jumps
from ornstein.samplers.plan import Plan, Row


def heun(
    process: GaussianProcess,
    calls: int,
    grid: str | Spacing | Grid = "karras",
    *,
    churn: float = 0.0,
    churn_low: float = 0.05,
    churn_high: float = 50.0,
    noise_scale: float = 1.003,
) -> Plan:
    """EDM's Heun sampler: the trapezoid rule for y = x/alpha in rho = sigma/alpha, dy/d rho = eps. Order 2 without churn.

    n times cost 2n - 1 calls (the last step, to clean data, is a plain denoise), the largest n with 2n - 1 ≤ calls.
    `churn` (S_churn) raises the noise of a step from rho to rho·(1 + min(churn/n, √2 - 1)) where churn_low ≤ rho ≤ churn_high,
    with normals scaled by `noise_scale`, never above the process's own largest noise.
    Source: Karras et al. 2022, arXiv 2206.00364, algorithm 2.
    """
    if calls < 1:
        raise ValueError(f"calls={calls} must be at least 1")
    times = make(process, (calls + 1) // 2, grid)
    gamma = min(churn / len(times), math.sqrt(2) - 1)
    rows = []
    for t, s in _jumps(times):
        if s is None:
            rows.append(_denoise(process, t))
            continue
        (alpha_t, sigma_t), (alpha_s, sigma_s) = _floats(process, t), _floats(process, s)
        rho_t = sigma_t / alpha_t if alpha_t else math.inf
        high, lift, c = t, 1.0, 0.0
        if gamma > 0 and churn_low <= rho_t <= churn_high:
            high = float(process.time_of(torch.tensor(math.log(rho_t * (1 + gamma)), dtype=torch.float64)))
            alpha_high, sigma_high = _floats(process, high)
            raised = max((sigma_high / alpha_high) ** 2 - rho_t**2, 0.0)
            lift, c = alpha_high / alpha_t, alpha_high * math.sqrt(raised) * noise_scale
            alpha_t, rho_t = alpha_high, sigma_high / alpha_high
        scale = alpha_s / alpha_t if alpha_t else math.inf
        step = sigma_s - alpha_s * rho_t
        rows.append(Row(high, high, lift, (), c, lift, (), c))
        rows.append(Row(s, s, scale, ((0, step / 2), (1, step / 2)), p=scale, prior=((1, step),)))
    return Plan(f"heun(churn={churn:g})" if churn else "heun", "eps", tuple(rows))
