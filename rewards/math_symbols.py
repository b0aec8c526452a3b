"""Symbolic equality by Math-Verify's LaTeX grammar and sympy, without its guesses and its rounding.

Importing it takes half a second, and what it computes can take for ever: it runs in the workers of
`rewards.math_process` only. Sympy's string parser, which is Python's `eval`, is replaced by one that reads plain
numbers as soon as two expressions are compared.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy  # type: ignore[import-untyped]
import sympy.core.random  # type: ignore[import-untyped]

# Imported here because simplify would import it later, and it gives names to the string parser.
import sympy.physics.units  # type: ignore[import-untyped]
from latex2sympy2_extended.latex2sympy2 import (
    ConversionConfig,
    NormalizationConfig,
    _Latex2Sympy,
    normalize_latex,
)
from sympy.core.relational import Relational  # type: ignore[import-untyped]
from sympy.parsing import sympy_parser  # type: ignore[import-untyped]

from rewards.math_equality import Rules, Verdict

_NORMALISED = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=False, nits=False, boxed="none"
)
_CONVERSION = ConversionConfig(lowercase_symbols=False)
_PLAIN = re.compile(r"\d{1,1000}(?:\.\d{0,1000})?|\.\d{1,1000}")
_MIXED = re.compile(r"(?<![\w.}^])(\d+)\s*(\\frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\})")
_COEFFICIENT = re.compile(r"(?<![\w.^/}!])(\d+)/(\d+)(?![\d.!^])")
_NUMERAL = re.compile(r"\{*[\d.]")
_IMAGINARY = sympy.Symbol("i", real=True)
_DIGITS = 50
_CERTAIN = sympy.Rational(1, 10**9)
"""A difference that no rounding of 50 digits explains."""


def _read_number(text: str, *_args: Any, **_kwargs: Any) -> Any:
    """Stands in for sympy's `parse_expr`: what the grammar found to be a number, exactly; nothing else."""
    if not _PLAIN.fullmatch(text):
        raise ValueError(f"not a plain number: {text[:40]!r}")
    return sympy.Rational(Fraction(text))


class _Grammar(_Latex2Sympy):  # type: ignore[misc]
    """Math-Verify's grammar without one of its guesses: neighbours multiply (it adds: `(2)(3)` was 5)."""

    def convert_postfix_list(self, arr: Any, i: int = 0) -> Any:
        """The product of the factors from number `i` on; ValueError where two numerals stand side by side."""
        first = self.convert_postfix(arr[i])
        if i == len(arr) - 1:
            return first
        if not isinstance(first, sympy.Expr | sympy.MatrixBase | sympy.MatrixExpr):
            raise ValueError("not a factor")
        if arr[i].getText()[-1].isdigit() and _NUMERAL.match(arr[i + 1].getText()):
            raise ValueError("two numbers side by side")
        rest = self.convert_postfix_list(arr, i + 1)
        is_matrix = any(isinstance(side, sympy.MatrixBase | sympy.MatrixExpr) for side in (first, rest))
        return self.mat_mul_flat(first, rest) if is_matrix else self.mul_flat(first, rest)


def equal(gold: str, answer: str, rules: Rules) -> Verdict:
    """Whether two LaTeX expressions are equal for all values of their symbols; as text if one is not parsed."""
    # In this process alone, and for good: others may want to read what sympy reads.
    sympy_parser.parse_expr = _read_number
    sympy.core.random.seed(0)
    left, right = _parse(gold), _parse(answer)
    if left is None or right is None:
        return Verdict.EQUAL if gold == answer else Verdict.DIFFERENT
    if rules.simplified and _operations(right) > _operations(left):
        return Verdict.DIFFERENT
    return Verdict.EQUAL if _same(left, right, rules) else Verdict.DIFFERENT


@lru_cache(maxsize=256)
def _parse(text: str) -> Any:
    text = _MIXED.sub(r"(\1+\2)", _COEFFICIENT.sub(r"\\frac{\1}{\2}", text))
    text = normalize_latex(text, _NORMALISED)
    try:
        found = _Grammar(is_real=True, config=_CONVERSION).parse(text)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # noqa: BLE001
        return None
    return (
        found.xreplace({_IMAGINARY: sympy.I}) if isinstance(found, sympy.Basic | sympy.MatrixBase) else None
    )


def _operations(tree: Any) -> int:
    return int(sympy.count_ops(tree))


def _same(left: Any, right: Any, rules: Rules) -> bool:
    if isinstance(left, Relational) and isinstance(right, Relational):
        return _same_relation(left, right)
    if isinstance(left, sympy.Set) and isinstance(right, sympy.Set):
        return _same_set(left.doit(), right.doit())
    if isinstance(left, sympy.MatrixBase | sympy.MatrixExpr) and isinstance(
        right, sympy.MatrixBase | sympy.MatrixExpr
    ):
        left, right = sympy.Matrix(left.doit()), sympy.Matrix(right.doit())
        return left.shape == right.shape and all(
            _same(a, b, rules) for a, b in zip(left.flat(), right.flat(), strict=True)
        )
    if not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr)):
        return bool(left == right)
    left, right = left.doit(), right.doit()
    if any(side.has(sympy.nan, sympy.zoo) for side in (left, right)):
        return False
    return bool(left == right) or _vanishes(left - right) or _close(left, right, rules)


def _vanishes(difference: Any) -> bool:
    """Whether an expression is 0 for all values of its symbols, looked at in one point before it is simplified."""
    symbols = sorted(difference.free_symbols, key=str)
    point = {symbol: sympy.Rational(3 + 2 * i, 7 + 4 * i) for i, symbol in enumerate(symbols)}
    size = sympy.Abs(difference.xreplace(point)).evalf(_DIGITS)
    if size.is_Float and size > _CERTAIN:
        return False
    return difference.expand() == 0 or difference.equals(0) is True


def _same_relation(left: Relational, right: Relational) -> bool:
    """Whether one is the other times a constant: of an equation any but 0, of an inequality a positive one."""
    (kind, gold), (other, answer) = _against_zero(left), _against_zero(right)
    if kind is not other:
        return False
    factor = sympy.simplify(gold / answer)
    is_constant = bool(factor.is_number and factor.is_real and factor.is_nonzero)
    return is_constant and bool(kind in (sympy.Eq, sympy.Ne) or factor.is_positive)


def _against_zero(relation: Relational) -> tuple[Any, Any]:
    difference = (relation.lhs - relation.rhs).doit()
    if isinstance(relation, sympy.Gt | sympy.Ge):
        return {sympy.Gt: sympy.Lt, sympy.Ge: sympy.Le}[relation.func], -difference
    return relation.func, difference


def _same_set(left: Any, right: Any) -> bool:
    return bool(left == right) or (left.is_subset(right) is True and right.is_subset(left) is True)


def _close(left: Any, right: Any, rules: Rules) -> bool:
    """Whether two numbers are equal within the record's tolerances, at 50 digits."""
    bound = max(rules.tolerance, rules.relative_tolerance)
    if not bound or not (left.is_number and right.is_number):
        return False
    gap, size = sympy.Abs(left - right).evalf(_DIGITS), sympy.Abs(left).evalf(_DIGITS)
    allowed = sympy.Max(_exact(rules.tolerance), _exact(rules.relative_tolerance) * size)
    return bool(gap.is_comparable and gap <= allowed)


def _exact(value: Fraction) -> Any:
    return sympy.Rational(value.numerator, value.denominator)
