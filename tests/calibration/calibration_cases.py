"""What the calibration tests share: processes, oracles, plans of every sampler, and a table run by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ornstein.calibration import Reference, Table, fine_flow
from ornstein.denoiser import Condition, Denoises, Prediction
from ornstein.noise import Noise
from ornstein.process import EDM, VE, VP, Cosine, GaussianProcess, Rectified, SubVP, chain
from ornstein.process.gaussian import Time
from ornstein.samplers import ALL, Plan
from ornstein.testing import GaussianDenoiser, MixtureDenoiser

F64 = torch.float64
PROCESSES: dict[str, GaussianProcess] = {
    "vp": VP(),
    "cosine": Cosine(),
    "ve": VE(),
    "sub_vp": SubVP(),
    "edm": EDM(),
    "rectified": Rectified(),
    "chain": chain("linear", 100),
    "zero_linear": chain("linear", 100, zero_terminal=True),
}

# (sampler, calls, options); no row draws noise
DETERMINISTIC: list[tuple[str, int, dict[str, Any]]] = [
    ("ddim", 5, {}),
    ("ddim", 1, {}),
    ("probability_flow_euler", 5, {}),
    ("heun", 7, {}),
    ("midpoint", 7, {}),
    ("runge_kutta", 7, {"method": "kutta3"}),
    ("runge_kutta", 9, {"method": "rk4", "variable": "ratio"}),
    ("lms", 6, {"order": 4}),
    ("pndm", 14, {}),
    ("ipndm", 6, {"order": 4}),
    ("deis", 6, {"degree": 3}),
    ("deis", 6, {"degree": 2, "variable": "rho"}),
    ("deis_rho_rk", 7, {"method": "heun"}),
    ("dpm_solver", 7, {"order": 3}),
    ("dpm_solver_multistep", 6, {"order": 3}),
    ("dpm_solver_pp", 6, {"order": 3}),
    ("dpm_solver_pp_single", 7, {"order": 3}),
    ("unipc", 6, {"order": 3}),
    ("sa_solver", 6, {"predictor": 3, "corrector": 3, "tau": 0.0}),
    ("adams", 6, {"order": 3}),
    ("adams", 6, {"view": "x0", "order": 2}),
]
# noise comes after the call, and nothing but x0 is remembered across it
STOCHASTIC: list[tuple[str, int, dict[str, Any]]] = [
    ("ddim", 5, {"eta": 1.0}),
    ("ddim", 5, {"eta": 0.4}),
    ("ancestral", 5, {}),
    ("ancestral", 4, {"variance": "transition"}),
    ("euler_maruyama", 5, {}),
    ("reverse_diffusion", 5, {}),
    ("dpm_solver_pp_sde", 5, {"order": 2}),
    ("sa_solver", 5, {"predictor": 2, "corrector": 0, "tau": 1.0}),
    ("annealed_langevin", 5, {"steps": 1}),
]


def named(value: object) -> str | None:
    """The id of an entry of the two lists."""
    if not isinstance(value, tuple):
        return None
    sampler, calls, options = value
    return f"{sampler}-{calls}" + "".join(f"-{name}={option}" for name, option in options.items())


def made(case: tuple[str, int, dict[str, Any]], process: GaussianProcess) -> Plan:
    sampler, calls, options = case
    return ALL[sampler](process, calls, **options)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def normal(*shape: int, stream: str = "test", seed: int = 1) -> Tensor:
    return Noise(seed).normal(shape, stream=stream, dtype=F64)


def mixture(process: GaussianProcess, dimensions: int = 2, *, shift: float = 0.0) -> MixtureDenoiser:
    means = normal(3, dimensions, stream="means") + shift
    return MixtureDenoiser(means, f64(0.15, 0.4, 0.25), f64(0.25, 0.25, 0.5), process)


def correlated(process: GaussianProcess) -> GaussianDenoiser:
    return GaussianDenoiser(f64(0.5, -0.2), f64(1.2, 0.5, 0.5, 0.4).reshape(2, 2), process)


def coarse(
    denoiser: Denoises, *, seed: int = 0, trajectories: int = 32, shape: tuple[int, ...] = (2,), **options: Any
) -> Reference:
    """A float64 reference whose fine flow is cheap."""
    options = {"fine_calls": 64, "dtype": F64, **options}
    return fine_flow(denoiser, shape=shape, noise=Noise(seed), trajectories=trajectories, **options)


def by_table(
    denoiser: Denoises, table: Table, start: Tensor, noise: Noise | None = None, *, first: int = 0, cond: Condition = None
) -> list[Tensor]:
    """y_0 … y_n of y_{k+1} = w·(y_k, D_k, D_{k-1}, …) + c·z, written as it stands in the module's head."""
    y, seen = start, [start]
    answers: list[Tensor] = []
    for k, (t, weights, c) in enumerate(zip(table.times.tolist(), table.weights, table.noises.tolist(), strict=True)):
        answers.insert(0, denoiser(y, t, cond).x0)
        y = weights[0] * y + sum(w * answer for w, answer in zip(weights[1:], answers, strict=False))
        if c:
            assert noise is not None
            y = y + c * noise.normal(y.shape, stream="step", step=k, first=first, dtype=y.dtype)
        seen.append(y)
    return seen


@dataclass(frozen=True)
class Constant:
    """A denoiser that answers x0 = value whatever it sees."""

    process: GaussianProcess
    value: Tensor

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        alpha, sigma = self.process.moments(t)
        return Prediction.from_x0(x_t, alpha, sigma, self.value.expand_as(x_t))


@dataclass
class Watched:
    """A denoiser that keeps the (rows, time) of every call, and may change what it answers."""

    denoiser: Denoises
    change: Callable[[Prediction], Prediction] = lambda prediction: prediction
    asked: list[tuple[int, Any]] = field(default_factory=list)

    @property
    def process(self) -> GaussianProcess:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        self.asked.append((len(x_t), t))
        return self.change(self.denoiser(x_t, t, cond))
