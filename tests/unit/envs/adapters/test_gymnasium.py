"""Gymnasium itself: FrozenLake, Blackjack, Taxi, the time limit, actions that are none."""

import random
import re

import pytest

from envs.adapters.gymnasium import Gymnasium, rows, uncoloured
from rlhf.errors import ConfigError, DataError, LoadError, RlhfError
from tests.unit.envs.adapters.episodes import play
from tests.unit.envs.playing import Episode, answers

pytest.importorskip("gymnasium", reason="the extra `content` is not installed")

MOVES = {"left": 0, "down": 1, "right": 2, "up": 3}
LAKE = {"id": "FrozenLake-v1", "kwargs": {"is_slippery": False}, "actions": MOVES}
(ROW,) = rows(seed=1, size=1, prompt="Reach G.")


def opening(episode):
    return episode.environment.reset(episode.context.prompt, episode.context)[-1].content


def test_lake_is_drawn_walked_and_rewarded(tmp_path):
    with Episode(Gymnasium(**LAKE), ROW, tmp_path) as episode:
        assert opening(episode) == "Reach G.\n[S]FFF\nFHFH\nFFFH\nHFFG"
        steps = [episode.say(word) for word in ("down", " Down\n", "RIGHT", "right", "down", "right")]
        assert answers(steps[0]) == ["  (Down)\nSFFF\n[F]HFH\nFFFH\nHFFG"]
        assert [step.reward for step in steps] == [0, 0, 0, 0, 0, 1]
        assert (steps[-1].terminated, steps[-1].truncated) == (True, False)
        assert episode.context.scalars == {"steps": 6, "refused": 0, "returned": 1}


@pytest.mark.parametrize("text", ["", "north", "0", "left right", "\x00", "x" * 100_000, "9" * 5000])
def test_what_is_no_action_is_told_and_costs_the_turn_alone(tmp_path, text):
    with Episode(Gymnasium(**LAKE), ROW, tmp_path) as episode:
        before = opening(episode)
        step = episode.say(text)
        (told,) = answers(step)
        assert told.endswith("is no action; expected left, down, right, up")
        assert len(told) < 300
        assert (step.reward, step.terminated, step.truncated, step.is_invalid) == (0, False, False, True)
        assert episode.context.scalars == {"steps": 0, "refused": 1, "returned": 0}
        assert before.splitlines()[-4:][0] == "[S]FFF"
        assert not episode.say("down").is_invalid


def test_action_outside_of_the_space_is_no_crash(tmp_path):
    with Episode(Gymnasium(**LAKE | {"actions": {"jump": 7}}), ROW, tmp_path) as episode:
        assert answers(episode.say("jump")) == ["'jump' is no action; expected jump"]
    with Episode(Gymnasium("FrozenLake-v1"), ROW, tmp_path) as episode:
        for text in ("7", "-1", "\u0663", "1.0", "up"):
            (told,) = answers(episode.say(text))
            assert told.endswith("expected a number from 0 to 3")
        assert not episode.say(" 3 ").is_invalid


def test_time_limit_truncates(tmp_path):
    kwargs = LAKE | {"kwargs": {"is_slippery": False, "max_episode_steps": 3}}
    with Episode(Gymnasium(**kwargs), ROW, tmp_path) as episode:
        steps = [episode.say("up") for _ in range(3)]
        assert [(step.terminated, step.truncated) for step in steps] == [(False, False)] * 2 + [(False, True)]


def test_blackjack_is_told_in_words(tmp_path):
    kwargs = {"actions": {"stick": 0, "hit": 1}, "obs_to_text": "envs.adapters.gymnasium:blackjack"}
    returns = []
    for row in rows(seed=2, size=30, prompt="Blackjack."):
        with Episode(Gymnasium("Blackjack-v1", **kwargs), row, tmp_path) as episode:
            assert "; the dealer shows " in opening(episode)
            step = episode.say("stick")
            assert step.terminated
            returns.append(step.reward)
    assert set(returns) <= {-1.0, 0.0, 1.0}
    assert len(set(returns)) > 1


def test_observation_without_a_picture_is_written_as_python_writes_it(tmp_path):
    with Episode(Gymnasium("Blackjack-v1"), ROW, tmp_path) as episode:
        assert opening(episode).startswith("Reach G.\n(")


