"""The benchmark files of recipes/eval against copies of their data, through the same mappers and rewards."""

import gzip
import json
from pathlib import Path

import pytest

from rewards.math_answer import grade
from rlhf.config.evaluation import EvaluationFile
from rlhf.config.loading import checked_section, read_with_overrides
from rlhf.data.prompts import load_prompts

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared/data"


def read(name):
    path = ROOT / f"recipes/eval/{name}.yaml"
    return checked_section(EvaluationFile, read_with_overrides(path), where=path)


def prompts_of(name, file):
    """The prompts of the file's one set, read from `file` in place of the hub."""
    one = read(name).sets[name]
    source = one.source.model_copy(update={"dataset": None, "file": str(file)})
    return load_prompts(source, key=f"sets.{name}.source", require_reference=True)


def copy_of(name):
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{name} of shared/data is not beside this checkout")
    return path


def test_gsm8k_reads_its_test_split():
    prompts = prompts_of("gsm8k", copy_of("gsm8k/test.jsonl"))
    assert len(prompts) == 1319
    assert prompts[0].reference == "18"
    assert grade("<answer>18</answer>", prompts[0].reference).value == 1


def test_math500_reads_problems_and_answers(tmp_path):
    rows = [json.loads(line) for line in copy_of("math500/answers.jsonl").read_text().splitlines()]
    file = tmp_path / "math500.jsonl"
    file.write_text("".join(json.dumps({"problem": "x", "solution": "y", **row}) + "\n" for row in rows))
    prompts = prompts_of("math500", file)
    assert [(p.id, p.reference) for p in prompts] == [(row["unique_id"], row["answer"]) for row in rows]


def test_humaneval_reads_every_task(tmp_path):
    file = tmp_path / "humaneval.jsonl"
    file.write_bytes(gzip.decompress(copy_of("humaneval/HumanEval.jsonl.gz").read_bytes()))
    prompts = prompts_of("humaneval", file)
    assert len(prompts) == 164
    assert all(prompt.columns["tests"]["entry_points"] for prompt in prompts)


def test_mbpp_reads_what_can_be_graded():
    prompts = prompts_of("mbpp", copy_of("mbpp/mbpp.jsonl"))
    assert len(prompts) == 971


def test_aime_reads_problem_and_answer_whatever_the_answer_is_written_like(tmp_path):
    file = tmp_path / "aime.jsonl"
    row = {"id": 60, "problem": "Find 33.", "solution": "It is 33.", "answer": "033", "year": "2024"}
    file.write_text(json.dumps(row))
    (prompt,) = load_prompts(
        read("aime").sets["aime24"].source.model_copy(update={"dataset": None, "file": str(file)}),
        key="sets.aime24.source", require_reference=True,
    )  # fmt: skip
    assert (prompt.messages[0].content, prompt.reference) == ("Find 33.", "033")
    assert grade(r"\boxed{33}", prompt.reference).value == 1


@pytest.mark.parametrize("name", ["gsm8k", "math500", "humaneval", "mbpp", "aime"])
def test_eval_file_gives_a_recipe_that_is_sampled_as_it_says(name):
    file = read(name)
    recipe = file.recipe(file.all_models["model"])
    assert recipe.task.rewards == file.task.rewards
    assert file.eval.sizes[-1] == file.eval.num_samples
