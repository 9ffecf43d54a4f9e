"""Deep unsupervised learning using non-equilibrium thermodynamics: learned mean and covariance, and a binary chain.

Sohl-Dickstein et al. 2015, arXiv 1503.03585. Where the paper's parts are:

    2.1  forward trajectory, table App.1    `Kernel.forward`, `Kernel.posterior`, rows `Gaussian` and `Bernoulli`
    2.2  reverse trajectory                 `Kernel.reverse`, `DPM.reverse`, `DPM.sample`
    2.3, 2.4, appendix B  the bound K       `DPM.bound` (all steps), `DPM.loss` (one step per datum)
    2.4.1  diffusion rates                  `SCHEDULES`, `learned_betas`
    3.1  swiss roll, binary heartbeat       `vector.data.swiss_roll`, `vector.data.heartbeat`

Both forward kernels forget x towards an equilibrium π, N(0, I) or fair coins, and are reversible: q(y|x) π(x) = q(x|y) π(y).
The first step is not learned but reversed in equilibrium (appendix B.2), p(x_0|x_1) = q(x_1|x_0) π(x_0)/π(x_1), a density since
π is left alone by q. Put that and q(x_t|x_{t-1}) = q(x_{t-1}|x_t, x_0) q(x_t|x_0)/q(x_{t-1}|x_0) for t ≥ 2 into
log p(x_0) ≥ E_q[log π(x_T) + Σ_t log p(x_{t-1}|x_t) - log q(x_t|x_{t-1})]: the quotients telescope and leave

    K(x_0) = log π(x_0) + KL(q(x_1|x_0) ‖ π) - KL(q(x_T|x_0) ‖ π) - Σ_{t=2..T} E KL(q(x_{t-1}|x_t, x_0) ‖ p(x_{t-1}|x_t))

for any x_0 and either kernel. The paper's form is this: a KL to π is an entropy and a cross-entropy, so that
K = -Σ KL + H_q(X_T|X_0) - H_q(X_1|X_0) + E log π(x_T) + E[log π(x_0) - log π(x_1)]. Fair coins have log π = -D log 2 everywhere,
and for a Gaussian chain on data of unit second moment E log π(x_T) = -H_p(X_T) and the last bracket is 0, which is the paper's
equation; on other data that would be no bound. Whatever is learned, E log2 p(x_0) - K holds the untouched first step's
E KL(q(x_0|x_1) ‖ p(x_0|x_1)): about ½ log2(1 + beta_1/s²) bits for each direction in which the data are only s wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.losses import Times
from ornstein.nets import MLP
from ornstein.noise import Noise
from ornstein.process import Chain, align, gaussian_kl, gaussian_log_density, reparameterise
from ornstein.progress import track

Law = tuple[Tensor, ...]
"""A law with independent elements, by its parameters: (mean, variance), or (log-odds of a one,)."""
_ALL = torch.ones((), dtype=torch.float64)


class Kernel(Protocol):
    """What a chain is made of. `lost` is the share of the signal that is gone, in one step beta or since the data.

    `outputs` numbers per element are asked of the network; zeros mean that the reverse step equals the forward one. `schedule`
    names the default rates; `differentiable` draws have a gradient in the parameters of their law. `lost` and `beta` are float64
    numbers or (B, 1) like x; logarithms and divergences are in nats, elementwise.
    """

    @property
    def outputs(self) -> int:
        """Numbers per element that the network gives."""

    @property
    def schedule(self) -> str:
        """The name in `SCHEDULES` of the default betas."""

    @property
    def differentiable(self) -> bool:
        """Whether draws have a gradient in the parameters of their law."""

    def check(self, x0: Tensor) -> None:
        """ValueError for data that the chain is not for."""

    def forward(self, x: Tensor, lost: Tensor) -> Law:
        """q(x_t | x): one step if lost = beta, the marginal given x_0 if lost = 1 - Π(1 - beta), and π if lost = 1."""

    def posterior(self, x0: Tensor, x_t: Tensor, lost: Tensor, beta: Tensor) -> Law:
        """q(x_{t-1} | x_t, x_0) by Bayes' rule; `lost` is that of x_{t-1}, `beta` that of the step to x_t."""

    def reverse(self, x_t: Tensor, beta: Tensor, raw: Tensor, steps: int) -> Law:
        """p(x_{t-1} | x_t) from the network's `raw`, (B, outputs·D)."""

    def draw(self, law: Law, noise: Noise, *, stream: str, step: int, first: int) -> Tensor:
        """A draw of the law."""

    def log_prob(self, law: Law, x: Tensor) -> Tensor:
        """log of the density or probability of x."""

    def kl(self, law: Law, other: Law) -> Tensor:
        """KL(law ‖ other)."""


