"""Policies without a model: turns that a test wrote, and random tokens, the strictest tester of exactness."""

import asyncio
import random

from rlhf.episodes.chat import ChatRenderer
from rlhf.types import Completion


class RandomPolicy:
    """An engine whose turns are random tokens, among them calls and thoughts, ended, cut or ended in another way.

    `log` has (ids asked with, what was returned) of every turn: the witness that records are held against.
    """

    def __init__(self, chat: ChatRenderer, calls: str, *, seed: int = 0, longest: int = 24) -> None:
        self.log: list[tuple[tuple[int, ...], Completion]] = []
        self._chat = chat
        self._tokenizer = chat.tokenizer
        self._longest = longest
        self._seed = seed
        self._pieces = [calls, "<think>", "</think>", "<tool_call>", " so ", '{"a": "', "\n\n"]

    async def generate(self, request):
        return [self._complete(request, seed) for seed in request.seeds]

    def _complete(self, request, seed):
        draw = random.Random(f"{self._seed}/{seed}/{len(request.prompt_token_ids)}")
        stops = self._chat.stop_token_ids
        ids = []
        for _ in range(draw.randint(0, self._longest)):
            if draw.random() < 0.15:
                ids += self._tokenizer.encode(draw.choice(self._pieces), add_special_tokens=False)
            else:
                ids.append(draw.randrange(len(self._tokenizer)))
        ids = [token for token in ids if token not in stops]
        if draw.random() < 0.9:
            ids.append(draw.choice(stops) if draw.random() < 0.2 else stops[0])
        ids = ids[: request.sampling.max_tokens] or [draw.randrange(256) + 10]
        finish = "stop" if ids[-1] in stops else "length"
        version = 3 + len(self.log) // 4
        found = Completion(
            token_ids=tuple(ids),
            logprobs=tuple(-draw.random() for _ in ids),
            versions=(version,) * len(ids),
            finish_reason=finish,
        )
        self.log.append((request.prompt_token_ids, found))
        return found


class WrittenPolicy:
    """An engine that answers with these texts in turn, each ended with the stop token; `CUT` at an end leaves it out.

    `log` is as RandomPolicy's; a text that is an exception is raised.
    """

    CUT = "[cut]"

    def __init__(self, chat: ChatRenderer, texts) -> None:
        self.log: list[tuple[tuple[int, ...], Completion]] = []
        self.requests = []
        self._chat = chat
        self._texts = list(texts)

    async def generate(self, request):
        self.requests.append(request)
        await asyncio.sleep(0)
        text = self._texts.pop(0)
        if isinstance(text, Exception):
            raise text
        is_cut = text.endswith(self.CUT)
        ids = self._chat.tokenizer.encode(text.removesuffix(self.CUT), add_special_tokens=False)
        if not is_cut and (not ids or ids[-1] not in self._chat.stop_token_ids):
            ids.append(self._chat.stop_token_ids[0])
        ids = tuple(ids[: request.sampling.max_tokens])
        found = Completion(
            token_ids=ids,
            logprobs=(-1.0,) * len(ids),
            versions=(0,) * len(ids),
            finish_reason="stop" if ids[-1] in self._chat.stop_token_ids else "length",
        )
        self.log.append((request.prompt_token_ids, found))
        return [found]
