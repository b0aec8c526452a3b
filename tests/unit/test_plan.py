import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.config.schema import Recipe
from rlhf.data.packing import pack, plan_microbatches
from rlhf.plan import derive_plan, model_size
from tests.fakes import make_group, make_trajectory
from tests.tiny import tiny_config, tiny_model

GIB = 2**30


def recipe(**sections) -> Recipe:
    values = {
        "name": "a",
        "model": {"path": "some/model-7B"},
        "task": {"train": {"file": "a"}, "rewards": [{"use": "a:b", "weight": 0.5}, {"use": "c:d"}]},
    }
    return Recipe.model_validate(values | sections)


def plan(**sections) -> dict[str, str]:
    return dict(derive_plan(recipe(**sections)))


def test_plan_shows_the_arithmetic_of_a_step():
    lines = plan(
        schedule={"prompts_per_step": 64, "samples_per_prompt": 8, "minibatches": 4, "max_staleness": 2},
        sampling={"max_prompt_tokens": 24, "max_tokens": 40},
        learner={"num_ranks": 2, "microbatch_tokens": 1024},
    )
    assert lines["sequences per step"] == "64 prompts x 8 samples = 512"
    assert lines["optimizer steps per step"] == "4 mini-batches of 128 sequences"
    # 128 rows of up to 64 tokens are 8192 tokens: 4 micro-batches of 1024 on each of 2 ranks.
    assert lines["micro-batches per rank"].startswith("at most 4 per mini-batch")
    assert lines["admission slots"] == "(2 + 1) x 64 = 192 groups"
    assert "more than 2 weight versions late" in lines["staleness bound"]
    assert lines["rewards"] == "0.5 x a:b, 1 x c:d"


def test_partial_micro_batch_is_counted():
    lines = plan(
        schedule={"prompts_per_step": 1, "samples_per_prompt": 3},
        sampling={"max_prompt_tokens": 30, "max_tokens": 30},
        learner={"microbatch_tokens": 100},
    )
    # Rows of 60 tokens: one to a micro-batch of 100, though 180 tokens would go into two.
    assert lines["micro-batches per rank"].startswith("at most 3 ")


def test_rows_that_do_not_share_out_count_for_the_fullest_rank():
    lines = plan(
        schedule={"prompts_per_step": 1, "samples_per_prompt": 9},
        sampling={"max_prompt_tokens": 20, "max_tokens": 20},
        learner={"num_ranks": 2, "microbatch_tokens": 100},
    )
    # 9 rows of 40 tokens: 5 on the fuller of 2 ranks, 2 to a micro-batch of 100.
    assert lines["micro-batches per rank"].startswith("at most 3 ")


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    ranks=st.integers(1, 3),
    budget=st.integers(40, 200),
)
def test_packing_never_makes_more_micro_batches_than_the_plan_says(lengths, ranks, budget):
    lines = plan(
        algorithm={"advantages": "reinforce"},
        schedule={"prompts_per_step": 1, "samples_per_prompt": len(lengths)},
        sampling={"max_prompt_tokens": 20, "max_tokens": 20},
        learner={"num_ranks": ranks, "microbatch_tokens": budget},
    )
    at_most = int(lines["micro-batches per rank"].split()[2])
    rows = tuple(make_trajectory(prompt_ids=(), sampled_ids=range(length)) for length in lengths)
    batch = pack([replace(make_group(), trajectories=rows)])
    shares = plan_microbatches(batch, ranks=ranks, budget_tokens=budget)
    assert max(len(share) for share in shares) <= at_most


def test_size_is_counted_from_a_config():
    size = model_size(recipe(model={"config": tiny_config(), "tokenizer": "characters"}))
    assert size.parameters == sum(p.numel() for p in tiny_model().parameters())
    assert (size.hidden, size.layers, size.vocabulary) == (64, 2, 96)


def test_size_is_read_from_a_model_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(num_hidden_layers=3)))
    assert model_size(recipe(model={"path": str(tmp_path)})).layers == 3


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 500_000_000),
        ("Qwen/Qwen2.5-7B", 7_000_000_000),
        ("a/pythia-70m", 70_000_000),
        ("a/llama-3-8b-base", 8_000_000_000),
        ("a/no-size-here", None),
        ("a/3blue", None),
    ],
)
def test_size_is_read_from_a_name(name, parameters):
    size = model_size(recipe(model={"path": name}))
    assert (size and size.parameters) == parameters


def test_unknown_size_is_said_and_not_guessed():
    assert plan(model={"path": "a/name"})["memory estimate"].startswith("unknown")


def test_state_of_a_full_model_is_sixteen_bytes_a_parameter_over_the_ranks():
    lines = plan(learner={"num_ranks": 4})
    assert f"AdamW {16 * 7e9 / 4 / GIB:.0f} GiB" in lines["memory per learner rank"]
    assert "reference 0.00 GiB" in lines["memory per learner rank"]


def test_reference_is_counted_when_the_loss_needs_it():
    lines = plan(algorithm={"kl_coef": 0.1}, learner={"num_ranks": 2})
    # The learner keeps it in float32, whatever the compute type.
    assert f"reference {4 * 7e9 / 2 / GIB:.0f} GiB" in lines["memory per learner rank"]


def test_adapters_keep_optimizer_state_and_reference_small():
    lines = plan(model={"path": "some/model-7B", "lora": {"rank": 8}}, algorithm={"kl_coef": 0.1})
    assert "reference 0.00 GiB" in lines["memory per learner rank"]
    assert f"AdamW {4 * 7e9 / GIB:.0f} GiB" in lines["memory per learner rank"]


def test_weights_of_an_engine_are_split_by_tensor_parallelism():
    lines = plan(engine={"tensor_parallel": 2, "kv_cache_mb": 512})
    assert lines["memory per engine"] == f"about {2 * 7e9 / 2 / GIB:.2f} GiB of weights + KV cache 512 MB"
