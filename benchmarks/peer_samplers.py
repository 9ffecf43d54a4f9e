"""The peers of benchmarks/solvers.py: diffusers' schedulers and azula's samplers, each a function of a probability flow.

In y = x/alpha and rho = sigma/alpha the flow is dy/d rho = (y - D(y, rho))/rho whatever the process, so a scheduler written
for a variance-preserving chain can drive any denoiser: its state is y/sqrt(1 + rho²), and D is asked at the scheduler's own
noise level, not at the whole timestep that it rounds to. Nothing here knows of ornstein.

What was settled in the peers' favour: levels reach diffusers in float64 instead of as a float32 product of betas; its
schedulers begin at their first level even where two timesteps round to the same number; azula, which knows no last
denoising call, gets one after its last step (to the lowest level), counted like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from azula import denoise as azula_denoise
from azula import noise as azula_noise
from azula import sample as azula_sample
from diffusers import schedulers
from torch import Tensor


@dataclass(frozen=True)
class Flow:
    """A denoiser D(y, rho), y (samples, *) in float64, and its chain's levels rho, rising."""

    denoise: Callable[[Tensor, float], Tensor]
    levels: tuple[float, ...]


Solver = Callable[[Flow, Tensor, int], Tensor | None]
"""(flow, y at the highest level, calls) -> data, or None where the method does not exist for so few calls."""


@dataclass(frozen=True)
class Frame:
    """How a kind of scheduler sees the flow: its state is alpha(rho)·y, and it is told `answer`(y, D, rho)."""

    alpha: Callable[[float], float]
    answer: Callable[[Tensor, Tensor, float], Tensor]


SIGMA_DATA = 0.5


def _eps(y: Tensor, data: Tensor, rho: float) -> Tensor:
    return (y - data) / rho


def _edm_output(y: Tensor, data: Tensor, rho: float) -> Tensor:
    """What an EDM network would have put out for this D."""
    total = rho**2 + SIGMA_DATA**2
    return (data - y * SIGMA_DATA**2 / total) * math.sqrt(total) / (rho * SIGMA_DATA)


PRESERVING = Frame(lambda rho: 1 / math.hypot(1, rho), _eps)
EXPLODING = Frame(lambda rho: 1.0, _eps)
EDM = Frame(lambda rho: 1.0, _edm_output)

Options = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """A scheduler of diffusers with the options and spacings to try; `fixed` options are not part of a name."""

    label: str
    scheduler: type
    frame: Frame
    options: tuple[Options, ...]
    spacings: tuple[Options, ...]
    fixed: Options = field(default_factory=dict)
    least: int = 1


DEFAULT: Options = {}
LINSPACE, TRAILING, LEADING = ({"timestep_spacing": name} for name in ("linspace", "trailing", "leading"))
KARRAS, EXPONENTIAL, LU = ({f"use_{name}": True} for name in ("karras_sigmas", "exponential_sigmas", "lu_lambdas"))
EPS_SOLVER: Options = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}

