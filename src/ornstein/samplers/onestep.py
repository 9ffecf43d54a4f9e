"""Plans whose rows look at one evaluation: DDIM, ancestral sampling, Euler-Maruyama.

Each is a function (process, calls, grid) -> Plan; its last row denoises to clean data, so that n calls see n times.
"""

from __future__ import annotations

import math
from itertools import pairwise

from ornstein.grid import Grid, Spacing, make
from ornstein.process import GaussianProcess
from ornstein.samplers.plan import Plan, Row

REVERSE_VARIANCES = ("posterior", "transition", "learned")


def ddim(process: GaussianProcess, calls: int, grid: str | Spacing | Grid = "uniform", *, eta: float = 0.0) -> Plan:
    """DDIM: x_s = alpha_s x0 + sqrt(sigma_s² - eta² β̃) eps + eta sqrt(β̃) z. Order 1 for eta = 0.

    eta = 0 is the exponential Euler step of the probability flow (= DPM-Solver-1); eta = 1 equals `ancestral` with the
    posterior variance on the same grid. Source: Song et al. 2020, arXiv 2010.02502, eq. 12.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} must lie in [0, 1]; 0 is deterministic, 1 is ancestral")
    rows = []
    for t, s in _jumps(make(process, calls, grid)):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = _floats(process, t), _floats(process, s)
        variance = eta**2 * float(process.posterior(t, s).variance)
        ratio = math.sqrt(max(sigma_s**2 - variance, 0.0)) / sigma_t
        rows.append(Row(t, s, ratio, ((0, alpha_s - alpha_t * ratio),), math.sqrt(variance)))
    return Plan(f"ddim(eta={eta:g})" if eta else "ddim", "x0", tuple(rows))


def ancestral(
    process: GaussianProcess, calls: int, grid: str | Spacing | Grid = "uniform", *, variance: str = "posterior"
) -> Plan:
    """Ancestral sampling: x_s ~ q(x_s | x_t, x0) at the predicted x0 - predict x0, then correct by re-noising to s.

    `variance` is "posterior" (β̃), "transition" (β) or "learned" (between them, from the network). With all T levels of a
    chain this is DDPM's algorithm 2. Source: Ho et al. 2020, arXiv 2006.11239; Nichol and Dhariwal 2021, arXiv 2102.09672.
    """
    if variance not in REVERSE_VARIANCES:
        raise ValueError(f"variance={variance!r} is not one of {', '.join(REVERSE_VARIANCES)}")
    rows = []
    for t, s in _jumps(make(process, calls, grid)):
        q = process.posterior(t, s)
        a, b = float(q.on_x_t), ((0, float(q.on_x0)),)
        if s is None:
            rows.append(Row(t, s, a, b))
        elif variance == "learned":
            rows.append(Row(t, s, a, b, log_variances=(float(q.variance.log()), float(q.transition.log()))))
        else:
            rows.append(Row(t, s, a, b, math.sqrt(float(q.variance if variance == "posterior" else q.transition))))
    return Plan(f"ancestral({variance})", "x0", tuple(rows))


def euler_maruyama(process: GaussianProcess, calls: int, grid: str | Spacing | Grid = "uniform") -> Plan:
    """Euler-Maruyama on the reverse equation dx = (f x - g² score) dt + g dw̄, then one denoising step. Weak order 1.

    x_s = (1 - h f) x - h g²/sigma·eps + g sqrt(h) z with h = t - s; f and g must be finite on the grid.
    Source: Song et al. 2021, arXiv 2011.13456, eq. 6.
    """
    rows = []
    for t, s in _jumps(make(process, calls, grid)):
        if s is None:
            rows.append(_denoise(process, t))
            continue
        _, sigma = _floats(process, t)
        f, g, h = float(process.drift(t)), float(process.diffusion(t)), t - s
        rows.append(Row(t, s, 1 - h * f, ((0, -h * g**2 / sigma),), g * math.sqrt(h)))
    return Plan("euler_maruyama", "eps", tuple(rows))


def _denoise(process: GaussianProcess, t: float) -> Row:
    """x0 = (x_t - sigma·eps)/alpha as a row of the eps view."""
    alpha, sigma = _floats(process, t)
    return Row(t, None, 1 / alpha, ((0, -sigma / alpha),))


def _jumps(grid: Grid) -> list[tuple[float, float | None]]:
    """(t, s) for every row; the last goes to clean data."""
    return [*pairwise(grid), (grid[-1], None)]


def _floats(process: GaussianProcess, t: float | None) -> tuple[float, float]:
    alpha, sigma = process.moments(t)
    return float(alpha), float(sigma)
