"""Laws have the moments and the support that their names promise; a table from any file holds its numbers, or says why not."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ornstein.files import InputError
from ornstein.noise import Noise
from ornstein.process import VE, VP
from ornstein.vector import DISTRIBUTIONS, curve, describe, law_of, load_table, swiss_roll_law
from ornstein.vector.data import ROWS, checkerboard, eight_gaussians, heartbeat, moons, pinwheel, swiss_roll, table

N = 40_000
KEPT = {"pinwheel": 0.3, "checkerboard": 0.0}
"""Standard deviations of laws whose noise, as drawn by default, is part of the unit variance."""


def refusal(act: Callable[[], object], *words: str) -> None:
    """An InputError of one line, with the words."""
    with pytest.raises(InputError) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def uniform(n: int) -> Tensor:
    """Places in [0, 1] whose mean of any smooth function is its integral, up to 1/n²."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


# --- laws


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_law_has_mean_zero_and_unit_variance(name: str) -> None:
    for std in {KEPT.get(name, 0.0), KEPT.get(name, 0.4)}:
        x = DISTRIBUTIONS[name](N, Noise(0), std=std)
        assert (x.shape, x.dtype) == ((N, 2), torch.float64)
        variance = 1.0 + (0.0 if name in KEPT else std**2)
        assert float(x.mean(0).abs().max()) < 3 * math.sqrt(variance / N)
        squares = (x - x.mean(0)).square()
        assert bool(((squares.mean(0) - variance).abs() < 3 * squares.std(0) / math.sqrt(N)).all())


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@given(n=st.integers(1, 50), m=st.integers(50, 3000), seed=st.integers(0, 9))
def test_datum_i_of_a_seed_is_the_same_for_any_n(name: str, n: int, m: int, seed: int) -> None:
    law = DISTRIBUTIONS[name]
    assert torch.equal(law(n, Noise(seed)), law(m, Noise(seed))[:n])
    assert not torch.equal(law(n, Noise(seed)), law(n, Noise(seed + 1)))


def test_the_curve_is_standardised_exactly() -> None:
    nodes, weights = np.polynomial.legendre.leggauss(60)
    places, weight = torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2).unsqueeze(1)
    x = curve(places)
    assert float((weight * x).sum(0).abs().max()) < 1e-12
    assert float((weight * x.square()).sum(0).sub(1).abs().max()) < 1e-12
    angle = math.pi * (1.5 + 3 * places)
    plain = torch.stack([angle * angle.cos(), angle * angle.sin()], 1)
    mean = (weight * plain).sum(0)
    assert torch.allclose(x, (plain - mean) / (weight * (plain - mean).square()).sum(0).sqrt(), atol=1e-12)
    x = curve(uniform(100_000))
    assert float((x[1:] - x[:-1]).norm(dim=1).sum()) == pytest.approx(13.18, abs=0.005)


def test_the_swiss_roll_is_the_curve_and_its_noise() -> None:
    clean, noisy = (swiss_roll(3000, Noise(1), std) for std in (0.0, 0.05))
    assert float(torch.cdist(clean, curve(uniform(20_000))).amin(1).max()) < 1e-3
    z = (noisy - clean) / 0.05
    assert float(z.mean(0).abs().max()) < 3 / math.sqrt(len(z))
    assert float((z.square().mean() - 1).abs()) < 3 / math.sqrt(len(z))
    assert torch.equal(swiss_roll(9, Noise(1)), swiss_roll(9, Noise(1), 0.05))


def test_eight_equal_modes() -> None:
    x, noisy = (eight_gaussians(N, Noise(2), std) for std in (0.0, 0.1))
    places, counts = x.mul(1e6).round().unique(dim=0, return_counts=True)
    assert len(places) == 8
    assert torch.allclose(x.norm(dim=1), torch.tensor(math.sqrt(2), dtype=torch.float64))
    turns = torch.atan2(places[:, 1], places[:, 0]) / (math.pi / 4)
    assert torch.allclose(turns, turns.round(), atol=1e-5)
    assert float((counts / N - 1 / 8).abs().max()) < 3 * math.sqrt(7 / 64 / N)
    assert float((noisy - x).std()) == pytest.approx(0.1, rel=3 / math.sqrt(4 * N))