FAMILIES: tuple[Family, ...] = (
    Family("DDIM", schedulers.DDIMScheduler, PRESERVING, ({},), (LINSPACE, TRAILING, LEADING), {"clip_sample": False}),
    Family("PLMS", schedulers.PNDMScheduler, PRESERVING, ({},), (LINSPACE, TRAILING), {"skip_prk_steps": True}),
    Family("PNDM", schedulers.PNDMScheduler, PRESERVING, ({},), (TRAILING,), {"skip_prk_steps": False}, least=13),
    Family(
        "DPM M",
        schedulers.DPMSolverMultistepScheduler,
        PRESERVING,
        tuple({"solver_order": order} for order in (2, 3)),
        (DEFAULT, TRAILING, KARRAS, EXPONENTIAL, LU),
    ),
    Family(
        "DPM M",
        schedulers.DPMSolverMultistepScheduler,
        PRESERVING,
        ({"solver_order": 2, **EPS_SOLVER},),
        (DEFAULT, KARRAS, EXPONENTIAL, LU),
    ),
    Family("DPM M", schedulers.DPMSolverMultistepScheduler, PRESERVING, ({"solver_order": 3, **EPS_SOLVER},), (DEFAULT,)),
    Family(  # at order 3 these grids, whose last step is empty, give numbers that are not finite; this avoids it
        "DPM M",
        schedulers.DPMSolverMultistepScheduler,
        PRESERVING,
        ({"solver_order": 3, **EPS_SOLVER, "euler_at_final": True},),
        (KARRAS, EXPONENTIAL, LU),
    ),
    Family(
        "DPM S",
        schedulers.DPMSolverSinglestepScheduler,
        PRESERVING,
        tuple({"solver_order": order} for order in (2, 3)),
        (DEFAULT, KARRAS, EXPONENTIAL),
        {"lower_order_final": True},
    ),
    Family(
        "UniPC",
        schedulers.UniPCMultistepScheduler,
        PRESERVING,
        tuple({"solver_order": order, "solver_type": "bh2"} for order in (1, 2, 3)),
        (DEFAULT, TRAILING, KARRAS, EXPONENTIAL),
    ),
    Family(  # bh1 is not finite when the last step goes to sigma = 0, nor where it is empty
        "UniPC",
        schedulers.UniPCMultistepScheduler,
        PRESERVING,
        tuple({"solver_order": order, "solver_type": "bh1", "final_sigmas_type": "sigma_min"} for order in (2, 3)),
        (DEFAULT, TRAILING),
    ),
    Family(
        "DEIS",
        schedulers.DEISMultistepScheduler,
        PRESERVING,
        tuple({"solver_order": order} for order in (2, 3)),
        (DEFAULT, TRAILING, KARRAS, EXPONENTIAL),
    ),
    Family("Euler", schedulers.EulerDiscreteScheduler, EXPLODING, ({},), (DEFAULT, KARRAS, EXPONENTIAL)),
    Family("Heun", schedulers.HeunDiscreteScheduler, EXPLODING, ({},), (KARRAS, EXPONENTIAL)),
    Family("LMS", schedulers.LMSDiscreteScheduler, EXPLODING, ({},), (DEFAULT, KARRAS, EXPONENTIAL)),
    Family("KDPM2", schedulers.KDPM2DiscreteScheduler, EXPLODING, ({},), (KARRAS, EXPONENTIAL)),
    Family(
        "EDM DPM",
        schedulers.EDMDPMSolverMultistepScheduler,
        EDM,
        tuple({"solver_order": order, "sigma_schedule": name} for order, name in product((2, 3), ("karras", "exponential"))),
        (DEFAULT,),
        {"sigma_data": SIGMA_DATA},
    ),
)


def scheduler_solver(family: Family, options: Options) -> Solver:
    """The loop every user of a scheduler writes, in the family's frame."""

    def solve(flow: Flow, start: Tensor, calls: int) -> Tensor | None:
        if calls < family.least:
            return None
        levels, frame = np.array(flow.levels), family.frame
        if frame is EDM:
            scheduler = family.scheduler(sigma_min=levels[0], sigma_max=levels[-1], **options)
        else:
            signal = 1 / (1 + levels**2)
            betas = 1 - signal / np.concatenate([[1.0], signal[:-1]])
            scheduler = family.scheduler(num_train_timesteps=len(levels), trained_betas=betas.tolist(), **options)
            scheduler.alphas_cumprod = torch.from_numpy(signal)
        if not _as_many_as_fit(scheduler, calls):
            return None
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        x = start * frame.alpha(flow.levels[-1])
        for k, t in enumerate(scheduler.timesteps):
            rho = _level(scheduler, k, t)
            y = x / frame.alpha(rho)
            scheduler.scale_model_input(x, t)  # for its bookkeeping: D takes y itself
            x = scheduler.step(frame.answer(y, flow.denoise(y, rho), rho), t, x).prev_sample
        return x

    return solve


def _as_many_as_fit(scheduler: Any, calls: int) -> bool:
    """Set the most steps that cost at most so many calls; false if there are none."""
    for steps in range(calls, 0, -1):
        scheduler.set_timesteps(steps)
        if len(scheduler.timesteps) <= calls:
            return True
    return False


