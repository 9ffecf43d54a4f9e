"""The probability flow as an equation in an angle, and its solvers: an embedded Runge-Kutta pair, and fixed steps.

With X = x/sqrt(alpha² + sigma²) and theta = atan(sigma/alpha) the flow of every Gaussian process is

    dX/dtheta = v(X, theta)        v = (alpha·eps - sigma·x0)/sqrt(alpha² + sigma²)

(the frame of the view "v"): X has the size of the data at one end and of a normal at the other, theta runs over a bounded
interval, nothing explodes where alpha = 0, and clean data are cos(theta)·X - sin(theta)·v. The same equation run upwards
encodes data into latents, and its divergence gives their likelihood. Source: Song et al. 2021, arXiv 2011.13456, section 4.3;
Salimans and Ho 2022, arXiv 2202.00512, for the angle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ornstein.denoiser import Condition, Denoises
from ornstein.grid import Grid, Spacing, make
from ornstein.noise import Noise
from ornstein.process import GaussianProcess, align
from ornstein.samplers.march import Control, Tensors, Tried, march, root_mean_square
from ornstein.samplers.singlestep import TABLEAUX, Weights

Tick = Callable[[float], None] | None
"""Told the part of the work that is done, in [0, 1]."""


def angle(process: GaussianProcess, t: float | Tensor) -> Tensor:
    """theta = atan(sigma/alpha) at t, float64."""
    return process.log_ratio(t).exp().atan()


def norm(process: GaussianProcess, t: float | Tensor) -> Tensor:
    """sqrt(alpha² + sigma²), the factor between x and X; float64."""
    return torch.hypot(*process.moments(t))


def condition_of(cond: Condition, rows: Tensor) -> Condition:
    """The conditions of the samples at places `rows` (m,) of a batch."""
    return None if cond is None else {name: value[rows.to(value.device)] for name, value in cond.items()}


class Flow(Protocol):
    """What moves with the angle: X, and whatever is integrated along with it."""

    @property
    def process(self) -> GaussianProcess:
        """The process whose flow it is."""

    def __call__(self, rows: Tensor, parts: Tensors, theta: Tensor) -> Tensors:
        """d parts/d theta: `rows` (m,) are places in the batch, every part has m rows, theta is (m,) or (), float64."""


@dataclass(frozen=True)
class Velocity:
    """The flow of X alone, (v,)."""

    denoiser: Denoises
    cond: Condition = None

    @property
    def process(self) -> GaussianProcess:
        """The denoiser's process."""
        return self.denoiser.process

    def __call__(self, rows: Tensor, parts: Tensors, theta: Tensor) -> Tensors:
        """(v,) at X (m, *) and theta."""
        t = self.process.time_of(theta.tan().log())
        (x,) = parts
        return (self.denoiser(align(norm(self.process, t), x) * x, t, condition_of(self.cond, rows)).v,)


class Solved(NamedTuple):
    """Parts and their slopes at the end, and network calls per sample (n,)."""

    parts: Tensors
    slopes: Tensors
    calls: Tensor


class Solver(Protocol):
    """A way of solving a flow between two times, upwards or downwards."""

    def solve(self, flow: Flow, parts: Tensors, start: float, end: float, tick: Tick = None) -> Solved:
        """Bring parts, each (n, *), from time `start` to `end`."""


@dataclass(frozen=True)
class RK45:
    """Dormand and Prince's pair of orders 5 and 4 on the probability flow in its angle, each sample with its own steps.

    A step is accepted if the root mean square over a sample of (difference of the two)/(atol + rtol·|X|) is at most 1; atol =
    rtol unless given, X being of order 1. An attempt costs 6 calls, its first slope being the last one's; the final denoise
    costs none. With `end` it stops at that time, noise and all. States keep their dtype: an rtol below 1.2e-6 asks for float64.
    Source: Dormand and Prince 1980; Song et al. 2021, arXiv 2011.13456, use this pair in t for a whole batch.
    """

    rtol: float = 1e-4
    atol: float | None = None
    end: float | None = None

    @property
    def name(self) -> str:
        """What progress bars and files call it."""
        return f"rk45(rtol={self.rtol:g})"

    def run(
        self, denoiser: Denoises, x: Tensor, *, noise: Noise, cond: Condition = None, first: int = 0, tick: Tick = None
    ) -> tuple[Tensor, Tensor]:
        """(x0, calls per sample) from x_T (n, *); deterministic: `noise` and `first` are what every sampler takes."""
        return descend(self, denoiser, x, self.end, cond, tick)

    def solve(self, flow: Flow, parts: Tensors, start: float, end: float, tick: Tick = None) -> Solved:
        """Bring `parts` from time `start` to `end`."""
        atol = self.rtol if self.atol is None else self.atol
        finest = 10 * max(torch.finfo(part.dtype).eps for part in parts)
        if not (self.rtol >= finest and atol > 0):
            raise ValueError(
                f"rtol={self.rtol}, atol={atol}: rtol must be at least {finest:.1e} for {parts[0].dtype}, atol above 0; "
                "give dtype=torch.float64 for a smaller rtol"
            )
        tableau, count, n = TABLEAUX["dormand_prince"], len(parts), len(parts[0])
        low, high = float(angle(flow.process, start)), float(angle(flow.process, end))
        slopes = flow(torch.arange(n), parts, torch.full((n,), low, dtype=torch.float64))

        def attempt(rows: Tensor, state: Tensors, memory: Tensors, at: Tensor, h: Tensor) -> Tried:
            before = state[:count]
            history = stages(partial(flow, rows), before, state[count:], at, h, tableau.nodes, tableau.stages)
            after = advance(before, history, h, tableau.weights)
            history.append(flow(rows, after, at + h))
            change = advance(tuple(torch.zeros_like(part) for part in before), history, h, tableau.error)
            allowed = [atol + self.rtol * torch.maximum(a.abs(), b.abs()) for a, b in zip(before, after, strict=True)]
            error = [root_mean_square(e / size) for e, size in zip(change, allowed, strict=True)]
            calls = torch.full_like(rows, len(history) - 1)
            return Tried((*after, *history[-1]), torch.stack(error).amax(0), h, calls, (), ())

        # a step over which the state would change by the part of itself that order 5 resolves at this tolerance
        size, speed = root_mean_square(parts[0]), root_mean_square(slopes[0])
        step = 0.5 * self.rtol**0.2 * (size + 1e-6) / (speed + 1e-6)
        step = step.clamp(min=1e-4 * abs(high - low), max=abs(high - low))
        control = Control(exponent=0.2, safety=0.7, longest=0.6 * self.rtol**0.1)
        marched = march(attempt, (*parts, *slopes), (), low, high, step, control, tick)
        return Solved(marched.state[:count], marched.state[count:], marched.calls + 1)


