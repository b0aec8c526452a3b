"""Scorers: reward models trained on compiler feedback, behind an endpoint or a function."""

import importlib
import json
from collections.abc import Callable
from urllib.error import URLError
from urllib.request import Request, urlopen

from rlhf.errors import LoadError, RewardError
from rlhf.types import Prompt

Scorer = Callable[[Prompt, str], float]


def load_scorer(scorer: str, timeout_s: float) -> Scorer:
    """The scorer at a URL, or the function named `module:attribute`. LoadError when there is none."""
    if scorer.startswith(("http://", "https://")):
        return lambda prompt, completion: _ask(scorer, prompt, completion, timeout_s)
    module, _, attribute = scorer.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise LoadError(
            f"kwargs.scorer: {scorer!r} cannot be loaded ({error}); expected a URL or module:attribute."
        ) from error
    if not callable(found):
        raise LoadError(f"kwargs.scorer: {scorer!r} is a {type(found).__name__}, expected a function.")
    return found  # type: ignore[no-any-return]


def _ask(url: str, prompt: Prompt, completion: str, timeout_s: float) -> float:
    messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
    body = json.dumps({"messages": [*messages, {"role": "assistant", "content": completion}]}).encode()
    request = Request(url, data=body, headers={"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=timeout_s) as response:
            return json.loads(response.read())["score"]  # type: ignore[no-any-return]
    except (URLError, OSError, ValueError, LookupError, TypeError) as error:
        raise RewardError(f"the scorer at {url} gave no score: {type(error).__name__}: {error}") from error
