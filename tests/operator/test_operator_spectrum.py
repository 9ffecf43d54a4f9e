"""What every linear operator keeps to: decomposition, pseudo-inverse, `solve` by either way."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from operator_cases import LINEAR, MADE, Blind, close, dense, normal, pairs, spectrum_of
from torch import Tensor

from ornstein.operator import Matrix, Operator, base


def inverted(operator: Operator, gain: float = 1.0, variance: float = 0.0) -> Tensor:
    """`solve` as a matrix (D, M)."""
    measured = math.prod(operator.measured_shape)
    units = torch.eye(measured, dtype=torch.float64).reshape(measured, *operator.measured_shape)
    return operator.solve(units, gain, variance).flatten(1).T


@pytest.mark.parametrize("name", LINEAR)
def test_spectrum(name: str) -> None:
    operator = MADE[name]
    spectrum, numbers = spectrum_of(operator), math.prod(operator.shape)
    x, y = pairs(operator, 5, 3)
    v = spectrum.forward(torch.eye(numbers, dtype=torch.float64).reshape(numbers, *operator.shape))
    close(v @ v.T, torch.eye(numbers, dtype=torch.float64))
    close(spectrum.backward(spectrum.forward(x)), x)
    close(spectrum.forward(spectrum.backward(x.flatten(1))), x.flatten(1))

    s = spectrum.values
    assert s.shape == (numbers,)
    assert s.dtype == torch.float64
    expected = torch.linalg.svdvals(dense(operator))
    expected = torch.nn.functional.pad(expected[:numbers], (0, max(0, numbers - len(expected))))
    kept = torch.where(expected > 1e-6 * expected.max(), expected, 0.0)
    close(s.sort(descending=True).values, kept)
    close(s * spectrum.forward(x), spectrum.measured(operator(x)) * (s > 0), 1e-6)  # to the values that are left out
    close(s * spectrum.measured(y), spectrum.forward(operator.adjoint(y)) * (s > 0))
    assert not spectrum.measured(y)[:, s == 0].any()


@pytest.mark.parametrize("name", LINEAR)
def test_pseudo_inverse_meets_the_four_conditions_of_penrose(name: str) -> None:
    operator = MADE[name]
    a, inverse = dense(operator), inverted(operator)
    close(a @ inverse @ a, a, 2e-6)
    close(inverse @ a @ inverse, inverse, 2e-6)
    close(a @ inverse, (a @ inverse).T, 2e-6)
    close(inverse @ a, (inverse @ a).T, 2e-6)
    close(inverse, torch.linalg.pinv(a, rtol=1e-6), 1e-5)
    x, y = pairs(operator, 7)
    seen = operator.project(x)
    close(operator.project(seen), seen, 1e-8)
    close((seen * x.flip(0)).sum(), (x * operator.project(x.flip(0))).sum(), 1e-8)
    close(operator.pseudo_inverse(y), (y.flatten(1) @ inverse.T).reshape(x.shape), 1e-8)


@pytest.mark.parametrize("name", LINEAR)
def test_solve(name: str) -> None:
    operator = MADE[name]
    a = dense(operator)
    unit = torch.eye(len(a), dtype=torch.float64)
    for gain, variance in ((1.0, 0.25), (0.3, 2.0), (0.0, 0.5)):
        close(inverted(operator, gain, variance), a.T @ torch.linalg.inv(gain * a @ a.T + variance * unit), 2e-6)
    assert not operator.solve(normal(2, *operator.measured_shape), 0.0, 0.0).any()
    _, y = pairs(operator, 3, 3)
    gains, variances = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.1, 1.0, 2.0])
    each = [operator.solve(y[i : i + 1], float(gains[i]), float(variances[i])) for i in range(3)]
    close(operator.solve(y, gains, variances), torch.cat(each), 1e-7)


@pytest.mark.parametrize("name", LINEAR)
def test_conjugate_gradients_agree_with_the_spectrum(name: str) -> None:
    operator, blind = MADE[name], Blind(MADE[name])
    y = normal(3, *operator.measured_shape, seed=9)
    gains, variances = torch.tensor([1.0, 0.3, 2.0]), torch.tensor([0.05, 1.0, 0.2])
    close(blind.solve(y, gains, variances), operator.solve(y, gains, variances), 1e-4)
    alone = torch.cat([blind.solve(y[i : i + 1], gains[i], variances[i]) for i in range(3)])
    close(blind.solve(y, gains, variances), alone, 1e-6)
    s = spectrum_of(operator).values
    if s.max() < 20 * torch.where(s > 0, s, s.max()).min():  # else their stop is the answer to another question
        close(blind.pseudo_inverse(y), operator.pseudo_inverse(y), 1e-4)


def test_a_sample_that_has_converged_stands_still() -> None:
    operator = Blind(Matrix(torch.diag(torch.linspace(1, 30, 40))))
    quick = 1 + 0.01 * normal(1, 40)
    quick[:, 3:] *= 1e-7  # three directions, and so little of the others that the rest is left alone
    both = operator.solve(torch.cat([quick, normal(1, 40)]), 1.0, 1e-3)
    assert torch.equal(both[:1], operator.solve(torch.cat([quick, quick]), 1.0, 1e-3)[:1])


def test_large_maps_are_not_decomposed_but_solved() -> None:
    operator = MADE["blur:motion/shake"]
    fresh = type(operator)(operator.shape, operator.kernel.value, "reflect")
    with mock.patch("ornstein.operator.channels.LARGEST", 20):
        assert fresh.spectrum is None
        y = normal(2, *operator.measured_shape)
        close(fresh.solve(y, 1.0, 0.1), operator.solve(y, 1.0, 0.1), 1e-5)
    with mock.patch.object(base, "LARGEST", 5):
        assert Matrix(torch.ones(2, 6)).spectrum is None
        assert Matrix(torch.ones(2, 5)).spectrum is not None
