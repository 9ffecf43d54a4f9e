"""Time grids: where a fixed-grid sampler calls the network.

A grid is a tuple of `n` times in [0, 1], strictly falling from `start` to `end`, which is `process.t_min` unless given; plans
append clean data themselves. Each function takes (process, n, start, end) and options, so that `GRIDS[name](process, n)`
serves them all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ornstein.process import VP, GaussianProcess

Grid = tuple[float, ...]
Spacing = Callable[..., Grid]
"""(process, n, *, start, end) -> n times, of which the first is `start` and the last `end`."""


def uniform(process: GaussianProcess, n: int, *, start: float = 1.0, end: float | None = None) -> Grid:
    """Equal steps in t from `start` to t_min; all T levels of a chain when n = T."""
    return _checked(start + _ramp(n) * (_last(process, end) - start), n)


def quadratic(process: GaussianProcess, n: int, *, start: float = 1.0, end: float | None = None) -> Grid:
    """Equal steps in sqrt(t): dense near the data, as DDIM's CIFAR-10 runs (Song et al. 2020, arXiv 2010.02502)."""
    return _checked((start**0.5 + _ramp(n) * (_last(process, end) ** 0.5 - start**0.5)) ** 2, n)


def trailing(process: GaussianProcess, n: int, *, start: float = 1.0, end: float | None = None) -> Grid:
    """start·(1 - k/n): the first call is at the noise, the last one step above the data (Lin et al. 2023, arXiv 2305.08891)."""
    if end is not None:  # a step above `end` is `end` itself one call later
        return uniform(process, n, start=start, end=end)
    times = start * (1 - torch.arange(_positive(n), dtype=torch.float64) / n)
    return _checked(times.clamp(min=process.t_min), n)


def karras(process: GaussianProcess, n: int, *, start: float = 1.0, end: float | None = None, rho: float = 7.0) -> Grid:
    """Equal steps in (sigma/alpha)^(1/rho) (Karras et al. 2022, arXiv 2206.00364, eq. 5)."""
    high, low = _ends(process, start, end)
    ratios = (torch.exp(high / rho) + _ramp(n) * (torch.exp(low / rho) - torch.exp(high / rho))) ** rho
    return _at_ratios(process, ratios.log(), start, _last(process, end), n)


def log_snr(process: GaussianProcess, n: int, *, start: float = 1.0, end: float | None = None) -> Grid:
    """Equal steps in log(sigma/alpha), the natural variable of exponential integrators (Lu et al. 2022, arXiv 2206.00927)."""
    high, low = _ends(process, start, end)
    return _at_ratios(process, high + _ramp(n) * (low - high), start, _last(process, end), n)


def vp_time(process: GaussianProcess, n: int, *, start: float = 1.0, end: float | None = None, power: float = 2.0) -> Grid:
    """The noise levels sigma/alpha that `VP` has at equal steps of t^(1/power), whatever the process.

    Dense around sigma = alpha, the denser the larger `power`. Without `end` the last call is one step above the data, or at
    t_min if that is noisier: few calls spend none where nothing is left to decide.
    """
    clock = VP(0.2, 79.8)  # VP() itself, in half its time: so it goes on to sigma/alpha = e^20
    high, low = (float(clock.time_of(noise) ** (1 / power)) for noise in _ends(process, start, end))
    if end is None:
        low = max(high / _positive(n), low)
    return _at_ratios(process, clock.log_ratio((high + _ramp(n) * (low - high)) ** power), start, end, n)


GRIDS: dict[str, Spacing] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "trailing": trailing,
    "karras": karras,
    "log_snr": log_snr,
    "vp_time": vp_time,
}
"""Names that recipes and the command line know."""


def make(
    process: GaussianProcess, n: int, spacing: str | Spacing | Grid, *, start: float = 1.0, end: float | None = None
) -> Grid:
    """The n times of the calls, from a name, a function, or the times themselves (which are then checked).

    With `end` the spacing has one time more, `end` itself, at which nothing is called and which is left out here.
    """
    _positive(n)
    if isinstance(spacing, str):
        if spacing not in GRIDS:
            raise ValueError(f"grid={spacing!r} is not one of {', '.join(GRIDS)}; or give the times")
        spacing = GRIDS[spacing]
    if callable(spacing):
        return spacing(process, n, start=start) if end is None else spacing(process, n + 1, start=start, end=end)[:-1]
    if end is not None and not min(spacing) > end:
        raise ValueError(f"grid={spacing} must stay above end={end}")
    return _checked(torch.tensor(spacing, dtype=torch.float64), n)


def _positive(n: int) -> int:
    if n < 1:
        raise ValueError(f"a grid of n={n} times is empty; ask for at least 1")
    return n


def _ramp(n: int) -> Tensor:
    return torch.linspace(0, 1, n, dtype=torch.float64) if _positive(n) > 1 else torch.zeros(1, dtype=torch.float64)


def _last(process: GaussianProcess, end: float | None) -> float:
    return process.t_min if end is None else end


def _ends(process: GaussianProcess, start: float, end: float | None) -> tuple[Tensor, Tensor]:
    high, low = process.log_ratio(start), process.log_ratio(_last(process, end))
    if not bool(high.isfinite()):
        # alpha = 0 at the start: the ratio is spaced from the last level with signal, or from noise to seven digits
        high = process.log_ratio(process.time_of(torch.tensor(16.0, dtype=torch.float64)))
    return high, low


def _at_ratios(process: GaussianProcess, log_ratios: Tensor, start: float, last: float | None, n: int) -> Grid:
    times = process.time_of(log_ratios)
    times[0] = start  # the ends are exact, not to the rounding of log and back
    if n > 1 and last is not None:
        times[-1] = last
    return _checked(times, n)


def _checked(times: Tensor, n: int) -> Grid:
    if len(times) != n:
        raise ValueError(f"grid has {len(times)} times where {n} calls need {n}")
    if not bool((times[1:] < times[:-1]).all() & ((times >= 0) & (times <= 1)).all()):  # so written, NaN is refused too
        raise ValueError(f"grid={times.tolist()} must fall strictly within [0, 1]; use fewer calls or another spacing")
    return tuple(times.tolist())
