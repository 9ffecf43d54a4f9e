"""Noise-conditional classifiers of images (row D1): half a U-Net that says which class x_t is of, at every noise level.

| paper (arXiv 2105.05233) | here |
|---|---|
| section 4, half U-Net with attention pooling | `nets.HalfUNet` |
| section 4, trained on x_t of the diffusion model's process | `ClassifierSystem.loss` |
| section 4.1, algorithms 1 and 2 | `guidance.MeanShift`, `guidance.ClassifierGuided` |

It is trained by `ornstein train classifier` as any other system, and guides one (`ClassifierSystem.guide`); it draws nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.assemble import called, make_process, seeded
from ornstein.config import LossConfig, NetConfig, Recipe, SamplerConfig
from ornstein.contract import Contract
from ornstein.files import InputError
from ornstein.guidance import ClassifierGuided, Guide, NoisyClassifier
from ornstein.guidance.line import Scale
from ornstein.image.data import ImageData
from ornstein.losses import Times, mirrored
from ornstein.metrics import Record
from ornstein.nets import HalfUNet
from ornstein.noise import Noise
from ornstein.process import GaussianProcess
from ornstein.process.gaussian import Time

LEVELS = (0.01, 0.03, 0.1, 0.3, 0.6, 1.0, 2.0, 3.0, 6.0, 10.0, 30.0)
"""Noise levels sigma/alpha, in model units, at which accuracy is measured, as far as the process reaches them."""
_USED = ("times", "mean", "std", "low_discrepancy")


class Labelled(Protocol):
    """Data by index: "x" (B, *) in their own range and "label" (B,) int64."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The data at `indices` (B,)."""


@dataclass(eq=False)
class ClassifierSystem:
    """A trained or trainable noise-conditional classifier and the contract of its data, as training and guidance need them.

    Batches hold "x" (B, C, H, W) in the data's own range and "label" (B,); x_t is in model units. `times` says where in t it is
    trained, `flip` mirrors half of the training images.
    """

    contract: Contract
    classifier: NoisyClassifier
    times: Times
    flip: bool = False
    condition: ClassVar[str] = "label"
    plan: ClassVar[None] = None

    @property
    def net(self) -> nn.Module:
        """The network with the trained weights."""
        return self.classifier.net

    @property
    def process(self) -> GaussianProcess:
        """The process whose x_t it classifies."""
        return self.classifier.process

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    def loss(
        self, batch: Mapping[str, Tensor], noise: Noise, *, step: int = 0, first: int = 0, total: int | None = None
    ) -> Tensor:
        """-log p(label | x_t) in nats of every datum of a batch, (B,); sample i is keyed by (step, first + i)."""
        x0 = self.contract.encode(batch["x"])
        n = len(x0)
        if self.flip:
            x0 = mirrored(x0, noise, step=step, first=first)
        t, importance = self.times.draw(self.process, n, noise, step=step, first=first, total=total)
        eps = noise.normal(x0.shape, stream="train", step=step, first=first, dtype=x0.dtype, device=x0.device)
        logits = self.classifier(self.process.corrupt(x0, t, eps), t)
        return functional.cross_entropy(logits, batch["label"], reduction="none") * importance.to(logits)

    def log_prob(self, x_t: Tensor, t: Time) -> Tensor:
        """log p(c | x_t) in nats, (B, classes), of x_t (B, C, H, W) in model units at time t, a number or (B,)."""
        return self.classifier(x_t, t).log_softmax(1)

    def guide(self, scale: Scale, contract: Contract, *, told: bool = False) -> Guide:
        """Denoiser -> `ClassifierGuided` denoiser, for a model of data under `contract`; cond["label"] counts our classes.

        The denoiser may have another process. InputError for data of another shape or in other model units, or for other
        classes where the model has some.
        """
        mine = self.contract
        for name in ("shape", "shift", "scale"):
            if getattr(mine, name) != getattr(contract, name):
                raise InputError(
                    f"the classifier was trained on data of {name} {getattr(mine, name)}, the model on "
                    f"{getattr(contract, name)}; train it on the model's data"
                )
        if contract.classes is not None and contract.classes != mine.classes:
            raise InputError(
                f"the classifier knows the classes {', '.join(mine.classes or ())}, the model {', '.join(contract.classes)}; "
                "train it on the model's data"
            )
        return lambda denoiser: ClassifierGuided(denoiser, self.classifier.on(denoiser.process), scale, told)

    def sample(self, *arguments: object, **options: object) -> NoReturn:
        """InputError: a classifier has nothing to draw from."""
        raise InputError(
            "a classifier says what an image is of and draws none; sample a diffusion model, guided by this one: --classifier"
        )

    draw = bound = sample


