"""Simulated annealing: Langevin dynamics whose temperature falls, the limit T → 0 of Boltzmann sampling.

As T falls, p ∝ exp(-U/T) gathers at the global minimum of U; a chain that is cooled slowly enough follows it there.
Source: Kirkpatrick, Gelatt and Vecchi 1983; Geman and Hwang 1986 for diffusions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.noise import Noise
from ornstein.progress import track
from ornstein.samplers.boltzmann import Dynamics, Energy, Gradient, Potential, advance, begin, check_start

Cooling = Callable[[int, float, float], Tensor]
"""(steps, hot, cold) -> temperatures (steps,), float64."""


def geometric(steps: int, hot: float, cold: float) -> Tensor:
    """T_k = hot (cold/hot)^(k/(steps - 1)): equal time for every factor of temperature."""
    _check(steps, hot, cold)
    return torch.logspace(math.log10(hot), math.log10(cold), steps, dtype=torch.float64)


def linear(steps: int, hot: float, cold: float) -> Tensor:
    """T_k = hot + (cold - hot) k/(steps - 1)."""
    _check(steps, hot, cold)
    return torch.linspace(hot, cold, steps, dtype=torch.float64)


def logarithmic(steps: int, hot: float, cold: float) -> Tensor:
    """T_k = c/log(2 + k) with c = hot·log 2, but not below `cold`: a fast fall, then a tail that hardly falls any more.

    Slow enough to reach the global minimum for certain as steps → ∞ if c is at least the depth of the deepest well that is not
    the global one; no schedule that falls faster is. So choose hot = depth/log 2 or more. 10⁴ steps end at 0.075 hot: `cold` is
    rarely met.
    Source: Hajek 1988, for jumps between states; Chiang, Hwang and Sheu 1987 for diffusions.
    """
    _check(steps, hot, cold)
    return (hot * math.log(2) / torch.arange(2, steps + 2, dtype=torch.float64).log()).clamp(min=cold)


def constant(steps: int, hot: float, cold: float) -> Tensor:
    """T_k = hot: Boltzmann sampling, to hold cooling against; `cold` is not used."""
    _check(steps, hot, cold)
    return torch.full((steps,), hot, dtype=torch.float64)


COOLING: dict[str, Cooling] = {"geometric": geometric, "linear": linear, "logarithmic": logarithmic, "constant": constant}
"""Cooling schedules by name: a schedule is its temperatures, one per step."""


@dataclass(frozen=True, eq=False)
class Annealed:
    """What `anneal` found, and the way there.

    best          (runs, *) the state of lowest energy that each run met
    energy        (runs,) its energy
    temperatures  (draws,) float64, of the kept states
    energies      (draws, runs) of the kept states
    states        (draws, runs, *)
    gradients     gradient evaluations per run
    """

    best: Tensor
    energy: Tensor
    temperatures: Tensor
    energies: Tensor
    states: Tensor
    gradients: int


def anneal(
    energy: Energy,
    start: Tensor,
    temperatures: Tensor,
    *,
    dynamics: Dynamics,
    noise: Noise,
    restarts: int = 0,
    keep: int = 1,
    metropolis: bool = False,
    gradient: Gradient | None = None,
    first: int = 0,
    progress: bool = False,
) -> Annealed:
    """Look for the global minimum of `energy`, one run per row of `start` (runs, *), at `temperatures` (steps,), one per step.

    `temperatures` come from `COOLING` or are the caller's own. After them each run is heated up and cooled again `restarts`
    times, each time from the best state it has met; every `keep`-th state is kept for plots.

    The step size of `dynamics` need not follow the temperature. What limits it is the curvature of U; the noise, sqrt(2 h T) or
    momenta of size sqrt(T), shrinks by itself, so that for T → 0 the over-damped step becomes gradient descent of size h, and in
    a harmonic well the rate of acceptance does not depend on T at all. Only where U grows faster than a square are hot places
    more curved: choose the step for them. Other arguments, noise streams and errors are those of `sample_boltzmann`.
    Source: Kirkpatrick, Gelatt and Vecchi 1983.
    """
    ladder = temperatures.to("cpu", torch.float64)
    if ladder.ndim != 1 or len(ladder) == 0 or not bool(((ladder > 0) & (ladder < math.inf)).all()):
        raise ValueError(f"temperatures of shape {tuple(ladder.shape)} must be (steps,), above 0 and finite; see COOLING")
    total = len(ladder) * (restarts + 1)
    if restarts < 0 or not 1 <= keep <= total:
        raise ValueError(f"restarts={restarts}, keep={keep}: restarts is at least 0, keep between 1 and all {total} steps")
    check_start(start)
    potential, runs = Potential(energy, gradient), (start.ndim - 1) * (1,)
    kept_at, states, energies, values = [], [], [], ladder.tolist()
    with torch.no_grad():
        state = begin(potential, start.detach(), values[0], noise, first, 0, True)
        best, lowest = state.x, _known(state.energy)
        for step in track(range(total), total, "annealing", enabled=progress):
            cycle, k = divmod(step, len(values))
            if cycle and k == 0:
                state = begin(potential, best, values[0], noise, first, cycle, True)
            state, _ = advance(
                potential, state, dynamics, values[k], noise, step=step, first=first, metropolis=metropolis, with_energy=True
            )
            now = _known(state.energy)
            lower = now < lowest
            best, lowest = torch.where(lower.reshape(-1, *runs), state.x, best), torch.where(lower, now, lowest)
            if (step + 1) % keep == 0:
                kept_at.append(values[k])
                states.append(state.x)
                energies.append(now)
    kept = torch.tensor(kept_at, dtype=torch.float64)
    return Annealed(best, lowest, kept, torch.stack(energies), torch.stack(states), total + restarts + 1)


def _known(energy: Tensor | None) -> Tensor:
    """The energy of a state that was asked to carry it."""
    assert energy is not None
    return energy


GRID = 0.4
"""Half the height of the cosine grid of `tilted_wells`, in units of the bowl's curvature."""
CENTRE = (1.0, -1.0)
"""Where `tilted_wells` has its global minimum."""
_REACH = 2  # wells on each side of the centre; further out the bowl is steeper than the grid


