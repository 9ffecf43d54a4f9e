from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ornstein.files import InputError
from ornstein.metrics import Record, read_records, table, write_records

FINITE = st.floats(allow_nan=False, allow_infinity=False)
RECORDS = st.builds(
    Record,
    metric=st.text(),
    value=FINITE,
    n=st.integers(0, 10**9),
    extractor=st.text(),
    seed=st.none() | st.integers(0, 2**63),
    seconds=FINITE,
    interval=st.none() | st.tuples(FINITE, FINITE),
    note=st.text(),
)
PLAIN = Record("frechet", 3.25, 2000, "pixels", 0, 1.5)


@given(RECORDS)
def test_json_round_trip_keeps_every_field(record: Record) -> None:
    assert Record.from_json(record.to_json()) == record


def test_file_round_trip(tmp_path: Path) -> None:
    records = [PLAIN, dataclasses.replace(PLAIN, interval=(3.0, 3.5), seed=None, note="größer")]
    write_records(tmp_path / "metrics.json", records)
    assert read_records(tmp_path / "metrics.json") == records
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("change", [{"value": math.nan}, {"seconds": math.inf}, {"interval": (0.0, math.nan)}])
def test_a_number_that_is_not_finite_is_refused_and_the_old_file_kept(tmp_path: Path, change: dict[str, float]) -> None:
    path = tmp_path / "metrics.json"
    write_records(path, [PLAIN])
    with pytest.raises(InputError, match=next(iter(change))):
        write_records(path, [PLAIN, dataclasses.replace(PLAIN, **change)])
    assert read_records(path) == [PLAIN]


@pytest.mark.parametrize(
    ("change", "named"),
    [({"n": 1.5}, "n is 1.5"), ({"value": "3"}, "value"), ({"value": True}, "value"), ({"seed": "0"}, "seed"),
     ({"interval": [1.0]}, "interval"), ({"extra": 1}, "extra"), ({"metric": None}, "metric")],
)  # fmt: skip
def test_wrong_content_is_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        Record.from_json(PLAIN.to_json() | change)
    assert Record.from_json(PLAIN.to_json()) == PLAIN


def test_missing_key_and_foreign_file_are_refused(tmp_path: Path) -> None:
    content = PLAIN.to_json()
    del content["n"]
    with pytest.raises(InputError, match=r"missing keys \['n'\]"):
        Record.from_json(content)
    path = tmp_path / "metrics.json"
    path.write_text("{}")
    with pytest.raises(InputError, match="not a list") as caught:
        read_records(path)
    assert str(path) in str(caught.value)


def test_table_aligns_and_leaves_out_empty_columns() -> None:
    text = table([PLAIN, dataclasses.replace(PLAIN, metric="precision", value=0.5, interval=(0.4, 0.6))])
    lines = text.splitlines()
    assert lines[0].split() == ["metric", "value", "interval", "n", "extractor", "seed", "seconds"]
    assert lines[2].split() == ["frechet", "3.25", "2000", "pixels", "0", "1.5"]
    assert lines[3].split() == ["precision", "0.5", "0.4", "..", "0.6", "2000", "pixels", "0", "1.5"]
    assert lines[2].index("pixels") == lines[3].index("pixels") == lines[0].index("extractor")
    assert table([]).splitlines()[0].split() == ["metric", "value", "n"]
