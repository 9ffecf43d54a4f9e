"""Forecasts and imputations of series by a trained model: from stamps and columns to windows, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ornstein.contract import Contract
from ornstein.files import InputError
from ornstein.guidance import Given
from ornstein.noise import Noise
from ornstein.progress import track
from ornstein.samplers import Plan
from ornstein.sequence.data import Series
from ornstein.sequence.forecast import Forecast
from ornstein.sequence.imputer import ImputerSystem
from ornstein.sequence.timegrad import TimeGradSystem
from ornstein.sequence.windows import known

SequenceModel = TimeGradSystem | ImputerSystem


def forecast(
    model: SequenceModel,
    series: Series,
    *,
    horizon: int | None = None,
    draws: int = 200,
    noise: Noise,
    sampler: Plan | int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Forecast:
    """Draws of the steps after the end of a series: the model's horizon, or any other.

    InputError where the series is shorter than the model's context, has other channels or another frequency, or where
    covariates do not reach so far.
    """
    own = aligned(series, model.contract)
    steps = model.windowing.horizon if horizon is None else horizon
    found = forecasts(
        model, own, [len(own)], horizon=steps, draws=draws, noise=noise, sampler=sampler, batch_size=batch_size, progress=progress
    )
    return Forecast(found[0], own.stamps(steps), own.channels, own.item)


def forecasts(
    model: SequenceModel,
    series: Series,
    origins: Sequence[int],
    *,
    horizon: int,
    draws: int,
    noise: Noise,
    sampler: Plan | int | None = None,
    first: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> NDArray[np.float64]:
    """Draws (origins, draws, horizon, C) of the steps after the first `origin` rows of a series, from these rows alone.

    Draw j at origin i is sample (first + i)·draws + j of the noise.
    """
    own, options = aligned(series, model.contract), model.windowing
    if draws < 1 or horizon < 1:
        raise InputError(f"draws={draws} and horizon={horizon} must be at least 1")
    if own.frequency != options.frequency:
        has = own.frequency or "no regular step"
        raise InputError(f"the series has {has}, the model was trained on steps of {options.frequency}; resample it")
    for origin in origins:
        if origin < options.context:
            raise InputError(f"the history has {origin} rows, the model looks back {options.context}; give a longer one")
    past = torch.stack([torch.from_numpy(own.values[at - options.context : at].T.copy()) for at in origins])
    if isinstance(model, TimeGradSystem):
        length = options.context + horizon
        told = _known(model, own, [at - options.context for at in origins], length, length, origins)
        drawn = model.predict(
            past, told, draws=draws, noise=noise, sampler=sampler, first=first, batch_size=batch_size, progress=progress
        ).draws
    else:
        drawn = _in_blocks(model, own, origins, past, horizon, draws, noise, sampler, first, batch_size, progress)
    return np.ascontiguousarray(drawn.movedim(-1, -2).numpy())


def _in_blocks(
    model: ImputerSystem, own: Series, origins: Sequence[int], past: Tensor, horizon: int, draws: int, noise: Noise,
    sampler: Plan | int | None, first: int, batch_size: int | None, progress: bool,
) -> Tensor:  # fmt: skip
    """Draws (cases, draws, C, horizon): a window of the model at a time, each draw going on from its own."""
    options, done = model.windowing, 0
    context, block = options.context, options.horizon
    grown, each = past, draws
    while done < horizon:
        wanted = min(block, horizon - done)
        begins = [at + done - context for at in origins]
        told = _known(model, own, begins, context + block, context + wanted, origins)
        told = told.repeat_interleave(draws // each, 0)
        values = torch.cat([grown[..., -context:], torch.full((*grown.shape[:2], block), torch.nan, dtype=grown.dtype)], -1)
        steps = torch.arange(context + block)
        asked = (steps >= context) & (steps < context + wanted)
        found = model.predict(
            Given(values, mask=values.isfinite()), told, draws=each, noise=Noise(noise.key("forecast", done)), sampler=sampler,
            asked=asked.expand(values.shape), first=first * (draws // each),
            batch_size=batch_size, progress=progress,
        ).draws  # fmt: skip
        drawn = found.flatten(0, 1)[..., context:]
        grown = torch.cat([grown.repeat_interleave(each, 0), drawn], -1)
        done, each = done + block, 1
    return grown[..., past.shape[-1] : past.shape[-1] + horizon].unflatten(0, (len(past), draws))


def impute(
    model: SequenceModel,
    series: Series,
    *,
    draws: int = 100,
    noise: Noise,
    sampler: Plan | int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Forecast:
    """Draws of everything that is missing of a series; what is observed stays, bit for bit.

    Windows follow each other by half their length; every draw goes on from what it filled before, so that it is one consistent
    series, and a window's last quarter, which has not seen what follows, is filled by the next. InputError for a forecaster, or
    other channels.
    """
    if not isinstance(model, ImputerSystem):
        raise InputError("a timegrad model forecasts and cannot look ahead of a gap; train sssd or csdi to impute")
    own = aligned(series, model.contract)
    length, rows = model.contract.shape[1], len(own)
    observed = np.isfinite(own.values)
    filled = np.repeat(own.values[None], draws, 0)
    starts = list(range(0, max(rows - length, 0) + 1, max(1, length // 2)))
    if starts[-1] + length < rows:
        starts.append(rows - length)
    for number, start in enumerate(track(starts, len(starts), "impute", enabled=progress)):
        last = number == len(starts) - 1
        stop = min(start + length, rows)
        until = stop if last else start + (3 * length) // 4
        part = filled[:, start:stop]
        if np.isfinite(part[:, : until - start]).all():
            continue
        values = np.full((draws, length, part.shape[2]), np.nan)
        values[:, : stop - start] = part
        window = torch.from_numpy(np.ascontiguousarray(values.swapaxes(1, 2)))
        mask = window.isfinite()
        asked = ~mask & (torch.arange(length) < stop - start)
        told = _known(model, own, [start], length, stop - start, [rows]).expand(draws, -1, -1)
        found = model.predict(
            Given(window, mask=mask), told, draws=1, noise=Noise(noise.key("impute", number)), sampler=sampler, asked=asked,
            batch_size=batch_size,
        ).draws[:, 0]  # fmt: skip
        filled[:, start:until] = found.movedim(-1, -2)[:, : until - start].numpy()
    return Forecast(filled, own.index, own.channels, own.item, observed)


def _known(
    model: SequenceModel, own: Series, begins: Sequence[int], length: int, needed: int, histories: Sequence[int]
) -> Tensor:
    """The features (cases, F, length) of the windows from rows `begins` on, of whose steps the first `needed` are asked for."""
    options = model.windowing
    found = [
        known(own, begin, length, options.calendar, options.covariates, needed=needed, history=history)
        for begin, history in zip(begins, histories, strict=True)
    ]
    return torch.from_numpy(np.stack(found))


def aligned(series: Series, contract: Contract) -> Series:
    """A series with its channels in the model's order; InputError where one is missing or unknown."""
    if series.channels == contract.channels:
        return series
    lacking = [name for name in contract.channels if name not in series.channels]
    more = [name for name in series.channels if name not in contract.channels]
    if lacking:
        has = ", ".join(series.channels)
        raise InputError(f"the data have no channel {lacking[0]!r}, which the model was trained on; they have {has}")
    if more:
        raise InputError(f"the data have the channel {more[0]!r}, which the model does not know; leave it out (--columns)")
    order = [series.channels.index(name) for name in contract.channels]
    return replace(series, values=series.values[:, order], channels=contract.channels)
