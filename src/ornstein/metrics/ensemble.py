"""Several draws for every case: mean, spread, quantiles, and how honest they are against the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ensemble:
    """Draws (cases, draws, *) of what is not known, for every case independently; statistics are over the draws, axis 1.

    ValueError for draws without these two axes, none at all, or a truth whose shape is not that of a case's draw.
    Source for spread and skill: Fortin et al. 2014, doi 10.1175/JHM-D-14-0008.1.
    """

    draws: Tensor

    def __post_init__(self) -> None:
        if self.draws.ndim < 2 or self.draws.shape[1] < 1:
            raise ValueError(f"draws have shape {tuple(self.draws.shape)}; give (cases, draws, …) with at least one draw")

    def __len__(self) -> int:
        return len(self.draws)

    @property
    def mean(self) -> Tensor:
        """The mean of the draws, (cases, *): the estimate with the least square error."""
        return self.draws.mean(1)

    @property
    def std(self) -> Tensor:
        """The standard deviation of the draws (n - 1 in the denominator), (cases, *); ValueError for a single draw."""
        if self.draws.shape[1] < 2:
            raise ValueError("one draw has no spread; ask for draws=2 or more")
        return self.draws.std(1)

    def quantile(self, q: float | Sequence[float]) -> Tensor:
        """Quantiles q in [0, 1] of the draws, (cases, *), or (len(q), cases, *) for several; linear between draws."""
        levels = torch.as_tensor(q, dtype=self.draws.dtype, device=self.draws.device)
        if not bool(((levels >= 0) & (levels <= 1)).all()):
            raise ValueError(f"q={q} must lie in [0, 1]")
        ordered = self.draws.sort(1).values  # torch.quantile refuses large tensors
        places = levels.reshape(-1) * (ordered.shape[1] - 1)
        low = places.floor().long()
        high = places.ceil().long()
        weight = (places - low).reshape(-1, *[1] * (ordered.ndim - 1))
        found = torch.lerp(ordered[:, low].movedim(1, 0), ordered[:, high].movedim(1, 0), weight)
        return found if levels.ndim else found[0]

    def coverage(self, truth: Tensor, level: float = 0.9) -> float:
        """The share of the numbers of truth (cases, *) that lie within their central interval of probability `level`.

        Between the draws of ranks r and n + 1 - r a further draw falls with probability 1 - 2r/(n + 1). The share is that of the
        two such intervals on either side of `level`, interpolated: honest draws have coverage = level, whatever n and their law
        (if it is continuous). ValueError if n draws hold no such interval: n ≥ (1 + level)/(1 - level), 19 for 0.9.
        """
        self._demand_shape(truth)
        n = self.draws.shape[1]
        if not 0 < level < 1:
            raise ValueError(f"level={level} must lie between 0 and 1")
        outside = (1 - level) * (n + 1) / 2  # ranks to leave out on each side: a new draw has rank 1 … n + 1 with equal chance
        if outside < 1 - 1e-9:
            needed = math.ceil(2 / (1 - level) - 1 - 1e-9)
            raise ValueError(f"{n} draws hold no interval of probability {level:g}; ask for draws={needed} or more")
        ordered = self.draws.sort(1).values
        wide = min(math.floor(outside + 1e-9), (n + 1) // 2)
        shares = []
        for rank in (wide, min(wide + 1, (n + 1) // 2)):
            within = (truth >= ordered[:, rank - 1]) & (truth <= ordered[:, n - rank])
            shares.append(float(within.double().mean()))
        return shares[0] + (outside - wide) * (shares[1] - shares[0])

    def spread(self) -> float:
        """sqrt of the mean variance of the draws: what an honest ensemble says its mean's error is, but for `skill`'s factor."""
        return float(self.std.double().square().mean().sqrt())

    def skill(self, truth: Tensor) -> float:
        """Root mean square error of the ensemble mean against truth (cases, *), divided by sqrt(1 + 1/n): equal to `spread` for
        an honest ensemble of n draws."""
        self._demand_shape(truth)
        error = float((self.mean - truth).double().square().mean().sqrt())
        return error / math.sqrt(1 + 1 / self.draws.shape[1])

    def _demand_shape(self, truth: Tensor) -> None:
        wanted = (self.draws.shape[0], *self.draws.shape[2:])
        if tuple(truth.shape) != wanted:
            raise ValueError(f"truth has shape {tuple(truth.shape)}, the draws are of {wanted}; give one truth per case")
