"""Langevin dynamics against exact laws: harmonic, double well; order of the bias; Metropolis; diagnostics; errors."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates, spline_filter
from torch import Tensor

from ornstein.noise import Noise
from ornstein.samplers.boltzmann import (
    Chains,
    Dynamics,
    Overdamped,
    Potential,
    State,
    Underdamped,
    advance,
    effective_sample_size,
    r_hat,
    sample_boltzmann,
)

PRECISION = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)


def bowl(x: Tensor) -> Tensor:
    """(x - MEAN)ᵀ PRECISION (x - MEAN)/2."""
    y = x - MEAN.to(x)
    return 0.5 * ((y @ PRECISION.to(x)) * y).sum(1)


def spring(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum(1)


def double_well(x: Tensor) -> Tensor:
    return (x.square() - 1).square().sum(1)


def normals(n: int, d: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return Noise(99).normal((n, d), stream="start", dtype=dtype)


def linear_map(dynamics: Dynamics, stiffness: float) -> tuple[np.ndarray, np.ndarray]:
    """(M, c) of a step (x, p) ← M (x, p) + c z on U = stiffness·x²/2, read off the code itself."""
    potential = Potential(lambda x: 0.5 * stiffness * x.square().sum(1))
    columns = []
    for x, p, z in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        place, momentum = torch.tensor([[x]], dtype=torch.float64), torch.tensor([[p]], dtype=torch.float64)
        state = State(place, momentum, stiffness * place, None)
        after, _ = advance(potential, state, dynamics, 1.0, Same(z), step=0)
        columns.append([float(after.x), float(after.momentum)])
    x, p, z = np.array(columns)
    return np.stack([x, p], 1), z


class Same(Noise):
    """Every normal is the seed."""

    def __init__(self, value: float) -> None:
        object.__setattr__(self, "seed", value)

    def normal(self, shape, **kwargs):  # type: ignore[no-untyped-def,override]
        return torch.full(tuple(shape), float(self.seed), dtype=torch.float64)


def stationary(dynamics: Dynamics, stiffness: float) -> np.ndarray:
    """Covariance (2, 2) of (x, p) that a step keeps at T = 1: C = M C Mᵀ + c cᵀ."""
    m, c = linear_map(dynamics, stiffness)
    return np.linalg.solve(np.eye(4) - np.kron(m, m), np.outer(c, c).reshape(-1)).reshape(2, 2)


# ------------------------------------------------------------------------------------------------------ harmonic, exactly


@given(h=st.floats(0.01, 1.9), x=st.floats(-3, 3), z=st.floats(-3, 3))
def test_the_overdamped_step_is_the_formula(h: float, x: float, z: float) -> None:
    """x - h ∇U + sqrt(2 h T) z, whatever the momentum was: down the energy, not up."""
    place = torch.tensor([[x]], dtype=torch.float64)
    gradient = 4 * place * (place.square() - 1)
    state = State(place, 7 + place, gradient, None)
    after, _ = advance(Potential(double_well), state, Overdamped(h), 0.3, Same(z), step=0)
    assert float(after.x) == pytest.approx(x - h * float(gradient) + math.sqrt(0.6 * h) * z, rel=1e-10, abs=1e-10)


@given(stiffness=st.floats(0.1, 10), part=st.floats(0.01, 0.95))
def test_the_overdamped_variance_is_too_large_by_the_known_factor(stiffness: float, part: float) -> None:
    h = 2 * part / stiffness
    assert stationary(Overdamped(h), stiffness)[0, 0] == pytest.approx(1 / stiffness / (1 - h * stiffness / 2), rel=1e-8)


@given(stiffness=st.floats(0.1, 10), part=st.floats(0.01, 0.95), friction=st.sampled_from([0.1, 1.0, 30.0, math.inf]))
def test_baoab_has_the_exact_variance_of_an_oscillator(stiffness: float, part: float, friction: float) -> None:
    """At every stable step: E x² = T/λ and E x p = 0; p pays, E p² = T (1 - h² λ/4)."""
    h = 2 * part / math.sqrt(stiffness)
    found = stationary(Underdamped(h, friction), stiffness)
    assert found[0, 0] == pytest.approx(1 / stiffness, rel=1e-6)
    assert found[0, 1] == pytest.approx(0, abs=1e-6)
    assert found[1, 1] == pytest.approx(1 - h**2 * stiffness / 4, rel=1e-6)


def test_infinite_friction_is_the_overdamped_step_with_averaged_normals() -> None:
    h, potential = 0.4, Potential(double_well)
    x = normals(20, 2)
    state = State(x, torch.zeros_like(x), potential(x)[0], None)
    first, _ = advance(potential, state, Underdamped(h, math.inf), 0.5, Noise(1), step=0)
    second, _ = advance(potential, first, Underdamped(h, math.inf), 0.5, Noise(1), step=1)
    z = [Noise(1).normal((20, 2), stream="langevin", step=k, dtype=torch.float64) for k in (0, 1)]
    d = h**2 / 2
    expected = first.x - d * potential(first.x)[0] + math.sqrt(2 * d * 0.5) * (z[0] + z[1]) / 2
    torch.testing.assert_close(second.x, expected, rtol=1e-10, atol=1e-10)


def test_large_friction_slows_the_overdamped_clock() -> None:
    """The slowest rate per unit of time on U = x²/2 is 1/γ of the over-damped one."""
    h, friction = 0.002, 40.0
    slow = np.abs(np.linalg.eigvals(linear_map(Underdamped(h, friction), 1.0)[0])).max()
    assert -math.log(slow) / h == pytest.approx(1 / friction, rel=0.01)


WAYS: dict[str, tuple[Dynamics, bool]] = {
    "overdamped": (Overdamped(0.01), False),
    "overdamped-metropolis": (Overdamped(0.15), True),
    "underdamped": (Underdamped(0.2, 1.0), False),
    "underdamped-metropolis": (Underdamped(0.4, 1.0), True),
}


@pytest.mark.parametrize("way", WAYS)
def test_mean_and_covariance_of_a_bowl(way: str) -> None:
    """At T = 0.5, within 4.5 standard errors by the effective sample size; over-damped the covariance is T (P (1 - h P/2))⁻¹."""
    dynamics, metropolis = WAYS[way]
    if way == "overdamped":
        dynamics = Overdamped(0.1)
    found = sample_boltzmann(
        bowl, normals(200, 2), 800, dynamics=dynamics, noise=Noise(4), temperature=0.5, warmup=200, keep=4, metropolis=metropolis
    )
    kept = 0.1 / 2 * PRECISION @ PRECISION if way == "overdamped" else 0 * PRECISION
    covariance = 0.5 * torch.linalg.inv(PRECISION - kept)
    assert within(found.states - MEAN, 0.0)
    centred = found.states - MEAN
    for i, j in ((0, 0), (0, 1), (1, 1)):
        assert within(centred[..., i] * centred[..., j], float(covariance[i, j]))
    assert float(found.rhat().max()) < 1.04


@pytest.mark.parametrize(("dynamics", "wrong"), [(Overdamped(0.5), 1 / 0.75), (Underdamped(1.2, 1.0), None)])
def test_metropolis_removes_the_bias(dynamics: Dynamics, wrong: float | None) -> None:
    """In a spring for the over-damped; in the law of p, too, for BAOAB, where without it E p² = T (1 - h²/4)."""
    if wrong is not None:
        for metropolis, truth in ((False, wrong), (True, 1.0)):
            found = sample_boltzmann(
                spring, normals(2000, 1), 200, dynamics=dynamics, noise=Noise(5), warmup=30, metropolis=metropolis
            )
            assert within(found.states.square(), truth)
        return
    potential, n = Potential(spring), 50_000
    for metropolis, truth in ((False, 1 - 0.36), (True, 1.0)):
        x = normals(n, 1)
        state = State(x, Noise(98).normal((n, 1), dtype=torch.float64), *potential(x, with_energy=True))
        for step in range(15):
            before = state
            state, accepted = advance(potential, state, dynamics, 1.0, Noise(6), step=step, metropolis=metropolis)
        assert float(state.momentum.square().mean()) == pytest.approx(truth, abs=4.5 * math.sqrt(2 / n))
        assert float(state.x.square().mean()) == pytest.approx(1, abs=4.5 * math.sqrt(2 / n))
        if metropolis:
            assert accepted is not None
            assert 0.5 < float(accepted.double().mean()) < 0.97
            assert torch.equal(state.momentum[~accepted], -before.momentum[~accepted])


# ----------------------------------------------------------------------------------------------------------- double well


@cache
def well(temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """(x, weights) of the double well's law by quadrature, to rounding."""
    x = np.linspace(-4, 4, 20_001)
    weights = np.exp(-((x**2 - 1) ** 2) / temperature)
    return x, weights / weights.sum()


