"""A bounded choice of the samples of a set, for people to read."""

from collections.abc import Iterable
from typing import Any

from rlhf.data.collected import Collected, Sample


def kept_samples(collected: Iterable[Collected], limit: int, *, num_prompts: int) -> list[dict[str, Any]]:
    """At most `limit` samples, of as many of the `num_prompts` prompts as possible, in their order.

    With less than one a prompt, prompts are taken evenly spaced and each shows its first sample. With more, a prompt
    that was solved sometimes shows both endings before it shows a third sample.
    """
    rows = []
    for place, one in enumerate(collected):
        quota = limit * (place + 1) // num_prompts - limit * place // num_prompts
        rate = one.num_correct / one.num_gradable if one.num_gradable else None
        rows += [_row(one, sample, rate) for sample in _ranked(one.samples)[:quota]]
    return rows


def _ranked(samples: Iterable[Sample]) -> list[Sample]:
    """The first one, the first that ended otherwise, then the others."""
    first, *rest = samples
    other = next((sample for sample in rest if sample.is_correct != first.is_correct), None)
    return [first, *([] if other is None else [other]), *(s for s in rest if s is not other)]


def _row(one: Collected, sample: Sample, rate: float | None) -> dict[str, Any]:
    said = sample.messages[len(one.prompt.messages) :] if sample.messages else ()
    return {
        "prompt_id": one.prompt.id,
        "prompt": "\n\n".join(message.content for message in one.prompt.messages),
        "reference": one.prompt.reference,
        "pass_rate": rate,
        "index": sample.index,
        "completion": sample.completion,
        "turns": [{"role": message.role, "text": message.content} for message in said],
        "answer": sample.answer,
        "is_correct": sample.is_correct,
        "reward": sample.reward,
        "outcome": sample.outcome,
        "parts": dict(sample.parts),
        "stop": sample.stop,
        "tokens": sample.num_tokens,
    }
