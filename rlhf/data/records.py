"""Turn a row of any accepted style (plain, TRL, verl) into a Prompt."""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import takewhile
from typing import Any, get_args

from rlhf.data.image_rows import Parts, content_of, placed, row_images
from rlhf.errors import DataError
from rlhf.types import Message, Prompt, Role

REFERENCE_COLUMNS = ("reference", "answer", "solution", "ground_truth")
"""Where the gold answer is looked for, in this order, past empty ones; then in verl's `reward_model.ground_truth`."""
CONSUMED_COLUMNS = frozenset({"prompt", "id", "images"})


def parse_row(row: Mapping[str, Any], *, location: str, columns: Mapping[str, str], key: str) -> Prompt:
    """The Prompt of a row; `columns` renames first (ours -> the row's).

    Every column but prompt, id and images stays readable in `Prompt.columns`. Without a prompt, it is what a
    conversation in `messages` begins with. Images are references, and stand as `<image>` in the text.
    Raises DataError naming the row, the column, what was found and what was expected.
    """
    where = f"{key}: row {location}"
    row = _rename(row, columns, where=where, key=key)
    if row.get("prompt") is None:
        row = {**row, "prompt": _asked(row)}
    if row["prompt"] is None:
        raise DataError(
            f"{where} has no `prompt`; its columns are {sorted(row.keys() - {'prompt'})}. "
            f"Name the right one with {key}.columns: {{prompt: ...}}."
        )
    inline: Parts = []
    messages = _messages(row["prompt"], inline, where=where)
    images, has_images = row_images(row, inline, where=where)
    if has_images:
        messages = placed(messages, len(images), where=where)
    return Prompt(
        id=_identity(row, default=location),
        messages=messages,
        reference=_reference(row),
        columns={name: value for name, value in row.items() if name not in CONSUMED_COLUMNS},
        images=images,
        is_chat=not isinstance(row["prompt"], str),
    )


def _asked(row: Mapping[str, Any]) -> list[Any] | None:
    """What comes before the assistant's first turn in a whole conversation."""
    messages = row.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        return None
    return list(takewhile(lambda m: isinstance(m, Mapping) and m.get("role") != "assistant", messages))


def _rename(row: Mapping[str, Any], columns: Mapping[str, str], *, where: str, key: str) -> Mapping[str, Any]:
    renamed = {name: value for name, value in row.items() if name not in columns.values()}
    for ours, theirs in columns.items():
        if theirs not in row:
            near = get_close_matches(theirs, row, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(
                f"{where} has no column {theirs!r} ({key}.columns.{ours}); it has {sorted(row)}.{hint}"
            )
        renamed[ours] = row[theirs]
    return renamed


def _identity(row: Mapping[str, Any], *, default: str) -> str:
    extra = row.get("extra_info")
    found = row.get("id", extra.get("id") if isinstance(extra, Mapping) else None)
    return default if found is None else str(found)


def _messages(prompt: Any, inline: Parts, *, where: str) -> tuple[Message, ...]:
    """`inline` is given the images that stand in the messages themselves."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise DataError(f"{where}: `prompt` is empty, expected text.")
        return (Message(role="user", content=prompt),)
    if not isinstance(prompt, Sequence) or not prompt:
        raise DataError(f"{where}: `prompt` is {prompt!r:.80}, expected text or a list of messages.")
    messages = tuple(
        _message(item, inline, where=f"{where}, prompt[{index}]") for index, item in enumerate(prompt)
    )
    if messages[-1].role == "assistant":
        raise DataError(
            f"{where}: the last message of `prompt` is the assistant's, expected the user's or a tool's."
        )
    return messages


def _message(item: Any, inline: Parts, *, where: str) -> Message:
    content = item.get("content") if isinstance(item, Mapping) else None
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        content, found = content_of(content, where=where)
        inline += found
    if not isinstance(item, Mapping) or not isinstance(content, str):
        raise DataError(
            f"{where} is {item!r:.80}, expected {{role: ..., content: text, or a list of parts}}."
        )
    if item.get("role") not in get_args(Role):
        raise DataError(
            f"{where} has role {item.get('role')!r}, expected one of {', '.join(get_args(Role))}."
        )
    return Message(role=item["role"], content=content)


def _reference(row: Mapping[str, Any]) -> str | None:
    candidates = [row.get(name) for name in REFERENCE_COLUMNS]
    model = row.get("reward_model")
    candidates.append(model.get("ground_truth") if isinstance(model, Mapping) else None)
    found = next((value for value in candidates if value is not None and value != ""), None)
    if isinstance(found, bool | int | float | list | tuple | dict):
        return json.dumps(found, ensure_ascii=False, default=str)
    return None if found is None else str(found)
