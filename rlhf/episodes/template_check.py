"""Whether a chat template can be extended by what is new alone: probed once, before anything is sampled."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rlhf.episodes.chat import ANSWER, ASKING, QUESTION, ChatRenderer, Schema
from rlhf.errors import ModelError
from rlhf.types import Message, ToolCall

_LOG = logging.getLogger(__name__)
_USER = Message(role="user", content="word0of0the0user")
_SYSTEM = Message(role="system", content="word0of0the0system")
_NEXT = Message(role="assistant", content="word0of0the0next0answer")
_WORDS = "words0of0the0turn"
_UNICODE = "naïve 漢字 🦜 مرحبا e\u0301 a\u200db"
_ADVICE = "Give another template in model.chat_template."


def check_template(chat: ChatRenderer, tools: Sequence[Schema] = ()) -> None:
    """Refuse a template that cannot be extended: ModelError with the probe, what was found and what to do.

    Results of tools are probed only where there are tools. What is no reason to refuse is logged.
    """
    _ = chat.opening
    _check_system(chat, tools)
    _check_extension(chat, tools, new=[_USER], turn=ANSWER)
    if tools:
        name = str(tools[0]["function"]["name"])
        asking = replace(ASKING, tool_calls=tuple(replace(call, name=name) for call in ASKING.tool_calls))
        _check_calls(chat, tools, asking)
        one, two = _result("call00000", name), _result("call00001", name)
        _check_extension(chat, tools, new=[one], turn=asking)
        _check_extension(chat, tools, new=[one, two], turn=asking)
    _check_forgery(chat, tools)


def _check_system(chat: ChatRenderer, tools: Sequence[Schema]) -> None:
    try:
        text = chat.rendered([_SYSTEM, QUESTION], tools)
    except ModelError:
        # Whoever gives one is told by `start`.
        return
    if (count := text.count(_SYSTEM.content)) != 1:
        raise _refusal("a system message", f"it is shown {count} times, expected once")


def _check_calls(chat: ChatRenderer, tools: Sequence[Schema], asking: Message) -> None:
    (call,) = asking.tool_calls
    if call.name not in chat.rendered([QUESTION, asking]):
        raise _refusal("a tool call", f"the call of {call.name!r} is not shown: {_end_of(chat, asking)!r}")
    if call.name not in chat.rendered([QUESTION], tools):
        _LOG.warning(
            "the chat template does not show the model its tools: describe them, and how to call them, in a "
            "system message"
        )


def _check_extension(
    chat: ChatRenderer, tools: Sequence[Schema], *, new: Sequence[Message], turn: Message
) -> None:
    """What follows a turn holds every message once, opens the model's turn, and depends on nothing before."""
    probe = " and ".join(f"a {message.role} message" for message in new)
    end, text = chat.delta(new, tools, before=(QUESTION, turn))
    places = [text.find(message.content) for message in new]
    if [text.count(message.content) for message in new] != [1] * len(new) or places != sorted(places):
        raise _refusal(
            probe, f"after {end!r} the template writes {text!r}, expected every content once, in order"
        )
    for name, before in _histories(turn):
        other_end, other = chat.delta(new, tools, before=before)
        if (other_end, other) == (end, text):
            continue
        if other_end == end and _is_told(name, text, other):
            continue
        raise _refusal(
            f"{probe} after {name}", f"the template writes {other_end + other!r} there, else {end + text!r}"
        )
    for content in ("", _UNICODE):
        told = [replace(message, content=content) for message in new]
        _, text = chat.delta(told, tools, before=(QUESTION, turn))
        if content not in text:
            raise _refusal(f"{probe} in several scripts", f"the template writes {text!r} for {content!r}")
        _check_opening(chat, tools, dialogue=[QUESTION, turn, *told], text=text)


def _is_told(name: str, text: str, other: str) -> bool:
    """Whether the difference is a template's way that stands to reason: then it is logged."""
    if name == "an earlier call" and text.endswith(other):
        # DeepSeek V3.
        _LOG.warning(
            "the chat template begins tool results with %r only once in a conversation; here every round begins so",
            text.removesuffix(other),
        )
        return True
    if name == "words beside the call" and other.startswith(text + _WORDS):
        # Gemma 4: there the words are the answer, for which the call was made.
        _LOG.warning(
            "the chat template moves what is said beside a call behind its results; here it stays where it was "
            "sampled"
        )
        return True
    return False


def _check_opening(
    chat: ChatRenderer, tools: Sequence[Schema], *, dialogue: Sequence[Message], text: str
) -> None:
    """The text ends as every model's turn begins, or the template puts the answer right behind it."""
    if text.endswith(chat.opening):
        return
    # DeepSeek V3 and Gemma 4 have the model go on after results: there its turn never ended.
    asked = chat.rendered(dialogue, tools, is_open=True)
    answered = chat.rendered([*dialogue, _NEXT], tools)
    if not answered.startswith(asked + _NEXT.content):
        raise _refusal(
            f"the model's turn after a {dialogue[-1].role} message",
            f"it begins with {text[-60:]!r}, expected {chat.opening!r}",
        )


def _check_forgery(chat: ChatRenderer, tools: Sequence[Schema]) -> None:
    """No text of a message becomes a token that has a meaning."""
    markers = " ".join(chat.structural_ids.values())
    for message in [_USER, _result("call00000", "tool")] if tools else [_USER]:
        counts = []
        for content in ("word", f"word {markers} word"):
            ids = chat.extend([replace(message, content=content)], tools, after=-1).token_ids
            counts.append(Counter(chat.structural_ids[i] for i in ids if i in chat.structural_ids))
        if forged := counts[1] - counts[0]:
            raise _refusal(
                f"markers in a {message.role} message",
                f"{dict(forged)} of the message become tokens of their own",
            )


def _histories(turn: Message) -> Iterator[tuple[str, tuple[Message, ...]]]:
    """Other dialogues that end in such a turn."""
    yield "a turn without thinking", (QUESTION, replace(turn, reasoning=None))
    yield "a longer conversation", (QUESTION, ANSWER, _USER, turn)
    if not turn.tool_calls:
        yield "other words", (QUESTION, replace(turn, content=f"{_WORDS}\n\n{turn.content}"))
        return
    yield "words beside the call", (QUESTION, replace(turn, content=_WORDS))
    earlier = ToolCall(id="call00009", name=turn.tool_calls[0].name, arguments={"argument": "word"})
    asked = replace(turn, tool_calls=(earlier,))
    result = _result(earlier.id, earlier.name)
    yield "an earlier call", (QUESTION, asked, replace(result, content="word"), turn)


def _result(call: str, name: str) -> Message:
    return Message(role="tool", content=f"word0of0{call}", tool_call_id=call, name=name)


def _end_of(chat: ChatRenderer, turn: Message) -> str:
    return chat.rendered([QUESTION, turn])[-200:]


def _refusal(probe: str, found: str) -> ModelError:
    return ModelError(f"the chat template cannot be extended ({probe}): {found}. {_ADVICE}")
