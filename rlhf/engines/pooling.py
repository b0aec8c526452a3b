"""Engines of embeddings: a dual encoder in vLLM's pooling runner, or in transformers as the reference.

Texts and image ids in, vectors of length 1 out, with the weight version that made them; weights arrive as in an engine
that samples. An engine loads the images by itself.
"""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf.config.schema import ModelConfig
from rlhf.data.dual_encoder import (
    Inputs,
    RetrievalPolicy,
    load_dual_encoder,
    preparation_of,
    read_retrieval_config,
    texts_of,
)
from rlhf.data.pixels import Pixels, load_pictures
from rlhf.engines.hf import HfEngine, ReadWeights
from rlhf.engines.settings import EngineSettings
from rlhf.engines.vllm import VllmEngine
from rlhf.errors import EngineError
from rlhf.retrieval import Embedded, Gallery

_HF_BATCH = 256
_PIXELS_MB = 256
_KV_CACHE_MB = 64


class VllmPool(VllmEngine):
    """A vLLM engine whose model gives embeddings."""

    def __init__(self, llm: Any, settings: EngineSettings) -> None:
        super().__init__(llm, settings)
        self._texts = texts_of(settings.model, read_retrieval_config(ModelConfig(path=settings.model)))
        self._names = itertools.count()
        self._gallery: Gallery | None = None

    @classmethod
    async def open(cls, settings: EngineSettings, gallery: Gallery) -> "VllmPool":
        """Load the model and start the engine core."""
        arguments = {
            "runner": "pooling",
            "skip_tokenizer_init": False,
            "enable_prefix_caching": False,
            "limit_mm_per_prompt": {"image": 1},
            "mm_processor_cache_gb": 0,
            **settings.config.args,
        }
        config = settings.config.model_copy(
            update={"args": arguments, "kv_cache_mb": settings.config.kv_cache_mb or _KV_CACHE_MB}
        )
        pool = await cls.start(replace(settings, config=config))
        assert isinstance(pool, cls)
        pool._gallery = gallery
        return pool

    async def embed(self, texts: Sequence[str], images: Sequence[str]) -> Embedded:
        """The vectors of texts and image ids. Waits while weights are being updated."""
        return await self.embed_ids(self._texts.ids(texts), images)

    async def embed_ids(self, texts: Sequence[Sequence[int]], images: Sequence[str]) -> Embedded:
        """As `embed`, of texts given as token ids."""
        assert self._gallery is not None, "open makes the pool"
        pictures = await asyncio.to_thread(load_pictures, self._gallery, images) if images else []
        prompts: list[dict[str, Any]] = [{"prompt_token_ids": list(ids)} for ids in texts]
        prompts += [{"prompt": "", "multi_modal_data": {"image": p}} for p in pictures]
        # Held all the while: an update waits for it, so that one call never mixes two versions.
        async with self._gate:
            vectors = await asyncio.gather(*(self._one(prompt) for prompt in prompts))
            version = self._version
        found = np.stack(vectors) if vectors else np.zeros((0, 1), np.float32)
        return Embedded(texts=found[: len(texts)], images=found[len(texts) :], version=version)

    async def probe(
        self, sequences: Sequence[Sequence[int]], images: Sequence[Sequence[str]] = ()
    ) -> list[list[float]]:
        """Embeddings of texts, given as token ids, then of images, given one by one."""
        found = await self.embed_ids(sequences, [name for (name,) in images])
        return [*found.texts.tolist(), *found.images.tolist()]

    async def _one(self, prompt: dict[str, Any]) -> NDArray[np.float32]:
        from vllm import PoolingParams
        from vllm.v1.engine.exceptions import EngineDeadError

        outputs = self._llm.encode(prompt, PoolingParams(task="embed"), str(next(self._names)))
        try:
            (output,) = [output async for output in outputs]
        except EngineDeadError as error:
            raise EngineError("the vLLM engine core died; its log above says why") from error
        vector: NDArray[np.float32] = output.outputs.data.float().numpy()
        return vector


class HfPool(HfEngine):
    """The same over one transformers model in this process."""

    def __init__(self, settings: EngineSettings, gallery: Gallery, *, read: ReadWeights) -> None:
        torch.set_num_threads(settings.config.threads)
        model = ModelConfig(path=settings.model)
        self._policy = RetrievalPolicy(load_dual_encoder(model, on_meta=False))
        self._policy.keep_constants()
        self._policy.to(settings.device, getattr(torch, settings.dtype)).eval()
        self._texts = texts_of(settings.model, read_retrieval_config(model))
        self._pixels = Pixels(gallery, preparation_of(settings.model), limit_mb=_PIXELS_MB)
        self._fp8, self._names = None, {}
        self._start(self._policy.model, settings, read)

    async def embed(self, texts: Sequence[str], images: Sequence[str]) -> Embedded:
        """The vectors of texts and image ids. Waits while weights are being updated."""
        return await self.embed_ids(self._texts.ids(texts), images)

    async def embed_ids(self, texts: Sequence[Sequence[int]], images: Sequence[str]) -> Embedded:
        """As `embed`, of texts given as token ids."""
        async with self._gate:
            found = await asyncio.to_thread(self._embed, texts, images)
            return replace(found, version=self._version)

    async def probe(
        self, sequences: Sequence[Sequence[int]], images: Sequence[Sequence[str]] = ()
    ) -> list[list[float]]:
        """Embeddings of texts, given as token ids, then of images, given one by one."""
        found = await self.embed_ids(sequences, [name for (name,) in images])
        return [*found.texts.tolist(), *found.images.tolist()]

    @torch.inference_mode()
    def _embed(self, texts: Sequence[Sequence[int]], images: Sequence[str]) -> Embedded:
        parts: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        for start in range(0, max(len(texts), len(images), 1), _HF_BATCH):
            some_texts, some_images = texts[start : start + _HF_BATCH], images[start : start + _HF_BATCH]
            ids, mask = self._texts.batch(some_texts or self._texts.ids([""]))
            pixels = self._pixels.of(some_images) if some_images else self._blank()
            inputs = Inputs(
                token_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                pixels=pixels.to(self._device, next(self._policy.parameters()).dtype),
            )
            t, i = self._policy(inputs)
            parts.append((t[: len(some_texts)].cpu().numpy(), i[: len(some_images)].cpu().numpy()))
        texts_found, images_found = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Embedded(texts=texts_found, images=images_found, version=self._version)

    def _blank(self) -> torch.Tensor:
        config = self._policy.model.config.vision_config
        return torch.zeros(1, config.num_channels, config.image_size, config.image_size)
