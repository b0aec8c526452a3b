import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.telemetry.metrics import METRICS, declared, reduce_metrics, wilson

PREFIXES = {
    "env",
    "rollout",
    "scenario",
    "reward",
    "update",
    "critic",
    "curriculum",
    "value",
    "mismatch",
    "buffer",
    "sync",
    "time",
    "eval",
    "memory",
    "trainer",
    "preference",
    "reject",
    "merge",
    "length",
    "order",
}


def test_metric_declarations_are_complete_and_prefixed():
    for name, metric in METRICS.items():
        assert name.split("/")[0] in PREFIXES
        assert re.fullmatch(r"[a-z0-9_]+(/([a-z0-9_]+|\*))+", name)
        assert metric.meaning.endswith(".")
        assert "\n" not in metric.meaning


def test_undeclared_metric_error_names_the_nearest():
    with pytest.raises(AssertionError, match="rollout/reward_mean"):
        declared("rollout/reward_maen")


def test_a_star_admits_one_free_part():
    assert declared("reward/math_answer/mean").reduction == "mean"
    assert declared("rollout/discarded/zero_variance").reduction == "sum"
    assert declared("reward/math_answer/style/mean").reduction == "mean"
    for name in ("reward/a/b/c/mean", "reward/a/b/std", "reward//mean"):
        with pytest.raises(AssertionError):
            declared(name)


def test_reduce_metrics_follows_the_declarations():
    observations = [
        {"update/ratio_max": 1.0, "update/loss": 2.0, "time/update_s": 1.0, "update/lr": 0.1},
        {"update/ratio_max": 3.0, "update/loss": 4.0, "time/update_s": 2.0, "update/lr": 0.2},
    ]

    reduced = reduce_metrics(observations)

    assert reduced == {"update/ratio_max": 3.0, "update/loss": 3.0, "time/update_s": 3.0, "update/lr": 0.2}


def test_wilson_matches_a_hand_worked_example():
    low, high = wilson(9, 10)

    assert low == pytest.approx(0.5958, abs=1e-4)
    assert high == pytest.approx(0.9821, abs=1e-4)


def test_wilson_of_nothing_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_solves_its_equation(pair):
    correct, n = pair
    share = correct / n

    low, high = wilson(correct, n)

    assert 0.0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1.0
    for end in (low, high):
        assert abs(end - share) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / n), abs=1e-7)
