"""TimeGrad (row E9): a recurrent network remembers the past, and a diffusion model draws the next step given what it remembers.

| paper (arXiv 2101.12072) | here |
|---|---|
| section 3.1: p(x_t given h_{t-1}), drawn step after step | `TimeGradSystem.predict` |
| eq. 6, 7: LSTM on lags, covariates and the last value | `TimeGradNet.recurrent`, `_Steps.inputs` |
| eq. 10, algorithm 1: the denoising loss at every step | `TimeGradSystem.loss` |
| algorithm 2: ancestral sampling, here any plan | `TimeGradSystem.predict` |
| section 3.4: scaling by the context's mean | `scaling.SCALINGS["mean_abs"]`, and others |
| the network eps_theta: residual blocks conditioned on h | `nets.MLP` with cond["values"] = h |

All channels of a step share one draw: their joint law is learned. What is drawn of a step may be its change from the step before
(`differences`), in units of the changes in the context: a walk of small steps is then a draw of order one. Values that are
missing in the past are carried forward, and the network is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ornstein.assemble import called, make_loss, make_plan, make_process, seeded
from ornstein.config import Recipe
from ornstein.contract import Contract
from ornstein.denoiser import Denoiser
from ornstein.files import InputError
from ornstein.losses import DenoisingLoss
from ornstein.metrics import Ensemble
from ornstein.nets import MLP
from ornstein.noise import Noise
from ornstein.process import GaussianProcess
from ornstein.progress import track
from ornstein.samplers import Plan, sample
from ornstein.samplers.loop import meant
from ornstein.sequence import scaling
from ornstein.sequence.choose import Windowing

ROWS = 4096
"""Draws at a time unless told otherwise: bounds memory, changes nothing else."""


class TimeGradNet(nn.Module):
    """The recurrent network over steps, (B, T, inputs) -> h (B, T, width), and the denoising network `head` conditioned on h."""

    def __init__(
        self, channels: int, inputs: int, *, width: int = 64, layers: int = 2, head_width: int = 128, depth: int = 4,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if layers < 1 or width < 1:
            raise InputError(f"net.options: layers={layers} and width={width} must be at least 1")
        self.inner = nn.Linear(inputs, width)
        self.recurrent = nn.LSTM(width, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.head = MLP(channels, head_width, depth, values=width)
        assert self.head.condition.no_values is not None
        self.head.condition.no_values.requires_grad_(False)  # h is always there; several processes demand a gradient of all else

    def forward(self, inputs: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(h, the state to go on from)."""
        out, state = self.recurrent(self.dropout(nn.functional.silu(self.inner(inputs))), state)
        return self.dropout(out), state


@dataclass(frozen=True)
class _Steps:
    """Windows z (B, C, L) in model units, missing numbers carried forward, and what the network is told beside them."""

    z: Tensor
    seen: Tensor
    known: Tensor
    constants: Tensor
    ratio: Tensor

    def target(self, first: int, differences: bool) -> Tensor:
        """What is drawn of steps first … L - 1, (B, C, L - first): z, or its change in units of the context's changes."""
        now, before = self.z[..., first:], self.z[..., first - 1 : -1]
        return (now - before) * self.ratio if differences else now

    def after(self, drawn: Tensor, differences: bool) -> Tensor:
        """The next z (B, C) where `drawn` (B, C) was drawn of it: the inverse of `target`."""
        return self.z[..., -1] + drawn / self.ratio[..., 0] if differences else drawn

    def inputs(self, first: int, lags: tuple[int, ...], differences: bool, level: bool) -> Tensor:
        """What is told before each of steps first … (the last one known + 1), (B, T, inputs): it comes from rows before it."""
        stop = self.z.shape[-1] + 1
        before = self.z[..., first - 1 : stop - 1]
        parts = [self.seen[..., first - 1 : stop - 1].to(before), self.known[..., first:stop]]
        if level or not differences:
            parts.append(before)
        for lag in lags:
            earlier = self.z[..., first - lag : stop - lag]
            if not differences:
                parts.append(earlier)
            elif lag == 1:
                parts.append((before - self.z[..., first - 2 : stop - 2]) * self.ratio)
            else:
                parts.append((earlier - before) * self.ratio / math.sqrt(lag - 1))
        if level:
            parts.append(self.constants.expand(-1, -1, before.shape[-1]))
        return torch.cat(parts, 1).transpose(1, 2)

    def each(self, change: Callable[[Tensor], Tensor]) -> _Steps:
        return _Steps(*(change(part) for part in (self.z, self.seen, self.known, self.constants, self.ratio)))

    def repeat(self, times: int) -> _Steps:
        return self.each(lambda part: part.repeat_interleave(times, 0))

    def to(self, device: torch.device) -> _Steps:
        return self.each(lambda part: part.to(device))

    def appended(self, z: Tensor) -> _Steps:
        """One step more, which is seen."""
        one = torch.ones_like(self.seen[..., :1])
        return replace(self, z=torch.cat([self.z, z[..., None]], -1), seen=torch.cat([self.seen, one], -1))


