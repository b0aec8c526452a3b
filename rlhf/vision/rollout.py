"""A visit to a query in a run: embed it with the engines, retrieve, judge, arrange."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf.cluster.pools import JudgeClient, PoolClient
from rlhf.config.alignment import OrdersConfig
from rlhf.errors import CheckpointError
from rlhf.retrieval import Gallery, Judge, PartialOrder, RetrievalQuery
from rlhf.types import Prompt
from rlhf.vision.gallery import GalleryIndex
from rlhf.vision.judging import combine
from rlhf.vision.orders import Judged, arrange, pick, reference_scores, visit_seed
from rlhf.vision.teaching import Panel

Progress = Callable[[str, float, float], None]
"""(what, done, of how many)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderGroup:
    """What one visit to a query gave; without a list, `reason` says why."""

    index: int
    version: int
    """Weight version at which it was admitted; the list's own is that of the index it was retrieved from."""
    order: PartialOrder | None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panels:
    """The judges in their process: one panel per gallery."""

    panels: Mapping[str, Panel]

    @classmethod
    def open(cls, judges: Mapping[str, Judge], galleries: Mapping[str, Gallery]) -> "Panels":
        """The same judges for every gallery."""
        return cls(
            panels={name: Panel(judges=judges, weights={}, gallery=own) for name, own in galleries.items()}
        )

    def scores(self, of: str, query: str, ids: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """{judge: one score per image} of a gallery."""
        return self.panels[of].scores(query, ids)

    def close(self) -> None:
        """Nothing to end: the judges go with the process."""


@dataclass(slots=True, kw_only=True)
class Indexes:
    """The gallery as the reference embedded it, and as it was embedded last."""

    pool: PoolClient
    gallery: Gallery
    texts: Mapping[str, Sequence[str]]
    """`plain` and `rephrased` texts of all queries."""
    file: Path
    """Where the reference stays for the whole run."""
    refresh_every: int
    progress: Progress
    weights: asyncio.Lock
    """Held while weights are published, and while a gallery is embedded: one index, one version."""
    reference: GalleryIndex | None = None
    current: GalleryIndex | None = None
    reference_texts: dict[str, Tensor] = field(default_factory=dict)
    _making: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def at(self, version: int) -> GalleryIndex:
        """The index for a visit that is admitted at `version`; embeds the gallery where it is due."""
        async with self._making:
            if self.reference is None:
                await self._open(version)
            assert self.reference is not None
            if self.current is None:
                self.current = self.reference
            if self.refresh_every and version - self.current.version >= self.refresh_every:
                self.current = await self._embedded()
            return self.current

    async def _open(self, version: int) -> None:
        if self.file.is_file():
            self.reference = GalleryIndex.load(self.file, ids=self.gallery.ids())
            self.reference_texts = load_file(self._texts_file)
            return
        if version > 0:
            raise CheckpointError(
                f"{self.file} is missing, but the run is at weight version {version}: the reference's embeddings of "
                "the gallery cannot be made from weights that were trained. Start anew with --fresh."
            )
        self.reference = await self._embedded()
        found = {name: (await self.pool.embed(texts, [])).texts for name, texts in self.texts.items()}
        self.reference_texts = {name: torch.from_numpy(vectors) for name, vectors in found.items()}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.reference_texts, self._texts_file)
        self.reference.save(self.file)

    @property
    def _texts_file(self) -> Path:
        return self.file.with_name("reference_texts.safetensors")

    async def _embedded(self) -> GalleryIndex:
        ids = self.gallery.ids()
        async with self.weights:
            found = await self.pool.embed(
                [], ids, on_done=lambda done, total: self.progress("embedding the gallery", done, total)
            )
        return GalleryIndex(ids=tuple(ids), matrix=torch.from_numpy(found.images), version=found.version)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderWork:
    """`rlhf.rollout.group.GroupWork`: retrieves and judges while slots are free."""

    queries: Mapping[str, RetrievalQuery]
    places: Mapping[str, int]
    """Of each query in the reference's texts."""
    rephrased: Mapping[str, str]
    pool: PoolClient
    judges: JudgeClient
    weights: Mapping[str, float]
    """Of the judges."""
    indexes: Indexes
    config: OrdersConfig
    scale: float
    """exp(logit_scale)."""
    seed: int
    fingerprint: str

    async def make(self, index: int, prompt: Prompt, version: int) -> OrderGroup:
        """The list of one visit, or why there is none."""
        query = self.queries[prompt.id]
        gallery = await self.indexes.at(version)
        found = await self.pool.embed([query.text, self.rephrased[query.id]], [])
        plain, rephrased = (gallery.scores(torch.from_numpy(vector)) for vector in found.texts)
        picked = pick(plain, rephrased, self.config, seed=visit_seed(self.seed, query.id, index))
        if picked is None:
            return OrderGroup(index=index, version=version, order=None, reason="few_images")
        items = tuple(gallery.ids[place] for place in picked.places.tolist())
        scores = await self.judges.scores("train", query.text, items)
        reference = self.indexes.reference
        assert reference is not None, "`at` makes it"
        before = self.indexes.reference_texts["plain"][self.places[query.id]]
        opinion = Judged(
            items=items,
            semantic=picked.semantic,
            taste=combine(scores, self.weights).total if scores else (0.0,) * len(items),
            judges=scores,
            ref_scores=reference_scores(reference, before, picked.places, scale=self.scale),
        )
        order = arrange(query, opinion, self.config, version=gallery.version, fingerprint=self.fingerprint)
        reason = None if order else "no_preference"
        return OrderGroup(index=index, version=version, order=order, reason=reason)

    def rejection(self, group: OrderGroup) -> str | None:
        """Why there is no list."""
        return group.reason

    def solved(self, group: OrderGroup) -> list[bool]:
        """Nothing here is right or wrong."""
        del group
        return []


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWork:
    """The same from lists that were made before: a prompt is one list."""

    orders: Mapping[str, PartialOrder]

    async def make(self, index: int, prompt: Prompt, version: int) -> OrderGroup:
        """The list."""
        return OrderGroup(index=index, version=version, order=self.orders[prompt.id])

    def rejection(self, group: OrderGroup) -> str | None:
        """None: they are all of use."""
        return group.reason

    def solved(self, group: OrderGroup) -> list[bool]:
        """Nothing here is right or wrong."""
        del group
        return []
