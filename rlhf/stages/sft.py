"""Supervised fine-tuning in a process group of its own: a cold start, a stage, or distillation from rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.config.schema import ModelConfig
from rlhf.config.trainer import SftConfig
from rlhf.data.prompts import load_prompts
from rlhf.data.row_order import rows_of_a_pass
from rlhf.episodes.chat import ChatRenderer
from rlhf.episodes.demonstration import demonstration_ids, learned_turns
from rlhf.episodes.endpoint_wire import read_messages
from rlhf.episodes.render import Renderer
from rlhf.errors import DataError, ModelError
from rlhf.stages.following import Child
from rlhf.stages.preference_rows import answer_text
from rlhf.stages.trained_rows import check_spells_no_image, evenly_shown, that_fit, with_images
from rlhf.stages.trainer_stage import (
    Progress,
    TrainerStage,
    images_beside,
    model_frozen,
    model_lora,
    run_stage,
)
from rlhf.types import Prompt

KEY = "sft"
NOT_LEARNED = -100
Row = tuple[list[int], list[bool]]
"""(ids, which of them are learned: completions with eos, or an assistant's turns)"""


def run_sft(  # noqa: PLR0913  # one signature for every trained stage
    config: SftConfig,
    *,
    renderer: Renderer,
    out_folder: str | Path,
    seed: int,
    on_progress: Progress | None = None,
    model: ModelConfig | None = None,
    child: Child | None = None,
) -> str:
    """Fine-tune the model of `renderer.model_folder` on `config.source` and return the folder of the result.

    The result is a Hugging Face folder with tokenizer, generation config, sft_metrics.jsonl and sft.json. A folder
    that was finished with the same settings, rows and starting weights is used again; an unfinished one goes on.
    Prompts are rendered as in RL. `model` gives the adapters, if any, and `child` is what `early_child` gave.
    Raises DataError for a row without a completion or longer than `config.max_length`, LearnerError when the
    training process dies, DeadlineError when it makes no progress for ten minutes.
    """
    rows: list[Mapping[str, Any]] = []
    sizes: list[int] = []
    num_dropped = 0
    for key, source in config.sources.items():
        prompts = load_prompts(source, key=key, require_reference=False, images=images_beside(out_folder))
        found = tokenised_rows(prompts, renderer, key=key)
        lengths = [
            (f"{key}: row {prompt.id}", len(ids)) for prompt, (ids, _) in zip(prompts, found, strict=True)
        ]
        fits = that_fit(lengths, limit=config.max_length, on_long=config.on_long, key=KEY)
        images = [prompt.images for prompt in prompts]
        labelled = with_images([_labelled(row) for row in found], images, renderer)
        kept = [row for row, is_kept in zip(labelled, fits, strict=True) if is_kept]
        rows += kept
        sizes.append(len(kept))
        num_dropped += len(found) - len(kept)
    one_pass = rows_of_a_pass(sizes, config.repeat or (1.0,) * len(sizes), seed=seed)
    if not len(one_pass):
        raise DataError(
            f"sft.repeat is {list(config.repeat)} of sources with {sizes} rows: a pass would have none. Raise it."
        )
    stage = TrainerStage(
        kind="sft",
        config=config,
        renderer=renderer,
        seed=seed,
        lora=model_lora(model),
        frozen=model_frozen(model),
        rows=evenly_shown(rows),
        one_pass=one_pass,
        extra={"packing": config.packing},
        findings={"trainer/rows": len(one_pass), "trainer/dropped_rows": num_dropped},
    )
    return run_stage(stage, out_folder=out_folder, on_progress=on_progress, child=child)


def tokenised_rows(prompts: Sequence[Prompt], renderer: Renderer, *, key: str) -> list[Row]:
    """Every row as ids: what RL would show the engine, and what the engine should sample then.

    A row has a `completion`, or `messages`: a whole conversation, whose assistant's turns are learned; one that shows
    images has a single such turn, its last. Raises DataError naming the first row without either.
    """
    rows = []
    has_conversations = any("messages" in prompt.columns and not prompt.images for prompt in prompts)
    chat = ChatRenderer(renderer) if has_conversations else None
    for prompt in prompts:
        where = f"{key}: row {prompt.id}"
        if chat is not None and "messages" in prompt.columns and not prompt.images:
            row = _conversation(prompt, chat, where=where)
        else:
            row = _answer(prompt, renderer, where=where)
        rows.append(row)
    return rows


def check_demonstration(prompt: Prompt, *, where: str) -> None:
    """DataError where a row has nothing to learn; needs no tokenizer."""
    if "messages" not in prompt.columns or prompt.images:
        _text(prompt, where=where)
        return
    try:
        learned_turns(read_messages(prompt.columns["messages"]))
    except (DataError, TypeError, ValueError) as error:
        raise DataError(f"{where}: its `messages` cannot be learned: {error}") from error


def _labelled(row: Row) -> Mapping[str, list[int]]:
    ids, is_learned = row
    labels = [token if mark else NOT_LEARNED for token, mark in zip(ids, is_learned, strict=True)]
    return {"input_ids": ids, "labels": labels}


def _conversation(prompt: Prompt, chat: ChatRenderer, *, where: str) -> Row:
    try:
        messages = read_messages(prompt.columns["messages"])
        return demonstration_ids(chat, messages, prompt.columns.get("tools") or ())
    except (DataError, ModelError, TypeError, ValueError) as error:
        raise DataError(f"{where}: its `messages` cannot be learned: {error}") from error


def _text(prompt: Prompt, *, where: str) -> str:
    if prompt.images and "messages" in prompt.columns:
        return answer_text(prompt, "messages", where=where)
    text = prompt.columns.get("completion")
    if not isinstance(text, str) or not text:
        raise DataError(
            f"{where} has no `completion` (found {text!r:.40}) and no `messages`, expected what is to be learned; "
            f"its columns are {sorted(prompt.columns)}."
        )
    return text


def _answer(prompt: Prompt, renderer: Renderer, *, where: str) -> Row:
    text = _text(prompt, where=where)
    question = renderer.encode_prompt(prompt)
    answer = renderer.encode_completion(text, where=where)
    check_spells_no_image(answer, renderer, where=where)
    return [*question, *answer], [False] * len(question) + [True] * len(answer)