def levels_of(process: GaussianProcess) -> dict[float, float]:
    """The `LEVELS` sigma/alpha that a process reaches, and its times there."""
    ends = [float(process.log_ratio(t)) for t in (process.t_min, 1.0)]
    inside = [level for level in LEVELS if ends[0] <= math.log(level) <= ends[1]]
    return {level: float(process.time_of(torch.tensor(math.log(level), dtype=torch.float64))) for level in inside}


@torch.no_grad()
def accuracy_by_level(
    system: ClassifierSystem, data: Labelled, *, n: int = 2048, seed: int = 0, batch: int = 256
) -> list[Record]:
    """The share of (at most n) images whose own class has the largest logit in x_t, a record per noise level sigma/alpha."""
    rows = Noise(seed).permutation(len(data), stream="evaluate")[:n]
    noise, records = Noise(seed), []
    for level, t in levels_of(system.process).items():
        begun, right = time.monotonic(), 0
        for first in range(0, len(rows), batch):
            part = data.batch(rows[first : first + batch])
            x0 = system.contract.encode(part["x"]).to(system.device)
            eps = noise.normal(x0.shape, stream="evaluate", first=first, device=x0.device)
            guess = system.classifier(system.process.corrupt(x0, t, eps), t).argmax(1).cpu()
            right += int((guess == part["label"]).sum())
        share, count = right / len(rows), len(rows)
        # Wilson's interval keeps to [0, 1] and is not empty when all are right
        centre, half = (right + 2) / (count + 4), 2 * math.sqrt(right * (count - right) / count + 1) / (count + 4)
        interval = (centre - half, centre + half)
        seconds = time.monotonic() - begun
        records.append(Record("accuracy", share, count, "none", seed, seconds, interval, f"sigma/alpha = {level:g}"))
    return records


def prepare(recipe: Recipe, data: ImageData) -> tuple[Recipe, list[str]]:
    """The recipe as it is; InputError for data without labels."""
    _classes(data.contract)
    data.require_labels()
    return recipe, []


def initialise(recipe: Recipe, contract: Contract, process: GaussianProcess | None = None) -> ClassifierSystem:
    """The system of a recipe: process, network options, sigma_data and the loss's times; freshly initialised.

    InputError for data without labels, or a recipe that asks for what a classifier has not.
    """
    classes = _classes(contract)
    if len(contract.shape) != 3:
        raise InputError(f"data of shape {contract.shape} are not images (channels, height, width), which a classifier takes")
    expected = {
        "condition": None,
        "predicts": Recipe.model_fields["predicts"].default,
        "learned_variance": False,
        "sampler": SamplerConfig(),
        "net": NetConfig(options=recipe.net.options),
        "loss": LossConfig(**{name: getattr(recipe.loss, name) for name in _USED}),
    }
    for name, value in expected.items():
        if getattr(recipe, name) != value:
            shown = "leave it out" if name in ("sampler", "net", "loss") else f"set it to {value!r}".replace("None", "null")
            only = {"loss": f", whose loss has {', '.join(_USED)} alone", "net": ", whose net has options alone"}.get(name, "")
            raise InputError(f"{name}={getattr(recipe, name)!r} says nothing to a classifier{only}; {shown}")
    process = process if process is not None else make_process(recipe.process)
    chosen = {"distribution": recipe.loss.times} | {name: getattr(recipe.loss, name) for name in _USED[1:]}
    times = called(Times, chosen, "loss")
    called(lambda: times.draw(process, 1, Noise(0)), {}, "loss")
    given = {"size": contract.shape[1:], "classes": classes, "in_channels": contract.shape[0]}
    net = seeded(recipe, lambda: called(HalfUNet, {**given, **recipe.net.options}, "net.options"))
    return ClassifierSystem(
        contract, NoisyClassifier(net, process, recipe.sigma_data or contract.std), times, flip=recipe.data.flip
    )


def _classes(contract: Contract) -> int:
    if contract.classes is None or len(contract.classes) < 2:
        have = "no labels" if contract.classes is None else f"one class, {contract.classes[0]!r}"
        raise InputError(f"the data have {have}, and a classifier learns to tell classes apart; put images into class folders")
    return len(contract.classes)
