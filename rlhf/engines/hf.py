"""The reference engine: a plain transformers model with a KV cache. Serves where vLLM cannot be installed.

Rows of one prompt length are decoded together, so nothing is padded; every sample draws from a generator of
its own, so its tokens do not depend on its neighbours (up to the rounding of differently shaped products).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from rlhf.engines.experts import ChosenExperts
from rlhf.engines.kept import check_limit
from rlhf.engines.settings import EngineSettings
from rlhf.engines.simulated_fp8 import SimulatedFp8
from rlhf.errors import EngineError, SyncError
from rlhf.interfaces import GenerateRequest
from rlhf.types import Completion, FinishReason, Sampling

ReadWeights = Callable[[Mapping[str, Any]], Iterable[tuple[str, Tensor]]]
"""Update message -> (Hugging Face name, tensor) pairs."""


@dataclass(slots=True)
class _Row:
    """One sample being drawn."""

    request: int
    place: int
    prompt: tuple[int, ...]
    sampling: Sampling
    generator: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    kept: list[NDArray[np.int32]] = field(default_factory=list)
    routing: list[NDArray[np.int16]] = field(default_factory=list)
    """[tokens, layers, k] of each forward pass."""
    finish: FinishReason | None = None

    def append(self, token: int, logprob: float, version: int) -> None:
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        self.versions.append(version)
        if token in self.sampling.stop_token_ids:
            self.finish = "stop"
        elif len(self.token_ids) >= self.sampling.max_tokens:
            self.finish = "length"


class HfEngine:
    """The methods of VllmEngine over one transformers model in this process."""

    def __init__(self, settings: EngineSettings, *, read: ReadWeights) -> None:
        torch.set_num_threads(settings.config.threads)
        self._model = AutoModelForCausalLM.from_pretrained(
            settings.model,
            dtype=getattr(torch, settings.dtype),
            trust_remote_code=settings.trust_remote_code,
            attn_implementation="sdpa",
        ).to(settings.device)
        self._model.eval()
        self._experts = ChosenExperts(self._model) if settings.record_routing else None
        self._fp8 = SimulatedFp8(self._model) if settings.config.quantization == "fp8" else None
        self._kept_limit = settings.kept_limit
        self._device = torch.device(settings.device)
        self._max_rows = settings.config.max_sequences
        self._read = read
        self._gate = asyncio.Lock()
        self._holds: set[str] = set()
        self._version = 0
        self._incoming: int | None = None

    async def generate_many(
        self, requests: Sequence[GenerateRequest]
    ) -> AsyncIterator[tuple[int, list[Completion]]]:
        """Yield (index of the request, one Completion per seed) as each request finishes."""
        for request in requests:
            check_limit(request.sampling, most=self._kept_limit)
        done: list[list[Completion | None]] = [[None] * len(r.seeds) for r in requests]
        for rows in _batches(self._rows(requests), self._max_rows):
            async for row in self._decode(rows):
                done[row.request][row.place] = _completion(row)
                group = [c for c in done[row.request] if c is not None]
                if len(group) == len(done[row.request]):
                    yield row.request, group

    def _rows(self, requests: Sequence[GenerateRequest]) -> list[_Row]:
        return [
            _Row(index, place, r.prompt_token_ids, r.sampling, torch.Generator().manual_seed(seed))
            for index, r in enumerate(requests)
            for place, seed in enumerate(r.seeds)
        ]

    async def _decode(self, rows: list[_Row]) -> AsyncIterator[_Row]:
        """Sample rows of one prompt length to their ends; weights may change between two steps."""
        async with self._gate:
            cache, logits = await asyncio.to_thread(self._prefill, rows)
        while rows:
            async with self._gate:
                _draw(rows, logits, self._version)
                kept = [i for i, row in enumerate(rows) if row.finish is None]
                finished = [row for row in rows if row.finish is not None]
                rows = [rows[i] for i in kept]
                if finished and rows:
                    cache.batch_select_indices(torch.tensor(kept, device=self._device))
                if rows:
                    logits = await asyncio.to_thread(self._step, cache, rows)
            for row in finished:
                yield row

    @torch.inference_mode()
    def _prefill(self, rows: Sequence[_Row]) -> tuple[DynamicCache, Tensor]:
        """One forward pass per distinct prompt, its cache repeated for its samples. logits [rows, V]."""
        prompts = list(dict.fromkeys(row.prompt for row in rows))
        place = {prompt: i for i, prompt in enumerate(prompts)}
        ids = torch.tensor(prompts, device=self._device)
        cache = DynamicCache(config=self._model.config)
        logits = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        if self._experts is not None:
            chosen = self._experts.of_last_pass(len(prompts))
            for row in rows:
                row.routing.append(chosen[place[row.prompt]])
        order = torch.tensor([place[row.prompt] for row in rows], device=self._device)
        cache.batch_select_indices(order)
        return cache, logits[order]

    @torch.inference_mode()
    def _step(self, cache: DynamicCache, rows: Sequence[_Row]) -> Tensor:
        ids = torch.tensor([[row.token_ids[-1]] for row in rows], device=self._device)
        logits: Tensor = self._model(ids, past_key_values=cache, use_cache=True).logits[:, -1]
        if self._experts is not None:
            for row, chosen in zip(rows, self._experts.of_last_pass(len(rows)), strict=True):
                row.routing.append(chosen)
        return logits

    async def probe(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """[sequence][T-1] log-probability (temperature 1, full vocabulary) of each token after the first."""
        async with self._gate:
            return await asyncio.to_thread(self._score, sequences)

    @torch.inference_mode()
    def _score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        scores = []
        for sequence in sequences:
            ids = torch.tensor([list(sequence)], device=self._device)
            logprobs = self._model(ids).logits[0, :-1].float().log_softmax(-1)
            scores.append(logprobs.gather(-1, ids[0, 1:, None])[:, 0].tolist())
        return scores

    async def pause(self) -> None:
        """Stop between two steps; samples in flight keep their place."""
        await self._hold("update")

    async def resume(self) -> None:
        """Go on decoding (unless the engine sleeps)."""
        self._release("update")

    async def sleep(self) -> None:
        """Pause, and free the device."""
        await self._hold("sleep")
        self._model.to("cpu")

    async def wake(self) -> None:
        """Undo `sleep`."""
        self._model.to(self._device)
        self._release("sleep")

    async def _hold(self, reason: str) -> None:
        if reason in self._holds:
            raise EngineError(f"the engine is already paused for {reason}")
        self._holds.add(reason)
        if len(self._holds) == 1:
            await self._gate.acquire()

    def _release(self, reason: str) -> None:
        self._holds.discard(reason)
        if not self._holds and self._gate.locked():
            self._gate.release()

    async def init_transfer(self, info: Mapping[str, Any]) -> None:
        """Nothing to open."""

    async def begin_update(self) -> None:
        """Refuse when running: a step must not see half of an update."""
        if "update" not in self._holds:
            raise EngineError("begin_update: the engine is running. Pause it first.")
        self._incoming = None

    async def update(self, info: Mapping[str, Any]) -> None:
        """Load every tensor of the message. Raises SyncError naming what is missing or unknown."""
        weights = {name: tensor.to(self._device) for name, tensor in self._read(info)}
        missing, unknown = self._model.load_state_dict(weights, strict=False)
        tied = set(self._model.all_tied_weights_keys) if self._model.config.tie_word_embeddings else set()
        missing = [name for name in missing if name not in tied]
        if missing or unknown:
            raise SyncError(
                f"version {info['version']}: not received: {missing[:5] or 'none'}, "
                f"received but not loaded: {list(unknown)[:5] or 'none'}"
            )
        if self._fp8 is not None:
            self._fp8.round_weights()
        self._incoming = info["version"]

    async def finish_update(self, version: int) -> None:
        """Sample as the version that came with the message."""
        if self._incoming is None:
            raise SyncError(f"finish_update({version}) without an update")
        self._version = self._incoming

    async def weight_version(self) -> int:
        """The version of the weights held."""
        return self._version

    async def reset_cache(self) -> bool:
        """Nothing is cached between calls."""
        return True

    async def close(self) -> None:
        """Nothing to end: the model goes with the process."""


def _batches(rows: Sequence[_Row], size: int) -> Iterable[list[_Row]]:
    """Rows of equal prompt length, at most `size` at a time, shortest first, else in order."""
    for _, group in groupby(sorted(rows, key=lambda row: len(row.prompt)), key=lambda row: len(row.prompt)):
        same = list(group)
        yield from (same[start : start + size] for start in range(0, len(same), size))


def _draw(rows: Sequence[_Row], logits: Tensor, version: int) -> None:
    for row, scores in zip(rows, logits.float().cpu(), strict=True):
        logprobs = processed_logprobs(scores, row.sampling)
        if row.sampling.temperature == 0:
            token = int(logprobs.argmax())
        else:
            token = int(torch.multinomial(logprobs.exp(), 1, generator=row.generator))
        if row.sampling.reports_kept:
            kept = logprobs.isfinite().nonzero()[:, 0].int().numpy()
            row.kept.append(kept if len(kept) <= row.sampling.kept_limit else kept[:0])
        row.append(token, float(logprobs[token]), version)


def processed_logprobs(logits: Tensor, sampling: Sampling) -> Tensor:
    """[V] log-probabilities of what is sampled from: temperature, top-k, top-p (temperature 0: as is)."""
    if sampling.temperature == 0:
        return logits.log_softmax(-1)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.numel():
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort()
        # The smallest set that reaches top_p: drop the tail that stays within 1 - top_p, not the best.
        tail = ordered.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        tail[-1] = False
        logits = logits.masked_fill(torch.zeros_like(tail).scatter(0, order, tail), -torch.inf)
    return logits.log_softmax(-1)


def _completion(row: _Row) -> Completion:
    assert row.finish is not None
    if not torch.tensor(row.logprobs).isfinite().all():
        raise EngineError(
            f"request {row.request}: a log-probability is not finite. The weights may hold NaN."
        )
    routing = None
    if row.routing:
        known = np.concatenate(row.routing)
        routing = np.concatenate([known, np.full_like(known[:1], -1)])
    return Completion(
        token_ids=tuple(row.token_ids),
        logprobs=tuple(row.logprobs),
        versions=tuple(row.versions),
        finish_reason=row.finish,
        routing=routing,
        kept=tuple(row.kept) if row.sampling.reports_kept else None,
    )
