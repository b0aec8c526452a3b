"""What an episode's process says, before it is believed: user code runs there, and may write anything on its socket."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from rlhf.errors import EpisodeError
from rlhf.types import STATUS_OF, Message, Role, message_of

_NUMBER = (int, float)
_FIELDS: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "enter": {"phase": int, "name": str, "limit_s": _NUMBER},
    "leave": {"phase": int},
    "reward": {"value": _NUMBER},
    "restored": {"pid": int},
    "done": {"stop": str, "score": (dict, type(None)), "scalars": dict},
    "failed": {"error": str, "trace": str},
    "sample": {"thread": int, "messages": list},
    "serve": {},
    "messages": {},
    "rewrite": {"id": int, "thread": int, "messages": list},
    "fork": {"id": int, "thread": int},
}


def checked(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message, if it is one that an episode may send. EpisodeError otherwise."""
    kind = message.get("do")
    fields = _FIELDS.get(kind) if isinstance(kind, str) else None
    if fields is None or not all(isinstance(message.get(name), field) for name, field in fields.items()):
        raise _forged(message)
    if kind == "done":
        numbers = [*(message["score"] or {}).values(), *message["scalars"].values()]
        if message["stop"] not in STATUS_OF or not all(isinstance(number, _NUMBER) for number in numbers):
            raise _forged(message)
    return message


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