def test_taxi_is_solved_by_its_own_text(tmp_path):
    """The formatter tells all that is needed: a driver who reads nothing else brings the passenger home."""
    words = {"south": 0, "north": 1, "east": 2, "west": 3, "pickup": 4, "dropoff": 5}
    kwargs = {
        "actions": words,
        "obs_to_text": "envs.adapters.gymnasium:taxi",
        "kwargs": {"render_mode": "ansi"},
    }
    with Episode(Gymnasium("Taxi-v4", **kwargs), ROW, tmp_path) as episode:
        text = opening(episode)
        assert "\x1b" not in text
        total, rng = 0.0, random.Random(0)
        for _ in range(200):
            step = episode.say(_drive(text, rng))
            (text,) = answers(step)
            total += step.reward
            if step.terminated or step.truncated:
                break
        assert step.terminated
        assert total > -200


def _drive(text, rng):
    taxi = tuple(map(int, re.search(r"taxi: row (\d), column (\d)", text).groups()))
    passenger = re.search(r"passenger: (.*?); dest", text)[1]
    aim = text if passenger == "in the taxi" else passenger
    key = "destination" if passenger == "in the taxi" else "at"
    target = tuple(map(int, re.search(rf"{key}:? \w \(row (\d), column (\d)\)", aim).groups()))
    if taxi == target:
        return "dropoff" if passenger == "in the taxi" else "pickup"
    if taxi[0] != 2 and taxi[1] != target[1]:
        return "south" if taxi[0] < 2 else "north"
    if taxi[1] != target[1]:
        return "east" if taxi[1] < target[1] else "west"
    return "south" if taxi[0] < target[0] else "north"


def test_a_rows_seed_begins_every_sample_alike(tmp_path):
    def begun(row):
        kwargs = {"obs_to_text": "envs.adapters.gymnasium:taxi"}
        with Episode(Gymnasium("Taxi-v4", **kwargs), row, tmp_path) as episode:
            return opening(episode)

    found = [begun(row) for row in rows(seed=4, size=5, prompt="Drive.")]
    assert found == [begun(row) for row in rows(seed=4, size=5, prompt="Drive.")]
    assert len(set(found)) == 5
    assert begun({"prompt": "Drive."}) == begun({"prompt": "Drive."})
    with pytest.raises(DataError, match="column `seed`"):
        begun({"prompt": "Drive.", "seed": "one"})


def test_colours_are_told():
    picture = "\x1b[41mS\x1b[0mF\x1b[34;1mB\x1b[0m \x1b[1mx\x1b[0m\x1b[7"
    assert uncoloured(picture) == "[S]F(blue B) x\x1b[7"


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"id": "Nothing-v0"}, ConfigError, "'Nothing-v0' cannot be made"),
        ({"id": "Taxi-v3"}, ConfigError, "Taxi-v4"),
        ({"id": "FrozenLake-v1", "kwargs": {"wet": 1}}, ConfigError, "wet"),
        ({"id": "FrozenLake-v1", "actions": MOVES, "text_to_action": "a:b"}, ConfigError, "both"),
        ({"id": "FrozenLake-v1", "obs_to_text": "envs.nothing:x"}, LoadError, r"kwargs\.obs_to_text"),
        ({"id": "FrozenLake-v1", "text_to_action": "envs:x"}, LoadError, r"kwargs\.text_to_action"),
    ],
)
def test_what_cannot_be_had_is_named(kwargs, error, says):
    with pytest.raises(error, match=says):
        Gymnasium(**kwargs)


def test_lake_is_played_by_the_runner(tmp_path):
    """Rewards reach the turns, what is no action is told, and state goes along with the episode's process."""
    moves = iter(("down", "what?", "down", "right", "right", "down", "right"))
    (found,) = play(
        "envs.adapters.gymnasium:Gymnasium",
        ROW,
        tmp_path,
        kwargs=LAKE,
        write=lambda _: next(moves),
        max_turns=9,
    )
    assert (found.stop, found.reward.value, found.error) == ("env_done", 1.0, "")
    turns = [turn for turn in found.turns if turn.finish]
    assert [turn.reward for turn in turns] == [0] * 6 + [1]
    assert found.scalars == {"steps": 6, "refused": 1, "returned": 1}
    with pytest.raises(RlhfError, match="Nothing-v0"):
        play("envs.adapters.gymnasium:Gymnasium", ROW, tmp_path / "2", kwargs={"id": "Nothing-v0"}, write=str)
