"""Whether two written answers are the same mathematics: exact numbers first, then structure, then symbols.

Nothing is evaluated as code: numbers become Fractions here, and what is left goes to Math-Verify's LaTeX
grammar behind a size gate and a limit on CPU time.
"""

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any

from rewards.math_notation import MAX_CHARACTERS, Quantity, normalise, quantity

SYMBOLIC_CPU_S = 1.0
MAX_ANSWER_CHARACTERS = 4000
MAX_DIGITS = 40
MAX_DEPTH = 12
MAX_MEMBERS = 64
MAX_POWER = 200


class Verdict(Enum):
    """What a comparison found. TOO_LARGE: an expression beyond the size or time limit."""

    EQUAL = auto()
    DIFFERENT = auto()
    TOO_LARGE = auto()


_CHOICE = re.compile(r"(?:option|choice)?\s*[(\[]?\s*([A-Ja-j])\s*[)\].:]?", re.IGNORECASE)
_ASSIGNMENT = re.compile(r"([A-Za-z](?:\([a-z]\)|_\{?\w+\}?)?)\s*(?:=|\\in(?![a-zA-Z]))\s*([^=<>]+)")
_INEQUALITY = re.compile(
    r"(?:([^<>]+?)(<|\\le(?![a-z])))?\s*([a-zA-Z])\s*(?:(<|>|\\le(?![a-z])|\\ge(?![a-z]))([^<>]+))?"
)
_MATRIX = re.compile(r"\\begin\{([pbvB]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_BASE = re.compile(r"[0-9A-F.]+_\{?\d+\}?")
_UNDEFINED = re.compile(r"/\s*0+(?![\d.])|\\frac\s*\{[^{}]*\}\s*\{\s*0+\s*\}|\bnan\b", re.IGNORECASE)
_CONJUNCTION = re.compile(r",? (?:and|or) ")
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s'-]+[^\W\d_]+)*")


def compare(gold: str, answer: str) -> Verdict:
    """Whether `answer` is `gold`, as the module says."""
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return Verdict.TOO_LARGE
    return _compare(normalise(gold), normalise(answer), depth=0)


def is_list(gold: str) -> bool:
    """Whether the gold answer is several values (a set, a bare list, a plus-minus)."""
    return len(_members(normalise(gold)) or ()) > 1


def _compare(gold: str, answer: str, *, depth: int) -> Verdict:
    if not answer or not gold or _UNDEFINED.search(gold) or _UNDEFINED.search(answer):
        return Verdict.DIFFERENT
    left = quantity(gold)
    right = quantity(answer)
    if left is not None and right is not None:
        return _verdict(_same_quantity(left, right))
    if gold.casefold() == answer.casefold():
        return Verdict.EQUAL
    if _BASE.fullmatch(gold) or _BASE.fullmatch(answer):
        return _verdict(re.sub("[{}]", "", gold) == re.sub("[{}]", "", answer))
    choice = _CHOICE.fullmatch(gold)
    if choice:
        chosen = _CHOICE.fullmatch(answer)
        return _verdict(chosen is not None and chosen[1].upper() == choice[1].upper())
    if depth > MAX_DEPTH or len(answer) > MAX_CHARACTERS:
        return Verdict.TOO_LARGE
    structural = _structural(gold, answer, depth)
    if structural is not None:
        return structural
    if _WORDS.fullmatch(gold) or _WORDS.fullmatch(answer):
        return Verdict.DIFFERENT
    return _symbolic(gold, answer)


def _verdict(is_equal: bool) -> Verdict:
    return Verdict.EQUAL if is_equal else Verdict.DIFFERENT


def _same_quantity(gold: Quantity, answer: Quantity) -> bool:
    if gold.unit and answer.unit and gold.unit.isdisjoint(answer.unit):
        return False
    if gold.value == answer.value:
        return True
    if gold.is_percent and not answer.is_percent:
        return gold.value / 100 == answer.value
    # Of what is more than a whole, 50 is 50% and 1000% is a slip: only up to 1 is the gold a share.
    if answer.is_percent and not gold.is_percent and abs(gold.value) <= 1:
        return answer.value / 100 == gold.value
    return False


def _structural(gold: str, answer: str, depth: int) -> Verdict | None:
    """The verdict of comparing shapes and their members; None when neither side has a known shape."""
    gold, answer = _interval_of(gold), _interval_of(answer)
    left, right = _ASSIGNMENT.fullmatch(gold), _ASSIGNMENT.fullmatch(answer)
    if left or right:
        if left and right and left[1] != right[1]:
            return Verdict.DIFFERENT
        gold_side, answer_side = (left[2] if left else gold), (right[2] if right else answer)
        if "=" not in gold_side + answer_side:
            return _compare(gold_side.strip(), answer_side.strip(), depth=depth + 1)
    gold_matrix, answer_matrix = _MATRIX.fullmatch(gold), _MATRIX.fullmatch(answer)
    if gold_matrix and answer_matrix:
        return _same_rows(_rows(gold_matrix[2]), _rows(answer_matrix[2]), depth)
    gold_members = _members(gold)
    if gold_members is not None and len(gold_members) > 1:
        return _same_set(gold_members, _members(answer) or _split(answer, ","), depth)
    gold_tuple, answer_tuple = _bracketed(gold), _bracketed(answer)
    if gold_tuple and answer_tuple:
        if gold_tuple[0] != answer_tuple[0]:
            return Verdict.DIFFERENT
        return _same_rows([gold_tuple[1]], [answer_tuple[1]], depth)
    return (
        Verdict.DIFFERENT
        if gold_tuple or answer_tuple or gold_matrix or answer_matrix or _members(answer)
        else None
    )


def _interval_of(text: str) -> str:
    r"""`2<x<=3` as `(2,3]`, `x>5` as `(5,\\infty)`; other text as it is."""
    match = _INEQUALITY.fullmatch(text)
    if match is None or not (match[2] or match[4]) or (match[2] and match[4] and match[4] in (">", r"\ge")):
        return text
    low, low_sign, _, sign, bound = match.groups()
    if low is None and sign in (">", r"\ge"):
        return f"{'(' if sign == '>' else '['}{bound.strip()},\\infty)"
    opening = "(" if low_sign in (None, "<") else "["
    closing = ")" if sign in (None, "<") else "]"
    return (
        f"{opening}{(low or '-' + chr(92) + 'infty').strip()},{(bound or chr(92) + 'infty').strip()}{closing}"
    )


def _rows(body: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in row.split("&")] for row in body.strip().removesuffix("\\\\").split("\\\\")
    ]