def within(values: Tensor, truth: float, bias: float = 0.0) -> bool:
    """Whether the mean of values (draws, chains, *) is the truth, within 4.5 standard errors and the relative bias allowed."""
    flat = values.reshape(*values.shape[:2], -1)
    error = flat.std((0, 1)) / effective_sample_size(flat).sqrt()
    return bool(((flat.mean((0, 1)) - truth).abs() < 4.5 * error + bias * abs(truth)).all())


def wells(dynamics: Dynamics, metropolis: bool, temperature: float = 1.0, seed: int = 7, draws: int = 100) -> Chains:
    start = torch.where(torch.arange(600) % 2 == 0, 1.0, -1.0).double()[:, None]
    return sample_boltzmann(
        double_well,
        start,
        5 * draws,
        dynamics=dynamics,
        noise=Noise(seed),
        temperature=temperature,
        warmup=200,
        keep=5,
        metropolis=metropolis,
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("way", WAYS)
def test_mean_variance_and_energies_of_a_double_well(way: str, temperature: float) -> None:
    """Eight bins of energy with one eighth of the law each; an unadjusted step may be off by its own small bias."""
    dynamics, metropolis = WAYS[way]
    if way == "underdamped":
        dynamics = Underdamped(0.1, 1.0)
    found = wells(dynamics, metropolis, temperature)
    x, weights = well(temperature)
    bias = 0.0 if metropolis else 0.03 if way == "overdamped" else 0.006
    assert within(found.states, 0.0)
    assert within(found.states.square(), float(weights @ x**2), bias)
    energy = (x**2 - 1) ** 2
    order = np.argsort(energy)
    edges = np.interp(np.arange(1, 8) / 8, np.cumsum(weights[order]), energy[order])
    assert found.energies is not None
    bins = torch.bucketize(found.energies, torch.from_numpy(edges))
    truth = np.bincount(np.digitize(energy, edges), weights, 8)
    for k in range(8):
        assert within((bins == k).double(), float(truth[k]), bias)


def bias(dynamics: Dynamics, steps: int = 80, points: int = 61, reach: float = 5.0) -> float:
    """Relative bias of E x² on U = x⁴/4 at T = 1, without chance.

    K f (x, p) = E f(x', p') over a step from (x, p) is iterated on a grid of (x, p), by Gauss-Hermite over z and cubic splines
    between: Kⁿ f tends to the stationary mean of f, whatever (x, p).
    """
    line = np.linspace(-reach, reach, points)
    z, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = weights / weights.sum()
    x, p = (torch.from_numpy(a.reshape(-1, 1)) for a in np.meshgrid(line, line, indexing="ij"))
    potential = Potential(lambda y: (y**4 / 4).sum(1))
    state = State(x, p, potential(x)[0], None)
    after = [advance(potential, state, dynamics, 1.0, Same(float(value)), step=0)[0] for value in z]
    places = [(np.stack([s.x[:, 0].numpy(), s.momentum[:, 0].numpy()]) + reach) / (line[1] - line[0]) for s in after]
    f = np.repeat(line[:, None] ** 2, points, 1)
    for _ in range(steps):
        coefficients = spline_filter(f, mode="nearest")
        f = sum(
            w * map_coordinates(coefficients, at, mode="nearest", prefilter=False) for w, at in zip(weights, places, strict=True)
        )
        f = f.reshape(points, points)
    fine = np.linspace(-9, 9, 20_001)
    law = np.exp(-(fine**4) / 4)
    return float(f[points // 2, points // 2] / (law @ fine**2 / law.sum()) - 1)


@pytest.mark.parametrize(("build", "steps", "order"), [(Overdamped, (0.05, 0.1), 1), (Underdamped, (0.2, 0.4), 2)])
def test_the_order_of_the_bias(build: type[Dynamics], steps: tuple[float, float], order: int) -> None:
    small, large = (bias(build(h)) for h in steps)
    assert math.log2(large / small) == pytest.approx(order, abs=0.3)


# ----------------------------------------------------------------------------------------------------------- diagnostics


def test_rhat_tells_mixed_from_stuck() -> None:
    mixed = wells(Underdamped(0.2, 1.0), False, 1.0, draws=150)
    stuck = wells(Underdamped(0.2, 1.0), False, 0.05, draws=150)
    assert float(mixed.rhat()) < 1.04
    assert float(stuck.rhat()) > 1.5
    assert float(stuck.ess()) < float(mixed.ess()) / 5


def test_effective_samples_of_a_known_autocorrelation() -> None:
    """AR(1) with coefficient a is worth n (1 - a)/(1 + a); the over-damped spring has a = 1 - h."""
    start = normals(64, 1)
    found = sample_boltzmann(spring, start, 2000, dynamics=Overdamped(0.25), noise=Noise(2), warmup=50)
    assert float(found.ess()) == pytest.approx(64 * 2000 * 0.25 / 1.75, rel=0.1)


def test_what_never_moved_has_no_diagnosis() -> None:
    values = torch.stack([torch.ones(10, 3), torch.randn(10, 3, generator=torch.Generator().manual_seed(0))], 2)
    for measure in (effective_sample_size, r_hat):
        assert measure(values).isnan().tolist() == [True, False]
    assert effective_sample_size(values[:, :1, 1]).shape == ()
    with pytest.raises(ValueError, match="at least 4 draws"):
        r_hat(values[:3])


def test_the_summary_is_a_table() -> None:
    found = sample_boltzmann(
        spring, normals(4, 30), 50, dynamics=Overdamped(0.1), noise=Noise(1), metropolis=True, gradient=lambda x: x
    )
    lines = found.summary(rows=5).splitlines()
    assert len(lines) == 2 + 1 + 5
    assert lines[0].startswith("4 chains of 50 draws, 51 gradients each, ")
    assert "accepted" in lines[0]
    assert lines[2].startswith("energy")
    assert "R-hat" in lines[1]


# ------------------------------------------------------------------------------------------------- chains, dtypes, errors


@pytest.mark.parametrize("metropolis", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_chain_is_the_same_in_any_company(dtype: torch.dtype, metropolis: bool) -> None:
    start = normals(9, 3, dtype).reshape(9, 1, 3)

    def energy(x: Tensor) -> Tensor:
        return double_well(x.flatten(1))

    def chains(part: Tensor, first: int) -> Chains:
        return sample_boltzmann(
            energy, part, 20, dynamics=Underdamped(0.3), noise=Noise(3), metropolis=metropolis, first=first, keep=3, warmup=2
        )

    together, alone = chains(start, 0), chains(start[4:6], 4)
    assert torch.equal(together.states[:, 4:6], alone.states)
    assert together.states.shape == (6, 9, 1, 3)
    assert together.states.dtype == dtype
    assert together.energies is not None
    assert together.energies.dtype == dtype
    assert together.energies.shape == (6, 9)
    torch.testing.assert_close(together.energies[2], energy(together.states[2]))
    assert together.gradients == 23
    assert together.ess().shape == (1, 3)


@pytest.mark.parametrize("dynamics", [Overdamped(0.1), Underdamped(0.3)])
def test_one_gradient_per_step_and_a_gradient_alone_will_do(dynamics: Dynamics) -> None:
    """A score model has no energy: the same chains come of the gradient alone, and its calls are counted."""
    calls = []

    def gradient(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x

    start = normals(5, 2)
    alone = sample_boltzmann(None, start, 30, dynamics=dynamics, noise=Noise(1), gradient=gradient)
    both = sample_boltzmann(spring, start, 30, dynamics=dynamics, noise=Noise(1))
    torch.testing.assert_close(alone.states, both.states)
    assert alone.energies is None
    assert alone.acceptance is None
    assert "energy" not in alone.summary()
    steps = 30 * dynamics.splitting.count("A")  # OBAB drifts once, BAOAB twice before its kick
    assert len(calls) == alone.gradients == 31, steps


def test_a_wall_is_not_passed_with_metropolis() -> None:
    def half(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0, 0.5 * x.square().sum(1), math.inf)

    start = normals(500, 1).abs()
    found = sample_boltzmann(half, start, 300, dynamics=Overdamped(0.3), noise=Noise(1), metropolis=True, warmup=50)
    assert float(found.states.min()) > 0
    assert within(found.states, math.sqrt(2 / math.pi))


def test_explosions_say_what_to_do() -> None:
    with pytest.raises(FloatingPointError, match=r"at step \d+; lower the step size, 0\.9"):
        sample_boltzmann(double_well, normals(8, 1), 500, dynamics=Overdamped(0.9), noise=Noise(0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": 0.0}, r"temperature=0.0 must be above 0"),
        ({"keep": 11}, r"keep=11"),
        ({"warmup": -1}, r"warmup=-1"),
        ({"steps": 0}, r"steps=0"),
        ({"start": torch.zeros(3)}, r"start has shape \(3,\)"),
        ({"start": torch.zeros(3, 1, dtype=torch.int64)}, r"dtype torch.int64"),
        ({"start": torch.full((3, 1), math.nan)}, r"start has places"),
        ({"energy": None}, r"energy=None and gradient=None"),
        ({"energy": None, "gradient": lambda x: x, "metropolis": True}, r"metropolis=True needs an energy"),
        ({"energy": lambda x: x.square()}, r"energy\(x\) has shape \(3, 1\).*one number per row"),
        ({"energy": lambda x: torch.zeros(len(x))}, r"no derivative"),
        ({"gradient": lambda x: x.sum(1)}, r"gradient\(x\) has shape \(3,\)"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], words: str) -> None:
    arguments: dict[str, object] = {"energy": spring, "start": torch.zeros(3, 1), "steps": 10}
    with pytest.raises(ValueError, match=words):
        sample_boltzmann(**(arguments | {"dynamics": Overdamped(0.1), "noise": Noise(0)} | change))  # type: ignore[arg-type]


def test_steps_and_friction_are_positive() -> None:
    for build in (lambda: Overdamped(0.0), lambda: Underdamped(-1.0), lambda: Overdamped(math.nan)):
        with pytest.raises(ValueError, match=r"step="):
            build()
    with pytest.raises(ValueError, match=r"friction=0.0"):
        Underdamped(0.1, 0.0)
