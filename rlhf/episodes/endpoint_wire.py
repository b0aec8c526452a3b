"""Chat completions as OpenAI's API writes them: requests to messages, answers to JSON. No token is made here."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from rlhf.episodes.chat import Schema
from rlhf.episodes.tool_arguments import SchemaArguments
from rlhf.types import Completion, Message, ToolCall

Json = dict[str, Any]

_NEUTRAL = frozenset(
    [
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream_options",
        "user",
    ]
)
"""Parameters that say nothing about how tokens are drawn or shown."""
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "stop": (None, [], ""),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "grammar": (None,),
    "structured_outputs": (None,),
    "continue_final_message": (None, False),
    "echo": (None, False),
    "use_beam_search": (None, False),
}
"""Parameters that would change what is sampled or how many answers there are, with the values that do not."""


class RequestError(Exception):
    """A request that is answered with an error in OpenAI's form."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body: Json = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Part(_Wire):
    type: Literal["text"]
    text: str


class _Function(_Wire):
    name: str = ""
    arguments: str | dict[str, Any] | None = "{}"


class _Call(_Wire):
    id: str = ""
    type: Literal["function"] = "function"
    function: _Function


class _Message(_Wire):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None


class _Tool(_Wire):
    class Described(_Wire):
        model_config = ConfigDict(extra="allow")
        name: str
        parameters: dict[str, Any] | None = None

    model_config = ConfigDict(extra="allow")
    type: Literal["function"]
    function: Described


class _StreamOptions(_Wire):
    include_usage: bool | None = None


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow")
    model: str = ""
    messages: Annotated[list[_Message], Field(min_length=1)]
    tools: list[_Tool] | None = None
    tool_choice: Any = None
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    logprobs: bool | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """What a client asks for, as far as it is obeyed."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[Schema, ...]
    max_tokens: int | None
    is_streamed: bool
    wants_usage: bool
    wants_logprobs: bool
    reads_calls: bool
    """Calls are given as such; otherwise as the text they are."""
    ignored: tuple[str, ...]
    """Names of parameters that are not obeyed."""
    digest: str
    """Of the whole body."""


def read_request(text: bytes) -> ChatRequest:
    """The request that a body holds. RequestError, naming the parameter, for one that is not served."""
    try:
        raw = json.loads(text)
        body = _Body.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(map(str, first["loc"]))
        raise RequestError(f"{param}: {first['msg']}", param=param) from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is no JSON: {error}") from error
    for name, harmless in _REFUSED.items():
        if raw.get(name) not in harmless:
            raise RequestError(
                f"{name}={json.dumps(raw[name])[:100]} is not served: what is sampled here is trained on, one answer "
                f"a request, drawn as the training run says. Leave {name} out.",
                param=name,
                code="unsupported_parameter",
            )
    caps = [cap for cap in (body.max_tokens, body.max_completion_tokens) if cap is not None]
    return ChatRequest(
        model=body.model,
        messages=_messages(body.messages),
        tools=tuple(raw.get("tools") or ()),
        max_tokens=min(caps, default=None),
        is_streamed=bool(body.stream),
        wants_usage=bool(body.stream_options and body.stream_options.include_usage),
        wants_logprobs=bool(body.logprobs),
        reads_calls=bool(body.tools) and body.tool_choice != "none",
        ignored=tuple(_ignored(raw)),
        digest=_digest(canonical(raw)),
    )


def _ignored(raw: Json) -> Iterator[str]:
    for name, value in raw.items():
        if value is None or name in _NEUTRAL or name in _REFUSED:
            continue
        if name == "tool_choice":
            if value not in ("auto", "none"):
                yield name
        elif name not in _Body.model_fields:
            yield name


def read_messages(raw: Sequence[Any]) -> tuple[Message, ...]:
    """Messages as OpenAI's API writes them; a tool message has the name of the tool that was called."""
    return _messages([_Message.model_validate(message) for message in raw])


def _messages(raw: Sequence[_Message]) -> tuple[Message, ...]:
    names: dict[str, str] = {}
    found = []
    for message in raw:
        calls = tuple(map(_read_call, message.tool_calls or ()))
        names |= {call.id: call.name for call in calls}
        is_tool = message.role == "tool"
        found.append(
            Message(
                role="system" if message.role == "developer" else message.role,
                content=_text(message.content),
                reasoning=_encodable(message.reasoning_content) if message.reasoning_content else None,
                tool_calls=calls,
                tool_call_id=message.tool_call_id if is_tool else None,
                name=names.get(message.tool_call_id or "") if is_tool else None,
            )
        )
    return tuple(found)


