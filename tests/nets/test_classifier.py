"""The half U-Net: shapes, zero start, every parameter used, independence of samples, layout, pooling against its formula."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ornstein.files import InputError
from ornstein.nets import HalfUNet
from ornstein.nets.classifier import AttentionPool

BUILDS: dict[str, tuple[Callable[[], HalfUNet], tuple[int, ...]]] = {
    "1": (lambda: HalfUNet((9,), 4, 2, width=8, multipliers=(1, 2), blocks=1, head_width=8), (2, 9)),
    "2": (lambda: HalfUNet((7, 6), 4, 1, width=16, multipliers=(1, 2, 2), blocks=[1, 2, 1], head_width=8), (1, 7, 6)),
    "3": (lambda: HalfUNet((3, 4, 5), 4, 1, width=8, multipliers=(1, 1), blocks=1, head_width=8, middle=1), (1, 3, 4, 5)),
    "one level": (lambda: HalfUNet((4, 4), 2, 1, width=8, multipliers=(1,), blocks=1, attention=[False], middle=0), (1, 4, 4)),
}


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return build()


def perturbed(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


def randn(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=list(BUILDS))
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[int, ...], int]:
    build, shape = BUILDS[request.param]
    return seeded(build), shape, 2 if request.param == "one level" else 4


def test_logits_are_zero_before_training(case: tuple[nn.Module, tuple[int, ...], int]) -> None:
    net, shape, classes = case
    assert torch.equal(net(randn(3, *shape), randn(3)), torch.zeros(3, classes))


def test_every_parameter_counts_and_so_does_the_level(case: tuple[nn.Module, tuple[int, ...], int]) -> None:
    net, shape, _ = case
    perturbed(net)
    x = randn(5, *shape)
    net(x, randn(5)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert not torch.allclose(net(x, torch.full((5,), -1.0)), net(x, torch.full((5,), 1.0)), atol=1e-4)


def test_samples_do_not_couple(case: tuple[nn.Module, tuple[int, ...], int]) -> None:
    net, shape, _ = case
    perturbed(net).double()
    x, c = randn(4, *shape).double(), randn(4).double()
    whole = net(x, c)
    for k in range(4):
        torch.testing.assert_close(net(x[k : k + 1], c[k : k + 1]), whole[k : k + 1], rtol=0, atol=1e-12)


def test_where_something_is_matters_to_the_pool() -> None:
    net = perturbed(seeded(lambda: AttentionPool(8, 6, 3, head_width=4)))
    x = randn(2, 8, 2, 3)
    assert not torch.allclose(net(x), net(x.flip(-1)), atol=1e-4)


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_pooling_is_its_formula(heads: int) -> None:
    net = perturbed(seeded(lambda: AttentionPool(8, 6, 3, head_width=8 // heads))).double()
    assert isinstance(net, AttentionPool)
    assert net.heads == heads
    x = randn(2, 8, 2, 3).double()
    wide = 8 // heads
    for row, image in enumerate(x):
        places = [image[:, i, j] for i in range(2) for j in range(3)]
        tokens = torch.stack([torch.stack(places).mean(0), *places]) + net.places
        query = net.query(tokens[0])
        key, value = net.key_value(tokens).split(8, dim=1)
        mixed = []
        for head in range(heads):
            own = slice(head * wide, (head + 1) * wide)
            weights = torch.softmax(key[:, own] @ query[own] / math.sqrt(wide), 0)
            mixed.append(weights @ value[:, own])
        torch.testing.assert_close(net(x)[row], net.output(torch.cat(mixed)), rtol=1e-10, atol=1e-12)


def test_channels_last_and_autocast() -> None:
    net, x, c = perturbed(seeded(BUILDS["2"][0])), randn(3, 1, 7, 6), randn(3)
    plain = net(x, c)
    torch.testing.assert_close(net.to(memory_format=torch.channels_last)(x, c), plain, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(x, c)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, plain, rtol=0.1, atol=0.1 * float(plain.detach().abs().max()))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda net: net(randn(2, 1, 6, 7), randn(2)), r"x has shape \(2, 1, 6, 7\): this HalfUNet takes \(batch, 1, 7, 6\)"),
        (lambda net: net(randn(2, 1, 7, 6), randn(3)), r"c_noise has shape \(3,\): make it \(2,\)"),
        (lambda net: HalfUNet((7, 6), 1), "classes is 1: a classifier needs at least 2"),
        (lambda net: HalfUNet((7, 6, 5, 4), 2), "dims is 4"),
        (lambda net: HalfUNet((7, 6), 2, multipliers=(1, 2), blocks=[1]), "blocks is"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[HalfUNet], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        call(BUILDS["2"][0]())
