"""Recipes of alignment and of the bench: they survive JSON, and what cannot work is refused by its key."""

from pathlib import Path
from typing import Any

import pytest

from rlhf.config.alignment import AlignmentRecipe
from rlhf.config.alignment_bench import BenchRecipe, GridConfig
from rlhf.config.loading import checked_section
from rlhf.errors import ConfigError
from rlhf.vision.command import load_alignment, load_bench
from tests.unit.vision.benches import bench, bench_values, heldout
from tests.unit.vision.recipes import HERE, recipe

CPU = Path(__file__).parents[3] / "recipes" / "cpu"
CAPTIONS = {"use": f"{HERE}:captions"}


@pytest.mark.parametrize("make", [lambda: load_alignment(CPU / "clip_shapes.yaml", []), recipe])
def test_alignment_recipe_survives_json(make):
    made = make()
    assert AlignmentRecipe.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize("make", [lambda: load_bench(CPU / "vision_bench.yaml", []), bench])
def test_bench_recipe_survives_json(make):
    made = make()
    assert BenchRecipe.model_validate_json(made.model_dump_json()) == made


def test_bench_takes_its_alignment_from_a_file_and_overrides_from_the_command_line():
    found = load_bench(CPU / "vision_bench.yaml", ["alignment.schedule.num_steps=3", "seeds=2"])
    expected = load_alignment(CPU / "clip_shapes.yaml", ["schedule.num_steps=3"])
    assert (found.alignment, found.seeds) == (expected, 2)


def refused(section: Any, values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as found:
        checked_section(section, values, where="a.yaml")
    return str(found.value).removeprefix("a.yaml: ")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"orders": {"u": 1, "v": 1}}, "orders.u times orders.v is 1: a list needs two images"),
        ({"orders": {"gallery_share": 0}}, "orders.gallery_share: found 0, expected greater than 0"),
        ({"loss": {"name": "grpo", "beta": 2.0}}, "loss.beta is 2.0 but loss.name is grpo"),
        ({"loss": {"label_smoothing": 0.1}}, "loss.label_smoothing is 0.1 but loss.name is rp_pl"),
        ({"loss": {"closure": "dominance"}}, "loss.closure is dominance but loss.name is rp_pl"),
        ({"loss": {"name": "ipo", "kl_coef": 0.1}}, "loss.kl_coef is 0.1 but loss.name is ipo"),
        ({"loss": {"name": "dpo", "label_smoothing": 0.5}}, "loss.label_smoothing: found 0.5, expected less"),
        ({"loss": {"name": "none", "replay_coef": 0}}, "loss.name is none and loss.replay_coef is 0"),
        ({"loss": {"nam": "dpo"}}, "unknown key 'loss.nam': did you mean 'loss.name'?"),
        ({"eval": {"gallery": CAPTIONS}}, "eval: queries is missing"),
        ({"eval": {"queries": CAPTIONS}}, "eval: gallery is missing"),
        ({"model": {"trust_remote_code": True}}, "model.trust_remote_code and model.chat_template are of lang"),
        ({"model": {"chat_template": "a.jinja"}}, "model.trust_remote_code and model.chat_template are of lang"),
        (
            {"placement": {"kind": "colocated"}, "schedule": {"max_staleness": 1}},
            "schedule.max_staleness is 1 but placement.kind is colocated",
        ),
        ({"data": {"replay": None}}, "loss.replay_coef is 1 but data.replay is missing"),
        ({"images": {"per_pass": 5}}, "orders.u x orders.v is 6 but images.per_pass is 5"),
        ({"learner": {"logprob_chunk": 7}}, "learner.logprob_chunk is of language models"),
        ({"learner": {"microbatch_tokens": 7}}, "learner.microbatch_tokens is of language models"),
        ({"learner": {"num_ranks": 3}}, "schedule.replay_per_step (8) is not a multiple of learner.num_ranks (3)"),
        (
            {"learner": {"num_ranks": 4}, "loss": {"name": "sft"}, "schedule": {"queries_per_step": 6}},
            "schedule.queries_per_step (6) is not a multiple of learner.num_ranks (4)",
        ),
        (
            {"learner": {"num_ranks": 2}, "pretrain": {"captions": CAPTIONS, "batch_size": 7}},
            "pretrain.batch_size (7) is not a multiple of learner.num_ranks (2)",
        ),
        ({"judges": {"one": {"weight": 1}}}, "missing key 'judges.one.use'"),
    ],
)  # fmt: skip
def test_alignment_recipe_refuses_by_key(changes, says):
    values = recipe().model_dump(mode="json", exclude_defaults=True)
    for name, section in changes.items():
        values[name] = {**values.get(name, {}), **section}
    assert says in refused(AlignmentRecipe, values)


