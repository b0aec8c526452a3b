"""Services of a run: each in an actor that has its cores and GPUs, watched until the run ends."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

import ray
from ray.exceptions import RayError

from rlhf.cluster.actors import AsyncHost, named
from rlhf.cluster.launch import thread_environment
from rlhf.cluster.watchdog import Named, answer, translate
from rlhf.errors import DeadlineError
from rlhf.services.process import ServiceProcess
from rlhf.services.settings import ServiceSettings

logger = logging.getLogger(__name__)

_CLOSE_S = 30.0


@contextlib.asynccontextmanager
async def open_services(
    services: Sequence[ServiceSettings], *, is_local: bool, limit_s: float
) -> AsyncIterator[Mapping[str, str]]:
    """Start every service at once, inside Ray; their addresses by name. They end with the block.

    `is_local`: Ray is on this machine alone, so the loopback will do. A service that dies later is logged.
    """
    async with contextlib.AsyncExitStack() as stack:
        actors = []
        for settings in services:
            handle = AsyncHost.options(  # type: ignore[attr-defined]
                num_cpus=settings.threads,
                num_gpus=settings.num_gpus,
                runtime_env={"env_vars": thread_environment(settings.threads)},
            ).remote(_start, {"settings": settings, "is_local": is_local, "limit_s": limit_s})
            stack.callback(ray.kill, handle)
            actors.append(await _named(handle, settings, limit_s))
            stack.push_async_callback(_close, actors[-1])
        # Beyond the service's own deadline, which says more.
        starts = [
            answer(a.handle.start.remote(), actor=a, call="start", limit_s=limit_s + 30) for a in actors
        ]
        await asyncio.gather(*starts)
        addresses = {}
        for settings, actor in zip(services, actors, strict=True):
            call = actor.handle.call.remote("address")
            addresses[settings.name] = await answer(call, actor=actor, call="address", limit_s=_CLOSE_S)
            watch = asyncio.create_task(_watch(actor), name=f"watch of {actor.name}")
            stack.callback(watch.cancel)
            logger.info(
                "%s: %s on %s at %s", actor.name, settings.model, settings.engine, addresses[settings.name]
            )
        yield addresses


async def _start(*, settings: ServiceSettings, is_local: bool, limit_s: float) -> ServiceProcess:
    """One service, inside its actor."""
    host = "127.0.0.1" if is_local else ray.util.get_node_ip_address()
    return await ServiceProcess.start(replace(settings, host=host), limit_s=limit_s)


async def _named(handle: object, settings: ServiceSettings, limit_s: float) -> Named:
    name = f"service {settings.name!r}"
    try:
        return await asyncio.wait_for(named(handle, name=name, kind="service"), limit_s)
    except TimeoutError:
        raise DeadlineError(
            f"{name}: no node had {settings.threads} cores and {settings.num_gpus} GPUs free for it within "
            f"{limit_s:g} s (services.{settings.name}.threads, gpus; timeouts.start_s)."
        ) from None


async def _watch(actor: Named) -> None:
    """Say so when the service dies: rewards only see that nobody answers."""
    try:
        said = await actor.handle.call.remote("ended")
    except RayError as error:
        said = str(translate(error, actor=actor, call="ended"))
    logger.error("%s\nRewards that ask it fail with a ConnectionError from now on.", said)


async def _close(actor: Named) -> None:
    closing = answer(actor.handle.close.remote(), actor=actor, call="close", limit_s=_CLOSE_S)
    await asyncio.gather(closing, return_exceptions=True)
