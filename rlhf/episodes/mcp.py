"""MCP servers as tools: one server per episode, in a process of its own; needs the package `mcp`, 2.x."""

import asyncio
import importlib.metadata
import json
import shutil
import socket
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rlhf.config.environment import EpisodeLimits
from rlhf.episodes.mcp_bridge import Server, start_bridge
from rlhf.episodes.tool_arguments import SchemaArguments, plain_schema
from rlhf.episodes.tools import Tool, ToolError, schema_of
from rlhf.errors import ConfigError, DependencyError, EpisodeError


class MCP:
    """A server's tools. `command` is started for each episode and ends with it; `url` is one that runs elsewhere.

    `allow`: only these tools, in this order. `environment`: variables of the command beside HOME, PATH and the
    like. A call that is given up (limits.tool_s) has the server killed and started again: it forgets what it knew.
    Where an episode goes back to a checkpoint, the server does not. Made in the environment's module, it is ready
    in every episode at once; DependencyError without the package.
    """

    def __init__(
        self,
        command: Sequence[str] = (),
        *,
        url: str | None = None,
        allow: Collection[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if bool(command) == (url is not None) or isinstance(command, str):
            raise ConfigError(
                f"MCP: command is {command!r} and url {url!r}, expected one of them: a list such as "
                "['python', 'server.py'], or the URL of a streamable HTTP server."
            )
        _check_package()
        self._server = Server(command=tuple(command), url=url, environment=dict(environment or {}))
        self._allow = None if allow is None else tuple(allow)
        self._control: socket.socket | None = None

    def start(self, limits: EpisodeLimits) -> tuple[Tool, ...]:
        """Start the server (limits.setup_s) and list its tools. EpisodeError when it does not answer."""
        self.close()
        program = self._server.command[:1]
        if program and shutil.which(program[0]) is None:
            raise ConfigError(
                f"MCP: there is no program {program[0]!r} on the path (command {self._server.label})."
            )
        self._control = start_bridge(self._server, start_s=limits.setup_s)
        try:
            return self._listed(limits)
        except BaseException:
            self.close()
            raise

    def _listed(self, limits: EpisodeLimits) -> tuple[Tool, ...]:
        listed = self._ask_now({"do": "list"}, timeout_s=limits.setup_s)
        found = {tool["name"]: self._tool(tool, limits.max_tool_result_bytes) for tool in listed["tools"]}
        missing = [name for name in self._allow or () if name not in found]
        if missing:
            raise ConfigError(
                f"MCP: allow names {missing}, but the tools of {self._server.label} are {list(found)}."
            )
        return tuple(found.values()) if self._allow is None else tuple(found[name] for name in self._allow)

    def close(self) -> None:
        """End the server."""
        if self._control is not None:
            self._control.close()
            self._control = None

    def _tool(self, listed: Mapping[str, Any], max_bytes: int) -> Tool:
        name = listed["name"]

        async def run(**arguments: Any) -> str:
            request = {"do": "call", "name": name, "arguments": arguments, "max_bytes": max_bytes}
            answer = await self._ask(request)
            if answer["is_error"]:
                raise ToolError(answer["text"])
            return str(answer["text"])

        return Tool(
            name=name,
            schema=schema_of(name, listed["description"], plain_schema(listed["parameters"])),
            run=run,
            read=SchemaArguments(listed["parameters"]),
            is_async=True,
        )

    async def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        reader, writer = await asyncio.open_connection(sock=self._connection())
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            answer = await reader.read()
        except ConnectionError as error:
            raise self._gone() from error
        finally:
            # Also when the call is given up: by this the bridge knows.
            writer.close()
        return self._answer(answer)

    def _ask_now(self, request: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        with self._connection() as connection:
            connection.settimeout(timeout_s)
            try:
                connection.sendall(json.dumps(request).encode() + b"\n")
                answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
            except TimeoutError as error:
                raise EpisodeError(
                    f"the MCP server {self._server.label} did not answer within {timeout_s:g} s (limits.setup_s)"
                ) from error
            except ConnectionError as error:
                raise self._gone() from error
        return self._answer(answer)

    def _connection(self) -> socket.socket:
        """A fresh one for each request: one that a killed process has left half read disturbs nobody."""
        if self._control is None:
            raise EpisodeError(f"the MCP server {self._server.label} is not running: `start` was not called")
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [b"1"], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise self._gone() from error
        return ours

    def _answer(self, text: bytes) -> dict[str, Any]:
        if not text:
            raise self._gone()
        answer = dict(json.loads(text))
        if "failed" in answer:
            raise EpisodeError(f"the MCP server {self._server.label} cannot be reached: {answer['failed']}")
        return answer

    def _gone(self) -> EpisodeError:
        return EpisodeError(f"the process that talks to the MCP server {self._server.label} has ended")


def _check_package() -> None:
    try:
        # Here, so that it is there when episodes are forked.
        import mcp  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "MCP servers need the package `mcp`: install the extra `content` (pip install 'rlhf-loop[content]')."
        ) from error
    found = importlib.metadata.version("mcp")
    if not found.startswith("2."):
        raise DependencyError(f"mcp {found} is installed, expected 2.x: pip install 'mcp>=2,<3'.")
