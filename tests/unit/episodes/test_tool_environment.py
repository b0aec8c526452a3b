import asyncio
from pathlib import Path

import pytest

from rlhf.episodes.tool_environment import ToolEnvironment, trl_environment
from rlhf.episodes.tools import Tool
from rlhf.errors import ConfigError
from rlhf.interfaces import Context
from rlhf.types import Message, Step
from tests.unit.episodes.episode_contexts import call, context_of, turn


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Ledger:
    """Made for each episode where the class itself is given."""

    def __init__(self):
        self.entries = []
        self.is_closed = False

    def enter(self, amount: int) -> int:
        """Write an amount down."""
        self.entries.append(amount)
        return sum(self.entries)

    def close(self):
        self.is_closed = True


def test_the_prompt_begins_calls_are_answered_and_a_turn_without_a_call_ends():
    environment = ToolEnvironment(
        [add, Ledger], score=lambda answer, reference: answer == reference, system="Be exact."
    )
    context = context_of()
    opening = environment.reset(context.prompt, context)
    assert [(m.role, m.content) for m in opening] == [("system", "Be exact."), ("user", "q")]
    assert [tool.schema["function"]["description"] for tool in environment.tools] == [
        "Add two numbers.",
        "Write an amount down.",
    ]
    step = environment.step(
        turn(call("add", {"a": 1, "b": 2}), call("enter", {"amount": 5}, number=2)), context
    )
    assert [m.content for m in step.messages] == ["3", "5"]
    assert (step.terminated, step.is_invalid, len(step.seconds)) == (False, False, 2)
    assert environment.step(turn(call("enter", {"amount": 5})), context).messages[0].content == "10"
    last = Message(role="assistant", content="gold")
    context.note(last)
    assert environment.step(last, context) == Step(terminated=True)
    assert environment.score(context) is True


def test_a_class_is_made_anew_for_each_episode_and_closed_with_it():
    made = []

    class Noted(Ledger):
        def __init__(self):
            super().__init__()
            made.append(self)

    environment = ToolEnvironment([Noted], score=None)
    assert environment.tools == ()
    for number in range(2):
        context = context_of()
        environment.reset(context.prompt, context)
        step = environment.step(turn(call("enter", {"amount": 1})), context)
        assert step.messages[0].content == "1"
        environment.close()
        assert made[number].is_closed
    assert not hasattr(environment, "score")


def test_a_class_is_given_what_it_asks_for_and_is_the_state():
    class Shelf:
        def __init__(self, prompt, books: list, shade: str = "dark"):
            self.books = [*books, prompt.id, shade]

        def count(self) -> int:
            return len(self.books)

    environment = ToolEnvironment([Shelf, add], score=lambda state, least: len(state.books) >= least)
    context = context_of(columns={"books": ["a"], "least": 3})
    environment.reset(context.prompt, context)
    assert context.state.books == ["a", "p", "dark"]
    assert environment.step(turn(call("count")), context).messages[0].content == "3"
    assert environment.score(context) is True


def test_state_is_set_up_and_found_by_tools_and_score():
    def look(key: str, context: Context) -> str:
        return context.state[key]

    async def setup(prompt, table):
        return {"asked": prompt.messages[0].content, **table}

    environment = ToolEnvironment(
        [Tool.from_function(look, read_only=True)],
        setup=setup,
        score=lambda state, context: float(len(state)) + context.limits.max_turns,
    )
    context = context_of(columns={"table": {"a": "1"}})
    environment.reset(context.prompt, context)
    step = environment.step(
        turn(call("look", {"key": "asked"}), call("look", {"key": "a"}, number=2)), context
    )
    assert [m.content for m in step.messages] == ["q", "1"]
    assert environment.score(context) == 34.0


def test_an_async_score_is_the_callers_to_await():
    async def judge(messages) -> float:
        return float(len(messages))

    environment = ToolEnvironment([add], score=judge)
    assert asyncio.run(environment.score(context_of())) == 0.0


