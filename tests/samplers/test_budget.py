"""The pilot promises what fresh samples deliver."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ornstein.denoiser import Condition, Prediction
from ornstein.noise import Noise
from ornstein.process import EDM, VP, GaussianProcess
from ornstein.process.gaussian import Time
from ornstein.samplers import RK45, Budget, ancestral, ddim, default_plan, monte_carlo_error, pilot, sample, sample_adaptive
from ornstein.samplers.budget import PILOT
from ornstein.testing import GaussianDenoiser, MixtureDenoiser


def mixture(process: GaussianProcess) -> MixtureDenoiser:
    means = torch.tensor([[-1.0, 0.3], [1.0, 0.5], [0.1, -1.0]])
    return MixtureDenoiser(means, torch.tensor([0.2, 0.3, 0.1]), torch.tensor([0.3, 0.5, 0.2]), process)


@pytest.mark.parametrize("process", [VP(), EDM()], ids=["vp", "edm"])
@pytest.mark.parametrize("tolerance", [0.1, 0.01, 0.002])
def test_delivered_is_within_a_factor_two_of_promised(process: GaussianProcess, tolerance: float) -> None:
    oracle, scale = mixture(process), 0.8
    found = pilot(oracle, shape=(64, 2), noise=Noise(3), tolerance=tolerance, scale=scale, dtype=torch.float64)
    assert found.met
    assert found.error <= tolerance < found.errors[-2]
    start = process.prior((500, 2), Noise(4), dtype=torch.float64)
    exact = sample_adaptive(oracle, RK45(1e-6), start=start, noise=Noise(4)).x0
    off = sample(oracle, default_plan(process, found.calls), start=start, noise=Noise(4)) - exact
    delivered = float(off.square().mean(1).sqrt().quantile(0.9)) / scale
    assert found.error / 2 < delivered < found.error * 2


def test_errors_are_distances_to_the_exact_flow() -> None:
    process = VP()
    oracle = GaussianDenoiser(torch.tensor([0.5, -0.2]), torch.diag(torch.tensor([0.3, 1.2])), process)
    options = {"shape": (40, 2), "noise": Noise(8), "first": PILOT, "dtype": torch.float64}
    found = pilot(oracle, shape=(40, 2), noise=Noise(8), tolerance=1e-4, plan=ddim, counts=(3, 6), scale=2.0, dtype=torch.float64)
    assert not found.met
    assert (found.calls, found.samples, found.counts) == (6, 40, (3, 6))
    start = process.prior((40, 2), Noise(8), first=PILOT, dtype=torch.float64)
    low = process.t_min
    exact = oracle(oracle.flow(start, 1.0, low), low).x0
    for calls, error, mean in zip(found.counts, found.errors, found.means, strict=True):
        off = (sample(oracle, ddim(process, calls), **options) - exact).square().mean(1).sqrt() / 2.0
        assert error == pytest.approx(float(off.quantile(0.9)), rel=1e-3)
        assert mean == pytest.approx(float(off.mean()), rel=1e-3)


def test_it_stops_where_the_tolerance_is_met() -> None:
    counted: list[int] = []

    class Counting:
        def __init__(self) -> None:
            self.oracle = mixture(VP())
            self.process = self.oracle.process

        def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
            counted.append(len(x_t))
            return self.oracle(x_t, t, cond)

    found = pilot(Counting(), shape=(8, 2), noise=Noise(0), tolerance=0.3, counts=(4, 8, 400))
    assert found.calls < 400
    assert sum(counted) == round(found.reference_calls * 8) + 8 * sum(found.counts)


def test_the_pilot_s_noise_is_not_that_of_the_samples() -> None:
    own = VP().prior((4, 2), Noise(0), first=PILOT)
    assert not torch.equal(own, VP().prior((4, 2), Noise(0)))
    assert float(own.std()) > 0.1


def test_conditions_reach_the_pilot() -> None:
    class Asking:
        def __init__(self) -> None:
            self.oracle = mixture(VP())
            self.process = self.oracle.process
            self.seen: set[int] = set()

        def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
            assert cond is not None
            assert len(cond["label"]) == len(x_t)
            self.seen |= set(cond["label"].tolist())
            return self.oracle(x_t, t)

    asking = Asking()
    pilot(asking, shape=(3, 2), noise=Noise(0), tolerance=0.5, cond={"label": torch.tensor([4, 5, 6])})
    assert asking.seen == {4, 5, 6}


def test_what_it_refuses() -> None:
    oracle = mixture(VP())
    with pytest.raises(ValueError, match=r"'ancestral.*deterministic"):
        pilot(oracle, shape=(4, 2), noise=Noise(0), tolerance=0.1, plan=ancestral)
    with pytest.raises(ValueError, match="tolerance=1e-06 must be at least"):
        pilot(oracle, shape=(4, 2), noise=Noise(0), tolerance=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        pilot(oracle, shape=(1, 2), noise=Noise(0), tolerance=0.1)


def test_the_table_says_both_errors() -> None:
    budget = Budget((5, 8), (0.3, 0.04), (0.2, 0.03), 0.05, 64, 50.0)
    assert budget.met
    assert budget.table(100).splitlines()[-1] == "Monte-Carlo error of a mean over 100 samples: 0.1"
    assert [line.split() for line in budget.table(100).splitlines()[1:3]] == [["5", "0.3", "0.2"], ["8", "0.04", "0.03"]]
    assert monte_carlo_error(400) == 1 / math.sqrt(400)
