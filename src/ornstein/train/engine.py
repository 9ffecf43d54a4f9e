"""Training on Lightning's Trainer: our part is which data, times and noise step k sees, and what is kept.

Data order, times and noise are functions of (seed, step), so that a resumed run needs only weights, averaged weights, optimiser
and step, and W processes see what one process with the whole batch sees.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import lightning
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchmetrics import MeanMetric

from ornstein import model
from ornstein.config import Recipe, TrainConfig
from ornstein.contract import Contract
from ornstein.files import InputError, inside, read_json
from ornstein.hardware import half_precision, has_double
from ornstein.image.cold import ColdSystem
from ornstein.image.end_state import FITTED_ROWS
from ornstein.kinds import Model
from ornstein.losses import LossAware, Times
from ornstein.noise import Noise
from ornstein.process import Chain
from ornstein.system import System
from ornstein.train.callbacks import EMA, STATE, Keeper, Progress

PRECISIONS = {"float32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
VALIDATION_DATA = 2048
"""At most so many held-out data enter the validation loss."""


class Data(Protocol):
    """What training asks of data: a length, and batches by index with "x" and, if labelled, "label"."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The data at `indices` (B,): "x" (B, *) in their own range and, if labelled, "label" (B,) int64."""


@dataclass(frozen=True)
class Share:
    """The part of step `step` that one process computes at once: samples first … first + len(indices) - 1 of the batch."""

    step: int
    first: int
    indices: Tensor


@dataclass(frozen=True)
class Order:
    """Which datum is where: position p of the endless stream is place p mod n of the permutation of epoch p // n."""

    n: int
    batch: int
    noise: Noise

    def indices(self, step: int) -> Tensor:
        """The `batch` data of a step, (batch,) int64."""
        start = step * self.batch
        parts, position = [], start
        while position < start + self.batch:
            epoch, place = divmod(position, self.n)
            take = min(self.n - place, start + self.batch - position)
            parts.append(self._permutation(epoch)[place : place + take])
            position += take
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        return self.noise.permutation(self.n, stream="order", step=epoch)


class Shares(Sampler[Share]):
    """The endless sequence of shares of one process, starting where the trainer stands."""

    def __init__(self, order: Order, accumulate: int, trainer: lightning.Trainer) -> None:
        self.order, self.accumulate, self.trainer = order, accumulate, trainer

    def __iter__(self) -> Iterator[Share]:
        world, rank = self.trainer.world_size, self.trainer.global_rank
        size = self.order.batch // (world * self.accumulate)
        step = self.trainer.global_step
        while True:
            indices = self.order.indices(step)
            for part in range(self.accumulate):
                first = (part * world + rank) * size
                yield Share(step, first, indices[first : first + size])
            step += 1


