"""What every operator keeps to: adjoint, matrix, gradients, dtypes, shapes, samples apart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import CLASSES, LINEAR, MADE, NONLINEAR, close, dense, normal, pairs, spectrum_of

from ornstein.files import InputError
from ornstein.operator import OPERATORS, Channelwise, Operator

SEEDS = st.integers(0, 2**32)


def test_no_operator_is_missing() -> None:
    def below(kind: type[Operator]) -> Iterator[type[Operator]]:
        for one in kind.__subclasses__():
            yield one
            yield from below(one)

    own = {kind.__name__ for kind in below(Operator) if kind.__module__.startswith("ornstein.operator")}
    assert own - {Channelwise.__name__} == CLASSES == {type(operator).__name__ for operator in MADE.values()}
    assert {key.split("/")[0] for key in MADE} - CLASSES == set(OPERATORS), "add it to CASES in operator_cases.py"


@settings(max_examples=5)
@given(seed=SEEDS)
def test_adjoint(seed: int) -> None:
    for name in LINEAR:  # a test of hypothesis for each would take ten times as long
        operator = MADE[name]
        x, y = pairs(operator, seed)
        left, right = (operator(x) * y).flatten(1).sum(1), (x * operator.adjoint(y)).flatten(1).sum(1)
        close(left, right, message=name)
        close(operator.adjoint(y), Operator.adjoint(operator, y), message=name)
        close(operator(2 * x - 3 * x.flip(0)), 2 * operator(x) - 3 * operator(x.flip(0)), message=name)


@pytest.mark.parametrize("name", LINEAR)
def test_matrix(name: str) -> None:
    operator = MADE[name]
    assert operator.matrix.dtype == torch.float64
    close(operator.matrix, dense(operator), 1e-12)


@pytest.mark.parametrize("name", MADE)
def test_samples_are_apart(name: str) -> None:
    operator = MADE[name]
    x = normal(3, *operator.shape)
    spoiled = x.clone()
    spoiled[1:] = float("nan")
    close(operator(x)[0], operator(spoiled)[0], 1e-13)  # the BLAS rounds by where in memory a row lies
    close(operator(x)[1:2], operator(x[1:2]), 1e-13)
    if operator.linear:
        y = operator(x)
        wrong = y.clone()
        wrong[1:] = float("nan")
        close(operator.adjoint(y)[0], operator.adjoint(wrong)[0], 1e-13)
        close(operator.solve(y, 1.0, 0.1)[0], operator.solve(wrong, 1.0, 0.1)[0], 1e-12)


@pytest.mark.parametrize("name", MADE)
def test_dtype_and_shape_are_kept(name: str) -> None:
    operator = MADE[name]
    x = normal(2, *operator.shape)
    y = operator(x)
    assert y.shape == (2, *operator.measured_shape)
    assert operator(x.float()).dtype == torch.float32
    torch.testing.assert_close(operator(x.float()).double(), y, rtol=1e-4, atol=1e-4)
    if "adon" not in name:  # sparse matrices have no meta device
        assert operator(x.to("meta")).device.type == "meta"
    if operator.linear:
        close(operator.adjoint(y.float()), operator.adjoint(y).float(), 1e-4)
        close(operator.solve(y.float(), 1.0, 0.2), operator.solve(y, 1.0, 0.2).float(), 1e-4)


@pytest.mark.parametrize("name", LINEAR)
def test_gradients_of_linear_operators(name: str) -> None:
    operator = MADE[name]
    x, y = pairs(operator, 4)
    with torch.inference_mode():
        operator(x)
        operator.solve(y, 1.0, 1.0)  # what is kept from here serves the gradients below
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(0.5 * ((operator(x) - y) ** 2).sum(), x)
    close(gradient, operator.adjoint(operator(x.detach()) - y))
    y.requires_grad_()
    for back in (operator.adjoint, lambda y: Operator.adjoint(operator, y), lambda y: operator.solve(y, 1.0, 0.5)):
        (forward,) = torch.autograd.grad((back(y) * x.detach()).sum(), y)
        close((forward * y).sum(), (back(y) * x).sum(), 1e-9)
    assert not operator.adjoint(y.detach()).requires_grad


@pytest.mark.parametrize("name", NONLINEAR)
def test_gradients_of_other_operators(name: str) -> None:
    operator = MADE[name]
    x = normal(1, *operator.shape, seed=6).requires_grad_()
    assert torch.autograd.gradcheck(operator, (x,))


@pytest.mark.parametrize("name", NONLINEAR)
def test_what_is_not_linear_says_so(name: str) -> None:
    operator = MADE[name]
    for ask in (operator.adjoint, operator.pseudo_inverse):
        with pytest.raises(InputError, match=r"not linear .* dps"):
            ask(normal(1, *operator.measured_shape))
    for attribute in ("matrix", "spectrum"):
        with pytest.raises(InputError, match=r"not linear .* dps"):
            getattr(operator, attribute)


@pytest.mark.parametrize("name", MADE)
def test_data_of_another_shape_are_refused(name: str) -> None:
    operator = MADE[name]
    for shape in ((*operator.shape[:-1], operator.shape[-1] + 1), (1, *operator.shape), operator.shape[1:]):
        with pytest.raises(InputError, match=r"measures data of shape"):
            operator(torch.zeros(1, *shape))


@pytest.mark.parametrize("name", LINEAR)
def test_coefficients_are_sorted_by_channel_where_channels_do_not_mix(name: str) -> None:
    operator = MADE[name]
    if operator.channelwise:
        x = normal(1, *operator.shape)
        x[:, 1:] = 0
        coefficients = spectrum_of(operator).forward(x).reshape(operator.shape[0], -1)
        assert not coefficients[1:].any()
        assert not operator(x).reshape(operator.shape[0], -1)[1:].any()
