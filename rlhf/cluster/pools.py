"""Engines of embeddings and the judges of images behind one door each: chunks, deadlines, typed failures."""

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from rlhf.cluster.engines import EngineClient
from rlhf.cluster.watchdog import Named, answer
from rlhf.config.schema import TimeoutConfig
from rlhf.retrieval import Embedded

_CHUNK = 256
"""Texts or images of one call."""


@dataclass(slots=True)
class PoolClient:
    """Embeds with all engines: chunks go round."""

    engines: EngineClient
    _turn: Iterator[int] = field(default_factory=itertools.count)

    async def embed(
        self,
        texts: Sequence[str],
        images: Sequence[str],
        *,
        on_done: Callable[[int, int], None] | None = None,
    ) -> Embedded:
        """Vectors of texts and images; `version` is the oldest that made any. `on_done`: (chunks, of how many)."""
        chunks = [(texts[at : at + _CHUNK], ()) for at in range(0, len(texts), _CHUNK)]
        chunks += [((), images[at : at + _CHUNK]) for at in range(0, len(images), _CHUNK)]  # type: ignore[misc]
        finished = itertools.count(1)

        async def one(some_texts: Sequence[str], some_images: Sequence[str]) -> Embedded:
            actor = self.engines.engines[next(self._turn) % len(self.engines.engines)]
            call = actor.handle.call.remote("embed", list(some_texts), list(some_images))
            found: Embedded = await answer(
                call, actor=actor, call="embed", limit_s=self.engines.timeouts.generate_s
            )
            if on_done is not None:
                on_done(next(finished), len(chunks))
            return found

        parts = await asyncio.gather(*(one(*chunk) for chunk in chunks))
        number = -(-len(texts) // _CHUNK)
        empty = np.zeros((0, 1), np.float32)
        return Embedded(
            texts=np.concatenate([part.texts for part in parts[:number]] or [empty]),
            images=np.concatenate([part.images for part in parts[number:]] or [empty]),
            version=min((part.version for part in parts), default=0),
        )


@dataclass(slots=True)
class JudgeClient:
    """All judges of a run, in a process of their own."""

    actor: Named
    timeouts: TimeoutConfig

    async def scores(self, of: str, query: str, ids: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """{judge: one score per image} of the gallery `of` (`train`, `heldout`)."""
        call = self.actor.handle.call.remote("scores", of, query, list(ids))
        found: dict[str, tuple[float, ...]] = await answer(
            call, actor=self.actor, call="scores", limit_s=self.timeouts.generate_s
        )
        return found

    async def close(self) -> None:
        """End the process."""
        closing = answer(self.actor.handle.close.remote(), actor=self.actor, call="close", limit_s=30)
        await asyncio.gather(closing, return_exceptions=True)
