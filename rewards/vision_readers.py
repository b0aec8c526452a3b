"""A user's own pictures: a folder as a gallery, captions beside it, queries in a file.

Choices of people between groups of pictures are read by `rewards.vision_choices`.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from rlhf.errors import DataError
from rlhf.retrieval import RetrievalQuery

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_TABLES = ("captions.jsonl", "captions.csv")
_IMAGE_KEYS = ("image", "file_name")
_TEXT_KEYS = ("caption", "text")


@dataclass(frozen=True, slots=True)
class FolderGallery:
    """`rlhf.retrieval.Gallery` of every picture under a folder; ids are paths from there, with `/`.

    Its version is that of the files when it was made: of names, sizes and times of change, or of the contents where
    `by_contents` is true, which reads every file, and is the same on machines that each have a copy. Where a process
    finds other files than that, DataError.
    """

    folder: str
    by_contents: bool = False
    max_side: int | None = None
    """Larger pictures are loaded smaller."""
    version: str = field(init=False, default="")

    def __post_init__(self) -> None:
        if self.max_side is not None and self.max_side < 1:
            raise DataError(f"max_side is {self.max_side}, expected 1 or more, or none.")
        made = _listing(self.folder, self.by_contents)[1]
        object.__setattr__(self, "version", f"folder {made} {self.max_side}")

    def ids(self) -> Sequence[str]:
        """All pictures, by name."""
        return tuple(self._places())

    def load(self, ids: Sequence[str]) -> list[Image.Image]:
        """Upright, RGB. DataError for a file that is none of this folder, or no picture."""
        known = self._places()
        return [self._picture(name, known) for name in ids]

    def _places(self) -> Mapping[str, int]:
        return _places_as_made(self.folder, self.by_contents, self.version.split()[1])

    def _picture(self, name: str, known: Mapping[str, int]) -> Image.Image:
        if name not in known:
            raise DataError(f"image {name!r} is not one of the {len(known)} pictures of {self.folder!r}.")
        try:
            with Image.open(Path(self.folder, name)) as opened:
                picture = ImageOps.exif_transpose(opened).convert("RGB")
        except (
            OSError,
            ValueError,
            SyntaxError,
            UnidentifiedImageError,
            Image.DecompressionBombError,
        ) as error:
            raise DataError(
                f"{Path(self.folder, name)} cannot be read as a picture: {error}. Remove it."
            ) from error
        if self.max_side is not None and max(picture.size) > self.max_side:
            picture.thumbnail((self.max_side, self.max_side))
        picture.info["id"] = name
        return picture


def folder_captions(folder: str, *, every: bool = True) -> list[tuple[str, str]]:
    """(image id, caption) from `captions.jsonl`, `captions.csv` (image or file_name, caption or text) or .txt files.

    A .txt stands beside its picture under the same name. A picture may have several captions in a table. Raises
    DataError for two of these forms at once, for a caption of no picture or without text, and, unless `every` is false,
    for pictures without a caption.
    """
    ids = dict.fromkeys(FolderGallery(folder).ids())
    tables = [name for name in _TABLES if Path(folder, name).is_file()]
    beside = {name: text for name in ids if (text := Path(folder, name).with_suffix(".txt")).is_file()}
    found_in = tables + ([f"{len(beside)} .txt files"] if beside else [])
    if len(found_in) != 1:
        raise DataError(
            f"{folder!r} has captions in {' and '.join(found_in) or 'no file'}, expected one of {', '.join(_TABLES)}, "
            "or a .txt beside each picture."
        )
    if tables:
        pairs = [_pair(row, where) for where, row in _rows(Path(folder, tables[0]))]
    else:
        pairs = [(name, text_of(file).strip()) for name, file in beside.items()]
    for name, caption in pairs:
        if name not in ids or not caption:
            what = f"the caption of {name!r} is empty" if name in ids else f"there is no picture {name!r}"
            raise DataError(f"{folder!r}: {what}. Correct {found_in[0]}.")
    left_out = sorted(set(ids) - {name for name, _ in pairs})
    if left_out and every:
        raise DataError(
            f"{folder!r}: {len(left_out)} of {len(ids)} pictures have no caption, such as {left_out[0]!r}. Add it, or "
            "give every: false."
        )
    return pairs


def file_queries(path: str) -> list[RetrievalQuery]:
    """Queries of a .jsonl file, {query, id, relevant (image ids)}, of a .csv with these columns (ids with | between
    them), or of a .txt with a query per line. All but the query is optional.
    """
    file = Path(path)
    rows = _lines(file) if file.suffix == ".txt" else _rows(file)
    found = []
    for where, row in rows:
        text: Any = row.get("query")
        relevant: Any = row.get("relevant") or None
        if isinstance(relevant, str):
            relevant = [name.strip() for name in relevant.split("|")]
        if not isinstance(text, str) or not text.strip() or not isinstance(relevant, list | None):
            raise DataError(
                f"{where}: found {row!r:.200}, expected a query, and relevant as a list of image ids or none."
            )
        kept = None if relevant is None else tuple(str(name) for name in relevant)
        name = text.strip() if row.get("id") in (None, "") else str(row["id"])
        found.append(RetrievalQuery(id=name, text=text.strip(), relevant=kept))
    if not found:
        raise DataError(f"{file} holds no query.")
    return found


def _listing(folder: str, by_contents: bool) -> tuple[tuple[str, ...], str]:
    """(ids, version)"""
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{folder!r} is not a folder. Name one that holds pictures.")
    files = {
        path.relative_to(root).as_posix(): path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    }
    if not files:
        raise DataError(f"{folder!r} holds no picture, looked for {', '.join(SUFFIXES)}.")
    ids = tuple(sorted(files))
    digest = sha256()
    for name in ids:
        status = files[name].stat()
        facts = (
            sha256(files[name].read_bytes()).hexdigest()
            if by_contents
            else f"{status.st_size} {status.st_mtime_ns}"
        )
        digest.update(f"{name}\0{facts}\0".encode(errors="surrogatepass"))
    return ids, digest.hexdigest()[:16]


@lru_cache(maxsize=16)
def _places_as_made(folder: str, by_contents: bool, made: str) -> dict[str, int]:
    ids, version = _listing(folder, by_contents)
    if version != made:
        advice = "" if by_contents else " On machines that each have a copy give by_contents: true."
        raise DataError(
            f"the pictures of {folder!r} are not those that the gallery was made of: files were added, removed or "
            f"changed since. Keep it as it is during a run.{advice}"
        )
    return {name: place for place, name in enumerate(ids)}


def _lines(file: Path) -> list[tuple[str, Mapping[str, Any]]]:
    lines = enumerate(text_of(file).splitlines(), start=1)
    return [(f"{file}, line {number}", {"query": line}) for number, line in lines if line.strip()]


def _rows(file: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """(where, row) of a .jsonl or .csv file."""
    text = text_of(file)
    if file.suffix == ".csv":
        reader = csv.DictReader(text.splitlines(keepends=True))
        return [(f"{file}, line {reader.line_num}", row) for row in reader]
    if file.suffix != ".jsonl":
        raise DataError(f"{file}: expected a .jsonl or a .csv file.")
    return [(f"{file}, line {line}", row) for line, row in json_lines(text, file)]


def json_lines(text: str, file: Path) -> list[tuple[int, Mapping[str, Any]]]:
    """(line, object) of every line that is not empty. DataError names the line that holds none."""
    rows: list[tuple[int, Mapping[str, Any]]] = []
    for line, written in enumerate(text.splitlines(), start=1):
        if not written.strip():
            continue
        try:
            row = json.loads(written)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}, line {line} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {line} is a {type(row).__name__}, expected an object.")
        rows.append((line, row))
    return rows


def _pair(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    images = [row[key] for key in _IMAGE_KEYS if key in row]
    texts = [row[key] for key in _TEXT_KEYS if key in row]
    if len(images) != 1 or len(texts) != 1 or not all(isinstance(value, str) for value in (*images, *texts)):
        raise DataError(
            f"{where}: found {', '.join(map(str, row))}, expected one of {' or '.join(_IMAGE_KEYS)} and one of "
            f"{' or '.join(_TEXT_KEYS)}, as text."
        )
    return images[0], texts[0].strip()


def text_of(file: Path) -> str:
    """Its text. DataError where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
