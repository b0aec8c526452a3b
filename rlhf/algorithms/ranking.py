"""Losses over more than one pair: the reward model's, and those of ranked lists and grids.

A list holds n items of one query, item k in column k. Its utilities are u = beta (s - s_ref) with s a log-probability
or a similarity / tau, s_ref the same under the frozen reference with the reference's own tau: the partition function
of the query cancels. Every function gives one loss per list, so a weight per list, fixed before micro-batching, is
all that aggregation needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import combinations, pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf.algorithms.preference import PreferenceOutput, check_range, smoothed_preference

Pair = tuple[int, int]
"""(winner, loser): columns of a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedOutput:
    """Losses of lists with their gradient; the rest is detached."""

    losses: Float[Tensor, " L"]
    accuracy: Float[Tensor, " L"]
    """Share of the list's comparisons that are strictly right; 0 for a list without any."""
    counted: Bool[Tensor, " L"]
    """False where nothing could be compared: loss 0, gradient 0, weight 0."""


def bradley_terry(
    chosen: Float[Tensor, " P"],
    rejected: Float[Tensor, " P"],
    *,
    margin: Float[Tensor, " P"] | float = 0.0,
    centre_coef: float = 0.0,
) -> PreferenceOutput:
    """-log sigmoid(r_c - r_r - margin) + c (r_c + r_r)^2 of a reward model's scores, P pairs.

    c = 0.01 is usual and keeps the scores, which the first term leaves free to drift, around 0. At any distance
    finite, where log(1 + exp(x)) overflows. Source: InstructGPT (2203.02155), eq. 1; margin Llama 2 (2307.09288),
    eq. 2; centring Eisenstein et al. 2023 (2312.09244).
    """
    check_range("centre_coef", centre_coef)
    if isinstance(margin, float | int):
        check_range("margin", margin)
    if chosen.dtype not in (torch.float32, torch.float64):
        chosen, rejected = chosen.float(), rejected.float()
    losses = -logsigmoid(chosen - rejected - margin) + centre_coef * (chosen + rejected).square()
    every = torch.ones_like(chosen, dtype=torch.bool)
    return PreferenceOutput(
        losses=losses,
        chosen_rewards=chosen.detach(),
        rejected_rewards=rejected.detach(),
        has_chosen=every,
        has_rejected=every,
    )


def plackett_luce(
    utilities: Float[Tensor, "L n"],
    *,
    present: Bool[Tensor, "L n"] | None = None,
    top: int | None = None,
    reduction: Literal["sum", "mean"] = "sum",
) -> RankedOutput:
    """sum_j -(u_j - logsumexp(u_j, u_j+1, ..)) over the first `top` places of each list, best item first.

    None: all places; the last one is no choice and never counts. top = 1 is the cross-entropy of the winner, two
    items are DPO. `mean` divides by the number of places. Items that are not `present` are never read.
    Source: Plackett 1975; "Preference Ranking Optimization" (2306.17492).
    """
    if top is not None and top < 1:
        raise ValueError(f"top is {top}, expected 1 or more, or None for all places")
    kept = torch.ones_like(utilities, dtype=torch.bool) if present is None else present
    num_items = kept.sum(1, keepdim=True)
    places = num_items - 1 if top is None else (num_items - 1).clamp(max=top)
    chooses = kept & (kept.cumsum(1) <= places)
    n = utilities.shape[1]
    later = torch.ones(n, n, dtype=torch.bool, device=kept.device).triu()
    rest = utilities[:, None, :].masked_fill(~(later & kept[:, None, :]), -torch.inf)
    terms = torch.where(chooses, torch.logsumexp(rest, 2) - utilities, torch.zeros_like(utilities))
    number = chooses.sum(1)
    losses = terms.sum(1) if reduction == "sum" else terms.sum(1) / number.clamp(min=1)
    rivals = rest.detach().masked_fill(torch.eye(n, dtype=torch.bool, device=kept.device), -torch.inf)
    ahead = utilities.detach() > rivals.amax(2) if n else chooses
    return RankedOutput(
        losses=losses,
        accuracy=(ahead & chooses).sum(1).to(losses.dtype) / number.clamp(min=1),
        counted=number > 0,
    )


