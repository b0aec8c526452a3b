import pytest

from rlhf.config.evaluation import EvalSet, EvaluateConfig, EvaluationFile, recipe_of_set
from rlhf.config.loading import checked_section
from rlhf.config.schema import Recipe
from rlhf.errors import ConfigError

SETS = {"sums": {"source": {"file": "rows.jsonl"}, "rewards": [{"use": "sums.py:grade"}]}}

ASKS = {"use": "sums.py:grade", "kwargs": {"url": "service://judge"}}
PLAYED = {"source": {"file": "r"}, "environment": {"use": "e:E", "limits": {"max_tokens": 4096}}}


def read(**changes):
    values = {"name": "x", "model": {"path": "m"}, "sets": SETS} | changes
    return checked_section(EvaluationFile, values, where="e.yaml")


@pytest.mark.parametrize(
    ("n", "sizes"), [(1, (1,)), (4, (1, 2, 4)), (6, (1, 2, 4)), (64, (1, 2, 4, 8, 16, 32, 64))]
)
def test_sizes_are_the_powers_of_two_up_to_the_samples(n, sizes):
    assert EvaluateConfig(num_samples=n).sizes == sizes


def test_sizes_are_ks_where_they_are_given():
    assert EvaluateConfig(num_samples=20, ks=(1, 5, 20)).sizes == (1, 5, 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval": {"num_samples": 4, "ks": [1, 8]}}, "eval.ks is [1, 8] and eval.num_samples is 4"),
        ({"eval": {"num_samples": 4, "temperature": 0}}, "greedy samples are all the same"),
        ({"eval": {"num_sample": 4}}, "unknown key 'eval.num_sample': did you mean 'eval.num_samples'"),
        ({"model": None}, "give exactly one of model (one) and models"),
        ({"models": {"a": {"path": "m"}}}, "give exactly one of model (one) and models"),
        ({"model": None, "models": {"a/b": {"path": "m"}}}, "models: 'a/b' is to be a folder's name"),
        ({"sets": {"..": SETS["sums"]}}, "sets: '..' is to be a folder's name"),
        ({"sets": {}}, "sets"),
        ({"sets": {"a": {"source": {"file": "r"}}}}, "sets.a names no rewards, and neither does task"),
        ({"task": {"gold_template": "x"}}, "e.yaml: task.gold_template is 'x', expected a text with {reference}"),
        ({"sets": {"a": {"source": {"file": "r"}, "rewards": [ASKS]}}}, "services has no 'judge'"),
        ({"sets": {**SETS, "a": {**PLAYED, "template": "{prompt}"}}}, "sets.a: task.template is '{prompt}'"),
    ],
)  # fmt: skip
def test_evaluation_file_refuses(changes, message):
    with pytest.raises(ConfigError) as refused:
        read(**changes)
    assert message in str(refused.value)


def test_sets_take_their_rewards_from_the_task_unless_they_name_some():
    other = {"source": {"file": "other.jsonl"}}
    file = read(sets={**SETS, "other": other}, task={"rewards": [{"use": "task.py:grade"}]})
    assert [one.rewards[0].use for one in file.judged_sets.values()] == ["sums.py:grade", "task.py:grade"]
    assert file.recipe(file.model).task.rewards[0].use == "task.py:grade"


def test_recipe_of_an_evaluation_has_room_for_its_answers():
    file = read(eval={"max_tokens": 30_000}, sampling={"max_prompt_tokens": 1000})
    recipe = file.recipe(file.model)
    assert recipe.learner.microbatch_tokens == 31_000
    assert (recipe.name, recipe.model.path, recipe.task.train.file) == ("x", "m", "rows.jsonl")


def test_sets_with_environments_of_their_own_have_room_for_their_episodes():
    file = read(sets={"played": PLAYED})
    recipe = file.recipe(file.model)
    assert recipe.learner.microbatch_tokens == 4096
    assert recipe_of_set(recipe, file.judged_sets["played"], file.eval).longest_row == 4096


def test_rewards_of_a_recipe_count_as_at_the_end_of_its_steps():
    values = {"name": "x", "model": {"path": "m"}, "schedule": {"num_steps": 400}}
    rewards = [{"use": "sums.py:grade"}, {"use": "sums.py:late", "first_step": 300}]
    recipe = Recipe(**values, task={"train": {"file": "r"}, "rewards": rewards})
    one = EvalSet(source=recipe.task.train)
    assert recipe_of_set(recipe, one, EvaluateConfig()).schedule.num_steps == 400


def test_names_of_several_words_are_taken():
    assert list(read(model=None, models={"after RL": {"path": "m"}}).all_models) == ["after RL"]
