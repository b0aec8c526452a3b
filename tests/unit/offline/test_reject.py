"""Rejection sampling as a stage runs it: Ray, vLLM and reward workers."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest
import yaml

from rlhf.config.reject import CollectConfig, FilterConfig, PairsConfig, PassRateConfig, SelectConfig
from rlhf.config.schema import Recipe
from rlhf.config.task import SourceConfig
from rlhf.data.prompt_stream import SourcePrompts
from rlhf.errors import ConfigError, DataError
from rlhf.materials import gather_materials
from rlhf.offline.reject import check_prompts
from rlhf.offline.rules import rules_of
from rlhf.run_folder import RunFolder
from rlhf.stages.model_folder import prepare_model_folder
from tests.rejecting import ROOT, capitals, command, is_right
from tests.toy import toy_recipe

HERE = str(ROOT / "tests" / "rejecting.py")
FILTER = {"use": f"{HERE}:capitals", "at_most": 0.3}


def recipe(folder: Path, **sections) -> Recipe:
    return Recipe(**yaml.safe_load(toy_recipe(folder, **sections).read_text()))


def test_filters_are_found_among_the_parts_by_their_short_names(tmp_path):
    of_task = recipe(tmp_path, task={"rewards": [{"use": f"{HERE}:capitals"}]})
    config = SelectConfig(filters=(FilterConfig(**FILTER),), rank_by="rejecting.capitals")
    assert dict(rules_of(of_task, config).filters) == {"rejecting.capitals#2": config.filters[0]}
    assert config.filters[0].reward.weight == 0


def test_an_unknown_part_to_rank_by_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"rank_by is 'nothing', expected a part of the reward: one of toy.digits"
    ):
        rules_of(recipe(tmp_path), SelectConfig(rank_by="nothing"))


@pytest.mark.parametrize("change", [{"pairs": PairsConfig()}, {"format": "parquet"}])
def test_what_episodes_cannot_be_made_into_is_refused(tmp_path, change):
    task = {"environment": {"use": "envs.guess_number:play"}, "template": "chat", "rewards": []}
    with pytest.raises(ConfigError, match=r"select.* is given and so is task.environment"):
        rules_of(recipe(tmp_path, task=task, learner={"microbatch_tokens": 100000}), SelectConfig(**change))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"filters": [{"use": "m:f"}]}, "neither at_least nor at_most"),
        ({"filters": [{"use": "m:f", "at_least": 2, "at_most": 1}]}, "nothing would be kept"),
        ({"pass_rate": {"low": 0.6, "high": 0.5}}, "low must not be above high"),
        ({"decontaminate": {"against": {}}}, "at least 1 item"),
    ],
)
def test_rules_that_make_no_sense_are_refused(values, problem):
    with pytest.raises(ValueError, match=problem):
        SelectConfig(**values)


def test_chunks_in_flight_follow_the_device():
    assert [CollectConfig().in_flight(device) for device in ("cpu", "cuda")] == [1, 2]
    assert CollectConfig(chunks_in_flight=5).in_flight("cpu") == 5
    assert PassRateConfig().low == 0


def test_two_prompts_with_one_id_are_refused_without_holding_them(tmp_path):
    rows = [{"id": name, "prompt": "q", "reference": "1"} for name in "abcb"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = SourcePrompts(
        source=SourceConfig(file=str(tmp_path / "rows.jsonl")), key="task.train", require_reference=True
    )
    assert [prompt.id for prompt in prompts] == [prompt.id for prompt in prompts] == list("abcb")
    with pytest.raises(DataError, match=r"task.train: several rows have the same id 'b'"):
        prompts.check_ids()


def checked(folder: Path, *, rewards, **select):
    """Check what is asked, as far as that goes without engines."""
    train = {"generator": f"{ROOT / 'tests' / 'toy.py'}:rows"}
    asked = recipe(folder, task={"train": train, "rewards": rewards}, services={"rm": {"model": "judge"}})
    start = prepare_model_folder(asked.model, folder / "start", seed=0)
    materials = gather_materials(asked, RunFolder(folder), start, has_prompts=False)
    prompts = SourcePrompts(source=asked.task.train, key="task.train", require_reference=True)
    asyncio.run(check_prompts(materials, prompts, SelectConfig(**select), code_dir=ROOT))


def test_rewards_that_ask_a_service_are_loaded_before_it_is_there(tmp_path):
    endpoint = {"url": "service://rm", "model": "rm"}
    checked(
        tmp_path, rewards=[{"use": "rewards.reward_model:ServedScorer", "kwargs": {"endpoint": endpoint}}]
    )


def test_a_column_to_keep_that_no_row_has_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"select.keep_columns: no row of task.train has a column 'levle'"):
        checked(tmp_path, rewards=[{"use": f"{HERE}:is_right"}], keep_columns=["levle"])


@pytest.mark.slow
def test_rejection_sampling_with_ray_and_vllm_is_not_done_twice(tmp_path):
    pytest.importorskip("vllm")
    graded = tmp_path / "graded"
    task = {
        "train": {"generator": f"{ROOT / 'tests' / 'toy.py'}:rows"},
        "rewards": [{"use": f"{HERE}:is_right", "kwargs": {"graded": str(graded)}}],
    }
    file = toy_recipe(tmp_path, task=task, placement={"num_cpus": 2})
    out = tmp_path / "out"
    select = {"filters": [FILTER], "per_prompt": 2, "allow_truncated": True, "pairs": {"per_prompt": 2}}
    run = command(file, out, collect={"samples_per_prompt": 6, "prompts_per_chunk": 16}, select=select)
    assert subprocess.run(run, cwd=ROOT, timeout=500).returncode == 0
    assert graded.read_text().count("\n") == 384
    summary = json.loads((out / "summary.json").read_text())
    assert summary["samples"] == 384 == summary["kept"] + sum(summary["dropped"].values())
    assert {"wrong", "filter/rejecting.capitals", "per_prompt"} <= set(summary["dropped"])
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == summary["kept"] == json.loads((out / "metrics.json").read_text())["reject/kept"] > 0
    assert all(is_right(row["completion"]) == 1 and capitals(row["completion"]) <= 0.3 for row in rows)
    written = (out / "rows.jsonl").read_bytes()
    assert subprocess.run(run, cwd=ROOT, timeout=400).returncode == 0
    assert (graded.read_text().count("\n"), (out / "rows.jsonl").read_bytes()) == (384, written)
