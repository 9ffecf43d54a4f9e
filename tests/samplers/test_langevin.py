"""The Langevin corrector: laws it keeps and reaches, where it acts, what it costs, its noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sampler_cases import CASES, PROCESSES, level, mixture
from torch import Tensor

from ornstein.denoiser import Condition, Denoises, Prediction
from ornstein.noise import Noise
from ornstein.process import EDM, VE, VP, GaussianProcess, SubVP
from ornstein.process.gaussian import Time
from ornstein.samplers import LangevinCorrector, Plan, Step, Trajectory, ddim, dpm_solver, heun, sample
from ornstein.testing import GaussianDenoiser

THREE = {"vp": VP(), "ve": VE(), "sub_vp": SubVP()}
LEVELS = {"vp": 0.3, "ve": 0.55, "sub_vp": 0.4}
ROWS = 10_000


@dataclass(frozen=True)
class Same(Noise):
    """Every normal is `value`."""

    value: float = 0.0

    def normal(self, shape, **kwargs):  # type: ignore[no-untyped-def,override]
        return torch.full(tuple(shape), self.value, dtype=torch.float64)


@dataclass
class Counting:
    """A denoiser that keeps the times and conditions it was called with."""

    denoiser: Denoises
    times: list[float]
    conds: list[Condition]

    @property
    def process(self) -> GaussianProcess:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        self.times.append(float(t))  # type: ignore[arg-type]
        self.conds.append(cond)
        return self.denoiser(x_t, t)


def counting(denoiser: Denoises) -> Counting:
    return Counting(denoiser, [], [])


def isotropic(p: GaussianProcess, std: float, d: int = 2) -> GaussianDenoiser:
    return GaussianDenoiser(torch.zeros(d, dtype=torch.float64), std**2 * torch.eye(d, dtype=torch.float64), p)


def at(o: Denoises, s: float, noise: Noise, index: int = 0, first: int = 0) -> Step:
    """What the hook sees after a row from t = 1 to s."""
    x = torch.zeros(1, 2, dtype=torch.float64)
    return Step(index, 1.0, s, 1.0, Prediction.from_x0(x, *o.process.moments(1.0), x), noise, first, None)


def gain_and_noise(corrector: LangevinCorrector, s: float) -> tuple[float, float]:
    """(a, c) of a step a·x + c·z on isotropic Gaussian data of mean 0, with norms that do not depend on x."""
    o, one = corrector.denoiser, torch.ones(1, 2, dtype=torch.float64)
    a, c = corrector(one, at(o, s, Same(0))), corrector(0 * one, at(o, s, Same(0, 1.0)))
    both = corrector(one, at(o, s, Same(0, 1.0)))
    torch.testing.assert_close(both, a + c, rtol=1e-12, atol=0)
    return float(a[0, 0]), float(c[0, 0])


def walk(corrector: LangevinCorrector, x: Tensor, s: float, rows: int) -> Tensor:
    for k in range(rows):
        x = corrector(x, at(corrector.denoiser, s, Noise(3), index=k))
    return x


# ----------------------------------------------------------------------------------------------------- laws, exactly


@given(name=st.sampled_from(sorted(PROCESSES)), s=st.floats(0.01, 0.99), snr=st.floats(0.01, 5))
def test_the_law_of_pure_noise_is_kept_exactly(name: str, s: float, snr: float) -> None:
    """Data at a point: x_s is a normal of standard deviation sigma about it, for every snr."""
    p = PROCESSES[name]
    a, c = gain_and_noise(LangevinCorrector(isotropic(p, 0.0), snr), s)
    assert a**2 + (c / level(p, s)[1]) ** 2 == pytest.approx(1, abs=1e-9)
    assert a**2 == pytest.approx(1 - 2 * min(snr**2, 0.5), abs=1e-9)


@given(name=st.sampled_from(sorted(THREE)), s=st.floats(0.05, 0.95), std=st.floats(0.1, 3), snr=st.floats(0.02, 0.4))
def test_the_law_of_gaussian_data_is_kept_but_for_half_the_step(name: str, s: float, std: float, snr: float) -> None:
    """In units of sigma² with V = Var[x_s]: a step leaves the variance 2e/(1 - (1 - d/V)²), within e/2 of V; e, d for V = 1."""
    o = isotropic(THREE[name], std)
    sigma = level(o.process, s)[1]
    a, c = gain_and_noise(LangevinCorrector(o, snr), s)
    v, e = float(o.marginal_variances(s)[0]) / sigma**2, snr**2
    d = 1 - math.sqrt(1 - 2 * e)
    assert (1 - a) * v == pytest.approx(d, rel=1e-6)
    assert c / sigma == pytest.approx(math.sqrt(2 * e), rel=1e-9)
    kept = (c / sigma) ** 2 / (1 - a**2) / v
    assert 1 - 0.75 * e - 1e-9 < kept < 1 + 1e-6


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", THREE)
def test_many_steps_keep_the_law(name: str, steps: int) -> None:
    """As sampled: variances of exact samples within 4 standard errors of V, less what the step costs (at most e/2)."""
    s = LEVELS[name]
    for std, snr in ((0.0, 0.5), (0.6, 0.1)):
        o = isotropic(THREE[name], std)
        x = o.marginal_variances(s).sqrt() * Noise(1).normal((ROWS, 2), dtype=torch.float64)
        found = walk(LangevinCorrector(o, snr, steps), x, s, 30).var(0) / o.marginal_variances(s)
        assert float((found - 1).abs().max()) < 4 * math.sqrt(2 / ROWS) + (0.6 * snr**2 if std else 0)


@pytest.mark.parametrize("norms", ["expected", "sample"])
@pytest.mark.parametrize("name", THREE)
def test_a_wrong_law_becomes_the_right_one(name: str, norms: str) -> None:
    """Of 256 dimensions, where |score| hardly varies: from 1.3 times the standard deviation, and off the mean."""
    s, d = LEVELS[name], 256
    o = isotropic(THREE[name], 0.1, d)
    std, corrector = o.marginal_variances(s).sqrt(), LangevinCorrector(o, 0.3, norms=norms)
    x = std * (1.3 * Noise(1).normal((200, d), dtype=torch.float64) + 0.5)
    size = [float((x / std).square().mean())]
    for rows in (1, 60):
        x = walk(corrector, x, s, rows)
        size.append(float((x / std).square().mean()))
    assert size[0] > size[1] > size[2]
    assert size[2] == pytest.approx(1, abs=0.03)
    assert abs(float((x / std).mean())) < 0.02


@pytest.mark.parametrize("d", [2, 6])
def test_norms_of_the_sample_lead_elsewhere_in_few_dimensions(d: int) -> None:
    """e = c |z|²/|score|² moves x by E[e] score = c D score/|score|², and spreads it by E[2 e z zᵀ] = 2 c (D + 2)/|score|², since
    the |z|² in e is that of the same z. The law without flux is p^(D/(D+2))·|score|². For p a normal of variance V that is |x|²
    times a normal of variance V (D + 2)/D, and E|x|² = V (D + 2)²/D in place of V D."""
    o, s, found = isotropic(VP(), 0.5, d), LEVELS["vp"], {}
    variance = float(o.marginal_variances(s)[0])
    for norms in ("expected", "sample"):
        x = (2 * variance) ** 0.5 * Noise(1).normal((1500, d), dtype=torch.float64)
        corrector, sizes = LangevinCorrector(o, 0.1, steps=25, norms=norms), []
        for k in range(36):
            x = corrector(x, at(o, s, Noise(3), index=k))
            sizes.append(float(x.square().sum(1).mean()) / variance)
        found[norms] = sum(sizes[18:]) / 18
    assert found["expected"] == pytest.approx(d, rel=0.05)
    assert found["sample"] == pytest.approx((d + 2) ** 2 / d, rel=0.1)


@pytest.mark.parametrize("norms", ["expected", "sample"])
def test_a_run_of_the_formula(norms: str) -> None:
    """Step j after row k: e = (snr·|z|/|score|)², at most sigma²/2, and d = sigma² (1 - sqrt(1 - 2 e/sigma²))."""
    o, s, snr, clamped = mixture(SubVP()), 0.4, 0.5, 0
    x = exact = 2 * Noise(1).normal((40, 1, 2), dtype=torch.float64)
    x = LangevinCorrector(o, snr, steps=3, norms=norms)(x, at(o, s, Noise(5), index=7, first=11))
    variance = level(o.process, s)[1] ** 2
    for j in range(3):
        z = Noise(5).normal((40, 1, 2), stream="corrector", step=3 * 7 + j, first=11, dtype=torch.float64)
        score = o(exact, s).score
        e = torch.full((40, 1, 1), variance * snr**2, dtype=torch.float64)
        if norms == "sample":
            e = snr**2 * z.square().sum((1, 2), keepdim=True) / score.square().sum((1, 2), keepdim=True)
            clamped += int((e > variance / 2).sum())
        e = e.clamp(max=variance / 2)
        exact = exact + variance * (1 - (1 - 2 * e / variance).sqrt()) * score + (2 * e).sqrt() * z
    torch.testing.assert_close(x, exact, rtol=1e-9, atol=1e-9)
    assert (0 < clamped < 120) == (norms == "sample")


# ----------------------------------------------------------------------------------------------- where it acts, and costs


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(
    ("plan", "levels"),
    [
        (ddim(VP(), 10), 9),
        (ddim(VP(), 10, end=0.1), 10),
        (heun(EDM(), 11), 5),
        (heun(EDM(), 11, churn=8.0), 5),
        (dpm_solver(VP(), 10, order=3, fast=False), 3),
        (dpm_solver(VP(), 9, order=3, fast=False, end=0.1), 3),
        (ddim(VP(), 1), 0),
    ],
)
def test_a_corrector_costs_its_steps_at_every_new_level(plan: Plan, levels: int, steps: int) -> None:
    o = counting(mixture(EDM() if plan.name.startswith("heun") else VP()))
    corrector = LangevinCorrector(o, steps=steps)
    sample(o, plan, shape=(3, 2), noise=Noise(0), after=corrector)
    assert len(o.times) == corrector.calls(plan) == plan.calls + steps * levels


@pytest.mark.parametrize("end", [None, 0.07])
@pytest.mark.parametrize("key", [key for key in CASES if "learned" not in key and "churn" not in key])
def test_it_acts_once_at_each_level_that_a_plan_reaches(key: str, end: float | None) -> None:
    plan, o = CASES[key].plan(VP(), 15, end=end), mixture(VP())
    watched, seen = counting(o), Trajectory()
    corrector = LangevinCorrector(watched, steps=2)
    sample(o, plan, shape=(2, 2), noise=Noise(0), after=seen, dtype=torch.float64)
    found = sample(o, plan, shape=(2, 2), noise=Noise(0), after=corrector, dtype=torch.float64)
    reached = sorted({s for s in seen.times if s is not None and s < plan.rows[0].t}, reverse=True)
    assert watched.times == [s for s in reached for _ in range(2)]
    assert corrector.calls(plan) == plan.calls + 2 * len(reached)
    assert all(b <= a for a, b in pairwise(watched.times))
    assert float((found - seen.states[-1]).abs().min()) > 0


def test_clean_data_and_a_state_that_stayed_are_handed_on() -> None:
    o = counting(mixture(VP()))
    corrector, x = LangevinCorrector(o), torch.ones(3, 2)
    step = replace(at(mixture(VP()), 0.5, Noise(0)), before=0.5)
    for s in (None, 0.5, 0.6):
        assert corrector(x, replace(step, s=s)) is x
    assert o.times == []
    kept = x.clone()
    assert not torch.equal(corrector(x, replace(step, s=0.4)), x)
    assert torch.equal(x, kept)
    assert o.times == [0.4]


# --------------------------------------------------------------------------------------------------- within the sampler


@pytest.mark.parametrize("norms", ["expected", "sample"])
def test_corrected_samples_do_not_depend_on_the_batch(norms: str) -> None:
    o, plan, given_ = mixture(VP()), ddim(VP(), 8, eta=1.0), {"noise": Noise(0), "dtype": torch.float64}
    after = LangevinCorrector(o, steps=2, norms=norms)
    whole = sample(o, plan, shape=(17, 2), after=after, **given_)
    for batch_size in (1, 7):
        parts = sample(o, plan, shape=(17, 2), after=after, batch_size=batch_size, **given_)
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    tail = sample(o, plan, shape=(12, 2), after=after, first=5, **given_)
    torch.testing.assert_close(tail, whole[5:], rtol=1e-12, atol=1e-12)
    assert whole.unique(dim=0).shape == whole.shape
    single = sample(o, plan, shape=(17, 2), after=after, noise=Noise(0))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), whole, rtol=0, atol=1e-2)


def test_conditions_reach_the_denoiser() -> None:
    """Those of the chunk."""
    o, label = counting(mixture(VP())), torch.arange(5)
    after = LangevinCorrector(o)
    sample(counting(mixture(VP())), ddim(VP(), 3), shape=(5, 2), noise=Noise(0), cond={"label": label}, batch_size=3, after=after)
    assert [cond["label"].tolist() for cond in o.conds if cond is not None] == [[0, 1, 2]] * 2 + [[3, 4]] * 2


@pytest.mark.parametrize("p", THREE.values(), ids=THREE)
def test_a_corrector_mends_what_a_flow_would_carry_on(p: GaussianProcess) -> None:
    """Started with 1.3 times the standard deviation, the flow carries the surplus on; corrected, it ends with the data's own."""
    o = isotropic(p, 0.5)
    start = 1.3 * o.marginal_variances(1.0).sqrt() * Noise(1).normal((4000, 2), dtype=torch.float64)
    plan = heun(p, 40, end=p.t_min)
    ends = [sample(o, plan, start=start, noise=Noise(0), after=after) for after in (None, LangevinCorrector(o, steps=4))]
    plain, mended = (float(x.square().mean().sqrt() / o.marginal_variances(p.t_min)[0].sqrt()) for x in ends)
    assert plain > 1.25
    assert mended == pytest.approx(1, abs=0.05)


def test_arguments_are_checked() -> None:
    o = mixture(VP())
    for snr in (0.0, -0.3, math.nan):
        with pytest.raises(ValueError, match=f"snr={snr} must be above 0"):
            LangevinCorrector(o, snr)
    for steps in (0, -1):
        with pytest.raises(ValueError, match=f"steps={steps} must be at least 1"):
            LangevinCorrector(o, steps=steps)
    with pytest.raises(ValueError, match="norms='batch' is not one of expected, sample"):
        LangevinCorrector(o, norms="batch")
