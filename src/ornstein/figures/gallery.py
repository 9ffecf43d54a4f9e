"""The figures of the lecture notes by name, each made by running the library on exact laws, for `ornstein figure NAME`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.figures.canvas import ACCENT, DATA, SAMPLES, blank, plane
from ornstein.figures.guided import guidance_figure
from ornstein.figures.vectors import POINTS, three_rows
from ornstein.noise import Noise
from ornstein.process import VE, VP, Chain, Cosine, GaussianProcess, Rectified, SubVP, chain
from ornstein.samplers import (
    ALL,
    COOLING,
    Annealed,
    Overdamped,
    Trajectory,
    Underdamped,
    anneal,
    annealed_langevin,
    ddim,
    euler_maruyama,
    sample,
    sample_boltzmann,
    tilted_wells,
    tilted_wells_minima,
)
from ornstein.testing import MixtureDenoiser

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Scene:
    """What a figure may use: the law of two-dimensional data as a function of the process, whose points it draws, the noise,
    and a trained model's denoiser and data in model units in place of both, where one was given."""

    law: Callable[[GaussianProcess], MixtureDenoiser]
    noise: Noise
    model: Denoises | None = None
    data: Tensor | None = None


def roll_parts(scene: Scene) -> tuple[Denoises, Tensor, float]:
    """The denoiser of `swiss_roll`, its data (n, 2) and their standard deviation: of the model if there is one, or of the law."""
    denoiser: Denoises = scene.model if scene.model is not None else scene.law(VP())
    data = scene.data if scene.data is not None else scene.law(VP()).sample(POINTS, scene.noise)
    return denoiser, data[:POINTS].float(), float(data.std())


def swiss_roll(scene: Scene) -> Figure:
    """Three rows: data on their way to noise, samples on their way back, and the drift that drives them (any law or model)."""
    denoiser, data, sigma_data = roll_parts(scene)
    return three_rows(denoiser, data, scene.noise, sigma_data=sigma_data)


def density(axes: Axes, law: MixtureDenoiser, t: float | None, limit: float, side: int = 160) -> None:
    """log p_t of a two-dimensional law as shades of grey, eight nats deep."""
    line = torch.linspace(-limit, limit, side, dtype=torch.float64)
    x, y = torch.meshgrid(line, line, indexing="xy")
    log_p = law.log_prob(torch.stack([x.flatten(), y.flatten()], 1), t).reshape(side, side)
    axes.imshow(
        log_p - log_p.max(), extent=(-limit, limit, -limit, limit), origin="lower", cmap="Greys", vmin=-8, vmax=2, zorder=0
    )


def _arrows(axes: Axes, field: Tensor, grid: Tensor, longest: float, spacing: float) -> None:
    size = field.norm(dim=1)
    shown = field / size.clamp(min=1e-12).unsqueeze(1) * (size / longest).clamp(max=1).sqrt().unsqueeze(1) * 0.9 * spacing
    axes.quiver(*grid.T, *shown.T, color=DATA, angles="xy", scale_units="xy", scale=1, width=0.004, zorder=2)


def score_field(scene: Scene) -> Figure:
    """The score ∇ log p over the density, at three noise levels: pulling towards the data from ever further away."""
    process = VE(0.01, 10.0)
    law = scene.law(process)
    figure = blank(12, 4.4)
    levels = (0.1, 0.4, 1.2)
    for axes, sigma in zip(figure.subplots(1, len(levels)), levels, strict=True):
        t = float(process.time_of(torch.tensor(math.log(sigma), dtype=torch.float64)))
        limit, side = 3.2, 21
        line = torch.linspace(-limit, limit, side, dtype=torch.float64)
        grid = torch.cartesian_prod(line, line)
        density(axes, law, t, limit)
        score = law(grid, t).score
        _arrows(axes, score, grid, float(score.norm(dim=1).quantile(0.9)), 2 * limit / (side - 1))
        axes.set_title(f"noise sigma = {sigma:g}")
        plane(axes, limit)
    figure.suptitle("score (arrows) over the density of the noisy data (grey)", fontsize=12)
    return figure


