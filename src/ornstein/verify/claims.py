"""What every sampler claims: one row per variant, read by `verify`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ornstein import samplers
from ornstein.grid import Spacing
from ornstein.process import Chain, GaussianProcess
from ornstein.samplers import Plan, Sampler
from ornstein.samplers.frame import Frame


@dataclass(frozen=True)
class Claim:
    """A sampler with options, and what is claimed of it.

    `order`: the error at a fixed end falls like calls^-order - of the flow map for a deterministic plan, of mean and
    standard deviation (the weak error) for a stochastic one; measured slopes below `least`·order fail. `constants`: a
    constant x0 and a constant eps are both integrated exactly. `in_time`: polynomials or stages in t, which promise nothing
    on a chain, whose log-SNR has a kink at every level, nor where sigma/alpha ends above e^7, where f explodes.
    `uneven`: the order holds on steps of unequal length too. `usual`: the grid of everyday use, for the errors at 5 … 50
    calls, where it is not `grid`, on which the order is measured.
    """

    sampler: Sampler
    order: float
    grid: str = "log_snr"
    options: Mapping[str, object] = field(default_factory=dict)
    constants: bool = False
    in_time: bool = False
    uneven: bool = True
    least: float = 0.9
    usual: str | None = None

    def plan(self, process: GaussianProcess, calls: int, grid: str | Spacing, end: float | None = None) -> Plan:
        """The plan for so many calls."""
        options = dict(self.options) | ({} if end is None else {"end": end})
        return self.sampler(process, calls, grid, **options)

    def promises(self, process: GaussianProcess) -> bool:
        """Whether the order is claimed on this process."""
        return not (self.in_time and (isinstance(process, Chain) or latest_start(process) < 1))


def latest_start(process: GaussianProcess) -> float:
    """The time at which measurements start: 1, or where sigma/alpha = e^7 if the process goes beyond."""
    return Frame(process, "eps").start


_WARM = {"starts": "single_step"}

CLAIMS: dict[str, Claim] = {
    "ddim": Claim(samplers.ddim, 1, constants=True),
    "ddim(0.5)": Claim(samplers.ddim, 1, options={"eta": 0.5}),
    "ddim(1)": Claim(samplers.ddim, 1, options={"eta": 1.0}),
    "ancestral(posterior)": Claim(samplers.ancestral, 1),
    "ancestral(transition)": Claim(samplers.ancestral, 1, options={"variance": "transition"}),
    "euler_maruyama": Claim(samplers.euler_maruyama, 1, "uniform", in_time=True),
    "reverse_diffusion": Claim(samplers.reverse_diffusion, 1, "uniform"),
    "probability_flow_euler": Claim(samplers.probability_flow_euler, 1, "uniform", in_time=True),
    "heun": Claim(samplers.heun, 2, "karras", constants=True),
    "heun(churn)": Claim(samplers.heun, 2, "karras", {"churn": 10.0, "noise_scale": 1.0}),
    "midpoint": Claim(samplers.midpoint, 2, "karras", constants=True),
    "midpoint(t)": Claim(samplers.midpoint, 2, "quadratic", {"variable": "t"}, in_time=True),
    "runge_kutta(heun, t)": Claim(samplers.runge_kutta, 2, "quadratic", in_time=True),
    "runge_kutta(rk4, t)": Claim(samplers.runge_kutta, 4, "quadratic", {"method": "rk4"}, in_time=True),
    "deis_rho_rk(heun)": Claim(samplers.deis_rho_rk, 2, "karras", {"method": "heun"}, constants=True),
    "deis_rho_rk(kutta3)": Claim(samplers.deis_rho_rk, 3, "karras", constants=True),
    "deis_rho_rk(rk4)": Claim(samplers.deis_rho_rk, 4, "karras", {"method": "rk4"}, constants=True),
    "lms(4)": Claim(samplers.lms, 4, "karras", _WARM, constants=True),
    "pndm": Claim(samplers.pndm, 2, "quadratic", constants=True, in_time=True, uneven=False, least=0.7),
    "ipndm(4)": Claim(samplers.ipndm, 2, "quadratic", constants=True, in_time=True, uneven=False),
    "deis(tAB1)": Claim(samplers.deis, 2, "quadratic", {"degree": 1}, constants=True, in_time=True),
    "deis(tAB2)": Claim(samplers.deis, 3, "quadratic", {"degree": 2}, constants=True, in_time=True),
    "deis(tAB3)": Claim(samplers.deis, 4, "quadratic", {"degree": 3, **_WARM}, constants=True, in_time=True),
    "deis(rhoAB1)": Claim(samplers.deis, 2, "karras", {"degree": 1, "variable": "rho"}, constants=True),
    "deis(rhoAB2)": Claim(samplers.deis, 3, "karras", {"degree": 2, "variable": "rho"}, constants=True),
    "deis(rhoAB3)": Claim(samplers.deis, 4, "karras", {"degree": 3, "variable": "rho", **_WARM}, constants=True),
    "dpm_solver(2S)": Claim(samplers.dpm_solver, 2, options={"order": 2, "fast": False}, constants=True),
    "dpm_solver(3S)": Claim(samplers.dpm_solver, 3, options={"order": 3, "fast": False}, constants=True),
    "dpm_solver(2M)": Claim(samplers.dpm_solver_multistep, 2, constants=True),
    "dpm_solver(3M)": Claim(samplers.dpm_solver_multistep, 3, options={"order": 3, **_WARM}, constants=True),
    "dpm_solver_pp(2S)": Claim(samplers.dpm_solver_pp_single, 2, options={"fast": False}, constants=True),
    "dpm_solver_pp(3S)": Claim(samplers.dpm_solver_pp_single, 3, options={"order": 3, "fast": False}, constants=True),
    "dpm_solver_pp(2M)": Claim(samplers.dpm_solver_pp, 2, constants=True),
    "dpm_solver_pp(3M)": Claim(samplers.dpm_solver_pp, 3, options={"order": 3, **_WARM}, constants=True),
    "dpm_solver_pp_sde(2M)": Claim(samplers.dpm_solver_pp_sde, 2),
    "dpm_solver_pp_sde(3M)": Claim(samplers.dpm_solver_pp_sde, 2, options={"order": 3}),
    **{
        f"unipc({order}, {variant})": Claim(
            samplers.unipc, order + 1, options={"order": order, "variant": variant, **_WARM}, constants=True
        )
        for order in (1, 2, 3)
        for variant in ("bh1", "bh2")
    },
    **{
        f"adams({view}, 2)": Claim(samplers.adams, 3, options={"view": view}, usual="vp_time", constants=view != "v")
        for view in ("v", "x0", "eps")
    },
    "adams(v, 3, predictor)": Claim(samplers.adams, 3, options={"order": 3, "correct": False}, usual="vp_time"),
    "sa_solver(2, 2)": Claim(samplers.sa_solver, 2),
    "annealed_langevin": Claim(samplers.annealed_langevin, 0.5, options={"steps": 2}),
    "sa_solver(2, 2, tau=0)": Claim(samplers.sa_solver, 3, options={"tau": 0.0}, constants=True),
}
"""Every member of `samplers.ALL`, in the variants people use, with its declared order."""
