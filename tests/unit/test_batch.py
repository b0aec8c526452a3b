from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf.batch import _PER_ROW, Batch
from tests.unit.algorithms.ragged import ragged, with_token_fields


def rows_of(batch: Batch, row: int) -> dict[str, list]:
    """Everything a batch says about one row, by a loop."""
    places = [t for t in range(batch.num_tokens) if batch.segment_ids[t] == row]
    said = {}
    for item in fields(batch):
        value = getattr(batch, item.name)
        if isinstance(value, Tensor) and item.name != "segment_ids":
            per_row = item.name in _PER_ROW
            said[item.name] = [str(value[i].tolist()) for i in ([row] if per_row else places)]
    return said


@given(seed=st.integers(0, 10_000), picks=st.lists(st.integers(0, 8), max_size=12))
def test_select_rows_carries_every_field_of_every_picked_row(seed, picks):
    batch = with_token_fields(ragged(seed), seed)
    chosen = batch.select_rows(torch.tensor(picks, dtype=torch.int64))
    assert chosen.num_rows == len(picks)
    assert [rows_of(chosen, i) for i in range(len(picks))] == [rows_of(batch, row) for row in picks]


@given(seed=st.integers(0, 10_000))
def test_token_index_says_where_the_selected_tokens_came_from(seed):
    batch = ragged(seed)
    rows = torch.randperm(batch.num_rows, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(batch.tokens[batch.token_index(rows)], batch.select_rows(rows).tokens)


def test_row_lengths_and_row_sampled_count_empty_rows():
    batch = ragged(3)
    ids, mask = batch.segment_ids.tolist(), batch.loss_mask.tolist()
    assert batch.row_lengths().tolist() == [ids.count(row) for row in range(batch.num_rows)]
    sampled = [sum(m for i, m in zip(ids, mask, strict=True) if i == row) for row in range(batch.num_rows)]
    assert batch.row_sampled().tolist() == sampled
    assert 0 in sampled


def test_to_moves_every_tensor():
    moved = with_token_fields(ragged(3), 3).to("meta")
    tensors = [v for f in fields(moved) if isinstance(v := getattr(moved, f.name), Tensor)]
    assert all(t.device.type == "meta" for t in tensors)
    assert len(tensors) == 22


def test_shapes_and_dtypes_are_checked_under_pytest():
    batch = ragged(3)
    with pytest.raises(Exception, match="loss_mask"):
        replace(batch, loss_mask=batch.loss_mask[:-1])
    with pytest.raises(Exception, match="rewards"):
        replace(batch, rewards=batch.rewards.long())


def with_records(batch: Batch, seed: int, *, experts: int = 8) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return replace(
        batch,
        routing=torch.randint(-1, experts, (batch.num_tokens, 2, 3), generator=g, dtype=torch.int16),
        kept_ids=torch.randint(-1, 99, (batch.num_tokens, 4), generator=g, dtype=torch.int32),
    )


@given(seed=st.integers(0, 10_000), picks=st.lists(st.integers(0, 8), max_size=12))
def test_select_rows_carries_routing_and_kept_sets(seed, picks):
    batch = with_records(ragged(seed), seed)
    chosen = batch.select_rows(torch.tensor(picks, dtype=torch.int64))
    assert [rows_of(chosen, i) for i in range(len(picks))] == [rows_of(batch, row) for row in picks]


def slow_origins(batch: Batch) -> list[int]:
    """Token by token: the same place in the first row of the group, while all before it agree."""
    tokens = batch.tokens[:, None]
    if batch.routing is not None:
        tokens = torch.cat([tokens, batch.routing.flatten(1)], dim=1)
    rows = tokens.split(batch.row_lengths().tolist())
    starts = [sum(len(row) for row in rows[:i]) for i in range(len(rows))]
    found = []
    for i, row in enumerate(rows):
        leader = next(j for j in range(len(rows)) if batch.group_ids[j] == batch.group_ids[i])
        for t in range(len(row)):
            alike = t < len(rows[leader]) and rows[leader][: t + 1].equal(row[: t + 1])
            found.append(starts[leader if alike else i] + t)
    return found


@given(seed=st.integers(0, 10_000), alphabet=st.integers(1, 4))
def test_origins_are_the_common_beginnings_of_the_rows_of_a_group(seed, alphabet):
    batch = ragged(seed)
    batch = replace(batch, tokens=batch.tokens % alphabet)
    assert batch.origins().tolist() == slow_origins(batch)


@given(seed=st.integers(0, 10_000), experts=st.integers(0, 1))
def test_origins_of_replayed_experts_share_them(seed, experts):
    batch = with_records(ragged(seed), seed, experts=experts)
    batch = replace(batch, tokens=batch.tokens % 2, routing=batch.routing[:, :1, :1])
    assert batch.origins().tolist() == slow_origins(batch)
