"""Documentation is executed: Python blocks run, and commands are checked against the command line's own parser."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import CycloptsError

from ornstein.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.exists()]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(text: str, *languages: str) -> list[str]:
    """The contents of a page's fenced blocks in these languages, in order."""
    return [content for language, content in BLOCK.findall(text) if language in languages]


def commands(block: str) -> Iterator[list[str]]:
    """The words after `ornstein` of each such command in a shell block, up to a pipe, a redirection or the next command."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        for index, word in enumerate(words):
            if word == "ornstein" or word.endswith("/ornstein"):
                rest = words[index + 1 :]
                end = next((i for i, w in enumerate(rest) if w in ("|", "&&", ";", ">", "||", "&")), len(rest))
                yield rest[:end]
                break


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(page.read_text(encoding="utf-8"), "python")
    assert found or page.name != "README.md", "README.md shows no Python"
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, code in enumerate(found, 1):
        exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_known(page: Path) -> None:
    found = [words for block in blocks(page.read_text(encoding="utf-8"), "bash", "console", "sh") for words in commands(block)]
    assert found or page.name != "README.md", "README.md shows no command"
    for words in found:
        if words and words[0] not in ("--help", "--version"):
            app.parse_args(words, exit_on_error=False, print_error=False)


def test_a_wrong_command_is_found() -> None:
    text = "```bash\n$ ornstein sample runs/x \\\n  --colour red | tee log  # no\nmake test\n```\n```python\nx = 1\n```\n"
    assert blocks(text, "python") == ["x = 1\n"]
    found = [words for block in blocks(text, "bash") for words in commands(block)]
    assert found == [["sample", "runs/x", "--colour", "red"]]
    with pytest.raises(CycloptsError):
        app.parse_args(found[0], exit_on_error=False, print_error=False)
