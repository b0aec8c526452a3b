"""`rlhf check` as a command: what it prints, its exit code, and GSM8K whole."""

import json
import re

import pytest

from tests.cli.command import ROOT, rlhf, write_recipe, write_rows

GSM8K = ROOT.parent / "shared/data/gsm8k"
NUM_GOLDS = 7473 + 1319
needs_gsm8k = pytest.mark.skipif(not GSM8K.is_dir(), reason="GSM8K is not beside this checkout")
NO_THINK = "def grade(completion, reference):\n    return float(completion.strip() == reference)\n"


def gsm8k(train, heldout=None) -> list[str]:
    """Overrides that read a recipe's GSM8K from files."""
    mapper = "mapper: 'rewards.math_answer:gsm8k_row'"
    heldout = f"{{file: {heldout}, {mapper}}}" if heldout else "null"
    return [f"task.train={{file: {train}, {mapper}}}", f"task.heldout={heldout}"]


@needs_gsm8k
@pytest.mark.slow
def test_every_gsm8k_gold_is_graded_right():
    sources = gsm8k(GSM8K / "train.jsonl", GSM8K / "test.jsonl")
    done = rlhf("check", "recipes/gsm8k_grpo_qwen2.5_0.5b.yaml", *sources)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"golds: {NUM_GOLDS} of {NUM_GOLDS} graded right" in done.stdout
    assert "task.heldout: 1319 prompts, 0 of them also in task.train, no prompt twice" in done.stdout
    assert "wrong answers: none of their kinds is paid" in done.stdout
    assert "(its own row speaks against it) (10 rows)" in done.stdout
    assert done.stdout.endswith("check: passed\n")


@needs_gsm8k
@pytest.mark.slow
def test_the_large_recipe_passes_on_a_sample():
    sources = gsm8k(GSM8K / "train.jsonl", GSM8K / "test.jsonl")
    done = rlhf("check", "recipes/gsm8k_grpo_qwen2.5_7b_8gpu.yaml", *sources, "--rows", "400")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "golds: 400 of 400 graded right" in done.stdout


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
    assert "error: not gradable (2 rows)" in lines
    assert any("row planted.jsonl:7: " in line and "'abc', not a number" in line for line in lines)
    assert any("row planted.jsonl:42: " in line and "no '####'" in line for line in lines)
    assert any("row planted.jsonl:99: the worked solution never mentions its gold" in line for line in lines)
    assert lines[-1] == "check: FAILED"


@pytest.mark.slow
def test_quickstart_passes():
    done = rlhf(
        "check", "recipes/cpu/quickstart.yaml", "task.train.kwargs.size=300", "sft.source.kwargs.size=300"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "golds: 556 of 556 graded right" in done.stdout


@pytest.mark.slow
def test_reward_that_pays_everything_fails_with_twenty_rows_named(tmp_path):
    recipe = write_recipe(tmp_path, model={"path": "some/name"})
    rows = [{"prompt": f"What is {i}?", "answer": str(i)} for i in range(50)]
    write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "sums.py").write_text("def grade(completion, reference):\n    return 1.0\n")
    done = rlhf("check", recipe, "--json", tmp_path / "found.json")
    assert done.returncode == 1
    assert "golds: 0 of 50 graded right" in done.stdout
    assert "error: gold not graded right (50 rows)" in done.stdout
    assert "scored 1, no more than wrong answer in the gold's format (1)" in done.stdout
    assert len(re.findall(r"rows\.jsonl:\d+", done.stdout.partition("error: ")[2])) == 20
    assert "\n  and 30 more\n" in done.stdout
    assert "Traceback" not in done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert not found["passed"]
    assert len(found["findings"]) == 50
    assert found["facts"]["time"]["seconds_per_row"] > 0


@pytest.mark.slow
def test_readme_reward_needs_its_template_and_the_check_says_which(tmp_path):
    recipe = write_recipe(tmp_path, model={"path": "some/name"})
    (tmp_path / "sums.py").write_text(NO_THINK)
    done = rlhf("check", recipe)
    assert done.returncode == 1
    assert "hint: with task.gold_template: '{reference}' the first golds are graded right" in done.stdout
    done = rlhf("check", recipe, "task.gold_template='{reference}'", "--rows", "4")
    assert done.returncode == 0, done.stdout
    assert "sample: 4 of 16 rows are graded (--rows)" in done.stdout
    assert "golds: 4 of 4 graded right" in done.stdout


@pytest.mark.slow
def test_every_reward_that_does_not_load_is_named(tmp_path):
    recipe = write_recipe(tmp_path, model={"path": "some/name"})
    sums = tmp_path / "sums.py"
    rewards = [{"use": "gone:f"}, {"use": f"{sums}:grade"}, {"use": f"{sums}:grad", "gate": True}]
    done = rlhf("check", recipe, f"task.rewards={json.dumps(rewards)}")
    assert done.returncode == 1
    assert "error: reward does not load\n  task.rewards[0].use: there is no module 'gone'" in done.stdout
    assert "task.rewards[2].use: module" in done.stdout
    assert "Did you mean" in done.stdout
    assert "task.rewards[1]" not in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", ["0", "-3", "x"])
def test_a_number_of_rows_that_is_none_is_refused(number):
    done = rlhf("check", "recipe.yaml", "--rows", number)
    assert done.returncode == 2
    assert "is not a number above 0" in done.stderr


@pytest.mark.slow
def test_environment_of_a_recipe_is_played(tmp_path):
    sizes = [f"{key}.kwargs.size=40" for key in ("task.train", "task.heldout", "sft.source")]
    done = rlhf(
        "check", "recipes/cpu/guess_number.yaml", *sizes, "--rows", "3", "--json", tmp_path / "a.json"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "episodes: 3 of 80 rows are played" in done.stdout
    assert "reference 1" in done.stdout
    assert done.stdout.endswith("check: passed\n")
    assert json.loads((tmp_path / "a.json").read_text())["facts"]["score"]["means"]["empty answer"] == 0
