"""Preference pairs as ids: a prompt as RL shows it, and two answers as the engine would have sampled them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.config.task import SourceConfig
from rlhf.config.trainer import DpoConfig, RewardModelConfig
from rlhf.data.preference_pairs import LengthBias, length_bias
from rlhf.data.prompts import load_prompts
from rlhf.episodes.render import Renderer
from rlhf.errors import DataError
from rlhf.stages.trained_rows import that_fit
from rlhf.types import Message, Prompt

SIDES = ("chosen", "rejected")
_SAME = "`chosen` and `rejected` are the same answer, which prefers nothing. Leave it out."


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRows:
    """Pairs that fit: columns prompt_ids, chosen_ids, rejected_ids (without the prompt), and margin if asked for."""

    rows: list[Mapping[str, Any]]
    num_dropped: int

    def length_bias(self, margin: float) -> LengthBias:
        """The finding on these pairs."""
        return length_bias([(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in self.rows], margin=margin)


def read_pairs(
    source: SourceConfig, config: DpoConfig | RewardModelConfig, *, renderer: Renderer, key: str
) -> PairRows:
    """All pairs of a source. `key` is its key, `dpo.source` for example.

    Raises DataError naming the row for an answer that is missing or equal to the other, and for a longer row.
    """
    prompts = load_prompts(source, key=key, require_reference=False)
    return pair_rows(prompts, config, renderer=renderer, key=key)


def pair_rows(
    prompts: Sequence[Prompt], config: DpoConfig | RewardModelConfig, *, renderer: Renderer, key: str
) -> PairRows:
    """The pairs of rows that are read; errors as `read_pairs`."""
    rows = [
        _pair(prompt, renderer, margin=margin_of(config), where=f"{key}: row {prompt.id}")
        for prompt in prompts
    ]
    lengths = [
        (
            f"{key}: row {prompt.id}",
            len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])),
        )
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    fits = that_fit(lengths, limit=config.max_length, on_long=config.on_long, key=key.partition(".")[0])
    kept = [row for row, is_kept in zip(rows, fits, strict=True) if is_kept]
    return PairRows(rows=kept, num_dropped=len(rows) - len(kept))


def margin_of(config: DpoConfig | RewardModelConfig) -> str | None:
    """The column with the margin of a pair, if it is read."""
    return config.margin if isinstance(config, RewardModelConfig) else None


def check_pair(prompt: Prompt, *, margin: str | None, where: str) -> None:
    """DataError where a row is no pair; needs no tokenizer."""
    if _answer(prompt, "chosen", where=where) == _answer(prompt, "rejected", where=where):
        raise DataError(f"{where}: {_SAME}")
    if margin is not None:
        _number(prompt.columns.get(margin), where=f"{where}: `{margin}`")


def _pair(prompt: Prompt, renderer: Renderer, *, margin: str | None, where: str) -> Mapping[str, Any]:
    ids = {
        f"{side}_ids": list(
            renderer.encode_completion(_answer(prompt, side, where=where), where=f"{where}, {side}")
        )
        for side in SIDES
    }
    if ids["chosen_ids"] == ids["rejected_ids"]:
        raise DataError(f"{where}: {_SAME}")
    pair: dict[str, Any] = {"prompt_ids": list(renderer.encode_prompt(prompt)), **ids}
    if margin is not None:
        pair["margin"] = _number(prompt.columns.get(margin), where=f"{where}: `{margin}`")
    return pair


def _answer(prompt: Prompt, side: str, *, where: str) -> str:
    """The text of an answer: text itself, or one assistant's message, which may follow the prompt's messages."""
    found = prompt.columns.get(side)
    if isinstance(found, list | tuple):
        before = [{"role": message.role, "content": message.content} for message in prompt.messages]
        plain = [_plain(item) for item in found]
        if plain[: len(before)] == before:
            plain = plain[len(before) :]
        if len(plain) == 1 and plain[0]["role"] == "assistant":
            found = plain[0]["content"]
    if not isinstance(found, str) or not found:
        raise DataError(
            f"{where}: `{side}` is {found!r:.80}, expected a text, one message of the assistant, or the conversation "
            f"of `prompt` with that message at its end; the row's columns are {sorted(prompt.columns)}."
        )
    return found


def _plain(item: Any) -> dict[str, Any]:
    if isinstance(item, Message):
        return {"role": item.role, "content": item.content}
    if not isinstance(item, Mapping) or set(item) - {"role", "content"}:
        return {"role": None, "content": None}
    return {"role": item.get("role"), "content": item.get("content")}


def _number(value: Any, *, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where} is {value!r:.40}, expected a number (reward_model.margin).")
    return float(value)
