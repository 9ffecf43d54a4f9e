"""Boltzmann sampling: Langevin dynamics that draw from p ∝ exp(-U/T) for any energy U with a gradient.

Both dynamics are a word of three moves, read by one loop:

    A  drift    x ← x + a p
    B  kick     p ← p - b ∇U(x)
    O  friction p ← c p + sqrt((1 - c²) T) z        z standard normal

where a and b share the duration of a step between the letters of their kind. The gradient is that of the last x, kept from step
to step, so that either word costs one gradient per step. A and B keep volume, are undone by turning p around, and do not touch
the law of noise; O keeps the law of p. What a step gains in U(x) + |p|²/2 over its A and B alone is therefore its work W, and the
ratio of the probabilities of a step and of its reverse is exp(-W/T): accepting it with probability min(1, exp(-W/T)), and
otherwise staying at x with p turned around, makes p ∝ exp(-U/T) exactly stationary at any step size.
Source: Leimkuhler and Matthews 2013 (arXiv 1203.5428); Sivak, Chodera and Crooks 2013 (arXiv 1301.3800) for W.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ornstein.noise import Noise
from ornstein.progress import track

Energy = Callable[[Tensor], Tensor]
"""U: x (B, *) -> (B,), in torch operations; row i of the answer depends on row i of x alone."""
Gradient = Callable[[Tensor], Tensor]
"""∇U: x (B, *) -> (B, *); -T·score of a score model."""

_FEWEST = 4  # draws: the diagnostics split every chain in two and compare variances


@dataclass(frozen=True)
class Overdamped:
    """x ← x - h ∇U(x) + sqrt(2 h T) z, with h = `step`: the Euler-Maruyama step of dx = -∇U dt + sqrt(2 T) dw.

    As a word it is O B A B with p forgotten at once (c = 0) and duration sqrt(2 h), so that the Metropolis correction is MALA.
    Stable for h below 2/(largest curvature of U). Its law is wrong by O(h): on U = λ x²/2 the variance is (T/λ)/(1 - h λ/2).
    Source: Roberts and Tweedie 1996, for MALA and for what is lost without it.
    """

    step: float
    splitting: ClassVar[str] = "OBAB"

    def __post_init__(self) -> None:
        _positive("step", self.step)

    @property
    def duration(self) -> float:
        """The time that A and B share: sqrt(2 h)."""
        return math.sqrt(2 * self.step)

    @property
    def friction(self) -> float:
        """Infinite: momenta are forgotten within a step."""
        return math.inf


@dataclass(frozen=True)
class Underdamped:
    """B A O A B: dx = p dt, dp = -∇U dt - γ p dt + sqrt(2 γ T) dw with unit mass, `step` h and `friction` γ; c = exp(-γ h).

    Stable for h below 2/sqrt(largest curvature of U). Its law of x is wrong by O(h²), and exact on U = λ x²/2. For large γ and
    h γ small, x follows the over-damped equation with its clock slowed by γ: time t here is time t/γ there. With h fixed and
    γ → ∞ instead (math.inf is allowed) c = 0 and

        x ← x - d ∇U(x) + sqrt(2 d T) (z + z_before)/2        d = h²/2

    the over-damped step of size d with the normals of two steps averaged, whose law is wrong by O(d²) instead of O(d). In a
    single well friction near 2 sqrt(smallest curvature of U) forgets fastest.
    Source: Leimkuhler and Matthews 2013, arXiv 1203.5428.
    """

    step: float
    friction: float = 1.0
    splitting: ClassVar[str] = "BAOAB"

    def __post_init__(self) -> None:
        _positive("step", self.step)
        if not self.friction > 0:
            raise ValueError(f"friction={self.friction} must be above 0: without it the energy never changes; 1 is usual")

    @property
    def duration(self) -> float:
        """The time that A and B share: h."""
        return self.step


Dynamics = Overdamped | Underdamped


@dataclass(frozen=True)
class Potential:
    """U and ∇U as one: by autograd of `energy`, or by the caller's own `gradient`, with or without an energy."""

    energy: Energy | None
    gradient: Gradient | None = None

    def __post_init__(self) -> None:
        if self.energy is None and self.gradient is None:
            raise ValueError("energy=None and gradient=None: give an energy, its gradient, or both")

    def __call__(self, x: Tensor, *, with_energy: bool = False) -> tuple[Tensor, Tensor | None]:
        """(∇U, U) at x (B, *); U is None where a gradient is given and the energy is not asked for."""
        if self.gradient is not None:
            gradient = self.gradient(x)
            if gradient.shape != x.shape:
                raise ValueError(f"gradient(x) has shape {tuple(gradient.shape)} for x {tuple(x.shape)}; give the shape of x")
            return gradient.detach(), self.value(x) if with_energy else None
        with torch.enable_grad():
            place = x.detach().requires_grad_()
            value = self.value(place)
            if not value.requires_grad:
                raise ValueError("energy(x) has no derivative: write it in torch operations on x, or give gradient=")
            (gradient,) = torch.autograd.grad(value.sum(), place)
        return gradient, value.detach()

    def value(self, x: Tensor) -> Tensor:
        """U (B,) at x (B, *)."""
        value = self.energy(x)  # type: ignore[misc]
        if value.shape != x.shape[:1]:
            raise ValueError(f"energy(x) has shape {tuple(value.shape)} for x {tuple(x.shape)}; one number per row is needed")
        return value


