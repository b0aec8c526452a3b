"""How mathematics is written: one spelling for every typography, and the exact value of a written number."""
# ruff: noqa: RUF001 (the look-alike characters of the tables are their subject)

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd

from rewards.math_units import Unit, unit_of

MAX_CHARACTERS = 300
"""Longest expression that is read as more than text."""
_BEFORE_FOLDING = str.maketrans(
    {
        "½": r" \frac{1}{2}", "⅓": r" \frac{1}{3}", "⅔": r" \frac{2}{3}", "¼": r" \frac{1}{4}", "¾": r" \frac{3}{4}",
        "⅕": r" \frac{1}{5}", "⅙": r" \frac{1}{6}", "⅛": r" \frac{1}{8}", "⅜": r" \frac{3}{8}", "⅝": r" \frac{5}{8}",
        "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℚ": r"\mathbb{Q}", "ℕ": r"\mathbb{N}", "ℂ": r"\mathbb{C}",
        "≠": r"\ne ", "≮": "?", "≯": "?",
    }
)  # fmt: skip
_AFTER_FOLDING = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "÷": "/", "⁄": "/", "∕": "/", "，": ",", "“": "", "”": "", '"': "",
        "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∗": "*", "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ",
        "β": r"\beta ", "λ": r"\lambda ", "∞": r"\infty ", "°": r"^\circ ", "≤": r"\le ", "≥": r"\ge ",
        "⩽": r"\le ", "⩾": r"\ge ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∖": r"\setminus ", "∅": r"\emptyset ",
        "±": r"\pm ", "≈": r"\approx ", "⟨": r"\langle ", "⟩": r"\rangle ",
    }
)  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")


def _repeating(match: re.Match[str]) -> str:
    whole, start, cycle = match.groups()
    top = int(whole + start + cycle) - int(whole + start or "0")
    return rf"\frac{{{top}}}{{{(10 ** len(cycle) - 1) * 10 ** len(start)}}}"


_FONTS = (
    r"\\(?:text|mbox|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|operatorname)\s*\{([^{}]*)\}"
)
_RULES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    # A row's end is \\cr until the last rule, so that no rule takes its second backslash for a command's.
    (r"\\\\(?:\[\s*-?[\d.]+\s*[a-z]{2}\s*\])?", r"\\cr "),
    (r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]", ""),
    (r"\s+", " "),
    (r"\\(?:left|right|displaystyle|bigl?|bigr?|Bigl?|Bigr?|bf|rm|limits)(?![a-zA-Z])", ""),
    (r"\\(?:boxed|fbox)\s*(?=\{)", ""),
    (r"(?<!\\)\$([^$]*)(?<!\\)\$", r" \1 "),
    (r"\\[()\[\]]|(?<!\\)\$(?!\s*-?\d)", ""),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"),
    (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"\\langle(?![a-zA-Z])", "("),
    (r"\\rangle(?![a-zA-Z])", ")"),
    (_FONTS, r" \1 "),
    (_FONTS, r" \1 "),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\(?:leq|leqslant)(?![a-zA-Z])|<=", r"\\le "),
    (r"\\(?:geq|geqslant)(?![a-zA-Z])|>=", r"\\ge "),
    (r"\\lt(?![a-zA-Z])|&lt;", "<"),
    (r"\\gt(?![a-zA-Z])|&gt;", ">"),
    (r"\\neq(?![a-zA-Z])|!=", r"\\ne "),
    (r"\\varnothing(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset"),
    (r"\\(?:tiny|small|large|Large|huge|checkmark|blacksquare|square|color\s*\{\w+\})(?![a-zA-Z])", " "),
    (r"\\(?:textcolor\s*\{\w+\}|underline|ensuremath)\s*(?=\{)", ""),
    (r"\\(?:hspace|[hv]?phantom)\s*\{[^{}]*\}", " "),
    (r"\{?\s*(\w{1,20})\s*\\choose\s*(\w{1,20})\s*\}?", r"\\binom{\1}{\2}"),
    (r"\\!", ""),
    (r"\\[,;: ]|~|\\quad|\\qquad", " "),
    (r"\{,\}", ","),
    (
        r"(?<![\\a-zA-Z])(pi|infty|alpha|beta|theta|arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|log|ln|exp)(?![a-zA-Z])",
        r"\\\1 ",
    ),
    (
        r"(\\(?:sin|cos|tan|cot|sec|csc)\s*[({]*\s*)(\d+(?:\.\d+)?)\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|degrees)",
        r"\1\\frac{\2\\pi}{180}",
    ),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])", " degrees "),
    (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    (r"([1-9]\d{0,2}(?:,\d{3})+)(?=\s*(?:\\pi|\\sqrt|[a-z]\b))", lambda m: m[1].replace(",", "")),
    (r"\*\*", "^"),
    (r"(?<=\d)\s+[xX]\s+(?=\d)", r" \\times "),
    (r"(?<![\\a-zA-Z])[Ii]nfinity(?![a-zA-Z])", r"\\infty "),
    (r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"∛\s*(\d+|[a-z])", r"\\sqrt[3]{\1}"),
    (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"√\s*(\d+|[a-z]|\\pi)", r"\\sqrt{\1}"),
    (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
    (r"(?<!\d)(\d{0,12})\.(\d{0,12})\\(?:overline|bar|dot)\s*\{(\d{1,12})\}", _repeating),
    (r"(?<![a-zA-Z])([ap])\.\s?m\.?(?![a-zA-Z])", r"\1m"),
    (r"\bper\s?cent\b|\bpct\b", "percent"),
    (r"\\cr(?![a-zA-Z])", r"\\\\"),
    (r"\s+", " "),
]
_REWRITES = [(re.compile(pattern), replacement) for pattern, replacement in _RULES]
_INTEGER = r"[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d?(?:,\d{2})+,\d{3}|[1-9]\d{0,2}(?: \d{3})+(?!\d)|\d+"
_DECIMAL = rf"(?:{_INTEGER})(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?P<money>\\?\$)?\s*(?P<sign2>-?)(?:"
    rf"(?P<whole>{_INTEGER})?\s*\\frac\s*\{{\s*(?P<fn>-?\d+)\s*\}}\s*\{{\s*(?P<fd>-?\d+)\s*\}}"
    rf"|(?:(?P<whole2>\d+)\s+)?(?P<n>\d+)\s*/\s*(?P<d>\d+)"
    rf"|(?P<decimal>{_DECIMAL})(?:(?:e|\s*(?:\\times|\\cdot|\*)\s*10\s*\^)\s*\{{?(?P<exponent>[-+]?\d{{1,3}})\}}?)?"
    rf")(?P<rest>.*)",
    re.DOTALL | re.IGNORECASE,
)
_POWER = r"(?:\s*\^\s*\{?[23]\}?)?"
_UNIT = re.compile(
    rf"\s*(?:\\?%|percent)?\s*(?:(?:[a-z]+\.?|\\?\$){_POWER}(?:(?:\s*/\s*|[ .-]+)[a-z]+{_POWER})*\.?)?",
    re.IGNORECASE,
)
_SHORT_UNITS = frozenset(
    re.findall(
        "[a-z]+", "m g s h l cm mm km kg mg ml lb lbs oz ft in yd mi min hr hrs mph kph am pm sq cu gm"
    )
)
_NO_UNITS = re.compile(
    "pi|sqrt|root|sin|cos|tan|log|ln|exp|i|e|infty|infinity|or|and|not|times|plus|minus|negative|below|above|over|mod"
    "|modulo|divided|multiplied|choose|power|factorial|point|but|maybe|perhaps|possibly|either|to|wrong|incorrect"
    "|hal(?:f|ves)|thirds?|quarters?|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|hundred|thousand|million)ths?"
    "|(?:dozen|hundred)s?|score|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty"
)
"""Words after a number that make it another number, or none."""
_MULTIPLIERS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}


