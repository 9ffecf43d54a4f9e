"""What happens between training steps: averaging, saving, stopping, logging, sample pictures and the progress line."""

from __future__ import annotations

import csv
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor

from ornstein import figures, model
from ornstein.config import Recipe, TrainConfig
from ornstein.image.classifier import ClassifierSystem
from ornstein.kinds import Model, OfSeries
from ornstein.noise import Noise
from ornstein.system import System

STATE = "state.ckpt"
LOG = "log.csv"
COLUMNS = ("step", "loss", "validation", "learning_rate", "data_per_second", "seconds")


class EMA(WeightAveraging):
    """Lightning's weight averaging with decay min(ema, (1 + k)/(10 + k)) at step k + 1, so that early weights are forgotten."""

    def __init__(self, decay: float) -> None:
        def average(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
            k = int(count)
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + k) / (10 + k)))

        super().__init__(use_buffers=False, multi_avg_fn=average)

    @property
    def system(self) -> Model:
        """The system with averaged weights."""
        if self._average_model is None:
            raise RuntimeError("the averaged model exists only while training")
        return self._average_model.module.system


class Keeper(Callback):
    """Saves model and training state every so often and at the end, and ends the run on a signal or by the clock.

    The state goes to a temporary name, is flushed to disk and renamed: a run that is killed leaves the previous one whole.
    """

    def __init__(self, recipe: Recipe, out: Path, ema: EMA) -> None:
        self.recipe, self.out, self.ema = recipe, out, ema
        self.stop_asked = False
        self.kept_step = self.seen_step = -1
        self.begun = self.kept = self.pictured = time.monotonic()
        self.handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock and take over Ctrl-C and SIGTERM: the first asks to stop, a second Ctrl-C ends at once."""
        self.begun = self.kept = self.pictured = time.monotonic()
        self.seen_step = trainer.global_step  # a share of a step that is accumulated further is no place to save or stop
        if threading.current_thread() is not threading.main_thread():
            return

        def ask(number: int, frame: object) -> None:
            self.stop_asked = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        self.handlers = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimiser step: save if it is time, and see whether the run should end."""
        if trainer.global_step == self.seen_step:
            return
        self.seen_step = trainer.global_step
        config, now = self.recipe.train, time.monotonic()
        due = now - self.kept > 60 * config.checkpoint_minutes
        over = config.minutes is not None and now - self.begun > 60 * config.minutes
        picture = now - self.pictured > 60 * config.sample_minutes
        # processes have clocks and signals of their own: the first one's word counts
        due, stop, picture = trainer.strategy.broadcast((due, self.stop_asked or over, picture))
        if config.checkpoint_steps is not None:
            due = due or trainer.global_step % config.checkpoint_steps == 0
        if stop:
            trainer.should_stop = True
        elif due:
            self.keep(trainer)
        if picture and trainer.is_global_zero:
            self.pictured = now
            self.picture(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The run ends (it is one long epoch): save, before the averaged weights take the place of the current ones."""
        self.keep(trainer)

    def on_exception(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException) -> None:
        """Give the signals back; what was last saved stays."""
        self._release()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Give the signals back."""
        self._release()

    def _release(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    def keep(self, trainer: lightning.Trainer) -> None:
        """Save the training state (every process takes part) and the averaged model."""
        if trainer.global_step == self.kept_step:
            return
        self.kept_step, self.kept = trainer.global_step, time.monotonic()
        folder = self.out / model.RESUME
        temporary = folder / f"{STATE}.tmp"
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            if temporary.is_file():
                with temporary.open("rb+") as written:
                    os.fsync(written.fileno())
            os.replace(temporary, folder / STATE)
            model.save(self.out, self.recipe, self.ema.system)
        trainer.strategy.barrier()

    def picture(self, trainer: lightning.Trainer) -> None:
        """Draw samples with the averaged weights into samples/, and images into the TensorBoard log."""
        system = self.ema.system
        if isinstance(system, ClassifierSystem | OfSeries):
            return  # they draw nothing by themselves
        path = self.out / "samples" / f"step-{trainer.global_step:07d}.png"
        calls, cond = (20, system.examples(16)) if isinstance(system, System) else (None, None)
        if len(system.contract.shape) == 1:
            figures.rows_picture(system.sample(figures.POINTS, sampler=calls, noise=Noise(0)), system.contract, path)
            return
        drawn = system.sample(16, cond=cond, sampler=calls, noise=Noise(0))
        grid = figures.image_grid(drawn, system.contract, path)
        if trainer.logger is not None:
            trainer.logger.experiment.add_image("samples", grid, trainer.global_step, dataformats="HWC")


class Progress(Callback):
    """The progress line (step, loss, data per second, time left), the CSV log and the scalars of TensorBoard.

    On a terminal the line is a bar; elsewhere a line is printed every 30 seconds.
    """

    def __init__(self, config: TrainConfig, out: Path, *, enabled: bool) -> None:
        self.config, self.out, self.enabled = config, out, enabled
        self.loss = math.nan
        self.first_step = 0
        self.begun = self.told = self.written = 0.0
        self.written_step = 0
        self.bar: Any = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start counting, and drop log lines of steps that were lost when a run was killed."""
        self.first_step = self.written_step = trainer.global_step
        self.begun = self.told = self.written = time.monotonic()
        if not trainer.is_global_zero:
            return
        kept = [row for row in read_log(self.out) if int(row["step"]) <= trainer.global_step] if self.first_step else []
        with (self.out / LOG).open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        if self.enabled and sys.stderr.isatty():
            self._open_bar()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell how far the run is, and log every tenth step."""
        step, now = trainer.global_step, time.monotonic()
        value = float(trainer.callback_metrics["loss"])
        self.loss = value if math.isnan(self.loss) else self.loss + 0.05 * (value - self.loss)
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} at step {step}; lower train.learning_rate, or set train.precision: float32. "
                f"The last good state is in {self.out / model.RESUME}"
            )
        if not trainer.is_global_zero:
            return
        if step % 10 == 0 and step > self.written_step:
            self._log(trainer, value)
        if not self.enabled:
            return
        if self.bar is not None:
            self.bar.update(0, completed=self._share(step, now), text=self._text(step, now))
        elif now - self.told > 30:
            self.told = now
            print(f"{self._text(step, now)}, {self._left(step, now)} left", file=sys.stderr, flush=True)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log the validation loss."""
        if trainer.is_global_zero and "validation" in trainer.callback_metrics:
            self._write({"step": trainer.global_step, "validation": float(trainer.callback_metrics["validation"])})
            if trainer.logger is not None:
                trainer.logger.log_metrics({"validation": float(trainer.callback_metrics["validation"])}, trainer.global_step)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Close the bar and say how it ended."""
        self._close_bar()
        if self.enabled and trainer.is_global_zero:
            print(f"trained {self._text(trainer.global_step, time.monotonic())}", file=sys.stderr, flush=True)

    def on_exception(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._close_bar()

    def _log(self, trainer: lightning.Trainer, loss: float) -> None:
        now = time.monotonic()
        rate = (trainer.global_step - self.written_step) * self.config.batch / max(now - self.written, 1e-9)
        self.written, self.written_step = now, trainer.global_step
        rates = {"learning_rate": trainer.optimizers[0].param_groups[0]["lr"], "data_per_second": round(rate, 1)}
        self._write({"step": trainer.global_step, "loss": loss, **rates, "seconds": round(now - self.begun, 2)})
        if trainer.logger is not None:
            trainer.logger.log_metrics({"loss": loss, **rates}, trainer.global_step)

    def _write(self, row: dict[str, float]) -> None:
        with (self.out / LOG).open("a", newline="") as stream:
            csv.DictWriter(stream, COLUMNS).writerow(row)

    def _share(self, step: int, now: float) -> float:
        shares = [step / self.config.steps]
        if self.config.minutes is not None:
            shares.append((now - self.begun) / (60 * self.config.minutes))
        return min(max(shares), 1.0)

    def _left(self, step: int, now: float) -> str:
        done = step - self.first_step
        lefts = [(self.config.steps - step) * (now - self.begun) / max(done, 1)]
        if self.config.minutes is not None:
            lefts.append(60 * self.config.minutes - (now - self.begun))
        seconds = int(max(min(lefts), 0))
        return f"{seconds // 3600:d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def _text(self, step: int, now: float) -> str:
        rate = (step - self.first_step) * self.config.batch / max(now - self.begun, 1e-9)
        return f"step {step}/{self.config.steps}, loss {self.loss:.4f}, {rate:.0f} data/s"

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        text = TextColumn("{task.fields[text]}")
        columns = (BarColumn(), TaskProgressColumn(), text, TimeElapsedColumn(), TimeRemainingColumn())
        self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self.bar.add_task("train", total=1.0, text="")
        self.bar.start()

    def _close_bar(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def read_log(out: Path) -> list[dict[str, str]]:
    """The rows of a run's log.csv; none if there is no log."""
    path = out / LOG
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))
