"""Feature extractors: what turns images into the vectors that `distribution` compares."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ornstein.files import InputError, read_tensors, write_tensors
from ornstein.hardware import bfloat16_is_native


class Extractor(Protocol):
    """Anything with a name and a map from images (N, C, H, W), float in the data's own range, to features (N, D)."""

    @property
    def name(self) -> str:
        """What a record calls the extractor; it changes whenever the weights do."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 features (N, D) of images (N, C, H, W)."""
        ...


@dataclass(frozen=True)
class Pixels:
    """The pixels themselves, flattened, in the data's own range: for tiny images and for tests."""

    @property
    def name(self) -> str:
        """Always "pixels"."""
        return "pixels"

    def __call__(self, images: Tensor) -> Tensor:
        """Return (N, C·H·W) float32; raises InputError unless images are (N, C, H, W)."""
        return _images(images).flatten(1).float()


@dataclass(frozen=True)
class Columns:
    """The numbers of a row themselves, in the data's own units: for tables and two-dimensional laws."""

    @property
    def name(self) -> str:
        """Always "columns"."""
        return "columns"

    def __call__(self, images: Tensor) -> Tensor:
        """Return the rows (N, D) as float32; raises InputError unless they are (N, D)."""
        if images.ndim != 2:
            raise InputError(f"rows have shape {tuple(images.shape)}: expected (N, D)")
        return images.float()


@dataclass(frozen=True)
class Module:
    """A network as an extractor, evaluated without gradients in batches.

    ``net`` maps (n, C, H, W) to (n, ...), flattened to (n, D); ``label`` heads the name, which ends in a hash of the
    weights; ``preprocess`` maps float32 images in the data's own range to what the net expects.
    """

    net: nn.Module
    label: str
    preprocess: Callable[[Tensor], Tensor] | None = None
    batch: int = 500

    @property
    def name(self) -> str:
        """Label and the first 8 hex digits of the weights' hash."""
        return f"{self.label}-{weights_hash(self.net)[:8]}"

    def __call__(self, images: Tensor) -> Tensor:
        """Return (N, D) float32 features; raises InputError for wrong shapes or a net in training mode."""
        if self.net.training:
            raise InputError(f"extractor {self.label!r}: its network is in training mode; call net.eval() first")
        convert = self.preprocess or (lambda x: x)
        with torch.no_grad():
            parts = [self.net(convert(part.float())).flatten(1).float() for part in _images(images).split(self.batch)]
        return torch.cat(parts)


class Rescale(nn.Module):
    """Map [low, high] to [−1, 1] in channels-last layout; the range is saved with the weights."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.register_buffer("range", torch.tensor([low, high], dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        """Return 2(x − low)/(high − low) − 1, same shape."""
        low, high = self.get_buffer("range").unbind()
        return ((images - low) * (2 / (high - low)) - 1).contiguous(memory_format=torch.channels_last)


class Classifier(nn.Module):
    """A small convolutional classifier whose 128 penultimate activations serve as features (0.23 M parameters).

    Two stages of 3×3 convolution, 2×2 max-pooling and ReLU (32 and 96 channels), an average pool to 4×4 and a hidden
    layer of 128 SiLU units; images (N, C, H, W) of at least 8×8 in [low, high], the data's own range. ``trunk`` gives
    the features, the call logits (N, classes). Construction draws no random number: weights come from
    `train_classifier` or `load_classifier`.
    """

    def __init__(self, channels: int, classes: int, low: float, high: float) -> None:
        super().__init__()
        with torch.device("meta"):  # PyTorch's own initialisation would draw from the global generator
            self.trunk = nn.Sequential(
                nn.Identity(),
                nn.Conv2d(channels, 32, 3, padding=1),
                nn.MaxPool2d(2),  # before the ReLU, which commutes with it and then has a quarter of the work
                nn.ReLU(),
                nn.Conv2d(32, 96, 3, padding=1),
                nn.MaxPool2d(2),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(4),
                nn.Flatten(),
                nn.Linear(96 * 16, 128),
                nn.SiLU(),  # under ReLU half of the features died in training
            )
            self.head = nn.Linear(128, classes)
        self.to_empty(device="cpu")
        self.trunk[0] = Rescale(low, high)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, C, H, W) in the data's own range."""
        logits: Tensor = self.head(self.trunk(images))
        return logits


