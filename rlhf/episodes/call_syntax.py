"""How model families write tool calls: readers of text that may be anything. None of them raises or takes long."""

import ast
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple, get_args

from rlhf.episodes.strict_json import read_json, without_doubles
from rlhf.types import CallError

Syntax = Literal["hermes", "qwen_xml", "glm4", "llama3", "deepseek_v3", "mistral", "pythonic", "none"]
SYNTAXES: tuple[str, ...] = get_args(Syntax)
MAX_CALLS = 1000
"""Of one turn; what comes after is text."""

_SPACE = re.compile(r"\s*")
_LLAMA_CALL = re.compile(r'\{\s*"(?:name|function|type|parameters|arguments)"')
_LLAMA_BETWEEN = re.compile(r"[;\s]*")
_ARRAY_BETWEEN = re.compile(r"[,\s]*")
_NAME_END = re.compile(r"[>\n]")
_DECODER = json.JSONDecoder()
_CALL, _END_CALL = "<tool_call>", "</tool_call>"
_AFTER_CALL = re.compile(f"{_END_CALL}|(?={_CALL})")
_PYTHON_TAG = "<|python_tag|>"
_DEEPSEEK_CALLS, _DEEPSEEK_CALL = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"
_DEEPSEEK_SEP = "<｜tool▁sep｜>"
_AFTER_DEEPSEEK = re.compile(f"<｜tool▁call▁end｜>|(?={_DEEPSEEK_CALL})|<｜tool▁calls▁end｜>")
_DSML = re.compile("<｜DSML｜(?:function_calls|tool_calls|invoke)")
_DSML_INVOKE, _DSML_END_INVOKE = '<｜DSML｜invoke name="', "</｜DSML｜invoke>"
_DSML_PARAMETER, _DSML_END_PARAMETER = '<｜DSML｜parameter name="', "</｜DSML｜parameter>"
_MISTRAL_CALLS = "[TOOL_CALLS]"
_ARGUMENTS = ("arguments", "parameters")
_PYTHON_BEGINS = re.compile(r"\s*\[\s*[A-Za-z_][\w.]*\s*\(")


class Found(NamedTuple):
    """A call, as it was written."""

    name: str
    arguments: dict[str, Any] | None
    error: CallError | None
    raw: str
    is_text: bool = False
    """As ToolCall's."""


Reader = Callable[[str], tuple[str, list[Found]]]
"""Text after thinking -> (what is no call, the calls)."""


def read_nothing(text: str) -> tuple[str, list[Found]]:
    """All of it is text."""
    return text, []


