import functools
import random as chance
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.errors import DataError, LoadError
from rlhf.importing import load_function
from rlhf.rollout.reward_shapes import CallLog, RewardFunction, TrainerState, bind
from rlhf.rollout.reward_values import as_results
from rlhf.types import Message, Prompt, Segment, Trajectory, TrajectoryGroup, Turn


def longer_in_tokens(completions_ids, **kwargs):
    """This and the next five: TRL, as its documentation has them."""
    return [float(len(ids)) for ids in completions_ids]


def longer_in_characters(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def format_reward_func(completions, **kwargs):
    pattern = r"^<think>.*?</think><answer>.*?</answer>$"
    completion_contents = [completion[0]["content"] for completion in completions]
    matches = [re.match(pattern, content) for content in completion_contents]
    return [1.0 if match else 0.0 for match in matches]


def boxed(completions, ground_truth, **kwargs):
    matches = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
    contents = [match.group(1) if match else "" for match in matches]
    return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth, strict=True)]


def math_reward_func(prompts, completions, task, **kwargs):
    return [
        float(c == p) if t == "math" else None for p, c, t in zip(prompts, completions, task, strict=True)
    ]


async def async_reward_func(prompts, completions, **kwargs):
    return [1.0 if completion else 0.0 for completion in completions]


def logging_reward(completions, trainer_state, log_extra=None, log_metric=None, **kwargs):
    log_extra("length", [len(c) for c in completions])
    log_metric("progress/share", trainer_state.global_step / trainer_state.max_steps)
    return [0.0] * len(completions)


def my_reward_fn(data_source, solution_str, ground_truth, extra_info=None):
    """This and the next: verl, as its documentation has them."""
    return len(solution_str) / 100


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return {
        "score": ground_truth == solution_str,
        "acc": True,
        "pred": solution_str,
        "others": sorted(kwargs),
    }


def reward_func(queries, prompts, labels, **kwargs):
    """OpenRLHF, as its documentation has it."""
    reward = torch.tensor(
        [float(q == p + label) for q, p, label in zip(queries, prompts, labels, strict=True)]
    )
    return {"rewards": reward, "scores": reward, "extra_logs": {"dummy_scores": reward + 1}}


def tossed(completion, rng):
    return rng.random()


def tossed_by_name(group, random):
    return [random.random() for _ in group.trajectories]


def tossed_globally(completion):
    return chance.random() + np.random.rand() + torch.rand(()).item()  # noqa: NPY002


def everything(completion, **columns):
    return sorted(columns)


def make_reward(bonus):
    def grade(completion):
        return bonus

    return grade


def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


decorated = logged(my_reward_fn)
nameless = lambda completion: len(completion)  # noqa: E731


def case(name: str) -> RewardFunction:
    path = Path(__file__).with_name("reward_cases.py")
    return bind(load_function(f"{path}:{name}", key="use"), {}, key="task.rewards[0]")


def bound(function: Any, **kwargs: Any) -> RewardFunction:
    return bind(function, kwargs, key="task.rewards[0]")


def group_of(*texts: str, is_chat: bool = False, **columns: Any) -> TrajectoryGroup:
    segment = Segment(
        token_ids=(1, 2, 3),
        loss_mask=(False, True, True),
        rollout_logprobs=(0.0, -1.0, -1.0),
        versions=(-1, 0, 0),
    )
    trajectories = tuple(
        Trajectory(
            segments=(segment,),
            turns=(Turn(message=Message(role="assistant", content=text), segment=0, start=1, stop=3),),
            stop="stop",
            sample_index=i,
            seed=i,
        )
        for i, text in enumerate(texts)
    )
    messages = (Message(role="user", content="q"),)
    prompt = Prompt(id="p", messages=messages, reference="a", columns=columns, is_chat=is_chat)
    return TrajectoryGroup(index=0, prompt=prompt, trajectories=trajectories)


def of_one(function: RewardFunction, text: str = "a", **columns: Any) -> Any:
    group = group_of(text, **columns)
    return function.call(group.prompt, group.trajectories[0])


def test_trl_functions_of_the_documentation_give_what_it_says() -> None:
    assert bound(longer_in_tokens).call_batch(group_of("a", "bc")) == [2.0, 2.0]
    assert bound(longer_in_characters).call_batch(group_of("a", "bc")) == [1.0, 2.0]
    good, bad = "<think>t</think><answer>1</answer>", "1"
    assert bound(format_reward_func).call_batch(group_of(good, bad, is_chat=True)) == [1.0, 0.0]
    assert bound(boxed).call_batch(group_of(r"\boxed{2}", "2", ground_truth="2")) == [1.0, 0.0]
    assert bound(math_reward_func).call_batch(group_of("q", "r", task="math")) == [1.0, 0.0]
    assert bound(math_reward_func).call_batch(group_of("q", task="code")) == [None]
    assert bound(async_reward_func).shape.is_async


