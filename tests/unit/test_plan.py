import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.config.schema import Recipe
from rlhf.data.packing import pack, plan_microbatches
from rlhf.errors import ConfigError
from rlhf.plan import derive_plan, has_experts, model_size, replays_routing
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


def test_narrow_state_and_fp8_rollout_are_in_the_plan():
    lines = plan(
        learner={"num_ranks": 4, "optimizer_state": "fp8"},
        engine={"quantization": "fp8", "kv_cache_dtype": "fp8", "kv_cache_mb": 512},
    )
    assert f"AdamW {(8 + 3 + 8 / 128) * 7e9 / 4 / GIB:.0f} GiB" in lines["memory per learner rank"]
    assert lines["learner"].endswith("float32 master weights, AdamW's moments in FP8 and float16")
    assert lines["engines"].endswith("quantization fp8, kv_cache_dtype fp8")
    size = model_size(recipe())
    in_bytes = size.parameters + size.vocabulary * size.hidden
    assert lines["memory per engine"] == f"about {in_bytes / GIB:.2f} GiB of weights + KV cache 512 MB"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "qwen3"}, False),
        ({"num_experts": 8}, True),
        ({"num_local_experts": 8}, True),
        ({"n_routed_experts": None}, False),
        ({"text_config": {"n_routed_experts": 64}}, True),
    ],
)
def test_a_mixture_of_experts_is_told_by_its_config(config, expected):
    assert has_experts(config) is expected


def test_experts_are_replayed_where_there_are_any_and_refused_where_they_cannot_be():
    keep, auto = (recipe(sampling={"keep_routing": value}) for value in (True, "auto"))
    assert [replays_routing(r, {"num_experts": 8}) for r in (recipe(), keep, auto)] == [False, True, True]
    assert not replays_routing(auto, {"hidden_size": 8})
    with pytest.raises(ConfigError, match="keep_routing is true but the model has no experts"):
        replays_routing(keep, {"hidden_size": 8})
    compiled = recipe(sampling={"keep_routing": "auto"}, engine={"compile": True})
    assert not replays_routing(compiled, {"hidden_size": 8})
    with pytest.raises(ConfigError, match=r"keep_routing is auto, the model has experts and engine.compile"):
        replays_routing(compiled, {"num_experts": 8})


def test_plan_shows_what_a_preset_sets_elsewhere():
    lines = plan(
        algorithm={"name": "vapo"},
        critic={"pretrain_steps": 5},
        schedule={"drop_zero_variance": True},
        sampling={"temperature_points": [[0, 1.0], [9, 0.6]], "top_p": 0.9, "keep_sampling_mask": True},
        task={"train": {"file": "a"}, "rewards": [{"use": "a:b"}], "curriculum": {}},
    )
    assert lines["  critic training"] == "lr 1e-05 constant; 5 of 100 steps on the critic alone first"
    assert lines["dynamic sampling"].startswith("groups of equal rewards are discarded")
    assert lines["curriculum"] == "pass rate 0.05 to 0.95 or never measured; others with chance 0.1"
    kept = "sets of up to 256 tokens are kept for the learner"
    assert lines["sampling"] == f"temperature 1 at step 0, 0.6 at step 9, top_p 0.9, {kept}"


def test_plan_says_what_is_set_and_does_nothing_here():
    lines = plan(
        algorithm={"name": "deepseek_v3_2"}, model={"config": tiny_config(), "tokenizer": "characters"}
    )
    assert "no sampling mask to keep: top_p and top_k are off" in lines["sampling"]
    assert "no routing to keep: the model has no experts" in lines["sampling"]
    assert lines["  ratio"].startswith("1, so that no clip acts")
    assert "  ratio" not in plan(schedule={"minibatches": 2})
    assert "  ratio" not in plan(algorithm={"old_from": "rollout", "correction": "none"})


@pytest.mark.parametrize(
    ("algorithm", "says"),
    [
        (
            {"name": "r1_zero"},
            "the model before training; the policy takes its place every 400 steps (not within",
        ),
        (
            {"kl_coef": 0.1, "reference": "a/b", "kl_target": 0.02},
            "a/b; kl_coef is steered towards a KL of 0.02",
        ),
        ({"advantages": "distill", "reference": "a/b"}, "teacher: a/b"),
    ],
)
def test_plan_names_the_reference(algorithm, says):
    assert plan(algorithm=algorithm)["  reference"].startswith(says)
