"""How what `task.environment.use` names is played, by what it is."""

import functools
from collections import deque

import pytest

from rlhf.episodes.played import describe
from rlhf.episodes.program import Endpoint
from rlhf.episodes.tool_environment import ClassEnvironment, TrlEnvironment
from rlhf.errors import EpisodeError


class Steps:
    def __init__(self, start: int = 0):
        self.start = start

    def reset(self, prompt, context): ...

    def step(self, action, context): ...

    def play(self, one, two, three):
        """Its own affair."""


class OwnsItsLoop:
    def __init__(self, start: int = 0):
        self.start = start

    async def play(self, prompt, model, context):
        return prompt, model, context, self.start


class RunsAProgram:
    def __init__(self, start: int = 0):
        self.start = start

    async def play(self, endpoint: Endpoint, context): ...

    def score(self, context): ...


class HasToolsOfItsOwn:
    def reset(self, prompt, context): ...

    def play(self, card: str, player: int, table: int) -> str:
        """Play a card."""
        return card


class TrlGame:
    def reset(self, **row): ...

    def play(self, card: str) -> str:
        """Play a card.

        Args:
            card: Which.
        """
        return card


class Nothing: ...


async def owns_its_loop(prompt, model, context, *, start=0):
    return prompt, model, context, start


def makes(start: int = 0):
    return Steps(start)


def forgot_async(prompt, model, context): ...


@pytest.mark.parametrize("kind", [Steps, RunsAProgram])
def test_class_is_made_for_each_episode(kind):
    make, how = describe(kind, {"start": 3})
    first, second = make(), make()
    assert how == "object"
    assert isinstance(first, kind)
    assert first is not second
    assert first.start == 3


@pytest.mark.parametrize(
    ("loaded", "kwargs", "start"),
    [
        (owns_its_loop, {"start": 3}, 3),
        (functools.partial(owns_its_loop, start=4), {}, 4),
        (OwnsItsLoop, {"start": 3}, 3),
        (OwnsItsLoop(5), {}, 5),
    ],
)
def test_what_owns_its_loop_is_a_function_of_prompt_model_and_context(loaded, kwargs, start):
    make, how = describe(loaded, kwargs)
    assert how == "function"
    owner = make()
    coroutine = getattr(owner, "play", owner)(1, 2, 3)
    with pytest.raises(StopIteration) as returned:
        coroutine.send(None)
    assert returned.value.value == (1, 2, 3, start)


def test_a_method_play_beside_reset_is_a_tool():
    make, how = describe(HasToolsOfItsOwn, {})
    assert how == "object"
    assert isinstance(made := make(), ClassEnvironment)
    assert [tool.name for tool in made.tools] == ["play"]
    assert isinstance(describe(TrlGame, {})[0](), TrlEnvironment)


@pytest.mark.parametrize("loaded", [Steps(), RunsAProgram()])
def test_object_is_played_itself(loaded):
    make, how = describe(loaded, {})
    assert (make() is loaded, how) == (True, "object")
    with pytest.raises(EpisodeError, match=r"kwargs \['start'\] would do nothing"):
        describe(loaded, {"start": 1})


def test_function_makes_an_environment_for_each_episode():
    make, how = describe(makes, {"start": 3})
    assert (make().start, how) == (3, "object")
    assert make() is not make()


@pytest.mark.parametrize(
    ("loaded", "kwargs", "says"),
    [
        (Nothing, {}, "class Nothing is no environment: it has none of reset, step and play"),
        (7, {}, "7 is no environment"),
        (deque(), {}, "is no environment"),
        (
            Steps,
            {"begin": 1},
            "cannot be called with kwargs \\['begin'\\]: .*begin.*; it takes \\(start: int = 0\\)",
        ),
        (OwnsItsLoop, {"begin": 1}, "'begin'"),
        (HasToolsOfItsOwn, {"begin": 1}, "'begin'"),
        (owns_its_loop, {"begin": 1}, "'begin'"),
        (makes, {"begin": 1}, "'begin'"),
        (forgot_async, {}, "missing a required argument: 'prompt'"),
    ],
)
def test_what_no_episode_could_play_is_refused_at_the_start(loaded, kwargs, says):
    with pytest.raises(EpisodeError, match=says):
        describe(loaded, kwargs)