def read_hermes(text: str) -> tuple[str, list[Found]]:
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>: Hermes, Qwen2.5, Qwen3."""
    content, bodies = _tagged(text)
    return content, [_from_json(body, raw) for body, raw in bodies]


def read_qwen_xml(text: str) -> tuple[str, list[Found]]:
    """<tool_call><function=...><parameter=...>...: Qwen3-Coder, Qwen3.5, Nemotron 3."""
    content, bodies = _tagged(text)
    return content, [_from_xml(body, raw) for body, raw in bodies]


def read_glm4(text: str) -> tuple[str, list[Found]]:
    """<tool_call>name<arg_key>...</arg_key><arg_value>...</arg_value></tool_call>: GLM-4.5 and later."""
    content, bodies = _tagged(text)
    return content, [_from_pairs(body, raw) for body, raw in bodies]


def read_llama3(text: str) -> tuple[str, list[Found]]:
    """{"name": ..., "parameters": {...}}, several with semicolons between, alone or after <|python_tag|>."""
    before, tag, after = text.partition(_PYTHON_TAG)
    body = after if tag else text
    place = _after_space(body, 0)
    if not tag and not _LLAMA_CALL.match(body, place):
        return text, []
    found: list[Found] = []
    while len(found) < MAX_CALLS and (not found or body.startswith("{", place)):
        end = _json_end(body, place)
        # What cannot be read is the last.
        stop = len(body) if end == place else end
        found.append(_from_json(body[place:stop], body[place:stop]))
        place = _LLAMA_BETWEEN.match(body, stop).end()  # type: ignore[union-attr]
    return (before if tag else "") + body[place:], found


def read_deepseek_v3(text: str) -> tuple[str, list[Found]]:
    """DeepSeek V3 and V3.1 with their marker tokens, V3.2 with <｜DSML｜invoke name=...>."""
    if opener := _DSML.search(text):
        rest = text[opener.start() :]
        parts = rest.split(_DSML_INVOKE)[1 : MAX_CALLS + 1]
        return text[: opener.start()], [_from_dsml(part) for part in parts] or [_unread(rest)]
    found: list[Found] = []
    content = text.partition(_DEEPSEEK_CALLS)[0].partition(_DEEPSEEK_CALL)[0]
    place = text.find(_DEEPSEEK_CALL)
    while place >= 0 and len(found) < MAX_CALLS:
        body = place + len(_DEEPSEEK_CALL)
        # A marker in a JSON string ends nothing.
        plain = _AFTER_DEEPSEEK.search(text, body)
        brace = text.find("{", body, plain.start() if plain else len(text))
        end = _AFTER_DEEPSEEK.search(text, _json_end(text, brace)) if brace >= 0 else plain
        stop, after = (end.start(), end.end()) if end else (len(text), len(text))
        found.append(_from_deepseek(text[body:stop], text[place:after]))
        place = text.find(_DEEPSEEK_CALL, after)
    if content != text and not found:
        found = [_unread(text[len(content) :])]
    return content, found


def read_mistral(text: str) -> tuple[str, list[Found]]:
    """[TOOL_CALLS] before an array of objects, or before each name and its object."""
    content, tag, _ = text.partition(_MISTRAL_CALLS)
    found: list[Found] = []
    place = len(content)
    while tag and text.startswith(_MISTRAL_CALLS, place) and len(found) < MAX_CALLS:
        body = _after_space(text, place + len(_MISTRAL_CALLS))
        # A marker in a JSON string begins nothing.
        brace = text.find("{", body, _find(_MISTRAL_CALLS, text, body))
        is_array = text.startswith("[", body)
        end = _json_end(text, body if is_array or brace < 0 else brace)
        place = _find(_MISTRAL_CALLS, text, end)
        found += _from_mistral(text[body:place])
    if tag and not found:
        found = [_unread(text[len(content) :])]
    return content, found[:MAX_CALLS]


def read_pythonic(text: str) -> tuple[str, list[Found]]:
    """[name(argument=value, ...), ...], of literals: Llama 3.2 and 4, and the shortest of all."""
    if not _PYTHON_BEGINS.match(text):
        return text, []
    # As Python itself counts lines.
    body = text.strip().replace("\r\n", "\n").replace("\r", "\n")
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(body, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return "", [Found(body[1:].partition("(")[0].strip(), None, "invalid_json", body)]
    if not isinstance(tree, ast.List) or not all(isinstance(call, ast.Call) for call in tree.elts):
        return text, []
    source = body.encode()
    lines = [0, *accumulate(len(line) + 1 for line in source.split(b"\n"))]
    calls = [call for call in tree.elts[:MAX_CALLS] if isinstance(call, ast.Call)]
    return "", [_from_python(call, _source_of(call, source, lines)) for call in calls]


READERS: Mapping[str, Reader] = {
    "hermes": read_hermes,
    "qwen_xml": read_qwen_xml,
    "glm4": read_glm4,
    "llama3": read_llama3,
    "deepseek_v3": read_deepseek_v3,
    "mistral": read_mistral,
    "pythonic": read_pythonic,
    "none": read_nothing,
}
OPENERS: Mapping[str, str] = {
    "hermes": _CALL,
    "qwen_xml": _CALL,
    "glm4": _CALL,
    "llama3": _PYTHON_TAG,
    "deepseek_v3": "<｜",
    "mistral": _MISTRAL_CALLS,
    "pythonic": "[",
}
"""What a first call begins with: thinking stands before it."""


def load_object(text: str) -> tuple[dict[str, Any] | None, CallError | None]:
    """The JSON object that a text is, or why it is none."""
    try:
        value = read_json(text)
    except ValueError:
        return None, "invalid_json"
    return (value, None) if isinstance(value, dict) else (None, "not_an_object")


def _tagged(text: str) -> tuple[str, list[tuple[str, str]]]:
    """What stands outside <tool_call> tags; (body, whole text) of each. A tag in a JSON string is none."""
    outside: list[str] = []
    found: list[tuple[str, str]] = []
    place = 0
    while len(found) < MAX_CALLS and (start := text.find(_CALL, place)) >= 0:
        outside.append(text[place:start])
        body = start + len(_CALL)
        end = _AFTER_CALL.search(text, _json_end(text, _after_space(text, body)))
        stop, place = (end.start(), end.end()) if end else (len(text), len(text))
        found.append((text[body:stop], text[start:place]))
    return "".join([*outside, text[place:]]), found


def _after_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _find(marker: str, text: str, place: int) -> int:
    """Where a marker comes next; the end of the text if it does not."""
    found = text.find(marker, place)
    return len(text) if found < 0 else found


def _json_end(text: str, start: int) -> int:
    """Where an object or array that begins here ends; `start` if there is none."""
    if not text.startswith(("{", "["), start):
        return start
    try:
        return _DECODER.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return start


def _unread(raw: str) -> Found:
    """A call of which only the beginning was recognised."""
    return Found("", None, "invalid_json", raw)


def _from_json(body: str, raw: str) -> Found:
    """A call written as one object with a name and its arguments."""
    call, error = load_object(body)
    return Found("", None, error, raw) if call is None else _from_object(call, raw)


def _from_object(call: dict[str, Any], raw: str) -> Found:
    inner = call.get("function")
    if isinstance(inner, dict):
        call = inner
    name = call.get("name", inner)
    arguments: Any = next((call[key] for key in _ARGUMENTS if key in call), {})
    error: CallError | None = None
    if isinstance(arguments, str):
        arguments, error = load_object(arguments)
    elif not isinstance(arguments, dict):
        arguments, error = None, "not_an_object"
    return Found(name if isinstance(name, str) else "", arguments, error, raw)


def _from_xml(body: str, raw: str) -> Found:
    head, function, inside = body.partition("<function=")
    if not function or head.strip():
        return _from_json(body, raw)
    name, *parts = inside.split("<parameter=")
    arguments: list[tuple[str, str]] = []
    for part in parts:
        key, _, rest = _split_at(_NAME_END, part)
        value, closed, _ = rest.partition("</parameter>")
        if not closed:
            value, closed, _ = rest.partition("</function>")
        if not closed and part is parts[-1]:
            return Found(_split_at(_NAME_END, name)[0].strip(), None, "invalid_json", raw)
        arguments.append((key.strip(), value.removeprefix("\n").removesuffix("\n")))
    return _from_texts(_split_at(_NAME_END, name)[0].strip(), arguments, raw)


def _from_pairs(body: str, raw: str) -> Found:
    name, *parts = body.split("<arg_key>")
    if name.lstrip().startswith("{"):
        return _from_json(body, raw)
    arguments: list[tuple[str, str]] = []
    for part in parts:
        key, _, rest = part.partition("</arg_key>")
        _, opened, value = rest.partition("<arg_value>")
        value, closed, _ = value.partition("</arg_value>")
        if not (opened and closed):
            return Found(name.strip(), None, "invalid_json", raw)
        arguments.append((key.strip(), value))
    return _from_texts(name.strip(), arguments, raw)


def _from_texts(name: str, pairs: Sequence[tuple[str, str]], raw: str) -> Found:
    """What is written between tags has no type: the tool's parameters say how to read it."""
    try:
        return Found(name, without_doubles(pairs), None, raw, is_text=True)
    except ValueError:
        return Found(name, None, "invalid_arguments", raw)


