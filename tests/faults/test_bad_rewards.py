"""Real runs with a user's rewards from outside the repository: bad ones are named, and the others carry on."""

from pathlib import Path
from typing import Any

import pytest

from rlhf.telemetry.recording import read_samples, sample_files
from tests.toy import PREAMBLE, digits, metrics, toy_recipe, train

pytestmark = pytest.mark.slow

ROWS = f"""
def rows(seed=0, size=64):
    for i in range(size):
        text = {PREAMBLE!r} + chr(97 + (seed + i) % 26) + str(i) + ":"
        chat = [{{"role": "user", "content": text}}]
        yield {{
            "id": str(seed + i),
            "prompt": chat if i % 2 else text,
            "kind": "chat" if i % 2 else "text",
            "trouble": i % 8 == 0,
            "data_source": "toy/digits",
            "ground_truth": str(i),
            "reward_model": {{"style": "rule", "ground_truth": [i]}},
        }}


def digits(completion):
    return sum(c.isdigit() for c in completion) / max(len(completion), 1)
"""

BAD = """
import os
import signal
import time

KEPT = []


def hangs(trajectory):
    while trajectory.sample_index == 1:
        pass
    return 1


def exits(trajectory):
    if trajectory.sample_index == 2:
        print("farewell", flush=True)
        os._exit(3)
    return 1


def crashes(trajectory):
    if trajectory.sample_index == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return 1


def leaks(completion):
    KEPT.extend(open(__file__) for _ in range(100))
    return 1


def lies_nan(trajectory):
    return float("nan") if trajectory.sample_index == 4 else 1


def lies_text(trajectory):
    return "1.0" if trajectory.sample_index == 5 else 1


def lies_length(prompts, trajectories):
    return [1 for t in trajectories if t.sample_index != 6]
"""
FAULTS = {
    "hangs": "limit_s = 0.5",
    "exits": "exited with code 3",
    "crashes": "killed by SIGSEGV",
    "lies_nan": "returned nan",
    "lies_text": "returned str '1.0'",
    "lies_length": "values for",
}

SHAPES = """
import random
import re

import torch


# TRL: standard format, conversational format, several tasks, asynchronous
def trl_reference(completions, ground_truth, **kwargs):
    matches = [re.search(r"\\\\d+", completion) for completion in completions]
    contents = [match.group(0) if match else "" for match in matches]
    return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth)]


def trl_format(completions, **kwargs):
    completion_contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(r"^\\\\d", content) else 0.0 for content in completion_contents]


def trl_tasks(prompts, completions, kind, log_extra=None, log_metric=None, **kwargs):
    rewards = []
    for prompt, completion, k in zip(prompts, completions, kind):
        rewards.append(float(len(completion)) if k == "text" else None)
    log_extra("first", [str(completion)[:1] for completion in completions])
    log_metric("characters", sum(len(completion) for completion in completions) / len(completions))
    return rewards


async def trl_async(prompts, completions, **kwargs):
    return [1.0 if completion else 0.0 for completion in completions]


# verl
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    if data_source != "toy/digits" or not isinstance(ground_truth, list):
        raise NotImplementedError(data_source)
    return {"score": len(solution_str) / 100, "acc": str(ground_truth[0]) == solution_str}


# OpenRLHF
def reward_func(queries, prompts, labels, **kwargs):
    # queries is prompts + responses
    # labels is answers
    reward = torch.randint(0, 2, (len(queries),)).float()
    return {"rewards": reward, "scores": reward, "extra_logs": {"dummy_scores": reward}}


# ours
def of_a_group(group, rng):
    return [rng.random() for _ in group.trajectories]


def goes_bad(completions, trainer_state, **kwargs):
    if trainer_state.global_step >= 1:
        print("the last thing it said")
        raise LookupError(f"step {trainer_state.global_step} of {trainer_state.max_steps}")
    return [0.0] * len(completions)
"""


def write_task(folder: Path, rewards: list[dict[str, Any]], **sections: Any) -> Path:
    """A recipe whose data and rewards are in the folder `user`, named as modules."""
    user = folder / "user"
    user.mkdir()
    for name, text in (("toy_task", ROWS), ("bad_rewards", BAD), ("my_rewards", SHAPES)):
        (user / f"{name}.py").write_text(text)
    task = {
        "train": {"generator": "toy_task:rows"},
        "heldout": None,
        "rewards": [{"use": "toy_task:digits"}, *rewards],
    }
    return toy_recipe(
        folder, task=task, eval={"every": 0}, checkpoint={"every": 0, "export": False}, **sections
    )


