"""Hold samplers against exact answers: order of convergence, bias on a Gaussian, endpoint error on a mixture."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from torch import Tensor

from ornstein.denoiser import Condition, Prediction
from ornstein.grid import GRIDS, Grid, Spacing
from ornstein.noise import Noise
from ornstein.process import GaussianProcess
from ornstein.process.gaussian import Time
from ornstein.progress import track
from ornstein.samplers import Plan, propagate, run
from ornstein.testing import GaussianDenoiser, MixtureDenoiser
from ornstein.verify.claims import CLAIMS, Claim, latest_start

FINE = ((192, 384), (384, 768))
"""Pairs of calls whose errors give the order; the second is tried where the first falls short, for an order is a limit."""
CALLS = (5, 10, 20, 50)
BIAS_CALLS = 20
POINTS = 32
_FLOOR = 1e-11
"""Errors below it are rounding's: the order can no longer be seen, and is met."""


@dataclass(frozen=True)
class Result:
    """One sampler on one process.

    `orders`: measured slopes on the mixture (nan for a stochastic plan) and, on uneven steps, on the Gaussian. `mean_bias` and
    `std_bias`: of the final law for Gaussian data at `BIAS_CALLS` calls, the largest over directions in units of the data's
    standard deviation.
    `errors`: by number of calls, the root mean square distance to the exact flow's end on the mixture, or, for a stochastic
    plan, the 2-Wasserstein distance to the data on the Gaussian. `promised`: whether the order is claimed here. `failures`:
    what does not hold of the claim, in words.
    """

    sampler: str
    process: str
    stochastic: bool
    declared: float
    orders: tuple[float, float]
    mean_bias: float
    std_bias: float
    errors: Mapping[int, float]
    seconds: float
    promised: bool
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Bench:
    """The exact answers of one process, made once for all samplers: oracles, starting points and where they should end."""

    name: str
    process: GaussianProcess
    gaussian: GaussianDenoiser
    mixture: MixtureDenoiser
    start_time: float
    start: Tensor
    at_end: Tensor
    clean: Tensor

    @classmethod
    def of(cls, name: str, process: GaussianProcess) -> Bench:
        """The bench: a correlated Gaussian in 3-D and a ring of six Gaussians in 2-D, of unit scale."""
        root = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.2, 0.4]], dtype=torch.float64)
        gaussian = GaussianDenoiser(torch.tensor([0.5, -0.4, 0.2]), root @ root.T, process)
        angle = torch.arange(6, dtype=torch.float64) * (math.pi / 3)
        means, weights = 1.2 * torch.stack([angle.cos(), angle.sin()], 1), torch.tensor([0.1, 0.2, 0.1, 0.3, 0.2, 0.1])
        mixture = MixtureDenoiser(means, torch.linspace(0.15, 0.35, 6), weights, process)
        begin = latest_start(process)
        alpha, sigma = process.moments(begin)
        x0 = mixture.sample(POINTS, Noise(1))
        start = alpha * x0 + sigma * Noise(2).normal((POINTS, 2), dtype=torch.float64)
        at_end = mixture.flow(start, begin, process.t_min)
        return cls(name, process, gaussian, mixture, begin, start, at_end, mixture.flow(at_end, process.t_min, None))

    def grid(self, name: str, *, uneven: bool = False) -> Spacing:
        """The spacing of that name, started where the exact flow starts; `uneven` makes its steps go 13 : 8 : 9, 13 : 8 : 9.

        On even steps a weight that forgets how long the step before was still has its order.
        """
        spacing, begin = GRIDS[name], self.start_time

        def started(process: GaussianProcess, n: int, *, start: float = 1.0, end: float | None = None) -> Grid:
            times = list(spacing(process, n, start=min(start, begin), end=end))
            if uneven:
                for shift, first in ((0.1, 2), (0.3, 1)):
                    for k in range(first, n - 1, 3):
                        times[k] += shift * (times[k + 1] - times[k])
            return tuple(times)

        return started


def verify(
    claims: Mapping[str, Claim] = CLAIMS,
    processes: Mapping[str, GaussianProcess] | None = None,
    *,
    workers: int = 1,
    progress: bool = False,
) -> list[Result]:
    """Every sampler of `claims` on every one of `processes` (those of `process.ALL` unless given), one `Result` each.

    Nothing is sampled where it can be computed: the Gaussian's law goes through the rows exactly, and the mixture's flow is
    followed point by point from fixed starts. Raises nothing for a sampler that is wrong: its `failures` say so. With several
    `workers`, processes of their own share the work; claims and processes must then be picklable.
    """
    from ornstein import process as module

    chosen = processes if processes is not None else {name: make() for name, make in module.ALL.items()}
    names = list(claims)
    parts = [(name, process, names[k::workers], claims) for name, process in chosen.items() for k in range(workers)]
    total = len(chosen) * len(claims)
    if workers == 1:
        return list(track((result for part in parts for result in _part(*part)), total, "verify", enabled=progress))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        done = (result for future in [pool.submit(_whole, part) for part in parts] for result in future.result())
        found = list(track(done, total, "verify", enabled=progress))
    return sorted(found, key=lambda result: (list(chosen).index(result.process), names.index(result.sampler)))


_Part = tuple[str, GaussianProcess, list[str], Mapping[str, Claim]]


def _whole(part: _Part) -> list[Result]:
    return list(_part(*part))


def _part(process: str, made: GaussianProcess, names: Sequence[str], claims: Mapping[str, Claim]) -> Iterator[Result]:
    bench = Bench.of(process, made)
    for name in names:
        yield examine(name, claims[name], bench)


