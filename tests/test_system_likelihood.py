"""What a system says of data in their own range: densities, bits and latents; and what its samples cost."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny
from ornstein import likelihood, model, samplers
from ornstein.contract import Contract
from ornstein.denoiser import Condition, Denoiser
from ornstein.files import InputError
from ornstein.likelihood import DEQUANTISATIONS
from ornstein.losses import DenoisingLoss
from ornstein.noise import Noise
from ornstein.process import EDM
from ornstein.samplers import RK45, FixedSteps, LangevinCorrector
from ornstein.system import System

SHORT = FixedSteps(13)


@pytest.fixture(scope="module")
def system(tiny_model: Path) -> System:
    return model.load(tiny_model)


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    return dict(tiny.digits(tiny.recipe())[1].batch(range(6)))


class Shrink(nn.Module):
    """Says that the data are normal, of deviation 1 in model units."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        return 0 * x * self.unused


def normal_system(shift: tuple[float, ...], scale: tuple[float, ...], width: int) -> System:
    """Data N(shift, scale²) of shape (channels, width), exactly."""
    names = tuple(f"c{i}" for i in range(len(scale)))
    contract = Contract(
        (len(scale), width), names, ("",) * len(scale), None, None, None, shift, scale, bounded=False, std=1.0
    ).checked()
    return System(contract, Denoiser(Shrink(), EDM(), "edm"), DenoisingLoss())


def test_log_prob_is_a_density_of_encoded_data() -> None:
    own = normal_system((3.0, -1.0), (0.5, -20.0), 3)
    law = torch.distributions.Normal(torch.tensor([[3.0], [-1.0]]), torch.tensor([[0.5], [20.0]]))
    x = law.mean + law.stddev * Noise(0).normal((30, 2, 3))
    found = own.log_prob(x, divergence="exact", noise=Noise(0))
    # in the data's own units the density is smaller by the sum of log|scale| over their numbers
    exact = law.log_prob(x).flatten(1).sum(1) + 3 * (math.log(0.5) + math.log(20))
    assert float((found.value - exact).abs().max()) < 1e-2  # the prior's 1/80² and float32
    encoded = likelihood.log_prob(own.denoiser, own.contract.encode(x), divergence="exact")
    torch.testing.assert_close(found.value, encoded.value, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.latent, encoded.latent)
    torch.testing.assert_close(found.per_dimension(), found.value / 6)
    assert found.start == 0.0  # EDM's t_min


def test_the_density_sums_to_one() -> None:
    x = torch.linspace(-30, 40, 801)
    own = normal_system((3.0,), (-4.0,), 1)
    found = own.log_prob(x[:, None, None], noise=Noise(0), batch_size=801)
    assert float(torch.trapezoid(found.value.exp(), x.double() / 4)) == pytest.approx(1, abs=1e-3)


def test_log_prob_of_a_trained_model(system: System, batch: dict[str, Tensor]) -> None:
    x, label = batch["x"], batch["label"]
    cond = {"label": label}
    found = system.log_prob(x, cond=cond, solver=SHORT, probes=3, noise=Noise(1))
    assert found.value.shape == found.standard_error.shape == found.calls.shape == (6,)
    assert found.products == 3
    encoded = likelihood.log_prob(
        system.denoiser, system.contract.encode(x), cond={"label": label}, solver=SHORT, probes=3, noise=Noise(1)
    )
    torch.testing.assert_close(found.value, encoded.value, rtol=1e-6, atol=0)
    for options in ({"batch_size": 1}, {"batch_size": 4}, {"progress": True}):
        again = system.log_prob(x, cond=cond, solver=SHORT, probes=3, noise=Noise(1), **options)
        torch.testing.assert_close(again.value, found.value, rtol=1e-4, atol=1e-2)
    later = system.log_prob(x[4:], cond={"label": label[4:]}, solver=SHORT, probes=3, noise=Noise(1), first=4)
    torch.testing.assert_close(later.value, found.value[4:], rtol=1e-4, atol=1e-2)
    for other in (
        system.log_prob(x, solver=SHORT, probes=3, noise=Noise(1)),  # without the condition
        system.log_prob(x, cond=cond, solver=SHORT, probes=3, noise=Noise(2)),
        system.log_prob(x, cond=cond, solver=SHORT, probes=3, noise=Noise(1), divergence="gaussian"),
        system.log_prob(x, cond=cond, solver=FixedSteps(5), probes=3, noise=Noise(1)),
    ):
        assert float((other.value - found.value).abs().max()) > 0.1
    # the density is the model's, whatever its recipe does to predictions while sampling
    clipped = replace(system, bounds=(-0.1, 0.1)).log_prob(x, cond=cond, solver=SHORT, probes=3, noise=Noise(1))
    assert torch.equal(clipped.value, found.value)
    assert all(p.grad is None for p in system.net.parameters())


