"""Networks for series with gaps, SSSDNet and CSDINet: what they may see, what they must see, and what they refuse."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ornstein.files import InputError
from ornstein.nets import CSDINet, SSSDNet

CHANNELS, FEATURES, LENGTH = 3, 2, 9
NETS: dict[str, Callable[..., nn.Module]] = {
    "sssd": lambda channels=CHANNELS, features=FEATURES, dropout=0.0: SSSDNet(
        channels, features, width=16, depth=2, state=8, dropout=dropout
    ),
    "csdi": lambda channels=CHANNELS, features=FEATURES, dropout=0.0: CSDINet(
        channels, features, width=16, depth=2, heads=2, channel_code=4, dropout=dropout
    ),
}


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return build()


def stirred(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


def randn(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def told(
    batch: int, channels: int = CHANNELS, features: int = FEATURES, length: int = LENGTH, seed: int = 3
) -> dict[str, Tensor]:
    """A condition with a third of the numbers known, a third asked for, and a third neither."""
    kind = torch.randint(3, (batch, channels, length), generator=torch.Generator().manual_seed(seed))
    known, asked = (kind == 0).float(), (kind == 1).float()
    cond = {"given": torch.cat([randn(batch, channels, length, seed=seed + 1) * known, known, asked], 1)}
    return cond | ({"features": randn(batch, features, length, seed=seed + 2)} if features else {})


@pytest.fixture(params=list(NETS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@settings(max_examples=15)
@given(
    which=st.sampled_from(sorted(NETS)),
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    features=st.integers(0, 2),
    length=st.integers(1, 12),
)
def test_any_shape_starts_at_zero(which: str, batch: int, channels: int, features: int, length: int) -> None:
    net = seeded(lambda: NETS[which](channels, features))
    x = randn(batch, channels, length)
    cond = told(batch, channels, features, length)
    assert torch.equal(net(x, randn(batch), cond), torch.zeros_like(x))
    assert stirred(net)(x, randn(batch), cond).shape == x.shape


def test_numbers_not_asked_for_have_no_influence(name: str) -> None:
    net, cond = stirred(seeded(NETS[name])), told(2)
    x, asked = randn(2, CHANNELS, LENGTH), cond["given"][:, 2 * CHANNELS :].bool()
    y = net(x, randn(2), cond)
    for other in (1e6, -3.0, torch.nan, torch.inf):
        assert torch.equal(net(torch.where(asked, x, other), randn(2), cond), y)
    assert not torch.allclose(net(torch.where(asked, x + 1, x), randn(2), cond), y)


def test_every_number_depends_on_all_that_is_told(name: str) -> None:
    net, cond = stirred(seeded(NETS[name])), told(1)
    leaves = {key: part.clone().requires_grad_() for key, part in cond.items()}
    x, level = randn(1, CHANNELS, LENGTH).requires_grad_(), randn(1).requires_grad_()
    y = net(x, level, leaves)
    asked = cond["given"][:, 2 * CHANNELS :].bool()
    for channel in range(CHANNELS):
        for time in range(LENGTH):
            slopes = torch.autograd.grad(y[0, channel, time], [leaves["given"], leaves["features"], x, level], retain_graph=True)
            # the marks of what is asked for switch x on and off, and are no numbers to derive by in SSSDNet
            assert bool((slopes[0][:, : 2 * CHANNELS] != 0).all())
            assert bool((slopes[1] != 0).all())
            assert torch.equal(slopes[2] != 0, asked)
            assert bool(slopes[3] != 0)


def test_gradient_reaches_every_parameter(name: str) -> None:
    net = stirred(seeded(NETS[name]))
    net(randn(4, CHANNELS, LENGTH), randn(4), told(4)).square().sum().backward()
    # a bias of the keys adds one number to all scores of a softmax, so part of `inputs.bias` has no slope; the whole has
    dead = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # the residual half of the last block goes nowhere, but its weights share a tensor with the skip half
    assert dead == []


def test_samples_are_independent(name: str) -> None:
    net, cond = stirred(seeded(NETS[name])), told(3)
    x, level = randn(3, CHANNELS, LENGTH), randn(3)
    alone = [net(x[i : i + 1], level[i : i + 1], {key: part[i : i + 1] for key, part in cond.items()}) for i in range(3)]
    torch.testing.assert_close(net(x, level, cond), torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_channels_in_another_order_give_the_same_numbers() -> None:
    net, cond = stirred(seeded(NETS["csdi"])), told(2)
    x, level, order = randn(2, CHANNELS, LENGTH), randn(2), torch.tensor([2, 0, 1])
    y = net(x, level, cond)
    turned = cond | {"given": cond["given"].unflatten(1, (3, CHANNELS))[:, :, order].flatten(1, 2)}
    assert not torch.allclose(net(x[:, order], level, turned), y[:, order], atol=1e-3)  # a channel is known by its code
    with torch.no_grad():
        net.channel.copy_(net.channel[order])
    torch.testing.assert_close(net(x[:, order], level, turned), y[:, order], rtol=1e-4, atol=1e-5)


def test_times_have_their_place() -> None:
    net, cond = stirred(seeded(NETS["csdi"])), told(1)
    x = randn(1, CHANNELS, LENGTH)
    mirrored = net(x.flip(-1), torch.zeros(1), {key: part.flip(-1) for key, part in cond.items()})
    assert not torch.allclose(mirrored.flip(-1), net(x, torch.zeros(1), cond), atol=1e-3)


def test_nothing_is_drawn_when_called(name: str) -> None:
    net, x, cond = stirred(seeded(NETS[name])), randn(2, CHANNELS, LENGTH), told(2)
    before = torch.random.get_rng_state()
    assert torch.equal(net(x, randn(2), cond), net(x, randn(2), cond))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_dropout_is_off_in_evaluation(name: str) -> None:
    net, x, cond = stirred(seeded(lambda: NETS[name](dropout=0.5))), randn(2, CHANNELS, LENGTH), told(2)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        assert not torch.equal(net(x, randn(2), cond), net(x, randn(2), cond))
    net.eval()
    assert torch.equal(net(x, randn(2), cond), net(x, randn(2), cond))


def test_double_precision_and_autocast(name: str) -> None:
    net, x, cond = stirred(seeded(NETS[name])), randn(2, CHANNELS, LENGTH), told(2)
    y = net(x, randn(2), cond)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(x, randn(2), cond)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, y, rtol=0.1, atol=0.1)
    assert net(x.double(), randn(2), cond).dtype == torch.float64
    exact = net.double()(x.double(), randn(2).double(), {key: part.double() for key, part in cond.items()})
    torch.testing.assert_close(exact.float(), y, rtol=1e-3, atol=1e-4)


def test_what_is_told_is_learned(name: str) -> None:
    """The answer is a sum over the channels that the condition tells: noise without it."""
    net = seeded(NETS[name])
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    known = torch.ones(8, CHANNELS, LENGTH)
    losses = []
    for step in range(80):
        values, features = randn(8, CHANNELS, LENGTH, seed=step), torch.zeros(8, FEATURES, LENGTH)
        answer = values.sum(1, keepdim=True) / CHANNELS**0.5
        y = net(torch.zeros_like(values), torch.zeros(8), {"given": torch.cat([values, known, known], 1), "features": features})
        loss = (y - answer).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


BAD_CALLS: list[tuple[Callable[[dict[str, Tensor]], tuple[Tensor, Tensor, dict[str, Tensor] | None]], str]] = [
    (lambda cond: (randn(2, 9), randn(2), cond), r"x has shape \(2, 9\): this net takes \(batch, 3, length\)"),
    (lambda cond: (randn(2, 4, 9), randn(2), cond), r"x has shape \(2, 4, 9\)"),
    (lambda cond: (randn(2, 3, 9), randn(3), cond), r"c_noise has shape \(3,\): make it \(2,\)"),
    (lambda cond: (randn(2, 3, 9), randn(2), None), r"cond has no 'given': give a tensor of shape \(2, 9, 9\)"),
    (lambda cond: (randn(2, 3, 9), randn(2), {"given": cond["given"]}), r"cond has no 'features'"),
    (lambda cond: (randn(2, 3, 9), randn(2), cond | {"label": randn(2)}), r"cond has the key 'label'"),
    (lambda cond: (randn(2, 3, 9), randn(2), cond | {"given": randn(2, 3, 9)}), r"cond\['given'\] has shape \(2, 3, 9\)"),
    (lambda cond: (randn(2, 3, 8), randn(2), cond), r"make it \(2, 9, 8\)"),
    (lambda cond: (randn(2, 3, 9), randn(2), cond | {"features": torch.zeros(2, 2, 9).long()}), r"dtype torch.int64"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_CALLS)
def test_calls_that_do_not_fit(
    name: str, bad: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor, dict[str, Tensor] | None]], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        seeded(NETS[name])(*bad(told(2)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("argument", ["channels", "width", "depth"])
@pytest.mark.parametrize("make", [SSSDNet, CSDINet])
def test_sizes_that_do_not_fit(make: Callable[..., nn.Module], argument: str) -> None:
    with pytest.raises(InputError, match=f"{argument} is 0"):
        make(**({"channels": 2} | {argument: 0}))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(InputError, match="heads is 5: take a divisor of the width 64"):
        CSDINet(2, heads=5)
