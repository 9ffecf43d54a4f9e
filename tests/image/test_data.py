"""Image data: every source gives the same pixels; every kind of bad input gives one line."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ornstein.files import InputError
from ornstein.image import automatic, data, pixels, sources
from ornstein.image.data import ImageData, describe, from_arrays, load_images

SHARED = Path(os.environ.get("ORNSTEIN_SHARED", Path(__file__).parents[3] / "shared")) / "data"


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        warnings.warn(f"shared data {path} is absent: a real-data test does not run", stacklevel=2)
        pytest.skip(f"{path} is absent; set ORNSTEIN_SHARED")
    return path


def pictures(n: int = 6, side: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(n, side, side, 3)).astype(np.uint8)


def save(folder: Path, images: np.ndarray, names: list[str]) -> None:
    for name, image in zip(names, images, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)


def first(images: np.ndarray) -> np.ndarray:
    return np.moveaxis(images, -1, 1)


def refusal(source: object, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        load_images(source, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


CLASSES = ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "owl/0.png", "owl/1.png"]


# --- sources ---------------------------------------------------------------------------------------------------------------


def test_digits() -> None:
    digits = load_images("digits")
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.images.dtype == np.uint8
    assert (digits.contract.levels, digits.contract.high, digits.contract.bounds) == (17, 16.0, (-1.0, 1.0))
    assert digits.contract.classes == tuple("0123456789")
    encoded = digits.contract.encode(digits.batch(range(len(digits)))["x"])
    assert float(encoded.std()) == pytest.approx(digits.contract.std, rel=1e-3)
    assert float(encoded.min()) == -1.0
    assert np.array_equal(digits.contract.quantise(digits.contract.decode(encoded)), digits.images)


def test_flat_and_class_folders_and_zip(tmp_path: Path) -> None:
    images = pictures()
    save(tmp_path / "flat", images, [f"{i}.png" for i in range(6)])
    save(tmp_path / "classes", images, CLASSES)
    (tmp_path / "classes" / "README.txt").write_text("not an image")
    (tmp_path / "classes" / ".hidden.png").write_text("not an image")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for name in CLASSES:
            archive.write(tmp_path / "classes" / name, f"root/{name}")
        archive.writestr("__MACOSX/root/cat/._0.png", b"junk")
    flat, classes = load_images(tmp_path / "flat"), load_images(tmp_path / "classes")
    zipped = load_images(str(tmp_path / "c.zip"))
    for loaded in (flat, classes, zipped):
        assert np.array_equal(loaded.images, first(images))
    assert flat.labels is None
    for loaded in (classes, zipped):
        assert loaded.labels is not None
        assert loaded.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert loaded.contract.classes == ("cat", "dog", "owl")
    with pytest.raises(InputError, match="no labels"):
        flat.require_labels()
    assert "sub-folder per class" in refusal(tmp_path / "flat", label_key="label")


def test_numeric_class_names_sort_by_number(tmp_path: Path) -> None:
    save(tmp_path, pictures(3), ["10/a.png", "2/a.png", "1/a.png"])
    loaded = load_images(tmp_path)
    assert loaded.contract.classes == ("1", "2", "10")
    assert loaded.labels is not None
    assert np.array_equal(loaded.images[loaded.labels.tolist().index(2)], first(pictures(3))[0])


def test_parts_of_a_tree(tmp_path: Path) -> None:
    save(tmp_path, pictures(4), ["train/a/0.png", "train/b/0.png", "test/a/0.png", "test/b/1.png"])
    assert "choose one" in refusal(tmp_path)
    assert "no folder of that name" in refusal(tmp_path, split="valid")
    part = load_images(tmp_path, split="test")
    assert np.array_equal(part.images, first(pictures(4))[2:])
    assert part.contract.classes == ("a", "b")
    save(tmp_path / "mixed", pictures(2), ["a.png", "b/c.png"])
    assert "beside and inside" in refusal(tmp_path / "mixed")


def test_numpy_layouts_and_keys(tmp_path: Path) -> None:
    images, label = pictures(), np.array([5, 5, 7, 7, 9, 9])
    np.savez(tmp_path / "a.npz", pictures=images, subject=label, weight=np.ones(6))
    loaded = load_images(tmp_path / "a.npz")
    assert np.array_equal(loaded.images, first(images))
    assert loaded.contract.classes == ("5", "7", "9")
    for name, array, expected in [("hw", images[..., 0], images[:, None, :, :, 0]), ("chw", first(images), first(images))]:
        np.save(tmp_path / f"{name}.npy", array)
        assert np.array_equal(load_images(tmp_path / f"{name}.npy").images, expected)
    np.savez(tmp_path / "b.npz", x=images, y=images, label=label, other=label)
    assert "image_key is needed" in refusal(tmp_path / "b.npz")
    assert "several fit" in refusal(tmp_path / "b.npz", image_key="x")
    message = refusal(tmp_path / "b.npz", image_key="z")
    assert all(key in message for key in ("x (6, 8, 8, 3)", "y ", "label ", "other "))
    assert load_images(tmp_path / "b.npz", image_key="x", label_key="other").labels is not None
    assert "'nothing' is not in" in refusal(tmp_path / "b.npz", image_key="x", label_key="nothing")
    np.savez(tmp_path / "c.npz", a=label)
    assert "nothing fits" in refusal(tmp_path / "c.npz")
    np.save(tmp_path / "d.npy", np.zeros((4, 3, 8, 3)))
    assert "channels could be" in refusal(tmp_path / "d.npy")


def test_pickled_numpy_is_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}, {}], dtype=object))
    np.save(tmp_path / "b.npy", np.array([{}, {}], dtype=object))
    assert "image_key is needed" in refusal(tmp_path / "a.npz")
    assert "cannot read" in refusal(tmp_path / "b.npy")
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:40])
    assert "cannot read" in refusal(tmp_path / "c.npz")


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files(tmp_path: Path, packed: bool) -> None:
    images, labels = pictures()[..., 0], np.array([0, 1, 2, 0, 1, 2], np.uint8)
    for head, shift in (("train", 0), ("t10k", 1)):
        for kind, array in (("images-idx3", images + shift), ("labels-idx1", labels)):
            raw = idx(array.astype(np.uint8))
            name = tmp_path / f"{head}-{kind}-ubyte{'.gz' if packed else ''}"
            name.write_bytes(gzip.compress(raw) if packed else raw)
    assert "choose one" in refusal(tmp_path)
    for part, shift in (("train", 0), ("test", 1)):
        loaded = load_images(tmp_path, split=part)
        assert np.array_equal(loaded.images[:, 0], images + np.uint8(shift))
        assert loaded.labels is not None
        assert loaded.labels.tolist() == [0, 1, 2, 0, 1, 2]
    whole = next(tmp_path.glob("train-images*"))
    raw = whole.read_bytes()
    whole.write_bytes(raw[:-5])
    assert "copy it again" in refusal(whole)
    whole.write_bytes(b"hello world")
    assert "idx" in refusal(whole) or "copy it again" in refusal(whole)


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


def test_hugging_face_tables_and_saved_sets(tmp_path: Path) -> None:
    import datasets

    images, names = pictures(), ["ant", "bee"]
    whole = datasets.Value("int64")
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=names), "id": whole})
    rows = [{"img": {"bytes": png(image), "path": None}, "kind": i % 2, "id": i} for i, image in enumerate(images)]
    table = datasets.Dataset.from_list(rows, features=features)
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": table, "test": table.select([1, 2, 3])}).save_to_disk(str(tmp_path / "parts"))
    table.to_parquet(str(tmp_path / "t.parquet"))
    for source in ("saved", "parts", "t.parquet"):
        loaded = load_images(tmp_path / source)
        assert np.array_equal(loaded.images, first(images))
        assert loaded.contract.classes == ("ant", "bee")
        assert loaded.labels is not None
        assert loaded.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert np.array_equal(load_images(tmp_path / "parts", split="test").images, first(images)[1:4])
    assert "train, test" in refusal(tmp_path / "parts", split="valid")
    assert "image_key='nope'" in refusal(tmp_path / "saved", image_key="nope")
    (tmp_path / "saved" / "state.json").write_text("{")
    assert "save it again" in refusal(tmp_path / "saved")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    assert "as a table" in refusal(tmp_path / "bad.parquet")


def test_json_rows_of_numbers(tmp_path: Path) -> None:
    grey = pictures(4)[..., 0]
    (tmp_path / "a.json").write_text(json.dumps([{"x": image.tolist(), "label": i % 2} for i, image in enumerate(grey)]))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"x": image.tolist()}) for image in grey))
    assert np.array_equal(load_images(tmp_path / "a.json").images[:, 0], grey)
    unlabelled = load_images(tmp_path / "b.jsonl")
    assert np.array_equal(unlabelled.images[:, 0], grey)
    assert unlabelled.labels is None


def test_the_hub_without_a_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(self: object, name: str, timeout: float) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    message = refusal("hf:someone/flowers")
    assert "no route" in message
    assert "check the name and the network" in message


def test_a_folder_with_one_data_file_stands_for_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=pictures())
    (tmp_path / "notes.csv").write_text("a,b")
    assert len(load_images(tmp_path)) == 6
    np.save(tmp_path / "b.npy", pictures())
    assert "a.npz, b.npy" in refusal(tmp_path)


# --- pixels ----------------------------------------------------------------------------------------------------------------


def test_kinds_of_numbers(tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(0, 65536, size=(4, 8, 8))
    cases: list[tuple[np.ndarray, type, int | None, float | None]] = [
        (whole.astype(np.uint16), np.uint16, 65536, 0.0),
        (whole.astype(np.int64), np.uint16, 65536, 0.0),
        ((whole % 256).astype(np.int32), np.uint8, 256, 0.0),
        ((whole - 32768).astype(np.int16), np.int16, 65536, -32768.0),
        (whole > 30000, np.uint8, 2, 0.0),
        (whole / 7.0, np.float64, None, None),
        ((whole / 7.0).astype(np.float32), np.float32, None, None),
    ]
    for array, dtype, levels, low in cases:
        np.save(tmp_path / "a.npy", array)
        loaded = load_images(tmp_path / "a.npy")
        assert np.array_equal(loaded.images[:, 0], array)
        contract = loaded.contract
        assert (loaded.images.dtype, contract.levels, contract.low) == (dtype, levels, low)
        assert contract.bounded == (levels is not None)
    np.save(tmp_path / "a.npy", whole * 10)
    assert "more than 16 bits" in refusal(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", whole * 1j)
    assert "complex" in refusal(tmp_path / "a.npy")


def test_sixteen_bit_and_float_files(tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(0, 65536, size=(2, 8, 8)).astype(np.uint16)
    save(tmp_path / "png", whole, ["0.png", "1.png"])
    save(tmp_path / "tif", (whole / 9).astype(np.float32), ["0.tif", "1.tif"])
    deep, real = load_images(tmp_path / "png"), load_images(tmp_path / "tif")
    assert np.array_equal(deep.images[:, 0], whole)
    assert deep.contract.levels == 65536
    assert np.array_equal(real.images[:, 0], (whole / 9).astype(np.float32))
    save(tmp_path / "png", pictures(1), ["2.png"])
    assert "mixes uint16 and uint8" in refusal(tmp_path / "png")


def test_grey_and_colour(tmp_path: Path) -> None:
    images = pictures(2)
    save(tmp_path, images, ["0.png", "1.png"])
    grey = load_images(tmp_path, channels=1).images[:, 0]
    luma = (images * np.array([0.299, 0.587, 0.114])).sum(-1)
    assert np.abs(grey - luma).max() <= 1
    np.save(tmp_path / "a.npy", images)
    assert np.abs(load_images(tmp_path / "a.npy", channels=1).images[:, 0] - luma).max() <= 0.5 + 1e-9
    save(tmp_path, images[:1, ..., 0], ["2.png"])
    mixed = load_images(tmp_path)  # one grey file among colour ones
    assert mixed.images.shape == (3, 3, 8, 8)
    assert (mixed.images[2] == images[0, ..., 0]).all()
    assert mixed.contract.channels == ("red", "green", "blue")
    np.save(tmp_path / "b.npy", np.zeros((4, 8, 8, 4), np.uint8))
    assert "4 channels" in refusal(tmp_path / "b.npy", channels=3)
    assert "channels=2" in refusal(tmp_path, channels=2)


def test_transparency_is_white_and_the_camera_is_upright(tmp_path: Path) -> None:
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[:2, :, 3] = 255
    Image.fromarray(clear).save(tmp_path / "a.png")
    tall = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    tall.save(tmp_path / "b.png", exif=exif)
    images = load_images(tmp_path).images
    assert (images[0, :, :2] == 0).all()
    assert (images[0, :, 2:] == 255).all()
    assert np.array_equal(images[1, 0], np.rot90(np.arange(16).reshape(4, 4), -1))


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 12), st.integers(1, 12), st.sampled_from(pixels.CROPS))
def test_resize_keeps_size_range_and_constants(height: int, width: int, new_height: int, new_width: int, crop: str) -> None:
    noise = np.random.default_rng(height * 31 + width).normal(size=(2, height, width)).astype(np.float32)
    out = pixels.resize(noise, (new_height, new_width), crop)
    assert out.shape == (2, new_height, new_width)
    assert out.dtype == np.float32
    assert out.min() >= noise.min() - 1e-5
    assert out.max() <= noise.max() + 1e-5
    flat = pixels.resize(np.full((1, height, width), 40000, np.uint16), (new_height, new_width), crop)
    assert (flat == 40000).all()


def test_resize_is_antialiased_and_centred() -> None:
    board = np.indices((16, 16)).sum(0)[None] % 2 * 255.0
    assert np.abs(pixels.resize(board.astype(np.float32), (4, 4), "off") - 127.5).max() < 8
    wide = np.zeros((1, 4, 12), np.float32)
    wide[:, :, 4:8] = 1
    assert (pixels.resize(wide, (2, 2), "center") > 0.9).all()  # the filter looks a little past the cut
    assert (pixels.resize(wide, (4, 4), "center") == 1).all()
    assert pixels.resize(wide, (4, 4), "off").mean() == pytest.approx(1 / 3, abs=0.05)


def test_mixed_sizes(tmp_path: Path) -> None:
    save(tmp_path, pictures(3), ["a.png", "b.png", "c.png"])
    Image.fromarray(pictures(1, 9)[0][:7]).save(tmp_path / "d.png")
    message = refusal(tmp_path)
    assert "'a.png' and 'd.png' have 8x8 and 9x7 pixels" in message
    assert "data.size" in message
    assert load_images(tmp_path, size=6).images.shape == (4, 3, 6, 6)
    assert load_images(tmp_path, size=(5, 6), crop="off").images.shape == (4, 3, 5, 6)
    assert "crop='random'" in refusal(tmp_path, crop="random")
    assert "size=0" in refusal(tmp_path, size=0)


# --- bad input -------------------------------------------------------------------------------------------------------------


def test_unreadable_files_are_counted_or_strict(tmp_path: Path) -> None:
    save(tmp_path, pictures(6), CLASSES)
    (tmp_path / "cat/1.png").write_bytes(b"not a picture")
    whole = (tmp_path / "dog/0.png").read_bytes()
    (tmp_path / "dog/0.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "owl/0.png").write_bytes(b"")
    loaded = load_images(tmp_path)
    assert {name for name, _ in loaded.skipped} == {"cat/1.png", "dog/0.png", "owl/0.png"}
    assert all(why for _, why in loaded.skipped)
    assert np.array_equal(loaded.images, first(pictures(6))[[0, 3, 5]])
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [0, 1, 2]
    assert "3 unreadable files skipped: " in describe(loaded)
    assert "cat/1.png" in refusal(tmp_path, strict=True)
    for name in CLASSES:
        (tmp_path / name).write_bytes(b"")
    assert "none of the 6 images" in refusal(tmp_path)


def test_a_damaged_member_of_a_zip_is_skipped(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_STORED) as archive:
        for index, image in enumerate(pictures(4)):
            archive.writestr(f"{index}.png", png(image))
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    raw[120] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(raw)
    loaded = load_images(tmp_path / "a.zip")
    assert [name for name, _ in loaded.skipped] == ["0.png"]
    (tmp_path / "a.zip").write_bytes(raw[:-30])
    assert "not a readable ZIP" in refusal(tmp_path / "a.zip")


def test_one_clear_line_each(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no images" in refusal(empty)
    assert "does not exist" in refusal(tmp_path / "absent")
    save(tmp_path / "one", pictures(1), ["a.png"])
    assert "at least 2" in refusal(tmp_path / "one")
    assert "single image" in refusal(tmp_path / "one" / "a.png")
    save(tmp_path / "same", np.full((3, 8, 8), 9, np.uint8), ["a.png", "b.png", "c.png"])
    assert "constant" in refusal(tmp_path / "same")
    (tmp_path / "x.docx").write_text("hello")
    assert "unknown kind" in refusal(tmp_path / "x.docx")
    values = np.random.default_rng(0).normal(size=(5, 8, 8)).astype(np.float32)
    values[3, 0, 0], values[4, 1, :2] = np.nan, np.inf
    np.save(tmp_path / "n.npy", values)
    assert "3 NaN or infinite values, first in image 3" in refusal(tmp_path / "n.npy")
    assert "3 NaN or infinite values, first in image 3" in refusal(tmp_path / "n.npy", size=4)
    assert "named parts" in refusal(tmp_path / "n.npy", split="train")
    np.savez(tmp_path / "f.npz", x=pictures(4), y=np.linspace(0, 1, 4))
    assert "dtype float64" in refusal(tmp_path / "f.npz", label_key="y")
    np.savez(tmp_path / "g.npz", x=pictures(4), y=np.arange(3))
    assert "(3,) for 4 images" in refusal(tmp_path / "g.npz", label_key="y")


def test_large_data_is_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LIMIT", 1000)
    save(tmp_path / "a", pictures(6), CLASSES)
    np.savez(tmp_path / "a.npz", x=pictures(6))
    np.save(tmp_path / "a.npy", pictures(6))

    def never(*arguments: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(data, "decode", never)
    for name in ("a", "a.npz", "a.npy"):
        message = refusal(tmp_path / name)
        assert "GiB of memory" in message
        assert "data.size=64" in message
    assert load_images(tmp_path / "a.npy", size=4).images.shape == (6, 3, 4, 4)


# --- ImageData -------------------------------------------------------------------------------------------------------------


def labelled(counts: list[int], seed: int = 0) -> ImageData:
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.random.default_rng(seed).normal(labels[:, None, None, None], 1.0, size=(len(labels), 1, 2, 2))
    return from_arrays(images.astype(np.float32), labels)


def test_batches() -> None:
    loaded = labelled([3, 4])
    batch = loaded.batch([5, 0])
    assert batch["x"].dtype == torch.float32
    assert batch["label"].dtype == torch.int64
    assert np.array_equal(batch["x"].numpy(), loaded.images[[5, 0]])
    assert batch["label"].tolist() == [1, 0]
    assert torch.equal(loaded.batch(torch.tensor([5, 0]))["x"], batch["x"])
    batch["x"].zero_()
    assert loaded.images[5].any()


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.floats(0.2, 0.9), st.integers(0, 1000))
def test_split_is_disjoint_deterministic_and_stratified(counts: list[int], fraction: float, seed: int) -> None:
    if not 2 <= round(fraction * sum(counts)) < sum(counts):
        return
    loaded = labelled(counts)
    train, held = loaded.split(fraction, seed)
    assert len(train) == round(fraction * len(loaded))
    both = np.concatenate([train.images, held.images]).ravel()
    assert np.array_equal(np.sort(both), np.sort(loaded.images.ravel()))
    again = loaded.split(fraction, seed)
    assert np.array_equal(again[0].images, train.images)
    assert train.labels is not None
    got = np.bincount(train.labels, minlength=len(counts))
    assert (np.abs(got - fraction * np.array(counts)) <= 2).all()


def test_split_depends_on_the_seed_and_refuses_empty_parts() -> None:
    loaded = labelled([50])
    assert not np.array_equal(loaded.split(0.5, 0)[0].images, loaded.split(0.5, 1)[0].images)
    for fraction in (0.0, 1.0, 0.001, float("nan")):
        with pytest.raises(InputError, match="fraction"):
            loaded.split(fraction, 0)


def test_the_contract_sees_the_training_part_alone() -> None:
    loaded = labelled([100, 100])
    train, held = loaded.split(0.5, 3)
    assert held.contract == train.contract
    values = train.images.astype(np.float64)
    assert train.contract.shift[0] == pytest.approx(values.mean(), rel=1e-9)
    assert train.contract.scale[0] == pytest.approx(values.std(), rel=1e-9)
    assert train.contract.shift != loaded.contract.shift
    assert train.contract.classes == ("0", "1")
    with pytest.raises(InputError, match="contract says"):
        loaded.with_contract(replace(loaded.contract, shape=(1, 4, 4)))
    eight = from_arrays(first(pictures(40))).split(0.5, 0)[0]
    assert eight.contract.shift == (127.5,) * 3
    assert eight.contract.std == pytest.approx(float((eight.images / 127.5 - 1).std()), rel=1e-9)


def test_describe() -> None:
    text = describe(labelled([3, 4]))
    assert "\n" not in text
    for part in ("7 images of 2x2 pixels", "1 channel (grey)", "float32", "continuous", "2 classes (0, 1) with 3 to 4"):
        assert part in text
    assert "no labels" in describe(from_arrays(first(pictures())))


@pytest.mark.parametrize(
    ("side", "count", "width", "multipliers"),
    [
        (8, 600, 64, [1, 2]),
        (28, 600, 64, [1, 2, 2]),
        (32, 600, 64, [1, 2, 2]),
        (64, 600, 64, [1, 2, 2, 4]),
        (28, 40, 32, [1, 2, 2]),
    ],
)
def test_suggest(side: int, count: int, width: int, multipliers: list[int]) -> None:
    images = np.zeros((count, 1, side, side), np.uint8)
    images[::2] = 255
    loaded = from_arrays(images)
    chosen = automatic.suggest(loaded)
    assert chosen["net"] == {
        "width": width,
        "multipliers": multipliers,
        "attention": [False] * (len(multipliers) - 1) + [True],
    }
    assert 1 <= chosen["batch"] <= count // 4
    assert chosen["sigma_data"] == loaded.contract.std == 1.0
    assert all(reason.endswith(".") for reason in chosen["reasons"])
    assert json.loads(json.dumps(chosen["net"])) == chosen["net"]


# --- real data -------------------------------------------------------------------------------------------------------------


def test_shared_mnist_and_faces() -> None:
    mnist = load_images(shared("mnist"))
    assert mnist.images.shape == (60000, 1, 28, 28)
    assert mnist.images.dtype == np.uint8
    assert mnist.labels is not None
    assert np.bincount(mnist.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    faces = load_images(shared("faces"))
    assert faces.images.shape == (300, 1, 64, 64)
    assert faces.labels is not None
    assert (np.bincount(faces.labels) == 10).all()


def test_shared_zips(monkeypatch: pytest.MonkeyPatch) -> None:
    cifar = load_images(shared("cifar10"))
    assert cifar.images.shape == (10000, 3, 32, 32)
    assert cifar.contract.classes is not None
    assert cifar.contract.classes[:3] == ("airplane", "automobile", "bird")
    with zipfile.ZipFile(shared("cifar10") / "cifar10_train_10k.zip") as archive:
        raw = Image.open(archive.open("cat/0007.jpg"))
        where = sorted(name for name in archive.namelist() if name.endswith(".jpg")).index("cat/0007.jpg")
    assert np.array_equal(cifar.images[where], first(np.asarray(raw)[None])[0])
    flowers = load_images(shared("flowers"), size=16)
    assert flowers.images.shape == (6000, 3, 16, 16)
    assert flowers.contract.classes is not None
    assert len(flowers.contract.classes) == 102