@pytest.mark.parametrize(
    ("calls", "is_invalid"),
    [
        ([call("add", {"a": 1, "b": 2})], False),
        ([call("subtract")], True),
        ([call("", error="invalid_json"), call("add", {}, number=2)], True),
        ([call("", error="invalid_json"), call("add", {"a": 1, "b": 2}, number=2)], False),
        ([call("fails")], False),
    ],
)
def test_a_turn_of_which_nothing_could_be_read_is_invalid(calls, is_invalid):
    def fails() -> str:
        raise ValueError

    environment = ToolEnvironment([add, fails], score=None)
    context = context_of()
    environment.reset(context.prompt, context)
    assert environment.step(turn(*calls), context).is_invalid is is_invalid


def test_calls_are_counted_over_the_episode():
    environment = ToolEnvironment([add], score=None)
    context = context_of(max_tool_calls=3)
    environment.reset(context.prompt, context)
    both = turn(call("add", {"a": 1, "b": 2}), call("add", {"a": 1, "b": 2}, number=2))
    found = [m.failure for _ in range(2) for m in environment.step(both, context).messages]
    assert found == [None, None, None, "over_limit"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"tools": [], "score": None}, "tools is empty"),
        (
            {"tools": [add, add], "score": None},
            "two are named 'add'",
        ),
        ({"tools": [add], "score": lambda *everything: everything}, r"`\*everything` is variadic positional"),
        ({"tools": [lambda: 1], "score": None}, "expected a name"),
    ],
)
def test_what_cannot_be_an_environment_is_refused_when_it_is_made(arguments, says):
    with pytest.raises(ConfigError, match=says):
        ToolEnvironment(**arguments)


def test_a_score_that_asks_for_an_unknown_column_is_told_those_there_are():
    environment = ToolEnvironment([add], score=lambda golden: golden)
    with pytest.raises(
        ConfigError, match=r"'golden' is neither one of context, .* nor a column of prompt p, .* gold"
    ):
        environment.score(context_of(columns={"gold": 1}))


class Guess:
    """A TRL environment: https://huggingface.co/docs/trl, `environment_factory`."""

    def __init__(self, high: int = 10):
        self.high = high
        self.reward = 0.0

    def reset(self, secret: int, prompt, **row) -> str | None:
        self.secret = secret
        self.prompt = prompt
        self.row = row
        return f" It is at most {self.high}."

    def step(self, number: int) -> str:
        """Try a number.

        Args:
            number: The guess.
        """
        self.reward = float(number == self.secret)
        return "right" if self.reward else "wrong"

    def get_reward(self) -> float:
        return self.reward


@pytest.mark.parametrize("named", [False, True])
def test_a_trl_environment_class_runs_as_it_is(named, tmp_path):
    kind = f"{tmp_path}/guess.py:Guess" if named else Guess
    if named:
        lines = Path(__file__).read_text().partition("class Guess:")[2].partition("@pytest")[0]
        (tmp_path / "guess.py").write_text("class Guess:" + lines)
    environment = trl_environment(kind, high=5)
    context = context_of(columns={"secret": 3})
    assert [m.content for m in environment.reset(context.prompt, context)] == ["q It is at most 5."]
    (tool,) = environment.tools
    assert tool.name == "step"
    assert tool.schema["function"]["parameters"]["properties"]["number"]["description"] == "The guess."
    assert environment.step(turn(call("step", {"number": 4})), context).messages[0].content == "wrong"
    assert environment.score(context) == 0.0
    assert environment.step(turn(call("step", {"number": "3"})), context).messages[0].content == "right"
    assert environment.score(context) == 1.0
    environment.close()


def test_a_trl_environment_sees_its_row_and_may_leave_the_reward_to_others():
    seen = []

    class Silent:
        def reset(self, **row):
            seen.append(row)

        async def look(self) -> str:
            return "seen"

    environment = trl_environment(Silent)
    assert not hasattr(environment, "score")
    context = context_of(columns={"level": 2}, is_chat=True)
    assert environment.reset(context.prompt, context)[-1].content == "q"
    assert seen == [{"level": 2, "reference": "gold", "prompt": [{"role": "user", "content": "q"}]}]
    assert environment.step(turn(call("look")), context).messages[0].content == "seen"
    with pytest.raises(ConfigError, match="no class with a method `reset`"):
        trl_environment(Ledger)