def ranked_partial_dpo(
    utilities: Float[Tensor, "L n"],
    pairs: Sequence[Pair],
    *,
    label_smoothing: float = 0.0,
    present: Bool[Tensor, "L n"] | None = None,
) -> RankedOutput:
    """Mean over the ordered pairs (w, l) of -(1 - e) log sigmoid(u_w - u_l) - e log sigmoid(u_l - u_w).

    The pairs are those of every list; one with an item that is not `present` is left out of its list.
    Source: the ranked DPO of 2406.09397, reconstructed (its equation could not be read).
    Raises ValueError for pairs that are no partial order of the n items.
    """
    check_range("label_smoothing", label_smoothing)
    check_pairs(pairs, utilities.shape[1])
    index = torch.tensor(pairs, device=utilities.device)
    kept = torch.ones_like(utilities, dtype=torch.bool) if present is None else present
    valid = kept[:, index[:, 0]] & kept[:, index[:, 1]]
    clean = torch.where(kept, utilities, torch.zeros_like(utilities))
    margin = clean[:, index[:, 0]] - clean[:, index[:, 1]]
    terms = smoothed_preference(margin, label_smoothing)
    number = valid.sum(1).clamp(min=1)
    return RankedOutput(
        losses=torch.where(valid, terms, torch.zeros_like(terms)).sum(1) / number,
        accuracy=(valid & (margin.detach() > 0)).sum(1).to(terms.dtype) / number,
        counted=valid.any(1),
    )


def ranked_partial_pl(
    utilities: Float[Tensor, "L n"],
    chains: Sequence[Sequence[int]],
    *,
    present: Bool[Tensor, "L n"] | None = None,
) -> RankedOutput:
    """Mean over the chains (columns, best first) of the mean Plackett-Luce term along each.

    A chain with fewer than two items `present` is left out. Raises ValueError for an item that does not exist or
    stands twice in a chain.
    """
    kept = torch.ones_like(utilities, dtype=torch.bool) if present is None else present
    losses, accuracy, counted = [], [], []
    for chain in chains:
        check_pairs(list(pairwise(chain)), utilities.shape[1])
        index = torch.tensor(chain, device=utilities.device)
        along = plackett_luce(utilities[:, index], present=kept[:, index], reduction="mean")
        losses.append(along.losses)
        accuracy.append(along.accuracy)
        counted.append(along.counted)
    if not chains:
        raise ValueError("chains is empty, expected at least one chain of two items")
    number = torch.stack(counted).sum(0)
    return RankedOutput(
        losses=torch.stack(losses).sum(0) / number.clamp(min=1),
        accuracy=torch.stack(accuracy).sum(0) / number.clamp(min=1),
        counted=number > 0,
    )


def grid_pairs(
    num_rows: int, num_columns: int, *, closure: Literal["rows_columns", "dominance"] = "rows_columns"
) -> list[Pair]:
    """Ordered pairs of a grid whose item (i, j) is i * num_columns + j, better towards (0, 0).

    rows_columns: within a row the earlier column wins, within a column the earlier row, u C(v, 2) + v C(u, 2)
    pairs. dominance: their full closure, every item over all that are no earlier in both.
    """
    _check_grid(num_rows, num_columns)
    cells = [(i, j) for i in range(num_rows) for j in range(num_columns)]
    return [
        (i * num_columns + j, k * num_columns + m)
        for (i, j), (k, m) in combinations(cells, 2)
        if (i == k or j == m if closure == "rows_columns" else j <= m)
    ]


def grid_chains(num_rows: int, num_columns: int) -> list[list[int]]:
    """The rows and columns of that grid that hold at least two items, best first, for `ranked_partial_pl`."""
    _check_grid(num_rows, num_columns)
    rows = [[i * num_columns + j for j in range(num_columns)] for i in range(num_rows)]
    return [list(chain) for chain in (*rows, *zip(*rows, strict=True)) if len(chain) > 1]


def check_pairs(pairs: Sequence[Pair], num_items: int) -> None:
    """Raises ValueError unless (winner, loser) pairs are a partial order of items 0 .. num_items - 1."""
    if not pairs:
        raise ValueError("pairs is empty, expected at least one (winner, loser)")
    for pair in pairs:
        if len(pair) != 2 or not all(0 <= item < num_items for item in pair):
            raise ValueError(f"pairs has {pair}, expected (winner, loser), both from 0 to {num_items - 1}")
    if len(set(pairs)) < len(pairs):
        twice = next(pair for pair in pairs if pairs.count(pair) > 1)
        raise ValueError(f"pairs has {twice} more than once, expected each pair once: it would weigh double")
    graph: dict[int, set[int]] = {}
    for winner, loser in pairs:
        graph.setdefault(loser, set()).add(winner)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise ValueError(
            f"pairs has the circle {error.args[1]}, expected an order without circles"
        ) from error


def _check_grid(num_rows: int, num_columns: int) -> None:
    if min(num_rows, num_columns) < 1 or num_rows * num_columns < 2:
        raise ValueError(f"the grid is {num_rows} x {num_columns}, expected at least two items")
