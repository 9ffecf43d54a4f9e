"""Fine trajectories of a model's own flow: what a calibrated plan is fitted to, chosen by, and judged on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ornstein.denoiser import Condition, Denoises
from ornstein.grid import vp_time
from ornstein.noise import Noise
from ornstein.process import GaussianProcess
from ornstein.progress import track
from ornstein.samplers import Plan, Step, adams, default_plan, run, sample
from ornstein.samplers.budget import mean_square
from ornstein.samplers.flow import angle, norm
from ornstein.samplers.loop import device_of, evaluating

FIRST = 2**41
"""The number of the first sample that a calibration draws: its noise is never that of the samples that users draw."""
APART = 2**38
"""How far the numbers of its three sets lie apart."""

_LEAST, _MOST = 64, 1024
_FEWEST, _PILOT = 8, 16
_RESOLVED = 0.05
_PATH_BYTES = 2**29
_EQUATIONS = 50_000


@dataclass(frozen=True)
class Pairs:
    """Start noise `start` (n, *), where the fine flow takes it, `end` (n, *), and the conditions of the samples."""

    start: Tensor
    end: Tensor
    cond: Condition
    first: int

    def __len__(self) -> int:
        """n."""
        return len(self.start)

    def head(self, n: int) -> Pairs:
        """The first n of them."""
        cond = None if self.cond is None else {name: value[:n] for name, value in self.cond.items()}
        return Pairs(self.start[:n], self.end[:n], cond, self.first)

    def error(self, x0: Tensor) -> Tensor:
        """|x0 - end|/√D of every sample, (n,), float64 on the CPU."""
        return rms(x0, self.end)


def rms(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|/√D of every sample, (n,), float64 on the CPU."""
    return mean_square(x, y).sqrt()


@dataclass(frozen=True)
class Path:
    """The first trajectories of a set at all times: states X = x/norm and slopes v at `angles` falling to 0, (steps, n, *).

    In between by cubic Hermite interpolation in the angle atan(sigma/alpha), in which dX = v d angle.
    """

    process: GaussianProcess
    angles: Tensor
    states: Tensor
    slopes: Tensor

    def at(self, t: float | None) -> Tensor:
        """The states x (n, *) at time t; None is clean data."""
        theta = 0.0 if t is None else float(angle(self.process, t))
        k = int((self.angles >= theta).sum().clamp(1, len(self.angles) - 1)) - 1
        h = float(self.angles[k + 1] - self.angles[k])
        u = (theta - float(self.angles[k])) / h
        weights = (2 * u**3 - 3 * u**2 + 1, (u**3 - 2 * u**2 + u) * h, 3 * u**2 - 2 * u**3, (u**3 - u**2) * h)
        parts = (self.states[k], self.slopes[k], self.states[k + 1], self.slopes[k + 1])
        scale = 1.0 if t is None else float(norm(self.process, t))
        return sum((scale * w) * part for w, part in zip(weights, parts, strict=True))  # type: ignore[return-value]


@dataclass(frozen=True)
class Reference:
    """Three sets of draws - to fit, to choose by, to judge on - and the path of the first trajectories to be fitted.

    `calls` is what the fine flow took, `error` its own, estimated in a pilot from half as many calls (None: not measured).
    """

    fit: Pairs
    choose: Pairs
    judge: Pairs
    path: Path
    calls: int
    error: float | None
    seed: int


@dataclass
class _Recorder:
    """A hook that keeps the path of a plan whose every call is at the state before it."""

    process: GaussianProcess
    times: list[float] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    slopes: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """Record and hand x on."""
        self.times.append(step.t)
        self.states.append(step.prediction.x_t / float(norm(self.process, step.t)))
        self.slopes.append(step.prediction.v)
        return x

    def path(self, x0: Tensor) -> Path:
        """What was recorded, and the end, up to which the slope stays what it was at the last call."""
        angles = angle(self.process, torch.tensor(self.times, dtype=torch.float64))
        angles = torch.cat([angles, torch.zeros(1, dtype=torch.float64)])
        return Path(self.process, angles, torch.stack([*self.states, x0]), torch.stack([*self.slopes, self.slopes[-1]]))


