"""How hidden tests compare: as Python does, but for a class of the model's that says yes to what is not its own."""

import ast
import collections
import decimal
import enum
import fractions
import types
from dataclasses import dataclass

import pytest

from envs.hidden_tests_runner import Judge, Record, _Rewriting

JUDGE = Judge()


@dataclass(frozen=True)
class Point:
    x: int
    y: int


class Colour(enum.IntEnum):
    RED = 1


class Yes:
    def __eq__(self, other):
        return True

    def __lt__(self, other):
        return True

    def __hash__(self):
        return 1


class Number(int):
    """With int's own comparisons."""


class YesNumber(int):
    __hash__ = int.__hash__

    def __eq__(self, other):
        return True


class YesList(list):
    def __eq__(self, other):
        return True


Named = collections.namedtuple("Named", "a b")


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, 1.0),
        ("a", "a"),
        ([1, [2, (3, None)]], [1, [2, (3, None)]]),
        ({"a": [1], 2: {3}}, {2: {3}, "a": [1]}),
        ({1, 2}, {2, 1}),
        ({(1, "a")}, {(1, "a")}),
        (Point(1, 2), Point(1, 2)),
        ([Point(1, 2)], [Point(1, 2)]),
        (Colour.RED, 1),
        (Number(3), 3),
        (Named(1, 2), (1, 2)),
        (fractions.Fraction(1, 2), 0.5),
        (decimal.Decimal(2), 2),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (1.0, pytest.approx(1.0 + 1e-9)),
        (pytest.approx(1.0), 1.0),
        ([0.1 + 0.2], pytest.approx([0.3])),
        (int, int),
        (types.SimpleNamespace(a=1), types.SimpleNamespace(a=1)),
        (range(3), range(3)),
        (None, None),
    ],
)
def test_equals_are_the_same(left, right):
    assert left == right
    assert JUDGE.same(left, right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (Yes(), 5),
        (5, Yes()),
        ([Yes()], [5]),
        ((1, (Yes(),)), (1, (2,))),
        ({"a": Yes()}, {"a": 1}),
        ({Yes(): 1}, {1: 1}),
        ({Yes()}, {1}),
        ({(Yes(), 2)}, {(1, 2)}),
        (YesNumber(3), 4),
        (YesList(), [1]),
        (Yes(), pytest.approx(3.0)),
        (Yes(), Point(1, 2)),
        ([1], [1, 2]),
        ({"a": 1}, {"b": 1}),
        (float("nan"), float("nan")),
    ],
)
def test_what_says_yes_to_everything_is_not_the_same(left, right):
    judge = Judge()
    judge._known = {key: method for key, method in judge._known.items() if "Yes" not in repr(method)}
    assert not judge.same(left, right)


def test_rewritten_tests_ask_the_judge():
    source = """
def check(self, f):
    assert f() == 5
    assert f() != 6, "text"
    assert 5 in [f()]
    assert 6 not in (f(),)
    assert 4 < f()
    assert 1 < f() < 9
    assert f() is not None
    self.assertEqual(f(), 5, "why")
    self.assertNotEqual(f(), 6)
"""
    asked = []

    class Case:
        def assertIs(self, found, wanted, why=""):
            assert found is wanted, why

    def same(left, right):
        asked.append((left, right))
        return left == right

    judge = types.SimpleNamespace(same=same, contains=JUDGE.contains, ordered=JUDGE.ordered)
    tree = ast.fix_missing_locations(_Rewriting("judge").visit(ast.parse(source)))
    namespace = {"__builtins__": {"__import__": {"judge": judge}.get, "AssertionError": AssertionError}}
    exec(compile(tree, "t", "exec"), namespace)
    namespace["check"](Case(), lambda: 5)
    assert asked == [(5, 5), (5, 6), (5, 5), (5, 6)]
    with pytest.raises(AssertionError):
        namespace["check"](Case(), lambda: 7)


def test_order_is_not_asked_of_a_foreign_class():
    judge = Judge()
    judge._known = {key: method for key, method in judge._known.items() if "Yes" not in repr(method)}
    assert judge.ordered(1, 2, "Lt")
    assert not judge.ordered(Yes(), 2, "Lt")


def test_record_keeps_failures_of_any_phase():
    record = Record(["a"], "control")
    for when, outcome in (("setup", "passed"), ("call", "passed"), ("teardown", "failed")):
        record.pytest_runtest_logreport(types.SimpleNamespace(nodeid="a", when=when, outcome=outcome))
    assert record.results == {"a": "failed"}
    items = [types.SimpleNamespace(nodeid=name) for name in ("a", "b", "x_control")]
    record.pytest_collection_modifyitems(items)
    assert [item.nodeid for item in items] == ["a", "x_control"]
