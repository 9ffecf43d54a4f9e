"""Classifier guidance (Dhariwal and Nichol 2021, arXiv 2105.05233): p(x_t | c) ∝ p(x_t) p(c | x_t)^scale, in the score.

| form | what it does | for |
|---|---|---|
| `ClassifierGuided` | x0 + scale·(sigma²/alpha)·∇ log p(c given x_t), a classifier of noisy data | any sampler |
| `CleanClassifierGuided` | the same with log p(c given x0(x_t)), a classifier of clean data | any sampler |
| `MeanShift` | x_s + scale·Σ·∇ log p(c given x_t) after a row of variance Σ | stochastic plans |

The gradient is that of each sample's own class, so that samples do not know of each other. `cond["label"]` (B,) is the wanted
class; rows whose `null` is True stay unguided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ornstein.denoiser import Condition, Denoises, Differentiable, Prediction, network_input
from ornstein.files import InputError
from ornstein.guidance.line import Scale, strength
from ornstein.process import GaussianProcess, align
from ornstein.process.gaussian import Time
from ornstein.samplers import Step


class Classifies(Protocol):
    """A classifier of noisy data: logits (B, K) of x_t (B, *) at time t, a number or (B,)."""

    def __call__(self, x_t: Tensor, t: Time) -> Tensor:
        """Unnormalised log p(c | x_t), (B, K), differentiable in x_t."""


class NoisyClassifier(nn.Module):
    """A network trained to classify x_t at every noise level of a process: logits = net(c_in·x_t, c_noise).

    net(x, c_noise) takes c_in·x_t (B, *) and c_noise (B,), scaled as a `Denoiser` scales them for data of standard deviation
    `sigma_data`, and returns logits (B, K). Source: Dhariwal and Nichol 2021, arXiv 2105.05233, section 4.
    """

    def __init__(self, net: nn.Module, process: GaussianProcess, sigma_data: float = 1.0) -> None:
        super().__init__()
        self.net, self.process, self.sigma_data = net, process, sigma_data

    def forward(self, x_t: Tensor, t: Time) -> Tensor:
        """Logits (B, K) of x_t (B, *) at time t in [0, 1], a number or (B,)."""
        times = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        logits: Tensor = self.net(*network_input(x_t, self.process, times, self.sigma_data))
        return logits

    def on(self, process: GaussianProcess) -> Classifies:
        """The same classifier for x_t of another process: at equal sigma/alpha, x_t/alpha is the same.

        Where the other process is noisier than this one ever is, the label of its last level is used.
        """
        return self if process == self.process else _Translated(self, process)


@dataclass(frozen=True)
class _Translated:
    classifier: NoisyClassifier
    process: GaussianProcess

    def __call__(self, x_t: Tensor, t: Time) -> Tensor:
        """Logits at the time of the classifier's process that has the same sigma/alpha."""
        own = self.classifier.process.time_of(self.process.log_ratio(t))
        ratio = self.classifier.process.moments(own)[0] / self.process.moments(t)[0]
        return self.classifier(align(ratio, x_t) * x_t, own)


class KnowsDensity(Protocol):
    """A law that knows its density at every noise level, as `ornstein.testing` has them."""

    process: GaussianProcess

    def log_prob(self, x_t: Tensor, t: Time = None) -> Tensor:
        """log p_t(x_t) in nats, (B,)."""


@dataclass(frozen=True)
class BayesClassifier:
    """The exact classifier of noisy data: log p_t(c | x_t) = log w_c + log p_t(x_t | c) + const, from the laws of K classes.

    `laws` are oracles of the classes on one process, `weights` their shares (K,). `ClassifierGuided` by it equals
    `ClassifierFree` with exact scores.
    """

    laws: Sequence[KnowsDensity]
    weights: Sequence[float]

    @property
    def process(self) -> GaussianProcess:
        """The process of the laws."""
        return self.laws[0].process

    def __call__(self, x_t: Tensor, t: Time) -> Tensor:
        """log w_c + log p_t(x_t | c), (B, K), float64."""
        return torch.stack([law.log_prob(x_t, t) + math.log(w) for law, w in zip(self.laws, self.weights, strict=True)], 1)


