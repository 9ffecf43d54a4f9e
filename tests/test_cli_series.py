"""Series at the command line: train on a table, forecast, impute, backtest; and what becomes of tables that users really have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ornstein import model
from ornstein.evaluate import divide
from ornstein.kinds import load_data
from ornstein.noise import Noise
from ornstein.sequence import forecast, read_series
from ornstein.sequence.timegrad import TimeGradSystem
from test_cli import refused
from tiny import Run

QUICK = (
    "--set",
    "train.steps=6",
    "--set",
    "train.batch=4",
    "--set",
    "sampler.calls=2",
    "--set",
    "train.validate_every=3",
    "--quiet",
)
NET = {
    "timegrad": ("--set", "net.options={width: 8, layers: 1, head_width: 8, depth: 1}"),
    "sssd": ("--set", "net.options={width: 8, depth: 1, state: 8}"),
    "csdi": ("--set", "net.options={width: 8, depth: 1, heads: 2}"),
}


def prices(path: Path, rows: int = 120, zone: str | None = None) -> Path:
    """Two channels of hourly prices."""
    index = pd.date_range("2024-03-01", periods=rows, freq="h", tz=zone, name="when")
    t = np.arange(rows)
    noise = Noise(0).normal((rows, 2), dtype=torch.float64).numpy()
    values = 50 + 5 * np.sin(2 * np.pi * t / 24)[:, None] + noise
    pd.DataFrame(values, index=index, columns=["oil", "gas"]).to_csv(path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A barely trained model of each kind on the same table."""
    from ornstein import cli

    place = tmp_path_factory.mktemp("series")
    table = prices(place / "prices.csv")
    for kind, net in NET.items():
        words = ["train", kind, "--data", str(table), "--horizon", "6", "--out", str(place / kind), *QUICK, *net]
        with pytest.raises(SystemExit) as ended:
            cli.app(words)
        assert not ended.value.code
    return {kind: place / kind for kind in NET} | {"table": table}


@pytest.fixture(params=sorted(NET))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_trained_model_has_its_choices_written_down(folders: dict[str, Path], kind: str) -> None:
    config = model.read_recipe(folders[kind]).sequence
    assert config is not None
    assert config.context == 40  # a third of the rows
    assert config.frequency == "h"
    assert config.features is not None
    assert "time of day sine" in config.features
    assert {"samples.png", "card.md", "model.safetensors"} <= {path.name for path in folders[kind].iterdir()}
    card = (folders[kind] / "card.md").read_text()
    assert "40 steps seen, 6 asked for, steps of h; channels oil, gas" in card
    assert "ornstein backtest" in card


def test_forecast(folders: dict[str, Path], kind: str, run: Run) -> None:
    ended = run("forecast", folders[kind], "--data", folders["table"], "--draws", 5, "--samples", "draws.npz", "--quiet")
    assert ended.code == 0, ended.err
    found = pd.read_csv("forecast.csv", index_col=0, parse_dates=True)
    assert found.index[0] == pd.Timestamp("2024-03-06 00:00")
    assert len(found) == 6
    assert Path("forecast.png").stat().st_size > 1000
    with np.load("draws.npz") as held:
        (draws,) = (held[name] for name in held.files)
    assert draws.shape == (5, 6, 2)
    column = next(name for name in found.columns if name.startswith("oil") and "mean" in name)
    assert np.allclose(found[column], draws[..., 0].mean(0))
    again = run(
        "forecast", folders[kind], "--data", folders["table"], "--draws", 5, "--horizon", 9, "--out", "long.csv", "--quiet"
    )
    assert again.code == 0, again.err
    assert len(pd.read_csv("long.csv")) == 9


