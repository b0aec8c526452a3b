"""`rlhf check` on the recipes: every GSM8K gold is right, and a wrong one is named with its row."""

import json
import time

import pytest

from tests.cli.command import ROOT, rlhf, write_recipe, write_rows

GSM8K = ROOT.parent / "shared/data/gsm8k"
NUM_GOLDS = 7473 + 1319
needs_gsm8k = pytest.mark.skipif(not GSM8K.is_dir(), reason="GSM8K is not beside this checkout")


def gsm8k(train, heldout=None) -> list[str]:
    """Overrides that read a recipe's GSM8K from files."""
    mapper = "mapper: 'rewards.math_answer:gsm8k_row'"
    heldout = f"{{file: {heldout}, {mapper}}}" if heldout else "null"
    return [f"task.train={{file: {train}, {mapper}}}", f"task.heldout={heldout}"]


@needs_gsm8k
@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["gsm8k_grpo_qwen2.5_0.5b", "gsm8k_grpo_qwen2.5_7b_8gpu"])
def test_every_gsm8k_gold_is_graded_right_within_a_minute(recipe):
    start = time.monotonic()
    done = rlhf("check", f"recipes/{recipe}.yaml", *gsm8k(GSM8K / "train.jsonl", GSM8K / "test.jsonl"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"golds: {NUM_GOLDS} of {NUM_GOLDS} graded right" in done.stdout
    assert "task.heldout: 1319 prompts, 0 of them also in task.train" in done.stdout
    assert done.stdout.endswith("check: passed\n")
    assert time.monotonic() - start < 60


@needs_gsm8k
@pytest.mark.slow
def test_source_is_switched_key_by_key():
    done = rlhf(
        "check",
        "recipes/gsm8k_grpo_qwen2.5_0.5b.yaml",
        "task.heldout=null",
        "task.train.dataset=null",
        f"task.train.file={GSM8K / 'test.jsonl'}",
        "task.train.limit=50",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "golds: 50 of 50 graded right" in done.stdout


@needs_gsm8k
@pytest.mark.slow
def test_planted_wrong_gold_is_reported_with_its_row(tmp_path):
    rows = [json.loads(line) for line in (GSM8K / "test.jsonl").read_text().splitlines()[:200]]
    rows[7]["answer"] = rows[7]["answer"].rpartition("####")[0] + "#### abc"
    rows[42]["answer"] = rows[42]["answer"].rpartition("####")[0]
    rows[99]["answer"] = rows[99]["answer"].rpartition("####")[0] + "#### 987654321"
    planted = write_rows(tmp_path / "planted.jsonl", rows)
    done = rlhf("check", "recipes/gsm8k_grpo_qwen2.5_0.5b.yaml", *gsm8k(planted))
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "golds: 198 of 200 graded right" in done.stdout
    assert sum(line.startswith("gold not graded right") for line in lines) == 2
    assert any("planted.jsonl:7: " in line and "'abc', not a number" in line for line in lines)
    assert any("planted.jsonl:42: " in line and "no '####'" in line for line in lines)
    assert any("planted.jsonl:99: " in line and "never mentions its gold 987654321" in line for line in lines)
    assert lines[-1] == "check: FAILED"


@pytest.mark.slow
def test_quickstart_passes():
    done = rlhf(
        "check", "recipes/cpu/quickstart.yaml", "task.train.kwargs.size=300", "sft.source.kwargs.size=300"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "golds: 556 of 556 graded right" in done.stdout


@pytest.mark.slow
def test_reward_that_pays_for_nothing_fails_the_check(tmp_path):
    recipe = write_recipe(tmp_path, model={"path": "some/name"})
    (tmp_path / "sums.py").write_text("def grade(completion, reference):\n    return 1.0\n")
    done = rlhf("check", recipe)
    assert done.returncode == 1
    assert "golds: 0 of 16 graded right" in done.stdout
    assert "no more than the answer 'no such answer'" in done.stdout
    assert "Traceback" not in done.stderr
