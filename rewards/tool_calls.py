"""Rewards tool calls: that they are well formed and fit the tools of the prompt, and that they are the right ones.

Calls are Hermes' (Qwen's): `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`. Those inside a think block
or code do not count. The tools are the column `tools`: JSON schemas as in the OpenAI API (`{"type": "function",
"function": {name, parameters}}`), or the inner mappings alone; BFCL's type names are understood.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from referencing import Registry

from rewards.prose import is_loop
from rewards.response_format import has_text, visible
from rlhf.errors import DataError
from rlhf.types import RewardResult

MAX_CALLS = 16
_CLOSE = re.compile(r"\s*</tool_call>")
_STEP = re.compile(
    r"^[ \t]{0,3}(?P<fence>`{3,}|~{3,})[^\n]*$|(?P<code>`+)|(?P<call><tool_call>\s*)", re.MULTILINE
)
_SCHEMA_TYPES = {"dict": "object", "float": "number", "double": "number", "tuple": "array", "list": "array"}
_LOOSE = re.compile(r"[ ,./\-_*^]")


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the model wrote it."""

    name: str
    arguments: Mapping[str, Any]


def valid(
    completion: str,
    tools: Sequence[Mapping[str, Any]] | str,
    *,
    max_calls: int = MAX_CALLS,
    prompt_opens_think: bool = False,
) -> RewardResult:
    """1 when there are calls and each is well formed and fits the schema of its tool, else 0.

    Names, required and unknown arguments, types and enums are checked. No call at all is unparsable; detail
    `problem` says what is wrong with the first bad one. Raises DataError when `tools` itself is no list of schemas.
    """
    schemas = _schemas(_text(tools, "tools"))
    found, problem = parse(completion, prompt_opens_think=prompt_opens_think)
    if not found and not problem:
        return RewardResult(value=0.0, outcome="unparsable")
    problem = problem or _misfit(found, schemas)
    if len(found) > max_calls:
        problem = f"{len(found)} calls, more than {max_calls}"
    return _result(problem)


def match(
    completion: str,
    tools: Sequence[Mapping[str, Any]] | str,
    expected_calls: Sequence[Mapping[str, Any]] | str,
    *,
    ordered: bool = False,
    prompt_opens_think: bool = False,
) -> RewardResult:
    """1 when the calls are valid and are the expected ones, no more and no fewer, in any order unless `ordered`.

    An expected call is {name, arguments}, compared as it is (1 equals 1.0), or BFCL's {name: {argument: [accepted
    values]}}, where "" among the values makes it optional and texts are compared as BFCL does (without case, spaces and
    `,./-_*^`). With none expected, right is a text without calls. Source: BFCL's check by syntax tree.
    """
    schemas = _schemas(_text(tools, "tools"))
    wanted = _expected(_text(expected_calls, "expected_calls"))
    found, problem = parse(completion, prompt_opens_think=prompt_opens_think)
    if not found and not problem:
        said = visible(completion, prompt_opens_think=prompt_opens_think) or ""
        is_answer = not wanted and has_text(said) and not is_loop(said)
        return _result("") if is_answer else RewardResult(value=0.0, outcome="unparsable")
    problem = problem or _misfit(found, schemas)
    if not problem and len(found) != len(wanted):
        problem = f"{len(found)} calls, expected {len(wanted)}"
    if not problem and not _pair(found, wanted, ordered=ordered):
        problem = "other calls than expected"
    return _result(problem)


def parse(completion: str, *, prompt_opens_think: bool = False) -> tuple[list[Call], str]:
    """The calls outside of thought and code, and what is wrong with the first that is not well formed ("": nothing)."""
    text = visible(completion, prompt_opens_think=prompt_opens_think) or ""
    calls: list[Call] = []
    place = 0
    while step := _STEP.search(text, place):
        if step["call"] is None:
            place = _end_of_code(text, step)
            continue
        try:
            value, place = _DECODER.raw_decode(text, step.end())
            closed = _CLOSE.match(text, place)
            if closed is None:
                return calls, "a call without its </tool_call>"
            calls.append(_call(value))
            place = closed.end()
        except (ValueError, RecursionError) as error:
            return calls, f"a malformed call: {error}"
    return calls, ""


def _end_of_code(text: str, step: re.Match[str]) -> int:
    """Where a fenced block (to the end, if it is not closed) or an inline span ends."""
    if step["fence"] is not None:
        closing = re.compile(rf"^[ \t]{{0,3}}{step['fence']}[ \t]*$", re.MULTILINE).search(text, step.end())
        return closing.end() if closing else len(text)
    line_end = text.find("\n", step.end())
    closing_at = text.find(step["code"], step.end(), line_end if line_end >= 0 else len(text))
    return step.end() if closing_at < 0 else closing_at + len(step["code"])


def _call(value: Any) -> Call:
    if not isinstance(value, Mapping) or set(value) != {"name", "arguments"}:
        raise ValueError("expected an object with name and arguments")
    if not isinstance(value["name"], str) or not isinstance(value["arguments"], Mapping):
        raise ValueError("expected a text as name and an object as arguments")
    return Call(value["name"], value["arguments"])


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_without_doubles, parse_constant=_no_constant)


