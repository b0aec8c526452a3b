"""A whole conversation as a row to learn from: its turns exactly as an episode would have them."""

from collections.abc import Sequence
from itertools import groupby

from rlhf.episodes.chat import ChatRenderer, Schema
from rlhf.errors import DataError
from rlhf.types import Message


def learned_turns(messages: Sequence[Message]) -> list[tuple[bool, list[Message]]]:
    """(whether it is a turn of the assistant, its messages) up to the last such turn. DataError where none is."""
    runs = [(role, list(run)) for role, run in groupby(messages, key=lambda m: m.role == "assistant")]
    if len(runs) < 2 or runs[0][0] or any(is_turn and len(run) > 1 for is_turn, run in runs):
        raise DataError(
            f"a conversation with roles {[m.role for m in messages]}: expected turns of the assistant, one at a time, "
            "each after another's message."
        )
    if not runs[-1][0]:
        runs.pop()
    return runs


def demonstration_ids(
    chat: ChatRenderer, messages: Sequence[Message], tools: Sequence[Schema] = ()
) -> tuple[list[int], list[bool]]:
    """(ids, whether each is the assistant's), its end tokens included. DataError where no turn is the assistant's."""
    ids: list[int] = []
    is_learned: list[bool] = []
    is_thinking = False
    for is_turn, run in learned_turns(messages):
        if is_turn:
            found = chat.turn(run[0], tools, is_thinking=is_thinking)
        else:
            rendered = chat.extend(run, tools, after=ids[-1]) if ids else chat.start(run, tools)
            found, is_thinking = rendered.token_ids, rendered.is_thinking
        ids += found
        is_learned += [is_turn] * len(found)
    return ids, is_learned
