"""Measured numbers as records, so that no figure travels without its sample count, extractor, seed and cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from ornstein.files import InputError, read_json, write_json


@dataclasses.dataclass(frozen=True)
class Record:
    """One measured number and what is needed to measure it again.

    ``metric`` names the quantity with its unit if it has one, ``n`` is the number of samples judged, ``extractor`` the
    name of the feature extractor (with the hash of its weights; "" where none is used), ``seed`` the seed of every
    random choice (None where there is none), ``seconds`` the wall time, ``interval`` a confidence interval (low, high)
    or None, ``note`` free text.
    """

    metric: str
    value: float
    n: int
    extractor: str
    seed: int | None
    seconds: float
    interval: tuple[float, float] | None = None
    note: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the record as a JSON-ready dict; raises InputError where a number is NaN or infinite."""
        for name, number in (
            ("value", self.value),
            ("seconds", self.seconds),
            *(("interval", x) for x in self.interval or ()),
        ):
            if not math.isfinite(number):
                raise InputError(f"Record {self.metric!r}: {name} is {number}; JSON holds finite numbers only: check the samples")
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return content | {"interval": None if self.interval is None else list(self.interval)}

    @staticmethod
    def from_json(content: object) -> Record:
        """Rebuild a record from `to_json`'s dict; raises InputError for a missing or unknown key or a wrong type."""
        if not isinstance(content, dict):
            raise InputError(f"Record: expected a JSON object, got {type(content).__name__}; write records with write_records")
        fields = {field.name: field for field in dataclasses.fields(Record)}
        required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
        unknown, missing = sorted(set(content) - set(fields)), sorted(required - set(content))
        if unknown or missing:
            raise InputError(f"Record: unknown keys {unknown}, missing keys {missing}; the keys are {list(fields)}")
        interval = content.get("interval")
        seed, note = content["seed"], content.get("note", "")
        checks = {
            "metric": isinstance(content["metric"], str),
            "value": _is_number(content["value"]),
            "n": _is_integer(content["n"]),
            "extractor": isinstance(content["extractor"], str),
            "seed": seed is None or _is_integer(seed),
            "seconds": _is_number(content["seconds"]),
            "interval": interval is None
            or (isinstance(interval, list) and len(interval) == 2 and all(_is_number(x) for x in interval)),
            "note": isinstance(note, str),
        }
        for name, valid in checks.items():
            if not valid:
                raise InputError(f"Record: {name} is {content[name]!r}; see the field's type in ornstein.metrics.Record")
        return Record(
            metric=content["metric"],
            value=float(content["value"]),
            n=content["n"],
            extractor=content["extractor"],
            seed=seed,
            seconds=float(content["seconds"]),
            interval=None if interval is None else (float(interval[0]), float(interval[1])),
            note=note,
        )


def write_records(path: Path | str, records: Sequence[Record]) -> None:
    """Write the records as a JSON list, whole or not at all; raises InputError where a number is not finite."""
    write_json(path, [record.to_json() for record in records])


def read_records(path: Path | str) -> list[Record]:
    """Read what `write_records` wrote; raises InputError where the file is missing or no list of records."""
    content = read_json(path)
    if not isinstance(content, list):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a list of records; write them with write_records")
    return [Record.from_json(item) for item in content]


def table(records: Sequence[Record]) -> str:
    """Render the records as a plain-text table, one line each, leaving out columns in which every cell is empty."""
    rows = [
        {
            "metric": record.metric,
            "value": f"{record.value:.4g}",
            "interval": "" if record.interval is None else f"{record.interval[0]:.4g} .. {record.interval[1]:.4g}",
            "n": str(record.n),
            "extractor": record.extractor,
            "seed": "" if record.seed is None else str(record.seed),
            "seconds": f"{record.seconds:.1f}",
            "note": record.note,
        }
        for record in records
    ]
    columns = [name for name in rows[0] if any(row[name] for row in rows)] if rows else ["metric", "value", "n"]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) if rows else len(name) for name in columns}
    right = {"value", "n", "seed", "seconds"}

    def line(cells: dict[str, str]) -> str:
        aligned = (cells[name].rjust(widths[name]) if name in right else cells[name].ljust(widths[name]) for name in columns)
        return "  ".join(aligned).rstrip()

    rule = "  ".join("-" * widths[name] for name in columns)
    return "\n".join([line({name: name for name in columns}), rule, *(line(row) for row in rows)])


def _is_integer(x: object) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _is_number(x: object) -> bool:
    return _is_integer(x) or (isinstance(x, float) and math.isfinite(x))
