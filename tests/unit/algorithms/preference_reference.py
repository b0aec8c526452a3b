"""Slow preference losses from the formulas: one example at a time, Python numbers, no tensors, no autograd.

Gradients are complex-step derivatives (`loss_reference.gradient`): live numbers are complex, frozen ones floats.
"""

import cmath
import math
from collections.abc import Mapping, Sequence

Number = complex
EPSILON = 2.0**-52


def log_sigmoid(x: Number) -> Number:
    if complex(x).real >= 0:
        return -cmath.log(1 + cmath.exp(-x))
    return x - cmath.log(1 + cmath.exp(x))


def sigmoid(x: Number) -> Number:
    return cmath.exp(log_sigmoid(x))


def log_odds(mean: Number) -> Number:
    mean = complex(mean)
    if mean.real > -EPSILON:
        mean = complex(-EPSILON)
    minus = complex(-math.expm1(mean.real), -math.exp(mean.real) * mean.imag)
    return mean - cmath.log(minus)


def example(
    name: str,
    live: Sequence[Number],
    counts: Sequence[int],
    refs: Sequence[float],
    numbers: Mapping[str, float],
) -> Number:
    """One example; `live`, `counts` and `refs` are (chosen, rejected)."""
    if name == "kto":
        return kto(live, counts, refs, numbers)
    if counts[0] == 0 or counts[1] == 0:
        return 0
    mean_c, mean_r = live[0] / counts[0], live[1] / counts[1]
    nll = numbers.get("nll_coef", 0.0) * -mean_c
    beta, e = numbers.get("beta", 0.1), numbers.get("label_smoothing", 0.1)
    h = (live[0] - refs[0]) - (live[1] - refs[1])
    if name == "dpo":
        return nll - log_sigmoid(beta * h)
    if name == "cdpo":
        return nll - (1 - e) * log_sigmoid(beta * h) - e * log_sigmoid(-beta * h)
    if name == "robust":
        return nll + (-(1 - e) * log_sigmoid(beta * h) + e * log_sigmoid(-beta * h)) / (1 - 2 * e)
    if name == "hinge":
        return nll + (1 - beta * h if complex(beta * h).real <= 1 else 0)
    if name == "ipo":
        return nll + (h - 1 / (2 * beta)) ** 2
    if name == "ipo_avg":
        per_token = (live[0] - refs[0]) / counts[0] - (live[1] - refs[1]) / counts[1]
        return nll + (per_token - 1 / (2 * beta)) ** 2
    if name == "simpo":
        gamma = numbers.get("gamma", 1.0)
        return nll - log_sigmoid(numbers.get("beta", 2.0) * (mean_c - mean_r) - gamma)
    assert name == "orpo"
    return -mean_c - numbers.get("odds_weight", 0.1) * log_sigmoid(log_odds(mean_c) - log_odds(mean_r))


def implicit_reward(name: str, live: float, count: int, ref: float, numbers: Mapping[str, float]) -> float:
    """What the loss compares, of one answer that is not empty."""
    if name == "orpo":
        return numbers.get("odds_weight", 0.1) * log_odds(live / count).real
    if name == "simpo":
        return numbers.get("beta", 2.0) * live / count
    beta = numbers.get("beta", 0.1)
    return beta * (live - ref) / count if name == "ipo_avg" else beta * (live - ref)


def kto(live, counts, refs, numbers) -> Number:
    beta, z = numbers.get("beta", 0.1), numbers["z"]
    total: Number = 0
    if counts[0]:
        total += numbers.get("desirable_weight", 1.0) * (1 - sigmoid(beta * (live[0] - refs[0] - z)))
        total -= numbers.get("nll_coef", 0.0) * live[0] / counts[0]
    if counts[1]:
        total += numbers.get("undesirable_weight", 1.0) * (1 - sigmoid(-beta * (live[1] - refs[1] - z)))
    return total


def kto_z(policy: Sequence[float], refs: Sequence[float], counts: Sequence[int]) -> float:
    ratios = [p - r for p, r, count in zip(policy, refs, counts, strict=True) if count]
    return max(0.0, sum(ratios) / len(ratios)) if ratios else 0.0


def bradley_terry(chosen: Number, rejected: Number, margin: float, centre: float) -> Number:
    return -log_sigmoid(chosen - rejected - margin) + centre * (chosen + rejected) ** 2


def plackett_luce(utilities: Sequence[Number], top: int | None = None) -> tuple[Number, int]:
    """Sum over the choices made and their number; the last item is no choice."""
    total: Number = 0
    choices = len(utilities) - 1 if top is None else min(top, len(utilities) - 1)
    for j in range(choices):
        largest = max(complex(u).real for u in utilities[j:])
        denominator = sum(cmath.exp(u - largest) for u in utilities[j:])
        total += -(utilities[j] - largest - cmath.log(denominator))
    return total, max(choices, 0)


def ranked_pairs(utilities, pairs, present, e: float) -> Number:
    kept = [(w, x) for w, x in pairs if present[w] and present[x]]
    total: Number = 0
    for w, x in kept:
        difference = utilities[w] - utilities[x]
        total += -(1 - e) * log_sigmoid(difference) - e * log_sigmoid(-difference)
    return total / len(kept) if kept else 0


def ranked_chains(utilities, chains, present) -> Number:
    terms = []
    for chain in chains:
        total, choices = plackett_luce([utilities[k] for k in chain if present[k]])
        if choices:
            terms.append(total / choices)
    return sum(terms) / len(terms) if terms else 0


def strictly_right(utilities: Sequence[float], comparisons: Sequence[tuple[int, Sequence[int]]]) -> float:
    """Share of (winner, rivals) in which the winner is ahead of every rival; 0 for none."""
    right = [all(utilities[w] > utilities[x] for x in rivals) for w, rivals in comparisons]
    return sum(right) / len(right) if right else 0.0


def pair_weights(chosen: Sequence[int], rejected: Sequence[int], *, one_sided: bool) -> list[float]:
    sides = list(zip(chosen, rejected, strict=True))
    if one_sided:
        number = sum(c > 0 for c in chosen) + sum(r > 0 for r in rejected)
        return [1 / number if c or r else 0.0 for c, r in sides]
    number = sum(c > 0 and r > 0 for c, r in sides)
    return [1 / number if c and r else 0.0 for c, r in sides]


def row_sums(logprobs: Sequence[Number], rows: Sequence[int], mask: Sequence[bool], num_rows: int):
    sums: list[Number] = [0] * num_rows
    counts = [0] * num_rows
    for value, row, trained in zip(logprobs, rows, mask, strict=True):
        if trained:
            sums[row] += value
            counts[row] += 1
    return sums, counts
