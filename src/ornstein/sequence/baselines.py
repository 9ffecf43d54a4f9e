"""Honest baselines beside every model: what a forecast or an imputation must beat before it is worth its training.

A forecaster is f(history, horizon, draws, *, season, noise, first=0) -> (draws, horizon, C): `history` (T, C) is all that it may
see, NaN where not known; draw j is sample first + j of the noise. An imputer is f(values, *, draws, noise, first=0,
fallback=None) -> (draws, T, C): what is known of `values` (T, C) stays, bit for bit. All in the data's own units, float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ornstein.files import InputError
from ornstein.noise import Noise

Array = NDArray[np.float64]
Forecaster = Callable[..., Array]
Imputer = Callable[..., Array]

WALK_STEPS = 250
"""Differences from which the Gaussian walk takes its covariance: about a year of working days."""
_REGRESSORS = 240  # coefficients per equation of a VAR at most, and observations per coefficient at least
_PER_REGRESSOR = 5
_GP_POINTS = 2000  # observations of a channel above which a Gaussian process, of cubic cost, is refused


def last_value(history: Array, horizon: int, draws: int, *, season: int | None, noise: Noise, first: int = 0) -> Array:
    """The last known value of every channel, for ever; all draws agree. InputError for a channel without a known number."""
    past = checked_history(history, horizon, draws)
    return np.stack([np.repeat(_forward(past)[-1:], horizon, 0)] * draws)


def seasonal_naive(history: Array, horizon: int, draws: int, *, season: int | None, noise: Noise, first: int = 0) -> Array:
    """What was last seen at the same place of the season, y_{T+h} = y_{T+h-k·season} with the least such k; all draws agree.

    A place of the season at which a channel was never seen takes the channel's last known value. InputError without a season,
    for a history shorter than one, and for a channel without a known number.
    """
    past = checked_history(history, horizon, draws)
    return np.stack([_last_season(past, horizon, _season(season, past, 1))] * draws)


def seasonal_bootstrap(history: Array, horizon: int, draws: int, *, season: int | None, noise: Noise, first: int = 0) -> Array:
    """`seasonal_naive` plus whole seasons of its own past errors, drawn with replacement, jointly over channels.

    Errors are y_t - y_{t-season} of seasons that end with the history or whole seasons before; gaps in y are interpolated for
    them alone. k seasons ahead k such errors are added up, as the forecast is then repeated k times. InputError as
    `seasonal_naive`, and for fewer than two seasons in which every channel has been seen.
    """
    past = checked_history(history, horizon, draws)
    length = _season(season, past, 2)
    centre = _last_season(past, horizon, length)
    seen = _since_all_seen(past)
    blocks = len(seen) // length - 1
    if blocks < 1:
        raise InputError(
            f"history has {len(seen)} steps in which every channel has been seen; {2 * length}, two seasons, are needed"
        )
    filled = interpolated(seen)
    change = (filled[length:] - filled[:-length])[-blocks * length :].reshape(blocks, length, -1)
    ahead = -(-horizon // length)
    chosen = (noise.uniform((draws, ahead), stream="baseline/season", first=first).numpy() * blocks).astype(np.int64)
    error = change[chosen].cumsum(1).reshape(draws, ahead * length, -1)
    return centre + error[:, :horizon]


def gaussian_walk(history: Array, horizon: int, draws: int, *, season: int | None, noise: Noise, first: int = 0) -> Array:
    """A driftless random walk, x_{t+1} = x_t + N(0, Σ), from the last known values.

    Σ is the mean of ΔΔ' over the last 250 differences, jointly over channels, no mean taken off. Over a gap the value is held
    and the difference at its end stands for all its steps, as is right for a walk; a channel last seen k steps before the end
    starts its walk there. InputError for fewer than two steps in which every channel has been seen.
    """
    past = checked_history(history, horizon, draws)
    seen = _since_all_seen(past)
    if len(seen) < 2:
        raise InputError(f"history has {len(seen)} steps in which every channel has been seen; the Gaussian walk needs 2 or more")
    held = _forward(seen)
    change = np.diff(held, axis=0)[-WALK_STEPS:]
    late = np.isfinite(past)[::-1].argmax(0)  # steps since each channel was seen
    steps = int(late.max()) + horizon
    z = normals((draws, steps, past.shape[1]), noise, "baseline/walk", first)
    moves = z @ root(change.T @ change / len(change)).T
    moves *= np.arange(steps)[:, None] >= late.max() - late
    return held[-1] + moves.cumsum(1)[:, -horizon:]


def vector_autoregression(history: Array, horizon: int, draws: int, *, season: int | None, noise: Noise, first: int = 0) -> Array:
    """VAR(p), y_t = c + Σ A_i y_{t-i} + N(0, Σ) by least squares: draws of its exact Gaussian law for the fitted numbers.

    The order p, at most 12·(T/100)^¼, is that of the least AIC (statsmodels). Fitted on the steps after the last gap. InputError
    where it cannot be fitted: too few steps since the last gap, a channel that never changes there, or channels of which one
    is a combination of the others. Source: Lütkepohl 2005, New Introduction to Multiple Time Series Analysis, chapters 3 and 4.
    """
    past = checked_history(history, horizon, draws)
    channels = past.shape[1]
    gaps = np.flatnonzero(~np.isfinite(past).all(1))
    run = past[gaps[-1] + 1 :] if len(gaps) else past
    # every coefficient of the largest order must rest on several observations
    most = min(int(12 * (len(run) / 100) ** 0.25), (len(run) // _PER_REGRESSOR - 1) // channels, _REGRESSORS // channels)
    if most < 1:
        needed = f"{_PER_REGRESSOR * (channels + 1)} steps without a gap at the end and at most {_REGRESSORS} channels"
        raise InputError(f"history has {len(run)} steps since its last gap and {channels} channels; a VAR needs {needed}")
    centre, scale = run.mean(0), run.std(0)
    if flat := np.flatnonzero(np.ptp(run, 0) == 0).tolist():
        raise InputError(f"channel {flat[0]} of history never changes since its last gap; a VAR cannot be fitted, leave it out")
    standard = (run - centre) / scale
    try:
        if np.linalg.matrix_rank(np.diff(standard, axis=0)) < channels:
            raise np.linalg.LinAlgError("a channel is a combination of others")
        order, intercept, coefficients, covariance = _fitted(standard, most)
        factor = root(covariance)
    except (np.linalg.LinAlgError, ValueError) as error:
        raise InputError(f"history of {len(run)} steps has no VAR ({error}); leave out channels") from error
    shocks = normals((draws, horizon, channels), noise, "baseline/var", first) @ factor.T
    path = np.concatenate([np.repeat(standard[None, len(standard) - order :], draws, 0), shocks], 1)
    for step in range(order, order + horizon):
        path[:, step] += intercept
        for lag in range(order):
            path[:, step] += path[:, step - 1 - lag] @ coefficients[lag].T
    return centre + scale * path[:, order:]


def _fitted(x: Array, most: int) -> tuple[int, Array, Array, Array]:
    """Order, intercept (C,), coefficients (order, C, C) and covariance (C, C) of the autoregression of x with the least AIC."""
    from statsmodels.tsa.api import VAR
    from statsmodels.tsa.ar_model import ar_select_order

    if x.shape[1] > 1:
        fitted = VAR(x).fit(most, ic="aic", trend="c")
        return int(fitted.k_ar), np.asarray(fitted.intercept), np.asarray(fitted.coefs), np.asarray(fitted.sigma_u)
    chosen = ar_select_order(x[:, 0], most, ic="aic", trend="c")  # statsmodels' VAR wants two channels
    fitted = chosen.model.fit()
    numbers, order = np.asarray(fitted.params), len(chosen.ar_lags or ())
    return order, numbers[:1], numbers[1:].reshape(order, 1, 1), np.full((1, 1), float(fitted.sigma2))


FORECASTERS: dict[str, Forecaster] = {
    "last value": last_value,
    "seasonal naive": seasonal_naive,
    "seasonal naive + residuals": seasonal_bootstrap,
    "gaussian walk": gaussian_walk,
    "var": vector_autoregression,
}
"""Forecasters by the names under which tables show them; `linear.fit_linear` gives one more, which is trained."""


@dataclass(frozen=True, eq=False)
class Marginals:
    """Mean and standard deviation of every channel, (C,) each, of training data: for windows in which a channel is not seen."""

    mean: Array
    std: Array

    @staticmethod
    def of(train: NDArray[Any]) -> Marginals:
        """Those of the known numbers of train (…, C); InputError for a channel without any."""
        flat = np.asarray(train, np.float64).reshape(-1, np.shape(train)[-1])
        demand_seen(flat, "train")
        return Marginals(np.nanmean(flat, 0), np.nanstd(flat, 0))


def impute_mean(values: Array, *, draws: int, noise: Noise, first: int = 0, fallback: Marginals | None = None) -> Array:
    """The mean of what is known of the channel in this window; all draws agree.

    A channel of which nothing is known takes `fallback.mean`, here and in the other imputers; InputError without one.
    """
    x = _seeded(_values(values, draws, fallback), fallback)
    known = np.isfinite(x)
    mean = np.where(known, x, 0).sum(0) / known.sum(0)
    return np.stack([np.where(known, x, mean)] * draws)


def impute_last(values: Array, *, draws: int, noise: Noise, first: int = 0, fallback: Marginals | None = None) -> Array:
    """The last known value before; the first known one where there is none before. All draws agree."""
    x = _seeded(_values(values, draws, fallback), fallback)
    return np.stack([_forward(_forward(x)[::-1])[::-1]] * draws)


def impute_linear(values: Array, *, draws: int, noise: Noise, first: int = 0, fallback: Marginals | None = None) -> Array:
    """The straight line between the known values on either side; the nearest known one at the ends. All draws agree."""
    return np.stack([interpolated(_seeded(_values(values, draws, fallback), fallback))] * draws)


def impute_process(values: Array, *, draws: int, noise: Noise, first: int = 0, fallback: Marginals | None = None) -> Array:
    """A Gaussian process per channel, Matérn plus white noise (scikit-learn): joint draws of all that is missing, given the rest.

    Amplitude, length and noise are those of greatest evidence, for a Matérn of smoothness ½ and of 5⁄2, the better of which is
    taken; draws include the white noise, as a missing measurement would. A channel with fewer than three known values has none
    fitted: its missing values are independent normals of `fallback`. InputError then without one, and for more than 2000
    known values. Source: Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, sections 2.2 and 5.4.
    """
    x = _values(values, draws, fallback, least=3)
    found = np.stack([x] * draws)
    known = np.isfinite(x)
    if (many := int(known.sum(0).max())) > _GP_POINTS:
        raise InputError(
            f"values have {many} known numbers in a channel; a Gaussian process takes {_GP_POINTS}, cut into windows"
        )
    z = normals((draws, *x.shape), noise, "baseline/process", first)
    for channel in range(x.shape[1]):
        there = known[:, channel]
        if there.all():
            continue
        if fallback is not None and there.sum() < 3:
            found[:, ~there, channel] = fallback.mean[channel] + fallback.std[channel] * z[:, ~there, channel]
            continue
        mean, covariance = _conditional(np.flatnonzero(there), x[there, channel], np.flatnonzero(~there))
        found[:, ~there, channel] = mean + z[:, ~there, channel] @ root(covariance).T
    return found


IMPUTERS: dict[str, Imputer] = {
    "mean": impute_mean,
    "last value": impute_last,
    "linear interpolation": impute_linear,
    "gaussian process": impute_process,
}
"""Imputers by the names under which tables show them."""


def _conditional(at: NDArray[np.int64], y: Array, wanted: NDArray[np.int64]) -> tuple[Array, Array]:
    """Mean and covariance of a process at the places `wanted`, given its values y at the places `at`."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    centre, scale = y.mean(), y.std() or 1.0
    span = float(max(at.max(), wanted.max()) - min(at.min(), wanted.min())) or 1.0
    best = None
    for smoothness in (0.5, 2.5):
        kernel = ConstantKernel(1.0, (1e-3, 1e3)) * Matern(max(2.0, span / 20), (0.3, 10 * span), nu=smoothness)
        process = GaussianProcessRegressor(kernel + WhiteKernel(0.1, (1e-6, 10)), alpha=1e-8)
        with warnings.catch_warnings():
            # an amplitude or length at its bound is an answer: the data do not say more
            warnings.simplefilter("ignore", ConvergenceWarning)
            process.fit(at[:, None].astype(np.float64), (y - centre) / scale)
        if best is None or process.log_marginal_likelihood_value_ > best.log_marginal_likelihood_value_:
            best = process
    assert best is not None
    mean, covariance = best.predict(wanted[:, None].astype(np.float64), return_cov=True)
    return centre + scale * mean, scale**2 * covariance


