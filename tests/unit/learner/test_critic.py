"""The critic against a padded forward; any ranks, any budget; its own optimizer; and it learns."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.batch import Batch
from rlhf.config.algorithm import CriticConfig, LoraConfig
from rlhf.config.schema import ModelConfig
from rlhf.errors import LearnerError
from rlhf.interfaces import LossOutput
from rlhf.learner.attention import PACKED
from rlhf.learner.critic import PackedCritic, TokenValues, score_values
from rlhf.learner.fsdp import FsdpLearner, RankPlace
from rlhf.learner.model import whole
from tests.tiny import tiny_config, tiny_model
from tests.unit.learner.ranks import (
    Ranks,
    critic_gradients,
    example_batch,
    plan,
    policy_gradient,
    regression,
    set_head,
    share,
)

CRITIC = replace(plan(), critic=CriticConfig(lr=1e-2))
LORA = ModelConfig(config=tiny_config(), dtype="float32", lora=LoraConfig(rank=4))
VARIANTS = [
    {},
    {"tie_word_embeddings": False},
    {"model_type": "llama"},
    {"model_type": "qwen2", "num_key_value_heads": 4},
    {"model_type": "phi3", "tie_word_embeddings": False},
]


def critic_of(model: PreTrainedModel) -> PackedCritic:
    critic = PackedCritic(model)
    nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(5))
    return critic


def packed(model: PreTrainedModel, critic: PackedCritic, batch: Batch) -> TokenValues:
    model.set_attn_implementation(PACKED)
    return score_values(critic, batch)


def padded(model: PreTrainedModel, critic: PackedCritic, batch: Batch) -> tuple[Tensor, Tensor]:
    """Values [N] and last values [B] by one padded forward, row by row."""
    model.set_attn_implementation("sdpa")
    lengths = batch.row_lengths().tolist()
    ids = torch.nn.utils.rnn.pad_sequence(list(batch.tokens.split(lengths)), batch_first=True)
    mask = torch.arange(ids.shape[1])[None] < torch.tensor(lengths)[:, None]
    hidden = model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states[-1]
    after = hidden @ critic.head.weight[0]
    before = torch.cat(
        [torch.cat([row.new_zeros(1), row[: n - 1]]) for row, n in zip(after, lengths, strict=True)]
    )
    last = torch.stack([row[n - 1] for row, n in zip(after, lengths, strict=True)])
    return torch.where(batch.loss_mask & (batch.positions > 0), before, 0.0), last


def gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[n] - g).norm() / (g.norm() + 1e-6)) for n, g in expected.items())


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_packed_values_equal_the_padded_reference(changes) -> None:
    model, batch = tiny_model(**changes), example_batch()
    critic = critic_of(model)
    expected, expected_last = padded(model, critic, batch)
    weights = torch.randn(batch.num_tokens, generator=torch.Generator().manual_seed(1))
    trained = [p for p in critic.parameters() if p.requires_grad]
    expected_gradient = torch.autograd.grad((expected * weights).sum() + expected_last.sum(), trained)
    found = packed(model, critic, batch)
    torch.testing.assert_close(found.values, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.last_values, expected_last, atol=1e-5, rtol=1e-5)
    gradient = torch.autograd.grad((found.values * weights).sum() + found.last_values.sum(), trained)
    for mine, theirs in zip(gradient, expected_gradient, strict=True):
        assert (mine - theirs).norm() < 1e-5 * theirs.norm() + 1e-6


def test_shared_beginnings_give_the_values_of_rows_by_themselves() -> None:
    batch = example_batch()
    apart = replace(batch, group_ids=torch.arange(batch.num_rows))
    assert not torch.equal(batch.origins(), apart.origins())
    model = tiny_model()
    critic = critic_of(model)
    together, alone = packed(model, critic, batch), packed(model, critic, apart)
    torch.testing.assert_close(together.values, alone.values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.last_values, alone.last_values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("budget", [31, 10_000])
@pytest.mark.parametrize(
    "what",
    [
        CRITIC,
        replace(plan(activation_checkpointing=True), critic=CriticConfig()),
        replace(plan(LORA), critic=CriticConfig()),
        replace(plan(LORA), critic=CriticConfig(lora=LoraConfig(rank=2))),
    ],
    ids=["full", "checkpointed", "lora policy", "lora critic"],
)
def test_critic_gradient_of_two_ranks_and_any_budget_equals_one(
    place: RankPlace, two_ranks: Ranks, what, budget: int
) -> None:
    one = critic_gradients(place, what, example_batch(), 10_000)
    assert any(g.any() for name, g in one.items() if name != "head.weight")
    assert gap(critic_gradients(place, what, example_batch(), budget), one) < 1e-5
    for two in two_ranks.run(critic_gradients, what, example_batch(), budget):
        assert gap(two, one) < 1e-5


def test_critic_trains_in_full_beside_a_lora_policy_unless_told_otherwise(place: RankPlace) -> None:
    full = critic_gradients(place, replace(plan(LORA), critic=CriticConfig()), example_batch(), 100)
    adapted = replace(plan(LORA), critic=CriticConfig(lora=LoraConfig(rank=2)))
    assert not any(".lora_" in name for name in full)
    found = critic_gradients(place, adapted, example_batch(), 100)
    assert [name for name in found if ".lora_" not in name] == ["head.weight"]


def test_two_ranks_train_the_critic_when_one_has_nothing(place: RankPlace, two_ranks: Ranks) -> None:
    one = critic_gradients(place, CRITIC, example_batch(rows=1), 100)
    for two in two_ranks.run(critic_gradients, CRITIC, example_batch(rows=1), 100):
        assert gap(two, one) < 1e-5


def test_critic_starts_from_the_policy_and_says_zero(place: RankPlace) -> None:
    learner = FsdpLearner(CRITIC, place)
    assert learner.critic is not None
    policy = {name: whole(p) for name, p in learner.policy.parameters.items()}
    for name, parameter in learner.critic.parameters.items():
        if name != "head.weight":
            assert torch.equal(whole(parameter), policy[name.replace("decoder.", "model.", 1)]), name
    ((values, last_values),) = learner.values([example_batch()])
    assert not values.any()
    assert not last_values.any()
    assert (values.dtype, values.shape) == (torch.float32, (example_batch().num_tokens,))
    assert last_values.shape == (example_batch().num_rows,)


def fit(place: RankPlace, steps: int) -> list[float]:
    learner = FsdpLearner(CRITIC, place)
    batch = example_batch()
    micro = share(batch, place.world_size, 60)[place.rank]
    errors = [learner.update_critic([micro], regression).values["error"] for _ in range(steps)]
    learner.close()
    return errors


def test_critic_learns_a_fixed_target_on_one_rank_as_on_two(place: RankPlace, two_ranks: Ranks) -> None:
    errors = fit(place, 40)
    assert errors[0] == pytest.approx(
        float(example_batch().advantages[example_batch().loss_mask].square().mean()), rel=0.05
    )
    assert errors[-1] < 0.2 * errors[0]
    for two in two_ranks.run(fit, 5):
        assert two == pytest.approx(errors[:5], rel=1e-3)


def test_policy_and_critic_do_not_touch_each_other(place: RankPlace) -> None:
    learner = FsdpLearner(CRITIC, place)
    batch = example_batch()
    set_head(learner)
    ((values, _),), (logprobs,) = learner.values([batch]), learner.logprobs([batch])
    learner.update([[batch]], policy_gradient)
    assert torch.equal(learner.values([batch])[0][0], values)
    (updated,) = learner.logprobs([batch])
    assert not torch.equal(updated, logprobs)
    learner.update_critic([[batch]], regression)
    assert torch.equal(learner.logprobs([batch])[0], updated)
    assert not torch.equal(learner.values([batch])[0][0], values)
    assert {name for name, _ in learner.weights()} == set(learner.policy.parameters)


def test_critic_reports_its_own_learning_rate_and_gradient(place: RankPlace) -> None:
    critic = CriticConfig(lr=0.5, warmup_steps=4, max_grad_norm=None)
    learner = FsdpLearner(replace(plan(), critic=critic), place)
    metrics = learner.update_critic([[example_batch(seed=0)], [example_batch(seed=1)]], regression)
    assert set(metrics.values) == {"error", "critic/grad_norm", "critic/lr"}
    assert metrics.values["critic/lr"] == pytest.approx(0.25)
    assert learner.critic is not None
    assert (learner.critic.step, learner.policy.step) == (2, 0)
    assert metrics.forward_backward_s > 0


def test_policy_schedule_ends_with_the_run_after_the_critics_steps_alone(place: RankPlace) -> None:
    what = replace(
        plan(lr=1.0, lr_schedule="linear"), critic=CriticConfig(lr=1.0, lr_schedule="linear"), critic_alone=16
    )
    learner = FsdpLearner(what, place)
    assert learner.critic is not None
    assert (learner.critic.total_steps, learner.policy.total_steps) == (20, 4)
    batches = [[example_batch(seed=0)], [example_batch(seed=1)]]
    assert learner.update(batches, policy_gradient).values["update/lr"] == pytest.approx(0.75)
    assert learner.update_critic(batches, regression).values["critic/lr"] == pytest.approx(0.95)


def test_non_finite_gradient_of_the_critic_names_it_and_changes_nothing(place: RankPlace) -> None:
    learner = FsdpLearner(CRITIC, place)

    def broken(values: Tensor, entropy: Tensor | None, batch: Batch) -> LossOutput:
        return LossOutput(loss=values.sum() * math.inf)

    with pytest.raises(LearnerError, match=r"critic, optimizer step 0: .*Lower critic\.lr"):
        learner.update_critic([[example_batch()]], broken)
    assert not learner.values([example_batch()])[0][0].any()


def test_bfloat16_critic_keeps_float32_masters_and_values(place: RankPlace) -> None:
    what = replace(plan(ModelConfig(config=tiny_config(), dtype="bfloat16")), critic=CriticConfig(lr=1e-2))
    learner = FsdpLearner(what, place)
    learner.update_critic([share(example_batch(), 1, 60)[0]], regression)
    assert learner.critic is not None
    assert {p.dtype for p in learner.critic.parameters.values()} == {torch.float32}
    ((values, last_values),) = learner.values([example_batch()])
    assert (values.dtype, last_values.dtype) == (torch.float32, torch.float32)
    assert values.any()
