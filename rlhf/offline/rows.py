"""Files of rows that are written line by line and are there whole or not at all."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from rlhf.data.collected import Collected, Sample
from rlhf.data.selection import Difficulty
from rlhf.episodes.endpoint_wire import written_message
from rlhf.errors import DataError
from rlhf.types import Message, Prompt

Json = dict[str, Any]
Write = Callable[[Json], None]
_BATCH = 1024
_TEXT, _NUMBER = pyarrow.string(), pyarrow.float64()
_SCHEMA: Mapping[str, Any] = {
    "id": _TEXT,
    "prompt": pyarrow.list_(pyarrow.struct([("role", _TEXT), ("content", _TEXT)])),
    "completion": _TEXT,
    "reference": _TEXT,
    "reward": _NUMBER,
    "pass_rate": _NUMBER,
    "pass_rate_low": _NUMBER,
    "pass_rate_high": _NUMBER,
    "num_tokens": pyarrow.int64(),
    "source": _TEXT,
}


def training_row(prompt: Prompt, sample: Sample, difficulty: Difficulty, columns: Sequence[str]) -> Json:
    """A kept sample as `sft.source` reads it: prompt and completion, or the messages of an episode and its tools.

    `columns` of the prompt's row are kept, unless they have the name of one of ours.
    """
    low, high = difficulty.interval
    row: Json = {"id": f"{prompt.id}#{sample.index}"}
    if sample.is_episode:
        row["messages"] = [_written(message, sample) for message in sample.messages]
        if sample.tools:
            row["tools"] = list(sample.tools)
    else:
        row |= {"prompt": asked(prompt), "completion": sample.completion}
    row |= {"reference": prompt.reference, "reward": sample.reward, "pass_rate": difficulty.pass_rate}
    row |= {
        "pass_rate_low": low,
        "pass_rate_high": high,
        "num_tokens": sample.num_tokens,
        "source": prompt.id,
    }
    return row | {
        name: prompt.columns[name] for name in columns if name in prompt.columns and name not in row
    }


def pair_row(prompt: Prompt, chosen: Sample, rejected: Sample) -> Json:
    """A right and a wrong sample of a prompt, for preference training."""
    return {
        "id": f"{prompt.id}#{chosen.index}-{rejected.index}",
        "prompt": asked(prompt),
        "chosen": chosen.completion,
        "rejected": rejected.completion,
        "chosen_reward": chosen.reward,
        "rejected_reward": rejected.reward,
        "source": prompt.id,
    }


def prompt_row(
    collected: Collected, difficulty: Difficulty, *, num_kept: int, contaminated: Sequence[str]
) -> Json:
    """How hard a prompt was."""
    low, high = difficulty.interval
    return {
        "id": collected.prompt.id,
        "prompt": asked(collected.prompt),
        "reference": collected.prompt.reference,
        "num_samples": difficulty.num_samples,
        "num_correct": difficulty.num_correct,
        "pass_rate": difficulty.pass_rate,
        "pass_rate_low": low,
        "pass_rate_high": high,
        "num_ungradable": len(collected.samples) - difficulty.num_samples,
        "num_kept": num_kept,
        "contaminated": list(contaminated),
    }


def asked(prompt: Prompt) -> str | list[Json]:
    """The prompt as its row had it: a text, or messages."""
    if not prompt.is_chat and len(prompt.messages) == 1:
        return prompt.messages[0].content
    return [{"role": message.role, "content": message.content} for message in prompt.messages]


def _written(message: Message, sample: Sample) -> Json:
    if message.role == "assistant":
        return written_message(message, sample.tools)
    answered = {} if message.tool_call_id is None else {"tool_call_id": message.tool_call_id}
    return {"role": message.role, "content": message.content, **answered}


@contextlib.contextmanager
def new_rows(path: Path) -> Iterator[Write]:
    """Writes rows to a draft that becomes `path` (.jsonl or .parquet) in one rename when the block ends well."""
    draft = path.with_name(f".{path.name}.draft")
    opened = _parquet(draft) if path.suffix == ".parquet" else _lines(draft)
    with opened as write:
        yield write
    os.replace(draft, path)


@contextlib.contextmanager
def _lines(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda row: _nothing(file.write(json.dumps(row, ensure_ascii=False) + "\n"))


def _nothing(_: object) -> None:
    """What a file tells of its writing."""


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    """With a prompt as messages always; further columns have the types that the first rows give them."""
    held: list[Json] = []
    writer: Any = None

    def flush() -> None:
        nonlocal writer
        schema = _schema(held) if writer is None else writer.schema
        late = {name for row in held for name in row} - set(schema.names)
        if late:
            raise DataError(
                f"select.keep_columns: {sorted(late)} first stand in a row after the first {_BATCH}, which made the "
                "columns of the Parquet file. Set select.format: jsonl."
            )
        try:
            table = pyarrow.Table.from_pylist(held, schema=schema)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            raise DataError(
                f"select.keep_columns: the rows have values of different types in one column: {error}. "
                "Set select.format: jsonl."
            ) from error
        writer = writer or pyarrow.parquet.ParquetWriter(path, schema)
        writer.write_table(table)
        held.clear()

    def write(row: Json) -> None:
        prompt = row["prompt"]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        held.append({**row, "prompt": messages})
        if len(held) == _BATCH:
            flush()

    try:
        yield write
        if held or writer is None:
            flush()
    finally:
        if writer is not None:
            writer.close()


def _schema(rows: Sequence[Json]) -> Any:
    names = dict.fromkeys(name for row in rows for name in row)
    found = pyarrow.Table.from_pylist(
        [{n: row.get(n) for n in names if n not in _SCHEMA} for row in rows]
    ).schema
    further = [(f.name, _TEXT if pyarrow.types.is_null(f.type) else f.type) for f in found]
    return pyarrow.schema([*_SCHEMA.items(), *further])