def checked_history(history: NDArray[Any], horizon: int, draws: int) -> Array:
    """A history (T, C) as float64; InputError for what is none, or a channel without a known number."""
    past = np.asarray(history, np.float64)
    if past.ndim != 2 or 0 in past.shape or np.isinf(past).any():
        raise InputError(f"history has shape {past.shape}; give (time, channel) of finite numbers, NaN where not known")
    if horizon < 1 or draws < 1:
        raise InputError(f"horizon={horizon} and draws={draws} must be 1 or more")
    demand_seen(past, "history")
    return past


def _values(values: NDArray[Any], draws: int, fallback: Marginals | None, least: int = 1) -> Array:
    x = np.asarray(values, np.float64)
    if x.ndim != 2 or 0 in x.shape or np.isinf(x).any():
        raise InputError(f"values have shape {x.shape}; give (time, channel) of finite numbers, NaN where missing")
    if draws < 1:
        raise InputError(f"draws={draws} must be 1 or more")
    if fallback is None:
        demand_seen(x, "values", least, "; give fallback=Marginals.of(train)")
    elif fallback.mean.shape != x.shape[1:] or fallback.std.shape != x.shape[1:]:
        raise InputError(f"fallback is of shape {fallback.mean.shape} for {x.shape[1]} channels; give Marginals.of(train)")
    return x


