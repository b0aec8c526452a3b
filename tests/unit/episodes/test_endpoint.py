"""The endpoint as its clients see it: the real `openai` client against a real server on a real port."""

import asyncio
import json
import threading

import aiohttp
import pytest

from tests.chat_tokenizers import FAMILIES
from tests.endpoints import ADD, CALLS, TextEngine, ask, echo, last_question, make_dialect, playing, user

openai = pytest.importorskip("openai")


@pytest.fixture(scope="session")
def dialects(tmp_path_factory):
    return {family: make_dialect(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture(scope="session")
def qwen(dialects):
    return dialects["qwen2.5"]


def test_answer_has_text_usage_and_finish(qwen):
    async def main():
        engine = TextEngine(qwen, lambda prompt: f"you said {last_question(prompt)}")
        async with playing(qwen, engine) as (session, client):
            answer = await ask(client, [user("hello")])
        (segment,), turns, _ = session.finish()
        assert answer.choices[0].message.content == "you said hello"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.prompt_tokens == len(engine.requests[0].prompt_token_ids)
        assert answer.usage.completion_tokens == segment.num_sampled
        assert [turn.message.content for turn in turns] == ["you said hello"]
        assert session.stop == "stop"

    asyncio.run(main())


def test_synchronous_client_works_from_a_thread(qwen):
    async def main():
        engine = TextEngine(qwen, last_question)

        def program(base_url, api_key):
            with openai.OpenAI(base_url=base_url, api_key=api_key) as client:
                history = [user("one")]
                for text in ("two", "three"):
                    answer = client.chat.completions.create(model="m", messages=history)
                    history += [answer.choices[0].message, user(text)]
                return [model.id for model in client.models.list()], history

        async with playing(qwen, engine) as (session, _):
            models, history = await asyncio.to_thread(program, session.base_url, session.api_key)
        assert models == ["policy"]
        assert [m.content for m in history[1::2]] == ["one", "two"]
        assert len(session.finish()[0]) == 1

    asyncio.run(main())


@pytest.mark.parametrize("family", FAMILIES)
def test_call_goes_out_and_its_result_comes_back_in_one_segment(dialects, family):
    dialect = dialects[family]
    call = CALLS["hermes" if family.startswith("qwen") else "llama3" if "llama" in family else "deepseek_v3"]

    async def main():
        engine = TextEngine(dialect, lambda prompt: "it is 42" if "fortytwo" in prompt else call)
        async with playing(dialect, engine) as (session, client):
            history = [user("40 + 2?")]
            answer = (await ask(client, history, tools=[ADD])).choices[0]
            (called,) = answer.message.tool_calls
            history += [
                echo(answer.message),
                {"role": "tool", "tool_call_id": called.id, "content": "fortytwo"},
            ]
            last = (await ask(client, history, tools=[ADD])).choices[0]
        assert (answer.finish_reason, last.finish_reason) == ("tool_calls", "stop")
        assert called.function.name == "add"
        assert json.loads(called.function.arguments) == {"a": 40, "b": 2}
        (segment,), turns, _ = session.finish()
        assert [turn.message.role for turn in turns] == ["assistant", "tool", "assistant"]
        assert turns[1].message.name == "add"
        assert segment.token_ids[: turns[0].stop] == (
            *engine.requests[0].prompt_token_ids,
            *segment.token_ids[turns[0].start : turns[0].stop],
        )
        # DeepSeek-V3's template shows no tools: programs describe them in the system prompt.
        shown = '"name": "add"' in dialect.chat.text(engine.requests[0].prompt_token_ids)
        assert shown == (family != "deepseek_v3")

    asyncio.run(main())


@pytest.mark.parametrize("name", ["add", "add\\ud83d"])
def test_call_with_half_a_surrogate_pair_can_be_sent_back(qwen, name):
    call = f'<tool_call>\n{{"name": "{name}", "arguments": {{"a": "\\ud83d", "b": 1}}}}\n</tool_call>'

    async def main():
        engine = TextEngine(qwen, lambda prompt: "done" if "no number" in prompt else call)
        async with playing(qwen, engine) as (session, client):
            answer = (await ask(client, [user("q")], tools=[ADD])).choices[0].message
            (called,) = answer.tool_calls
            result = {"role": "tool", "tool_call_id": called.id, "content": "no number"}
            last = await ask(client, [user("q"), echo(answer), result], tools=[ADD])
        assert json.loads(called.function.arguments) == {"a": "\ud83d", "b": 1}
        assert last.choices[0].message.content == "done"
        assert len(session.finish()[0]) == 1

    asyncio.run(main())


def test_stream_gives_role_content_calls_finish_and_usage(qwen):
    async def main():
        engine = TextEngine(
            qwen, lambda _: f"<think>so</think>look {CALLS['hermes']}{CALLS['hermes']}", delay_s=0.15
        )
        async with playing(qwen, engine, keep_alive_s=0.05) as (_, client):
            stream = await ask(
                client, [user("q")], tools=[ADD], stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
        deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
        assert deltas[0].role == "assistant"
        assert "".join(delta.content or "" for delta in deltas) == "look"
        assert deltas[1].reasoning_content == "so"
        calls = [call for delta in deltas for call in delta.tool_calls or ()]
        assert [(call.index, call.id, call.function.name) for call in calls] == [
            (0, "call00001", "add"),
            (1, "call00002", "add"),
        ]
        assert [c.choices[0].finish_reason for c in chunks[:-1]][-2:] == [None, "tool_calls"]
        assert chunks[-1].usage.completion_tokens > 0

    asyncio.run(main())


def test_results_of_parallel_calls_come_back_as_the_client_has_them(qwen):
    """In any order, after a turn that the client's own stream helper has put together."""

    def write(prompt):
        return "done" if "<tool_response>" in prompt else f"{CALLS['hermes']}{CALLS['hermes']}"

    async def main():
        async with playing(qwen, TextEngine(qwen, write)) as (session, client):
            history = [user("q")]
            async with client.chat.completions.stream(model="m", messages=history, tools=[ADD]) as stream:
                message = (await stream.get_final_completion()).choices[0].message
            results = [
                {"role": "tool", "tool_call_id": call.id, "content": f"of {call.id}"}
                for call in reversed(message.tool_calls)
            ]
            last = await ask(client, [*history, echo(message), *results], tools=[ADD])
        assert last.choices[0].message.content == "done"
        (segment,), turns, _ = session.finish()
        assert [turn.message.tool_call_id for turn in turns[1:3]] == ["call00002", "call00001"]
        text = qwen.chat.text(segment.token_ids)
        assert text.index("of call00002") < text.index("of call00001")
        assert session.conversations == {"new": 1}

    asyncio.run(main())


def test_stream_keeps_the_connection_alive_while_it_waits(qwen):
    async def main():
        engine = TextEngine(qwen, last_question, delay_s=0.3)
        async with (
            playing(qwen, engine, keep_alive_s=0.05) as (session, _),
            aiohttp.ClientSession() as http,
        ):
            body = {"messages": [user("x")], "stream": True}
            async with http.post(f"{session.base_url}/chat/completions", json=body) as response:
                lines = (await response.text()).splitlines()
        assert lines.count(": keep-alive") >= 2
        assert lines[-2] == "data: [DONE]"

    asyncio.run(main())


def test_logprobs_are_those_of_the_record(qwen):
    async def main():
        async with playing(qwen, TextEngine(qwen, lambda _: "some text")) as (session, client):
            answer = await ask(client, [user("q")], logprobs=True)
            streamed = [c async for c in await ask(client, [user("q")], logprobs=True, stream=True)]
        tokens = answer.choices[0].logprobs.content
        segments, _, _ = session.finish()
        assert tuple(token.logprob for token in tokens) == segments[0].rollout_logprobs[-len(tokens) :]
        assert "".join(token.token for token in tokens) == "some text<|im_end|>"
        assert len(streamed[1].choices[0].logprobs.content) == len(tokens)

    asyncio.run(main())


REFUSED = [
    {"n": 2},
    {"logit_bias": {"5": 1}},
    {"response_format": {"type": "json_object"}},
    {"stop": ["x"]},
    {"extra_body": {"guided_json": {}}},
    {"functions": [{"name": "f"}]},
]


def test_parameters_that_would_change_the_sampling_are_refused_by_name(qwen):
    async def main():
        async with playing(qwen, TextEngine(qwen, last_question)) as (session, client):
            for parameters in REFUSED:
                with pytest.raises(openai.BadRequestError) as error:
                    await ask(client, [user("q")], **parameters)
                name = next(iter(parameters.get("extra_body", parameters)))
                assert error.value.param == name
                assert name in error.value.message
        assert session.finish() == ((), (), ())

    asyncio.run(main())


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ("{", None),
        ("[]", ""),
        ('{"messages": []}', "messages"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "messages.0.role"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}',
            "messages.0",
        ),
        ('{"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}', "max_tokens"),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "web_search"}]}', "tools.0"),
        ("[" * 100_000, None),
    ],
)
def test_body_that_is_no_request_is_told_so(qwen, body, param):
    async def main():
        async with (
            playing(qwen, TextEngine(qwen, last_question)) as (session, _),
            aiohttp.ClientSession() as http,
            http.post(f"{session.base_url}/chat/completions", data=body) as response,
        ):
            error = (await response.json())["error"]
            assert response.status == 400
            assert error["type"] == "invalid_request_error"
            assert (error["param"] or "").startswith(param or "")

    asyncio.run(main())


