"""The outer shape of an answer: lists, tuples, intervals, matrices, equations, taken apart without evaluating anything.

Every function takes text as `math_notation.normalise` leaves it.
"""

import re

from rewards.math_notation import closes_at_end, quantity

_SEPARATOR = re.compile(r"[,;]")
_UNION = re.compile(r"\\cup(?![a-zA-Z])")
_CONJUNCTION = re.compile(r"[,;]? (?:and|or) ")
_EQUALS = re.compile(r"(?<![<>!:])=|\\in(?![a-zA-Z])")
_APPROXIMATION = re.compile(r"\\approx(?![a-zA-Z])")
_RELATION = re.compile(r"(<|>|\\le(?![a-zA-Z])|\\ge(?![a-zA-Z]))")
_FLIPPED = {">": "<", r"\ge": r"\le", "<": ">", r"\le": r"\ge"}
_NAME = r"(?:[A-Za-z]|\\(?!pi|infty)[a-z]+)(?:_\{?\w+\}?)?"
_VARIABLE = re.compile(_NAME)
_TARGET = re.compile(
    rf"{_NAME}|{_NAME}\([a-zA-Z](?:,\s*[a-zA-Z])*\)|\({_NAME}(?:,\s*{_NAME})+\)|[a-z]{{2,}}(?: [a-z]+)*"
)
_ASSIGNED = re.compile(rf"{_NAME}\s*=\s*(.+)")
_MATRIX = re.compile(r"\\begin\{(matrix|pmatrix|bmatrix|Bmatrix|vmatrix)\}(.*)\\end\{\1\}", re.DOTALL)
_ARRAY = re.compile(r"([(\[|])\s*\\begin\{array\}\s*\{[^{}]*\}(.*)\\end\{array\}\s*[)\]|]", re.DOTALL)


def split(text: str, separator: re.Pattern[str] = _SEPARATOR) -> list[str]:
    """The parts between separators that stand outside every bracket."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and place >= start and (match := separator.match(text, place)):
            parts.append(text[start:place].strip())
            start = match.end()
    return [*parts, text[start:].strip()]


def members(text: str) -> list[str] | None:
    """Members of a set, a union, a plus-minus or a bare list; None when the text is none of these."""
    value = _ASSIGNED.fullmatch(text)
    if value and (quantity(value[1]) or is_set(value[1]) or bracketed(value[1])):
        return None
    if is_set(text):
        return [part for member in split(text[2:-2]) for part in _signs(member)]
    if len(parts := split(text, _UNION)) > 1:
        return parts
    if quantity(text) is None and len(parts := split(_CONJUNCTION.sub(",", text))) > 1:
        return [part for member in parts for part in _signs(member)]
    signs = _signs(text)
    return signs if len(signs) > 1 else None


def is_set(text: str) -> bool:
    r"""Whether the text is one pair of set braces, `\\{...\\}`."""
    return text.startswith("\\{") and text.endswith("\\}") and closes_at_end(text[1:-2] + "}")


def _signs(text: str) -> list[str]:
    before, sign, after = text.partition(r"\pm")
    return [f"{before.strip()}+{after.strip()}", f"{before.strip()}-{after.strip()}"] if sign else [text]


def bracketed(text: str) -> tuple[str, list[str]] | None:
    """Brackets and members of a tuple or interval of at least two."""
    if len(text) < 2 or text[0] not in "([" or text[-1] not in ")]" or not closes_at_end(text):
        return None
    parts = split(text[1:-1])
    return (text[0] + text[-1], parts) if len(parts) > 1 else None


def matrix(text: str) -> tuple[bool, list[list[str]]] | None:
    """Whether it is a determinant, and the rows of a matrix in any brackets."""
    if found := _MATRIX.fullmatch(text):
        return found[1] == "vmatrix", _rows(found[2])
    if found := _ARRAY.fullmatch(text):
        return found[1] == "|", _rows(found[2])
    return None


def _rows(body: str) -> list[list[str]]:
    rows = body.strip().removesuffix("\\\\").split("\\\\")
    return [[cell.strip() for cell in row.split("&")] for row in rows]


def interval(text: str) -> tuple[str, str] | None:
    r"""The variable of an inequality and its interval: `2<x\le 3` gives x and `(2,3]`, `x>5` gives `(5,\infty)`.

    Inequalities joined by "and" that bound one variable from both sides are one interval.
    """
    variables: set[str] = set()
    ends: dict[bool, tuple[str, bool]] = {}
    for part in text.split(" and "):
        pieces = [piece.strip() for piece in _RELATION.split(part)]
        if len(pieces) == 3 and _VARIABLE.fullmatch(pieces[0]):
            pieces = [pieces[2], _FLIPPED[pieces[1]], pieces[0]]
        if len(pieces) not in (3, 5) or not _VARIABLE.fullmatch(pieces[2]):
            return None
        bounds = [(pieces[0], pieces[1])]
        bounds += [(pieces[4], _FLIPPED[pieces[3]])] if len(pieces) == 5 else []
        variables.add(pieces[2])
        for value, relation in bounds:
            is_low = relation in ("<", r"\le")
            if is_low in ends or not value:
                return None
            ends[is_low] = (value, relation in (r"\le", r"\ge"))
    low, is_low_in = ends.get(True, (r"-\infty", False))
    high, is_high_in = ends.get(False, (r"\infty", False))
    span = f"{'[' if is_low_in else '('}{low},{high}{']' if is_high_in else ')'}"
    return (variables.pop(), span) if len(variables) == 1 else None


def equation(text: str) -> tuple[str, list[str]]:
    r"""What an equation gives a value to ("" for no name) and the sides that claim to be it.

    `x=3` and `3=x` give x and [3], `x=2+3=5` gives x and [2+3, 5], `2+3=5` gives "" and [2+3, 5], `x\in S` gives x
    and [S]. Of `d=2r=10` the side between, which has letters of its own, is left out.
    """
    text = split(text, _APPROXIMATION)[0]
    sides = [side for side in split(text, _EQUALS) if side]
    names = [side for side in sides if _TARGET.fullmatch(side)] if len(sides) > 1 else []
    name = names[0] if names else ""
    values = [side for side in sides if side != name] if name else sides
    if name and len(values) > 1:
        values = [v for i, v in enumerate(values) if i == len(values) - 1 or not _has_letters(v)]
    return (name, values) if values else ("", sides[:1])


def named_values(text: str) -> list[str] | None:
    """Values of `x=1, y=2` in the order of their names, which all differ; None for any other text."""
    pairs = [equation(part) for part in members(text) or []]
    names = [name for name, _ in pairs]
    if len(set(names)) < max(len(names), 2) or not all(names):
        return None
    return [values[-1] for _, values in sorted(pairs)]


def _has_letters(text: str) -> bool:
    return re.search("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", text)) is not None
