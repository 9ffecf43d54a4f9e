"""What all matplotlib figures share: a canvas without a display, one look, and files written whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ornstein.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATA, SAMPLES, ACCENT = "#1f4e79", "#c0562f", "#2a7f62"
"""Colours of data, of samples, and of a third thing."""


def blank(width: float, height: float) -> Figure:
    """An empty figure of so many inches, drawn off screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path, dpi: int = 130) -> None:
    """Write a figure as .png, .pdf or .svg, by the name's ending."""
    with write_atomic(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def plane(axes: Axes, limit: float) -> None:
    """A square window of the plane, [-limit, limit]², without ticks."""
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect="equal")
    for side in axes.spines.values():
        side.set(color="0.7", linewidth=0.8)