class State(NamedTuple):
    """Chains at one moment: x and momentum (B, *), the gradient at x, and the energy (B,) where it is known."""

    x: Tensor
    momentum: Tensor
    gradient: Tensor
    energy: Tensor | None


def begin(potential: Potential, x: Tensor, temperature: float, noise: Noise, first: int, step: int, with_energy: bool) -> State:
    """Chains at x (B, *) with fresh momenta; ValueError where U or its gradient is not finite."""
    z = noise.normal(x.shape, stream="langevin/momentum", step=step, first=first, dtype=x.dtype, device=x.device)
    gradient, energy = potential(x, with_energy=with_energy)
    if not (gradient.isfinite().all() and (energy is None or energy.isfinite().all())):
        raise ValueError("start has places where the energy or its gradient is not finite; begin the chains elsewhere")
    return State(x, math.sqrt(temperature) * z, gradient, energy)


def advance(
    potential: Potential,
    state: State,
    dynamics: Dynamics,
    temperature: float,
    noise: Noise,
    *,
    step: int,
    first: int = 0,
    metropolis: bool = False,
    with_energy: bool = False,
) -> tuple[State, Tensor | None]:
    """One step number `step` of all chains, and which of them (B,) accepted it (None without Metropolis).

    The word of `dynamics` from `state`; see the module. Raises FloatingPointError where x is no longer finite; with Metropolis
    such a proposal is refused like any other.
    """
    x, momentum, gradient, energy = state
    like = {"first": first, "dtype": x.dtype, "device": x.device}
    share = {letter: dynamics.duration / dynamics.splitting.count(letter) for letter in "AB"}
    work, stale = torch.zeros((), dtype=x.dtype, device=x.device), False
    for letter in dynamics.splitting:
        if letter == "A":
            x, stale = x + share["A"] * momentum, True
        elif letter == "B":
            if stale:
                (gradient, energy), stale = potential(x, with_energy=metropolis or with_energy), False
            kicked = momentum - share["B"] * gradient
            if metropolis:  # the gain of |p|²/2, without the difference of two large numbers
                work = work - share["B"] * ((kicked + momentum) * gradient).flatten(1).sum(1) / 2
            momentum = kicked
        else:
            z = noise.normal(x.shape, stream="langevin", step=step, **like)  # type: ignore[arg-type]
            decay = dynamics.friction * dynamics.duration
            momentum = math.exp(-decay) * momentum + math.sqrt(-math.expm1(-2 * decay) * temperature) * z
    proposed = State(x, momentum, gradient, energy)
    if not metropolis:
        if not x.isfinite().all():
            raise FloatingPointError(f"a chain left the finite numbers at step {step}; lower the step size, {dynamics.step}")
        return proposed, None
    work = work + energy - state.energy  # type: ignore[operator]
    u = noise.uniform((len(x),), stream="langevin/accept", step=step, first=first, dtype=x.dtype).to(x.device)
    accepted = work <= -temperature * u.log()  # NaN is refused
    column = accepted.reshape(-1, *[1] * (x.ndim - 1))
    back = State(state.x, -state.momentum, state.gradient, state.energy)
    x, momentum, gradient = (torch.where(column, new, old) for new, old in zip(proposed[:3], back[:3], strict=True))
    energy = torch.where(accepted, energy, state.energy)  # type: ignore[arg-type]
    return State(x, momentum, gradient, energy), accepted