def test_bad_optional_rewards_are_named_and_the_healthy_one_is_trained_on(tmp_path: Path) -> None:
    when = {"when": {"trouble": True}}
    bad = [{"use": f"bad_rewards:{name}", "optional": True, "limit_s": 0.5, **when} for name in FAULTS]
    recipe = write_task(
        tmp_path,
        [*bad, {"use": "bad_rewards:leaks", "weight": 0}],
        engine={"kind": "hf"},
        schedule={"num_steps": 4},
        telemetry={"samples_per_step": 64, "live": False},
    )
    code, output = train(recipe, "--code-dir", str(tmp_path / "user"))
    assert code == 0, output
    steps = metrics(tmp_path / "run")
    log = (tmp_path / "run/run.log").read_text()
    for name, words in FAULTS.items():
        warning = log[log.index(f"reward bad_rewards.{name} failed") :][:2000]
        assert words in warning, name
        outcome = "timeout" if name == "hangs" else "error"
        assert sum(step.get(f"reward/bad_rewards.{name}/{outcome}", 0) for step in steps) > 0, name
    assert "farewell" in log
    assert "reward bad_rewards.leaks leaves open descriptors behind" in log
    assert sum(step["reward/bad_rewards.leaks/leaks"] for step in steps) >= 1
    for name in ("hangs", "exits", "crashes"):
        assert sum(step[f"reward/bad_rewards.{name}/kills"] for step in steps) >= 1, name
    assert [step["reward/toy_task.digits/ok"] for step in steps] == [1.0] * 4
    assert [step["reward/ungradable_share"] for step in steps] == [0.0] * 4
    samples = [sample for file in sample_files(tmp_path / "run") for sample in read_samples(file)]
    assert len(samples) == 4 * 64
    troubled = [sample for sample in samples if int(sample["prompt_id"]) % 8 == 0]
    assert len(troubled) >= 8
    for sample in samples:
        assert (sample["reward"], sample["outcome"]) == (digits(sample["completion"]), "ok")


def test_rewards_of_other_libraries_run_and_a_required_one_that_goes_bad_stops_the_run(
    tmp_path: Path,
) -> None:
    names = ["trl_reference", "trl_format", "trl_tasks", "trl_async", "compute_score", "reward_func"]
    rewards: list[dict[str, Any]] = [{"use": f"my_rewards:{n}"} for n in [*names, "of_a_group", "goes_bad"]]
    rewards[0]["when"], rewards[1]["when"] = {"kind": "text"}, {"kind": "chat"}
    recipe = write_task(tmp_path, rewards, engine={"kind": "hf"}, schedule={"num_steps": 3})
    code, output = train(recipe, "--code-dir", str(tmp_path / "user"))
    (step,) = metrics(tmp_path / "run")
    for name in [*names, "of_a_group"]:
        assert step[f"reward/my_rewards.{name}/mean"] is not None, name
        assert f"reward/my_rewards.{name}/error" not in step, name
    assert step["reward/my_rewards.trl_tasks/not_applicable"] == pytest.approx(0.5, abs=0.4)
    assert step["reward/my_rewards.trl_tasks/characters/mean"] > 0
    assert 0 <= step["reward/my_rewards.compute_score/acc/mean"] <= 1
    both = step["reward/my_rewards.reward_func/mean"], step["reward/my_rewards.reward_func/dummy_scores/mean"]
    assert both[0] == both[1]
    assert 0 < both[0] < 1
    (samples,) = map(read_samples, sample_files(tmp_path / "run"))
    assert any("my_rewards.trl_tasks/first" in sample["detail"] for sample in samples)
    assert code == 2, output
    message = output[output.rindex("RewardError") :]
    for words in (
        "reward my_rewards.goes_bad failed",
        "LookupError: step 1 of 3",
        "the last thing it said",
        "in goes_bad",
    ):
        assert words in message, message
    assert "rlhf/rollout" not in message
