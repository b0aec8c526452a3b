import subprocess
import sys

import pytest
import yaml

from rlhf.config.loading import differences, load_recipe, resolved_yaml
from rlhf.errors import ConfigError

MINIMAL = {
    "name": "tiny",
    "model": {"config": {"model_type": "qwen3"}},
    "task": {"train": {"file": "a.jsonl"}, "rewards": [{"use": "rewards.math_answer:grade"}]},
}


@pytest.fixture
def write(tmp_path):
    def write_recipe(values, name="recipe.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
        return path

    return write_recipe


def message_of(path, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_recipe_takes_defaults_where_the_file_is_silent(write):
    recipe = load_recipe(write(MINIMAL))
    assert recipe.name == "tiny"
    assert recipe.schedule.num_steps == 100


def test_extends_lays_the_child_over_its_base_key_by_key(write):
    base = MINIMAL | {"schedule": {"num_steps": 7, "prompts_per_step": 4}}
    write(base, "base/base.yaml")
    child = write({"extends": "base/base.yaml", "name": "child", "schedule": {"num_steps": 9}}, "child.yaml")
    recipe = load_recipe(child)
    assert (recipe.name, recipe.schedule.num_steps, recipe.schedule.prompts_per_step) == ("child", 9, 4)


def test_extends_allows_one_hop_only(write):
    write(MINIMAL, "a.yaml")
    write({"extends": "a.yaml"}, "b.yaml")
    assert "one hop" in message_of(write({"extends": "b.yaml"}, "c.yaml"))


def test_extends_of_a_missing_file_names_it(write):
    assert "nowhere.yaml" in message_of(write({"extends": "nowhere.yaml"}))


def test_extends_must_be_one_path(write):
    assert "expected the path of one recipe" in message_of(write({"extends": ["a", "b"]}))


def test_overrides_are_parsed_as_yaml_and_win_over_the_file(write):
    overrides = [
        "schedule.num_steps=3",
        "learner.lr=2e-5",
        "learner.max_grad_norm=null",
        "telemetry.sinks=[tensorboard]",
    ]
    recipe = load_recipe(write(MINIMAL), overrides)
    assert recipe.schedule.num_steps == 3
    assert recipe.learner.lr == 2e-5
    assert recipe.learner.max_grad_norm is None
    assert recipe.telemetry.sinks == ("tensorboard",)


def test_override_does_not_leak_into_a_mapping_shared_by_an_anchor(write):
    text = yaml.safe_dump(MINIMAL) + "learner: &a {}\ncheckpoint: *a\n"
    recipe = load_recipe(write(text), ["learner.lr=1e-3"])
    assert recipe.learner.lr == 1e-3
    assert recipe.checkpoint.every == 50


@pytest.mark.parametrize("override", ["schedule.num_steps", "=3", "schedule..num_steps=3", "seed="])
def test_malformed_override_is_refused(write, override):
    assert "override" in message_of(write(MINIMAL), [override]) or "seed" in message_of(
        write(MINIMAL), [override]
    )


def test_override_below_a_plain_value_is_refused(write):
    assert "'name' is 'tiny', not a section" in message_of(write(MINIMAL), ["name.first=x"])


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("schedule.num_step=3", "schedule.num_steps"),
        ("modle.path=x", "model"),
        ("schedule.max_tokens=3", "sampling.max_tokens"),
        ("sched.num_steps=3", "schedule"),
    ],
)
def test_unknown_key_is_answered_with_the_nearest_match(write, override, suggestion):
    message = message_of(write(MINIMAL), [override])
    assert "unknown key" in message
    assert f"did you mean '{suggestion}" in message


def test_unknown_key_in_a_list_names_its_place(write):
    broken = MINIMAL | {"task": {"train": {"file": "a"}, "rewards": [{"use": "a:b", "wieght": 2}]}}
    message = message_of(write(broken))
    assert "unknown key 'task.rewards.0.wieght': did you mean 'task.rewards.weight'?" in message


