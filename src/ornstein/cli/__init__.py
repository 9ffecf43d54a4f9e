"""The `ornstein` command: each subcommand is a plain typed function that calls the public API.

Exit codes: 0 done, 1 failed while running, 2 wrong input. Heavy imports wait until a command runs.
"""

from __future__ import annotations

# they add their commands to `app`
from ornstein.cli import calibrate, figure, latents, measure, restore, sample, series, show, train, verify
from ornstein.cli.app import app, main

__all__ = ["app", "calibrate", "figure", "latents", "main", "measure", "restore", "sample", "series", "show", "train", "verify"]
