"""When a program's output, or a value it returned, is the expected one. Nothing here runs or hashes what it compares.

A record's tolerance `t` accepts a number within t, or within t of the expected one's size where that is written
as a float: an expected integer is exact for every t below 1. Without it numbers are compared exactly.
"""

import math
import re
from typing import Any

from rewards.code_wire import MAX_DEPTH

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_NUMBER_CHARACTERS = 400
_MAPPINGS = ("dict", "OrderedDict", "defaultdict", "Counter")


def same_output(expected: str, got: str, *, by_token: bool = False, tolerance: float | None = None) -> bool:
    """Whether the outputs have the same lines up to white space at their ends and empty lines after the last.

    `by_token`, or a tolerance: the same words in order, whatever white space parts them.
    """
    if not by_token and tolerance is None:
        return _lines(expected) == _lines(got)
    wanted, found = expected.split(), got.split()
    return len(wanted) == len(found) and all(
        _same_token(w, f, tolerance) for w, f in zip(wanted, found, strict=True)
    )


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _same_token(expected: str, got: str, tolerance: float | None) -> bool:
    if expected == got:
        return True
    if tolerance is None or not _is_number(expected) or not _is_number(got):
        return False
    return _is_near(float(expected), float(got), tolerance, is_integer=expected.lstrip("+-").isdigit())


def _is_number(token: str) -> bool:
    return len(token) <= _NUMBER_CHARACTERS and _NUMBER.fullmatch(token) is not None


def _is_near(expected: float, got: float, tolerance: float, *, is_integer: bool) -> bool:
    if not math.isfinite(expected) or not math.isfinite(got):
        return False
    return abs(expected - got) <= tolerance * (1.0 if is_integer else max(1.0, abs(expected)))


def same_value(expected: Any, got: Any, *, tolerance: float | None = None) -> bool:
    """Whether a returned value is the JSON value expected; both as `code_wire.encode` writes them.

    JSON has no tuples and no keys but texts, so a tuple is its list, and the keys of a mapping are compared as
    JSON writes them. Numbers are compared by value as Python does (1 == 1.0 == True); nan equals nothing.
    """
    return _same(expected, got, tolerance, 0)


def _same(expected: Any, got: Any, tolerance: float | None, depth: int) -> bool:
    if depth > MAX_DEPTH:
        return False
    if type(expected) is list and expected[0] == "list":
        return (
            _tag(got) in ("list", "tuple")
            and len(expected) == len(got)
            and all(_same(e, g, tolerance, depth + 1) for e, g in zip(expected[1:], got[1:], strict=True))
        )
    if type(expected) is list and expected[0] == "dict":
        return _tag(got) in _MAPPINGS and _same_mapping(expected[1:], got[1:], tolerance, depth)
    wanted, found = _number(expected), _number(got)
    if wanted is None and found is None:
        return type(expected) is type(got) and type(got) is not list and bool(expected == got)
    if wanted is None or found is None:
        return False
    return wanted == found or (tolerance is not None and _is_close(wanted, found, tolerance))


def _same_mapping(expected: list[Any], got: list[Any], tolerance: float | None, depth: int) -> bool:
    wanted, found = _items(expected), _items(got)
    if len(wanted) * 2 != len(got) or wanted.keys() != found.keys():
        return False
    return all(_same(value, found[key], tolerance, depth + 1) for key, value in wanted.items())


def _items(parts: list[Any]) -> dict[str, Any]:
    return {_key(key): value for key, value in zip(parts[::2], parts[1::2], strict=False)}


def _key(key: Any) -> str:
    """The key as JSON writes it; texts hash at random, so no program can make them collide."""
    if type(key) is str:
        return key
    names = {None: "null", True: "true", False: "false"}
    return names[key] if key is None or type(key) is bool else str(key)[:1000]


def _tag(tree: Any) -> str:
    return tree[0] if type(tree) is list and tree and type(tree[0]) is str else ""


def _number(tree: Any) -> int | float | None:
    """The number that a tree is, a truth value included; None for anything else."""
    if type(tree) in (bool, int, float):
        return tree  # type: ignore[no-any-return]
    if _tag(tree) not in ("int", "float") or len(tree) != 2 or type(tree[1]) is not str:
        return None
    try:
        return int(tree[1], 16) if tree[0] == "int" else float(tree[1])
    except ValueError:
        return None


def _is_close(expected: float, got: float, tolerance: float) -> bool:
    try:
        return _is_near(float(expected), float(got), tolerance, is_integer=type(expected) is not float)
    except OverflowError:
        return False
