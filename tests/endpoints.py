"""Engines and dialects for tests of the endpoint: real tokenizers and templates, answers by a script or by chance."""

import asyncio
import json
import random
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf.config.environment import EpisodeLimits
from rlhf.episodes.chat import ChatRenderer
from rlhf.episodes.conversation import Dialect, Policy
from rlhf.episodes.endpoint import RolloutServer
from rlhf.episodes.endpoint_session import Session
from rlhf.episodes.endpoint_wire import read_request
from rlhf.episodes.ledger import TokenLedger
from rlhf.episodes.parsing import parser_of, syntax_of
from rlhf.episodes.render import Renderer
from rlhf.interfaces import GenerateRequest
from rlhf.types import Completion, Sampling, token_digest
from tests.chat_tokenizers import FAMILIES, save_tokenizer

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "The sum of two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
CALLS = {
    "hermes": '<tool_call>\n{"name": "add", "arguments": {"b": 2, "a": 40}}\n</tool_call>',
    "llama3": '<|python_tag|>{"name": "add", "parameters": {"b": 2, "a": 40}}',
    "deepseek_v3": "</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n"
    '```json\n{"b": 2, "a": 40}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
}
"""A call of `add` in each syntax, not as json.dumps would write it. DeepSeek's prompt ends within thoughts."""


def make_dialect(folder: Path, family: str, *, history: Any = "append") -> Dialect:
    chat = ChatRenderer(Renderer(model_folder=str(save_tokenizer(folder, FAMILIES[family]))))
    return Dialect(chat=chat, parse=parser_of("auto", written=chat.written_call()), history=history)


class TextEngine:
    """Answers with the text that `write` gives for the text of the prompt, encoded and ended."""

    def __init__(self, dialect: Dialect, write: Callable[[str], str], *, delay_s: float = 0.0) -> None:
        self.requests: list[GenerateRequest] = []
        self.num_given_up = 0
        self.delay_s = delay_s
        self._dialect = dialect
        self._write = write

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        self.requests.append(request)
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.num_given_up += 1
            raise
        chat = self._dialect.chat
        written = self._write(chat.text(request.prompt_token_ids))
        ids = (*chat.tokenizer.encode(written, add_special_tokens=False), chat.stop_token_ids[0])
        return [completed(ids, request)]


class ChanceEngine:
    """Tokens by chance, sometimes with a call, each answer a function of what was asked alone."""

    def __init__(self, dialect: Dialect) -> None:
        self._chat = dialect.chat
        self._call = self._encode(CALLS[syntax_of(dialect.chat.written_call(ADD))])
        self._thought = self._encode("<think>\nso be it\n</think>\n\n")

    def _encode(self, text: str) -> list[int]:
        return list(self._chat.tokenizer.encode(text, add_special_tokens=False))

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        rng = random.Random(f"{token_digest(request.prompt_token_ids)} {request.seeds}")
        await asyncio.sleep(rng.random() * 0.002)
        stop = self._chat.stop_token_ids[0]
        ids = [
            token
            for token in rng.choices(range(len(self._chat.tokenizer)), k=rng.randrange(24))
            if token != stop
        ]
        if rng.random() < 0.5:
            ids = self._thought + ids
        if rng.random() < 0.4:
            ids += self._call
        return [completed((*ids, stop), request)]


def completed(ids: tuple[int, ...], request: GenerateRequest) -> Completion:
    ids = ids[: request.sampling.max_tokens]
    is_cut = not ids or ids[-1] not in request.sampling.stop_token_ids
    return Completion(
        token_ids=ids,
        logprobs=tuple(-0.25 * (token % 7 + 1) for token in ids),
        versions=(5,) * len(ids),
        finish_reason="length" if is_cut else "stop",
    )


def make_policy(
    engine: Any, dialect: Dialect, *, seed: int = 0, max_turn_tokens: int = 512, **limits: Any
) -> Policy:
    return Policy(
        engine=engine,
        sampling=Sampling(max_tokens=max_turn_tokens, stop_token_ids=dialect.chat.stop_token_ids),
        seed=seed,
        limits=EpisodeLimits(**limits),
    )


def timeless(record: Any) -> Any:
    """A record without the seconds that things took."""
    segments, turns, dropped = record
    return segments, tuple(replace(turn, seconds=0.0) for turn in turns), dropped


@asynccontextmanager
async def playing(dialect, engine, *, keep_alive_s=10.0, **limits):
    """(session, asynchronous client) of one episode."""
    from openai import AsyncOpenAI

    async with (
        RolloutServer(dialect, keep_alive_s=keep_alive_s) as server,
        server.episode(make_policy(engine, dialect, **limits)) as session,
        AsyncOpenAI(base_url=session.base_url, api_key=session.api_key) as client,
    ):
        yield session, client


def user(text):
    return {"role": "user", "content": text}


async def ask(client, messages, **parameters):
    return await client.chat.completions.create(model="any", messages=messages, **parameters)


def echo(message):
    """What most programs append: what came, without what was not set, and without thinking."""
    plain = message.model_dump(exclude_none=True)
    plain.pop("reasoning_content", None)
    return plain


def last_question(prompt):
    return prompt.rsplit("user\n", 1)[1].split("<|im_end|>")[0]


def make_session(dialect, engine, **limits):
    policy = make_policy(engine, dialect, **limits)
    return Session(dialect, policy, TokenLedger(), base_url="", api_key="key")


def body(messages, **parameters):
    return read_request(json.dumps({"messages": messages, **parameters}).encode())


def assistant(text):
    return {"role": "assistant", "content": text}


class Numbering:
    """Answers a0, a1, ... with thoughts."""

    def __init__(self):
        self.count = 0

    def __call__(self, _):
        self.count += 1
        return f"<think>\nt{self.count - 1}\n</think>\n\na{self.count - 1}"


async def ask_session(session, messages, *, is_retry=False, **parameters):
    reply = session.ask(body(messages, **parameters), is_retry=is_retry)
    reply.num_waiting += 1
    answer = await reply.task
    reply.num_waiting -= 1
    reply.was_delivered = True
    return answer
