"""`calibrate`: from a trained denoiser and a number of calls to the plan that serves it best."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version

import torch
from torch import Tensor

from ornstein.calibration.fit import EnergyDistance, FlowError, Measure, Problem, descend, least_squares
from ornstein.calibration.reference import Pairs, Reference, fine_flow
from ornstein.calibration.student import Student, table_of
from ornstein.calibration.trace import chunks
from ornstein.denoiser import Condition, Denoises, describe
from ornstein.grid import Spacing, karras, log_snr, make, vp_time
from ornstein.noise import Noise
from ornstein.process import GaussianProcess
from ornstein.progress import track
from ornstein.samplers import Plan, default_plan, run
from ornstein.samplers.frame import floats
from ornstein.samplers.loop import evaluating, module_of
from ornstein.samplers.plan import Calibration

GRIDS: tuple[Spacing, ...] = (*(partial(vp_time, power=power) for power in (1.0, 1.5, 2.0)), karras, log_snr)
"""Where the first stage tries to put the calls, besides the times of the starting plan."""


def calibrate(
    denoiser: Denoises,
    *,
    calls: int | None = None,
    start: Plan | None = None,
    shape: Sequence[int],
    noise: Noise,
    cond: Condition = None,
    trajectories: int = 160,
    steps: int = 24,
    minutes: float | None = None,
    reference: Reference | None = None,
    batch_size: int = 64,
    memory: float = 2.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> Plan:
    """The plan of `calls` network evaluations whose samples lie nearest to those of the model's own fine flow.

    `shape` (*) is that of one sample; `cond` holds tensors of any number of rows, dealt to the trajectories in turn. Guidance
    and clipping are part of the denoiser: calibrate the one that will be sampled. `reference` shares trajectories between
    calibrations (`fine_flow`).

    First stage, forward only: on several time grids, every row's weights of x and of all answers so far by least squares on
    the student's own states. Second stage: at most `steps` gradients of the mean error through the whole run, in weights and
    times, stopped early (or after `minutes`) by a second set of trajectories. The third set gives the `error` in
    `plan.calibration`, beside that of `start`, by default the default plan; where the fit does not win there and on the second
    set, the start is returned and `plan.calibration.kept` says so.

    A stochastic `start` has no trajectory to follow: its weights, times and noises are then fitted to the energy distance
    between its samples and the fine flow's, in the second stage alone. `memory` (GiB) bounds the gradients' graphs.
    ValueError for missing or contradictory arguments, and for a denoiser without gradients unless steps = 0.
    Source: the second stage is that of Watson et al. 2022, arXiv 2202.05830, with trajectories in place of features.
    """
    if (calls is None) == (start is None):
        raise ValueError(f"give one of calls={calls} and start={start and start.name}")
    if steps < 0:
        raise ValueError(f"steps={steps} must be at least 0; 0 is least squares alone")
    if not memory > 0 or batch_size < 1 or not (minutes is None or minutes > 0):
        raise ValueError(f"memory={memory}, batch_size={batch_size} and minutes={minutes} must be positive")
    process, begun = denoiser.process, time.monotonic()
    start = start or default_plan(process, calls)  # type: ignore[arg-type]
    first = Student(process, table_of(start, process))
    reference = reference or fine_flow(
        denoiser, shape=shape, noise=noise, cond=cond, calls=start.calls, trajectories=trajectories, device=device, dtype=dtype,
        progress=progress,
    )  # fmt: skip
    if tuple(reference.fit.start.shape[1:]) != tuple(shape):
        raise ValueError(f"shape={tuple(shape)} is not that of the reference, {tuple(reference.fit.start.shape[1:])}")
    names = tuple(sorted(reference.fit.cond or ()))
    if cond is not None and tuple(sorted(cond)) != names:
        raise ValueError(f"cond={sorted(cond)} is not what the reference was drawn with, {list(names)}; leave it out")
    measure: Measure = EnergyDistance() if start.stochastic else FlowError()
    problem = Problem(denoiser, reference.fit, reference.choose, measure, noise, batch_size, memory)
    deadline = math.inf if minutes is None else begun + 60 * minutes
    grids = [] if start.stochastic else _grids(process, start)
    ticks = track(range(len(grids) + steps), len(grids) + steps, f"calibrate({start.calls})", enabled=progress)
    with evaluating(denoiser):
        candidates = [first]
        for times in grids:
            candidates.append(Student(process, least_squares(denoiser, reference.fit, reference.path, times, batch_size)))
            next(ticks, None)
        errors = [_finite(problem.error(student.table, reference.choose)) for student in candidates]
        student = candidates[errors.index(min(errors))]
        knobs, least, evaluations = torch.zeros(student.size, dtype=torch.float64), min(errors), 0
        if steps:
            knobs, least, evaluations = descend(student, problem, steps, ticks, deadline)
        for _ in ticks:  # let the bar close
            pass
        fitted = student.plan(knobs, f"calibrated({start.calls})")
        judged = [_judged(denoiser, plan, reference.judge, measure, noise, batch_size) for plan in (start, fitted)]
    gain = judged[0] - judged[1]
    kept = not (least < errors[0] and float(gain.mean()) > 0)
    if kept:
        fitted, judged, gain = start, [judged[0], judged[0]], torch.zeros_like(gain)
    facts = Calibration(
        error=float(judged[1].mean()),
        start_error=float(judged[0].mean()),
        gain_error=float(gain.std() / len(gain) ** 0.5),
        start=start.name,
        kept=kept,
        measure="energy" if measure.joint else "flow",
        samples=len(reference.judge),
        denoiser=describe(denoiser),
        levels=tuple(floats(process, t) for t in fitted.times),
        weights=weights_digest(denoiser),
        conditions=names,
        trajectories=len(reference.fit),
        evaluations=evaluations,
        seed=reference.seed,
        fine_calls=reference.calls,
        fine_error=reference.error,
        seconds=time.monotonic() - begun,
        version=version("ornstein"),
    )
    return replace(fitted, calibration=facts)


def _grids(process: GaussianProcess, start: Plan) -> list[tuple[float, ...]]:
    """The start's own times and those of `GRIDS`, without those that do not exist for this process and so few calls."""
    found = [start.times] if all(s < t for t, s in zip(start.times, start.times[1:], strict=False)) else []
    for spacing in GRIDS:
        try:
            times = make(process, start.calls, spacing)
        except ValueError:
            continue
        if times not in found and float(process.moments(times[-1])[1]) > 0:
            found.append(times)
    return found


def _judged(denoiser: Denoises, plan: Plan, draws: Pairs, measure: Measure, noise: Noise, batch_size: int) -> Tensor:
    """The errors of a plan on a set, by the loop that users' samples go through; (n,), float64."""
    with torch.no_grad():
        parts = [run(denoiser, plan, c.start, noise=noise, cond=c.cond, first=c.first) for c in chunks(draws, batch_size)]
    return measure(torch.cat(parts), draws.end)


def _finite(error: float) -> float:
    return error if math.isfinite(error) else math.inf


def weights_digest(denoiser: object) -> str | None:
    """A digest of the parameters and buffers of a denoiser's network, whatever their device and layout; None if it has none."""
    module = module_of(denoiser)
    if module is None:
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
