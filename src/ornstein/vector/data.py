"""Tables of numbers as data: five two-dimensional laws by name, CSV files and arrays.

The laws are drawn by `Noise`, so that datum i of a seed is always the same. All have about zero mean and unit variance.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ornstein.contract import Contract, fit
from ornstein.files import InputError, read_arrays
from ornstein.noise import Noise
from ornstein.process import GaussianProcess
from ornstein.testing import MixtureDenoiser

ROWS = 20_000
"""Rows that are drawn of a law unless told otherwise."""
_TURNS = (1.5 * math.pi, 4.5 * math.pi)


def curve(u: Tensor) -> Tensor:
    """The swiss roll without noise, (n, 2) float64, at places u (n,) in [0, 1]: angle·(cos, sin), angle from 1.5π to 4.5π.

    Standardised exactly: zero mean and unit variance in either coordinate, for uniform u. Its length is 13.18.
    """
    angle = _TURNS[0] + (_TURNS[1] - _TURNS[0]) * u.double()
    return (torch.stack([angle * angle.cos(), angle * angle.sin()], 1) - _CENTRE) / _SPREAD


def _roll_moments() -> tuple[Tensor, Tensor]:
    # integrals of a·cos a and their squares over three half turns, by parts
    a, b = _TURNS
    width = b - a

    def between(primitive: Callable[[float], float]) -> float:
        return (primitive(b) - primitive(a)) / width

    mean = [between(lambda t: math.cos(t) + t * math.sin(t)), between(lambda t: math.sin(t) - t * math.cos(t))]
    wave = between(lambda t: t**2 * math.sin(2 * t) / 4 + t * math.cos(2 * t) / 4 - math.sin(2 * t) / 8)
    even = between(lambda t: t**3 / 6)
    centre = torch.tensor(mean, dtype=torch.float64)
    second = torch.tensor([even + wave, even - wave], dtype=torch.float64)
    return centre, (second - centre**2).sqrt()


_CENTRE, _SPREAD = _roll_moments()


def swiss_roll(n: int, noise: Noise, std: float = 0.05) -> Tensor:
    """`curve` at uniform places, with normal noise of standard deviation `std` added after standardising; (n, 2)."""
    return curve(noise.uniform((n,), stream="law/place")) + std * _normals(n, noise)


def eight_gaussians(n: int, noise: Noise, std: float = 0.1) -> Tensor:
    """Eight equal Gaussians of standard deviation `std` on a circle of radius √2; (n, 2)."""
    angle = (noise.uniform((n,), stream="law/place") * 8).floor() * (math.pi / 4)
    return math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1) + std * _normals(n, noise)


def moons(n: int, noise: Noise, std: float = 0.1) -> Tensor:
    """Two interleaved half circles, standardised, with noise of standard deviation `std`; (n, 2)."""
    u = noise.uniform((n,), stream="law/place")
    upper = noise.uniform((n,), stream="law/side") < 0.5
    angle, side = math.pi * u, torch.where(upper, 1.0, -1.0).double()
    arc = torch.stack([side * angle.cos() - side / 2, side * angle.sin() - side / 4], 1)
    # variances of an arc's coordinates: ½ + ¼, and ½ - (2/π)² + (2/π - ¼)²
    spread = torch.tensor([0.75, 0.5 - (2 / math.pi) ** 2 + (2 / math.pi - 0.25) ** 2], dtype=torch.float64).sqrt()
    return arc / spread + std * _normals(n, noise)


def pinwheel(n: int, noise: Noise, std: float = 0.3) -> Tensor:
    """Five blades: normals, long (`std`) across one axis and narrow across the other, turned by exp(radius); (n, 2)."""
    blade = (noise.uniform((n,), stream="law/place") * 5).floor() * (2 * math.pi / 5)
    z = _normals(n, noise)
    along, across = 1 + std * z[:, 0], 0.1 * z[:, 1]
    angle = blade + 0.25 * along.exp()
    turned = torch.stack([along * angle.cos() - across * angle.sin(), along * angle.sin() + across * angle.cos()], 1)
    return turned * math.sqrt(2 / (1 + std**2 + 0.01))


def checkerboard(n: int, noise: Noise, std: float = 0.0) -> Tensor:
    """Uniform on the eight dark fields of a board of four by four, scaled to unit variance; (n, 2)."""
    u = noise.uniform((n, 2), stream="law/place")
    column = 4 * u[:, 0]
    row = 2 * u[:, 1]
    row = row.floor() * 2 + row % 1 + (column.floor() % 2)  # 0…1 or 2…3, one field higher in odd columns
    return (torch.stack([column, row], 1) - 2) / math.sqrt(4 / 3) + std * _normals(n, noise)


def heartbeat(n: int, noise: Noise, *, length: int = 20, period: int = 5) -> Tensor:
    """Binary sequences (n, length), float32, with a one every `period` places at a random phase.

    There are `period` of them: the entropy is log2(period), 2.32 bits. Source: Sohl-Dickstein et al. 2015, arXiv 1503.03585,
    section 3.1.2.
    """
    phase = (noise.uniform((n, 1), stream="law/place") * period).floor()
    return (torch.arange(length) % period == phase).float()


def _normals(n: int, noise: Noise) -> Tensor:
    return noise.normal((n, 2), stream="law/noise", dtype=torch.float64)


DISTRIBUTIONS: dict[str, Callable[..., Tensor]] = {
    "swiss_roll": swiss_roll,
    "eight_gaussians": eight_gaussians,
    "moons": moons,
    "pinwheel": pinwheel,
    "checkerboard": checkerboard,
}
"""(n, noise, std=…) -> (n, 2) in float64: the laws by name."""


def swiss_roll_law(process: GaussianProcess, std: float = 0.05, components: int = 1200) -> MixtureDenoiser:
    """The swiss roll with noise `std` as an oracle: a mixture of `components` narrow Gaussians along `curve`.

    Neighbours are h = 13.18/components apart, and the ripple of the density is exp(-2π² std²/h²): rounding for std above 1.4 h.
    """
    places = (torch.arange(components, dtype=torch.float64) + 0.5) / components
    return MixtureDenoiser(
        curve(places), torch.full((components,), std), torch.full((components,), 1 / components, dtype=torch.float64), process
    )


def law_of(source: str, noise: Noise, *, points: int = 1200) -> Callable[[GaussianProcess], MixtureDenoiser]:
    """The exact law of a two-dimensional source under any process: the swiss roll, or `points` of the source blurred by 0.05.

    Blurring stands for the density of a law by name, and of a table's standardised rows. InputError for other than two columns.
    """
    if source == "swiss_roll":
        return swiss_roll_law
    rows = load_table(source, rows=points, seed=noise.seed)
    if rows.contract.shape != (2,):
        raise InputError(f"data={source!r} has {rows.contract.shape[0]} columns; the figure needs two")
    chosen = noise.permutation(len(rows), stream="law/points")[:points]
    means = rows.contract.encode(rows.batch(chosen)["x"]).double()
    n = len(means)
    return lambda process: MixtureDenoiser(means, torch.full((n,), 0.05), torch.full((n,), 1 / n, dtype=torch.float64), process)


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of numbers with their contract.

    values    (N, D) float64, in the data's own units
    contract  column names and the transform; fitted on these rows unless `with_contract` was used
    """

    values: NDArray[np.float64]
    contract: Contract

    def __len__(self) -> int:
        return len(self.values)

    @property
    def labels(self) -> None:
        """None: rows have no labels."""
        return None

    def batch(self, indices: Sequence[int] | NDArray[Any] | Tensor) -> dict[str, Tensor]:
        """Rows at `indices` as {"x": float64 (B, D) in the data's own units}; not encoded."""
        return {"x": torch.from_numpy(self.values[np.asarray(indices, dtype=np.int64)])}

    def require_labels(self) -> NDArray[np.int64]:
        """Raises InputError: rows have no labels."""
        raise InputError("the table has no labels; set condition: null")

    def with_contract(self, contract: Contract) -> Table:
        """The same rows under another contract (a trained model's); InputError when the columns differ."""
        if contract.shape != self.contract.shape:
            raise InputError(f"the table has {self.contract.shape[0]} columns, the model {contract.shape[0]}; give the same ones")
        return replace(self, contract=contract)

    def refit(self) -> Table:
        """The same rows with the contract's transform measured on them alone; InputError when constant."""
        return table(self.values, self.contract.channels)

    def take(self, indices: NDArray[np.int64]) -> Table:
        """The rows at `indices`, contract unchanged."""
        return replace(self, values=self.values[indices])

    def split(self, fraction: float, seed: int) -> tuple[Table, Table]:
        """Two disjoint parts; `fraction` is the share of the first, whose contract both carry."""
        count = round(fraction * len(self))
        if not 1 < count < len(self):
            raise InputError(f"fraction={fraction}: {count} of {len(self)} rows would be for training; give one between 0 and 1")
        order = Noise(seed).permutation(len(self), stream="split").numpy()
        training = self.take(np.sort(order[:count])).refit()
        return training, self.take(np.sort(order[count:])).with_contract(training.contract)


