import io
import json
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.code_wire import MAX_DEPTH, UnsendableError, WireError, decode, encode, frame, receive

PLAIN = [
    None,
    True,
    0,
    -(2**53),
    2**4000,
    1.5,
    -0.0,
    float("inf"),
    "",
    "a\ud800\n",
    b"\x00\xff",
    bytearray(b"a"),
    1 + 2j,
    complex(float("inf"), -0.0),
    [],
    (1, [2, (3,)]),
    {1, 2.5, "a"},
    frozenset({(1, 2)}),
    {"a": [1], 2: None, (1, 2): {}},
    deque([1, 2]),
    OrderedDict([("b", 1), ("a", 2)]),
    Counter("aab"),
    range(0, 10, 3),
    Decimal("1.10"),
    Fraction(1, 3),
    date(2024, 2, 29),
    datetime(2024, 2, 29, 12, 30),
    timedelta(days=1, microseconds=5),
    int,
    type(None),
]


def crossed(value):
    return decode(json.loads(json.dumps(encode(value))))


def _shown(value: object) -> str:
    """A set's text in an order that every process of a test run has."""
    return str(sorted(value, key=str) if isinstance(value, set) else value)


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: f"{type(value).__name__} {_shown(value)[:12]!a}")
def test_plain_value_crosses_with_its_exact_type(value):
    back = crossed(value)
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(values)
def test_any_nest_of_plain_values_crosses(value):
    assert repr(crossed(value)) == repr(value)


def test_nan_crosses_and_default_factories_do_not():
    assert crossed(float("nan")) != crossed(float("nan"))
    with pytest.raises(KeyError):
        crossed(defaultdict(lambda: 5, {"a": 1}))["b"]


class _Liar(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


class _Level(IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (_Liar(3), "test_code_wire._Liar"),
        (_Level.ONE, "test_code_wire._Level"),
        ([1, (x for x in ())], "generator"),
        (len, "builtin_function_or_method"),
        (_Liar, "type"),
        ({"a": object()}, "object"),
        (NotImplemented, "NotImplementedType"),
    ],
)
def test_anything_else_is_refused_by_the_name_of_its_type(value, name):
    with pytest.raises(UnsendableError, match=name):
        encode(value)


def test_depth_is_limited_both_ways_and_a_cycle_ends():
    cycle = []
    cycle.append(cycle)
    with pytest.raises(WireError, match="deep"):
        encode(cycle)
    tree = 1
    for _ in range(MAX_DEPTH + 2):
        tree = ["list", tree]
    with pytest.raises(WireError, match="deep"):
        decode(tree)


@pytest.mark.parametrize(
    "tree",
    [
        {},
        [],
        ["lambda", 1],
        [["list"]],
        ["int", "zz"],
        ["int", 5],
        ["int"],
        ["set", ["list"]],
        ["dict", 1],
        ["dict", ["list"], 1],
        ["Fraction", "0x1", "0x0"],
        ["range", "0x0", "0x1", "0x0"],
        ["bytes", "not base64!"],
        ["type", "object"],
        ["datetime", "yesterday"],
        ["complex", "1"],
    ],
    ids=str,
)
def test_what_encode_cannot_have_made_is_refused(tree):
    with pytest.raises(WireError):
        decode(tree)


def reader(data, most=3):
    stream = io.BytesIO(data)
    return lambda size: stream.read(min(size, most))


def test_messages_cross_in_frames_however_they_are_cut():
    assert receive(reader(frame(["call", 1, [2]]))) == ["call", 1, [2]]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", EOFError),
        (b"\x00\x00\x00\x09[1", EOFError),
        (b"\xff\xff\xff\xff", WireError),
        (b"\x00\x00\x00\x02{}", WireError),
        (b"\x00\x00\x00\x02[]", WireError),
        (b"\x00\x00\x00\x03[1]", WireError),
        (b"\x00\x00\x00\x02\xff\xff", WireError),
        ((100_000).to_bytes(4, "big") + b"[" * 100_000, WireError),
        ((5_002).to_bytes(4, "big") + b"[" + b"9" * 5000 + b"]", WireError),
    ],
)
def test_broken_frame_is_an_error_of_its_own_kind(data, error):
    with pytest.raises(error):
        receive(reader(data, most=1 << 20))
