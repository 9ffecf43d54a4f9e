"""Pictures of vectors: samples beside data, and the three rows of the swiss roll's figure (forward, reverse, drift)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ornstein.contract import Contract
from ornstein.denoiser import Denoises
from ornstein.figures.canvas import DATA, SAMPLES, blank, plane, save
from ornstein.noise import Noise
from ornstein.process import GaussianProcess
from ornstein.samplers import Trajectory, ddim, sample
from ornstein.samplers.loop import device_of
from ornstein.system import System

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 2000
"""Points of a scatter plot."""
_COLUMNS = 4
_BINS = 60
_LIMIT = 2.8
"""The window of the three rows, in standard deviations."""


def rows_picture(samples: Tensor, contract: Contract, path: str | Path, *, beside: Tensor | None = None) -> None:
    """Samples (n, D) in the data's own units, with data (m, D) `beside` them: points of a plane, or histograms and pairs.

    Of more than four columns the first four are shown.
    """
    shown = min(contract.shape[0], _COLUMNS)
    clouds = [("samples", SAMPLES, samples[:POINTS].cpu().double())]
    if beside is not None:
        clouds.insert(0, ("data", DATA, beside[:POINTS].cpu().double()))
    if shown == 2:
        figure = blank(4.2 * len(clouds), 4.4)
        panels = figure.subplots(1, len(clouds), squeeze=False, sharex=True, sharey=True)[0]
        for axes, (name, colour, x) in zip(panels, clouds, strict=True):
            axes.scatter(x[:, 0], x[:, 1], s=3, color=colour, alpha=0.6, linewidths=0)
            axes.set(title=name, xlabel=contract.channels[0], ylabel=contract.channels[1], aspect="equal")
    else:
        figure = blank(2.4 * shown + 1, 2.4 * shown + 0.6)
        panels = figure.subplots(shown, shown, squeeze=False)
        for row in range(shown):
            for column in range(shown):
                axes = panels[row][column]
                for name, colour, x in clouds:
                    if row == column:
                        axes.hist(x[:, row], _BINS, density=True, histtype="step", color=colour, label=name)
                    else:
                        axes.scatter(x[:, column], x[:, row], s=2, color=colour, alpha=0.4, linewidths=0)
                axes.set(
                    xlabel=contract.channels[column] if row == shown - 1 else "",
                    ylabel=contract.channels[row] if column == 0 and row else "",
                )
        panels[0][0].legend(fontsize=8)
    save(figure, path)


def journey(system: System, data: Tensor, path: str | Path, *, seed: int = 0) -> None:
    """`three_rows` of a trained two-dimensional system, with data (n, 2) in their own units."""
    sigma_data = system.denoiser.sigma_data
    save(three_rows(system.denoiser, system.contract.encode(data).to(system.device), Noise(seed), sigma_data=sigma_data), path)


def three_rows(denoiser: Denoises, data: Tensor, noise: Noise, *, sigma_data: float = 1.0, slices: int = 5) -> Figure:
    """Three rows over time: data (n, 2) on their way to noise, samples on their way back, and the drift that drives them.

    A column is one time; points are divided by the standard deviation of x_t, so that all columns have one scale. The drift
    is that of the probability flow in those units, with arrows on a grid and its size in colour.
    """
    process = denoiser.process
    times, states = path_back(denoiser, tuple(data.shape), noise, sigma_data, slices)
    figure = blank(2.3 * (slices + 1), 7.4)
    panels = figure.subplots(3, slices + 1)
    eps = noise.normal(data.shape, stream="figure", dtype=data.dtype, device=data.device)
    for column, (t, backward) in enumerate(zip((None, *reversed(times)), reversed(states), strict=True)):
        spread = deviation(process, t, sigma_data)
        forward = data if t is None else process.corrupt(data, t, eps)
        for axes, x, colour in ((panels[0][column], forward, DATA), (panels[1][column], backward, SAMPLES)):
            axes.scatter(*(x.cpu().double() / spread).T, s=2, color=colour, alpha=0.6, linewidths=0)
            plane(axes, _LIMIT)
        panels[2][column].scatter(*(forward.cpu().double() / spread).T, s=2, color="0.8", linewidths=0, zorder=1)
        panels[0][column].set_title("data, t = 0" if t is None else f"t = {t:.2g}" + (", noise" if t == 1 else ""), fontsize=10)
        # at the data themselves the drift has no limit: the lowest noise that is shown stands for it
        drift(panels[2][column], denoiser, times[-1] / 2 if t is None else t, sigma_data)
    for row, (label, arrow) in enumerate((("forward", "→"), ("reverse", "←"), ("drift of the reverse", ""))):
        panels[row][0].set_ylabel(f"{label} {arrow}", fontsize=12)
    return figure


def path_back(
    denoiser: Denoises, shape: Sequence[int], noise: Noise, sigma_data: float, slices: int, *, finer: int = 160
) -> tuple[tuple[float, ...], list[Tensor]]:
    """Times falling from 1, denser near the data, and samples of `shape` there, and last clean: `slices` and one more states.

    They follow the probability flow by DDIM with at least `finer` calls.
    """
    process = denoiser.process
    seen = even_times(process, sigma_data, slices, power=2.0)
    between = -(-finer // slices)
    fine = [seen[0]]
    for above, below in itertools.pairwise((*seen, process.t_min)):
        fine += [*(above + (below - above) * k / between for k in range(1, between)), below]
    device, start, path = device_of(denoiser), process.prior(shape, noise), Trajectory()
    sample(denoiser, ddim(process, len(fine), tuple(fine)), start=start.to(device), noise=noise, after=path)
    at = {1.0: start.to(device)} | {s: x for s, x in zip(path.times, path.states, strict=True) if s is not None}
    return seen, [*(at[t] for t in seen), path.states[-1]]


def drift(axes: Axes, denoiser: Denoises, t: float, sigma_data: float, limit: float = 2.6, side: int = 19) -> None:
    """The probability flow's drift at time t, backwards in time, on a grid of the plane in units y = x_t/deviation.

    dy/dt is proportional to x0(x_t) - alpha x_t/deviation²: what the denoiser says beyond what it would say of normal data,
    for which the drift is 0 everywhere. Lengths go by the square root, colour by the size in deviations of the data.
    """
    process = denoiser.process
    line = torch.linspace(-limit, limit, side, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    spread = deviation(process, t, sigma_data)
    x = (grid * spread).float().to(device_of(denoiser))
    with torch.no_grad():
        prediction = denoiser(x, t)
    alpha = float(process.moments(t)[0])
    towards = ((prediction.x0 - alpha / spread**2 * x) / sigma_data).cpu().double()
    size = towards.norm(dim=1)
    spacing = 2 * limit / (side - 1)
    arrows = towards / size.clamp(min=1e-12).unsqueeze(1) * size.clamp(max=1.0).sqrt().unsqueeze(1) * spacing
    axes.quiver(
        *grid.T, *arrows.T, size, cmap="viridis_r", clim=(0, 1), angles="xy", scale_units="xy", scale=1, width=0.006, zorder=2
    )
    plane(axes, _LIMIT)


def even_times(process: GaussianProcess, sigma_data: float, n: int, power: float = 1.0) -> tuple[float, ...]:
    """n times falling from 1, at equal steps of the angle atan(noise/signal): every step changes what one sees alike.

    With a `power` above 1 they are denser near the data: equal steps of angle^(1/power).
    """
    widest = math.atan(min(math.exp(float(process.log_ratio(1.0))) / sigma_data, 1e6))
    angles = widest * (1 - torch.arange(n, dtype=torch.float64) / n) ** power
    times = process.time_of(torch.log(torch.tan(angles) * sigma_data)).clamp(min=process.t_min)
    return (1.0, *times[1:].tolist())


def deviation(process: GaussianProcess, t: float | None, sigma_data: float) -> float:
    """Standard deviation of x_t over that of the data, so that all times share one scale."""
    alpha, sigma = (float(m) for m in process.moments(t))
    return math.hypot(alpha, sigma / sigma_data)
