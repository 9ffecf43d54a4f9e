"""What a recipe leaves open is chosen from the data: walks, cycles and short items lead to other choices, all written down."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from ornstein import config
from ornstein.config import Recipe, SequenceConfig
from ornstein.files import InputError
from ornstein.noise import Noise
from ornstein.sequence import Series, choose, series
from ornstein.sequence.choose import Windowing, load, prepare
from ornstein.sequence.windows import MANY, windows


def settled(one: Series | list[Series], *settings: str, kind: str = "timegrad", context: int = 40) -> SequenceConfig:
    items = [one] if isinstance(one, Series) else one
    recipe = config.override(config.load_recipe(kind), ["sequence.horizon=10", *settings])
    recipe, reasons = prepare(recipe, windows(items, context=context, horizon=10))
    assert recipe.sequence is not None
    assert all("\n" not in reason for reason in reasons)
    return recipe.sequence


def noise(rows: int = 1000, seed: int = 0) -> np.ndarray:
    return Noise(seed).normal((rows, 2), dtype=torch.float64).numpy()


def hourly(values: np.ndarray) -> Series:
    return series(values, pd.date_range("2024-01-01", periods=len(values), freq="h"))


def test_a_walk_has_no_level() -> None:
    found = settled(series(100 + noise().cumsum(0)))
    assert found.differences is True
    assert found.level is False


def test_a_cycle_has_a_level_and_its_lags() -> None:
    t = np.arange(1000)[:, None]
    found = settled(hourly(10 + 3 * np.sin(2 * np.pi * t / 24) + 0.3 * noise()), context=60)
    assert found.differences is True
    assert found.level is True
    assert found.lags is not None
    assert 24 in found.lags
    assert found.frequency == "h"
    assert found.features is not None
    assert "time of day cosine" in found.features


def test_white_noise_is_drawn_itself() -> None:
    found = settled(series(noise()))
    assert found.differences is False
    assert found.level is True


def test_an_imputer_scales_by_the_window_where_levels_wander() -> None:
    assert settled(series(noise().cumsum(0)), kind="sssd").scaling == "window"
    assert settled(series(noise()), kind="sssd").scaling == "standard"


def test_what_is_said_is_kept() -> None:
    found = settled(
        series(noise()), "sequence.differences=true", "sequence.level=false", "sequence.lags=[1, 7]", "sequence.scaling=mean_abs"
    )
    assert (found.differences, found.level, found.lags, found.scaling) == (True, False, [1, 7], "mean_abs")


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e4])
def test_the_size_of_targets_does_not_depend_on_units(factor: float) -> None:
    recipe = config.override(config.load_recipe("timegrad"), ["sequence.horizon=10"])
    made, _ = prepare(recipe, windows([series(factor * noise().cumsum(0))], context=40, horizon=10))
    assert made.sigma_data == pytest.approx(1.0, abs=0.1)


def test_settled_twice_is_settled_once() -> None:
    recipe = config.override(config.load_recipe("timegrad"), ["sequence.horizon=10"])
    data = windows([series(noise().cumsum(0))], context=40, horizon=10)
    once, _ = prepare(recipe, data)
    twice, reasons = prepare(once, data)
    assert twice == once
    assert reasons == []


def test_context_is_chosen_by_horizon_season_and_length(tmp_path: object) -> None:
    hours = hourly(noise())
    assert choose._context([hours], 6) == 48
    assert choose._context([hours], 50) == 100
    assert choose._context([hours.head(60)], 6) == 20
    items = [series(noise(48, k), item=str(k)) for k in range(MANY)]
    assert choose._context(items, 12) == 36


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["sequence.scaling=median"], "median"),
        (["sequence.lags=[0]"], "between 1 and"),
        (["sequence.lags=[40]"], "between 1 and"),
        (["sequence.masks={holes: 1}"], "holes"),
        (["sequence.masks={random: 0}"], "above"),
        (["sequence.context=1"], "context"),
        (["sequence.horizon=0"], "horizon"),
    ],
)
def test_settings_that_contradict_themselves(settings: list[str], told: str) -> None:
    def settle() -> None:
        recipe = config.override(config.load_recipe("timegrad"), ["sequence.horizon=10", *settings])
        Windowing.of(prepare(recipe, windows([series(noise())], context=40, horizon=10))[0])

    with pytest.raises(InputError, match=told):
        settle()


@pytest.mark.parametrize(
    ("kind", "setting", "told"),
    [
        ("timegrad", "sequence.interpolated=true", "for imputers"),
        ("sssd", "sequence.lags=[1, 2]", "timegrad's"),
        ("csdi", "sequence.differences=true", "timegrad's"),
    ],
)
def test_settings_of_another_system_are_refused(kind: str, setting: str, told: str) -> None:
    recipe = config.override(config.load_recipe(kind), ["sequence.horizon=10", setting])
    data = windows([series(noise())], context=40, horizon=10)
    with pytest.raises(InputError, match=told):
        Windowing.of(prepare(recipe, data)[0])


def test_a_recipe_that_is_not_settled_builds_nothing() -> None:
    with pytest.raises(InputError, match=r"sequence\.context is not settled"):
        Windowing.of(config.load_recipe("timegrad"))
    with pytest.raises(InputError, match="needs sequence"):
        Windowing.of(Recipe(system="timegrad"))


def test_data_of_another_step_are_refused(tmp_path: object) -> None:
    recipe = config.override(config.load_recipe("timegrad"), ["sequence.frequency=h", "sequence.context=10"])
    with pytest.raises(InputError, match="W-SAT"):
        load(recipe, "co2")


@pytest.mark.parametrize("setting", ["data.size=8", "data.flip=true", "condition=label", "data.rows=10"])
def test_what_says_nothing_about_series_is_refused(setting: str) -> None:
    from ornstein.kinds import load_data

    with pytest.raises(InputError, match=r"says nothing about series"):
        load_data(config.override(config.load_recipe("timegrad"), [setting]))
    with pytest.raises(InputError, match=r"says nothing about images"):
        load_data(config.override(config.load_recipe("digits"), ["data.time=when"]))
