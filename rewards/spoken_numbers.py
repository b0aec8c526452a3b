"""Numbers in a short answer, in digits of any script or in English words up to 999,999."""

import re
import unicodedata
from fractions import Fraction
from functools import cache

_UNITS = (
    *(
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = ("hundred", "thousand")
_WORDS = frozenset([*_UNITS, *_TENS, *_SCALES])
_MAX_DIGITS = 30
_DIGITS = re.compile(r"[-+\u2212]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
_TOKEN = re.compile(r"[^\W\d_]+|[^\s-]")
_SIGN_AFTER = frozenset(" \t\n([{=:$\u20ac\u00a3")
_NUMBER_AHEAD = rf"(?=[-+.$]?\d|(?:{'|'.join(sorted(_WORDS))})\b)"
_HEDGE = re.compile(
    r"\b(?:or|nor|either|neither|maybe|perhaps|possibly|not|never|at least|at most|up to|half|quarters?|dozens?|couple"
    r"|(?:more|less|fewer|greater|larger|smaller) than)\b|n['\u2019]t\b|[~\u2248\u00b1<>\u2264\u2265]"
    rf"|\b(?:about|around|over|under|nearly|almost|approximately|roughly|only if|point)\s+{_NUMBER_AHEAD}"
)


def numbers(text: str, *, alone: bool = False) -> frozenset[Fraction]:
    """The numbers that the text names; none when one of them cannot be read or is hedged ("about 3", "3 or more").

    With `alone` nothing but the number may stand there. Read are `3`, `-2.5`, `1,000`, `three`, `one hundred and
    five`; not read are `3D`, `1e3`, fractions and powers. `1/2` and `3-5` name two numbers.
    """
    lowered = text.strip().casefold()
    if _HEDGE.search(lowered) or "\\" in lowered or _has_odd_numeral(lowered):
        return frozenset()
    digits = _in_digits(lowered)
    words = _in_words(_DIGITS.sub(" , ", lowered), alone=alone)
    return frozenset() if digits is None or words is None else frozenset([*digits, *words])


def _in_digits(text: str) -> list[Fraction] | None:
    """The numbers in digits; None when one of them is part of a word or too long."""
    found: list[Fraction] = []
    for match in _DIGITS.finditer(text):
        before, after = text[: match.start()][-1:], text[match.end() : match.end() + 1]
        is_signed = not match[0][0].isdecimal() and match[0][0] != "."
        is_glued = not is_signed and (before.isalnum() or before == "_")
        if is_glued or after.isalnum() or after in ("_", "^") or len(match[0]) > _MAX_DIGITS:
            return None
        value = _value(match[0].lstrip("-+\u2212"))
        is_negative = match[0][0] in "-\u2212" and (not before or before in _SIGN_AFTER)
        found.append(-value if is_negative else value)
    return found


def _value(digits: str) -> Fraction:
    western = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in digits.replace(",", ""))
    whole, _, part = western.partition(".")
    return Fraction(int(f"{whole}{part}"), 10 ** len(part))


def _in_words(text: str, *, alone: bool) -> list[Fraction] | None:
    """The numbers in words; None when words of numbers do not form one or, with `alone`, another word is there."""
    tokens = _TOKEN.findall(text)
    found: list[Fraction] = []
    run: list[str] = []
    for token, following in zip([*tokens, ""], [*tokens[1:], "", ""], strict=False):
        is_joint = token == "and" and run and run[-1] in _SCALES and following in _WORDS
        if token in _WORDS:
            run.append(token)
        elif run and not is_joint:
            value = _said(tuple(run))
            if value is None:
                return None
            found.append(Fraction(value))
            run = []
        if alone and token.isalpha() and token not in _WORDS and not is_joint:
            return None
    return found


def _said(words: tuple[str, ...]) -> int | None:
    if "thousand" not in words:
        return _below_thousand().get(words)
    place = words.index("thousand")
    above, rest = _below_thousand().get(words[:place]), words[place + 1 :]
    below = _below_thousand().get(rest) if rest else 0
    return None if not above or below is None or (rest and not below) else above * 1000 + below


@cache
def _below_thousand() -> dict[tuple[str, ...], int]:
    return {_spelled(n): n for n in range(1000)}


def _spelled(n: int) -> tuple[str, ...]:
    if n < 20:
        return (_UNITS[n],)
    if n < 100:
        return (_TENS[n // 10 - 2], *(_spelled(n % 10) if n % 10 else ()))
    return (_UNITS[n // 100], "hundred", *(_spelled(n % 100) if n % 100 else ()))


def _has_odd_numeral(text: str) -> bool:
    """Whether a fraction, a circled or a Roman numeral is there; a superscript after a letter is a unit's."""
    return any(
        unicodedata.category(c) in ("No", "Nl") and not (i and text[i - 1].isalpha())
        for i, c in enumerate(text)
    )
