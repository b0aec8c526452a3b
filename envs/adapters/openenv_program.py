"""Keeps one WebSocket session of OpenEnv's protocol open; answers the server's pings while the model thinks.

`openenv_program.py URL`. Lines in: {"id", "send"}; lines out: {"id", "got"} or {"id", "failed"}.
"""

import asyncio
import json
import sys
from typing import Any

import aiohttp

_MOST_BYTES = 100 << 20


async def main(url: str) -> None:
    """Serve until standard input ends."""
    lines = asyncio.StreamReader(limit=_MOST_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    async with aiohttp.ClientSession() as http:
        try:
            socket = await http.ws_connect(f"{url.rstrip('/')}/ws", max_msg_size=_MOST_BYTES)
        except (aiohttp.ClientError, OSError) as error:
            line = await lines.readline()
            _tell({"id": json.loads(line)["id"], "failed": f"{type(error).__name__}: {error}"})
            return
        hearing = asyncio.create_task(_hear(socket, answers))
        while line := await lines.readline():
            request = json.loads(line)
            try:
                await socket.send_str(json.dumps(request["send"]))
                _tell({"id": request["id"], **await answers.get()})
            except ConnectionError as error:
                _tell({"id": request["id"], "failed": f"{type(error).__name__}: {error}"})
        hearing.cancel()


async def _hear(socket: aiohttp.ClientWebSocketResponse, answers: asyncio.Queue[dict[str, Any]]) -> None:
    async for message in socket:
        if message.type == aiohttp.WSMsgType.TEXT:
            try:
                answers.put_nowait({"got": json.loads(message.data)})
            except ValueError as error:
                told = f"the server sent what is no JSON ({error}): {message.data[:200]!r}"
                answers.put_nowait({"failed": told})
    answers.put_nowait({"failed": f"the server ended the session (code {socket.close_code})"})


def _tell(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
