"""Restoring data from measurements: one driver, `restore`, and the table of methods it knows.

A method is a function (denoiser, plan, x, given, *, noise, cond, first, ticks, options…) -> x0 that runs one chunk: from x
(B, *) of the process's prior to draws of x0 given y, with one measurement per sample or one for all. Its options are plain
keywords with defaults. To add one, write the function and give it a line in `METHODS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ornstein.denoiser import Condition, Denoises, Differentiable
from ornstein.files import InputError
from ornstein.guidance.ddrm import ddrm
from ornstein.guidance.given import Given
from ornstein.guidance.inverse import MomentMatching, PiGDM, Reconstruction, beneath_clipping
from ornstein.guidance.observed import DPS, MCG, Replacement, dps_step
from ornstein.guidance.repaint import repaint, repaint_calls
from ornstein.metrics.ensemble import Ensemble
from ornstein.noise import Noise
from ornstein.process import GaussianProcess
from ornstein.progress import track
from ornstein.samplers import Plan, ancestral, default_plan, dpm_solver_multistep, run
from ornstein.samplers.loop import batches, evaluating

Ticks = Iterator[object] | None
Number = int | float


def pigdm(
    denoiser: Denoises, plan: Plan, x: Tensor, given: Given, *, noise: Noise, cond: Condition = None, first: int = 0,
    ticks: Ticks = None, data_variance: float = 1.0,
) -> Tensor:  # fmt: skip
    """Draws x0 (B, *) by a plan of the denoiser that `PiGDM` guides, beneath any clipping. Source: openreview 9_gsMA8MRKQ."""
    guided = beneath_clipping(denoiser, lambda inner: PiGDM(inner, given, data_variance))
    return run(guided, plan, x, noise=noise, cond=cond, first=first, ticks=ticks)


def moment_matching(
    denoiser: Denoises, plan: Plan, x: Tensor, given: Given, *, noise: Noise, cond: Condition = None, first: int = 0,
    ticks: Ticks = None, iterations: int = 5,
) -> Tensor:  # fmt: skip
    """Draws x0 (B, *) by a plan of the denoiser that `MomentMatching` guides, beneath any clipping. Source: arXiv 2405.13712."""
    guided = beneath_clipping(denoiser, lambda inner: MomentMatching(inner, given, iterations))
    return run(guided, plan, x, noise=noise, cond=cond, first=first, ticks=ticks)


def reconstruction(
    denoiser: Denoises, plan: Plan, x: Tensor, given: Given, *, noise: Noise, cond: Condition = None, first: int = 0,
    ticks: Ticks = None, weight: float = 2.0,
) -> Tensor:  # fmt: skip
    """Draws x0 (B, *) by a plan of the denoiser that `Reconstruction` guides, with `Replacement` where A is linear.

    Source: Ho et al. 2022, arXiv 2204.03458.
    """
    guided = beneath_clipping(denoiser, lambda inner: Reconstruction(inner, given, weight))
    hook = Replacement(given, denoiser.process) if given.measured.linear else None
    return run(guided, plan, x, noise=noise, cond=cond, first=first, after=hook, ticks=ticks)


def _by_gradient(
    hook: type[DPS] | type[MCG], denoiser: Denoises, plan: Plan, x: Tensor, given: Given, *, noise: Noise, cond: Condition = None,
    first: int = 0, ticks: Ticks = None, travel: float = 8.0,
) -> Tensor:  # fmt: skip
    """Draws x0 (B, *) by a plan with the hook `DPS` (arXiv 2209.14687) or `MCG` (arXiv 2206.00941), its step by `dps_step`."""
    after = hook(given, denoiser.process, dps_step(given.measured, plan.calls, travel))
    guided = beneath_clipping(denoiser, Differentiable)
    return run(guided, plan, x, noise=noise, cond=cond, first=first, after=after, ticks=ticks)


def replacement(
    denoiser: Denoises, plan: Plan, x: Tensor, given: Given, *, noise: Noise, cond: Condition = None, first: int = 0,
    ticks: Ticks = None,
) -> Tensor:  # fmt: skip
    """Draws x0 (B, *) by a plan with the hook `Replacement`; no gradient is taken. Source: arXiv 2011.13456."""
    hook = Replacement(given, denoiser.process)
    return run(denoiser, plan, x, noise=noise, cond=cond, first=first, after=hook, ticks=ticks)


def _ddrm(
    denoiser: Denoises, plan: Plan, x: Tensor, given: Given, *, noise: Noise, cond: Condition = None, first: int = 0,
    ticks: Ticks = None, eta: float = 0.85, eta_b: float = 1.0,
) -> Tensor:  # fmt: skip
    """Draws x0 (B, *) by `ddrm` at the times of a plan, in the singular vectors of A. Source: arXiv 2201.11793."""
    return ddrm(
        denoiser, x, given, noise=noise, calls=plan.calls, grid=plan.times, eta=eta, eta_b=eta_b, cond=cond, first=first,
        ticks=ticks,
    )  # fmt: skip


@dataclass(frozen=True)
class Method:
    """A way to draw x0 given y: `run` draws one chunk, `plan` makes its plan of `calls` network calls unless told otherwise.

    `network_calls` is how many calls the plan leads to under the options, where the method goes back and forth on it.
    """

    run: Callable[..., Tensor]
    plan: Callable[[GaussianProcess, int], Plan] = default_plan
    calls: int = 50
    network_calls: Callable[..., int] = lambda plan, **options: plan.calls

    @property
    def options(self) -> dict[str, Number]:
        """The names of the options of `run` and their defaults."""
        known = inspect.signature(self.run).parameters.values()
        return {p.name: p.default for p in known if p.kind is p.KEYWORD_ONLY and p.name not in _COMMON}


_COMMON = ("noise", "cond", "first", "ticks")

METHODS: dict[str, Method] = {
    # noise on the way takes back what a normal likelihood about one x0hat misjudged while x_t was noisy
    "pigdm": Method(pigdm, ancestral, 50),
    "moment_matching": Method(moment_matching, ancestral, 50),
    "reconstruction": Method(reconstruction, ancestral, 100),
    "dps": Method(partial(_by_gradient, DPS), ancestral, 100),
    "mcg": Method(partial(_by_gradient, MCG), ancestral, 100),
    "replacement": Method(replacement, ancestral, 100),
    # only the times of its plan count, which must begin where eps says something of x0
    "ddrm": Method(_ddrm, partial(dpm_solver_multistep, order=1, grid="uniform"), 20),
    "repaint": Method(repaint, ancestral, 50, repaint_calls),
}
"""By the name that `restore` and the command line know."""


def restore(
    denoiser: Denoises,
    given: Given,
    *,
    method: str = "pigdm",
    plan: Plan | None = None,
    calls: int | None = None,
    draws: int = 8,
    noise: Noise,
    options: Mapping[str, Number] | None = None,
    cond: Condition = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> Ensemble:
    """`draws` of x0 given y for each of the measurements (cases): an `Ensemble` with draws (cases, draws, *shape).

    `method` is one of `METHODS`, its `options` by name; the plan is the method's own for `calls` network calls, or as many as it
    asks for, unless `plan` is given. `cond` holds tensors with one row per case. Draw j of case i is sample i·draws + j of the
    noise, the same for any `batch_size`, the number of samples at a time (None: all). Networks are put in evaluation mode
    meanwhile. Device: that of the denoiser's parameters unless given. InputError for a method, option or plan that does not
    exist or does not suit, or a condition without one row per case.
    """
    if method not in METHODS:
        raise InputError(f"method={method!r} is not one of {', '.join(METHODS)}")
    if draws < 1:
        raise InputError(f"draws={draws} must be at least 1 for every case")
    if plan is not None and calls is not None:
        raise InputError(f"give one of plan={plan.name} and calls={calls}")
    if calls is not None and calls < 1:
        raise InputError(f"calls={calls} must be at least 1")
    chosen, options = METHODS[method], _checked(method, options or {})
    if plan is None:
        plan = chosen.plan(denoiser.process, chosen.calls if calls is None else calls)
    cases = len(given)
    for name, value in (cond or {}).items():
        if len(value) != cases:
            raise InputError(f"cond[{name!r}] has {len(value)} rows for {cases} cases; give one row per case")
    # cases with masks of their own have operators of their own, and are drawn one after the other
    groups = [range(cases)] if given.mask is None else [range(case, case + 1) for case in range(cases)]
    work = []
    for group in groups:
        spread = torch.arange(group.start, group.stop).repeat_interleave(draws)
        conditions = None if cond is None else {name: value[spread.to(value.device)] for name, value in cond.items()}
        one = given if given.mask is None else given.one(group.start)
        size, first = (len(spread), *one.measured.shape), group.start * draws
        parts, empty = batches(denoiser, size, None, noise, conditions, first, batch_size, device, dtype)
        work += [(part, one.rows(spread[part.places])) for part in parts]
    done, shape = [], tuple(empty.shape[1:])
    with torch.no_grad(), evaluating(denoiser):
        total = len(work) * chosen.network_calls(plan, **options)
        ticks = track(range(total), total, f"{method}, {plan.name}", enabled=progress)
        for part, own in work:
            done.append(
                chosen.run(
                    denoiser, plan, part.state(), own, noise=noise, cond=part.cond, first=part.first, ticks=ticks, **options
                )
            )
        for _ in ticks:  # let the bar close
            pass
    drawn = torch.cat(done) if done else empty
    return Ensemble(drawn.reshape(cases, draws, *shape))


def _checked(method: str, options: Mapping[str, Number]) -> dict[str, Number]:
    known = METHODS[method].options
    for name, value in options.items():
        if name not in known:
            told = ", ".join(f"{key}={default:g}" for key, default in known.items())
            raise InputError(f"{method} has no option {name!r}; " + (f"it has {told}" if told else "it has none"))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{name}={value!r} must be a number")
        if isinstance(known[name], int) and not float(value).is_integer():
            raise InputError(f"{name}={value} must be a whole number")
    return {name: type(known[name])(value) for name, value in options.items()}
