"""Two modes as a scene for the figures, cheap to draw, and what a panel shows, as numbers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from PIL import Image
from torch import Tensor

from ornstein import figures
from ornstein.figures import animate, gallery
from ornstein.figures.gallery import Scene
from ornstein.noise import Noise
from ornstein.process import GaussianProcess
from ornstein.samplers import Annealed
from ornstein.testing import MixtureDenoiser

POINTS = 80
MODES = torch.tensor([[1.5, -0.5], [-1.0, 1.0]], dtype=torch.float64)


def two_modes(chosen: GaussianProcess) -> MixtureDenoiser:
    """0.4 and 0.6 at `MODES`, each 0.1 wide."""
    return MixtureDenoiser(MODES, torch.full((2,), 0.1), torch.tensor([0.4, 0.6], dtype=torch.float64), chosen)


_density = gallery.density


def coarse_density(axes: Axes, law: MixtureDenoiser, t: float | None, limit: float, side: int = 0) -> None:
    """The shades of a law on 40 × 40 places, whatever the side."""
    _density(axes, law, t, limit, 40)


def cheap_scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Two modes; figures of it draw few points and coarse densities, and cool thirty runs for at most 60 steps."""
    for module in (gallery, animate, figures):
        monkeypatch.setattr(module, "POINTS", POINTS)
    full = gallery.wells_runs

    def short(scene: Scene, steps: int, runs: int, kept: int) -> tuple[Annealed, Tensor, tuple[Tensor, Tensor, Tensor]]:
        return full(scene, min(steps, 60), min(runs, 30), kept)

    for module in (gallery, animate):
        monkeypatch.setattr(module, "wells_runs", short)
    monkeypatch.setattr(gallery, "density", coarse_density)
    return Scene(two_modes, Noise(0))


def offsets(axes: Axes, which: int = 0) -> Tensor:
    """The points of a scatter plot, (n, 2)."""
    return torch.from_numpy(np.asarray(axes.collections[which].get_offsets(), np.float64))


def arrows(axes: Axes) -> tuple[Tensor, Tensor, Tensor | None]:
    """Places and arrows of a quiver plot, each (n, 2), and what its colours stand for, (n,)."""
    quiver = next(part for part in axes.collections if isinstance(part, Quiver))
    size = quiver.get_array()
    places, field = torch.from_numpy(quiver.XY.copy()), torch.from_numpy(np.stack([quiver.U, quiver.V], 1))
    return places, field, None if size is None else torch.from_numpy(np.asarray(size, np.float64))


def cosines(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b, dim=1)


def percents(axes: Axes) -> list[int]:
    return [int(number) for number in re.findall(r"(\d+) %", axes.get_title())]


def panels_with_ink(figure: Figure, path: Path, dpi: int = 70) -> None:
    """Save a figure, and see that every panel of the picture has more than one colour within its frame."""
    figures.save(figure, path, dpi=dpi)
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L")).astype(float)
    assert figure.axes
    for axes in figure.axes:
        box = axes.get_position()
        height, width = pixels.shape
        left, right = round(width * box.x0) + 6, round(width * box.x1) - 6
        top, bottom = round(height * (1 - box.y1)) + 6, round(height * (1 - box.y0)) - 6
        assert pixels[top:bottom, left:right].std() > 3, axes.get_title()
