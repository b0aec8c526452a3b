"""What a conversation goes on from when its context is nearly full, as DeepSeek-V3.2 manages it (arXiv 2512.02556)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from rlhf.types import Message

Compaction = Literal["none", "summary", "discard_75", "discard_all"]

SHARE_LEFT_OUT = {"discard_75": 0.75, "discard_all": 1.0}

ASK = Message(
    role="user",
    content=(
        "The context is nearly full: what you have written and what tools have answered will be removed from it. "
        "Do not call a tool now. Write a summary from which you can go on: what has been done and found, with exact "
        "names, numbers and results, what did not work, and what is to be done next."
    ),
)
"""Has the model sum up."""

_SUMMARY = "Your summary of the work so far, which is no longer shown:\n\n"


def without_oldest(messages: Sequence[Message], share: float) -> list[Message]:
    """The messages without the oldest `share` of their tool history (rounded up to whole rounds).

    A round is a turn of the model that calls tools, and the results. What users said stays. Where no turn calls
    tools, each turn and what answered it is a round; the last answer stays.
    """
    head, rounds = _rounds(messages)
    has_tools = any(messages[0].tool_calls for messages in rounds)
    old = [i for i, part in enumerate(rounds) if part[0].tool_calls or not has_tools]
    gone = set(old[: math.ceil(share * len(old))])
    kept = list(head)
    for place, part in enumerate(rounds):
        if place not in gone:
            kept += part
        elif has_tools or place == len(rounds) - 1:
            kept += [message for message in part if message.role in ("user", "system")]
    return _joined(kept)


def with_summary(messages: Sequence[Message], summary: str) -> list[Message]:
    """How the conversation began, a summary of what came after, and what users said last."""
    head, rounds = _rounds(messages)
    told = Message(role="user", content=_SUMMARY + summary)
    last = [m for m in rounds[-1] if m.role == "user"] if rounds else []
    return _joined([*head, told, *last])


def _rounds(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """What came before the model's first turn; each turn with what answered it."""
    head: list[Message] = []
    rounds: list[list[Message]] = []
    for message in messages:
        if message.role == "assistant":
            rounds.append([message])
        else:
            (rounds[-1] if rounds else head).append(message)
    return head, rounds


def _joined(messages: Sequence[Message]) -> list[Message]:
    """Users' messages in a row as one: some templates ask that roles alternate."""
    found: list[Message] = []
    for message in messages:
        if found and message.role == "user" == found[-1].role:
            found[-1] = replace(found[-1], content=f"{found[-1].content}\n\n{message.content}")
        else:
            found.append(message)
    return found