@dataclass(frozen=True, eq=False)
class Chains:
    """Draws of many chains, as `sample_boltzmann` returns them.

    states      (draws, chains, *)
    energies    U of them (draws, chains); None without an energy
    acceptance  share of accepted steps per chain (chains,); None without Metropolis
    gradients   gradient evaluations per chain, warm-up included
    """

    states: Tensor
    energies: Tensor | None
    acceptance: Tensor | None
    gradients: int

    def rhat(self) -> Tensor:
        """`r_hat` of every coordinate, of the shape of a state."""
        return r_hat(self.states)

    def ess(self) -> Tensor:
        """`effective_sample_size` of every coordinate, of the shape of a state."""
        return effective_sample_size(self.states)

    def summary(self, rows: int = 12) -> str:
        """A table for people: mean, its standard error, standard deviation, effective samples and R-hat of the energy and of
        coordinates; of more than `rows` coordinates those with the fewest effective samples."""
        draws, chains = self.states.shape[:2]
        flat = self.states.reshape(draws, chains, -1)
        values = {f"x[{','.join(map(str, place))}]": flat[..., k] for k, place in enumerate(_places(self.states.shape[2:]))}
        ess = dict(zip(values, effective_sample_size(flat).tolist(), strict=True))
        shown = sorted(values, key=ess.__getitem__)[:rows] if len(values) > rows else list(values)
        if self.energies is not None:
            values["energy"] = self.energies
            shown.insert(0, "energy")
        head = f"{chains} chains of {draws} draws, {self.gradients} gradients each"
        if self.acceptance is not None:
            head += f", {float(self.acceptance.double().mean()):.0%} of steps accepted"
        lines = [head, f"{'':<10}{'mean':>12}{'± s.e.':>12}{'std':>12}{'effective':>12}{'R-hat':>9}"]
        for name in shown:
            value = values[name].double()
            effective, spread = float(effective_sample_size(value)), float(value.std())
            lines.append(
                f"{name:<10}{float(value.mean()):>12.5g}{spread / math.sqrt(effective):>12.2g}{spread:>12.5g}"
                f"{effective:>12.0f}{float(r_hat(value)):>9.3f}"
            )
        return "\n".join(lines)


