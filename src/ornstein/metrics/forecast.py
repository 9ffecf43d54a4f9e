"""Scores of forecasts in draws: quantile loss, CRPS, energy score, errors of median and mean, and calibration.

Everywhere draws are (windows, draws, time, channel) and truth is (windows, time, channel), NumPy arrays in the data's units. A
NaN in truth is a number that nobody knows: it is not evaluated, and draws are not looked at there. InputError for other shapes,
for a truth without a known number or with infinity, and for draws that are not finite where the truth is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ornstein.files import InputError
from ornstein.metrics.ensemble import Ensemble
from ornstein.noise import Noise

Array = NDArray[np.float64]

QUANTILES: tuple[float, ...] = tuple(k / 20 for k in range(1, 20))
"""0.05, 0.10, … 0.95: the levels over which the papers on forecasting average."""
_PAIRS = 2**20  # numbers of a piece of the energy score's differences between draws: 8 MiB


def weighted_quantile_loss(draws: NDArray[Any], truth: NDArray[Any], quantiles: Sequence[float] = QUANTILES) -> float:
    """GluonTS's mean_wQuantileLoss, which the papers on TimeGrad and CSDI call CRPS; no units.

    The mean over q of  2 Σ |(y - y_q)(1[y ≤ y_q] - q)| / Σ |y|,  both sums over all known numbers of all windows. The quantile
    y_q of n draws is, as in GluonTS, the draw of place round((n - 1)·q) in ascending order, counted from 0, halves to even: no
    interpolation. InputError also for levels outside (0, 1), and a truth of nothing but zeros.
    Source: Rasul et al. 2021, arXiv 2101.12072, section 4.1; Park et al. 2022, arXiv 2111.06581.
    """
    x, y = _evaluated(draws, truth)
    levels = np.asarray(quantiles, np.float64)
    if levels.ndim != 1 or len(levels) == 0 or not ((levels > 0) & (levels < 1)).all():
        raise InputError(f"quantiles={quantiles} must be one or more levels between 0 and 1, such as (0.1, 0.5, 0.9)")
    total = float(np.abs(y).sum())
    if total == 0:
        raise InputError("truth holds nothing but zeros, which the weighted quantile loss divides by; use crps")
    places = np.round((x.shape[1] - 1) * levels).astype(np.int64)
    error = np.sort(x, 1)[:, places] - y[:, None]
    return float(2 * np.abs(error * ((error >= 0) - levels)).sum(0).mean() / total)


def crps_sum(draws: NDArray[Any], truth: NDArray[Any], quantiles: Sequence[float] = QUANTILES) -> float:
    """`weighted_quantile_loss` of the sum over channels, in draws and truth: CRPS-sum of the papers on many channels at once.

    A time at which a channel is not known has no sum and is not evaluated. Source: Salinas et al. 2019, arXiv 1910.03002.
    """
    x, y = _checked(draws, truth)
    return weighted_quantile_loss(x.sum(-1, keepdims=True), y.sum(-1, keepdims=True), quantiles)


def crps(draws: NDArray[Any], truth: NDArray[Any]) -> float:
    """The continuous ranked probability score, E|x - y| - ½ E|x - x'|, mean over all known numbers, in the data's units.

    The fair estimate: the second mean is over the n(n - 1) pairs of different draws, so that the expected score does not depend
    on n. (Computed from the ranks, scoringrules' "pwm", which is the same number without the pairs.) Unlike
    `weighted_quantile_loss` it is not divided by the truth's size. InputError also for a single draw.
    Source: Gneiting and Raftery 2007; Ferro 2014, doi 10.1002/qj.2270.
    """
    import scoringrules

    x, y = _evaluated(draws, truth)
    _demand_two(x.shape[1])
    return float(scoringrules.crps_ensemble(y, x, estimator="pwm", backend="numpy").mean())


def energy_score(draws: NDArray[Any], truth: NDArray[Any], over: str = "channel") -> float:
    """The energy score, E‖x - y‖ - ½ E‖x - x'‖: CRPS of vectors, which sees how the numbers of one draw belong together.

    The vectors are the channels of every time (over="channel"), or times and channels of every window (over="all"); the score
    is the mean over them, fair as in `crps`, in the data's units, so that a channel of large numbers dominates. Unknown numbers
    are left out of their vector. InputError also for a single draw and another `over`.
    Source: Gneiting and Raftery 2007, doi 10.1198/016214506000001437.
    """
    import scoringrules

    x, y = _checked(draws, truth)
    if over not in {"channel", "all"}:
        raise InputError(f"over={over!r} is not one of channel, all")
    _, n, time, channels = x.shape
    _demand_two(n)
    size = channels if over == "channel" else time * channels
    known = np.isfinite(y)
    # a number that is 0 in the truth and in every draw adds nothing to any distance
    points = np.where(known, y, 0).reshape(-1, size)
    clouds = np.where(known[:, None], x, 0)
    clouds = (clouds.swapaxes(1, 2) if over == "channel" else clouds).reshape(-1, n, size)
    seen = known.reshape(-1, size).any(1)
    points, clouds = points[seen], clouds[seen]
    rows = max(1, _PAIRS // (n * n * size))
    scores = [
        scoringrules.es_ensemble(points[k : k + rows], clouds[k : k + rows], estimator="fair", backend="numpy")
        for k in range(0, len(points), rows)
    ]
    return float(np.concatenate(scores).mean())


def mae(draws: NDArray[Any], truth: NDArray[Any]) -> float:
    """The mean absolute error of the draws' median, in the data's units."""
    x, y = _evaluated(draws, truth)
    return float(np.abs(np.median(x, 1) - y).mean())


def rmse(draws: NDArray[Any], truth: NDArray[Any]) -> float:
    """The root mean square error of the draws' mean, in the data's units."""
    x, y = _evaluated(draws, truth)
    return float(np.sqrt(np.square(x.mean(1) - y).mean()))


def mase(draws: NDArray[Any], truth: NDArray[Any], history: NDArray[Any], season: int | None = None) -> float:
    """The mean absolute scaled error: that of the draws' median, each channel divided by mean |h_t - h_{t-season}| of `history`.

    `history` is what came before, (time, channel), or (windows, time, channel) for a scale per window; NaN where not known.
    `season` is in steps, 1 unless given. Channels that have no scale, because they never change or were not seen twice a season
    apart, are left out; InputError if none is left. Source: Hyndman and Koehler 2006, doi 10.1016/j.ijforecast.2006.03.001.
    """
    x, y = _checked(draws, truth)
    past = np.asarray(history, np.float64)
    lag = 1 if season is None else season
    if lag < 1:
        raise InputError(f"season={season} must be 1 or more steps, or None for 1")
    if past.ndim not in {2, 3} or past.shape[-1] != y.shape[-1] or (past.ndim == 3 and len(past) != len(y)):
        raise InputError(f"history has shape {past.shape} for truth {y.shape}; give (time, channel) or one such per window")
    change = np.abs(past[..., lag:, :] - past[..., :-lag, :])
    known = np.isfinite(change)
    total = np.where(known, change, 0).sum(-2)
    usable = total > 0
    scale = np.where(usable, total, np.nan) / np.maximum(known.sum(-2), 1)
    error = np.abs(np.median(x, 1) - y) / scale.reshape(-1, 1, y.shape[-1])
    if not np.isfinite(error).any():
        raise InputError(
            f"no channel of history changes over {lag} steps where truth is known; give a longer history or season=1"
        )
    return float(error[np.isfinite(error)].mean())


def coverage(draws: NDArray[Any], truth: NDArray[Any], level: float = 0.9) -> float:
    """The share of the known numbers within their central interval of probability `level`; honest draws have `level`.

    See `Ensemble.coverage`. InputError also for too few draws: 19 are needed for 0.9, 9 for 0.8.
    """
    x, y = _evaluated(draws, truth)
    try:
        return Ensemble(torch.from_numpy(x)).coverage(torch.from_numpy(y), level)
    except ValueError as error:
        raise InputError(str(error)) from error


def pit(draws: NDArray[Any], truth: NDArray[Any], noise: Noise, *, first: int = 0) -> Array:
    """The randomised probability integral transform, (windows, time, channel), NaN where truth is: uniform for honest draws.

    (b + u·(e + 1)) / (n + 1)  with b draws below the truth, e equal to it, and u uniform on (0, 1), that of window first + i.
    Exactly uniform for any number of draws and any law, one with ties too. Source: Czado, Gneiting and Held 2009.
    """
    x, y = _checked(draws, truth)
    u = noise.uniform(y.shape, stream="pit", first=first).numpy()
    below, equal = (x < y[:, None]).sum(1), (x == y[:, None]).sum(1)
    return np.where(np.isfinite(y), (below + u * (equal + 1)) / (x.shape[1] + 1), np.nan)


def rank_histogram(
    draws: NDArray[Any], truth: NDArray[Any], noise: Noise, *, bins: int | None = None, first: int = 0
) -> NDArray[np.int64]:
    """How many known numbers have rank 0 … n among their n draws, (n + 1,), or `bins` equal parts of `pit`; flat if honest.

    A hump in the middle is too wide a forecast, two at the ends too narrow a one, a slope a bias.
    Source: Hamill 2001, doi 10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2.
    """
    if bins is not None and bins < 1:
        raise InputError(f"bins={bins} must be 1 or more")
    values = pit(draws, truth, noise, first=first)
    parts = np.shape(draws)[1] + 1 if bins is None else bins
    places = np.floor(values[np.isfinite(values)] * parts).astype(np.int64)
    return np.bincount(np.minimum(places, parts - 1), minlength=parts)


def pit_uniformity(values: NDArray[Any]) -> float:
    """The p-value of the Kolmogorov-Smirnov test that `pit` values, of any shape, are uniform; NaN are left out.

    The test takes them for independent: give one step of disjoint windows, `pit(…)[:, 0, 0]`. InputError for no value at all,
    or one outside [0, 1].
    """
    from scipy.stats import kstest

    flat = np.asarray(values, np.float64).ravel()
    flat = flat[~np.isnan(flat)]
    if len(flat) == 0 or flat.min() < 0 or flat.max() > 1:
        raise InputError("values must be numbers in [0, 1], at least one; give what pit returns")
    return float(kstest(flat, "uniform").pvalue)


def _demand_two(draws: int) -> None:
    if draws < 2:
        raise InputError("one draw has no spread; ask for draws=2 or more")


def _checked(draws: NDArray[Any], truth: NDArray[Any]) -> tuple[Array, Array]:
    """Both as float64 arrays that fit each other and are finite where they are looked at."""
    x, y = np.asarray(draws, np.float64), np.asarray(truth, np.float64)
    if x.ndim != 4 or x.shape[1] < 1:
        raise InputError(f"draws have shape {x.shape}; give (windows, draws, time, channel) with at least one draw")
    if y.shape != (x.shape[0], *x.shape[2:]):
        raise InputError(f"truth has shape {y.shape}, the draws are of {(x.shape[0], *x.shape[2:])}; give one truth per window")
    if np.isinf(y).any():
        raise InputError("truth holds infinity; give NaN where it is not known")
    known = ~np.isnan(y)
    if not known.any():
        raise InputError("truth holds no number, so there is nothing to evaluate; give windows with known values")
    if not np.isfinite(np.moveaxis(x, 1, -1)[known]).all():
        raise InputError("draws hold NaN or infinity where truth is known; give finite draws")
    return x, y


def _evaluated(draws: NDArray[Any], truth: NDArray[Any]) -> tuple[Array, Array]:
    """The known numbers alone, (known,), and their draws, (known, draws)."""
    x, y = _checked(draws, truth)
    known = ~np.isnan(y)
    return np.moveaxis(x, 1, -1)[known], y[known]
