"""How data are destroyed: Gaussian processes in continuous time, one's own equations, and chains of discrete steps."""

from __future__ import annotations

from collections.abc import Callable

from ornstein.process.chain import BETAS, Chain, zero_terminal_snr
from ornstein.process.check import Check
from ornstein.process.cold import COLD, Degradation
from ornstein.process.continuous import EDM, VE, VP, Cosine, Rectified, SubVP
from ornstein.process.gaussian import (
    Equation,
    GaussianProcess,
    Posterior,
    Process,
    Transition,
    align,
    gaussian_kl,
    gaussian_kl_full,
    gaussian_log_density,
    reparameterise,
)
from ornstein.process.sde import SDE, LinearSDE
from ornstein.process.simulate import SimulatedSDE


def chain(schedule: str = "linear", steps: int = 1000, zero_terminal: bool = False) -> Chain:
    """The chain of a named schedule of betas (one of `BETAS`) with `steps` levels, optionally with zero terminal SNR."""
    if schedule not in BETAS:
        raise ValueError(f"schedule={schedule!r} is not one of {', '.join(BETAS)}")
    betas = BETAS[schedule](steps)
    return Chain(zero_terminal_snr(betas) if zero_terminal else betas)


ALL: dict[str, Callable[..., GaussianProcess]] = {
    "vp": VP,
    "cosine": Cosine,
    "ve": VE,
    "sub_vp": SubVP,
    "edm": EDM,
    "rectified": Rectified,
    "chain": chain,
}
"""Names that recipes and the command line know; one's own `LinearSDE` is handed over as an object."""

__all__ = [
    "ALL",
    "BETAS",
    "COLD",
    "EDM",
    "SDE",
    "VE",
    "VP",
    "Chain",
    "Check",
    "Cosine",
    "Degradation",
    "Equation",
    "GaussianProcess",
    "LinearSDE",
    "Posterior",
    "Process",
    "Rectified",
    "SimulatedSDE",
    "SubVP",
    "Transition",
    "align",
    "chain",
    "gaussian_kl",
    "gaussian_kl_full",
    "gaussian_log_density",
    "reparameterise",
    "zero_terminal_snr",
]
