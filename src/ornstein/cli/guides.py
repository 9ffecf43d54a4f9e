"""From the options of guidance to what `System.sample(guidance=…)` takes, and what a guided call costs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ornstein.contract import Contract
    from ornstein.denoiser import Denoises
    from ornstein.guidance import Guidance
    from ornstein.guidance.line import Interval
    from ornstein.kinds import Model
    from ornstein.samplers import Plan
    from ornstein.system import System


def guidance_of(
    model: Model,
    scale: float,
    interval: str | None,
    rescale: float | None,
    negative: str | None,
    weaker: Path | None,
    classifier: Path | None,
) -> Guidance:
    """The guidance that the options ask for; InputError where they contradict one another or do not fit the model."""
    from ornstein.files import InputError
    from ornstein.guidance import Autoguidance, ClassifierFree
    from ornstein.guidance.line import check
    from ornstein.kinds import with_denoiser

    options = {"--guidance-interval": interval, "--rescale": rescale, "--negative": negative, "--weaker": weaker}
    given = [name for name, value in options.items() if value is not None]
    if classifier is None and not given:
        return scale
    system = with_denoiser(model, (["--classifier"] if classifier is not None else given)[0])
    if classifier is not None:
        if given:
            raise InputError(f"{given[0]} does not go with --classifier, which guides by another network; give one of the two")
        return _by_classifier(system, classifier, scale)
    if scale == 1:
        raise InputError(f"{given[0]} changes nothing at --guidance 1, the model itself; give another scale")
    if weaker is not None and negative is not None:
        raise InputError("--negative does not go with --weaker, which takes the place of what is guided away from; give one")
    within = _interval(interval)
    try:
        check(scale, within, rescale)
    except ValueError as error:
        raise InputError(f"{', '.join(name for name in given[:2])}: {error}") from error
    if weaker is not None:
        other = _other(system, weaker)
        return partial(Autoguidance, weaker=other, scale=scale, interval=within, rescale=rescale)
    away = None
    if negative is not None:
        name, equals, value = negative.partition("=")
        if not equals or not value:
            raise InputError(f"--negative {negative!r} is not name=value; write --negative label=5")
        away = system.conditions({name: value}, 1)
    return partial(ClassifierFree, scale=scale, interval=within, rescale=rescale, negative=away)


def _interval(text: str | None) -> Interval:
    from ornstein.files import InputError

    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--guidance-interval {text!r} is not two noise-to-signal ratios; write 0.3,5") from error
    return low, high


def _other(system: System, directory: Path) -> Denoises:
    from ornstein import model
    from ornstein.files import InputError
    from ornstein.kinds import with_denoiser

    other = with_denoiser(model.load(directory, device=system.device), f"--weaker {directory}")
    _same_data(f"--weaker {directory}", system.contract, other.contract)
    if other.condition != system.condition or (system.condition and other.contract.classes != system.contract.classes):
        raise InputError(
            f"--weaker {directory} takes another condition ({other.condition}) or other classes than the model "
            f"({system.condition}); give a weaker model of the same data"
        )
    return other.denoiser


def _by_classifier(system: System, directory: Path, scale: float) -> Guidance:
    from ornstein import model
    from ornstein.files import InputError
    from ornstein.image.classifier import ClassifierSystem

    other = model.load(directory, device=system.device)
    if not isinstance(other, ClassifierSystem):
        raise InputError(f"--classifier {directory} is no classifier of noisy data; train one: ornstein train classifier")
    try:
        return other.guide(scale, system.contract)
    except InputError as error:
        raise InputError(f"--classifier {directory}: {error}") from error


def _same_data(option: str, mine: Contract, other: Contract) -> None:
    """InputError unless the numbers that two models see mean the same."""
    from ornstein.files import InputError

    if other.shape != mine.shape:
        raise InputError(f"{option} is of data of shape {other.shape}, the model of {mine.shape}; give one of the same data")
    if (other.channels, other.shift, other.scale) != (mine.channels, mine.shift, mine.scale):
        raise InputError(f"{option} is of data in other units, or transformed otherwise, than the model's; give one of the same")


def cost(denoiser: Denoises, plan: Plan | None) -> str:
    """What the calls of a guided denoiser cost a sample beyond themselves, in words; nothing for one that is not guided."""
    from ornstein.guidance import evaluations
    from ornstein.guided import takes_label

    text = ", each with a gradient of the classifier" if takes_label(denoiser) else ""
    if plan is None:
        most = max(evaluations(denoiser, k / 20) for k in range(1, 21))
        return text + (f", of up to {most} network evaluations" if most > 1 else "")
    total = sum(evaluations(denoiser, t) for t in plan.times)
    return text + (f", {total} network evaluations" if total != plan.calls else "")
