"""A model served over HTTP: one JSON request, one JSON reply, and an error that says whose fault it is.

Everything that may pass by itself is a ConnectionError (no connection, a broken reply, status 429 or 5xx) or a
TimeoutError, so that a recipe's `retries` can name them. What will not (another status, a reply of another form) is
an EndpointError. The key is read from an environment variable, and stands in no error and no log.
"""

import asyncio
import json
import os
import re
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp

from rlhf.errors import ConfigError, RlhfError

_T = TypeVar("_T")
_SHOWN = 300
_TRANSIENT = frozenset([408, 425, 429])


class EndpointError(RlhfError, RuntimeError):
    """A served model refused a request, or answered with something else than its API says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a chat model said. `is_complete` is False when it was cut at its token limit."""

    text: str
    is_complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a model is served. ConfigError for an address or a key variable that cannot be used."""

    url: str
    """Address before the path of a call: `http://host:8000/v1` for chat, `http://host:8000` for vLLM's pooling APIs."""
    model: str
    """Name under which the model is served."""
    key_env: str | None = None
    """Name of the environment variable that holds the API key; none: no key is sent."""
    timeout_s: float = 60.0
    """Longest wait for one reply. Set the recipe's `limit_s` above it."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Added to the body of every request (`max_tokens: 2048`, a chat template's switches); null takes a key out."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"https?://[^\s@/?#]+[^\s@?#]*", self.url):
            raise ConfigError(
                "endpoint.url must be an http(s) address without user name, query or fragment, for example "
                "http://127.0.0.1:8000/v1."
            )
        if self.key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_env):
            raise ConfigError(
                "endpoint.key_env must be the name of an environment variable, never the key itself."
            )
        if self.key_env is not None and not os.environ.get(self.key_env):
            raise ConfigError(
                f"endpoint.key_env is {self.key_env!r}, but that variable is not set. Export it first."
            )
        if self.timeout_s <= 0:
            raise ConfigError(f"endpoint.timeout_s is {self.timeout_s}, expected more than 0.")

    async def chat(self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int = 1024) -> Reply:
        """The reply of an OpenAI-compatible chat model, at temperature 0 and with a fixed seed."""
        settings = {"temperature": 0.0, "seed": 0, "max_tokens": max_tokens}
        found = await self.post("/chat/completions", {"messages": list(messages), **settings})
        try:
            choice = found["choices"][0]
            text = choice["message"]["content"]
            if not isinstance(text, str | None):
                raise TypeError(f"content is {text!r:.80}")
            return Reply(text=text or "", is_complete=choice.get("finish_reason") in (None, "stop"))
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise EndpointError(
                f"{self.url} sent no chat completion ({error!r}): {found!r:.{_SHOWN}}"
            ) from None

    async def embed(self, messages: Sequence[Mapping[str, Any]]) -> list[float]:
        """The embedding of a conversation, an image alone for example, as vLLM's pooling runner serves it."""
        found = await self.post("/embeddings", {"messages": list(messages), "encoding_format": "float"})
        try:
            return [float(number) for number in found["data"][0]["embedding"]]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EndpointError(f"{self.url} sent no embedding ({error!r}): {found!r:.{_SHOWN}}") from None

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that `path` answers to `body` (with the model and the parameters)."""
        request = {"model": self.model, **body, **self.parameters}
        request = {key: value for key, value in request.items() if value is not None}
        key = os.environ.get(self.key_env, "") if self.key_env else ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = self.url.rstrip("/") + path
        try:
            status, text = await self._send(url, request, headers)
        except TimeoutError:
            raise TimeoutError(f"{url} did not answer within {self.timeout_s:g} s") from None
        except aiohttp.ClientError as error:
            raise ConnectionError(f"{url}: {type(error).__name__}: {error}") from None
        said = text.replace(key, "***")[:_SHOWN] if key else text[:_SHOWN]
        if status in _TRANSIENT or status >= 500:
            raise ConnectionError(f"{url} answered with status {status}: {said}")
        if status != 200:
            raise EndpointError(f"{url} refused the request with status {status}: {said}")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise EndpointError(f"{url} answered with something else than a JSON object: {said}")
        return found

    async def _send(self, url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, str]:
        # A session for each call: connecting takes no time beside a model's answer, and nothing is left to close.
        timeout = aiohttp.ClientTimeout(total=self.timeout_s)
        # Following a redirect could send the key elsewhere.
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(url, json=dict(body), headers=dict(headers), allow_redirects=False) as response,
        ):
            return response.status, (await response.read()).decode("utf-8", errors="replace")


def as_endpoint(given: Endpoint | Mapping[str, Any]) -> Endpoint:
    """The Endpoint that a recipe's mapping describes. ConfigError for a setting it does not have."""
    if isinstance(given, Endpoint):
        return given
    known = Endpoint.__dataclass_fields__
    unknown = [name for name in given if name not in known]
    missing = [name for name in ("url", "model") if name not in given]
    if unknown or missing:
        raise ConfigError(
            f"endpoint: unknown {unknown}, missing {missing}; expected some of {', '.join(known)}."
        )
    return Endpoint(**given)


async def together(calls: Sequence[Coroutine[Any, Any, _T]], *, at_once: int) -> list[_T]:
    """The results, in order. The first error ends all calls and is raised."""
    free = asyncio.Semaphore(at_once)

    async def one(call: Coroutine[Any, Any, _T]) -> _T:
        async with free:
            return await call

    tasks = [asyncio.create_task(one(call)) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for call in calls:
            call.close()
