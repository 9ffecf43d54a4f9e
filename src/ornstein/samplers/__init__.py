"""Samplers: plans (fixed grids as data) and the loop that runs them."""

from __future__ import annotations

from collections.abc import Callable

from ornstein.process import GaussianProcess
from ornstein.samplers.exact import Law, propagate
from ornstein.samplers.loop import Hook, Step, Trajectory, run, sample
from ornstein.samplers.multistep import default_plan, dpm_solver_pp
from ornstein.samplers.onestep import ancestral, ddim, euler_maruyama
from ornstein.samplers.plan import Plan, Row
from ornstein.samplers.singlestep import heun

Sampler = Callable[[GaussianProcess, int], Plan]

ALL: dict[str, Sampler] = {
    "ddim": ddim,
    "ancestral": ancestral,
    "euler_maruyama": euler_maruyama,
    "heun": heun,
    "dpm_solver_pp": dpm_solver_pp,
}
"""Names that recipes and the command line know."""

__all__ = [
    "ALL",
    "Hook",
    "Law",
    "Plan",
    "Row",
    "Sampler",
    "Step",
    "Trajectory",
    "ancestral",
    "ddim",
    "default_plan",
    "dpm_solver_pp",
    "euler_maruyama",
    "heun",
    "propagate",
    "run",
    "sample",
]