def test_moons_are_two_half_circles() -> None:
    x = moons(N, Noise(3), 0.0)
    spread = torch.tensor([0.75, 0.5 - 4 / math.pi**2 + (2 / math.pi - 0.25) ** 2], dtype=torch.float64).sqrt()
    arc = x * spread
    centre = torch.tensor([0.5, 0.25], dtype=torch.float64)
    upper = ((arc + centre).norm(dim=1) - 1).abs() < 1e-9
    lower = ((arc - centre).norm(dim=1) - 1).abs() < 1e-9
    assert bool((upper | lower).all())
    assert bool((arc[upper & ~lower, 1] >= -0.25 - 1e-9).all())
    assert bool((arc[lower & ~upper, 1] <= 0.25 + 1e-9).all())
    assert float((upper.double().mean() - 0.5).abs()) < 3 * 0.5 / math.sqrt(N)
    angle = torch.acos((arc + centre)[upper, 0].clamp(-1, 1))
    assert float(angle.mean()) == pytest.approx(math.pi / 2, abs=3 * math.pi / math.sqrt(12 * N / 2))


def test_a_pinwheel_has_five_equal_blades() -> None:
    std = 0.15
    x = pinwheel(N, Noise(4), std) / math.sqrt(2 / (1 + std**2 + 0.01))
    radius = x.norm(dim=1)
    assert float(radius.square().mean()) == pytest.approx(1 + std**2 + 0.01, abs=0.005)
    place = (torch.atan2(x[:, 1], x[:, 0]) - 0.25 * radius.exp()) / (2 * math.pi / 5)
    blade = place.round()
    assert float(((place - blade) * (2 * math.pi / 5) * radius).std()) == pytest.approx(0.1, abs=0.01)
    counts = torch.bincount(blade.long() % 5, minlength=5) / N
    assert float((counts - 0.2).abs().max()) < 3 * math.sqrt(0.16 / N)


def test_only_the_dark_fields_of_a_checkerboard() -> None:
    board = checkerboard(N, Noise(5)) * math.sqrt(4 / 3) + 2
    assert 0 <= float(board.min()) < float(board.max()) <= 4
    field = board.floor().long()
    assert bool((field.sum(1) % 2 == 0).all())
    counts = torch.bincount(field[:, 0] * 4 + field[:, 1], minlength=16) / N
    assert int((counts > 0).sum()) == 8
    assert float((counts[counts > 0] - 1 / 8).abs().max()) < 3 * math.sqrt(7 / 64 / N)
    within = board - field
    assert float((within.mean(0) - 0.5).abs().max()) < 3 / math.sqrt(12 * N)


def test_the_heartbeat_beats_every_five_places() -> None:
    x = heartbeat(5000, Noise(6))
    assert (x.shape, x.dtype) == ((5000, 20), torch.float32)
    kinds, counts = x.unique(dim=0, return_counts=True)
    assert len(kinds) == 5
    assert bool((kinds.sum(1) == 4).all())
    assert bool((x == x.roll(5, 1)).all())
    assert float((counts / 5000 - 0.2).abs().max()) < 3 * math.sqrt(0.16 / 5000)
    assert torch.equal(heartbeat(7, Noise(6)), x[:7])
    assert heartbeat(4, Noise(0), length=9, period=3).sum(1).tolist() == [3.0] * 4


@pytest.mark.parametrize("process", [VP(), VE(0.01, 10.0)])
@pytest.mark.parametrize("t", [None, 0.3, 0.8])
def test_the_roll_s_law_is_the_integral_over_its_curve(process: VP | VE, t: float | None) -> None:
    law = swiss_roll_law(process, 0.05)
    alpha, sigma = (float(m) for m in process.moments(t))
    x = alpha * swiss_roll(40, Noise(7)) + sigma * Noise(8).normal((40, 2), dtype=torch.float64)
    x = torch.cat([x, torch.tensor([[0.3, 0.4]], dtype=torch.float64)])  # and beside the curve
    variance = (alpha * 0.05) ** 2 + sigma**2
    away = x.unsqueeze(1) - alpha * curve(uniform(20_000))
    exponent = -away.square().sum(2) / (2 * variance)
    exact = exponent.logsumexp(1) - math.log(20_000) - math.log(2 * math.pi * variance)
    assert torch.allclose(law.log_prob(x, t), exact, atol=1e-3)
    if t is not None:
        score = -(exponent.softmax(1).unsqueeze(2) * away).sum(1) / variance
        assert float(((law(x, t).score - score) * math.sqrt(variance)).abs().max()) < 1e-2
    doubled = swiss_roll_law(process, 0.05, components=2400)
    assert float((law.log_prob(x, t) - doubled.log_prob(x, t)).abs().max()) < 1e-3


