"""What tests of adaptive samplers share: oracles and the ends of their flows, solvers, denoisers that count or choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
from sampler_cases import PROCESSES, SILENT, correlated, level, mixture
from torch import Tensor

from ornstein.denoiser import Condition, Denoises, Prediction
from ornstein.noise import Noise
from ornstein.process import VE, GaussianProcess
from ornstein.process.gaussian import Time
from ornstein.samplers import RK45, Adaptive, AdaptiveDPMSolver, FixedSteps, GottaGoFast, sample_adaptive
from ornstein.testing import Oracle

ORACLES: dict[str, Callable[[GaussianProcess], Oracle]] = {"mixture": mixture, "correlated": correlated}
SOLVERS: dict[str, Adaptive] = {
    "rk45": RK45(1e-4),
    "rk45 to an end": RK45(1e-3, end=0.1),
    "gotta_go_fast": GottaGoFast(0.5, first_step=0.3),
    "gotta_go_fast without bridge": GottaGoFast(0.5, first_step=0.3, bridge=False),
    "dpm_solver_12": AdaptiveDPMSolver(2, first_step=1.5),
    "dpm_solver_23": AdaptiveDPMSolver(first_step=1.5),
    "fixed_steps": FixedSteps(17),
}


@dataclass
class Counting:
    """A denoiser that counts the rows it sees and keeps the times of its first one."""

    denoiser: Denoises
    rows: int = 0
    times: list[float] = field(default_factory=list)

    @property
    def process(self) -> GaussianProcess:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        self.rows += len(x_t)
        self.times.append(float(torch.as_tensor(t).reshape(-1)[0]))
        return self.denoiser(x_t, t, cond)


@dataclass(frozen=True)
class Either:
    """One oracle for the samples with cond["which"] 0, another for those with 1."""

    both: tuple[Oracle, Oracle]

    @property
    def process(self) -> GaussianProcess:
        return self.both[0].process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        assert cond is not None
        assert cond["which"].shape == x_t.shape[:1]
        x0 = torch.where(cond["which"][:, None] == 1, self.both[1](x_t, t).x0, self.both[0](x_t, t).x0)
        return Prediction.from_x0(x_t, *self.process.moments(t), x0)


@cache
def truth(kind: str, name: str) -> tuple[Oracle, Tensor, Tensor]:
    """An oracle, x_T, and where the flow takes it by t_min; without signal at 1, by a wide VE of the same sigma/alpha."""
    p = PROCESSES[name]
    o = ORACLES[kind](p)
    x = p.prior((24, 2 if kind == "mixture" else 3), Noise(0), dtype=torch.float64)
    if name not in SILENT:
        return o, x, o.flow(x, 1.0, p.t_min)
    alpha, sigma = level(p, p.t_min)
    return o, x, alpha * ORACLES[kind](VE(sigma / alpha, 1e8)).flow(1e8 * x / p.prior_std, 1.0, 0.0)


def error(kind: str, name: str, solver: Adaptive) -> float:
    """Root mean square at t_min."""
    o, x, exact = truth(kind, name)
    found = sample_adaptive(o, solver, start=x, noise=Noise(0)).x0
    return float((found - exact).square().mean().sqrt())
