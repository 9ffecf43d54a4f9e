"""The two stages of a calibration: least squares row by row, forward only; then gradients through the run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ornstein.calibration.reference import Pairs, Path
from ornstein.calibration.student import Student, Table, jump, moments
from ornstein.calibration.trace import Chunk, chunks, graph_bytes, pullback, trace
from ornstein.denoiser import Denoises
from ornstein.noise import Noise
from ornstein.samplers.budget import mean_square

_RIDGE = 1e-8
_SMOOTH = 0.05
_DAMPING = 1e-6
_PROBES = 1
_SMALLEST = 8
_EVERY, _PATIENCE = 4, 4


class Measure(Protocol):
    """How far samples x0 (n, *) are from a set of draws, per sample; `joint`: a sample's share depends on the others."""

    @property
    def joint(self) -> bool:
        """Whether the errors must be taken of all samples at once."""

    def __call__(self, x0: Tensor, end: Tensor) -> Tensor:
        """(n,), float64 on the CPU; the mean is the error."""


@dataclass(frozen=True)
class FlowError:
    """|x0 - x0*|/√D of samples and ends of the same start noise; `smooth` rounds the tip of the root off."""

    smooth: float = 0.0
    joint: bool = False

    def __call__(self, x0: Tensor, end: Tensor) -> Tensor:
        """sqrt(mean square + smooth²), (n,), float64 on the CPU."""
        return (mean_square(x0, end) + self.smooth**2).sqrt()


