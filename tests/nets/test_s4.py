"""S4 against the system that it stands for: dense matrices, matrix exponentials and a solved differential equation."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from torch import Tensor, nn

from ornstein.files import InputError
from ornstein.nets import S4, S4DKernel, S4Kernel, SSSDNet
from ornstein.nets.ssm import DISCRETISATIONS, INITIAL, KERNELS, fast_length

MODELS = {
    **{f"s4d-{start}-{rule}": (start, rule) for start in INITIAL for rule in DISCRETISATIONS},
    "dplr": None,
}


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        yield


@pytest.fixture
def exact() -> Iterator[None]:
    """Weights that start in float64: in float32 the HiPPO matrix itself is rounded."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def randn(*shape: int, seed: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def built(name: str, width: int, state: int, steps: tuple[float, float] = (1e-3, 1e-1)) -> S4DKernel | S4Kernel:
    if name == "dplr":
        return S4Kernel(width, state, steps)
    start, rule = MODELS[name] or ("", "")
    return S4DKernel(width, state, start, rule, steps)


def stirred(module: nn.Module) -> nn.Module:
    """The module with every weight moved: nothing below holds only at the start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


def hippo_legs(state: int) -> tuple[np.ndarray, np.ndarray]:
    """A and B of HiPPO-LegS, number by number (arXiv 2008.07669, theorem 2)."""
    A = np.zeros((state, state))
    for n in range(state):
        for k in range(n + 1):
            A[n, k] = -(n + 1) if n == k else -np.sqrt((2 * n + 1) * (2 * k + 1))
    return A, np.sqrt(2 * np.arange(state) + 1.0)


def dense(kernel: S4DKernel | S4Kernel, channel: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """A, B, C and the step of one channel over all N complex numbers, both of each pair: y = Re C x."""

    def both(pairs: Tensor) -> np.ndarray:
        half = torch.view_as_complex(pairs.detach().double())[channel].numpy()
        return np.concatenate([half, half.conj()])

    poles = torch.complex(-kernel.log_decay.double().exp(), kernel.frequency.double())
    A = np.diag(both(torch.view_as_real(poles)))
    if isinstance(kernel, S4Kernel):
        A = A - np.outer(both(kernel.P), both(kernel.P).conj())
    return A, both(kernel.B), both(kernel.C), float(kernel.log_step.detach().double()[channel].exp())


def discrete(A: np.ndarray, B: np.ndarray, step: float, rule: str) -> tuple[np.ndarray, np.ndarray]:
    one = np.eye(len(A))
    if rule == "zoh":  # the exponential of [[A, B], [0, 0]] holds both
        whole = expm(step * np.block([[A, B[:, None]], [np.zeros((1, len(A) + 1))]]))
        return whole[:-1, :-1], whole[:-1, -1]
    inverse = np.linalg.inv(one - step / 2 * A)
    return inverse @ (one + step / 2 * A), inverse @ (step * B)


def powers_kernel(A_bar: np.ndarray, B_bar: np.ndarray, C: np.ndarray, length: int) -> np.ndarray:
    found, x = [], B_bar
    for _ in range(length):
        found.append((C @ x).real)
        x = A_bar @ x
    return np.array(found)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.usefixtures("exact")
def test_kernel_is_that_of_the_dense_system(name: str, moved: bool) -> None:
    kernel, length = built(name, 3, 64), 301
    if moved:
        stirred(kernel)
    rule = name.rsplit("-", maxsplit=1)[-1] if name != "dplr" else "bilinear"
    found = kernel.kernel(length).detach().numpy()
    assert found.shape == (3, length)
    for channel in range(3):
        A, B, C, step = dense(kernel, channel)
        assert np.linalg.eigvals(A).real.max() < 0
        np.testing.assert_allclose(found[channel], powers_kernel(*discrete(A, B, step, rule), C, length), rtol=0, atol=1e-10)


@pytest.mark.parametrize("state", [2, 8, 64])
@pytest.mark.usefixtures("exact")
def test_dplr_starts_as_the_hippo_matrix(state: int) -> None:
    # K from C in HiPPO's own coordinates: C is turned into those of the kernel by the eigenvectors, found here anew
    A, B = hippo_legs(state)
    p = np.sqrt(np.arange(state) + 0.5)
    frequency, V = np.linalg.eigh(-1j * (A + np.outer(p, p) + np.eye(state) / 2))
    C = randn(state, dtype=torch.float64).numpy()
    kernel = S4Kernel(1, state)
    # eigenvectors have a free phase: that of the kernel's own B fixes it
    half = torch.view_as_complex(kernel.B)[0].detach().numpy()
    V = V[:, state // 2 :]
    V = V * (half / (V.conj().T @ B)).conj()
    np.testing.assert_allclose(np.abs(half), np.abs(V.conj().T @ B), rtol=1e-10)
    np.testing.assert_allclose(kernel.frequency[0].detach().numpy(), frequency[state // 2 :], rtol=1e-10)
    with torch.no_grad():
        kernel.C.copy_(torch.view_as_real(torch.from_numpy(C @ V)))
    step = float(kernel.log_step.detach().exp())
    truth = powers_kernel(*discrete(A, B, step, "bilinear"), C, 200)
    np.testing.assert_allclose(kernel.kernel(200)[0].detach().numpy(), truth, rtol=0, atol=1e-9 * np.abs(truth).max())


def smooth(t: np.ndarray | float) -> np.ndarray | float:
    return np.sin(3 * np.asarray(t)) ** 4 + 0.5 * np.sin(np.asarray(t)) ** 4


def solved(kernel: S4DKernel | S4Kernel, times: np.ndarray) -> np.ndarray:
    """y of channel 0 at these times under the input `smooth`, by an integrator of order 8."""
    A, B, C, _ = dense(kernel, 0)
    wide = np.block([[A.real, -A.imag], [A.imag, A.real]])
    drive = np.concatenate([B.real, B.imag])
    tolerances = {"rtol": 1e-10, "atol": 1e-12}
    run = solve_ivp(
        lambda t, x: wide @ x + drive * smooth(t), (0, times[-1]), np.zeros(len(drive)), "DOP853", times, **tolerances
    )
    return C.real @ run.y[: len(A)] - C.imag @ run.y[len(A) :]


@pytest.mark.parametrize("name", ["s4d-legs-zoh", "s4d-inv-bilinear", "s4d-lin-zoh", "dplr"])
@pytest.mark.usefixtures("exact")
def test_convolution_solves_the_differential_equation(name: str) -> None:
    errors = []
    for count in (4000, 8000):  # the input is held at its value in the middle of each step: order 2
        kernel = built(name, 1, 16, steps=(1 / count, 1 / count))
        with torch.no_grad():
            kernel.C.copy_(torch.view_as_real(randn(1, 8, 2, dtype=torch.float64)[..., 0] + 0.5j))
        middle = torch.from_numpy(np.asarray(smooth((np.arange(count) + 0.5) / count)))
        taps = kernel.kernel(count)[0].detach()
        y = torch.fft.irfft(torch.fft.rfft(taps, 2 * count) * torch.fft.rfft(middle, 2 * count), 2 * count)[:count].numpy()
        at = np.array([count // 4, count // 2, count]) - 1
        truth = solved(kernel, (at + 1.0) / count)
        errors.append(np.abs(y[at] - truth).max() / np.abs(truth).max())
    assert errors[1] < 1e-6
    assert 3.5 < errors[0] / errors[1] < 4.5


@pytest.mark.parametrize("name", ["s4d-legs-zoh", "s4d-lin-zoh", "s4d-inv-zoh"])
@pytest.mark.usefixtures("exact")
def test_zero_order_hold_is_exact_for_held_inputs(name: str) -> None:
    kernel = built(name, 1, 64, steps=(0.05, 0.05))
    A, B, C, step = dense(kernel, 0)
    u = randn(40, dtype=torch.float64).numpy()
    x, truth = np.zeros(len(A), dtype=complex), []
    for value in u:  # exact solution over each step, by the exponential of the whole
        x = expm(step * A) @ x + np.linalg.solve(A, (expm(step * A) - np.eye(len(A))) @ B) * value
        truth.append((C @ x).real)
    taps = kernel.kernel(40)[0].detach().numpy()
    np.testing.assert_allclose(np.convolve(taps, u)[:40], truth, rtol=0, atol=1e-6)


@settings(max_examples=25)
@given(
    length=st.integers(1, 120),
    kernel=st.sampled_from(sorted(KERNELS)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 9),
)
def test_fft_is_the_recurrence_and_the_direct_convolution(length: int, kernel: str, dtype: torch.dtype, seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    layer = stirred(S4(3, 16, kernel, bidirectional=False)).to(dtype)
    x = randn(2, 3, length, seed=seed, dtype=dtype)
    y = layer(x).detach()
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    state, steps = layer.initial_state(2), []
    for t in range(length):
        out, state = layer.step(x[..., t], state)
        steps.append(out.detach())
    assert y.dtype == dtype
    assert float((torch.stack(steps, -1) - y).abs().max()) < tolerance
    taps = layer.kernel.kernel(length).detach()
    direct = (
        torch.stack([(taps[:, : t + 1].flip(1) * x[..., : t + 1]).sum(-1) for t in range(length)], -1)
        + layer.D.detach()[:, None] * x
    )
    assert float((direct - y).abs().max()) < tolerance


@pytest.mark.parametrize("kernel", KERNELS)
def test_full_size_in_float32_goes_step_by_step(kernel: str) -> None:
    layer = S4(4, 64, kernel, bidirectional=False)
    x = randn(1, 4, 1000)
    with torch.no_grad():
        y, state = layer(x), layer.initial_state(1)
        for t in range(1000):
            out, state = layer.step(x[..., t], state)
            assert float((out - y[..., t]).abs().max()) < 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_does_not_depend_on_the_length_asked(kernel: str) -> None:
    found = KERNELS[kernel](3, 32).double()
    longest = found.kernel(700)
    for length in (1, 2, 3, 97, 256, 513):
        torch.testing.assert_close(found.kernel(length), longest[:, :length], rtol=0, atol=1e-10)


@settings(max_examples=20)
@given(length=st.integers(1, 60), kernel=st.sampled_from(sorted(KERNELS)))
def test_bidirectional_is_forward_and_reversed_backward(length: int, kernel: str) -> None:
    both = stirred(S4(3, 8, kernel)).double()
    ways = [S4(3, 8, kernel, bidirectional=False).double() for _ in range(2)]
    with torch.no_grad():
        for way, rows in zip(ways, (slice(3), slice(3, 6)), strict=True):
            for mine, its in zip(way.kernel.parameters(), both.kernel.parameters(), strict=True):
                mine.copy_(its[rows])
            way.D.copy_(both.D / 2)
    x = randn(2, 3, length, dtype=torch.float64)
    torch.testing.assert_close(both(x), ways[0](x) + ways[1](x.flip(-1)).flip(-1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradients_are_the_slopes(kernel: str, bidirectional: bool) -> None:
    layer = S4(2, 4, kernel, bidirectional).double()
    x = randn(2, 2, 7, dtype=torch.float64).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), x)  # type: ignore[no-any-return]

    inputs = (x, *layer.parameters())
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_are_finite_at_full_size(kernel: str) -> None:
    layer = S4(8, 64, kernel)
    layer(randn(2, 8, 1001)).square().mean().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().max()) > 0, name


def test_vmap_is_the_loop() -> None:
    layer, x = S4(3, 8), randn(4, 2, 3, 9)
    torch.testing.assert_close(torch.func.vmap(layer)(x), torch.stack([layer(row) for row in x]))


def test_autocast_and_half_precision_keep_the_dtype() -> None:
    layer, x = S4(4, 16), randn(2, 4, 33)
    full = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x), full)
        assert layer(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x.bfloat16()).float(), full, rtol=0.05, atol=0.1)


@settings(max_examples=50)
@given(least=st.integers(1, 5000))
def test_fast_length(least: int) -> None:
    from scipy.fft import next_fast_len

    assert fast_length(least) == next_fast_len(least, real=True)  # pocketfft's own real lengths: factors 2, 3, 5


def test_a_delay_is_learned() -> None:
    """y_t = u_{t-32} of white noise; a layer of 16 channels between two linear maps."""
    layer = nn.Sequential(nn.Conv1d(1, 16, 1), S4(16, 64, bidirectional=False), nn.Conv1d(16, 1, 1))
    optimiser = torch.optim.Adam(layer.parameters(), 1e-2)
    for step in range(150):
        u = randn(8, 1, 128, seed=step)
        loss = (layer(u)[..., 32:] - u[..., :-32]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.1


BAD_LAYERS = [
    ({"width": 0}, "width is 0"),
    ({"width": 2, "state": 7}, "state is 7"),
    ({"width": 2, "kernel": "s5"}, "kernel is 's5'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_LAYERS)
def test_arguments_that_do_not_fit(arguments: dict[str, int | str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        S4(**arguments)  # type: ignore[arg-type]


def test_kernels_refuse_unknown_names_and_steps() -> None:
    with pytest.raises(InputError, match="initial is 'hippo'"):
        S4DKernel(2, 4, initial="hippo")
    with pytest.raises(InputError, match="discretisation is 'euler'"):
        S4DKernel(2, 4, discretisation="euler")
    with pytest.raises(InputError, match="steps is"):
        S4Kernel(2, 4, steps=(0.1, 0.01))


def test_inputs_that_do_not_fit() -> None:
    layer = S4(3, 4, bidirectional=False)
    for shape in ((2, 3), (2, 4, 5), (2, 3, 0)):
        with pytest.raises(InputError, match="x has shape"):
            layer(torch.zeros(shape))
    with pytest.raises(InputError, match="x has shape"):
        layer.step(torch.zeros(2, 3), layer.initial_state(1))
    with pytest.raises(InputError, match="bidirectional is True"):
        S4(3, 4).initial_state(1)


def test_sssd_passes_x_through_both_kinds_of_kernel() -> None:
    x, asked = randn(2, 2, 11), torch.ones(2, 2, 11)
    cond = {"given": torch.cat([0 * asked, 0 * asked, asked], 1)}
    for kernel in KERNELS:
        net = stirred(SSSDNet(2, width=16, depth=2, state=8, kernel=kernel))
        assert not torch.allclose(net(x, torch.zeros(2), cond), net(x.flip(-1), torch.zeros(2), cond))
