"""All rollout engines behind one door: routing, one submission per tick, deadlines, typed failures."""

import asyncio
import math
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayError

from rlhf.cluster.watchdog import Named, answer, stack_of, translate
from rlhf.config.schema import TimeoutConfig
from rlhf.engines.routing import Router
from rlhf.errors import DeadlineError, EngineError
from rlhf.interfaces import GenerateRequest
from rlhf.types import Completion

PAUSE_S = 0.01
"""Between two submissions to the engines."""


@dataclass(slots=True)
class _Pending:
    request: GenerateRequest
    future: asyncio.Future[list[Completion]]

    @property
    def tokens(self) -> int:
        r = self.request
        return len(r.prompt_token_ids) + len(r.seeds) * r.sampling.max_tokens


@dataclass(slots=True)
class EngineClient:
    """interfaces.RolloutEngine over actors. Requests made in one tick reach each engine in one call, in order."""

    engines: Sequence[Named]
    timeouts: TimeoutConfig
    router: Router = field(init=False)
    _queue: list[_Pending] = field(default_factory=list)
    _readers: set[asyncio.Task[None]] = field(default_factory=set)
    _submitted: float = -math.inf
    """When requests were sent last."""

    def __post_init__(self) -> None:
        self.router = Router(num_engines=len(self.engines))

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """One Completion per seed, in seed order."""
        loop = asyncio.get_running_loop()
        pending = _Pending(request, loop.create_future())
        if not self._queue:
            # Turns of many episodes come one by one: a call for each would cost more than to wait for the next few.
            loop.call_later(max(0.0, self._submitted + PAUSE_S - loop.time()), self._submit)
        self._queue.append(pending)
        return await pending.future

    def _submit(self) -> None:
        self._submitted = asyncio.get_running_loop().time()
        shares: dict[int, list[_Pending]] = {}
        for pending in self._queue:
            engine = self.router.assign(pending.request.prompt_token_ids, tokens=pending.tokens)
            shares.setdefault(engine, []).append(pending)
        self._queue.clear()
        for engine, share in shares.items():
            task = asyncio.create_task(self._read(engine, share), name=f"engine {engine} reader")
            self._readers.add(task)
            task.add_done_callback(self._readers.discard)

    async def _read(self, engine: int, share: list[_Pending]) -> None:
        """Hand each finished request of one submission to its waiter; a failure reaches all that are left."""
        actor = self.engines[engine]
        waiting = dict(enumerate(share))
        started = time.monotonic()
        try:
            stream = actor.handle.stream.options(num_returns="streaming").remote(
                "generate_many", [pending.request for pending in share]
            )
            while waiting:
                left = self.timeouts.generate_s - (time.monotonic() - started)
                reference = await asyncio.wait_for(anext(stream), max(left, 0.01))
                for index, completions in await reference:
                    pending = waiting.pop(index)
                    self.router.finish(engine, tokens=pending.tokens)
                    if not pending.future.done():
                        pending.future.set_result(completions)
        except StopAsyncIteration:
            _fail(waiting, EngineError(f"{actor.name}: its answers to generate ended early"))
        except RayError as error:  # before TimeoutError: what an actor raised may be both
            _fail(waiting, translate(error, actor=actor, call="generate"))
        except TimeoutError:
            stack = await stack_of(actor)
            late = (
                f"{actor.name} left {len(waiting)} of {len(share)} prompts unanswered after "
                f"{self.timeouts.generate_s:g} s (timeouts.generate_s). Its Python stack was:\n{stack}"
            )
            _fail(waiting, DeadlineError(late))
        except Exception as error:  # noqa: BLE001 -- whatever it is, those who wait must hear of it
            _fail(waiting, EngineError(f"{actor.name}: reading its answers failed: {error!r}"))

    async def on_all(self, method: str, *args: Any, limit_s: float | None = None) -> list[Any]:
        """Call one method on every engine at once; the answers in engine order."""
        limit = self.timeouts.sync_s if limit_s is None else limit_s
        return list(
            await asyncio.gather(
                *(
                    answer(e.handle.call.remote(method, *args), actor=e, call=method, limit_s=limit)
                    for e in self.engines
                )
            )
        )

    async def probe(
        self, sequences: Sequence[Sequence[int]], images: Sequence[Sequence[str]] = ()
    ) -> list[list[list[float]]]:
        """[engine][sequence][T-1] log-probabilities."""
        return await self.on_all("probe", sequences, images)

    async def pause(self) -> None:
        """Stop decoding everywhere; requests in flight keep their place."""
        await self.on_all("pause")

    async def resume(self) -> None:
        """Go on decoding."""
        await self.on_all("resume")

    async def sleep(self) -> None:
        """Free the devices."""
        await self.on_all("sleep")

    async def wake(self) -> None:
        """Take the devices back."""
        await self.on_all("wake")

    async def begin_update(self) -> None:
        """Make every engine ready for new weights."""
        await self.on_all("begin_update")

    async def update(self, info: Mapping[str, Any]) -> None:
        """Send every engine one update message."""
        await self.on_all("update", info)

    async def finish_update(self, version: int) -> None:
        """Make the new weights live as `version`; prefixes computed before are forgotten."""
        await self.on_all("finish_update", version)
        self.router.forget()

    async def forget_prefixes(self) -> None:
        """Drop every cached prefix, in the engines and in the router."""
        await self.on_all("reset_cache")
        self.router.forget()

    async def weight_versions(self) -> list[int]:
        """The version that each engine says is live."""
        return await self.on_all("weight_version")

    async def close(self) -> None:
        """End every engine and its children."""
        for task in list(self._readers):
            task.cancel()
        await asyncio.gather(*(_close(e) for e in self.engines))


def _fail(waiting: Mapping[int, _Pending], error: Exception) -> None:
    for pending in waiting.values():
        if not pending.future.done():
            pending.future.set_exception(error)


async def _close(actor: Named) -> None:
    closing: Awaitable[Any] = answer(actor.handle.close.remote(), actor=actor, call="close", limit_s=30)
    await asyncio.gather(closing, return_exceptions=True)
