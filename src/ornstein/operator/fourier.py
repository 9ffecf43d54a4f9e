"""Sub-sampled Fourier transforms, as magnetic resonance imaging measures them, for real data (C, *size)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ornstein.files import InputError
from ornstein.noise import Noise
from ornstein.operator.base import Spectrum
from ornstein.operator.channels import Channelwise, sized
from ornstein.operator.filters import hartley
from ornstein.operator.masks import spelled


class Fourier(Channelwise):
    """y = (Re X_k, Im X_k) at the frequencies k that are kept, X the orthonormal FFT of every channel: y (B, C, 2, kept).

    `kept` (*size) booleans in the order of the FFT, frequency 0 first. A real x has X_{-k} = conj(X_k), so what k and -k tell
    is the same: the two Hartley coefficients of such a pair have singular value √((kept_k + kept_{-k})/2), 1 where both are
    measured and √½ where one is; the imaginary part of a frequency that is its own mirror is always 0.
    Source: Lustig, Donoho and Pauly 2007, doi 10.1002/mrm.21391.
    """

    def __init__(self, shape: Sequence[int], kept: Tensor, name: str = "") -> None:
        self.shape = sized(shape, "fourier")
        if kept.dtype != torch.bool or tuple(kept.shape) != self.shape[1:] or not bool(kept.any()):
            raise InputError(f"kept {tuple(kept.shape)} must be booleans of shape {self.shape[1:]}, some of them True")
        self.kept = kept.cpu()
        self.places = kept.cpu().flatten().nonzero().squeeze(1)
        self.name = name

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(range(1 - len(self.shape), 0))

    def channel(self, x: Tensor) -> Tensor:
        """Real and imaginary parts of the kept frequencies of x (N, *size): (N, 2, kept)."""
        frequencies = torch.fft.fftn(x, dim=self._axes, norm="ortho").flatten(1)[:, self.places.to(x.device)]
        return torch.stack([frequencies.real, frequencies.imag], 1)

    def _back(self, y: Tensor) -> Tensor:
        """The adjoint for single channels: Re FFT⁻¹ of the kept frequencies, zeros between them."""
        whole = torch.zeros(len(y), math.prod(self.shape[1:]), dtype=torch.complex(y[:0], y[:0]).dtype, device=y.device)
        whole = whole.index_copy(1, self.places.to(y.device), torch.complex(y[:, 0].contiguous(), y[:, 1].contiguous()))
        return torch.fft.ifftn(whole.reshape(-1, *self.shape[1:]), dim=self._axes, norm="ortho").real

    def adjoint(self, y: Tensor) -> Tensor:
        """Re FFT⁻¹ of the kept frequencies with zeros between them, (B, C, *size)."""
        return self._back(y.flatten(0, 1)).unflatten(0, y.shape[:2])

    def channel_spectrum(self) -> Spectrum:
        """V is the Hartley basis, values are √((kept_k + kept_{-k})/2)."""
        size, axes = self.shape[1:], tuple(range(len(self.shape) - 1))
        mirrored = self.kept.flip(axes).roll([1] * len(axes), axes)
        values = ((self.kept.double() + mirrored.double()) / 2).sqrt().flatten()
        inverse = torch.where(values > 0, 1 / values.clamp(min=0.5), 0.0)
        return Spectrum(
            values,
            lambda x: hartley(x, size).flatten(1),
            lambda c: hartley(c.reshape(-1, *size), size),
            lambda y: hartley(self._back(y), size).flatten(1) * inverse.to(y),  # Uᵀ = S⁺ Vᵀ Aᵀ
        )


def fourier_lines(shape: Sequence[int], *, share: float = 0.3, centre: float = 0.08, noise: Noise) -> Fourier:
    """Measure a random `share` of the k-space lines (columns), the `centre` share of lowest frequencies among them.

    y = Re and Im of the FFT there. InputError for a share outside (0, 1] or a centre outside [0, share].
    """
    size = sized(shape, "fourier:lines")[1:]
    kept = _drawn(torch.fft.fftfreq(size[-1]).abs(), share, centre, noise)
    return Fourier(shape, kept.expand(size).clone(), spelled("fourier:lines", share=float(share), centre=float(centre)))


def fourier_random(shape: Sequence[int], *, share: float = 0.3, centre: float = 0.04, noise: Noise) -> Fourier:
    """Measure a random `share` of all frequencies, the `centre` share of lowest ones among them.

    y = Re and Im of the FFT there. InputError for a share outside (0, 1] or a centre outside [0, share].
    """
    size = sized(shape, "fourier:random")[1:]
    radius = torch.stack(torch.meshgrid(*(torch.fft.fftfreq(n) for n in size), indexing="ij")).norm(dim=0)
    kept = _drawn(radius, share, centre, noise)
    return Fourier(shape, kept, spelled("fourier:random", share=float(share), centre=float(centre)))


def _drawn(radius: Tensor, share: float, centre: float, noise: Noise) -> Tensor:
    """Which places are kept: a share of all, the lowest of `radius` (frequency 0 at least) always, the others at random."""
    if not (0 < share <= 1 and 0 <= centre <= share):
        raise InputError(f"share={share:g}, centre={centre:g}: take 0 < share ≤ 1 of the frequencies, and 0 ≤ centre ≤ share")
    places = radius.numel()
    always = max(1, round(centre * places))
    order = radius.flatten().argsort(stable=True)
    others = order[always:]
    drawn = others[noise.permutation(len(others), stream="operator/fourier")[: max(0, round(share * places) - always)]]
    kept = torch.zeros(places, dtype=torch.bool)
    kept[order[:always]] = True
    kept[drawn] = True
    return kept.reshape(radius.shape)
