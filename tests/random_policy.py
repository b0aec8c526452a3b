"""A policy that samples tokens at random: the strictest tester of whether an episode's tokens are exact."""

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
