"""Recorded experts are chosen again: against loops over tokens and experts, and at any number of ranks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import PreTrainedModel

from rlhf.batch import Batch
from rlhf.config.schema import ModelConfig
from rlhf.errors import LearnerError
from rlhf.learner.attention import PACKED
from rlhf.learner.forward import PackedPolicy, prepare, score_tokens
from rlhf.learner.fsdp import FsdpLearner, LearnerPlan, RankPlace
from rlhf.learner.routing import routers
from tests.tiny import DEEPSEEK, MIXTRAL, MOE, tiny_config, tiny_model
from tests.unit.learner.ranks import Ranks, example_batch, gradients, plan, policy_gradient, share
from tests.unit.learner.test_fsdp import relative_gap

EXPERTS, CHOSEN = 8, 2
FAMILIES = [MOE, MOE | {"norm_topk_prob": False, "mlp_only_layers": [0]}, MIXTRAL, DEEPSEEK]
MODEL = ModelConfig(config=tiny_config(**MOE), dtype="float32")
LATENT = ModelConfig(config=tiny_config(**DEEPSEEK), dtype="float32")


def routed_batch(*, missing: float = 0.2, layers: int = 2) -> Batch:
    """Random experts, none recorded for a share of the tokens and layers; rows of a group share their prompt's."""
    batch = example_batch()
    generator = torch.Generator().manual_seed(5)
    shape = (batch.num_tokens, layers)
    chosen = torch.rand(*shape, EXPERTS, generator=generator).argsort(-1)[..., :CHOSEN]
    chosen[torch.rand(shape, generator=generator) < missing] = -1
    chosen = chosen[batch.origins()]
    return replace(batch, routing=chosen.to(torch.int16))


def replayed(model: PreTrainedModel, batch: Batch) -> Tensor:
    model.set_attn_implementation(PACKED)
    return score_tokens(PackedPolicy(model, 7), batch, "none").logprobs


def by_loops(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Log-probabilities [N], a row at a time, a token at a time, an expert at a time."""
    assert batch.routing is not None
    model.set_attn_implementation("sdpa")
    result = []
    lengths = batch.row_lengths().tolist()
    for tokens, routing in zip(batch.tokens.split(lengths), batch.routing.split(lengths), strict=True):
        with forced(model, routing):
            log_p = torch.log_softmax(model(input_ids=tokens[None]).logits[0].float(), -1)
        result += [torch.zeros(1), log_p[:-1].gather(1, tokens[1:, None])[:, 0]]
    return torch.where(batch.loss_mask & (batch.positions > 0), torch.cat(result), 0.0)


@contextmanager
def forced(model: PreTrainedModel, routing: Tensor) -> Iterator[None]:
    layers = model.get_decoder().layers
    kept = [layer.mlp.forward for layer in layers]
    for index, layer in enumerate(layers):
        if routers(layer):
            layer.mlp.forward = slow_experts(layer.mlp, routing[:, index].tolist(), model.config)
    try:
        yield
    finally:
        for layer, forward in zip(layers, kept, strict=True):
            layer.mlp.forward = forward


def slow_experts(mlp: Any, recorded: list[list[int]], config: Any) -> Callable[[Tensor], Tensor]:
    """The layer's formula from its paper, with the recorded experts where there are any."""
    is_sigmoid = config.model_type == "deepseek_v3"

    def forward(hidden: Tensor) -> Tensor:
        outputs = []
        for token, experts in zip(hidden[0], recorded, strict=True):
            logits = mlp.gate.weight @ token
            scores = logits.sigmoid() if is_sigmoid else logits.softmax(0)
            if experts[0] < 0:
                experts = mlp.gate(token[None])[2][0].tolist()
            weights = [scores[e] for e in experts]
            if getattr(config, "norm_topk_prob", True):
                weights = [w / sum(weights) for w in weights]
            out = torch.zeros_like(token)
            for weight, e in zip(weights, experts, strict=True):
                gate, up = (mlp.experts.gate_up_proj[e] @ token).chunk(2)
                out = out + weight * (mlp.experts.down_proj[e] @ (silu(gate) * up))
            if is_sigmoid:
                out = out * config.routed_scaling_factor + mlp.shared_experts(token)
            outputs.append(out)
        return torch.stack(outputs)[None]

    return forward


def gradient(model: PreTrainedModel, value: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)
    }


@pytest.mark.parametrize("changes", FAMILIES, ids=lambda c: str(c["model_type"]))
def test_replayed_experts_equal_loops_over_tokens_and_experts(changes) -> None:
    model, batch = tiny_model(**changes), routed_batch()
    for router in routers(model):
        for name, bias in router.named_buffers():
            assert name == "e_score_correction_bias"
            bias.copy_(torch.arange(EXPERTS).cos())
    weights = torch.randn(batch.num_tokens, generator=torch.Generator().manual_seed(1))
    expected = by_loops(model, batch)
    expected_gradient = gradient(model, (expected * weights).sum())
    found = replayed(model, batch)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert relative_gap(gradient(model, (found * weights).sum()), expected_gradient) < 1e-5
    assert not torch.allclose(found, replayed(model, replace(batch, routing=None)), atol=1e-2)