def test_trl_completions_follow_the_dataset_unless_annotated() -> None:
    assert case("trl_bare").call_batch(group_of("a", is_chat=True)) == [1.0]
    assert case("trl").call_batch(group_of("a", is_chat=True, answer="a")) == [1.0]
    assert case("trl_chat").call_batch(group_of("q")) == [1.0]
    with pytest.raises(TypeError, match=r"annotate .*completions: list\[list\[dict\]\]"):
        case("trl_bare").call_batch(group_of("a"))


def test_trl_function_logs_per_sample_and_per_call_and_sees_the_step() -> None:
    log = CallLog(size=2)
    bound(logging_reward).call_batch(
        group_of("a", "bc"), state=TrainerState(global_step=3, max_steps=12), log=log
    )
    assert (log.columns, log.metrics) == ({"length": [1, 2]}, {"progress/share": [0.25]})
    first, second = as_results([0.0, None], size=2, seconds=0.0, extra=log.columns)
    assert (first.detail, second.detail) == ({"length": 1.0}, {"length": 2.0})


def test_trl_callbacks_refuse_what_cannot_be_logged() -> None:
    log = CallLog(size=2)
    with pytest.raises(ValueError, match="3 values for 2 samples"):
        log.log_extra("length", [1, 2, 3])
    with pytest.raises(ValueError, match="expected a number"):
        log.log_metric("share", "high")
    log.log_metric("share", torch.tensor(0.5))
    assert log.metrics == {"share": [0.5]}


def test_functions_of_any_column_get_tokens_where_they_may_read_them() -> None:
    assert bound(longer_in_characters).shape.needs_tokens
    assert bound(everything).shape.needs_tokens
    assert not bound(my_reward_fn).shape.needs_tokens


def test_verl_functions_of_the_documentation_get_the_row_as_it_is() -> None:
    assert of_one(bound(my_reward_fn), "a" * 50) == 0.5
    model = {"style": "rule", "ground_truth": {"target": 24}}
    columns = {"data_source": "countdown", "reward_model": model, "random": 1}
    found = of_one(bound(compute_score), **columns)
    assert found == {"score": False, "acc": True, "pred": "a", "others": []}
    assert of_one(bound(compute_score, bonus=1), "a") == {
        "score": True,
        "acc": True,
        "pred": "a",
        "others": ["bonus"],
    }


def test_openrlhf_function_of_the_documentation_is_a_batch_with_logs() -> None:
    function = bound(reward_func)
    assert (function.shape.kind, function.shape.is_per_sample) == ("openrlhf", False)
    results = as_results(function.call_batch(group_of("a", "b")), size=2, seconds=0.0)
    assert [r.value for r in results] == [1.0, 0.0]
    assert [r.parts for r in results] == [
        {"dummy_scores": 2.0, "scores": 1.0},
        {"dummy_scores": 1.0, "scores": 0.0},
    ]


def test_reward_that_asks_for_chance_gets_one_seeded_by_the_sample() -> None:
    assert of_one(bound(tossed)) == of_one(bound(tossed)) == chance.Random(0).random()
    generator = chance.Random(0)
    expected = [generator.random(), generator.random()]
    assert bound(tossed_by_name).call_batch(group_of("a", "b")) == expected
    assert of_one(bound(everything), source="x") == ["prompt", "reference", "source", "trajectory"]


def test_reward_that_uses_global_chance_repeats() -> None:
    group = group_of("a", "b")
    function = bound(tossed_globally)
    first, other = (function.call(group.prompt, t) for t in group.trajectories)
    chance.random()
    assert function.call(group.prompt, group.trajectories[0]) == first != other


def test_missing_column_is_named() -> None:
    assert bound(boxed).shape.columns == ("ground_truth",)
    with pytest.raises(DataError, match="'ground_truth'"):
        bound(boxed).call_batch(group_of("a"))


@pytest.mark.parametrize(
    ("function", "words"), [(nameless, "a lambda"), (make_reward(1.0), "made inside a function")]
)
def test_function_without_an_importable_name_is_refused(function: Any, words: str) -> None:
    with pytest.raises(LoadError, match=rf"task\.rewards\[0\]\.use names .*{words}.*kwargs"):
        bound(function)
    assert of_one(bound(decorated)) == 0.01


def test_unknown_signature_shows_the_accepted_ones() -> None:
    with pytest.raises(LoadError) as caught:
        case("unknown")
    for word in ("completion", "trajectories", "group", "TRL", "verl", "OpenRLHF", "async", "rng"):
        assert word in str(caught.value)
