"""DPM 2015 as a system: what training, sampling and evaluation ask of a model, around `DPM` and its data contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ornstein.assemble import called, seeded
from ornstein.config import LossConfig, Recipe, SamplerConfig
from ornstein.contract import Contract
from ornstein.files import InputError
from ornstein.guidance.line import Guidance
from ornstein.noise import Noise
from ornstein.process import GaussianProcess
from ornstein.samplers import Adaptive, Draws, Hook, Plan
from ornstein.system import CHUNK_OF_ROWS, CondInput
from ornstein.vector.dpm2015 import DPM, SCHEDULES, Bernoulli, dpm


@dataclass(eq=False)
class DPMSystem:
    """A chain with a learned reverse (`DPM`) and the contract of its data; batches hold "x" (B, D) in the data's own units.

    It has no denoiser: its noise levels are the chain's steps, and every sample takes all of them.
    """

    contract: Contract
    net: DPM
    condition: ClassVar[None] = None
    plan: ClassVar[None] = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    def encode(self, x: Tensor) -> Tensor:
        """Data (n, D) as the chain sees them: standardised, or 0 and 1."""
        encoded = self.contract.encode(x)
        return (encoded + 1) / 2 if isinstance(self.net.kernel, Bernoulli) else encoded

    def loss(
        self, batch: Mapping[str, Tensor], noise: Noise, *, step: int = 0, first: int = 0, total: int | None = None
    ) -> Tensor:
        """-K in bits of every datum of a batch, (B,), estimated from one step of the chain each."""
        return self.net.loss(self.encode(batch["x"]), noise, step=step, first=first, total=total)

    def bound(self, x: Tensor, noise: Noise, *, first: int = 0, progress: bool = False) -> Tensor:
        """K ≤ log2 p in bits of data (n, D), (n,) float64: a density of the encoded data, or a probability of binary ones."""
        return self.net.bound(self.encode(x).to(self.device), noise, first=first, progress=progress)

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
        """n samples (n, D) in the data's own units; see `draw`."""
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
        """Samples `.x0` (n, D) in the data's own units, and `.calls` (n,), T - 1 each.

        The chain is its own sampler: InputError for a condition, guidance, another sampler or a hook.
        """
        asked = {"cond": cond or None, "guidance": None if guidance == 1 else guidance, "sampler": sampler, "after": after}
        if given := [name for name, value in asked.items() if value is not None]:
            raise InputError(f"{given[0]} does not go with a dpm2015 model, which is sampled by its own chain; leave it out")
        size = CHUNK_OF_ROWS if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        parts = [
            self.net.sample(min(size, n - at), noise, first=first + at, progress=progress) for at in range(0, max(n, 1), size)
        ]
        x = torch.cat(parts)
        x0 = self.contract.decode(2 * x - 1 if isinstance(self.net.kernel, Bernoulli) else x)
        return Draws(x0, torch.full((n,), self.net.steps - 1))


def initialise(recipe: Recipe, contract: Contract, process: GaussianProcess | None = None) -> DPMSystem:
    """The system of a recipe: `process` names the schedule of betas, `predicts: mean` with or without `learned_variance`.

    Binary data get the Bernoulli kernel, others the Gaussian one. InputError for a recipe that asks for what is not here.
    """
    if process is not None:
        raise InputError("a dpm2015 model has a chain of its own steps; it takes no other process")
    if len(contract.shape) != 1:
        raise InputError(f"data of shape {contract.shape} are not rows of a table; use another system")
    if recipe.process.name not in SCHEDULES:
        raise InputError(f"process.name={recipe.process.name!r} is not one of {', '.join(SCHEDULES)}, the schedules of dpm2015")
    for name, expected in (("net.name", "mlp"), ("predicts", "mean"), ("net.level_free", False), ("condition", None)):
        found: object = recipe
        for part in name.split("."):
            found = getattr(found, part)
        if found != expected:
            raise InputError(f"{name}={found!r} is not for dpm2015; set it to {expected!r}".replace("None", "null"))
    for name, default in (("loss", LossConfig()), ("sampler", SamplerConfig())):
        if getattr(recipe, name) != default:
            raise InputError(f"{name} says nothing to dpm2015, whose loss is its bound and whose sampler its chain; remove it")
    binary = contract.levels == 2
    kernel = "bernoulli" if binary else "gaussian" if recipe.learned_variance else "gaussian_fixed"
    options = {**recipe.net.options, **recipe.process.options}
    given = {"features": contract.shape[0], "kernel": kernel, "schedule": recipe.process.name}
    return DPMSystem(contract, seeded(recipe, lambda: called(dpm, {**given, **options}, "process.options or net.options")))
