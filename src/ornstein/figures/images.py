"""Pictures of images: grids of samples, the strip of a forward and a reverse run; and of loss curves and plans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ornstein.calibration import Pairs, shares_of, table_of
from ornstein.contract import Contract
from ornstein.denoiser import Denoises
from ornstein.figures.canvas import blank, save
from ornstein.figures.vectors import deviation, even_times
from ornstein.files import write_atomic
from ornstein.image.cold import ColdSystem, restore
from ornstein.noise import Noise
from ornstein.process import GaussianProcess
from ornstein.samplers import Plan, Trajectory, ddim, dpm_solver_pp, sample
from ornstein.system import CondInput, System

SMALLEST = 48
"""Pixels that the smaller side of a tile is enlarged to at least."""


def image_grid(images: Tensor, contract: Contract, path: str | Path, *, columns: int | None = None) -> NDArray[np.uint8]:
    """Images (N, C, H, W) in the data's own range as one PNG of tiles, row by row; the pixels are returned (H, W, 3).

    Declared ranges map to black and white; without one the smallest and largest value shown do.
    """
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    low = contract.low if contract.low is not None else float(images.min())
    high = contract.high if contract.high is not None else float(images.max())
    grey = ((images.cpu().double() - low) / max(high - low, 1e-12)).clamp(0, 1).mul(255).round().to(torch.uint8)
    shown = grey if channels == 3 else grey[:, :1].expand(-1, 3, -1, -1)
    enlarge = max(1, math.ceil(SMALLEST / min(height, width)))
    tiles = np.full((rows, columns, height * enlarge + 2, width * enlarge + 2, 3), 255, np.uint8)
    pixels = shown.permute(0, 2, 3, 1).numpy().repeat(enlarge, 1).repeat(enlarge, 2)
    for index, tile in enumerate(pixels):
        tiles[index // columns, index % columns, 1:-1, 1:-1] = tile
    picture = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * tiles.shape[2], columns * tiles.shape[3], 3)
    _save(picture, path)
    return picture


def strip(system: System, data: Tensor, path: str | Path, *, cond: CondInput = None, shown: int = 9, seed: int = 0) -> None:
    """Two pictures in one: data (n, *) on their way to noise (upper rows), and samples on their way back (lower rows)."""
    process, noise, sigma_data = system.denoiser.process, Noise(seed), system.denoiser.sigma_data
    x0 = system.contract.encode(data)
    times = even_times(process, sigma_data, 4 * (shown - 1))
    eps = noise.normal(x0.shape, stream="figure")
    forward = [process.corrupt(x0, t, eps) / deviation(process, t, sigma_data) for t in (None, *reversed(times[::4]))]
    seen = Trajectory()
    system.sample(len(data), cond=cond, sampler=ddim(process, len(times), times), noise=noise, after=seen)
    backward = [process.prior(x0.shape, noise) / deviation(process, 1.0, sigma_data)]
    backward += [seen.states[k].cpu() / deviation(process, seen.times[k], sigma_data) for k in range(3, len(times), 4)]
    rows = torch.cat([torch.stack(forward, 1), torch.stack(backward, 1)]).flatten(0, 1)
    image_grid(system.contract.decode(rows), system.contract, path, columns=shown)


def restorations(system: ColdSystem, data: Tensor, path: str | Path, *, shown: int = 9, seed: int = 0) -> None:
    """`strip` of a cold model: data (n, *) on their way to the end (upper rows), and back by its sampler (lower rows)."""
    x0, eps = system.contract.encode(data), system.process.state(data.shape, Noise(seed))
    steps = system.process.steps
    forward = [system.process.degrade(x0, round(steps * k / (shown - 1)), eps) for k in range(shown)]
    sampler = system.sampler_for()
    with torch.no_grad():
        states = [x for _, x in restore(system.net, system.process, forward[-1], sampler, eps)]
    backward = [states[round(sampler.calls * k / (shown - 1))] for k in range(shown)]
    rows = torch.cat([torch.stack(forward, 1), torch.stack(backward, 1)]).flatten(0, 1)
    image_grid(system.contract.decode(rows), system.contract, path, columns=shown)


def loss_curve(rows: list[dict[str, str]], path: str | Path) -> None:
    """Training and validation loss against the step, from the rows of log.csv."""
    figure = blank(7, 3.5)
    axes = figure.add_subplot()
    for key, label in (("loss", "training"), ("validation", "held out (averaged weights)")):
        points = [(int(row["step"]), float(row[key])) for row in rows if row.get(key)]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(
                steps, values, label=label, markersize=3, marker="" if key == "loss" else "o", alpha=0.35 if key == "loss" else 1
            )
            if key == "loss" and len(values) > 20:
                window = max(5, len(values) // 40)
                smooth = np.convolve(values, np.ones(window) / window, "valid")
                axes.plot(steps[window - 1 :], smooth, color="C0", label="training, smoothed")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def calibration_picture(
    denoiser: Denoises, contract: Contract, plans: Sequence[tuple[Plan, Plan]], draws: Pairs, path: str | Path, *, shown: int = 10
) -> None:
    """The same start noise, a column each, by rows: of every two plans the start and the calibrated one; last the fine flow."""
    known = draws.head(shown)
    rows = [
        sample(denoiser, plan, start=known.start, noise=Noise(0), cond=known.cond, first=known.first)
        for pair in plans
        for plan in pair
    ]
    image_grid(contract.decode(torch.cat([*rows, known.end])), contract, path, columns=len(known))


def plan_picture(plan: Plan, process: GaussianProcess, path: str | Path) -> None:
    """A deterministic plan's times and coefficients beside those of DPM-Solver++(2M) with as many calls.

    Left the noise level log(sigma/alpha) of every call; right the weight of every answer D_i in what call k (row) hands on,
    both plans written for x0 and divided by the step's weight for a constant x0, so that every row of DPM-Solver++ sums to 1.
    """
    plans = {plan.name: plan, "DPM-Solver++(2M)": dpm_solver_pp(process, plan.calls)}
    figure = blank(13, 4)
    axes = figure.subplots(1, 3)
    for (name, one), marker, place in zip(plans.items(), ("o", "s"), axes[1:], strict=True):
        table = table_of(one, process)
        levels = process.log_ratio(table.times).clamp(max=12.0)
        axes[0].plot(range(one.calls), levels, marker=marker, label=name)
        shares = shares_of(table, process)
        shade = place.imshow(np.ma.masked_invalid(shares.numpy()), cmap="RdBu_r", vmin=-3, vmax=3)
        place.set(title=name, xlabel="answer D_i", ylabel="call k", xticks=range(one.calls), yticks=range(one.calls))
        if one.calls <= 10:
            for (k, i), share in np.ndenumerate(np.tril(shares.nan_to_num().numpy())):
                if i <= k:
                    colour, shown = "w" if abs(share) > 2 else "k", f"{round(float(share), 2) + 0.0:g}"
                    place.text(i, k, shown, ha="center", va="center", fontsize=7, color=colour)
        figure.colorbar(shade, ax=place, shrink=0.8)
    axes[0].set(xlabel="call", ylabel="log(sigma/alpha)", title="noise levels")
    axes[0].grid(alpha=0.3)
    axes[0].legend()
    save(figure, path, dpi=110)


def _save(picture: NDArray[np.uint8], path: str | Path) -> None:
    from PIL import Image

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with write_atomic(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
