"""Whether a prompt says what a test set says: a run of words in common, or, for short ones, the whole text."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from hashlib import blake2b

from rlhf.types import Prompt

_UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """Runs of letters and digits, whatever their case and width; a character each in scripts without spaces."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def normalised(text: str) -> str:
    """The text with case, white space and the width of characters made the same."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def asked(prompt: Prompt) -> str:
    """What the user says in a prompt."""
    return "\n".join(message.content for message in prompt.messages if message.role == "user")


class Benchmarks:
    """Texts that no prompt may repeat, by the name of their set.

    Held as digests of eight bytes: the texts of a benchmark need some megabytes.
    """

    def __init__(self, texts: Mapping[str, Iterable[str]], *, ngram: int) -> None:
        """`ngram` is how many words in a row may not be shared; a text with fewer is compared as a whole."""
        self._ngram = ngram
        self._names: dict[str, set[int]] = {}
        for name, of_set in texts.items():
            self._names[name] = {digest for text in of_set for digest in self._digests(text)}

    def containing(self, text: str) -> list[str]:
        """The names of the sets that share something with `text`, in their order."""
        digests = self._digests(text)
        return [name for name, known in self._names.items() if not known.isdisjoint(digests)]

    def _digests(self, text: str) -> set[int]:
        found, n = words(text), self._ngram
        if len(found) < n:
            return {_digest(normalised(text))} if text.strip() else set()
        return {_digest("\x00".join(found[i : i + n])) for i in range(len(found) - n + 1)}


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