def test_sampling_is_the_servers_and_what_was_asked_is_counted(qwen):
    async def main():
        engine = TextEngine(qwen, last_question)
        async with playing(qwen, engine) as (session, client):
            for seed in (1, 2):
                await ask(client, [user("q")], temperature=0.1, top_p=0.5, seed=seed, presence_penalty=1.0)
            await ask(client, [user("q")], tools=[ADD], tool_choice="required", max_tokens=3)
        assert {(r.sampling.temperature, r.sampling.top_p) for r in engine.requests} == {(1.0, 1.0)}
        assert session.ignored == {
            "temperature": 2,
            "top_p": 2,
            "seed": 2,
            "presence_penalty": 2,
            "tool_choice": 1,
        }
        assert [r.sampling.max_tokens for r in engine.requests] == [512, 512, 3]

    asyncio.run(main())


def test_answer_cut_at_the_clients_own_cap_can_be_gone_on_from(qwen):
    async def main():
        async with playing(qwen, TextEngine(qwen, lambda _: "a long answer indeed")) as (session, client):
            history = [user("q")]
            answer = (await ask(client, history, max_completion_tokens=3)).choices[0]
            assert answer.finish_reason == "length"
            history += [echo(answer.message), user("go on")]
            await ask(client, history, max_tokens=400)
        (segment,), turns, _ = session.finish()
        end = qwen.chat.stop_token_ids[0]
        assert turns[0].stop - turns[0].start == 3
        assert segment.token_ids[turns[0].stop] == end
        assert not segment.loss_mask[turns[0].stop]
        assert session.stop == "stop"

    asyncio.run(main())


def test_server_leaves_no_thread_behind(qwen):
    before = threading.active_count()

    async def main():
        async with playing(qwen, TextEngine(qwen, last_question)) as (_, client):
            await ask(client, [user("q")])

    asyncio.run(main())
    assert threading.active_count() == before
