"""What a recipe leaves open about series, settled on the data and written down with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ornstein.config import Recipe, SequenceConfig
from ornstein.files import InputError
from ornstein.noise import Noise
from ornstein.sequence import calendar
from ornstein.sequence.data import Series
from ornstein.sequence.masks import MASKS, mixed
from ornstein.sequence.reading import read_series
from ornstein.sequence.scaling import SCALINGS, frame, interpolated, step_scale
from ornstein.sequence.sources import SOURCES
from ornstein.sequence.windows import MANY, Covariates, SeriesData, windows

_LOOKED_AT = 512
"""Windows on which choices are made."""
MANY_CHANNELS = 16
"""From so many on CSDI is what series are trained with unasked."""


@dataclass(frozen=True)
class Windowing:
    """The settled `SequenceConfig` of a model: nothing is None, and `features` are counted."""

    context: int
    horizon: int
    scaling: str
    differences: bool
    lags: tuple[int, ...]
    level: bool
    masks: dict[str, float]
    interpolated: bool
    departures: tuple[float, ...]
    features: int
    calendar: bool
    covariates: Covariates
    frequency: str | None

    @property
    def reach(self) -> int:
        """The first step of a window of which all that is told lies within the window."""
        return max((*self.lags, 1)) + 1

    @staticmethod
    def of(recipe: Recipe) -> Windowing:
        """That of a recipe; InputError for one that is not settled (see `prepare`), or contradicts itself."""
        config = recipe.sequence
        if config is None:
            raise InputError(
                f"system={recipe.system!r} needs sequence: {{horizon: …}}; start from the recipe timegrad, sssd or csdi"
            )
        for name in ("context", "scaling", "differences", "lags", "level", "features"):
            if getattr(config, name) is None:
                raise InputError(f"sequence.{name} is not settled; train with ornstein train, which chooses it")
        assert config.context is not None
        assert config.scaling is not None
        assert config.differences is not None
        assert config.lags is not None
        assert config.level is not None
        assert config.features is not None
        if recipe.system == "timegrad" and config.interpolated:
            raise InputError("sequence.interpolated=true is for imputers; remove it, or train sssd or csdi")
        if recipe.system != "timegrad" and (config.differences or config.lags):
            raise InputError(
                f"sequence.differences={config.differences} and sequence.lags={config.lags} are timegrad's; remove them"
            )
        if config.scaling not in SCALINGS:
            raise InputError(f"sequence.scaling={config.scaling!r} is not one of {', '.join(SCALINGS)}")
        if unknown := sorted(set(config.masks) - set(MASKS)):
            raise InputError(f"sequence.masks has {unknown[0]!r}, which is not one of {', '.join(MASKS)}")
        if not any(weight > 0 for weight in config.masks.values()) or min(config.masks.values()) < 0:
            raise InputError(f"sequence.masks={config.masks} must give weights of at least 0, one of them above")
        lags = tuple(config.lags)
        if any(lag < 1 or lag > config.context - 1 for lag in lags):
            raise InputError(f"sequence.lags={config.lags} must lie between 1 and sequence.context - 1 = {config.context - 1}")
        return Windowing(
            config.context, config.horizon, config.scaling, config.differences, lags, config.level, dict(config.masks),
            config.interpolated, tuple(config.departures or ()), len(config.features), config.calendar, config.covariates,
            config.frequency,
        )  # fmt: skip


def load(recipe: Recipe, source: str) -> SeriesData:
    """The windows of a source as a recipe cuts them: a table or array (see `read_series`), or one of `SOURCES` by name."""
    data, config = recipe.data, recipe.sequence or SequenceConfig()
    if source in SOURCES:
        series = SOURCES[source]()
    else:
        series = read_series(
            source, time=data.time, item=data.item, value=data.value, columns=data.columns, future=data.future, static=data.static
        )
    if config.frequency is not None and series[0].frequency != config.frequency:
        found = series[0].frequency or "no regular step"
        raise InputError(f"data.source={source!r} has {found}, the model was trained on steps of {config.frequency}; resample it")
    context = config.context if config.context is not None else _context(series, config.horizon)
    return windows(series, context=context, horizon=config.horizon, calendar=config.calendar)


def suggest(data: SeriesData) -> tuple[str, str]:
    """(the recipe for series that came without one, the reason): csdi for many channels, sssd for gaps, else timegrad."""
    channels = len(data.contract.channels)
    if channels >= MANY_CHANNELS:
        return "csdi", f"csdi: it has a token for each of {channels} channels, which tell of one another"
    gaps = np.concatenate([np.isnan(one.values) for one in data.series]).mean()
    if gaps > 0:
        return "sssd", f"sssd: it fills gaps too, and {gaps:.1%} of the numbers are missing"
    return "timegrad", "timegrad: few channels without gaps; sssd and csdi fill gaps too"


def prepare(recipe: Recipe, data: SeriesData) -> tuple[Recipe, list[str]]:
    """The recipe with everything settled on training windows, and the reasons for what was chosen."""
    config, reasons = recipe.sequence or SequenceConfig(), []
    rows = np.unique(np.linspace(0, len(data) - 1, min(_LOOKED_AT, len(data))).round().astype(np.int64))
    x = data.batch(rows)["x"].double()
    context = x[..., : data.context]
    seen = context.isfinite()
    settled: dict[str, object] = {"context": data.context, "frequency": data.series[0].frequency}
    within = frame("window", context, seen, data.contract).scale
    spread = within / torch.tensor(data.contract.scale, dtype=x.dtype).reshape(1, -1, 1)
    ratio = float(spread.median())
    if config.context is None:
        reasons.append(f"sequence.context={data.context}: what is seen before each forecast")
    if config.scaling is None:
        settled["scaling"] = "window" if ratio < 0.5 or recipe.system == "timegrad" else "standard"
        reasons.append(
            f"sequence.scaling={settled['scaling']}: a window's own standard deviation is {ratio:.2g} of that of all data"
        )
    if config.differences is None:
        step = x[..., 1:] - x[..., :-1]
        change = float(torch.nanmean((step / torch.tensor(data.contract.scale).reshape(1, -1, 1)).square()).sqrt())
        around = float(torch.nanmean(spread.square()).sqrt())
        settled["differences"] = recipe.system == "timegrad" and change < around
        if recipe.system == "timegrad":
            by = f"a step changes by {change / around:.2g} standard deviations of a window"
            reasons.append(f"sequence.differences={settled['differences']}: {by}")
    if config.level is None:
        growth = _growth(x, data)
        settled["level"] = (
            recipe.system != "timegrad" or not settled.get("differences", config.differences) or not 0.5 < growth < 2
        )
        if recipe.system == "timegrad":
            told = f"the variance of a change over a horizon is {growth:.2g} of a walk's"
            reasons.append(f"sequence.level={settled['level']}: {told}")
    if config.lags is None:
        wanted = calendar.lags(data.series[0].frequency, data.context - 1) if recipe.system == "timegrad" else ()
        settled["lags"] = [lag for lag in wanted if lag <= max(1, data.context // 2)]
        if settled["lags"]:
            reasons.append(f"sequence.lags={settled['lags']}: what came so many steps before")
    if config.interpolated and config.departures is None:
        scaling = str(settled.get("scaling", config.scaling))
        settled["departures"] = _departures(x, data, config.masks, scaling)
    settled["features"] = list(data.feature_names)
    settled["covariates"] = data.covariates
    chosen = recipe.model_copy(update={"sequence": config.model_copy(update=settled)})
    if chosen.sigma_data is None:
        chosen = chosen.model_copy(update={"sigma_data": _spread_of_targets(chosen, x, data)})
    return chosen, reasons


def _growth(x: torch.Tensor, data: SeriesData) -> float:
    """Variance of the changes over a horizon by that of as many independent steps: 1 of a walk, less where values return, more
    where they trend or swing."""
    long = x[..., data.horizon :] - x[..., : -data.horizon]
    short = x[..., 1:] - x[..., :-1]
    ratios = torch.nanmean(long.square(), (0, 2)) / (data.horizon * torch.nanmean(short.square(), (0, 2)))
    return float(ratios[ratios.isfinite()].median()) if bool(ratios.isfinite().any()) else 1.0


def _departures(x: torch.Tensor, data: SeriesData, masks: Mapping[str, float], scaling: str) -> list[float]:
    """Root mean squares by channel of how far hidden numbers depart from the lines between shown ones, in model units."""
    seen = x.isfinite()
    shown = mixed(masks, len(x), (x.shape[1], x.shape[2]), data.horizon, Noise(0)) & seen
    z = frame(scaling, x, shown, data.contract).encode(x)
    off = torch.where(seen & ~shown, z - interpolated(z, shown), torch.nan)
    found = [_root_mean_square(channel[channel.isfinite()]) for channel in off.movedim(1, 0)]
    return [round(value, 4) for value in found]


def _root_mean_square(values: torch.Tensor) -> float:
    """That of values whose tails are cut at ten times the median size, between 0.01 and 10; 1 of none."""
    if not len(values):
        return 1.0
    size = values.abs()
    size = size.clamp(max=10 * float(size.median().clamp(min=1e-6)))
    return float(size.square().mean().sqrt().clamp(min=0.01, max=10.0))


def _spread_of_targets(recipe: Recipe, x: torch.Tensor, data: SeriesData) -> float:
    """Root mean square of what is to be drawn, in the units it is drawn in."""
    options = Windowing.of(recipe)
    if options.interpolated:
        return 1.0
    past = x[..., : options.context]
    units = frame(options.scaling, past, past.isfinite(), data.contract)
    target = units.encode(x)
    if recipe.system == "timegrad" and options.differences:
        target = (x[..., 1:] - x[..., :-1]) / step_scale(past, past.isfinite(), data.contract)
    return round(max(0.1, _root_mean_square(target[target.isfinite()])), 4)


def _context(series: Sequence[Series], horizon: int) -> int:
    """Steps to look back: all of short items of equal length, else two horizons or seasons, at most a third of the series."""
    lengths = [len(one) for one in series]
    if len(series) >= MANY and min(lengths) == max(lengths) <= 512 and lengths[0] > horizon + 1:
        return lengths[0] - horizon
    season = calendar.season(series[0].frequency) or 1
    return max(2, min(max(2 * horizon, 2 * season, 30), math.ceil(max(lengths) / 3)))