def _read_call(call: _Call) -> ToolCall:
    arguments, raw = call.function.arguments, ""
    if not isinstance(arguments, dict):
        raw = arguments or "{}"
        try:
            arguments = json.loads(raw)
        except (ValueError, RecursionError):
            arguments = None
    known = arguments if isinstance(arguments, dict) else None
    return ToolCall(
        id=call.id, name=call.function.name, arguments=known, raw="" if known is not None else raw
    )


def _text(content: str | list[_Part] | None) -> str:
    parts = content if isinstance(content, list) else [_Part(type="text", text=content or "")]
    return _encodable("".join(part.text for part in parts))


def _encodable(text: str) -> str:
    # JSON can write half a surrogate pair, which no tokenizer takes.
    return text.encode("utf-8", "replace").decode()


def message_key(message: Message) -> str:
    """What makes two messages of a history the same: all but thinking, names and the ids of calls."""
    calls = [[call.name, call.arguments if call.raw == "" else call.raw] for call in message.tool_calls]
    return canonical([message.role, message.content, calls, message.tool_call_id])


def history_chain(messages: Sequence[Message]) -> list[str]:
    """[len(messages) + 1] digests: what stands at i is one of the first i messages in their order."""
    chain = [""]
    for message in messages:
        chain.append(next_digest(chain[-1], message))
    return chain


def next_digest(digest: str, message: Message) -> str:
    """The digest of a history that goes on with one more message."""
    return _digest(digest + message_key(message))


def canonical(value: Any) -> str:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAnswer:
    """A sampled turn in OpenAI's form."""

    message: Json
    finish_reason: Literal["stop", "length", "tool_calls"]
    usage: Json
    tokens: list[Json]
    """Each with its log-probability."""
    id: str
    model: str
    created: int

    def body(self, *, with_logprobs: bool) -> Json:
        """The response to a request that is not streamed."""
        choice = {
            "index": 0,
            "message": self.message,
            "finish_reason": self.finish_reason,
            "logprobs": {"content": self.tokens} if with_logprobs else None,
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": self.usage}

    def chunks(self, *, with_logprobs: bool, with_usage: bool) -> Iterator[Json]:
        """The responses to a streamed request: role, thinking, content, calls, the end, the usage."""
        message = self.message
        deltas: list[Json] = [{"role": "assistant", "content": ""}]
        deltas += [{name: message[name]} for name in ("reasoning_content", "content") if message.get(name)]
        if calls := message.get("tool_calls"):
            deltas.append({"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]})
        for place, delta in enumerate([*deltas, {}]):
            choice: Json = {"index": 0, "delta": delta, "finish_reason": None, "logprobs": None}
            if place == 1 and with_logprobs:
                choice["logprobs"] = {"content": self.tokens}
            if not delta:
                choice["finish_reason"] = self.finish_reason
            yield {**self._head("chat.completion.chunk"), "choices": [choice]}
        if with_usage:
            yield {**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage}

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def written_message(message: Message, tools: Sequence[Schema], *, reads_calls: bool = True) -> Json:
    """A sampled turn as a client sees it. A call that nobody could read is given as the text it is."""
    calls = [call for call in message.tool_calls if reads_calls and call.name and call.arguments is not None]
    unread = [call.raw for call in message.tool_calls if call not in calls]
    content = "\n".join(part for part in [message.content, *unread] if part)
    written: Json = {"role": "assistant", "content": content or (None if calls else "")}
    if message.reasoning is not None:
        written["reasoning_content"] = message.reasoning
    if calls:
        written["tool_calls"] = [_written_call(call, tools) for call in calls]
    return written


def _written_call(call: ToolCall, tools: Sequence[Schema]) -> Json:
    arguments: Mapping[str, Any] = call.arguments or {}
    if call.is_text:
        functions = (tool["function"] for tool in tools)
        schema = next((f.get("parameters") for f in functions if f["name"] == call.name), None)
        arguments = SchemaArguments(schema or {})(arguments, is_text=True).values
    # Half a surrogate pair, as JSON can spell it, could not be sent back by a client; in ASCII it can.
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": _encodable(call.name), "arguments": json.dumps(arguments)},
    }


def written_usage(num_context: int, completion: Completion) -> Json:
    """Tokens seen and sampled."""
    num_sampled = len(completion.token_ids)
    return {
        "prompt_tokens": num_context,
        "completion_tokens": num_sampled,
        "total_tokens": num_context + num_sampled,
    }
