"""How many calls are enough: a pilot batch measures the discretisation error of each number of calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoiser import Condition, Denoises
from ornstein.noise import Noise
from ornstein.process import GaussianProcess
from ornstein.samplers.adaptive import sample_adaptive
from ornstein.samplers.default import default_plan
from ornstein.samplers.flow import RK45
from ornstein.samplers.loop import sample
from ornstein.samplers.plan import Plan

COUNTS = (5, 8, 10, 12, 15, 20, 25, 30, 40, 50, 65, 80, 100, 150, 200)
"""Numbers of calls that a pilot tries, in turn."""
PILOT = 2**40
"""The number of a pilot's first sample: its noise is never that of the samples that are then drawn."""

_FINEST, _COARSEST = 1e-5, 1e-3
_SHARE = 0.9


@dataclass(frozen=True)
class Budget:
    """Discretisation error by number of calls, from `samples` pilot samples, up to the first that met `tolerance`.

    The distance |x0 - x0*|/(√D·scale) is that between a sample and the one that the exact flow makes of the same noise, in units
    of the data's standard deviation. `errors` are what nine in ten pilot samples stay below: the rest holds the few that lie
    between two modes and fall to either, which a small pilot sees or misses by chance. `means` are mean distances: they bound
    the Wasserstein-1 distance of the two laws, hence the bias of every statistic that changes at most as much as the sample.
    `reference_calls` is what the exact flow took, on average.
    """

    counts: tuple[int, ...]
    errors: tuple[float, ...]
    means: tuple[float, ...]
    tolerance: float
    samples: int
    reference_calls: float

    @property
    def met(self) -> bool:
        """Whether the last count meets the tolerance."""
        return self.errors[-1] <= self.tolerance

    @property
    def calls(self) -> int:
        """The fewest calls tried that meet the tolerance, or the most tried."""
        return self.counts[-1]

    @property
    def error(self) -> float:
        """The error promised for `calls`."""
        return self.errors[-1]

    def table(self, n: int) -> str:
        """The pilot's table, and the Monte-Carlo error of a mean over n samples, which no number of calls lowers."""
        lines = [f"{'calls':>6}  {'9 in 10 within':>14}  {'mean':>8}   (distance to the exact flow / std of the data)"]
        rows = zip(self.counts, self.errors, self.means, strict=True)
        lines += [f"{calls:>6}  {error:>14.2g}  {mean:>8.2g}" for calls, error, mean in rows]
        lines.append(f"Monte-Carlo error of a mean over {n} samples: {monte_carlo_error(n):.2g}")
        return "\n".join(lines)


def mean_square(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|²/D of every sample of x and y (n, *), (n,), float64 on the CPU."""
    return (x - y).flatten(1).cpu().double().square().mean(1)


def monte_carlo_error(n: int) -> float:
    """1/√n: the standard error of a mean over n samples, in units of the standard deviation."""
    return 1 / math.sqrt(max(n, 1))


def pilot(
    denoiser: Denoises,
    *,
    shape: Sequence[int],
    noise: Noise,
    tolerance: float,
    plan: Callable[[GaussianProcess, int], Plan] = default_plan,
    counts: Sequence[int] = COUNTS,
    scale: float = 1.0,
    cond: Condition = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> Budget:
    """Try `counts` in turn on a pilot batch of `shape` (samples, *) until the discretisation error is at most `tolerance`.

    The exact flow is `RK45` at a fiftieth of the tolerance, kept between 1e-5 and 1e-3. `plan` makes the plan of a number of
    calls; it must be deterministic (a stochastic one has no exact sample to be held against). `scale` is the data's standard
    deviation in the denoiser's units. Raises ValueError for a stochastic plan, a tolerance that is not positive, or one below
    what the reference resolves.
    """
    if not tolerance >= _FINEST * 10:
        raise ValueError(f"tolerance={tolerance} must be at least {_FINEST * 10:g}: the pilot's reference resolves no less")
    if not shape[0] > 1:
        raise ValueError(f"shape={tuple(shape)} asks for {shape[0]} pilot samples; an error estimate needs at least 2")
    plans = [plan(denoiser.process, calls) for calls in counts]
    if noisy := [chosen.name for chosen in plans if chosen.stochastic]:
        raise ValueError(f"plan {noisy[0]!r} draws noise on its way; an error budget needs a deterministic one, as ddim")
    rtol = min(max(tolerance / 50, _FINEST), _COARSEST)
    common = {"shape": shape, "noise": noise, "cond": cond, "first": PILOT, "batch_size": batch_size, "device": device}
    exact = sample_adaptive(denoiser, RK45(rtol), dtype=dtype, progress=progress, **common)  # type: ignore[arg-type]
    errors: list[float] = []
    means: list[float] = []
    for chosen in plans:
        x0 = sample(denoiser, chosen, dtype=dtype, progress=progress, **common)  # type: ignore[arg-type]
        distance = mean_square(x0, exact.x0).sqrt() / scale
        errors.append(float(distance.quantile(_SHARE)))
        means.append(float(distance.mean()))
        if errors[-1] <= tolerance:
            break
    tried = tuple(counts[: len(errors)])
    return Budget(tried, tuple(errors), tuple(means), tolerance, int(shape[0]), float(exact.calls.double().mean()))