def test_every_problem_gets_its_own_line_with_key_found_and_expected(write):
    overrides = ["schedule.num_steps=many", "learner.lr=-1", "engine.kind=vlm", "sampling.max_token=3"]
    lines = message_of(write(MINIMAL), overrides).splitlines()
    assert lines[0].endswith("4 problems")
    assert any("schedule.num_steps: found 'many', expected a valid integer" in line for line in lines)
    assert any("learner.lr: found -1, expected greater than 0" in line for line in lines)
    assert any("engine.kind: found 'vlm', expected 'auto', 'vllm' or 'hf'" in line for line in lines)
    assert any("did you mean 'sampling.max_tokens'" in line for line in lines)


def test_union_value_is_reported_once(write):
    message = message_of(write(MINIMAL), ["model.lora.targets=5"])
    assert message.count("model.lora.targets") == 1
    assert " or " in message


def test_truncated_sampling_is_corrected_only_over_what_it_left(write):
    message = message_of(write(MINIMAL), ["sampling.top_p=0.9"])
    assert "sampling.keep_sampling_mask: true" in message
    recipe = load_recipe(write(MINIMAL), ["sampling.top_p=0.9", "sampling.keep_sampling_mask=true"])
    assert (recipe.sampling.keep_sampling_mask, recipe.sampling.kept_limit) == (True, 256)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["opsm_delta=0.1"], "opsm_delta"),
        (["old_from=rollout"], "old_from"),
        (["kl_coef=0.1", "kl_ratio_from=rollout"], "kl_ratio_from"),
    ],
)
def test_truncated_sampling_is_in_no_ratio_to_the_engine(write, overrides, key):
    asked = [f"algorithm.{override}" for override in ["correction=none", *overrides]]
    message = message_of(write(MINIMAL), ["sampling.top_k=9", *asked])
    assert f"and algorithm.{key} takes one" in message
    assert load_recipe(write(MINIMAL), asked)
    assert load_recipe(write(MINIMAL), ["sampling.top_k=9", "algorithm.correction=none"])


def test_a_dual_clip_below_the_lower_clip_is_refused(write):
    message = message_of(write(MINIMAL), ["algorithm.dual_clip=0.5"])
    assert "algorithm.dual_clip: found 0.5, expected greater than 1" in message


def test_recorded_routing_and_a_compiled_engine_exclude_each_other(write):
    message = message_of(write(MINIMAL), ["sampling.keep_routing=true", "engine.compile=true"])
    assert "sampling.keep_routing is true and so is engine.compile" in message


def test_combination_error_names_both_keys(write):
    message = message_of(write(MINIMAL), ["placement.kind=colocated", "schedule.max_staleness=1"])
    assert "schedule.max_staleness is 1 but placement.kind is colocated" in message
    assert "Value error" not in message


@pytest.mark.parametrize("number", [".nan", ".inf"])
def test_a_number_that_is_none_is_refused(write, number):
    assert "expected a finite number" in message_of(write(MINIMAL), [f"algorithm.entropy_coef={number}"])


@pytest.mark.parametrize(
    "curriculum", ["{low: 0, high: 1}", "{revisit: 1}", "{low: 0.0, high: 1.0, revisit: 0.5}"]
)
def test_a_curriculum_that_passes_over_nothing_is_refused(write, curriculum):
    message = message_of(write(MINIMAL), [f"task.curriculum={curriculum}"])
    assert "task.curriculum: low is" in message
    assert "no prompt would ever be passed over" in message


def test_a_gold_template_without_a_slot_is_refused(write):
    message = message_of(write(MINIMAL), ["task.gold_template='the answer'"])
    assert "task.gold_template is 'the answer', expected a text with {reference}" in message


