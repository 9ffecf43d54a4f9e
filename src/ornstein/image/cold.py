"""Cold diffusion (row E3): a network learns to undo a degradation of any kind, and undoes it step by step.

| paper (arXiv 2208.09392) | here |
|---|---|
| section 3, degradation D(x0, s) | `process.cold.Degradation` |
| restoration R(x_s, s); eq. 1, the loss with one norm | `Restorer`; `ColdSystem.loss` |
| algorithm 1, algorithm 2 | `RULES["naive"]`, `RULES["improved"]`, run by `restore` |
| "direct" of its tables, R(x_T, T) | `restoration("direct", …)` |
| section 5, generation from a Gaussian mixture of x_T, broken symmetry | `EndState`, `ColdSystem.draw` |

Algorithm 2 forgives the restorer: for D(x0, s) = x0 + s·e it returns x0 whatever R says, and for Gaussian noise it is DDIM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ornstein.assemble import OWN, called, seeded
from ornstein.config import LossConfig, Recipe, SamplerConfig
from ornstein.contract import Contract
from ornstein.files import InputError
from ornstein.hardware import has_double
from ornstein.image.ddpm import unet
from ornstein.image.end_state import EndState
from ornstein.losses import Times
from ornstein.noise import Noise
from ornstein.process import Process
from ornstein.process.cold import COLD, Degradation, Noising
from ornstein.progress import track
from ornstein.samplers import Adaptive, Draws, Hook, Plan
from ornstein.system import CHUNK, CondInput

NORMS: dict[str, Callable[[Tensor], Tensor]] = {"l1": torch.abs, "l2": torch.square}
"""The loss per number of a datum, of R(x_s, s) - x0; the paper's tables are of l1."""
PREDICTS = ("x0", "residual")
"""What the network says: the clean datum itself, or what `Degradation.undo` lacks of it."""
SAMPLERS = ("improved", "naive", "direct")

Restores = Callable[[Tensor, Tensor], Tensor]
"""R(x_s, s) -> x0 for x_s (B, *) and severities s (B,) int64."""
Degrade = Callable[[int], Tensor]
"""s -> D(x0, s, eps) of the datum that the restorer sees."""

RULES: dict[str, Callable[[Tensor, int, int, Degrade], Tensor]] = {
    "naive": lambda x, s, r, degrade: degrade(r),
    "improved": lambda x, s, r, degrade: x - degrade(s) + degrade(r),
}
"""The state at severity r < s from the state x at s: algorithms 1 and 2."""


@dataclass(frozen=True)
class Restoration:
    """A cold sampler: one of `RULES`, and the severities it visits, from where it starts down to 0."""

    rule: str
    levels: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule={self.rule!r} is not one of {', '.join(RULES)}")
        if self.levels[-1:] != (0,) or any(a <= b for a, b in zip(self.levels, self.levels[1:], strict=False)):
            raise ValueError(f"levels={self.levels} must fall strictly, down to 0")

    @property
    def calls(self) -> int:
        """Network evaluations per datum."""
        return len(self.levels) - 1

    @property
    def name(self) -> str:
        """In words."""
        return "direct" if self.calls == 1 and self.rule == "naive" else f"{self.rule}, {self.calls} steps"


def restoration(name: str, start: int, calls: int | None = None) -> Restoration:
    """A sampler by name, one of `SAMPLERS`, from severity `start` down in `calls` even steps; all, unless fewer are asked for.

    "direct" is one step of algorithm 1: R(x_s, s) itself.
    """
    if name not in SAMPLERS:
        raise InputError(f"sampler={name!r} is not one of {', '.join(SAMPLERS)}, the samplers of cold diffusion")
    if start < 1 or (calls is not None and calls < 1):
        raise InputError(f"level={start} and calls={calls} must be at least 1")
    steps = 1 if name == "direct" else min(calls or start, start)
    levels = tuple(round(start * (steps - k) / steps) for k in range(steps + 1))
    return Restoration("naive" if name == "direct" else name, levels)