def test_draws_of_the_roll_s_law_are_draws_of_the_roll() -> None:
    from ornstein import metrics

    law = swiss_roll_law(VP())
    drawn, direct, other = law.sample(4000, Noise(9)), swiss_roll(4000, Noise(10)), swiss_roll(4000, Noise(11))
    apart = metrics.sliced_wasserstein(other.float(), direct.float())
    assert metrics.sliced_wasserstein(drawn.float(), direct.float()) < 2 * apart
    assert float(law.log_prob(direct).mean()) == pytest.approx(float(law.log_prob(drawn).mean()), abs=0.05)


def test_the_law_of_a_source(tmp_path: Path) -> None:
    noise = Noise(12)
    assert law_of("swiss_roll", noise) is swiss_roll_law
    law = law_of("moons", noise, points=300)(VP())
    assert (len(law.means), law.stds.unique().tolist()) == (300, [pytest.approx(0.05)])
    assert torch.allclose(law.means.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-6)
    values = np.random.default_rng(0).normal(100, 30, (50, 2))
    np.savetxt(tmp_path / "x.csv", values, delimiter=",")
    own = law_of(str(tmp_path / "x.csv"), noise, points=20)(VE())
    standard = (values - values.mean(0)) / values.std(0)
    apart = torch.cdist(own.means, torch.from_numpy(standard))
    assert float(apart.amin(1).max()) < 1e-5
    assert len(set(apart.argmin(1).tolist())) == len(own.means) == 20
    assert own.process == VE()
    refusal(lambda: law_of("heartbeat", noise), "'heartbeat'", "20 columns", "two")
    refusal(lambda: law_of("none.csv", noise), "none.csv")


# --- tables


