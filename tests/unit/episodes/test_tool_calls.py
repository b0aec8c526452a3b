import asyncio
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.episodes.tool_calls import run_calls
from rlhf.episodes.tools import Tool, ToolError, by_name
from rlhf.errors import EpisodeError, SandboxError
from rlhf.types import CallError
from tests.unit.episodes.episode_contexts import RecordingLink, call, context_of


def tools(*functions, **options):
    return by_name(Tool.from_function(function, **options) for function in functions)


def one(function, context=None, *, arguments=None, **options):
    """The only answer to one call of a function."""
    context = context or context_of()
    name = options.get("name") or function.__name__
    ((message, _),) = run_calls([call(name, arguments)], tools(function, **options), context=context)
    return message


def echo(text: str) -> str:
    return text


def test_each_call_is_answered_in_its_order_with_its_id_and_name():
    calls = [call("echo", {"text": str(number)}, number=number) for number in range(5)]
    answers = run_calls(calls, tools(echo), context=context_of())
    assert [(m.role, m.tool_call_id, m.name, m.content) for m, _ in answers] == [
        ("tool", f"call0000{number}", "echo", str(number)) for number in range(5)
    ]
    assert not any(m.is_error or m.failure for m, _ in answers)


def test_calls_over_the_cap_are_each_told():
    ran = []

    def note(text: str) -> str:
        ran.append(text)
        return text

    calls = [call("note", {"text": str(number)}, number=number) for number in range(40)]
    answers = run_calls(calls, tools(note), context=context_of(max_parallel_calls=16))
    assert [m.tool_call_id for m, _ in answers] == [c.id for c in calls]
    assert [m.failure for m, _ in answers] == [None] * 16 + ["over_limit"] * 24
    assert answers[16][0].content == "Error: not run: a turn may have 16 calls, this is number 17."
    assert ran == [str(number) for number in range(16)]


def test_calls_of_the_whole_episode_are_capped():
    calls = [call("echo", {"text": "a"}, number=number) for number in range(3)]
    answers = run_calls(calls, tools(echo), context=context_of(max_tool_calls=5), num_before=3)
    assert [m.failure for m, _ in answers] == [None, None, "over_limit"]
    assert answers[2][0].content == "Error: not run: all 5 calls are used up."


@pytest.mark.parametrize("is_async", [False, True])
def test_read_only_and_async_tools_run_at_the_same_time(is_async):
    number = 8
    barrier = threading.Barrier(number, timeout=60)
    arrived = []

    def meet(place: int) -> int:
        barrier.wait()
        return place

    async def gather(place: int) -> int:
        arrived.append(place)
        while len(arrived) < number:
            await asyncio.sleep(0.001)
        return place

    tool = Tool.from_function(gather if is_async else meet, name="t", read_only=not is_async)
    link = RecordingLink()
    calls = [call("t", {"place": place}, number=place) for place in range(number)]
    answers = run_calls(calls, {"t": tool}, context=context_of(link))
    assert [m.content for m, _ in answers] == [str(place) for place in range(number)]
    assert link.num_open == 0
    assert threading.active_count() == 1 or not any(t.name.startswith("tool") for t in threading.enumerate())


def test_a_writing_call_waits_for_those_before_and_is_seen_by_those_after():
    state = []

    def look() -> int:
        time.sleep(0.02)
        return len(state)

    def add() -> int:
        state.append(1)
        return len(state)

    known = tools(look, read_only=True) | tools(add)
    names = ["look", "look", "add", "look", "add", "add", "look"]
    answers = run_calls([call(n, number=i) for i, n in enumerate(names)], known, context=context_of())
    assert [m.content for m, _ in answers] == ["0", "0", "1", "1", "2", "3", "3"]


def test_each_call_is_a_phase_and_a_checkpoint_is_kept_before_them():
    link = RecordingLink()
    context = context_of(link, tool_s=7.0)
    known = tools(echo) | tools(echo, name="quick", timeout_s=2.0) | tools(echo, name="slow", timeout_s=100.0)
    calls = [call(name, {"text": "a"}, number=i) for i, name in enumerate(["echo", "quick", "slow"])]
    run_calls(calls, known, context=context)
    assert link.told[0] == ("checkpoint", None)
    assert link.limits_s == {"call00000": 7.0, "call00001": 2.0, "call00002": 7.0}
    assert link.num_open == 0


def test_no_checkpoint_where_nothing_runs():
    link = RecordingLink()
    run_calls([call("nothing"), call("echo")], tools(echo), context=context_of(link))
    assert link.told == []


def test_a_call_that_hung_is_answered_and_the_others_run():
    ran = []

    def work(text: str) -> str:
        ran.append(text)
        return text

    link = RecordingLink(hung=frozenset({"call00001"}))
    calls = [call("work", {"text": str(number)}, number=number) for number in range(3)]
    answers = run_calls(calls, tools(work), context=context_of(link, tool_s=4.0))
    assert ran == ["0", "2"]
    assert [m.failure for m, _ in answers] == [None, "timeout", None]
    assert answers[1][0].content == "TimeoutError: work was stopped, it had not answered within 4 s"
    assert answers[1][1] == 4.0


def test_async_tools_are_given_up_in_time_without_a_kill():
    async def sleeps() -> str:
        await asyncio.sleep(600)
        return ""

    async def turns_it_into_an_error() -> str:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            raise ValueError("x") from None
        return ""

    async def quick() -> str:
        return "quick"

    known = tools(sleeps, turns_it_into_an_error, quick)
    began = time.perf_counter()
    calls = [call(name, number=i) for i, name in enumerate(known)]
    answers = run_calls(calls, known, context=context_of(tool_s=1.5))
    assert time.perf_counter() - began < 60
    assert [m.failure for m, _ in answers] == ["timeout", "timeout", None]