def _same_rows(gold: list[list[str]], answer: list[list[str]], depth: int) -> Verdict:
    if [len(row) for row in gold] != [len(row) for row in answer]:
        return Verdict.DIFFERENT
    pairs = [
        (g, a) for left, right in zip(gold, answer, strict=True) for g, a in zip(left, right, strict=True)
    ]
    return _worst(_compare(g, a, depth=depth + 1) for g, a in pairs)


def _same_set(gold: list[str], answer: list[str], depth: int) -> Verdict:
    if len(gold) != len(answer) or len(gold) > MAX_MEMBERS:
        return Verdict.DIFFERENT
    left = list(answer)
    for member in gold:
        match = next((a for a in left if _compare(member, a, depth=depth + 1) is Verdict.EQUAL), None)
        if match is None:
            return Verdict.DIFFERENT
        left.remove(match)
    return Verdict.EQUAL


def _worst(verdicts: Iterator[Verdict]) -> Verdict:
    return next((verdict for verdict in verdicts if verdict is not Verdict.EQUAL), Verdict.EQUAL)


def _members(text: str) -> list[str] | None:
    """Members of a set, a union, a plus-minus or a bare list; None when the text is none of these."""
    if text.startswith("\\{") and text.endswith("\\}"):
        return [part for member in _split(text[2:-2], ",") for part in _signs(member)]
    if len(parts := _split(text, r"\cup")) > 1:
        return parts
    if quantity(text) is None and len(parts := _split(_CONJUNCTION.sub(",", text), ",")) > 1:
        return [part for member in parts for part in _signs(member)]
    signs = _signs(text)
    return signs if len(signs) > 1 else None


def _signs(text: str) -> list[str]:
    before, sign, after = text.partition(r"\pm")
    return [f"{before.strip()}+{after.strip()}", f"{before.strip()}-{after.strip()}"] if sign else [text]


def _bracketed(text: str) -> tuple[str, list[str]] | None:
    """Brackets and members of a tuple or interval of at least two."""
    if len(text) < 2 or text[0] not in "([" or text[-1] not in ")]":
        return None
    parts = _split(text[1:-1], ",")
    return (text[0] + text[-1], parts) if len(parts) > 1 else None


def _split(text: str, separator: str) -> list[str]:
    """Split at separators outside every bracket."""
    parts, depth, start, position = [], 0, 0, 0
    while position < len(text):
        depth += (text[position] in "([{") - (text[position] in ")]}")
        if depth == 0 and text.startswith(separator, position):
            parts.append(text[start:position].strip())
            start = position + len(separator)
        position += 1
    return [*parts, text[start:].strip()]


def _is_small(text: str) -> bool:
    """Whether sympy can be trusted with it: no long numbers, towers, large powers, factorials or nesting."""
    numbers = [len(digits) for digits in re.findall(r"\d+", text)]
    powers = [int(digits) for digits in re.findall(r"[\^!]\s*\{?\s*-?(\d{1,9})", text)]
    factorials = [int(digits[:9]) for digits in re.findall(r"(\d+)\s*\)?\s*!", text)]
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    is_tower = (re.search(r"\^\s*\{?[^{}]*\^", text) is not None and text.count("^") > 4) or "!!" in text
    return (
        len(text) <= MAX_CHARACTERS
        and max(numbers, default=0) <= MAX_DIGITS
        and max([*powers, *factorials], default=0) <= MAX_POWER
        and deepest <= MAX_DEPTH
        and not is_tower
    )


class _OutOfTimeError(BaseException):
    """Raised by the CPU timer; a BaseException, so that no library takes it for a failed parse."""


@contextmanager
def _cpu_limit(seconds: float) -> Iterator[None]:
    # Off the main thread no signal arrives; the worker's own deadline still holds.
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: Any) -> None:
        raise _OutOfTimeError

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def warm_up() -> None:
    """Import and initialise the symbolic back end."""
    _symbolic("x+1", "1+x")


def _symbolic(gold: str, answer: str) -> Verdict:
    if not (_is_small(gold) and _is_small(answer)):
        return Verdict.TOO_LARGE
    # Half a second to import, so only where symbols must be compared.
    from rewards.math_symbols import equal_expressions

    try:
        with _cpu_limit(SYMBOLIC_CPU_S):
            return _verdict(equal_expressions(gold, answer))
    except _OutOfTimeError:
        return Verdict.TOO_LARGE