def values(n: int = 40, columns: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal([[5.0, -3.0, 100.0, 0.1, 7.0][:columns]], 2.0, (n, columns))


def test_a_table_is_standardised_by_column_and_split() -> None:
    whole = table(values(), ("a", "b", "c"))
    assert (len(whole), whole.labels, whole.contract.channels) == (40, None, ("a", "b", "c"))
    encoded = whole.contract.encode(whole.batch(range(40))["x"])
    assert torch.allclose(encoded.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(encoded.std(0, unbiased=False), torch.ones(3), atol=1e-5)
    assert torch.equal(whole.batch([3, 1])["x"], torch.from_numpy(values()[[3, 1]]))
    training, held = whole.split(0.75, 5)
    assert (len(training), len(held)) == (30, 10)
    together = np.concatenate([training.values, held.values])
    assert np.array_equal(np.sort(together, 0), np.sort(whole.values, 0))
    assert training.contract == held.contract != whole.contract
    assert training.contract.shift == pytest.approx(training.values.mean(0).tolist())
    assert training.contract.scale == pytest.approx(training.values.std(0).tolist())
    assert np.array_equal(whole.split(0.75, 5)[0].values, training.values)
    assert not np.array_equal(whole.split(0.75, 6)[0].values, training.values)
    part = whole.take(np.array([2, 0]))
    assert np.array_equal(part.values, whole.values[[2, 0]])
    assert part.contract == whole.contract
    assert part.refit().contract.shift == pytest.approx(part.values.mean(0).tolist())
    assert part.refit().contract.channels == ("a", "b", "c")
    assert held.with_contract(whole.contract).contract == whole.contract


def test_what_a_table_refuses() -> None:
    whole = table(values())
    refusal(whole.require_labels, "no labels", "condition: null")
    refusal(lambda: whole.with_contract(table(values(columns=2)).contract), "3 columns", "the model 2")
    for fraction in (0.0, 0.02, 1.0):
        refusal(lambda fraction=fraction: whole.split(fraction, 0), f"fraction={fraction}")  # type: ignore[misc]
    refusal(whole.take(np.array([1])).refit, "1 row")
    refusal(lambda: table(np.ones((5, 2)) * 7), "constant")
    refusal(lambda: table(values()[0]), "(3,)")
    refusal(lambda: table(values(), ("a", "b", "a")), "'a'")
    broken = values()
    broken[6, 1], broken[8, 0] = np.nan, -np.inf
    refusal(lambda: table(broken, ("a", "b", "c")), "row 7", "'b'", "nan", "2")


def test_names_of_columns_without_names() -> None:
    assert table(values(columns=2)).contract.channels == ("x", "y")
    assert table(values(columns=4)).contract.channels[-1] == "column 4"
    text = describe(table(values(columns=4)))
    assert "40 rows of 4 columns" in text
    assert "standardised by column" in text
    assert "\n" not in text


def test_zeros_and_ones_are_binary_data() -> None:
    bits = table(heartbeat(200, Noise(0)).numpy())
    assert (bits.contract.levels, bits.contract.bounds) == (2, (-1.0, 1.0))
    assert bits.contract.encode(torch.tensor([[0.0, 1.0] * 10])).unique().tolist() == [-1.0, 1.0]
    assert "zeros and ones" in describe(bits)
    assert table(np.array([[0.0, 1.0], [1.0, 2.0]])).contract.levels is None
    assert load_table("heartbeat", rows=60, seed=3).values.tolist() == heartbeat(60, Noise(3)).double().tolist()
    refusal(lambda: table(np.zeros((4, 2))), "constant")


def test_laws_by_name_are_drawn_as_asked() -> None:
    drawn = load_table("moons", rows=70, std=0.0, seed=4)
    assert np.array_equal(drawn.values, moons(70, Noise(4), 0.0).numpy())
    assert drawn.contract.channels == ("x", "y")
    assert np.array_equal(load_table("pinwheel").values, pinwheel(ROWS, Noise(0)).numpy())
    refusal(lambda: load_table("moons", rows=1), "rows=1")
    refusal(lambda: load_table("moons", std=-0.5), "std=-0.5")
    refusal(lambda: load_table("moons", std=math.nan), "std=nan")


# --- files


@given(
    separator=st.sampled_from([",", ";", "\t", " ", ", "]), header=st.booleans(), bom=st.booleans(),
    newline=st.sampled_from("\n\r"),
    columns=st.integers(1, 5), form=st.sampled_from(["%.17g", "%d", "%.2f", "%e"]), seed=st.integers(0, 99), blank=st.booleans(),
)  # fmt: skip
def test_a_csv_of_any_dialect_holds_its_numbers(
    separator: str, header: bool, bom: bool, newline: str, columns: int, form: str, seed: int, blank: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    rows = [[form % cell for cell in row] for row in values(30, columns, seed)]
    names = ["height", "age in years" if separator != " " else "age", "x", "größe", "y_2"][:columns]
    lines = [separator.join(row) for row in ([names] if header else []) + rows]
    if blank:
        lines[2:2] = ["", "  "]
    path = tmp_path_factory.getbasetemp() / "any.csv"
    text = ("\r\n" if newline == "\r" else "\n").join(lines) + ("" if blank else "\n")
    path.write_bytes(text.encode("utf-8-sig" if bom else "utf-8"))
    loaded = load_table(path)
    assert loaded.values.tolist() == [[float(cell) for cell in row] for row in rows]
    assert loaded.contract.channels == (tuple(names) if header else table(values(columns=columns)).contract.channels)


def test_quotes_and_other_endings(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text('"a, b","c"\n"1","2"\n"3","5"\n')
    assert load_table(tmp_path / "q.csv").contract.channels == ("a, b", "c")
    for name, text in (("a.txt", "1 2\n3 5\n"), ("a.tsv", "1\t2\n3\t5\n")):
        (tmp_path / name).write_text(text)
        assert load_table(tmp_path / name).values.tolist() == [[1, 2], [3, 5]]


BAD_CSV: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "a short row": (b"a,b\n1,2\n3\n4,5\n", ("bad.csv line 3", "'3'", "2 numbers")),
    "a long row": (b"a,b\n1,2\n3,4,5\n", ("bad.csv line 3", "'3,4,5'")),
    "a word": (b"a,b\n1,2\n\n3,much\n", ("bad.csv line 4", "much")),
    "words only": (b"a,b\nred,blue\n", ("bad.csv line 2", "red")),
    "an empty cell": (b"a,b\n1,2\n3,\n", ("bad.csv line 3", "'3,'")),
    "decimal commas": (b"a;b\n1,5;2,5\n3,5;4,5\n", ("bad.csv line 2",)),
    "a NaN": (b"a,b\n1,2\n3,nan\n", ("row 2", "'b'", "nan")),
    "an infinity": (b"1,2\n3,1e999\n", ("row 2", "'y'", "inf")),
    "nothing": (b"", ("bad.csv", "empty")),
    "blank lines": (b"\n \n,\n", ("bad.csv", "empty")),
    "a header alone": (b"a,b\n", ("0 row",)),
    "one row": (b"1,2\n", ("1 row",)),
    "constant columns": (b"1,2\n1,2\n", ("constant",)),
    "a name twice": (b"a,a\n1,2\n3,4\n", ("'a'",)),
    "no text": (b"\xff\xfe\x01\x02", ("bad.csv", "UTF-8")),
    "a zero byte": (b"a,b\n1,2\n\x003,4\n", ("bad.csv line 3",)),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_a_bad_csv_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    content, words = BAD_CSV[case]
    (tmp_path / "bad.csv").write_bytes(content)
    refusal(lambda: load_table(tmp_path / "bad.csv"), *words)


@pytest.mark.parametrize("name", ["none.csv", "none.npy", "x.xlsx", "swissroll", ".", "folder.csv"])
def test_what_is_no_table(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.xlsx").write_bytes(b"PK")
    (tmp_path / "folder.csv").mkdir()
    refusal(lambda: load_table(tmp_path / name), str(tmp_path / name), ".csv", "swiss_roll")


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, np.int16, np.uint8])
def test_arrays_of_any_numbers(kind: type[np.generic], tmp_path: Path) -> None:
    array = np.abs(values()).astype(kind)
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", anything=array)
    for name in ("x.npy", "x.npz"):
        assert np.array_equal(load_table(tmp_path / name).values, array.astype(np.float64))


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npz(*arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, *arrays)
    return stream.getvalue()


OBJECTS = np.array([[{}, 1], [2, 3]], dtype=object)
BAD_ARRAYS: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "pickled objects": ("bad.npy", npy(OBJECTS), ("bad.npy", "nothing in it was run")),
    "pickled objects in a ZIP": ("bad.npz", npz(OBJECTS), ("bad.npz", "nothing in it was run")),
    "words": ("bad.npy", npy(np.array([["a"], ["b"]])), ("bad.npy", "<U1")),
    "complex numbers": ("bad.npy", npy(values() * 1j), ("bad.npy", "complex128")),
    "one row": ("bad.npy", npy(values()[:1]), ("1 row",)),
    "one axis": ("bad.npy", npy(values()[0]), ("(3,)", "(N, D)")),
    "three axes": ("bad.npy", npy(values()[None]), ("(1, 40, 3)",)),
    "no columns": ("bad.npy", npy(np.zeros((5, 0))), ("(5, 0)",)),
    "NaN": ("bad.npy", npy(np.full((4, 2), np.nan)), ("row 1", "'x'", "nan")),
    "NaN in a ZIP": ("bad.npz", npz(np.full((4, 2), np.nan)), ("bad.npz", "NaN")),
    "two arrays": ("bad.npz", npz(values(), values()), ("bad.npz", "2 arrays", "arr_1")),
    "no array": ("bad.npz", npz(), ("bad.npz", "0 arrays")),
    "rubbish": ("bad.npy", b"rubbish", ("bad.npy", "cannot be read")),
    "a cut file": ("bad.npz", npz(values())[:-40], ("bad.npz", "cannot be read")),
    "nothing": ("bad.npy", b"", ("bad.npy", "cannot be read")),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_a_bad_array_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    name, content, words = BAD_ARRAYS[case]
    (tmp_path / name).write_bytes(content)
    refusal(lambda: load_table(tmp_path / name), *words)
