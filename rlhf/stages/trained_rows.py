"""Rows for a trainer, as ids: lengths judged, written where the training process maps them into memory."""

import json
import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from rlhf.data.images import distinct
from rlhf.episodes.render import Renderer
from rlhf.errors import DataError

logger = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, Any]]
"""Columns of ids, numbers and references of images by name, the same for every row."""
IMAGES = "shown"
"""The column with the images of a row. TRL takes a column `images` for rows that it has to render itself."""
_ENDS = 1 << 16


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


def with_images(
    rows: Sequence[Mapping[str, Any]], images: Sequence[Sequence[str]], renderer: Renderer
) -> list[Mapping[str, Any]]:
    """The rows with their images beside them, where the model sees any and a row shows one."""
    if renderer.vision is None or not any(images):
        return list(rows)
    return [{**row, IMAGES: list(shown)} for row, shown in zip(rows, images, strict=True)]


def check_spells_no_image(ids: Sequence[int], renderer: Renderer, *, where: str) -> None:
    """DataError for an answer whose text spells a token that stands for what was seen."""
    if renderer.vision is not None and not set(renderer.vision.banned).isdisjoint(ids):
        raise DataError(
            f"{where}: its text spells an image token, which no model writes. Take it out of the answer."
        )


def evenly_shown(rows: Rows) -> Rows:
    """The rows of several sources, all of them with a column of images where some have one."""
    if len({IMAGES in row for row in rows}) < 2:
        return rows
    return [{IMAGES: [], **row} for row in rows]


def check_all_show(rows: Rows, *, num_ranks: int, kind: str) -> None:
    """DataError where ranks would not pass through the same parts of a model that sees images."""
    shows = [bool(row.get(IMAGES)) for row in rows]
    if num_ranks > 1 and any(shows) and not all(shows):
        raise DataError(
            f"{kind}: {shows.count(False)} of {len(rows)} rows show no image, and {kind}.num_ranks is {num_ranks}: a "
            "rank with such rows alone would leave out the tower that the others wait for. Leave them out, or set "
            "num_ranks: 1."
        )


def images_digest(*parts: Rows) -> str | None:
    """A hash of the files that rows show, by their sizes and ends; None where they show none.

    Images of `data:` are in the rows themselves.
    """
    shown = [row[IMAGES] for rows in parts for row in rows if row.get(IMAGES)]
    if not shown:
        return None
    digest = sha256()
    for reference in distinct(shown):
        if not reference.startswith("data:"):
            with Path(reference).open("rb") as file:
                digest.update(f"{Path(reference).stat().st_size}".encode() + file.read(_ENDS))
                file.seek(-min(_ENDS, file.tell()), 2)
                digest.update(file.read())
    return digest.hexdigest()


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
