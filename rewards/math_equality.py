"""Whether two written answers are the same mathematics: exact numbers first, then structure, then symbols.

Nothing is evaluated as code: numbers become Fractions here, shapes are taken apart as text, and what is left goes to
the `symbolic` function of the caller, behind a size gate.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

from rewards.math_notation import MAX_CHARACTERS, Quantity, normalise, quantity
from rewards.math_shapes import bracketed, equation, interval, is_set, matrix, members, named_values, split
from rewards.math_units import Unit, contradict, split_unit

MAX_ANSWER_CHARACTERS = 2000
MAX_STRUCTURE = 1000
"""Longest text that is taken apart; a longer gold equals its own text only."""
MAX_DIGITS = 100
MAX_DEPTH = 12
MAX_MEMBERS = 64
MAX_POWER = 10_000
MAX_FACTORIAL = 200
MAX_TOWER = 3


class Verdict(Enum):
    """What a comparison found. TOO_LARGE: an expression beyond the size or time limit."""

    EQUAL = "equal"
    DIFFERENT = "different"
    TOO_LARGE = "too large"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a record asks for beyond the policy."""

    tolerance: Fraction = Fraction(0)
    """Largest absolute difference between numbers that are equal."""
    relative_tolerance: Fraction = Fraction(0)
    """The same as a share of the gold number."""
    simplified: bool = False
    """Accept no arithmetic that is still to be done: `17*23` for 391, `2/4` for 1/2."""

    def close(self, gold: Fraction, answer: Fraction) -> bool:
        """Whether two numbers are equal within the tolerances."""
        return abs(gold - answer) <= max(self.tolerance, self.relative_tolerance * abs(gold))