def restore(
    restorer: Restores, process: Degradation, x: Tensor, sampler: Restoration, eps: Tensor | None = None
) -> Iterator[tuple[int, Tensor]]:
    """The states (s, x_s) on the way from x (B, *), degraded with `eps` at the sampler's first severity, to (0, x0).

    Both degradations of a step take the same eps; Gaussian noise takes what x_s and its restoration imply (`infer`).
    """
    yield sampler.levels[0], x
    for s, r in zip(sampler.levels, sampler.levels[1:], strict=False):
        clean = restorer(x, torch.full((len(x),), s, dtype=torch.long))
        state = process.infer(x, clean, s, eps)
        x = RULES[sampler.rule](x, s, r, lambda level: process.degrade(clean, level, state))  # noqa: B023 called at once
        yield r, x


class Restorer(nn.Module):
    """R(x_s, s) -> x0 by a network net(x, c_noise, cond) with c_noise = s, and the law of the end states it starts from.

    The network sees (B, 2C, H, W): x_s, and what x_s says by itself, `Degradation.undo` with the noise of the end states. After
    twenty blurs a digit's shape is a ripple of a millionth of its grey, which the second shows and the first does not.
    `predicts` "x0": the network's output is x0; "residual": what the second lacks of x0, so that an untrained one returns it.
    """

    def __init__(self, net: nn.Module, start: EndState, process: Degradation, predicts: str = "residual") -> None:
        super().__init__()
        if predicts not in PREDICTS:
            raise ValueError(f"predicts={predicts!r} is not one of {', '.join(PREDICTS)}, what a cold network says")
        self.net, self.start, self.process, self.predicts = net, start, process, predicts

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        plain = self.process.undo(x, s, self.start.noise_std)
        seen = torch.cat([x, plain], 1).to(next(self.net.parameters()).dtype)
        said = self.net(seen, s.to(seen), None).to(x.dtype)
        return plain + said if self.predicts == "residual" else said


