"""Values that change along a run, given as (step, value) points."""

from collections.abc import Sequence
from itertools import pairwise


def value_at(points: Sequence[tuple[int, float]], step: int) -> float:
    """The value at `step`: linear between two points, constant outside them.

    A function of the step alone: a resumed run goes on as one that never stopped.
    """
    if step >= points[-1][0]:
        return points[-1][1]
    for (start, before), (stop, after) in pairwise(points):
        if start <= step < stop:
            return before + (after - before) * (step - start) / (stop - start)
    return points[0][1]
