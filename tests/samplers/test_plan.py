"""Plans as data: validation, files, printing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ornstein.files import InputError
from ornstein.process import EDM, VE, VP, chain
from ornstein.samplers import Plan, Row, ancestral, ddim, dpm_solver_pp, euler_maruyama, heun

ROW = Row(0.5, None, 1.0)


@pytest.mark.parametrize("plan", [
    ddim(VP(), 7), ddim(VP(), 7, eta=0.3), heun(EDM(), 9, churn=10.0), dpm_solver_pp(VP(), 5),
    ancestral(chain("linear"), 4, variance="learned"), euler_maruyama(VE(), 3), ddim(VP(), 5, end=0.2),
], ids=lambda plan: plan.name)  # fmt: skip
def test_files_give_the_plan_back_exactly(plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan-a.json")
    assert Plan.load(tmp_path / "plan-a.json") == plan
    assert [file.name for file in tmp_path.iterdir()] == ["plan-a.json"]


BROKEN: dict[str, tuple[Any, str]] = {
    "not an object": ([1, 2], "not a plan of format 1"),
    "no format": ({"name": "x", "view": "x0", "rows": []}, "not a plan of format 1"),
    "newer format": ({"format": 2}, "not a plan of format 1"),
    "no rows": ({"format": 1, "name": "x", "view": "x0"}, "rows"),
    "empty rows": ({"format": 1, "name": "x", "view": "x0", "rows": []}, "has no rows"),
    "rows a number": ({"format": 1, "name": "x", "view": "x0", "rows": 3}, "not valid"),
    "unknown view": ({"format": 1, "name": "x", "view": "score", "rows": [{"t": 1, "s": None, "a": 1}]}, "view='score'"),
    "unknown key": ({"format": 1, "name": "x", "view": "x0", "rows": [], "extra": 1}, "unknown keys \\['extra'\\]"),
    "unknown field": ({"format": 1, "name": "x", "view": "x0", "rows": [{"t": 1, "s": None, "a": 1, "e": 1}]}, "not valid"),
    "missing field": ({"format": 1, "name": "x", "view": "x0", "rows": [{"t": 1, "s": None}]}, "not valid"),
    "text for a number": ({"format": 1, "name": "x", "view": "x0", "rows": [{"t": "1", "s": None, "a": 1}]}, "t='1'"),
    "text for s": ({"format": 1, "name": "x", "view": "x0", "rows": [{"t": 1, "s": "0", "a": 1}]}, "not valid"),
    "outside": ({"format": 1, "name": "x", "view": "x0", "rows": [{"t": 2, "s": None, "a": 1}]}, "outside \\[0, 1\\]"),
    "back too far": ({"format": 1, "name": "x", "view": "x0", "rows": [{"t": 1, "s": None, "a": 1, "b": [[1, 1]]}]}, "lags"),
    "a lag of 1.5": ({"format": 1, "name": "x", "view": "x0", "rows": [{"t": 1, "s": None, "a": 1, "b": [[0.5, 1]]}]}, "lag"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_wrong_files_are_refused_with_one_line(case: str, tmp_path: Path) -> None:
    content, message = BROKEN[case]
    (tmp_path / "p.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        Plan.load(tmp_path / "p.json")
    assert "p.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_json_are_refused(tmp_path: Path) -> None:
    for content in ("", "{", "\x80\x04pickle", '{"format": 1, "name": "x", "view": "x0", "rows": [{"t": NaN}]}'):
        (tmp_path / "p.json").write_text(content)
        with pytest.raises(InputError):
            Plan.load(tmp_path / "p.json")
    with pytest.raises(InputError):
        Plan.load(tmp_path / "absent.json")


def test_wrong_rows_are_refused() -> None:
    for bad in (math.nan, math.inf):
        for row in (
            replace(ROW, a=bad), replace(ROW, c=bad), replace(ROW, p=bad), replace(ROW, q=bad), replace(ROW, t=bad),
            replace(ROW, b=((0, bad),)), replace(ROW, log_variances=(bad, 0.0)),
        ):  # fmt: skip
            with pytest.raises(ValueError, match="row 0 of plan 'x' is not finite"):
                Plan("x", "x0", (row,))
    for row in (replace(ROW, t=1.1), replace(ROW, t=-0.1), replace(ROW, s=1.1), replace(ROW, s=-1.0), replace(ROW, s=math.nan)):
        with pytest.raises(ValueError, match="outside \\[0, 1\\]"):
            Plan("x", "x0", (row,))
    for row in (replace(ROW, b=((2, 1.0),)), replace(ROW, b=((-1, 1.0),)), replace(ROW, prior=((0, 1.0),))):
        with pytest.raises(ValueError, match="row 1 of plan 'x' reaches lags"):
            Plan("x", "x0", (ROW, row))
    with pytest.raises(ValueError, match="has no rows"):
        Plan("x", "x0", ())
    with pytest.raises(ValueError, match="view='score'"):
        Plan("x", "score", (ROW,))


def test_memory_and_stochasticity_are_read_off_the_rows() -> None:
    assert (ddim(VP(), 5).memory, dpm_solver_pp(VP(), 5).memory, heun(EDM(), 5).memory) == (0, 1, 1)
    assert not ddim(VP(), 5).stochastic
    assert not heun(EDM(), 5).stochastic
    assert all(p.stochastic for p in (ddim(VP(), 5, eta=0.1), heun(EDM(), 5, churn=5.0), euler_maruyama(VP(), 5)))
    learned = ancestral(VP(), 3, variance="learned")
    assert [row.stochastic for row in learned.rows] == [True, True, False]
    assert Row(0.5, None, 1.0, q=0.1).stochastic


def test_a_plan_prints_as_a_table() -> None:
    text = str(dpm_solver_pp(VP(), 3))
    lines = text.splitlines()
    assert lines[0] == "dpm_solver_pp(2M): 3 calls, H = x0"
    assert len(lines) == 5
    assert "clean" in lines[-1]
    assert lines[-1].endswith("+1·H")
    assert "H[-1]" in lines[3]
    assert "std(learned)·z" in str(ancestral(VP(), 2, variance="learned"))
    assert "·z" not in str(ddim(VP(), 4))
    assert "·z" in str(ddim(VP(), 4, eta=1.0))
