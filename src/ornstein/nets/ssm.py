"""State-space models and their convolution kernels, the two halves that an S4 layer is made of.

A channel is the linear system x' = A x + B u, y = C x with a state of N numbers. Held at steps of Δ it is the recurrence
x_k = Ā x_{k-1} + B̄ u_k, y_k = C x_k, which is the convolution y = K * u with K_k = C Ā^k B̄. Both kernels here give both sides:

=============  ====================================  ===================================  ==========================
class          A                                     K of length L costs a channel        source
=============  ====================================  ===================================  ==========================
`S4DKernel`    diagonal                              L·N products                         arXiv 2206.11893
`S4Kernel`     diagonal plus rank one, HiPPO-LegS    M·N products and one FFT             arXiv 2111.00396, 2202.09729
=============  ====================================  ===================================  ==========================

The state is N/2 conjugate pairs of complex numbers, of which one each is kept. Kernels and memories are float64
whatever the weights are: a pole turns through thousands of radians in one kernel, which float32 cannot follow. Where a device has
no float64 they are computed on the CPU.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ornstein.files import InputError
from ornstein.hardware import doubled


class Recurrence(NamedTuple):
    """x_k = A_bar·x_{k-1} + B_bar·u_k, y_k = C·x_k for every channel; see `recurrence` of the kernels for the shapes."""

    A_bar: Tensor
    B_bar: Tensor
    C: Tensor


class S4DKernel(nn.Module):
    """Diagonal state-space model, K_k = 2·Re Σ_n C_n B̄_n Ā_n^k, one for every channel.

    `initial` is the start of the poles, a name of `INITIAL`: "legs", "lin" or "inv"; `discretisation` one of
    `DISCRETISATIONS`: "zoh", Ā = exp(ΔA) and B̄ = (Ā − 1)/A·B, exact for an input held over each step, or "bilinear",
    Ā = (1 + ΔA/2)/(1 − ΔA/2) and B̄ = ΔB/(1 − ΔA/2). Δ is learned, and starts log-uniform in `steps`. The real part of a pole
    is −exp(log_decay), so the system stays stable. Weights start from torch's default generator, which the caller seeds.
    Raises `InputError` for an odd state or an unknown name. Source: Gu et al., arXiv:2206.11893, sections 3 and 4. `S4Kernel`
    has the matrix that "legs" cuts short.
    """

    def __init__(
        self,
        width: int,
        state: int = 64,
        initial: str = "legs",
        discretisation: str = "zoh",
        steps: tuple[float, float] = (1e-3, 1e-1),
    ) -> None:
        super().__init__()
        _check(width, state, steps)
        if initial not in INITIAL:
            raise InputError(f"initial is {initial!r}: take one of {', '.join(INITIAL)}")
        if discretisation not in DISCRETISATIONS:
            raise InputError(f"discretisation is {discretisation!r}: take one of {', '.join(DISCRETISATIONS)}")
        self.discretisation = discretisation
        poles, drive = INITIAL[initial](state)
        self.log_step = nn.Parameter(_log_steps(width, steps))
        self.log_decay = nn.Parameter(_repeated((-poles.real).log(), width))
        self.frequency = nn.Parameter(_repeated(poles.imag, width))
        self.B = nn.Parameter(_repeated(torch.view_as_real(drive), width))
        self.C = nn.Parameter(_readout(width, state))

    def kernel(self, length: int) -> Tensor:
        """K_0 to K_{length-1} of every channel, (width, length), in the dtype of the weights."""
        A_bar, B_bar, C = self._discrete()
        # Ā^(qj + i) = (Ā^q)^j Ā^i: two short tables of powers and one matrix product in place of a (width, N/2, length) array.
        stride = 2 ** math.ceil(math.log2(length) / 2)
        rows = (C * B_bar)[..., None] * _powers(_squared(A_bar, stride), -(-length // stride))
        kernel = 2 * (rows.mT @ _powers(A_bar, stride)).real
        return kernel.flatten(1)[:, :length].to(self.C)

    def recurrence(self) -> Recurrence:
        """A_bar, B_bar and C, each (width, N/2) and complex128: the diagonal of the half that is kept; y = 2·Re C·x."""
        return self._discrete()

    @staticmethod
    def advance(recurrence: Recurrence, memory: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the recurrence, u (B, width) and memory (B, width, N/2) -> y (B, width) and the next memory."""
        memory = recurrence.A_bar * memory + recurrence.B_bar * u[..., None].to(memory.device)
        return 2 * (recurrence.C * memory).sum(-1).real.to(u), memory

    def _discrete(self) -> Recurrence:
        poles = torch.complex(-doubled(self.log_decay).exp(), doubled(self.frequency))
        A_bar, factor = DISCRETISATIONS[self.discretisation](poles, doubled(self.log_step).exp()[:, None])
        return Recurrence(A_bar, factor * _complex(self.B), _complex(self.C))