def test_alignment_recipe_without_replay_loads_where_it_is_given_up():
    given_up = recipe(data={"replay": None}, loss={"replay_coef": 0}, learner={"num_ranks": 3})
    assert given_up.data.replay is None


def without(section: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name != key}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rows": {"sft": {"lr": [1e-4]}}}, "rows have grids of sizes {'rp_pl': 2, 'sft': 1}"),
        ({"rows": {"rp": {}}}, "rows.rp"),
        ({"alignment": {"loss": {"name": "ipo"}}}, "alignment.loss.name is ipo, which rows does not have"),
        ({"rows": {"sft": {"beta": [1.0, 2.0]}}}, "rows.sft.beta is [1.0, 2.0] but sft does not read it"),
        ({"rows": {"grpo": {"beta": [1.0, 2.0]}}}, "rows.grpo.beta is [1.0, 2.0] but grpo does not read it"),
        ({"rows": {"dpo": {"kl_coef": [0.1, 0.2]}}}, "rows.dpo.kl_coef is [0.1, 0.2] but dpo does not read it"),
        ({"rows": {"sft": {"lr": [1e-3, 1e-3]}}}, "rows.sft.lr is [0.001, 0.001]: it names a value twice"),
        ({"rows": {"sft": {"replay_coef": [0, 1]}}}, "rows.sft.replay_coef.0: found 0, expected greater than 0"),
        ({"controls": ["no_judge"]}, "controls.0: found 'no_judge', expected 'no_replay'"),
        ({"gates": {"no_teacher": 0}}, "gates.no_teacher: found 0, expected greater than 0"),
        ({"cascade": [3, 12]}, "cascade has 3 but test.top_k is 4"),
        ({"test": {"every": 0}}, "test.every is 0"),
        ({"validation": {"every": 0}}, "validation.every is 0"),
        ({"alignment": {"schedule": {"max_staleness": 1}, "placement": {"kind": "colocated"}}}, "alignment: sched"),
    ],
)  # fmt: skip
def test_bench_refuses_by_key(changes, says):
    assert says in refused(BenchRecipe, bench_values(**changes))


@pytest.mark.parametrize("key", ["gallery", "queries", "truth", "captions", "classes"])
@pytest.mark.parametrize(("where", "half"), [("validation", 0), ("test", 1)])
def test_bench_refuses_a_held_out_set_that_is_not_whole(where, half, key):
    values = bench_values() | {where: without(heldout(half), key)}
    says = refused(BenchRecipe, values)
    assert says.startswith(where)
    assert f"{key} is missing" in says


@pytest.mark.parametrize("where", ["validation", "test"])
def test_bench_refuses_a_held_out_set_without_anything(where):
    assert f"{where}.gallery is missing" in refused(BenchRecipe, bench_values() | {where: {}})


def test_bench_refuses_rows_that_would_replay_nothing():
    values = bench_values(alignment={"loss": {"replay_coef": 0}})
    values["alignment"]["data"] = without(values["alignment"]["data"], "replay")
    assert "alignment.data.replay is missing" in refused(BenchRecipe, values)


def test_grid_counts_its_combinations():
    assert GridConfig().size == 1
    assert GridConfig(beta=(1, 2), kl_coef=(0, 1), lr=(1e-3, 1e-4, 1e-5), replay_coef=(1, 2)).size == 24