def _level(scheduler: Any, k: int, t: Tensor) -> float:
    """rho at which the scheduler's k-th call is due."""
    if not hasattr(scheduler, "sigmas"):
        signal = float(scheduler.alphas_cumprod[int(t)])
        return math.sqrt((1 - signal) / signal)
    between = hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order
    return float((scheduler.sigmas_interpol if between else scheduler.sigmas)[k])


class Spaced(azula_noise.Schedule):
    """alpha = 1, and sigma as a function of time in [0, 1]: azula's steps are equal in time."""

    def __init__(self, ratio: Callable[[Tensor], Tensor]) -> None:
        self.ratio = ratio

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(1, rho)."""
        return torch.ones_like(t), self.ratio(t)


class FlowDenoiser(azula_denoise.Denoiser):
    """A flow in azula's interface."""

    def __init__(self, flow: Flow, schedule: Spaced) -> None:
        super().__init__()
        self.flow = flow
        self.schedule = schedule

    def forward(self, x_t: Tensor, t: Tensor, **unused: object) -> azula_denoise.DiracPosterior:
        """D as a point mass."""
        return azula_denoise.DiracPosterior(self.flow.denoise(x_t, float(self.schedule(t)[1])))


def _power(flow: Flow, rho: float) -> Callable[[Tensor], Tensor]:
    low, high = flow.levels[0] ** (1 / rho), flow.levels[-1] ** (1 / rho)
    return lambda t: (low + t * (high - low)) ** rho


def _geometric(flow: Flow) -> Callable[[Tensor], Tensor]:
    low, high = math.log(flow.levels[0]), math.log(flow.levels[-1])
    return lambda t: torch.exp(low + t * (high - low))


def _chain(flow: Flow) -> Callable[[Tensor], Tensor]:
    places, logs = np.linspace(0, 1, len(flow.levels)), np.log(flow.levels)
    return lambda t: torch.as_tensor(np.exp(np.interp(t.numpy(), places, logs)))


SCHEDULES: dict[str, Callable[[Flow], Callable[[Tensor], Tensor]]] = {
    "exp": _geometric,
    "karras": lambda flow: _power(flow, 7.0),
    "vp": _chain,
}

AZULA: tuple[tuple[str, Options, int], ...] = (
    ("DDIMSampler", {}, 1),
    ("HeunSampler", {}, 2),
    ("zABSampler", {"order": 3}, 1),
    ("zABSampler", {"order": 4}, 1),
    ("vABSampler", {"order": 2}, 1),
    ("vABSampler", {"order": 3}, 1),
    ("zEABSampler", {"order": 2}, 1),
    ("zEABSampler", {"order": 3}, 1),
    ("xEABSampler", {"order": 2}, 1),
    ("xEABSampler", {"order": 3}, 1),
    ("REABSampler", {"order": 3}, 1),
)
"""Samplers, their options, and their calls per step."""


def azula_solver(name: str, options: Options, per_step: int, schedule: str) -> Solver:
    """Steps from the highest level to the lowest, then D."""

    def solve(flow: Flow, start: Tensor, calls: int) -> Tensor | None:
        steps = (calls - 1) // per_step
        if steps < 1:
            return None
        denoiser = FlowDenoiser(flow, Spaced(SCHEDULES[schedule](flow)))
        sampler = getattr(azula_sample, name)(denoiser, steps=steps, silent=True, dtype=torch.float64, **options)
        return flow.denoise(sampler(start), flow.levels[0])

    return solve


def _named(options: Options) -> str:
    return ",".join(f"{key}={value}" for key, value in options.items())


def _spacing(options: Options) -> str:
    return " ".join(key if value is True else f"{key}={value}" for key, value in options.items()) or "default"


def everyone() -> dict[str, Solver]:
    """All configurations by name, the names as shared/bench/peer_envelope.json writes them."""
    found: dict[str, Solver] = {}
    for family in FAMILIES:
        for options, spacing in product(family.options, family.spacings):
            name = " ".join(part for part in ("diffusers", family.label, _named(options), _spacing(spacing)) if part)
            found[name] = scheduler_solver(family, {**family.fixed, **options, **spacing})
    for (name, options, per_step), schedule in product(AZULA, SCHEDULES):
        found[f"azula {name} {options or ''} {schedule}".replace("  ", " ")] = azula_solver(name, options, per_step, schedule)
    return found
