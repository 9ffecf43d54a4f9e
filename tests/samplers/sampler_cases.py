"""What the sampler tests share: processes, a row per variant of every member of `samplers.ALL`, oracles, direct helpers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import COEFFICIENTS, Condition, Prediction
from ornstein.grid import Grid, Spacing
from ornstein.noise import Noise
from ornstein.process import EDM, VE, VP, Cosine, GaussianProcess, Rectified, SubVP, chain
from ornstein.samplers import ALL, Plan, Trajectory, run
from ornstein.testing import GaussianDenoiser, MixtureDenoiser

PROCESSES: dict[str, GaussianProcess] = {
    "vp": VP(),
    "cosine": Cosine(),
    "ve": VE(),
    "sub_vp": SubVP(),
    "edm": EDM(),
    "rectified": Rectified(),
    "chain": chain("linear"),
    "zero_linear": chain("linear", zero_terminal=True),
    "zero_cosine": chain("cosine", 200, zero_terminal=True),
}
SILENT = ("rectified", "zero_linear", "zero_cosine")
"""alpha(1) = 0."""


@dataclass(frozen=True)
class Case:
    """A variant of a sampler. `kind` is what it does to a constant prediction:

    "flow": deterministic, and exact for a constant x0 and for a constant eps; "turn": deterministic, and exact for a constant
    v; "law": stochastic, and exact in law for a constant x0; "drift": the linear drift is discretised too, so none of these;
    "langevin": stochastic, and short of the law by a lag of order ½; "other": none of these, for another reason.
    """

    sampler: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    whole: int = 1
    """Only whole steps of so many calls are made."""
    least: int = 1
    """The fewest calls, to clean data and, where it differs, to an end."""
    least_to_end: int | None = None

    def __str__(self) -> str:
        return f"{self.sampler}({', '.join(f'{k}={v}' for k, v in self.options.items())})"

    def plan(
        self, process: GaussianProcess, calls: int, grid: str | Spacing | Grid | None = None, end: float | None = None
    ) -> Plan:
        given = {} if grid is None else {"grid": grid}
        return ALL[self.sampler](process, calls, **given, end=end, **self.options)

    def fewest(self, end: float | None) -> int:
        return self.least if end is None or self.least_to_end is None else self.least_to_end

    def calls(self, calls: int, end: float | None) -> int:
        """How many of the calls asked for are made."""
        rest = (calls - (end is None)) % self.whole
        return calls - rest


STAGES = {"euler": 1, "midpoint": 2, "heun": 2, "kutta3": 3, "rk4": 4}


def _whole(sampler: str, kind: str, stages: int, **options: Any) -> Case:
    return Case(sampler, kind, options, whole=stages, least_to_end=stages)


def _cases() -> Iterator[Case]:
    yield Case("ddim", "flow")
    yield from (Case("ddim", "law", {"eta": eta}) for eta in (0.5, 1.0))
    yield Case("ancestral", "law")
    yield from (Case("ancestral", "other", {"variance": variance}) for variance in ("transition", "learned"))
    yield from (Case(name, "drift") for name in ("euler_maruyama", "reverse_diffusion", "probability_flow_euler"))
    yield _whole("heun", "flow", 2)
    yield _whole("heun", "other", 2, churn=10.0)
    yield _whole("midpoint", "flow", 2)
    yield _whole("midpoint", "drift", 2, variable="t")
    for method, stages in STAGES.items():
        yield _whole("runge_kutta", "drift", stages, method=method)
        yield _whole("runge_kutta", "flow", stages, method=method, variable="ratio")
        yield _whole("deis_rho_rk", "flow", stages, method=method)
    yield from (Case("lms", "flow", {"order": order}) for order in (1, 2, 3, 4, 5))
    yield Case("lms", "flow", {"starts": "single_step"})
    yield Case("pndm", "flow", least=13)
    yield from (Case("ipndm", "flow", {"order": order}) for order in (1, 2, 3, 4))
    for variable in ("t", "rho"):
        yield from (Case("deis", "flow", {"degree": degree, "variable": variable}) for degree in (0, 1, 2, 3))
    yield Case("deis", "flow", {"degree": 3, "starts": "single_step"})
    for order in (1, 2, 3):
        for sampler in ("dpm_solver", "dpm_solver_pp_single"):
            yield Case(sampler, "flow", {"order": order})
            yield _whole(sampler, "flow", order, order=order, fast=False)
        for sampler in ("dpm_solver_multistep", "dpm_solver_pp"):
            yield Case(sampler, "flow", {"order": order})
            yield Case(sampler, "flow", {"order": order, "starts": "single_step"})
        yield Case("dpm_solver_pp_sde", "law", {"order": order})
        for variant in ("bh1", "bh2"):
            yield Case("unipc", "flow", {"order": order, "variant": variant}, least_to_end=2)
        yield Case("unipc", "flow", {"order": order, "starts": "single_step"}, least_to_end=2)
    for predictor, corrector, tau in ((1, 1, 0.0), (2, 2, 0.0), (3, 3, 0.0), (1, 1, 1.0), (2, 2, 1.0), (3, 1, 0.6), (3, 4, 1.4)):
        options = {"predictor": predictor, "corrector": corrector, "tau": tau}
        yield Case("sa_solver", "law" if tau else "flow", options, least_to_end=2)
    for tau in (0.0, 1.0):
        yield Case("sa_solver", "law" if tau else "flow", {"predictor": 3, "corrector": 0, "tau": tau})
    for correct in (True, False):
        for view, variable, order in (
            ("v", "lambda", 3), ("v", "t", 3), ("v", "growth", 3), ("v", "lambda", 1),
            ("x0", "lambda", 2), ("x0", "growth", 2), ("eps", "t", 2), ("eps", "growth", 3),
        ):  # fmt: skip
            options = {"view": view, "variable": variable, "order": order, "correct": correct}
            yield Case("adams", "turn" if view == "v" else "flow", options, least_to_end=2 if correct else 1)
    yield Case("adams", "turn", least_to_end=2)
    for steps, options in ((1, {}), (2, {}), (5, {}), (3, {"rate": 0.1})):
        yield Case(
            "annealed_langevin", "langevin", {"steps": steps, **options}, whole=steps, least=steps + 1, least_to_end=2 * steps
        )


CASES: dict[str, Case] = {str(case): case for case in _cases()}


def of_kind(*kinds: str) -> list[str]:
    return [name for name, case in CASES.items() if case.kind in kinds]


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def mixture(p: GaussianProcess) -> MixtureDenoiser:
    means = Noise(1).normal((3, 2), dtype=torch.float64)
    return MixtureDenoiser(means, f64(0.1, 0.4, 0.2), f64(0.25, 0.25, 0.5), p)


def correlated(p: GaussianProcess) -> GaussianDenoiser:
    root = f64(1.0, 0.0, 0.0, 0.6, 0.5, 0.0, -0.3, 0.2, 0.4).reshape(3, 3)
    return GaussianDenoiser(f64(1.0, -0.5, 0.3), root @ root.T, p)


@dataclass(frozen=True)
class Constant:
    """A denoiser that says x0, eps or v (by `view`) = value whatever it sees."""

    process: GaussianProcess
    view: str
    value: Tensor

    def __call__(self, x_t: Tensor, t: float, cond: Condition = None) -> Prediction:
        alpha, sigma = self.process.moments(t)
        value = self.value.expand_as(x_t)
        skip, out = COEFFICIENTS[self.view](alpha, sigma, 1.0, self.process, torch.tensor(t))
        return Prediction(x_t, alpha, sigma, value, skip, out, self.view)


def states(denoiser: object, plan: Plan, x: Tensor, noise: Noise) -> list[Tensor]:
    """The states of a run after each row."""
    seen = Trajectory()
    run(denoiser, plan, x, noise=noise, after=seen)  # type: ignore[arg-type]
    return seen.states


def level(p: GaussianProcess, t: float | None) -> tuple[float, float]:
    """(alpha, sigma) as numbers."""
    alpha, sigma = p.moments(t)
    return float(alpha), float(sigma)


def lam(p: GaussianProcess, t: float) -> float:
    """log(alpha/sigma)."""
    alpha, sigma = level(p, t)
    return math.log(alpha / sigma)


def time_at(p: GaussianProcess, log_snr: float) -> float:
    """The time of log(alpha/sigma)."""
    return float(p.time_of(torch.tensor(-log_snr, dtype=torch.float64)))


def lagrange(nodes: Sequence[float], j: int, u: float) -> float:
    """The j-th Lagrange polynomial on the nodes, at u."""
    return math.prod((u - node) / (nodes[j] - node) for i, node in enumerate(nodes) if i != j)


def integral(f: object, low: float, high: float) -> float:
    """∫ f by adaptive quadrature."""
    from scipy.integrate import quad

    return quad(f, low, high, epsabs=1e-14, epsrel=1e-12, limit=200)[0]
