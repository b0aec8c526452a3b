"""Episodes played through the endpoint: how they end, that they do not mix, that their record is the native one."""

import asyncio
import json

import aiohttp
import pytest

from rlhf.config.environment import EnvironmentConfig
from rlhf.episodes.conversation import Conversation, Dialect
from rlhf.episodes.endpoint import RolloutServer
from rlhf.episodes.host import EnvironmentHost
from rlhf.episodes.ledger import TokenLedger
from rlhf.episodes.parsing import parser_of
from rlhf.episodes.runner import EpisodeRunner
from rlhf.episodes.zygote import LoadEnvironment
from rlhf.errors import ConfigError
from rlhf.types import Message, Prompt, Sampling
from tests.chat_tokenizers import FAMILIES
from tests.endpoints import (
    ADD,
    CALLS,
    ChanceEngine,
    TextEngine,
    ask,
    echo,
    last_question,
    make_dialect,
    make_policy,
    playing,
    timeless,
    user,
)

openai = pytest.importorskip("openai")


@pytest.fixture(scope="session")
def qwen(tmp_path_factory):
    return make_dialect(tmp_path_factory.mktemp("qwen"), "qwen2.5")


async def go_on_for_ever(client, **parameters):
    history = [user("q")]
    while True:
        answer = (await ask(client, history, **parameters)).choices[0]
        history += [echo(answer.message), user("again")]


@pytest.mark.parametrize(
    ("limits", "stop"),
    [
        ({"max_turns": 2}, "max_turns"),
        ({"max_tokens": 64}, "max_tokens"),
        ({"max_tool_calls": 1}, "max_tool_calls"),
    ],
)
def test_past_a_limit_is_told_once_and_for_all(qwen, limits, stop):
    async def main():
        engine = TextEngine(qwen, lambda _: CALLS["hermes"])
        async with playing(qwen, engine, **limits) as (session, client):
            with pytest.raises(openai.BadRequestError) as error:
                await go_on_for_ever(client, tools=[ADD] if stop == "max_tool_calls" else [])
            num_asked = len(engine.requests)
            with pytest.raises(openai.BadRequestError, match=stop):
                await ask(client, [user("another")])
        assert error.value.code == "episode_limit"
        assert session.stop == stop
        assert len(engine.requests) == num_asked
        session.finish()

    asyncio.run(main())


class BrokenEngine:
    def __init__(self):
        self.num_requests = 0

    async def generate(self, _):
        self.num_requests += 1
        raise RuntimeError("out of memory")


def test_failed_engine_is_told_once_and_never_asked_again(qwen):
    async def main():
        engine = BrokenEngine()
        async with playing(qwen, engine) as (session, client):
            with pytest.raises(openai.InternalServerError, match="out of memory"):
                await ask(client, [user("q")])
            with pytest.raises(openai.BadRequestError) as error:
                await ask(client, [user("q")])
        assert error.value.code == "policy_error"
        assert engine.num_requests == 1
        assert (session.stop, session.error) == ("policy_error", "RuntimeError: out of memory")

    asyncio.run(main())


NOT_TO_BE_HELPED = {
    "tools that cannot be shown": ("gemma3", None, "the call of 'add' is not shown"),
    "calls that cannot be read": ("qwen2.5", "<call>", "writes calls in a way not known here"),
}
STUBBORN = """
import asyncio, json, urllib.request

class Stubborn:
    async def play(self, endpoint, context):
        told = {"Authorization": "Bearer " + endpoint.api_key, "Content-Type": "application/json"}
        request = urllib.request.Request(endpoint.base_url + "/chat/completions", BODY, told)
        try:
            await asyncio.to_thread(urllib.request.urlopen, request)
        except OSError:
            await asyncio.sleep(600)
    def score(self, context): return 0.0
"""


