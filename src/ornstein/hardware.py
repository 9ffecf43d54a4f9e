"""What this machine computes, and fast."""

from __future__ import annotations

import platform

import torch
from torch import Tensor

WITHOUT_DOUBLE = {"mps"}
"""Types of device that have no float64."""


def bfloat16_is_native(device: torch.device | str) -> bool:
    """Whether the device multiplies bfloat16 in hardware; x86 processors without AVX512-BF16 or AMX emulate it, ten times slower
    than float32. Other processors and accelerators are taken to do so."""
    if torch.device(device).type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    cpu = torch.cpu
    known = cpu.get_capabilities() if hasattr(cpu, "get_capabilities") else {"avx512_bf16": cpu._is_avx512_bf16_supported()}
    return any(bool(known.get(name)) for name in ("avx512_bf16", "amx_bf16"))


def has_double(device: torch.device | str) -> bool:
    """Whether the device has float64."""
    return torch.device(device).type not in WITHOUT_DOUBLE


def widest(device: torch.device | str) -> torch.device:
    """Where float64 numbers of a device are computed: there, or on the CPU where it has none."""
    return torch.device(device if has_double(device) else "cpu")


def doubled(x: Tensor) -> Tensor:
    """x in float64, on its device or, where that has none, on the CPU."""
    return x.to(widest(x.device), torch.float64)


def half_precision(precision: str, device: torch.device | str) -> bool:
    """Whether `precision` "float32", "bf16" or "auto" means bfloat16 on the device; "auto" does where it is native."""
    return precision == "bf16" or (precision == "auto" and bfloat16_is_native(device))
