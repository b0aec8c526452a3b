"""Thin hosts: any object of ours inside a Ray actor, its methods called by name."""

import asyncio
import faulthandler
import io
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import Any

import ray

from rlhf.cluster.watchdog import Named
from rlhf.machine import free_port


class _Host:
    """State shared by both hosts: the hosted object, and a file that gets this process's stack on SIGUSR1."""

    def __init__(self, factory: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        # A file without a name: others reach it through /proc, and nothing is left behind.
        self._stack_file = tempfile.TemporaryFile()  # noqa: SIM115
        faulthandler.register(signal.SIGUSR1, file=self._stack_file, all_threads=True)
        self._factory = factory
        self._kwargs = kwargs
        self._object: Any = None

    def _identity(self) -> tuple[str, int, str]:
        pid = os.getpid()
        return ray.get_runtime_context().get_node_id(), pid, f"/proc/{pid}/fd/{self._stack_file.fileno()}"


_END = object()
_GATHER_S = 0.003
"""What one item waits for others."""


@ray.remote
class AsyncHost(_Host):
    """Hosts an engine: many calls at a time on one event loop."""

    async def identify(self) -> tuple[str, int, str]:
        """(node id, process id, stack file)."""
        return self._identity()

    async def start(self) -> None:
        """Build the hosted object; its constructor may be a coroutine."""
        made = self._factory(**self._kwargs)
        self._object = await made if asyncio.iscoroutine(made) else made

    async def call(self, method: str, *args: Any) -> Any:
        """Await one method."""
        return await getattr(self._object, method)(*args)

    async def stream(self, method: str, *args: Any) -> AsyncIterator[list[Any]]:
        """Yield what an async-generator method yields, in lists of what has come since the last one."""
        items: asyncio.Queue[Any] = asyncio.Queue()

        async def pump() -> None:
            try:
                async for item in getattr(self._object, method)(*args):
                    items.put_nowait(item)
            finally:
                items.put_nowait(_END)

        pumping = asyncio.create_task(pump())
        try:
            found: list[Any] = []
            while found[-1:] != [_END]:
                found = [await items.get()]
                await asyncio.sleep(_GATHER_S)
                found += [items.get_nowait() for _ in range(items.qsize())]
                if ready := [item for item in found if item is not _END]:
                    yield ready
            await pumping
        finally:
            pumping.cancel()

    async def close(self) -> None:
        """Close the hosted object."""
        if self._object is not None:
            await self._object.close()

    async def tasks(self) -> str:
        """What every coroutine of this process waits for."""
        text = io.StringIO()
        for task in asyncio.all_tasks():
            task.print_stack(limit=6, file=text)
        return text.getvalue()


@ray.remote
class SyncHost(_Host):
    """Hosts a learner rank: one call at a time, in the main thread."""

    def identify(self) -> tuple[str, int, str]:
        """(node id, process id, stack file)."""
        return self._identity()

    def address(self) -> tuple[str, int]:
        """A host name and a free port for a rendezvous led by this process."""
        return ray.util.get_node_ip_address(), free_port()

    def start(self, extra: dict[str, Any]) -> None:
        """Build the hosted object; `extra` joins its keyword arguments."""
        self._object = self._factory(**self._kwargs, **extra)

    def call(self, method: str, *args: Any) -> Any:
        """Call one method."""
        return getattr(self._object, method)(*args)

    def close(self) -> None:
        """Close the hosted object."""
        if self._object is not None:
            self._object.close()


async def named(handle: Any, *, name: str, kind: str) -> Named:
    """Attach a name, and what the watchdog needs to look into a hang."""
    node_id, pid, stack_file = await handle.identify.remote()
    return Named(handle=handle, name=name, kind=kind, node_id=node_id, pid=pid, stack_file=stack_file)
