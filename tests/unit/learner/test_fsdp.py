"""One rank, two ranks, any micro-batch budget: the same gradient, the same run."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlhf.config.algorithm import LoraConfig
from rlhf.config.schema import ModelConfig
from rlhf.errors import ConfigError, LearnerError
from rlhf.interfaces import LossOutput
from rlhf.learner.fsdp import FsdpLearner, RankPlace
from tests.tiny import tiny_config
from tests.unit.learner.ranks import (
    Ranks,
    example_batch,
    gradients,
    plan,
    policy_gradient,
    score,
    score_after_reset,
    share,
    train,
    without_old,
)

LORA = ModelConfig(config=tiny_config(), dtype="float32", lora=LoraConfig(rank=4))


def relative_gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    gap = math.sqrt(sum(float((found[n] - expected[n]).square().sum()) for n in expected))
    return gap / math.sqrt(sum(float(g.square().sum()) for g in expected.values()))


@pytest.mark.parametrize("budget", [31, 60])
def test_gradient_does_not_depend_on_the_microbatch_budget(place: RankPlace, budget: int) -> None:
    whole_batch = gradients(place, plan(), example_batch(), 10_000)
    assert relative_gap(gradients(place, plan(), example_batch(), budget), whole_batch) < 1e-5


@pytest.mark.parametrize("budget", [31, 10_000])
@pytest.mark.parametrize(
    "what",
    [
        plan(),
        plan(activation_checkpointing=True),
        replace(plan(), entropy="gradient"),
        plan(ModelConfig(config=tiny_config(tie_word_embeddings=False, vocab_size=97), dtype="float32")),
    ],
    ids=["plain", "checkpointed", "entropy", "untied"],
)
def test_gradient_of_two_ranks_equals_one(place: RankPlace, two_ranks: Ranks, what, budget: int) -> None:
    one = gradients(place, what, example_batch(), 10_000)
    for two in two_ranks.run(gradients, what, example_batch(), budget):
        assert relative_gap(two, one) < 1e-5


def test_update_of_two_ranks_equals_one(place: RankPlace, two_ranks: Ranks) -> None:
    one = train(place, plan(), [0, 1])
    for two in two_ranks.run(train, plan(), [0, 1]):
        assert relative_gap(two["weights"], one["weights"]) < 1e-4
        assert two["metrics"][1] == pytest.approx(one["metrics"][1], rel=1e-4)


def test_update_reports_metrics_and_leaves_out_what_is_unknown(place: RankPlace) -> None:
    learner = FsdpLearner(plan(max_grad_norm=None), place)
    batch = example_batch()
    (logprobs,) = learner.logprobs([batch])
    metrics = learner.update([[batch]], policy_gradient)
    assert set(metrics.values) == {"logprob", "update/grad_norm", "update/lr"}
    assert metrics.values["logprob"] == pytest.approx(float(logprobs.sum() / batch.loss_mask.sum()), rel=1e-5)
    assert metrics.forward_backward_s > 0
    assert metrics.optimizer_s > 0


def test_update_is_the_same_bit_for_bit_when_repeated(place: RankPlace) -> None:
    first, second = (train(place, plan(), [0, 1, 2]) for _ in range(2))
    assert all(torch.equal(first["weights"][n], second["weights"][n]) for n in first["weights"])


def test_update_takes_one_optimizer_step_per_minibatch(place: RankPlace) -> None:
    learner = FsdpLearner(plan(), place)
    learner.update([[example_batch(seed=0)], [example_batch(seed=1)]], policy_gradient)
    assert learner.policy.step == 2


def test_two_ranks_train_when_one_has_nothing(two_ranks: Ranks, place: RankPlace) -> None:
    lonely = example_batch(rows=1)
    one = gradients(place, plan(), lonely, 100)
    for two in two_ranks.run(gradients, plan(), lonely, 100):
        assert relative_gap(two, one) < 1e-5


def test_rows_without_trained_tokens_give_a_zero_gradient(place: RankPlace) -> None:
    found = gradients(place, plan(), without_old(example_batch()), 100)
    assert all(not g.any() for g in found.values())


def test_update_with_a_non_finite_gradient_raises_and_changes_nothing(place: RankPlace) -> None:
    learner = FsdpLearner(plan(), place)
    learner.update([[example_batch()]], policy_gradient)
    before = {name: w.clone() for name, w in learner.weights()}

    def broken(logprobs: Tensor, entropy: Tensor | None, batch) -> LossOutput:
        return LossOutput(loss=logprobs.sum() * float("inf"))

    with pytest.raises(LearnerError, match="optimizer step 1: the gradient norm is"):
        learner.update([[example_batch()]], broken)
    assert all(torch.equal(w, before[name]) for name, w in learner.weights())


@pytest.mark.parametrize("what", [plan(LORA), plan(needs_reference=True)], ids=["lora", "copy"])
def test_reference_stays_at_the_initial_weights(two_ranks: Ranks, what) -> None:
    for result in two_ranks.run(score, what, example_batch()):
        for before, after, reference in zip(
            result["before"], result["after"], result["reference"], strict=True
        ):
            torch.testing.assert_close(reference, before)
            assert not before.any() or not torch.allclose(after, before, atol=1e-3)


def test_reset_makes_the_policy_the_reference_and_a_checkpoint_keeps_it(
    place: RankPlace, two_ranks: Ranks, tmp_path: Path
) -> None:
    what = replace(plan(needs_reference=True), reference_resets=True)
    one = score_after_reset(place, what, example_batch(), str(tmp_path / "one"))
    for result in (one, *two_ranks.run(score_after_reset, what, example_batch(), str(tmp_path / "two"))):
        for index, at_reset in enumerate(result["at reset"]):
            for name in ("reference", "kept", "loaded"):
                assert torch.equal(result[name][index], at_reset), name
            for name in ("initial", "later"):
                assert not at_reset.any() or not torch.allclose(result[name][index], at_reset, atol=1e-3)


def test_reference_that_is_reset_is_refused_with_lora(place: RankPlace) -> None:
    with pytest.raises(ConfigError, match=r"reference_reset_every is set, and so is model\.lora"):
        FsdpLearner(replace(plan(LORA, needs_reference=True), reference_resets=True), place)


def test_lora_trains_only_adapters_and_two_ranks_equal_one(place: RankPlace, two_ranks: Ranks) -> None:
    one = gradients(place, plan(LORA), example_batch(), 10_000)
    assert all(".lora_" in name for name in one)
    assert any(g.any() for g in one.values())
    for two in two_ranks.run(gradients, plan(LORA), example_batch(), 31):
        assert relative_gap(two, one) < 1e-5


def test_probe_equals_logprobs_at_temperature_one(place: RankPlace) -> None:
    learner = FsdpLearner(plan(), place)
    batch = example_batch(rows=1)
    everything = replace(batch, loss_mask=torch.ones_like(batch.loss_mask))
    (logprobs,) = learner.logprobs([everything])
    (row,) = learner.probe([batch.tokens.tolist()])
    assert row == pytest.approx(logprobs[1:].tolist())
    assert logprobs[0] == 0


def test_bfloat16_compute_keeps_float32_masters(place: RankPlace) -> None:
    what = plan(ModelConfig(config=tiny_config(), dtype="bfloat16"))
    learner = FsdpLearner(what, place)
    learner.update([share(example_batch(), 1, 60)[0]], policy_gradient)
    assert {p.dtype for p in learner.policy.parameters.values()} == {torch.float32}
    assert {w.dtype for _, w in learner.weights()} == {torch.bfloat16}