@dataclass(eq=False)
class ColdSystem:
    """A restorer, the degradation it undoes, and the contract of its data; batches hold "x" (B, C, H, W) in their own range.

    It has no denoiser: `draw` starts from learned end states, `restore` from a degraded image. `sampler` is its default.
    """

    contract: Contract
    process: Degradation
    net: Restorer
    sampler: Restoration
    norm: str = "l1"
    times: Times = field(default_factory=Times)
    condition: ClassVar[None] = None
    plan: ClassVar[None] = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    def loss(
        self, batch: Mapping[str, Tensor], noise: Noise, *, step: int = 0, first: int = 0, total: int | None = None
    ) -> Tensor:
        """|R(D(x0, s, eps), s) - x0| (l1) or its square (l2), averaged over each datum, (B,), with s uniform in 1 … T."""
        x0 = self.contract.encode(batch["x"])
        u = self.times.uniforms(len(x0), noise, step=step, first=first, total=total)
        s = 1 + (u * self.process.steps).long().clamp(max=self.process.steps - 1)
        x_s = self.process.degrade(x0, s, self.process.state(x0.shape, noise, step=step, first=first))
        return NORMS[self.norm](self.net(x_s, s) - x0).flatten(1).mean(1)

    def begin(self, x: Tensor, noise: Noise) -> None:
        """Learn the law of the end states from training data x (n, *) in their own range; the trainer calls this first."""
        if isinstance(self.process, Noising):
            return  # whose end law needs no data
        x0 = self.contract.encode(x)
        parts = []
        for at in range(0, len(x0), CHUNK):
            part = x0[at : at + CHUNK]
            parts.append(self.process.degrade(part, self.process.steps, self.process.state(part.shape, noise, first=at)))
        self.net.start.fit(torch.cat(parts), noise.seed)

    def degrade(self, x: Tensor, noise: Noise, *, level: int | None = None, first: int = 0) -> tuple[Tensor, Tensor | None]:
        """(D(x, level), the random states eps or None) of data x (n, *) in their own range; the last level unless given."""
        x0 = self.contract.encode(x)
        eps = self.process.state(x0.shape, noise, first=first)
        return self.contract.decode(self.process.degrade(x0, self._level(level), eps)), eps

    def restore(
        self,
        x: Tensor,
        *,
        level: int | None = None,
        sampler: Restoration | str | int | None = None,
        eps: Tensor | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """The restored data (n, *) of data x degraded at `level` (the last unless given), both in the data's own range.

        `sampler` is a name of `SAMPLERS`, a number of calls, or a `Restoration`; `eps` is the random state of the degradation
        that `degrade` gave, needed by all but "direct" where there is one. InputError for what does not fit.
        """
        chosen = self._sampler(sampler, level)
        if not bool(x.isfinite().all()):
            raise InputError(f"x holds {int((~x.isfinite()).sum())} NaN or infinite numbers; give a whole image")
        self._demand_precision(x)
        if self.process.random and eps is None and chosen.calls > 1 and not isinstance(self.process, Noising):
            raise InputError(f"eps is missing: {chosen.name} degrades again as x was; give its random state, or sampler='direct'")
        return self.contract.decode(self._run(self.contract.encode(x), chosen, eps, batch_size, progress))

    def _demand_precision(self, x: Tensor) -> None:
        """InputError for whole grey levels, where their rounding would drown what the inverse makes visible."""
        trusted = self.net.start.noise_std
        rounding = (self.contract.bin_width or 0.0) / math.sqrt(12)
        if self.process.linear and rounding > 3 * trusted and bool((x == x.round()).all()):
            raise InputError(
                f"x holds whole grey levels, rounded by {rounding:.2g} in model units, and this model restores from what is left "
                f"down to noise_std={trusted:g}; give the degraded images as floats (.npy, .npz), or train with "
                f"sampler.options.noise_std={2 * rounding:.1g}"
            )

    def sample(
        self,
        n: int,
        *,
        cond: CondInput = None,
        guidance: float = 1.0,
        sampler: Plan | Adaptive | Restoration | str | int | None = None,
        noise: Noise,
        first: int = 0,
        batch_size: int | None = None,
        after: Hook | None = None,
        progress: bool = False,
    ) -> Tensor:
        """n samples (n, *) in the data's own range; see `draw`."""
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
        sampler: Plan | Adaptive | Restoration | str | int | None = None,
        noise: Noise,
        first: int = 0,
        batch_size: int | None = None,
        after: Hook | None = None,
        progress: bool = False,
    ) -> Draws:
        """Samples `.x0` (n, *) in the data's own range, restored from drawn end states, and `.calls` (n,).

        `sampler` is as in `restore`; InputError for a condition, guidance, a hook, or a sampler of Gaussian diffusion.
        """
        asked = {"cond": cond or None, "guidance": None if guidance == 1 else guidance, "after": after}
        if given := [name for name, value in asked.items() if value is not None]:
            raise InputError(f"{given[0]} does not go with a cold model; leave it out")
        if not isinstance(sampler, Restoration | str | int | None):
            raise InputError(f"sampler {sampler.name} is not for a cold model; take one of {', '.join(SAMPLERS)}")
        chosen = self._sampler(sampler)
        shape = (n, *self.contract.shape)
        law = self.process.prior(shape, noise, first=first) if isinstance(self.process, Noising) else None
        start = self.net.start.sample(n, noise, first=first) if law is None else law
        x0 = self._run(start, chosen, self.process.state(shape, noise, first=first), batch_size, progress)
        return Draws(self.contract.decode(x0), torch.full((n,), chosen.calls))

    def sampler_for(
        self, asked: Restoration | str | None = None, *, level: int | None = None, calls: int | None = None
    ) -> Restoration:
        """The sampler asked for, by name or as it is, from `level` (the last unless given) in `calls` steps at most.

        The default goes in its own number of steps, another in all of them, unless `calls` is given.
        """
        start = self._level(level)
        if isinstance(asked, Restoration):
            if asked.levels[0] != start:
                raise InputError(f"the sampler starts at level {asked.levels[0]}, the data are at {start}; make them agree")
            return asked
        if asked is None:
            calls = self.sampler.calls if calls is None else calls
        default = "direct" if self.sampler.name == "direct" else self.sampler.rule
        return restoration(default if asked is None else asked, start, calls)

    def _sampler(self, asked: Restoration | str | int | None, level: int | None = None) -> Restoration:
        if isinstance(asked, int):
            return self.sampler_for(level=level, calls=asked)
        return self.sampler_for(asked, level=level)

    def _level(self, level: int | None) -> int:
        if level is None:
            return self.process.steps
        if not 1 <= level <= self.process.steps:
            raise InputError(f"level={level} must be from 1 to {self.process.steps}, the severities that the model knows")
        return level

    def _run(self, x: Tensor, sampler: Restoration, eps: Tensor | None, batch_size: int | None, progress: bool) -> Tensor:
        size = CHUNK if batch_size is None else batch_size
        if size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1")
        parts, training = [], self.net.training
        # the inverse of a blur enlarges what each step rounds: in float32 grain covers the digits
        precise = torch.float64 if has_double(self.device) else torch.float32
        total = math.ceil(len(x) / size) * sampler.calls
        ticks = iter(track(range(total), total, sampler.name, enabled=progress))
        try:
            self.net.eval()
            with torch.no_grad():
                for at in range(0, len(x), size):
                    part = x[at : at + size].to(self.device, precise)
                    own = None if eps is None else eps[at : at + size].to(part)
                    for r, state in restore(self.net, self.process, part, sampler, own):
                        part = state
                        if r < sampler.levels[0]:
                            next(ticks, None)
                    parts.append(part.float())
        finally:
            self.net.train(training)
        for _ in ticks:  # let the bar close
            pass
        return torch.cat(parts) if parts else x


