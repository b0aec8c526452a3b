"""Rows for a trainer, as ids: lengths judged, written where the training process maps them into memory."""

import json
import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from rlhf.errors import DataError

logger = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, Any]]
"""Columns of ids (and numbers) by name, the same for every row."""


def that_fit(
    lengths: Sequence[tuple[str, int]], *, limit: int, on_long: Literal["refuse", "drop"], key: str
) -> list[bool]:
    """Which rows have at most `limit` tokens; `lengths` are (name, tokens), `key` is that of the limit.

    Raises DataError naming the first longer row and counting the others, unless they are dropped; and when none is
    left.
    """
    fits = [length <= limit for _, length in lengths]
    too_long = [(name, length) for name, length in lengths if length > limit]
    if not too_long:
        return fits
    first, tokens = too_long[0]
    others = f", and so have {len(too_long) - 1} of the other rows" if len(too_long) > 1 else ""
    longest = max(length for _, length in lengths)
    found = f"{first} has {tokens} tokens, more than {key}.max_length ({limit}){others}; the longest has {longest}."
    if on_long == "refuse" or not any(fits):
        advice = f"Rows are never cut: raise the limit, leave such rows out, or set {key}.on_long: drop."
        if on_long == "drop":
            advice = f"No row would be left: raise {key}.max_length."
        raise DataError(f"{found} {advice}")
    logger.warning("%s They are left out (%s.on_long: drop).", found, key)
    return fits


def write_rows(rows: Rows, file: Path) -> None:
    """Write rows as an Arrow stream, which the training process reads without holding it in memory."""
    import pyarrow

    columns = {name: [row[name] for row in rows] for name in rows[0]}
    table = pyarrow.table(columns)
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table, max_chunksize=1000)


def rows_digest(rows: Rows) -> str:
    """A hash of all that the rows hold, in their order."""
    digest = sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def model_digest(folder: Path) -> str:
    """A hash that tells two model folders apart without reading tens of gigabytes."""
    digest = sha256((folder / "config.json").read_bytes())
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        with file.open("rb") as weights:
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode() + weights.read(1 << 20))
            weights.seek(max(0, size - (1 << 20)))
            digest.update(weights.read())
    return digest.hexdigest()
