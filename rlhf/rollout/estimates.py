"""What n samples of one problem say about drawing k of them: pass@k, pass^k, maj@k, best-of-k.

Every estimate is the exact expectation over all ways to draw k of the n samples without replacement, so it is unbiased
for k fresh samples and has less variance than any grouping of the n. Average over problems, never pool their samples.
"""

import math
from collections.abc import Hashable, Sequence
from itertools import groupby


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n samples hold one of the c right ones: 1 - C(n-c, k) / C(n, k).

    The unbiased estimate of pass@k. Raises ValueError when n < k. Source: arXiv 2107.03374, eq. 1.
    """
    _check(n, k, c)
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def pass_hat_k(n: int, c: int, k: int) -> float:
    """Chance that k of n samples are all among the c right ones: C(c, k) / C(n, k), as pass^k. ValueError when n < k.

    Source: arXiv 2406.12045, section 4.
    """
    _check(n, k, c)
    return math.comb(c, k) / math.comb(n, k)


def best_of_k(truths: Sequence[float], scores: Sequence[float], k: int) -> float:
    """Mean truth of the sample of highest score among k; equal scores share. ValueError when n < k.

    A score level whose samples stand at places lo+1 .. hi from below is on top in C(hi, k) - C(lo, k) draws.
    """
    n = len(truths)
    _check(n, k)
    if len(scores) != n or any(math.isnan(score) for score in scores):
        raise ValueError(f"best-of-k needs a score for each of {n} truths, found {list(scores)}")
    ranked = sorted(zip(scores, truths, strict=True))
    total, low = 0.0, 0
    for _, level in groupby(ranked, key=lambda pair: pair[0]):
        members = [truth for _, truth in level]
        high = low + len(members)
        total += (math.comb(high, k) - math.comb(low, k)) * math.fsum(members) / len(members)
        low = high
    return total / math.comb(n, k)


def majority_at_k(answers: Sequence[Hashable | None], truths: Sequence[float], k: int) -> float:
    """Mean truth of the answer that most of k samples give. ValueError when n < k.

    `answers` are canonical: equal ones are one vote. None, no answer, wins only where nothing else was given, and
    counts as wrong. Of tied answers the first seen wins; over all orders of a draw that is each with equal chance.
    """
    n = len(answers)
    _check(n, k)
    votes: dict[Hashable, list[float]] = {}
    for answer, truth in zip(answers, truths, strict=True):
        if answer is not None:
            votes.setdefault(answer, []).append(truth)
    counts = [len(members) for members in votes.values()]
    silent = n - sum(counts)
    total = 0.0
    for place, members in enumerate(votes.values()):
        truth = math.fsum(members) / len(members)
        if truth:
            others = [*counts[:place], *counts[place + 1 :]]
            total += truth * _draws_won(len(members), others, silent, k)
    return total / math.comb(n, k)


def _draws_won(own: int, others: Sequence[int], silent: int, k: int) -> float:
    """In how many draws of k an answer with `own` votes wins; a tie with t others counts 1 / (1 + t)."""
    won = 0.0
    for votes in range(1, min(own, k) + 1):
        ways = math.comb(own, votes)
        # Answers with fewer votes than that can never tie: which of them are drawn does not matter.
        small = silent + sum(count for count in others if count < votes)
        by_ties = _ways_by_ties([count for count in others if count >= votes], votes, k - votes)
        for (drawn, ties), number in by_ties.items():
            won += ways * number * math.comb(small, k - votes - drawn) / (1 + ties)
    return won


def _ways_by_ties(counts: Sequence[int], most: int, room: int) -> dict[tuple[int, int], int]:
    """{(samples drawn, answers with exactly `most` of them): ways}, none of the answers drawn more often."""
    ways = {(0, 0): 1}
    for count in counts:
        grown: dict[tuple[int, int], int] = {}
        for (drawn, ties), number in ways.items():
            for more in range(min(most, room - drawn) + 1):
                state = (drawn + more, ties + (more == most))
                grown[state] = grown.get(state, 0) + number * math.comb(count, more)
        ways = grown
    return ways


def _check(n: int, k: int, c: int = 0) -> None:
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"an estimate at k needs 0 <= c <= n and 1 <= k <= n, found n={n}, c={c}, k={k}")