def tilted_wells(x: Tensor) -> Tensor:
    """A bowl with a cosine grid, U (B,) of x (B, 2): ½|y|² + 0.4 Σ_i (1 - cos 2π y_i) with y = x - (1, -1).

    25 wells near the integer places within 2 of (1, -1), which is the only global minimum, U = 0. Neighbouring wells differ in
    depth by 0.47 to 1.40, and the barrier between them is at most 1.0 times the difference seen from the higher well, 2.0 times
    from the lower (measured by benchmarks/langevin.py). Largest curvature 16.8.
    """
    y = x - x.new_tensor(CENTRE)
    return (0.5 * y.square() + GRID * (1 - (2 * math.pi * y).cos())).sum(1)


def tilted_wells_minima() -> Tensor:
    """All 25 minima of `tilted_wells`, (25, 2) float64, lowest first."""
    y = torch.arange(-_REACH, _REACH + 1, dtype=torch.float64) * 0.95
    for _ in range(50):  # Newton on y + 2π·0.4 sin 2π y = 0
        y = y - (y + 2 * math.pi * GRID * (2 * math.pi * y).sin()) / (1 + 4 * math.pi**2 * GRID * (2 * math.pi * y).cos())
    places = torch.cartesian_prod(y, y) + torch.tensor(CENTRE, dtype=torch.float64)
    return places[tilted_wells(places).argsort(stable=True)]


def _check(steps: int, hot: float, cold: float) -> None:
    if steps < 1 or not 0 < cold <= hot < math.inf:
        raise ValueError(f"steps={steps}, hot={hot}, cold={cold}: at least one step is needed, and 0 < cold ≤ hot")
