"""A system: data contract, denoiser, loss and default sampler, as training and sampling need them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ornstein.contract import Contract
from ornstein.denoiser import Clipped, Condition, Denoiser, Denoises, DynamicThreshold, HalfPrecision, describe
from ornstein.files import InputError
from ornstein.grid import log_snr
from ornstein.guidance import ClassifierFree
from ornstein.hardware import half_precision
from ornstein.likelihood import BitsPerDim, Latents, LogProb, bits_per_dim, decode, encode, log_prob
from ornstein.losses import Bound, DenoisingLoss, Discretised, MatchingLoss, bound
from ornstein.noise import Noise
from ornstein.samplers import Adaptive, Draws, Hook, LangevinCorrector, Plan, Solver, default_plan, sample, sample_adaptive

CHUNK, CHUNK_OF_ROWS = 64, 4096
"""Samples, or rows of a table, drawn at a time unless told otherwise: bounds memory, changes nothing else."""

CondInput = Mapping[str, Tensor | Sequence[int] | Sequence[str] | int | str | float] | None


@dataclass(eq=False)
class System:
    """One trained or trainable model: `loss` is all the trainer calls, `sample` all that users do.

    Batches hold "x" (B, *) in the data's own range, and "label" (B,) where the data have labels; samples come back in the
    data's own range too. `condition` names the condition the network takes ("label") or None; with probability
    `condition_dropout` a datum is trained without it, which classifier-free guidance needs. `flip` mirrors half of the
    training images. `bounds`, `threshold` and `precision` change predictions while sampling, and
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
            mirrored = noise.uniform((n,), stream="flip", step=step, first=first) < 0.5
            x0 = torch.where(mirrored.to(x0.device).reshape(-1, *[1] * (x0.ndim - 1)), x0.flip(-1), x0)
        cond: dict[str, Tensor] | None = None
        if self.condition is not None:
            dropped = noise.uniform((n,), stream="condition", step=step, first=first) < self.condition_dropout
            cond = {self.condition: batch[self.condition], "null": dropped.to(x0.device)}
        return self.loss_function(self.denoiser, x0, noise, step=step, first=first, total=total, cond=cond)

    def sample(
        self,
        n: int,
        *,
        cond: CondInput = None,
        guidance: float = 1.0,
        sampler: Plan | Adaptive | int | None = None,
        noise: Noise,
        first: int = 0,
        batch_size: int | None = None,
        after: Hook | None = None,
        progress: bool = False,
    ) -> Tensor:
        """n samples (n, *) in the data's own range.

        `cond` is one value for all or one per sample, {"label": 3} or {"label": [0, 1, 2]}, by number or by class name;
        None draws without condition; `guidance` is the scale of classifier-free guidance. `sampler` is a plan, a number of
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
        guidance: float = 1.0,
        sampler: Plan | Adaptive | int | None = None,
        noise: Noise,
        first: int = 0,
        batch_size: int | None = None,
        after: Hook | None = None,
        progress: bool = False,
    ) -> Draws:
        """`sample`, with the network calls that each sample took: `.x0`, `.calls` (n,); a guided call evaluates twice.

        A solver that chooses its steps runs the network in full precision, whatever the recipe says.
        """
        chosen = self.plan if sampler is None else sampler
        if chosen is None or isinstance(chosen, int):
            count = 50 if chosen is None else chosen
            chosen = self.plan_for(count, guidance=guidance) or default_plan(self.denoiser.process, count)
        if guidance != 1 and not cond:
            raise InputError(f"guidance={guidance:g} needs a condition to guide to; give cond, or leave guidance out")
        denoiser = self.shaped_denoiser(full_precision=not isinstance(chosen, Plan), guidance=guidance)
        shape = (n, *self.contract.shape)
        conditions, size = self.conditions(cond, n), self.chunk if batch_size is None else batch_size
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

    def plan_for(self, calls: int, *, guidance: float = 1.0) -> Plan | None:
        """The plan calibrated for so many calls of these weights under this guidance, if there is one."""
        if not self.calibrated:
            return None
        mine = describe(self.shaped_denoiser(guidance=guidance))
        for plan in self.calibrated:
            facts = plan.calibration
            if facts is not None and plan.calls == calls and facts.measure == "flow" and facts.denoiser == mine:
                return plan
        return None

    def shaped_denoiser(self, *, full_precision: bool = False, guidance: float = 1.0) -> Denoises:
        """The denoiser with the precision, clipping or thresholding that the recipe asked for, and guidance.

        `full_precision` leaves out the first: the rounding of bfloat16 is an error that no solver's tolerance can meet.
        """
        if not math.isfinite(guidance):
            raise InputError(f"guidance={guidance} must be a finite number; 1 is the conditional model")
        if guidance != 1 and self.condition_dropout == 0:
            raise InputError(f"guidance={guidance:g} needs a model trained with condition_dropout above 0, which this is not")
        half = half_precision(self.precision, self.device)
        denoiser: Denoises = HalfPrecision(self.denoiser) if half and not full_precision else self.denoiser
        if guidance != 1:
            denoiser = ClassifierFree(denoiser, guidance)
        if self.bounds is not None:
            denoiser = Clipped(denoiser, *self.bounds)
        if self.threshold is not None:
            bound = max(abs(limit) for limit in self.contract.bounds or (1.0,))
            denoiser = DynamicThreshold(denoiser, bound, self.threshold)
        return denoiser

    def conditions(self, cond: CondInput, n: int) -> dict[str, Tensor] | None:
        """`cond` as tensors with one row per sample; InputError for a condition or class the model does not know."""
        if not cond:
            return None
        if self.condition is None:
            raise InputError(f"cond={sorted(cond)} was given, but this model was trained without a condition; leave it out")
        unknown = sorted(set(cond) - {self.condition})
        if unknown:
            raise InputError(f"cond has {unknown[0]!r}, but this model takes only {self.condition!r}")
        value = cond[self.condition]
        values = [value] * n if isinstance(value, int | str | float) else list(value)
        if len(values) != n:
            raise InputError(f"cond[{self.condition!r}] has {len(values)} values for n={n} samples; give one, or one per sample")
        return {self.condition: torch.tensor([self._label(v) for v in values], dtype=torch.long)}

    def _label(self, value: object) -> int:
        classes = self.contract.classes or ()
        if isinstance(value, str) and value in classes:
            return classes.index(value)
        try:
            index = int(value)  # type: ignore[call-overload]
        except (TypeError, ValueError):
            index = -1
        if not 0 <= index < len(classes):
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