def class_gradient(classifier: Classifies, x_t: Tensor, t: Time, cond: Condition) -> Tensor:
    """∇ log p(c_i | x_t,i) of every sample's own class c_i = cond["label"][i], like x_t; 0 where cond["null"] is True.

    The sum over the batch is differentiated: as no sample's logits depend on another's, each gradient is its own. It can be
    differentiated again if x_t asks for gradients. InputError for a class that the classifier does not know.
    """
    label = (cond or {}).get("label")
    if cond is None or label is None:
        raise InputError('classifier guidance needs the wanted class of every sample; give cond={"label": …}')
    again = torch.is_grad_enabled() and x_t.requires_grad
    with torch.enable_grad():
        leaf = x_t if again else x_t.detach().requires_grad_()
        logits = classifier(leaf, t)
        wrong = (label < 0) | (label >= logits.shape[1])
        if bool(wrong.any()):
            raise InputError(f"cond['label'] holds {int(label[wrong][0])}, but the classifier knows 0 to {logits.shape[1] - 1}")
        own = logits.log_softmax(1).gather(1, label.long().unsqueeze(1)).sum()
        (gradient,) = torch.autograd.grad(own, leaf, create_graph=again)
    null = cond.get("null")
    return gradient if null is None else torch.where(null.reshape(-1, *[1] * (x_t.ndim - 1)), 0.0, gradient)


@dataclass(frozen=True)
class Unconditional:
    """A denoiser that is not told the class: it is asked with cond["label"] and answers as without, x0(x_t) of all classes.

    For a network trained without labels, or trained with its label withheld at times, whose unconditional branch this is.
    """

    denoiser: Denoises

    @property
    def process(self) -> GaussianProcess:
        """The wrapped denoiser's process."""
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        """The wrapped prediction at x_t (B, *) and t, without the label."""
        rest = {name: value for name, value in (cond or {}).items() if name != "label"}
        return self.denoiser(x_t, t, rest if rest.keys() - {"null"} else None)


@dataclass(frozen=True)
class ClassifierGuided:
    """A denoiser guided by a classifier of noisy data: x0 + scale·(sigma²/alpha)·∇ log p(c | x_t), c = cond["label"].

    `classifier(x_t, t)` gives logits (B, K) on the denoiser's process: a `NoisyClassifier`, a `BayesClassifier`, or any
    function. `scale` is a number or a function of t; 1 is Bayes' rule, 0 the unconditional model. The network itself is told the
    class only if `told`. One evaluation of the network and one, forward and backward, of the classifier. Without a condition
    nothing is guided. ValueError for a classifier of another process, a scale that is not finite, and where alpha = 0.
    Source: Dhariwal and Nichol 2021, arXiv 2105.05233, algorithm 2: eps - scale·sigma·∇ log p, the same in x0.
    """

    denoiser: Denoises
    classifier: Classifies
    scale: Scale
    told: bool = False

    def __post_init__(self) -> None:
        _check(self.scale)
        own = getattr(self.classifier, "process", None)
        if own is not None and own != self.denoiser.process:
            raise ValueError(
                f"the classifier was made for {type(own).__name__}, and its x_t are not those of "
                f"{type(self.denoiser.process).__name__} with these options; give classifier.on(denoiser.process)"
            )

    @property
    def process(self) -> GaussianProcess:
        """The wrapped denoiser's process."""
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        """The guided prediction at x_t (B, *) and t, a number or (B,), for the classes cond["label"] (B,)."""
        prediction = _asked(self.denoiser, self.told)(x_t, t, cond)
        if cond is None or self.scale == 0:
            return prediction
        return _guided(prediction, class_gradient(self.classifier, x_t, t, cond), strength(self.scale, None, self.process, t))


