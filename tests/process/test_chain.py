"""Chains of betas: the constants of the papers, interpolation between levels, zero terminal SNR, limits in continuous time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ornstein.process import BETAS, VP, Chain, Cosine, chain, zero_terminal_snr
from ornstein.process.chain import linear_betas


def test_constants_of_the_papers() -> None:
    # DDPM (arXiv 2006.11239): 1000 steps from 1e-4 to 0.02; SSSD (arXiv 2208.09399): the same ends with 200 steps
    assert float(chain("linear").moments(1.0)[0]) == pytest.approx(0.0064, abs=5e-5)
    assert float(chain("linear", 200).moments(1.0)[0]) == pytest.approx(0.364, abs=5e-4)
    betas = BETAS["linear"]()
    assert (len(betas), betas[0], betas[-1]) == (1000, pytest.approx(1e-4), pytest.approx(0.02))
    assert betas[500] - betas[499] == pytest.approx(0.0199 / 999)
    roots = [math.sqrt(b) for b in BETAS["scaled_linear"]()]
    assert roots[500] - roots[499] == pytest.approx((math.sqrt(0.0195) - math.sqrt(0.0015)) / 999)
    assert roots[0] ** 2 == pytest.approx(0.0015)


def test_sigmoid_chain_follows_its_curve() -> None:
    def gate(u: float) -> float:
        return 1 / (1 + math.exp(-u))

    p = chain("sigmoid", 100)
    for k in (1, 30, 50, 99):
        exact = (gate(3) - gate(-3 + 6 * k / 100)) / (gate(3) - gate(-3))
        assert float(p.moments(k / 100)[0]) ** 2 == pytest.approx(exact, rel=1e-9)


def test_cosine_chain_tends_to_the_continuous_cosine() -> None:
    steps = 1000
    k = torch.tensor([1, 10, 100, 500, 900, 990], dtype=torch.float64)
    alpha, sigma = chain("cosine", steps).moments(k / steps)
    # at log-SNR -80 the continuous one ends at u = π/2 to twelve digits, as the chain does before its betas are capped
    limit = torch.stack(Cosine(log_snr_end=-80.0).moments(k / steps))
    torch.testing.assert_close(torch.stack([alpha, sigma]), limit, rtol=1e-9, atol=0)
    standard = torch.stack(Cosine().moments(k / steps))
    torch.testing.assert_close(torch.stack([alpha, sigma]), standard, rtol=1e-2, atol=0)


def test_linear_chain_tends_to_vp_at_first_order() -> None:
    t = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    gaps = [
        (Chain(linear_betas(steps, 0.1 / steps, 20 / steps)).log_ratio(t) - VP().log_ratio(t)).abs().max()
        for steps in (500, 1000, 2000)
    ]
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.05)
    assert gaps[1] / gaps[2] == pytest.approx(2, rel=0.05)


@given(
    schedule=st.sampled_from(sorted(BETAS)), steps=st.integers(3, 200), zero=st.booleans(),
    k=st.integers(1, 10_000), weight=st.floats(0.01, 0.99),
)  # fmt: skip
def test_log_snr_is_linear_between_levels(schedule: str, steps: int, zero: bool, k: int, weight: float) -> None:
    p = chain(schedule, steps, zero)
    k = 1 + k % (steps - 2 if zero else steps - 1)
    low, high = p.log_ratio(k / steps), p.log_ratio((k + 1) / steps)
    if zero and k == steps - 1:
        return
    between = p.log_ratio((k + weight) / steps)
    assert math.isclose(float(between), float(low + weight * (high - low)), rel_tol=1e-9, abs_tol=1e-9)
    alpha, sigma = p.moments((k + weight) / steps)
    assert float(alpha**2 + sigma**2) == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize("schedule", BETAS)
def test_zero_terminal_snr(schedule: str) -> None:
    before, after = chain(schedule), chain(schedule, zero_terminal=True)
    levels = torch.arange(1, 1001, dtype=torch.float64) / 1000
    a, b = before.moments(levels)[0], after.moments(levels)[0]
    assert float(b[-1]) == 0
    assert float(after.moments(1.0)[1]) == 1
    assert after.log_ratio(1.0) == math.inf
    assert float(b[0]) == pytest.approx(float(a[0]), rel=1e-12)
    # shifted and scaled: an affine function of the old sqrt(alpha²)
    torch.testing.assert_close(b, (a - a[-1]) * a[0] / (a[0] - a[-1]), rtol=1e-8, atol=1e-13)
    last = after.moments(torch.tensor([0.999, 0.99925, 0.9995, 1.0], dtype=torch.float64))[0]
    torch.testing.assert_close(last / last[0], torch.tensor([1, 0.75, 0.5, 0], dtype=torch.float64), rtol=1e-6, atol=0)


def test_zero_terminal_snr_leaves_its_argument() -> None:
    betas = (0.1, 0.2, 0.3)
    assert zero_terminal_snr(betas)[-1] == 1
    assert betas == (0.1, 0.2, 0.3)


def test_wrong_chains_are_refused() -> None:
    for betas in ((), (0.1,), (0.1, 0.0), (0.1, 1.1), (0.1, -0.2), (1.0, 0.1), (0.1, math.nan)):
        with pytest.raises(ValueError, match="at least two variances"):
            Chain(betas)
    with pytest.raises(ValueError, match=r"1, 0\.5, …, 0\.1\] \(6\)"):
        Chain((1.0, 0.5, 0.1, 0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="schedule='square'"):
        chain("square")


def test_below_the_first_level_a_chain_is_not_defined() -> None:
    p = chain("linear")
    for t in (1e-5, 0.5e-3, 0.999e-3):
        with pytest.raises(ValueError, match="between the data and the chain's first level"):
            p.moments(t)
    assert [float(m) for m in p.moments(0.0)] == [1.0, 0.0]
    assert p.t_min == 1e-3
    assert float(p.noise_label(torch.tensor(0.25).double())) == 250
