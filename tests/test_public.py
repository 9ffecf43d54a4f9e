"""The front door: every public name is there, is documented, and costs nothing until it is used."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import ornstein

SOURCE = Path(ornstein.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
# a docstring of a public name says what it computes (an equation or a paper) or of what shape, range or unit things are
SUBSTANCE = re.compile(
    r"arXiv|[Ss]ource|=|\b[A-Z] *\(|\([BNn](, ?[*\w]+)*[,)]|\(C, |shape|unit|range|seed|remedy|folder|director"
)


def test_every_name_resolves() -> None:
    for name in ornstein.__all__:
        assert getattr(ornstein, name) is not None, name
    assert dir(ornstein) == sorted(ornstein.__all__)
    assert set(ornstein._HOME) | set(ornstein._MODULES) | {"__version__"} == set(ornstein.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'diffuse'"):
        ornstein.diffuse  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING")
    homes = {a.name: f.module for f in block.body if isinstance(f, ast.ImportFrom) for a in f.names}
    assert {name for name in homes if homes[name] == "ornstein"} == set(ornstein._MODULES)
    assert {n: f"ornstein.{home}" for n, home in ornstein._HOME.items()} == {n: h for n, h in homes.items() if h != "ornstein"}


@pytest.mark.parametrize("name", [n for n in ornstein.__all__ if n != "__version__"])
def test_public_names_have_docstrings_with_substance(name: str) -> None:
    thing = getattr(ornstein, name)
    text = inspect.getdoc(thing) or ""
    assert len(text.split()) >= 5, name
    if not isinstance(thing, ModuleType):
        assert thing.__doc__, f"{name} has only its parent's docstring"
        methods = [m for key, m in vars(thing).items() if not key.startswith("_") or key == "__call__"]
        texts = [text, *(inspect.getdoc(m) or "" for m in methods if callable(m) or isinstance(m, property))]
        assert SUBSTANCE.search("\n".join(texts)), f"{name}: say the equation, the source, or the shapes and units"


def undocumented(source: str) -> list[str]:
    """Public modules, classes, functions and methods of a source that have no docstring; nested functions are private."""
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) else ["module"]

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            # a network's forward is described by its class
            if not ast.get_docstring(node) and not (prefix and node.name == "forward"):
                missing.append(f"{prefix}{node.name} (line {node.lineno})")
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{node.name}.")

    visit(tree.body, "")
    return missing


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_everything_public_has_a_docstring(path: Path) -> None:
    assert undocumented(path.read_text()) == []


def test_the_search_finds_what_is_missing() -> None:
    source = "class A:\n    '''x'''\n    def f(self): pass\n    def _g(self): pass\ndef h(): pass\n"
    assert undocumented(source) == ["module", "A.f (line 3)", "h (line 5)"]


IMPORTS = """
import json, sys, time
times = [time.monotonic()]
import ornstein
times.append(time.monotonic())
first = [m for m in ("torch", "numpy") if m in sys.modules]
import torch
times.append(time.monotonic())
[getattr(ornstein, n) for n in ornstein.__all__ if n not in ("load", "System", "metrics")]
times.append(time.monotonic())
heavy = ("lightning", "sklearn", "scipy", "datasets", "matplotlib", "torchmetrics", "pandas", "PIL", "rich")
last = [m for m in heavy if m in sys.modules]
print(json.dumps({"at first": first, "at last": last, "seconds": [b - a for a, b in zip(times, times[1:])]}))
"""


def test_importing_costs_nothing() -> None:
    # one process: what the package takes by itself, what torch takes, and what its public names take besides
    ended = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    found = json.loads(ended.stdout)
    assert found["at first"] == found["at last"] == []
    own, torch_alone, names = found["seconds"]
    assert own <= 0.3 * torch_alone
    assert own + names <= torch_alone + 0.5
