import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlhf.config.refusals import refuse_algorithm
from rlhf.config.rewards import RewardConfig, uncovered_step
from rlhf.config.schema import Recipe
from rlhf.errors import ConfigError
from rlhf.plan import derive_plan

TRAIN, REWARDS = {"file": "a"}, [{"use": "a:b"}]
ONE = {"train": TRAIN, "rewards": REWARDS}
PLAYED = {"train": TRAIN, "environment": {"use": "e:E", "limits": {"max_tokens": 900}}}


def recipe(*, num_steps=10, prompts_per_step=8, algorithm=None, **task) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "a",
            "model": {"path": "x"},
            "task": task,
            "schedule": {"num_steps": num_steps, "prompts_per_step": prompts_per_step},
            "sampling": {"max_prompt_tokens": 100, "max_tokens": 100},
            "algorithm": algorithm or {},
        }
    )


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ({"rewards": REWARDS}, r"task\.train is missing, and there are no task\.scenarios"),
        ({"train": TRAIN, "scenarios": {"a": ONE}}, r"task\.train and task\.scenarios are both given"),
        ({"heldout": TRAIN, "scenarios": {"a": ONE}}, r"task\.heldout and task\.scenarios are both given"),
        (
            {"environment": PLAYED["environment"], "scenarios": {"a": ONE}},
            r"Remove task\.environment, or write it as task\.scenarios\.a\.environment",
        ),
        ({"needs_reference": False, "scenarios": {"a": ONE}}, r"task\.scenarios\.a\.needs_reference: false"),
        ({"scenarios": {"a b": ONE}}, "'a b' cannot name a scenario"),
        ({"scenarios": {"log": ONE}}, "'log' cannot name a scenario"),
        ({"scenarios": {"a": ONE, "b": {"train": TRAIN}}}, r"task\.scenarios\.b\.rewards is empty"),
        ({"template": "{prompt}", "scenarios": {"a": PLAYED}}, r"task\.scenarios\.a\.environment is given"),
        ({"scenarios": {"a": {**ONE, "weight": 0}}}, "greater than 0"),
        (
            {"scenarios": {"a": {**ONE, "weight": 2, "weight_points": [[0, 1]]}}},
            "weight is 2 and weight_points is given",
        ),
        ({"scenarios": {"a": {**ONE, "weight_points": [[3, 1], [2, 1]]}}}, "put them in rising order"),
        (
            {"scenarios": {"a": {**ONE, "weight_points": [[0, 1], [5, 0]]}}},
            "every weight is 0 at step 5",
        ),
        (
            {"scenarios": {"a": {**ONE, "rewards": [{"use": "a:b", "first_step": 10}]}}},
            r"task\.scenarios\.a\.rewards: a:b has first_step 10 and last_step None.*it would never count",
        ),
        (
            {"train": TRAIN, "rewards": [{"use": "a:b", "first_step": -4}]},
            r"task\.rewards: .* no reward but gates counts at step 0",
        ),
        (
            {
                "train": TRAIN,
                "rewards": [{"use": "a:b", "last_step": 3}, {"use": "a:c", "first_step": 5}],
            },
            r"no reward but gates counts at step 4",
        ),
    ],
)
def test_combinations_that_cannot_be_meant_are_refused(task, says):
    with pytest.raises(ValidationError, match=says):
        recipe(**task)


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ({"scenarios": {"a": ONE}}, r"gdpo and task\.scenarios is given"),
        (
            {"train": TRAIN, "rewards": [*REWARDS, {"use": "a:c", "first_step": 3}]},
            r"gives a:c a first_step or last_step",
        ),
    ],
)
def test_an_estimator_that_reads_parts_one_by_one_needs_the_same_parts_throughout(task, says):
    with pytest.raises(ConfigError, match=says):
        refuse_algorithm(recipe(algorithm={"advantages": "gdpo"}, **task))


def test_rewards_of_scenarios_come_first_and_apply_to_their_prompts_alone():
    own = {**ONE, "rewards": [{"use": "a:b", "when": {"level": 1}}]}
    task = recipe(rewards=[{"use": "a:common"}], scenarios={"x": own, "y": ONE}).task
    assert [(r.use, r.when) for r in task.all_rewards] == [
        ("a:b", {"level": 1, "scenario": "x"}),
        ("a:b", {"scenario": "y"}),
        ("a:common", {}),
    ]
    keys = ["task.scenarios.x.rewards[0]", "task.scenarios.y.rewards[0]", "task.rewards[0]"]
    assert list(task.reward_keys) == keys
    assert [r.use for r in task.alone("x").rewards] == ["a:b", "a:common"]
    assert task.alone("x").scenarios == {}
    assert list(task.parts) == ["task.scenarios.x", "task.scenarios.y"]


def test_a_task_without_scenarios_is_its_own_only_part():
    task = recipe(train=TRAIN, rewards=REWARDS).task
    assert task.alone("") is task
    assert list(task.parts) == ["task"]
    assert (task.all_rewards, task.environments, task.shares(5)) == (task.rewards, {}, {"": 1.0})


def test_rows_are_as_long_as_the_longest_scenario_needs():
    both = recipe(scenarios={"a": ONE, "b": PLAYED})
    assert (both.longest_row, both.longest_context) == (900, 900)
    assert recipe(scenarios={"a": ONE}).longest_row == 200
    assert list(both.task.environments) == ["b"]


@given(st.integers(1, 12), *[st.none() | st.integers(-15, 15)] * 2)
def test_a_reward_counts_in_its_steps_counted_from_either_end(num_steps, first, last):
    reward = RewardConfig(use="a:b", first_step=first, last_step=last)
    steps = list(range(num_steps))
    begin = 0 if first is None else first if first >= 0 else num_steps + first
    end = num_steps - 1 if last is None else last if last >= 0 else num_steps + last
    assert [v for v in steps if reward.counts_at(v, num_steps)] == [v for v in steps if begin <= v <= end]


STEPS = st.none() | st.integers(-15, 15)
REWARD = st.builds(RewardConfig, use=st.just("a:b"), first_step=STEPS, last_step=STEPS, gate=st.booleans())


@given(st.lists(REWARD, max_size=4), st.integers(1, 12))
def test_the_first_step_without_a_reward_is_found(rewards, num_steps):
    counting = [r for r in rewards if not r.gate]
    bare = [v for v in range(num_steps) if not any(r.counts_at(v, num_steps) for r in counting)]
    assert uncovered_step(rewards, num_steps) == next(iter(bare), None)


def test_the_plan_tells_shares_rewards_and_their_steps():
    late = {"use": "a:late", "weight": 0.5, "first_step": -4}
    task = recipe(
        scenarios={
            "sums": {**ONE, "weight": 3},
            "chat": {"train": TRAIN, "rewards": [*REWARDS, late]},
        }
    )
    told = "\n".join(f"{name}: {text}" for name, text in derive_plan(task))
    assert "scenario sums: 75.0% of the prompts, 6 a step" in told
    assert "1 x a:b, 0.5 x a:late (steps 6 to 9 of 0 to 9)" in told
