"""Losses of retrieval alignment: what lists of images contribute, from the scores of one query with each.

s = exp(logit_scale) cos is a logit of pi(y|q) = softmax over the gallery (2406.09397), d = beta (s - s_ref): the
gallery's partition function is the same for all images of a query and cancels in every difference. All lists of a
call are ordered alike (one grid, or one set of pairs). A list never depends on another, so a weight per list, fixed on
the whole optimizer batch, is all that micro-batches and ranks need.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.algorithms.preference import check_range
from rlhf.algorithms.ranking import (
    Pair,
    RankedOutput,
    check_pairs,
    grid_chains,
    grid_pairs,
    plackett_luce,
    ranked_partial_dpo,
    ranked_partial_pl,
)

ListLoss = Literal["rp_dpo", "rp_pl", "dpo", "ipo", "sft_list", "grpo", "sft", "none"]
PAIR_LOSSES = ("dpo", "ipo")
"""Read the first and the last image of a list alone."""
PARTIAL_ORDER_LOSSES = ("rp_dpo", "rp_pl")
"""Read pairs that a list brings with it; the others read the places of the grid."""
_STD_FLOOR = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentSettings:
    """Which loss, and its numbers. Raises ValueError for a number out of range."""

    loss: ListLoss = "rp_pl"
    """rp_dpo: all ordered pairs of the grid, the paper's form. rp_pl: Plackett-Luce along every row and column.
    dpo, ipo: the first image over the last. sft_list: cross-entropy of the first among the list. grpo: the policy
    gradient over a pool. sft: the first image by in-batch negatives (`nce`). none: the replay loss alone."""
    beta: float = 1.0
    label_smoothing: float = 0.0
    """Share of the pairs taken to be the wrong way round (rp_dpo, dpo)."""
    closure: Literal["rows_columns", "dominance"] = "rows_columns"
    """Which pairs of a grid are ordered (rp_dpo)."""
    kl_coef: float = 0.0
    """Of KL(pi || pi_ref) over the pool (grpo)."""

    def __post_init__(self) -> None:
        check_range("beta", self.beta)
        check_range("label_smoothing", self.label_smoothing)
        check_range("kl_coef", self.kl_coef)
        for name, value, readers in (
            ("label_smoothing", self.label_smoothing, ("rp_dpo", "dpo")),
            ("kl_coef", self.kl_coef, ("grpo",)),
            ("closure", self.closure != "rows_columns", ("rp_dpo",)),
        ):
            if value and self.loss not in readers:
                raise ValueError(
                    f"{name} is set but loss {self.loss} does not read it, only {', '.join(readers)} do"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """L lists of n images each, place k in column k, ordered alike."""

    scores: Float[Tensor, "L n"]
    """With gradient."""
    ref_scores: Float[Tensor, "L n"]
    shape: tuple[int, int]
    """(u, v), u v = n: better towards the first row and the first column."""
    pairs: Sequence[Pair] | None = None
    """(winner, loser) places in place of the grid's."""
    rewards: Float[Tensor, "L n"] | None = None
    """Of each image, for `grpo`."""


def list_losses(lists: Lists, settings: AlignmentSettings) -> RankedOutput:
    """One loss per list. Raises ValueError where the lists lack what the loss reads."""
    utilities = settings.beta * (lists.scores - lists.ref_scores)
    n = utilities.shape[1]
    match settings.loss:
        case "rp_dpo":
            pairs = lists.pairs
            if pairs is None:
                pairs = grid_pairs(*lists.shape, closure=settings.closure)
            return ranked_partial_dpo(utilities, pairs, label_smoothing=settings.label_smoothing)
        case "rp_pl":
            # A pair is a chain of two: labels of people need no grid.
            if lists.pairs is None:
                return ranked_partial_pl(utilities, grid_chains(*lists.shape))
            check_pairs(lists.pairs, n)
            return ranked_partial_pl(utilities, lists.pairs)
        case "dpo":
            return ranked_partial_dpo(utilities, [(0, n - 1)], label_smoothing=settings.label_smoothing)
        case "ipo":
            return _ipo(lists, beta=settings.beta)
        case "sft_list":
            return plackett_luce(lists.scores, top=1)
        case "grpo":
            return pool_policy_gradient(lists, kl_coef=settings.kl_coef)
        case _:
            raise ValueError(f"loss {settings.loss} is no loss of lists")


