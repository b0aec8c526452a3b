"""Estimates against every draw of k samples, taken one by one."""

import math
import random
from collections import Counter
from itertools import combinations, permutations, product

import pytest

from rlhf.rollout.estimates import best_of_k, majority_at_k, pass_at_k, pass_hat_k

SIZES = [(n, k) for n in range(1, 8) for k in range(1, n + 1)]


def draws(n, k):
    return list(combinations(range(n), k))


def slow_majority(answers, truths, k):
    """Over ordered draws: count votes, None last, ties to the first seen."""
    total, number = 0.0, 0
    for draw in permutations(range(len(answers)), k):
        votes = Counter(answers[i] for i in draw if answers[i] is not None)
        number += 1
        if votes:
            # Counter keeps the order of insertion, and max takes the first of equals.
            winner = max(votes, key=votes.__getitem__)
            members = [truths[i] for i, answer in enumerate(answers) if answer == winner]
            total += sum(members) / len(members)
    return total / number


def slow_best(truths, scores, k):
    total = 0.0
    for draw in draws(len(truths), k):
        best = max(scores[i] for i in draw)
        # Whoever is on top of this draw: all samples of that score take part in equally many draws.
        top = [truths[i] for i in draw if scores[i] == best]
        total += sum(top) / len(top)
    return total / math.comb(len(truths), k)


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_pass_at_k_and_pass_hat_k_are_the_shares_of_draws_with_one_and_with_only_right_samples(n, k):
    for c in range(n + 1):
        one = sum(min(draw) < c for draw in draws(n, k)) / math.comb(n, k)
        every = sum(max(draw) < c for draw in draws(n, k)) / math.comb(n, k)
        assert pass_at_k(n, c, k) == pytest.approx(one, abs=1e-12)
        assert pass_hat_k(n, c, k) == pytest.approx(every, abs=1e-12)


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_best_of_k_agrees_with_every_draw(n, k):
    chance = random.Random(n * 10 + k)
    for _ in range(20):
        truths = [float(chance.random() < 0.5) for _ in range(n)]
        scores = [float(chance.randrange(3)) for _ in range(n)]
        assert best_of_k(truths, scores, k) == pytest.approx(slow_best(truths, scores, k), abs=1e-12)


@pytest.mark.parametrize(("n", "k"), [(n, k) for n, k in SIZES if n <= 5])
def test_majority_agrees_with_every_ordered_draw_of_every_vote(n, k):
    for answers in product(("7", "8", "9", None), repeat=n):
        truths = [float(answer == "7") for answer in answers]
        assert majority_at_k(answers, truths, k) == pytest.approx(
            slow_majority(answers, truths, k), abs=1e-12
        )


@pytest.mark.parametrize(("n", "k"), [(7, 3), (7, 4), (7, 6), (6, 5)])
def test_majority_agrees_with_every_ordered_draw_of_more_answers(n, k):
    chance = random.Random(n * 10 + k)
    for _ in range(6):
        answers = [chance.choice(("1", "2", "3", "4", None)) for _ in range(n)]
        truths = [float(answer in ("1", "3")) for answer in answers]
        assert majority_at_k(answers, truths, k) == pytest.approx(
            slow_majority(answers, truths, k), abs=1e-12
        )


def test_all_of_them_are_the_accuracy_at_one():
    chance = random.Random(0)
    for n in range(1, 40):
        answers = [chance.choice(("1", "2", "3", None)) for _ in range(n)]
        truths = [float(answer == "1") for answer in answers]
        c, accuracy = int(sum(truths)), sum(truths) / n
        scores = [chance.random() for _ in range(n)]
        at_one = (
            pass_at_k(n, c, 1), pass_hat_k(n, c, 1), majority_at_k(answers, truths, 1), best_of_k(truths, scores, 1),
        )  # fmt: skip
        assert at_one == pytest.approx((accuracy,) * 4, abs=1e-12)


def test_estimates_keep_their_order_and_do_not_depend_on_the_order_of_samples():
    chance = random.Random(1)
    for _ in range(60):
        n = chance.randrange(2, 33)
        answers = [chance.choice(("1", "2", "3", "4", "5", None)) for _ in range(n)]
        truths = [float(answer == "1") for answer in answers]
        scores = [float(chance.randrange(4)) for _ in range(n)]
        order = chance.sample(range(n), n)
        c = int(sum(truths))
        for k in range(1, n + 1):
            majority, best = majority_at_k(answers, truths, k), best_of_k(truths, scores, k)
            low, high = pass_hat_k(n, c, k) - 1e-12, pass_at_k(n, c, k) + 1e-12
            assert low <= best <= high
            assert 0 <= majority <= high
            shuffled = [answers[i] for i in order], [truths[i] for i in order], [scores[i] for i in order]
            assert majority_at_k(shuffled[0], shuffled[1], k) == pytest.approx(majority, abs=1e-12)
            assert best_of_k(shuffled[1], shuffled[2], k) == pytest.approx(best, abs=1e-12)


def test_best_of_k_under_the_truth_is_pass_at_k():
    for n, k in SIZES:
        for c in range(n + 1):
            truths = [float(i < c) for i in range(n)]
            assert best_of_k(truths, truths, k) == pytest.approx(pass_at_k(n, c, k), abs=1e-12)


def test_majority_of_all_samples_is_the_vote():
    assert majority_at_k(["1", "2", "2"], [1.0, 0.0, 0.0], 3) == 0
    assert majority_at_k(["1", "2", "1"], [1.0, 0.0, 1.0], 3) == 1
    assert majority_at_k(["1", "2", None, None], [1.0, 0.0, 0.0, 0.0], 4) == 0.5
    assert majority_at_k([None, None], [0.0, 0.0], 2) == 0
    assert majority_at_k([None, None, "1"], [0.0, 0.0, 1.0], 3) == 1


@pytest.mark.parametrize("k", [0, 4])
def test_estimates_refuse_a_k_that_cannot_be_drawn(k):
    for estimate in (
        lambda: pass_at_k(3, 1, k),
        lambda: pass_hat_k(3, 1, k),
        lambda: majority_at_k(["1", "2", None], [1.0, 0.0, 0.0], k),
        lambda: best_of_k([1.0, 0.0, 0.0], [1.0, 2.0, 3.0], k),
    ):
        with pytest.raises(ValueError, match=f"n=3, c=[01], k={k}"):
            estimate()


def test_best_of_k_refuses_scores_that_cannot_rank():
    for scores in ([1.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match="a score for each of 2 truths"):
            best_of_k([1.0, 0.0], scores, 1)


def test_majority_of_many_samples_is_quick():
    chance = random.Random(2)
    answers = [str(chance.randrange(20)) for _ in range(64)]
    truths = [float(answer == "0") for answer in answers]
    assert 0 <= majority_at_k(answers, truths, 64) <= 1
    assert 0 <= majority_at_k(answers, truths, 16) <= 1
