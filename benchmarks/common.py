"""What benchmarks share: a command run under watch, with its wall time, peak memory and the machine's load; figures as text."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ornstein.files import InputError

POLL = 0.25
"""Seconds between two looks at a process tree."""


@dataclass(frozen=True)
class Usage:
    """A finished command: wall seconds, peak memory of its process tree in GiB, and the load averages around it.

    `peak_gib` is the larger of the greatest sum of resident sizes seen over the tree and the highest VmHWM of one process.
    Sums count shared pages once per process, so it errs upwards; a child that lives under `POLL` seconds may be missed.
    """

    command: str
    seconds: float
    peak_gib: float
    load_before: float
    load_after: float


def watch(command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None) -> Usage:
    """Run a command to its end, its output going where ours goes; InputError if it fails.

    `environment` is added to ours.
    """
    words = [str(word) for word in command]
    before, start, peak = os.getloadavg()[0], time.perf_counter(), 0
    with subprocess.Popen(words, env={**os.environ, **(environment or {})}) as process:
        try:
            while process.poll() is None:
                peak = max(peak, _memory(process.pid))
                time.sleep(POLL)
        except BaseException:
            process.terminate()
            raise
    seconds = time.perf_counter() - start
    if process.returncode != 0:
        raise InputError(f"{' '.join(words)} ended with exit code {process.returncode}; its message is above")
    return Usage(" ".join(words), seconds, peak / 2**20, before, os.getloadavg()[0])


def _memory(pid: int) -> int:
    """KiB of a process tree now: the sum of VmRSS, or the highest VmHWM if that is more."""
    sizes = [_status(member) for member in _tree(pid)]
    return max(sum(resident for resident, _ in sizes), max((highest for _, highest in sizes), default=0))


def _tree(pid: int) -> list[int]:
    """The process and all its descendants, as far as they live."""
    members, waiting = [], [pid]
    while waiting:
        parent = waiting.pop()
        members.append(parent)
        for listing in Path(f"/proc/{parent}/task").glob("*/children"):
            waiting += [int(child) for child in _read(listing).split()]
    return members


def _status(pid: int) -> tuple[int, int]:
    """(VmRSS, VmHWM) in KiB; zeros for a process that has ended."""
    fields = dict(line.split(":", 1) for line in _read(Path(f"/proc/{pid}/status")).splitlines())
    return _kib(fields, "VmRSS"), _kib(fields, "VmHWM")


def _kib(fields: Mapping[str, str], name: str) -> int:
    return int(fields[name].split()[0]) if name in fields else 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it ended between two looks


def show_rows(rows: dict[str, dict[str, float]]) -> None:
    """Rows of figures by name as text, in the columns of the first; what a row has not is blank."""
    columns = list(next(iter(rows.values())))
    width = max(map(len, rows))
    print(" " * width + "".join(f"{column:>15}" for column in columns))
    for name, row in rows.items():
        print(f"{name:<{width}}" + "".join(f"{row[column]:>15.5g}" if column in row else " " * 15 for column in columns))
