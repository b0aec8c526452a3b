"""Causal attention over packed rows, without padding tokens outside it and without rows seeing each other.

Rows of a group that begin alike (the samples of a prompt) hold their beginning once: N tokens of rows are U tokens of
the model. Only attention lays the beginning before each of them again.

Registered with transformers under `PACKED`: transformers then builds no mask and hands `packing` through.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rlhf.errors import ModelError

PACKED = "rlhf_packed"
MAX_WASTE = 0.15
"""A bucket of rows is closed when more than this share of its slots would be padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Where the rows of one micro-batch lie: computed once, used by every layer.

    Rows are sorted by length into buckets of equal padded length; S slots in all.
    """

    boundaries: Tensor
    """int32 [rows + 1]: first token of each row, then N."""
    own_boundaries: Tensor
    """int32 [rows + 1]: the same, counting only the tokens that a row does not share, then U."""
    longest: int
    place: Tensor
    """[N]: where among the U each token of a row is held."""
    is_shared: bool
    """True when U < N."""
    buckets: tuple[tuple[int, int], ...]
    """(rows, padded length) of each bucket, laid end to end in the slots."""
    token_of_slot: Tensor
    """[S]: which of the U is in each slot; a padding slot repeats its row's last token."""
    slot_of_token: Tensor
    """[U]: slot of each token in the row that holds it."""
    repeats: tuple[Tensor, Tensor]
    """(slots, tokens): where shared tokens stand before other rows."""
    is_whole: bool
    """True when every slot holds a token of its own: no padding at all, nothing shared."""


def build_packing(lengths: Sequence[int], device: torch.device, origins: Tensor | None = None) -> Packing:
    """Lay rows of the given lengths (each at least 1) into buckets; `origins` [N] as Batch.origins gives them."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    buckets = _buckets([lengths[row] for row in order])
    sizes = torch.tensor(lengths)
    starts = torch.cumsum(sizes, 0) - sizes
    sorted_sizes, sorted_starts = sizes[order], starts[order]
    padded = torch.cat([torch.full((rows,), length) for rows, length in buckets])
    slot_starts = torch.cumsum(padded, 0) - padded
    place = torch.arange(int(padded.sum())) - torch.repeat_interleave(slot_starts, padded)
    row_sizes = torch.repeat_interleave(sorted_sizes, padded)
    token_of_slot = torch.repeat_interleave(sorted_starts, padded) + torch.minimum(place, row_sizes - 1)
    is_token = place < row_sizes
    slots = torch.empty(int(sizes.sum()), dtype=torch.long)
    slots[token_of_slot[is_token]] = torch.nonzero(is_token).flatten()
    everything = torch.arange(slots.numel())
    origins = everything if origins is None else origins.cpu()
    is_own = origins == everything
    place = (torch.cumsum(is_own, 0) - 1)[origins]
    num_own = torch.zeros_like(sizes).index_add_(
        0, torch.repeat_interleave(torch.arange(len(sizes)), sizes), is_own.long()
    )
    return Packing(
        boundaries=_boundaries(sizes).to(device),
        own_boundaries=_boundaries(num_own).to(device),
        longest=max(lengths),
        place=place.to(device),
        is_shared=not bool(is_own.all()),
        buckets=buckets,
        token_of_slot=place[token_of_slot].to(device),
        slot_of_token=slots[is_own].to(device),
        repeats=(slots[~is_own].to(device), place[~is_own].to(device)),
        is_whole=bool(is_token.all() and is_own.all()),
    )


def _boundaries(sizes: Tensor) -> Tensor:
    return torch.cat([sizes.new_zeros(1), torch.cumsum(sizes, 0)]).to(torch.int32)


def _buckets(descending: Sequence[int]) -> tuple[tuple[int, int], ...]:
    buckets: list[tuple[int, int]] = []
    first, tokens = 0, 0
    for row, length in enumerate(descending):
        slots = (row - first + 1) * descending[first]
        if row > first and tokens + length < (1 - MAX_WASTE) * slots:
            buckets.append((row - first, descending[first]))
            first, tokens = row, 0
        tokens += length
    return (*buckets, (len(descending) - first, descending[first]))


class _ToSlots(torch.autograd.Function):
    """[U, ...] -> [S, ...]. Backward adds up a token's slots; causality leaves padding without a gradient."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return tokens.index_select(0, packing.token_of_slot)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        packing: Packing = ctx.packing
        tokens = gradient.index_select(0, packing.slot_of_token)
        if packing.is_shared:
            slots, places = packing.repeats
            tokens.index_add_(0, places, gradient.index_select(0, slots))
        return tokens, None


