"""Which rows an optimizer step takes: a function of (rows, repeats, seed), whatever the ranks and micro-batches are."""

import math
from collections.abc import Sequence

import numpy
from numpy.typing import NDArray

Indices = NDArray[numpy.int64]


def rows_of_a_pass(sizes: Sequence[int], repeat: Sequence[float], *, seed: int) -> Indices:
    """Indices of one pass over sources laid end to end, each `repeat` times.

    The fraction of a repeat is that share of the source's rows, drawn once: every pass has the same rows.
    """
    chosen: list[Indices] = []
    start = 0
    for index, (size, times) in enumerate(zip(sizes, repeat, strict=True)):
        rows = numpy.arange(start, start + size)
        drawn = numpy.random.default_rng([seed & 0xFFFFFFFF, index]).permutation(rows)
        whole = math.floor(times)
        chosen += [*[rows] * whole, numpy.sort(drawn[: round((times - whole) * size)])]
        start += size
    return numpy.concatenate(chosen)


def training_order(one_pass: Indices, *, num_rows: int, seed: int) -> Indices:
    """The rows of a whole training, in order: every pass shuffled anew, cut after `num_rows`."""
    passes = [
        numpy.random.default_rng([seed & 0xFFFFFFFF, index, 1]).permutation(one_pass)
        for index in range(math.ceil(num_rows / len(one_pass)))
    ]
    order: Indices = numpy.concatenate(passes)[:num_rows]
    return order
