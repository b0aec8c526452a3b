import os
import sys
import time
from dataclasses import dataclass

import pytest

from rlhf.episodes.tool_calls import run_calls
from rlhf.episodes.tools import Tool
from rlhf.interfaces import Context
from tests.unit.episodes.episode_contexts import call, context_of


def one(function, context=None, *, arguments=None, read_only=False):
    """The only answer to one call of a function."""
    tool = Tool.from_function(function, name="t", read_only=read_only)
    ((message, _),) = run_calls([call("t", arguments)], {"t": tool}, context=context or context_of())
    return message


def test_paths_of_this_machine_are_not_told(tmp_path):
    def opens(path: str, where: Context) -> str:
        return open(f"{where.folder}/{path}").read()

    def imports() -> str:
        raise ImportError(f"cannot import x from {os.__file__} and {sys.prefix}")

    context = context_of(folder=str(tmp_path))
    assert one(opens, context, arguments={"path": "notes/a.txt"}).content == (
        "FileNotFoundError: [Errno 2] No such file or directory: 'notes/a.txt'"
    )
    assert one(opens, context, arguments={"path": ""}).content.endswith("Is a directory: '.'")
    assert one(imports, context).content == "ImportError: cannot import x from os.py and ."

    def virtual() -> str:
        raise KeyError("/data/users.csv")

    assert one(virtual, context).content == "KeyError: '/data/users.csv'"


@dataclass
class Point:
    x: int
    y: float


class Odd:
    def __repr__(self):
        raise ValueError


CIRCLE: list = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("as it is\n", "as it is\n"),
        ("", ""),
        (None, "null"),
        (3, "3"),
        (True, "true"),
        ({"a": [1, None], "ü": Point(1, 2.5)}, '{"a":[1,null],"ü":{"x":1,"y":2.5}}'),
        ({1}, "[1]"),
        ({(1, 2): "a"}, '{"1,2":"a"}'),
        (float("nan"), "NaN"),
        (b"bytes", '"bytes"'),
        (b"\xff", "b'\\xff'"),
        ("half \ud800", "half ?"),
        (["half \ud800"], "['half \\ud800']"),
        (object(), '"<object object>"'),
        (CIRCLE, "[[[[[[[...]]]]]]]"),
        (Odd(), '"<Odd instance>"'),
    ],
)
def test_results_are_readable_text(result, text):
    def gives() -> object:
        return result

    message = one(gives)
    assert not message.is_error
    assert message.content == text


def test_an_awaitable_of_a_plain_function_is_awaited():
    async def later() -> str:
        return "done"

    def wraps() -> object:
        return later()

    assert one(wraps).content == "done"
    assert [one(wraps, read_only=True).content for _ in range(2)] == ["done", "done"]


@pytest.mark.parametrize("character", ["x", "é", "\U0001f600"])
def test_a_large_result_is_cut_in_its_middle_and_says_so(character):
    def large() -> str:
        return "first" + character * 10_000_000 + "last"

    began = time.perf_counter()
    content = one(large, context_of(max_tool_result_bytes=1000)).content
    assert time.perf_counter() - began < 60
    assert content.startswith("first")
    assert content.endswith("last")
    assert 990 <= len(content.encode()) <= 1000
    shown = content.replace(content[content.index("\n[...") : content.index("...]\n") + 5], "")
    missing = len(large().encode()) - len(shown.encode())
    assert f"\n[... {missing} bytes left out ...]\n" in content


def test_tiny_limits_hold_too():
    assert one(lambda: "x" * 100, context_of(max_tool_result_bytes=1)).content.startswith("\n[...")
