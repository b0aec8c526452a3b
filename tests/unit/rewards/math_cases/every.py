"""All of them."""

from tests.unit.rewards.math_cases import extraction, hostile, numbers, structure, symbols
from tests.unit.rewards.math_cases.case import Case

CASES: list[Case] = [
    *extraction.CASES,
    *numbers.CASES,
    *symbols.CASES,
    *structure.CASES,
    *hostile.CASES,
]
