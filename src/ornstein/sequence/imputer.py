"""Imputers: a denoiser of whole windows that is shown what is known of them, and draws the rest.

One network serves forecasting, imputation and interpolation: they differ in the mask of a `Given` alone. With masks that hide
everything among those it is trained on, the same network is an unconditional model too, and may be guided to any observation
(`restore`): linear operators of time (means over blocks, blurs) as well as masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ornstein.assemble import called, make_loss, make_plan, make_process, seeded
from ornstein.config import Recipe
from ornstein.contract import Contract
from ornstein.denoiser import Denoiser
from ornstein.files import InputError
from ornstein.guidance import Given, restore
from ornstein.losses import DenoisingLoss
from ornstein.measured import in_model_units
from ornstein.metrics import Ensemble
from ornstein.noise import Noise
from ornstein.process import GaussianProcess
from ornstein.samplers import Plan, sample
from ornstein.samplers.loop import meant
from ornstein.sequence import scaling
from ornstein.sequence.choose import Windowing
from ornstein.sequence.masks import mixed

ROWS = 256
"""Windows drawn at a time unless told otherwise: bounds memory, changes nothing else."""


@dataclass(eq=False)
class ImputerSystem:
    """One trained or trainable imputer (SSSD, CSDI); batches hold "x" (B, C, L) in the data's own units, NaN where missing, and
    "features" (B, F, L). `predict` draws what is asked for of windows; `calibrated` are plans fitted to these weights."""

    contract: Contract
    denoiser: Denoiser
    loss_function: DenoisingLoss
    plan: Plan
    windowing: Windowing
    calibrated: tuple[Plan, ...] = ()
    condition: None = None

    @property
    def net(self) -> nn.Module:
        """The network with the trained weights."""
        return self.denoiser.net

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    @property
    def drawn_shape(self) -> tuple[int, ...]:
        """The shape of what the denoiser draws at once."""
        return self.contract.shape

    def loss(
        self, batch: Mapping[str, Tensor], noise: Noise, *, step: int = 0, first: int = 0, total: int | None = None
    ) -> Tensor:
        """The denoising loss of every window, (B,), on numbers that are known but were hidden by a mask of the recipe's laws."""
        x = batch["x"].to(self.device)
        seen = x.isfinite()
        shown = mixed(self.windowing.masks, len(x), self.contract.shape, self.windowing.horizon, noise, step=step, first=first)  # type: ignore[arg-type]
        shown = shown.to(self.device) & seen
        asked = seen & ~shown
        z, _ = self._encoded(x, shown)
        told = self._told(z, shown)
        target = torch.where(asked, (z - told) / self._unit(z), 0.0)
        cond = self._condition(told, shown, asked, batch["features"].to(self.device))
        return self.loss_function(
            self.denoiser, target, noise, step=step, first=first, total=total, cond=cond, weight=asked.to(target)
        )

    def predict(
        self,
        given: Given,
        known: Tensor,
        *,
        draws: int,
        noise: Noise,
        asked: Tensor | None = None,
        sampler: Plan | int | None = None,
        first: int = 0,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Ensemble:
        """Draws (cases, draws, C, L) of windows of which `given` tells values and mask, in the data's own units.

        What is measured stays, bit for bit. `asked` (cases, C, L) are the numbers wanted (all that are not measured unless said);
        others come back as NaN. `known` (cases, F, L) are the features of the windows' times. Draw j of case i is sample
        (first + i)·draws + j of the noise. InputError for what is no mask: take `restore`.
        """
        mask = given.masks
        if mask is None or given.noise_std:
            raise InputError("an imputer is shown exact values under a mask; for another measurement take restore")
        plan, values = self.plan_of(sampler), given.values.double()
        wanted = ~mask if asked is None else asked & ~mask
        # units in float64 where they are exact, which not every device has
        z, units = self._encoded(torch.where(mask, values, torch.nan), mask)
        told = self._told(z, mask)
        cond = self._condition(told, mask, wanted, known)
        rows = torch.arange(len(values)).repeat_interleave(draws)
        drawn = sample(
            self.denoiser, plan, shape=(len(rows), *self.contract.shape), noise=noise, first=first * draws,
            cond={name: part[rows] for name, part in cond.items()}, batch_size=batch_size or ROWS,
            device=self.device, progress=progress,
        )  # fmt: skip
        z = told[rows].double() + self._unit(told) * drawn.cpu().double()
        x = units.repeat(draws).decode(z).unflatten(0, (len(values), draws))
        x = torch.where(wanted[:, None], x, torch.nan)
        return Ensemble(torch.where(mask[:, None], values[:, None].cpu(), x))

    def restore(
        self, given: Given, known: Tensor, *, draws: int, noise: Noise, method: str = "pigdm", calls: int | None = None,
        options: Mapping[str, float] | None = None, batch_size: int | None = None, progress: bool = False,
    ) -> Ensemble:  # fmt: skip
        """Draws (cases, draws, C, L) given any measurement, by guiding the unconditional model: `ornstein.restore`.

        The network must have been trained with the mask law "nothing"; units are the training data's. InputError otherwise.
        """
        if not self.windowing.masks.get("nothing"):
            raise InputError("restore guides an unconditional model; train with sequence.masks: {nothing: 1, …} among the laws")
        nothing = torch.zeros(len(given), *self.contract.shape, dtype=torch.bool)
        z, units = self._encoded(torch.full(nothing.shape, torch.nan, dtype=torch.float64), nothing)
        scale = (units.scale[0] * self._unit(units.scale))[:, 0]
        same = Contract.from_json({**self.contract.to_json(), "shift": units.shift[0, :, 0].tolist(), "scale": scale.tolist()})
        cond = self._condition(torch.zeros_like(z), nothing, ~nothing, known)
        spread = torch.tensor(self.contract.scale, dtype=scale.dtype) / scale
        told = {"data_variance": float(spread.square().mean())} if method == "pigdm" else {}
        ensemble = restore(
            self.denoiser, in_model_units(given, same), method=method, calls=calls, draws=draws, noise=noise,
            options={**told, **(options or {})}, cond=cond, batch_size=batch_size or ROWS, device=self.device, progress=progress,
        )  # fmt: skip
        return Ensemble(same.decode(ensemble.draws.cpu().double()))

    def plan_of(self, sampler: Plan | int | None) -> Plan:
        """The plan meant: itself, the one for a number of calls (calibrated to these weights if there is one), or the default."""
        return meant(sampler, self.denoiser, self.plan, self.calibrated)

    def memories(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The condition of the denoiser for a forecast of every window of a batch: what plans are calibrated on."""
        x = batch["x"]
        past = torch.arange(x.shape[-1]) < self.windowing.context
        shown = x.isfinite() & past
        z, _ = self._encoded(x, shown)
        return self._condition(self._told(z, shown), shown, x.isfinite() & ~past, batch["features"])

    def _encoded(self, x: Tensor, shown: Tensor) -> tuple[Tensor, scaling.Frame]:
        """Windows in model units by what is shown of them, float32, and these units."""
        units = scaling.frame(self.windowing.scaling, x, shown, self.contract)
        return units.encode(x).float(), units

    def _told(self, z: Tensor, shown: Tensor) -> Tensor:
        """What is shown of z (B, C, L), and between it lines, or zeros: what is drawn departs from here."""
        return scaling.interpolated(z, shown) if self.windowing.interpolated else torch.where(shown, z, torch.zeros_like(z))

    def _unit(self, like: Tensor) -> Tensor:
        """The units (C, 1) of what is drawn, in model units: 1, or each channel's usual departure from lines."""
        return torch.tensor(self.windowing.departures or (1.0,), dtype=like.dtype, device=like.device)[:, None]

    @staticmethod
    def _condition(told: Tensor, shown: Tensor, asked: Tensor, known: Tensor) -> dict[str, Tensor]:
        """What the network is told: `_told`, what of it is shown, what is asked, and the features of the times."""
        given = {"given": torch.cat([told, shown.to(told), asked.to(told)], 1)}
        return given | ({"features": known.float()} if known.shape[1] else {})


def build(
    recipe: Recipe, contract: Contract, process: GaussianProcess | None, net: str, make: Callable[..., nn.Module]
) -> ImputerSystem:
    """The imputer of a recipe around the network `make(channels, features, …)`, which the recipe must call `net`."""
    windowing = Windowing.of(recipe)
    if recipe.net.name != net:
        raise InputError(f"net.name={recipe.net.name!r} is not for {recipe.system}; set net.name: {net}")
    if windowing.interpolated and len(windowing.departures) != contract.shape[0]:
        raise InputError(
            f"sequence.departures={list(windowing.departures)} must be one number for each of {contract.shape[0]} channels"
        )
    process = process if process is not None else make_process(recipe.process)
    arguments = {"channels": contract.shape[0], "features": windowing.features, **recipe.net.options}
    made = seeded(recipe, lambda: called(make, arguments, "net.options"))
    sigma_data = recipe.sigma_data or 1.0
    denoiser = called(
        Denoiser, {"net": made, "process": process, "predicts": recipe.predicts, "sigma_data": sigma_data}, "predicts"
    )
    loss = make_loss(recipe, contract, process, sigma_data)
    if not isinstance(loss, DenoisingLoss):
        raise InputError(f"loss.objective={recipe.loss.objective!r} is not for series; set loss.objective: denoising")
    return ImputerSystem(contract, denoiser, loss, make_plan(process, recipe.sampler), windowing)
