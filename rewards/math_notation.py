"""How mathematics is written: one spelling for every typography, and the exact value of a written number."""
# ruff: noqa: RUF001 (the look-alike characters of the table are its subject)

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS = 300
"""Longest expression that is read as more than text."""
_CHARACTERS = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "÷": "/", "⁄": "/", "∕": "/", "％": "%", "，": ",",
        "（": "(", "）": ")",
        "×": r"\times ", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt ", "°": r"^\circ ",
        "≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ", "∈": r"\in ", "±": r"\pm ", "²": "^2", "³": "^3",
        "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
    }
)  # fmt: skip


def _repeating(match: re.Match[str]) -> str:
    whole, start, cycle = match.groups()
    top = int(whole + start + cycle) - int(whole + start or "0")
    return rf"\frac{{{top}}}{{{(10 ** len(cycle) - 1) * 10 ** len(start)}}}"


_RULES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    # A row's end is \\cr until the last rule, so that no rule takes its second backslash for a command's.
    (r"\\\\(?:\[\s*-?[\d.]+\s*[a-z]{2}\s*\])?", r"\\cr "),
    (r"\s+", " "),
    (r"\\(?:left|right|displaystyle|bigl?|bigr?|Bigl?|Bigr?)(?![a-zA-Z])", ""),
    (r"\\[()\[\]]|(?<!\\)\$(?!\s*\d)", ""),
    (r"\\(?:text|mbox|textbf|textit|mathrm|mathbf|textrm|operatorname)\s*\{([^{}]*)\}", r" \1 "),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\(?:leq|leqslant)(?![a-zA-Z])", r"\\le"),
    (r"\\(?:geq|geqslant)(?![a-zA-Z])", r"\\ge"),
    (r"\\!", ""),
    (r"\\[,;: ]|~|\\quad|\\qquad", " "),
    (r"\{,\}", ","),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])", " degrees "),
    (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    (r"\*\*", "^"),
    (r"(?<![\\a-zA-Z])[Ii]nfinity(?![a-zA-Z])", r"\\infty "),
    (r"(?<![\\a-zA-Z])(pi|infty)(?![a-zA-Z])", r"\\\1 "),
    (r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
    (r"(?<!\d)(\d{0,12})\.(\d{0,12})\\(?:overline|bar|dot)\s*\{(\d{1,12})\}", _repeating),
    (r"\\cr(?![a-zA-Z])", r"\\\\"),
    (r"\s+", " "),
]
_REWRITES = [(re.compile(pattern), replacement) for pattern, replacement in _RULES]
_INTEGER = r"\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+(?!\d)|\d+"
_DECIMAL = rf"(?:{_INTEGER})(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?P<money>\\?\$)?\s*(?P<sign2>-?)(?:"
    rf"(?P<whole>{_INTEGER})?\s*\\frac\s*\{{\s*(?P<fn>-?\d+)\s*\}}\s*\{{\s*(?P<fd>-?\d+)\s*\}}"
    rf"|(?:(?P<whole2>\d+)\s+)?(?P<n>\d+)\s*/\s*(?P<d>\d+)"
    rf"|(?P<decimal>{_DECIMAL})(?:(?:e|\s*(?:\\times|\\cdot|\*)\s*10\s*\^)\s*\{{?(?P<exponent>[-+]?\d{{1,3}})\}}?)?"
    rf")(?P<rest>.*)",
    re.DOTALL | re.IGNORECASE,
)
_UNIT = re.compile(
    r"\s*(?:\\?%|percent)?\s*(?:[a-z]+(?:\s*\^\s*\{?[23]\}?)?(?:\s*/\s*[a-z]+|[ .-]+[a-z]+)*\.?)?",
    re.IGNORECASE,
)
_SHORT_UNITS = frozenset(
    [
        "m",
        "g",
        "s",
        "h",
        "l",
        "cm",
        "mm",
        "km",
        "kg",
        "mg",
        "ml",
        "lb",
        "lbs",
        "oz",
        "ft",
        "in",
        "yd",
        "min",
        "hr",
        "hrs",
        "mph",
        "kph",
        "am",
        "pm",
    ]
)
_NO_UNITS = re.compile(
    "pi|sqrt|root|sin|cos|tan|log|ln|exp|i|e|infty|infinity|or|and|not|times|plus|minus|negative|below|over|mod"
    "|modulo|divided|multiplied|choose|power|squared|cubed|factorial|point|hal(?:f|ves)|thirds?|quarters?"
    "|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|hundred|thousand|million)ths?|(?:dozen|hundred)s?|score"
)
"""Words after a number that make it another number."""
_MULTIPLIERS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ALIASES = {"degree": "degrees", "dollars": "$", "dollar": "$", "usd": "$", "bucks": "$"}


@dataclass(frozen=True, slots=True)
class Quantity:
    """An exact number, whether it was followed by a percent sign, and its unit's words ("$" for money)."""

    value: Fraction
    is_percent: bool
    unit: frozenset[str]


def number(text: str) -> Fraction | None:
    """The exact value of a written number (integer, decimal, fraction, mixed, thousands commas), or None."""
    found = quantity(normalise(text))
    return None if found is None else found.value


def normalise(text: str) -> str:
    """One spelling for what is typography: fonts, spacing, unicode signs, LaTeX variants, the final dot."""
    text = text.translate(_CHARACTERS).strip().strip("*`").strip()
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text.strip().rstrip(".").strip()


def quantity(text: str) -> Quantity | None:
    """The number with its unit that normalised text is, or None when it is more or something else."""
    match = _NUMBER.fullmatch(text) if len(text) <= MAX_CHARACTERS else None
    if match is None or not _UNIT.fullmatch(match["rest"]):
        return None
    value = _value(match)
    words = re.findall(r"[a-z]+", match["rest"].lower())
    if value is None or not _are_units(words, match["rest"]):
        return None
    for word in words:
        value *= _MULTIPLIERS.get(word.removesuffix("s"), 1)
    unit = {
        _ALIASES.get(word, word)
        for word in words
        if word.removesuffix("s") not in _MULTIPLIERS and word != "percent"
    }
    if match["money"]:
        unit.add("$")
    is_percent = "%" in match["rest"] or "percent" in words
    return Quantity(value, is_percent, frozenset(word.rstrip("s") for word in unit))


def _value(match: re.Match[str]) -> Fraction | None:
    sign = -1 if (match["sign"] == "-") != (match["sign2"] == "-") else 1
    if match["decimal"] is not None:
        value = Fraction(re.sub("[, ]", "", match["decimal"]).rstrip(".") or "0")
        return sign * value * Fraction(10) ** int(match["exponent"] or 0)
    numerator, denominator = match["fn"] or match["n"], match["fd"] or match["d"]
    whole = re.sub("[, ]", "", match["whole"] or match["whole2"] or "0")
    if int(denominator) == 0:
        return None
    return sign * (int(whole) + Fraction(int(numerator), int(denominator)))


def _are_units(words: Sequence[str], rest: str) -> bool:
    if not words:
        return True
    is_apart = rest[:1].isspace() or rest.lstrip("\\")[:1] == "%"
    if any(_NO_UNITS.fullmatch(word) for word in words):
        return False
    if not is_apart:
        return words[0] in _SHORT_UNITS and len(words[0]) > 1
    return all(len(word) > 2 or word in _SHORT_UNITS or i for i, word in enumerate(words))