def _misfit(calls: Sequence[Call], schemas: Mapping[str, Draft202012Validator]) -> str:
    for call in calls:
        if call.name not in schemas:
            return f"there is no tool {call.name!r:.80}"
        try:
            error = next(iter(schemas[call.name].iter_errors(call.arguments)), None)
        except RecursionError:
            return f"{call.name}: arguments nested too deeply"
        if error is not None:
            return f"{call.name}: {error.message}"[:300]
    return ""


@lru_cache(maxsize=1024)
def _schemas(tools: str) -> dict[str, Draft202012Validator]:
    """Tool name -> validator of its arguments, which knows no others than the schema names."""
    schemas: dict[str, Draft202012Validator] = {}
    for tool in _list(tools, "tools"):
        function = tool.get("function", tool)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(f"a tool is {tool!r:.80}, expected {{name: ..., parameters: a JSON schema}}.")
        if function["name"] in schemas:
            raise DataError(f"the tool {function['name']!r} is there twice.")
        parameters = _standard(function.get("parameters") or {"type": "object", "properties": {}})
        if "properties" in parameters:
            parameters = {"additionalProperties": False, **parameters}
        try:
            Draft202012Validator.check_schema(parameters)
        except SchemaError as error:
            raise DataError(
                f"the parameters of the tool {function['name']!r} are no JSON schema: {error.message}"
            ) from error
        # An empty registry: a schema that refers to an address is an error, not a download.
        schemas[function["name"]] = Draft202012Validator(parameters, registry=Registry())
    return schemas


def _standard(schema: Any) -> Any:
    """The schema with the type names of JSON schema."""
    if isinstance(schema, Mapping):
        found = {key: _standard(value) for key, value in schema.items()}
        if found.get("type") == "any":
            del found["type"]
        elif isinstance(found.get("type"), str):
            found["type"] = _SCHEMA_TYPES.get(found["type"], found["type"])
        return found
    return [_standard(item) for item in schema] if isinstance(schema, list) else schema


@dataclass(frozen=True, slots=True)
class _Expected:
    """A call that is right: argument -> accepted values; those in `optional` may be missing."""

    name: str
    accepted: Mapping[str, Sequence[Any]]
    optional: frozenset[str] = frozenset()
    is_loose: bool = False

    def fits(self, call: Call) -> bool:
        if call.name != self.name or not call.arguments.keys() <= self.accepted.keys():
            return False
        if not self.accepted.keys() - self.optional <= call.arguments.keys():
            return False
        return all(
            any(_same(value, right, loose=self.is_loose) for right in self.accepted[key])
            for key, value in call.arguments.items()
        )


@lru_cache(maxsize=1024)
def _expected(calls: str) -> tuple[_Expected, ...]:
    return tuple(_expected_call(call) for call in _list(calls, "expected_calls"))


def _expected_call(call: Mapping[str, Any]) -> _Expected:
    call = call.get("function", call) if call.get("type") == "function" else call
    if "name" in call and "arguments" in call:
        arguments = call["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        return _Expected(call["name"], {key: [value] for key, value in arguments.items()})
    if len(call) != 1 or not isinstance(accepted := next(iter(call.values())), Mapping):
        raise DataError(
            f"an expected call is {call!r:.80}, expected {{name, arguments}} or {{name: {{...}}}}."
        )
    optional = frozenset(key for key, values in accepted.items() if "" in values)
    return _Expected(next(iter(call)), accepted, optional, is_loose=True)


def _pair(calls: Sequence[Call], wanted: Sequence[_Expected], *, ordered: bool) -> bool:
    """Whether every call can be given an expected one of its own (augmenting paths)."""
    if ordered:
        return all(right.fits(call) for call, right in zip(calls, wanted, strict=True))
    taken: dict[int, int] = {}

    def place(call: int, tried: set[int]) -> bool:
        for index, right in enumerate(wanted):
            if index not in tried and right.fits(calls[call]):
                tried.add(index)
                if index not in taken or place(taken[index], tried):
                    taken[index] = call
                    return True
        return False

    return all(place(call, set()) for call in range(len(calls)))


def _same(left: Any, right: Any, *, loose: bool) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        return _plain(left) == _plain(right) if loose else left.strip() == right.strip()
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(
            _same(a, b, loose=loose) for a, b in zip(left, right, strict=True)
        )
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_same(left[k], right[k], loose=loose) for k in left)
    return (
        type(left) in (int, float, type(None)) and type(right) in (int, float, type(None)) and left == right
    )


def _plain(text: str) -> str:
    return _LOOSE.sub("", text).casefold().replace("'", '"')


def _result(problem: str) -> RewardResult:
    if problem:
        return RewardResult(value=0.0, outcome="wrong", detail={"problem": problem})
    return RewardResult(value=1.0)


def _text(column: Any, name: str) -> str:
    """The column as JSON, so that what is made of it can be kept by its text."""
    try:
        return column if isinstance(column, str) else json.dumps(column, sort_keys=True)
    except TypeError as error:
        raise DataError(f"{name} is no JSON: {error}") from error


def _list(text: str, name: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DataError(f"{name} is {text!r:.80}, expected a JSON list: {error}") from error
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise DataError(f"{name} is {text!r:.80}, expected a list of mappings.")
    return found