EXACT = Rules()
Symbolic = Callable[[str, str, Rules], Verdict]
"""Compares two LaTeX expressions; may raise to say that it cannot in this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _How:
    rules: Rules
    symbolic: Symbolic
    by_text: bool
    depth: int = 0

    def deeper(self) -> "_How":
        return _How(rules=self.rules, symbolic=self.symbolic, by_text=self.by_text, depth=self.depth + 1)


_CHOICE = re.compile(
    r"(?:(?:option|choice)\s+)?[(\[{]?\s*([A-Ja-j])\s*(?:[)\]}.:]+(?:\s+(?P<rest>(?:[\w$]|\\(?:frac|sqrt|pi)).*))?)?",
    re.I,
)
_ANY_CHOICE = re.compile(r"(?<![a-zA-Z\\])[A-J](?![a-zA-Z])")
_UNDEFINED = re.compile(r"/\s*0+(?![\d.])|\\frac\s*\{[^{}]*\}\s*\{\s*0+\s*\}|\bnan\b", re.IGNORECASE)
_WORDS = re.compile(r"(?:[^\W\d_]{3,}|no|on|up)(?:[\s'-]+[^\W\d_]+)*", re.IGNORECASE)
_TEXT = re.compile(r"(?:[A-Z]?[a-z]+|[A-Z]+)(?:[\s'.,:;/&-]+(?:[A-Z]?[a-z]+|[A-Z]+|\d+))*")
_LONG_WORD = re.compile(r"(?<![\\a-zA-Z])(?!(?:begin|end)\b)[a-zA-Z]{5,}+(?!\})")
_RATIO = re.compile(r":(?!=)")
_SET_NOTATION = re.compile(r"\\(?:cup|cap|setminus|mathbb|ne|emptyset)(?![a-zA-Z])")
_PROBLEMS = re.compile(
    r"\\(?:i?int|oint|sum|prod|lim|gcd|lcm|max|min|det|[bp]?mod|partial)(?![a-zA-Z])|\b(?:gcd|lcm|mod|det)\b"
    r"|\b(?:max|min)\s*[({]|\\frac\s*\{\s*(?:d|\\partial)\b"
)
"""Operations that a problem asks to carry out: an answer that still contains them restates it."""
_MISREAD = re.compile(r"\d_|(?<![\d.,])0\d")
"""What the grammar reads as something else: a number's base is dropped, a date's `05` is 5."""
_MARKS = re.compile(r"'|\^\s*\{?\s*(?:T|\\top|\\prime)(?![a-zA-Z])")
"""Derivatives and transposes, which the grammar drops."""


def compare(
    gold: str, answer: str, rules: Rules = EXACT, *, symbolic: Symbolic, by_text: bool = True
) -> Verdict:
    """Whether `answer` is `gold`. Without `by_text`, equal text is no shortcut around the symbolic step."""
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return Verdict.TOO_LARGE
    how = _How(rules=rules, symbolic=symbolic, by_text=by_text)
    return _compare(normalise(gold), normalise(answer), how)


def has_members(gold: str) -> bool:
    """Whether the gold answer is several values (a set, a bare list, a plus-minus)."""
    return len(members(normalise(gold)) or ()) > 1


def _compare(gold: str, answer: str, how: _How) -> Verdict:
    if not answer or not gold or _UNDEFINED.search(gold) or _UNDEFINED.search(answer):
        return Verdict.DIFFERENT
    left, right = quantity(gold), quantity(answer)
    if left is not None and right is not None:
        return _verdict(_same_quantity(left, right, how.rules))
    if how.by_text and _same_text(gold, answer):
        return Verdict.EQUAL
    choice = _CHOICE.fullmatch(gold)
    if choice and not choice["rest"] and (gold.isupper() or len(gold) > 1):
        return _verdict(_chosen(answer) == choice[1].upper())
    if len(gold) > MAX_STRUCTURE:
        return _verdict(gold == answer)
    if how.depth > MAX_DEPTH or len(answer) > MAX_STRUCTURE:
        return Verdict.TOO_LARGE
    structural = _structural(gold, answer, how)
    if structural is not None:
        return structural
    if _WORDS.fullmatch(gold) or _WORDS.fullmatch(answer):
        return _verdict(gold == answer)
    return _symbolic(gold, answer, how)


def _verdict(is_equal: bool) -> Verdict:
    return Verdict.EQUAL if is_equal else Verdict.DIFFERENT


def _same_text(gold: str, answer: str) -> bool:
    """Equal up to spaces around signs and brackets; up to case where both are words."""
    left, right = (re.sub(r"\s*([^\w\s\\])\s*", r"\1", text) for text in (gold, answer))
    left, right = (re.sub(r"_\{(\w+)\}", r"_\1", text) for text in (left, right))
    is_text = _WORDS.search(gold) is not None and _TEXT.fullmatch(gold) is not None
    return left == right or (is_text and left.casefold() == right.casefold())


def _chosen(answer: str) -> str:
    """The letter of a multiple-choice answer; text behind it may follow, but no other letter."""
    found = _CHOICE.fullmatch(answer)
    return found[1].upper() if found and not _ANY_CHOICE.search(found["rest"] or "") else ""


def _same_quantity(gold: Quantity, answer: Quantity, rules: Rules) -> bool:
    if contradict(gold.unit, answer.unit) or (rules.simplified and not answer.is_reduced):
        return False
    if rules.close(gold.value, answer.value):
        return True
    if gold.is_percent and not answer.is_percent:
        return rules.close(gold.value / 100, answer.value)
    # Of what is more than a whole, 50 is 50% and 1000% is a slip: only up to 1 is the gold a share.
    if answer.is_percent and not gold.is_percent and abs(gold.value) <= 1:
        return rules.close(gold.value, answer.value / 100)
    return False


def _structural(gold: str, answer: str, how: _How) -> Verdict | None:
    """The verdict of comparing shapes and their members; None when neither side has a known shape."""
    left, right = interval(gold), interval(answer)
    if left and right and left[0] != right[0]:
        return Verdict.DIFFERENT
    if left or right:
        return _compare(left[1] if left else gold, right[1] if right else answer, how.deeper())
    for verdict in (_assignments, _lists, _equations, _matrices, _tuples, _ratios):
        if (found := verdict(gold, answer, how)) is not None:
            return found
    return None


def _assignments(gold: str, answer: str, how: _How) -> Verdict | None:
    """`x=1, y=2` where the other side gives no names: a point, or a list in the order of the names."""
    named, claimed = named_values(gold), named_values(answer)
    if bool(named) == bool(claimed):
        return None
    values, claims = named or _point(gold), claimed or _point(answer) or members(answer)
    return _same_rows([values], [claims], how) if values and claims else None


def _lists(gold: str, answer: str, how: _How) -> Verdict | None:
    left, right = members(gold), members(answer)
    if left is None or right is None:
        return None
    is_union = r"\cup" in gold or r"\cup" in answer
    same = _same_set(left, right, how, once=is_set(gold) or is_set(answer))
    return same if same is Verdict.EQUAL or not is_union else _symbolic(_spans(left), _spans(right), how)


def _point(text: str) -> list[str] | None:
    """Coordinates of `(1, 2)`."""
    found = bracketed(text)
    return found[1] if found is not None and found[0] == "()" else None


def _spans(parts: Sequence[str]) -> str:
    spans = [interval(part) for part in parts]
    return r"\cup ".join(span[1] if span else part for span, part in zip(spans, parts, strict=True))


def _same_set(gold: Sequence[str], answer: Sequence[str], how: _How, *, once: bool) -> Verdict:
    """Members in any order; `once`: a repeated member counts once, as in a set, else it is a double root."""
    if len(gold) > MAX_MEMBERS or len(answer) > MAX_MEMBERS or (len(gold) != len(answer) and not once):
        return Verdict.DIFFERENT
    unmatched = list(answer)
    for member in gold:
        match = next((a for a in unmatched if _same_text(member, a)), None)
        pool = list(answer) if once else unmatched
        match = match or next((a for a in pool if _compare(member, a, how.deeper()) is Verdict.EQUAL), None)
        if match is None:
            return Verdict.DIFFERENT
        if match in unmatched:
            unmatched.remove(match)
    extra = [a for a in unmatched if all(_compare(g, a, how.deeper()) is not Verdict.EQUAL for g in gold)]
    return _verdict(not extra)


def _equations(gold: str, answer: str, how: _How) -> Verdict | None:
    """Compare what is said to be equal to what; a number is not answered by an equation still to be solved."""
    name, values = equation(gold) if members(gold) is None else ("", [gold])
    claimed, claims = equation(answer) if members(answer) is None else ("", [answer])
    if not name and not claimed and len(values) == len(claims) == 1:
        return (
            None if (values[0], claims[0]) == (gold, answer) else _compare(values[0], claims[0], how.deeper())
        )
    is_formula = len(values) > 1 or re.search("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", values[0])) is not None
    if "=" in gold and "=" in answer and is_formula and (claimed != name or not name):
        return _symbolic(gold, answer, how)
    if (len(values) > 1 and not name) or (name and claimed and name != claimed):
        return Verdict.DIFFERENT
    return _worst(_compare(values[-1], claim, how.deeper()) for claim in claims)


def _matrices(gold: str, answer: str, how: _How) -> Verdict | None:
    left, right = matrix(gold), matrix(answer)
    if left is None or right is None:
        return None
    return _same_rows(left[1], right[1], how) if left[0] == right[0] else Verdict.DIFFERENT


def _tuples(gold: str, answer: str, how: _How) -> Verdict | None:
    left, right = bracketed(gold), bracketed(answer)
    if left and right:
        return _same_rows([left[1]], [right[1]], how) if left[0] == right[0] else Verdict.DIFFERENT
    if _SET_NOTATION.search(gold) or _SET_NOTATION.search(answer):
        return None
    only, other = _only_member(gold), _only_member(answer)
    if only or other:
        return _compare(only or gold, other or answer, how.deeper())
    return Verdict.DIFFERENT if left or right or members(gold) or members(answer) else None


def _only_member(text: str) -> str:
    found = members(text) if is_set(text) else None
    return found[0] if found is not None and len(found) == 1 else ""


def _ratios(gold: str, answer: str, how: _How) -> Verdict | None:
    """`3:4` member by member, so that a time of day is no fraction; one side alone may write `3/4` for it."""
    left, right = split(gold, _RATIO), split(answer, _RATIO)
    if len(left) == len(right) == 1:
        return None
    if len(left) > 1 and len(right) > 1:
        return _same_rows([left], [right], how)
    ratio, other = (left, answer) if len(left) > 1 else (right, gold)
    fractions = ("/".join(ratio), rf"\frac{{{ratio[0]}}}{{{ratio[1]}}}")
    return _verdict(len(ratio) == 2 and other.replace(" ", "") in fractions)


def _same_rows(gold: Sequence[Sequence[str]], answer: Sequence[Sequence[str]], how: _How) -> Verdict:
    if [len(row) for row in gold] != [len(row) for row in answer]:
        return Verdict.DIFFERENT
    pairs = [
        (g, a) for left, right in zip(gold, answer, strict=True) for g, a in zip(left, right, strict=True)
    ]
    return _worst(_compare(g, a, how.deeper()) for g, a in pairs)


def _worst(verdicts: Iterable[Verdict]) -> Verdict:
    return next((verdict for verdict in verdicts if verdict is not Verdict.EQUAL), Verdict.EQUAL)


def _symbolic(gold: str, answer: str, how: _How) -> Verdict:
    if not set(_PROBLEMS.findall(answer)) <= set(_PROBLEMS.findall(gold)):
        return Verdict.DIFFERENT
    if sorted(_MARKS.findall(gold)) != sorted(_MARKS.findall(answer)):
        return Verdict.DIFFERENT
    (gold, gold_unit), (answer, answer_unit) = _measured(gold), _measured(answer)
    if contradict(gold_unit, answer_unit):
        return Verdict.DIFFERENT
    if any(form.search(text) for form in (_MISREAD, _LONG_WORD) for text in (gold, answer)):
        return _verdict(gold == answer)
    if not (is_small(gold) and is_small(answer)):
        return Verdict.TOO_LARGE
    return how.symbolic(gold, answer, how.rules)


def _measured(text: str) -> tuple[str, Unit]:
    """An expression and its unit; a number as one fraction, so that no grammar reads `1 4/5` its own way."""
    found = quantity(text)
    if found is None:
        return split_unit(text)
    value = found.value / 100 if found.is_percent else found.value
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}", found.unit


def is_small(text: str) -> bool:
    """Whether sympy can be trusted with it: no long numbers, towers, large powers, factorials or nesting."""
    digits = [len(number) for number in re.findall(r"\d+", text)]
    powers = [int(number) for number in re.findall(r"\^\s*\{?\s*-?(\d{1,9})", text)]
    factorials = [int(number[:9]) for number in re.findall(r"(\d+)\s*[)}]*\s*!", text)]
    opened: list[bool] = []
    deepest = raised = 0
    for place, character in enumerate(text):
        if character in "([{":
            opened.append(text[:place].endswith("^"))
            deepest, raised = max(deepest, len(opened)), max(raised, sum(opened))
        elif character in ")]}" and opened:
            opened.pop()
    is_tower = raised >= MAX_TOWER or "!!" in text or re.search(r"\^\s*\w+\s*\^", text) is not None
    return (
        len(text) <= MAX_CHARACTERS
        and max(digits, default=0) <= MAX_DIGITS
        and max(powers, default=0) <= MAX_POWER
        and max(factorials, default=0) <= MAX_FACTORIAL
        and deepest <= MAX_DEPTH
        and not is_tower
    )
