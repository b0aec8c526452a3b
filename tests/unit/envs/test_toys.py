"""Single turn, the number to guess, and the two tools."""

import random

import pytest

from envs.answers import load_grade
from envs.guess_number import GuessNumber
from envs.guess_number import demonstrations as games
from envs.guess_number import rows as numbers
from envs.single_turn import SingleTurn
from envs.two_tools import TwoTools
from envs.two_tools import demonstrations as works
from envs.two_tools import rows as products
from rlhf.data.characters import CHARACTERS
from rlhf.errors import DataError, EpisodeError, LoadError
from rlhf.types import RewardResult
from tests.unit.envs.playing import Episode, answers

GARBAGE = ("", "\x00", "5 or 6", "\u0665", "-1", "9" * 5000, "x" * 1_000_000, "<tool_call>")
ROW = {"prompt": "2+2=", "reference": "4"}


@pytest.mark.parametrize(("text", "score"), [("4", 1), (" 4\n", 1), ("5", 0), ("", 0)])
def test_single_turn_is_scored_by_its_grade(tmp_path, text, score):
    with Episode(SingleTurn(), ROW, tmp_path) as episode:
        step = episode.say(text)
        assert step.terminated
        assert episode.score() == score


def test_single_turn_takes_a_reward_by_its_name(tmp_path):
    kwargs = {"grade": "rewards.search_answers:f1", "options": {"tagged": False}}
    with Episode(SingleTurn(**kwargs), ROW | {"reference": "blue whale"}, tmp_path) as episode:
        episode.say("a blue fish")
        assert episode.score() == 0.5


def test_answer_that_cannot_be_graded_is_no_score(tmp_path):
    def broken(completion, reference):
        return RewardResult(value=None, outcome="error")

    with Episode(SingleTurn(grade=broken), ROW, tmp_path) as episode:
        episode.say("4")
        with pytest.raises(EpisodeError, match="error"):
            episode.score()
    with Episode(SingleTurn(), {"prompt": "?"}, tmp_path) as episode:
        episode.say("4")
        with pytest.raises(EpisodeError, match="reference"):
            episode.score()


@pytest.mark.parametrize(
    "name", ["rewards.nothing:x", "rewards:__doc__", "no colon", "rewards.math_answer:none"]
)
def test_unknown_grade_is_named(name):
    with pytest.raises(LoadError, match=r"kwargs\.grade"):
        load_grade(name)


def test_numbers_are_answered_and_cost_their_turns(tmp_path):
    row = numbers(seed=3, size=50)[7] | {"reference": "7"}
    with Episode(GuessNumber(max_guesses=4), row, tmp_path) as episode:
        assert answers(episode.say("5")) == ["higher"]
        assert answers(episode.say(" 9 ")) == ["lower"]
        last = episode.say("7")
        assert (answers(last), last.terminated) == (["yes"], True)
        assert episode.score() == 0.5
        assert episode.context.scalars == {"guesses": 3, "found": 1}


@pytest.mark.parametrize("text", GARBAGE)
def test_garbage_is_a_guess_that_is_lost(tmp_path, text):
    with Episode(GuessNumber(max_guesses=2), numbers(size=1)[0], tmp_path) as episode:
        assert answers(episode.say(text)) == ["no"]
        assert episode.say(text).terminated
        assert episode.score() == 0


def test_numbers_are_even_and_the_same_for_a_seed():
    found = numbers(seed=1, size=900)
    assert found == numbers(seed=1, size=900) != numbers(seed=2, size=900)
    assert {sum(row["reference"] == str(i) for row in found) for i in range(1, 10)} == {100}
    assert len({row["id"] for row in found}) == 900
    for low, high in ((5, 5), (-1, 4), (9, 1)):
        with pytest.raises(DataError, match="low"):
            numbers(low=low, high=high)


def test_heeding_the_answers_beats_carelessness(tmp_path):
    def mean_score(careless):
        total = 0.0
        for row in games(seed=1, size=90, careless=careless):
            with Episode(GuessNumber(), row, tmp_path) as episode:
                turns = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
                any(episode.say(turn).terminated for turn in turns)
                total += episode.score()
        return total / 90

    assert mean_score(0.0) > mean_score(0.5) + 0.1 > mean_score(1.0) + 0.2


def test_two_tools_are_needed_and_enough(tmp_path):
    for row in works(seed=1, size=20):
        with Episode(TwoTools(), row, tmp_path) as episode:
            results = []
            for message in row["messages"]:
                if message["role"] == "tool":
                    assert results.pop() == message["content"]
                functions = [call["function"] for call in message.get("tool_calls", ())]
                results.extend(episode.call(f["name"], **f["arguments"]) for f in functions)
            episode.say(row["messages"][-1]["content"])
            assert episode.score() == 1
            assert episode.context.scalars == {"gets": 1, "calcs": 1}


def test_leaving_the_calculator_out_does_not_pay(tmp_path):
    rng = random.Random(0)
    for row in works(seed=1, size=20, careless=1.0):
        with Episode(TwoTools(), row, tmp_path) as episode:
            episode.say(row["messages"][-1]["content"])
            assert episode.score() == 0
            episode.say(str(rng.randint(20, 891)))
            assert episode.score() == 0


@pytest.mark.parametrize("text", ["", "1+", "2**99999999", "__import__('os')", "9" * 50 + "*9", "1*2*3"])
def test_calculator_refuses_what_is_no_sum(tmp_path, text):
    with Episode(TwoTools(), products(size=1)[0], tmp_path) as episode:
        assert episode.call("calc", sum=text) == "ValueError: expected a*b, a+b or a-b"
        assert "KeyError" in episode.call("get", name=text)


def test_calculator_knows_its_three_signs(tmp_path):
    with Episode(TwoTools(), products(size=1)[0], tmp_path) as episode:
        found = [episode.call("calc", sum=text) for text in ("12*3", "12+3", " 3 - 12 ")]
        assert found == ["36", "15", "-9"]


@pytest.mark.parametrize("row", [{"table": None}, {"table": {}}, {"table": "k"}, {}])
def test_row_without_a_table_is_named(tmp_path, row):
    with pytest.raises(DataError, match="table"), Episode(TwoTools(), {"prompt": "k*7", **row}, tmp_path):
        pass


def test_toys_speak_the_small_alphabet():
    texts = [
        str(message["content"])
        for row in (*games(size=50, careless=0.5), *works(size=50))
        for message in row["messages"]
    ]
    assert set("".join(texts)) <= set(CHARACTERS)
    assert max(map(len, texts)) <= 6
