"""Prompts with images on their way into vLLM, which expands image tokens itself."""

import asyncio
from collections.abc import Sequence
from typing import Any

from rlhf.data.images import open_image
from rlhf.data.vision_model import CACHE_MB
from rlhf.engines.settings import EngineSettings
from rlhf.errors import EngineError


def image_arguments(settings: EngineSettings) -> dict[str, Any]:
    """Keyword arguments of AsyncEngineArgs for a model that sees images; none for others."""
    if not settings.max_images:
        return {}
    return {
        # Image processing asks it for the image tokens.
        "skip_tokenizer_init": False,
        "tokenizer": settings.tokenizer or settings.model,
        "limit_mm_per_prompt": {"image": settings.max_images, "video": 0},
        "mm_processor_cache_gb": CACHE_MB / 1024,
    }


async def show(llm: Any, prompt: dict[str, Any], images: Sequence[str]) -> dict[str, Any]:
    """The prompt with its images as vLLM's scheduler takes it, for all its samples.

    Raises EngineError where vLLM's ids for it are not ours.
    """
    from vllm.renderers.inputs.preprocess import parse_model_prompt

    ours: list[int] = prompt["prompt_token_ids"]
    opened = [await asyncio.to_thread(open_image, reference) for reference in images]
    unexpanded = one_each(ours, image_id=llm.model_config.hf_config.image_token_id)
    raw = {**prompt, "prompt_token_ids": unexpanded, "multi_modal_data": {"image": opened}}
    try:
        (shown,) = await llm.renderer.render_cmpl_async([parse_model_prompt(llm.model_config, raw)])
    except (ValueError, RuntimeError) as error:
        raise EngineError(f"vLLM cannot show a prompt with {len(images)} images: {error}") from error
    theirs = list(shown["prompt_token_ids"])
    if theirs != ours:
        place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(ours))
        raise EngineError(
            f"vLLM reads a prompt with {len(images)} images as {len(theirs)} ids, ours has {len(ours)}; they part at "
            f"id {place}. Was the prompt rendered with another image processor than that of {llm.model_config.model!r}?"
        )
    found: dict[str, Any] = shown
    return found


def shown_again(llm: Any, shown: dict[str, Any]) -> dict[str, Any]:
    """The prompt for its further samples: pixels that the engine core keeps since the first are not sent again."""
    from vllm.multimodal.cache.lru import LruKeyReplicatedSenderCache

    cache = llm.renderer.mm_processor_cache
    if not isinstance(cache, LruKeyReplicatedSenderCache):
        return shown
    hashes = shown["mm_hashes"]
    left = {
        kind: [
            None if cache.is_cached_item(digest) else item
            for item, digest in zip(items, hashes[kind], strict=True)
        ]
        for kind, items in shown["mm_kwargs"].items()
    }
    return {**shown, "mm_kwargs": left}


def one_each(ids: Sequence[int], *, image_id: int) -> list[int]:
    """The ids with every run of image tokens made one."""
    return [
        token
        for before, token in zip([None, *ids], ids, strict=False)
        if token != image_id or before != token
    ]
