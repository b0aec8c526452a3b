"""Several teachers of one student: whose row is whose, and how far the student is from each."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlhf.batch import Batch


async def with_teachers(
    batch: Batch, names: Sequence[str], score: Callable[[Batch, str], Awaitable[Tensor]]
) -> Batch:
    """`teacher_logprobs` [N], each row's by its own teacher alone: `score` gives [N] of rows and a name."""
    assert batch.teacher_ids is not None
    found = torch.zeros(batch.num_tokens)
    for index, name in enumerate(names):
        rows = torch.nonzero(batch.teacher_ids == index).flatten()
        if rows.numel():
            found[batch.token_index(rows)] = await score(batch.select_rows(rows), name)
    return replace(batch, teacher_logprobs=found)


def teacher_metrics(batch: Batch, names: Sequence[str]) -> dict[str, float]:
    """`update/teacher_kl`, mean over trained tokens of student minus teacher, of all and of each teacher's rows.

    Its expectation over what the student samples is the KL from student to teacher, token by token. {} without one.
    """
    if batch.teacher_logprobs is None:
        return {}
    student = batch.rollout_logprobs if batch.old_logprobs is None else batch.old_logprobs
    # The first token of a row has no log-probability.
    trained = batch.loss_mask & (batch.positions > 0)
    gap = (student - batch.teacher_logprobs).double()
    chosen = {"update/teacher_kl": trained}
    if batch.teacher_ids is not None:
        of_token = batch.teacher_ids[batch.segment_ids]
        chosen |= {f"update/teacher_kl/{name}": trained & (of_token == i) for i, name in enumerate(names)}
    return {name: float(gap[mask].mean()) for name, mask in chosen.items() if mask.any()}
