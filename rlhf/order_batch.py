"""Micro-batches of retrieval alignment: lists of images for a query, and matching pairs of text and image.

Texts and image ids, no pixels: a rank loads its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderBatch:
    """L lists of n images, all ordered alike."""

    queries: tuple[str, ...]
    """[L]."""
    items: tuple[tuple[str, ...], ...]
    """[L][n] image ids."""
    ref_scores: Float[Tensor, "L n"]
    weights: Float[Tensor, " L"]
    """Of each list's loss, from the whole optimizer batch."""
    shape: tuple[int, int]
    pairs: tuple[tuple[int, int], ...] | None = None
    rewards: Float[Tensor, "L n"] | None = None

    @property
    def is_empty(self) -> bool:
        """No list: the ranks of a step take part in equally many micro-batches."""
        return not self.queries

    @property
    def num_images(self) -> int:
        """Places in lists; an image in two lists counts twice."""
        return sum(len(items) for items in self.items)

    def select(self, lists: Sequence[int]) -> "OrderBatch":
        """The lists of these places, in that order."""
        places = torch.tensor(list(lists), dtype=torch.long)
        return replace(
            self,
            queries=tuple(self.queries[i] for i in lists),
            items=tuple(self.items[i] for i in lists),
            ref_scores=self.ref_scores[places],
            weights=self.weights[places],
            rewards=None if self.rewards is None else self.rewards[places],
        )

    def to(self, device: torch.device | str) -> "OrderBatch":
        """The same batch on `device`."""
        rewards = None if self.rewards is None else self.rewards.to(device)
        return replace(
            self, ref_scores=self.ref_scores.to(device), weights=self.weights.to(device), rewards=rewards
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch:
    """This rank's m of the M pairs of a step; every pair of another key, on any rank, is its negative."""

    texts: tuple[str, ...]
    images: tuple[str, ...]
    keys: Int[Tensor, " m"]
    """Equal for pairs that match each other, such as two pictures with one caption."""
    weight: float
    """Of each pair's loss: coefficient / M."""
    is_replay: bool
    """False: the pairs are what is aligned (supervised fine-tuning)."""

    @property
    def is_empty(self) -> bool:
        """Never: every rank has as many pairs of a step."""
        return not self.texts

    def to(self, device: torch.device | str) -> "PairBatch":
        """The same batch on `device`."""
        return replace(self, keys=self.keys.to(device))
