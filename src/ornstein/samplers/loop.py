"""The one loop that runs every plan."""

from __future__ import annotations

import logging
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ornstein.denoiser import Condition, Denoises, Prediction, describe, networks
from ornstein.noise import Noise
from ornstein.progress import track
from ornstein.samplers.default import default_plan
from ornstein.samplers.plan import Plan, Row


@dataclass(frozen=True)
class Step:
    """What a hook sees of a row: its index, the times t (of the call), s (of the state after it; None: clean) and `before` (of
    the state before it), the prediction at `prediction.x_t`, the noise source, the index `first` of the chunk's first sample,
    the condition, and the standard deviation `std` of the normal that the row added (a number, or like x where it is learned).
    A row that only looks ahead leaves the state where it was: s = before."""

    index: int
    t: float
    s: float | None
    before: float
    prediction: Prediction
    noise: Noise
    first: int
    cond: Condition
    std: float | Tensor = 0.0


_log = logging.getLogger(__name__)

Hook = Callable[[Tensor, Step], Tensor]
"""after(x, step) -> x: acts on the state between rows (projections, guidance on x, capture)."""


@dataclass
class Trajectory:
    """A hook that keeps, per row, the time s (None: clean), the state x after it and the x0 predicted in it, both of shape
    (B, *); it changes nothing. In chunks, one entry per row and chunk."""

    times: list[float | None] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """Record and hand x on."""
        self.times.append(step.s)
        self.states.append(x)
        self.predictions.append(step.prediction.x0)
        return x


def sample(
    denoiser: Denoises,
    plan: Plan | None = None,
    *,
    shape: Sequence[int] | None = None,
    noise: Noise,
    calls: int | None = None,
    cond: Condition = None,
    start: Tensor | None = None,
    first: int = 0,
    batch_size: int | None = None,
    after: Hook | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> Tensor:
    """Draw samples x0 of `shape` (samples, *) by a plan, or by the default plan for `calls` network evaluations.

    The default is chosen by rule (`default_plan`); the progress bar says which, and so does the logger at level INFO.

    `start` (samples, *) replaces the draw from the prior, and settles shape, dtype and device. Noise is keyed by sample:
    sample i (number first + i) is the same for any `batch_size`. `cond` holds tensors with one row per sample.
    `after` is called on the state after every row. Networks are put in evaluation mode meanwhile; no gradients are kept.
    A plan that was calibrated for other guidance or clipping than the denoiser's is warned about.
    Raises ValueError for missing or contradictory arguments, or a plan calibrated for another process. Device: that of the
    denoiser's parameters unless given.
    """
    plan = _chosen(denoiser, plan, calls)
    if plan.calibration is not None and (why := misfit(plan, denoiser)):
        warnings.warn(f"plan {plan.name!r} {why}; calibrate again, or take an uncalibrated plan", stacklevel=2)
    parts, empty = batches(denoiser, shape, start, noise, cond, first, batch_size, device, dtype)
    done = []
    with torch.no_grad(), evaluating(denoiser):
        total = len(parts) * plan.calls
        ticks = track(range(total), total, plan.name, enabled=progress)
        for part in parts:
            x = part.state()
            done.append(run(denoiser, plan, x, noise=noise, cond=part.cond, first=part.first, after=after, ticks=ticks))
        for _ in ticks:  # let the bar close
            pass
    return torch.cat(done) if done else empty


def misfit(plan: Plan, denoiser: Denoises) -> str:
    """Why a calibrated plan is not for this denoiser ("was calibrated for …"), or nothing; ValueError for another process."""
    facts = plan.calibration
    if facts is None:
        return ""
    for t, (alpha, sigma) in zip(plan.times, facts.levels, strict=True):
        now = tuple(float(m) for m in denoiser.process.moments(t))
        if not all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) for a, b in zip(now, (alpha, sigma), strict=True)):
            raise ValueError(
                f"plan {plan.name!r} was calibrated where (alpha, sigma) at t={t:.6g} is ({alpha:.6g}, {sigma:.6g}); "
                f"{type(denoiser.process).__name__} has ({now[0]:.6g}, {now[1]:.6g}): calibrate it for this process"
            )
    mine = describe(denoiser)
    return "" if mine == facts.denoiser else f"was calibrated for {facts.denoiser}, and samples {mine}"


def fitted(plans: Sequence[Plan], calls: int, denoiser: Denoises) -> Plan | None:
    """That of `plans` which was calibrated for so many calls of this denoiser, guidance and clipping included; or None."""
    mine = describe(denoiser)
    for plan in plans:
        facts = plan.calibration
        if facts is not None and plan.calls == calls and facts.measure == "flow" and facts.denoiser == mine:
            return plan
    return None


def meant(sampler: Plan | int | None, denoiser: Denoises, default: Plan, calibrated: Sequence[Plan]) -> Plan:
    """The plan meant: itself, that of `calibrated` for a number of calls or else the default rule's, or `default` for None."""
    if sampler is None or isinstance(sampler, Plan):
        return default if sampler is None else sampler
    return fitted(calibrated, sampler, denoiser) or default_plan(denoiser.process, sampler)


