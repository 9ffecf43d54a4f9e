"""The condition "grid": a network is shown a measurement y = A(x) of the datum, as a grid beside x_t.

Super-resolution (A averages blocks), inpainting by a trained model (A masks), deblurring and colouring are this one condition
under another `Operator`. The measurement may be noised in training, with its noise level told to the network: such a model bears
noise in y, and takes its place in a cascade, whose finer stages are conditioned on what coarser ones drew.

| paper | here |
|---|---|
| Saharia et al. 2021, arXiv 2104.07636, section 2.3: y brought to the size of x, beside x_t | `GridCondition.lift`, `nets.UNet` |
| Ho et al. 2021, arXiv 2106.15282, section 4.2: conditions noised by Gaussian noise | `GridCondition.training`, `augmentation` |
| the same: the level chosen when sampling | `noise_std` of `GridCondition.rows` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.contract import Contract
from ornstein.files import InputError
from ornstein.guidance.given import Given
from ornstein.noise import Noise
from ornstein.operator import Mask, Operator


@dataclass(frozen=True)
class GridCondition:
    """What the network is shown of data x under a contract: grid = encode(L A(x)) + s·L z, and s/augmentation as `values`.

    `operator` A takes x in the data's own units. The lift L brings y to the shape of x: y itself where it has that shape, else
    the pseudo-inverse A⁺y. A mask is shown too, as further channels. In training s is uniform in [0, `augmentation`], in model
    units; with augmentation 0 there is no noise and nothing is told. InputError for data without a grid, an operator made for
    data of another shape, or one without a lift.
    Source: Saharia et al. 2021, arXiv 2104.07636; Ho et al. 2021, arXiv 2106.15282, section 4.2.
    """

    contract: Contract
    operator: Operator
    augmentation: float = 0.0

    def __post_init__(self) -> None:
        shape, measured = self.contract.shape, self.operator.measured_shape
        if len(shape) < 2:
            raise InputError(f"condition='grid' but data of shape {shape} have no grid; use images, or another condition")
        if tuple(self.operator.shape) != shape:
            raise InputError(f"grid.operator is made for data of shape {self.operator.shape}, the data have {shape}")
        if measured != shape and not self.operator.linear:
            raise InputError(
                f"grid.operator measures {measured} of data of shape {shape} and is not linear: no pseudo-inverse brings its "
                "measurement to that shape; take an operator that is linear or keeps the shape"
            )

    @property
    def channels(self) -> int:
        """The number of channels of `grid`."""
        return self.contract.shape[0] * (2 if isinstance(self.operator, Mask) else 1)

    @property
    def values(self) -> int | None:
        """How many numbers are told beside the grid: the noise level, if there is one."""
        return 1 if self.augmentation else None

    def measure(self, x: Tensor) -> Tensor:
        """y = A(x) (B, *measured_shape) of data x (B, *shape), both in the data's own units."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):  # half precision is for networks
            return self.operator(x)

    def lift(self, y: Tensor) -> Tensor:
        """L y (B, *shape): y itself if it has the shape of a datum, else A⁺y; units of y."""
        kept = self.operator.measured_shape == self.contract.shape and not isinstance(self.operator, Mask)
        with torch.autocast(y.device.type, enabled=False):
            return y if kept else self.operator.pseudo_inverse(y)

    def training(self, x: Tensor, noise: Noise, *, step: int = 0, first: int = 0) -> dict[str, Tensor]:
        """The condition that data x (B, *shape) in their own units are trained with; sample i is keyed by (step, first + i)."""
        y = self.measure(x)
        if not self.augmentation:
            return self._told(y)
        level = noise.uniform((len(y),), stream="augmentation level", step=step, first=first) * self.augmentation
        z = noise.normal(y.shape, stream="augmentation", step=step, first=first, dtype=y.dtype, device=y.device)
        return self._told(y, level.to(y), z)

    def rows(self, cond: Mapping[str, object], n: int) -> dict[str, Tensor]:
        """The condition of n samples from {"grid": y} or {"grid": y, "noise_std": s}.

        y (*measured_shape) for all, or (n, *measured_shape), in the data's own units, carries noise of standard deviation s in
        those units (one number, or one per sample; 0 unless given), at most what the model was trained for. InputError for
        anything else.
        """
        unknown = sorted(set(cond) - {"grid", "noise_std"})
        if unknown or "grid" not in cond:
            which = f"has {unknown[0]!r}" if unknown else "lacks 'grid'"
            raise InputError(f"cond {which}, but this model takes 'grid', a measurement, and with it 'noise_std' if it is noisy")
        y, std = (_numbers(name, cond.get(name, 0.0)) for name in ("grid", "noise_std"))
        y = y[None] if y.ndim == len(self.operator.measured_shape) else y
        std = std.reshape(1) if std.ndim == 0 else std
        for name, value in (("grid", y), ("noise_std", std)):
            if value.ndim and len(value) not in (1, n):
                raise InputError(f"cond[{name!r}] has {len(value)} values for n={n} samples; give one, or one per sample")
        worst = float("nan") if bool(std.isnan().any()) else float(std[std.abs().argmax()])
        given = Given(y, operator=self.operator, noise_std=worst)
        level = self._level(worst) * std / worst if worst else std
        return self._told(given.values.expand(n, *y.shape[1:]), level.expand(n) if self.augmentation else None)

    def _told(self, y: Tensor, level: Tensor | None = None, z: Tensor | None = None) -> dict[str, Tensor]:
        """What the network is given of measurements y (B, *) with noise z of the levels (B,) added."""
        grid = self.contract.encode(self.lift(y))
        if level is not None and z is not None:
            grid = grid + level.reshape(-1, *[1] * (grid.ndim - 1)) * self.lift(z)
        if isinstance(self.operator, Mask):
            grid = torch.cat([grid, self.operator.mask.to(grid).expand_as(grid)], 1)
        return {"grid": grid} if level is None else {"grid": grid, "values": (level / self.augmentation).to(grid)[:, None]}

    def _level(self, std: float) -> float:
        """The level in model units of noise of standard deviation `std` in the data's own."""
        if std == 0:
            return 0.0
        scales = sorted({abs(scale) for scale in self.contract.scale})
        if len(scales) > 1:
            raise InputError(f"noise_std={std:g} means nothing to channels of different units; leave it out")
        level = std / scales[0]
        if not level <= self.augmentation * (1 + 1e-6):
            raise InputError(
                f"noise_std={std:g} is more noise than this model was trained to bear: {self.augmentation * scales[0]:g}; "
                "smooth the measurement, or train with a larger grid.augmentation"
            )
        return level


def _numbers(name: str, value: object) -> Tensor:
    """A condition as a float32 tensor; InputError for what is no number."""
    try:
        if isinstance(value, list | tuple):
            return torch.stack([_numbers(name, part) for part in value])
        return torch.as_tensor(float(value) if isinstance(value, str) else value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"cond[{name!r}]={value!r:.60} is not numbers of one shape; give a measurement, or a number") from error
