"""Classifier guidance against exact laws: the score form, a clean classifier, the mean shift, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from class_cases import F64, LABEL, NONE, PROCESSES, TIMES, Classes, states
from torch import Tensor, nn

from ornstein.denoiser import Condition, Denoiser, Denoises, Differentiable, Prediction, describe
from ornstein.files import InputError
from ornstein.guidance import (
    ClassifierFree,
    ClassifierGuided,
    CleanClassifierGuided,
    MeanShift,
    NoisyClassifier,
    Unconditional,
)
from ornstein.nets import MLP
from ornstein.noise import Noise
from ornstein.process import EDM, VP, Chain, GaussianProcess, chain
from ornstein.process.gaussian import Time
from ornstein.samplers import Plan, ancestral, ddim, heun, sample


@dataclass
class Heard:
    """A denoiser that keeps the conditions it was asked with."""

    denoiser: Denoises
    conditions: list[Condition] = field(default_factory=list)

    @property
    def process(self) -> GaussianProcess:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        self.conditions.append(cond)
        return self.denoiser(x_t, t, None)


# --- the score form


@pytest.mark.parametrize("time", [0.4, torch.tensor(0.4, dtype=F64), TIMES], ids=["number", "scalar", "per sample"])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_bayes_classifier_gives_what_exact_scores_give(process: GaussianProcess, time: Time) -> None:
    oracle, x, cond = Classes(process), states(process, time), {"label": LABEL}
    for scale in (-1.0, 0.0, 0.5, 1.0, 2.0, 4.0):
        found = ClassifierGuided(oracle, oracle.bayes, scale)(x, time, cond)
        wanted = ClassifierFree(oracle, scale)(x, time, cond)
        for view in ("x0", "eps", "score", "v"):
            torch.testing.assert_close(found.view(view), wanted.view(view), rtol=1e-9, atol=1e-9)
    one, none = ClassifierGuided(oracle, oracle.bayes, 1.0), ClassifierGuided(oracle, oracle.bayes, 0.0)
    given, free = oracle(x, time, cond).x0, oracle(x, time).x0
    assert not torch.allclose(given, free, atol=1e-3)
    torch.testing.assert_close(one(x, time, cond).x0, given, rtol=1e-9, atol=1e-9)
    assert torch.equal(none(x, time, cond).x0, free)


@pytest.mark.parametrize("plan", [ddim(VP(), 12), heun(VP(), 11), ancestral(VP(), 12)], ids=lambda plan: plan.name)
def test_samples_agree_too(plan: Plan) -> None:
    oracle = Classes(VP())
    options: dict[str, Any] = {"shape": (5, 2), "noise": Noise(3), "cond": {"label": LABEL}, "dtype": F64}
    found = sample(ClassifierGuided(oracle, oracle.bayes, 3.0), plan, **options)
    torch.testing.assert_close(found, sample(ClassifierFree(oracle, 3.0), plan, **options), rtol=0, atol=1e-8)
    assert float((found - sample(oracle, plan, **options)).abs().max()) > 0.1


def test_the_scale_may_depend_on_time() -> None:
    oracle, cond = Classes(VP()), {"label": LABEL}
    x = states(VP(), TIMES)
    found = ClassifierGuided(oracle, oracle.bayes, lambda t: 4 * t * t)(x, TIMES, cond).x0
    for k, t in enumerate(TIMES.tolist()):
        one = ClassifierGuided(oracle, oracle.bayes, 4 * t * t)(x[k : k + 1], t, {"label": LABEL[k : k + 1]}).x0
        torch.testing.assert_close(found[k : k + 1], one, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"scale gives nan at t=.* must be finite"):
        ClassifierGuided(oracle, oracle.bayes, lambda t: math.nan)(x, TIMES, cond)


@pytest.mark.parametrize("form", ["score", "clean", "mean shift"])
def test_each_sample_is_the_same_alone(form: str) -> None:
    oracle, noise = Classes(VP()), Noise(4)
    plan = ancestral(VP(), 6, variance="transition")
    denoiser: Denoises = {
        "score": ClassifierGuided(oracle, oracle.bayes, 2.0),
        "clean": CleanClassifierGuided(oracle, lambda x: oracle.bayes(x, None), 2.0),
        "mean shift": Unconditional(oracle),
    }[form]
    hook = MeanShift(oracle.bayes, 2.0) if form == "mean shift" else None
    whole = sample(denoiser, plan, shape=(5, 2), noise=noise, cond={"label": LABEL}, after=hook, dtype=F64)
    for k in range(5):
        own = {"label": LABEL[k : k + 1]}
        alone = sample(denoiser, plan, shape=(1, 2), noise=noise, cond=own, after=hook, first=k, dtype=F64)
        torch.testing.assert_close(alone, whole[k : k + 1], rtol=0, atol=1e-12)


def test_who_is_told_what() -> None:
    oracle = Classes(VP())
    x, null = states(VP(), 0.5), torch.tensor([False, True, False, False, True])
    heard = Heard(oracle)
    cond = {"label": LABEL, "null": null, "grid": x}
    ClassifierGuided(heard, oracle.bayes, 2.0)(x, 0.5, {"label": LABEL, "null": null})
    ClassifierGuided(heard, oracle.bayes, 2.0)(x, 0.5, cond)
    ClassifierGuided(heard, oracle.bayes, 2.0, told=True)(x, 0.5, cond)
    CleanClassifierGuided(heard, lambda x: oracle.bayes(x, None), 2.0)(x, 0.5, cond)
    CleanClassifierGuided(heard, lambda x: oracle.bayes(x, None), 2.0, told=True)(x, 0.5, cond)
    shown = [None if asked is None else sorted(asked) for asked in heard.conditions]
    assert shown == [None, ["grid", "null"], ["grid", "label", "null"], ["grid", "null"], ["grid", "label", "null"]]
    # a withheld class guides nothing
    free = oracle(x, 0.5).x0
    guides: list[Denoises] = [
        ClassifierGuided(oracle, oracle.bayes, 2.0),
        CleanClassifierGuided(oracle, lambda x: oracle.bayes(x, None), 2.0),
    ]
    for guided in guides:
        some = guided(x, 0.5, {"label": LABEL, "null": null}).x0
        torch.testing.assert_close(some[null], free[null], rtol=0, atol=1e-12)
        torch.testing.assert_close(some[~null], guided(x, 0.5, {"label": LABEL}).x0[~null], rtol=0, atol=1e-12)
        assert float((some[~null] - free[~null]).abs().min()) > 1e-4
        assert torch.equal(guided(x, 0.5).x0, free)
    # told: the class reaches the network, and the classifier's gradient comes on top of the conditional model
    told = ClassifierGuided(oracle, oracle.bayes, 1.0, told=True)(x, 0.5, {"label": LABEL}).x0
    twice = ClassifierFree(oracle, 2.0)(x, 0.5, {"label": LABEL}).x0
    torch.testing.assert_close(told, twice, rtol=1e-9, atol=1e-9)


def test_a_guided_denoiser_can_be_differentiated() -> None:
    oracle, cond = Classes(VP()), {"label": LABEL}
    guided, x = ClassifierGuided(oracle, oracle.bayes, 2.0), states(VP(), 0.4)
    u = Noise(7).normal((5, 2), dtype=F64)
    prediction = Differentiable(guided)(x, 0.4, cond)
    assert prediction.pullback is not None
    found, step = prediction.pullback(u), 1e-5
    for axis in range(2):
        nudge = step * torch.eye(2, dtype=F64)[axis]
        slope = (guided(x + nudge, 0.4, cond).x0 - guided(x - nudge, 0.4, cond).x0) / (2 * step)
        torch.testing.assert_close((slope * u).sum(1), found[:, axis], rtol=1e-5, atol=1e-7)
    assert guided(x, 0.4, cond).x0.requires_grad is False


def test_a_plan_tells_guided_denoisers_apart() -> None:
    oracle = Classes(VP())
    shown = describe(ClassifierGuided(Denoiser(MLP(2, width=8, depth=1), VP(), "v"), oracle.bayes, 2.0))
    assert shown == "ClassifierGuided(classifier=BayesClassifier, scale=2, told=0) of Denoiser(v)"


# --- a classifier of clean data


def test_a_clean_classifier_is_no_exact_guide() -> None:
    oracle, gaps = Classes(VP()), {}
    for t in (0.005, 0.02, 0.1, 0.4):
        x = VP().corrupt(oracle.laws[1].sample(500, Noise(5)), t, Noise(6).normal((500, 2), dtype=F64))
        cond = {"label": torch.ones(500, dtype=torch.long)}
        clean = CleanClassifierGuided(oracle, lambda x: oracle.bayes(x, None), 1.0)(x, t, cond).x0
        shift = (oracle(x, t, cond).x0 - oracle(x, t).x0).norm()
        gaps[t] = float((clean - oracle(x, t, cond).x0).norm() / shift)
    # its error as a multiple of the exact shift at gamma = 1: little where x_t shows x0, several times the shift where not
    assert gaps[0.005] < 0.1
    assert 0.1 < gaps[0.02] < 0.3
    assert gaps[0.1] > 1
    assert gaps[0.4] > 3


def test_the_clean_gradient_goes_through_the_network_and_the_units() -> None:
    oracle, cond, t, step = Classes(VP()), {"label": LABEL}, 0.5, 1e-5
    x = states(VP(), t)

    def decode(x0: Tensor) -> Tensor:
        return 100 * x0 + 7

    def classifier(data: Tensor) -> Tensor:
        assert float(data.detach().mean()) > 2  # it sees data in its own units
        return oracle.bayes((data - 7 + 100 * 0.1) / 100, None)

    found = CleanClassifierGuided(oracle, classifier, 3.0, decode)(x, t, cond).x0 - oracle(x, t).x0

    def log_p(x_t: Tensor) -> Tensor:
        return classifier(decode(oracle(x_t, t).x0)).log_softmax(1).gather(1, LABEL.unsqueeze(1)).squeeze(1)

    alpha, sigma = (float(m) for m in VP().moments(t))
    for axis in range(2):
        nudge = step * torch.eye(2, dtype=F64)[axis]
        slope = (log_p(x + nudge) - log_p(x - nudge)) / (2 * step)
        torch.testing.assert_close(3 * sigma**2 / alpha * slope, found[:, axis], rtol=1e-5, atol=1e-8)


# --- the noisy classifier's network


class Shown(nn.Module):
    """Keeps what it is shown; two logits."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.seen.append((x, c_noise))
        return x