def test_saved_model_forecasts_bit_for_bit_the_same(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    system = model.load(folders[kind])
    one = read_series(str(folders["table"]))[0]
    before = forecast(system, one, draws=3, noise=Noise(3), sampler=2)  # type: ignore[arg-type]
    model.save(tmp_path / "copy", model.read_recipe(folders[kind]), system)
    after = forecast(model.load(tmp_path / "copy"), one, draws=3, noise=Noise(3), sampler=2)  # type: ignore[arg-type]
    assert np.array_equal(before.draws, after.draws)


def test_backtest(folders: dict[str, Path], kind: str, run: Run) -> None:
    ended = run(
        "backtest", folders[kind], "--data", folders["table"], "--horizon", 6, "--windows", 3, "--first", 90, "--stride", 8,
        "--draws", 20, "--json", "report.json", "--draws-out", "draws.npz", "--picture", "fan.png", "--quiet",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    report = json.loads(Path("report.json").read_text())
    assert report["origins"] == [90, 98, 106]
    assert {"last value", "gaussian walk", "seasonal naive"} <= set(report["rows"])
    assert all(name in ended.out for name in report["rows"])
    assert Path("fan.png").exists()
    with np.load("draws.npz") as held:
        draws, truth = held["draws"], held["truth"]
    assert draws.shape == (3, 20, 6, 2)
    values = read_series(str(folders["table"]))[0].values
    assert np.array_equal(truth, np.stack([values[at : at + 6] for at in (90, 98, 106)]))


def test_backtest_sees_nothing_after_its_origin(folders: dict[str, Path], kind: str, run: Run) -> None:
    table = pd.read_csv(folders["table"])
    table.iloc[96:, 1:] += 1000.0
    table.to_csv("changed.csv", index=False)
    for data, out in ((folders["table"], "plain.npz"), ("changed.csv", "changed.npz")):
        ended = run("backtest", folders[kind], "--data", data, "--horizon", 6, "--windows", 2, "--first", 90, "--stride", 6,
                    "--draws", 4, "--draws-out", out, "--baselines", "last value", "--quiet")  # fmt: skip
        assert ended.code == 0, ended.err
    plain, changed = (np.load(name)["draws"] for name in ("plain.npz", "changed.npz"))
    assert np.array_equal(plain[0], changed[0])
    assert np.array_equal(plain[1], changed[1])  # 96 is the first changed row, and the second origin


@pytest.mark.parametrize("kind", ["sssd", "csdi"])
def test_impute(folders: dict[str, Path], kind: str, run: Run) -> None:
    table = pd.read_csv(folders["table"])
    table.loc[20:30, "oil"] = np.nan
    table.drop(index=[50, 51]).to_csv("gaps.csv", index=False)
    ended = run("impute", folders[kind], "--data", "gaps.csv", "--draws", 3, "--quiet")
    assert ended.code == 0, ended.err
    assert "15 numbers filled" in ended.out
    filled = pd.read_csv("filled.csv", index_col=0, parse_dates=True)
    whole = pd.read_csv(folders["table"], index_col=0, parse_dates=True)
    assert filled.index.equals(whole.index)
    assert not filled.isna().any().any()
    there = np.ones((120, 2), bool)
    there[20:31, 0] = there[50:52] = False
    assert np.allclose(filled.to_numpy()[there], whole.to_numpy()[there], rtol=0, atol=1e-12)
    assert Path("filled.png").exists()
    assert len(pd.read_csv("filled-quantiles.csv")) == 120


def test_a_forecaster_does_not_impute(folders: dict[str, Path], run: Run) -> None:
    refused(run("impute", folders["timegrad"], "--data", folders["table"], "--quiet"), "train sssd or csdi")


# --- tables that users have


def test_gaps_a_zone_and_extra_rows_end_in_a_forecast(folders: dict[str, Path], kind: str, run: Run) -> None:
    prices(Path("zone.csv"), zone="Europe/Berlin")
    table = pd.read_csv("zone.csv")
    table.loc[100:104, "gas"] = np.nan
    table.drop(index=[70]).to_csv("zone.csv", index=False)
    ended = run("forecast", folders[kind], "--data", "zone.csv", "--draws", 2, "--quiet")
    assert ended.code == 0, ended.err
    found = pd.read_csv("forecast.csv")
    assert found.iloc[0, 0].endswith("+01:00")
    assert not found.isna().any().any()


def test_a_column_too_many_or_another_order(folders: dict[str, Path], kind: str, run: Run) -> None:
    table = pd.read_csv(folders["table"])
    table.assign(coal=1.0).to_csv("more.csv", index=False)
    refused(run("forecast", folders[kind], "--data", "more.csv", "--quiet"), "'coal'", "--columns")
    assert run("forecast", folders[kind], "--data", "more.csv", "--columns", "oil,gas", "--draws", 2, "--quiet").code == 0
    table[["when", "gas", "oil"]].to_csv("turned.csv", index=False)
    assert run("forecast", folders[kind], "--data", "turned.csv", "--draws", 2, "--out", "turned-out.csv", "--quiet").code == 0
    assert Path("forecast.csv").read_text() == Path("turned-out.csv").read_text()
    table.drop(columns="gas").to_csv("less.csv", index=False)
    refused(run("forecast", folders[kind], "--data", "less.csv", "--quiet"), "no channel 'gas'")
    table.assign(gas="cheap").to_csv("words.csv", index=False)
    refused(run("forecast", folders[kind], "--data", "words.csv", "--quiet"), "cheap", "gas")


def test_three_rows(folders: dict[str, Path], kind: str, run: Run) -> None:
    pd.read_csv(folders["table"]).head(3).to_csv("short.csv", index=False)
    refused(run("forecast", folders[kind], "--data", "short.csv", "--quiet"), "history has 3 rows", "40")
    refused(run("train", kind, "--data", "short.csv", "--horizon", 6, *QUICK), "rows")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.iloc[::-1], "sort"),
        (lambda t: pd.concat([t, t.tail(1)]), "twice"),
        (lambda t: t.assign(gas=np.nan), "gas"),
        (lambda t: t.assign(oil=np.inf), "is inf"),
        (lambda t: t.head(0), "row"),
    ],
)
def test_tables_that_are_no_series_are_one_line(change: object, told: str, folders: dict[str, Path], run: Run) -> None:
    change(pd.read_csv(folders["table"])).to_csv("bad.csv", index=False)  # type: ignore[operator]
    ended = run("train", "timegrad", "--data", "bad.csv", "--horizon", 6, *QUICK)
    assert ended.code == 2, ended.err
    assert told in ended.err.strip().splitlines()[-1].lower()
    assert len(ended.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--horizon", 0), "--horizon 0"),
        (("--draws", 0), "--draws 0"),
        (("--out", "forecast.txt"), "must end in .csv"),
        (("--data", "nowhere.csv"), "nowhere.csv"),
        (("--calls", 0), "--calls 0"),
    ],
)
def test_options_that_make_no_forecast(words: tuple[object, ...], told: str, folders: dict[str, Path], run: Run) -> None:
    given = ("--data", folders["table"]) if "--data" not in words else ()
    refused(run("forecast", folders["timegrad"], *given, *words, "--quiet"), told)