def fine_flow(
    denoiser: Denoises,
    *,
    shape: Sequence[int],
    noise: Noise,
    cond: Condition = None,
    calls: int = 10,
    trajectories: int = 160,
    fine_calls: int | None = None,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> Reference:
    """Draw the trajectories that plans of up to `calls` calls can be calibrated to; `shape` (*) is that of one sample.

    `cond` holds tensors of any number of rows, dealt to the samples in turn. `trajectories` are fitted, half as many choose,
    and as many judge. The fine flow is an Adams plan of order 3 whose calls are doubled until its error, estimated on a pilot
    batch, is a twentieth of the default plan's, unless `fine_calls` says how many it takes.
    ValueError for fewer than 8 trajectories or an empty condition; FloatingPointError for a denoiser that leaves the numbers.
    """
    if trajectories < _FEWEST:
        raise ValueError(f"trajectories={trajectories} must be at least {_FEWEST}")
    if empty := [name for name, value in (cond or {}).items() if len(value) == 0]:
        raise ValueError(f"cond[{empty[0]!r}] has no rows to deal to the trajectories")
    process, size = denoiser.process, tuple(shape)
    if not size:
        raise ValueError("shape=() has no axis; give that of one sample, as (1, 28, 28)")
    error: float | None = None
    if fine_calls is None:
        pilot = partial(
            sample, denoiser, shape=(_PILOT, *size), noise=noise, cond=dealt(cond, 0, _PILOT), first=FIRST + 3 * APART,
            device=device, dtype=dtype, progress=progress,
        )  # fmt: skip
        fine_calls, error = _enough(pilot, process, calls)
    plan = fine_plan(process, fine_calls)
    half = max(trajectories // 2, _FEWEST)
    counts, numbers = (trajectories, half, half), max(math.prod(size), 1)
    # least squares need few trajectories where data are large, and all states of all would not fit
    wanted = max(_FEWEST * 8, _EQUATIONS // numbers)
    kept = min(trajectories, wanted, max(_FEWEST, _PATH_BYTES // (numbers * fine_calls * 8)))
    chunks = [(k, i, min(i + batch_size, n)) for k, n in enumerate(counts) for i in range(0, n, batch_size)]
    ticks = track(range(len(chunks) * fine_calls), len(chunks) * fine_calls, f"{fine_calls} calls", enabled=progress)
    where = device_of(denoiser) if device is None else torch.device(device)
    starts, ends, parts = ([[], [], []], [[], [], []], [])  # type: tuple[list[list[Tensor]], list[list[Tensor]], list[Path]]
    with torch.no_grad(), evaluating(denoiser):
        for k, low, high in chunks:
            first = FIRST + k * APART + low
            x = process.prior((high - low, *size), noise, first=first, dtype=dtype).to(where)
            seen = _Recorder(process) if k == 0 and low < kept else None
            x0 = run(denoiser, plan, x, noise=noise, cond=on(where, dealt(cond, low, high)), first=first, after=seen, ticks=ticks)
            starts[k].append(x)
            ends[k].append(x0)
            if seen is not None:
                parts.append(seen.path(x0))
    for _ in ticks:  # let the bar close
        pass
    if not all(bool(end.isfinite().all()) for some in ends for end in some):
        raise FloatingPointError(f"the fine flow of {fine_calls} calls is not finite: the denoiser returns NaN or infinity")
    fit, choose, judge = (
        Pairs(torch.cat(starts[k]), torch.cat(ends[k]), on(where, dealt(cond, 0, n)), FIRST + k * APART)
        for k, n in enumerate(counts)
    )
    whole = Path(process, parts[0].angles, *(torch.cat([getattr(p, name) for p in parts], 1) for name in ("states", "slopes")))
    return Reference(fit, choose, judge, whole, fine_calls, error, noise.seed)


def fine_plan(process: GaussianProcess, calls: int) -> Plan:
    """The plan of the fine flow: every row moves the state, so that the states between rows are a path."""
    return adams(process, calls, partial(vp_time, power=2.0), order=3, correct=False)


def dealt(cond: Condition, low: int, high: int) -> Condition:
    """The conditions of samples low … high - 1: the rows of `cond` in turn."""
    return None if cond is None else {name: value[torch.arange(low, high) % len(value)] for name, value in cond.items()}


def on(device: torch.device, cond: Condition) -> Condition:
    """Conditions on a device."""
    return None if cond is None else {name: value.to(device) for name, value in cond.items()}


def _enough(pilot: Callable[..., Tensor], process: GaussianProcess, calls: int) -> tuple[int, float]:
    """(calls of the fine flow, its error), by doubling."""
    count = max(_LEAST, 6 * calls)
    ends = [pilot(fine_plan(process, n)) for n in (count // 2, count)]
    coarse = float(rms(pilot(default_plan(process, calls)), ends[-1]).mean())
    # doubling the calls of a method of order 3 leaves an eighth of the error, hence a seventh of the change; a quarter is safe
    while (error := float(rms(ends[-2], ends[-1]).mean()) / 4) > _RESOLVED * coarse and count < _MOST:
        count *= 2
        ends.append(pilot(fine_plan(process, count)))
    return count, error
