"""Networks, samplers, likelihoods and series run where there is no float64: "meta", which has shapes alone, stands for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ornstein import config, hardware
from ornstein.assemble import make_plan
from ornstein.config import SamplerConfig
from ornstein.denoiser import Denoiser
from ornstein.kinds import KINDS
from ornstein.likelihood import bits_per_dim, log_prob
from ornstein.losses import Discretised, bound
from ornstein.nets import MLP, S4, CSDINet, HalfUNet, SSSDNet, UNet
from ornstein.noise import Noise
from ornstein.process import VP
from ornstein.samplers import ALL, sample
from ornstein.samplers.flow import FixedSteps
from ornstein.sequence import series
from ornstein.sequence.predict import forecasts
from ornstein.sequence.windows import windows
from ornstein.train.engine import Module

WIDE = {torch.float64, torch.complex128}


class Narrow(TorchDispatchMode):
    """Refuses double precision on "meta"; what is read from there is zeros, and every condition holds."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        named = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and str(named.get("device")) == "cpu":
            return torch.zeros(args[0].shape, dtype=named.get("dtype") or args[0].dtype)
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return args[0].dtype == torch.bool or 1
        out = func(*args, **named)
        if any(isinstance(leaf, Tensor) and leaf.is_meta and leaf.dtype in WIDE for leaf in tree_leaves(out)):
            raise TypeError(f"{func} makes float64 on a device that has none")
        return out


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, device="meta")


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]]]] = {
    "unet": (
        lambda: UNet(width=8, multipliers=(1,), blocks=1, attention=(False,), middle=1),
        lambda: (zeros(2, 1, 8, 8), zeros(2), None),
    ),
    "half unet": (
        lambda: HalfUNet((8, 8), 3, width=8, multipliers=(1, 2), attention=(False, False), middle=1),
        lambda: (zeros(2, 1, 8, 8), zeros(2)),
    ),
    "mlp": (lambda: MLP(2, 16, 2), lambda: (zeros(3, 2), zeros(3), None)),
    "s4d": (
        lambda: SSSDNet(2, 1, 8, 1, 8),
        lambda: (zeros(3, 2, 9), zeros(3), {"given": zeros(3, 6, 9), "features": zeros(3, 1, 9)}),
    ),
    "dplr": (lambda: SSSDNet(2, 0, 8, 1, 8, "dplr"), lambda: (zeros(3, 2, 9), zeros(3), {"given": zeros(3, 6, 9)})),
    "csdi": (
        lambda: CSDINet(2, 1, 8, 1, 2),
        lambda: (zeros(3, 2, 9), zeros(3), {"given": zeros(3, 6, 9), "features": zeros(3, 1, 9)}),
    ),
}


@pytest.fixture(autouse=True)
def meta_has_no_double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "WITHOUT_DOUBLE", {"meta"})


@pytest.mark.parametrize("name", NETS)
def test_nets_make_no_double_on_their_device(name: str) -> None:
    make, arguments = NETS[name]
    net = make().to("meta")
    with Narrow():
        out = net(*arguments())
        assert out.is_meta
        out.sum().backward()
    assert all(parameter.grad is None or parameter.grad.dtype == torch.float32 for parameter in net.parameters())


@pytest.mark.parametrize("kernel", ["s4d", "dplr"])
def test_steps_of_s4_make_none_either(kernel: str) -> None:
    layer = S4(4, 8, kernel, bidirectional=False).to("meta")
    with Narrow():
        state = layer.initial_state(3)
        y, state = layer.step(zeros(3, 4), state)
    assert y.is_meta
    assert not state.memory.is_meta


@pytest.mark.parametrize("name", ALL)
def test_samplers_make_none_on_the_device(name: str) -> None:
    process = VP()
    denoiser = Denoiser(MLP(2, 8, 1).to("meta"), process, "x0")
    plan = make_plan(process, SamplerConfig(name=name, calls=14))
    with Narrow():
        assert sample(denoiser, plan, shape=(3, 2), noise=Noise(0), device="meta").is_meta


@pytest.mark.parametrize("kind", ["timegrad", "sssd", "csdi"])
def test_series_make_none_on_the_device(kind: str) -> None:
    values = Noise(0).normal((60, 2), dtype=torch.float64).numpy()
    recipe = config.override(config.load_recipe(kind), ["sequence={horizon: 4, context: 8}", "sampler.calls=2"])
    data = windows([series(values)], context=8, horizon=4)
    recipe, _ = KINDS[kind].prepare(recipe, data)
    system = KINDS[kind].build(recipe, data.contract)
    system.net.to("meta")
    batch = data.batch(range(3))
    with Narrow():
        on_device = Module(system, recipe.train).transfer_batch_to_device(batch, torch.device("meta"), 0)
        assert system.loss(on_device, Noise(0)).is_meta
        drawn = forecasts(system, series(values), [20, 30], horizon=4, draws=2, noise=Noise(0))
        assert system.memories(batch)
    assert drawn.shape == (2, 2, 4, 2)


@pytest.mark.parametrize("divergence", ["exact", "rademacher"])
def test_densities_make_none_on_the_device(divergence: str) -> None:
    denoiser = Denoiser(MLP(2, 8, 1).to("meta"), VP(), "x0")
    with Narrow():
        found = log_prob(denoiser, zeros(3, 2), solver=FixedSteps(5), divergence=divergence, probes=1)
    assert not found.value.is_meta


@pytest.mark.parametrize("dequantisation", ["uniform", "gaussian"])
def test_bits_make_none_on_the_device(dequantisation: str) -> None:
    denoiser = Denoiser(MLP(2, 8, 1).to("meta"), VP(), "x0")
    grey = Discretised(3, -1.0, 1.0)
    with Narrow():
        found = bits_per_dim(
            denoiser, zeros(3, 2), grey, noise=Noise(0), solver=FixedSteps(5), probes=1, dequantisation=dequantisation
        )
        elbo = bound(denoiser, zeros(3, 2), (0.9, 0.5, 0.1), Noise(0), decoder=grey, samples=2)
    assert not found.value.is_meta
    assert not elbo.total.is_meta


def test_the_guard_sees_double() -> None:
    with Narrow(), pytest.raises(TypeError, match="has none"):
        zeros(2).double()
