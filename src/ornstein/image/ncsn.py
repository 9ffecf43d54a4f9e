"""Noise-conditional score networks (row B2): score matching at geometric noise levels, sampled by annealed Langevin dynamics.

| paper | here |
|---|---|
| 1907.05600, eq. 5-6, loss with lambda(sigma) = sigma² | `DenoisingLoss` of eps on `VE`, whose t is uniform in log sigma |
| 1907.05600, algorithm 1 | `samplers.annealed_langevin`, one step size per level |
| 2006.09011, technique 1, the first level | `first_level` |
| technique 2, the ratio of levels | `level_ratio` |
| technique 3, s(x)/sigma without a label | `net.level_free` and `predicts: eps`; without it a network told the level |
| technique 4, step size and steps per level | `steps_per_level`, `samplers.langevin.best_rate` |
| technique 5, averaged weights | `train.ema` |

Training draws sigma from the whole range, the sampler's levels lie in it: their number can be chosen after training.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ornstein.config import Recipe
from ornstein.files import InputError
from ornstein.image.data import ImageData
from ornstein.noise import Noise
from ornstein.samplers.langevin import best_rate, steady_variance

PAIRED = 4096
"""Data of which all pairs are looked at for the largest distance."""


class Choice(NamedTuple):
    """A value and the sentence that says why."""

    value: float
    why: str


def first_level(encoded: Tensor, *, seed: int = 0) -> Choice:
    """Technique 1: sigma_1, the largest Euclidean distance between two data (n, *) in model units.

    At this noise the density has one mode, and a chain can pass from any datum to any other. Of more than `PAIRED` data so
    many are looked at, drawn at random.
    """
    rows = encoded.flatten(1)
    rows = rows[Noise(seed).permutation(len(rows), stream="pairs")[:PAIRED]]
    largest = max(float(torch.cdist(part, rows).max()) for part in rows.split(512))
    return Choice(largest, f"sigma_max {largest:.3g}, the largest distance between two data: at this noise all modes are one")


def level_ratio(dimensions: int, overlap: float = 0.5) -> Choice:
    """Technique 2: the ratio gamma of neighbouring levels at which a share `overlap` of a level's samples suit the next.

    The norm of D-dimensional noise is about normal with mean sqrt(D) sigma and standard deviation sigma/sqrt(2); gamma solves
    Phi(sqrt(2 D) (gamma - 1) + 3 gamma) - Phi(sqrt(2 D) (gamma - 1) - 3 gamma) = overlap.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr

    if not 0 < overlap < 0.99:
        raise ValueError(f"overlap={overlap} must lie in (0, 0.99); 0.5 is usual")
    scale = math.sqrt(2 * dimensions)

    def excess(log_step: float) -> float:
        gamma = 1 + math.exp(log_step)
        centre = scale * (gamma - 1)
        return float(ndtr(centre + 3 * gamma) - ndtr(centre - 3 * gamma)) - overlap

    if excess(_WIDEST) > 0:  # few dimensions: shells of noise overlap however far apart the levels are
        ratio = _LARGEST_RATIO
    else:
        ratio = min(1 + math.exp(float(brentq(excess, -20.0, _WIDEST))), _LARGEST_RATIO)
    return Choice(
        ratio, f"ratio {ratio:.3g} between levels: about half of a level's samples in {dimensions} dimensions suit the next"
    )


_WIDEST = 3.0
_LARGEST_RATIO = 2.0
"""Levels further apart than by this factor are not used, in however few dimensions."""


def number_of_levels(first: float, last: float, ratio: float) -> int:
    """The geometric levels from `first` down to `last`, at most `ratio` apart."""
    if not first > last > 0:
        raise InputError(f"sigma_max {first:.3g} must lie above sigma_min {last:.3g}, and both above 0; set process.options")
    return 1 + math.ceil(math.log(first / last) / math.log(ratio) - 1e-9)


def steps_per_level(calls: int, levels: int, ratio: float) -> Choice:
    """Technique 4: as many Langevin steps at each level as `calls` allow, and the rate with which the noise lags least."""
    steps = max((calls - 1) // levels, 1)
    rate = best_rate(ratio, steps)
    excess = 100 * (steady_variance(rate, ratio, steps) - 1)
    why = f"{steps} steps per level with step size {rate:.3g} sigma²: the noise then lags behind its level by {excess:.0f} %"
    return Choice(steps, why)


def prepare(recipe: Recipe, data: ImageData) -> tuple[Recipe, list[str]]:
    """The recipe with what it leaves open decided from the data, and why: sigma_max, the sampler's steps and calls.

    `sampler.calls` is a limit: the plan takes as many levels as the ratio asks for, and the steps per level that fit.
    """
    if recipe.process.name != "ve" or recipe.sampler.name != "annealed_langevin":
        raise InputError("system='ncsn' goes with process: {name: ve} and sampler: {name: annealed_langevin}; use 'image'")
    reasons, options = [], dict(recipe.process.options)
    encoded = data.contract.encode(data.batch(range(len(data)))["x"])
    if "sigma_max" not in options:
        first = first_level(encoded, seed=recipe.train.seed)
        options["sigma_max"] = round(first.value, 4)
        reasons.append(first.why)
    sampler: dict[str, Any] = dict(recipe.sampler.options)
    calls = recipe.sampler.calls
    if "steps" not in sampler:
        ratio = level_ratio(encoded[0].numel())
        levels = number_of_levels(float(options["sigma_max"]), float(options.get("sigma_min", 0.01)), ratio.value)  # type: ignore[arg-type]
        actual = (float(options["sigma_max"]) / float(options.get("sigma_min", 0.01))) ** (1 / (levels - 1))  # type: ignore[arg-type]
        steps = steps_per_level(calls, levels, actual)
        sampler["steps"] = int(steps.value)
        calls = min(levels * int(steps.value) + 1, calls)
        reasons += [ratio.why, f"{levels} levels, {calls} calls", steps.why]
    if recipe.net.level_free:
        reasons.append("the network is not told the level: one function serves all, divided by sigma")
    reasons.append(f"weights averaged with decay {recipe.train.ema:g}: a score's last steps shift the grey of all samples")
    process = recipe.process.model_copy(update={"options": options})
    changed = recipe.sampler.model_copy(update={"options": sampler, "calls": calls})
    return recipe.model_copy(update={"process": process, "sampler": changed}), reasons
