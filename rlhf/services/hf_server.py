"""A small server on transformers with the calls of vLLM's that rewards use: /classify, /v1/chat/completions, /health.

For small models, and for machines without vLLM's server: requests that wait are classified together, answers of a
chat are generated one after the other.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from aiohttp import web
from transformers.utils.logging import disable_progress_bar

from rlhf.services.hf_models import BadRequest, ChatModel
from rlhf.services.hf_scorers import Asked, Scoring, load_scorer
from rlhf.services.settings import ServiceSettings

_MOST_AT_ONCE = 64
_REQUEST_BYTES = 1 << 26


@dataclass(slots=True)
class Batcher:
    """Classifies what waits in one call: the model is busy while the next requests come."""

    model: Scoring
    waiting: asyncio.Queue[tuple[Asked, asyncio.Future[list[float]]]] = field(default_factory=asyncio.Queue)

    async def classify(self, asked: Asked) -> list[float]:
        """The logits of one request."""
        future: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((asked, future))
        return await future

    async def work(self) -> None:
        """Serve until cancelled."""
        while True:
            taken = [await self.waiting.get()]
            while not self.waiting.empty() and len(taken) < _MOST_AT_ONCE:
                taken.append(self.waiting.get_nowait())
            try:
                found = await asyncio.to_thread(self.model.classify, [asked for asked, _ in taken])
            except Exception as error:  # noqa: BLE001 -- whoever asked must hear of it
                for _, future in taken:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), logits in zip(taken, found, strict=True):
                if not future.done():  # who asked may have hung up
                    future.set_result(logits)


def make_app(settings: ServiceSettings) -> web.Application:
    """The server of one model, which is loaded here."""
    app = web.Application(client_max_size=_REQUEST_BYTES)

    async def health(_: web.Request) -> web.Response:
        return web.Response(text="")

    app.router.add_get("/health", health)
    if settings.kind == "reward_model":
        _serve_classifier(app, settings)
    else:
        _serve_chat(app, settings)
    return app


def _serve_classifier(app: web.Application, settings: ServiceSettings) -> None:
    model = load_scorer(settings)
    batcher = Batcher(model)

    async def working(_: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.work())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def classify(request: web.Request) -> web.Response:
        body = await _body(request, settings.name)
        try:
            logits = await batcher.classify(model.read(body))
        except BadRequest as error:
            return _refusal(str(error))
        values = _activated(logits) if body.get("use_activation") in (None, True) else logits
        best = max(range(len(values)), key=values.__getitem__)
        label = (model.network.config.id2label or {}).get(best, f"LABEL_{best}")
        item = {"index": 0, "label": label, "probs": values, "num_classes": len(values)}
        return web.json_response({"object": "list", "model": settings.name, "data": [item]})

    app.cleanup_ctx.append(working)
    app.router.add_post("/classify", classify)


def _serve_chat(app: web.Application, settings: ServiceSettings) -> None:
    model, turn = ChatModel(settings), asyncio.Lock()

    async def answer(request: web.Request) -> web.Response:
        body = await _body(request, settings.name)
        try:
            prompt = model.encode(body, asks=True)
            async with turn:
                text, is_complete = await asyncio.to_thread(model.answer, prompt, body)
        except BadRequest as error:
            return _refusal(str(error))
        message = {"role": "assistant", "content": text}
        reason = "stop" if is_complete else "length"
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return web.json_response({"object": "chat.completion", "model": settings.name, "choices": [choice]})

    app.router.add_post("/v1/chat/completions", answer)


async def _body(request: web.Request, name: str) -> Mapping[str, Any]:
    try:
        body = await request.json()
    except ValueError:
        raise web.HTTPBadRequest(text="the request is not JSON") from None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="the request is not a JSON object")
    if body.get("model") not in (None, name):
        raise web.HTTPNotFound(text=f"here is served {name!r}, not {body['model']!r}: set endpoint.model")
    return body


def _activated(logits: Sequence[float]) -> list[float]:
    values = torch.tensor(logits)
    found: list[float] = (values.sigmoid() if len(logits) == 1 else values.softmax(0)).tolist()
    return found


def _refusal(text: str) -> web.Response:
    return web.json_response({"object": "error", "message": text}, status=400)


def serve(settings_json: str) -> None:
    """Load and serve one model until the process is ended."""
    disable_progress_bar()
    settings = ServiceSettings(**json.loads(settings_json))
    app = make_app(settings)
    web.run_app(app, host=settings.host, port=settings.port, print=None, access_log=None, handle_signals=True)
