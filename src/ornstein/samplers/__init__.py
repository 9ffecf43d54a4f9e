"""Samplers: plans (fixed grids as data) and the loop that runs them; solvers that choose their steps; a corrector."""

from __future__ import annotations

from collections.abc import Callable

from ornstein.samplers.adaptive import ADAPTIVE, Adaptive, AdaptiveDPMSolver, Draws, GottaGoFast, sample_adaptive
from ornstein.samplers.annealing import COOLING, Annealed, anneal, tilted_wells, tilted_wells_minima
from ornstein.samplers.boltzmann import Chains, Overdamped, Underdamped, sample_boltzmann
from ornstein.samplers.budget import Budget, monte_carlo_error, pilot
from ornstein.samplers.corrected import adams, sa_solver, unipc
from ornstein.samplers.default import default_plan
from ornstein.samplers.exact import Law, propagate
from ornstein.samplers.flow import RK45, FixedSteps, Flow, Solved, Solver
from ornstein.samplers.langevin import LangevinCorrector, annealed_langevin
from ornstein.samplers.loop import Hook, Step, Trajectory, run, sample
from ornstein.samplers.multistep import (
    deis,
    dpm_solver_multistep,
    dpm_solver_pp,
    dpm_solver_pp_sde,
    ipndm,
    lms,
    pndm,
)
from ornstein.samplers.onestep import ancestral, ddim, euler_maruyama, reverse_diffusion
from ornstein.samplers.plan import Plan, Row
from ornstein.samplers.singlestep import (
    deis_rho_rk,
    dpm_solver,
    dpm_solver_pp_single,
    heun,
    midpoint,
    probability_flow_euler,
    runge_kutta,
)

Sampler = Callable[..., Plan]
"""(process, calls, grid, …) -> Plan."""

ALL: dict[str, Sampler] = {
    "ddim": ddim,
    "ancestral": ancestral,
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "probability_flow_euler": probability_flow_euler,
    "heun": heun,
    "midpoint": midpoint,
    "runge_kutta": runge_kutta,
    "lms": lms,
    "pndm": pndm,
    "ipndm": ipndm,
    "deis": deis,
    "deis_rho_rk": deis_rho_rk,
    "dpm_solver": dpm_solver,
    "dpm_solver_multistep": dpm_solver_multistep,
    "dpm_solver_pp": dpm_solver_pp,
    "dpm_solver_pp_single": dpm_solver_pp_single,
    "dpm_solver_pp_sde": dpm_solver_pp_sde,
    "unipc": unipc,
    "sa_solver": sa_solver,
    "adams": adams,
    "annealed_langevin": annealed_langevin,
}
"""Names that recipes and the command line know."""

__all__ = [
    "ADAPTIVE",
    "ALL",
    "COOLING",
    "RK45",
    "Adaptive",
    "AdaptiveDPMSolver",
    "Annealed",
    "Budget",
    "Chains",
    "Draws",
    "FixedSteps",
    "Flow",
    "GottaGoFast",
    "Hook",
    "LangevinCorrector",
    "Law",
    "Overdamped",
    "Plan",
    "Row",
    "Sampler",
    "Solved",
    "Solver",
    "Step",
    "Trajectory",
    "Underdamped",
    "adams",
    "ancestral",
    "anneal",
    "annealed_langevin",
    "ddim",
    "default_plan",
    "deis",
    "deis_rho_rk",
    "dpm_solver",
    "dpm_solver_multistep",
    "dpm_solver_pp",
    "dpm_solver_pp_sde",
    "dpm_solver_pp_single",
    "euler_maruyama",
    "heun",
    "ipndm",
    "lms",
    "midpoint",
    "monte_carlo_error",
    "pilot",
    "pndm",
    "probability_flow_euler",
    "propagate",
    "reverse_diffusion",
    "run",
    "runge_kutta",
    "sa_solver",
    "sample",
    "sample_adaptive",
    "sample_boltzmann",
    "tilted_wells",
    "tilted_wells_minima",
    "unipc",
]