def make_degradation(recipe: Recipe) -> Degradation:
    """The degradation of a recipe, from `COLD`; InputError for one that only its author can give."""
    name = recipe.process.name
    if name == OWN:
        raise InputError("the model has a degradation of its author's own, which no file holds; load it in Python with process=…")
    if name not in COLD:
        raise InputError(f"process.name={name!r} is not one of {', '.join(COLD)}, the degradations of cold diffusion")
    return called(COLD[name], dict(recipe.process.options), f"process.options of {name}")


def initialise(recipe: Recipe, contract: Contract, process: Process | None = None) -> ColdSystem:
    """The system that a recipe describes, freshly initialised: `process` names a degradation, `loss.objective` is l1 or l2,
    `sampler` one of `SAMPLERS` whose options are those of `EndState`. InputError for a recipe that asks for what is not here."""
    if process is not None and not isinstance(process, Degradation):
        raise InputError(f"process={type(process).__name__} is no degradation; give one of ornstein.process.cold")
    chosen = process if process is not None else make_degradation(recipe)
    expected = {
        "condition": None,
        "grid": None,
        "learned_variance": False,
        "net.level_free": False,
        "data.flip": False,
        "sigma_data": None,
    }
    for name, value in expected.items():
        found: object = recipe
        for part in name.split("."):
            found = getattr(found, part)
        if found != value:
            raise InputError(f"{name}={found!r} is not for cold diffusion; remove it")
    loss, sampler = recipe.loss, recipe.sampler
    if loss.objective not in NORMS:
        raise InputError(f"loss.objective={loss.objective!r} is not one of {', '.join(NORMS)}, the losses of cold diffusion")
    if loss != LossConfig(objective=loss.objective, low_discrepancy=loss.low_discrepancy):
        raise InputError("loss says more than objective and low_discrepancy, which is all that cold diffusion knows; remove it")
    if sampler != SamplerConfig(name=sampler.name, calls=sampler.calls, options=sampler.options):
        raise InputError("sampler says more than name, calls and options, which is all that cold diffusion knows; remove it")
    shape = contract.shape
    start = called(EndState, {**cast("dict[str, Any]", sampler.options), "shape": shape}, "sampler.options")
    with torch.no_grad():
        refusal: dict[str, Any] = {"x0": torch.zeros(1, *shape), "s": chosen.steps, "eps": torch.zeros(1, *shape)}
        called(chosen.degrade, refusal, "process.options")
    net = seeded(recipe, lambda: unet(recipe, contract, shape[0], {"in_channels": 2 * shape[0]}))
    restorer = called(Restorer, {"net": net, "start": start, "process": chosen, "predicts": recipe.predicts}, "predicts")
    chosen_sampler = restoration(sampler.name, chosen.steps, sampler.calls)
    return ColdSystem(contract, chosen, restorer, chosen_sampler, loss.objective, Times(low_discrepancy=loss.low_discrepancy))
