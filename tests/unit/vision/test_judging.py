import math
import statistics
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from rewards.vision_heads import LinearHead
from rewards.vision_judges import Constant, Pixel
from rewards.vision_lmm import LMM
from rlhf.errors import ConfigError, JudgeError
from rlhf.vision.judging import OrderConsistent, ask, combine, reads_query, tally, z_scores

ROW_A = [Image.new("RGB", (2, 2), "red")]
ROW_B = [Image.new("RGB", (2, 2), "blue")]


@dataclass
class Said:
    """A pair judge that says what it is told, one after the other."""

    answers: list
    name: str = "said"
    version: str = "1"
    shown: list = field(default_factory=list)

    def compare(self, query, row_a, row_b):
        self.shown.append((row_a, row_b))
        return self.answers.pop(0)


@dataclass
class Numbers:
    scores: list
    name: str = "numbers"
    version: str = "1"

    def score(self, images, queries=None):
        assert queries == ["a red circle"] * len(images)
        return self.scores


@dataclass
class BoundedNumbers(Numbers):
    range: tuple = (1.0, 5.0)


def asked(judge, num=2):
    return ask(judge, "a red circle", [f"i{n}" for n in range(num)], ROW_A * num)


@pytest.mark.parametrize(
    ("as_shown", "when_swapped", "expected"),
    [
        ("a", "b", "a"),
        ("b", "a", "b"),
        ("a", "a", "tie"),
        ("b", "b", "tie"),
        ("a", "tie", "tie"),
        ("b", "tie", "tie"),
        ("tie", "a", "tie"),
        ("tie", "b", "tie"),
        ("tie", "tie", "tie"),
    ],
)
def test_a_row_wins_only_where_both_orders_name_it(as_shown, when_swapped, expected):
    said = Said([as_shown, when_swapped])
    judge = OrderConsistent(said)
    assert judge.compare("q", ROW_A, ROW_B) == expected
    assert said.shown == [(ROW_A, ROW_B), (ROW_B, ROW_A)]
    assert judge.num_calls == 2
    assert judge.num_contradictions == (expected == "tie" and (as_shown, when_swapped) != ("tie", "tie"))


def test_calls_add_up():
    judge = OrderConsistent(Said(["a", "b", "a", "a", "tie", "tie"]))
    assert [judge.compare("q", ROW_A, ROW_B) for _ in range(3)] == ["a", "tie", "tie"]
    assert (judge.num_calls, judge.num_contradictions) == (6, 1)


def test_another_word_than_a_verdict_is_an_error_that_names_judge_and_query():
    with pytest.raises(JudgeError, match=r"'said'.*'a red circle'.*'A'"):
        OrderConsistent(Said(["A"])).compare("a red circle", ROW_A, ROW_B)


def test_a_tie_is_half_a_win():
    counted = tally(["a", "a", "tie", "b"])
    assert (counted.wins, counted.ties, counted.losses, counted.rate) == (2, 1, 1, 0.625)
    with pytest.raises(ValueError, match="no verdicts"):
        tally([])


def test_scores_come_back_in_order():
    assert asked(Numbers([2, -3.5])) == (2.0, -3.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_names_judge_query_and_image(bad):
    with pytest.raises(JudgeError, match=r"'numbers' scored image 'i1' of query 'a red circle'.*finite"):
        asked(Numbers([1.0, bad]))


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, 2.0, 3.0]])
def test_another_number_of_scores_is_an_error(scores):
    with pytest.raises(
        JudgeError, match=f"'numbers' gave {len(scores)} scores for the 2 images .*'a red circle'"
    ):
        asked(Numbers(scores))


def test_a_judge_keeps_to_the_range_it_states():
    assert asked(BoundedNumbers([1, 5])) == (1.0, 5.0)
    with pytest.raises(JudgeError, match=r"image 'i1'.* with 5\.5, expected from 1 to 5"):
        asked(BoundedNumbers([1, 5.5]))


def test_z_scores_are_those_of_the_textbook():
    scores = [3.0, 1.0, 4.0, 1.0, 5.0]
    mean, deviation = statistics.fmean(scores), statistics.pstdev(scores)
    assert z_scores(scores) == pytest.approx([(s - mean) / deviation for s in scores])


@pytest.mark.parametrize("scores", [[0.0, 0.0], [5.0], [0.1 + 0.2, 0.3, 0.3], [1e300, 1e300], []])
def test_equal_scores_are_zeros(scores):
    assert z_scores(scores) == (0.0,) * len(scores)


@pytest.mark.parametrize("size", [1e-200, 1e-9, 1e200])
def test_z_scores_do_not_depend_on_the_unit(size):
    assert z_scores([size, 2 * size, 4 * size]) == pytest.approx(z_scores([1, 2, 4]))


def test_judges_count_by_weight_whatever_their_scale():
    found = combine({"small": [0.1, 0.2, 0.3], "large": [900, 600, 300]}, {"small": 1.0, "large": 0.5})
    step = math.sqrt(1.5)
    assert found.total == pytest.approx([-step / 2, 0, step / 2])
    assert found.members == {"small": (0.1, 0.2, 0.3), "large": (900, 600, 300)}


def test_a_judge_of_weight_0_is_kept_and_not_followed():
    found = combine({"followed": [1, 2], "watched": [2, 1]}, {"followed": 1.0, "watched": 0.0})
    assert found.total == (-1.0, 1.0)
    assert found.members["watched"] == (2, 1)


def test_a_judge_to_whom_all_are_equal_changes_nothing():
    alone = combine({"taste": [1, 3, 2]}, {"taste": 2.0})
    both = combine({"taste": [1, 3, 2], "constant": [7, 7, 7]}, {"taste": 2.0, "constant": 1.0})
    assert both.total == alone.total


@pytest.mark.parametrize("weights", [{}, {"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}])
def test_every_judge_needs_a_weight(weights):
    with pytest.raises(ConfigError, match="one weight for each judge"):
        combine({"a": [1, 2], "b": [1, 2]}, weights)


def test_shipped_judges_say_whether_they_look_at_the_query():
    head = LinearHead(weight=np.ones(3), bias=0.0)
    lmm = LMM(endpoint={"url": "http://127.0.0.1:9/v1", "model": "judge"})
    assert [reads_query(judge) for judge in (Pixel(), Constant(), head, lmm)] == [False, False, False, True]
    assert reads_query(Numbers([1.0]))


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="different lengths"):
        combine({"a": [1, 2], "b": [1]}, {"a": 1.0, "b": 1.0})