def train_classifier(
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    epochs: int = 4,
    batch: int = 256,
    rate: float = 5e-3,
    progress: Callable[[int, int, float], None] | None = None,
) -> Classifier:
    """Train a `Classifier` on images (N, C, H, W), any real dtype, and labels (N,) in 0 … K−1; return it in eval mode.

    Cross-entropy, AdamW with a one-cycle rate up to ``rate``, bf16 autocast where the processor has it; initial weights and
    data order are functions of the seed, the global generator is not touched. The range is the images' own.
    ``progress(step, steps, loss)`` is called every 50 steps. Raises InputError for wrong shapes, constant images, fewer
    than two classes, or epochs < 1.
    """
    _images(images)
    if labels.shape != (len(images),) or labels.is_floating_point() or len(images) == 0:
        raise InputError(
            f"labels: {labels.dtype} of shape {tuple(labels.shape)}; expected integers, one per image ({len(images)})"
        )
    classes = int(labels.max()) + 1
    low, high = float(images.min()), float(images.max())
    if classes < 2 or int(labels.min()) < 0:
        raise InputError(f"labels: range {int(labels.min())} to {classes - 1}; expected 0 to K-1 with at least two classes")
    if not low < high or not math.isfinite(high - low):
        raise InputError(f"images: smallest value {low}, largest {high}; a classifier needs finite images that differ")
    if epochs < 1:
        raise InputError(f"epochs={epochs}: must be at least 1; the default is 4")
    generator = torch.Generator().manual_seed(seed)
    net = Classifier(images.shape[1], classes, low, high).train()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    steps = epochs * math.ceil(len(images) / batch)
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=steps, pct_start=0.2)
    step = 0
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=generator).split(batch):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16_is_native("cpu")):
                logits = net(images[index].float())
            loss = nn.functional.cross_entropy(logits.float(), labels[index].long())
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            step += 1
            if progress is not None and (step % 50 == 0 or step == steps):
                progress(step, steps, float(loss.detach()))
    return net.eval()


def accuracy(net: Classifier, images: Tensor, labels: Tensor, *, batch: int = 500) -> float:
    """Share of images (N, C, H, W) whose largest logit is at the label (N,), in [0, 1]."""
    with torch.no_grad():
        guesses = torch.cat([net(part.float()).argmax(1) for part in _images(images).split(batch)])
    return float((guesses == labels).double().mean())


def save_classifier(path: Path | str, net: Classifier) -> None:
    """Write the weights and the range as safetensors, whole or not at all."""
    write_tensors(Path(path), {name: x.detach().contiguous() for name, x in net.state_dict().items()})


def load_classifier(path: Path | str) -> Classifier:
    """Read what `save_classifier` wrote, in eval mode; raises InputError where the tensors are not a Classifier's."""
    tensors = read_tensors(Path(path))
    try:
        low, high = tensors["trunk.0.range"].tolist()
        channels, classes = tensors["trunk.1.weight"].shape[1], tensors["head.weight"].shape[0]
        net = Classifier(channels, classes, low, high)
        net.load_state_dict(tensors)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a classifier's weights ({reason}); write it with save_classifier") from error
    return net.eval()


def classifier_features(net: Classifier, *, label: str = "classifier") -> Module:
    """The classifier's 128 penultimate activations as an extractor."""
    return Module(net.trunk, label)


def load_extractor(name: str) -> Extractor:
    """Return the extractor of this name: "pixels", "columns" or a classifier's safetensors file; raises InputError otherwise."""
    if name in ("pixels", "columns"):
        return Pixels() if name == "pixels" else Columns()
    if not name.endswith(".safetensors") or not Path(name).is_file():
        raise InputError(
            f"extractor {name!r}: must be 'pixels', 'columns' or an existing .safetensors file written by save_classifier"
        )
    return classifier_features(load_classifier(name), label=Path(name).stem)


def weights_hash(net: nn.Module) -> str:
    """SHA-256 (hex) over the names, dtypes, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, x in sorted(net.state_dict().items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _images(images: Tensor) -> Tensor:
    if images.ndim != 4:
        raise InputError(f"images have shape {tuple(images.shape)}: expected (N, C, H, W)")
    return images