@dataclass(frozen=True)
class Gaussian:
    """x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) z; towards N(0, I).

    The reverse mean is sqrt(1 - beta) x_t + sqrt(beta) m, its variance sigmoid(logit beta + b/sqrt(T)) element by element, with m
    and b from the network; without `learned_covariance` it is beta. It stays below 1: standardise the data.
    """

    learned_covariance: bool = True
    schedule = "log_snr"
    differentiable = True

    @property
    def outputs(self) -> int:
        """m, and b where the covariance is learned."""
        return 2 if self.learned_covariance else 1

    def check(self, x0: Tensor) -> None:
        """ValueError for NaN and infinite data."""
        if not bool(x0.isfinite().all()):
            raise ValueError("x0 holds NaN or infinite values; remove these data")

    def forward(self, x: Tensor, lost: Tensor) -> Law:
        """N(sqrt(1 - lost) x, lost)."""
        return (1 - lost).sqrt() * x, lost

    def posterior(self, x0: Tensor, x_t: Tensor, lost: Tensor, beta: Tensor) -> Law:
        """The law of x_{t-1} given x_0, corrected by x_t as by a measurement; equals `process.Chain.posterior`."""
        mean, variance = self.forward(x0, lost)
        kept = (1 - beta).sqrt()
        total = beta + kept**2 * variance
        return mean + kept * variance / total * (x_t - kept * mean), beta * variance / total

    def reverse(self, x_t: Tensor, beta: Tensor, raw: Tensor, steps: int) -> Law:
        """The class's parameterisation."""
        move, *rest = raw.chunk(self.outputs, dim=1)
        log_odds = beta.log() - torch.log1p(-beta)
        variance = torch.sigmoid(log_odds + rest[0] / math.sqrt(steps)) if rest else beta
        return (1 - beta).sqrt() * x_t + beta.sqrt() * move, variance

    def draw(self, law: Law, noise: Noise, *, stream: str, step: int, first: int) -> Tensor:
        """mean + sqrt(variance) z."""
        mean, variance = law
        z = noise.normal(mean.shape, stream=stream, step=step, first=first, dtype=mean.dtype, device=mean.device)
        return reparameterise(mean, variance, z)

    def log_prob(self, law: Law, x: Tensor) -> Tensor:
        """log N(x; mean, variance)."""
        return gaussian_log_density(x, *law)

    def kl(self, law: Law, other: Law) -> Tensor:
        """Of Gaussians with different means and variances."""
        return gaussian_kl(*law, *other)


@dataclass(frozen=True)
class Bernoulli:
    """A bit is kept with probability 1 - beta and tossed anew with probability beta; towards fair coins.

    Laws are log-odds: those of a bit x after a loss are ±log((2 - lost)/lost), and evidence adds. So the posterior is the sum of
    what x_0 and x_t say of x_{t-1}, and in the reverse step the network's number, per bit, stands for what x_0 would say.
    """

    outputs = 1
    schedule = "harmonic"
    differentiable = False

    def check(self, x0: Tensor) -> None:
        """ValueError for anything but zeros and ones."""
        if not bool(((x0 == 0) | (x0 == 1)).all()):
            wrong = float(x0[(x0 != 0) & (x0 != 1)][0])
            raise ValueError(f"x0 holds {wrong:g}: a binary chain takes zeros and ones; threshold the data, or use 'gaussian'")

    def forward(self, x: Tensor, lost: Tensor) -> Law:
        """P(1) = (1 - lost) x + ½ lost."""
        return ((2 * x - 1) * torch.log((2 - lost) / lost),)

    def posterior(self, x0: Tensor, x_t: Tensor, lost: Tensor, beta: Tensor) -> Law:
        """The log-odds of x_{t-1} given x_0 and given x_t, added."""
        return (self.forward(x0, lost)[0] + self.forward(x_t, beta)[0],)

    def reverse(self, x_t: Tensor, beta: Tensor, raw: Tensor, steps: int) -> Law:
        """The log-odds given x_t, plus the network's."""
        return (self.forward(x_t, beta)[0] + raw,)

    def draw(self, law: Law, noise: Noise, *, stream: str, step: int, first: int) -> Tensor:
        """1 where a uniform lies below P(1)."""
        (log_odds,) = law
        u = noise.uniform(log_odds.shape, stream=stream, step=step, first=first).to(device=log_odds.device, dtype=log_odds.dtype)
        return (u < torch.sigmoid(log_odds)).to(log_odds.dtype)

    def log_prob(self, law: Law, x: Tensor) -> Tensor:
        """log P(x)."""
        return functional.logsigmoid((2 * x - 1) * law[0])

    def kl(self, law: Law, other: Law) -> Tensor:
        """Σ over the bit's two values of P log(P/P'), from log-odds: both terms keep their digits for P near 0 and 1."""
        log_p = functional.logsigmoid
        (a,), (b,) = law, other
        return torch.sigmoid(a) * (log_p(a) - log_p(b)) + torch.sigmoid(-a) * (log_p(-a) - log_p(-b))


