"""Progress bars with ETA: drawn on standard error, and only for work that lasts longer than two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 2.0
"""Seconds before a bar appears."""
_PERMILLE = 1000


def track(items: Iterable[T], total: int, description: str, *, enabled: bool = True) -> Generator[T, None, None]:
    """`items` one by one, with a bar of `total` on standard error once `PATIENCE` seconds have passed, if it is a terminal."""
    if not enabled or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(description, total=total)
    start, drawn = time.monotonic(), False
    try:
        for item in items:
            yield item
            bar.advance(task)
            if not drawn and time.monotonic() - start > PATIENCE:
                bar.start()
                drawn = True
    finally:
        if drawn:
            bar.stop()


@contextmanager
def gauge(description: str, *, enabled: bool = True) -> Iterator[Callable[[float], None]]:
    """A bar for work whose length is not known beforehand: call what it gives with the part that is done, in [0, 1]."""
    ticks = track(range(_PERMILLE), _PERMILLE, description, enabled=enabled)
    shown = 0

    def tell(part: float) -> None:
        nonlocal shown
        while shown < round(part * _PERMILLE) and next(ticks, None) is not None:
            shown += 1

    try:
        yield tell
    finally:
        ticks.close()
