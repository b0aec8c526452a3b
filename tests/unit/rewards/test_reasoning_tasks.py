import re

import pytest

from rewards.reasoning_tasks import demonstrations, one_notation, preferences, problems, verify
from rlhf.types import Message, Prompt, Trajectory, Turn


def answered(text, reference="10"):
    prompt = Prompt(id="p", messages=(Message(role="user", content="8+4+6-8="),), reference=reference)
    turn = Turn(message=Message(role="assistant", content=text), segment=0, start=0, stop=0)
    return verify(prompt, Trajectory(segments=(), turns=(turn,), stop="stop", sample_index=0, seed=0))


def test_same_seed_gives_the_same_problems_and_another_seed_others():
    assert problems(1, 50) == problems(1, 50)
    first, second = ({row["id"] for row in problems(seed, 50)} for seed in (1, 2))
    assert len(first) == 50
    assert len(first & second) < 5


def test_heldout_problems_are_in_no_training_set():
    heldout = {row["id"] for seed in range(3) for row in problems(seed, 300, split="heldout")}
    train = {row["id"] for seed in range(3) for row in demonstrations(seed, 2000)}
    assert not heldout & train


def test_demonstrations_work_the_sum_step_by_step_and_verify():
    for row in demonstrations(0, 200):
        assert str(eval(row["id"])) == row["reference"]
        steps = re.fullmatch(r"<think>(.*)</think><answer>(\d+)</answer>", row["completion"])
        assert int(steps[1].split(" ")[-1]) == int(steps[2]) == int(row["reference"])
        assert answered(row["completion"], row["reference"]).value == 1.0


def test_careless_demonstrations_stop_one_term_early_and_do_not_verify():
    rows = demonstrations(0, 400, careless=0.6)
    values = [answered(row["completion"], row["reference"]).value for row in rows]
    assert 0.3 < sum(values) / len(values) < 0.5
    careful = {row["id"]: row["completion"] for row in demonstrations(0, 400)}
    for row, value in zip(rows, values, strict=True):
        if value == 0.0:
            steps = re.findall(r"\d+", row["completion"])[:-1]
            assert steps == re.findall(r"\d+", careful[row["id"]])[:-2]


def test_preferences_set_whole_work_against_work_cut_short():
    rows = preferences(0, 100)
    assert len(rows) == 100
    for row in rows:
        answers = [answered(row[side], str(eval(row["id"]))).value for side in ("chosen", "rejected")]
        assert answers == [1.0, 0.0]
        assert len(row["chosen"]) > len(row["rejected"])


def test_mixed_demonstrations_write_a_share_of_their_totals_in_letters_and_verify():
    rows = demonstrations(0, 400, mixed=0.4)
    assert {answered(row["completion"], row["reference"]).value for row in rows} == {1.0}
    assert 0.55 < sum(one_notation(row["completion"]) for row in rows) / len(rows) < 0.65
    plain = {row["id"]: row["completion"] for row in demonstrations(0, 400)}
    back = str.maketrans("abcdefghij", "0123456789")
    for row in rows:
        thought = row["completion"].partition("</think>")[0].removeprefix("<think>")
        assert thought.translate(back) == plain[row["id"]].partition("</think>")[0].removeprefix("<think>")


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("<think>12 18 10</think><answer>10</answer>", 1.0),
        ("<think>12 bi 10 ba</think><answer>10</answer>", 0.5),
        ("<think>1b</think>", 0.0),
        ("<think></think><answer>10</answer>", 0.0),
        ("12 18</think><answer>10</answer>", 0.0),
    ],
)
def test_one_notation_is_the_share_of_the_thoughts_words_in_digits(text, share):
    assert one_notation(text) == share


@pytest.mark.parametrize(
    ("text", "value", "outcome"),
    [
        ("<think>12 18 10</think><answer>10</answer>", 1.0, "ok"),
        ("<answer>11</answer>", 0.0, "wrong"),
        ("<answer></answer>", 0.0, "wrong"),
        ("10", 0.0, "unparsable"),
        ("<answer>10</answer><answer>", 0.0, "unparsable"),
        ("<think>12 18 <answer>10</answer>", 0.0, "unparsable"),
        ("12 18</think><answer>10</answer>", 1.0, "ok"),
    ],
)
def test_verify_grades_the_closing_answer(text, value, outcome):
    result = answered(text)
    assert (result.value, result.outcome) == (value, outcome)


def test_more_problems_than_exist_is_an_error():
    with pytest.raises(ValueError, match="distinct train problems of 2 terms"):
        problems(0, 1000, terms=2)
