"""DDRM: the marginals that its weights must keep, its limits, and what it keeps of a measurement."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given as cases
from hypothesis import strategies as st
from torch import Tensor

from ornstein.denoiser import Condition, Prediction
from ornstein.files import InputError
from ornstein.guidance.ddrm import _weights, ddrm
from ornstein.guidance.given import Given
from ornstein.noise import Noise
from ornstein.operator import Mask, Matrix, Nonlinear, Operator
from ornstein.process import EDM, VP, GaussianProcess, Rectified
from ornstein.process.gaussian import Time
from ornstein.samplers import ddim, sample
from ornstein.testing import GaussianDenoiser, MixtureDenoiser

F64 = torch.float64
PROCESSES: dict[str, GaussianProcess] = {"vp": VP(), "edm": EDM(), "flow": Rectified()}


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def normal(*shape: int, stream: str = "x", dtype: torch.dtype = F64) -> Tensor:
    return Noise(1).normal(shape, stream=stream, dtype=dtype)


def mixture(process: GaussianProcess, d: int = 4) -> MixtureDenoiser:
    return MixtureDenoiser(normal(3, d, stream="means"), f64(0.2, 0.4, 0.3), f64(0.5, 0.2, 0.3), process)


NUMBERS = st.tuples(st.floats(1e-3, 100), st.floats(0.01, 1), st.floats(0.1, 3), st.floats(0, 1), st.floats(0, 1))


@cases(numbers=NUMBERS)
def test_the_weights_keep_the_marginals(numbers: tuple[float, float, float, float, float]) -> None:
    """Proposition 3.1: with c0 the truth, c ~ N(c0, σ²) and c̄ ~ N(c0, σ_y²/s²), then c' ~ N(c0, σ'²), in all three cases."""
    before, part, coarseness, eta, eta_b = numbers
    after = part * before
    spread = coarseness * after  # on both sides of the new level
    spreads = f64(math.inf, spread, 0.0)
    on_c, on_c0, on_known, std = _weights(before, after, spreads, eta, eta_b)
    torch.testing.assert_close(on_c + on_c0 + on_known, torch.ones(3, dtype=F64))
    known = torch.where(on_known == 0, 0.0, on_known * spreads.clamp(max=1e9))
    variance = (on_c * before) ** 2 + known**2 + std**2
    torch.testing.assert_close(variance, torch.full((3,), after**2, dtype=F64), rtol=1e-9, atol=0)
    # which numbers each case looks at
    assert float(on_known[0]) == 0
    assert on_c[1:].tolist() == [0, 0]
    assert float(on_known[2]) == eta_b
    if after < spread:
        assert float(std[1]) == pytest.approx(eta * after)
    else:
        assert float(on_known[1]) == eta_b


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("operator", [Mask(torch.tensor([True, False, True, False])), Matrix(normal(2, 4, stream="a"))])
def test_a_measurement_without_noise_is_kept(name: str, operator: Operator) -> None:
    o = mixture(PROCESSES[name])
    y = operator(o.sample(6, Noise(2)).float())
    x = o.process.prior((6, 4), Noise(3))
    drawn = ddrm(o, x, Given(y, operator), noise=Noise(4))
    assert drawn.dtype == torch.float32
    assert float((operator(drawn) - y).abs().max()) < 1e-6
    # and the rest was found by the denoiser: all draws are near a mode
    near = torch.cdist(drawn.double(), o.means).amin(1)
    assert bool((near < 2.5).all())


@pytest.mark.parametrize("name", PROCESSES)
def test_where_nothing_is_measured_it_is_ddim(name: str) -> None:
    o = mixture(PROCESSES[name])
    nothing = Given(torch.zeros(1, 4, dtype=F64), mask=torch.zeros(4, dtype=torch.bool))
    plan = ddim(o.process, 12, grid=tuple(0.99 - 0.08 * k for k in range(12)))
    # DDRM starts at the noise of its first level, as if no signal were left
    _, sigma = o.process.moments(plan.times[0])
    x = o.process.prior((5, 4), Noise(3), dtype=F64)
    drawn = ddrm(o, x, nothing, noise=Noise(4), calls=12, grid=plan.times, eta=0.0)
    expected = sample(o, plan, start=x / o.process.prior_std * sigma, noise=Noise(5))
    torch.testing.assert_close(drawn, expected, rtol=1e-9, atol=1e-9)


class Knows(NamedTuple):
    """A denoiser that knows the truth (1, D)."""

    truth: Tensor
    process: GaussianProcess

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        alpha, sigma = self.process.moments(t)
        return Prediction.from_x0(x_t, alpha, sigma, self.truth.expand_as(x_t))


@pytest.mark.parametrize("eta", [0.0, 0.85, 1.0])
def test_a_denoiser_that_knows_the_truth_has_the_last_word_where_there_is_noise(eta: float) -> None:
    truth, a = normal(1, 3, stream="truth"), torch.diag(f64(2.0, 0.01, 0.0)) @ torch.linalg.qr(normal(3, 3, stream="q"))[0]
    y = truth @ a.T + 0.3 * normal(1, 3, stream="noise")
    denoiser = Knows(truth, VP())
    x = VP().prior((4, 3), Noise(3), dtype=F64)
    drawn = ddrm(denoiser, x, Given(y, Matrix(a), noise_std=0.3), noise=Noise(4), eta=eta)
    torch.testing.assert_close(drawn, truth.expand(4, 3), rtol=0, atol=1e-9)


def test_draws_of_independent_coefficients_have_the_posterior_where_the_paper_is_exact() -> None:
    """Where nothing is measured the law is the prior's, and what is measured without noise has none."""
    variances = f64(0.3, 2.0, 1.0)
    o = GaussianDenoiser(f64(1.0, -1.0, 0.5), torch.diag(variances), VP())
    n = 1500
    given = Given(f64(0.7, 0.0, 0.0)[None], mask=torch.tensor([True, False, False]))
    drawn = ddrm(o, VP().prior((n, 3), Noise(3), dtype=F64), given, noise=Noise(4), calls=100, eta=0.3)
    assert float((drawn[:, 0] - 0.7).abs().max()) < 1e-12
    rest = drawn[:, 1:]
    assert bool(((rest.mean(0) - o.mean[1:]).abs() < 5 * (variances[1:] / n).sqrt() + 0.01).all())
    torch.testing.assert_close(rest.var(0), variances[1:], rtol=0.15, atol=0)


