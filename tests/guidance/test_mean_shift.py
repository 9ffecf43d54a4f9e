"""The mean shift of ancestral rows against the score form, its first order, and the plans that have no mean to shift."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from class_cases import F64, LABEL, Classes, states
from torch import Tensor, nn

from ornstein.denoiser import Denoiser
from ornstein.guidance import (
    ClassifierGuided,
    MeanShift,
    Unconditional,
)
from ornstein.guidance.classifier import class_gradient
from ornstein.noise import Noise
from ornstein.process import EDM, VP, GaussianProcess, chain
from ornstein.samplers import Plan, Step, ancestral, ddim, euler_maruyama, heun, sample


def shifts(process: GaussianProcess, plan: Plan, row: int) -> Tensor:
    """The mean shift of one row of a plan, relative to what the score form does in it, (5, 2)."""
    oracle, cond = Classes(process), {"label": LABEL}
    one = replace(plan, rows=plan.rows[row : row + 1])
    x = states(process, one.rows[0].t)
    options: dict[str, Any] = {"start": x, "noise": Noise(8), "cond": cond}
    plain = sample(Unconditional(oracle), one, **options)
    shifted = sample(Unconditional(oracle), one, after=MeanShift(oracle.bayes, 1.5), **options)
    scored = sample(ClassifierGuided(oracle, oracle.bayes, 1.5), one, **options)
    return (shifted - plain) / (scored - plain)


@pytest.mark.parametrize("variance", ["transition", "posterior"])
@pytest.mark.parametrize("process", [VP(), EDM(0.01, 20.0), chain(steps=50)], ids=["vp", "edm", "chain"])
def test_the_shift_of_a_row_against_the_score_form(process: GaussianProcess, variance: str) -> None:
    plan = ancestral(process, 50, variance=variance)
    for row in (0, 25, 47, 48):
        here = plan.rows[row]
        assert here.s is not None
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.moments(here.t), process.moments(here.s)
        expected = alpha_t / alpha_s * (1.0 if variance == "transition" else sigma_s**2 / sigma_t**2)
        # where the class is all but decided both shifts are rounding
        found = shifts(process, plan, row)
        torch.testing.assert_close(found.nanmedian(), expected, rtol=1e-5, atol=0)
        if row == 48:
            assert float(expected) == pytest.approx({"transition": 1.0}.get(variance, float(sigma_s**2 / sigma_t**2)), rel=0.05)


def test_beta_tilde_guides_ever_less() -> None:
    """DDPM's own chain: of the score form's shift, β̃ makes 46 % in the step 2 → 1, 61 % in 3 → 2, 98 % in 100 → 99."""
    process = chain(steps=1000)
    ratios = {}
    for k in (2, 3, 10, 100, 500):
        q = process.posterior(k / 1000, (k - 1) / 1000)
        ratios[k] = float(q.variance / q.transition)
    assert ratios[2] == pytest.approx(0.4547, abs=0.0005)
    assert ratios[3] == pytest.approx(0.6113, abs=0.0005)
    assert ratios[100] == pytest.approx(0.9819, abs=0.0005)
    assert list(ratios.values()) == sorted(ratios.values())
    assert float(process.posterior(0.001, 0.0).variance) == 0  # the step 1 → 0


def gap(plan: Plan) -> float:
    """The mean distance of samples guided by the mean shift and by the score form, from the same noise."""
    oracle = Classes(VP())
    options: dict[str, Any] = {"shape": (100, 2), "cond": {"label": LABEL.repeat(20)}, "dtype": F64, "noise": Noise(9)}
    shifted = sample(Unconditional(oracle), plan, after=MeanShift(oracle.bayes, 2.0), **options)
    return float((shifted - sample(ClassifierGuided(oracle, oracle.bayes, 2.0), plan, **options)).abs().mean())


def test_the_mean_shift_is_the_score_form_to_first_order() -> None:
    gaps = [gap(ancestral(VP(), calls, variance="transition")) for calls in (12, 24, 48)]
    assert gaps[0] < 0.1
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.6)
    assert gaps[1] / gaps[2] == pytest.approx(2, abs=0.4)
    # an Euler-Maruyama row is both at once: only the last one, which adds no noise, is left out by the mean shift
    assert gap(euler_maruyama(VP(), 20)) < 1e-4


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (ddim(VP(), 5), "row 0 adds no noise"),
        (ddim(VP(), 1), "row 0 adds no noise"),
        (ancestral(VP(), 1), "row 0 adds no noise"),
        (heun(EDM(), 9, churn=0.4), "row 0 adds no noise"),
    ],
    ids=["ddim", "one call", "one stochastic call", "churn"],
)
def test_plans_whose_mean_cannot_be_shifted(plan: Plan, words: str) -> None:
    process = EDM() if "heun" in plan.name else VP()
    oracle = Classes(process)
    with pytest.raises(ValueError, match=words):
        sample(
            Unconditional(oracle), plan, shape=(5, 2), noise=Noise(0), cond={"label": LABEL}, after=MeanShift(oracle.bayes, 1.0)
        )


def test_a_row_that_looks_elsewhere_is_no_reverse_kernel() -> None:
    oracle, x = Classes(VP()), states(VP(), 0.5)
    prediction = oracle(x, 0.5)
    churned = Step(3, t=0.5, s=0.4, before=0.45, prediction=prediction, noise=Noise(0), first=0, cond={"label": LABEL}, std=0.3)
    with pytest.raises(ValueError, match=r"row 3 looks at t=0\.5 and starts at 0\.45: it is no reverse kernel"):
        MeanShift(oracle.bayes, 1.0)(x, churned)
    moved = MeanShift(oracle.bayes, 1.0)(x, replace(churned, before=0.5))
    torch.testing.assert_close(moved - x, 0.09 * class_gradient(oracle.bayes, x, 0.5, {"label": LABEL}))


def test_a_learned_variance_shifts_by_itself() -> None:
    class Learned(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, cond: object) -> Tensor:
            return torch.cat([0.5 * x, x.tanh()], 1)

    denoiser = Unconditional(Denoiser(Learned(), VP(), "x0", learned_variance=True))
    oracle, plan = Classes(VP()), ancestral(VP(), 4, variance="learned")
    seen: list[Tensor] = []
    hook = MeanShift(oracle.bayes, 2.0)

    def spy(x: Tensor, step: Any) -> Tensor:
        moved = hook(x, step)
        if step.s is not None:
            gradient = class_gradient(oracle.bayes, step.prediction.x_t, step.t, step.cond)
            assert step.std.shape == x.shape
            torch.testing.assert_close(moved - x, 2 * step.std**2 * gradient, rtol=1e-6, atol=1e-9)
            seen.append(moved)
        return moved

    sample(denoiser, plan, shape=(5, 2), noise=Noise(0), cond={"label": LABEL}, after=spy, dtype=F64)
    assert len(seen) == 3
