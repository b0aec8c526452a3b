"""Which conversation a request goes on with: extension, forks, rewrites, retries; 200 programs at random."""

import asyncio
import json
import random
import re
from collections import Counter

import aiohttp
import pytest

from rlhf.episodes.endpoint import RolloutServer
from rlhf.episodes.endpoint_session import Session
from rlhf.episodes.endpoint_wire import read_request
from tests.endpoints import ADD, CALLS, TextEngine, make_dialect, make_policy

openai = pytest.importorskip("openai")


@pytest.fixture(scope="session")
def qwen(tmp_path_factory):
    return make_dialect(tmp_path_factory.mktemp("qwen"), "qwen3")


def make_session(dialect, engine, **limits):
    policy = make_policy(engine, dialect, **limits)
    return Session(dialect, policy, base_url="", api_key="key", model="m")


def body(messages, **parameters):
    return read_request(json.dumps({"messages": messages, **parameters}).encode())


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


class Numbering:
    """Answers a0, a1, ... with thoughts."""

    def __init__(self):
        self.count = 0

    def __call__(self, _):
        self.count += 1
        return f"<think>\nt{self.count - 1}\n</think>\n\na{self.count - 1}"


async def ask(session, messages, *, is_retry=False, **parameters):
    reply = session.ask(body(messages, **parameters), is_retry=is_retry)
    reply.num_waiting += 1
    answer = await reply.task
    reply.num_waiting -= 1
    reply.was_delivered = True
    return answer


def play(dialect, requests, **limits):
    """(session, contexts as text) after these requests, one after another."""

    async def main():
        engine = TextEngine(dialect, Numbering())
        session = make_session(dialect, engine, **limits)
        for request in requests:
            tools = {"tools": request[1]} if isinstance(request, tuple) else {}
            await ask(session, request[0] if isinstance(request, tuple) else request, **tools)
        return session, [dialect.chat.text(r.prompt_token_ids) for r in engine.requests]

    return asyncio.run(main())


def test_history_with_its_answers_is_one_segment_whatever_the_client_leaves_out(qwen):
    first = [
        {"role": "system", "content": None},
        {"role": "user", "content": [{"type": "text", "text": "u0"}]},
    ]
    second = [
        {"role": "developer", "content": ""},
        user("u0"),
        {**assistant("a0"), "refusal": None},
        user("u1"),
    ]
    third = [*second, {"role": "assistant", "content": [{"type": "text", "text": "a1"}]}, user("u2")]
    session, contexts = play(qwen, [first, second, third])
    (segment,), _, _ = session.finish()
    assert segment.reason == "start"
    assert session.conversations == {"new": 1}
    assert re.findall(r"\b[uat]\d\b", contexts[-1]) == ["u0", "t0", "a0", "u1", "t1", "a1", "u2"]


def test_going_back_is_a_fork_that_shares_the_ids(qwen):
    base = [user("u0"), assistant("a0")]
    session, contexts = play(qwen, [base[:1], [*base, user("u1")], [*base, user("u2")]])
    (first, second), turns, _ = session.finish()
    assert (first.reason, second.reason) == ("start", "fork")
    end = turns[0].stop
    assert second.token_ids[:end] == first.token_ids[:end]
    assert not any(second.loss_mask[:end])
    assert session.conversations == {"new": 1, "fork": 1}
    assert "t0" in contexts[2]
    assert "u1" not in contexts[2]


def test_asking_the_same_again_on_purpose_is_sampled_again(qwen):
    session, contexts = play(qwen, [[user("u0")], [user("u0")], [user("u0"), assistant("a1"), user("u1")]])
    (first, second), _, _ = session.finish()
    assert [segment.num_sampled > 0 for segment in (first, second)] == [True, True]
    assert contexts[0] == contexts[1]
    assert "a1" in contexts[2]
    assert "a0" not in contexts[2]
    assert session.conversations == {"new": 1, "fork": 1}