@pytest.mark.parametrize("changes", FAMILIES, ids=lambda c: str(c["model_type"]))
def test_gradient_reaches_the_router_through_recorded_experts(changes) -> None:
    model = tiny_model(**changes)
    found = gradient(model, replayed(model, routed_batch(missing=0.0)).sum())
    of_routers = [g for name, g in found.items() if name.endswith("gate.weight")]
    assert of_routers
    assert all(g.abs().max() > 1e-4 for g in of_routers)


def test_recording_of_its_own_choice_changes_nothing() -> None:
    model, batch = tiny_model(**MOE), example_batch()
    expected = replayed(model, batch)
    recorded = record(model, batch)
    torch.testing.assert_close(replayed(model, replace(batch, routing=recorded)), expected)
    nothing = torch.full_like(recorded, -1)
    assert torch.equal(replayed(model, replace(batch, routing=nothing)), expected)


def record(model: PreTrainedModel, batch: Batch) -> Tensor:
    """[N, L, k]: what the routers choose by themselves."""
    seen: list[Tensor] = []
    hooks = [r.register_forward_hook(lambda _, __, out: seen.append(out[2])) for r in routers(model)]
    replayed(model, replace(batch, routing=None))
    for hook in hooks:
        hook.remove()
    place = prepare(batch).packing.place
    return torch.stack(seen, 1)[place].to(torch.int16)


def test_what_rows_share_is_computed_once_with_its_recorded_experts() -> None:
    model, batch = tiny_model(**MOE), routed_batch()
    assert prepare(batch).tokens.numel() < batch.num_tokens - 20
    apart = replace(batch, group_ids=torch.arange(batch.num_rows))
    assert prepare(apart).tokens.numel() == batch.num_tokens
    torch.testing.assert_close(replayed(model, batch), replayed(model, apart), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch", [example_batch(), routed_batch()], ids=["own", "recorded"])
@pytest.mark.parametrize(
    "what", [plan(MODEL), plan(MODEL, activation_checkpointing=True)], ids=["plain", "ac"]
)
def test_gradient_depends_on_neither_ranks_nor_budget(
    place: RankPlace, two_ranks: Ranks, what: LearnerPlan, batch: Batch
) -> None:
    one = gradients(place, plan(what.model), batch, 10_000)
    assert relative_gap(gradients(replace(place, port=place.port + 1), what, batch, 31), one) < 1e-5
    for two in two_ranks.run(gradients, what, batch, 60):
        assert relative_gap(two, one) < 1e-5


def test_reference_and_critic_route_for_themselves(place: RankPlace) -> None:
    learner = FsdpLearner(plan(MODEL, needs_reference=True), place)
    batch = routed_batch()
    (own,) = learner.logprobs([replace(batch, routing=None)])
    torch.testing.assert_close(learner.logprobs([batch], reference=True)[0], own, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(learner.logprobs([batch])[0], own, atol=1e-2)


def test_mixture_learns_with_recorded_experts(place: RankPlace) -> None:
    learner = FsdpLearner(plan(MODEL), place)
    batch = routed_batch()
    assert batch.advantages is not None
    assert batch.loss_weights is not None
    objective = [
        float((learner.logprobs([batch])[0] * batch.advantages * batch.loss_weights).sum())
        for _ in range(6)
        if learner.update([[batch]], policy_gradient)
    ]
    assert objective == sorted(objective)
    assert objective[-1] > objective[0] + 0.5


def test_plan_that_keeps_routing_is_refused_for_a_dense_model_at_the_start(place: RankPlace) -> None:
    with pytest.raises(LearnerError, match="Qwen3ForCausalLM cannot repeat the experts"):
        FsdpLearner(replace(plan(), keep_routing=True), place)


def test_router_computes_in_float32_when_the_rest_does_not(place: RankPlace) -> None:
    what = plan(ModelConfig(config=tiny_config(**MOE), dtype="bfloat16"))
    learner = FsdpLearner(what, place)
    seen = []
    for router in routers(learner.policy.module):
        router.register_forward_hook(lambda _, __, out: seen.extend(t.dtype for t in out[:2]))
    learner.update([share(routed_batch(), 1, 60)[0]], policy_gradient)
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({}, "no router that is known here"), ({"odd": True}, "OddTopKRouter does not choose by one topk")],
    ids=["dense", "odd router"],
)
def test_model_that_cannot_repeat_a_choice_is_named(changes, reason: str) -> None:
    model = tiny_model(**(MOE if changes else {}))
    if changes:
        model.get_decoder().layers[1].mlp.gate = OddTopKRouter()
    with pytest.raises(LearnerError, match=f"Qwen3.*ForCausalLM cannot repeat.*{reason}"):
        replayed(model, routed_batch())


class OddTopKRouter(nn.Module):
    """Chooses by sorting."""

    def __init__(self) -> None:
        super().__init__()
        self.top_k = CHOSEN
        self.weight = nn.Parameter(torch.randn(EXPERTS, 64))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = hidden.reshape(-1, 64) @ self.weight.T
        chosen = logits.argsort(1, descending=True)[:, : self.top_k]
        return logits, logits.softmax(1).gather(1, chosen), chosen
