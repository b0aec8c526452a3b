"""From a sampled turn's text to thinking, content and tool calls. Nothing that a model can write raises here."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from rlhf.engines.vllm_parsers import VllmCalls
from rlhf.episodes.call_syntax import OPENERS, READERS, SYNTAXES, Found, Syntax, load_object
from rlhf.errors import ConfigError
from rlhf.types import Message, ToolCall

THINK, END_THINK = "<think>", "</think>"
VLLM = "vllm:"
Tools = Sequence[Mapping[str, Any]]


class Parse(Protocol):
    """Reads a sampled turn's text."""

    def __call__(self, text: str, *, is_thinking: bool = False, tools: Tools = ()) -> Message:
        """The message that a model meant, which was shown `tools`; without any, nothing is a call."""


def parser_of(tool_syntax: str, *, written: str = "", tokenizer: Any = None) -> Parse:
    """The parser that `task.environment.tool_syntax` names; `auto` goes by how the chat template writes a call.

    `written` is `ChatRenderer.written_call()`; `tokenizer` is asked for by vLLM's parsers. ConfigError for a name
    that is not known; for a way to write calls that is not known, only when there are tools.
    """
    if tool_syntax.startswith(VLLM):
        return partial(_parse_by_vllm, calls=VllmCalls(tool_syntax.removeprefix(VLLM), tokenizer=tokenizer))
    if tool_syntax == "auto":
        syntax = syntax_of(written)
        return partial(_parse_unknown, written=written) if syntax is None else partial(parse, syntax=syntax)
    for known in SYNTAXES:
        if tool_syntax == known:
            return partial(parse, syntax=known)  # type: ignore[arg-type]
    raise ConfigError(
        f"task.environment.tool_syntax is {tool_syntax!r}, expected auto, one of {', '.join(SYNTAXES)}, or "
        f"`{VLLM}NAME` for one of vLLM's parsers."
    )


def parse(text: str, *, syntax: Syntax, is_thinking: bool = False, tools: Tools = ()) -> Message:
    """The message that a model meant. `is_thinking`: the prompt ended inside its thoughts.

    A turn that stops within its thoughts has no content, and a call in there is a thought. A text that looks like a
    call and is none becomes a call with an error, so that the model is told; the ids of calls are their places, to
    be made unique by the episode.
    """
    syntax = syntax if tools else "none"
    reasoning, rest = split_thoughts(text, is_thinking=is_thinking, opener=OPENERS.get(syntax))
    content, found = READERS[syntax](rest)
    return _message(content, reasoning, found)


def syntax_of(written: str) -> Syntax | None:
    """The syntax of a call as a chat template writes it; None for one that is not known here."""
    match written:
        case _ if "<function=" in written and "<parameter=" in written:
            return "qwen_xml"
        case _ if "<tool_call>" in written and '"arguments":' in written:
            return "hermes"
        case _ if "<arg_key>" in written and "<arg_value>" in written:
            return "glm4"
        case _ if "<｜tool▁call▁begin｜>" in written or "<｜DSML｜invoke" in written:
            return "deepseek_v3"
        case _ if "[TOOL_CALLS]" in written:
            return "mistral"
        case _ if '"parameters":' in written and '"name":' in written:
            return "llama3"
        case _ if "(argument=" in written:
            return "pythonic"
    return None


def split_thoughts(text: str, *, is_thinking: bool, opener: str | None = None) -> tuple[str | None, str]:
    """(what was thought, the rest). A block may be opened by the prompt or by the model, first of all or later on.

    Not in JSON, nor after `opener`, with which a first call begins: what looks like one there is an argument.
    """
    thoughts: list[str] = []
    opened = text.lstrip().startswith(THINK)
    if is_thinking or opened:
        inside = text.lstrip().removeprefix(THINK) if opened else text
        first, _, text = inside.partition(END_THINK)
        thoughts.append(first)
    if text.lstrip().startswith("{"):
        return (thoughts[0].strip() if thoughts else None), text
    outside: list[str] = []
    place = 0
    limit = text.find(opener) if opener else -1
    limit = len(text) if limit < 0 else limit
    while (start := text.find(THINK, place, limit)) >= 0:
        # A call in a thought is a thought.
        end = text.find(END_THINK, start)
        if end < 0:
            break
        outside.append(text[place:start])
        thoughts.append(text[start + len(THINK) : end])
        place = end + len(END_THINK)
        if opener and limit < place:
            limit = text.find(opener, place)
            limit = len(text) if limit < 0 else limit
    rest = "".join([*outside, text[place:]])
    return ("\n\n".join(part.strip() for part in thoughts) if thoughts else None), rest


def _parse_by_vllm(text: str, *, calls: VllmCalls, is_thinking: bool = False, tools: Tools = ()) -> Message:
    reasoning, rest = split_thoughts(text, is_thinking=is_thinking)
    if not tools:
        return _message(rest, reasoning, [])
    content, written = calls.read(rest, tools)
    found = [Found(name, *load_object(arguments), arguments) for name, arguments in written]
    return _message(content, reasoning, found)


def _parse_unknown(text: str, *, written: str, is_thinking: bool = False, tools: Tools = ()) -> Message:
    if tools:
        raise ConfigError(
            f"task.environment.tool_syntax is auto, but the chat template writes calls in a way not known here: "
            f"{written[:200]!r}. Expected one of {', '.join(SYNTAXES)}; or name the model's parser in vLLM as "
            f"`{VLLM}NAME`."
        )
    return parse(text, syntax="none", is_thinking=is_thinking)


def _message(content: str, reasoning: str | None, found: Sequence[Found]) -> Message:
    calls = tuple(ToolCall(id=str(index), **call._asdict()) for index, call in enumerate(found))
    return Message(role="assistant", content=content.strip(), reasoning=reasoning, tool_calls=calls)
