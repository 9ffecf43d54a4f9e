"""Bits per dimension of data on grey levels, from the density of the flow and noise that fills the levels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoiser import Condition, Denoises
from ornstein.hardware import doubled, widest
from ornstein.likelihood.common import in_chunks
from ornstein.likelihood.density import log_prob
from ornstein.losses import Discretised
from ornstein.noise import Noise
from ornstein.process import align
from ornstein.samplers.flow import Solver, Tick
from ornstein.samplers.loop import Batch

DEQUANTISATIONS = ("uniform", "gaussian")


@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension of each datum (n,), float64, with network `calls` (n,); `start` and `noise_std` as in `LogProb`."""

    value: Tensor
    calls: Tensor
    start: float
    noise_std: float

    @property
    def mean(self) -> float:
        """The mean over data."""
        return float(self.value.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of `mean` from the spread over data, which holds that of noise and probes."""
        return float(self.value.std() / math.sqrt(len(self.value)))


def bits_per_dim(
    denoiser: Denoises,
    x: Tensor,
    quantisation: Discretised,
    *,
    dequantisation: str = "uniform",
    cond: Condition = None,
    solver: Solver | None = None,
    divergence: str = "rademacher",
    probes: int = 8,
    noise: Noise,
    first: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> BitsPerDim:
    """-log2 P(x)/D for data x (n, *) on the declared grey levels, bounded from above by adding noise to them.

    "uniform": -log P(x) ≤ E_u[-log p(x + w u)] - D log w, w the spacing of the levels, u in (-½, ½), as is usual; the density is
    that at the noise level of equal variance, sigma/alpha = w/√12, or t_min if that is noisier. "gaussian": -log P(x) ≤
    E[-log p(y) - log P(x|y) + log q(y|x)], y = x + w/6·eps, with the decoder of the variational bound, which starts at the same
    level: what then lies between the two is the chain alone. One draw of noise per datum. Source: Theis et al. 2016,
    arXiv 1511.01844; Ho et al. 2019, arXiv 1902.00275, for noise of another shape. Raises ValueError for x off the levels.
    """
    if dequantisation not in DEQUANTISATIONS:
        raise ValueError(f"dequantisation={dequantisation!r} is not one of {', '.join(DEQUANTISATIONS)}")
    width, process = quantisation.width, denoiser.process
    place = (doubled(x) - quantisation.low) / width
    level = place.round().clamp(0, quantisation.levels - 1)
    if bool(((place - level).abs() > 1e-2).any()):
        raise ValueError(
            f"x lies off the {quantisation.levels} levels between {quantisation.low:g} and {quantisation.high:g}: give encoded "
            "data as they are, without noise, and the quantisation of their contract"
        )
    uniform = dequantisation == "uniform"
    std = width / math.sqrt(12) if uniform else width / 6
    start = max(float(process.time_of(torch.tensor(math.log(std), dtype=torch.float64))), process.t_min)
    size = float(process.log_ratio(start).exp())
    if uniform:
        y = x + width * (noise.uniform(x.shape, stream="dequantise", first=first) - 0.5).to(x)
    else:
        eps = noise.normal(x.shape, stream="dequantise", first=first, dtype=x.dtype, device=x.device)
        y = x + size * eps
    density = log_prob(
        denoiser, y, cond=cond, solver=solver, divergence=divergence, probes=probes, noise=noise, start=start, first=first,
        batch_size=batch_size, progress=progress,
    )  # fmt: skip
    bits = -density.value
    calls = density.calls
    dimensions = x[:1].numel()
    if uniform:
        bits = bits - dimensions * math.log(width)
    else:
        bits = bits + _gap(denoiser, x, y, eps, start, size, quantisation, cond, first, batch_size)
        calls = calls + 1
    return BitsPerDim(bits / (dimensions * math.log(2)), calls, start, size)


def _gap(
    denoiser: Denoises,
    x: Tensor,
    y: Tensor,
    eps: Tensor,
    start: float,
    size: float,
    decoder: Discretised,
    cond: Condition,
    first: int,
    batch_size: int | None,
) -> Tensor:
    """log q(y|x) - log P(x|y) per datum, (n,), P being the decoder around the prediction at y."""
    process = denoiser.process
    alpha, spread = process.moments(start)[0], process.posterior(start, None).transition

    def run(part: Batch, tick: Tick) -> tuple[Tensor, ...]:
        mean = denoiser(align(alpha, y) * part.state(), start, part.cond).x0
        found = decoder.log_prob(doubled(x[part.places].to(mean)), doubled(mean), spread.to(widest(mean.device)))
        return (-found.flatten(1).sum(1).cpu(),)

    with torch.no_grad():
        (lost,) = in_chunks(denoiser, y, cond, first, batch_size, "decoder", False, run)
    known = -0.5 * doubled(eps.flatten(1)).square().sum(1).cpu()
    return lost + known - 0.5 * x[:1].numel() * math.log(2 * math.pi * size**2)
