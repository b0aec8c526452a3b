"""An OpenAI-compatible server in front of the engines: programs that know its address are trained as they are."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from rlhf.episodes.conversation import Dialect, EpisodeEnded, Policy
from rlhf.episodes.endpoint_session import Reply, Session
from rlhf.episodes.endpoint_wire import ChatAnswer, ChatRequest, RequestError, read_request
from rlhf.episodes.ledger import TokenLedger
from rlhf.errors import EpisodeError

_MAX_BODY = 256 << 20
_RETRY = "x-stainless-retry-count"
_NOT_AGAIN = {"x-should-retry": "false"}


class RolloutServer:
    """One server for all episodes of a run: chat completions at `{url}/e/{key}/v1`, or `{url}/v1` with the key."""

    def __init__(
        self, dialect: Dialect, *, model: str = "policy", host: str = "127.0.0.1", keep_alive_s: float = 10.0
    ) -> None:
        self._dialect = dialect
        self._model = model
        self._host = host
        self._keep_alive_s = keep_alive_s
        self._sessions: dict[str, Session] = {}
        self._runner: web.AppRunner | None = None
        self._starting = asyncio.Lock()
        self.url = ""
        """Where it listens, once started."""

    async def start(self) -> None:
        """Listen on a free port, unless it does."""
        async with self._starting:
            if self._runner is None:
                await self._start()

    async def _start(self) -> None:
        app = web.Application(client_max_size=_MAX_BODY, middlewares=[_in_their_form])
        for base in ("/e/{key}/v1", "/v1"):
            app.router.add_post(f"{base}/chat/completions", self._complete)
            app.router.add_get(f"{base}/models", self._list_models)
            app.router.add_get(f"{base}/models/{{model}}", self._list_models)
        # A handler whose client has gone ends; what it waited for is the session's and goes on.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://{self._host}:{port}"

    async def close(self) -> None:
        """End every session and stop listening."""
        await asyncio.gather(*(session.seal() for session in self._sessions.values()))
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> "RolloutServer":
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @asynccontextmanager
    async def episode(
        self, policy: Policy, *, ledger: TokenLedger | None = None, name: str = "episode"
    ) -> AsyncIterator[Session]:
        """A session at an address of its own; afterwards nothing is answered there, and the record is complete.

        It lasts for `policy.limits.episode_s` at most. `ledger`: one that was begun, if not a new one.
        """
        if self._runner is None:
            raise EpisodeError("the endpoint is not started: enter it, or await start(), before an episode")
        key = f"{name}-{secrets.token_hex(12)}"
        session = Session(
            self._dialect,
            policy,
            ledger or TokenLedger(),
            base_url=f"{self.url}/e/{key}/v1",
            api_key=key,
        )
        timer = asyncio.get_running_loop().call_later(policy.limits.episode_s, session.expire)
        self._sessions[key] = session
        try:
            yield session
        finally:
            timer.cancel()
            await session.seal()
            del self._sessions[key]

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        session = self._session(request)
        asked = read_request(await request.read())
        reply = session.ask(asked, is_retry=_retries(request) > 0)
        reply.num_waiting += 1
        try:
            if asked.is_streamed:
                response = await self._stream(request, asked, session, reply)
            else:
                answer = await _result(session, reply)
                response = web.json_response(answer.body(with_logprobs=asked.wants_logprobs))
                await response.prepare(request)
            await response.write_eof()
            reply.was_delivered = True
            return response
        finally:
            reply.num_waiting -= 1

    async def _stream(
        self, request: web.Request, asked: ChatRequest, session: Session, reply: Reply
    ) -> web.StreamResponse:
        """Server-sent events; the status tells of an error if that comes before the first comment has to be sent."""
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        while not (await asyncio.wait({reply.task}, timeout=self._keep_alive_s))[0]:
            await response.prepare(request)
            await response.write(b": keep-alive\n\n")
        try:
            answer = await _result(session, reply)
        except RequestError as error:
            if not response.prepared:
                raise
            await response.write(_event(error.body))
            return response
        await response.prepare(request)
        for chunk in answer.chunks(with_logprobs=asked.wants_logprobs, with_usage=asked.wants_usage):
            await response.write(_event(chunk))
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _list_models(self, request: web.Request) -> web.Response:
        self._session(request)
        model = {"id": self._model, "object": "model", "created": 0, "owned_by": "rlhf"}
        if "model" in request.match_info:
            return web.json_response(model)
        return web.json_response({"object": "list", "data": [model]})

    def _session(self, request: web.Request) -> Session:
        """The live episode that path and key name; either is enough, but they must not name two."""
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        by_key, path = self._sessions.get(bearer), request.match_info.get("key")
        if path is None:
            if by_key is None:
                raise RequestError(
                    "no episode has this key, or it is over", status=401, code="invalid_api_key"
                )
            return by_key
        session = self._sessions.get(path)
        if session is None:
            raise RequestError(
                "there is no episode at this address, or it is over", status=404, code="episode_over"
            )
        if by_key not in (None, session):
            raise RequestError("the key is another episode's", status=401, code="invalid_api_key")
        return session


async def _result(session: Session, reply: Reply) -> ChatAnswer:
    """The answer, for one of those who wait for it; their going away leaves it alone."""
    await asyncio.wait({reply.task})
    if reply.task.cancelled():
        raise session.refusal()
    error = reply.task.exception()
    if isinstance(error, EpisodeEnded):
        raise session.refusal()
    if error is not None:
        raise RequestError(
            f"the engine failed: {session.error}", status=500, code="policy_error", kind="server_error"
        )
    return reply.task.result()


@web.middleware
async def _in_their_form(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Every error as OpenAI's clients expect it."""
    try:
        return await handler(request)
    except RequestError as error:
        return web.json_response(error.body, status=error.status, headers=_NOT_AGAIN)
    except web.HTTPException as error:
        told = RequestError(
            f"{request.method} {request.path}: {error.reason}. Served here: chat/completions, models",
            status=error.status,
        )
        return web.json_response(told.body, status=told.status, headers=_NOT_AGAIN)


def _retries(request: web.Request) -> int:
    count = request.headers.get(_RETRY, "0")
    return int(count) if count.isdigit() else 0


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"
