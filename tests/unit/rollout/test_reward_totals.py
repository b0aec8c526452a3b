import itertools
from typing import Any

import pytest

from rlhf.config.rewards import RewardConfig
from rlhf.errors import DataError, RewardError
from rlhf.rollout.reward_totals import SEVERITY, Part, UngradableWatch, check_columns, compose, short_names
from rlhf.rollout.statistics import part_metric
from rlhf.telemetry.metrics import find
from rlhf.types import RewardResult
from tests.fakes import make_prompt


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
        Part(
            name=o,
            reward=RewardConfig(use=f"m:{o}"),
            results=[RewardResult(value=1.0, outcome=o), RewardResult(value=1.0)],
        )
        for o in (worse, better)
    ]
    assert [result.outcome for result in compose(parts, 2)] == [worse, "ok"]


def test_short_names_are_unique() -> None:
    uses = ["rewards.math_answer:grade", "my/rewards.py:grade", "rewards.math_answer:grade"]
    names = short_names([RewardConfig(use=use) for use in uses])
    assert names == ("math_answer.grade", "rewards.grade", "math_answer.grade#2")


def test_compose_leaves_out_what_applies_to_no_sibling() -> None:
    idle = [RewardResult(value=None, outcome="not_applicable")] * 2
    parts = [part("a", 1.0, 0.0), Part(name="b", reward=RewardConfig(use="m:b"), results=idle)]
    results = compose(parts, 2)
    assert [(r.value, r.outcome) for r in results] == [(1.0, "ok"), (0.0, "ok")]
    (alone, _) = compose(parts[1:], 2)
    assert (alone.value, alone.outcome) == (None, "not_applicable")


def test_compose_part_that_applies_to_some_siblings_voids_the_others() -> None:
    mixed = [RewardResult(value=None, outcome="not_applicable"), RewardResult(value=1.0)]
    parts = [part("a", 1.0, 1.0), Part(name="b", reward=RewardConfig(use="m:b"), results=mixed)]
    assert [r.value for r in compose(parts, 2)] == [None, 2.0]


def test_compose_gives_every_part_its_share_of_the_detail() -> None:
    long = [RewardResult(value=1.0, detail={"output": "x" * 5000})]
    parts = [Part(name=n, reward=RewardConfig(use=f"m:{n}"), results=long) for n in "ab"]
    (total,) = compose(parts, 1)
    assert {name: len(str(text)) for name, text in total.detail.items()} == {
        "a/output": 1024,
        "b/output": 1024,
    }


@pytest.mark.parametrize(("order", "total"), [("ga", 0.0), ("ag", 0.0)])
def test_compose_closed_gate_makes_a_zero_wherever_it_stands(order: str, total: float) -> None:
    parts = {"a": part("a", 3.0), "g": part("g", 0.0, gate=True)}
    assert totals(*(parts[name] for name in order)) == [total]


def test_compose_gate_without_a_value_voids_unless_optional() -> None:
    assert totals(part("a", 3.0, 1.0), part("g", None, 1.0, gate=True)) == [None, 1.0]
    assert totals(part("a", 3.0, 1.0), part("g", None, 0.0, gate=True, optional=True)) == [3.0, 1.0]


def test_watch_counts_the_share_without_a_total_and_names_no_idle_reward() -> None:
    watch = UngradableWatch(1.0)
    idle = Part(
        name="idle",
        reward=RewardConfig(use="m:idle"),
        results=[RewardResult(value=None, outcome="not_applicable")] * 4,
    )
    parts = [idle, part("a", 1.0, None, 1.0, 1.0)]
    watch.see(parts, compose(parts, 4))
    assert watch.share == 0.25
    strict = UngradableWatch(0.1)
    many = [Part(name=p.name, reward=p.reward, results=[*p.results] * 5) for p in parts]
    with pytest.raises(RewardError, match=r"25%(.|\n)*reward a failed"):
        strict.see(many, compose(many, 20))


def test_check_columns_asks_only_the_prompts_that_a_reward_is_for() -> None:
    rewards = [RewardConfig(use="m:a"), RewardConfig(use="m:b", when={"task": "code"})]
    required = {"m.a": (), "m.b": ("tests",)}
    math, code = make_prompt(1, task="math"), make_prompt(2, task="code")
    check_columns(rewards, required, [math], key="task.train")
    with pytest.raises(
        DataError, match=r"reward m\.b \(m:b\) .*'tests', but row p2 of task\.heldout .*\['task'\]"
    ):
        check_columns(rewards, required, [math, code], key="task.heldout")


def test_part_metrics_are_declared_whatever_a_reward_calls_its_parts() -> None:
    for name in ("m.a", "m.a#2", "m.a/style", "m.a/a b/c", "m.a/Größe", "m.a//"):
        assert find(part_metric(name)) is not None
    assert part_metric("m.a/a b/c") == "reward/m.a/a_b_c/mean"