def demand_seen(x: Array, name: str, least: int = 1, remedy: str = "; leave it out or fill it") -> None:
    """InputError for a channel of x (T, C) with gaps and fewer than `least` known numbers."""
    known = np.isfinite(x).sum(0)
    if len(few := np.flatnonzero((known < least) & (known < len(x)))):
        raise InputError(f"channel {few[0]} of {name} has {known[few[0]]} known numbers, {least} needed{remedy}")


def _season(season: int | None, past: Array, seasons: int) -> int:
    if season is None or season < 1:
        raise InputError(f"season={season} must be the steps after which things repeat, 1 or more, such as season=24 for hours")
    if len(past) < seasons * season:
        raise InputError(f"history has {len(past)} steps; {seasons} season(s) of season={season} are needed")
    return season


def _last_season(past: Array, horizon: int, season: int) -> Array:
    """What was last seen at every place of the season, repeated over the horizon, (horizon, C)."""
    whole = -(-len(past) // season)
    padded = np.concatenate([np.full((whole * season - len(past), past.shape[1]), np.nan), past])
    latest = _forward(padded.reshape(whole, -1))[-1].reshape(season, -1)
    latest = np.where(np.isfinite(latest), latest, _forward(past)[-1])
    return latest[np.arange(horizon) % season]


def _since_all_seen(past: Array) -> Array:
    """The history from the first step at which every channel has been seen."""
    return past[np.isfinite(past).argmax(0).max() :]


def _forward(x: Array) -> Array:
    """Gaps of (T, C) filled with the last known value before; what comes before the first stays NaN."""
    rows = np.where(np.isfinite(x), np.arange(len(x))[:, None], 0)
    return np.take_along_axis(x, np.maximum.accumulate(rows, 0), 0)


def _seeded(x: Array, fallback: Marginals | None) -> Array:
    """Channels (T, C) of which nothing is known set to the fallback's mean."""
    return x if fallback is None else np.where(np.isfinite(x).any(0), x, fallback.mean)


def interpolated(x: Array) -> Array:
    """Gaps of (T, C) filled by straight lines, by the nearest known value at the ends."""
    filled, places = x.copy(), np.arange(len(x))
    for channel in np.flatnonzero(~np.isfinite(x).all(0)):
        known = np.isfinite(x[:, channel])
        filled[~known, channel] = np.interp(places[~known], places[known], x[known, channel])
    return filled


def normals(shape: tuple[int, ...], noise: Noise, stream: str, first: int) -> Array:
    """Normals of `shape` = (draws, …), float64; draw j is sample first + j of the noise."""
    return noise.normal(shape, stream=stream, first=first, dtype=torch.float64).numpy()


def root(covariance: Array) -> Array:
    """R with R·Rᵀ = a covariance that may be singular; what rounding makes negative counts as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0))
