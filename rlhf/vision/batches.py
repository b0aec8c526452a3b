"""From the lists of a step to every rank's micro-batches. A list is never split; weights come from the whole step."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from zlib import crc32

import numpy as np
import torch

from rlhf.algorithms.alignment import PAIR_LOSSES, PARTIAL_ORDER_LOSSES
from rlhf.config.alignment import AlignmentRecipe
from rlhf.errors import DataError
from rlhf.order_batch import OrderBatch, PairBatch
from rlhf.retrieval import PartialOrder
from rlhf.vision.orders import SEMANTIC, TASTE

Batch = OrderBatch | PairBatch
Caption = tuple[str, str]
"""(image id, text)."""


class Replay:
    """Pictures with captions: a fresh shuffle each pass; which of them a step sees follows from its number."""

    def __init__(self, captions: Sequence[Caption], *, per_step: int, seed: int) -> None:
        self._captions, self._per_step, self._seed = captions, per_step, seed

    def at(self, step: int) -> list[Caption]:
        """The pairs of step `step`, from 0."""
        places = range(step * self._per_step, (step + 1) * self._per_step)
        size = len(self._captions)
        orders = {
            e: np.random.default_rng([self._seed, e]).permutation(size) for e in {p // size for p in places}
        }
        return [self._captions[orders[p // size][p % size]] for p in places]


def step_batches(
    orders: Sequence[PartialOrder], replay: Sequence[Caption], recipe: AlignmentRecipe
) -> list[list[Batch]]:
    """[rank][micro-batch] of one optimizer step; every rank has the same kinds in the same order."""
    loss, ranks = recipe.loss, recipe.learner.num_ranks
    shares: list[list[Batch]] = [[] for _ in range(ranks)]
    if loss.name == "sft":
        first = [(order.items[0], order.query) for order in (_as_read(o, loss.name) for o in orders)]
        for share, part in zip(shares, caption_pairs(first, ranks, coef=1.0, is_replay=False), strict=True):
            share.append(part)
    elif loss.name != "none":
        lists = [_as_read(order, loss.name) for order in orders]
        for alike in _alike(lists):
            parts = _spread(_stacked(alike, total=len(lists)), ranks, most=recipe.images.per_pass)
            for share, own in zip(shares, parts, strict=True):
                share.extend(own)
    if loss.replay_coef > 0:
        for share, part in zip(
            shares, caption_pairs(replay, ranks, coef=loss.replay_coef, is_replay=True), strict=True
        ):
            share.append(part)
    return shares


def _as_read(order: PartialOrder, loss: str) -> PartialOrder:
    """What the loss reads of a list: pair losses its first and its last image alone."""
    if loss not in PARTIAL_ORDER_LOSSES and not {SEMANTIC, TASTE} <= order.teacher.keys():
        raise DataError(
            f"loss.name is {loss}, which reads the places of a list's images, but the list of query "
            f"{order.query_id!r} has pairs of its own (labels of people). Use rp_dpo or rp_pl, which read every pair."
        )
    if loss not in PAIR_LOSSES:
        return order
    ends = (0, len(order.items) - 1)
    return replace(
        order,
        items=tuple(order.items[i] for i in ends),
        shape=(1, 2),
        ref_scores=tuple(order.ref_scores[i] for i in ends),
        teacher={name: tuple(scores[i] for i in ends) for name, scores in order.teacher.items()},
        pairs=None,
    )


def _alike(orders: Sequence[PartialOrder]) -> list[list[PartialOrder]]:
    """Lists of one grid and one set of pairs together, in the order of their first."""
    groups: dict[object, list[PartialOrder]] = {}
    for order in orders:
        groups.setdefault((order.shape, order.pairs), []).append(order)
    return list(groups.values())


def _stacked(orders: Sequence[PartialOrder], *, total: int) -> OrderBatch:
    rewards = [rewards_of(order) for order in orders]
    return OrderBatch(
        queries=tuple(order.query for order in orders),
        items=tuple(order.items for order in orders),
        ref_scores=torch.tensor([order.ref_scores for order in orders]),
        weights=torch.full((len(orders),), 1 / total),
        shape=orders[0].shape,
        pairs=orders[0].pairs,
        rewards=torch.tensor(rewards) if all(rewards) else None,
    )


def rewards_of(order: PartialOrder) -> tuple[float, ...]:
    """One reward per image for `grpo`: both teachers' z-scores within the list, added; () for labels of people."""
    if SEMANTIC not in order.teacher or TASTE not in order.teacher:
        return ()
    columns = np.asarray([order.teacher[SEMANTIC], order.teacher[TASTE]])
    spread = columns.std(1, keepdims=True)
    scores = np.where(
        spread > 1e-12, (columns - columns.mean(1, keepdims=True)) / np.maximum(spread, 1e-12), 0.0
    )
    return tuple(scores.sum(0).tolist())


def _spread(batch: OrderBatch, ranks: int, *, most: int) -> list[list[Batch]]:
    """[rank][micro-batch]: as many on every rank, the last ones perhaps empty."""
    each = max(1, most // len(batch.items[0]))
    own = [list(range(rank, len(batch.queries), ranks)) for rank in range(ranks)]
    number = -(-max(map(len, own)) // each)
    return [[batch.select(lists[i * each : (i + 1) * each]) for i in range(number)] for lists in own]


def caption_pairs(pairs: Sequence[Caption], ranks: int, *, coef: float, is_replay: bool) -> list[PairBatch]:
    """One batch of pairs for each rank; the loss is `coef` times the mean over all of them."""
    size = len(pairs) // ranks
    assert size * ranks == len(pairs), "the recipe refuses sizes that ranks cannot share"
    shares = [pairs[rank * size : (rank + 1) * size] for rank in range(ranks)]
    return [
        PairBatch(
            texts=tuple(text for _, text in share),
            images=tuple(image for image, _ in share),
            keys=torch.tensor([crc32(text.encode()) for _, text in share]),
            weight=coef / len(pairs),
            is_replay=is_replay,
        )
        for share in shares
    ]


def images_of(shares: Sequence[Sequence[Batch]]) -> int:
    """Images that a step embeds with gradient, those in several lists counted as often."""
    batches = chain.from_iterable(shares)
    return sum(b.num_images if isinstance(b, OrderBatch) else len(b.images) for b in batches)
