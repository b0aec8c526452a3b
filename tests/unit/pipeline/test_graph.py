"""From a file to stages: order, references, what is laid under a stage, and every mistake with its key."""

import pytest
import yaml

from rlhf.config.pipeline import load_pipeline
from rlhf.config.references import Reference
from rlhf.config.schema import Recipe
from rlhf.errors import ConfigError
from rlhf.pipeline.drawing import depth_of, size_of
from rlhf.pipeline.graph import needed_by, resolve, running_order
from rlhf.pipeline.opened import Pipeline
from tests.unit.pipeline.fake_stages import MODEL, write_pipeline


def stages_of(path, *overrides):
    return {stage.name: stage for stage in resolve(load_pipeline(path, overrides))}


@pytest.fixture
def path(tmp_path):
    return write_pipeline(tmp_path)


def test_stages_run_after_what_they_need_and_otherwise_as_in_the_file(path):
    assert list(stages_of(path)) == ["cold_start", "rl", "reject", "final", "scores", "student"]
    assert running_order({"c": ["a"], "b": [], "a": []}) == ["b", "a", "c"]


def test_cycle_is_named():
    with pytest.raises(ConfigError, match="a -> c -> b -> a"):
        running_order({"a": ["c"], "b": ["a"], "c": ["b"], "d": ["a"]})


def test_needed_stages_are_all_ancestors(path):
    stages = list(stages_of(path).values())
    assert [stage.name for stage in needed_by("final", stages)] == ["cold_start", "rl", "reject", "final"]
    assert depth_of(stages) == {"cold_start": 0, "rl": 1, "reject": 2, "final": 3, "scores": 4, "student": 3}


def test_produced_model_inherits_how_it_is_computed_with(path):
    found = stages_of(path, "models.base.trust_remote_code=true")
    assert found["reject"].section.model.path == "${rl}"
    assert found["reject"].section.model.dtype == "float32"
    assert found["scores"].section.models["Dev3"].trust_remote_code
    assert (
        stages_of(path, "stages.rl.model={path: '${cold_start}', dtype: bfloat16}")[
            "reject"
        ].section.model.dtype
        == "bfloat16"
    )


def test_shared_sections_lie_under_the_stages_that_know_them(path):
    found = stages_of(path, "shared.sampling.max_prompt_tokens=7", "stages.rl.sampling.max_tokens=9")
    assert found["rl"].section.sampling.max_tokens == 9
    assert found["rl"].section.sampling.max_prompt_tokens == 7
    assert found["reject"].section.sampling.max_tokens == 8
    assert found["cold_start"].section.task.template == "{prompt}"
    assert found["reject"].section.task.heldout is None


def test_held_out_prompts_do_not_enter_a_stage_that_does_not_read_them(path):
    found = stages_of(path, "shared.task.heldout={file: x.jsonl}")
    assert found["rl"].section.task.heldout.file == "x.jsonl"
    assert found["reject"].section.task.heldout is None


