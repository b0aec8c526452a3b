"""All of them."""

from tests.unit.rewards.math_cases import arithmetic, extraction, hostile, numbers, structure, symbols
from tests.unit.rewards.math_cases.case import Case

CASES: list[Case] = [
    *extraction.CASES,
    *numbers.CASES,
    *arithmetic.CASES,
    *symbols.CASES,
    *structure.CASES,
    *hostile.CASES,
]