TRAP = (-5.0, 5.0)
"""Where the two modes of `score_trap` are, in both coordinates; they weigh 0.2 and 0.8."""
_BOX = 8.0


def trap_law(process: GaussianProcess) -> MixtureDenoiser:
    """0.2 N((-5, -5), I) + 0.8 N((5, 5), I)."""
    means = torch.tensor(TRAP, dtype=torch.float64).unsqueeze(1).expand(2, 2)
    return MixtureDenoiser(means, torch.ones(2), torch.tensor([0.2, 0.8], dtype=torch.float64), process)


def trap_runs(scene: Scene, chains: int) -> tuple[MixtureDenoiser, list[Tensor], list[Tensor]]:
    """The law, and the chains (n, 2) of plain (every tenth step) and of annealed dynamics, from a uniform box; 300 scores."""
    process, calls = VE(0.1, 15.0), 300
    law = trap_law(process)
    box = _BOX * (2 * scene.noise.uniform((chains, 2), stream="box") - 1)

    def gradient(x: Tensor) -> Tensor:
        return -law(x, 0.0).score

    plain = sample_boltzmann(
        None, gradient=gradient, start=box, steps=calls, dynamics=Overdamped(0.05), noise=scene.noise, keep=10
    ).states
    seen = Trajectory()
    start = box / _BOX * process.prior_std
    sample(law, annealed_langevin(process, calls + 1), start=start, noise=scene.noise, after=seen)
    return law, [box, *plain], [start, *seen.states]


def score_trap(scene: Scene, chains: int = 1500) -> Figure:
    """Plain against annealed Langevin dynamics from a uniform box: between the modes the score says nothing of their weights."""
    law, plain, moved = trap_runs(scene, chains)
    figure = blank(13, 4)
    panels = figure.subplots(1, 4)
    clouds = (
        ("data", law.sample(chains, scene.noise), DATA),
        ("plain Langevin", plain[-1], SAMPLES),
        ("annealed", moved[-1], ACCENT),
    )
    for axes, (name, x, colour) in zip(panels, clouds, strict=False):
        density(axes, law, 0.0, 9.0)
        axes.scatter(*x.T, s=4, color=colour, alpha=0.7, linewidths=0, zorder=2)
        share = float((x.sum(1) < 0).double().mean())
        axes.set_title(f"{name}: {100 * share:.0f} % left, {100 * (1 - share):.0f} % right", fontsize=10)
        plane(axes, 9.0)
    left = [(float((x.sum(1) < 0).double().mean())) for x in plain]
    annealed = [float((x.sum(1) < 0).double().mean()) for x in moved]
    panels[3].plot([10 * k for k in range(len(left))], left, color=SAMPLES, label="plain")
    panels[3].plot(range(len(annealed)), annealed, color=ACCENT, label="annealed")
    panels[3].axhline(0.2, color=DATA, linestyle="--", label="truth")
    panels[3].set(
        ylim=(0, 0.65), xlabel="score evaluations", ylabel="share of chains in the left half", title="weight of the left mode"
    )
    panels[3].legend(fontsize=8)
    return figure


def sde_and_flow(scene: Scene, paths: int = 12, steps: int = 300) -> Figure:
    """The reverse equation beside the probability flow from the same end noise: the same law at every time, other paths."""
    process = VP()
    law = MixtureDenoiser(
        torch.tensor([[-1.2], [0.3], [1.3]]),
        torch.tensor([0.15, 0.1, 0.2]),
        torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64),
        process,
    )
    start = torch.linspace(-1.9, 1.9, paths, dtype=torch.float64).unsqueeze(1)
    times = torch.linspace(0, 1, 160, dtype=torch.float64).clamp(min=1e-3)
    heights = torch.linspace(-2.8, 2.8, 220, dtype=torch.float64)
    shade = torch.stack([law.log_prob(heights.unsqueeze(1), float(t)).exp() for t in times], 1)
    figure = blank(12, 4.6)
    plans = (("reverse SDE: paths wander, the law is kept", euler_maruyama), ("probability flow: paths never cross", ddim))
    for axes, (title, make) in zip(figure.subplots(1, 2, sharey=True), plans, strict=True):
        axes.imshow(
            (shade / shade.amax(0)) ** 0.5, extent=(0, 1, -2.8, 2.8), origin="lower", aspect="auto", cmap="Blues", alpha=0.8
        )
        seen = Trajectory()
        sample(law, make(process, steps), start=start, noise=scene.noise, after=seen)
        moments = [1.0, *(0.0 if s is None else s for s in seen.times)]
        states = torch.stack([start, *seen.states])[:, :, 0]
        for path in range(paths):
            axes.plot(moments, states[:, path], linewidth=1.1, color=SAMPLES, alpha=0.9)
        axes.scatter([1.0] * paths, start[:, 0], s=14, color="k", zorder=3, clip_on=False)
        axes.set(title=title, xlabel="t: data at 0, noise at 1", xlim=(0, 1), ylim=(-2.8, 2.8))
    figure.axes[0].set_ylabel("x")
    return figure