@pytest.mark.parametrize("noise_std", [0.0, 0.4])
def test_every_sample_is_the_same_alone(noise_std: float) -> None:
    o = mixture(VP())
    operator = Matrix(normal(2, 4, stream="a"))
    y = operator(o.sample(5, Noise(2)))
    x = VP().prior((5, 4), Noise(3), dtype=F64)
    together = ddrm(o, x, Given(y, operator, noise_std=noise_std), noise=Noise(4), calls=8)
    for i in range(5):
        alone = ddrm(o, x[i : i + 1], Given(y[i : i + 1], operator, noise_std=noise_std), noise=Noise(4), calls=8, first=i)
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-9, atol=1e-9)
    shared = ddrm(o, x, Given(y[:1], operator, noise_std=noise_std), noise=Noise(4), calls=8)
    torch.testing.assert_close(shared[0], together[0], rtol=1e-9, atol=1e-9)


def test_calls_and_ticks_agree() -> None:
    class Counted(NamedTuple):
        denoiser: MixtureDenoiser
        seen: list[float]

        @property
        def process(self) -> GaussianProcess:
            return self.denoiser.process

        def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
            self.seen.append(float(t))  # type: ignore[arg-type]
            return self.denoiser(x_t, t, cond)

    counted, ticks = Counted(mixture(VP()), []), iter(range(100))
    given = Given(torch.zeros(1, 4), mask=torch.ones(4, dtype=torch.bool), noise_std=0.1)
    ddrm(counted, VP().prior((2, 4), Noise(0)), given, noise=Noise(1), ticks=ticks)
    assert len(counted.seen) == next(ticks) == 20
    assert counted.seen == sorted(counted.seen, reverse=True)


def test_what_it_cannot_do_is_refused_with_the_remedy() -> None:
    o = mixture(VP())
    x = VP().prior((2, 4), Noise(0))
    every = torch.ones(4, dtype=torch.bool)

    class Untold(Matrix):
        spectrum = None  # type: ignore[assignment]

    for given, message in (
        (Given(torch.zeros(1, 4), mask=every, noise_std=None), "needs the noise level of the measurement; give noise_std"),
        (Given(torch.zeros(1, 4), Nonlinear((4,), torch.sin), noise_std=0.1), "is not linear: ddrm needs singular values; take"),
        (Given(torch.zeros(1, 2), Untold(normal(2, 4))), "has no known singular values .* take method 'pigdm' or 'dps'"),
    ):
        with pytest.raises(InputError, match=message):
            ddrm(o, x, given, noise=Noise(1))
    for options in ({"eta": 1.5}, {"eta_b": -0.1}):
        with pytest.raises(InputError, match=r"must lie in \[0, 1\]"):
            ddrm(o, x, Given(torch.zeros(1, 4), mask=every), noise=Noise(1), **options)  # type: ignore[arg-type]