def table(values: NDArray[np.floating[Any]], columns: Sequence[str] | None = None) -> Table:
    """A Table of values (N, D); InputError for NaN, fewer than two rows or constant data.

    Columns are standardised; a table of zeros and ones alone is binary data, with two levels.
    """
    if values.ndim != 2 or values.shape[1] < 1:
        raise InputError(f"values have shape {values.shape}; give rows and columns, (N, D)")
    if len(values) < 2:
        raise InputError(f"the table has {len(values)} row(s); at least 2 are needed to learn anything")
    wide = np.ascontiguousarray(values, np.float64)
    if bool(np.isin(wide, (0, 1)).all()):
        return Table(wide, fit(wide, levels=2, channels=tuple(columns) if columns is not None else _names(wide.shape[1])))
    names = tuple(columns) if columns is not None else _names(wide.shape[1])
    if len(bad := np.argwhere(~np.isfinite(wide))):
        row, column = (int(i) for i in bad[0])
        raise InputError(f"row {row + 1}, column {names[column]!r} is {wide[row, column]}; remove the {len(bad)} such cells")
    return Table(wide, fit(wide, channels=names))


def _names(columns: int) -> tuple[str, ...]:
    return ("x", "y", "z")[:columns] if columns <= 3 else tuple(f"column {index + 1}" for index in range(columns))


