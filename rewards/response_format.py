"""Rewards the shape of a completion: a think block, an answer block, in one order, with something in each.

Text counts as something when it has a letter, a digit or a symbol: tags around nothing earn nothing. So does a
completion that the prompt itself contains (a template's own example). Gate with it (`gate: true`) rather than add
it where the task's reward reads the answer from the tags: else the format alone is worth something.
"""

import unicodedata
from collections.abc import Sequence

from rlhf.types import Prompt

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)


def think_answer(
    completion: str,
    prompt: Prompt | None = None,
    *,
    prompt_opens_think: bool = False,
    text_outside: bool = False,
) -> float:
    """1.0 for exactly `<think>...</think><answer>...</answer>`, else 0.0.

    Only white space may stand outside the tags, unless `text_outside`. With `prompt_opens_think` the template
    ends in `<think>` (as DeepSeek-R1's): the completion begins inside the block and must not open it again.
    """
    parts = _parts(completion, TAGS, prompt_opens_think=prompt_opens_think)
    if parts is None or _is_copied(completion, prompt):
        return 0.0
    before, thought, between, answer, after = parts
    is_clean = text_outside or not (before.strip() or between.strip() or after.strip())
    return float(is_clean and has_text(thought) and has_text(answer))


def answer_after_think(completion: str, prompt: Prompt | None = None) -> float:
    """`think_answer` for templates that end in an opened `<think>`: `...</think><answer>...</answer>`."""
    return think_answer(completion, prompt, prompt_opens_think=True)


def think(
    completion: str,
    prompt: Prompt | None = None,
    *,
    prompt_opens_think: bool = False,
    text_outside: bool = False,
) -> float:
    """1.0 for one `<think>...</think>` followed by an answer in plain text, else 0.0.

    Nothing may stand before the block, unless `text_outside`. The options are those of `think_answer`.
    """
    parts = _parts(completion, (THINK_OPEN, THINK_CLOSE), prompt_opens_think=prompt_opens_think)
    if parts is None or _is_copied(completion, prompt):
        return 0.0
    before, thought, answer = parts
    return float((text_outside or not before.strip()) and has_text(thought) and has_text(answer))


def tag_credit(completion: str, prompt: Prompt | None = None, *, prompt_opens_think: bool = False) -> float:
    """The share of `think_answer`'s tags that are in place, counted from the first; 1.0 is the whole shape.

    A tag is in place when it occurs once, follows the tag before it, and what it opens or closes has text;
    counting ends at the first that is not. Any tag twice, or text outside the tags, is 0.0, so that neither
    tags alone nor tags sprinkled over a text pay. Source: the idea is open-r1's `tag_count`, which pays for both.
    """
    text = THINK_OPEN + completion if prompt_opens_think else completion
    if any(text.count(tag) > 1 for tag in TAGS) or _is_copied(completion, prompt):
        return 0.0
    rest, credit = text.strip(), 0
    for index, tag in enumerate(TAGS):
        before, found, after = rest.partition(tag)
        is_closing = index % 2 == 1
        inner = before if is_closing else _until_tag(after)
        stray = _until_tag(before) != before if is_closing else before.strip()
        if not found or stray or not has_text(inner):
            break
        credit, rest = credit + 1, after
    if credit == len(TAGS) and rest.strip():
        return 0.0
    given = int(prompt_opens_think)  # the template's own tag is no work of the completion's
    return max(credit - given, 0) / (len(TAGS) - given)


def visible(completion: str, *, prompt_opens_think: bool = False) -> str | None:
    """What follows the last `</think>`; None while a think block is still open."""
    text = THINK_OPEN + completion if prompt_opens_think else completion
    rest = text.rpartition(THINK_CLOSE)[2]
    return None if THINK_OPEN in rest else rest


def thought(completion: str, *, prompt_opens_think: bool = False) -> str:
    """What stands in the think block, finished or not; "" without one."""
    text = THINK_OPEN + completion if prompt_opens_think else completion
    before, closing, _ = text.rpartition(THINK_CLOSE)
    inner = before if closing else text
    if THINK_OPEN in inner:
        return inner.partition(THINK_OPEN)[2]
    return inner if closing else ""


def has_text(text: str) -> bool:
    """Whether there is a letter, a digit or a symbol: more than spaces, punctuation and invisible characters."""
    return any(unicodedata.category(character)[0] in "LNS" for character in text)


def _parts(completion: str, tags: Sequence[str], *, prompt_opens_think: bool) -> list[str] | None:
    """The texts around the tags, one more than tags; None unless each of all four tags is there once, in order."""
    rest = THINK_OPEN + completion if prompt_opens_think else completion
    if any(rest.count(tag) != (tag in tags) for tag in TAGS):
        return None
    parts = []
    for tag in tags:
        before, found, rest = rest.partition(tag)
        if not found:
            return None
        parts.append(before)
    return [*parts, rest]


def _until_tag(text: str) -> str:
    ends = [place for tag in TAGS if (place := text.find(tag)) >= 0]
    return text[: min(ends, default=len(text))]


def _is_copied(completion: str, prompt: Prompt | None) -> bool:
    """Whether the completion stands, spacing aside, in what the prompt says."""
    if prompt is None:
        return False
    said = " ".join(" ".join(message.content for message in prompt.messages).split())
    return " ".join(completion.split()) in said
