"""Slow losses of retrieval alignment from the formulas: one query at a time, Python numbers, no tensors."""

import math
from collections.abc import Sequence
from itertools import permutations

Row = Sequence[float]


def log_softmax(logits: Row) -> list[float]:
    top = max(logits)
    total = top + math.log(sum(math.exp(x - top) for x in logits))
    return [x - total for x in logits]


def softmax(logits: Row) -> list[float]:
    return [math.exp(x) for x in log_softmax(logits)]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def lines(u: int, v: int) -> list[list[int]]:
    """Rows and columns of the grid with two places or more."""
    rows = [[i * v + j for j in range(v)] for i in range(u)]
    columns = [[i * v + j for i in range(u)] for j in range(v)]
    return [line for line in rows + columns if len(line) > 1]


def ordered(u: int, v: int) -> list[tuple[int, int]]:
    """(winner, loser) along every row and every column."""
    pairs = []
    for a in range(u * v):
        for b in range(u * v):
            same_row, same_column = a // v == b // v, a % v == b % v
            if a < b and (same_row or same_column):
                pairs.append((a, b))
    return pairs


def rp_dpo(utilities: Row, pairs: Sequence[tuple[int, int]], smoothing: float) -> float:
    total = 0.0
    for a, b in pairs:
        margin = utilities[a] - utilities[b]
        total -= (1 - smoothing) * log_sigmoid(margin) + smoothing * log_sigmoid(-margin)
    return total / len(pairs)


def rp_pl(utilities: Row, chains: Sequence[Sequence[int]]) -> float:
    return sum(chain([utilities[k] for k in c]) for c in chains) / len(chains)


def chain(utilities: Row) -> float:
    """-log P(this very order) / choices, P summed over nothing: each place is won against all that follow."""
    total = 0.0
    for k in range(len(utilities) - 1):
        total -= log_softmax(utilities[k:])[0]
    return total / (len(utilities) - 1)


def ranking_probabilities(utilities: Row) -> dict[tuple[int, ...], float]:
    """P of each whole ranking: draw without replacement, each time with odds exp(utility)."""

    def probability(order: tuple[int, ...], odds: dict[int, float]) -> float:
        if not order:
            return 1.0
        first, rest = order[0], order[1:]
        left = {k: o for k, o in odds.items() if k != first}
        return odds[first] / sum(odds.values()) * probability(rest, left)

    odds = {k: math.exp(x) for k, x in enumerate(utilities)}
    return {order: probability(order, odds) for order in permutations(range(len(utilities)))}


def ipo(ratios: Row, beta: float) -> float:
    return (ratios[0] - ratios[-1] - 1 / (2 * beta)) ** 2


def kl(scores: Row, ref_scores: Row) -> float:
    policy, reference = log_softmax(scores), log_softmax(ref_scores)
    return sum(math.exp(p) * (p - q) for p, q in zip(policy, reference, strict=True))


def pool_gradient(scores: Row, rewards: Row) -> list[float]:
    """d/ds_k of -E_pi[A log pi] with A and the weights of the expectation held: -sum_y pi_y A_y (1[y = k] - pi_k)."""
    policy = softmax(scores)
    mean = sum(p * r for p, r in zip(policy, rewards, strict=True))
    std = math.sqrt(sum(p * (r - mean) ** 2 for p, r in zip(policy, rewards, strict=True)))
    gradient = []
    for k, pi_k in enumerate(policy):
        total = 0.0
        for y, pi_y in enumerate(policy):
            total -= pi_y * (rewards[y] - mean) / std * (float(y == k) - pi_k)
        gradient.append(total)
    return gradient


def nce(
    texts: Sequence[Row], images: Sequence[Row], keys: Sequence[int], *, scale: float, smoothing: float
) -> list[float]:
    """(L_text + L_image) / 2 of each pair, others of its key left out."""
    size = len(texts)
    losses = []
    for i in range(size):
        kept = [j for j in range(size) if j == i or keys[j] != keys[i]]
        total = 0.0
        for query, others in ((texts[i], images), (images[i], texts)):
            logits = [scale * sum(a * b for a, b in zip(query, others[j], strict=True)) for j in kept]
            for j, logprob in zip(kept, log_softmax(logits), strict=True):
                label = (1 - smoothing) * (j == i) + smoothing / len(kept)
                total -= label * logprob / 2
        losses.append(total)
    return losses
