"""What a tool gave or raised, as the text that a model reads: without paths of this machine, cut visibly."""

import functools
import os
import re
import reprlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import pydantic_core

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_SHOWN = 10_000


def text_of(result: Any) -> str:
    """A text as it is, anything else as JSON; what JSON cannot say as Python shows it."""
    if isinstance(result, str):
        return str.__str__(result)
    try:
        return pydantic_core.to_json(result, fallback=_shown, inf_nan_mode="constants").decode()
    except (ValueError, TypeError, RecursionError):
        return _shown(result)


def error_text(error: BaseException, *, folder: str = "") -> str:
    """`ExceptionType: message`; paths below `folder`, this machine's packages and temporary files are shortened."""
    name = type(error).__name__
    try:
        message = str.__str__(str(error))
    except BaseException:  # noqa: BLE001 -- a user's __str__ may raise anything
        return f"{name}: (its text cannot be shown)"
    return f"{name}: {without_host_paths(message, folder)}" if message else name


def without_host_paths(text: str, folder: str = "") -> str:
    """The text with paths relative to what they lie in."""
    if folder:
        text = _below((folder,)).sub(_relative, text)
    return _host_paths().sub(_relative, text)


def cut(text: str, max_bytes: int) -> str:
    """At most `max_bytes` of UTF-8: the middle is left out, and a marker says how much of it."""
    whole = text.encode("utf-8", "replace")
    if len(whole) <= max_bytes:
        return whole.decode()
    room = max(0, max_bytes - len(_marker(len(whole)).encode()))
    head = whole[: room - room // 2].decode("utf-8", "ignore")
    tail = whole[len(whole) - room // 2 :].decode("utf-8", "ignore")
    missing = len(whole) - len(head.encode()) - len(tail.encode())
    return f"{head}{_marker(missing)}{tail}"


def _marker(num_bytes: int) -> str:
    return f"\n[... {num_bytes} bytes left out ...]\n"


def _shown(value: Any) -> str:
    return _ADDRESS.sub("", _repr().repr(value))


@functools.cache
def _repr() -> reprlib.Repr:
    """Bounded in depth and length, and not surprised by a __repr__ that raises."""
    shows = reprlib.Repr()
    for kind in ("string", "other", "long", "list", "tuple", "dict", "set", "frozenset", "deque", "array"):
        setattr(shows, f"max{kind}", _SHOWN)
    return shows


@functools.cache
def _host_paths() -> re.Pattern[str]:
    places = [*sys.path, sys.prefix, sys.base_prefix, os.__file__.rpartition("/")[0], tempfile.gettempdir()]
    places += [os.path.expanduser("~"), str(Path(__file__).parents[2])]
    return _below(tuple(places))


@functools.lru_cache(maxsize=16)
def _below(places: tuple[str, ...]) -> re.Pattern[str]:
    both = {form.rstrip("/") for place in places if place for form in (place, os.path.realpath(place))}
    known = sorted((place for place in both if place.startswith("/")), key=len, reverse=True)
    listed = "|".join(map(re.escape, known)) or "(?!)"
    return re.compile(rf"(?<![\w./-])(?:{listed})(?:(?P<inside>/+(?=[^\s'\"/]))|/*(?![\w.-]))")


def _relative(match: "re.Match[str]") -> str:
    return "" if match["inside"] else "."