def test_other_commands_say_what_to_do(folders: dict[str, Path], kind: str, run: Run, tiny_model: Path) -> None:
    refused(run("sample", folders[kind]), "forecast, impute or backtest")
    refused(run("evaluate", folders[kind]), "forecast, impute or backtest")
    refused(run("forecast", tiny_model, "--data", folders["table"]), "no model of series")
    refused(run("train", "digits", "--horizon", 3), "--horizon 3", "timegrad")
    assert run("info", folders[kind]).code == 0


def test_calibrated_plans_are_taken(folders: dict[str, Path], kind: str, run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders[kind], tmp_path / kind))
    ended = run("calibrate", folder, "--calls", 3, "--trajectories", 16, "--steps", 2, "--quiet")
    assert ended.code == 0, ended.err
    system = model.load(folder)
    assert isinstance(system, TimeGradSystem) or hasattr(system, "windowing")
    plan = system.plan_of(3)  # type: ignore[union-attr]
    assert plan.calibration is not None
    ended = run("forecast", folder, "--data", folders["table"], "--draws", 2, "--calls", 3, "--quiet")
    assert ended.code == 0, ended.err
    assert plan.name in ended.out


@pytest.mark.parametrize(
    ("channels", "gap", "name", "words"),
    [(2, False, "timegrad", "few channels"), (2, True, "sssd", "0.8% of the numbers"), (16, True, "csdi", "16 channels")],
)
def test_a_horizon_alone_chooses_the_model(channels: int, gap: bool, name: str, words: str, run: Run) -> None:
    values = Noise(0).normal((60, channels), dtype=torch.float64).numpy()
    if gap:
        values[7, 0] = np.nan
    index = pd.date_range("2024-03-01", periods=60, freq="h", name="when")
    pd.DataFrame(values, index=index).add_prefix("c").to_csv("own.csv")
    ended = run("train", "--data", "own.csv", "--horizon", 4, *QUICK[:-1], *NET[name])
    assert ended.code == 0, ended.err
    assert model.read_recipe("runs/own").system == name
    assert words in ended.err
    assert run("forecast", "runs/own", "--data", "own.csv", "--draws", 2, "--quiet").code == 0


