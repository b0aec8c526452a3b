"""Read the rows of a prompt source: files, folders, data sets, generators."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf.config.task import SourceConfig
from rlhf.errors import DataError
from rlhf.importing import load_function

Row = Mapping[str, Any]
LocatedRow = tuple[str, Any]
"""(`<source>:<row index from 0>`, row, or the DataError that it is)"""
BadRows = list[tuple[str, DataError]]
"""(location, what is wrong) of rows that cannot be used."""
SUFFIXES = (".jsonl", ".parquet")
SPLITS = ("train", "test", "validation", "val", "dev", "eval")
"""Words that say which split a file of a folder belongs to."""


def read_rows(
    source: SourceConfig, *, key: str, bad_rows: BadRows | None = None
) -> Iterator[tuple[str, Row]]:
    """Yield (location, row) after the mapper, at most `source.limit` of them.

    A location is `<source>:<row index from 0>`. `key` is the recipe key of the source, named in every error.
    Raises DataError for a source that is missing, unreadable or empty, and for a bad row; `bad_rows` takes those
    instead, as long as there is a good one.
    """
    num_read = 0
    for location, row in _mapped(_open(source, key=key), source, key=key):
        if isinstance(row, DataError):
            if bad_rows is None:
                raise row
            bad_rows.append((location, row))
            continue
        yield location, row
        num_read += 1
        if num_read == source.limit:
            return
    if num_read == 0 and bad_rows:
        raise bad_rows[0][1]
    if num_read == 0:
        left_out = " (or source.mapper left every row out)" if source.mapper else ""
        raise DataError(f"{key}: {describe(source)} is empty{left_out}; expected at least one row.")


def describe(source: SourceConfig) -> str:
    """The file, data set or generator, as the recipe names it."""
    return source.file or source.dataset or str(source.generator)


def _open(source: SourceConfig, *, key: str) -> Iterator[LocatedRow]:
    if source.file is not None:
        return _read_path(Path(source.file), source.split, key=key)
    if source.dataset is not None:
        return _read_hub(source.dataset, source.split, key=key)
    return _generate(source, key=key)


def _mapped(rows: Iterable[LocatedRow], source: SourceConfig, *, key: str) -> Iterator[LocatedRow]:
    mapper = load_function(source.mapper, key=f"{key}.mapper") if source.mapper else None
    for location, row in rows:
        if isinstance(row, DataError):
            yield location, row
        elif not isinstance(row, Mapping):
            problem = f"is a {type(row).__name__}, expected a mapping of columns: {row!r:.80}"
            yield location, DataError(f"{key}: row {location} {problem}")
        elif mapper is None:
            yield location, row
        else:
            mapped = _apply(mapper, row, where=f"{key}.mapper: {source.mapper} on row {location}")
            if mapped is not None:
                yield location, mapped


def _apply(mapper: Callable[[Row], Any], row: Row, *, where: str) -> Row | DataError | None:
    try:
        mapped = mapper(row)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError) as error:
        return _because(
            error, f"{where} raised {type(error).__name__}: {error}. The row's columns: {sorted(row)}."
        )
    if mapped is not None and not isinstance(mapped, Mapping):
        return DataError(
            f"{where} returned a {type(mapped).__name__}, expected a mapping, or None to leave the row out."
        )
    return mapped


def _because(error: Exception, message: str) -> DataError:
    problem = DataError(message)
    problem.__cause__ = error
    return problem


def _read_path(path: Path, split: str, *, key: str) -> Iterator[LocatedRow]:
    if not path.exists():
        raise DataError(f"{key}.file: there is no file or folder {str(path)!r} (looked in {Path.cwd()}).")
    if path.is_file():
        yield from _read_file(path, key=key)
    elif (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        yield from _read_saved(path, split, key=key)
    else:
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not files:
            raise DataError(
                f"{key}.file: folder {str(path)!r} holds no .jsonl or .parquet file "
                "and no data set written by save_to_disk."
            )
        for file in _of_split(files, split, key=key):
            yield from _read_file(file, key=key)


def _of_split(files: list[Path], split: str, *, key: str) -> list[Path]:
    """The files named after the split (test.jsonl, test-00000-of-00002.parquet); all, if none is named so.

    Raises DataError where the names speak of other splits only: reading those would train on a test set.
    """
    chosen = [file for file in files if _speaks_of(split, file)]
    if not chosen and any(_speaks_of(other, file) for other in SPLITS for file in files):
        raise DataError(
            f"{key}.split: {str(files[0].parent)!r} has no file of the split {split!r}, it has "
            f"{[file.name for file in files]}. Name another split, or one file in {key}.file."
        )
    return chosen or files


def _speaks_of(split: str, file: Path) -> bool:
    words, wanted = (re.sub(r"[_.\s]", "-", text.lower()) for text in (file.stem, split))
    return f"-{wanted}-" in f"-{words}-"


def _read_file(file: Path, *, key: str) -> Iterator[LocatedRow]:
    if file.suffix not in SUFFIXES:
        raise DataError(
            f"{key}.file: {str(file)!r} ends in {file.suffix!r}, expected one of {', '.join(SUFFIXES)}."
        )
    return _read_jsonl(file, key=key) if file.suffix == ".jsonl" else _read_parquet(file, key=key)


def _read_jsonl(file: Path, *, key: str) -> Iterator[LocatedRow]:
    with file.open("rb") as lines:
        for index, encoded in enumerate(lines):
            location, where = f"{file.name}:{index}", f"{key}.file: {file} line {index + 1}"
            try:
                line = encoded.decode("utf-8-sig" if index == 0 else "utf-8")
                if line.strip():
                    yield location, json.loads(line)
            except UnicodeDecodeError as error:
                what = f"is not UTF-8: {error.reason} at byte {error.start + 1}; save the file as UTF-8."
                yield location, _because(error, f"{where} {what}")
            except json.JSONDecodeError as error:
                what = (
                    f"is not JSON: {error.msg} at column {error.colno}; found {line.strip()!r:.80}, expected one "
                    "JSON object per line."
                )
                yield location, _because(error, f"{where} {what}")


def _read_parquet(file: Path, *, key: str) -> Iterator[LocatedRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
            for index, row in enumerate(rows):
                yield f"{file.name}:{index}", row
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{key}.file: {file} is not a readable Parquet file: {error}") from error


def _read_saved(folder: Path, split: str, *, key: str) -> Iterator[LocatedRow]:
    import datasets

    loaded = datasets.load_from_disk(str(folder))
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise DataError(f"{key}.split: {str(folder)!r} has no split {split!r}, it has {sorted(loaded)}.")
        loaded = loaded[split]
    yield from _located(folder.name, loaded)


def _read_hub(name: str, split: str, *, key: str) -> Iterator[LocatedRow]:
    import datasets

    path, _, config = name.partition(":")
    try:
        loaded = datasets.load_dataset(path, config or None, split=split)
    except (OSError, ValueError) as error:  # not found, no network, unknown config or split
        raise DataError(
            f"{key}.dataset: the data set {name!r} (split {split!r}) could not be loaded: {error}. "
            "Expected a hub name, 'name' or 'name:config'; without network access download it first "
            "and give its folder as `file`."
        ) from error
    yield from _located(name, loaded)


def _generate(source: SourceConfig, *, key: str) -> Iterator[LocatedRow]:
    generator = load_function(str(source.generator), key=f"{key}.generator")
    size = {} if source.limit is None else {"size": source.limit}
    try:
        rows = generator(seed=source.seed, **size, **source.kwargs)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{key}.generator: {source.generator} called with {size | source.kwargs} failed: {error}"
        ) from error
    # A file's name, not where it lies: ids enter the seeds of samples.
    yield from _located(str(source.generator).rpartition("/")[2], rows)


def _located(name: str, rows: Iterable[Any]) -> Iterator[LocatedRow]:
    for index, row in enumerate(rows):
        yield f"{name}:{index}", row