def test_recipe_file_lies_under_its_stage_without_name_and_model(path):
    recipe = {
        "name": "other",
        "model": {"path": "x/y", "lora": {"rank": 4}},
        "learner": {"lr": 0.5},
        "run_dir": "z",
    }
    (path.parent / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    section = stages_of(path, "stages.rl.recipe=recipe.yaml", "stages.rl.learner.warmup_steps=3")[
        "rl"
    ].section
    assert isinstance(section, Recipe)
    assert (section.name, section.run_dir, section.model.lora) == ("rl", None, None)
    assert (section.learner.lr, section.learner.warmup_steps) == (0.5, 3)


def test_distillation_on_policy_sets_its_estimator(path):
    stage = {"kind": "on_policy_distill", "model": "base", "algorithm": {"reference": "${rl}"},
             "task": {"train": {"file": str(path.parent / "demonstrations.jsonl")}}}  # fmt: skip
    found = stages_of(
        path, f"stages.student={yaml.safe_dump(stage, default_flow_style=True, width=10**6).strip()}"
    )
    assert found["student"].section.algorithm.advantages == "distill"
    assert found["student"].stages_needed == ("rl",)


def test_selection_names_the_samples_that_another_stage_has_drawn(path):
    stage = (
        "stages.student={kind: select, samples: '${reject.samples}', select: {per_prompt: null, limit: 2000}}"
    )
    student = stages_of(path, stage)["student"]
    assert student.needs == (Reference("reject", "samples"),)
    assert size_of(student) == ["kept: all, 2,000 rows at most"]
    with pytest.raises(ConfigError, match=r"stages\.student\.select\.pairs is not set"):
        stages_of(path, stage, "stages.final.sft.source.file=${student.pairs}")


def test_sizes_of_stages(path):
    found = stages_of(path, "stages.reject.task.train.limit=10", "stages.final.sft.num_epochs=2")
    assert size_of(found["cold_start"]) == ["100 steps x 64 rows = 6,400"]
    assert size_of(found["final"]) == ["2 passes x 64 rows"]
    assert size_of(found["reject"]) == ["10 prompts x 16 samples = 160", "kept: at most 10 rows"]
    assert size_of(found["scores"]) == ["3 models x 1 samples of every prompt"]


MISTAKES = {
    "unknown stage": ("stages.rl.model=${cold_strat}", "rl.model.*no stage 'cold_strat'. Did you mean 'cold_start'"),
    "unknown artefact": ("stages.final.sft.source.file=${reject.row}", "no 'row'. Did you mean 'rows'"),
    "no model": ("stages.final.model=${reject}", "stages.final.model.*no model"),
    "stage without braces": ("stages.final.model=rl", r"'rl' is a stage.*Write '\$\{rl\}'"),
    "unknown model": ("stages.final.model=bose", "no name under `models`. Did you mean 'base'"),
    "cycle": ("stages.cold_start.model=${final}", "each of these waits for the next"),
    "itself": ("stages.rl.model=${rl}", "rl -> rl"),
    "shared typo": ("shared.sampling.max_token=3", "'sampling.max_token': did you mean 'sampling.max_tokens'"),
    "shared section typo": ("shared.engin.threads=3", "'engin': did you mean 'engine'"),
    "shared model": ("shared.model=base", "shared.model"),
    "stage typo": ("stages.rl.schedule.num_step=3", "stages.rl: unknown key 'schedule.num_step': did you mean"),
    "bad value": ("stages.rl.learner.lr=-1", "stages.rl: learner.lr: found -1, expected greater than 0"),
    "kind typo": ("stages.rl.kind=rll", "stages.rl.kind: found 'rll'. Did you mean 'rl'"),
    "override of no stage": ("stages.rejct.seed=3", "no stage 'rejct'. Did you mean 'reject'"),
    "name": ("stages.rl.run_dir=x", "'run_dir' is the pipeline's to say"),
    "not read": ("stages.reject.task.curriculum={}", "does not read"),
    "no export": ("stages.rl.checkpoint.export=false", "checkpoint.export is false"),
    "no pairs": ("stages.final.sft.source.file=${reject.pairs}", "select.pairs"),
    "unknown service": (
        "stages.reject.select.filters=[{use: 'x:f', at_least: 1, kwargs: {url: 'service://judge'}}]",
        "stages.reject: 'service://judge' is in the kwargs of a reward or an environment, but services has no 'judge'",
    ),
    "top level": ("stage.rl.kind=rl", "unknown key 'stage': did you mean 'stages'"),
    "missing file": ("stages.cold_start.sft.source.file=nowhere.jsonl", "there is no file or folder 'nowhere.jsonl'"),
}  # fmt: skip


@pytest.mark.parametrize(("override", "says"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_explained_with_its_key(path, override, says):
    with pytest.raises(ConfigError, match=says):
        Pipeline.of(load_pipeline(path, [override]), code_dir=path.parent)


def test_model_and_stage_of_one_name_are_refused(path):
    with pytest.raises(ConfigError, match="also the name of a model"):
        load_pipeline(path, [f"models.rl={MODEL}".replace("'", '"')])