@pytest.mark.parametrize("kind", DEQUANTISATIONS)
def test_bits_per_dim_are_those_of_encoded_data(system: System, batch: dict[str, Tensor], kind: str) -> None:
    x, cond = batch["x"], {"label": batch["label"]}
    options = {"dequantisation": kind, "solver": SHORT, "probes": 2, "noise": Noise(3)}
    found = system.bits_per_dim(x, cond=cond, **options)
    assert system.quantisation is not None
    assert (system.quantisation.levels, system.quantisation.low, system.quantisation.high) == (17, -1.0, 1.0)
    encoded = likelihood.bits_per_dim(system.denoiser, system.contract.encode(x), system.quantisation, cond=cond, **options)
    torch.testing.assert_close(found.value, encoded.value, rtol=1e-6, atol=0)
    assert found.calls.tolist() == [13 + (kind == "gaussian")] * 6
    parts = [
        system.bits_per_dim(x[a : a + 3], cond={"label": cond["label"][a : a + 3]}, first=a, batch_size=2, **options)
        for a in (0, 3)
    ]
    torch.testing.assert_close(torch.cat([p.value for p in parts]), found.value, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="x lies off the 17 levels"):
        system.bits_per_dim(x + 0.3, **options)


def test_bits_need_levels(system: System, batch: dict[str, Tensor]) -> None:
    for change in ({"levels": None}, {"bounded": False}):
        without = replace(system, contract=replace(system.contract, **change))
        assert without.quantisation is None
        with pytest.raises(InputError, match=r"no grey levels.*log_prob"):
            without.bits_per_dim(batch["x"], noise=Noise(0))


def test_encode_and_decode_are_inverse(system: System, batch: dict[str, Tensor]) -> None:
    x, cond = batch["x"], {"label": batch["label"]}
    found = system.encode(x, cond=cond)
    direct = likelihood.encode(system.denoiser, system.contract.encode(x), cond=cond)
    torch.testing.assert_close(found.latent, direct.latent, rtol=1e-5, atol=1e-4)
    assert float((found.calls - direct.calls).abs().max()) <= 6  # rounding may reject a step
    back = system.decode(found.latent, cond=cond)
    assert back.shape == x.shape
    assert float((back - x).abs().max()) < 1e-2 * 16
    assert 0.3 < float(found.latent.std()) / system.denoiser.process.prior_std < 3
    other = system.decode(found.latent, cond={"label": (batch["label"] + 1) % 10})
    assert float((other - x).abs().max()) > 0.1
    for size in (1, 4):
        part = system.encode(x, cond=cond, solver=SHORT, batch_size=size).latent
        torch.testing.assert_close(part, system.encode(x, cond=cond, solver=SHORT).latent, rtol=1e-4, atol=1e-3)
    latent = found.latent
    parts = system.decode(latent, cond=cond, solver=SHORT, batch_size=4)
    torch.testing.assert_close(parts, system.decode(latent, cond=cond, solver=SHORT), rtol=0, atol=1e-2)