@pytest.mark.parametrize("time", [0.3, TIMES], ids=["number", "per sample"])
def test_a_noisy_classifier_is_shown_what_a_denoiser_is_shown(time: Time) -> None:
    shown = Shown()

    class Net(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, cond: object) -> Tensor:
            shown.seen.append((x, c_noise))
            return x

    for process in PROCESSES.values():
        x = states(process, time)
        NoisyClassifier(shown, process, 0.6)(x, time)
        Denoiser(Net(), process, "edm", sigma_data=0.6)(x, time)
        (a, b), (c, d) = shown.seen[-2:]
        assert torch.equal(a, c)
        assert torch.equal(b, d)


@pytest.mark.parametrize("time", [0.3, TIMES], ids=["number", "per sample"])
def test_a_classifier_on_another_process(time: Time) -> None:
    shown, x = Shown(), states(VP(), time)
    own = NoisyClassifier(shown, EDM(), 0.6)
    own.on(VP())(x, time)
    NoisyClassifier(shown, VP(), 0.6)(x, time)
    (a, b), (c, d) = shown.seen[-2:]
    torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(b, d, rtol=1e-9, atol=1e-9)
    assert own.on(EDM()) is own
    # a chain counts its levels
    levels = chain(steps=50)
    t = float(VP().time_of(levels.log_ratio(0.5)))
    NoisyClassifier(shown, levels, 0.6).on(VP())(states(VP(), t), t)
    torch.testing.assert_close(shown.seen[-1][1], torch.full((5,), 25.0, dtype=F64), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match=r"made for EDM.*those of VP.*classifier\.on\(denoiser\.process\)"):
        ClassifierGuided(Classes(VP()), own, 1.0)