def examine(name: str, claim: Claim, bench: Bench) -> Result:
    """One sampler on one bench."""
    begun, failures = time.monotonic(), []
    process, grid, usual = bench.process, bench.grid(claim.grid), bench.grid(claim.usual or claim.grid)
    stochastic, short = claim.plan(process, CALLS[-1], grid).stochastic, True
    for pair in FINE:
        orders = _orders(claim, bench, pair, stochastic)
        # so written, a slope that is not a number falls short too
        short = not all(order >= claim.least * claim.order for order in orders[int(stochastic) :])
        if not (short and claim.promises(process)):
            break
    if short and claim.promises(process):
        failures.append(f"orders {orders[0]:.2f} on the mixture and {orders[1]:.2f} on the Gaussian, declared {claim.order:g}")
    errors: dict[int, float] = {}
    for calls in CALLS:
        try:
            plan = claim.plan(process, calls, usual)
        except ValueError:
            continue  # a method with a warm-up has a least number of calls, which it states
        if plan.calls > calls:
            failures.append(f"{plan.calls} calls where {calls} were asked for")
        near = _gap(bench.gaussian, plan, None) if stochastic else _distance(bench.mixture, plan, bench.start, bench.clean)
        errors[calls] = near
    if not errors:
        failures.append(f"no plan for {', '.join(map(str, CALLS))} calls")
    if claim.constants:
        failures += _constants(claim, bench, grid)
    law = propagate(claim.plan(process, BIAS_CALLS, usual), bench.gaussian)[-1]
    deviations = bench.gaussian.variances.sqrt()
    bias = (law.mean - bench.gaussian.mean @ bench.gaussian.directions) / deviations
    spread = law.variances.sqrt() / deviations - 1
    mean_bias, std_bias = (float(b[b.abs().argmax()]) for b in (bias, spread))
    seconds, promised = time.monotonic() - begun, claim.promises(process)
    kind = (name, bench.name, stochastic, claim.order)
    return Result(*kind, orders, mean_bias, std_bias, errors, seconds, promised, tuple(failures))


def _orders(claim: Claim, bench: Bench, pair: tuple[int, int], stochastic: bool) -> tuple[float, float]:
    """Slopes between two numbers of calls: on the mixture (nan for a stochastic plan), and on uneven steps on the Gaussian."""
    process, end = bench.process, bench.process.t_min
    uneven = [claim.plan(process, calls, bench.grid(claim.grid, uneven=claim.uneven), end) for calls in pair]
    weak = _slope([_gap(bench.gaussian, plan, end) for plan in uneven], uneven)
    if stochastic:
        return math.nan, weak
    plans = [claim.plan(process, calls, bench.grid(claim.grid), end) for calls in pair]
    return _slope([_distance(bench.mixture, plan, bench.start, bench.at_end) for plan in plans], plans), weak


def _gap(oracle: GaussianDenoiser, plan: Plan, end: Time) -> float:
    """2-Wasserstein distance between the law a plan ends in and the exact one at `end`."""
    law = propagate(plan, oracle)[-1]
    mean = oracle.process.moments(end)[0] * oracle.mean @ oracle.directions
    deviations = oracle.marginal_variances(end).sqrt() if end is not None else oracle.variances.sqrt()
    return float(((law.mean - mean).square() + (law.variances.sqrt() - deviations).square()).sum().sqrt())


def _distance(oracle: MixtureDenoiser, plan: Plan, start: Tensor, end: Tensor) -> float:
    """Root mean square distance per coordinate between a plan's end points and the exact flow's."""
    with torch.no_grad():
        found = run(oracle, plan, start, noise=Noise(0))
    return float((found - end).square().mean().sqrt())


def _slope(errors: Sequence[float], plans: Sequence[Plan]) -> float:
    """The order that two errors show; infinite where the finer one is rounding."""
    if errors[1] < _FLOOR:
        return math.inf
    if not 0 < errors[0] < math.inf or not errors[1] < math.inf:
        return math.nan
    return math.log(errors[0] / errors[1]) / math.log(plans[1].calls / plans[0].calls)


class _Constant:
    """A denoiser that answers the same x0, or the same eps, always."""

    def __init__(self, process: GaussianProcess, view: str, value: Tensor) -> None:
        self.process, self.view, self.value = process, view, value

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        alpha, sigma = self.process.moments(t)
        x0 = self.value.expand_as(x_t) if self.view == "x0" else (x_t - sigma * self.value) / alpha
        return Prediction.from_x0(x_t, alpha, sigma, x0)


def _constants(claim: Claim, bench: Bench, grid: Spacing) -> list[str]:
    """Whether x = alpha x0 + sigma eps is kept for constant x0, and for constant eps."""
    process, end = bench.process, bench.process.t_min
    x0, eps = torch.tensor([[0.7, -0.3]], dtype=torch.float64), torch.tensor([[-0.4, 1.1]], dtype=torch.float64)
    (alpha, sigma), (alpha_end, sigma_end) = process.moments(bench.start_time), process.moments(end)
    failures = []
    for view, value in (("x0", x0), ("eps", eps)):
        plan = claim.plan(process, 16, grid, end)
        found = run(_Constant(process, view, value), plan, alpha * x0 + sigma * eps, noise=Noise(0))
        error = float((found - alpha_end * x0 - sigma_end * eps).abs().max())
        if not error < 1e-9 * max(1.0, float(sigma / alpha)):  # what rounding makes of the noisiest state
            failures.append(f"a constant {view} is missed by {error:.1e}")
    return failures
