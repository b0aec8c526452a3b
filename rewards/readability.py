"""How hard a completion is to read, by count: for filters (`select.filters`), whose bounds are in these units.

What DeepSeek-R1 left out of its sampled reasoning (arXiv 2501.12948): mixed languages, long paragraphs, code blocks.
Every number is 0 for what reads well and grows with the fault: as a reward, give it a negative weight. `part` is `all`
(the whole completion), `thought` or `visible` (`rewards.response_format`).
"""

import re
from typing import Literal

from rewards.language import language_code, share
from rewards.prose import paragraphs, pieces, repeated_share, words
from rewards.response_format import thought, visible
from rlhf.errors import DataError

Part = Literal["all", "thought", "visible"]
_FENCE = re.compile(r"^[ \t>]*(?P<fence>`{3,}|~{3,})", re.MULTILINE)


def code_blocks(completion: str, *, part: Part = "all", prompt_opens_think: bool = False) -> float:
    """How many fenced code blocks there are, 0 or more; one that is never closed counts.

    As a filter: `at_most: 0`.
    """
    count, opened = 0, ""
    for match in _FENCE.finditer(_text(completion, part, prompt_opens_think)):
        fence = match["fence"]
        if not opened:
            count, opened = count + 1, fence
        elif fence.startswith(opened):
            opened = ""
    return float(count)


def longest_paragraph(completion: str, *, part: Part = "all", prompt_opens_think: bool = False) -> float:
    """The words of the longest paragraph, 0 or more; blank lines separate paragraphs.

    As a filter: `at_most: 300` lets half a page through.
    """
    text = _text(completion, part, prompt_opens_think)
    return float(max((len(words(paragraph)) for paragraph in paragraphs(text)), default=0))


def mixed_language(
    completion: str, language: str, *, part: Part = "all", prompt_opens_think: bool = False
) -> float:
    """The share of words, 0 to 1, that are not `language`'s (a code such as `en`; a kwarg or a column).

    `rewards.language:consistency` the other way round, except that a text with too few words to tell is 0: sums and
    formulas are no mixture. As a filter: `at_most: 0.1`.
    """
    found = share(_text(completion, part, prompt_opens_think), language_code(language))
    return 0.0 if found is None else 1.0 - found


def repeated(
    completion: str, *, size: int = 4, part: Part = "all", prompt_opens_think: bool = False
) -> float:
    """The share, 0 to 1, of runs of `size` words that were said before; 0 for fewer words.

    As a filter: `at_most: 0.3`; a loop is near 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}, expected at least 1")
    return repeated_share(pieces(_text(completion, part, prompt_opens_think)), size)


def _text(completion: str, part: Part, prompt_opens_think: bool) -> str:
    match part:
        case "all":
            return completion
        case "thought":
            return thought(completion, prompt_opens_think=prompt_opens_think)
        case "visible":
            return visible(completion, prompt_opens_think=prompt_opens_think) or ""
    raise DataError(f"part is {part!r}, expected one of all, thought, visible.")
