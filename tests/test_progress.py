"""Bars for work of known and of unknown length; nothing is drawn where nobody looks."""

from __future__ import annotations

import io
import sys

import pytest

from ornstein import progress


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_nothing_is_drawn_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.gauge("work") as tell:
        for part in (0.2, 0.9, 1.0):
            tell(part)
    assert list(progress.track(range(3), 3, "work")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_gauge_fills_up_and_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    with progress.gauge("solving") as tell:
        for part in (0.0, 0.25, 0.25, 0.1, 1.0, 1.0):
            tell(part)
    assert "solving" in screen.getvalue()


def test_a_gauge_closes_when_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "PATIENCE", -1.0)

    def fail() -> None:
        with progress.gauge("solving") as tell:
            tell(0.5)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    with progress.gauge("again") as tell:  # a bar left open would refuse a second one
        tell(0.5)


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress.gauge("quick") as tell:
        tell(1.0)
    assert screen.getvalue() == ""