_COMPARED = ("ddim", "dpm_solver_pp", "unipc", "adams", "ancestral")
_CALLS = (5, 10, 50)


def trajectories(scene: Scene, starts: int = 14) -> Figure:
    """Paths of five samplers at 5, 10 and 50 network calls from the same noise, and how far from the exact flow they end."""
    process = VP()
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    ring = math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1)
    law = MixtureDenoiser(ring, torch.full((8,), 0.12), torch.full((8,), 0.125, dtype=torch.float64), process)
    start = scene.noise.normal((starts, 2), stream="prior", dtype=torch.float64)
    exact = law.flow(start, 1.0, None)
    figure = blank(2.5 * len(_COMPARED) + 0.5, 2.6 * len(_CALLS))
    panels = figure.subplots(len(_CALLS), len(_COMPARED))
    for row, calls in enumerate(_CALLS):
        for column, name in enumerate(_COMPARED):
            axes, seen = panels[row][column], Trajectory()
            plan = ALL[name](process, calls)
            x0 = sample(law, plan, start=start, noise=scene.noise, after=seen)
            density(axes, law, None, 2.6, 120)
            path = torch.stack([start, *seen.states])
            for k in range(starts):
                axes.plot(*path[:, k].T, color=DATA, linewidth=0.7, alpha=0.8, marker="o", markersize=1.2 if calls > 10 else 2.2)
            axes.scatter(*exact.T, s=34, facecolors="none", edgecolors=ACCENT, linewidths=1.2, zorder=3)
            axes.scatter(*x0.T, s=9, color=SAMPLES, zorder=4)
            error = float((x0 - exact).square().sum(1).mean().sqrt())
            text = "draws its own noise" if plan.stochastic else f"distance {error:.2g}"
            axes.set_title(f"{name}, {text}" if row == 0 else text, fontsize=8)
            plane(axes, 2.6)
        panels[row][0].set_ylabel(f"{calls} calls", fontsize=12)
    figure.suptitle("from the same noise: path (blue), end (red), end of the exact flow (green ring)", fontsize=11)
    return figure


def schedules(scene: Scene) -> Figure:
    """What a process is: signal and noise, g², and the log signal-to-noise ratio over time, for seven processes."""
    chosen: Sequence[tuple[str, GaussianProcess]] = (
        ("VP", VP()), ("sub-VP", SubVP()), ("cosine", Cosine()), ("rectified", Rectified()), ("VE", VE(0.01, 50.0)),
        ("chain, linear", chain("linear")), ("chain, cosine", chain("cosine")),
    )  # fmt: skip
    t = torch.linspace(0, 1, 400, dtype=torch.float64)[1:-1]
    figure = blank(14, 4.2)
    signal, noise, rate, ratio = figure.subplots(1, 4)
    for k, (name, process) in enumerate(chosen):
        alpha, sigma = process.moments(t)
        style = {"color": f"C{k}", "linestyle": "--" if isinstance(process, Chain) else "-", "label": name}
        signal.plot(t, alpha, **style)
        noise.plot(t, sigma, **style)
        if not isinstance(process, Chain):
            rate.plot(t, process.diffusion(t) ** 2, **style)
        else:
            rate.plot(
                [k / process.steps for k in range(1, process.steps + 1)], [process.steps * b for b in process.betas], **style
            )
        ratio.plot(t, -2 * process.log_ratio(t), **style)
    signal.set(title="signal alpha(t)", xlabel="t")
    noise.set(title="noise sigma(t)", xlabel="t", yscale="log", ylim=(1e-2, 60))
    rate.set(title="g(t)², for chains T·beta", xlabel="t", yscale="log", ylim=(1e-3, 1e4))
    ratio.set(title="log SNR", xlabel="t", ylim=(-15, 15))
    for axes in (signal, noise, rate, ratio):
        axes.grid(alpha=0.25)
    signal.legend(fontsize=8)
    return figure