@pytest.mark.parametrize("case", NOT_TO_BE_HELPED)
def test_what_no_episode_would_be_spared_ends_the_run(chat_of, tmp_path, case):
    family, written, says = NOT_TO_BE_HELPED[case]
    parse = parser_of("none") if written is None else parser_of("auto", written=written)
    dialect = Dialect(chat=chat_of(family), parse=parse)
    asked = json.dumps({"messages": [user("q")], "tools": [ADD]}).encode()
    (tmp_path / "stubborn.py").write_text(f"BODY = {asked!r}\n{STUBBORN}")
    config = EnvironmentConfig(use="stubborn:Stubborn")

    async def main():
        host = EnvironmentHost(LoadEnvironment(use=config.use, code_dir=str(tmp_path)))
        engine = TextEngine(dialect, lambda _: "ok")
        runner = EpisodeRunner(engine, host, dialect=dialect, config=config)
        prompt = Prompt(id="p", messages=(Message(role="user", content="q"),))
        sampling = Sampling(max_tokens=50, stop_token_ids=dialect.chat.stop_token_ids)
        try:
            await host.start()
            async with asyncio.timeout(300):
                await runner(prompt, seeds=[1], sampling=sampling)
        finally:
            await runner.close()
            await host.close()

    with pytest.raises(ConfigError, match=says):
        asyncio.run(main())


def test_late_failure_of_a_stream_reaches_the_client(qwen):
    class SlowlyBroken(BrokenEngine):
        async def generate(self, request):
            await asyncio.sleep(0.1)
            return await super().generate(request)

    async def main():
        async with playing(qwen, SlowlyBroken(), keep_alive_s=0.02) as (_, client):
            stream = await ask(client, [user("q")], stream=True)
            with pytest.raises(openai.APIError, match="out of memory"):
                [chunk async for chunk in stream]

    asyncio.run(main())


def test_episodes_are_found_by_path_or_key_and_closed_when_over(qwen):
    async def main():
        engine = TextEngine(qwen, last_question)

        async def status(url, key):
            async with (
                aiohttp.ClientSession() as http,
                http.post(
                    f"{url}/chat/completions",
                    json={"messages": [user("q")]},
                    headers={"Authorization": f"Bearer {key}"},
                ) as response,
            ):
                error = (await response.json()).get("error", {})
                return response.status, error.get("code")

        async with RolloutServer(qwen) as server:
            async with (
                server.episode(make_policy(engine, qwen)) as one,
                server.episode(make_policy(engine, qwen)) as two,
            ):
                assert await status(one.base_url, "EMPTY") == (200, None)
                assert await status(f"{server.url}/v1", one.api_key) == (200, None)
                assert await status(one.base_url, two.api_key) == (401, "invalid_api_key")
                assert await status(f"{server.url}/v1", "EMPTY") == (401, "invalid_api_key")
                assert await status(f"{server.url}/e/none/v1", "EMPTY") == (404, "episode_over")
                async with (
                    aiohttp.ClientSession() as http,
                    http.post(f"{one.base_url}/responses") as response,
                ):
                    assert (response.status, "chat/completions" in await response.text()) == (404, True)
            assert await status(one.base_url, one.api_key) == (404, "episode_over")
            async with aiohttp.ClientSession() as http, http.get(f"{one.base_url}/models") as response:
                assert response.status == 404
            assert len(one.finish()[0]) == 2
            assert two.finish() == ((), (), ())

    asyncio.run(main())


def test_request_that_outlives_its_episode_is_given_up(qwen):
    async def main():
        engine = TextEngine(qwen, last_question, delay_s=30.0)
        async with playing(qwen, engine, episode_s=0.2) as (session, client):
            with pytest.raises(openai.BadRequestError, match="episode_timeout"):
                await ask(client, [user("q")])
        assert session.stop == "episode_timeout"
        async with RolloutServer(qwen) as server:
            async with server.episode(make_policy(engine, qwen)) as session:
                client = openai.AsyncOpenAI(base_url=session.base_url, api_key=session.api_key)
                late = asyncio.create_task(ask(client, [user("q")]))
                num_before = len(engine.requests)
                while len(engine.requests) == num_before:
                    await asyncio.sleep(0.01)
            with pytest.raises(openai.NotFoundError, match="over"):
                await late
            await client.close()
        assert engine.num_given_up == len(engine.requests) > 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("limits", "parameters", "stop"),
    [({}, {}, "stop"), ({}, {"max_tokens": 3}, "stop"), ({"max_turn_tokens": 3}, {}, "length")],
)
def test_ending_tells_whether_a_limit_cut_the_last_answer(qwen, limits, parameters, stop):
    async def main():
        async with playing(qwen, TextEngine(qwen, lambda _: "a long answer indeed"), **limits) as (
            session,
            client,
        ):
            await ask(client, [user("q")], **parameters)
        assert session.stop == stop

    asyncio.run(main())


