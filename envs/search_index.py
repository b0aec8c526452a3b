"""BM25 over a JSONL corpus: an index on disk, mapped into memory, so that any number of processes share one copy.

The corpus has a document per line: `id`, `text` and, if it has one, `title`. Build the index of a large corpus ahead of
the run (`python -m envs.search_index corpus.jsonl`): else it is built while the environment is loaded, for which
`timeouts.start_s` is the limit.
"""

import fcntl
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.errors import DataError

SUFFIX = ".bm25"
K1, B = 1.2, 0.75
"""As Lucene has them."""
MAX_QUERY_TERMS = 64
_FORMAT = 1
_WORD = re.compile(r"[^\W_]+")
_ARRAYS = ("lines", "ids", "id_lines", "terms", "starts", "postings", "weights")


@dataclass(frozen=True, slots=True)
class Document:
    """A document, with its score for the query that found it."""

    id: str
    title: str
    text: str
    score: float = 0.0


class SearchIndex:
    """Source: Robertson and Zaragoza's BM25, with Lucene's idf, which is never negative."""

    def __init__(self, corpus: str | Path, *, folder: str | Path | None = None) -> None:
        self._corpus = Path(corpus)
        self._folder = build(self._corpus, folder)
        self._arrays = {name: np.load(self._folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}

    def __len__(self) -> int:
        return len(self._arrays["lines"]) - 1

    def search(self, query: str, k: int) -> list[Document]:
        """The `k` best documents that have a word of the query, best first; equals in the corpus's order."""
        terms = [_hash(word) for word in list(dict.fromkeys(words(query)))[:MAX_QUERY_TERMS]]
        spans = [span for term in terms if (span := self._span(term)) is not None]
        if not spans or k < 1:
            return []
        postings = np.concatenate([self._arrays["postings"][start:stop] for start, stop in spans])
        weights = np.concatenate([self._arrays["weights"][start:stop] for start, stop in spans])
        found, where = np.unique(postings, return_inverse=True)
        scores = np.bincount(where, weights=weights)
        best = np.lexsort((found, -scores))[:k]
        return [self._document(int(found[i]), float(scores[i])) for i in best]

    def open(self, id: str) -> Document | None:  # noqa: A002 -- the corpus's word
        """The document of that id."""
        key = _hash(id)
        i = int(np.searchsorted(self._arrays["ids"], key))
        if i == len(self) or self._arrays["ids"][i] != key:
            return None
        return self._document(int(self._arrays["id_lines"][i]), 0.0)

    def _span(self, term: np.uint64) -> tuple[int, int] | None:
        terms, starts = self._arrays["terms"], self._arrays["starts"]
        i = int(np.searchsorted(terms, term))
        return (int(starts[i]), int(starts[i + 1])) if i < len(terms) and terms[i] == term else None

    def _document(self, number: int, score: float) -> Document:
        # Opened anew: processes that were forked would share one file's position.
        with self._corpus.open("rb") as file:
            file.seek(int(self._arrays["lines"][number]))
            row = json.loads(file.readline())
        return Document(str(row["id"]), str(row.get("title") or ""), str(row["text"]), score)


@lru_cache(maxsize=8)
def shared_index(corpus: str, folder: str | None = None) -> SearchIndex:
    """The process's one index of a corpus; opened before a fork, its forks have it, too."""
    return SearchIndex(corpus, folder=folder)


def words(text: str) -> list[str]:
    """The words that are indexed: letters and digits, in lower case."""
    return _WORD.findall(text.lower())


def build(corpus: Path, folder: str | Path | None = None) -> Path:
    """The folder of the corpus's index, made if it is not there or was made of another corpus.

    By default it lies beside the corpus. DataError for a line that is no document, or a folder that cannot be written.
    """
    if not corpus.is_file():
        raise DataError(f"there is no corpus {str(corpus)!r} (looked in {Path.cwd()}).")
    target = Path(folder) if folder is not None else corpus.with_name(corpus.name + SUFFIX)
    state = corpus.stat()
    stamp = {"format": _FORMAT, "size": state.st_size, "modified_ns": state.st_mtime_ns, "k1": K1, "b": B}
    if _stamp(target) == stamp:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with corpus.open("rb") as lock:
            # Of many episodes that begin at once, one builds.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _stamp(target) != stamp:
                _write(corpus, target, stamp)
    except OSError as error:
        raise DataError(
            f"the index of {str(corpus)!r} cannot be written to {str(target)!r} ({error}). Set kwargs.index to a "
            "folder that can be written, or make the index ahead: python -m envs.search_index CORPUS [FOLDER]."
        ) from error
    return target


def _write(corpus: Path, target: Path, stamp: Mapping[str, Any]) -> None:
    made = Path(tempfile.mkdtemp(prefix=target.name, dir=target.parent))
    try:
        for name, values in _index(corpus).items():
            np.save(made / f"{name}.npy", values)
        (made / "stamp.json").write_text(json.dumps(stamp))
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _index(corpus: Path) -> dict[str, NDArray[Any]]:
    lines, ids, lengths = array("q"), array("Q"), array("i")
    numbers: dict[str, int] = {}
    term, document, count = array("i"), array("i"), array("i")
    for start, row in _documents(corpus):
        lines.append(start)
        ids.append(int(_hash(str(row["id"]))))
        counts = Counter(words(f"{row.get('title') or ''} {row['text']}"))
        lengths.append(counts.total())
        term.extend([numbers.setdefault(word, len(numbers)) for word in counts])
        document.extend([len(lengths) - 1] * len(counts))
        count.extend(counts.values())
    if not lines:
        raise DataError(f"corpus {str(corpus)!r} is empty, expected a document per line.")
    lines.append(corpus.stat().st_size)
    key, order = np.array(ids, dtype=np.uint64), np.argsort(np.array(ids, dtype=np.uint64), kind="stable")
    if len(np.unique(key)) < len(key):
        raise DataError(
            f"corpus {str(corpus)!r}: an id occurs twice, expected a different one for each document."
        )
    index = {"lines": np.array(lines), "ids": key[order], "id_lines": order.astype(np.int32)}
    columns = tuple(np.frombuffer(column, dtype=np.int32) for column in (term, document, count))
    return index | _postings(numbers, np.array(lengths, dtype=np.float32), columns)


def _postings(
    numbers: Mapping[str, int], lengths: NDArray[np.float32], columns: Sequence[NDArray[np.int32]]
) -> dict[str, NDArray[Any]]:
    """Documents and weights of each term, terms in the order of their hashes."""
    term, document, count = columns
    hashes = np.fromiter(map(_hash, numbers), dtype=np.uint64, count=len(numbers))
    by_hash = np.argsort(hashes)
    rank = np.empty(len(hashes), dtype=np.int32)
    rank[by_hash] = np.arange(len(hashes), dtype=np.int32)
    ranks = rank[term] if len(hashes) else term
    order = np.argsort(ranks, kind="stable")
    frequency = np.bincount(ranks, minlength=len(hashes))
    idf = np.log1p((len(lengths) - frequency + 0.5) / (frequency + 0.5))
    norm = K1 * (1 - B + B * lengths / max(float(lengths.mean()), 1.0))
    weights = idf[ranks] * count / (count + norm[document])
    return {
        "terms": hashes[by_hash],
        "starts": np.concatenate([[0], np.cumsum(frequency)]).astype(np.int64),
        "postings": document[order],
        "weights": weights[order].astype(np.float32),
    }


def _documents(corpus: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    start = 0
    with corpus.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                if not isinstance(row["text"], str):
                    raise TypeError("text is no text")
                row["id"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{corpus}:{number}: expected an object with `id` and `text`, found {line[:80]!r} ({error!r})."
                ) from error
            yield start, row
            start += len(line)


def _hash(text: str) -> np.uint64:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def _stamp(folder: Path) -> Any:
    try:
        return json.loads((folder / "stamp.json").read_text())
    except (OSError, ValueError):
        return None


def main() -> None:
    """Build an index: CORPUS [FOLDER]."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(sys.argv) not in (2, 3):
        raise SystemExit(f"usage: python -m envs.search_index CORPUS [FOLDER], found {sys.argv[1:]}")
    index = SearchIndex(sys.argv[1], folder=os.fspath(sys.argv[2]) if len(sys.argv) == 3 else None)
    logging.getLogger(__name__).info("%d documents are indexed", len(index))


if __name__ == "__main__":
    main()