def test_edited_answer_is_shown_as_the_program_has_it(qwen):
    session, contexts = play(qwen, [[user("u0")], [user("u0"), assistant("a0, but better"), user("u1")]])
    assert [segment.reason for segment in session.finish()[0]] == ["start", "start"]
    assert "a0, but better" in contexts[1]
    cut = [user("u0"), assistant("a0"), user("u1"), assistant("no such"), user("u2")]
    session, contexts = play(qwen, [cut[:1], cut[:3], cut])
    assert [segment.reason for segment in session.finish()[0]] == ["start", "rewrite"]
    assert session.conversations == {"new": 1, "edited": 1}
    assert "t0" not in contexts[2]


def test_shortened_history_is_a_rewrite(qwen):
    system = {"role": "system", "content": "s"}
    whole = [system, user("u0"), assistant("a0"), user("u1")]
    session, _ = play(qwen, [whole[:2], whole, [system, user("summary"), assistant("a0"), user("u2")]])
    assert [segment.reason for segment in session.finish()[0]] == ["start", "rewrite"]
    assert session.conversations == {"new": 1, "edited": 1}


def test_other_tools_are_another_segment(qwen):
    base = [user("u0"), assistant("a0"), user("u1")]
    session, contexts = play(qwen, [base[:1], (base, [ADD])])
    assert [segment.reason for segment in session.finish()[0]] == ["start", "rewrite"]
    assert session.conversations == {"new": 1, "tools": 1}
    assert ["# Tools" in context for context in contexts] == [False, True]


def test_subagent_with_the_same_system_prompt_is_a_conversation_of_its_own(qwen):
    system = {"role": "system", "content": "s"}
    session, contexts = play(
        qwen,
        [
            [system, user("u0")],
            [system, user("u1")],
            [system, user("u0"), assistant("a0"), user("u2")],
            [system, user("u1"), assistant("a1"), user("u3")],
        ],
    )
    assert [segment.reason for segment in session.finish()[0]] == ["start", "start"]
    assert re.findall(r"\bu\d\b", contexts[2]) == ["u0", "u2"]
    assert re.findall(r"\bu\d\b", contexts[3]) == ["u1", "u3"]


def test_history_that_ends_with_the_models_turn_has_it_speak_again(qwen):
    session, contexts = play(qwen, [[user("u0")], [user("u0"), assistant("a0")]])
    (segment,), _, _ = session.finish()
    assert contexts[1].endswith("a0<|im_end|>\n<|im_start|>assistant\n")
    assert segment.reason == "start"


def test_message_that_the_model_has_not_answered_is_not_a_place_to_go_on_from(qwen):
    session, contexts = play(qwen, [[user("u0")], [user("u0"), user("u1")]])
    assert [segment.reason for segment in session.finish()[0]] == ["start", "start"]
    assert session.conversations == {"new": 2}
    assert "a0" not in contexts[1]


def test_roles_are_compared(qwen):
    system = {"role": "system", "content": "s"}
    session, _ = play(qwen, [[user("s"), user("u0")], [system, user("u0"), assistant("a0"), user("u1")]])
    assert session.conversations == {"new": 1, "edited": 1}


def test_equal_answers_are_each_gone_on_from_before_one_is_forked(qwen):
    async def main():
        session = make_session(qwen, TextEngine(qwen, lambda _: "a"))
        for messages in ([user("u0")], [user("u0")]):
            await ask(session, messages)
        for text in ("u1", "u2", "u3"):
            await ask(session, [user("u0"), assistant("a"), user(text)])
        return session

    session = asyncio.run(main())
    assert session.conversations == {"new": 1, "fork": 2}
    assert len(session.finish()[0]) == 3


@pytest.mark.parametrize(
    ("name", "arguments"), [("add", '{"a": 40, "b": 3}'), ("sub", '{"a": 40, "b": 2}'), ("add", "{")]
)
def test_edited_call_is_seen(qwen, name, arguments):
    async def main():
        session = make_session(qwen, TextEngine(qwen, lambda _: CALLS["hermes"]))
        first = await ask(session, [user("u0")], tools=[ADD])
        (call,) = first.message["tool_calls"]
        edited = {**call, "function": {"name": name, "arguments": arguments}}
        result = {"role": "tool", "tool_call_id": call["id"], "content": "42"}
        echoed = {"role": "assistant", "content": None, "tool_calls": [edited]}
        await ask(session, [user("u0"), echoed, result], tools=[ADD])
        return session

    assert len(asyncio.run(main()).finish()[0]) == 2


