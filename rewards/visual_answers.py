r"""Rewards for short answers to questions about pictures: one of several choices, a count, a number.

The answer is what all claims of a completion agree on (`rewards.claims`); two different ones are unparsable, and so
is a text that marks no answer unless it is nothing but the answer (`lenient` reads its last line then). The policy
with its cases: docs/visual_answers.md.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from string import ascii_uppercase

from rewards.claims import Claims, claims, last_line, plain
from rewards.spoken_numbers import numbers
from rlhf.errors import DataError
from rlhf.types import RewardResult

LETTERS = "ABCDEFGHIJ"
"""Choices where a row lists no options."""
MAX_CLAIM = 2000
_ENDS = re.compile(r"[\s.,;:!?\"'()\[\]{}*$`]+")
_HEAD = re.compile(
    r"(?:(?i:option|choice|letter)\s+)?"
    r"(?:[(\[{]\s*(?P<inside>[A-Za-z])\s*[)\]}]|(?P<bare>[A-Za-z])(?=\s*(?:$|[.,;:)\]}(\n]|[-\u2013\u2014]\s)))"
    r"[\s.,;:)\]}\u2013\u2014-]*"
)
_LETTER = re.compile(r"(?<![^\W_])(?<!['\u2019])[A-Z](?![^\W_])(?!['\u2019])")
_DENIAL = re.compile(
    r"\b(?:not|never|neither|nor|except|wrong|incorrect|false)\b|n['\u2019]t\b", re.IGNORECASE
)
_NEXT_WORD = re.compile(r"\s+([a-z]+)")
_NO_NOUNS = frozenset(
    {
        *(
            "or",
            "and",
            "nor",
            "is",
            "are",
            "was",
            "were",
            "as",
            "but",
            "also",
            "too",
            "not",
            "if",
            "then",
            "than",
        ),
        *("could", "may", "might", "can", "seems", "looks", "because"),
    }
)


def choice(
    completion: str,
    reference: str | None,
    options: Sequence[str] | Mapping[str, str] | None = None,
    *,
    lenient: bool = False,
    prompt_opens_think: bool = False,
) -> RewardResult:
    """1 when the completion chooses the reference's letter, else 0.

    `options` (a column) are the texts of A, B, ... in order, or by letter; with them the text of an option is an
    answer, too, and there are no other letters. DataError when the reference is not exactly one of the choices.
    """
    choices = _Choices.of(options)
    gold = choices.claimed(reference or "")
    if len(gold) != 1:
        raise DataError(
            f"reference is {reference!r:.80}, expected one letter of {choices.letters} or the text of one option; "
            "a row's options stand in the column `options`."
        )
    said = claims(completion, prompt_opens_think=prompt_opens_think)
    found = {letter for text in _readable(said, lenient) for letter in choices.claimed(text)}
    if lenient and not said.is_marked and not found:
        texts = [text for text in _readable(said, lenient) if not _DENIAL.search(text)]
        found = {letter for text in texts for letter in choices.mentioned(text)}
    if len(found) != 1:
        return _unparsable(found)
    return _result(next(iter(found)), float(found == gold))


def count(
    completion: str,
    reference: str | None,
    *,
    graded: bool = False,
    lenient: bool = False,
    prompt_opens_think: bool = False,
) -> RewardResult:
    """1 when the completion names the reference's whole number, else 0; options are those of `number`."""
    gold = _gold_number(reference)
    if gold < 0 or gold.denominator != 1:
        raise DataError(f"reference is {reference!r:.80}, expected a whole number of at least 0.")
    return number(
        completion, reference, graded=graded, lenient=lenient, prompt_opens_think=prompt_opens_think
    )


