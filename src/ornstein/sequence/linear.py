"""The linear least-squares forecaster with Gaussian errors: the baseline that is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ornstein.files import InputError
from ornstein.noise import Noise
from ornstein.sequence.baselines import Array, checked_history, demand_seen, interpolated, normals, root


@dataclass(frozen=True, eq=False)
class LinearForecaster:
    """A linear map of the context for every channel, with Gaussian errors: what `fit_linear` returns; a forecaster.

    y_{T+h} = r + b_h + Σ_l W_hl (y_{T-l} - r) + e_h, with r = y_T if `relative`, else 0.  `weights` (C, context, horizon),
    `bias` (C, horizon), `roots`
    (C, horizon, horizon) with e's covariance over time = root·rootᵀ per channel, `mixing` (C, C) the root of the correlation
    of channels after whitening over time.
    """

    weights: Array
    bias: Array
    roots: Array
    mixing: Array
    relative: bool

    def __call__(
        self, history: NDArray[Any], horizon: int, draws: int, *, season: int | None = None, noise: Noise, first: int = 0
    ) -> Array:
        """Draws (draws, horizon, C); gaps in the context are interpolated. InputError for too short a history, too far a
        horizon, other channels than fitted, and a channel without a known number in the context."""
        channels, context, most = self.weights.shape
        past = checked_history(history, horizon, draws)
        if len(past) < context or past.shape[1] != channels:
            raise InputError(
                f"history has shape {past.shape}; the linear map needs {context} steps or more of {channels} channels"
            )
        if horizon > most:
            raise InputError(f"horizon={horizon} is beyond the {most} steps that the linear map was fitted for; fit it for more")
        known = past[-context:]
        demand_seen(known, f"the last {context} steps of history")
        known = interpolated(known)
        level = known[-1] * self.relative
        mean = level + self.bias.T + np.einsum("tc,cth->hc", known - level, self.weights)
        z = normals((draws, most, channels), noise, "baseline/linear", first) @ self.mixing.T
        return mean[:horizon] + np.einsum("chk,dkc->dhc", self.roots[:, :horizon], z, optimize=True)


def fit_linear(
    train: NDArray[Any], context: int, horizon: int, *, relative: bool = True, ridge: float = 0.0, windows: int = 20_000
) -> LinearForecaster:
    """NLinear by least squares: from a channel's last `context` steps, less the last value, straight to all `horizon` steps.

    Not `relative`, values themselves are mapped: such a map knows the level to which a series returns, and errs when that moves.
    One map per channel, with intercept, on all windows of `train` (T, C) without a gap in that channel, or `windows` of them,
    evenly spaced. `ridge` is the penalty in units of the mean square input. Errors are Gaussian with the covariance over the
    horizon of the training errors (n - context in the denominator: of context + 1 coefficients one input is always 0).
    InputError for a channel with fewer than context + horizon such windows.
    Source: Zeng et al. 2023, arXiv 2205.13504, NLinear with individual maps.
    """
    past = np.asarray(train, np.float64)
    if past.ndim != 2 or np.isinf(past).any():
        raise InputError(f"train has shape {past.shape}; give (time, channel) of finite numbers, NaN where not known")
    if context < 1 or horizon < 1 or windows < 1 or ridge < 0:
        raise InputError(f"context={context}, horizon={horizon}, windows={windows} must be 1 or more, ridge={ridge} 0 or more")
    total, channels = len(past) - context - horizon + 1, past.shape[1]
    if total < context + horizon:
        needed = 2 * (context + horizon) - 1
        raise InputError(f"train has {len(past)} steps; a linear map of {context} to {horizon} steps needs {needed} or more")
    begins = np.unique(np.linspace(0, total - 1, min(total, windows)).round().astype(np.int64))
    weights, bias = np.zeros((channels, context, horizon)), np.zeros((channels, horizon))
    roots, white = np.zeros((channels, horizon, horizon)), np.zeros((channels, len(begins), horizon))
    for channel in range(channels):
        cut = np.lib.stride_tricks.sliding_window_view(past[:, channel], context + horizon)[begins]
        use = np.isfinite(cut).all(1)
        n = int(use.sum())
        if n < context + horizon:
            raise InputError(
                f"channel {channel} of train has {n} windows without a gap; {context + horizon} are needed, fill the gaps"
            )
        rows = cut[use] - cut[use, context - 1 : context] * relative
        x, y = rows[:, :context], rows[:, context:]
        centre_x, centre_y = x.mean(0), y.mean(0)
        x, y = x - centre_x, y - centre_y
        penalty = np.sqrt(ridge * n * np.square(x).mean()) * np.eye(context)
        map_ = np.linalg.lstsq(np.concatenate([x, penalty]), np.concatenate([y, np.zeros((context, horizon))]), rcond=None)[0]
        error = y - x @ map_
        weights[channel], bias[channel] = map_, centre_y - centre_x @ map_
        # triangular: the first whitened number of every channel is its first step's error, so that they belong together
        upper = np.linalg.qr(error, mode="r") / np.sqrt(max(1, n - context))
        roots[channel] = (upper * np.where(upper.diagonal() < 0, -1, 1)[:, None]).T
        white[channel, use] = error @ np.linalg.pinv(roots[channel], rcond=1e-8).T
    # windows with a gap count as 0, so that the matrix stays a correlation
    together = np.einsum("anh,bnh->ab", white, white, optimize=True)
    size = np.sqrt(together.diagonal())
    together = together / np.where(np.outer(size, size) > 0, np.outer(size, size), 1)
    np.fill_diagonal(together, 1)
    return LinearForecaster(weights, bias, roots, root(together), relative)
