"""A plan with knobs: its times, coefficients and noise as smooth functions of one vector, and the pullback through its run.

Every plan of the loop, whatever its view and its corrector, is y_{k+1} = w_k0·y_k + Σ_j w_k,1+j·D_{k-j} + c_k·z_k, where y_k is
what call k sees at time t_k and D_k the x0 that it answers; y_0 = x_T, and y_n is the sample. The knobs q change it so:

    u_k = u_{k-1} - (u°_{k-1} - u°_k)·e^q        u = log(sigma/alpha) of the calls
    c_k = c°_k·(sigma_{k+1}/sigma°_{k+1})·e^q
    w_k = (g_k + e°_k, h_k·β°_k) + q      g_k = sqrt(sigma_{k+1}² - c_k²)/sigma_k,  h_k = alpha_{k+1} - alpha_k·g_k

e° and β° are such that q = 0 is the plan itself. (g, h) is the step that is exact for a constant x0: moving a time or a noise
takes the coefficients along, without which the knobs would fight each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ornstein.denoiser import VIEWS, Line
from ornstein.process import GaussianProcess
from ornstein.samplers import Plan, Row

_NOISIEST = 16.0
"""log(sigma/alpha) that stands for alpha = 0 where distances between times are measured."""
_APART = 1e-6
_ROOM = 1e-4


class Table(NamedTuple):
    """times (n,), weights (one (2 + lags,) per row, of y_k and D_k, D_{k-1}, …), noises (n,); float64."""

    times: Tensor
    weights: tuple[Tensor, ...]
    noises: Tensor


def table_of(plan: Plan, process: GaussianProcess) -> Table:
    """A plan in the form of the module's first equation.

    ValueError where a row draws noise before its call, has a learned variance, or remembers another view than x0 past noise.
    """
    n = plan.calls
    state = torch.zeros(n + 1, dtype=torch.float64)  # x in terms of (x_T, D_0, …, D_{n-1}); noise goes its own way
    state[0] = 1
    inputs: list[Tensor] = []
    views: list[Tensor] = []
    noisy = False
    for k, row in enumerate(plan.rows):
        if row.q or row.log_variances is not None or (plan.stochastic and row.prior):
            raise ValueError(f"plan {plan.name!r} draws noise before its calls, or a learned one; calibrate needs it after them")
        if noisy and plan.view != "x0" and any(j for j, _ in row.b):
            raise ValueError(f"plan {plan.name!r} remembers {plan.view} across its noise; calibrate takes one that remembers x0")
        y = row.p * state + sum((w * views[k - j] for j, w in row.prior), torch.zeros_like(state))
        on_x, on_x0 = (float(c) for c in VIEWS[plan.view](*process.moments(row.t)))
        answer = torch.zeros_like(state)
        answer[k + 1] = 1
        inputs.append(y)
        views.append(on_x * y + on_x0 * answer)
        state = row.a * state + sum((w * views[k - j] for j, w in row.b), torch.zeros_like(state))
        noisy = noisy or row.c != 0
    if plan.stochastic:
        weights = tuple(_own(row, VIEWS[plan.view](*process.moments(row.t))) for row in plan.rows)
    else:
        if any(float(y[0]) == 0 for y in inputs):
            raise ValueError(f"plan {plan.name!r} forgets where it started; calibrate takes plans that carry x along")
        weights = tuple(_step(a, b, k) for k, (a, b) in enumerate(zip(inputs, [*inputs[1:], state], strict=True)))
    return Table(
        torch.tensor(plan.times, dtype=torch.float64), weights, torch.tensor([row.c for row in plan.rows], dtype=torch.float64)
    )


def _step(before: Tensor, after: Tensor, k: int) -> Tensor:
    """The weights that lead from one linear combination of (x_T, D_0, …) to the next."""
    on_y = after[0] / before[0]
    return torch.cat([on_y.reshape(1), (after - on_y * before)[1 : k + 2].flip(0)])


def _own(row: Row, view: Line) -> Tensor:
    """The weights of a row as it stands, with H the line `view` in y and x0 (past the call only x0 is remembered)."""
    on_x, on_x0 = (float(c) for c in view)
    lags = dict(row.b)
    weights = torch.zeros(2 + max(lags, default=0), dtype=torch.float64)
    weights[0] = row.a + on_x * lags.get(0, 0.0)
    for j, w in lags.items():
        weights[1 + j] = w * on_x0
    return weights


def shares_of(table: Table, process: GaussianProcess) -> Tensor:
    """(n, n): entry (k, i) is the weight of answer D_i in row k over the row's weight for a constant x0; NaN past the call."""
    n = len(table.times)
    shares = torch.full((n, n), math.nan, dtype=torch.float64)
    _, whole = jump(*moments(process, table.times), table.noises)
    for k, weights in enumerate(table.weights):
        shares[k, : k + 1] = 0.0
        lags = weights[1:] / whole[k] if float(whole[k]) else weights[1:]
        shares[k, k + 1 - len(lags) : k + 1] = lags.flip(0)
    return shares