def number(
    completion: str,
    reference: str | None,
    *,
    graded: bool = False,
    lenient: bool = False,
    prompt_opens_think: bool = False,
) -> RewardResult:
    """1 when the completion names the reference's number, else 0; words beside it (units) do not count.

    `graded` pays max(0, 1 - |difference| / the larger magnitude) for another number. DataError when the reference
    does not name exactly one number.
    """
    gold = _gold_number(reference)
    said = claims(completion, prompt_opens_think=prompt_opens_think)
    alone = not (said.is_marked or lenient)
    found = {value for text in _readable(said, lenient) for value in numbers(plain(text), alone=alone)}
    if len(found) != 1:
        return _unparsable(found)
    answer = next(iter(found))
    value = float(answer == gold)
    if graded and value < 1:
        closeness = 1 - abs(answer - gold) / max(abs(answer), abs(gold))
        # Just below 1 at most: close is not equal, whatever a float rounds to.
        value = min(max(float(closeness), 0.0), 1 - 2**-20)
    return _result(_written(answer), value)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choices:
    letters: str
    texts: Mapping[str, str] = field(default_factory=dict)
    """Letter -> its option's text, normalised."""

    @classmethod
    def of(cls, options: Sequence[str] | Mapping[str, str] | None) -> "_Choices":
        if options is None:
            return cls(letters=LETTERS)
        listed = (
            options if isinstance(options, Mapping) else dict(zip(ascii_uppercase, options, strict=False))
        )
        is_whole = len(listed) == len(options) >= 2 and not isinstance(options, str)
        if not is_whole or any(
            len(letter) != 1 or letter not in ascii_uppercase or not isinstance(text, str)
            for letter, text in listed.items()
        ):
            raise DataError(
                f"options is {options!r:.80}, expected 2 to 26 texts, or a mapping of capital letters to texts."
            )
        texts = {letter: _normalised(text) for letter, text in listed.items()}
        return cls(letters="".join(listed), texts=texts)

    def claimed(self, text: str) -> set[str]:
        """The letters that a claim names: one for an answer, several for a hedge, none for anything else."""
        text = plain(unicodedata.normalize("NFKC", text[: MAX_CLAIM + 1]))
        said = _normalised(text)
        if not said or len(text) > MAX_CLAIM:
            return set()
        head = _HEAD.match(text)
        if head is None:
            mentioned = self.mentioned(text)
            return self._named(said) or (mentioned if len(mentioned) > 1 else set())
        letter, rest = (head["inside"] or head["bare"]).upper(), text[head.end() :]
        if letter not in self.letters:
            return self._named(said)
        if not _normalised(rest) or _normalised(rest) == self.texts.get(letter):
            return {letter}
        return {letter} | (self._named(_normalised(rest)) or self.mentioned(rest))

    def mentioned(self, text: str) -> set[str]:
        """The choices' capital letters that stand alone in the text; A and I before a noun are words."""
        found = set()
        for match in _LETTER.finditer(text):
            following = _NEXT_WORD.match(text, match.end())
            is_word = match[0] in "AI" and following is not None and following[1] not in _NO_NOUNS
            if match[0] in self.letters and not is_word:
                found.add(match[0])
        return found

    def _named(self, said: str) -> set[str]:
        """The letter of the one option whose text this is; none where two options read alike."""
        found = {letter for letter, text in self.texts.items() if text and text == said}
        return found if len(found) == 1 else set()


def _readable(said: Claims, lenient: bool) -> tuple[str, ...]:
    """The texts to read an answer from; of an unmarked one only its last line when `lenient`."""
    texts = said.texts if said.is_marked or not lenient else tuple(map(last_line, said.texts))
    return tuple(text for text in texts if len(text) <= MAX_CLAIM)


def _normalised(text: str) -> str:
    """NFKC, one case, single spaces, no punctuation at the ends."""
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    start = _ENDS.match(words)
    words = words[start.end() :] if start else words
    while words and _ENDS.fullmatch(words[-1]):
        words = words[:-1]
    return words


def _gold_number(reference: str | None) -> Fraction:
    found = numbers(plain(reference or ""))
    if len(found) != 1:
        raise DataError(
            f"reference is {reference!r:.80}, expected one number such as 3, -2.5, 1,000 or three; for fractions and "
            "formulas use rewards.math_answer:grade."
        )
    return next(iter(found))


def _written(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):g}"


def _unparsable(found: set[str] | set[Fraction]) -> RewardResult:
    said = ", ".join(sorted(map(str, found)))[:200]
    return RewardResult(value=0.0, outcome="unparsable", detail={"claims": said} if said else {})


def _result(answer: str, value: float) -> RewardResult:
    return RewardResult(value=value, outcome="ok" if value == 1 else "wrong", detail={"answer": answer})
