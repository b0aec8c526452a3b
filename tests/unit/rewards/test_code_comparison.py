# ruff: noqa: RUF001 (look-alike digits are what is tested)
import time
from collections import Counter, OrderedDict, deque

import pytest

from rewards.code_comparison import same_output, same_value
from rewards.code_wire import encode


@pytest.mark.parametrize(
    ("expected", "got", "same"),
    [
        ("1 2\n3\n", "1 2\n3", True),
        ("1 2\n3", "1 2  \n3\t\r\n\n\n", True),
        ("1\n2\n3\n", "1\n", False),
        ("1\n", "1\n2\n", False),
        ("1 2", "1  2", False),
        ("1 2", " 1 2", False),
        ("1\n\n2", "1\n2", False),
        ("", "", True),
        ("", "\n", True),
        ("a", "", False),
        ("0.1", "0.10", False),
        ("YES", "Yes", False),
    ],
)
def test_output_is_compared_line_by_line(expected, got, same):
    assert same_output(expected, got) is same


@pytest.mark.parametrize(
    ("expected", "got", "tolerance", "same"),
    [
        ("1 2\n3", "1\n2 3", None, True),
        ("1 2", "1 2 3", None, False),
        ("1 2 3", "1 2", None, False),
        ("0.5", "0.50", None, False),
        ("0.5", "0.5000001", 1e-6, True),
        ("0.5", "0.50001", 1e-6, False),
        ("1000000.0", "1000000.5", 1e-6, True),
        ("1000000007", "1000000008", 1e-6, False),
        ("3", "3.0000000001", 1e-6, True),
        ("nan", "nan", 1e-6, True),
        ("0.5", "nan", 1e-6, False),
        ("0.5", "inf", 1e300, False),
        ("1e400", "1e401", 1e-6, False),
        ("10.0", "1_0", 1e-6, False),
        ("5.0", "５", 1e-6, False),
        ("yes 0.5", "no 0.5", 1e-6, False),
    ],
)
def test_words_are_compared_with_the_tolerance_of_the_record_only(expected, got, tolerance, same):
    assert same_output(expected, got, by_token=True, tolerance=tolerance) is same


@pytest.mark.parametrize(
    ("expected", "got", "same"),
    [
        (1, 1.0, True),
        (1, True, True),
        (2, 2.0000001, False),
        (2**60, 2**60, True),
        (2**60, float(2**60), True),
        (2**60 + 1, float(2**60), False),
        (1, "1", False),
        ("1", 1, False),
        (None, None, True),
        (None, 0, False),
        (0, None, False),
        ("", None, False),
        (False, None, False),
        ([1, 2], (1, 2), True),
        ([[1], []], [(1,), ()], True),
        ([1, 2], [1, 2, 3], False),
        ([1, 2, 3], [1, 2], False),
        ([1, 2], {1, 2}, False),
        ([1], deque([1]), False),
        ([1], "1", False),
        ([], None, False),
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, OrderedDict(a=1), True),
        ({"a": 2}, Counter("aa"), True),
        ({"1": "x"}, {1: "x"}, True),
        ({"1": "x"}, {1: "x", "1": "x"}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({}, [], False),
        (1.5, float("nan"), False),
        (1.5, float("inf"), False),
        (5, 5 + 0j, False),
        ("ab", b"ab", False),
    ],
)
def test_value_is_compared_as_json_sees_it(expected, got, same):
    assert same_value(encode(expected), encode(got)) is same


@pytest.mark.parametrize(
    ("expected", "got", "same"),
    [
        (0.3, 0.1 + 0.2, True),
        ([0.3, [1.0]], (0.1 + 0.2, [1.0000000001]), True),
        (0.3, 0.31, False),
        (10**9 + 7, 10**9 + 8, False),
        (0.3, float("nan"), False),
        (0.3, 10**400, False),
    ],
)
def test_tolerance_reaches_into_values(expected, got, same):
    assert same_value(encode(expected), encode(got), tolerance=1e-6) is same


@pytest.mark.parametrize(
    "tree",
    [[], ["int"], ["int", "zz"], ["int", ["int", "0x5"]], ["float", "x"], [["list"], 1], {"a": 1}, ["list"]],
)
def test_forged_tree_is_no_number(tree):
    assert same_value(5, tree) is False
    assert same_value(["list", 5], tree) is False
    assert same_value(["dict", "a", 5], tree) is False


def test_colliding_keys_cost_nothing():
    step = 2**61 - 1
    got = ["dict", *(part for i in range(100_000) for part in (["int", hex(i * step)], 1))]
    start = time.perf_counter()
    assert not same_value(["dict", "a", 1], got)
    assert not same_value(["list", 1], ["set", *got[1::2]])
    assert time.perf_counter() - start < 60


def test_long_words_cost_nothing():
    start = time.perf_counter()
    for token in ("9" * 10**7, "9" * 10**7 + "x", "1." + "0" * 10**7 + "x", "e" * 10**7):
        assert not same_output("0.5", token, tolerance=1e-6)
    assert time.perf_counter() - start < 60
