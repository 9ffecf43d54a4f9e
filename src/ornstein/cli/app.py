"""The application that commands join, how it ends, and the options that several commands share."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

app = App(
    name="ornstein",
    help="Diffusion models for images, series, fields and vectors: train, sample, measure.",
    suppress_keyboard_interrupt=False,
)

Set = Annotated[list[str] | None, Parameter(name="--set", help="Change a key of the recipe: a.b=value. May be repeated.")]
Cond = Annotated[list[str] | None, Parameter(name="--cond", help="Condition, name=value: label=3. May be repeated.")]
Guidance = Annotated[float, Parameter(name="--guidance", help="Scale of classifier-free guidance: 1 is the conditional model.")]
Count = Annotated[int, Parameter(name=["-n", "--number"])]


def main() -> None:
    """Run the command line; exit with 0, 1 or 2."""
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail(re.sub(r"\s+", " ", str(error)), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 1)
    except BrokenPipeError:
        # the reader of our output (head, less) has gone: nothing is left to tell it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        from ornstein.files import InputError

        if isinstance(error, InputError):
            _fail(str(error), 2)
        if isinstance(error, OSError | FloatingPointError):
            _fail(f"{type(error).__name__}: {error}", 1)
        raise


def _fail(message: str, code: int) -> None:
    print(f"ornstein: error: {message}", file=sys.stderr)
    raise SystemExit(code)


def minutes(text: str) -> float:
    """Minutes of a time such as 90s, 10m or 2h; InputError for anything else."""
    from ornstein.files import InputError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)", text.strip())
    if match is None:
        raise InputError(f"--max-time {text!r} is not a time; write 90s, 10m or 2h")
    return float(match[1]) * {"s": 1 / 60, "m": 1.0, "h": 60.0}[match[2]]


def needed(value: Path | None, name: str, why: str) -> Path:
    """`value`, or InputError that the option `name` is missing, and why it is needed."""
    from ornstein.files import InputError

    if value is None:
        raise InputError(f"{name} is missing: {why}")
    return value


def at_least(name: str, value: int | None, least: int = 1) -> None:
    """InputError if the option `name` is below `least`."""
    from ornstein.files import InputError

    if value is not None and value < least:
        raise InputError(f"{name} {value} must be at least {least}")
