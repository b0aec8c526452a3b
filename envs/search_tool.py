"""Search in a corpus on disk, to answer questions from it.

Reads rows with a `prompt` and a `reference`: the answer, or a JSON list of answers of which any will do
(`rewards.search_answers`). The corpus is a JSONL file with `id`, `text` and perhaps `title` on each line; its index
lies beside it, or in the folder `index`, and is mapped into memory: every episode of a machine shares one copy. See
`envs.search_index` for building it ahead.

    task: {environment: {use: "envs.search_tool:SearchTool", kwargs: {corpus: data/passages.jsonl}}}
"""

from collections.abc import Mapping
from typing import Any

from envs.answers import Grade, load_grade, score_answer
from envs.search_index import Document, SearchIndex, shared_index
from rlhf.interfaces import Context
from rlhf.types import Prompt

MAX_RESULTS = 20


def warm_up(corpus: str | None = None, index: str | None = None, **_: Any) -> None:
    """Build or open the index in the process that episodes are forked from, within `timeouts.start_s`."""
    if corpus is not None:
        shared_index(corpus, index)


class SearchTool:
    """Tools `search` and `open`. Scores the final answer by `grade`: exact match, or `rewards.search_answers:f1`."""

    def __init__(  # noqa: PLR0913 -- each is a key of the recipe
        self,
        *,
        corpus: str,
        index: str | None = None,
        grade: str | Grade = "rewards.search_answers:exact_match",
        options: Mapping[str, Any] | None = None,
        max_characters: int = 500,
        max_opened_characters: int = 8000,
    ) -> None:
        self._where = (corpus, index)
        self._grade = load_grade(grade)
        self._options = dict(options or {})
        self._max_characters = max_characters
        self._max_opened_characters = max_opened_characters
        self._num_searches = 0

    def reset(self, prompt: Prompt, context: Context) -> None:  # noqa: ARG002 -- the protocol's
        """The prompt's own messages. DataError for a corpus that cannot be used."""
        self._index: SearchIndex = shared_index(*self._where)

    def search(self, query: str, k: int = 3) -> str:
        """Search the corpus; shows the beginning of the best documents.

        Args:
            query: words to look for
            k: how many documents, at most 20
        """
        self._num_searches += 1
        found = self._index.search(query, min(k, MAX_RESULTS))
        return "\n\n".join(_shown(document, self._max_characters) for document in found) or "nothing found"

    def open(self, id: str) -> str:  # noqa: A002 -- the model writes it
        """Show a document.

        Args:
            id: as `search` shows it
        """
        document = self._index.open(id)
        if document is None:
            raise KeyError(f"there is no document {id[:80]!r}")
        return _shown(document, self._max_opened_characters)

    def score(self, context: Context) -> float:
        """The value of the final answer."""
        context.log(searches=self._num_searches)
        return score_answer(context, self._grade, self._options)


def _shown(document: Document, max_characters: int) -> str:
    text = document.text
    shown = text if len(text) <= max_characters else f"{text[:max_characters]} [...]"
    return f"[{document.id}] {document.title}\n{shown}" if document.title else f"[{document.id}] {shown}"
