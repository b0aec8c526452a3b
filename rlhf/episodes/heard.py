"""What an episode's process says, before it is believed: user code runs there, and may write anything on its socket."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from rlhf.errors import EpisodeError
from rlhf.types import STATUS_OF, Message, Role, message_of

_MAX_PID = 1 << 22
"""The kernel's own."""


def _is_integer(value: Any) -> bool:
    return isinstance(value, int)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max


def _is_score(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_finite, value.values())))


def _are_scalars(value: Any) -> bool:
    # Metrics may be NaN, which is counted and shown.
    return isinstance(value, dict) and all(isinstance(v, float) or _is_finite(v) for v in value.values())


_FIELDS: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "enter": {"phase": _is_integer, "name": _is_text, "limit_s": _is_finite},
    "leave": {"phase": _is_integer},
    "reward": {"value": _is_finite},
    "restored": {"pid": lambda pid: _is_integer(pid) and 1 < pid <= _MAX_PID},
    "done": {
        "stop": lambda stop: _is_text(stop) and stop in STATUS_OF,
        "score": _is_score,
        "scalars": _are_scalars,
    },
    "failed": {"error": _is_text, "trace": _is_text},
    "sample": {"thread": _is_integer, "messages": _is_list},
    "serve": {},
    "messages": {},
    "rewrite": {"id": _is_integer, "thread": _is_integer, "messages": _is_list},
    "fork": {"id": _is_integer, "thread": _is_integer},
}


def checked(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message, if it is one that an episode may send. EpisodeError otherwise."""
    kind = message.get("do")
    fields = _FIELDS.get(kind) if isinstance(kind, str) else None
    if fields is None or not all(is_right(message.get(name)) for name, is_right in fields.items()):
        raise _forged(message)
    if kind == "sample":
        _check_sample(message)
    return message


def _check_sample(message: Mapping[str, Any]) -> None:
    """What an author may have got wrong, and is told so."""
    max_tokens, seconds, tools = (message.get(name) for name in ("max_tokens", "seconds", "tools"))
    if max_tokens is not None and not (_is_integer(max_tokens) and max_tokens >= 1):
        raise EpisodeError(
            f"max_tokens is {max_tokens!r:.100}, expected a whole number from 1, or None for all the room there is"
        )
    count = len(message["messages"])
    if seconds and not (_is_list(seconds) and len(seconds) == count and all(map(_is_finite, seconds))):
        raise EpisodeError(
            f"the seconds of {count} messages are {seconds!r:.100}, expected a number for each"
        )
    if tools and not (_is_list(tools) and all(map(_is_schema, tools))):
        raise EpisodeError(
            f"tools are {tools!r:.200}, expected schemas: {{'type': 'function', 'function': {{'name': ...}}}}"
        )


def _is_schema(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and _is_text(function.get("name"))


def messages_of(raw: Sequence[Any]) -> list[Message]:
    """Chat messages that can be shown to a model. EpisodeError for what is none; lone surrogates are replaced."""
    return [_message(one) for one in raw]


def _message(raw: Any) -> Message:
    try:
        message = message_of({**raw, "content": _text(raw["content"]), "reasoning": _text(raw["reasoning"])})
    except (KeyError, TypeError, AttributeError) as error:
        raise EpisodeError(f"{raw!r:.200} is no message: {error!r}") from error
    if message.role not in get_args(Role) or not isinstance(message.content, str):
        raise EpisodeError(
            f"{raw!r:.200} is no message: its role has to be one of {get_args(Role)}, its content a text"
        )
    return message


def _text(value: Any) -> Any:
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _forged(message: Mapping[str, Any]) -> EpisodeError:
    return EpisodeError(f"something else wrote on its runner's socket: {message!r:.200}")