def wells_runs(scene: Scene, steps: int, runs: int, kept: int) -> tuple[Annealed, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Runs cooled geometrically from T = 1 to 0.08 in so many steps, the wells, and the energy on a grid (x, y, U)."""
    wells = tilted_wells_minima()
    start = 3.5 * (2 * scene.noise.uniform((runs, 2), stream="box") - 1) + wells[0]
    ladder = COOLING["geometric"](steps, 1.0, 0.08)
    found = anneal(tilted_wells, start, ladder, dynamics=Underdamped(0.15), noise=scene.noise, keep=max(1, steps // kept))
    line = torch.linspace(-_VIEW, _VIEW, 220, dtype=torch.float64)
    x, y = torch.meshgrid(line, line, indexing="xy")
    return found, wells, (x, y, tilted_wells(torch.stack([x.flatten(), y.flatten()], 1)).reshape(220, 220))


_VIEW = 4.4


def annealing(scene: Scene, runs: int = 100) -> Figure:
    """Simulated annealing on an energy of 25 wells: slow cooling finds the lowest, fast cooling freezes where it is."""
    budgets = (30, 100, 300, 1000, 3000, 10_000, 30_000)
    figure = blank(14, 4.4)
    panels = figure.subplots(1, 3)
    ended: list[float] = []
    met: list[float] = []
    for steps in budgets:
        found, wells, (x, y, height) = wells_runs(scene, steps, runs, 200)
        end = found.states[-1]
        for shares, places in ((ended, end), (met, found.best)):
            shares.append(float((torch.cdist(places, wells).argmin(1) == 0).double().mean()))
        if steps in (budgets[0], budgets[-1]):
            axes = panels[0 if steps == budgets[0] else 1]
            axes.contourf(x, y, height, levels=24, cmap="Greys", alpha=0.75)
            for run in range(12):
                axes.plot(*found.states[:, run].T, linewidth=0.6, color=DATA, alpha=0.6)
            axes.scatter(*end.T, s=16, color=SAMPLES, zorder=3)
            axes.scatter(*wells[0], s=180, marker="*", color="gold", edgecolors="k", zorder=4)
            axes.set_title(f"{steps:,} steps of cooling: {100 * ended[-1]:.0f} % end in the lowest well")
            plane(axes, _VIEW)
    panels[2].plot(budgets, ended, marker="o", color=ACCENT, label="end in it")
    panels[2].plot(budgets, met, marker="o", color=DATA, linestyle="--", label="met it on the way")
    panels[2].set(xscale="log", ylim=(0, 1.03), xlabel="cooling time (gradients)", title=f"share of {runs} runs, lowest well")
    panels[2].legend()
    panels[2].grid(alpha=0.3)
    return figure


def guidance(scene: Scene, n: int = 4000) -> Figure:
    """What guidance samples: neither its flow nor its reverse equation ends in the tilted density p(x)^(1-γ) p(x | c)^γ."""
    return guidance_figure(scene.noise, n)


GALLERY: dict[str, Callable[[Scene], Figure]] = {
    "swiss_roll": swiss_roll,
    "score_field": score_field,
    "score_trap": score_trap,
    "sde_and_flow": sde_and_flow,
    "trajectories": trajectories,
    "schedules": schedules,
    "annealing": annealing,
    "guidance": guidance,
}
"""Figures by name."""
