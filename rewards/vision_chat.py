"""Many questions to one served model at once, from code that is not asynchronous."""

import asyncio
from base64 import b64encode
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any, TypeVar

from PIL.Image import Image

from rewards.endpoint import Endpoint, EndpointError, Reply, as_endpoint, together
from rlhf.errors import ConfigError

Messages = Sequence[Mapping[str, Any]]
_T = TypeVar("_T")
_SHOWN = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A served model. What may pass by itself is asked again `retries` times, each time after a longer pause."""

    endpoint: Endpoint
    at_once: int = 16
    """Calls that are under way together."""
    retries: int = 2
    pause_s: float = 1.0
    """Before the first retry; twice as long before each next one."""
    max_tokens: int = 1024
    """Of a reply."""

    def __post_init__(self) -> None:
        if self.at_once < 1 or self.retries < 0 or self.pause_s < 0 or self.max_tokens < 1:
            raise ConfigError(
                f"at_once is {self.at_once}, retries {self.retries}, pause_s {self.pause_s}, max_tokens "
                f"{self.max_tokens}: expected at_once and max_tokens of 1 or more, the others not below 0."
            )

    def ask(self, asked: Sequence[Messages]) -> list[Reply]:
        """One reply to each, in order; not to be called inside an event loop.

        Raises EndpointError, ConnectionError or TimeoutError as `rewards.endpoint`, the last two after the retries.
        """
        return self._together(
            [partial(self.endpoint.chat, messages, max_tokens=self.max_tokens) for messages in asked]
        )

    def embed(self, shown: Sequence[Messages]) -> list[list[float]]:
        """One vector to each, in order; otherwise as `ask`."""
        return self._together([partial(self.endpoint.embed, messages) for messages in shown])

    def _together(self, calls: Sequence[Callable[[], Coroutine[Any, Any, _T]]]) -> list[_T]:
        patient = [self._patiently(call) for call in calls]
        return asyncio.run(together(patient, at_once=self.at_once)) if patient else []

    async def _patiently(self, call: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        for attempt in range(self.retries):
            try:
                return await call()
            except (ConnectionError, TimeoutError):
                await asyncio.sleep(self.pause_s * 2**attempt)
        return await call()


def chat_of(endpoint: Endpoint | Mapping[str, Any], settings: Mapping[str, Any]) -> Chat:
    """A Chat from a recipe's mappings. ConfigError for a setting it does not have."""
    known = [name for name in Chat.__dataclass_fields__ if name != "endpoint"]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ConfigError(f"chat: unknown {unknown}, expected some of {', '.join(known)}.")
    return Chat(endpoint=as_endpoint(endpoint), **settings)


def unread(reply: Reply, expected: str, *, about: str) -> EndpointError:
    """The error for a reply that does not hold what was asked for."""
    cut = "" if reply.is_complete else " (cut at its token limit: raise max_tokens)"
    return EndpointError(f"{about}: expected {expected}, the model replied{cut}: {reply.text[-_SHOWN:]!r}")


def image_part(image: Image, *, max_side: int) -> dict[str, Any]:
    """The picture as a content part of a message: a PNG in a data URI, made smaller if a side is longer."""
    shown = image.convert("RGB")
    if max(shown.size) > max_side:
        shown.thumbnail((max_side, max_side))
    written = BytesIO()
    shown.save(written, "PNG")
    uri = "data:image/png;base64," + b64encode(written.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": uri}}
