"""The notes' figures: every one is drawn, as a file and by the command, and wrong wishes are refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from gallery_cases import MODES, cheap_scene, offsets, panels_with_ink, two_modes
from ornstein import figures
from ornstein.figures import animate, vectors
from ornstein.figures.gallery import Scene
from ornstein.noise import Noise
from ornstein.process import VP
from ornstein.vector.data import table
from tiny import Ended, Run

FIT = (
    "--set",
    "train={steps: 4, batch: 32, warmup: 2, validate_every: 2}",
    "--set",
    "net.options={width: 8, depth: 1}",
    "--quiet",
)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return cheap_scene(monkeypatch)


def refused(ended: Ended, *words: str) -> None:
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1), ended
    for word in words:
        assert word in ended.err


# --- all of them


@pytest.mark.parametrize("name", figures.GALLERY)
def test_every_figure_is_drawn(name: str, scene: Scene, tmp_path: Path) -> None:
    panels_with_ink(figures.GALLERY[name](scene), tmp_path / f"{name}.png")


@pytest.mark.parametrize("name", figures.ANIMATIONS)
def test_every_animation_moves(name: str, scene: Scene, tmp_path: Path) -> None:
    frames = list(figures.ANIMATIONS[name](scene, frames=4))  # type: ignore[call-arg]
    assert len({frame.shape for frame in frames}) == 1
    assert all(frame.std() > 3 for frame in frames)
    assert len({frame.tobytes() for frame in frames}) >= 4
    figures.write_gif(iter(frames), tmp_path / "x.gif")
    with Image.open(tmp_path / "x.gif") as picture:
        assert picture.size == frames[0].shape[1::-1]
        assert picture.info["loop"] == 0
        lasts = []
        for k in range(picture.n_frames):
            picture.seek(k)
            lasts.append(picture.info["duration"])
        final = np.asarray(picture.convert("RGB")).astype(float)
    assert sum(lasts) == 80 * (len(frames) + 18)
    assert min(lasts[0], lasts[-1]) > max(lasts[1:-1])
    assert np.abs(final - frames[-1]).mean() < 8


def test_the_roll_s_animation_goes_to_noise_and_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    clouds: list[Tensor] = []

    def still(figure: Figure) -> np.ndarray:
        titles.append(figure.axes[0].get_title())
        clouds.append(offsets(figure.axes[0]))
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(animate, "_still", still)
    assert len(list(animate.swiss_roll(scene, frames=4))) == 10
    times = [float(title.split("t = ")[1]) for title in titles]
    assert times[:5] == sorted(times[:5])
    assert times[5:] == times[4::-1]
    assert (times[0], times[4]) == (0.0, 1.0)
    for first in (clouds[0], clouds[-1]):  # both ends lie at the modes
        assert float(torch.cdist(first, MODES).amin(1).max()) < 0.6
    assert float(torch.cdist(clouds[4], MODES).amin(1).mean()) > 0.6


# --- the command


def test_the_command_draws_and_says_what(run: Run, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(figures.ANIMATIONS, "annealing", lambda scene: animate.annealing(scene, frames=3))
    ended = run("figure", "schedules")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("schedules.png: What a process is")
    assert run("figure", "annealing", "--out", "deep/x.gif", "--seed", 3).out.startswith("deep/x.gif: Simulated annealing")
    with Image.open("deep/x.gif") as picture:
        assert picture.n_frames >= 3
    values = two_modes(VP()).sample(60, Noise(1)).numpy() * [3.0, 50.0] + 7
    np.savetxt("own.csv", values, delimiter=",", header="a,b", comments="")
    for name in ("moons.svg", "own.pdf"):
        data = "moons" if name == "moons.svg" else "own.csv"
        assert run("figure", "score_field", "--data", data, "--out", name).code == 0
    assert Path("moons.svg").read_text().count("<path") > 100
    assert Path("own.pdf").read_bytes().startswith(b"%PDF")
    pictures = []
    for seed in (0, 0, 1):
        assert run("figure", "swiss_roll", "--data", "own.csv", "--seed", seed, "--out", "x.png").code == 0
        pictures.append(Path("x.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_a_figure_of_a_trained_model(run: Run, scene: Scene, tiny_model: Path) -> None:
    values = two_modes(VP()).sample(100, Noise(1)).numpy() * [3.0, 50.0] + 7
    np.savetxt("own.csv", values, delimiter=",", header="a,b", comments="")
    assert run("train", "points", "--data", "own.csv", *FIT, "--out", "m").code == 0
    ended = run("figure", "swiss_roll", "--model", "m", "--out", "m.png")
    assert ended.code == 0, ended.err
    with Image.open("m.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 3
    assert run("figure", "swiss_roll", "--out", "law.png").code == 0
    assert Path("law.png").read_bytes() != Path("m.png").read_bytes()
    refused(run("figure", "swiss_roll", "--model", tiny_model), "--model", "(1, 8, 8)", "two columns")
    refused(run("figure", "swiss_roll", "--model", "nowhere"), "'nowhere' is not a directory")
    np.savetxt("wide.csv", np.random.default_rng(0).normal(size=(50, 3)), delimiter=",")
    assert run("train", "points", "--data", "wide.csv", *FIT, "--out", "w").code == 0
    refused(run("figure", "swiss_roll", "--model", "w"), "(3,)", "two columns")
    refused(run("figure", "swiss_roll", "--data", "wide.csv"), "3 columns", "two")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mona_lisa"], ["'mona_lisa' is not one of swiss_roll, score_field"]),
        (["swiss_roll", "--out", "x.jpg"], ["'x.jpg'", ".png, .pdf, .svg or .gif"]),
        (["schedules", "--out", "x.gif"], ["only swiss_roll, score_trap, annealing move"]),
        (["score_trap", "--data", "moons"], ["--data moons", "score_trap has a law of its own"]),
        (["score_field", "--model", "m"], ["--model", "not with score_field"]),
        (["swiss_roll", "--data", "none.csv"], ["'none.csv'"]),
        (["score_field", "--data", "heartbeat"], ["20 columns"]),
        (["swiss_roll", "--out", "folder"], ["'folder'"]),
    ],
)
def test_what_the_command_refuses(arguments: list[str], words: list[str], run: Run) -> None:
    refused(run("figure", *arguments), *words)
    assert list(Path().iterdir()) == []


def test_the_list_and_the_help_name_every_figure(run: Run) -> None:
    listed, help_text = run("list").out, run("figure", "--help").out
    for name in figures.GALLERY:
        assert re.search(rf"^  {name} +\w", listed, re.MULTILINE)
        assert name in help_text
    assert set(figures.ANIMATIONS) < set(figures.GALLERY)


@pytest.mark.parametrize("columns", [1, 2, 3, 6])
def test_rows_are_shown_beside_data(columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(vectors, "save", lambda figure, path: drawn.append(figure))
    values = np.random.default_rng(0).normal(size=(50, columns)) * 9
    data = table(values)
    x = torch.from_numpy(values)
    vectors.rows_picture(x + 1, data.contract, tmp_path / "x.png", beside=x)
    monkeypatch.undo()
    panels_with_ink(drawn[0], tmp_path / "x.png", dpi=130)
    if columns == 2:
        assert [axes.get_title() for axes in drawn[0].axes] == ["data", "samples"]
        assert torch.allclose(offsets(drawn[0].axes[1]) - offsets(drawn[0].axes[0]), torch.ones(50, 2).double())
        assert drawn[0].axes[0].get_xlabel() == "x"
    else:
        assert len(drawn[0].axes) == min(columns, 4) ** 2
        assert drawn[0].axes[-1].get_xlabel() == data.contract.channels[min(columns, 4) - 1]