class Batch(NamedTuple):
    """The samples first … of one chunk: `state()` makes their x_T, `cond` are their conditions, `places` where they are."""

    state: Callable[[], Tensor]
    cond: Condition
    first: int
    places: slice


def batches(
    denoiser: Denoises,
    shape: Sequence[int] | None,
    start: Tensor | None,
    noise: Noise,
    cond: Condition,
    first: int,
    batch_size: int | None,
    device: torch.device | str | None,
    dtype: torch.dtype,
) -> tuple[list[Batch], Tensor]:
    """The chunks that the arguments of `sample` ask for, and what no samples at all look like; ValueError if they disagree."""
    if (start is None) == (shape is None):
        raise ValueError(f"give one of shape={shape} and start={'a tensor' if start is not None else None}")
    layout = tuple(start.shape) if start is not None else tuple(shape)  # type: ignore[arg-type]
    samples = int(layout[0])
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    for name, value in (cond or {}).items():
        if len(value) != samples:
            raise ValueError(f"cond[{name!r}] has {len(value)} rows for {samples} samples; give one row per sample")
    where = torch.device(device or (start.device if start is not None else device_of(denoiser)))
    chunk = max(min(batch_size or samples, samples), 1)

    def state(places: slice) -> Tensor:
        if start is not None:
            return start[places].to(where)
        size = places.stop - places.start
        return denoiser.process.prior((size, *layout[1:]), noise, first=first + places.start, dtype=dtype).to(where)

    parts = []
    for offset in range(0, samples, chunk):
        places = slice(offset, min(offset + chunk, samples))
        own = None if cond is None else {name: value[places].to(where) for name, value in cond.items()}
        parts.append(Batch(partial(state, places), own, first + offset, places))
    return parts, torch.empty(layout, dtype=dtype if start is None else start.dtype, device=where)


def run(
    denoiser: Denoises,
    plan: Plan,
    x: Tensor,
    *,
    noise: Noise,
    cond: Condition = None,
    first: int = 0,
    after: Hook | None = None,
    ticks: Iterator[object] | None = None,
) -> Tensor:
    """Run a plan's rows on the state x (B, *) and return it; gradients flow if the caller allows them."""
    history: deque[Tensor] = deque(maxlen=plan.memory + 1)
    before = plan.rows[0].t
    for k, row in enumerate(plan.rows):
        z = noise.normal(x.shape, stream="step", step=k, first=first, dtype=x.dtype, device=x.device) if row.stochastic else None
        y = x
        if row.p != 1 or row.prior or row.q:
            y = _accumulate(row.p, x, [(w, history[j - 1]) for j, w in row.prior], row.q, z)
        prediction = denoiser(y, row.t, cond)
        history.appendleft(prediction.view(plan.view))
        x = _accumulate(row.a, x, [(w, history[j]) for j, w in row.b], row.c, z)
        std: float | Tensor = abs(row.c)
        if row.log_variances is not None:
            std = _learned_std(row, prediction)
            x = torch.addcmul(x, std, z)  # type: ignore[arg-type]
        if after is not None:
            x = after(x, Step(k, row.t, row.s, before, prediction, noise, first, cond, std))
        before = before if row.s is None else row.s
        if ticks is not None:
            next(ticks, None)
    return x


def _accumulate(a: float, x: Tensor, terms: list[tuple[float, Tensor]], c: float, z: Tensor | None) -> Tensor:
    """a·x + Σ w·H + c·z in as few passes as there are terms; x and the H are left as they are."""
    parts = [(w, h) for w, h in [*terms, (c, z)] if w != 0 and h is not None]
    if a == 0 and parts:
        (a, x), parts = parts[0], parts[1:]
    out = x * a if a != 1 or parts else x
    for w, h in parts:
        out.add_(h, alpha=w)
    return out


def _learned_std(row: Row, prediction: Prediction) -> Tensor:
    if prediction.variance_fraction is None:
        raise ValueError("variance='learned' needs a denoiser with learned_variance=True; use 'posterior' or 'transition'")
    low, high = row.log_variances  # type: ignore[misc]
    return torch.exp(0.5 * (low + prediction.variance_fraction * (high - low)))


def _chosen(denoiser: Denoises, plan: Plan | None, calls: int | None) -> Plan:
    if (plan is None) == (calls is None):
        raise ValueError(f"give one of plan={plan and plan.name} and calls={calls}")
    if plan is None:
        plan = default_plan(denoiser.process, calls)  # type: ignore[arg-type]
        _log.info("calls=%s: %s", calls, plan.name)
    return plan


def module_of(denoiser: object) -> nn.Module | None:
    """The network module at the bottom of a denoiser and its wrappers, if there is one."""
    while not isinstance(denoiser, nn.Module):
        if not hasattr(denoiser, "denoiser"):
            return None
        denoiser = denoiser.denoiser
    return denoiser


def device_of(denoiser: Denoises) -> torch.device:
    """Where the parameters of a denoiser's network are; the CPU if it has none."""
    module = module_of(denoiser)
    parameter = next(module.parameters(), None) if module is not None else None
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def evaluating(denoiser: object) -> Iterator[None]:
    """Evaluation mode (no dropout) for the networks of a denoiser, those that guide it too, put back as it was on leaving."""
    training = [module for network in networks(denoiser) for module in network.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
