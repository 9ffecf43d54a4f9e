"""Contract of every network: shapes, zero start, conditions, independence of samples, precision, errors."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ornstein.files import InputError
from ornstein.nets import MLP, ConditionEmbedding, NoiseEmbedding, UNet

Build = Callable[[], nn.Module]

CONDITIONED: dict[str, tuple[Build, tuple[int, ...]]] = {
    "mlp": (lambda: MLP(3, width=16, depth=2, classes=4, values=2), (3,)),
    "unet1": (lambda: UNet(1, 2, width=8, multipliers=(1, 2), blocks=1, head_width=8, classes=4, values=2), (2, 9)),
    "unet2": (lambda: UNet(2, 2, width=8, multipliers=(1, 2), blocks=1, head_width=8, classes=4, values=2), (2, 6, 5)),
    "unet3": (lambda: UNet(3, 1, width=8, multipliers=(1, 1), blocks=1, head_width=8, classes=4, values=2), (1, 3, 4, 5)),
}


def seeded(build: Build) -> nn.Module:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return build()


def perturbed(net: nn.Module) -> nn.Module:
    """The net with every weight moved, so that zero-initialised layers no longer hide what comes before them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


def randn(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=list(CONDITIONED))
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[int, ...]]:
    build, shape = CONDITIONED[request.param]
    return seeded(build), shape


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3), levels=st.integers(1, 3), out=st.integers(1, 4))
def test_unet_keeps_any_size_and_starts_at_zero(sizes: list[int], levels: int, out: int) -> None:
    net = seeded(lambda: UNet(len(sizes), 3, out, width=8, multipliers=(1, 2, 2)[:levels], blocks=1, head_width=8))
    y = net(randn(2, 3, *sizes), randn(2))
    assert y.shape == (2, out, *sizes)
    assert torch.equal(y, torch.zeros_like(y))


