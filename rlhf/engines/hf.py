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
from transformers import AutoConfig, DynamicCache, PreTrainedModel
from transformers.core_model_loading import PrefixChange, WeightRenaming, revert_weight_conversion

from rlhf.data.vision_model import auto_model, find_vision
from rlhf.engines.drawing import Drawing, mixed, open_drawing
from rlhf.engines.experts import ChosenExperts
from rlhf.engines.hf_vision import Shown, ShownImages, next_positions
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
    prompt: Shown
    sampling: Sampling
    generator: torch.Generator
    position: int | None = None
    """Of the next token, where the model sees images; elsewhere the cache knows it."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    kept: list[NDArray[np.int32]] = field(default_factory=list)
    routing: list[NDArray[np.int16]] = field(default_factory=list)
    """[tokens, layers, k] of each forward pass."""
    drawing: Drawing | None = None
    finish: FinishReason | None = None

    @property
    def is_guided(self) -> bool:
        return self.drawing is not None and self.drawing.rule.is_guided

    def append(self, token: int, logprob: float, version: int) -> None:
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        self.versions.append(version)
        if self.drawing is not None:
            self.drawing.add(token)
        if token in self.sampling.stop_token_ids:
            self.finish = "stop"
        elif len(self.token_ids) >= self.sampling.max_tokens:
            self.finish = "length"


class HfEngine:
    """The methods of VllmEngine over one transformers model in this process."""

    def __init__(self, settings: EngineSettings, *, read: ReadWeights) -> None:
        torch.set_num_threads(settings.config.threads)
        config = AutoConfig.from_pretrained(settings.model, trust_remote_code=settings.trust_remote_code)
        model = (
            auto_model(config.to_dict())
            .from_pretrained(
                settings.model,
                dtype=getattr(torch, settings.dtype),
                trust_remote_code=settings.trust_remote_code,
                attn_implementation="sdpa",
            )
            .to(settings.device)
        )
        self._start(model, settings, read, tied=model.config.tie_word_embeddings)
        self._experts = ChosenExperts(self._model) if settings.record_routing else None
        self._fp8 = SimulatedFp8(self._model) if settings.config.quantization == "fp8" else None
        self._kept_limit = settings.kept_limit
        vision = find_vision(settings.model)
        self._images = None if vision is None else ShownImages(vision, self._device)
        self._names = _own_names(self._model)
        self._max_rows = settings.config.max_sequences

    def _start(self, model: Any, settings: EngineSettings, read: ReadWeights, *, tied: bool = False) -> None:
        self._tied = set(model.all_tied_weights_keys) if tied else set()
        self._model = model.eval()
        self._device = torch.device(settings.device)
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
            _Row(
                index,
                place,
                (r.prompt_token_ids, r.images),
                r.sampling,
                torch.Generator().manual_seed(seed),
                drawing=open_drawing(r),
            )
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
                    null_rows = [len(kept) + len(finished) + i for i in kept if rows[0].is_guided]
                    cache.batch_select_indices(torch.tensor([*kept, *null_rows], device=self._device))
                if rows:
                    logits = await asyncio.to_thread(self._step, cache, rows)
            for row in finished:
                yield row

    @torch.inference_mode()
    def _prefill(self, rows: Sequence[_Row]) -> tuple[DynamicCache, Tensor]:
        """One forward pass per distinct prompt, its cache repeated for its samples. logits [rows, V].

        Guided rows come twice, the second time as their null rows.
        """
        asked = [row.prompt for row in rows]
        if rows[0].is_guided:
            asked += [(row.drawing.rule.null_row(row.prompt[0]), ()) for row in rows if row.drawing]
        prompts = list(dict.fromkeys(asked))
        place = {prompt: i for i, prompt in enumerate(prompts)}
        ids = torch.tensor([tokens for tokens, _ in prompts], device=self._device)
        cache = DynamicCache(config=self._model.config)
        shown = self._shown(prompts)
        logits = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **shown).logits[
            :, -1
        ]
        if shown:
            positions = next_positions(shown)
            for row in rows:
                row.position = positions[place[row.prompt]]
        if self._experts is not None:
            chosen = self._experts.of_last_pass(len(prompts))
            for row in rows:
                row.routing.append(chosen[place[row.prompt]])
        order = torch.tensor([place[prompt] for prompt in asked], device=self._device)
        cache.batch_select_indices(order)
        return cache, self._guided(rows, logits[order])

    def _guided(self, rows: Sequence[_Row], logits: Tensor) -> Tensor:
        """[rows, V] of [rows, V], or of twice as many where the rows are guided."""
        if not rows[0].is_guided:
            return logits
        return mixed(logits, [row.drawing for row in rows if row.drawing])

    def _shown(self, prompts: Sequence[Shown]) -> dict[str, Any]:
        if self._images is not None:
            return self._images.inputs(prompts)
        if any(images for _, images in prompts):
            raise EngineError("a prompt shows images, and the model of the engine sees none")
        return {}

    @torch.inference_mode()
    def _step(self, cache: DynamicCache, rows: Sequence[_Row]) -> Tensor:
        last = [row.token_ids[-1] for row in rows]
        if rows[0].is_guided:
            last += [row.drawing.rule.null_row(row.token_ids[-1:])[0] for row in rows if row.drawing]
        ids = torch.tensor(last, device=self._device)[:, None]
        at: dict[str, Tensor] = {}
        if self._images is not None:
            next_ = torch.tensor([(row.position or 0) + len(row.token_ids) - 1 for row in rows])
            at = {"position_ids": next_.to(self._device)[None, :, None].expand(3, -1, 1)}
        logits: Tensor = self._model(ids, past_key_values=cache, use_cache=True, **at).logits[:, -1]
        if self._experts is not None:
            for row, chosen in zip(rows, self._experts.of_last_pass(len(rows)), strict=True):
                row.routing.append(chosen)
        return self._guided(rows, logits)

    async def probe(
        self, sequences: Sequence[Sequence[int]], images: Sequence[Sequence[str]] = ()
    ) -> list[list[float]]:
        """[sequence][T-1] log-probability (temperature 1, full vocabulary) of each token after the first."""
        async with self._gate:
            return await asyncio.to_thread(self._score, sequences, images or [()] * len(sequences))

    @torch.inference_mode()
    def _score(
        self, sequences: Sequence[Sequence[int]], images: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        scores = []
        for sequence, seen in zip(sequences, images, strict=True):
            ids = torch.tensor([list(sequence)], device=self._device)
            shown = self._shown([(tuple(sequence), tuple(seen))])
            logprobs = self._model(ids, **shown).logits[0, :-1].float().log_softmax(-1)
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
        weights = {self._names.get(name, name): t.to(self._device) for name, t in self._read(info)}
        missing, unknown = self._model.load_state_dict(weights, strict=False)
        missing = [name for name in missing if name not in self._tied]
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
    """Rows of equal prompt length, at most `size` at a time, shortest first, else in order; none guided with others."""
    for _, group in groupby(sorted(rows, key=_alike), key=_alike):
        same = list(group)
        yield from (same[start : start + size] for start in range(0, len(same), size))


def _alike(row: _Row) -> tuple[int, bool]:
    return len(row.prompt[0]), row.is_guided


def _own_names(model: PreTrainedModel) -> dict[str, str]:
    """Checkpoint name -> name in the model, where transformers renames a tensor and leaves it as it is."""
    kept = [c for c in model._weight_conversions or () if not isinstance(c, PrefixChange)]
    if not any(isinstance(conversion, WeightRenaming) for conversion in kept):
        return {}
    model._weight_conversions = kept
    found = {}
    for name, tensor in model.state_dict().items():
        published = list(revert_weight_conversion(model, {name: tensor.to("meta")}))
        if len(published) == 1:
            found[published[0]] = name
    return found


def _draw(rows: Sequence[_Row], logits: Tensor, version: int) -> None:
    for row, scores in zip(rows, logits.float().cpu(), strict=True):
        if row.drawing is not None:
            scores = row.drawing.of_kind(scores)
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
    """[V] log-probabilities of what is sampled from: bans, temperature, top-k, top-p (temperature 0: bans alone)."""
    if sampling.banned:
        logits = logits.index_fill(0, torch.tensor(sampling.banned), -torch.inf)
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
        drawn=None if row.drawing is None else row.drawing.drawn,
    )
