"""Measurements in the data's own units, as the model needs them: in units in which data are about one."""

from __future__ import annotations

import math

import torch

from ornstein.contract import Contract
from ornstein.files import InputError
from ornstein.guidance.given import Given
from ornstein.operator import Mask, Nonlinear, Scaled


def in_model_units(given: Given, contract: Contract) -> Given:
    """The same knowledge about encoded data: values - A(shift) = A(scale·x) + noise, divided by the scale's root mean square.

    `given` is in the data's own units, noise_std too. A mask stays a mask, so that measured values are those of x.
    InputError if the operator was made for data of another shape.
    """
    if given.mask is not None:
        return _each_mask(given, contract)
    operator = given.measured
    if operator.shape != contract.shape:
        raise InputError(
            f"the operator acts on data of shape {operator.shape}, but the model's have shape {contract.shape}; "
            "make it for the model's"
        )
    common = len(set(contract.scale)) == 1
    unit = abs(contract.scale[0]) if common else math.sqrt(sum(scale**2 for scale in contract.scale) / len(contract.scale))
    noise_std = None if given.noise_std is None else given.noise_std / unit
    if isinstance(operator, Mask) and common:
        return Given(contract.encode(given.values), operator, noise_std=noise_std)
    scale, shift = (torch.tensor(part, dtype=torch.float64) for part in (contract.scale, contract.shift))
    values = given.values.double()
    if operator.linear:
        constant = shift.reshape(-1, *[1] * (len(contract.shape) - 1)).expand(contract.shape).unsqueeze(0)
        values = values - operator(constant)
        inner = operator if common and contract.scale[0] > 0 else Scaled(operator, scale / unit, torch.zeros_like(shift))
        return Given((values / unit).float(), inner, noise_std=noise_std)
    return Given(
        (values / unit).float(), Nonlinear(contract.shape, lambda x: operator(contract.decode(x)) / unit), noise_std=noise_std
    )


def _each_mask(given: Given, contract: Contract) -> Given:
    """Masks of their own stay masks: exact values are those of encoded x; noise needs channels of one scale."""
    assert given.mask is not None
    if tuple(given.values.shape[1:]) != contract.shape:
        raise InputError(f"values have shape {tuple(given.values.shape)}, but the model's data {contract.shape}; make them alike")
    if given.noise_std and len(set(contract.scale)) > 1:
        raise InputError(f"noise_std={given.noise_std:g} means nothing to channels of different units; leave it out")
    noise_std = given.noise_std and given.noise_std / abs(contract.scale[0])
    return Given(contract.encode(given.values), mask=given.mask, noise_std=noise_std)
