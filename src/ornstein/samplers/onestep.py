"""Plans whose rows look at one evaluation: DDIM, ancestral sampling, and first-order steps of the reverse equation.

Each is a function (process, calls, grid) -> Plan; its last row denoises to clean data, so that n calls see n times, or with
`end` the n steps stop at that time.
"""

from __future__ import annotations

import math

from ornstein.grid import Grid, Spacing
from ornstein.process import GaussianProcess
from ornstein.samplers.frame import Frame, floats
from ornstein.samplers.plan import Plan, Row

REVERSE_VARIANCES = ("posterior", "transition", "learned")


def ddim(
    process: GaussianProcess,
    calls: int,
    grid: str | Spacing | Grid = "uniform",
    *,
    eta: float = 0.0,
    end: float | None = None,
) -> Plan:
    """DDIM: x_s = alpha_s x0 + sqrt(sigma_s² - eta² β̃) eps + eta sqrt(β̃) z. Order 1 for eta = 0.

    eta = 0 is the exponential Euler step of the probability flow (= DPM-Solver-1 = DPM-Solver++ of order 1 = DEIS of degree
    0); eta = 1 equals `ancestral` with the posterior variance and `dpm_solver_pp_sde` of order 1 on the same grid.
    Source: Song et al. 2020, arXiv 2010.02502, eq. 12.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} must lie in [0, 1]; 0 is deterministic, 1 is ancestral")
    rows = []
    for t, s in Frame(process, "x0").jumps(calls, grid, end):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = floats(process, t), floats(process, s)
        variance = eta**2 * float(process.posterior(t, s).variance) if eta else 0.0
        ratio = math.sqrt(max(sigma_s**2 - variance, 0.0)) / sigma_t
        rows.append(Row(t, s, ratio, ((0, alpha_s - alpha_t * ratio),), math.sqrt(variance)))
    return Plan(f"ddim(eta={eta:g})" if eta else "ddim", "x0", tuple(rows))


def ancestral(
    process: GaussianProcess,
    calls: int,
    grid: str | Spacing | Grid = "uniform",
    *,
    variance: str = "posterior",
    end: float | None = None,
) -> Plan:
    """Ancestral sampling: x_s ~ q(x_s | x_t, x0) at the predicted x0 - predict x0, then correct by re-noising to s.

    `variance` is "posterior" (β̃), "transition" (β) or "learned" (between them, from the network). Weak order 1. With all T
    levels of a chain this is DDPM's algorithm 2. Source: Ho et al. 2020, arXiv 2006.11239; Nichol and Dhariwal 2021, arXiv
    2102.09672.
    """
    if variance not in REVERSE_VARIANCES:
        raise ValueError(f"variance={variance!r} is not one of {', '.join(REVERSE_VARIANCES)}")
    rows = []
    for t, s in Frame(process, "x0").jumps(calls, grid, end):
        q = process.posterior(t, s)
        a, b = float(q.on_x_t), ((0, float(q.on_x0)),)
        if s is None:
            rows.append(Row(t, s, a, b))
        elif variance == "learned":
            rows.append(Row(t, s, a, b, log_variances=(float(q.variance.log()), float(q.transition.log()))))
        else:
            rows.append(Row(t, s, a, b, math.sqrt(float(q.variance if variance == "posterior" else q.transition))))
    return Plan(f"ancestral({variance})", "x0", tuple(rows))


def euler_maruyama(
    process: GaussianProcess, calls: int, grid: str | Spacing | Grid = "uniform", *, end: float | None = None
) -> Plan:
    """Euler-Maruyama on the reverse equation dx = (f x - g² score) dt + g dw̄, then one denoising step. Weak order 1.

    x_s = (1 - h f) x - h g²/sigma·eps + g sqrt(h) z with h = t - s; f and g must be finite on the grid. The noise is additive:
    strong order 1 too. `reverse_diffusion` takes the forward kernel's coefficients in place of f, g.
    Source: Song et al. 2021, arXiv 2011.13456, eq. 6.
    """
    frame, rows = Frame(process, "eps"), []
    for t, s in frame.jumps(calls, grid, end):
        if s is None:
            rows.append(frame.denoise(t))
            continue
        _, sigma = floats(process, t)
        f, g, h = float(process.drift(t)), float(process.diffusion(t)), t - s
        rows.append(Row(t, s, 1 - h * f, ((0, -h * g**2 / sigma),), g * math.sqrt(h)))
    return Plan("euler_maruyama", "eps", tuple(rows))


def reverse_diffusion(
    process: GaussianProcess, calls: int, grid: str | Spacing | Grid = "uniform", *, end: float | None = None
) -> Plan:
    """The forward step's own discretisation, reversed: x_s = (2 - A) x + V·score + sqrt(V) z. Weak order 1.

    A = alpha_t/alpha_s and V are those of the kernel q(x_t | x_s) = N(A x_s, V I). On VE it is the predictor of Song et al.; to
    first order in the step it equals `euler_maruyama`, but f and g need not be known. Source: Song et al. 2021, arXiv
    2011.13456, appendix E.
    """
    frame, rows = Frame(process, "eps"), []
    for t, s in frame.jumps(calls, grid, end):
        if s is None:
            rows.append(frame.denoise(t))
            continue
        forward, (_, sigma) = process.transition(s, t), floats(process, t)
        variance = float(forward.variance)
        rows.append(Row(t, s, 2 - float(forward.alpha), ((0, -variance / sigma),), math.sqrt(variance)))
    return Plan("reverse_diffusion", "eps", tuple(rows))
