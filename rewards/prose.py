"""How a text divides into words, sentences and paragraphs, and whether it is prose at all or a loop."""
# ruff: noqa: RUF001 (full-width punctuation is its subject)

import re
from collections.abc import Sequence

_UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:[-'’.,][^\W_{_UNSPACED}]+)*")
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|Mt|vs|etc|e\.g|i\.e|cf|Fig|fig|Inc|Ltd|Co|approx)|\b[A-Z]|(?m:^)[ \t]*\d+)\Z"
)
_SENTENCE_END = re.compile(
    r"[.!?…]+[\"'”’)\]*_]*(?=\s|\Z)|[。！？]+[”’」』）]*|\n\s*\n|\n(?=\s*(?:[-*+#]|\d+[.)])\s)"
)
LONGEST_WORD = 24


def words(text: str) -> list[str]:
    """The words, in order; hyphens, apostrophes and decimal points join.

    In scripts without spaces (Chinese, Japanese, Thai...) every character is a word.
    """
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """The sentences: what ends with a full stop and its like, a blank line, or before a list item or heading.

    A stop after an abbreviation or an initial, or inside a number, ends none. A sentence has a word.
    """
    found, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        if match.group().startswith(".") and _ABBREVIATION.search(
            text, max(start, match.start() - 8), match.start()
        ):
            continue
        found.append(text[start : match.end()].strip())
        start = match.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if _WORD.search(sentence)]


def paragraphs(text: str) -> list[str]:
    """The paragraphs that blank lines separate."""
    return [part.strip() for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def repeated_share(items: Sequence[object], size: int) -> float:
    """1 - distinct / all of the runs of `size` neighbouring items; 0 when there is none."""
    count = len(items) - size + 1
    if count < 1:
        return 0.0
    return 1 - len({tuple(items[i : i + size]) for i in range(count)}) / count


def pieces(text: str) -> list[str]:
    """Casefolded words, those beyond any real word's length cut up: a loop without spaces repeats, too."""
    found = []
    for word in re.findall(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+", text.casefold()):
        found += [word[i : i + 4] for i in range(0, len(word), 4)] if len(word) > LONGEST_WORD else [word]
    return found


def is_loop(text: str) -> bool:
    """Whether the text is one word over and over, or, from 30 words on, almost only runs of three said before."""
    found = pieces(text)
    return (len(found) > 2 and len(set(found)) == 1) or (len(found) >= 30 and repeated_share(found, 3) > 0.85)
