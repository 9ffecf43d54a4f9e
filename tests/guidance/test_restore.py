"""`restore`: every method of the table, its draws against the exact posterior, and what is refused."""

from __future__ import annotations

import pytest
import torch
from measured import D, bayes, correlated, measurement, network, normal, prior
from torch import Tensor, nn

from ornstein.denoiser import Clipped, Denoiser
from ornstein.files import InputError
from ornstein.guidance import METHODS, Given, restore
from ornstein.metrics.ensemble import Ensemble
from ornstein.noise import Noise
from ornstein.operator import Mask, Nonlinear
from ornstein.process import EDM, VP, Cosine, GaussianProcess, Rectified
from ornstein.samplers import ddim, default_plan, heun
from ornstein.testing import GaussianDenoiser

MASK = torch.tensor([True, False, True, False, False])
BRIEF = {"repaint": {"resamplings": 2, "jump": 2}}
LINEAR_ONLY = {"pigdm", "moment_matching", "mcg", "replacement", "ddrm", "repaint"}
KEEP = {"reconstruction", "mcg", "replacement", "ddrm", "repaint"}
"""Methods that keep a measurement without noise to rounding."""


def masked(cases: int = 3, noise_std: float | None = 0.0) -> Given:
    return Given(normal(cases, D, stream="y"), mask=MASK, noise_std=noise_std)


def test_the_table() -> None:
    assert set(METHODS) == {
        "pigdm", "moment_matching", "reconstruction", "dps", "mcg", "replacement", "ddrm", "repaint"
    }  # fmt: skip
    assert METHODS["pigdm"].options == {"data_variance": 1.0}
    assert METHODS["replacement"].options == {}
    for method in METHODS.values():
        assert all(type(default) in (int, float) for default in method.options.values())
        assert method.plan(VP(), method.calls).calls == method.calls


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("process", [VP(), EDM(), Rectified(), Cosine()], ids=lambda p: type(p).__name__)
def test_every_method_on_every_process(method: str, process: GaussianProcess) -> None:
    given = masked(2)
    found = restore(
        network(process, "edm"), given, method=method, calls=6, draws=2, noise=Noise(0), options=BRIEF.get(method),
        dtype=torch.float64,
    )  # fmt: skip
    assert isinstance(found, Ensemble)
    assert found.draws.shape == (2, 2, D)
    assert bool(found.draws.isfinite().all())
    if method in KEEP:
        assert float((found.draws - given.values[:, None])[..., MASK].abs().max()) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_a_draw_is_the_same_for_any_batch_and_alone(method: str) -> None:
    given = masked(3, noise_std=0.1)
    common = {"method": method, "calls": 6, "noise": Noise(4), "options": BRIEF.get(method), "dtype": torch.float64}
    together = restore(network(VP()), given, draws=2, **common).draws  # type: ignore[arg-type]
    for size in (1, 4):
        chunked = restore(network(VP()), given, draws=2, batch_size=size, **common).draws  # type: ignore[arg-type]
        torch.testing.assert_close(chunked, together, rtol=1e-9, atol=1e-9)
    # sample number case·draws + draw: the first case alone has the first draws
    alone = restore(network(VP()), given.rows(torch.tensor([0])), draws=2, **common).draws  # type: ignore[arg-type]
    torch.testing.assert_close(alone, together[:1], rtol=1e-9, atol=1e-9)
    assert float((together[:, 0] - together[:, 1]).abs().max()) > 1e-3


