"""Canned tokens: an engine for tests and dry runs that needs no model."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from rlhf.errors import SyncError
from rlhf.interfaces import GenerateRequest
from rlhf.types import Completion

Script = Callable[[GenerateRequest, int], tuple[Sequence[int], Sequence[float]]]
"""(request, seed) -> (token ids, log-probabilities)."""


class ScriptedEngine:
    """Answers each (request, seed) with what `script` gives, cut to the token limit; loads no weights."""

    def __init__(self, script: Script, *, delay_s: float = 0.0) -> None:
        self._script = script
        self._delay_s = delay_s
        self._running = asyncio.Event()
        self._running.set()
        self._holds: set[str] = set()
        self._version = 0
        self._incoming: int | None = None

    async def generate_many(
        self, requests: Sequence[GenerateRequest]
    ) -> AsyncIterator[tuple[int, list[Completion]]]:
        """Yield (index of the request, one Completion per seed), in order."""
        for index, request in enumerate(requests):
            await asyncio.sleep(self._delay_s)
            await self._running.wait()
            yield index, [self._complete(request, seed) for seed in request.seeds]

    def _complete(self, request: GenerateRequest, seed: int) -> Completion:
        ids, logprobs = self._script(request, seed)
        limit = request.sampling.max_tokens
        ids, logprobs = tuple(ids[:limit]), tuple(logprobs[:limit])
        stopped = bool(ids) and ids[-1] in request.sampling.stop_token_ids
        return Completion(
            token_ids=ids,
            logprobs=logprobs,
            versions=(self._version,) * len(ids),
            finish_reason="stop" if stopped else "length",
        )

    async def probe(
        self, sequences: Sequence[Sequence[int]], images: Sequence[Sequence[str]] = ()
    ) -> list[list[float]]:
        """Zeros: there is no model."""
        del images
        return [[0.0] * (len(sequence) - 1) for sequence in sequences]

    async def pause(self) -> None:
        """Answer nothing until `resume`."""
        self._hold("update")

    async def resume(self) -> None:
        """Go on answering (unless asleep)."""
        self._release("update")

    async def sleep(self) -> None:
        """Answer nothing until `wake`."""
        self._hold("sleep")

    async def wake(self) -> None:
        """Go on answering (unless paused)."""
        self._release("sleep")

    def _hold(self, reason: str) -> None:
        self._holds.add(reason)
        self._running.clear()

    def _release(self, reason: str) -> None:
        self._holds.discard(reason)
        if not self._holds:
            self._running.set()

    async def init_transfer(self, info: Mapping[str, Any]) -> None:
        """Nothing to open."""

    async def begin_update(self) -> None:
        """Expect a message."""
        self._incoming = None

    async def update(self, info: Mapping[str, Any]) -> None:
        """Note the version; the weights are not read."""
        self._incoming = info["version"]

    async def finish_update(self, version: int) -> None:
        """Answer as the version that came with the message."""
        if self._incoming is None:
            raise SyncError(f"finish_update({version}) without an update")
        self._version = self._incoming

    async def weight_version(self) -> int:
        """The version of the last update."""
        return self._version

    async def reset_cache(self) -> bool:
        """Nothing is cached."""
        return True

    async def close(self) -> None:
        """Nothing to end."""
