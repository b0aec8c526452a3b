"""Recipes of which only the section `algorithm` matters, resolved, and a batch that any preset can read."""

from dataclasses import replace

import torch

from rlhf.algorithms.catalogue import resolve
from rlhf.config.schema import Recipe
from tests.unit.algorithms.ragged import ragged


def recipe(name: str = "grpo", *, over: dict | None = None, **overrides) -> Recipe:
    values = {
        "name": "catalogue",
        "model": {"path": "x"},
        "task": {"train": {"file": "a"}, "rewards": [{"use": "a:b"}, {"use": "a:c", "weight": 0.5}]},
        "sampling": {"max_tokens": 128},
    }
    return Recipe.model_validate(values | {"algorithm": {"name": name, **overrides}} | (over or {}))


def algorithm(name: str = "grpo", **overrides):
    return resolve(recipe(name, **overrides))


def filled(seed: int = 1):
    """A ragged batch with all that any preset's estimator reads."""
    batch = ragged(seed)
    noise = torch.linspace(-1, 1, batch.num_tokens, dtype=torch.float64)
    old = batch.rollout_logprobs + 0.01 * noise
    return replace(
        batch, values=noise, last_values=batch.rewards * 0, old_logprobs=old, ref_logprobs=old - 0.1 * noise
    )
