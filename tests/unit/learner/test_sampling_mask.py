"""Log-probabilities over the tokens that the sampler kept, against loops over them."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlhf.batch import Batch
from rlhf.config.schema import ModelConfig
from rlhf.learner.attention import PACKED
from rlhf.learner.forward import PackedPolicy, TokenScores, log_softmax, score_tokens
from rlhf.learner.fsdp import FsdpLearner, RankPlace
from tests.tiny import tiny_config, tiny_model
from tests.unit.learner.ranks import Ranks, example_batch, gradients, plan
from tests.unit.learner.test_forward import gradient
from tests.unit.learner.test_fsdp import relative_gap

VOCABULARY = 96


def kept_batch(*, temperature: float = 0.7) -> Batch:
    """Sets of 0 (all is kept) to 6 ids, the token itself in most of them."""
    batch = example_batch()
    batch = replace(batch, temperatures=torch.full((batch.num_rows,), temperature))
    generator = torch.Generator().manual_seed(2)
    kept = torch.rand(batch.num_tokens, VOCABULARY, generator=generator).argsort(1)[:, :6]
    sizes = torch.randint(0, 7, (batch.num_tokens, 1), generator=generator)
    kept[:, 0] = torch.where(torch.arange(batch.num_tokens) % 5 == 0, kept[:, 0], batch.tokens)
    kept = torch.where(torch.arange(6) < sizes, kept, -1)
    return replace(batch, kept_ids=kept.to(torch.int32))


def scores(batch: Batch, *, chunk: int = 5, model: torch.nn.Module | None = None) -> TokenScores:
    model = model or tiny_model()
    model.set_attn_implementation(PACKED)
    return score_tokens(PackedPolicy(model, chunk), batch, "gradient")


def by_loops(batch: Batch, model) -> tuple[Tensor, Tensor]:
    """(lp, entropy) [N]: lp = z[y]/T - log sum_{j in S} exp(z[j]/T), H = -sum_{j in S} q_j log q_j."""
    assert batch.kept_ids is not None
    assert batch.temperatures is not None
    model.set_attn_implementation("sdpa")
    logprobs, entropies = [], []
    start = 0
    for length, temperature in zip(batch.row_lengths().tolist(), batch.temperatures.tolist(), strict=True):
        tokens = batch.tokens[start : start + length]
        z = model(input_ids=tokens[None]).logits[0].double() / temperature
        for t in range(length):
            lp = h = torch.zeros((), dtype=torch.float64)
            if t > 0 and batch.loss_mask[start + t]:
                kept = {j for j in batch.kept_ids[start + t].tolist() if j >= 0}
                support = sorted(kept | {int(tokens[t])}) if kept else range(VOCABULARY)
                total = sum((z[t - 1, j].exp() for j in support), torch.zeros((), dtype=torch.float64)).log()
                lp = z[t - 1, tokens[t]] - total
                for j in support:
                    h = h - (z[t - 1, j] - total).exp() * (z[t - 1, j] - total)
            logprobs.append(lp)
            entropies.append(h)
        start += length
    return torch.stack(logprobs).float(), torch.stack(entropies).float()


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_scores_on_the_kept_sets_equal_loops_over_them(chunk: int) -> None:
    model, batch = tiny_model(), kept_batch()
    expected_logprobs, expected_entropy = by_loops(batch, model)
    expected = gradient(model, (expected_logprobs * 0.3 + expected_entropy.square()).sum())
    found = scores(batch, chunk=chunk, model=model)
    assert found.entropy is not None
    torch.testing.assert_close(found.logprobs, expected_logprobs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.entropy, expected_entropy, atol=1e-5, rtol=1e-5)
    gap = gradient(model, (found.logprobs * 0.3 + found.entropy.square()).sum()) - expected
    assert gap.norm() < 1e-5 * expected.norm()


def test_log_softmax_on_a_support_equals_the_formula_and_is_flat_outside_it() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 9, dtype=torch.float64, generator=generator, requires_grad=True)
    kept = torch.tensor([[3, 0, -1], [8, 7, 6], [-1, -1, -1], [2, -1, -1]], dtype=torch.int32)
    targets = torch.tensor([0, 1, 5, 2])
    supports = [{0, 3}, {1, 6, 7, 8}, set(range(9)), {2}]
    found = log_softmax(logits.clone(), (kept, targets)).gather(1, targets[:, None])[:, 0]
    (slope,) = torch.autograd.grad(found.sum(), logits)
    found = found.detach()
    for row, (target, support) in enumerate(zip(targets.tolist(), supports, strict=True)):
        z = [math.exp(v) for v in logits[row].tolist()]
        total = sum(z[j] for j in support)
        assert float(found[row]) == pytest.approx(math.log(z[target] / total), abs=1e-9)
        for j in range(9):
            expected = (j == target) - z[j] / total if j in support else 0.0
            assert float(slope[row, j]) == pytest.approx(expected, abs=1e-9)
            assert j in support or slope[row, j] == 0


def test_garbage_outside_the_kept_set_reaches_neither_scores_nor_gradient() -> None:
    logits = torch.tensor([[1.0, math.nan, 2.0, math.inf, -math.inf]], requires_grad=True)
    log_p = log_softmax(logits.clone(), (torch.tensor([[0, 2]]), torch.tensor([2])))
    entropy = -(log_p.exp() * log_p).sum()
    (slope,) = torch.autograd.grad(log_p[0, 2] + entropy, logits)
    assert log_p[0, 2].item() == pytest.approx(2 - math.log(math.exp(1) + math.exp(2)), abs=1e-6)
    assert slope.isfinite().all()
    assert slope[0, [1, 3, 4]].tolist() == [0, 0, 0]


def test_a_set_of_the_token_alone_is_certain_and_without_gradient() -> None:
    model, batch = tiny_model(), example_batch()
    found = scores(replace(batch, kept_ids=batch.tokens[:, None]), model=model)
    assert found.entropy is not None
    assert not found.logprobs.any()
    assert not found.entropy.any()
    assert not gradient(model, found.logprobs.sum() + found.entropy.sum()).any()


def test_no_kept_set_is_the_whole_vocabulary() -> None:
    batch = kept_batch()
    nothing = replace(batch, kept_ids=torch.full((batch.num_tokens, 3), -1))
    assert torch.equal(scores(nothing).logprobs, scores(replace(batch, kept_ids=None)).logprobs)


def test_gradient_on_kept_sets_depends_on_neither_ranks_nor_budget(
    place: RankPlace, two_ranks: Ranks
) -> None:
    what, batch = replace(plan(), entropy="gradient"), kept_batch()
    one = gradients(place, what, batch, 10_000)
    assert relative_gap(gradients(replace(place, port=place.port + 1), what, batch, 31), one) < 1e-5
    for two in two_ranks.run(gradients, what, batch, 60):
        assert relative_gap(two, one) < 1e-5


def test_reference_is_on_the_support_of_the_policy(place: RankPlace) -> None:
    what = plan(ModelConfig(config=tiny_config(), dtype="float32"), needs_reference=True)
    learner, batch = FsdpLearner(what, place), kept_batch()
    torch.testing.assert_close(learner.logprobs([batch], reference=True), learner.logprobs([batch]))
    whole = learner.logprobs([replace(batch, kept_ids=None)], reference=True)[0]
    assert not torch.allclose(learner.logprobs([batch])[0], whole, atol=0.1)