class OwnError(BaseException):
    pass


class Mute(Exception):
    def __str__(self):
        raise SystemExit


def recursion():
    return recursion()


def raises(error):
    def function():
        raise error

    return function


RAISING = {
    "plain": (raises(ValueError("no")), "ValueError: no"),
    "no text": (raises(AssertionError()), "AssertionError"),
    "own": (raises(OwnError("x")), "OwnError: x"),
    "exit": (raises(SystemExit(3)), "SystemExit: 3"),
    "process": (sys.exit, "SystemExit"),
    "interrupt": (raises(KeyboardInterrupt()), "KeyboardInterrupt"),
    "cancelled": (raises(asyncio.CancelledError()), None),
    "generator": (raises(GeneratorExit()), "GeneratorExit"),
    "iteration": (raises(StopIteration(1)), None),
    "recursion": (recursion, "RecursionError: maximum recursion depth exceeded"),
    "memory": (lambda: bytearray(1 << 60), "MemoryError"),
    "mute": (raises(Mute()), "Mute: (its text cannot be shown)"),
    "group": (raises(ExceptionGroup("many", [ValueError("a")])), "ExceptionGroup: many (1 sub-exception)"),
    "half characters": (raises(ValueError("a\ud800b")), "ValueError: a?b"),
    "large": (raises(ValueError("x" * 10_000_000)), None),
    "meant for the model": (raises(ToolError("not today")), "ToolError: not today"),
}


@pytest.mark.parametrize("mode", ["alone", "threads", "async"])
@pytest.mark.parametrize("way", RAISING)
def test_whatever_a_tool_raises_is_an_answer(way, mode):
    function, says = RAISING[way]

    def plain() -> str:
        return function()

    async def later() -> str:
        return function()

    tool = Tool.from_function(later if mode == "async" else plain, name="t", read_only=mode == "threads")
    link = RecordingLink()
    calls = [call("t", number=number) for number in range(1 if mode == "alone" else 3)]
    answers = run_calls(calls, {"t": tool}, context=context_of(link))
    assert [m.tool_call_id for m, _ in answers] == [c.id for c in calls]
    for message, seconds in answers:
        assert (message.is_error, message.failure) == (True, "raised")
        assert len(message.content.encode()) <= 32_768
        assert seconds >= 0
        if says is not None:
            assert message.content.startswith(says)
    assert link.num_open == 0


def test_an_exit_in_a_task_of_an_async_tool_is_an_answer():
    async def starts() -> str:
        async def ends() -> None:
            sys.exit(1)

        await asyncio.gather(ends())
        return ""

    assert one(starts).content == "SystemExit: 1"


@pytest.mark.parametrize("error", [EpisodeError("server gone"), SandboxError("no tier")])
@pytest.mark.parametrize("read_only", [False, True])
def test_what_no_policy_causes_is_raised_not_told(error, read_only):
    def plain() -> str:
        raise error

    link = RecordingLink()
    known = tools(plain, read_only=read_only)
    with pytest.raises(type(error), match=str(error)):
        run_calls([call("plain", number=1), call("plain", number=2)], known, context=context_of(link))
    assert link.num_open == 0


def test_coercions_are_counted():
    def add(a: int, b: int) -> int:
        return a + b

    context = context_of()
    assert one(add, context, arguments={"a": "1", "b": 2}).content == "3"
    assert one(add, context, arguments={"a": "1", "b": "2"}).content == "3"
    assert context.scalars == {"coerced_arguments": 3.0}


def test_unknown_tools_are_told_and_their_names_cannot_forge_anything():
    answers = run_calls(
        [call("ecko"), call(""), call("<|im_end|>" * 1_000_000)], tools(echo), context=context_of()
    )
    contents = [m.content for m, _ in answers]
    assert contents[0] == "Error: there is no tool 'ecko'; did you mean 'echo'?"
    assert contents[1] == "Error: the call names no tool; the tools are: echo."
    assert len(contents[2]) < 200
    assert [m.name for m, _ in answers[:2]] == ["ecko", "unknown"]
    assert len(answers[2][0].name) <= 64
    assert "<" not in answers[2][0].name


CALLS = st.builds(
    lambda name, arguments, error, is_text: call(name, arguments, error=error, is_text=is_text),
    st.sampled_from(["echo", "fails", "later", "look", "", "nothing", "\ud800"]),
    st.none()
    | st.dictionaries(
        st.sampled_from(["text", "a", ""]),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text() | st.integers(), st.lists, max_leaves=4
        ),
        max_size=2,
    ),
    st.none() | st.sampled_from(list(CallError.__args__)),
    st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(calls=st.lists(CALLS, max_size=12), hung=st.sets(st.integers(0, 11)))
def test_any_calls_have_one_message_each_in_order(calls, hung):
    def fails(text: str = "") -> str:
        raise ValueError(text)

    async def later(text: str) -> str:
        await asyncio.sleep(0)
        return text

    calls = [
        call(c.name, c.arguments, number=i, error=c.error, is_text=c.is_text) for i, c in enumerate(calls)
    ]
    link = RecordingLink(hung=frozenset(f"call{number:05d}" for number in hung))
    known = tools(echo, fails, later) | tools(echo, name="look", read_only=True)
    answers = run_calls(calls, known, context=context_of(link, max_parallel_calls=10))
    assert [m.tool_call_id for m, _ in answers] == [c.id for c in calls]
    assert all(m.role == "tool" and m.is_error == (m.failure is not None) for m, _ in answers)
    for message, _ in answers:
        message.content.encode()
        message.name.encode()
    assert link.num_open == 0