# --- what is refused


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_a_scale_that_is_not_finite(scale: float) -> None:
    oracle = Classes(VP())
    for make in (
        lambda: ClassifierGuided(oracle, oracle.bayes, scale),
        lambda: CleanClassifierGuided(oracle, lambda x: oracle.bayes(x, None), scale),
        lambda: MeanShift(oracle.bayes, scale),
    ):
        with pytest.raises(ValueError, match=f"scale={scale} must be a finite number"):
            make()


@pytest.mark.parametrize("wrong", [2, -1])
def test_a_class_out_of_range_or_none(wrong: int) -> None:
    oracle, x = Classes(VP()), states(VP(), 0.5)
    guided = ClassifierGuided(oracle, oracle.bayes, 1.0)
    with pytest.raises(InputError, match=rf"^cond\['label'\] holds {wrong}, but the classifier knows 0 to 1$"):
        guided(x, 0.5, {"label": torch.tensor([0, 1, wrong, 0, 0])})
    with pytest.raises(InputError, match="needs the wanted class"):
        guided(x, 0.5, {"null": NONE})


def test_without_signal_nothing_can_be_said() -> None:
    process = chain(steps=20, zero_terminal=True)
    assert isinstance(process, Chain)
    oracle, x = Classes(process), Noise(0).normal((5, 2), dtype=F64)
    with pytest.raises(ValueError, match="where alpha = 0"):
        ClassifierGuided(oracle, oracle.bayes, 1.0)(x, 1.0, {"label": LABEL})
