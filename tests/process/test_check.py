"""Processes that are well, and processes that are not, told apart; simulated equations."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ornstein.noise import Noise
from ornstein.process import ALL, SDE, VP, Chain, Check, GaussianProcess, LinearSDE, SimulatedSDE, chain
from ornstein.process.gaussian import MomentProcess
from ornstein.process.simulate import euler_maruyama

QUICK = {"paths": 1024, "steps": 200}


def beta(t: Tensor) -> Tensor:
    return 10 * (1 + 0.8 * torch.sin(6 * math.pi * t))


GOOD: dict[str, GaussianProcess] = {
    **{name: make() for name, make in ALL.items()},
    "cosine_chain": chain("cosine", 50),
    "silent_chain": chain("linear", 200, zero_terminal=True),
    "oscillating": LinearSDE(lambda t: -0.5 * beta(t), lambda t: beta(t).sqrt()),
    "expanding": LinearSDE(lambda t: 2.0, lambda t: 200.0),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_process_that_is_well_is_not_warned_of(name: str) -> None:
    check = GOOD[name].check(**QUICK)
    assert check.warnings == ()
    assert check.ok
    assert len(check.measured) >= 10
    assert all(m.agrees for m in check.measured)
    assert 0.5 < check.simulated_to <= 1
    assert "all is well" in str(check)
    assert ("simulated up to" in str(check)) == (check.simulated_to < 1)


def test_most_numbers_lie_within_their_errors() -> None:
    """The standard errors are neither too small nor too large: half of all deviations within 0.67 of them."""
    z = []
    for seed in range(12):
        for m in GOOD["oscillating"].check(noise=Noise(seed), **QUICK).measured:
            assert m.expected is not None
            z.append(abs(m.simulated - m.expected) / m.standard_error)
            if m.quantity == "sigma²":  # one Brownian path for both steps: the extrapolation adds no chance of its own
                assert m.standard_error == pytest.approx(m.expected * math.sqrt(2 / QUICK["paths"]), rel=0.25)
    inside = sum(v < 0.674 for v in z) / len(z)
    assert abs(inside - 0.5) < 0.17  # times of one run move together
    assert max(z) < 5


def test_data_of_ones_own_set_the_scale() -> None:
    data = 100 * Noise(0).normal((50, 2, 3))
    check = VP().check(data, **QUICK)
    assert len(check.warnings) == 1
    assert "the end law is not the prior: alpha/sigma" in check.warnings[0]
    assert VP().check(data / 100, **QUICK).ok
    assert VP().check(torch.zeros(1, 2), **QUICK).ok
    with pytest.raises(ValueError, match="data of shape"):
        VP().check(torch.zeros(5))
    with pytest.raises(ValueError, match="paths=3"):
        VP().check(paths=3)


def off(t: Tensor) -> Tensor:
    return torch.where((t > 0.3) & (t < 0.5), 0.0, 12.0)


BAD: dict[str, tuple[LinearSDE, str]] = {
    "signal left": (LinearSDE(lambda t: -0.5, lambda t: 1.0), r"alpha/sigma = 0\.763 at t=1, so x_1 still shows .*larger"),
    "wrong prior": (LinearSDE(lambda t: -5.0, lambda t: 3.0, prior_std=2.0), r"sigma = 0\.9487 .* prior_std = 2 .*leave it out"),
    "stands still": (LinearSDE(lambda t: -0.5 * off(t), lambda t: off(t).sqrt()), r"stands still between t=0\.30\d* and t=0\.49"),
    "infinite at 1": (LinearSDE(lambda t: -1 / (1 - t), lambda t: (2 * t / (1 - t)).sqrt()), "drift is -inf at t=1"),
    "infinite at 0": (LinearSDE(lambda t: -5, lambda t: 3 / t.sqrt()), "diffusion is inf at t=0"),
    "nan": (LinearSDE(lambda t: -5 * (t - 0.1).sqrt(), lambda t: 3.0), "drift is nan at t=0"),
    "shape": (LinearSDE(lambda t: -5.0, lambda t: t[:2]), r"diffusion\(t\) returned shape \(2,\)"),
    "rough": (LinearSDE(lambda t: -5.0, lambda t: 2 + torch.sin(1e5 * t)), "known only to"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_in_one_sentence(name: str) -> None:
    process, sentence = BAD[name]
    check = process.check(**QUICK)
    assert not check.ok
    assert len(check.warnings) == 1, check.warnings
    assert re.search(sentence, check.warnings[0]), check.warnings
    assert f"! {check.warnings[0]}" in str(check)


def test_no_noise_at_all_is_said() -> None:
    assert any("no law to start from" in w for w in LinearSDE(lambda t: -1.0, lambda t: 0.0).check(**QUICK).warnings)


@dataclass(frozen=True)
class Dented(MomentProcess):
    """sigma dips on its way."""

    def mean_variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - 0.99 * t, (0.1 + t - 0.5 * torch.sin(math.pi * t) ** 2) ** 2

    def time_of(self, log_ratio: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Inconsistent(VP):
    """f and g of VP beside a variance that is 15 % more."""

    def mean_variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, variance = super().mean_variance(t)
        return alpha, 1.15 * variance

    def drift_diffusion(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return VP().drift_diffusion(t)

    @property
    def prior_std(self) -> float:
        return math.sqrt(1.15)


class LyingChain(Chain):
    """A chain whose kernel is that of other betas."""

    def mean_variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, variance = super().mean_variance(t)
        return alpha.sqrt(), variance


def test_moments_that_no_equation_has_and_those_of_another_are_told() -> None:
    (sentence,) = Dented().check(**QUICK).warnings
    assert "the signal-to-noise ratio rises between" in sentence
    data = Noise(0).normal((64, 16))  # many numbers to a datum: small errors of chance
    assert VP().check(data, **QUICK).ok
    check = Inconsistent().check(data, **QUICK)
    (sentence,) = check.warnings
    assert "do not belong together" in sentence
    assert "differs" in str(check)
    assert any("do not belong" in w for w in LyingChain(chain("linear", 100).betas).check(**QUICK).warnings)


# simulated equations


def well(x: Tensor, t: Tensor) -> Tensor:
    return -4 * x**3


def quartic(shape: Sequence[int], noise: Noise) -> Tensor:
    """exp(-x⁴)/Z, which dx = -4x³ dt + √2 dw keeps, by its inverse distribution function."""
    import numpy as np

    grid = np.linspace(-3, 3, 6001)
    cdf = np.cumsum(np.exp(-(grid**4)))
    return torch.from_numpy(np.interp(noise.uniform(shape, stream="prior").numpy(), cdf / cdf[-1], grid))


def simulated(drift: object = well, g2: float = 2.0, prior: object = quartic, initial_variance: float = 0.0) -> SimulatedSDE:
    found = SDE(drift, lambda t: math.sqrt(g2), nonlinear="simulate", prior=prior, initial_variance=initial_variance)  # type: ignore[arg-type]
    assert isinstance(found, SimulatedSDE)
    return found


def test_simulated_paths_have_the_law_of_the_equation() -> None:
    """A linear drift that `SDE` would not simulate, made by hand: the kernel is known."""
    rate, n = -3.0, 6000
    process = SimulatedSDE(lambda x, t: rate * x, lambda t: 2.0, 1.0, initial_variance=0.5)
    exact = LinearSDE(lambda t: rate, lambda t: 2.0, 0.5)
    x0 = torch.ones(n, 1, dtype=torch.float64)
    t = torch.tensor([0.1, 0.4, 1.0, 1.0], dtype=torch.float64).repeat(n // 4)
    x = process.simulate(x0, t, Noise(0), steps=150)[:, 0]
    for time in (0.1, 0.4, 1.0):
        alpha, sigma = (float(m) for m in exact.moments(time))
        part = x[t == time]
        error = sigma / math.sqrt(len(part))
        assert abs(float(part.mean()) - alpha) < 5 * error + 0.03 * alpha
        assert abs(float(part.var()) / sigma**2 - 1) < 5 * math.sqrt(2 / len(part)) + 0.02
    assert float(process.simulate(x0, 0.0, Noise(0)).var()) == pytest.approx(0.5, rel=5 * math.sqrt(2 / n))


def test_weak_order_of_simulation_is_one() -> None:
    """Without noise the error of a path is the bias itself; it halves with the step."""
    process = SimulatedSDE(lambda x, t: -2 * t * x, lambda t: 0.0, 1.0)
    x0 = torch.ones(1, 1, dtype=torch.float64)
    errors = [abs(float(process.simulate(x0, 1.0, Noise(0), steps=n)) - math.exp(-1)) for n in (50, 100, 200)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


def test_no_sample_depends_on_its_batch() -> None:
    process = simulated(initial_variance=0.1)
    x0, t = Noise(1).normal((6, 2)), torch.linspace(0.1, 1, 6)
    whole = process.simulate(x0, t, Noise(0), steps=20, step=3)
    assert torch.equal(whole[4:], process.simulate(x0[4:], t[4:], Noise(0), steps=20, step=3, first=4))
    assert not torch.equal(whole, process.simulate(x0, t, Noise(0), steps=20, step=4))
    assert torch.equal(process.prior((6, 2), Noise(0))[4:], process.prior((2, 2), Noise(0), first=4))
    draws = process.reverse(lambda x, t: -x, shape=(6, 2), noise=Noise(2), steps=10)
    assert torch.equal(draws[4:], process.reverse(lambda x, t: -x, shape=(2, 2), noise=Noise(2), steps=10, first=4))


@pytest.mark.parametrize("amount", [0.0, 0.5, 1.0])
def test_running_back_gives_the_data(amount: float) -> None:
    rate, g, n = -2.0, 2.0, 4000
    process = SimulatedSDE(lambda x, t: rate * x, lambda t: g, 1.0)
    exact = LinearSDE(lambda t: rate, lambda t: g)

    def score(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = exact.moments(t)
        return -x / (0.25 * alpha**2 + sigma**2).unsqueeze(-1)

    end = math.sqrt(0.25 * float(exact.moments(1.0)[0]) ** 2 + float(exact.moments(1.0)[1]) ** 2)
    start = end * Noise(0).normal((n, 1), dtype=torch.float64)
    x = process.reverse(score, start=start, noise=Noise(1), steps=150, amount=amount)
    alpha, sigma = (float(m) for m in exact.moments(process.t_min))
    truth = math.sqrt(0.25 * alpha**2 + sigma**2)
    assert float(x.std()) == pytest.approx(truth, rel=5 / math.sqrt(2 * n) + 0.02)


def test_the_end_law_that_was_named_is_held_against_the_paths() -> None:
    data = torch.tensor([[1.0, 0.5], [-1.0, -0.5], [0.3, -0.8]])
    assert simulated(lambda x, t: 4 * well(x, t), 8.0).check(data, **QUICK).ok
    check = simulated(lambda x, t: 4 * well(x, t), 8.0, 1.5).check(data, **QUICK)
    (sentence,) = check.warnings
    assert "the end law is not the prior" in sentence
    assert isinstance(check, Check)
    assert check.end_signal is None
    (sentence,) = simulated(well, 0.05).check(torch.ones(1, 2), **QUICK).warnings
    assert "run longer" in sentence


def test_paths_that_explode_are_told() -> None:
    check = simulated(lambda x, t: 40 * x**3).check(**QUICK)
    assert "leave all bounds" in check.warnings[0]
    assert check.simulated_to < 1


def test_misuse_is_refused() -> None:
    process, x = simulated(), torch.zeros(3, 2)
    with pytest.raises(ValueError, match="no closed kernel"):
        process.corrupt(x, 0.5, x)
    with pytest.raises(ValueError, match="leaves"):
        process.simulate(x, 1.5, Noise(0))
    with pytest.raises(ValueError, match="steps=0"):
        process.simulate(x, 0.5, Noise(0), steps=0)
    with pytest.raises(ValueError, match="give one of shape"):
        process.reverse(lambda x, t: x, noise=Noise(0))
    wrong = SimulatedSDE(lambda x, t: x[:, 0], lambda t: 1.0, 1.0)
    with pytest.raises(ValueError, match="drift returned shape"):
        wrong.simulate(x, 0.5, Noise(0))
    wrong = SimulatedSDE(lambda x, t: x, lambda t: (t - 0.1).sqrt(), 1.0)
    with pytest.raises(ValueError, match="diffusion is nan at t=0"):
        wrong.simulate(x, 0.5, Noise(0))


def test_one_step_keeps_dtype_and_takes_times_per_sample() -> None:
    x = Noise(0).normal((3, 2))
    t, h = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), torch.full((3,), 0.01, dtype=torch.float64)
    together = euler_maruyama(VP(), x, t, h, torch.ones_like(x))
    assert together.dtype == torch.float32
    for i in range(3):
        f, g = float(VP().drift(float(t[i]))), float(VP().diffusion(float(t[i])))
        torch.testing.assert_close(together[i], x[i] * (1 + 0.01 * f) + 0.1 * g)
