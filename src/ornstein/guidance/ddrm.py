"""DDRM: sampling in the coordinates in which a linear measurement is diagonal.

    section 3.1, eq. 3-5  the variational law, per coefficient    `ddrm`
    section 4.1, eq. 7-8  the learned process                     `_weights`
    section 4.2           noiseless and noisy measurements        one table: noise 0 is the case σ ≥ σ_y/s throughout
    section 4.3           DDIM-like speed with eta, eta_b         arguments

Source: Kawar et al. 2022, arXiv 2201.11793.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ornstein.denoiser import Condition, Denoises
from ornstein.files import InputError
from ornstein.grid import Grid, Spacing
from ornstein.guidance.given import Given
from ornstein.noise import Noise
from ornstein.operator import LARGEST, Spectrum
from ornstein.samplers.frame import Frame, floats


def ddrm(
    denoiser: Denoises,
    x: Tensor,
    given: Given,
    *,
    noise: Noise,
    calls: int = 20,
    grid: str | Spacing | Grid = "uniform",
    eta: float = 0.85,
    eta_b: float = 1.0,
    cond: Condition = None,
    first: int = 0,
    ticks: Iterator[object] | None = None,
) -> Tensor:
    """Draws of x0 | y (B, *) from a start x (B, *) of the process's prior, for y = A x0 + noise_std·z with a known spectrum.

    With A = U diag(s) Vᵀ every coefficient c of Vᵀx/alpha has noise σ = sigma/alpha. c̄ = (Uᵀy)/s knows Vᵀx0 up to
    σ_y/s, and one step, to noise σ' and with c0 that of the predicted x0, draws c' normal with

        s = 0            mean c0 + √(1-eta²) σ'/σ (c - c0)           std eta σ'
        σ' < σ_y/s       mean c0 + √(1-eta²) σ's/σ_y (c̄ - c0)       std eta σ'
        σ' ≥ σ_y/s       mean (1 - eta_b) c0 + eta_b c̄              std √(σ'² - eta_b² σ_y²/s²)

    The last step goes to σ' = 0: what was measured without noise is kept. `calls` network evaluations on the times of `grid`;
    noise is keyed by stream "ddrm", step and sample. InputError for a non-linear operator, one without a spectrum, an unknown
    noise level, or eta, eta_b outside [0, 1].
    """
    spectrum, noise_std = _demanded(given)
    for name, value in (("eta", eta), ("eta_b", eta_b)):
        if not 0 <= value <= 1:
            raise InputError(f"{name}={value} must lie in [0, 1]; the paper's are eta=0.85, eta_b=1")
    process = denoiser.process
    s = spectrum.values
    seen = s > 0
    safe = torch.where(seen, s, 1.0)
    spread = torch.where(seen, noise_std / safe, math.inf)
    known = torch.where(seen.to(x.device), spectrum.measured(given.to(x).values) / safe.to(x), 0.0)
    jumps = Frame(process, "eps").jumps(calls, grid, None)
    alpha, sigma = floats(process, jumps[0][0])
    level = sigma / alpha
    z = spectrum.forward(x) / process.prior_std
    # a coefficient that is measured more coarsely than the first level starts as if it were not measured
    scale = torch.where(spread <= level, (level**2 - spread.clamp(max=level) ** 2).sqrt(), level)
    c = scale.to(x) * z + torch.where((spread <= level).to(x.device), known, 0.0)
    for k, (t, after) in enumerate(jumps):
        alpha, sigma = floats(process, t)
        prediction = denoiser(alpha * spectrum.backward(c), t, cond)
        alpha_after, sigma_after = floats(process, after)
        on = _weights(sigma / alpha, sigma_after / alpha_after, spread, eta, eta_b)
        z = noise.normal(c.shape, stream="ddrm", step=k, first=first, dtype=x.dtype, device=x.device)
        terms = (c, spectrum.forward(prediction.x0), known, z)
        c = sum((weight.to(x) * term for weight, term in zip(on, terms, strict=True)), torch.zeros_like(c))
        if ticks is not None:
            next(ticks, None)
    return spectrum.backward(c)


def _weights(before: float, after: float, spread: Tensor, eta: float, eta_b: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights (D,) of c, c0, c̄ and z in a step between noise levels; `spread` is σ_y/s, infinite where nothing is measured."""
    unseen, above = spread == math.inf, spread <= after
    kept = math.sqrt(1 - eta**2) * after
    on_c = unseen.double() * (kept / before)
    on_known = torch.where(above, eta_b, kept / spread.clamp(min=1e-300))
    on_known = torch.where(unseen, 0.0, on_known)
    std = torch.where(above, (after**2 - (eta_b * spread) ** 2).clamp(min=0).sqrt(), eta * after)
    return on_c, 1 - on_c - on_known, on_known, std


def _demanded(given: Given) -> tuple[Spectrum, float]:
    """The spectrum and the noise level, or why there are none."""
    operator = given.measured
    if given.noise_std is None:
        raise InputError("noise_std=None: ddrm needs the noise level of the measurement; give noise_std, or take method 'dps'")
    if not operator.linear:
        raise InputError(f"{type(operator).__name__} is not linear: ddrm needs singular values; take method 'dps'")
    if operator.spectrum is None:
        raise InputError(
            f"{type(operator).__name__} on {operator.shape} has no known singular values (they are found for up to {LARGEST} "
            "numbers): ddrm needs them; take method 'pigdm' or 'dps'"
        )
    return operator.spectrum, given.noise_std
