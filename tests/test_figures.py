"""Pictures show the numbers they are given, tile by tile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from ornstein import figures, model
from ornstein.contract import Contract
from ornstein.image.data import from_arrays
from ornstein.train.callbacks import read_log


def contract(channels: int, side: int, *, floats: bool = False) -> Contract:
    images = np.random.default_rng(0).integers(0, 256, (4, channels, side, side)).astype(np.float32 if floats else np.uint8)
    return from_arrays(images).contract


def test_a_grid_holds_every_image_row_by_row(tmp_path: Path) -> None:
    images = torch.stack([torch.full((1, 60, 60), 40.0 * k) for k in range(5)])
    picture = figures.image_grid(images, contract(1, 60), tmp_path / "x.png", columns=3)
    assert picture.shape == (2 * 62, 3 * 62, 3)
    for k in range(5):
        row, column = divmod(k, 3)
        tile = picture[row * 62 : (row + 1) * 62, column * 62 : (column + 1) * 62]
        assert bool((tile[1:-1, 1:-1] == 40 * k).all())
        assert bool((tile[0] == 255).all())
        assert bool((tile[:, -1] == 255).all())
    assert bool((picture[62:, 124:] == 255).all())
    with Image.open(tmp_path / "x.png") as written:
        assert np.array_equal(np.asarray(written), picture)


def test_colours_and_orientation_are_kept(tmp_path: Path) -> None:
    image = torch.zeros(1, 3, 64, 64)
    image[0, 0, :32] = 255
    image[0, 2, :, :16] = 128
    picture = figures.image_grid(image, contract(3, 64), tmp_path / "x.png")[1:-1, 1:-1]
    assert picture[0, 0].tolist() == [255, 0, 128]
    assert picture[0, -1].tolist() == [255, 0, 0]
    assert picture[-1, 0].tolist() == [0, 0, 128]
    assert picture[-1, -1].tolist() == [0, 0, 0]


def test_small_images_are_enlarged_by_whole_pixels(tmp_path: Path) -> None:
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    picture = figures.image_grid(image, contract(1, 8), tmp_path / "x.png")
    assert picture.shape == (50, 50, 3)
    assert np.array_equal(picture[1:-1:6, 1:-1:6, 0], np.arange(64).reshape(8, 8))
    assert np.array_equal(picture[6:-1:6, 6:-1:6, 0], np.arange(64).reshape(8, 8))


def test_ranges(tmp_path: Path) -> None:
    image = torch.linspace(-100, 355, 64).reshape(1, 1, 8, 8)
    declared = figures.image_grid(image, contract(1, 8), tmp_path / "x.png")[1:-1, 1:-1]
    assert (declared.min(), declared.max()) == (0, 255)
    assert (declared == 0).mean() > 0.2
    free = (
        figures.image_grid(image * 1e-3, contract(1, 8, floats=True), tmp_path / "x.png")[1:-1:6, 1:-1:6, 0].astype(int).ravel()
    )
    assert (free[0], free[-1]) == (0, 255)
    assert set(np.diff(free)) <= {4, 5}
    flat = figures.image_grid(torch.ones(1, 1, 8, 8), contract(1, 8, floats=True), tmp_path / "x.png")
    assert flat[1:-1, 1:-1].max() == 0


def test_the_strip_begins_with_data_and_ends_with_samples(tiny_model: Path, tmp_path: Path) -> None:
    system = model.load(tiny_model)
    _, held = tiny.digits(tiny.recipe())
    data = held.batch(range(2))["x"]
    for number, chosen in enumerate((system, replace(system, plan=None))):
        path = tmp_path / "deep" / f"{number}.png"
        figures.strip(chosen, data, path, cond={"label": [1, 2]}, shown=5)
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
        assert pixels.shape == (4 * 50, 5 * 50, 3)
        first = pixels[1:49:6, 1:49:6, 0].astype(float)
        assert np.abs(first - data[0, 0].numpy() * 255 / 16).max() <= 0.51
        noisy = pixels[1:49:6, 4 * 50 + 1 : 4 * 50 + 49 : 6, 0].astype(float)
        assert abs(np.corrcoef(first.ravel(), noisy.ravel())[0, 1]) < 0.4


def test_the_loss_curve_is_drawn_from_the_log(tiny_model: Path, tmp_path: Path) -> None:
    rows = read_log(tiny_model)
    assert rows
    figures.loss_curve(rows, tmp_path / "loss.png")
    more = [{"step": str(k), "loss": str(1 / k), "validation": ""} for k in range(1, 60)]
    figures.loss_curve(more, tmp_path / "more.png")
    with Image.open(tmp_path / "loss.png") as first, Image.open(tmp_path / "more.png") as second:
        assert first.size == second.size == (910, 455)
        assert not np.array_equal(np.asarray(first), np.asarray(second))


def test_a_failed_picture_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    figures.image_grid(torch.zeros(1, 1, 8, 8), contract(1, 8), path)
    before = path.read_bytes()

    def full(*arguments: object, **rest: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        figures.image_grid(torch.ones(1, 1, 8, 8), contract(1, 8), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.png"]