@dataclass(frozen=True)
class EnergyDistance:
    """2 E|x - y| - E|x - x'| - E|y - y'| per √D between samples x and ends y, without bias: no sample meets itself.

    Zero only for equal laws. Samples and ends may come from the same start noise: those pairs are left out.
    Source: Székely and Rizzo 2013, Journal of Statistical Planning and Inference 143.
    """

    joint: bool = True

    def __call__(self, x0: Tensor, end: Tensor) -> Tensor:
        """Every sample's share of the distance, (n,), float64 on the CPU; single ones may be negative."""
        x, y = (part.flatten(1).cpu().double() for part in (x0, end))
        n = len(x)
        apart = ~torch.eye(n, dtype=torch.bool)

        def mean(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(apart, torch.cdist(a, b), 0).sum(1) / (n - 1)

        return (2 * mean(x, y) - mean(x, x) - mean(y, y)) / x.shape[1] ** 0.5


def least_squares(denoiser: Denoises, draws: Pairs, path: Path, times: Sequence[float], batch_size: int) -> Table:
    """The table on given times whose every row brings the student's own states nearest to the fine trajectories.

    Row after row: given the states y_k and all answers so far, the weights of y_{k+1} that minimise the mean of
    |y_{k+1} - x*(t_{k+1})| (least squares, reweighted three times), drawn a little towards the step for constant x0.
    """
    at, n = torch.tensor(times, dtype=torch.float64), len(times)
    known = draws.head(path.states.shape[1])
    parts, y = list(chunks(known, batch_size)), known.start
    constant = jump(*moments(denoiser.process, at), torch.zeros(n, dtype=torch.float64))
    data: list[Tensor] = []
    weights: list[Tensor] = []
    with torch.no_grad():
        for k, t in enumerate(times):
            data.insert(0, torch.cat([denoiser(y[chunk.places], t, chunk.cond).x0 for chunk in parts]))
            prior = torch.cat([constant[0][k : k + 1], constant[1][k : k + 1], torch.zeros(k, dtype=torch.float64)])
            w = _row([y, *data], path.at(times[k + 1] if k + 1 < n else None), prior)
            weights.append(w)
            y = sum(float(c) * part for c, part in zip(w, [y, *data], strict=True))  # type: ignore[assignment]
    return Table(at, tuple(weights), torch.zeros(n, dtype=torch.float64))


def _row(features: list[Tensor], target: Tensor, prior: Tensor) -> Tensor:
    stacked = torch.stack([part.flatten(1).cpu().double() for part in features])
    residual = target.flatten(1).cpu().double() - torch.einsum("p,pnd->nd", prior, stacked)
    each = torch.ones(len(target), dtype=torch.float64)
    found = torch.zeros_like(prior)
    for _ in range(3):
        weighted = stacked * each[:, None]
        gram = torch.einsum("pnd,qnd->pq", weighted, stacked)
        right = torch.einsum("pnd,nd->p", weighted, residual)
        scale = gram.diagonal().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
        ridge = _RIDGE * torch.eye(len(prior), dtype=torch.float64)
        found = torch.linalg.solve(gram / scale[:, None] / scale + ridge, right / scale) / scale
        left = (residual - torch.einsum("p,pnd->nd", found, stacked)).square().mean(1).sqrt()
        each = 1 / (left + 0.1 * left.mean() + torch.finfo(torch.float64).tiny)
    return prior + found


@dataclass(frozen=True)
class Problem:
    """What a student is fitted on: the denoiser, the draws to fit and to choose by, the measure, and how much fits in memory."""

    denoiser: Denoises
    fit: Pairs
    choose: Pairs
    measure: Measure
    noise: Noise
    batch_size: int
    memory: float

    def samples(self, table: Table, draws: Pairs) -> Tensor:
        """The student's samples of a set, (n, *)."""
        with torch.no_grad():
            parts = [trace(self.denoiser, table, c, self.noise, graphs=False)[0] for c in chunks(draws, self.batch_size)]
        return torch.cat(parts)

    def error(self, table: Table, draws: Pairs) -> float:
        """The mean error on a set."""
        return float(self.measure(self.samples(table, draws), draws.end).mean())


def descend(student: Student, problem: Problem, steps: int, tick: Iterator[object], deadline: float) -> tuple[Tensor, float, int]:
    """(knobs, their error, evaluations) of at most `steps` gradients: the knobs best on the second set, and the error there.

    L-BFGS on the whole first set, in the variables in which the samples move alike: with J the Jacobian of the samples in the
    knobs, estimated by random cotangents, knobs are q ~ (JᵀJ)^(-1/2)·φ. Stops where the second set has not improved in four
    looks, four iterations apart, or at `deadline` (of `time.monotonic`).
    """
    from scipy.optimize import minimize

    best = torch.zeros(student.size, dtype=torch.float64)
    least = problem.error(student(best), problem.choose)
    measure: Measure = FlowError(_SMOOTH * least) if isinstance(problem.measure, FlowError) else problem.measure
    descent = _Descent(student, problem, measure, *_fitting(student, problem))
    directions = descent.directions(best)
    begun = descent.value_and_gradient(best)
    next(tick, None)
    # the first step that L-BFGS tries has length 1: let that be the Newton step
    directions = directions * (directions.T @ begun[1]).norm()
    lowest, candidate, evaluations, iterations, since = begun[0], best, 1, 0, 0

    def objective(phi: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        nonlocal lowest, candidate, evaluations
        knobs = directions @ torch.from_numpy(phi.copy())
        if not phi.any():
            return begun[0], (directions.T @ begun[1]).numpy()
        if evaluations >= steps or time.monotonic() > deadline:
            raise _EndError
        evaluations += 1
        value, gradient = descent.value_and_gradient(knobs)
        next(tick, None)
        if not (np.isfinite(value) and bool(gradient.isfinite().all())):
            return 1e30, np.zeros_like(phi)  # the line search comes back from here
        if value < lowest:
            lowest, candidate = value, knobs
        return value, (directions.T @ gradient).numpy()

    def look() -> None:
        nonlocal best, least, since
        error = problem.error(student(candidate), problem.choose)
        since = 0 if error < least * (1 - 1e-3) else since + 1
        if error < least:
            best, least = candidate, error

    def after(intermediate_result: object) -> None:
        nonlocal iterations
        iterations += 1
        if iterations % _EVERY == 0:
            look()
        if since >= _PATIENCE:
            raise _EndError

    with suppress(_EndError):
        minimize(
            objective, np.zeros(student.size), jac=True, method="L-BFGS-B", callback=after,
            options={"maxiter": steps, "maxfun": 2 * steps, "maxcor": 60, "ftol": 0.0, "gtol": 0.0},
        )  # fmt: skip
    look()
    return best, least, evaluations


class _EndError(Exception):
    """The descent has taken its gradients or its time, or does not improve any more."""


def _fitting(student: Student, problem: Problem) -> tuple[list[Chunk], bool]:
    """(chunks whose graphs fit in memory, whether calls must be evaluated again because those of all calls do not)."""
    each = graph_bytes(problem.denoiser, next(chunks(problem.fit, 1)), float(student.table.times[-1]))
    allowed = int(problem.memory * 2**30)
    fits = allowed // max(each * student.calls, 1)
    again = fits < min(_SMALLEST, len(problem.fit))
    size = allowed // max(each, 1) if again else fits
    return list(chunks(problem.fit, max(1, min(problem.batch_size, size)))), again


@dataclass(frozen=True)
class _Descent:
    """Value, gradient and metric of a student's error on the first set."""

    student: Student
    problem: Problem
    measure: Measure
    parts: list[Chunk]
    again: bool

    def _numbers(self, knobs: Tensor) -> Tensor:
        """All numbers of the table in the order of `pullback`."""
        table = self.student(knobs)
        return torch.cat([*table.weights, table.times[1:], table.noises[self.student.noisy]])

    def value_and_gradient(self, knobs: Tensor) -> tuple[float, Tensor]:
        """The mean error, and its gradient in the knobs."""
        leaf = knobs.detach().requires_grad_()
        numbers = self._numbers(leaf)
        table, fit, n = self.student(knobs), self.problem.fit, len(self.problem.fit)
        value, gradient = 0.0, torch.zeros_like(numbers)
        whole = None
        if self.measure.joint:
            total, whole = self._cost(self.problem.samples(table, fit), fit.end)
            value = total / n
        for chunk in self.parts:
            x0, calls = trace(self.problem.denoiser, table, chunk, self.problem.noise, graphs=not self.again)
            if whole is not None:
                end = whole[chunk.places]
            else:
                total, end = self._cost(x0, fit.end[chunk.places])
                value += total / n
            gradient += pullback(self.problem.denoiser, table, calls, end, chunk.cond, again=self.again).sum(1) / n
            del calls  # or the graphs of two chunks would be alive at once
        (pulled,) = torch.autograd.grad(numbers, leaf, gradient)
        return value, pulled

    def _cost(self, x0: Tensor, end: Tensor) -> tuple[float, Tensor]:
        """(sum of the errors, its gradient in x0)."""
        leaf = x0.detach().requires_grad_()
        with torch.enable_grad():
            total = self.measure(leaf, end).sum()
        (gradient,) = torch.autograd.grad(total, leaf)
        return float(total.detach()), gradient

    def directions(self, knobs: Tensor) -> Tensor:
        """(JᵀJ)^(-1/2) at the knobs, every sample divided by its error if that is a distance; (size, size), float64."""
        problem, numbers = self.problem, torch.autograd.functional.jacobian(self._numbers, knobs)
        table = self.student(knobs)
        metric = torch.zeros(len(knobs), len(knobs), dtype=torch.float64)
        for chunk in self.parts:
            x0, calls = trace(problem.denoiser, table, chunk, problem.noise, graphs=not self.again)
            errors = torch.ones(len(x0), dtype=torch.float64)
            if not self.measure.joint:
                errors = self.measure(x0, problem.fit.end[chunk.places])
            for probe in range(_PROBES):
                signs = problem.noise.normal(x0.shape, stream="probe", step=probe, first=chunk.first, dtype=x0.dtype).sign()
                pulled = pullback(problem.denoiser, table, calls, signs.to(x0.device), chunk.cond, again=self.again)
                pulled = numbers.T @ pulled
                metric += (pulled / (errors * x0[0].numel())) @ pulled.T / (_PROBES * len(problem.fit))
            del calls
        values, vectors = torch.linalg.eigh(metric)
        damped = values.clamp(min=0) + _DAMPING * values.max()
        return vectors / damped.sqrt()