@dataclass(frozen=True)
class CleanClassifierGuided:
    """A denoiser guided by a classifier of clean data, asked at the predicted x0: scale·(sigma²/alpha)·∇ log p(c | x0(x_t)).

    `classifier(x)` gives logits (B, K) of data (B, *); `decode` takes x0 to the units it was trained in (a contract's
    `decode`). The gradient goes back through the network. p(c | x_t) is the mean of p(c | x0) over the posterior, not its value
    at the posterior's mean: unlike a noisy classifier this one is no exact guide, however good it is.
    ValueError for a scale that is not finite, and where alpha = 0. Source: the approximation is that of Chung et al. 2023,
    arXiv 2209.14687, eq. 12; for classifiers Bansal et al. 2023, arXiv 2302.07121, eq. 6.
    """

    denoiser: Denoises
    classifier: Callable[[Tensor], Tensor]
    scale: Scale
    decode: Callable[[Tensor], Tensor] | None = None
    told: bool = False

    def __post_init__(self) -> None:
        _check(self.scale)

    @property
    def process(self) -> GaussianProcess:
        """The wrapped denoiser's process."""
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        """The guided prediction at x_t (B, *) and t, a number or (B,), for the classes cond["label"] (B,)."""
        network = _asked(self.denoiser, self.told)
        if cond is None or self.scale == 0:
            return network(x_t, t, cond)
        prediction = Differentiable(network)(x_t, t, cond)
        assert prediction.pullback is not None
        decode = self.decode or (lambda x: x)
        towards = class_gradient(lambda x0, _: self.classifier(decode(x0)), prediction.x0, t, cond)
        return _guided(prediction, prediction.pullback(towards), strength(self.scale, None, self.process, t))


@dataclass(frozen=True)
class MeanShift:
    """The hook x_s ← x_s + scale·Σ·∇ log p(c | x_t), Σ = std² of the row's noise: guidance of the reverse kernel's mean.

    For plans whose rows are reverse kernels: `ancestral`, `ddim` with eta > 0, `euler_maruyama`, `reverse_diffusion`. Against
    the score form the shift of a row is alpha_t/alpha_s times as large for Σ = β: the same to first order in the step (and
    the same on VE and EDM). For Σ = β̃ it is sigma_s²/sigma_t² of that, which falls to 0 at the last steps. The class in
    cond["label"] also reaches the denoiser: wrap one that takes none in `Unconditional`. ValueError for rows without noise,
    where it would do nothing, and for rows that look elsewhere than where they start (churn, two-stage methods).
    Source: Dhariwal and Nichol 2021, arXiv 2105.05233, algorithm 1.
    """

    classifier: Classifies
    scale: Scale

    def __post_init__(self) -> None:
        _check(self.scale)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """x (B, *) after a row, its mean shifted; the last row, which adds no noise, is left alone."""
        if step.t != step.before:
            raise ValueError(
                f"row {step.index} looks at t={step.t:.4g} and starts at {step.before:.4g}: it is no reverse kernel whose mean "
                "could be shifted; use ancestral, ddim with eta > 0 or euler_maruyama, or the score form ClassifierGuided"
            )
        if isinstance(step.std, float | int) and step.std == 0:
            if step.s is None and step.index > 0:
                return x
            raise ValueError(
                f"row {step.index} adds no noise: its Σ is 0 and a mean shift does nothing; use a stochastic plan (ancestral, "
                "ddim with eta > 0, euler_maruyama), or the score form ClassifierGuided"
            )
        gradient = class_gradient(self.classifier, step.prediction.x_t, step.t, step.cond)
        scale = self.scale(step.t) if callable(self.scale) else self.scale
        _check(scale)
        return x + scale * step.std**2 * gradient


def _asked(denoiser: Denoises, told: bool) -> Denoises:
    return denoiser if told else Unconditional(denoiser)


def _guided(prediction: Prediction, gradient: Tensor, scale: float | Tensor) -> Prediction:
    """x0 + scale·(sigma²/alpha)·gradient."""
    alpha, sigma, x_t = prediction.alpha, prediction.sigma, prediction.x_t
    if bool((alpha == 0).any()):
        raise ValueError("where alpha = 0 the shift scale·(sigma²/alpha)·∇ log p(c | x_t) of x0 is 0/0; start the grid below it")
    x0 = prediction.x0 + align(scale * sigma**2 / alpha, x_t) * gradient
    return Prediction.from_x0(x_t, alpha, sigma, x0, prediction.variance_fraction)


def _check(scale: Scale) -> None:
    if not callable(scale) and not math.isfinite(scale):
        raise ValueError(f"scale={scale} must be a finite number or a function of t: 1 is Bayes' rule, 0 no guidance")
