"""Likelihood by the probability flow, the latents it maps data to and back, and bits per dimension.

The flow of `samplers.flow`, dX/dtheta = v, carries densities along: d log p(X)/dtheta = -div v. Run from the data up to the
prior it gives log p of data exactly, up to the solver's tolerance and, where the divergence is estimated, up to chance.
Source: Song et al. 2021, arXiv 2011.13456, sections 4.3 and D.2; Grathwohl et al. 2019, arXiv 1810.01367.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoiser import Condition, Denoises
from ornstein.hardware import doubled
from ornstein.likelihood.common import SOLVER, begin_at, in_chunks, onto_flow
from ornstein.noise import Noise
from ornstein.process import GaussianProcess, align
from ornstein.samplers.flow import Solver, Tick, Velocity, angle, norm
from ornstein.samplers.loop import Batch
from ornstein.samplers.march import Tensors

DIVERGENCES = ("exact", "rademacher", "gaussian")


@dataclass(frozen=True)
class LogProb:
    """log p per datum (n,) in nats, float64: `value`, its `standard_error` from the probes of the divergence, and `calls`.

    The error is 0 for an exact divergence and NaN for a single probe. `latent` (n, *) is where the flow took the data, x at
    t = 1. `start` is the time at which it began: the density is that of data with noise of size sigma/alpha (start) added,
    `noise_std`. A call is a network evaluation; each one is followed by `products` vector-Jacobian products.
    """

    value: Tensor
    standard_error: Tensor
    calls: Tensor
    latent: Tensor
    start: float
    noise_std: float
    products: int

    def per_dimension(self) -> Tensor:
        """Nats per dimension, (n,)."""
        return self.value / max(self.latent[:1].numel(), 1)


@dataclass(frozen=True)
class _Dense:
    """The flow of X and, beside it, of log p per dimension, one column per probe (one if the divergence is exact).

    `probes` is (P, n, *), or None for the exact divergence, whose products run over the dimensions one by one: memory stays
    that of one network evaluation.
    """

    velocity: Velocity
    probes: Tensor | None

    @property
    def process(self) -> GaussianProcess:
        return self.velocity.process

    def __call__(self, rows: Tensor, parts: Tensors, theta: Tensor) -> Tensors:
        state = parts[0]
        dimensions = state[0].numel()
        with torch.enable_grad():
            x = state.detach().requires_grad_()
            (v,) = self.velocity(rows, (x,), theta)
            columns = []
            for k, (along, last) in enumerate(_marked(self._directions(rows, state))):
                (slope,) = torch.autograd.grad((v * along).sum(), x, retain_graph=not last)
                product = slope.flatten(1)[:, k] if self.probes is None else doubled((slope * along).flatten(1)).sum(1)
                columns.append(product.to("cpu", torch.float64))
        trace = torch.stack(columns, 1)
        if self.probes is None:
            trace = trace.sum(1, keepdim=True)
        return v.detach(), trace / dimensions

    def _directions(self, rows: Tensor, state: Tensor) -> Iterator[Tensor]:
        if self.probes is not None:
            yield from self.probes[:, rows].to(state)
            return
        for k in range(state[0].numel()):
            unit = state.new_zeros(state[0].numel())
            unit[k] = 1
            yield unit.reshape(state.shape[1:])


def _marked(items: Iterator[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Items, and whether each is the last."""
    held = next(items)
    for item in items:
        yield held, False
        held = item
    yield held, True


def log_prob(
    denoiser: Denoises,
    x: Tensor,
    *,
    cond: Condition = None,
    solver: Solver | None = None,
    divergence: str = "rademacher",
    probes: int = 8,
    noise: Noise | None = None,
    start: float | None = None,
    first: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> LogProb:
    """log p(x) in nats of clean data x (n, *) in the denoiser's units, by the probability flow from time `start` to 1.

        log p(x) = log N(x_1; 0, prior_std² I) + ½ D log(alpha_1² + sigma_1²) + D log cos(theta_start) + ∫ div v dtheta

    `start` is the process's t_min unless given; the density is that of x0 + (sigma/alpha)(start)·eps. `solver` is `RK45(1e-5)`
    unless given, or `FixedSteps`. `divergence`: "exact" takes one vector-Jacobian product per dimension and call,
    "rademacher" and "gaussian" estimate it without bias from `probes` random vectors that a datum keeps along its way
    (Hutchinson); with at least as many probes as dimensions, exact is what is done, being no dearer. `noise` seeds the probes
    (Noise(0) unless given), keyed by first + i. In chunks of `batch_size`; data that arrived leave the batch. Raises ValueError
    for unknown names and NaN in x.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence={divergence!r} is not one of {', '.join(DIVERGENCES)}")
    if probes < 1:
        raise ValueError(f"probes={probes} must be at least 1")
    dimensions = x[:1].numel()
    exact = divergence == "exact" or probes >= dimensions
    source = Noise(0) if noise is None else noise
    solver = SOLVER if solver is None else solver
    process, begin = denoiser.process, begin_at(denoiser.process, start)

    def run(part: Batch, tick: Tick) -> tuple[Tensor, ...]:
        data = part.state()
        vectors = None if exact else _probes(source, divergence, probes, data, part.first)
        flow = _Dense(Velocity(denoiser, part.cond), vectors)
        gained = torch.zeros(len(data), 1 if vectors is None else probes, dtype=torch.float64)
        solved = solver.solve(flow, (onto_flow(process, data, begin), gained), begin, 1.0, tick)
        state, gained = solved.parts
        latent = state * align(norm(process, 1.0), state)
        scale = process.prior_std
        prior = -0.5 * ((doubled(latent.flatten(1)) / scale).square().sum(1) + dimensions * math.log(2 * math.pi * scale**2))
        # from x_1 to X_1, and from X to x0 + (sigma/alpha) eps at the start
        units = dimensions * (norm(process, 1.0).log() + angle(process, begin).cos().log())
        values = (prior.cpu() + units)[:, None] + dimensions * gained
        error = torch.full((len(values),), 0.0 if exact else math.nan, dtype=torch.float64)
        if not exact and probes > 1:
            error = values.std(1) / math.sqrt(probes)
        return values.mean(1), error, solved.calls, latent

    value, error, calls, latent = in_chunks(denoiser, x, cond, first, batch_size, "log_prob", progress, run)
    std = float(process.log_ratio(begin).exp())
    return LogProb(value, error, calls, latent, begin, std, dimensions if exact else probes)


def _probes(noise: Noise, kind: str, count: int, x: Tensor, first: int) -> Tensor:
    """Random vectors z (P, n, *) with E[z zᵀ] = I, keyed by (probe, first + i)."""

    def one(k: int) -> Tensor:
        if kind == "gaussian":
            return noise.normal(x.shape, stream="probe", step=k, first=first, dtype=x.dtype)
        return (noise.uniform(x.shape, stream="probe", step=k, first=first) < 0.5).to(x.dtype) * 2 - 1

    return torch.stack([one(k) for k in range(count)]).to(x.device)