@pytest.mark.parametrize("process", [VP(), EDM(), Rectified()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("method", ["moment_matching", "pigdm"])
def test_the_draws_follow_the_exact_posterior(method: str, process: GaussianProcess) -> None:
    mean, covariance = correlated()
    if method == "pigdm":
        covariance = torch.eye(D, dtype=torch.float64)
    given, n = measurement(1), 2000
    plan = default_plan(process, 50)  # of high order: the method's own, stochastic one has a bias of a few hundredths
    drawn = restore(
        GaussianDenoiser(mean, covariance, process), given, method=method, plan=plan, draws=n, noise=Noise(0), dtype=torch.float64
    ).draws[0]
    a = given.measured.matrix
    gain = torch.linalg.solve(a @ covariance @ a.T + 0.09 * torch.eye(2, dtype=torch.float64), a @ covariance).T
    exact = covariance - gain @ a @ covariance
    nothing = torch.zeros(1, D, dtype=torch.float64)
    expected = bayes(mean, covariance, nothing, 0.0, 1.0, given, 0.3)[0]
    # five standard errors of a mean and of a covariance, and what 50 calls leave of the flow
    error = 5 * (exact.diagonal() / n).sqrt() + 2e-3
    assert bool(((drawn.mean(0) - expected).abs() < error).all())
    spread = exact.diagonal().sqrt()
    limit = 5 * (2 / n) ** 0.5 * spread[:, None] * spread + 5e-3
    assert bool(((drawn.T.cov() - exact).abs() < limit).all())


class Shifted(nn.Module):
    """A network that adds its condition."""

    def forward(self, x: Tensor, label: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return 0 * x + cond["shift"][:, None].to(x)


def test_a_condition_has_a_row_per_case() -> None:
    net, given = Denoiser(Shifted(), VP(), "x0"), masked(2)
    common = {"method": "replacement", "calls": 5, "draws": 3, "noise": Noise(0), "batch_size": 2}
    found = restore(net, given, cond={"shift": torch.tensor([5.0, -5.0])}, **common).draws  # type: ignore[arg-type]
    torch.testing.assert_close(found[..., ~MASK], torch.tensor([5.0, -5.0])[:, None, None].expand(2, 3, 3))
    with pytest.raises(InputError, match=r"cond\['shift'\] has 6 rows for 2 cases"):
        restore(net, given, cond={"shift": torch.zeros(6)}, **common)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_an_operator_that_is_not_linear(method: str) -> None:
    curved = Nonlinear((D,), lambda x: x[:, :2].abs())
    given = Given(normal(2, 2, stream="y").abs(), curved)
    common = {"method": method, "calls": 60, "draws": 3, "noise": Noise(0), "dtype": torch.float64}
    if method in LINEAR_ONLY:
        with pytest.raises(InputError, match="linear"):
            restore(prior(VP()), given, **common)  # type: ignore[arg-type]
    else:
        option = {"dps": None, "reconstruction": {"weight": 1.0}}[method]
        missed = (curved(restore(prior(VP()), given, options=option, **common).draws.flatten(0, 1)).reshape(2, 3, 2)  # type: ignore[arg-type]
                  - given.values[:, None])  # fmt: skip
        free = curved(prior(VP()).sample(1000, Noise(1)))[:, None] - given.values
        assert float(missed.square().mean()) < 0.35 * float(free.square().mean())


def test_clipping_is_kept_and_does_not_stop_the_gradient() -> None:
    # a prediction beyond the bounds, whose clamp has no gradient, is still moved by what is measured
    given = Given(normal(2, 2, stream="y"), measurement().measured, noise_std=0.1)
    for method in METHODS:
        if method in ("ddrm", "repaint"):
            continue
        bounded = Clipped(prior(VP()), -0.01, 0.01)
        found = restore(bounded, given, method=method, calls=10, draws=2, noise=Noise(0), dtype=torch.float64).draws
        assert bool(found.isfinite().all()), method
    wide = restore(Clipped(prior(VP()), -99, 99), given, calls=10, draws=2, noise=Noise(0), dtype=torch.float64).draws
    torch.testing.assert_close(wide, restore(prior(VP()), given, calls=10, draws=2, noise=Noise(0), dtype=torch.float64).draws)


@pytest.mark.parametrize(("arguments", "reason"), [
    ({"method": "magic"}, "method='magic' is not one of pigdm, moment_matching, .*, repaint"),
    ({"options": {"travel": 1.0}}, "pigdm has no option 'travel'; it has data_variance=1"),
    ({"method": "replacement", "options": {"travel": 1.0}}, "replacement has no option 'travel'; it has none"),
    ({"method": "dps", "options": {"travel": "far"}}, "travel='far' must be a number"),
    ({"method": "dps", "options": {"noise": 1.0}}, "dps has no option 'noise'; it has travel=8"),
    ({"method": "moment_matching", "options": {"iterations": 2.5}}, "iterations=2.5 must be a whole number"),
    ({"draws": 0}, "draws=0 must be at least 1"),
    ({"calls": 0}, "calls=0 must be at least 1"),
    ({"calls": 5, "plan": ddim(VP(), 5)}, "give one of plan=ddim and calls=5"),
    ({"method": "dps", "plan": heun(VP(), 9)}, "dps|DPS steps along .* take ancestral"),
])  # fmt: skip
def test_what_is_refused(arguments: dict, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        restore(prior(VP()), measurement(), noise=Noise(0), **arguments)


class Moody(nn.Module):
    """A network that refuses to run in training mode, and has a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, label: Tensor, cond: None) -> Tensor:
        assert not self.training
        return self.weight * x


@pytest.mark.parametrize("method", METHODS)
def test_networks_run_in_evaluation_mode_and_no_gradient_is_kept(method: str) -> None:
    net = Denoiser(Moody(), VP(), "v").train()
    found = restore(net, masked(1), method=method, draws=2, calls=5, noise=Noise(0), options=BRIEF.get(method)).draws
    assert net.training
    assert not found.requires_grad


def test_no_cases() -> None:
    empty = Given(torch.zeros(0, D), Mask(MASK))
    assert restore(network(VP()), empty, draws=3, calls=5, noise=Noise(0)).draws.shape == (0, 3, D)


@pytest.mark.parametrize("method", ["pigdm", "replacement"])
def test_masks_of_their_own_are_restored_one_by_one(method: str) -> None:
    masks = torch.tensor([[True, False, True, False, False], [False, True, False, False, True], [True] * 4 + [False]])
    values = normal(3, D, stream="y")
    denoiser = GaussianDenoiser(*correlated(), VP())
    options = {"calls": 8, "draws": 2, "noise": Noise(0), "method": method, "dtype": torch.float64}
    together = restore(denoiser, Given(values, mask=masks), **options).draws  # type: ignore[arg-type]
    for case in range(3):
        # each as if all had its mask
        alone = restore(denoiser, Given(values, mask=masks[case]), **options).draws[case]  # type: ignore[arg-type]
        assert torch.allclose(together[case], alone, atol=1e-10)