def test_results_of_other_calls_are_not_the_same(qwen):
    async def main():
        session = make_session(qwen, TextEngine(qwen, Numbering()))
        call = {"id": "call1", "function": {"name": "add", "arguments": "{}"}}
        history = [
            user("u0"),
            {"role": "assistant", "tool_calls": [call, {**call, "id": "call2"}]},
            {"role": "tool", "tool_call_id": "call1", "content": "x"},
        ]
        await ask(session, history)
        other = [*history[:2], {**history[2], "tool_call_id": "call2"}]
        await ask(session, [*other, assistant("a0"), user("u1")])
        return session

    assert len(asyncio.run(main()).finish()[0]) == 2


def test_calls_are_compared_by_value(qwen):
    async def main():
        session = make_session(qwen, TextEngine(qwen, lambda _: CALLS["hermes"]))
        first = await ask(session, [user("u0")], tools=[ADD])
        (call,) = first.message["tool_calls"]
        arguments = json.dumps(dict(reversed(json.loads(call["function"]["arguments"]).items())), indent=2)
        again = {**call, "function": {"name": "add", "arguments": arguments}}
        result = {"role": "tool", "tool_call_id": call["id"], "content": "42"}
        echoed = {"role": "assistant", "content": "", "tool_calls": [again]}
        await ask(session, [user("u0"), echoed, result], tools=[dict(reversed(ADD.items()))])
        return session

    assert len(asyncio.run(main()).finish()[0]) == 1


def test_call_that_nobody_could_read_is_text_to_the_client(qwen):
    broken = '<tool_call>\n{"name": "add", "arguments": {"a": }\n</tool_call>'

    async def main():
        session = make_session(qwen, TextEngine(qwen, lambda _: f"Well. {broken}"), max_parse_errors=2)
        history = [user("u0")]
        for turn in range(2):
            answer = await ask(session, history, tools=[ADD])
            assert answer.finish_reason == "stop"
            assert answer.message["content"] == f"Well.\n{broken}"
            history += [answer.message, user(f"u{turn + 1}")]
        assert len(session.finish()[0]) == 1
        with pytest.raises(Exception, match="parse_error"):
            session.ask(body(history, tools=[ADD]), is_retry=False)
        return session

    assert asyncio.run(main()).stop == "parse_error"


def test_tool_choice_none_gives_calls_as_text(qwen):
    async def main():
        session = make_session(qwen, TextEngine(qwen, lambda _: CALLS["hermes"]))
        return await ask(session, [user("u0")], tools=[ADD], tool_choice="none")

    answer = asyncio.run(main())
    assert answer.message == {"role": "assistant", "content": CALLS["hermes"]}


def test_retry_is_given_the_answer_there_is_or_will_be(qwen):
    async def main():
        engine = TextEngine(qwen, Numbering(), delay_s=0.05)
        session = make_session(qwen, engine)
        first, early = await asyncio.gather(
            ask(session, [user("u0")]), ask(session, [user("u0")], is_retry=True)
        )
        late = await ask(session, [user("u0")], is_retry=True)
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
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1), http.post(url, json=asked) as response:
                        await response.read()
            await asyncio.sleep(0.3)
            assert session.ledger.num_sampled > 0
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
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1), http.post(url, json=asked):
                    pass
            async with http.post(url, json=asked) as response:
                assert "a0" in await response.text()
        assert len(engine.requests) == 1

    asyncio.run(main())


def test_parallel_requests_of_one_episode_are_threads(qwen):
    async def main():
        engine = TextEngine(qwen, Numbering(), delay_s=0.01)
        session = make_session(qwen, engine)
        root = await ask(session, [user("u0")])
        base = [user("u0"), root.message]
        answers = await asyncio.gather(*(ask(session, [*base, user(f"u{i}")]) for i in range(1, 5)))
        again = await asyncio.gather(*(ask(session, [*base, user("same")]) for _ in range(3)))
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
                answer = await ask(self.session, messages, is_retry=True, **parameters)
                same = [known for m, p, known in self.asked if (m, p) == (messages, parameters)]
                assert any(answer is known for known in same)
                return
        answer = await ask(self.session, messages, **parameters)
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