class _FromSlots(torch.autograd.Function):
    """[S, ...] -> [U, ...]. Backward writes zeros into the slots that were not read."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return slots.index_select(0, packing.slot_of_token)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        packing: Packing = ctx.packing
        if packing.is_whole:
            return gradient.index_select(0, packing.token_of_slot), None
        slots = gradient.new_zeros(packing.token_of_slot.numel(), *gradient.shape[1:])
        return slots.index_copy_(0, packing.slot_of_token, gradient), None


def packed_attention(  # noqa: PLR0913  # the signature is that of transformers
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention output [1, U, heads, head_dim] for query [1, heads, U, head_dim].

    Key and value may have fewer heads. Raises ModelError for what is not computed here:
    sinks, score caps, a sliding window that would bite.
    """
    _refuse_extras(module, packing, kwargs)
    assert packing is not None
    assert attention_mask is None
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))  # [U, heads, head_dim]
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and _varlen_kernel() is not None:
        return _varlen(q, k, v, packing, scaling)[None], None
    return _bucketed(q, k, v, packing, scaling)[None], None


def _refuse_extras(module: nn.Module, packing: Packing | None, kwargs: dict[str, Any]) -> None:
    kind = type(module).__name__
    if packing is None:
        raise ModelError(
            f"{kind} does not hand keyword arguments to its attention, so rows cannot be packed. "
            "Use an architecture that transformers marks as supporting attention backends (Qwen, Llama, ...)."
        )
    window = kwargs.get("sliding_window")
    if window is not None and packing.longest > window:
        raise ModelError(
            f"a row of {packing.longest} tokens meets a sliding window of {window}, which packed attention "
            "does not compute. Keep sampling.max_prompt_tokens + sampling.max_tokens within the window."
        )
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ModelError(f"{kind} asks for {name!r} in its attention, which is not computed here.")


def _bucketed(q: Tensor, k: Tensor, v: Tensor, packing: Packing, scaling: float) -> Tensor:
    sizes = [rows * length for rows, length in packing.buckets]
    slots = [_ToSlots.apply(t, packing).split(sizes) for t in (q, k, v)]  # type: ignore[no-untyped-call]
    outputs = []
    for (rows, length), *parts in zip(packing.buckets, *slots, strict=True):
        query, key, value = (part.view(rows, length, *part.shape[1:]).transpose(1, 2) for part in parts)
        # Right padding inside a bucket needs no mask: a causal query never sees the slots after it.
        out = scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(out.transpose(1, 2).reshape(rows * length, q.shape[1], v.shape[2]))
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return _FromSlots.apply(joined, packing)  # type: ignore[no-untyped-call, no-any-return]


@cache
def _varlen_kernel() -> Any:
    """Torch's attention over rows laid end to end; None where this torch has none with a window and grouped heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    takes = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"scale", "window_size", "enable_gqa"} <= takes.keys() else None


def _varlen(q: Tensor, k: Tensor, v: Tensor, packing: Packing, scaling: float) -> Tensor:
    if packing.is_shared:
        k, v = k.index_select(0, packing.place), v.index_select(0, packing.place)
    # A row's queries are its last tokens: the causal window is aligned to the end of its keys.
    out = _varlen_kernel()(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        packing.own_boundaries,
        packing.boundaries,
        packing.longest,
        packing.longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, Tensor)
    return out


AttentionInterface.register(PACKED, packed_attention)
