"""An MCP server for tests: `python mcp_server.py [PORT]`; standard input and output without a port."""

import asyncio
import os
import sys
import time

from mcp.server import MCPServer

app = MCPServer("test")
seen: list[int] = []
arrived: list[int] = []


@app.tool()
def add(a: int, b: int = 2) -> int:
    """Add two numbers."""
    return a + b


@app.tool()
def remember(number: int) -> str:
    seen.append(number)
    return f"{os.getpid()} {seen}"


@app.tool()
def environment(name: str) -> str:
    return os.environ.get(name, "none")


@app.tool()
def raises() -> str:
    raise ValueError("secret of the host")


@app.tool()
def ends() -> str:
    os._exit(3)


@app.tool()
def sleeps() -> str:
    time.sleep(600)
    return ""


@app.tool()
async def naps(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "rested"


@app.tool()
async def meets(number: int) -> str:
    """Wait until so many calls are here."""
    arrived.append(number)
    while len(arrived) < number:
        await asyncio.sleep(0.01)
    return "met"


@app.tool()
def large(size: int) -> str:
    return "first" + "x" * size + "last"


if len(sys.argv) > 1:
    app.run(transport="streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
else:
    app.run()