KERNELS: dict[str, Kernel] = {
    "gaussian": Gaussian(),
    "gaussian_fixed": Gaussian(learned_covariance=False),
    "bernoulli": Bernoulli(),
}
"""Kernels by name; "gaussian_fixed" learns the mean alone."""


def harmonic_betas(steps: int) -> tuple[float, ...]:
    """beta_t = 1/(T - t + 1): every step destroys 1/T of the signal that x_0 had (section 2.4.1); the last leaves none."""
    return tuple(1 / (steps - k) for k in range(steps))


def log_snr_betas(steps: int, first: float = 1e-4, kept: float = 1e-2) -> tuple[float, ...]:
    """Equal steps of the log signal-to-noise ratio, from a loss of `first` to Π(1 - beta) = `kept`.

    A reverse step is nearly Gaussian if it changes the ratio little, at whatever level: hence equal steps. `first` is beta_1, to
    lie well below the variance of the data's finest structure (the module says what it costs). `kept` may be as large as leaves
    x_T normal: for unit-variance data the gap falls with its third power, or its second where directions have other variances.
    """
    log_ratio = torch.linspace(math.log(first / (1 - first)), math.log((1 - kept) / kept), steps, dtype=torch.float64)
    lost = torch.cat([torch.zeros(1, dtype=torch.float64), torch.sigmoid(log_ratio)])
    return tuple(((lost[1:] - lost[:-1]) / (1 - lost[:-1])).tolist())


SCHEDULES: dict[str, Callable[[int], tuple[float, ...]]] = {"log_snr": log_snr_betas, "harmonic": harmonic_betas}
"""betas from T, by name."""


