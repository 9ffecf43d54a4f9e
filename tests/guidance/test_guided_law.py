"""What guidance samples, exactly: normal laws, whose guided flow and reverse equation are solved; and every sampler under it."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from ornstein.guidance import ClassifierFree
from ornstein.noise import Noise
from ornstein.process import EDM, VE, VP, GaussianProcess, Rectified
from ornstein.samplers import ALL, Law, Plan, adams, annealed_langevin, ddim, dpm_solver_pp, propagate, sa_solver, sample
from ornstein.testing import ClassOracle, GaussianDenoiser, GuidedNormal, MixtureDenoiser

F64 = torch.float64
ASKED = {"label": torch.zeros(1, dtype=torch.long)}


def normal(process: GaussianProcess, mean: float = 1.0, std: float = 0.5, free_std: float = 1.0) -> GuidedNormal:
    return GuidedNormal(mean, std, free_std, process)


def end(law: GuidedNormal, plan: Plan, scale: object, **options: object) -> tuple[float, float]:
    prior = Law(torch.zeros(1, dtype=F64), torch.tensor([law.process.prior_std**2], dtype=F64))
    guided = ClassifierFree(law.oracle, scale, **options)  # type: ignore[arg-type]
    last = propagate(plan, guided, start=prior, cond=ASKED)[-1]
    return float(last.mean), float(last.variances.sqrt())


def test_the_figures_at_scale_two() -> None:
    law = normal(EDM())
    assert law.moments(2.0) == pytest.approx((1.374, 0.250), abs=5e-4)
    assert law.moments(2.0, tau=1.0) == pytest.approx((1.250, 0.331), abs=5e-4)
    assert law.tilted(2.0) == pytest.approx((8 / 7, 7**-0.5), abs=1e-12)
    # in closed form, begun at N(0, U²) with U the last sigma/alpha: U to infinity gives the second, and 5/4, sqrt(7)/8
    limit = 1 + math.log(2 + math.sqrt(3)) / (2 * math.sqrt(3))
    for process in (VE(0.01, 50.0), VP()):
        last = math.exp(float(process.log_ratio(1.0)))
        assert normal(process).moments(2.0) == pytest.approx((limit - 0.5 / last, 0.25), abs=0.2 / last**2 + 1e-9)
        assert normal(process).moments(2.0, tau=1.0) == pytest.approx((1.25, math.sqrt(7) / 8), abs=0.2 / last**2 + 1e-8)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_the_ends_are_the_laws_themselves(scale: float) -> None:
    for tau in (0.0, 1.0):
        mean, std = normal(VP()).moments(scale, tau)
        assert std == pytest.approx((1.0, 0.5)[int(scale)], abs=2e-4)
        # what the flow forgets of the mean: the prior's 0 in place of the marginal's mean
        assert mean == pytest.approx(scale, abs=4e-3)
    assert normal(VP()).tilted(scale) == pytest.approx((scale, (1.0, 0.5)[int(scale)]), abs=1e-12)


def test_where_there_is_no_tilted_density() -> None:
    law = normal(VP(), std=2.0)
    assert all(math.isnan(value) for value in law.tilted(2.0))
    assert law.moments(2.0)[1] == pytest.approx(4.0, abs=1e-3)
    with pytest.raises(ValueError, match="ends without signal"):
        normal(Rectified()).moments(2.0)


@pytest.mark.parametrize("scale", [0.0, 2.0, 4.0])
@pytest.mark.parametrize("process", [EDM(), VP()], ids=["edm", "vp"])
def test_plans_make_of_the_prior_what_the_equations_make_of_it(process: GaussianProcess, scale: float) -> None:
    law = normal(process)
    assert end(law, adams(process, 50), scale) == pytest.approx(law.moments(scale), abs=1e-3)
    assert end(law, sa_solver(process, 140), scale) == pytest.approx(law.moments(scale, tau=1.0), abs=1e-3)


def test_other_laws_and_scales_that_follow_t() -> None:
    law = normal(VP(), mean=-0.7, std=0.8, free_std=1.3)

    def later(t: float) -> float:
        return 1 + 2 * (1 - t) ** 2

    for scale in (3.0, later):
        assert end(law, adams(VP(), 60), scale) == pytest.approx(law.moments(scale), abs=1e-3)
    assert abs(law.moments(3.0)[0] - law.moments(later)[0]) > 0.05
    half = law.moments(3.0, tau=0.5)
    assert end(law, sa_solver(VP(), 100, tau=0.5), 3.0) == pytest.approx(half, abs=2e-3)
    assert law.moments(3.0, tau=1.0)[0] + 0.01 > half[0] > law.moments(3.0)[0] + 0.01
    # an interval is a scale that steps to 1
    inside = end(law, adams(VP(), 20), 3.0, interval=(0.3, 5.0))
    stepped = end(law, adams(VP(), 20), lambda t: 3.0 if 0.3 < math.exp(float(VP().log_ratio(t))) <= 5.0 else 1.0)
    assert inside == pytest.approx(stepped, abs=1e-12)


FIRST_ORDER = ("ddim", "ancestral", "euler_maruyama", "reverse_diffusion", "probability_flow_euler")


@cache
def solved(stochastic: bool) -> tuple[float, float]:
    return normal(VP()).moments(2.0, float(stochastic))


@pytest.mark.parametrize("name", ALL)
def test_every_sampler_goes_where_its_equation_goes(name: str) -> None:
    law = normal(VP())
    target = law.tilted(2.0) if name == "annealed_langevin" else solved(ALL[name](VP(), 20).stochastic)
    errors = []
    for calls in (16, 48):
        found = end(law, ALL[name](VP(), calls), 2.0)
        errors.append(max(abs(a - b) for a, b in zip(found, target, strict=True)))
    limit = 0.2 if name == "annealed_langevin" else 0.08 if name in FIRST_ORDER else 0.02
    assert errors[1] < min(0.75 * errors[0] + 2e-4, limit), errors


def test_langevin_steps_alone_sample_the_tilted_density() -> None:
    law = normal(EDM())
    found = end(law, annealed_langevin(EDM(), 401, steps=5), 2.0)
    assert found == pytest.approx(law.tilted(2.0), abs=0.03)
    assert abs(found[0] - law.moments(2.0, tau=1.0)[0]) > 0.07


def test_the_loop_that_users_run_agrees() -> None:
    law, n = normal(EDM()), 4000
    cond = {"label": torch.zeros(n, dtype=torch.long)}
    for plan, tau in ((dpm_solver_pp(EDM(), 25), 0.0), (sa_solver(EDM(), 25), 1.0)):
        x = sample(ClassifierFree(law.oracle, 2.0), plan, shape=(n, 1), noise=Noise(0), cond=cond, dtype=F64)
        mean, std = law.moments(2.0, tau)
        assert abs(float(x.mean()) - mean) < 4 * std / math.sqrt(n) + 0.01
        assert float(x.std()) == pytest.approx(std, rel=4 / math.sqrt(2 * n) + 0.03)


# --- the oracle, and propagation through rows


def test_the_class_oracle_is_asked_row_by_row() -> None:
    laws = [MixtureDenoiser(torch.tensor([[m, 0.0]]), torch.ones(1), torch.ones(1), VP()) for m in (-2.0, 1.0)]
    free = MixtureDenoiser(torch.tensor([[-2.0, 0.0], [1.0, 0.0]]), torch.ones(2), torch.tensor([0.5, 0.5]), VP())
    oracle = ClassOracle(laws, free)
    x, t = Noise(0).normal((4, 2)), torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=F64)
    cond = {"label": torch.tensor([1, 0, 1, 0]), "null": torch.tensor([False, False, True, True])}
    expected = torch.stack([laws[1](x, t).x0[0], laws[0](x, t).x0[1], free(x, t).x0[2], free(x, t).x0[3]])
    assert torch.equal(oracle(x, t, cond).x0, expected)
    assert torch.equal(oracle(x, t).x0, free(x, t).x0)
    with pytest.raises(ValueError, match="different processes"):
        ClassOracle([MixtureDenoiser(torch.zeros(1, 2), torch.ones(1), torch.ones(1), EDM())], free)


class Opaque:
    """A denoiser that does not say that its law is normal."""

    def __init__(self, inner: object) -> None:
        self.inner = inner
        self.process = inner.process  # type: ignore[attr-defined]

    def __call__(self, x_t: Tensor, t: float, cond: object = None) -> object:
        return self.inner(x_t, t, cond)  # type: ignore[operator]


def test_propagation_finds_the_line_of_any_such_denoiser() -> None:
    known = GaussianDenoiser(torch.tensor([0.4, -1.0]), torch.diag(torch.tensor([0.5, 2.0])), VP())
    start = Law(torch.tensor([0.1, 0.2], dtype=F64), torch.tensor([1.0, 0.7], dtype=F64))
    plan = ddim(VP(), 12, eta=0.5)
    for one, other in zip(propagate(plan, known, start=start), propagate(plan, Opaque(known), start=start), strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(one.variances, other.variances, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="start=None"):
        propagate(plan, Opaque(known))  # type: ignore[arg-type]
    turned = GaussianDenoiser(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]), VP())
    two = MixtureDenoiser(torch.tensor([[-2.0], [2.0]]), torch.ones(2), torch.tensor([0.5, 0.5]), VP())
    for wrong, size in ((turned, 2), (two, 1)):
        with pytest.raises(ValueError, match="not affine"):
            propagate(plan, Opaque(wrong), start=Law(torch.zeros(size, dtype=F64), torch.ones(size, dtype=F64)))  # type: ignore[arg-type]
