"""Simulated annealing: schedules, what slow and fast cooling find, restarts, the energy whose wells are known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ornstein.noise import Noise
from ornstein.samplers.annealing import CENTRE, COOLING, Annealed, anneal, geometric, tilted_wells, tilted_wells_minima
from ornstein.samplers.boltzmann import Dynamics, Overdamped, Underdamped

BEST = torch.tensor(CENTRE, dtype=torch.float64)


def starts(n: int) -> Tensor:
    return 7 * Noise(3).uniform((n, 2)) - 3.5 + BEST


def found(run: Annealed) -> int:
    """Runs whose best state lies in the well of the global minimum."""
    return int(((run.best - BEST).abs().amax(1) < 0.4).sum())


@given(name=st.sampled_from(sorted(COOLING)), steps=st.integers(1, 300), hot=st.floats(0.1, 10), part=st.floats(1e-4, 1))
def test_schedules_fall_from_hot_and_stay_above_cold(name: str, steps: int, hot: float, part: float) -> None:
    ladder = COOLING[name](steps, hot, hot * part)
    assert ladder.shape == (steps,)
    assert ladder.dtype == torch.float64
    assert float(ladder[0]) == pytest.approx(hot)
    assert bool((ladder.diff() <= 1e-12).all())
    assert float(ladder[-1]) >= hot * part * (1 - 1e-9)
    if name in ("geometric", "linear") and steps > 1:
        assert float(ladder[-1]) == pytest.approx(hot * part)


def test_the_schedules_are_their_formulas() -> None:
    assert COOLING["geometric"](3, 4.0, 0.25).tolist() == pytest.approx([4, 1, 0.25])
    assert COOLING["linear"](3, 4.0, 1.0).tolist() == pytest.approx([4, 2.5, 1])
    assert COOLING["constant"](3, 4.0, 1.0).tolist() == [4, 4, 4]
    assert COOLING["logarithmic"](7, 1.0, 0.4).tolist() == pytest.approx(
        [max(0.4, math.log(2) / math.log(2 + k)) for k in range(7)]
    )


def test_the_wells_are_minima_and_one_is_lowest() -> None:
    """Gradient zero, curvature positive, energies in order; descent from a fine grid finds no other."""
    minima = tilted_wells_minima()
    assert minima.shape == (25, 2)
    torch.testing.assert_close(minima[0], BEST)
    energies = tilted_wells(minima)
    assert float(energies[0]) == pytest.approx(0, abs=1e-12)
    assert bool((energies.diff() >= 0).all())
    assert float(energies[1]) > 0.4
    gradient = torch.func.grad(lambda x: tilted_wells(x[None])[0])
    curvature = torch.stack([torch.func.jacrev(gradient)(x) for x in minima])
    assert max(float(gradient(x).abs().max()) for x in minima) < 1e-10
    assert float(torch.linalg.eigvalsh(curvature).min()) > 1
    line = torch.linspace(-5, 5, 41, dtype=torch.float64)
    x = torch.cartesian_prod(line, line) + BEST
    for _ in range(500):
        x = x - 0.03 * torch.func.grad(lambda y: tilted_wells(y).sum())(x)
    away = torch.cdist(x, minima).amin(1)
    # a grid line through a maximum or saddle stays on it
    settled = torch.func.vmap(lambda y: torch.linalg.eigvalsh(torch.func.jacrev(gradient)(y)).min())(x) > 0
    assert bool((away[settled] < 1e-6).all())
    assert len(torch.cdist(x[settled], minima).argmin(1).unique()) == 25


@pytest.mark.parametrize(("dynamics", "metropolis"), [(Overdamped(0.02), False), (Underdamped(0.15, 1.0), True)])
def test_slow_cooling_finds_the_global_minimum_and_a_quench_does_not(dynamics: Dynamics, metropolis: bool) -> None:
    start = starts(60)

    def runs(steps: int) -> Annealed:
        ladder = geometric(steps, 2.0, 0.02)
        return anneal(tilted_wells, start, ladder, dynamics=dynamics, noise=Noise(1), metropolis=metropolis, keep=steps)

    assert found(runs(1500)) >= 57
    assert found(runs(40)) <= 30


def test_the_best_of_a_run_is_the_best_it_met() -> None:
    ladder = geometric(120, 2.0, 0.02)
    start = starts(8)
    run = anneal(tilted_wells, start, ladder, dynamics=Overdamped(0.02), noise=Noise(1))
    assert torch.equal(run.temperatures, ladder)
    assert run.states.shape == (120, 8, 2)
    assert run.gradients == 121
    torch.testing.assert_close(run.energies, tilted_wells(run.states.reshape(-1, 2)).reshape(120, 8))
    torch.testing.assert_close(run.energy, torch.minimum(run.energies.amin(0), tilted_wells(start)))
    torch.testing.assert_close(tilted_wells(run.best), run.energy)


def test_restarts_go_on_from_the_best_and_help() -> None:
    start, ladder = starts(40), geometric(150, 2.0, 0.02)
    runs = [
        anneal(tilted_wells, start, ladder, dynamics=Overdamped(0.02), noise=Noise(2), restarts=r, metropolis=True)
        for r in (0, 1, 4)
    ]
    assert found(runs[2]) > found(runs[0]) + 5
    assert torch.equal(runs[0].states, runs[1].states[:150])
    assert bool((runs[1].energy <= runs[0].energy).all())
    assert torch.equal(runs[1].temperatures, ladder.repeat(2))
    assert runs[1].gradients == 302
    assert float((runs[1].states[150] - runs[0].best).norm(dim=1).max()) < 2


def test_a_run_is_the_same_in_any_company_and_keeps_its_dtype() -> None:
    start, ladder = starts(6).float().requires_grad_(), geometric(30, 2.0, 0.02)

    def runs(part: Tensor, first: int) -> Annealed:
        options = {"restarts": 1, "first": first, "keep": 7, "metropolis": True}
        return anneal(tilted_wells, part, ladder, dynamics=Underdamped(0.1), noise=Noise(1), **options)  # type: ignore[arg-type]

    together, alone = runs(start, 0), runs(start[2:4], 2)
    assert torch.equal(together.best[2:4], alone.best)
    assert torch.equal(together.states[:, 2:4], alone.states)
    assert together.states.shape == (8, 6, 2)
    assert together.best.dtype == together.energy.dtype == torch.float32
    assert not together.best.requires_grad


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperatures": torch.tensor([1.0, 0.0])}, r"temperatures of shape \(2,\)"),
        ({"temperatures": torch.tensor(1.0)}, r"temperatures of shape \(\)"),
        ({"restarts": -1}, r"restarts=-1"),
        ({"keep": 11}, r"keep=11"),
        ({"start": torch.zeros(3)}, r"start has shape \(3,\)"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], words: str) -> None:
    arguments = {"energy": tilted_wells, "start": torch.zeros(3, 2), "temperatures": torch.ones(10)}
    with pytest.raises(ValueError, match=words):
        anneal(**(arguments | {"dynamics": Overdamped(0.01), "noise": Noise(0)} | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", COOLING)
def test_schedules_refuse_what_does_not_cool(name: str) -> None:
    for steps, hot, cold in ((0, 1.0, 0.1), (10, 0.1, 1.0), (10, 1.0, 0.0), (10, math.inf, 1.0)):
        with pytest.raises(ValueError, match=r"0 < cold ≤ hot"):
            COOLING[name](steps, hot, cold)
