"""Which numbers of a window are hidden: the laws by which imputers are trained and judged.

| law | hides | called in SSSD (arXiv 2208.09399) |
|---|---|---|
| random | every number by itself, with a probability | RM |
| block | of every channel a stretch of its own | MNR |
| blackout | of all channels the same stretch | BM |
| forecast | the last `horizon` steps of all channels | TF |
| nothing | everything: an unconditional model | |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ornstein.files import InputError
from ornstein.noise import Noise

Uniforms = Callable[[str, tuple[int, ...]], Tensor]
"""(stream, shape of one datum's numbers) -> uniforms (B, *shape)."""


def _random(u: Uniforms, batch: int, shape: tuple[int, int], horizon: int, share: Tensor) -> Tensor:
    """Every number by itself, with a probability."""
    return u("places", shape) >= share[:, None, None]


def _block(u: Uniforms, batch: int, shape: tuple[int, int], horizon: int, share: Tensor) -> Tensor:
    """Of every channel a stretch of its own."""
    return _stretch(u("places", (shape[0],)), shape[1], share[:, None])


def _blackout(u: Uniforms, batch: int, shape: tuple[int, int], horizon: int, share: Tensor) -> Tensor:
    """Of all channels the same stretch."""
    return _stretch(u("places", (1,)), shape[1], share[:, None]).expand(batch, *shape)


def _forecast(u: Uniforms, batch: int, shape: tuple[int, int], horizon: int, share: Tensor) -> Tensor:
    """The last steps of all channels, a horizon."""
    return (torch.arange(shape[1]) < shape[1] - horizon).expand(batch, *shape)


def _nothing(u: Uniforms, batch: int, shape: tuple[int, int], horizon: int, share: Tensor) -> Tensor:
    """Everything: what is left is an unconditional model."""
    return torch.zeros(batch, *shape, dtype=torch.bool)


def _stretch(place: Tensor, length: int, share: Tensor) -> Tensor:
    """False on a stretch of round(share·length) steps, at least one, whose place within the window is uniform; (B, C, length)."""
    size = (share * length).round().clamp(min=1, max=length)
    begin = (place * (length - size + 1)).floor()
    steps = torch.arange(length)
    return (steps < begin[..., None]) | (steps >= (begin + size)[..., None])


MASKS: dict[str, Callable[[Uniforms, int, tuple[int, int], int, Tensor], Tensor]] = {
    "random": _random,
    "block": _block,
    "blackout": _blackout,
    "forecast": _forecast,
    "nothing": _nothing,
}
"""(uniforms, batch, (C, L), horizon, share (B,)) -> what stays seen, (B, C, L) boolean."""


def mask(
    name: str, batch: int, shape: tuple[int, int], horizon: int, noise: Noise, *, share: float | None = None, step: int = 0,
    first: int = 0,
) -> Tensor:  # fmt: skip
    """What stays seen of `batch` windows (C, L) under one law, (B, C, L) boolean; window i is keyed by (step, first + i).

    `share` is the part that random hides of the numbers, block and blackout of the steps; None draws it for every window: of
    random uniformly in (0, 1), of stretches up to half the window. InputError for an unknown law or a share outside (0, 1].
    """
    if name not in MASKS:
        raise InputError(f"mask={name!r} is not one of {', '.join(MASKS)}")
    if share is not None and not 0 < share <= 1:
        raise InputError(f"share={share} of the numbers must be hidden: above 0, at most 1")

    def uniforms(stream: str, numbers: tuple[int, ...]) -> Tensor:
        return noise.uniform((batch, *numbers), stream=f"mask/{name}/{stream}", step=step, first=first)

    if share is not None:
        hidden = torch.full((batch,), share, dtype=torch.float64)
    else:
        hidden = uniforms("share", ()) * (1.0 if name == "random" else 0.5)
    return MASKS[name](uniforms, batch, shape, horizon, hidden)


def mixed(
    weights: Mapping[str, float], batch: int, shape: tuple[int, int], horizon: int, noise: Noise, *, step: int = 0, first: int = 0
) -> Tensor:
    """What stays seen of windows each under a law of its own, drawn by `weights`; (B, C, L) boolean, keyed as in `mask`."""
    names = [name for name in MASKS if weights.get(name, 0) > 0]
    if unknown := sorted(set(weights) - set(MASKS)):
        raise InputError(f"sequence.masks has {unknown[0]!r}, which is not one of {', '.join(MASKS)}")
    if not names:
        raise InputError(f"sequence.masks={dict(weights)} gives no law a weight above 0; give random: 1")
    share = torch.tensor([float(weights[name]) for name in names], dtype=torch.float64)
    law = noise.uniform((batch,), stream="mask/law", step=step, first=first)
    chosen = torch.bucketize(law, (share / share.sum()).cumsum(0)[:-1], right=True)
    found = torch.stack([mask(name, batch, shape, horizon, noise, step=step, first=first) for name in names])
    return found[chosen, torch.arange(batch)]