def load_table(source: str | os.PathLike[str], *, rows: int = ROWS, std: float | None = None, seed: int = 0) -> Table:
    """The table of a source: a .csv, a .npy, an .npz, or a law of `DISTRIBUTIONS` or "heartbeat" by name.

    Of a law `rows` are drawn, with noise `std`. A CSV has one row per line, separated by commas, semicolons, tabs or spaces, with
    or without a line of column names. An .npz holds one array. InputError, one line, for unusable data.
    """
    name = os.fspath(source)
    if name in DISTRIBUTIONS:
        if rows < 2 or (std is not None and not std >= 0):
            raise InputError(f"rows={rows}, std={std}: draw at least 2 rows, with noise of at least 0")
        options = {} if std is None else {"std": std}
        return table(DISTRIBUTIONS[name](rows, Noise(seed), **options).numpy(), ("x", "y"))
    if name == "heartbeat":
        return table(heartbeat(rows, Noise(seed)).numpy())
    path = Path(name)
    if path.suffix not in (".csv", ".txt", ".tsv", ".npy", ".npz") or not path.is_file():
        known = ", ".join([*DISTRIBUTIONS, "heartbeat"])
        raise InputError(f"data={name!r} is no file ending in .csv, .npy or .npz, and not one of {known}; check the path")
    if path.suffix in (".npy", ".npz"):
        return table(_array(path))
    return _from_csv(path)


def _array(path: Path) -> NDArray[Any]:
    if path.suffix == ".npz":
        arrays = read_arrays(path)
        if len(arrays) != 1:
            raise InputError(f"{path}: holds {len(arrays)} arrays ({', '.join(arrays)}); save one, of shape (rows, columns)")
        found: NDArray[Any] = next(iter(arrays.values()))
    else:
        try:
            found = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: cannot be read as .npy ({error}); nothing in it was run") from error
    if found.dtype.kind not in "biuf":
        raise InputError(f"{path}: has dtype {found.dtype}; save numbers")
    return found


def _from_csv(path: Path) -> Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error}); save it as UTF-8 CSV") from error
    try:
        dialect: Any = csv.Sniffer().sniff(text[:8192], ",;\t ")
    except csv.Error:
        dialect = "excel"  # a single column has no separator to find
    lines = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(text.splitlines(), dialect), 1)]
    lines = [(number, cells) for number, cells in lines if any(cells)]
    if not lines:
        raise InputError(f"{path}: is empty; one row of numbers per line is needed")
    columns = None if _numbers(lines[0][1]) else lines.pop(0)[1]
    width = len(columns) if columns is not None else len(lines[0][1])
    rows = []
    for number, cells in lines:
        values = _numbers(cells)
        if values is None or len(values) != width:
            raise InputError(f"{path} line {number}: {','.join(cells)[:60]!r} is not {width} numbers; correct or remove the line")
        rows.append(values)
    return table(np.asarray(rows, np.float64).reshape(-1, width), columns)


def _numbers(cells: list[str]) -> list[float] | None:
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return None


def describe(data: Table) -> str:
    """One paragraph for the user: count, columns, range, transform."""
    low, high = data.values.min(0), data.values.max(0)
    columns = [f"{name} {a:.3g} … {b:.3g}" for name, a, b in zip(data.contract.channels, low, high, strict=True)]
    shown = ", ".join(columns[:8]) + (", …" if len(columns) > 8 else "")
    transform = "zeros and ones" if data.contract.levels else "standardised by column"
    return f"{len(data):,} rows of {len(columns)} column{'s' if len(columns) > 1 else ''} ({shown}), {transform}."
