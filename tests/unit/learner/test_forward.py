"""Packed equals padded; chunked equals the full softmax; rows do not see each other."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.batch import Batch
from rlhf.errors import ModelError
from rlhf.learner.attention import MAX_WASTE, PACKED, build_packing
from rlhf.learner.forward import EntropyMode, PackedPolicy, TokenScores, prepare, score_tokens
from tests.tiny import DEEPSEEK, MIXTRAL, MOE, tiny_model
from tests.unit.learner.ranks import example_batch

VARIANTS = [
    {},
    {"tie_word_embeddings": False},
    {"model_type": "llama"},
    {"model_type": "qwen2", "num_key_value_heads": 4},
    {"model_type": "phi3", "tie_word_embeddings": False},
    MOE,
    MOE | {"norm_topk_prob": False, "mlp_only_layers": [0]},
    MIXTRAL,
    DEEPSEEK,
]


def packed(
    model: PreTrainedModel, batch: Batch, entropy: EntropyMode = "none", chunk: int = 5
) -> TokenScores:
    model.set_attn_implementation(PACKED)
    return score_tokens(PackedPolicy(model, chunk), batch, entropy)


def padded(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [N] by one padded forward and the full softmax."""
    model.set_attn_implementation("sdpa")
    lengths = batch.row_lengths().tolist()
    rows = batch.tokens.split(lengths)
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    mask = torch.arange(ids.shape[1])[None] < torch.tensor(lengths)[:, None]
    log_p = torch.log_softmax(
        model(input_ids=ids, attention_mask=mask.long()).logits.float()
        / temperatures_of(batch)[:, None, None],
        -1,
    )
    picked = log_p[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    entropies = -(log_p.exp() * log_p).sum(-1)[:, :-1]
    is_scored = batch.loss_mask & (batch.positions > 0)
    result = []
    for values in (picked, entropies):
        flat = torch.cat(
            [torch.cat([values.new_zeros(1), v[: n - 1]]) for v, n in zip(values, lengths, strict=True)]
        )
        result.append(torch.where(is_scored, flat, 0.0))
    return result[0], result[1]


def temperatures_of(batch: Batch) -> Tensor:
    return torch.ones(batch.num_rows) if batch.temperatures is None else batch.temperatures


def mixed(batch: Batch) -> Batch:
    """Every row at a temperature of its own, those of one group too."""
    return replace(batch, temperatures=torch.linspace(0.6, 1.4, batch.num_rows))


def gradient(model: PreTrainedModel, value: Tensor) -> Tensor:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, trained)])


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_packed_forward_equals_padded_reference(changes) -> None:
    model, batch = tiny_model(**changes), mixed(example_batch())
    weights = torch.randn(batch.num_tokens, generator=torch.Generator().manual_seed(1))
    expected, _ = padded(model, batch)
    expected_gradient = gradient(model, (expected * weights).sum())
    found = packed(model, batch).logprobs
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gap = gradient(model, (found * weights).sum()) - expected_gradient
    assert gap.norm() < 1e-5 * expected_gradient.norm()


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_chunked_scores_equal_the_full_softmax(chunk: int) -> None:
    model, batch = tiny_model(), mixed(example_batch())
    expected_logprobs, expected_entropy = padded(model, batch)
    scores = packed(model, batch, "gradient", chunk)
    assert scores.entropy is not None
    torch.testing.assert_close(scores.logprobs, expected_logprobs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores.entropy, expected_entropy, atol=1e-5, rtol=1e-5)
    expected = gradient(model, (expected_logprobs * 0.3 + expected_entropy.square()).sum())
    gap = gradient(model, (scores.logprobs * 0.3 + scores.entropy.square()).sum()) - expected
    assert gap.norm() < 1e-5 * expected.norm()


def test_entropy_as_a_metric_has_no_gradient_and_can_be_left_out() -> None:
    model, batch = tiny_model(), example_batch()
    metric = packed(model, batch, "metric").entropy
    with_gradient = packed(model, batch, "gradient").entropy
    assert metric is not None
    assert not metric.requires_grad
    torch.testing.assert_close(metric, with_gradient)
    assert packed(model, batch, "none").entropy is None


def test_rows_do_not_see_each_other() -> None:
    model, batch = tiny_model(), example_batch()
    changed = replace(
        batch, tokens=torch.where(batch.segment_ids == 4, (batch.tokens + 1) % 96, batch.tokens)
    )
    before, after = packed(model, batch).logprobs, packed(model, changed).logprobs
    elsewhere = batch.segment_ids != 4
    torch.testing.assert_close(before[elsewhere], after[elsewhere], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before[~elsewhere], after[~elsewhere], atol=1e-3)


def test_what_rows_share_is_computed_once() -> None:
    batch = example_batch()
    inputs = prepare(batch)
    repeated = int((batch.origins() != torch.arange(batch.num_tokens)).sum())
    assert inputs.tokens.numel() == batch.num_tokens - repeated < batch.num_tokens - 20
    assert torch.equal(inputs.tokens[inputs.packing.place], batch.tokens)
    assert torch.equal(inputs.positions[inputs.packing.place], batch.positions)


def test_a_row_that_repeats_another_whole_has_the_same_scores() -> None:
    batch = example_batch(rows=2)
    twice = batch.select_rows(torch.tensor([0, 0, 1, 1]))
    first, again, *_ = packed(tiny_model(), twice).logprobs.split(twice.row_lengths().tolist())
    assert torch.equal(first, again)
    expected, _ = padded(tiny_model(), twice)
    torch.testing.assert_close(packed(tiny_model(), twice).logprobs, expected, atol=1e-5, rtol=1e-5)


def test_scores_are_zero_where_not_trained_and_at_the_first_token_of_a_row() -> None:
    batch = example_batch()
    everything = replace(batch, loss_mask=torch.ones_like(batch.loss_mask))
    assert not packed(tiny_model(), batch).logprobs[~batch.loss_mask].any()
    scores = packed(tiny_model(), everything).logprobs
    assert torch.equal(scores == 0, batch.positions == 0)


@pytest.mark.parametrize(
    "lengths", [[1], [3, 3, 3], [5, 1, 9, 2, 2, 8], [1, 100], list(range(1, 60))], ids=str
)
def test_packing_places_every_token_once_and_wastes_little(lengths: Sequence[int]) -> None:
    packing = build_packing(lengths, torch.device("cpu"))
    tokens = torch.arange(sum(lengths))
    assert torch.equal(packing.token_of_slot[packing.slot_of_token], tokens)
    assert packing.boundaries.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert packing.token_of_slot.numel() <= sum(lengths) / (1 - MAX_WASTE)
    assert not packing.is_shared
    assert packing.is_whole == (packing.token_of_slot.numel() == sum(lengths))


def test_sliding_window_is_refused_only_when_a_row_reaches_over_it() -> None:
    window = {"use_sliding_window": True, "max_window_layers": 0}
    batch = example_batch()
    longest = int(batch.row_lengths().max())
    wide = tiny_model(sliding_window=longest, **window)
    torch.testing.assert_close(packed(wide, batch).logprobs, packed(tiny_model(), batch).logprobs)
    with pytest.raises(ModelError, match=f"sliding window of {longest - 1}"):
        packed(tiny_model(sliding_window=longest - 1, **window), batch)
