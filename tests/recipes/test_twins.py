"""The twins on a CPU run to their end, cut down to a few samples and steps a stage."""

import asyncio
import json
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from rlhf.config.loading import load_recipe, read_with_overrides
from rlhf.config.pipeline import load_pipeline
from rlhf.execute import execute
from rlhf.pipeline.child import run_stage
from rlhf.pipeline.kinds import execute_stage
from rlhf.pipeline.opened import Pipeline
from rlhf.pipeline.runner import run_pipeline

ROOT = Path(__file__).parents[2]
PIPELINES = [
    ROOT / f"recipes/cpu/{name}.yaml"
    for name in (
        "r1",
        "specialists",
        "reward_model",
        "best_of_n",
        "phi4_mini_reasoning",
        "sft_dpo",
        "vlm_dpo",
        "vision_reward_model",
    )
]
LONG = {"specialists", "reward_model", "mixed", "vision_reward_model"}
"""Of kinds of stages that others of these have."""
RECIPES = [ROOT / f"recipes/cpu/{name}.yaml" for name in ("r1_zero", "dapo", "coder_v2", "mixed")]
TOO_HARD = {"rewards.reasoning_tasks:verify"}
"""Of a dozen samples some must be right: DAPO and rejection sampling have nothing to go on otherwise."""
SMALL = {
    "num_steps": 2, "prompts_per_step": 2, "samples_per_prompt": 4, "num_samples": 2, "prompts_per_chunk": 8,
    "batch_size": 4, "warmup_steps": 0, "max_tokens": 6, "num_engines": 1, "num_ranks": 1, "reward_workers": 1,
    "filters": [], "allow_truncated": True, "first_step": -1, "num_prompts": 4,
}  # fmt: skip
MOST_ROWS = 12


def each_of(paths):
    return [
        pytest.param(path, id=path.stem, marks=pytest.mark.long if path.stem in LONG else ())
        for path in paths
    ]


def by_chance(completion: str) -> float:
    """Right for half of all texts: what an untrained model says would all be wrong."""
    return float(sha256(completion.encode()).digest()[0] < 128)


def small(value, too_hard):
    """A copy with few steps and samples, and chance in place of the rewards that are `too_hard`."""
    if isinstance(value, list):
        return [small(inner, too_hard) for inner in value]
    if not isinstance(value, dict):
        return value
    copy = {key: SMALL.get(key, small(inner, too_hard)) for key, inner in value.items()}
    if isinstance(copy.get("size"), int):
        copy["size"] = min(copy["size"], MOST_ROWS)
    if copy.get("use") in too_hard:
        copy = {"use": f"{__file__}:by_chance"}
    return copy


def write_small(path, folder, too_hard=TOO_HARD):
    values = small(read_with_overrides(path), too_hard) | {"run_dir": str(folder / "run")}
    copy = folder / path.name
    copy.write_text(yaml.safe_dump(values, sort_keys=False))
    return copy


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", each_of(PIPELINES))
def test_pipeline_twin_runs_to_its_end(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    overrides = ["shared.engine.kind=hf"]
    if "kind: rl" in path.read_text():
        overrides += ["shared.schedule.prompts_per_step=2", "shared.schedule.samples_per_prompt=4"]
    copy = write_small(path, tmp_path, too_hard=TOO_HARD | {"rewards.code_tests:grade"})
    pipeline = Pipeline.of(load_pipeline(copy, overrides), code_dir=ROOT)

    def start(_, file):
        run_stage(file, code_dir=ROOT, execute=execute_stage)

    run_pipeline(pipeline, start=start)
    assert pipeline.manifest.present.keys() == {stage.name for stage in pipeline.stages}
    for stage, folder in pipeline.manifest.present.items():
        result = json.loads((tmp_path / "run" / folder / "result.json").read_text())
        assert result["metrics"], stage


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", each_of(RECIPES))
def test_recipe_twin_runs_to_its_end(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    copy = write_small(path, tmp_path)
    asyncio.run(execute(load_recipe(copy, ["engine.kind=hf"]), code_dir=ROOT, fresh=True))
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows) == 2
