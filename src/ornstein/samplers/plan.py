"""A fixed-grid sampler as data: one row per network call.

    evaluate   y = p·x + Σ_{j≥1} P[j]·H_{k-j} + q·z          H_k = view of denoiser(y, t_k)
    update     x ← a·x + Σ_{j≥0} B[j]·H_{k-j} + c·z          one normal z per row, shared by both lines

All numbers are float64. A plan can be printed, saved, compared and tested without running it; one loop (`sample`) runs any.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path

from ornstein.files import InputError, read_json, write_atomic

FORMAT = 1
VIEWS = ("x0", "eps", "v")

Terms = tuple[tuple[int, float], ...]
"""Sparse lags: pairs (j, coefficient of H_{k-j})."""


@dataclass(frozen=True)
class Row:
    """One network call at time `t`, after which the state is at time `s` (None: clean data); see the module's two lines.

    `log_variances` = (log β̃, log β) replaces c by exp(½ (fraction·log β + (1 - fraction)·log β̃)), elementwise, with the
    fraction that a denoiser with learned variance predicts.
    """

    t: float
    s: float | None
    a: float
    b: Terms = ()
    c: float = 0.0
    p: float = 1.0
    prior: Terms = ()
    q: float = 0.0
    log_variances: tuple[float, float] | None = None

    @property
    def stochastic(self) -> bool:
        """Whether the row uses its normal."""
        return self.c != 0 or self.q != 0 or self.log_variances is not None


@dataclass(frozen=True)
class Calibration:
    """How a plan was fitted to a trained model (`ornstein.calibrate`), and what it gained, on draws that the fit never saw.

    `error` is that of the plan and `start_error` that of the plan named `start`, on the same `samples` draws; `measure` says
    in what: "flow", the mean of |x0 - x0*|/√D between a sample and what the fine flow makes of the same start noise, or
    "energy", the energy distance per √D of their laws. `gain_error` is the standard error of start_error - error. `kept` says
    whether the start was better and is what this plan is. `denoiser` describes what was calibrated (guidance included),
    `levels` the (alpha, sigma) of the calls, `weights` a digest of the network's parameters (None: no network), `conditions`
    the names of the condition's tensors. The rest is provenance: draws that were fitted, gradient evaluations, the seed, calls
    and error of the fine flow (None: not measured), seconds, and the version that did it.
    """

    error: float
    start_error: float
    gain_error: float
    start: str
    kept: bool
    measure: str
    samples: int
    denoiser: str
    levels: tuple[tuple[float, float], ...]
    weights: str | None
    conditions: tuple[str, ...]
    trajectories: int
    evaluations: int
    seed: int
    fine_calls: int
    fine_error: float | None
    seconds: float
    version: str

    def __str__(self) -> str:
        """One line for people."""
        what = "distance to the fine flow" if self.measure == "flow" else "energy distance"
        if self.kept:
            return f"{what} {self.start_error:.4g}: nothing better was found, this is {self.start}"
        if self.measure != "flow":  # an unbiased estimate, which may lie below 0: a ratio says nothing
            return f"{what} {self.error:.4g}, that of {self.start} {self.start_error:.4g} ({self.samples} unseen draws)"
        gain = f"{self.error / self.start_error:.2f} times that of {self.start}, {self.start_error:.4g}"
        return f"{what} {self.error:.4g}, {gain} ({self.samples} unseen draws)"


@dataclass(frozen=True)
class Plan:
    """The rows of a sampler, the view ("x0", "eps" or "v") of the denoiser they combine, and a name for people; `calibration`
    tells of a plan that was fitted to a model.

    Row k: y = p·x + Σ P[j]·H_{k-j} + q·z, H_k the view of denoiser(y, t_k), then x ← a·x + Σ B[j]·H_{k-j} + c·z; x of any shape.
    Raises ValueError for a row that is not finite, reaches back before the first call, or leaves [0, 1].
    """

    name: str
    view: str
    rows: tuple[Row, ...]
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise ValueError(f"view={self.view!r} is not one of {', '.join(VIEWS)}")
        if not self.rows:
            raise ValueError(f"plan {self.name!r} has no rows; ask for at least one call")
        for k, row in enumerate(self.rows):
            numbers = [row.t, row.a, row.c, row.p, row.q, *(w for _, w in row.b + row.prior), *(row.log_variances or ())]
            if not all(math.isfinite(number) for number in numbers):
                raise ValueError(f"row {k} of plan {self.name!r} is not finite: {row}; start the grid where alpha > 0")
            if not 0 <= row.t <= 1 or (row.s is not None and not 0 <= row.s <= 1):
                raise ValueError(f"row {k} of plan {self.name!r} has t={row.t}, s={row.s} outside [0, 1]")
            for lags, least in ((row.b, 0), (row.prior, 1)):
                if any(not least <= j <= k for j, _ in lags):
                    reached = [j for j, _ in lags]
                    raise ValueError(f"row {k} of plan {self.name!r} reaches lags {reached}; allowed are {least} … {k}")

    @property
    def calls(self) -> int:
        """Network evaluations per sample, the final denoise included."""
        return len(self.rows)

    @property
    def memory(self) -> int:
        """The longest lag: how many earlier evaluations the loop must keep."""
        return max((j for row in self.rows for j, _ in row.b + row.prior), default=0)

    @property
    def stochastic(self) -> bool:
        """Whether any row uses noise."""
        return any(row.stochastic for row in self.rows)

    @property
    def times(self) -> tuple[float, ...]:
        """The times of the calls."""
        return tuple(row.t for row in self.rows)

    def __str__(self) -> str:
        """The plan as a table, one row per call."""
        evaluate = [_line(row.p, row.prior, _number(row.q)) for row in self.rows]
        width = max(len(cell) for cell in (*evaluate, "evaluate y ="))
        lines = [f"{self.name}: {self.calls} calls, H = {self.view}"]
        lines.append(f"{'k':>4} {'t':>9} {'s':>9}  {'evaluate y =':<{width}} update x ←")
        for k, (row, cell) in enumerate(zip(self.rows, evaluate, strict=True)):
            to = "clean" if row.s is None else f"{row.s:.6f}"
            lines.append(f"{k:>4} {row.t:>9.6f} {to:>9}  {cell:<{width}} {_line(row.a, row.b, _noise(row))}")
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON (to a temporary file, then renamed)."""
        with write_atomic(Path(path)) as temporary:
            temporary.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1))

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan written by `save`; InputError says what is wrong with the file."""
        content = read_json(Path(path))
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"plan={str(path)!r} is not a plan of format {FORMAT}; make it again with Plan.save")
        try:
            rows = tuple(_row(row) for row in content["rows"])
            if unknown := set(content) - {"format", "name", "view", "rows", "calibration"}:
                raise ValueError(f"unknown keys {sorted(unknown)}")
            return cls(str(content["name"]), content["view"], rows, _calibration(content.get("calibration"), len(rows)))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"plan={str(path)!r} is not valid: {error}") from error


def _row(content: dict) -> Row:
    fields = dict(content)
    for name in ("b", "prior"):
        fields[name] = tuple((_lag(j), float(w)) for j, w in fields.get(name, ()))
    if fields.get("log_variances") is not None:
        low, high = fields["log_variances"]
        fields["log_variances"] = (float(low), float(high))
    for name in ("t", "a", "c", "p", "q"):
        if name in fields and not isinstance(fields[name], int | float):
            raise TypeError(f"{name}={fields[name]!r} is not a number")
    return Row(**fields)


def _calibration(content: dict | None, calls: int) -> Calibration | None:
    if content is None:
        return None
    fields = {**content, "levels": tuple((float(a), float(s)) for a, s in content["levels"])}
    if not isinstance(content["conditions"], list) or not all(isinstance(name, str) for name in content["conditions"]):
        raise TypeError(f"calibration: conditions={content['conditions']!r} is not a list of names")
    fields["conditions"] = tuple(content["conditions"])
    for field in dataclass_fields(Calibration):
        kind, value = str(field.type), fields[field.name]
        if kind in _KINDS and not (isinstance(value, _KINDS[kind]) and isinstance(value, bool) == (kind == "bool")):
            raise TypeError(f"calibration: {field.name}={value!r} is not {kind}")
    if len(fields["levels"]) != calls:
        raise ValueError(f"calibration: {len(fields['levels'])} levels for {calls} calls")
    return Calibration(**fields)


_KINDS: dict[str, type | tuple[type, ...]] = {
    "float": (float, int),
    "float | None": (float, int, type(None)),
    "int": int,
    "bool": bool,
    "str": str,
    "str | None": (str, type(None)),
}


def _lag(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"lag {value!r} is not a whole number")
    return value


def _line(on_x: float, terms: Terms, noise: str) -> str:
    parts = [] if on_x == 0 else ["x" if on_x == 1 else f"{on_x:.6g}·x"]
    parts += [f"{w:+.6g}·H{f'[-{j}]' if j else ''}" for j, w in terms if w]
    return " ".join([*parts, *([f"+{noise}·z"] if noise else [])]) or "0"


def _number(value: float) -> str:
    return f"{value:.6g}" if value else ""


def _noise(row: Row) -> str:
    return _number(row.c) if row.log_variances is None else "std(learned)"