@dataclass(frozen=True, slots=True)
class Quantity:
    """An exact number, whether a percent sign followed, its unit, and whether it is written in lowest terms."""

    value: Fraction
    is_percent: bool
    unit: Unit
    is_reduced: bool


def number(text: str) -> Fraction | None:
    """The exact value of a written number (integer, decimal, fraction, mixed, thousands commas), or None."""
    found = quantity(normalise(text))
    return None if found is None else found.value


def normalise(text: str) -> str:
    """One spelling for what is typography: fonts, spacing, unicode, LaTeX variants, the final dot."""
    text = (text if text.isascii() else _in_ascii(text)).strip(' \t\r\n*`"')
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = text.rstrip(" .,;\\").strip().removeprefix("=").strip()
    while text.startswith("{") and closes_at_end(text):
        text = text[1:-1].strip()
    return text


def _in_ascii(text: str) -> str:
    text = re.sub("[⁰¹²³⁴-⁹⁺⁻]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub("[₀-₉]+", lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    text = unicodedata.normalize("NFKC", text.translate(_BEFORE_FOLDING)).translate(_AFTER_FOLDING)
    return re.sub(r"\d", lambda m: str(int(m[0])), text)


def closes_at_end(text: str) -> bool:
    """Whether the bracket that opens the text is the one that its last character closes."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return place == len(text) - 1
    return False


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
    nouns = re.sub(rf"\b(?:percent|{'|'.join(_MULTIPLIERS)})s?\b", "", match["rest"].lower())
    return Quantity(
        value=value,
        is_percent="%" in match["rest"] or "percent" in words,
        unit=unit_of(("$ " if match["money"] else "") + nouns),
        is_reduced=_is_reduced(match),
    )


def _value(match: re.Match[str]) -> Fraction | None:
    sign = -1 if (match["sign"] == "-") != (match["sign2"] == "-") else 1
    if match["decimal"] is not None:
        value = Fraction(re.sub("[, ]", "", match["decimal"]).rstrip(".") or "0")
        return sign * value * Fraction(10) ** int(match["exponent"] or 0)
    numerator, denominator = _fraction(match)
    whole = re.sub("[, ]", "", match["whole"] or match["whole2"] or "0")
    if denominator == 0:
        return None
    return sign * (int(whole) + Fraction(numerator, denominator))


def _fraction(match: re.Match[str]) -> tuple[int, int]:
    return int(match["fn"] or match["n"]), int(match["fd"] or match["d"])


def _is_reduced(match: re.Match[str]) -> bool:
    if match["decimal"] is not None:
        return True
    numerator, denominator = _fraction(match)
    return denominator > 1 and gcd(numerator, denominator) == 1


def _are_units(words: Sequence[str], rest: str) -> bool:
    if not words:
        return True
    is_apart = rest[:1].isspace() or rest.lstrip("\\")[:1] in ("%", "$")
    if any(_NO_UNITS.fullmatch(word) for word in words) or words[0] in ("squared", "cubed"):
        return False
    if not is_apart:
        return words[0] in _SHORT_UNITS and len(words[0]) > 1
    return all(len(word) > 2 or word in _SHORT_UNITS or i for i, word in enumerate(words))
