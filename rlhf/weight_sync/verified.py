"""Publishing, in order: send, pause, load, shake hands, resume, probe."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rlhf.errors import RlhfError, SyncError
from rlhf.weight_sync.probe import Probe, check_probe


class SendingLearner(Protocol):
    """The learner ranks, as a sync sees them."""

    async def send_weights(self, version: int) -> Mapping[str, Any] | None:
        """Run the sender on every rank; rank 0's update message (None where the sender streams)."""

    async def release_weights(self) -> None:
        """Free what `send_weights` made. Called on success and on failure."""

    async def offload(self) -> None:
        """Leave the device to the engines (colocated placement)."""

    async def probe(
        self, sequences: Sequence[Sequence[int]], images: Sequence[Sequence[str]] = ()
    ) -> list[list[float]]:
        """[sequence][T-1] log-probabilities at temperature 1."""


class ReceivingEngines(Protocol):
    """All engines, as a sync sees them; each call reaches every engine."""

    async def pause(self) -> None:
        """Stop decoding; requests in flight keep their place."""

    async def resume(self) -> None:
        """Go on decoding."""

    async def wake(self) -> None:
        """Bring sleeping weights back (the KV cache follows with `resume`); nothing if none sleeps."""

    async def begin_update(self) -> None:
        """Get ready for new weights."""

    async def update(self, info: Mapping[str, Any]) -> None:
        """Receive and load one message."""

    async def finish_update(self, version: int) -> None:
        """Make the new weights live."""

    async def weight_versions(self) -> list[int]:
        """The version each engine says it samples with."""

    async def probe(
        self, sequences: Sequence[Sequence[int]], images: Sequence[Sequence[str]] = ()
    ) -> list[list[list[float]]]:
        """[engine][sequence][T-1] log-probabilities at temperature 1."""


class VerifiedSync:
    """interfaces.WeightSync. After an error the engines stay paused: half-loaded weights must not sample.

    `streamed`: the learner's sender makes the engines receive (nccl, ipc), so they are paused before it
    sends; else (cpu, disk) they decode on while it writes, and the driver passes its message on.
    `colocated`: the learner leaves the device before the engines take back their KV cache.
    """

    def __init__(
        self,
        learner: SendingLearner,
        engines: ReceivingEngines,
        *,
        probe: Probe,
        streamed: bool = False,
        colocated: bool = False,
    ) -> None:
        self._learner = learner
        self._engines = engines
        self._probe = probe
        self._streamed = streamed
        self._colocated = colocated
        self._num_published = 0

    async def publish(self, version: int) -> Mapping[str, float]:
        """Put `version` live in every engine, verified; gives sync/seconds, sync/probe_s, sync/probe_gap."""
        started = time.monotonic()
        verify = self._num_published % self._probe.every == 0
        self._num_published += 1
        # Asked now: colocated, the learner has left the device when the engines can answer.
        asked = (self._probe.sequences, self._probe.images)
        expected = await self._learner.probe(*asked) if verify else []
        probe_s = time.monotonic() - started
        try:
            await (self._stream if self._streamed else self._pass_on)(version)
        except BaseException:
            # The cause is what the caller must see, also when a dead or hung rank cannot release any more.
            with contextlib.suppress(RlhfError):
                await self._learner.release_weights()
            raise
        await self._learner.release_weights()
        await self._shake_hands(version)
        if self._colocated:
            await self._learner.offload()
        await self._engines.resume()
        metrics: dict[str, float] = {}
        if verify:
            # After resuming: prompt log-probabilities need the scheduler and the KV cache.
            resumed = time.monotonic()
            engines = await self._engines.probe(*asked)
            metrics |= check_probe(expected, engines, tolerance=self._probe.tolerance, version=version)
            metrics["sync/probe_s"] = probe_s + time.monotonic() - resumed
        return {**metrics, "sync/seconds": time.monotonic() - started}

    async def _pass_on(self, version: int) -> None:
        info = await self._learner.send_weights(version)
        if info is None:
            raise SyncError(
                "the learner's sender returned no update message; only nccl and ipc stream their weights"
            )
        await self._engines.pause()
        await self._engines.wake()
        await self._engines.begin_update()
        await self._engines.update(info)
        await self._engines.finish_update(version)

    async def _stream(self, version: int) -> None:
        await self._engines.pause()
        await self._engines.wake()
        await self._engines.begin_update()
        await self._learner.send_weights(version)
        await self._engines.finish_update(version)

    async def _shake_hands(self, version: int) -> None:
        for index, reported in enumerate(await self._engines.weight_versions()):
            if reported != version:
                raise SyncError(
                    f"engine {index} says it holds weight version {reported}, but version {version} was "
                    "published: it loaded another sync's weights."
                )
