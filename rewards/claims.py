r"""What a completion claims to be its answer: every place that marks one, of the strongest kind there is.

Only text after the last `</think>` counts, and of it the last TAIL_CHARACTERS. The kinds, strongest first: complete
`<answer>` pairs; complete `\boxed` or `\fbox`; what follows "the answer is" on its line. Without any of them the whole
text is one claim that is not marked. Rewards pay for what all claims agree on, so a second answer is never a second
try, and nothing here sees the gold.
"""

import re
from dataclasses import dataclass

from rewards.math_answer import TAIL_CHARACTERS, complete_boxes
from rewards.response_format import visible

MAX_PHRASE = 500
_PAIR = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\b")
_PHRASE = re.compile(r"answer[\s*]*+(?:is|are|:|=)[\s*]*+:?[\s*]*+", re.IGNORECASE)
_PHRASE_END = re.compile(r"[.!](?=\s|$)|\n|,?\s(?:since|because)\b|,\sas\b")
_FONT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_MARKS = " \t\r\n*_`$\"'"


@dataclass(frozen=True, slots=True)
class Claims:
    """The claimed texts; `is_marked` when something marks them as the answer."""

    texts: tuple[str, ...]
    is_marked: bool


def claims(
    completion: str, *, prompt_opens_think: bool = False, boxes: bool = True, phrases: bool = True
) -> Claims:
    """All claims of the strongest kind; no text for an open thought, an empty text or a box that never ends."""
    text = visible(completion, prompt_opens_think=prompt_opens_think)
    text = (text or "")[-TAIL_CHARACTERS:].strip()
    tagged = _PAIR.findall(text)
    if tagged:
        inner = [claim for content in tagged for claim in _within(content, boxes=boxes, phrases=phrases)]
        return Claims(_kept(inner), is_marked=True)
    if boxes and _BOX.search(text):
        return Claims(_kept([content for _, content in complete_boxes(text)]), is_marked=True)
    said = _phrases(text) if phrases else []
    return Claims(_kept(said or [text]), is_marked=bool(said))


def plain(text: str) -> str:
    r"""The text without markdown and dollar signs around it and without fonts: `**\text{B}**` is `B`."""
    return _FONT.sub(r"\1", text.strip(_MARKS)).strip(_MARKS)


def last_line(text: str) -> str:
    """The last line with something in it."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _within(content: str, *, boxes: bool, phrases: bool) -> list[str]:
    if boxes and _BOX.search(content):
        return [inner for _, inner in complete_boxes(content)]
    return (_phrases(content) if phrases else []) or [content]


def _phrases(text: str) -> list[str]:
    starts = [match.end() for match in _PHRASE.finditer(text)]
    rests = (text[start : start + MAX_PHRASE] for start in starts)
    return [answer for rest in rests if (answer := _PHRASE_END.split(rest)[0].strip(" *"))]


def _kept(texts: list[str]) -> tuple[str, ...]:
    """Each different text once, blank ones left out."""
    return tuple(dict.fromkeys(stripped for text in texts if (stripped := text.strip())))
