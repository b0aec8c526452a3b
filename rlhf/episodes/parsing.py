"""From a sampled turn's text to thinking, content and tool calls. Nothing that a model can write raises here."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args

from rlhf.errors import ConfigError
from rlhf.types import CallError, Message, ToolCall

Syntax = Literal["hermes", "qwen_xml", "llama3", "deepseek_v3", "none"]
SYNTAXES: tuple[str, ...] = get_args(Syntax)
THINK, END_THINK = "<think>", "</think>"
_MAX_CALLS = 1000
_LLAMA_TAG = "<|python_tag|>"
_OPEN = "<tool_call>"
_AFTER = re.compile(r"</tool_call>|(?=<tool_call>)")
_XML_NAME = re.compile(r"\s*<function=([^>\n]*)>?(.*)", re.DOTALL)
_XML_ARGUMENT = re.compile(r"<parameter=([^>\n]*)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
_DEEPSEEK = re.compile(
    r"<｜tool▁call▁begin｜>(.*?)(?:<｜tool▁call▁end｜>|(?=<｜tool▁call▁begin｜>)|<｜tool▁calls▁end｜>|\Z)",
    re.DOTALL,
)
_FENCE = re.compile(r"\A\s*```(?:json)?\n?(.*?)\n?(?:```)?\s*\Z", re.DOTALL)


class Found(NamedTuple):
    """A call in a text."""

    name: str
    arguments: Any
    error: CallError | None
    """What is wrong."""
    raw: str
    is_text: bool = False
    """The arguments are texts without a type."""


class Parse(Protocol):
    """Reads a sampled turn's text."""

    def __call__(self, text: str, *, is_thinking: bool = False, has_tools: bool = True) -> Message:
        """The message that a model meant; without tools, what looks like a call is its content."""


def parse(text: str, *, syntax: Syntax, is_thinking: bool = False, has_tools: bool = True) -> Message:
    """The message that a model meant. `is_thinking`: the prompt ended inside its thoughts.

    A turn that stops within its thoughts has no content. A text that looks like a call and is none becomes a call
    with an error, so that the model is told; the ids of calls are their places, to be made unique by the episode.
    """
    reasoning, rest = _thoughts(text, is_thinking=is_thinking)
    content, found = _READERS[syntax if has_tools else "none"](rest)
    calls = tuple(ToolCall(id=str(index), **call._asdict()) for index, call in enumerate(found))
    return Message(role="assistant", content=content.strip(), reasoning=reasoning, tool_calls=calls)


def syntax_of(written: str) -> Syntax:
    """The syntax of a call as a chat template writes it. ConfigError for one that is not known here."""
    match written:
        case _ if "<function=" in written and "<parameter=" in written:
            return "qwen_xml"
        case _ if "<tool_call>" in written and '"arguments":' in written:
            return "hermes"
        case _ if "<｜tool▁call▁begin｜>" in written:
            return "deepseek_v3"
        case _ if '"parameters":' in written and '"name":' in written:
            return "llama3"
    raise ConfigError(
        f"task.environment.tool_syntax is auto, but the chat template writes calls in a way not known here: "
        f"{written[:200]!r}. Expected one of {', '.join(SYNTAXES)}; or name the model's parser in vLLM as "
        "`vllm:NAME`."
    )


def _thoughts(text: str, *, is_thinking: bool) -> tuple[str | None, str]:
    opened = text.lstrip().startswith(THINK)
    if not (is_thinking or opened):
        return None, text
    inside = text.lstrip().removeprefix(THINK) if opened else text
    thoughts, _, rest = inside.partition(END_THINK)
    return thoughts.strip(), rest


def _nothing(text: str) -> tuple[str, list[Found]]:
    return text, []


def _hermes(text: str) -> tuple[str, list[Found]]:
    content, bodies = _tagged(text)
    return content, [_from_json(body, ("arguments", "parameters"), raw) for body, raw in bodies]