class DPM(nn.Module):
    """A chain of `betas` of a kernel on data (B, features), with a network that reverses all its steps but the first.

    `net(x, k, cond)` takes x_t as often as the kernel has outputs, side by side, (B, outputs·D), and the step k (B,), and returns
    as many numbers; cond is None. With `learned_betas` beta_2 … beta_T are trained too, by the bound itself through draws that
    are differentiable: beta_t = sigmoid(logit beta + shift), the shifts being parameters that begin at 0.
    Raises ValueError for betas outside (0, 1), the last of which may be 1, and for learned_betas with one of 1 or of coins.
    """

    def __init__(
        self, kernel: Kernel, features: int, betas: Sequence[float], net: nn.Module, *, learned_betas: bool = False
    ) -> None:
        super().__init__()
        self.kernel, self.features, self.net = kernel, features, net
        self._start = torch.tensor(Chain(tuple(betas)).betas, dtype=torch.float64)  # a Chain refuses betas that are none
        if learned_betas and not kernel.differentiable:
            raise ValueError(f"learned_betas=True needs draws with a gradient; those of {type(kernel).__name__} have none")
        if learned_betas and betas[-1] == 1:
            raise ValueError(f"learned_betas=True, but beta_{len(betas)} is 1 and cannot be perturbed; use schedule 'log_snr'")
        self.shift = nn.Parameter(torch.zeros(len(betas) - 1)) if learned_betas else None

    @property
    def steps(self) -> int:
        """T."""
        return len(self._start)

    @property
    def chain(self) -> Chain:
        """The forward chain as it stands, as a process (of the Gaussian kernel)."""
        return Chain(tuple(self.betas().tolist()))

    def betas(self) -> Tensor:
        """beta_1 … beta_T, float64 on the CPU, with a gradient if they are learned."""
        if self.shift is None:
            return self._start
        moved = torch.logit(self._start[1:]) + self.shift.to("cpu", torch.float64)
        return torch.cat([self._start[:1], torch.sigmoid(moved)])

    def reverse(self, x_t: Tensor, k: Tensor, beta: Tensor) -> Law:
        """p(x_{k-1} | x_k) for x_t (B, D), steps k (B,) and their betas, () or (B,)."""
        raw = self.net(x_t.repeat(1, self.kernel.outputs), k.to(x_t), None)
        return self.kernel.reverse(x_t, align(beta, x_t), raw, self.steps)

    def loss(self, x0: Tensor, noise: Noise, *, step: int = 0, first: int = 0, total: int | None = None) -> Tensor:
        """An unbiased estimate of -K in bits per datum, (B,), from one step t of 2 … T each; a batch of `total` spreads its t."""
        self._check(x0)
        u = Times().uniforms(len(x0), noise, step=step, first=first, total=total)
        k = 2 + (u * (self.steps - 1)).long().clamp(max=self.steps - 2)
        betas = self.betas()
        divergence = self._step(x0, k, betas, noise, "x_t", step, first)
        return ((self.steps - 1) * divergence - self._ends(x0, betas)) / math.log(2)

    @torch.no_grad()
    def bound(self, x0: Tensor, noise: Noise, *, first: int = 0, progress: bool = False) -> Tensor:
        """K in bits per datum, (B,) float64, from all T - 1 steps with one draw of x_t each; its mean is below E log2 p(x_0)."""
        self._check(x0)
        betas = self.betas()
        total = self._ends(x0, betas).to("cpu", torch.float64)
        for k in track(range(2, self.steps + 1), self.steps - 1, "bound", enabled=progress):
            total -= self._step(x0, torch.full((len(x0),), k), betas, noise, "bound", k, first).to(total)
        return total / math.log(2)

    @torch.no_grad()
    def sample(self, n: int, noise: Noise, *, first: int = 0, progress: bool = False) -> Tensor:
        """n draws (n, features), float32: from π back through T - 1 learned steps, then through the first one's reversal."""
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        betas, blank = self.betas(), torch.zeros(n, self.features, device=device)
        x = self.kernel.draw(self.kernel.forward(blank, _ALL), noise, stream="prior", step=0, first=first)
        for k in track(range(self.steps, 1, -1), self.steps - 1, "sampling", enabled=progress):
            law = self.reverse(x, torch.full((n,), k), betas[k - 1])
            x = self.kernel.draw(law, noise, stream="step", step=k, first=first)
        return self.kernel.draw(self.kernel.forward(x, betas[0]), noise, stream="step", step=1, first=first)

    def _step(self, x0: Tensor, k: Tensor, betas: Tensor, noise: Noise, stream: str, step: int, first: int) -> Tensor:
        """KL(q(x_{k-1}|x_k, x_0) ‖ p(x_{k-1}|x_k)) in nats, (B,), at one draw of x_k."""
        lost = _lost(betas)
        here, before, beta = (align(c, x0) for c in (lost[k - 1], lost[k - 2], betas[k - 1]))
        x_t = self.kernel.draw(self.kernel.forward(x0, here), noise, stream=stream, step=step, first=first)
        posterior = self.kernel.posterior(x0, x_t, before, beta)
        return self.kernel.kl(posterior, self.reverse(x_t, k, betas[k - 1])).sum(1)

    def _ends(self, x0: Tensor, betas: Tensor) -> Tensor:
        """log π(x_0) + KL(q(x_1|x_0) ‖ π) - KL(q(x_T|x_0) ‖ π) in nats, (B,)."""
        lost, kernel = _lost(betas), self.kernel
        rest = kernel.forward(x0, _ALL)
        near, far = (kernel.kl(kernel.forward(x0, lost[k]), rest) for k in (0, -1))
        return (kernel.log_prob(rest, x0) + near - far).sum(1)

    def _check(self, x0: Tensor) -> None:
        if x0.ndim != 2 or x0.shape[1] != self.features or not x0.is_floating_point():
            raise ValueError(f"x0 has shape {tuple(x0.shape)} and dtype {x0.dtype}; give floats of shape (B, {self.features})")
        self.kernel.check(x0)


def dpm(
    features: int,
    *,
    kernel: str = "gaussian",
    steps: int = 40,
    schedule: str | None = None,
    width: int = 128,
    depth: int = 4,
    learned_betas: bool = False,
) -> DPM:
    """An untrained model of data (B, features) from plain values; `schedule` is the kernel's own unless one is named."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r} is not one of {', '.join(KERNELS)}")
    row = KERNELS[kernel]
    schedule = row.schedule if schedule is None else schedule
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} is not one of {', '.join(SCHEDULES)}")
    net = MLP(row.outputs * features, width, depth)
    return DPM(row, features, SCHEDULES[schedule](steps), net, learned_betas=learned_betas)


def _lost(betas: Tensor) -> Tensor:
    """The share of the signal that is lost after each step, 1 - Π(1 - beta)."""
    return -torch.expm1(torch.log1p(-betas).cumsum(0))