def sample_boltzmann(
    energy: Energy | None,
    start: Tensor,
    steps: int,
    *,
    dynamics: Dynamics,
    noise: Noise,
    temperature: float = 1.0,
    warmup: int = 0,
    keep: int = 1,
    metropolis: bool = False,
    gradient: Gradient | None = None,
    first: int = 0,
    progress: bool = False,
) -> Chains:
    """Draw from p ∝ exp(-U/T), U = `energy` and T = `temperature`, by one chain per row of `start` (chains, *).

    After `warmup` steps, which are dropped, `steps` more of which every `keep`-th state is kept. `metropolis` makes the law exact
    at any step size, at the price of refused steps. `gradient` replaces autograd; alone (energy=None) it lets a score model be
    sampled, -score for T = 1, but without energies and Metropolis; it is called under torch.no_grad. Chains keep the dtype
    and the device of `start`. Chain i (number `first` + i) is the same in any company. Noise streams: langevin,
    langevin/momentum and langevin/accept. Raises ValueError for wrong arguments and FloatingPointError for chains that explode;
    with Metropolis a chain begun where U is too curved for the step stands still instead, which its acceptance tells.
    """
    _positive("temperature", temperature)
    if not 1 <= keep <= steps or warmup < 0:
        raise ValueError(f"steps={steps}, keep={keep}, warmup={warmup}: keep lies between 1 and steps, and warmup is at least 0")
    if metropolis and energy is None:
        raise ValueError("metropolis=True needs an energy: the gradient alone cannot tell whether to accept; leave it out")
    check_start(start)
    potential, states, energies, accepts = Potential(energy, gradient), [], [], torch.zeros(len(start), device=start.device)
    with torch.no_grad():
        state = begin(potential, start.detach(), temperature, noise, first, 0, metropolis)
        for step in track(range(warmup + steps), warmup + steps, "langevin", enabled=progress):
            state, accepted = advance(
                potential, state, dynamics, temperature, noise, step=step, first=first, metropolis=metropolis
            )
            done = step + 1 - warmup
            if accepted is not None and done > 0:
                accepts += accepted
            if done > 0 and done % keep == 0:
                states.append(state.x)
                if energy is not None:
                    energies.append(potential.value(state.x) if state.energy is None else state.energy)
    return Chains(
        torch.stack(states),
        torch.stack(energies) if energies else None,
        accepts / steps if metropolis else None,
        warmup + steps + 1,
    )


def effective_sample_size(values: Tensor) -> Tensor:
    """Independent draws that values (draws, chains, *) are worth, (*) in float64: bulk effective sample size, rank-normalised.

    NaN where nothing ever moved. Source: Vehtari et al. 2021, arXiv 1903.08008, as arviz-stats computes it.
    """
    return _diagnose("ess", values)


def r_hat(values: Tensor) -> Tensor:
    """R-hat of values (draws, chains, *), (*) in float64: 1 where chains agree with each other, above 1.01 where they do not yet.

    Rank-normalised, of split chains; NaN where nothing ever moved. Source: Vehtari et al. 2021, arXiv 1903.08008.
    """
    return _diagnose("rhat", values)


def _diagnose(name: str, values: Tensor) -> Tensor:
    from arviz_stats.base import array_stats  # takes most of a second

    if values.ndim < 2 or values.shape[0] < _FEWEST:
        raise ValueError(f"values have shape {tuple(values.shape)}; (draws, chains, *) with at least {_FEWEST} draws are needed")
    flat = values.detach().to("cpu", torch.float64).reshape(*values.shape[:2], -1)
    moved = (flat != flat[:1]).any(0).any(0)
    out = torch.full(moved.shape, math.nan, dtype=torch.float64)
    if moved.any():
        found = getattr(array_stats, name)(flat[..., moved].numpy(), chain_axis=1, draw_axis=0)
        out[moved] = torch.as_tensor(found, dtype=torch.float64)
    return out.reshape(values.shape[2:])


def check_start(start: Tensor) -> None:
    """ValueError unless `start` is (chains, *) of a floating dtype."""
    if start.ndim < 2 or len(start) == 0 or not start.dtype.is_floating_point:
        raise ValueError(f"start has shape {tuple(start.shape)} and dtype {start.dtype}; give floats of shape (chains, *)")


def _places(shape: torch.Size) -> list[tuple[int, ...]]:
    return [tuple(place) for place in torch.cartesian_prod(*[torch.arange(n) for n in shape]).reshape(-1, len(shape)).tolist()]


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value} must be above 0 and finite")
