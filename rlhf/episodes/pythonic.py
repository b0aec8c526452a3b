"""Calls written as Python: `[get(name="a"), calc(sum="1*2")]`, the form of Llama 3.2 and 4, and the shortest of all."""

import ast
import re
from typing import Any

from rlhf.episodes.call_syntax import MAX_CALLS, Found

_BEGINS = re.compile(r"\s*\[\s*[A-Za-z_][\w.]*\s*\(")


def read_pythonic(text: str) -> tuple[str, list[Found]]:
    """[name(argument=value, ...), ...]: values are literals, arguments have names."""
    if not _BEGINS.match(text):
        return text, []
    body = text.strip()
    try:
        tree = ast.parse(body, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return "", [Found(body[1:].partition("(")[0].strip(), None, "invalid_json", body)]
    if not isinstance(tree, ast.List) or not all(isinstance(call, ast.Call) for call in tree.elts):
        return text, []
    return "", [_read(call, body) for call in tree.elts[:MAX_CALLS] if isinstance(call, ast.Call)]


def _read(call: ast.Call, body: str) -> Found:
    raw = ast.get_source_segment(body, call) or body
    name = ast.unparse(call.func) if isinstance(call.func, ast.Name | ast.Attribute) else ""
    if call.args:
        return Found(name, None, "not_an_object", raw)
    arguments: dict[str, Any] = {}
    for keyword in call.keywords:
        try:
            if keyword.arg is None:
                raise ValueError("** is no name")
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, MemoryError, RecursionError):
            return Found(name, None, "invalid_json", raw)
    return Found(name, arguments, None, raw)