def _qwen_xml(text: str) -> tuple[str, list[Found]]:
    found: list[Found] = []
    content, bodies = _tagged(text)
    for body, raw in bodies:
        inside = _XML_NAME.match(body)
        if inside is None:
            found.append(_from_json(body, ("arguments", "parameters"), raw))
        else:
            written = [(m[1].strip(), m[2]) for m in _XML_ARGUMENT.finditer(inside[2])]
            try:
                call = Found(inside[1].strip(), _without_doubles(written), None, raw, is_text=True)
            except ValueError:
                call = Found(inside[1].strip(), None, "invalid_arguments", raw)
            found.append(call)
    return content, found


def _tagged(text: str) -> tuple[str, list[tuple[str, str]]]:
    """What stands outside <tool_call> tags; (body, whole text) of each. A tag in a JSON string is none."""
    outside: list[str] = []
    found: list[tuple[str, str]] = []
    place = 0
    while len(found) < _MAX_CALLS and (start := text.find(_OPEN, place)) >= 0:
        outside.append(text[place:start])
        body = start + len(_OPEN)
        end = _AFTER.search(text, _json_end(text, body))
        stop, place = (end.start(), end.end()) if end else (len(text), len(text))
        found.append((text[body:stop], text[start:place]))
    return "".join([*outside, text[place:]]), found


def _json_end(text: str, start: int) -> int:
    """Where an object that begins here ends; `start` if there is none."""
    begin = start + len(text[start:]) - len(text[start:].lstrip())
    try:
        return json.JSONDecoder().raw_decode(text, begin)[1]
    except (ValueError, RecursionError):
        return start


def _llama3(text: str) -> tuple[str, list[Found]]:
    before, tag, after = text.partition(_LLAMA_TAG)
    body = (after if tag else text).strip()
    if not tag and not re.match(r'\{\s*"(name|function|type)"', body):
        return text, []
    return (before if tag else ""), [
        _from_json(part, ("parameters", "arguments"), part) for part in _objects(body)
    ]


def _objects(text: str) -> Iterator[str]:
    """JSON objects one after another, with semicolons between; what cannot be read is the last."""
    decoder = json.JSONDecoder()
    for _ in range(_MAX_CALLS):
        text = text.lstrip("; \n\t")
        if not text:
            return
        try:
            _, end = decoder.raw_decode(text)
        except (ValueError, RecursionError):
            yield text
            return
        yield text[:end]
        text = text[end:]


def _deepseek_v3(text: str) -> tuple[str, list[Found]]:
    content = text.partition("<｜tool▁calls▁begin｜>")[0].partition("<｜tool▁call▁begin｜>")[0]
    found: list[Found] = []
    for match in list(_DEEPSEEK.finditer(text))[:_MAX_CALLS]:
        head, _, tail = match[1].partition("<｜tool▁sep｜>")
        # V3 writes `function<sep>name`, a line, a fence; V3.1 writes `name<sep>` and the object.
        name, body = (tail.partition("\n")[::2]) if head.strip() == "function" else (head, tail)
        fenced = _FENCE.match(body)
        arguments, error = _load_object(fenced[1] if fenced else body)
        found.append(Found(name.strip(), arguments, error, match[0]))
    return content, found


def _from_json(body: str, keys: tuple[str, ...], raw: str) -> Found:
    """A call written as one object with a name and its arguments under one of `keys`."""
    call, error = _load_object(body)
    if call is None:
        return Found("", None, error, raw)
    inner = call.get("function")
    if isinstance(inner, dict):
        call = inner
    name = call.get("name", inner)
    arguments: Any = next((call[key] for key in keys if key in call), {})
    if isinstance(arguments, str):
        arguments, error = _load_object(arguments)
    elif not isinstance(arguments, dict):
        arguments, error = None, "not_an_object"
    return Found(name if isinstance(name, str) else "", arguments, error, raw)


def _load_object(text: str) -> tuple[dict[str, Any] | None, CallError | None]:
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError):
        return None, "invalid_json"
    return (value, None) if isinstance(value, dict) else (None, "not_an_object")


def _without_doubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """As an object. ValueError where a key is given twice: which of the two was meant, nobody knows."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_READERS: dict[str, Callable[[str], tuple[str, list[Found]]]] = {
    "hermes": _hermes,
    "qwen_xml": _qwen_xml,
    "llama3": _llama3,
    "deepseek_v3": _deepseek_v3,
    "none": _nothing,
}
