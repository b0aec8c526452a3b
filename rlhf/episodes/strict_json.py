"""JSON that means one thing: Python's reader takes more, and lets the last of two values win."""

import json
from collections.abc import Sequence
from math import isfinite
from typing import Any


def read_json(text: str) -> Any:
    """What a text says. ValueError where it is no JSON, gives a key twice, or a number that no float can hold."""
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def without_doubles(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    """As an object. ValueError where a key is given twice: which of the two was meant, nobody knows."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text} is too large")
    return number


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=without_doubles, parse_float=_finite, parse_constant=_no_constant
)
