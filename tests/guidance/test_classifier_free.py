"""Classifier-free guidance: its two branches, the line through them, and what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ornstein.denoiser import Clipped, Condition, Denoiser, Prediction
from ornstein.guidance import ClassifierFree
from ornstein.nets import MLP
from ornstein.noise import Noise
from ornstein.process import EDM, VP, GaussianProcess
from ornstein.process.gaussian import Time
from ornstein.samplers import ancestral, ddim, sample

LABEL = torch.tensor([0, 1, 2, 1])
NONE = torch.ones(4, dtype=torch.bool)
TIMES = torch.tensor([0.2, 0.9, 0.5, 0.05], dtype=torch.float64)


@dataclass
class Counted:
    """A denoiser that keeps the rows and the `null` of every evaluation."""

    denoiser: Denoiser
    rows: list[int] = field(default_factory=list)
    withheld: list[list[bool] | None] = field(default_factory=list)

    @property
    def process(self) -> GaussianProcess:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        self.rows.append(len(x_t))
        self.withheld.append(None if cond is None or "null" not in cond else cond["null"].tolist())
        return self.denoiser(x_t, t, cond)


def network(process: GaussianProcess, predicts: str = "v") -> Denoiser:
    torch.manual_seed(0)
    net = MLP(2, width=16, depth=2, classes=3).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return Denoiser(net, process, predicts)


def states(n: int = 4) -> Tensor:
    return Noise(1).normal((n, 2), dtype=torch.float64)


@pytest.mark.parametrize(("scale", "rows", "withheld"), [
    (1, [4], [None]), (0, [4], [[True] * 4]), (2.5, [8], [[False] * 4 + [True] * 4]), (-0.5, [8], [[False] * 4 + [True] * 4]),
])  # fmt: skip
def test_one_evaluation_each_and_both_in_one_batch(scale: float, rows: list[int], withheld: list[list[bool] | None]) -> None:
    counted = Counted(network(VP()))
    prediction = ClassifierFree(counted, scale)(states(), 0.4, {"label": LABEL})
    assert (counted.rows, counted.withheld) == (rows, withheld)
    assert prediction.x0.shape == (4, 2)


@pytest.mark.parametrize("time", [0.4, torch.tensor(0.4, dtype=torch.float64), TIMES], ids=["number", "scalar", "per sample"])
@pytest.mark.parametrize("predicts", ["v", "eps", "x0", "edm"])
@pytest.mark.parametrize("process", [VP(), EDM()], ids=["vp", "edm"])
def test_every_view_is_on_the_line_through_the_branches(process: GaussianProcess, predicts: str, time: Time) -> None:
    denoiser, x = network(process, predicts), states()
    given, free = denoiser(x, time, {"label": LABEL}), denoiser(x, time, {"label": LABEL, "null": NONE})
    assert not torch.allclose(given.x0, free.x0)
    for scale in (-0.5, 0.0, 0.3, 1.0, 2.0, 7.5):
        guided = ClassifierFree(denoiser, scale)(x, time, {"label": LABEL})
        assert guided.x_t.shape == guided.x0.shape == (4, 2)
        for view in ("x0", "eps", "score", "v"):
            a, b = given.view(view), free.view(view)
            torch.testing.assert_close(
                guided.view(view), b + scale * (a - b), rtol=1e-9, atol=1e-9 * float(a.detach().abs().max())
            )
        assert torch.equal(guided.alpha, given.alpha)
        assert torch.equal(guided.sigma, given.sigma)
    # (1 + w)·eps(cond) - w·eps(∅) of the paper, w = 1
    guided = ClassifierFree(denoiser, 2.0)(x, time, {"label": LABEL})
    torch.testing.assert_close(guided.eps, 2 * given.eps - free.eps, rtol=1e-9, atol=1e-9 * float(given.eps.detach().abs().max()))


@pytest.mark.parametrize("time", [0.4, TIMES], ids=["number", "per sample"])
def test_samples_do_not_couple(time: Time) -> None:
    guided, x = ClassifierFree(network(VP()), 3.0), states()
    whole = guided(x, time, {"label": LABEL}).x0
    for k in range(4):
        own = time[k : k + 1] if isinstance(time, Tensor) else time
        torch.testing.assert_close(
            whole[k : k + 1], guided(x[k : k + 1], own, {"label": LABEL[k : k + 1]}).x0, rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_without_a_condition_nothing_is_guided(scale: float) -> None:
    counted = Counted(network(VP()))
    found = ClassifierFree(counted, scale)(states(), 0.3)
    assert torch.equal(found.x0, network(VP())(states(), 0.3).x0)
    assert (counted.rows, counted.withheld) == ([4], [None])


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_rows_whose_condition_is_withheld_stay_unguided(scale: float) -> None:
    denoiser, x = network(VP()), states()
    null = torch.tensor([False, True, False, True])
    guided = ClassifierFree(denoiser, scale)(x, 0.3, {"label": LABEL, "null": null}).x0
    free = denoiser(x, 0.3, {"label": LABEL, "null": NONE}).x0
    plain = ClassifierFree(denoiser, scale)(x, 0.3, {"label": LABEL}).x0
    torch.testing.assert_close(guided[null], free[null], rtol=0, atol=1e-12)
    torch.testing.assert_close(guided[~null], plain[~null], rtol=0, atol=1e-12)
    assert not torch.allclose(guided[~null], free[~null])


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_a_scale_that_is_not_finite_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=f"scale={scale} must be a finite number"):
        ClassifierFree(network(VP()), scale)


class Learned(nn.Module):
    """A network with a learned variance that depends on the class, or on its absence."""

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor] | None) -> Tensor:
        assert cond is not None
        level = torch.where(cond.get("null", torch.zeros(len(x), dtype=torch.bool)), -1.0, cond["label"].to(x) / 2)
        return torch.cat([x + level[:, None], level[:, None].expand_as(x)], 1)


def test_the_variance_is_that_of_the_conditional_branch() -> None:
    denoiser = Denoiser(Learned(), VP(), "x0", learned_variance=True)
    x, cond = states(), {"label": torch.tensor([0, 1, 2, 1])}
    given = denoiser(x, 0.5, cond).variance_fraction
    assert given is not None
    for scale, expected in ((2.0, given), (1.0, given), (0.0, torch.zeros_like(given))):
        found = ClassifierFree(denoiser, scale)(x, 0.5, cond)
        assert found.variance_fraction is not None
        torch.testing.assert_close(found.variance_fraction, expected)
    plan = ancestral(VP(), 3, variance="learned")
    assert bool(sample(ClassifierFree(denoiser, 2.0), plan, shape=(4, 2), noise=Noise(0), cond=cond).isfinite().all())


def test_it_samples_as_any_denoiser() -> None:
    denoiser, cond = network(VP()), {"label": LABEL}
    options: dict[str, Any] = {"shape": (4, 2), "noise": Noise(2), "dtype": torch.float64}
    plan = ddim(VP(), 4)
    one = sample(ClassifierFree(denoiser, 1.0), plan, cond=cond, **options)
    assert torch.equal(one, sample(denoiser, plan, cond=cond, **options))
    guided = sample(ClassifierFree(denoiser, 2.0), plan, cond=cond, **options)
    chunked = sample(ClassifierFree(denoiser, 2.0), plan, cond=cond, batch_size=3, **options)
    torch.testing.assert_close(guided, chunked, rtol=0, atol=1e-12)
    assert not torch.allclose(guided, one)
    clipped = Clipped(ClassifierFree(denoiser, 2.0), -0.1, 0.1)(states(), 0.5, cond)
    assert float(clipped.x0.detach().abs().max()) <= 0.1
    # networks under a guide are put in evaluation mode, and back
    denoiser.net.train()
    sample(ClassifierFree(denoiser, 2.0), plan, cond=cond, **options)
    assert denoiser.net.training
