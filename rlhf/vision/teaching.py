"""Lists of images for queries, made at once from embeddings: what `build-orders` and the bench do without engines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from rlhf.config.alignment import OrdersConfig
from rlhf.retrieval import Gallery, Judge, PartialOrder, RetrievalQuery
from rlhf.vision.gallery import GalleryIndex
from rlhf.vision.judging import ask, combine, reads_query
from rlhf.vision.orders import Judged, Picked, arrange, pick, reference_scores, visit_seed

if TYPE_CHECKING:
    from PIL.Image import Image

_JUDGED_AT_ONCE = 256


@dataclass(slots=True, kw_only=True)
class Panel:
    """All judges with their weights; what was scored once is remembered where the query does not matter."""

    judges: Mapping[str, Judge]
    weights: Mapping[str, float]
    gallery: Gallery
    _known: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def reads_query(self) -> bool:
        """Whether a judge looks at the query: then nothing is remembered."""
        return any(reads_query(judge) for judge in self.judges.values())

    def scores(self, query: str, ids: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """{judge: one score per image}. Raises JudgeError for a score that is missing, not finite or out of range."""
        missing = list(ids) if self.reads_query else [name for name in ids if name not in self._known]
        for start in range(0, len(missing), _JUDGED_AT_ONCE):
            self._ask(query, missing[start : start + _JUDGED_AT_ONCE])
        return {judge: tuple(self._known[name][judge] for name in ids) for judge in self.judges}

    def _ask(self, query: str, ids: Sequence[str]) -> None:
        pictures = self.gallery.load(ids)
        found: dict[str, dict[str, float]] = {name: {} for name in ids}
        for name, judge in self.judges.items():
            for image, score in zip(ids, ask(judge, query, ids, pictures), strict=True):
                found[image][name] = score
        self._known.update(found)

    def taste(self, scores: Mapping[str, Sequence[float]]) -> tuple[float, ...]:
        """All judges together: z-scores within the list, weighted and added."""
        return combine(scores, self.weights).total


class Constant:
    """A judge without taste, for controls."""

    name = "constant"
    version = "1"
    reads_query = False

    def score(self, images: "Sequence[Image]", queries: Sequence[str] | None = None) -> Sequence[float]:  # noqa: ARG002 -- of the protocol
        """0 each."""
        return [0.0] * len(images)


def judged(
    panel: Panel, query: RetrievalQuery, index: GalleryIndex, picked: Picked, ref_scores: Sequence[float]
) -> Judged:
    """What all teachers say of the images picked for a query."""
    items = tuple(index.ids[place] for place in picked.places.tolist())
    scores = panel.scores(query.text, items)
    return Judged(
        items=items,
        semantic=picked.semantic,
        taste=panel.taste(scores),
        judges=scores,
        ref_scores=tuple(ref_scores),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Everything that the reference model has embedded."""

    index: GalleryIndex
    queries: Tensor
    """[q, d] plain."""
    rephrased: Tensor
    """[q, d]; the plain ones without a rephraser."""
    scale: float
    """exp(logit_scale)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListMaker:
    """Makes lists out of embeddings of the reference."""

    queries: Sequence[RetrievalQuery]
    reference: Reference
    panel: Panel
    config: OrdersConfig
    fingerprint: str

    def make(self, visits: Sequence[tuple[int, int]], *, seed: int) -> list[PartialOrder]:
        """One list per visit (admission index, place of the query); where teachers prefer nothing there is none."""
        found = [self.one(index, place, seed=seed) for index, place in visits]
        return [order for order in found if order is not None]

    def one(self, index: int, place: int, *, seed: int) -> PartialOrder | None:
        """The list of one visit to a query."""
        query, gallery = self.queries[place], self.reference.index
        plain, rephrased = (
            gallery.scores(self.reference.queries[place]),
            gallery.scores(self.reference.rephrased[place]),
        )
        picked = pick(plain, rephrased, self.config, seed=visit_seed(seed, query.id, index))
        if picked is None:
            return None
        scores = reference_scores(
            gallery, self.reference.queries[place], picked.places, scale=self.reference.scale
        )
        opinion = judged(self.panel, query, gallery, picked, scores)
        return arrange(query, opinion, self.config, version=gallery.version, fingerprint=self.fingerprint)


def visits_of(num_queries: int, count: int, *, seed: int) -> list[tuple[int, int]]:
    """(admission index, place of the query): every query once in a fresh order each pass."""
    places: list[int] = []
    while len(places) < count:
        places += np.random.default_rng([seed, len(places)]).permutation(num_queries).tolist()
    return list(enumerate(places[:count]))
