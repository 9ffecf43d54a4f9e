"""Operators by name, as the command line writes them: `mask:box,size=14`, `down:4`, `blur:gaussian,std=2 then down:2`."""

from __future__ import annotations

import inspect
import math
import re
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ornstein.files import InputError
from ornstein.noise import Noise
from ornstein.operator import filters, fourier, masks, nonlinear, radon
from ornstein.operator.base import Operator
from ornstein.operator.compose import Compose

OPERATORS: dict[str, Callable[..., Operator]] = {
    "mask:box": masks.box,
    "mask:random": masks.random,
    "mask:half": masks.half,
    "mask:rows": masks.rows,
    "mask:columns": masks.columns,
    "mask:scratches": masks.scratches,
    "blur:gaussian": filters.gaussian_blur,
    "blur:motion": filters.motion_blur,
    "down": filters.down_sample,
    "grey": filters.grey,
    "desaturate": filters.desaturate,
    "fourier:lines": fourier.fourier_lines,
    "fourier:random": fourier.fourier_random,
    "radon": radon.Radon,
    "phase": nonlinear.phase,
    "clip": nonlinear.clip,
}
"""Functions (shape (C, *size), options, noise where they draw) -> Operator, by the names that `parse` reads."""


def parse(text: str, shape: Sequence[int], noise: Noise) -> Operator:
    """The operator that a text asks for, on data of `shape` (C, *size); `noise` draws what is random about it.

    A text is a name of `OPERATORS` and its options, `name:option=value,option=value`; the first value needs no name, sizes are
    14 or 14x10; ` then ` applies another operator to the result. InputError, one line with the remedy, for everything else.
    """
    operator: Operator | None = None
    for part in re.split(r"\s+then\s+", text.strip()):
        made = _one(part, tuple(shape) if operator is None else operator.measured_shape, noise)
        operator = made if operator is None else Compose(made, operator)
    assert operator is not None
    return operator


def usage() -> dict[str, str]:
    """Every operator's name with its options and their defaults, and what it does in one sentence, (name,option=… -> text)."""
    lines = {}
    for name, make in OPERATORS.items():
        options = {key: None if p.default is p.empty else p.default for key, p in _options(make).items()}
        written = masks.spelled(name, **{key: "…" if value is None else value for key, value in options.items()})
        lines[written] = " ".join((inspect.getdoc(make) or "").split("\n\n")[0].split())
    return lines


def _one(text: str, shape: tuple[int, ...], noise: Noise) -> Operator:
    name, make, rest = _named(text)
    options = _options(make)
    hints = get_type_hints(make.__init__ if inspect.isclass(make) else make)
    given: dict[str, Any] = {}
    for place, setting in enumerate(rest):
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals and place == 0 and options:
            key, value = next(iter(options)), key
        elif not equals:
            raise InputError(f"operator={text!r}: {setting!r} has no '='; write {_pattern(name, options)}")
        if key not in options:
            raise InputError(f"operator={text!r}: {name} has no option {key!r}; write {_pattern(name, options)}")
        if key in given:
            raise InputError(f"operator={text!r}: {key} is given twice; leave one out")
        try:
            given[key] = _read(value, hints[key])
        except ValueError as error:
            raise InputError(f"operator={text!r}: {key}={value!r} is not {error}") from error
    if "noise" in inspect.signature(make).parameters:
        given["noise"] = noise
    try:
        return make(shape, **given)
    except InputError as error:
        raise InputError(f"operator={text!r}: {error}") from error


def _named(text: str) -> tuple[str, Callable[..., Operator], list[str]]:
    """The longest name of the table that a text begins with, and its settings."""
    head, _, tail = text.strip().partition(":")
    first, _, others = tail.partition(",")
    for name, rest in ((f"{head}:{first.strip()}", others), (head, tail)):
        if name in OPERATORS:
            return name, OPERATORS[name], rest.split(",") if rest else []
    kin = [name for name in OPERATORS if name.split(":")[0] == head]
    raise InputError(f"operator={text!r} is not one of {', '.join(kin or OPERATORS)}; `ornstein list` tells what they do")


def _options(make: Callable[..., Operator]) -> dict[str, inspect.Parameter]:
    return {key: p for key, p in inspect.signature(make).parameters.items() if key not in ("shape", "noise")}


def _pattern(name: str, options: dict[str, inspect.Parameter]) -> str:
    return masks.spelled(name, **dict.fromkeys(options, "…"))


def _read(value: str, kind: Any) -> Any:
    """A value as its annotation wants it; ValueError says what was expected."""
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError("one of " + ", ".join(get_args(kind)))
        return value
    if kind is float:
        if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", value) or not math.isfinite(float(value)):
            raise ValueError("a number such as 2.5")
        return float(value)
    if kind is int:
        if not re.fullmatch(r"[-+]?\d{1,9}", value, re.ASCII):
            raise ValueError("a whole number such as 4")
        return int(value)
    if not re.fullmatch(r"\d{1,9}(x\d{1,9})*", value, re.ASCII):
        raise ValueError("a size such as 14 or 14x10")
    return tuple(int(part) for part in value.split("x"))