@dataclass(frozen=True)
class FixedSteps:
    """A Runge-Kutta method of `TABLEAUX` with the same steps in the angle for every sample: as many as `calls` allow.

    `grid` gives the times between steps; the slope at the end takes one call. The neighbour of `RK45` whose cost is known
    beforehand; as a sampler, `runge_kutta` is the same in other variables.
    """

    calls: int = 65
    method: str = "rk4"
    grid: str | Spacing | Grid = "vp_time"
    end: float | None = None

    @property
    def name(self) -> str:
        """What progress bars and files call it."""
        return f"{self.method}({self.calls} calls)"

    def run(
        self, denoiser: Denoises, x: Tensor, *, noise: Noise, cond: Condition = None, first: int = 0, tick: Tick = None
    ) -> tuple[Tensor, Tensor]:
        """(x0, calls per sample) from x_T (n, *); deterministic: `noise` and `first` are what every sampler takes."""
        return descend(self, denoiser, x, self.end, cond, tick)

    def solve(self, flow: Flow, parts: Tensors, start: float, end: float, tick: Tick = None) -> Solved:
        """Bring `parts` from time `start` to `end`."""
        if self.method not in TABLEAUX:
            raise ValueError(f"method={self.method!r} is not one of {', '.join(TABLEAUX)}")
        tableau, rows = TABLEAUX[self.method], torch.arange(len(parts[0]))
        steps = (self.calls - 1) // len(tableau.nodes)
        if steps < 1:
            raise ValueError(f"calls={self.calls} do not suffice for a step of {self.method}; ask for {len(tableau.nodes) + 1}")
        times = (*make(flow.process, steps, self.grid, start=max(start, end), end=min(start, end)), min(start, end))
        angles = angle(flow.process, torch.tensor(times if start > end else times[::-1], dtype=torch.float64))
        for k, (at, h) in enumerate(zip(angles, angles.diff(), strict=False)):
            history = stages(partial(flow, rows), parts, flow(rows, parts, at), at, h, tableau.nodes, tableau.stages)
            parts = advance(parts, history, h, tableau.weights)
            if tick is not None:
                tick((k + 1) / steps)
        calls = torch.full_like(rows, steps * len(tableau.nodes) + 1)
        return Solved(parts, flow(rows, parts, angles[-1]), calls)


def stages(
    slope: Callable[[Tensors, Tensor], Tensors],
    parts: Tensors,
    first: Tensors,
    at: Tensor,
    h: Tensor,
    nodes: Weights,
    rows: tuple[Weights, ...],
) -> list[Tensors]:
    """The slopes of a Runge-Kutta step of length h from position `at`, both () or (m,); `first` is the one at its start."""
    history = [first]
    for node, weights in zip(nodes[1:], rows[1:], strict=True):
        history.append(slope(advance(parts, history, h, weights), at + node * h))
    return history


def advance(parts: Tensors, history: list[Tensors], h: Tensor, weights: Weights) -> Tensors:
    """parts + h Σ_j weights[j]·history[j]."""
    moved = []
    for p, part in enumerate(parts):
        total = part
        for w, slopes in zip(weights, history, strict=False):
            if w:
                total = total + align(w * h, part) * slopes[p]
        moved.append(total)
    return tuple(moved)


def descend(
    solver: Solver, denoiser: Denoises, x: Tensor, end: float | None, cond: Condition = None, tick: Tick = None
) -> tuple[Tensor, Tensor]:
    """(x0, calls per sample) from x_T (n, *) at t = 1; with `end`, x at that time instead."""
    process = denoiser.process
    last = process.t_min if end is None else end
    if not (0 <= last < 1 and float(process.moments(last)[1]) > 0):
        raise ValueError(f"end={end} must lie in [0, 1) and hold some noise; None goes to clean data")
    solved = solver.solve(Velocity(denoiser, cond), (x / align(norm(process, 1.0), x),), 1.0, last, tick)
    (state,), (v,) = solved.parts, solved.slopes
    if end is not None:
        return state * align(norm(process, last), state), solved.calls
    theta = angle(process, last)
    return theta.cos() * state - theta.sin() * v, solved.calls
