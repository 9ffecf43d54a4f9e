"""Declared orders of convergence, measured on VP and the default grids: a mixture's flow map, and a Gaussian's law."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from sampler_cases import correlated, f64, lam, level
from torch import Tensor

from ornstein.noise import Noise
from ornstein.process import VP
from ornstein.samplers import (
    Plan,
    adams,
    ddim,
    deis,
    deis_rho_rk,
    dpm_solver,
    dpm_solver_multistep,
    dpm_solver_pp,
    dpm_solver_pp_single,
    heun,
    ipndm,
    lms,
    midpoint,
    pndm,
    propagate,
    run,
    runge_kutta,
    sa_solver,
    unipc,
)
from ornstein.testing import MixtureDenoiser

P, POINTS = VP(), 32
END = P.t_min
CALLS, FINER = (128, 256), (384, 768)
"""Pairs of calls. At the first every slope is that of the second to within a twentieth, where a start does not cap it."""


def with_half_the_curvature(calls: int, end: float) -> Plan:
    """++3M as it is widely copied: ∫ e^{u-h} u²/2 du where the second difference belongs with ∫ e^{u-h} u² du."""
    plan = dpm_solver_pp(P, calls, order=3, starts="single_step", end=end)
    rows = list(plan.rows)
    for k in range(6, calls):
        row, lags = rows[k], [j for j, _ in rows[k].b]
        nodes, h = [lam(P, rows[k - j].t) for j in lags], lam(P, row.s) - lam(P, row.t)  # type: ignore[arg-type]
        surplus = 0.5 * level(P, row.s)[0] * (h**2 - 2 * (h + math.expm1(-h)))
        bend = [1 / math.prod(node - other for other in nodes if other != node) for node in nodes]
        rows[k] = replace(row, b=tuple((j, w - surplus * d) for (j, w), d in zip(row.b, bend, strict=True)))
    return Plan("half the curvature", plan.view, tuple(rows))


class Declared:
    """A plan for a number of calls, and its order."""

    def __init__(self, declared: float, sampler: Callable[..., Plan], *grid: str, **options: Any) -> None:
        self.order, self.plan = declared, cache(lambda calls: sampler(P, calls, *grid, end=END, **options))


ORDERS: dict[str, Declared] = {
    "ddim": Declared(1, ddim),
    "heun": Declared(2, heun),
    "midpoint": Declared(2, midpoint),
    "heun_t": Declared(2, runge_kutta, "quadratic"),
    "kutta3": Declared(3, deis_rho_rk),
    "rk4": Declared(4, deis_rho_rk, method="rk4"),
    "lms_4": Declared(4, lms, order=4, starts="single_step"),
    "ipndm": Declared(2, ipndm, "quadratic"),
    "pndm": Declared(1.4 / 0.9, pndm, "quadratic"),
    "deis_t_1": Declared(2, deis, degree=1),
    "deis_t_2": Declared(3, deis, degree=2),
    "deis_t_3": Declared(4, deis, degree=3, starts="single_step"),
    "dpm_solver_2": Declared(2, dpm_solver, order=2, fast=False),
    "dpm_solver_3": Declared(3, dpm_solver, order=3, fast=False),
    "dpm_solver_2m": Declared(2, dpm_solver_multistep),
    "dpm_solver_3m": Declared(3, dpm_solver_multistep, order=3, starts="single_step"),
    "dpm_solver_pp_2s": Declared(2, dpm_solver_pp_single, fast=False),
    "dpm_solver_pp_3s": Declared(3, dpm_solver_pp_single, order=3, fast=False),
    "dpm_solver_pp_2m": Declared(2, dpm_solver_pp),
    "dpm_solver_pp_3m": Declared(3, dpm_solver_pp, order=3, starts="single_step"),
    "unipc_1": Declared(2, unipc, order=1, starts="single_step"),
    "unipc_2": Declared(3, unipc, order=2, starts="single_step"),
    "unipc_2_bh1": Declared(3, unipc, order=2, variant="bh1", starts="single_step"),
    "unipc_3": Declared(4, unipc, order=3, starts="single_step"),
    "sa_solver_2_2": Declared(3, sa_solver, tau=0.0),
    "sa_solver_1_3": Declared(2, sa_solver, predictor=1, corrector=3, tau=0.0),
    "adams_v": Declared(3, adams),
    "adams_v_angle": Declared(3, adams, variable="growth"),
    "adams_v_3": Declared(3, adams, order=3),
}


@cache
def mixture() -> tuple[MixtureDenoiser, Tensor, Tensor]:
    """The oracle, the points at t = 1, and where the flow takes them."""
    o = MixtureDenoiser(f64(1.2, 0.0, -0.6, 1.0, -0.6, -1.0).reshape(3, 2), f64(0.3, 0.4, 0.5), f64(0.3, 0.4, 0.3), P)
    x = Noise(5).normal((POINTS, 2), dtype=torch.float64)
    return o, x, o.flow(x, 1.0, END)


def error_on_the_mixture(plan: Plan) -> float:
    o, x, reference = mixture()
    return float((run(o, plan, x, noise=Noise(0)) - reference).norm(dim=1).mean())


def error_on_the_gaussian(plan: Plan) -> float:
    """Of mean and standard deviations at the end, started at the exact law of x_1."""
    o = correlated(P)
    law, (alpha, _) = propagate(plan, o)[-1], level(P, END)
    mean, variances = alpha * o.mean @ o.directions, o.marginal_variances(END)
    return float((law.mean - mean).norm() + (law.variances.sqrt() - variances.sqrt()).norm())


ERRORS = (error_on_the_mixture, error_on_the_gaussian)


def slope(plan: Callable[[int], Plan], error: Callable[[Plan], float], pair: tuple[int, int] = CALLS) -> float:
    coarse, fine = (error(plan(calls)) for calls in pair)
    return math.log(coarse / fine) / math.log(pair[1] / pair[0])


@pytest.mark.parametrize("name", ORDERS)
def test_measured_order_is_the_declared_one(name: str) -> None:
    for error in ERRORS:
        assert slope(ORDERS[name].plan, error) > 0.9 * ORDERS[name].order, error.__name__


def test_half_the_curvature_costs_an_order() -> None:
    plan = cache(lambda calls: with_half_the_curvature(calls, END))
    for error in ERRORS:
        assert 1.8 < slope(plan, error) < 2.3


def test_a_climbing_start_caps_the_order() -> None:
    """Its first step is of order 1 and leaves an error of the second order in the step."""
    climbing = cache(lambda calls: deis(P, calls, degree=3, end=END))
    for error in ERRORS:
        assert slope(climbing, error, FINER) < 3 < slope(ORDERS["deis_t_3"].plan, error)