@dataclass(eq=False)
class TimeGradSystem:
    """One trained or trainable forecaster; batches hold "x" (B, C, L) in the data's own units, NaN where missing, and
    "features" (B, F, L). `predict` draws the steps after a context; `calibrated` are plans fitted to these weights."""

    contract: Contract
    net: TimeGradNet
    denoiser: Denoiser
    loss_function: DenoisingLoss
    plan: Plan
    windowing: Windowing
    calibrated: tuple[Plan, ...] = ()
    condition: None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    @property
    def drawn_shape(self) -> tuple[int, ...]:
        """The shape of what the denoiser draws at once."""
        return (self.contract.shape[0],)

    def loss(
        self, batch: Mapping[str, Tensor], noise: Noise, *, step: int = 0, first: int = 0, total: int | None = None
    ) -> Tensor:
        """The denoising loss of every window, (B,): the mean over its steps; what is missing counts for nothing."""
        x, features = batch["x"].to(self.device), batch["features"].to(self.device)
        steps, frame = self._steps(x[..., : self.windowing.context], features)
        begin, options = self.windowing.reach, self.windowing
        z, seen = frame.encode(x), x.isfinite()
        whole = replace(steps, z=scaling.carried(z, seen, torch.zeros_like(frame.shift)).float(), seen=seen)
        told = replace(whole, z=whole.z[..., :-1], seen=seen[..., :-1])
        h, _ = self.net(told.inputs(begin, options.lags, options.differences, options.level))
        target = whole.target(begin, options.differences)
        length = target.shape[-1]

        def rows(part: Tensor) -> Tensor:
            return part.transpose(1, 2).flatten(0, 1)

        losses = self.loss_function(
            self.denoiser, rows(target), noise, step=step, first=first * length, total=None if total is None else total * length,
            cond={"values": h.flatten(0, 1)}, weight=rows(seen[..., begin:].to(target)),
        )  # fmt: skip
        return losses.reshape(len(x), length).mean(1)

    def predict(
        self,
        past: Tensor,
        known: Tensor,
        *,
        draws: int,
        noise: Noise,
        sampler: Plan | int | None = None,
        first: int = 0,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Ensemble:
        """Draws (cases, draws, C, H) of the H steps after each `past` (cases, C, context), in its own units, NaN where missing.

        `known` (cases, F, context + H) are the features of all these steps; H may be any number. `sampler` is a plan or a number
        of network calls for every step. Draw j of case i is sample (first + i)·draws + j of the noise, the same in any batch.
        """
        plan = self.plan_of(sampler)
        options, horizon = self.windowing, known.shape[-1] - past.shape[-1]
        if past.shape[1:] != (self.contract.shape[0], options.context) or horizon < 1:
            raise InputError(f"past has shape {tuple(past.shape)}; give (cases, {self.contract.shape[0]}, {options.context})")
        size = max(1, (batch_size or ROWS) // draws)
        cuts = range(0, len(past), size)
        ticks = iter(track(range(len(cuts) * horizon), len(cuts) * horizon, f"forecast, {plan.name}", enabled=progress))
        parts, training = [], self.net.training
        try:
            self.net.eval()
            with torch.no_grad():
                for at in cuts:
                    mine = (past[at : at + size], known[at : at + size])
                    parts.append(self._drawn(*mine, draws, horizon, noise, plan, (first + at) * draws, ticks))
        finally:
            self.net.train(training)
        for _ in ticks:  # let the bar close
            pass
        return Ensemble(torch.cat(parts))

    def _drawn(
        self, past: Tensor, known: Tensor, draws: int, horizon: int, noise: Noise, plan: Plan, first: int, ticks: Any
    ) -> Tensor:
        options = self.windowing
        # units in float64 where they are exact, which not every device has
        steps, frame = self._steps(past, known)
        steps = steps.to(self.device)
        told = steps.inputs(options.reach, options.lags, options.differences, options.level)
        h, state = self.net(told)
        h = h[:, -1].repeat_interleave(draws, 0)
        state = (state[0].repeat_interleave(draws, 1), state[1].repeat_interleave(draws, 1))
        steps = steps.repeat(draws)
        begin = past.shape[-1]
        for step in range(horizon):
            own = Noise(noise.key("forecast", step))
            drawn = sample(self.denoiser, plan, shape=(len(h), past.shape[1]), noise=own, cond={"values": h}, first=first)
            steps = steps.appended(steps.after(drawn, options.differences))
            next(ticks, None)
            if step < horizon - 1:
                told = steps.inputs(begin + step + 1, options.lags, options.differences, options.level)
                h, state = self.net(told, state)
                h = h[:, -1]
        return frame.repeat(draws).decode(steps.z[..., begin:].cpu().double()).unflatten(0, (-1, draws))

    def memories(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The condition of the denoiser at the last step of every context of a batch: what plans are calibrated on."""
        context, options = self.windowing.context, self.windowing
        with torch.no_grad():
            steps, _ = self._steps(batch["x"][..., :context], batch["features"])
            h, _ = self.net(steps.to(self.device).inputs(options.reach, options.lags, options.differences, options.level))
        return {"values": h[:, -1]}

    def plan_of(self, sampler: Plan | int | None) -> Plan:
        """The plan meant: itself, the one for a number of calls (calibrated to these weights if there is one), or the default."""
        return meant(sampler, self.denoiser, self.plan, self.calibrated)

    def _steps(self, past: Tensor, known: Tensor) -> tuple[_Steps, scaling.Frame]:
        """A context in model units, and these units."""
        seen = past.isfinite()
        frame = scaling.frame(self.windowing.scaling, past, seen, self.contract)
        z = scaling.carried(frame.encode(past), seen, torch.zeros_like(frame.shift))
        mean, std = (torch.tensor(part).to(past).reshape(1, -1, 1) for part in (self.contract.shift, self.contract.scale))
        ratio = frame.scale / scaling.step_scale(past, seen, self.contract)
        constants = torch.cat([(frame.shift - mean) / std, (frame.scale / std).log(), ratio.log()], 1)
        return _Steps(z.float(), seen, known.float(), constants.float(), ratio.float()), frame


def inputs_of(channels: int, features: int, windowing: Windowing) -> int:
    """How many numbers the recurrent network is told at every step."""
    levels = channels if windowing.level or not windowing.differences else 0
    return channels + features + levels + channels * len(windowing.lags) + (3 * channels if windowing.level else 0)


def initialise(recipe: Recipe, contract: Contract, process: GaussianProcess | None = None) -> TimeGradSystem:
    """The system that a recipe describes, freshly initialised. InputError for a recipe that asks for what is not here."""
    windowing = Windowing.of(recipe)
    process = process if process is not None else make_process(recipe.process)
    if recipe.net.name != "recurrent":
        raise InputError(f"net.name={recipe.net.name!r} is not for TimeGrad; set net.name: recurrent")
    channels = contract.shape[0]
    told = inputs_of(channels, windowing.features, windowing)
    net = seeded(recipe, lambda: called(TimeGradNet, {"channels": channels, "inputs": told, **recipe.net.options}, "net.options"))
    sigma_data = recipe.sigma_data or 1.0
    denoiser = called(
        Denoiser, {"net": net.head, "process": process, "predicts": recipe.predicts, "sigma_data": sigma_data}, "predicts"
    )
    loss = make_loss(recipe, contract, process, sigma_data)
    if not isinstance(loss, DenoisingLoss):
        raise InputError(f"loss.objective={recipe.loss.objective!r} is not for series; set loss.objective: denoising")
    return TimeGradSystem(contract, net, denoiser, loss, make_plan(process, recipe.sampler), windowing)