class Reader(Dataset[dict[str, Any]]):
    """Turns a share into a batch."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def __getitem__(self, share: Share) -> dict[str, Any]:
        return {**self.data.batch(share.indices), "step": share.step, "first": share.first}


class Module(lightning.LightningModule):
    """A system as Lightning sees it: its loss, its optimiser, its validation loss."""

    def __init__(self, system: Model, config: TrainConfig) -> None:
        super().__init__()
        self.system, self.config = system, config
        self.net = system.net
        self.noise = Noise(config.seed)
        self.aware = loss_aware(system)
        self.held = MeanMetric()  # by data, not by process: shares differ in size
        self.judge: Model = system
        if isinstance(system, System) and self.aware is not None:
            # held-out data are judged at the same times always, and teach the loss-aware sampler nothing
            even = Times("discrete" if isinstance(system.denoiser.process, Chain) else "uniform")
            self.judge = replace(system, loss_function=replace(system.loss_function, times=even))
        self.dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for m in system.net.modules())

    def transfer_batch_to_device(self, batch: dict[str, Any], device: torch.device, dataloader_idx: int) -> dict[str, Any]:
        """The batch on its device, in float32 where that has no float64."""
        if not has_double(device):
            batch = {name: part.float() if _is_double(part) else part for name, part in batch.items()}
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        """The mean loss of a share."""
        step, first = int(batch["step"]), int(batch["first"])
        if not self.dropout:
            losses = self._losses(batch, step, first)
        else:
            # nn.Dropout takes torch's default generator: lend it one keyed by (seed, step, share) and put it back
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                torch.default_generator.manual_seed(self.noise.key(f"dropout/{first}", step) & (2**63 - 1))
                losses = self._losses(batch, step, first)
        loss = losses.mean()
        self.log("loss", loss.detach(), sync_dist=self.trainer.world_size > 1, logger=False)
        return loss

    def _losses(self, batch: dict[str, Any], step: int, first: int) -> Tensor:
        return self.system.loss(batch, self.noise, step=step, first=first, total=self.config.batch)

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        """The loss of held-out data, with the same times and noise every time."""
        losses = self.judge.loss(batch, Noise(self.config.seed + 1), step=0, first=int(batch["first"]), total=VALIDATION_DATA)
        self.held.update(losses)

    def on_validation_epoch_end(self) -> None:
        """Log the mean over the held-out data of all processes."""
        self.log("validation", self.held, logger=False)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with linear warm-up, then constant or cosine to zero."""
        config = self.config
        # gradients under fp16's loss scale are clipped after unscaling, which a fused step would do too late
        fused = self.device.type in ("cpu", "cuda") and config.precision != "fp16"
        optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused
        )

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / (config.warmup + 1))
            return warm * (0.5 * (1 + math.cos(math.pi * min(step / config.steps, 1.0))) if config.schedule == "cosine" else 1.0)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradient's norm. Lightning refuses a fused optimiser under bf16 too, though only fp16 has a loss scale."""
        if gradient_clip_val and self.trainer.precision == PRECISIONS["bf16"]:
            nn.utils.clip_grad_norm_(self.net.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the loss-aware sampler's history: the only state that is not a function of (seed, step)."""
        if self.aware is not None:
            checkpoint["times"] = self.aware.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put that history back."""
        if self.aware is not None:
            self.aware.load(checkpoint["times"])


def _is_double(part: object) -> bool:
    return isinstance(part, Tensor) and part.dtype == torch.float64


def loss_aware(system: Model) -> LossAware | None:
    """The sampler of times that learns from the losses, if the system has one."""
    times = system.loss_function.times if isinstance(system, System) else None
    return times if isinstance(times, LossAware) else None


def train(
    recipe: Recipe,
    data: Data,
    held_out: Data | None,
    contract: Contract,
    out: str | Path,
    *,
    resume: bool = False,
    init: str | Path | None = None,
    device: str = "auto",
    strategy: str = "auto",
    nodes: int = 1,
    progress: bool = True,
) -> Model:
    """Train the recipe on `data` into the model directory `out`, and return the system with averaged weights.

    `resume` goes on exactly where `out` stands; `init` starts from another model's weights. Under torchrun every process
    calls this with the same arguments. Ctrl-C, SIGTERM and the clock end the run after the current step with everything saved.
    Raises InputError for a recipe that does not fit the data or the processes.
    """
    out, config = Path(out), recipe.train
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if config.batch % (world * config.accumulate):
        raise InputError(
            f"train.batch={config.batch} cannot be shared by {world} processes x train.accumulate={config.accumulate}; "
            f"make it a multiple of {world * config.accumulate}"
        )
    if recipe.loss.loss_aware and world > 1:
        raise InputError("loss.loss_aware=true learns from the losses of one process; set it to false under torchrun")
    state = out / model.RESUME / STATE
    if resume and not state.exists():
        raise InputError(f"--resume: {str(out)!r} holds no training state ({model.RESUME}/{STATE}); start without --resume")
    if resume:
        _check_state(state)
        for leftover in out.glob(".*.tmp*"):  # of a save that was killed
            leftover.unlink(missing_ok=True)
    if resume and (out / model.WEIGHTS).exists():
        _check_same(recipe, contract, out)
    if device not in ("auto", "cpu"):
        model.usable(device)
    if config.precision == "fp16" and not (torch.cuda.is_available() and device in ("auto", "cuda")):
        raise InputError("train.precision='fp16' needs a CUDA device; use bf16 or float32")
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    where = device if device != "auto" else "cuda" if accelerated else "cpu"
    precision = "bf16" if half_precision(config.precision, where) else config.precision.replace("auto", "float32")
    system = model.build(recipe, contract)
    if init is not None:
        _start_from(system, init)
    if isinstance(system, ColdSystem):
        chosen = Noise(config.seed).permutation(len(data), stream="end states")[:FITTED_ROWS]
        system.begin(data.batch(chosen)["x"], Noise(config.seed))
    if config.channels_last:
        model.arrange(system)
    if config.compile:
        system.net.compile()
    module, ema = Module(system, config), EMA(config.ema)
    keeper = Keeper(recipe, out, ema)
    out.mkdir(parents=True, exist_ok=True)
    with _quiet():
        trainer = lightning.Trainer(
            max_steps=config.steps,
            max_epochs=-1,
            accelerator={"cuda": "gpu"}.get(device, device),
            devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world > 1 or device in ("cpu", "auto") else 1,
            num_nodes=nodes,
            strategy=("ddp" if strategy == "auto" else strategy) if world > 1 else "auto",
            precision=PRECISIONS[precision],
            gradient_clip_val=config.clip_norm or None,
            accumulate_grad_batches=config.accumulate,
            # the state that is kept must hold this step's average: ema comes first
            callbacks=[ema, keeper, Progress(config, out, enabled=progress)],
            logger=TensorBoardLogger(out, name="logs", version=""),
            log_every_n_steps=10,
            val_check_interval=config.validate_every * config.accumulate if held_out is not None else None,
            limit_val_batches=1.0 if held_out is not None else 0,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=out,
        )
        shares = Shares(Order(len(data), config.batch, Noise(config.seed)), config.accumulate, trainer)
        # a loader draws a seed for its workers, which do not use it, from the global generator unless it has its own
        own = torch.Generator().manual_seed(config.seed)
        loader = DataLoader(Reader(data), sampler=shares, batch_size=None, num_workers=config.workers, generator=own)
        trainer.fit(
            module,
            loader,
            None
            if held_out is None
            else DataLoader(Reader(held_out), sampler=_Held(held_out, trainer), batch_size=None, generator=own),
            ckpt_path=state if resume else None,
            weights_only=True,
        )
    return model.load(out)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advice on settings that are chosen on purpose."""
    names = ("lightning.pytorch", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            warnings.filterwarnings("ignore", message=".*(lr_scheduler.step|isinstance.treespec, LeafSpec).*")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


class _Held(Sampler[Share]):
    """This process's part of the held-out data, in shares of 128; all of them where there are fewer than processes."""

    def __init__(self, data: Data, trainer: lightning.Trainer) -> None:
        n, world, rank = min(len(data), VALIDATION_DATA), trainer.world_size, trainer.global_rank
        first, stop = (rank * n // world, (rank + 1) * n // world) if n >= world else (0, n)
        self.parts = torch.arange(first, stop).split(128)

    def __iter__(self) -> Iterator[Share]:
        for part in self.parts:
            yield Share(0, int(part[0]), part)

    def __len__(self) -> int:
        return len(self.parts)


def _check_state(path: Path) -> None:
    """InputError for a training state that is truncated, or that holds more than tensors and plain values."""
    try:
        torch.load(path, weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(f"--resume: {str(path)!r} is damaged or no training state; start again, or use --init") from error


def _check_same(recipe: Recipe, contract: Contract, out: Path) -> None:
    """InputError if the run in `out` is of another system or of other data: its state would not fit, or not mean the same."""
    before = model.read_recipe(out)
    for name in ("condition", "grid", "sequence", "process", "predicts", "learned_variance", "sigma_data", "net"):
        old, new = getattr(before, name), getattr(recipe, name)
        if old != new:
            raise InputError(f"--resume: {name} is {new} here, was {old} in {str(out)!r}; use the same, or --init for a new run")
    if Contract.from_json(read_json(inside(out, model.DATA))) != contract:
        raise InputError(f"--resume: the data are not those of {str(out)!r} ({model.DATA} differs); use the same data, or --init")


def _start_from(system: Model, directory: str | Path) -> None:
    """Take the weights of a model directory that fit; InputError if one has another shape."""
    source = model.load(directory).net.state_dict()
    own = system.net.state_dict()
    for name, tensor in own.items():
        if name not in source or source[name].shape != tensor.shape:
            have = tuple(source[name].shape) if name in source else "nothing"
            raise InputError(f"--init {str(directory)!r}: {name} is {have} there, {tuple(tensor.shape)} here; use the same net")
    system.net.load_state_dict(source)
