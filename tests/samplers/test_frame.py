"""The frame of a view: dX = H dr along the flow, and the integrals of Lagrange polynomials in it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sampler_cases import correlated, integral, lagrange, lam, level, time_at

from ornstein.noise import Noise
from ornstein.process import EDM, VE, VP, Cosine, GaussianProcess, Rectified, SubVP
from ornstein.samplers.frame import FRAMES, Frame

PROCESSES: dict[str, GaussianProcess] = {
    "vp": VP(), "cosine": Cosine(), "ve": VE(), "sub_vp": SubVP(), "edm": EDM(), "flow": Rectified(),
}  # fmt: skip
views = pytest.mark.parametrize("view", FRAMES)
every = pytest.mark.parametrize("name", PROCESSES)


@views
@every
def test_the_flow_is_driven_by_the_view_alone(name: str, view: str) -> None:
    p = PROCESSES[name]
    frame, o, h = Frame(p, view), correlated(p), 1e-4
    x = Noise(3).normal((4, 3), dtype=torch.float64)
    for t in (0.2, 0.5, 0.9):
        before, after = (time_at(p, lam(p, t) + sign * h) for sign in (-1, 1))
        moved = o.flow(x, t, after) / frame.scale(after) - o.flow(x, t, before) / frame.scale(before)
        h_dr = o(x, t).view(view) * (frame.growth(after) - frame.growth(before))
        torch.testing.assert_close(moved, h_dr, rtol=1e-6, atol=1e-6 * float(h_dr.abs().max()))
        slope = float(FRAMES[view].slope(np.float64(lam(p, t))))
        assert frame.growth(after) - frame.growth(before) == pytest.approx(2 * h * slope, rel=1e-6)


@views
@pytest.mark.parametrize("variable", ["t", "lambda", "r"])
@pytest.mark.parametrize("name", ["vp", "sub_vp", "edm"])
def test_integrals_are_those_of_lagrange_polynomials(name: str, variable: str, view: str) -> None:
    p = PROCESSES[name]
    frame, t, s = Frame(p, view), 0.6, 0.45
    nodes = (0.6, 0.75, 0.8)

    def place(u: float) -> float:
        if variable == "t":
            return time_at(p, u)
        return u if variable == "lambda" else float(FRAMES[view].growth(np.float64(u)))

    at = [place(lam(p, node)) for node in nodes]
    for taus in (0.0, 0.8) if view == "x0" else (0.0,):
        found = frame.integrals(variable, nodes, t, s, taus)

        def density(u: float) -> float:
            kept = math.exp(-(taus**2) * (lam(p, s) - u)) * (1 + taus**2)  # noqa: B023
            return float(FRAMES[view].slope(np.float64(u))) * kept

        for j, weight in enumerate(found):
            exact = integral(lambda u, j=j: density(u) * lagrange(at, j, place(u)), lam(p, t), lam(p, s))
            assert weight == pytest.approx(exact, rel=1e-9)
        assert sum(found) == pytest.approx(frame.constant(t, s, taus), rel=1e-12)


@views
def test_the_last_row_is_clean_data(view: str) -> None:
    p = VP()
    o, x = correlated(p), Noise(3).normal((4, 3), dtype=torch.float64)
    row = Frame(p, view).denoise(0.3)
    assert (row.t, row.s) == (0.3, None)
    prediction = o(x, 0.3)
    torch.testing.assert_close(row.a * x + row.b[0][1] * prediction.view(view), prediction.x0)


@pytest.mark.parametrize("tau", [0.3, 1.0, 1.7])
def test_noise_of_the_reverse_equation_is_exact_for_a_point(tau: float) -> None:
    """alpha c + sigma eps stays of that law: decay² sigma_s² + std² = sigma_s², and the mean's weights sum to alpha_s."""
    p, t, s = VP(), 0.7, 0.4
    frame = Frame(p, "x0")
    decay, std = frame.diffuse(t, s, tau)
    assert decay**2 * level(p, s)[1] ** 2 + std**2 == pytest.approx(level(p, s)[1] ** 2, rel=1e-12)
    a, ((lag, weight),) = frame.step(t, s, [frame.constant(t, s, tau)], decay)
    assert lag == 0
    assert a * level(p, t)[0] + weight == pytest.approx(level(p, s)[0], rel=1e-12)
    assert frame.diffuse(t, s, 0.0) == (1.0, 0.0)