def _from_deepseek(body: str, raw: str) -> Found:
    head, _, tail = body.partition(_DEEPSEEK_SEP)
    # V3 writes `function<sep>name`, a line, a fence; V3.1 writes `name<sep>` and the object.
    name, inside = tail.partition("\n")[::2] if head.strip() == "function" else (head, tail)
    inside = inside.strip()
    if inside.startswith("```"):
        inside = inside.removeprefix("```").removeprefix("json").removesuffix("```")
    arguments, error = load_object(inside)
    return Found(name.strip(), arguments, error, raw)


def _from_dsml(part: str) -> Found:
    raw = _DSML_INVOKE + part
    body, closed, _ = part.partition(_DSML_END_INVOKE)
    name, _, inside = body.partition('"')
    try:
        if not closed:
            raise ValueError("cut off")
        arguments = without_doubles(list(map(_dsml_parameter, inside.split(_DSML_PARAMETER)[1:])))
    except ValueError:
        return Found(name.strip(), None, "invalid_json", raw)
    return Found(name.strip(), arguments, None, raw)


def _dsml_parameter(text: str) -> tuple[str, Any]:
    key, _, rest = text.partition('"')
    kind, _, rest = rest.partition(">")
    value, closed, _ = rest.partition(_DSML_END_PARAMETER)
    if not closed:
        raise ValueError("cut off")
    return key, value if 'string="true"' in kind else _value(value)


