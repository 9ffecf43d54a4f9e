"""A system: data contract, denoiser, loss and default sampler, as training and sampling need them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ornstein.condition import GridCondition
from ornstein.contract import Contract
from ornstein.denoiser import Clipped, Condition, Denoiser, Denoises, DynamicThreshold, HalfPrecision
from ornstein.files import InputError
from ornstein.grid import log_snr
from ornstein.guidance import Given, restore
from ornstein.guidance.line import Guidance
from ornstein.guided import asks, guided, takes_label
from ornstein.hardware import half_precision
from ornstein.likelihood import BitsPerDim, Latents, LogProb, bits_per_dim, decode, encode, log_prob
from ornstein.losses import Bound, DenoisingLoss, Discretised, MatchingLoss, bound, mirrored
from ornstein.measured import in_model_units
from ornstein.metrics.ensemble import Ensemble
from ornstein.noise import Noise
from ornstein.samplers import Adaptive, Draws, Hook, LangevinCorrector, Plan, Solver, default_plan, sample, sample_adaptive
from ornstein.samplers.loop import fitted

CHUNK, CHUNK_OF_ROWS = 64, 4096
"""Samples, or rows of a table, drawn at a time unless told otherwise: bounds memory, changes nothing else."""

CondInput = Mapping[str, Tensor | Sequence[int] | Sequence[str] | int | str | float] | None


@dataclass(eq=False)
class System:
    """One trained or trainable model: `loss` is all the trainer calls, `sample` all that users do.

    Batches hold "x" (B, *) in the data's own range, and "label" (B,) where the data have labels; samples come back in the
    data's own range too. `condition` names the condition the network takes ("label", or "grid": a measurement as `grid` says)
    or None; with probability `condition_dropout` a datum is trained without it, which classifier-free guidance needs. `flip`
    mirrors half of the training images. `bounds`, `threshold` and `precision` change predictions while sampling, and
    only if the recipe asks. `calibrated` are plans fitted to these weights (`ornstein.calibrate`).
    """

    contract: Contract
    denoiser: Denoiser
    loss_function: DenoisingLoss | MatchingLoss
    plan: Plan | None = None
    condition: str | None = None
    condition_dropout: float = 0.0
    flip: bool = False
    bounds: tuple[float, float] | None = None
    threshold: float | None = None
    precision: str = "float32"
    calibrated: tuple[Plan, ...] = ()
    grid: GridCondition | None = None

    @property
    def net(self) -> nn.Module:
        """The network with the trained weights."""
        return self.denoiser.net

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    @property
    def chunk(self) -> int:
        """Samples drawn at a time unless told otherwise."""
        return CHUNK_OF_ROWS if len(self.contract.shape) == 1 else CHUNK

    def loss(
        self, batch: Mapping[str, Tensor], noise: Noise, *, step: int = 0, first: int = 0, total: int | None = None
    ) -> Tensor:
        """The training loss of every datum of a batch, (B,); sample i is keyed by (step, first + i)."""
        x0 = self.contract.encode(batch["x"])
        n = len(x0)
        if self.flip:
            x0 = mirrored(x0, noise, step=step, first=first)
        cond: dict[str, Tensor] | None = None
        if self.condition is not None:
            dropped = noise.uniform((n,), stream="condition", step=step, first=first) < self.condition_dropout
            cond = {"null": dropped.to(x0.device)}
            if self.grid is not None:
                cond |= self.grid.training(self.contract.decode(x0), noise, step=step, first=first)
            else:
                cond[self.condition] = batch[self.condition]
        return self.loss_function(self.denoiser, x0, noise, step=step, first=first, total=total, cond=cond)

    def sample(
        self,
        n: int,
        *,
        cond: CondInput = None,
        guidance: Guidance = 1.0,
        sampler: Plan | Adaptive | int | None = None,
        noise: Noise,
        first: int = 0,
        batch_size: int | None = None,
        after: Hook | None = None,
        progress: bool = False,
    ) -> Tensor:
        """n samples (n, *) in the data's own range.

        `cond` is one value for all or one per sample, {"label": 3} or {"label": [0, 1, 2]}, by number or by class name;
        None draws without condition; `guidance` is the scale of classifier-free guidance, or a guide, a function from denoiser to
        denoiser: `functools.partial(ClassifierFree, scale=2, interval=(0.3, 5))`; a classifier's takes the label of `cond` even
        where the network takes none. `sampler` is a plan, a number of
        network calls, a solver that chooses its steps, or None for the model's default. A number takes the plan that was
        calibrated for it, where there is one (`plan_for`), or the default rule's. `after` acts between the rows of a plan
        (guidance on x, a corrector).
        """
        return self.draw(
            n, cond=cond, guidance=guidance, sampler=sampler, noise=noise, first=first, batch_size=batch_size, after=after,
            progress=progress,
        ).x0  # fmt: skip

    def draw(
        self,
        n: int,
        *,
        cond: CondInput = None,
        guidance: Guidance = 1.0,
        sampler: Plan | Adaptive | int | None = None,
        noise: Noise,
        first: int = 0,
        batch_size: int | None = None,
        after: Hook | None = None,
        progress: bool = False,
    ) -> Draws:
        """`sample`, with the network calls that each sample took: `.x0`, `.calls` (n,); `guidance.evaluations` tells their cost.

        A solver that chooses its steps runs the network in full precision, whatever the recipe says.
        """
        chosen = self.plan if sampler is None else sampler
        if chosen is None or isinstance(chosen, int):
            count = 50 if chosen is None else chosen
            chosen = self.plan_for(count, guidance=guidance) or default_plan(self.denoiser.process, count)
        denoiser = self.shaped_denoiser(full_precision=not isinstance(chosen, Plan), guidance=guidance)
        if asks(denoiser) and not cond:
            shown = "guidance" if callable(guidance) else f"guidance={guidance:g}"
            raise InputError(f"{shown} needs a condition to guide to; give cond, or leave guidance out")
        shape, size = (n, *self.contract.shape), self.chunk if batch_size is None else batch_size
        conditions = self.conditions(cond, n, by_classifier=takes_label(denoiser))
        if isinstance(chosen, Plan):
            x0 = sample(
                denoiser, chosen, shape=shape, noise=noise, cond=conditions, first=first, batch_size=size, after=after,
                device=self.device, progress=progress,
            )  # fmt: skip
            extra = after.calls(chosen) if isinstance(after, LangevinCorrector) else chosen.calls
            return Draws(self.contract.decode(x0), torch.full((n,), extra))
        if after is not None:
            raise InputError(f"{chosen.name} has no rows for `after` to act between; give a plan")
        drawn = sample_adaptive(
            denoiser, chosen, shape=shape, noise=noise, cond=conditions, first=first, batch_size=size, device=self.device,
            progress=progress,
        )  # fmt: skip
        return Draws(self.contract.decode(drawn.x0), drawn.calls)

    def plan_for(self, calls: int, *, guidance: Guidance = 1.0) -> Plan | None:
        """The plan calibrated for so many calls of these weights under this guidance, if there is one."""
        return fitted(self.calibrated, calls, self.shaped_denoiser(guidance=guidance)) if self.calibrated else None

    def shaped_denoiser(self, *, full_precision: bool = False, guidance: Guidance = 1.0) -> Denoises:
        """The denoiser with the precision, clipping or thresholding that the recipe asked for, and guidance.

        `full_precision` leaves out the first: the rounding of bfloat16 is an error that no solver's tolerance can meet.
        """
        half = half_precision(self.precision, self.device)
        denoiser: Denoises = HalfPrecision(self.denoiser) if half and not full_precision else self.denoiser
        denoiser = guided(denoiser, guidance, conditional=self.condition is not None, dropout=self.condition_dropout)
        if self.bounds is not None:
            denoiser = Clipped(denoiser, *self.bounds)
        if self.threshold is not None:
            bound = max(abs(limit) for limit in self.contract.bounds or (1.0,))
            denoiser = DynamicThreshold(denoiser, bound, self.threshold)
        return denoiser

    def conditions(self, cond: CondInput, n: int, *, by_classifier: bool = False) -> dict[str, Tensor] | None:
        """`cond` as tensors with one row per sample; InputError for a condition or class the model does not know.

        `by_classifier` takes a label for the classifier that guides, whether or not the network takes one.
        """
        if not cond:
            return None
        taken = self.condition or ("label" if by_classifier else None)
        if taken is None:
            raise InputError(f"cond={sorted(cond)} was given, but this model was trained without a condition; leave it out")
        if self.grid is not None:
            return self.grid.rows(cond, n)
        unknown = sorted(set(cond) - {taken})
        if unknown:
            raise InputError(f"cond has {unknown[0]!r}, but this model takes only {taken!r}")
        value = cond[taken]
        values = [value] * n if isinstance(value, int | str | float) else list(value)
        if len(values) != n:
            raise InputError(f"cond[{taken!r}] has {len(values)} values for n={n} samples; give one, or one per sample")
        return {taken: torch.tensor([self._label(v) for v in values], dtype=torch.long)}

    def examples(self, n: int, x: Tensor | None = None) -> CondInput:
        """Conditions for n samples to look at: every class in turn, or what is measured of data x (m, *) in turn; else None."""
        if self.grid is None:
            return {self.condition: torch.arange(n) % len(self.contract.classes or (1,))} if self.condition else None
        return None if x is None else {"grid": self.grid.measure(x[torch.arange(n) % len(x)])}

    def predict(
        self,
        y: Tensor,
        *,
        draws: int = 8,
        noise_std: float = 0.0,
        guidance: Guidance = 1.0,
        sampler: Plan | Adaptive | int | None = None,
        noise: Noise,
        first: int = 0,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Ensemble:
        """`draws` samples of x given each measurement y = A(x) (cases, *measured_shape), for a model with condition "grid".

        y and the draws (cases, draws, *) are in the data's own units; `noise_std` as in `GridCondition.rows`. Draw j of case i
        is sample (first + i)·draws + j of the noise, so that a case is the same alone. InputError for other models, wrong y.
        """
        if self.grid is None:
            raise InputError("predict needs a model with condition: grid, trained to see measurements; this one was not")
        if draws < 1:
            raise InputError(f"draws={draws} must be at least 1")
        rows = torch.arange(len(y)).repeat_interleave(draws)
        x = self.sample(
            len(rows), cond={"grid": y[rows], "noise_std": noise_std}, guidance=guidance, sampler=sampler, noise=noise,
            first=first * draws, batch_size=batch_size, progress=progress,
        )  # fmt: skip
        return Ensemble(x.reshape(len(y), draws, *x.shape[1:]))

    def restore(
        self,
        given: Given,
        *,
        method: str = "pigdm",
        options: Mapping[str, float] | None = None,
        draws: int = 8,
        sampler: Plan | Adaptive | int | None = None,
        cond: CondInput = None,
        guidance: Guidance = 1.0,
        noise: Noise,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Ensemble:
        """`draws` of the data behind each measurement y = A(x) + noise, in the data's own units, as `given`: `ornstein.restore`.

        The model need not have been trained for A; `sampler` is a plan or a number of calls, None the method's own; `cond` has a
        value for all or one per measurement. PiGDM is told the variance of the data unless `options` say another.
        """
        if not isinstance(sampler, Plan | int | None):
            raise InputError(f"sampler {sampler.name} has no rows to guide between; give a plan or a number of calls")
        plan, calls = (sampler, None) if isinstance(sampler, Plan) else (None, sampler)
        told = {"data_variance": self.contract.std**2} if method == "pigdm" else {}
        ensemble = restore(
            self.shaped_denoiser(guidance=guidance), in_model_units(given, self.contract), method=method, plan=plan, calls=calls,
            draws=draws, noise=noise, options={**told, **(options or {})}, cond=self.conditions(cond, len(given)),
            batch_size=batch_size or self.chunk, device=self.device, progress=progress,
        )  # fmt: skip
        return Ensemble(self.contract.decode(ensemble.draws))

    def _label(self, value: object) -> int:
        classes = self.contract.classes or ()
        if isinstance(value, str) and value in classes:
            return classes.index(value)
        try:
            index = int(value)  # type: ignore[call-overload]
        except (TypeError, ValueError):
            index = -1
        if not 0 <= index < (len(classes) if self.contract.classes is not None else math.inf):
            shown = ", ".join(classes[:12]) + (", …" if len(classes) > 12 else "")
            raise InputError(f"label={value!r} is not one of the {len(classes)} classes: {shown} (or 0 … {len(classes) - 1})")
        return index

    def bound(
        self,
        x: Tensor,
        noise: Noise,
        *,
        cond: Condition = None,
        levels: int = 1000,
        samples: int | None = 20,
        first: int = 0,
        progress: bool = False,
    ) -> Bound:
        """The variational bound on -log P(x) for data x (B, *) in their own range.

        The chain has `levels` equal steps in log-SNR, of which `samples` per datum are drawn; it ends where the noise is a
        third of the half-width of a grey level's bin, and L_0 is a probability on the declared grey levels. For data that
        declare none it ends at t_min and L_0 is a density. `Bound.per_dimension()` then is bits/dim.
        """
        process = self.denoiser.process
        x0 = self.contract.encode(x).to(self.device)
        times = log_snr(process, levels)
        decoder = self.quantisation
        if decoder is not None:
            end = float(process.time_of(torch.tensor(math.log(decoder.width / 6), dtype=torch.float64)))
            times = tuple(t for t in times if t > end)
        if samples is not None and not 1 <= samples < len(times):
            raise InputError(f"draws={samples} must lie between 1 and the {len(times) - 1} noise levels of the bound")
        return bound(self.denoiser, x0, times, noise, decoder=decoder, cond=cond, samples=samples, first=first, progress=progress)

    def log_prob(
        self,
        x: Tensor,
        *,
        cond: CondInput = None,
        solver: Solver | None = None,
        divergence: str = "rademacher",
        probes: int = 8,
        noise: Noise,
        first: int = 0,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> LogProb:
        """log p in nats of data x (n, *) given in their own range, as a density of the encoded data; see `ornstein.log_prob`.

        A density in the data's own units is smaller by the sum of log|scale| over their numbers (`contract.scale`).
        """
        return log_prob(
            self.denoiser, self.contract.encode(x).to(self.device), cond=self.conditions(cond, len(x)), solver=solver,
            divergence=divergence, probes=probes, noise=noise, first=first, batch_size=batch_size or self.chunk,
            progress=progress,
        )  # fmt: skip

    def bits_per_dim(
        self,
        x: Tensor,
        *,
        dequantisation: str = "uniform",
        cond: CondInput = None,
        solver: Solver | None = None,
        divergence: str = "rademacher",
        probes: int = 8,
        noise: Noise,
        first: int = 0,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> BitsPerDim:
        """Bits per dimension of data x (n, *) on their declared grey levels, by the flow; see `ornstein.bits_per_dim`."""
        decoder = self.quantisation
        if decoder is None:
            raise InputError("the data declare no grey levels: bits per dimension mean nothing; use log_prob, in nats")
        return bits_per_dim(
            self.denoiser, self.contract.encode(x).to(self.device), decoder, dequantisation=dequantisation,
            cond=self.conditions(cond, len(x)), solver=solver, divergence=divergence, probes=probes, noise=noise, first=first,
            batch_size=batch_size or self.chunk, progress=progress,
        )  # fmt: skip

    @property
    def quantisation(self) -> Discretised | None:
        """The grey levels that the data declare, in model units, or None."""
        if self.contract.levels is None or self.contract.bounds is None:
            return None
        return Discretised(self.contract.levels, *self.contract.bounds)

    def encode(
        self,
        x: Tensor,
        *,
        cond: CondInput = None,
        solver: Solver | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Latents:
        """The latents (n, *) of data x (n, *) in their own range, about normal with std `process.prior_std`."""
        return encode(
            self.denoiser, self.contract.encode(x).to(self.device), cond=self.conditions(cond, len(x)), solver=solver,
            batch_size=batch_size or self.chunk, progress=progress,
        )  # fmt: skip

    def decode(
        self,
        latent: Tensor,
        *,
        cond: CondInput = None,
        solver: Solver | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """The data (n, *), in their own range, of latents (n, *): the inverse of `encode` under the same condition."""
        return self.contract.decode(
            decode(
                self.denoiser, latent.to(self.device), cond=self.conditions(cond, len(latent)), solver=solver,
                batch_size=batch_size or self.chunk, progress=progress,
            )
        )  # fmt: skip
