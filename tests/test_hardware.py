"""`auto` is bfloat16 exactly where it is multiplied in hardware."""

from __future__ import annotations

import platform

import pytest
import torch

from ornstein.hardware import bfloat16_is_native, half_precision


@pytest.mark.parametrize(("known", "native"), [
    ({"avx512_bf16": True}, True), ({"avx512_bf16": False, "amx_bf16": True}, True),
    ({"avx512_bf16": False, "avx2": True}, False), ({}, False),
])  # fmt: skip
def test_auto_asks_the_processor(monkeypatch: pytest.MonkeyPatch, known: dict[str, bool], native: bool) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert bfloat16_is_native("cpu") is native
    assert half_precision("auto", "cpu") is native
    assert half_precision("bf16", "cpu")
    assert not half_precision("float32", "cpu")
    assert bfloat16_is_native("cuda")


def test_other_processors_are_taken_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert bfloat16_is_native("cpu")
