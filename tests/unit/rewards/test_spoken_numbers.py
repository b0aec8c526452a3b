# ruff: noqa: RUF001 (digits of other scripts and typographic signs are tested)
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.spoken_numbers import numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", 3),
        ("3.", 3),
        ("There are 3 dogs, 3 in all!", 3),
        ("three", 3),
        ("THREE (3)", 3),
        ("-2.5 kg", Fraction(-5, 2)),
        ("−7", -7),
        ("x=-7", -7),
        ("1,234,567.25", Fraction(123456725, 100)),
        (".5", Fraction(1, 2)),
        ("$1,000", 1000),
        ("40%", 40),
        ("5 m²", 5),
        ("٣", 3),
        ("１２", 12),
        ("zero", 0),
        ("twenty-one", 21),
        ("twenty one cats", 21),
        ("one hundred and five", 105),
        ("nine hundred ninety-nine thousand nine hundred and ninety nine", 999_999),
        ("five thousand", 5000),
        ("exactly 3", 3),
        ("3 people around the table over there", 3),
    ],
)
def test_one_number_is_read(text, expected):
    assert numbers(text) == {expected}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 or 4", set()),
        ("about 3", set()),
        ("around three", set()),
        ("more than 3", set()),
        ("at least three", set()),
        ("3 or more", set()),
        ("not 3", set()),
        ("isn't 3", set()),
        ("~3", set()),
        ("3±1", set()),
        ("3, 4", {3, 4}),
        ("3-5", {3, 5}),
        ("3 to 5", {3, 5}),
        ("between three and five", {3, 5}),
        ("1/2", {1, 2}),
        ("3:30", {3, 30}),
        ("one of three", {1, 3}),
    ],
)
def test_a_hedge_or_a_range_is_never_one_number(text, expected):
    assert numbers(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no",
        "3D",
        "x3",
        "1e3",
        "3²",
        "½",
        "3 ½",
        "③",
        "Ⅲ",
        "2^3",
        r"\sqrt{9}",
        "one two",
        "hundred",
        "half",
        "9" * 31,
        "five hundred thousand thousand",
        "two and a half",
        "a dozen",
        "nan",
        "inf",
        "0x10",
        "1_000",
    ],
)
def test_what_is_not_plainly_a_number_is_not_read(text):
    assert numbers(text) == set()


@pytest.mark.parametrize(
    ("text", "is_read"), [("3", True), ("three.", True), ("3 dogs", False), ("It is 3", False)]
)
def test_alone_means_nothing_but_the_number(text, is_read):
    assert bool(numbers(text, alone=True)) == is_read
    assert numbers("one hundred and five", alone=True) == {105}


@given(st.integers(-(10**9), 10**9), st.integers(0, 4))
def test_every_way_to_write_a_number_is_that_number(value, places):
    written = Fraction(value, 10**places)
    assert numbers(f"{value / 1:.0f}") == {value}
    assert numbers(f"{value:,}") == {value}
    assert numbers(f"{float(written):.{places}f}") == {written}


@given(st.text(max_size=60))
def test_any_text_is_read_without_an_error(text):
    assert all(isinstance(value, Fraction) for value in numbers(text))
