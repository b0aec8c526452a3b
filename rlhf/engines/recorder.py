"""Which experts every token went to: an extension of vLLM's worker, loaded only in vLLM's processes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class RoutingRecorder:
    """Mixed into vLLM's worker by name; its public methods answer `collective_rpc`.

    Rows are kept twice: by KV slot, so that a request that finds a cached prefix finds its rows, too, and by
    request until they are taken. A preempted request that is computed again keeps what it was sampled with.

    Needs vLLM's eager mode and its first model runner (vLLM's own recorder needs the second, which has no CPU
    build). Measured on the CPU build of vLLM 0.32; on a GPU nothing but the copy to the host differs.
    """

    def start_routing_record(self) -> list[int]:
        """[layers, experts per token]. Raises ValueError saying why this model or setting cannot be recorded."""
        runner, config, parallel = self.model_runner, self.model_config, self.parallel_config  # type: ignore[attr-defined]
        if not config.enforce_eager or not hasattr(runner, "query_start_loc"):
            raise ValueError("only vLLM's eager mode and its first model runner can be recorded")
        if parallel.world_size > parallel.tensor_parallel_size or runner.speculative_config:
            raise ValueError("neither pipeline parallelism nor speculative decoding can be recorded")
        routers = _routers(runner.get_model())
        shape = config.get_total_num_hidden_layers(), routers[0][1].top_k
        group, block = _full_attention_group(runner.kv_cache_config)
        self._routing_table = runner.input_batch.block_table[group]
        # Pages are touched only where KV blocks are used.
        self._routing_slots = np.empty((runner.kv_cache_config.num_blocks * block, *shape), np.int16)
        self._routing_rows: dict[str, _Rows] = {}
        self._routing_step = torch.full(
            (self.scheduler_config.max_num_batched_tokens, *shape),  # type: ignore[attr-defined]
            -1,
            dtype=torch.int16,
            device=runner.device,
        )
        for layer, router in routers:
            router.set_capture_fn(_capture(self._routing_step[:, layer]))
        runner.get_model().register_forward_hook(self._record_step)
        return list(shape)

    def _record_step(self, *_: object) -> None:
        batch = self.model_runner.input_batch  # type: ignore[attr-defined]
        if batch.num_reqs == 0:
            return
        starts = self.model_runner.query_start_loc.np[: batch.num_reqs + 1]  # type: ignore[attr-defined]
        firsts, counts = batch.num_computed_tokens_cpu[: batch.num_reqs], np.diff(starts)
        step = self._routing_step[: starts[-1]].cpu().numpy()
        # All slots first: a request may find the prefix that another one computes in this very step.
        places = np.arange(starts[-1]) - np.repeat(starts[:-1] - firsts, counts)
        self._routing_slots[self._slots(np.repeat(np.arange(batch.num_reqs), counts), places)] = step
        for i, request in enumerate(batch.req_ids):
            rows = self._routing_rows.get(request)
            if rows is None:
                cached = self._routing_slots[self._slots(i, np.arange(firsts[i]))]
                rows = self._routing_rows[request] = _Rows(cached)
            rows.extend(step[starts[i] : starts[i + 1]], first=int(firsts[i]))

    def _slots(self, rows: NDArray[np.int64] | int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """KV slots of the tokens at `places` of the batch's `rows`."""
        size = self._routing_table.block_size
        table: NDArray[np.int32] = self._routing_table.block_table.np
        slots: NDArray[np.int64] = table[rows, places // size].astype(np.int64) * size + places % size
        return slots

    def take_routing(self, requests: Sequence[tuple[str, int]]) -> list[bytes]:
        """int16 [tokens, layers, k] of each (request, tokens); forgets them."""
        return [self._routing_rows.pop(request).first(tokens).tobytes() for request, tokens in requests]

    def forget_routing(self, requests: Sequence[str]) -> int:
        """Forget what was not taken of `requests`; returns how many requests are still held."""
        for request in requests:
            self._routing_rows.pop(request, None)
        return len(self._routing_rows)


class _Rows:
    """One request's rows, in the order of its tokens."""

    def __init__(self, cached: NDArray[np.int16]) -> None:
        self._pieces = [cached]
        self._known = len(cached)

    def extend(self, new: NDArray[np.int16], *, first: int) -> None:
        """Add the rows of the tokens from `first` on; those known already stay."""
        assert first <= self._known
        fresh = new[self._known - first :]
        if len(fresh):
            # The buffer that it lies in is written again by the next step.
            self._pieces.append(fresh.copy())
            self._known += len(fresh)

    def first(self, tokens: int) -> NDArray[np.int16]:
        """The rows of the first `tokens` tokens."""
        if self._known < tokens:
            raise ValueError(f"experts were recorded for {self._known} tokens, but {tokens} were inputs")
        return np.concatenate(self._pieces)[:tokens]


def _capture(column: Tensor) -> Callable[[Tensor], None]:
    def capture(ids: Tensor) -> None:
        column[: len(ids)] = ids

    return capture


def _routers(model: torch.nn.Module) -> list[tuple[int, Any]]:
    """(decoder layer, router) of every layer with experts."""
    from vllm.model_executor.layers.fused_moe.layer import MoERunner
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

    runners = [module for module in model.modules() if isinstance(module, MoERunner)]
    if not runners:
        raise ValueError(f"{type(model).__name__} has no experts")
    for runner in runners:
        if not isinstance(runner.router, BaseRouter) or runner._quant_method.is_monolithic:
            raise ValueError(
                f"{type(runner.router).__name__} chooses experts inside a kernel that does not report"
            )
    return [(runner.layer_id, runner.router) for runner in runners]


def _full_attention_group(config: Any) -> tuple[int, int]:
    """(place, block size) of a KV cache group whose blocks hold every token of a request."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    for place, group in enumerate(config.kv_cache_groups):
        if isinstance(group.kv_cache_spec, FullAttentionSpec):
            return place, int(group.kv_cache_spec.block_size)
    raise ValueError(
        "no layer of the model attends to all tokens, so that the KV cache does not hold them all"
    )
