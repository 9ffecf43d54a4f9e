"""Imputers: what is measured stays, what is missing or not asked for counts for nothing, and all windows are keyed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ornstein import config
from ornstein.config import Recipe
from ornstein.files import InputError
from ornstein.guidance import Given
from ornstein.noise import Noise
from ornstein.operator import Matrix
from ornstein.sequence import choose, csdi, impute, series, sssd
from ornstein.sequence.data import Series
from ornstein.sequence.imputer import ImputerSystem
from ornstein.sequence.masks import MASKS
from ornstein.sequence.predict import forecasts
from ornstein.sequence.windows import SeriesData, windows

NETS = {"sssd": "{width: 8, depth: 1, state: 8}", "csdi": "{width: 8, depth: 1, heads: 2}"}
BUILD = {"sssd": sssd.initialise, "csdi": csdi.initialise}


def made(kind: str, values: np.ndarray, *settings: str) -> tuple[ImputerSystem, SeriesData, Recipe]:
    """An untrained small imputer of values (T, C), whose network says something, its windows and its settled recipe."""
    recipe = config.override(
        config.load_recipe(kind), [f"net.options={NETS[kind]}", "sequence={horizon: 4, context: 8}", *settings]
    )
    assert recipe.sequence is not None
    data = windows([series(values)], context=8, horizon=4)
    recipe, _ = choose.prepare(recipe, data)
    system = BUILD[kind](recipe, data.contract)
    with torch.no_grad():
        for number, parameter in enumerate(system.net.parameters()):
            parameter.add_(0.1 * Noise(number).normal((1, *parameter.shape))[0])
    return system, data, recipe


def waves(rows: int = 200, channels: int = 2) -> np.ndarray:
    t = np.arange(rows)[:, None]
    noise = Noise(0).normal((rows, channels), dtype=torch.float64).numpy()
    return 20 + 3 * np.sin(2 * np.pi * t / 12 + np.arange(channels)) + 0.3 * noise


def asked(system: ImputerSystem, data: SeriesData, rows: list[int], share: float = 0.4) -> tuple[Given, torch.Tensor]:
    batch = data.batch(rows)
    mask = (Noise(7).uniform(batch["x"].shape) > share) & batch["x"].isfinite()
    return Given(batch["x"].double(), mask=mask), batch["features"]


@pytest.mark.parametrize("kind", NETS)
def test_what_is_measured_stays_bit_for_bit(kind: str) -> None:
    system, data, _ = made(kind, waves())
    given, known = asked(system, data, [3, 50])
    assert given.masks is not None
    drawn = system.predict(given, known, draws=3, noise=Noise(0), sampler=2).draws
    assert drawn.shape == (2, 3, 2, 12)
    assert bool(drawn.isfinite().all())
    for k in range(3):
        assert torch.equal(drawn[:, k][given.masks], given.values[given.masks])


@pytest.mark.parametrize("kind", NETS)
def test_what_is_not_asked_for_comes_back_as_nan(kind: str) -> None:
    system, data, _ = made(kind, waves())
    given, known = asked(system, data, [3])
    assert given.masks is not None
    wanted = torch.zeros_like(given.masks)
    wanted[..., -1] = True
    drawn = system.predict(given, known, draws=2, noise=Noise(0), asked=wanted, sampler=2).draws[:, 0]
    assert torch.equal(drawn.isnan(), ~given.masks & ~wanted)


@pytest.mark.parametrize("kind", NETS)
def test_a_case_is_the_same_in_any_batch(kind: str) -> None:
    system, data, _ = made(kind, waves())
    given, known = asked(system, data, [3, 50, 90])
    whole = system.predict(given, known, draws=2, noise=Noise(4), sampler=2).draws
    small = system.predict(given, known, draws=2, noise=Noise(4), sampler=2, batch_size=1).draws
    alone = system.predict(given.one(1), known[1:2], draws=2, noise=Noise(4), sampler=2, first=1).draws
    assert torch.allclose(whole, small, atol=1e-3)
    assert torch.allclose(whole[1:2], alone, atol=1e-3)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("law", MASKS)
def test_the_loss_sees_no_number_that_is_missing(kind: str, law: str) -> None:
    values = waves()
    values[::3, 0] = np.nan
    system, data, _ = made(kind, values, f"sequence.masks={{{law}: 1}}", "sequence.scaling=standard")
    batch = data.batch(range(6))
    losses = system.loss(batch, Noise(0))
    assert bool(losses.isfinite().all())
    if law != "random":  # which may hide nothing that is there
        assert bool((losses > 0).all())
    # units are the training data's, so a number that stands where one is missing changes all that it is allowed to
    with torch.no_grad():
        shown = torch.where(batch["x"].isfinite(), batch["x"], torch.nan)
    assert torch.equal(system.loss({**batch, "x": shown}, Noise(0)), losses)


@pytest.mark.parametrize("interpolated", [False, True])
def test_the_network_is_told_nothing_of_what_is_hidden(interpolated: bool) -> None:
    settings = ("sequence.masks={forecast: 1}", "sequence.scaling=window", f"sequence.interpolated={interpolated}")
    system, data, _ = made("sssd", waves(), *settings)
    batch, told = data.batch(range(4)), []
    system.net.register_forward_pre_hook(lambda net, arguments: told.append(arguments[2]["given"]))
    system.loss(batch, Noise(0))
    wild = batch["x"].clone()
    wild[..., -4:] += 100
    system.loss({**batch, "x": wild}, Noise(0))
    assert torch.equal(told[0], told[1])
    end = told[0][:, :2, 7:]
    assert torch.equal(end[..., 1:], end[..., :1].expand(-1, -1, 4) if interpolated else torch.zeros(4, 2, 4))


def test_draws_depart_from_lines_by_the_usual_amount() -> None:
    walks = 10 + Noise(0).normal((400, 1), dtype=torch.float64).cumsum(0).numpy() * [1.0, 5.0]
    recipe = config.override(config.load_recipe("sssd"), [f"net.options={NETS['sssd']}", "sequence={horizon: 4, context: 8}"])
    recipe = config.override(recipe, ["sequence.interpolated=true", "sequence.scaling=standard"])
    data = windows([series(walks)], context=8, horizon=4)
    recipe, _ = choose.prepare(recipe, data)
    system = sssd.initialise(recipe, data.contract)
    given, known = asked(system, data, [3, 50])
    assert given.masks is not None
    # before training the network says zero, so that the noise alone is drawn: about lines, by channel
    drawn = system.predict(given, known, draws=2000, noise=Noise(0), sampler=8).draws
    lines = np.stack([
        [np.interp(np.arange(12), np.arange(12)[seen], x[seen]) for x, seen in zip(rows, masks, strict=True)]
        for rows, masks in zip(given.values.numpy(), given.masks.numpy(), strict=True)
    ])  # fmt: skip
    hidden = ~given.masks
    spread = drawn.std(1)
    assert torch.allclose(drawn.mean(1), torch.from_numpy(lines), atol=0.15 * float(spread.max()))
    ratio = spread[:, 1][hidden[:, 1]].mean() / spread[:, 0][hidden[:, 0]].mean()
    assert recipe.sequence is not None
    assert recipe.sequence.departures is not None
    for channel, (departure, scale) in enumerate(zip(recipe.sequence.departures, data.contract.scale, strict=True)):
        assert float(spread[:, channel][hidden[:, channel]].mean()) == pytest.approx(departure * scale, rel=0.1)
    assert float(ratio) == pytest.approx(5, rel=0.2)
    for k in (0, 1999):
        assert torch.equal(drawn[:, k][given.masks], given.values[given.masks])


@pytest.mark.parametrize("interpolated", [False, True])
def test_what_is_told_and_what_is_drawn_make_the_numbers(interpolated: bool) -> None:
    system, data, recipe = made("sssd", waves(), f"sequence.interpolated={interpolated}", "sequence.scaling=standard")
    found: dict[str, torch.Tensor] = {}

    def loss(
        denoiser: object, target: torch.Tensor, noise: Noise, *, step: int, first: int, total: int | None,
        cond: dict[str, torch.Tensor], weight: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        found.update(target=target, told=cond["given"][:, :2], weight=weight)
        return target.flatten(1).sum(1)

    system.loss_function = loss  # type: ignore[assignment]
    batch = data.batch(range(8))
    system.loss(batch, Noise(0))
    assert recipe.sequence is not None
    units = torch.tensor(recipe.sequence.departures or [1.0, 1.0])[:, None]
    shift, scale = (torch.tensor(part)[:, None] for part in (data.contract.shift, data.contract.scale))
    whole = found["told"] + units * found["target"]
    wanted = found["weight"] > 0
    assert bool(wanted.any())
    assert torch.allclose(whole[wanted], ((batch["x"] - shift) / scale).float()[wanted], atol=1e-4)
    assert not bool(found["target"][~wanted].any())
    # it is drawn in units in which it is about 1
    if interpolated:
        assert 0.5 < float(found["target"][wanted].square().mean().sqrt()) < 2


def test_the_loss_is_that_of_what_is_asked_for() -> None:
    system, data, _ = made("sssd", waves())
    losses = system.loss(data.batch(range(6)), Noise(0))
    system.net.register_forward_hook(lambda net, arguments, out: torch.where(arguments[2]["given"][:, 4:] > 0, out, 100.0))
    assert torch.equal(system.loss(data.batch(range(6)), Noise(0)), losses)


@pytest.mark.parametrize("kind", NETS)
def test_forecasts_of_any_length_follow_their_own_draws(kind: str) -> None:
    system, _, _ = made(kind, waves())
    one = series(waves())
    options = {"draws": 2, "noise": Noise(0), "sampler": 2}
    short = forecasts(system, one, [60, 90], horizon=3, **options)  # type: ignore[arg-type]
    whole = forecasts(system, one, [60, 90], horizon=4, **options)  # type: ignore[arg-type]
    long = forecasts(system, one, [60, 90], horizon=10, **options)  # type: ignore[arg-type]
    assert short.shape == (2, 2, 3, 2)
    assert long.shape == (2, 2, 10, 2)
    assert np.isfinite(long).all()
    assert np.array_equal(long[:, :, :4], whole)
    # nothing after an origin is looked at
    cut = forecasts(system, one.head(60), [60], horizon=10, **options)  # type: ignore[arg-type]
    assert np.allclose(cut[0], long[0], atol=1e-4)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("rows", [7, 12, 13, 40])
def test_a_whole_series_is_filled(kind: str, rows: int) -> None:
    system, _, _ = made(kind, waves())
    values = waves()[:rows]
    values[2:5, 0] = np.nan
    values[-1] = np.nan
    found = impute(system, series(values), draws=3, noise=Noise(0), sampler=2)
    there = np.isfinite(values)
    assert found.draws.shape == (3, rows, 2)
    assert np.isfinite(found.draws).all()
    assert np.array_equal(found.draws[:, there], np.repeat(values[there][None], 3, 0))
    assert np.array_equal(found.observed, there)
    assert found.draws[:, ~there].std(0).min() > 0


def test_a_full_series_is_left_alone() -> None:
    system, _, _ = made("sssd", waves())
    found = impute(system, series(waves()), draws=2, noise=Noise(0))
    assert np.array_equal(found.draws[1], waves())


def test_restore_needs_an_unconditional_model() -> None:
    system, data, _ = made("sssd", waves())
    given, known = asked(system, data, [3])
    with pytest.raises(InputError, match=r"sequence\.masks: \{nothing: 1"):
        system.restore(given, known, draws=1, noise=Noise(0))


@pytest.mark.parametrize("interpolated", [False, True])
def test_restore_takes_masks_and_operators(interpolated: bool) -> None:
    system, data, _ = made("sssd", waves(), "sequence.masks={random: 1, nothing: 1}", f"sequence.interpolated={interpolated}")
    given, known = asked(system, data, [3, 9])
    assert given.masks is not None
    drawn = system.restore(given, known, method="replacement", calls=3, draws=2, noise=Noise(0)).draws
    assert torch.allclose(drawn[:, 0][given.masks], given.values[given.masks], atol=1e-4)
    means = Matrix(torch.kron(torch.eye(2), torch.kron(torch.eye(3), torch.ones(1, 4) / 4)), (2, 12))
    measured = Given(means(data.batch([3])["x"].double()), means, noise_std=0.01)
    drawn = system.restore(measured, known[:1], calls=3, draws=2, noise=Noise(0)).draws
    assert drawn.shape == (1, 2, 2, 12)
    with pytest.raises(InputError, match="take restore"):
        system.predict(measured, known[:1], draws=1, noise=Noise(0))


def test_other_series_are_refused() -> None:
    system, _, _ = made("sssd", waves())
    one = Series(waves(), series(waves()).index, ("x", "y"))
    with pytest.raises(InputError, match="no channel"):
        impute(system, one, draws=1, noise=Noise(0))