def test_decode_is_in_the_units_of_the_data() -> None:
    own = normal_system((3.0, -1.0), (0.5, -20.0), 3)
    z = 80 * Noise(0).normal((5, 2, 3))
    exact = own.contract.decode(z / math.sqrt(1 + 80**2) * math.sqrt(1 + 0.002**2))  # the flow of a normal keeps quantiles
    torch.testing.assert_close(own.decode(z), exact, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(own.encode(exact).latent, z, rtol=1e-4, atol=1e-2)


def test_wrong_conditions_are_refused(system: System, batch: dict[str, Tensor]) -> None:
    x = batch["x"]
    for cond, words in (({"label": [1, 2]}, "2 values for n=6"), ({"label": 10}, "label=10"), ({"colour": 1}, "only 'label'")):
        for call in (
            lambda cond=cond: system.log_prob(x, cond=cond, noise=Noise(0)),
            lambda cond=cond: system.bits_per_dim(x, cond=cond, noise=Noise(0)),
            lambda cond=cond: system.encode(x, cond=cond),
            lambda cond=cond: system.decode(x, cond=cond),
        ):
            with pytest.raises(InputError, match=words):
                call()
    one = system.encode(x, cond={"label": 3}, solver=SHORT)
    torch.testing.assert_close(one.latent, system.encode(x, cond={"label": ["3"] * 6}, solver=SHORT).latent)


# --- what samples cost


class Counting:
    """Counts the rows that the network sees."""

    def __init__(self, system: System) -> None:
        self.rows = 0
        self.handle = system.net.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        self.rows += len(args[0])


@pytest.fixture
def counted(system: System):  # type: ignore[no-untyped-def]
    counting = Counting(system)
    yield counting
    counting.handle.remove()


def test_draws_of_a_plan_name_their_calls(system: System, counted: Counting) -> None:
    assert system.plan is not None
    for sampler, calls in ((None, system.plan.calls), (7, 7), (samplers.heun(system.denoiser.process, calls=9), 9)):
        counted.rows = 0
        drawn = system.draw(5, sampler=sampler, cond={"label": 3}, noise=Noise(0), batch_size=2)
        assert drawn.calls.tolist() == [calls] * 5
        assert counted.rows == 5 * calls
        assert torch.equal(drawn.x0, system.sample(5, sampler=sampler, cond={"label": 3}, noise=Noise(0), batch_size=2))
    unplanned = replace(system, plan=None).draw(1, noise=Noise(0))
    assert unplanned.calls.tolist() == [50]


def test_draws_of_a_solver_name_their_calls(system: System, counted: Counting) -> None:
    cond = {"label": [0, 1, 2, 3, 4, 5, 6]}
    drawn = system.draw(7, sampler=RK45(1e-3), cond=cond, noise=Noise(0), batch_size=4)
    assert counted.rows == int(drawn.calls.sum())
    assert drawn.x0.shape == (7, 1, 8, 8)
    direct = samplers.sample_adaptive(
        system.denoiser, RK45(1e-3), shape=(7, 1, 8, 8), noise=Noise(0), cond={"label": torch.arange(7)}, batch_size=4
    )
    torch.testing.assert_close(drawn.x0, system.contract.decode(direct.x0))
    assert torch.equal(drawn.calls, direct.calls)
    later = system.draw(3, sampler=RK45(1e-3), cond={"label": [4, 5, 6]}, noise=Noise(0), first=4)
    torch.testing.assert_close(later.x0, drawn.x0[4:], rtol=0, atol=0.05)
    assert torch.equal(system.sample(7, sampler=RK45(1e-3), cond=cond, noise=Noise(0), batch_size=4), drawn.x0)
    fixed = system.draw(2, sampler=FixedSteps(9), noise=Noise(0))
    assert fixed.calls.tolist() == [9, 9]
    # the recipe's half precision is for plans: no tolerance is met through its rounding
    half = replace(system, precision="bf16")
    assert torch.equal(half.draw(2, sampler=FixedSteps(9), noise=Noise(0)).x0, fixed.x0)
    assert not torch.equal(half.draw(2, sampler=9, noise=Noise(0)).x0, system.draw(2, sampler=9, noise=Noise(0)).x0)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", ["ddim", "heun"])
def test_a_corrector_costs_its_calls(system: System, counted: Counting, name: str, steps: int) -> None:
    plan = samplers.ALL[name](system.denoiser.process, calls=7)
    corrector = LangevinCorrector(system.denoiser, steps=steps)
    drawn = system.draw(3, sampler=plan, noise=Noise(0), after=corrector)
    assert counted.rows == int(drawn.calls.sum())
    assert drawn.calls.tolist() == [corrector.calls(plan)] * 3
    assert drawn.calls[0] > plan.calls
    assert not torch.equal(drawn.x0, system.draw(3, sampler=plan, noise=Noise(0)).x0)
    hooked = system.draw(3, sampler=plan, noise=Noise(0), after=lambda x, step: x)
    assert hooked.calls.tolist() == [plan.calls] * 3


@pytest.mark.parametrize("solver", [RK45(1e-3), samplers.GottaGoFast(), FixedSteps(9)])
def test_nothing_acts_between_the_steps_of_a_solver(system: System, solver: samplers.Adaptive) -> None:
    for after in (LangevinCorrector(system.denoiser), lambda x, step: x):
        with pytest.raises(InputError, match=r"has no rows for `after`.*give a plan") as caught:
            system.draw(2, sampler=solver, noise=Noise(0), after=after)
        assert solver.name in str(caught.value)
