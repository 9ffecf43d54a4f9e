"""What guidance samples, in one dimension: three laws that are often taken for one another."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ornstein.figures.canvas import ACCENT, DATA, SAMPLES, blank
from ornstein.guidance import ClassifierFree
from ornstein.noise import Noise
from ornstein.process import EDM
from ornstein.samplers import Plan, adams, sa_solver, sample
from ornstein.testing import GuidedNormal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

SCALE = 2.0
"""γ of the figure's densities."""
LAW = GuidedNormal(mean=1.0, std=0.5, free_std=1.0, process=EDM())
"""p(x) = N(0, 1), p(x | c) = N(1, 0.25)."""


def guided_samples(noise: Noise, plan: Plan, n: int) -> Tensor:
    """n samples (n,) under guidance γ = 2."""
    cond = {"label": torch.zeros(n, dtype=torch.long)}
    x = sample(ClassifierFree(LAW.oracle, SCALE), plan, shape=(n, 1), noise=noise, cond=cond, dtype=torch.float64)
    return x[:, 0]


def guidance_figure(noise: Noise, n: int) -> Figure:
    """Densities and samples at γ = 2, and mean and std against γ: guided flow, guided reverse equation, tilted density."""
    kinds = (
        ("guided flow", SAMPLES, LAW.moments(SCALE), adams(LAW.process, 40)),
        ("guided reverse SDE", ACCENT, LAW.moments(SCALE, tau=1.0), sa_solver(LAW.process, 60)),
        ("tilted density", DATA, LAW.tilted(SCALE), None),
    )
    figure = blank(14, 4.2)
    densities, means, stds = figure.subplots(1, 3)
    line = torch.linspace(-2.2, 3.0, 400, dtype=torch.float64)
    for label, moments, style in (("p(x)", (0.0, LAW.free_std), ":"), ("p(x | c)", (LAW.mean, LAW.std), "--")):
        densities.plot(line, _normal(line, *moments), color="0.45", linestyle=style, label=label)
    for label, colour, moments, plan in kinds:
        densities.plot(line, _normal(line, *moments), color=colour, label=f"{label}: {moments[0]:.3f}, {moments[1]:.3f}")
        if plan is not None:
            densities.hist(guided_samples(noise, plan, n), bins=60, range=(-0.5, 3), density=True, color=colour, alpha=0.25)
    densities.set(title=f"at guidance {SCALE:g}: mean, std (bars: {n} samples)", xlabel="x", ylim=(0, 1.75))
    densities.legend(fontsize=8, loc="upper left")
    scales = [k / 4 for k in range(17)]
    curves = [[LAW.moments(g) for g in scales], [LAW.moments(g, tau=1.0) for g in scales], [LAW.tilted(g) for g in scales]]
    for axes, index, name in ((means, 0, "mean"), (stds, 1, "standard deviation")):
        for (label, colour, _, _), curve in zip(kinds, curves, strict=True):
            axes.plot(scales, [moments[index] for moments in curve], color=colour, label=label)
        _truths(axes, (0.0, LAW.mean) if index == 0 else (LAW.free_std, LAW.std))
        axes.set(title=f"{name} against guidance", xlabel="guidance γ")
    return figure


def _truths(axes: Axes, values: tuple[float, float]) -> None:
    """The unconditional model at γ = 0 and the conditional one at γ = 1, where all three agree."""
    axes.scatter((0, 1), values, color="k", zorder=3, s=18)
    axes.grid(alpha=0.25)


def _normal(x: Tensor, mean: float, std: float) -> Tensor:
    return torch.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