def beside(plan: Plan, other: Plan, process: GaussianProcess) -> str:
    """Two plans of as many calls as a table for people: noise levels, the weight of x, and the `shares_of` the last answers."""
    columns = []
    for one in (plan, other):
        table = table_of(one, process)
        levels, shares = process.log_ratio(table.times).tolist(), shares_of(table, process)
        rows = []
        for k, (level, weights) in enumerate(zip(levels, table.weights, strict=True)):
            last = " ".join(f"{float(shares[k, i]):+.3f}" for i in range(k, max(k - 4, -1), -1))
            rows.append(f"{level:>8.3f} {float(weights[0]):>8.4f}  {last:<27}")
        columns.append(rows)
    head = f"{'log(s/a)':>8} {'x':>8}  {'D_k, D_k-1, … (of the step)':<27}"
    lines = [f"{'':>3}  {plan.name:<47}  {other.name}", f"{'k':>3}  {head}  {head}".rstrip()]
    lines += [f"{k:>3}  {a}  {b}".rstrip() for k, (a, b) in enumerate(zip(*columns, strict=True))]
    return "\n".join(lines)


@dataclass(frozen=True)
class Student:
    """The knobs of one table; `size` is the length of q."""

    process: GaussianProcess
    table: Table

    @property
    def calls(self) -> int:
        """n."""
        return len(self.table.times)

    @property
    def noisy(self) -> list[int]:
        """The rows that draw noise."""
        return [k for k, c in enumerate(self.table.noises.tolist()) if c > 0]

    @property
    def rows(self) -> list[int]:
        """How many weights every row has."""
        return [len(w) for w in self.table.weights]

    @property
    def size(self) -> int:
        """Weights, times after the first, noises."""
        return sum(self.rows) + self.calls - 1 + len(self.noisy)

    def __call__(self, q: Tensor) -> Table:
        """The table at q (size,), float64 and differentiable in q."""
        weights, times, noises = self._split(q)
        (start, sigma), (new, moved) = moments(self.process, self.table.times), moments(self.process, times)
        old_c = self.table.noises
        c = old_c.clone()
        if self.noisy:
            c = c.index_put((torch.tensor(self.noisy),), self._scaled(old_c, sigma, moved, noises))
        rest = jump(start, sigma, old_c)
        step = jump(new, moved, c)
        out = []
        for k, (before, change) in enumerate(zip(self.table.weights, weights, strict=True)):
            on_y = step[0][k] + (before[0] - rest[0][k])
            # calls at one and the same time leave no way to share out
            grown = step[1][k] / rest[1][k] if float(rest[1][k]) else torch.ones((), dtype=torch.float64)
            out.append(torch.cat([on_y.reshape(1), before[1:] * grown]) + change)
        return Table(times, tuple(out), c)

    def _scaled(self, c: Tensor, sigma: Tensor, moved: Tensor, noises: Tensor) -> Tensor:
        rows = torch.tensor(self.noisy)
        return c[rows] * (moved[rows + 1] / sigma[rows + 1]) * noises.exp()

    def _split(self, q: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """(changes of the weights, times, changes of the noises' logarithms)."""
        counts = [*self.rows, self.calls - 1, len(self.noisy)]
        *weights, shifts, noises = q.split(counts)
        if self.calls == 1:
            return weights, self.table.times, noises
        ratios = self.process.log_ratio(self.table.times).clamp(max=_NOISIEST)
        gaps = -ratios.diff()
        ratios = ratios[0] - torch.cumsum(gaps * shifts.exp(), 0)
        lowest = float(self.process.log_ratio(self.process.t_min))
        # times that meet at the lowest noise keep their order
        order = torch.cat([gaps[1:].clamp(max=_APART).flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)])
        later = self._time_of(torch.maximum(ratios, lowest + order) if math.isfinite(lowest) else ratios)
        return weights, torch.cat([self.table.times[:1], later]), noises

    def _time_of(self, log_ratio: Tensor) -> Tensor:
        """The process's own inverse, with the slope that it may not carry."""
        times = self.process.time_of(log_ratio.detach()).clamp(self.process.t_min, 1.0)
        if not log_ratio.requires_grad:
            return times
        with torch.enable_grad():
            at = times.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.process.log_ratio(at).sum(), at)
        return times + (log_ratio - log_ratio.detach()) / slope

    def plan(self, q: Tensor, name: str) -> Plan:
        """The table at q as a plan of the x0 view."""
        table = self(q.detach())
        times = table.times.tolist()
        rows = []
        for k, weights in enumerate(table.weights):
            on_y, *on_data = weights.tolist()
            lags = tuple((j, w) for j, w in enumerate(on_data) if w)
            rows.append(Row(times[k], times[k + 1] if k + 1 < len(times) else None, on_y, lags, float(table.noises[k])))
        return Plan(name, "x0", tuple(rows))


def moments(process: GaussianProcess, times: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) at the calls, and of clean data."""
    alpha, sigma = process.moments(times)
    return torch.cat([alpha, alpha.new_ones(1)]), torch.cat([sigma, sigma.new_zeros(1)])


def jump(alpha: Tensor, sigma: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """(g, h) of the module: the step that is exact for a constant x0 and draws `noise`."""
    share = noise / sigma[1:].clamp(min=torch.finfo(torch.float64).tiny)
    g = sigma[1:] / sigma[:-1] * (1 - share**2).clamp(min=_ROOM).sqrt()
    return g, alpha[1:] - alpha[:-1] * g
