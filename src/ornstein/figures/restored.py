"""Inverse problems as people look at them: what was measured, what it could have been, and how sure one is."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ornstein.contract import Contract
from ornstein.figures.canvas import blank, save
from ornstein.metrics import Ensemble

SHOWN = 8
"""Cases and draws shown at most."""


def restored_picture(
    measured: Tensor | None, ensemble: Ensemble, contract: Contract, path: str | Path, *, truth: Tensor | None = None
) -> None:
    """A row per case: truth, measurement, draws, their mean and standard deviation, and the mean's error where truth is known.

    `measured` (cases, c, h, w) is shown in its own range (None: it is no image), images (cases, C, H, W) in the data's declared
    range; standard deviation and error share one scale, in the data's units, so that an honest spread looks like the error.
    """
    draws = ensemble.draws[:SHOWN, :SHOWN]
    several = ensemble.draws.shape[1] > 1
    columns: list[tuple[str, Tensor, str]] = []
    if truth is not None:
        columns.append(("truth", truth[: len(draws)], "data"))
    if measured is not None:
        columns.append(("measured", measured[: len(draws)], "own"))
    columns += [(f"draw {k + 1}" if several else "restored", draws[:, k], "data") for k in range(draws.shape[1])]
    spread = []
    if several:
        columns.append(("mean", ensemble.mean[: len(draws)], "data"))
        spread.append(("standard deviation", ensemble.std[: len(draws)]))
    if truth is not None:
        spread.append(("error of the mean" if several else "error", (ensemble.mean - truth)[: len(draws)].abs()))
    columns += [(title, images.mean(1, keepdim=True), "spread") for title, images in spread]
    low, high = contract.low, contract.high
    if low is None or high is None:
        low, high = float(ensemble.draws.min()), float(ensemble.draws.max())
    largest = max((float(images.mean(1).amax()) for _, images in spread), default=1.0) or 1.0
    figure = blank(1.25 * len(columns) + 0.8, 1.3 * len(draws) + 0.3)
    axes = figure.subplots(len(draws), len(columns), squeeze=False)
    shade = None
    for place, (title, images, kind) in enumerate(columns):
        for row, image in enumerate(images):
            ends = {"data": (low, high), "spread": (0.0, largest)}.get(kind) or (float(images.min()), float(images.max()))
            shown = _pixels(image, *ends)
            axis = axes[row, place]
            drawn = axis.imshow(shown * (ends[1] - ends[0]) + ends[0] if kind == "spread" else shown, **_look(kind, ends, shown))
            shade = drawn if kind == "spread" else shade
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(title, fontsize=8)
    if shade is not None:
        unit = f" ({contract.units[0]})" if contract.units[0] else ""
        figure.colorbar(shade, ax=axes[:, -len(spread) :], shrink=0.8).set_label(f"units of the data{unit}", fontsize=7)
    save(figure, path)


def _look(kind: str, ends: tuple[float, float], shown: Tensor) -> dict[str, object]:
    if kind == "spread":
        return {"cmap": "magma", "vmin": ends[0], "vmax": ends[1]}
    return {} if shown.ndim == 3 else {"cmap": "gray", "vmin": 0, "vmax": 1}


def _pixels(image: Tensor, low: float, high: float) -> Tensor:
    """An image (C, H, W) as (H, W) or, of three channels, (H, W, 3), in [0, 1]."""
    scaled = ((image.detach().cpu().double() - low) / max(high - low, 1e-12)).clamp(0, 1)
    return scaled.permute(1, 2, 0) if len(image) == 3 else scaled[0] if len(image) == 1 else torch.mean(scaled, 0)
