"""From what `System.sample(guidance=…)` was given to a guided denoiser, refused where the model cannot be guided so."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ornstein.denoiser import Denoises
from ornstein.files import InputError
from ornstein.guidance import ClassifierFree, ClassifierGuided, CleanClassifierGuided
from ornstein.guidance.line import Guidance

ByClassifier = ClassifierGuided | CleanClassifierGuided


def guided(denoiser: Denoises, guidance: Guidance, *, conditional: bool, dropout: float) -> Denoises:
    """The denoiser under a number γ of classifier-free guidance (1: itself) or under a guide, a function of a denoiser.

    `conditional` says whether the model takes a condition, `dropout` in [0, 1) how often it was trained without. InputError for
    what the guide refuses, and where it asks for an unconditional branch that was never trained.
    """
    if not callable(guidance):
        if not math.isfinite(guidance):
            raise InputError(f"guidance={guidance} must be a finite number; 1 is the conditional model")
        made = denoiser if guidance == 1 else ClassifierFree(denoiser, guidance)
    else:
        try:
            made = guidance(denoiser)
        except (TypeError, ValueError) as error:
            raise InputError(f"guidance: {error}") from error
    for layer in _layers(made):
        free = isinstance(layer, ClassifierFree) and layer.negative is None
        withheld = isinstance(layer, ByClassifier) and not layer.told and conditional
        if (free or withheld) and dropout == 0:
            shown = f"guidance={guidance:g}" if not callable(guidance) else f"guidance by {type(layer).__name__}"
            raise InputError(f"{shown} needs a model trained with condition_dropout above 0, which this is not")
    return made


def asks(denoiser: Denoises) -> bool:
    """Whether the guidance of a denoiser is to somewhere: without a condition it would do nothing."""
    return any(
        isinstance(layer, ByClassifier) or (isinstance(layer, ClassifierFree) and layer.negative is None)
        for layer in _layers(denoiser)
    )


def takes_label(denoiser: Denoises) -> bool:
    """Whether a classifier guides it, which takes the wanted label whatever the network does."""
    return any(isinstance(layer, ByClassifier) for layer in _layers(denoiser))


def _layers(denoiser: object) -> Iterator[object]:
    """A denoiser and what it wraps, from the outermost in."""
    while denoiser is not None:
        yield denoiser
        denoiser = getattr(denoiser, "denoiser", None)
