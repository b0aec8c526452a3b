"""Answers that get lost, requests that come twice or at once, and programs at random."""

import asyncio
import random
import re
from collections import Counter

import aiohttp
import pytest

from rlhf.episodes.endpoint import RolloutServer
from tests.endpoints import (
    ADD,
    Numbering,
    TextEngine,
    ask_session,
    make_dialect,
    make_policy,
    make_session,
    user,
)

openai = pytest.importorskip("openai")


@pytest.fixture(scope="session")
def qwen(tmp_path_factory):
    return make_dialect(tmp_path_factory.mktemp("qwen"), "qwen3")


def test_retry_is_given_the_answer_there_is_or_will_be(qwen):
    async def main():
        engine = TextEngine(qwen, Numbering(), delay_s=0.05)
        session = make_session(qwen, engine)
        first, early = await asyncio.gather(
            ask_session(session, [user("u0")]), ask_session(session, [user("u0")], is_retry=True)
        )
        late = await ask_session(session, [user("u0")], is_retry=True)
        assert first is early is late
        assert (len(engine.requests), session.num_replays) == (1, 2)
        assert len(session.finish()[1]) == 1

    asyncio.run(main())


def test_client_that_times_out_and_retries_is_sampled_for_once(qwen):
    async def main():
        engine = TextEngine(qwen, Numbering(), delay_s=0.6)
        async with (
            RolloutServer(qwen) as server,
            server.episode(make_policy(engine, qwen)) as session,
            openai.AsyncOpenAI(
                base_url=session.base_url, api_key=session.api_key, timeout=0.25, max_retries=5
            ) as client,
        ):
            answer = await client.chat.completions.create(model="m", messages=[user("u0")])
        assert answer.choices[0].message.content == "a0"
        assert len(engine.requests) == 1
        assert session.num_replays >= 1

    asyncio.run(main())


async def ask_and_go(http, url, asked, engine):
    """Be gone once the engine has been asked."""
    request = asyncio.create_task(http.post(url, json=asked))
    while not engine.requests:
        await asyncio.sleep(0.01)
    if request.done():
        request.result().close()
    request.cancel()
    await asyncio.wait({request})
    # The server hears of it in its own time.
    await asyncio.sleep(0.05)


@pytest.mark.parametrize("stream", [False, True])
def test_answer_whose_client_has_gone_is_recorded_and_replayed(qwen, stream):
    async def main():
        engine = TextEngine(qwen, Numbering(), delay_s=0.3)
        asked = {"messages": [user("u0")], "stream": stream}
        async with (
            RolloutServer(qwen, keep_alive_s=0.02) as server,
            server.episode(make_policy(engine, qwen)) as session,
        ):
            url = f"{session.base_url}/chat/completions"
            async with aiohttp.ClientSession() as http:
                await ask_and_go(http, url, asked, engine)
            while not session.ledger.num_sampled:
                await asyncio.sleep(0.01)
            async with aiohttp.ClientSession() as http, http.post(url, json=asked) as response:
                assert "a0" in await response.text()
            async with aiohttp.ClientSession() as http, http.post(url, json=asked) as response:
                assert "a1" in await response.text()
        assert len(engine.requests) == 2
        assert session.num_replays == 1
        return session

    segments, _, _ = asyncio.run(main()).finish()
    assert [segment.reason for segment in segments] == ["start", "fork"]


def test_request_lost_while_it_is_sampled_is_waited_for_by_its_like(qwen):
    async def main():
        engine = TextEngine(qwen, Numbering(), delay_s=0.4)
        asked = {"messages": [user("u0")]}
        async with (
            RolloutServer(qwen) as server,
            server.episode(make_policy(engine, qwen)) as session,
            aiohttp.ClientSession() as http,
        ):
            url = f"{session.base_url}/chat/completions"
            await ask_and_go(http, url, asked, engine)
            async with http.post(url, json=asked) as response:
                assert "a0" in await response.text()
        assert len(engine.requests) == 1

    asyncio.run(main())


def test_parallel_requests_of_one_episode_are_threads(qwen):
    async def main():
        engine = TextEngine(qwen, Numbering(), delay_s=0.01)
        session = make_session(qwen, engine)
        root = await ask_session(session, [user("u0")])
        base = [user("u0"), root.message]
        answers = await asyncio.gather(*(ask_session(session, [*base, user(f"u{i}")]) for i in range(1, 5)))
        again = await asyncio.gather(*(ask_session(session, [*base, user("same")]) for _ in range(3)))
        assert len({answer.id for answer in [*answers, *again]}) == 7
        return session

    session = asyncio.run(main())
    segments, _, _ = session.finish()
    assert Counter(segment.reason for segment in segments) == {"start": 1, "fork": 6}


MARK = re.compile(r"\b[ua]\d+\b")


class Program:
    """One that extends, goes back, asks again, edits, changes tools, retries and loses answers, at random."""

    def __init__(self, dialect, seed):
        self.rng = random.Random(seed)
        self.engine = TextEngine(dialect, Numbering(), delay_s=0.0)
        self.dialect = dialect
        self.session = make_session(dialect, self.engine, max_turns=10_000, max_tokens=10_000_000)
        self.histories = [[]]
        self.asked = []
        self.num_users = 0
        self.num_sampled = 0

    def request(self):
        rng = self.rng
        history = list(rng.choice(self.histories))
        if rng.random() < 0.3:
            history = history[: rng.randrange(len(history) + 1)]
        if rng.random() < 0.15 and history:
            place = rng.randrange(len(history))
            self.num_users += 1
            history[place] = {**history[place], "content": f"u{self.num_users}"}
        if rng.random() < 0.9 or not history:
            self.num_users += 1
            history.append(user(f"u{self.num_users}"))
        return history, {"tools": [ADD]} if rng.random() < 0.1 else {}

    async def one(self):
        rng = self.rng
        messages, parameters = self.request()
        if self.asked and rng.random() < 0.25:
            messages, parameters, _ = rng.choice(self.asked)
            if rng.random() < 0.5:
                answer = await ask_session(self.session, messages, is_retry=True, **parameters)
                same = [known for m, p, known in self.asked if (m, p) == (messages, parameters)]
                assert any(answer is known for known in same)
                return
        answer = await ask_session(self.session, messages, **parameters)
        self.num_sampled += 1
        self.asked.append((messages, parameters, answer))
        self.histories.append([*messages, answer.message])

    async def play(self):
        for _ in range(6):
            await asyncio.gather(*(self.one() for _ in range(self.rng.choice([1, 1, 2, 4]))))


@pytest.mark.parametrize("history", ["append", "template"])
def test_two_hundred_random_programs_keep_the_laws_and_see_what_they_sent(tmp_path, history):
    dialect = make_dialect(tmp_path, "qwen3", history=history)
    causes = Counter()
    for seed in range(100):
        program = Program(dialect, seed)
        asyncio.run(program.play())
        segments, turns, dropped = program.session.finish()
        assert len(program.engine.requests) == program.num_sampled
        assert dropped == ()
        contexts = Counter(request.prompt_token_ids for request in program.engine.requests)
        recorded = [t for t in turns if t.finish]
        assert Counter(segments[t.segment].token_ids[: t.start] for t in recorded) == contexts
        shown = Counter(tuple(MARK.findall(dialect.chat.text(context))) for context in contexts.elements())
        sent = Counter(
            tuple(MARK.findall(" ".join(m["content"] for m in asked))) for asked, _, _ in program.asked
        )
        assert shown == sent
        causes += program.session.conversations
    assert min(causes[name] for name in ("new", "fork", "edited", "tools")) > 10