def test_sixteen_sessions_at_once_do_not_mix(qwen):
    async def main():
        engine = TextEngine(qwen, lambda prompt: f"answer to {last_question(prompt)}", delay_s=0.01)

        async def play(server, number):
            async with (
                server.episode(make_policy(engine, qwen, seed=number)) as session,
                openai.AsyncOpenAI(base_url=session.base_url, api_key=session.api_key) as client,
            ):
                history = []
                for turn in range(5):
                    history.append(user(f"m{number:02d}t{turn}"))
                    stream = number % 2 == 0
                    answer = await ask(client, history, stream=stream)
                    if stream:
                        text = "".join([c.choices[0].delta.content or "" async for c in answer])
                    else:
                        text = answer.choices[0].message.content
                    assert text == f"answer to m{number:02d}t{turn}"
                    history.append({"role": "assistant", "content": text})
                return session

        async with RolloutServer(qwen) as server:
            sessions = await asyncio.gather(*(play(server, number) for number in range(16)))
        for number, session in enumerate(sessions):
            (segment,), turns, _ = session.finish()
            text = qwen.chat.text(segment.token_ids)
            assert {f"m{other:02d}" in text for other in range(16) if other != number} == {False}
            assert len([turn for turn in turns if turn.finish]) == 5

    asyncio.run(main())


@pytest.mark.parametrize("history", ["append", "template"])
@pytest.mark.parametrize("family", FAMILIES)
def test_record_is_that_of_the_same_conversation_run_natively(tmp_path, family, history):
    """Tokens by chance: most turns would not survive being decoded and encoded again."""
    dialect = make_dialect(tmp_path, family, history=history)

    def reply(role, call_id, turn):
        text = f"result {turn} <|im_end|> of <tool_call> 🙂"
        if role == "tool":
            return {"role": "tool", "tool_call_id": call_id, "content": text}
        return user(text)

    async def native(seed):
        ledger = TokenLedger()
        policy = make_policy(ChanceEngine(dialect), dialect, seed=seed)
        conversation = Conversation(dialect, policy, ledger, tools=[ADD])
        new = [Message(role="system", content="Add."), Message(role="user", content="Begin.")]
        for turn in range(6):
            message = await conversation.sample(*new)
            # What nobody could read is no call to a client, but text.
            read = [call for call in message.tool_calls if call.name and call.arguments is not None]
            given = [reply("tool", call.id, turn) for call in read] or [reply("user", "", turn)]
            new = [Message(**m, name="add" if m["role"] == "tool" else None) for m in given]
        return ledger.finish()

    async def served(seed):
        async with playing(dialect, ChanceEngine(dialect), seed=seed) as (session, client):
            messages = [{"role": "system", "content": "Add."}, user("Begin.")]
            for turn in range(6):
                answer = (await ask(client, messages, tools=[ADD])).choices[0].message
                given = [reply("tool", call.id, turn) for call in answer.tool_calls or ()]
                messages += [echo(answer), *(given or [reply("user", "", turn)])]
        return session.finish()

    records = [(asyncio.run(native(seed)), asyncio.run(served(seed))) for seed in range(5)]
    assert [timeless(of_native) for of_native, _ in records] == [
        timeless(of_served) for _, of_served in records
    ]
    turns = [turn for (_, turns, _), _ in records for turn in turns]
    assert {turn.message.role for turn in turns} >= {"assistant", "tool"}
    if history == "template" and dialect.chat.drops_thoughts:
        assert {segment.reason for (segments, _, _), _ in records for segment in segments} == {
            "start",
            "template",
        }