def test_starts_at_zero_with_the_shape_of_x(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, shape = case
    x = randn(3, *shape)
    assert torch.equal(net(x, randn(3)), torch.zeros_like(x))


def test_gradient_reaches_every_parameter(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, shape = case
    perturbed(net)
    cond = {"label": torch.tensor([0, 1, 2, 3, 0]), "values": randn(5, 2), "null": torch.tensor([0, 0, 0, 0, 1]).bool()}
    net(randn(5, *shape), randn(5), cond).square().sum().backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


@pytest.mark.parametrize("name", ["unet1", "unet2", "unet3"])
def test_blocks_start_as_the_identity(name: str) -> None:
    build, shape = CONDITIONED[name]
    net = seeded(build)
    pairs: list[tuple[Tensor, Tensor]] = []
    for stage in (*(stage for level in net.down for stage in level), *net.middle):
        stage.register_forward_hook(lambda _m, inputs, y: pairs.append((inputs[0], y)))
    net(randn(2, *shape), randn(2))
    assert len(pairs) == 4
    assert all(torch.equal(before, after) and before.abs().sum() > 0 for before, after in pairs)


def test_gradient_is_the_slope(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, shape = case
    perturbed(net).double()
    x, c_noise, along = randn(2, *shape).double(), randn(2).double(), randn(2, *shape, seed=7).double()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(net(x, c_noise).square().sum(), x)
    with torch.no_grad():
        above, below = (net(x + step * along, c_noise).square().sum() for step in (1e-5, -1e-5))
    torch.testing.assert_close((gradient * along).sum(), (above - below) / 2e-5, rtol=1e-6, atol=1e-8)


def test_training_lowers_the_error(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, shape = case
    x, c_noise = randn(4, *shape), randn(4)
    before = (net(x, c_noise) - x).square().mean()
    optimiser = torch.optim.AdamW(net.parameters(), 1e-2)
    for _ in range(5):
        optimiser.zero_grad()
        loss = (net(x, c_noise) - x).square().mean()
        loss.backward()
        optimiser.step()
    assert loss < 0.9 * before


def test_null_equals_missing_per_sample(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, shape = case
    perturbed(net)
    x, c_noise = randn(3, *shape), randn(3)
    label, values = torch.tensor([1, 2, 3]), randn(3, 2)
    full = net(x, c_noise, {"label": label, "values": values})
    free = net(x, c_noise)
    some = net(x, c_noise, {"label": label, "values": values, "null": torch.tensor([True, False, True])})
    torch.testing.assert_close(some, torch.stack([free[0], full[1], free[2]]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(full, free, atol=1e-3)
    torch.testing.assert_close(net(x, c_noise, {"null": torch.tensor([True, False, True])}), free)
    torch.testing.assert_close(net(x, c_noise, {}), free)


@pytest.mark.parametrize("key", ["label", "values"])
def test_each_condition_counts(case: tuple[nn.Module, tuple[int, ...]], key: str) -> None:
    net, shape = case
    perturbed(net)
    x, c_noise = randn(2, *shape), randn(2)
    first, second = {
        "label": (torch.tensor([0, 0]), torch.tensor([1, 1])),
        "values": (randn(2, 2), randn(2, 2, seed=5)),
    }[key]
    one, two = net(x, c_noise, {key: first}), net(x, c_noise, {key: second})
    assert not torch.allclose(one, two, atol=1e-3)


def test_noise_level_counts_for_both_conventions(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, shape = case
    perturbed(net)
    x = randn(2, *shape)
    for low, high in ((-1.0, -0.8), (500.0, 510.0)):
        assert not torch.allclose(net(x, torch.full((2,), low)), net(x, torch.full((2,), high)), atol=1e-4)


def test_withheld_values_may_be_nan(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, shape = case
    perturbed(net)
    values = torch.tensor([[torch.nan, 0.0], [0.3, 0.4]])
    y = net(randn(2, *shape), randn(2), {"values": values, "null": torch.tensor([True, False])})
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_samples_do_not_see_each_other(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, shape = case
    perturbed(net).double()
    x, c_noise, label = randn(4, *shape).double(), randn(4).double(), torch.tensor([0, 1, 2, 3])
    together = net(x, c_noise, {"label": label})
    alone = torch.cat([net(x[i : i + 1], c_noise[i : i + 1], {"label": label[i : i + 1]}) for i in range(4)])
    torch.testing.assert_close(alone, together, atol=1e-12, rtol=1e-10)
    assert together.dtype == torch.float64


def test_output_keeps_the_dtype_of_x(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, shape = case
    perturbed(net)
    x, c_noise = randn(2, *shape), randn(2)
    exact = net(x, c_noise)
    assert net(x.double(), c_noise.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(x, c_noise)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("name", ["unet2", "unet3"])
def test_channels_last_is_kept_and_agrees(name: str) -> None:
    build, shape = CONDITIONED[name]
    net = perturbed(seeded(build))
    x, c_noise = randn(2, *shape), randn(2)
    plain = net(x, c_noise)
    layout = torch.channels_last if name == "unet2" else torch.channels_last_3d
    net = net.to(memory_format=layout)
    layouts = []
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_hook(lambda _m, _i, y: layouts.append(y.is_contiguous(memory_format=layout)))
    again = net(x, c_noise)
    torch.testing.assert_close(again, plain, atol=1e-5, rtol=1e-5)
    assert len(layouts) > 5
    assert all(layouts)


def test_grid_condition() -> None:
    net = perturbed(seeded(lambda: UNet(2, 1, width=8, multipliers=(1, 2), blocks=1, grid_channels=2)))
    x, c_noise, null = randn(2, 1, 5, 7), randn(2), torch.tensor([True, False])
    free = net(x, c_noise)
    zeros = net(x, c_noise, {"grid": torch.zeros(2, 2, 5, 7)})
    assert not torch.allclose(zeros, free, atol=1e-3)  # the indicator tells an empty grid from no grid
    for size in ((5, 7), (2, 3), (10, 14)):
        grid = randn(2, 2, *size)
        full = net(x, c_noise, {"grid": grid})
        assert not torch.allclose(full, zeros, atol=1e-3)
        some = net(x, c_noise, {"grid": grid, "null": null})
        torch.testing.assert_close(some, torch.stack([free[0], full[1]]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dims", "size"), [(1, (6,)), (2, (4, 6)), (3, (2, 4, 6))])
def test_resized_grid_of_a_constant_is_that_constant(dims: int, size: tuple[int, ...]) -> None:
    embedding = ConditionEmbedding(4, grid_channels=1)
    for other in (tuple(2 * n for n in size), tuple(max(1, n // 2) for n in size)):
        out = embedding.attach_grid(torch.zeros(2, 3, *size), {"grid": torch.full((2, 1, *other), 2.5)})
        assert out.shape == (2, 5, *size)
        torch.testing.assert_close(out[:, 3], torch.full((2, *size), 2.5))
        assert dims == len(size)


def test_dropout_is_only_in_training() -> None:
    net = perturbed(seeded(lambda: UNet(1, 1, width=8, multipliers=(1,), blocks=1, dropout=0.5)))
    x, c_noise = randn(2, 1, 8), randn(2)
    assert torch.equal(net.eval()(x, c_noise), net(x, c_noise))
    net.train()
    with torch.random.fork_rng():
        assert not torch.equal(net(x, c_noise), net(x, c_noise))


@given(k=st.integers(0, 999))
def test_noise_code_tells_every_chain_step_apart(k: int) -> None:
    embedding = NoiseEmbedding(4, 16)
    codes: list[Tensor] = []
    embedding.inner.register_forward_pre_hook(lambda _m, inputs: codes.append(inputs[0]))
    embedding(torch.tensor([float(k), float(k + 1)]))
    assert codes[0].shape == (2, 32)
    assert (codes[0][0] - codes[0][1]).norm() > 0.5


WRONG_CONDITIONS = {
    "unknown key": ({"lable": torch.zeros(2).long()}, "lable.*label, values, null"),
    "label too large": ({"label": torch.tensor([0, 4])}, "holds 4.*0 to 3"),
    "label negative": ({"label": torch.tensor([-1, 0])}, "holds -1"),
    "label float": ({"label": torch.zeros(2)}, "float32.*long"),
    "label batch": ({"label": torch.zeros(3).long()}, "x has 2 samples"),
    "label shape": ({"label": torch.zeros(2, 1).long()}, r"\(2, 1\).*\(2,\)"),
    "values width": ({"values": torch.zeros(2, 5)}, r"\(2, 5\).*\(2, 2\)"),
    "values integer": ({"values": torch.zeros(2, 2).long()}, "int64.*float"),
    "null dtype": ({"null": torch.zeros(2)}, "float32.*bool"),
    "null scalar": ({"null": torch.tensor(True)}, "one entry each"),
}


@pytest.mark.parametrize("wrong", list(WRONG_CONDITIONS))
def test_wrong_conditions_are_refused(case: tuple[nn.Module, tuple[int, ...]], wrong: str) -> None:
    net, shape = case
    cond, message = WRONG_CONDITIONS[wrong]
    with pytest.raises(InputError, match=message) as caught:
        net(randn(2, *shape), randn(2), cond)
    assert "\n" not in str(caught.value)


def test_withheld_label_may_be_anything(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, shape = case
    perturbed(net)
    x, c_noise = randn(2, *shape), randn(2)
    y = net(x, c_noise, {"label": torch.tensor([-1, 99]), "null": torch.tensor([True, True])})
    torch.testing.assert_close(y, net(x, c_noise))


def test_wrong_inputs_are_refused(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, shape = case
    with pytest.raises(InputError, match="x has shape"):
        net(randn(2, shape[0] + 1, *shape[1:]), randn(2))
    with pytest.raises(InputError, match="x has shape"):
        net(randn(2, *shape, 1), randn(2))
    with pytest.raises(InputError, match="c_noise has shape"):
        net(randn(2, *shape), randn(1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UNet(4), "dims is 4"),
        (lambda: UNet(multipliers=()), "at least one level"),
        (lambda: UNet(width=0), "width 0"),
        (lambda: UNet(blocks=(2, 2)), "3 levels"),
        (lambda: UNet(blocks=0), "positive number"),
        (lambda: UNet(middle=-1), "middle is -1"),
        (lambda: UNet(attention=(True,)), "one truth value for each of 3 levels"),
    ],
)
def test_wrong_arguments_are_refused(build: Build, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def test_wrong_grids_are_refused() -> None:
    net = UNet(2, 1, width=8, multipliers=(1,), blocks=1, grid_channels=2)
    x, c_noise = randn(2, 1, 4, 4), randn(2)
    for grid in (torch.zeros(2, 1, 4, 4), torch.zeros(2, 2, 4), torch.zeros(2, 2, 4, 4).long()):
        with pytest.raises(InputError, match="grid"):
            net(x, c_noise, {"grid": grid})
