"""Which conversation a request goes on with: extension, forks, rewrites."""

import asyncio
import json
import re
from dataclasses import replace

import pytest

from rlhf.episodes.parsing import parser_of
from tests.endpoints import (
    ADD,
    CALLS,
    Numbering,
    TextEngine,
    ask_session,
    assistant,
    body,
    make_dialect,
    make_session,
    user,
)


@pytest.fixture(scope="session")
def qwen(tmp_path_factory):
    return make_dialect(tmp_path_factory.mktemp("qwen"), "qwen3")


def play(dialect, requests, **limits):
    """(session, contexts as text) after these requests, one after another."""

    async def main():
        engine = TextEngine(dialect, Numbering())
        session = make_session(dialect, engine, **limits)
        for request in requests:
            tools = {"tools": request[1]} if isinstance(request, tuple) else {}
            await ask_session(session, request[0] if isinstance(request, tuple) else request, **tools)
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
            await ask_session(session, messages)
        for text in ("u1", "u2", "u3"):
            await ask_session(session, [user("u0"), assistant("a"), user(text)])
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
        first = await ask_session(session, [user("u0")], tools=[ADD])
        (call,) = first.message["tool_calls"]
        edited = {**call, "function": {"name": name, "arguments": arguments}}
        result = {"role": "tool", "tool_call_id": call["id"], "content": "42"}
        echoed = {"role": "assistant", "content": None, "tool_calls": [edited]}
        await ask_session(session, [user("u0"), echoed, result], tools=[ADD])
        return session

    assert len(asyncio.run(main()).finish()[0]) == 2


def test_tool_result_that_the_program_shortens_later_is_a_segment_of_its_own(qwen):
    """A habit of programs with long histories: old results are cleared. What was sampled stays where it was."""

    async def main():
        engine = TextEngine(qwen, lambda prompt: CALLS["hermes"] if "result" not in prompt else "a0")
        session = make_session(qwen, engine)
        called = await ask_session(session, [user("u0")], tools=[ADD])
        (call,) = called.message["tool_calls"]
        result = {"role": "tool", "tool_call_id": call["id"], "content": "a long result"}
        history = [user("u0"), called.message, result]
        answered = await ask_session(session, history, tools=[ADD])
        history += [answered.message, user("u1")]
        await ask_session(
            session, [*history[:2], {**result, "content": "cleared, result"}, *history[3:]], tools=[ADD]
        )
        return session, [qwen.chat.text(r.prompt_token_ids) for r in engine.requests]

    session, contexts = asyncio.run(main())
    segments, turns, dropped = session.finish()
    assert [segment.reason for segment in segments] == ["start", "rewrite"]
    assert session.conversations == {"new": 1, "edited": 1}
    assert ["cleared" in context for context in contexts] == [False, False, True]
    assert "a long result" not in contexts[2]
    assert dropped == ()
    assert [(turn.segment, turn.finish) for turn in turns if turn.finish] == [
        (0, "stop"),
        (0, "stop"),
        (1, "stop"),
    ]


def test_results_of_other_calls_are_not_the_same(qwen):
    async def main():
        session = make_session(qwen, TextEngine(qwen, Numbering()))
        call = {"id": "call1", "function": {"name": "add", "arguments": "{}"}}
        history = [
            user("u0"),
            {"role": "assistant", "tool_calls": [call, {**call, "id": "call2"}]},
            {"role": "tool", "tool_call_id": "call1", "content": "x"},
        ]
        await ask_session(session, history)
        other = [*history[:2], {**history[2], "tool_call_id": "call2"}]
        await ask_session(session, [*other, assistant("a0"), user("u1")])
        return session

    assert len(asyncio.run(main()).finish()[0]) == 2


def test_calls_are_compared_by_value(qwen):
    async def main():
        session = make_session(qwen, TextEngine(qwen, lambda _: CALLS["hermes"]))
        first = await ask_session(session, [user("u0")], tools=[ADD])
        (call,) = first.message["tool_calls"]
        arguments = json.dumps(dict(reversed(json.loads(call["function"]["arguments"]).items())), indent=2)
        again = {**call, "function": {"name": "add", "arguments": arguments}}
        result = {"role": "tool", "tool_call_id": call["id"], "content": "42"}
        echoed = {"role": "assistant", "content": "", "tool_calls": [again]}
        await ask_session(session, [user("u0"), echoed, result], tools=[dict(reversed(ADD.items()))])
        return session

    assert len(asyncio.run(main()).finish()[0]) == 1


def test_untyped_arguments_have_the_types_of_the_clients_schema(qwen):
    call = (
        "<tool_call>\n<function=add>\n<parameter=a>\n40\n</parameter>\n<parameter=b>\nx\n</parameter>\n"
        "</function>\n</tool_call>"
    )

    async def main():
        dialect = replace(qwen, parse=parser_of("qwen_xml"))
        answer = await ask_session(
            make_session(dialect, TextEngine(dialect, lambda _: call)), [user("u0")], tools=[ADD]
        )
        return answer.message["tool_calls"][0]["function"]

    assert asyncio.run(main()) == {"name": "add", "arguments": '{"a": 40, "b": "x"}'}


def test_call_that_nobody_could_read_is_text_to_the_client(qwen):
    broken = '<tool_call>\n{"name": "add", "arguments": {"a": }\n</tool_call>'

    async def main():
        session = make_session(qwen, TextEngine(qwen, lambda _: f"Well. {broken}"), max_parse_errors=2)
        history = [user("u0")]
        for turn in range(2):
            answer = await ask_session(session, history, tools=[ADD])
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
        return await ask_session(session, [user("u0")], tools=[ADD], tool_choice="none")

    answer = asyncio.run(main())
    assert answer.message == {"role": "assistant", "content": CALLS["hermes"]}
