"""Records of retrieval alignment and what its plugins promise. No torch: content and readers load fast.

A query is a state, an image of the gallery an action (2406.09397). A judge, a rephraser and a gallery are objects that
a recipe names by `module:attribute`; the attribute is called with the recipe's `kwargs` and gives the object.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

Verdict = Literal["a", "b", "tie"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalQuery:
    """A query as a person types it."""

    id: str
    text: str
    rephrased: str | None = None
    """The same with what the rephraser added; None: it has not been asked yet."""
    relevant: tuple[str, ...] | None = None
    """Ids of the images that answer it, where that is known."""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialOrder:
    """A training example: u x v images of one query, better towards the first row and the first column.

    Rows follow the semantic order, places within a row the judges'. Raises ValueError for a record that is not whole.
    """

    query_id: str
    query: str
    items: tuple[str, ...]
    """Image ids, row after row."""
    shape: tuple[int, int]
    """(u semantic, v aesthetic)."""
    ref_scores: tuple[float, ...]
    """exp(logit_scale) * cos of each item under the reference: no reference model is needed in training."""
    teacher: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Every teacher's score of each item ("semantic", then judges by name), so that a hacked one shows."""
    pairs: tuple[tuple[int, int], ...] | None = None
    """(winner, loser) places in `items`; None: those of the grid. Given for human labels and ties."""
    fingerprint: str = ""
    """Of model, gallery, judges and rephraser that made it; the trainer refuses another one."""
    version: int = 0
    """Weight version of the index that its images were retrieved from."""

    def __post_init__(self) -> None:
        u, v = self.shape
        if len(self.items) != u * v or u * v < 2:
            raise ValueError(
                f"order of query {self.query_id!r} has {len(self.items)} items, expected {u} x {v} of its shape, "
                "2 or more"
            )
        if len(set(self.items)) < len(self.items):
            raise ValueError(f"order of query {self.query_id!r} holds an image twice")
        for name, scores in (("ref_scores", self.ref_scores), *self.teacher.items()):
            if len(scores) != len(self.items):
                raise ValueError(
                    f"order of query {self.query_id!r}: {name} has {len(scores)} scores, expected {len(self.items)}"
                )
            if not all(math.isfinite(score) for score in scores):
                raise ValueError(f"order of query {self.query_id!r}: {name} holds a score that is not finite")
        self._check_pairs()

    def _check_pairs(self) -> None:
        if self.pairs is None:
            return
        if not self.pairs:
            raise ValueError(
                f"order of query {self.query_id!r}: pairs is empty, expected one or more, or None"
            )
        for pair in self.pairs:
            if len(set(pair)) != 2 or not all(0 <= place < len(self.items) for place in pair):
                raise ValueError(
                    f"order of query {self.query_id!r}: pairs has {pair}, expected two places from 0 to "
                    f"{len(self.items) - 1}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Vectors of length 1 in float32."""

    texts: "NDArray[np.float32]"
    """[q, d]."""
    images: "NDArray[np.float32]"
    """[i, d]."""
    version: int
    """Weights that all of them were made with."""


class Gallery(Protocol):
    """Images by id. Engines load them by themselves: it is pickled, pixels are not."""

    @property
    def version(self) -> str:
        """Changes with the images; part of the fingerprint."""

    def ids(self) -> Sequence[str]:
        """All images, in an order that does not change."""

    def load(self, ids: Sequence[str]) -> list["Image"]:
        """RGB pictures of these ids."""


class Judge(Protocol):
    """Point-wise taste: an aesthetic model, a classifier, an LMM that scores. Higher is better."""

    @property
    def name(self) -> str:
        """What scores and errors call it."""

    @property
    def version(self) -> str:
        """Changes with its verdicts; part of the fingerprint."""

    def score(self, images: Sequence["Image"], queries: Sequence[str] | None = None) -> Sequence[float]:
        """One finite score per image; `queries[i]` is what image i was retrieved for."""


class PairJudge(Protocol):
    """List-wise taste: shown two rows of images, says which is better."""

    @property
    def name(self) -> str:
        """What scores and errors call it."""

    @property
    def version(self) -> str:
        """Changes with its verdicts; part of the fingerprint."""

    def compare(self, query: str, row_a: Sequence["Image"], row_b: Sequence["Image"]) -> Verdict:
        """The better row."""


class Rephraser(Protocol):
    """Adds to a query what makes its answers beautiful."""

    @property
    def version(self) -> str:
        """Changes with its words; part of the fingerprint."""

    def rephrase(self, queries: Sequence[str]) -> Sequence[str]:
        """One text per query."""


class Truth(Protocol):
    """What only an evaluation may see: relevance, and people's taste."""

    def relevant(self, query: RetrievalQuery, ids: Sequence[str]) -> Sequence[bool]:
        """Which images answer the query."""

    def taste(self, ids: Sequence[str]) -> Sequence[float]:
        """People's score of each image; higher is better."""
