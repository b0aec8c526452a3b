"""Symbolic equality through Math-Verify's LaTeX grammar and sympy. Importing it takes half a second."""

import re
from typing import Any

import sympy  # type: ignore[import-untyped]
from math_verify import LatexExtractionConfig, parse, verify

_DECIMAL = re.compile(r"\d*\.\d+")


def equal_expressions(gold: str, answer: str) -> bool:
    """Whether two LaTeX expressions are equal for all values of their symbols; False if one is not parsed."""
    left, right = _parse(gold), _parse(answer)
    if left is None or right is None:
        return False
    if any(side.has(sympy.nan, sympy.zoo) for side in (left, right)):
        return False
    if isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr):
        # Not Math-Verify's comparison: it rounds, so that 0.333333 would be 1/3.
        return left == right or (left - right).equals(0) is True
    return bool(verify([left], [right], float_rounding=15, timeout_seconds=None))


def _parse(text: str) -> Any:
    # Only the LaTeX grammar: Math-Verify's expression parser is sympy's parse_expr, which evaluates Python.
    exact = _DECIMAL.sub(_as_fraction, text)
    found = parse(f"${exact}$", extraction_config=[LatexExtractionConfig()], parsing_timeout=None)
    return next((item for item in found if isinstance(item, sympy.Basic | sympy.MatrixBase)), None)


def _as_fraction(match: re.Match[str]) -> str:
    whole, _, decimals = match[0].partition(".")
    return rf"\frac{{{int(whole + decimals)}}}{{{10 ** len(decimals)}}}"
