"""Reward models trained on compiler feedback: served, or a function of yours."""

import asyncio
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from rewards.reward_model import ServedScorer
from rlhf.errors import LoadError
from rlhf.types import Prompt

Scorer = Callable[[Prompt, str], float]


def load_scorer(scorer: str | Mapping[str, Any]) -> Scorer:
    """The served model with these settings, or the function named `module:attribute`. LoadError without one."""
    if not isinstance(scorer, str):
        served = _served(scorer)
        return lambda prompt, completion: asyncio.run(served(completion, prompt))
    module, _, attribute = scorer.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise LoadError(
            f"kwargs.scorer: {scorer!r} cannot be loaded ({error}); expected module:attribute, or the settings "
            "of a served model: {endpoint: {url: ..., model: ...}}."
        ) from error
    if not callable(found):
        raise LoadError(f"kwargs.scorer: {scorer!r} is a {type(found).__name__}, expected a function.")
    return found  # type: ignore[no-any-return]


def _served(settings: Mapping[str, Any]) -> ServedScorer:
    try:
        return ServedScorer(**settings)
    except TypeError as error:
        raise LoadError(f"kwargs.scorer: {error}") from error