def test_a_word_in_place_of_a_section_is_explained(write):
    message = message_of(write(MINIMAL), ["algorithm=dapo"])
    assert "algorithm: found 'dapo', expected a section of keys, algorithm.<key>: <value>" in message


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["sampling.temperature=0.7", "sampling.temperature_points=[[0, 1.0]]"],
            "sampling.temperature is 0.7 and sampling.temperature_points is given",
        ),
        (["sampling.kept_limit=64"], "sampling.kept_limit is 64 but sampling.keep_sampling_mask is false"),
    ],
)
def test_a_sampling_key_that_would_not_be_read_is_refused(write, overrides, says):
    assert says in message_of(write(MINIMAL), overrides)


def test_temperature_points_are_pairs_in_rising_order(write):
    recipe = load_recipe(write(MINIMAL), ["sampling.temperature_points=[[0, 1.0], [9, 0.6]]"])
    assert recipe.sampling.temperature_points == ((0, 1.0), (9, 0.6))
    message = message_of(write(MINIMAL), ["sampling.temperature_points=[[9, 1.0], [9, 0.6]]"])
    assert "sampling.temperature_points has steps [9, 9]" in message


def test_missing_key_is_named(write):
    assert "missing key 'task'" in message_of(write({"name": "a", "model": {"path": "x"}}))


@pytest.mark.parametrize(("text", "found"), [("", "an empty file"), ("- a\n", "a list"), ("word", "a str")])
def test_file_that_is_no_mapping_is_refused(write, text, found):
    assert f"found {found}, expected a mapping" in message_of(write(text))


def test_missing_file_is_named(tmp_path):
    assert "does not exist" in message_of(tmp_path / "no.yaml")


def test_folder_instead_of_a_file_is_refused(tmp_path):
    assert "cannot be read" in message_of(tmp_path)


def test_duplicate_key_names_both_lines(write):
    assert "key 'seed' was already given in line 1" in message_of(write("seed: 1\nname: a\nseed: 2\n"))


def test_broken_yaml_gives_line_and_column(write):
    assert "line 2, column" in message_of(write("name: a\nmodel: {path: [}\n"))


def test_exponents_are_numbers_and_no_is_a_word_in_free_sections(write):
    text = yaml.safe_dump(MINIMAL | {"model": None}).replace(
        "model: null", "model: {config: {eps: 1e-6, answer: no, half: .5, one: 1}}"
    )
    config = load_recipe(write(text)).model.config
    assert config == {"eps": 1e-6, "answer": "no", "half": 0.5, "one": 1}


def test_resolved_recipe_loads_back_to_itself(write):
    recipe = load_recipe(write(MINIMAL), ["learner.lr=2e-5", "telemetry.sinks=[tensorboard]"])
    assert load_recipe(write(resolved_yaml(recipe), "resolved.yaml")) == recipe


def test_differences_are_what_was_said_beyond_the_defaults(write):
    recipe = load_recipe(write(MINIMAL), ["learner.lr=2e-5", "schedule.num_steps=100"])
    assert differences(recipe) == MINIMAL | {"learner": {"lr": 2e-5}}


def test_loading_does_not_import_torch():
    code = "import sys, rlhf.config.loading; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=300).returncode == 0


@pytest.mark.parametrize("key", ["load_in_4bit=true", "lora_result=adapter"])
def test_cold_start_of_adapters_is_refused_with_the_stage_that_has_them(write, key):
    path = write(MINIMAL | {"sft": {"source": {"file": "b.jsonl"}}})
    load_recipe(path, ["model.lora.rank=8"])
    said = message_of(path, ["model.lora.rank=8", f"sft.{key}"])
    assert f"sft.{key.partition('=')[0]} is" in said
    assert "a stage of kind sft" in said


@pytest.mark.parametrize(
    ("key", "command"),
    [
        ("stages", "rlhf pipeline"),
        ("alignment", "rlhf vision bench"),
        ("sets", "rlhf eval"),
        ("judges", "rlhf vision train"),
    ],
)
def test_a_file_of_another_command_is_told_by_its_key(tmp_path, key, command):
    path = tmp_path / "other.yaml"
    path.write_text(f"name: other\n{key}: {{}}\nseeds: 3\n")
    with pytest.raises(ConfigError, match=f"its key '{key}' makes it a file for `{command}`"):
        load_recipe(path)
