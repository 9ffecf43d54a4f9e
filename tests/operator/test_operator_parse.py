"""Operators by name: every name round-trips, every mistake is one line with the remedy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import normal

from ornstein.files import InputError
from ornstein.noise import Noise
from ornstein.operator import OPERATORS, Compose, parse, usage

SHAPE = (3, 8, 8)


@pytest.mark.parametrize(
    "text",
    [
        *OPERATORS,
        "mask:box,size=3x2,corner=1x4",
        "mask:random,share=0.92",
        "mask:random,0.7",
        "blur:gaussian,std=1.23456789,size=5,padding=zeros",
        "blur:motion,length=5,angle=30,shake=20",
        "down:4",
        "down:factor=2,method=bicubic",
        "desaturate:0.5,weights=luma",
        "fourier:lines,share=0.5,centre=0.1",
        "radon:angles=3",
        "clip:factor=3,low=-1,high=1e0",
        " blur:gaussian,std=1 then  down:2 then grey ",
    ],
)
def test_a_name_is_read_back(text: str) -> None:
    operator = parse(text, SHAPE, Noise(4))
    assert operator.shape == SHAPE
    again = parse(str(operator), SHAPE, Noise(4))
    assert str(again) == str(operator)
    x = normal(2, *SHAPE)
    assert torch.equal(operator(x), again(x))


def test_what_is_random_comes_from_the_noise() -> None:
    x = normal(1, *SHAPE)
    for text in ("mask:random", "mask:scratches", "blur:motion,shake=30", "fourier:lines", "fourier:random"):
        assert torch.equal(parse(text, SHAPE, Noise(1))(x), parse(text, SHAPE, Noise(1))(x)), text
        one, other = parse(text, SHAPE, Noise(1))(x), parse(text, SHAPE, Noise(2))(x)
        assert one.shape != other.shape or not torch.equal(one, other), text


def test_values_reach_the_operator() -> None:
    assert parse("down:4", SHAPE, Noise(0)).measured_shape == (3, 2, 2)
    assert parse("radon:5,span=90", SHAPE, Noise(0)).measured_shape == (3, 5, 12)
    assert parse("phase:oversampling=1.5", SHAPE, Noise(0)).measured_shape == (3, 12, 12)
    both = parse("blur:gaussian,std=1 then down:2", SHAPE, Noise(0))
    assert isinstance(both, Compose)
    assert (str(both.inner).split(",")[0], both.measured_shape) == ("blur:gaussian", (3, 4, 4))
    assert not parse("down:2 then phase", SHAPE, Noise(0)).linear


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not one of mask:box, .* clip"),
        ("fog", "'fog' is not one of mask:box, .* clip; `ornstein list`"),
        ("mask", "'mask' is not one of mask:box, .* mask:scratches; "),
        ("mask:boxes", "'mask:boxes' is not one of mask:box, "),
        ("mask:box,14,3", "'3' has no '='; write mask:box,size=…,corner=…"),
        ("mask:box,length=3", "mask:box has no option 'length'; write mask:box,size=…,corner=…"),
        ("mask:box,size=a", "size='a' is not a size such as 14 or 14x10"),
        ("mask:box,size=9", "must lie within"),
        ("mask:box,size=8", "leave something"),
        ("mask:box,size=0", "must lie within"),
        ("mask:box,size=1x1x1", "3 numbers for 2 axes"),
        ("mask:box,size=2,corner=7", "must lie within"),
        ("mask:random,share=1", "share=1 of 64 leaves nothing"),
        ("mask:random,share=0.999", "leaves nothing"),
        ("mask:random,share=-0.1", "leaves nothing"),
        ("mask:half,side=up", "side='up' is not one of left, right, top, bottom"),
        ("mask:rows,every=9", r"must be in 1 … 8"),
        ("mask:scratches,count=0", "must be in 1 … 1000"),
        ("mask:scratches,width=nan", "is not a number such as 2.5"),
        ("blur:gaussian,std=0", "std=0 must be positive"),
        ("blur:gaussian,std=1e9", "more than four images"),
        ("blur:gaussian,size=4", "size=4 must be odd"),
        ("blur:gaussian,padding=mirror", "is not one of reflect, circular, zeros"),
        ("blur:motion,length=0", "0 < length"),
        ("down:3", r"factor=3 must divide the sides \(8, 8\)"),
        ("down:0", "must divide"),
        ("down:2.5", "factor='2.5' is not a whole number"),
        ("down:factor=2,factor=4", "factor is given twice"),
        ("down:factor=", "factor='' is not a whole number"),
        ("grey:weights=red", "is not one of mean, luma"),
        ("desaturate:2", r"amount=2 must be in \[0, 1\]"),
        ("fourier:lines,share=0", "0 < share"),
        ("fourier:lines,share=0.1,centre=0.2", "centre ≤ share"),
        ("radon:angles=0", "1 ≤ angles"),
        ("phase:0.5", r"must be in \[1, 8\]"),
        ("clip:low=3,high=2", "low < high"),
        ("down:2 then down:8", "must divide"),
        ("down:2 then", "then"),
    ],
)
def test_a_mistake_is_one_line_with_the_remedy(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse(text, SHAPE, Noise(0))
    assert str(caught.value).startswith("operator=")
    assert "\n" not in str(caught.value)


def test_shapes_an_operator_cannot_measure() -> None:
    for text in OPERATORS:
        with pytest.raises(InputError, match=r"^operator=.*channels"):
            parse(text, (5,), Noise(0))
    for text in ("grey:weights=luma", "desaturate:weights=luma"):
        with pytest.raises(InputError, match=r"3 channels|red, green and blue"):
            parse(text, (1, 4, 4), Noise(0))
    with pytest.raises(InputError, match=r"mask:random|blur:gaussian|mask:columns"):
        parse("blur:motion", (1, 4), Noise(0))


@settings(max_examples=150)
@given(text=st.text("abdmoxswn:=,.0149 -ué²", max_size=12), head=st.sampled_from(["", *OPERATORS]))
def test_any_text_is_an_operator_or_one_line(text: str, head: str) -> None:
    try:
        said = parse(head + text, (1, 4, 4), Noise(0)).shape
    except InputError as error:
        said = str(error)
    assert said == (1, 4, 4) or (isinstance(said, str) and "\n" not in said)


def test_usage_lists_all() -> None:
    lines = usage()
    assert len(lines) == len(OPERATORS)
    assert lines["down:factor=2,method=area"].startswith("Make every side")
    for (written, text), name in zip(lines.items(), OPERATORS, strict=True):
        assert written.startswith(name)
        assert text.endswith(".")
        assert "\n" not in text
        default = ",".join(part for part in written.replace(":size", ",size").split(",") if "…" not in part)
        parse(default, SHAPE, Noise(0))
