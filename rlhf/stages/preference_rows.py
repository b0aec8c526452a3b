"""Preference pairs as ids: a prompt as RL shows it, and two answers as the engine would have sampled them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config.task import SourceConfig
from rlhf.config.trainer import DpoConfig, RewardModelConfig
from rlhf.data.dual_inputs import is_dual_folder
from rlhf.data.image_rows import SLOT, content_of
from rlhf.data.preference_pairs import LengthBias, length_bias
from rlhf.data.prompts import load_prompts
from rlhf.episodes.render import Renderer
from rlhf.errors import DataError
from rlhf.stages.picture_pairs import check_pictures, picture_rows, shows_pictures
from rlhf.stages.trained_rows import check_spells_no_image, that_fit, with_images
from rlhf.types import Message, Prompt

SIDES = ("chosen", "rejected")
_SAME = "`chosen` and `rejected` are the same answer, which prefers nothing. Leave it out."


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRows:
    """Pairs that fit: columns prompt_ids, chosen_ids, rejected_ids (without the prompt), margin if asked for, and the
    images of the prompt where the model sees them.
    """

    rows: list[Mapping[str, Any]]
    num_dropped: int

    def length_bias(self, margin: float) -> LengthBias:
        """The finding on these pairs; a pair of pictures has no lengths."""
        return length_bias(pair_lengths(self.rows), margin=margin)


def pair_lengths(rows: Iterable[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Tokens of both answers of every pair; 0 for pictures."""
    return [(len(row.get("chosen_ids", ())), len(row.get("rejected_ids", ()))) for row in rows]


def read_pairs(
    source: SourceConfig,
    config: DpoConfig | RewardModelConfig,
    *,
    renderer: Renderer,
    key: str,
    images: Path | None = None,
) -> PairRows:
    """All pairs of a source. `key` is its key, `dpo.source` for example; bytes of images go to the folder `images`.

    Raises DataError naming the row for an answer that is missing or equal to the other, and for a longer row.
    """
    prompts = load_prompts(source, key=key, require_reference=False, images=images)
    return pair_rows(prompts, config, renderer=renderer, key=key)


def pair_rows(
    prompts: Sequence[Prompt], config: DpoConfig | RewardModelConfig, *, renderer: Renderer, key: str
) -> PairRows:
    """The pairs of rows that are read; errors as `read_pairs`. For a dual encoder they are pairs of pictures."""
    if is_dual_folder(renderer.model_folder):
        if not isinstance(config, RewardModelConfig):
            raise DataError(
                f"{key}: {renderer.model_folder!r} is a dual encoder, which writes no answers. Train it with a "
                "reward_model stage."
            )
        pictures, num_dropped = picture_rows(prompts, config, folder=renderer.model_folder, key=key)
        return PairRows(rows=pictures, num_dropped=num_dropped)
    rows = [
        _pair(prompt, renderer, margin=margin_of(config), where=f"{key}: row {prompt.id}")
        for prompt in prompts
    ]
    kind = key.partition(".")[0]
    lengths = [
        (
            f"{key}: row {prompt.id}",
            len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])),
        )
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    fits = that_fit(lengths, limit=config.max_length, on_long=config.on_long, key=kind)
    rows = with_images(rows, [prompt.images for prompt in prompts], renderer)
    kept = [row for row, is_kept in zip(rows, fits, strict=True) if is_kept]
    return PairRows(rows=kept, num_dropped=len(rows) - len(kept))


def margin_of(config: DpoConfig | RewardModelConfig) -> str | None:
    """The column with the margin of a pair, if it is read."""
    return config.margin if isinstance(config, RewardModelConfig) else None


def check_pair(prompt: Prompt, *, margin: str | None, where: str) -> None:
    """DataError where a row is no pair; needs no tokenizer."""
    if shows_pictures(prompt):
        check_pictures(prompt, where=where)
        return
    if answer_text(prompt, "chosen", where=where) == answer_text(prompt, "rejected", where=where):
        raise DataError(f"{where}: {_SAME}")
    if margin is not None:
        _number(prompt.columns.get(margin), where=f"{where}: `{margin}`")


def _pair(prompt: Prompt, renderer: Renderer, *, margin: str | None, where: str) -> Mapping[str, Any]:
    ids = {
        f"{side}_ids": list(
            renderer.encode_completion(answer_text(prompt, side, where=where), where=f"{where}, {side}")
        )
        for side in SIDES
    }
    for side in SIDES:
        check_spells_no_image(ids[f"{side}_ids"], renderer, where=f"{where}, {side}")
    if ids["chosen_ids"] == ids["rejected_ids"]:
        raise DataError(f"{where}: {_SAME}")
    pair: dict[str, Any] = {"prompt_ids": list(renderer.encode_prompt(prompt)), **ids}
    if margin is not None:
        pair["margin"] = _number(prompt.columns.get(margin), where=f"{where}: `{margin}`")
    return pair


def answer_text(prompt: Prompt, side: str, *, where: str) -> str:
    """The text of an answer in a column: text itself, or one assistant's message, which may follow the prompt's.

    DataError for anything else, and for an image in an answer.
    """
    found = prompt.columns.get(side)
    if isinstance(found, list | tuple):
        before = [_plain(message, where=where) for message in prompt.messages]
        plain = [_plain(item, where=f"{where}: `{side}`") for item in found]
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


def _plain(item: Any, *, where: str) -> dict[str, Any]:
    """Role and text of a message. Placeholders of images say where they stand, which `prompt` has said already."""
    if isinstance(item, Message):
        return {"role": item.role, "content": item.content.replace(SLOT, "")}
    if not isinstance(item, Mapping) or set(item) - {"role", "content"}:
        return {"role": None, "content": None}
    role, content = item.get("role"), item.get("content")
    if isinstance(content, list | tuple):
        content, shown = content_of(content, where=where)
        if shown and role == "assistant":
            raise DataError(f"{where}: an answer of the assistant shows an image, expected text alone.")
    if isinstance(content, str) and role != "assistant":
        content = content.replace(SLOT, "")
    return {"role": role, "content": content}


def _number(value: Any, *, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where} is {value!r:.40}, expected a number (reward_model.margin).")
    return float(value)
