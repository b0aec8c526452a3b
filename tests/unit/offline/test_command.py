from pathlib import Path

import pytest

from rlhf.errors import ConfigError
from rlhf.offline.command import read_evaluation

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "recipes/cpu/quickstart.yaml"


def test_a_recipe_is_measured_on_its_heldout_prompts_as_its_eval_says(tmp_path):
    asked = read_evaluation(QUICKSTART, [f"run_dir={tmp_path}", "eval.num_prompts=100", "eval.max_tokens=30"])
    assert list(asked.models) == ["model"]
    (one,) = asked.sets.values()
    assert (one.source.limit, one.source.kwargs) == (100, {"size": 256, "split": "heldout"})
    assert (asked.config.num_samples, asked.config.temperature, asked.config.max_tokens) == (1, 0, 30)
    assert asked.folder == tmp_path / "eval"


def test_of_a_recipe_that_was_trained_the_trained_model_is_measured(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    asked = read_evaluation(QUICKSTART, [f"run_dir={tmp_path}"])
    assert [recipe.model.path for recipe in asked.models.values()] == [str(tmp_path / "model")]
    assert list(asked.models) == ["trained"]


def test_several_greedy_samples_of_a_recipe_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"eval.temperature is 0.* greedy samples are all the same"):
        read_evaluation(QUICKSTART, [f"run_dir={tmp_path}", "eval.num_samples=4"])


def test_a_file_with_several_models_gives_each_its_recipe():
    asked = read_evaluation(
        ROOT / "recipes/eval/gsm8k.yaml", ["model=null", "models={a: {path: x}, b: {path: y}}"]
    )
    assert {name: recipe.model.path for name, recipe in asked.models.items()} == {"a": "x", "b": "y"}
    assert asked.folder == Path("runs/gsm8k").resolve()