class S4Kernel(nn.Module):
    """State-space model with A = Λ − P P*, at first the HiPPO-LegS matrix itself, by the bilinear rule, one for every channel.

    K̂(z) = Σ_k K_k z^k = 2/(1+z)·C (g − A)⁻¹ B with g = (2/Δ)(1−z)/(1+z), and by Woodbury's identity, with R = (g − Λ)⁻¹,
    C (g − A)⁻¹ B = C R B − C R P · P* R B / (1 + P* R P): four sums over n. K is read off K̂ on a circle |z| = r < 1 by an inverse
    FFT of M points. What lies beyond M comes back damped by r^M, rounding grows by r^-L: at M = 4L and r^M = 1e-13 neither is
    above about 1e-12 of K (1.5L and 1e-9 do for float32), at any length, with no power of Ā and no pole on the circle. (The paper
    takes r = 1 and learns C(1 − Ā^L) for one L.) Λ has a negative real part, so A is stable whatever P is. Arguments and errors
    are as for `S4DKernel`.
    Source: Gu et al., arXiv:2111.00396, section 3 and appendix C; for the sign of P P*, Goel et al., arXiv:2202.09729.
    """

    def __init__(self, width: int, state: int = 64, steps: tuple[float, float] = (1e-3, 1e-1)) -> None:
        super().__init__()
        _check(width, state, steps)
        poles, low_rank, drive = _legs(state)
        self.log_step = nn.Parameter(_log_steps(width, steps))
        self.log_decay = nn.Parameter(_repeated((-poles.real).log(), width))
        self.frequency = nn.Parameter(_repeated(poles.imag, width))
        self.P = nn.Parameter(_repeated(torch.view_as_real(low_rank), width))
        self.B = nn.Parameter(_repeated(torch.view_as_real(drive), width))
        self.C = nn.Parameter(_readout(width, state))

    def kernel(self, length: int) -> Tensor:
        """K_0 to K_{length-1} of every channel, (width, length), in the dtype of the weights."""
        poles, P, B, C = self._continuous()
        step = doubled(self.log_step).exp()[:, None]
        ratio, aliased = _CIRCLE["wide" if self.C.dtype == torch.float64 else "narrow"]
        points = fast_length(math.ceil(ratio * length))
        log_radius = math.log(aliased) / points
        angle = torch.arange(points // 2 + 1, dtype=torch.float64, device=step.device) * (-2 * math.pi / points)
        z = torch.polar(torch.full_like(angle, math.exp(log_radius)), angle)
        g = 2 / step * ((1 - z) / (1 + z))
        # v/(g − λ) and its conjugate together: 2·(g·Re v − Re vλ̄)/((g − Re λ)² + (Im λ)²), so that the coefficients are real.
        both = ((g[:, None] - poles.real[..., None]).square() + poles.imag.square()[..., None]).reciprocal()
        terms = torch.stack([C * B, C * P, P.conj() * B, P.conj() * P], 1)
        sums = torch.cat([terms.real, (terms * poles.conj()[:, None]).real], 1).to(both.dtype) @ both
        CB, CP, PB, PP = (2 * (g[:, None] * sums[:, :4] - sums[:, 4:])).unbind(1)
        transformed = 2 / (1 + z) * (CB - CP * PB / (1 + PP))
        damped = torch.fft.irfft(transformed, points)[:, :length]
        lag = torch.arange(length, dtype=torch.float64, device=step.device)
        return (damped * torch.exp(-log_radius * lag)).to(self.C)

    def recurrence(self) -> Recurrence:
        """A_bar (width, N, N), B_bar and C (width, N), all float64: the state is the kept half's real parts, then its imaginary.

        In these numbers A = [[Re Λ, −Im Λ], [Im Λ, Re Λ]] − 2·p pᵀ with p = [Re P, Im P].
        """
        poles, P, B, C = self._continuous()
        real, imaginary = torch.diag_embed(poles.real), torch.diag_embed(poles.imag)
        rotation = torch.cat([torch.cat([real, -imaginary], 2), torch.cat([imaginary, real], 2)], 1)
        p = torch.cat([P.real, P.imag], 1)
        half = doubled(self.log_step).exp()[:, None, None] / 2 * (rotation - 2 * p[:, :, None] * p[:, None, :])
        one = torch.eye(half.shape[-1], dtype=half.dtype, device=half.device)
        drive = doubled(self.log_step).exp()[:, None] * torch.cat([B.real, B.imag], 1)
        solved = torch.linalg.solve(one - half, torch.cat([one + half, drive[..., None]], 2))
        return Recurrence(solved[..., :-1], solved[..., -1], 2 * torch.cat([C.real, -C.imag], 1))

    @staticmethod
    def advance(recurrence: Recurrence, memory: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the recurrence, u (B, width) and memory (B, width, N) -> y (B, width) and the next memory."""
        memory = (recurrence.A_bar @ memory[..., None]).squeeze(-1) + recurrence.B_bar * u[..., None].to(memory.device)
        return (recurrence.C * memory).sum(-1).to(u), memory

    def _continuous(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        poles = torch.complex(-doubled(self.log_decay).exp(), doubled(self.frequency))
        return poles, _complex(self.P), _complex(self.B), _complex(self.C)


KERNELS: dict[str, type[S4DKernel | S4Kernel]] = {"s4d": S4DKernel, "dplr": S4Kernel}
# Points of the FFT for each of K, and what is left of K beyond them; for weights in float64, and for narrower ones.
_CIRCLE = {"wide": (4.0, 1e-13), "narrow": (1.5, 1e-9)}


def fast_length(least: int) -> int:
    """The smallest number from `least` on with no prime factor above 5: FFTs of others are several times slower."""
    number = max(1, least)
    while True:
        rest = number
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return number
        number += 1


def _lin(state: int) -> tuple[Tensor, Tensor]:
    n = torch.arange(state // 2, dtype=torch.float64)
    return torch.complex(torch.full_like(n, -0.5), math.pi * n), torch.ones_like(n, dtype=torch.complex128)


def _inv(state: int) -> tuple[Tensor, Tensor]:
    n = torch.arange(state // 2, dtype=torch.float64)
    return torch.complex(torch.full_like(n, -0.5), state / math.pi * (state / (2 * n + 1) - 1)), torch.ones_like(n) + 0j


def _normal_legs(state: int) -> tuple[Tensor, Tensor]:
    poles, _, drive = _legs(state)
    return poles, drive / 2  # half of B tends to the whole system as the state grows: arXiv 2206.11893, theorem 3


def _legs(state: int) -> tuple[Tensor, Tensor, Tensor]:
    """Λ, P and B of HiPPO-LegS in the eigenvectors of its normal part, the N/2 with a positive frequency.

    A_nk = −√((2n+1)(2k+1)) for n > k, −(n+1) for n = k; A + p pᵀ with p_n = √(n + ½) is −½ plus a skew-symmetric matrix.
    """
    n = torch.arange(state, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    lower = torch.tril(torch.outer(root, root), -1) / 2
    frequency, vectors = torch.linalg.eigh(-1j * (lower.mT - lower))  # of a Hermitian matrix: exact to rounding
    kept = vectors[:, state // 2 :].mH
    poles = torch.complex(torch.full_like(frequency, -0.5), frequency)[state // 2 :]
    return poles, kept @ ((n + 0.5).sqrt() + 0j), kept @ (root + 0j)


INITIAL: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {"legs": _normal_legs, "lin": _lin, "inv": _inv}
"""Starts of a diagonal model: state -> poles A and B, the half that is kept."""


def _zero_order_hold(A: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    A_bar = torch.exp(step * A)
    return A_bar, (A_bar - 1) / A


def _bilinear(A: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    factor = 1 / (1 - step / 2 * A)
    return factor * (1 + step / 2 * A), factor * step


DISCRETISATIONS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {"zoh": _zero_order_hold, "bilinear": _bilinear}
"""Ways to hold a diagonal model at steps of Δ: A, Δ -> Ā and the factor from B to B̄."""


def _powers(base: Tensor, count: int) -> Tensor:
    """base^0 to base^(count-1) along a new last axis, by doubling: products are far cheaper than complex exponentials."""
    powers = torch.ones_like(base)[..., None]
    while powers.shape[-1] < count:
        powers = torch.cat([powers, powers * base[..., None]], -1)
        base = base * base
    return powers[..., :count]


def _squared(base: Tensor, power: int) -> Tensor:
    """base^power for a power of two."""
    for _ in range(power.bit_length() - 1):
        base = base * base
    return base


def _check(width: int, state: int, steps: tuple[float, float]) -> None:
    if width < 1:
        raise InputError(f"width is {width}: make it at least 1")
    if state < 2 or state % 2:
        raise InputError(f"state is {state}: make it even and at least 2, one complex pair for every two numbers")
    if not 0 < steps[0] <= steps[1]:
        raise InputError(f"steps is {steps}: give the smallest and the largest step, both positive")


def _log_steps(width: int, steps: tuple[float, float]) -> Tensor:
    low, high = math.log(steps[0]), math.log(steps[1])
    return low + (high - low) * torch.rand(width)


def _readout(width: int, state: int) -> Tensor:
    """Complex normal numbers of variance 1, as pairs: (width, N/2, 2)."""
    return torch.randn(width, state // 2, 2) / math.sqrt(2)


def _repeated(row: Tensor, width: int) -> Tensor:
    return row.to(torch.get_default_dtype()).expand(width, *row.shape).clone()


def _complex(pairs: Tensor) -> Tensor:
    return torch.view_as_complex(doubled(pairs))
