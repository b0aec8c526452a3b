"""The program in a completion."""

import re
from dataclasses import dataclass

from rewards.response_format import visible

LABELS = {
    "python": frozenset({"python", "python3", "py", "py3"}),
    "c": frozenset({"c"}),
    "cpp": frozenset({"cpp", "c++", "cxx", "cc"}),
    "javascript": frozenset({"javascript", "js", "node", "nodejs"}),
}
_FENCE = re.compile(r"([ \t]{0,12})(?:<answer>[ \t]*)?(`{3,}|~{3,})[ \t]*([^\s`{}]*)[^`\n]*")
_CLOSING = re.compile(r"[ \t]{0,12}(`{3,}|~{3,})[ \t]*(?:</answer>)?[ \t]*")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its label in lower case ("" without one) and its text."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The program to be graded."""

    language: str
    source: str


def extract(
    completion: str,
    languages: tuple[str, ...],
    *,
    whole_text: bool = False,
    prompt_opens_think: bool = False,
) -> Answer | None:
    """The completion's program in one of `languages`; None when it gives none.

    Only what follows the last `</think>` counts, and nothing while a think block is open. The last block with
    the label of one of the languages; else the last without a label, taken to be in the first language; a block
    that is still open ends with the text. `whole_text` takes a text without any block as the program.
    """
    text = visible(completion, prompt_opens_think=prompt_opens_think)
    if text is None:
        return None
    found = blocks(text)
    for block in reversed(found):
        named = [name for name in languages if block.label in LABELS[name]]
        if named:
            return _answer(named[0], block.text)
    bare = [block for block in found if not block.label]
    if bare:
        return _answer(languages[0], bare[-1].text)
    return _answer(languages[0], text) if whole_text and not found else None


def _answer(language: str, source: str) -> Answer | None:
    return Answer(language, source) if source.strip() else None


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a Markdown text in order; the last may lack its closing fence."""
    found: list[Block] = []
    opened: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        if opened is None:
            opened = _FENCE.fullmatch(line.rstrip())
            lines = []
        elif _closes(opened, line):
            found.append(Block(opened[3].lower(), "".join(lines)))
            opened = None
        else:
            lines.append(_without_indent(line, len(opened[1])))
    if opened is not None:
        found.append(Block(opened[3].lower(), "".join(lines)))
    return found


def _closes(opened: re.Match[str], line: str) -> bool:
    match = _CLOSING.fullmatch(line.rstrip())
    return match is not None and match[1].startswith(opened[2])


def _without_indent(line: str, indent: int) -> str:
    """The line without the white space that its fence had before it, as in a list of Markdown."""
    blank = len(line) - len(line.lstrip(" \t"))
    return line[min(indent, blank) :]
