"""The process between an episode and its MCP server: forked from the episode's, gone when that is.

The client of `mcp` lives in an event loop, which neither survives a fork nor a kill; an episode's process is forked
and killed at any time. So the loop has a process of its own. Each request comes over a connection of its own.
"""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, NoReturn

import psutil

from rlhf.episodes.tool_text import cut

_LINE_BYTES = 1 << 26
_DIES_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or os._exit(1); os.execvp(sys.argv[2], sys.argv[2:])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """How a server is reached."""

    command: tuple[str, ...]
    url: str | None
    environment: Mapping[str, str]

    @property
    def label(self) -> str:
        """For messages."""
        return self.url or " ".join(self.command)


def start_bridge(server: Server, *, start_s: float) -> socket.socket:
    """Fork the process; it ends, and its server with it, when no process holds the returned socket any more.

    Each datagram on it brings one end of a connection for one request.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if child := os.fork():
        theirs.close()
        os.waitpid(child, 0)
        return ours
    # Of nobody's: who started it need not bury it.
    if os.fork():
        os._exit(0)
    _live(theirs, server, start_s)


def _live(control: socket.socket, server: Server, start_s: float) -> NoReturn:
    try:
        # Of a group of its own: the episode's process is killed with its group, and a checkpoint goes on with this one.
        os.setpgid(0, 0)
        os.closerange(3, control.fileno())
        os.closerange(control.fileno() + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        asyncio.run(_Bridge(control, server, start_s).serve())
    finally:
        _kill_children()
        os._exit(0)


def _kill_children() -> None:
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


class _Bridge:
    """One client, started again when its server hangs or ends."""

    def __init__(self, control: socket.socket, server: Server, start_s: float) -> None:
        self._control = control
        self._server = server
        self._start_s = start_s
        self._client: Any = None
        self._failed = ""
        self._num_running = 0
        self._ready = asyncio.Event()
        self._broken = asyncio.Event()
        self._idle = asyncio.Event()
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Until the episode's processes are gone."""
        asyncio.get_running_loop().add_reader(self._control.fileno(), self._accept)
        self._start(self._keep())
        await self._over.wait()
        # Not by way of the client's own farewell: it grants a server seconds to end.
        _kill_children()
        os._exit(0)

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _accept(self) -> None:
        data, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
        if not data:
            self._over.set()
            return
        self._start(self._answer(socket.socket(fileno=descriptors[0])))

    async def _keep(self) -> None:
        while not self._failed:
            try:
                async with AsyncExitStack() as stack:
                    async with asyncio.timeout(self._start_s):
                        self._client = await stack.enter_async_context(self._connect())
                    self._ready.set()
                    await self._broken.wait()
                    await self._idle.wait()
                    # Otherwise the client first waits whether a server that hangs will end by itself.
                    _kill_children()
            except Exception as error:  # noqa: BLE001 -- whatever the client raises, the episode must hear of it
                if not self._broken.is_set():
                    self._failed = f"{type(error).__name__}: {_innermost(error)}"
            self._broken.clear()
        self._ready.set()

    def _connect(self) -> Any:
        from mcp import Client, StdioServerParameters
        from mcp.client.stdio import stdio_client

        if self._server.url is not None:
            return Client(self._server.url)
        launched = ["-I", "-S", "-c", _DIES_WITH_PARENT, str(os.getpid()), *self._server.command]
        parameters = StdioServerParameters(
            command=sys.executable, args=launched, env=dict(self._server.environment), cwd=os.getcwd()
        )
        # The descriptor rather than sys.stderr: what that is, tests and notebooks decide.
        return Client(stdio_client(parameters, errlog=os.fdopen(os.dup(2), "w")))

    async def _answer(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection, limit=_LINE_BYTES)
        try:
            request = json.loads(await reader.readline())
            gone = asyncio.create_task(reader.read(1))
            await _first(gone, asyncio.create_task(self._ready.wait()))
            answer = None if gone.done() else await self._until_given_up(request, gone)
            if answer is not None:
                writer.write(json.dumps(answer).encode())
                await writer.drain()
        except (ConnectionError, ValueError):
            pass  # Nobody waits for it any more.
        finally:
            writer.close()

    async def _until_given_up(
        self, request: Mapping[str, Any], gone: asyncio.Task[bytes]
    ) -> dict[str, Any] | None:
        if self._failed:
            return {"failed": self._failed}
        self._num_running += 1
        self._idle.clear()
        work = asyncio.create_task(self._do(request))
        await _first(work, gone)
        answer = work.result() if work.done() else None
        if answer is None:
            self._restart()
            work.cancel()
        self._num_running -= 1
        if not self._num_running:
            self._idle.set()
        return answer

    def _restart(self) -> None:
        """As soon as the requests that run have ended; those that come now wait for it."""
        self._ready.clear()
        self._broken.set()

    async def _do(self, request: Mapping[str, Any]) -> dict[str, Any]:
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED

        try:
            if request["do"] == "list":
                return {"tools": await self._list()}
            result = await self._client.call_tool(request["name"], request["arguments"])
            return {"text": cut(_text(result), request["max_bytes"]), "is_error": bool(result.is_error)}
        except MCPError as error:
            if error.code != CONNECTION_CLOSED:
                return {"text": cut(str(error), 2000), "is_error": True}
        except Exception as error:  # noqa: BLE001 -- a server may answer anything
            return {"text": f"the server's answer cannot be read ({type(error).__name__})", "is_error": True}
        self._restart()
        return {
            "text": "the server ended, and was started again; it has forgotten what it knew",
            "is_error": True,
        }

    async def _list(self) -> list[dict[str, Any]]:
        found: list[Any] = []
        cursor: str | None = None
        while True:
            page = await self._client.list_tools(cursor=cursor)
            found += page.tools
            cursor = page.next_cursor
            if not cursor:
                break
        return [
            {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
            for tool in found
        ]


async def _first(*tasks: asyncio.Task[Any]) -> None:
    """Wait for one of them."""
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


def _text(result: Any) -> str:
    """What a model reads of a call's result: texts, and the kinds of what is none."""
    parts = [_part(block) for block in result.content]
    if not parts and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(parts)


def _part(block: Any) -> str:
    match block.type:
        case "text":
            return str(block.text)
        case "resource" if hasattr(block.resource, "text"):
            return str(block.resource.text)
        case "resource_link":
            return f"[resource {block.uri}]"
    return f"[{block.type}]"


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
