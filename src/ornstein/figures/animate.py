"""Animations of the notes' figures as GIFs: points on their way to noise and back, and runs that cool down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ornstein.figures.canvas import ACCENT, DATA, SAMPLES, blank, plane
from ornstein.figures.gallery import Scene, roll_parts, trap_runs, wells_runs
from ornstein.figures.vectors import POINTS, deviation, path_back
from ornstein.files import write_atomic

Frame = NDArray[np.uint8]
_PAUSE = 12
"""Frames that the first and the last picture stay."""


def _still(figure: object) -> Frame:
    canvas = figure.canvas  # type: ignore[attr-defined]
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _xy(points: Tensor) -> tuple[Tensor, Tensor]:
    return points[:, 0], points[:, 1]


def swiss_roll(scene: Scene, frames: int = 40) -> Iterator[Frame]:
    """Data to noise, then noise to samples."""
    denoiser, data, sigma_data = roll_parts(scene)
    process = denoiser.process
    times, states = path_back(denoiser, data[:POINTS].shape, scene.noise, sigma_data, frames)
    eps = scene.noise.normal(data.shape, stream="figure")
    there = [(None, data), *((t, process.corrupt(data, t, eps)) for t in reversed(times))]
    back = [*zip(times, states, strict=False), (None, states[-1])]
    for name, colour, steps in (("forward: data to noise", DATA, there), ("reverse: noise to samples", SAMPLES, back)):
        for t, x in steps:
            figure = blank(4.2, 4.4)
            axes = figure.subplots()
            axes.scatter(*_xy(x.cpu().double() / deviation(process, t, sigma_data)), s=4, color=colour, alpha=0.6, linewidths=0)
            axes.set_title(f"{name}, t = {0.0 if t is None else t:.2f}", fontsize=10)
            plane(axes, 2.8)
            yield _still(figure)


def score_trap(scene: Scene, frames: int = 40) -> Iterator[Frame]:
    """Chains of plain and of annealed Langevin dynamics side by side."""
    _, plain, annealed = trap_runs(scene, 800)
    for part in np.linspace(0, 1, frames) ** 1.5:
        figure = blank(7.6, 4.2)
        for axes, name, runs, colour in zip(
            figure.subplots(1, 2), ("plain Langevin", "annealed"), (plain, annealed), (SAMPLES, ACCENT), strict=True
        ):
            x = runs[round(part * (len(runs) - 1))]
            share = 100 * float((x.sum(1) < 0).double().mean())
            axes.scatter(*_xy(x), s=4, color=colour, alpha=0.7, linewidths=0)
            axes.set_title(f"{name}: {share:.0f} % left (truth 20 %)", fontsize=10)
            plane(axes, 16.0 if name == "annealed" and part < 0.1 else 9.0)
        yield _still(figure)


def annealing(scene: Scene, frames: int = 60) -> Iterator[Frame]:
    """A hundred runs on the energy of many wells while the temperature falls."""
    found, wells, (x, y, height) = wells_runs(scene, 3000, 100, frames)
    for temperature, state in zip(found.temperatures, found.states, strict=True):
        figure = blank(4.6, 4.6)
        axes = figure.subplots()
        axes.contourf(x, y, height, levels=24, cmap="Greys", alpha=0.75)
        axes.scatter(*_xy(wells[:1]), s=160, marker="*", color="gold", edgecolors="k", zorder=2)
        axes.scatter(*_xy(state), s=12, color=SAMPLES, zorder=3)
        share = 100 * float((torch.cdist(state, wells).argmin(1) == 0).double().mean())
        axes.set_title(f"temperature {float(temperature):.2f}: {share:.0f} % in the lowest well", fontsize=10)
        plane(axes, 4.4)
        yield _still(figure)


ANIMATIONS: dict[str, Callable[[Scene], Iterator[Frame]]] = {
    "swiss_roll": swiss_roll,
    "score_trap": score_trap,
    "annealing": annealing,
}
"""Figures that move, by name."""


def write_gif(frames: Iterator[Frame], path: str | Path, *, milliseconds: int = 80) -> None:
    """Frames (H, W, 3) as a GIF that loops for ever and rests on its first and last one."""
    from PIL import Image

    pictures = [Image.fromarray(frame).quantize(64) for frame in frames]
    shown = [pictures[0]] * (_PAUSE // 2) + pictures + [pictures[-1]] * _PAUSE
    with write_atomic(path) as temporary:
        shown[0].save(temporary, save_all=True, append_images=shown[1:], duration=milliseconds, loop=0, optimize=False)