def _from_mistral(body: str) -> Iterator[Found]:
    if body.startswith("["):
        if not _json_end(body, 0):
            yield _unread(body)
            return
        place = _after_space(body, 1)
        while not body.startswith("]", place):
            end = _DECODER.raw_decode(body, place)[1]
            yield _from_json(body[place:end], body[place:end])
            place = _ARRAY_BETWEEN.match(body, end).end()  # type: ignore[union-attr]
        return
    name, brace, rest = body.partition("{")
    arguments, error = load_object((brace + rest).strip())
    yield Found(name.partition("[")[0].strip(), arguments, error, body)


def _from_python(call: ast.Call, raw: str) -> Found:
    name = _dotted(call.func)
    if call.args:
        return Found(name, None, "not_an_object", raw)
    arguments: list[tuple[str, Any]] = []
    for keyword in call.keywords:
        try:
            if keyword.arg is None:
                raise ValueError("** is no name")
            arguments.append((keyword.arg, _literal(keyword.value)))
        except (ValueError, TypeError, MemoryError, RecursionError):
            return Found(name, None, "invalid_json", raw)
    try:
        return Found(name, without_doubles(arguments), None, raw)
    except ValueError:
        return Found(name, None, "invalid_json", raw)


def _literal(node: ast.expr) -> Any:
    """A literal's value as JSON has it. An error for what JSON has no word for: bytes, sets, infinity."""
    value = ast.literal_eval(node)
    for part in ast.walk(node):
        if isinstance(part, ast.Dict):
            without_doubles([(ast.literal_eval(key), None) for key in part.keys if key is not None])
    return read_json(json.dumps(value, allow_nan=False))


def _dotted(function: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    return ".".join([function.id, *reversed(parts)]) if isinstance(function, ast.Name) else ""


def _source_of(node: ast.expr, source: bytes, lines: Sequence[int]) -> str:
    """The text of a node; `lines` are the places at which lines begin. In bytes, as Python counts columns."""
    end_line, end = node.end_lineno or node.lineno, node.end_col_offset or 0
    return source[lines[node.lineno - 1] + node.col_offset : lines[end_line - 1] + end].decode()


def _split_at(pattern: re.Pattern[str], text: str) -> tuple[str, str, str]:
    found = pattern.search(text)
    return (text, "", "") if found is None else (text[: found.start()], found[0], text[found.end() :])


def _value(text: str) -> Any:
    """JSON where it is some, else text. ValueError for JSON that load_object does not take."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text
    return read_json(text)
