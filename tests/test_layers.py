"""A module imports only from its own layer or lower ones; the table below is DESIGN's."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "ornstein"
LAYERS = [
    {"noise", "operator", "metrics", "files", "nets", "progress", "parallel", "hardware"},
    {"process", "grid"},
    {"denoiser", "testing"},
    {"losses", "samplers"},
    {"guidance", "likelihood", "calibration"},
    {"system", "measured", "guided", "contract", "config", "assemble", "condition"},
    {"vector", "image", "sequence", "video", "field", "text"},
    {"train", "verify", "figures", "kinds", "model", "evaluate"},
    {"cli", "lab", "__main__"},
]
MODALITIES = LAYERS[6]
LAYER = {name: level for level, names in enumerate(LAYERS) for name in names}


def imported(source: str) -> set[str]:
    """The modules of ornstein, by their first name, that a source imports; relative imports are refused as unreadable."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write 'from ornstein…', not a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {parts[1] for name in names if (parts := name.split("."))[0] == "ornstein" and len(parts) > 1}
    return found


def violations(module: str, source: str) -> list[str]:
    """What `module` (a first name such as "samplers") may not import, with the reason; nothing if all is well."""
    if module not in LAYER:
        return [f"{module} is in no layer: add it to LAYERS"]
    return [
        f"{module} (layer {LAYER[module]}) imports {other} (layer {LAYER.get(other, 'none')})"
        for other in sorted(imported(source) - {module})
        if other not in LAYER or LAYER[other] > LAYER[module] or {other, module} <= MODALITIES
    ]


def modules() -> list[Path]:
    """Every source file but the front door, ornstein/__init__.py, which may import anything."""
    return sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path: Path) -> None:
    module = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert violations(module, path.read_text()) == []


def test_there_is_something_to_look_at() -> None:
    assert len(modules()) > 20


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("noise", "from ornstein.process import VP"),
        ("process", "import ornstein.samplers.plan"),
        ("process", "from ornstein import samplers"),
        ("samplers", "def late():\n    from ornstein.system import System"),
        ("image", "from ornstein.text import Tokens"),
        ("novelty", "import math"),
        ("train", "from ornstein.novelty import x"),
    ],
)
def test_the_guard_can_go_red(module: str, source: str) -> None:
    assert violations(module, source)


def test_the_guard_lets_good_imports_pass() -> None:
    good = "import torch\nfrom ornstein.process.chain import Chain\nfrom ornstein.samplers.plan import Plan\nimport ornstein"
    assert violations("samplers", good) == []
    assert imported("from ornstein.files import InputError\nimport ornstein.noise as n") == {"files", "noise"}
    with pytest.raises(AssertionError, match="relative import"):
        imported("from .plan import Plan")