def pool_policy_gradient(lists: Lists, *, kl_coef: float) -> RankedOutput:
    """-E_pi[A log pi] + b KL(pi || pi_ref) over the pool, pi = softmax(s) over the list, A = (r - E_pi r) / std_pi r.

    GRPO with the mean over a group of samples in the limit of a large group: the pool is small, so the expectation is
    taken exactly and nothing is drawn. The weights pi of the expectation and A carry no gradient. Rewards that are all
    equal give advantage 0. Source: GRPO (2402.03300) with the action set of 2406.09397.
    """
    if lists.rewards is None:
        raise ValueError("rewards is None but loss grpo reads them: give the teachers' score of every image")
    logprobs = torch.log_softmax(lists.scores, 1)
    ref_logprobs = torch.log_softmax(lists.ref_scores, 1)
    policy = logprobs.detach().exp()
    rewards = lists.rewards.to(logprobs.dtype)
    centred = rewards - (policy * rewards).sum(1, keepdim=True)
    std = (policy * centred.square()).sum(1, keepdim=True).sqrt()
    advantages = torch.where(std > _STD_FLOOR, centred / std.clamp(min=_STD_FLOOR), torch.zeros_like(centred))
    losses = -(policy * advantages * logprobs).sum(1)
    losses = losses + kl_coef * (logprobs.exp() * (logprobs - ref_logprobs)).sum(1)
    best = rewards.argmax(1) == logprobs.detach().argmax(1)
    return RankedOutput(
        losses=losses,
        accuracy=best.to(losses.dtype),
        counted=torch.ones_like(best),
    )


def nce(
    texts: Float[Tensor, "m d"],
    images: Float[Tensor, "m d"],
    negatives: "Negatives",
    *,
    scale: Float[Tensor, ""],
    label_smoothing: float = 0.0,
) -> Float[Tensor, " m"]:
    """(L_text + L_image) / 2 of m matching pairs against M of all ranks, one value per pair; divide their sum by M.

    L_text: cross-entropy of each text's image among all images, with smoothed labels; L_image the other way round.
    Another pair that says the same (equal key) is no negative and is left out. Source: 2406.09397, section on
    pre-training, after InfoNCE (1807.03748) and CLIP (2103.00020).
    """
    other = negatives.keys[:, None] == negatives.all_keys[None, :]
    own = torch.arange(texts.shape[0], device=texts.device) + negatives.offset
    other[torch.arange(texts.shape[0], device=texts.device), own] = False
    forth = _smoothed_entropy(scale * texts @ negatives.all_images.T, other, own, label_smoothing)
    back = _smoothed_entropy(scale * images @ negatives.all_texts.T, other, own, label_smoothing)
    return (forth + back) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Negatives:
    """The pairs of all ranks, this rank's from `offset` on."""

    all_texts: Float[Tensor, "M d"]
    all_images: Float[Tensor, "M d"]
    keys: Int[Tensor, " m"]
    """Equal for pairs that match each other."""
    all_keys: Int[Tensor, " M"]
    offset: int = 0


def _smoothed_entropy(
    logits: Float[Tensor, "m M"], left_out: Bool[Tensor, "m M"], own: Int[Tensor, " m"], smoothing: float
) -> Float[Tensor, " m"]:
    logprobs = torch.log_softmax(logits.masked_fill(left_out, -torch.inf), 1)
    right = logprobs.gather(1, own[:, None]).squeeze(1)
    if smoothing == 0:
        return -right
    spread = logprobs.masked_fill(left_out, 0.0).sum(1) / (~left_out).sum(1)
    return -(1 - smoothing) * right - smoothing * spread


def _ipo(lists: Lists, *, beta: float) -> RankedOutput:
    """(h - 1 / (2 beta))^2, h = the first image's s - s_ref less the last's. Source: IPO (2310.12036), eq. 17."""
    ratios = lists.scores - lists.ref_scores
    margin = ratios[:, 0] - ratios[:, -1]
    return RankedOutput(
        losses=(margin - 1 / (2 * beta)).square(),
        accuracy=(margin.detach() > 0).to(margin.dtype),
        counted=torch.ones_like(margin, dtype=torch.bool),
    )
