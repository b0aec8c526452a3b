"""How sure a mean over problems is: 95 % intervals with problems, not samples, as the trials."""

import math
from collections.abc import Sequence
from functools import lru_cache

from rlhf.telemetry.metrics import wilson

_NORMAL = 1.959963984540054
_MANY = 200
"""Degrees of freedom from which on a series in 1/df is exact to 1e-8."""


def share_interval(values: Sequence[float]) -> tuple[float, float]:
    """Of the mean of one share per problem.

    Wilson's where every problem is 0 or 1, else Student's over the problems, within [0, 1].
    """
    if all(value in (0, 1) for value in values):
        return wilson(math.fsum(values), len(values))
    if len(values) == 1:
        return 0.0, 1.0
    low, high = mean_interval(values)
    return max(0.0, low), min(1.0, high)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's interval of the mean of any numbers; without width for a single one, which says nothing of it."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, mean
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = student(n - 1) * spread / math.sqrt(n)
    return mean - half, mean + half


@lru_cache(maxsize=4096)
def student(degrees: int) -> float:
    """The 97.5 % point of Student's t.

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4 (the finite series), 26.7.5 (many degrees of freedom).
    """
    if degrees > _MANY:
        z = _NORMAL
        terms = (
            (z**3 + z) / 4,
            (5 * z**5 + 16 * z**3 + 3 * z) / 96,
            (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        )
        return z + sum(term / math.pow(degrees, power) for power, term in enumerate(terms, start=1))
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _inside(middle, degrees) < 0.95:
            low = middle
        else:
            high = middle
    return math.tan(low) * math.sqrt(degrees)


def _inside(angle: float, degrees: int) -> float:
    """P(|t| < sqrt(degrees) tan(angle))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2 == 1
    term = cosine if is_odd else 1.0
    total = term if degrees > 1 else 0.0
    for i in range(3 if is_odd else 2, degrees - 1, 2):
        term *= cosine * cosine * (i - 1) / i
        total += term
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total
