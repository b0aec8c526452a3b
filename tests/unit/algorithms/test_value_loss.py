import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.algorithms.value_loss import ValueLoss, with_explained_variance
from rlhf.batch import Batch
from rlhf.data.packing import split_microbatches
from rlhf.telemetry.metrics import declared
from tests.unit.algorithms import loss_reference
from tests.unit.algorithms.ragged import garbage, ragged, with_padding

seeds = st.integers(0, 10_000)
LOSSES = [ValueLoss(), ValueLoss(clip=0.1), ValueLoss(clip=None)]


def case(seed: int) -> tuple[Batch, torch.Tensor]:
    batch = ragged(seed)
    g = torch.Generator().manual_seed(seed)
    returns, old, noise = torch.randn(3, batch.num_tokens, generator=g, dtype=torch.float64).unbind()
    return replace(batch, returns=returns, values=old), old + 0.5 * noise


def run(loss: ValueLoss, values: torch.Tensor, batch: Batch):
    values = values.detach().requires_grad_()
    output = loss(values, None, batch)
    (gradient,) = torch.autograd.grad(output.loss, values, materialize_grads=True)
    return output.loss.detach(), gradient, output.sums


@pytest.mark.parametrize("loss", LOSSES)
@settings(max_examples=40)
@given(seed=seeds)
def test_value_loss_and_gradient_agree_with_the_slow_reference(loss, seed):
    batch, values = case(seed)
    value, gradient, _ = run(loss, values, batch)

    def slow(live):
        return loss_reference.value_loss(loss.clip, live, batch)

    at = values.tolist()
    assert value.item() == pytest.approx(complex(slow(at)).real, abs=1e-9, rel=1e-9)
    assert gradient.tolist() == pytest.approx(loss_reference.gradient(slow, at), abs=1e-9, rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
@given(seed=seeds)
def test_garbage_under_the_mask_and_empty_batches_change_nothing(loss, seed):
    batch, values = case(seed)
    bad = garbage(values)
    dirty = replace(
        batch,
        returns=torch.where(batch.loss_mask, batch.returns, bad),
        values=torch.where(batch.loss_mask, batch.values, bad),
    )
    clean, found = run(loss, values, batch), run(loss, torch.where(batch.loss_mask, values, bad), dirty)
    assert torch.equal(clean[0], found[0])
    assert torch.equal(clean[1], found[1])
    value, gradient, sums = run(loss, bad, replace(dirty, loss_mask=torch.zeros_like(batch.loss_mask)))
    assert value == 0
    assert gradient.count_nonzero() == 0
    assert all(torch.isfinite(n) and d == 0 for n, d in sums.values())


@given(seed=seeds)
def test_untrained_tokens_strewn_into_the_rows_change_nothing(seed):
    batch, values = case(seed)
    padded = with_padding(replace(batch, advantages=values), seed)
    clean, found = run(LOSSES[0], values, batch), run(LOSSES[0], padded.advantages, padded)
    assert torch.equal(clean[0], found[0])
    assert torch.equal(clean[1][batch.loss_mask], found[1][padded.loss_mask])
    assert found[1][~padded.loss_mask].count_nonzero() == 0
    assert clean[2] == found[2]


@given(seed=seeds, ranks=st.integers(1, 3), budget=st.integers(7, 40))
def test_any_split_and_order_of_rows_sums_to_the_whole(seed, ranks, budget):
    batch, values = case(seed)
    whole, gradient, sums = run(LOSSES[0], values, batch)
    carrier = replace(batch, tokens=torch.arange(batch.num_tokens))
    parts = [m for share in split_microbatches(carrier, ranks=ranks, budget_tokens=budget) for m in share]
    found = [run(LOSSES[0], values[part.tokens], part) for part in parts]
    assert sum(f[0].item() for f in found) == pytest.approx(whole.item(), abs=1e-12)
    for part, (_, of_part, _) in zip(parts, found, strict=True):
        torch.testing.assert_close(of_part, gradient[part.tokens], rtol=1e-12, atol=0)
    for name, (top, bottom) in sums.items():
        assert sum(f[2][name][0].item() for f in found) == pytest.approx(top.item(), abs=1e-9)
        assert sum(f[2][name][1].item() for f in found) == pytest.approx(bottom.item(), abs=1e-9)


def test_the_gradient_is_gone_only_where_the_clipped_branch_is_the_larger():
    batch, _ = case(5)
    batch = batch.select_rows(torch.nonzero(batch.row_sampled() == batch.row_lengths()).squeeze(1))
    n = batch.num_tokens
    batch = replace(
        batch,
        loss_weights=torch.ones(n).double(),
        values=torch.zeros(n).double(),
        returns=torch.full((n,), 3.0).double(),
    )
    # Towards the target beyond the clip: gone. Away from it, and within the clip: kept.
    for value, slope in ((1.0, 0.0), (-1.0, -4.0), (0.3, -2.7)):
        _, gradient, sums = run(ValueLoss(clip=0.5), torch.full((n,), value).double(), batch)
        assert gradient.tolist() == pytest.approx([slope] * n)
        assert sums["critic/clip_share"] == (n if slope == 0 else 0, n)


def test_explained_variance_is_formed_from_the_reduced_sums():
    batch, values = case(5)
    sums = run(LOSSES[0], values, batch)[2]
    means = with_explained_variance({name: (n / d).item() for name, (n, d) in sums.items()})
    returns, missed = (x[batch.loss_mask] for x in (batch.returns, batch.returns - values))
    expected = 1 - missed.var(correction=0) / returns.var(correction=0)
    assert means["critic/explained_variance"] == pytest.approx(expected.item())
    assert means["critic/error_mean"] == pytest.approx(missed.mean().item())
    assert means["critic/return_mean"] == pytest.approx(returns.mean().item())
    assert means["critic/value_mean"] == pytest.approx(values[batch.loss_mask].mean().item())
    assert means["critic/loss"] == pytest.approx((sums["critic/loss"][0] / batch.loss_weights.sum()).item())
    assert not [name for name in means if name.endswith("square_mean")]
    for name in means:
        declared(name)
    level = with_explained_variance(
        {"critic/return_mean": 2.0, "critic/return_square_mean": 4.0, "critic/error_mean": 0.0,
         "critic/error_square_mean": 1.0}
    )  # fmt: skip
    assert level == {"critic/return_mean": 2.0, "critic/error_mean": 0.0}
    assert with_explained_variance({"update/loss": 1.0}) == {"update/loss": 1.0}


def test_the_default_clip_is_that_of_its_sources():
    assert ValueLoss() == ValueLoss(clip=0.5)


def test_a_missing_ingredient_is_named_and_the_loss_pickles():
    batch, values = case(5)
    with pytest.raises(ValueError, match="no returns"):
        ValueLoss()(values, None, replace(batch, returns=None))
    with pytest.raises(ValueError, match="no old values"):
        ValueLoss()(values, None, replace(batch, values=None))
    assert ValueLoss(clip=None)(values, None, replace(batch, values=None)).loss > 0
    assert pickle.loads(pickle.dumps(LOSSES[1])) == LOSSES[1]