def test_resume_goes_on_where_it_stopped(folders: dict[str, Path], run: Run) -> None:
    words = (
        "train",
        "timegrad",
        "--data",
        folders["table"],
        "--horizon",
        6,
        "--set",
        "train.schedule=constant",
        *QUICK,
        *NET["timegrad"],
    )
    assert run(*words, "--out", "whole", "--set", "train.steps=8").code == 0
    assert run(*words, "--out", "parts", "--set", "train.steps=4").code == 0
    ended = run(*words, "--out", "parts", "--set", "train.steps=8", "--resume")
    assert ended.code == 0, ended.err
    whole, parts = (model.load(name).net.state_dict() for name in ("whole", "parts"))
    assert all(torch.allclose(whole[name], parts[name], atol=1e-6) for name in whole)


def test_covariates_are_demanded_where_they_were_trained_with(folders: dict[str, Path], run: Run) -> None:
    table = pd.read_csv(folders["table"])
    stamps = pd.date_range("2024-03-01", periods=130, freq="h", name="when")
    pd.DataFrame({"sun": np.arange(130.0)}, index=stamps).to_csv("future.csv")
    words = ("train", "timegrad", "--data", folders["table"], "--future", "future.csv", "--horizon", 6, *QUICK, *NET["timegrad"])
    assert run(*words, "--out", "sunny").code == 0
    config = model.read_recipe("sunny").sequence
    assert config is not None
    assert config.features is not None
    assert config.features[-1] == "sun"
    refused(run("forecast", "sunny", "--data", folders["table"], "--quiet"), "'sun'", "--future")
    assert run("forecast", "sunny", "--data", folders["table"], "--future", "future.csv", "--draws", 2, "--quiet").code == 0
    long = run("forecast", "sunny", "--data", folders["table"], "--future", "future.csv", "--horizon", 12, "--quiet")
    refused(long, "'sun' ends 2 steps before")
    assert len(table) == 120


@pytest.mark.parametrize("name", ["co2", "sunspots", "macro"])
def test_bundled_series_can_be_trained_on(name: str, run: Run) -> None:
    kind = "sssd" if name == "co2" else "timegrad"
    ended = run("train", kind, "--data", name, "--horizon", 4, "--out", "x", *QUICK, *NET[kind])
    assert ended.code == 0, ended.err
    assert run("forecast", "x", "--data", name, "--draws", 2, "--quiet").code == 0


def test_real_tables_are_divided_in_time(shared: Path) -> None:
    from ornstein import config

    recipe = config.override(
        config.load_recipe("timegrad"),
        [f"data.source={shared / 'exchange_rate' / 'exchange_rate_train.csv'}", "sequence.horizon=30"],
    )
    training, held = divide(recipe.data, load_data(recipe))
    assert held is not None
    assert training.series[0].index[-1] < held.series[0].index[held.context]  # type: ignore[union-attr]


def test_a_long_table_is_a_panel(run: Run) -> None:
    rows = [
        {"item_id": name, "day": day.date(), "value": 10 * place + step % 7}
        for place, name in enumerate(("north", "south"))
        for step, day in enumerate(pd.date_range("2024-01-01", periods=60, freq="D"))
    ]
    pd.DataFrame(rows).to_csv("panel.csv", index=False)
    pd.DataFrame({"item_id": ["north", "south"], "area": [1.0, 2.5]}).to_csv("items.csv", index=False)
    words = ("--data", "panel.csv", "--static", "items.csv")
    ended = run("train", "timegrad", *words, "--horizon", 5, "--out", "x", *QUICK, *NET["timegrad"])
    assert ended.code == 0, ended.err
    config = model.read_recipe("x").sequence
    assert config is not None
    assert list(config.covariates) == ["area"]
    ended = run("forecast", "x", *words, "--draws", 3, "--quiet")
    assert ended.code == 0, ended.err
    found = pd.read_csv("forecast.csv")
    assert found["item"].value_counts().to_dict() == {"north": 5, "south": 5}
    refused(run("backtest", "x", *words, "--quiet"), "holds 2 items")
    refused(run("forecast", "x", "--data", "panel.csv", "--quiet"), "'area'", "--static")
