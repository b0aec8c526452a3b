import math
import random
from itertools import combinations

import pytest

from rlhf.data.collected import Collected, Sample
from rlhf.errors import RewardError
from rlhf.offline.answers import votes_by_text
from rlhf.offline.figures import measure, problem_of
from rlhf.offline.kept import kept_samples
from tests.fakes import make_prompt


def sample(index, *, right=True, reward=1.0, answer=None, tokens=3, stop="stop", outcome="ok", score=None):
    parts = {"task": float(right)} | ({} if score is None else {"score": score})
    return Sample(
        index=index, seed=index, completion=f"c{index}", reward=reward, is_correct=right and reward is not None,
        outcome=outcome, parts=parts, stop=stop, num_tokens=tokens, answer=answer,
    )  # fmt: skip


def collected(index, *samples):
    return Collected(prompt=make_prompt(index), samples=samples)


def measured(*problems, sizes=(1, 2), best_of=None):
    made = [problem_of(one, votes_by_text(one), best_of=best_of) for one in problems]
    return measure(made, sizes=sizes, best_of=best_of is not None)


def test_figures_are_means_over_problems_not_over_samples():
    easy = collected(0, *(sample(i) for i in range(2)))
    hard = collected(1, sample(0), *(sample(i, right=False, reward=0.0) for i in (1, 2, 3)))
    figures = measured(easy, hard).figures
    assert figures["accuracy"].value == pytest.approx((1 + 0.25) / 2)
    assert figures["pass@2"].value == pytest.approx((1 + 0.5) / 2)
    assert figures["pass^2"].value == 0.5
    assert figures["accuracy"].problems == 2


def test_figures_of_random_samples_agree_with_every_draw():
    chance = random.Random(0)
    problems = []
    for index in range(6):
        rights = [chance.random() < 0.4 for _ in range(5)]
        problems.append(
            collected(
                index,
                *(
                    sample(
                        i,
                        right=right,
                        reward=float(right),
                        score=chance.random(),
                        answer="7" if right else "8",
                    )
                    for i, right in enumerate(rights)
                ),
            )
        )
    figures = measured(*problems, sizes=(3,), best_of="score").figures
    one = every = majority = best = 0.0
    for problem in problems:
        for draw in combinations(problem.samples, 3):
            rights = [s.is_correct for s in draw]
            one, every, majority = one + any(rights), every + all(rights), majority + (sum(rights) >= 2)
            best += max(draw, key=lambda s: s.parts["score"]).is_correct
    number = len(problems) * math.comb(5, 3)
    found = [figures[name].value for name in ("pass@3", "pass^3", "maj@3", "best@3")]
    assert found == pytest.approx([value / number for value in (one, every, majority, best)])


def test_what_was_not_graded_is_counted_apart():
    mixed = collected(0, sample(0), sample(1, reward=None, outcome="error", stop="env_error"))
    lost = collected(1, sample(0, reward=None, outcome="timeout"), sample(1, reward=None, outcome="timeout"))
    scores = measured(mixed, lost)
    assert scores.counts == {"prompts": 2, "samples": 4, "ungradable": 3}
    assert (scores.figures["accuracy"].value, scores.figures["accuracy"].problems) == (1.0, 1)
    assert scores.figures["ungradable"].value == 0.75
    assert "pass@1" in scores.figures
    assert "pass@2" not in scores.figures
    with pytest.raises(RewardError, match="none of 2 samples of 1 prompts"):
        measured(lost)


def test_format_truncation_and_tokens_speak_of_every_sample():
    one = collected(
        0,
        sample(0, tokens=10, stop="length", right=False, reward=0.0, outcome="unparsable"),
        sample(1, tokens=20),
    )
    figures = measured(one).figures
    assert [figures[name].value for name in ("format", "truncated", "tokens", "reward")] == [
        0.5,
        0.5,
        15,
        0.5,
    ]


def test_there_is_no_vote_without_answers_and_no_ranking_without_scores():
    figures = measured(collected(0, sample(0), sample(1, right=False, reward=0.0)), best_of="score").figures
    assert not [name for name in figures if name.startswith(("maj@", "best@"))]


def test_right_answers_are_one_vote_however_they_are_written():
    one = collected(
        0,
        sample(0, answer="1/2"),
        sample(1, answer="0.5"),
        *(sample(i, right=False, reward=0.0, answer=str(i)) for i in (2, 3)),
    )
    assert measured(one, sizes=(4,)).figures["maj@4"].value == 1.0


def test_tables_hold_every_sample_and_every_problem_once():
    chance = random.Random(1)
    problems = [
        collected(
            index,
            *(
                sample(i, right=right, reward=float(right), tokens=chance.randrange(1, 50))
                for i, right in enumerate([i < index % 5 for i in range(4)])
            ),
        )
        for index in range(25)
    ]
    scores = measured(*problems)
    assert sum(row["samples"] for row in scores.lengths) == 100
    assert all(a["most"] < b["least"] for a, b in zip(scores.lengths, scores.lengths[1:], strict=False))
    assert 1 <= len(scores.lengths) <= 4
    assert sum(row["problems"] for row in scores.difficulties) == 25
    assert [(row["low"], row["high"]) for row in scores.difficulties] == [
        (0, 0), (0, 0.25), (0.25, 0.5), (0.5, 0.75), (1, 1),
    ]  # fmt: skip
    assert [row["accuracy"] for row in scores.difficulties] == [0, 0.25, 0.5, 0.75, 1]


def test_one_length_is_one_bin():
    (row,) = measured(collected(0, sample(0), sample(1))).lengths
    assert (row["least"], row["most"], row["samples"]) == (3, 3, 2)


@pytest.mark.parametrize(("prompts", "limit"), [(10, 4), (10, 10), (3, 8), (5, 0), (2, 100)])
def test_kept_samples_are_bounded_and_spread_over_prompts(prompts, limit):
    every = [
        collected(i, *(sample(j, right=j == 2, reward=float(j == 2)) for j in range(4)))
        for i in range(prompts)
    ]
    rows = kept_samples(every, limit, num_prompts=prompts)
    assert len(rows) == min(limit, prompts * 4)
    counts = [sum(row["prompt_id"] == f"p{i}" for row in rows) for i in range(prompts)]
    assert max(counts) - min(counts) <= 1
    if min(counts) >= 2:
        assert {row["is_correct"] for row in rows[:2]} == {True, False}
