import itertools
from typing import Any

import pytest

from rlhf.config.rewards import RewardConfig
from rlhf.rollout.reward_totals import SEVERITY, Part, compose, short_names
from rlhf.types import RewardResult


def part(name: str, *values: float | None, **keys: Any) -> Part:
    results = [RewardResult(value=v, outcome="error" if v is None else "ok") for v in values]
    return Part(name=name, reward=RewardConfig(use=f"m:{name}", **keys), results=results)


def totals(*parts: Part) -> list[float | None]:
    return [result.value for result in compose(parts, len(parts[0].results))]


def test_compose_adds_weighted_parts() -> None:
    assert totals(part("a", 1.0, 0.0), part("b", 1.0, 1.0, weight=0.25)) == [1.25, 0.25]


def test_compose_gate_multiplies_and_adds_nothing() -> None:
    assert totals(part("a", 1.0, 1.0), part("b", 0.5, 0.0, gate=True, weight=7.0)) == [1.0, 0.0]


def test_compose_required_none_voids_only_that_sample() -> None:
    results = compose([part("a", 1.0, 1.0), part("b", None, 1.0)], 2)
    assert [r.value for r in results] == [None, 2.0]
    assert [r.outcome for r in results] == ["error", "ok"]
    assert results[0].parts == {"a": 1.0}


def test_compose_optional_none_is_left_out_for_the_whole_group() -> None:
    results = compose([part("a", 1.0, 1.0), part("b", None, 1.0, optional=True)], 2)
    assert [r.value for r in results] == [1.0, 1.0]
    assert [r.outcome for r in results] == ["ok", "ok"]
    assert results[1].parts == {"a": 1.0, "b": 1.0}


def test_compose_without_a_part_to_add_is_not_applicable() -> None:
    assert [(r.value, r.outcome) for r in compose([], 1)] == [(None, "not_applicable")]
    (only_gate,) = compose([part("a", 1.0, gate=True)], 1)
    assert (only_gate.value, only_gate.outcome) == (None, "not_applicable")


@pytest.mark.parametrize(("better", "worse"), itertools.pairwise(SEVERITY))
def test_compose_takes_the_worst_outcome(better: Any, worse: Any) -> None:
    parts = [
        Part(name=o, reward=RewardConfig(use=f"m:{o}"), results=[RewardResult(value=1.0, outcome=o)])
        for o in (worse, better)
    ]
    assert compose(parts, 1)[0].outcome == worse


def test_short_names_are_unique() -> None:
    uses = ["rewards.math_answer:grade", "my/rewards.py:grade", "rewards.math_answer:grade"]
    names = short_names([RewardConfig(use=use) for use in uses])
    assert names == ("math_answer.grade", "rewards.grade", "math_answer.grade#2")
