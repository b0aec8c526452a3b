"""Rewards for short answers to questions (search, reading): exact match, F1 and containment, as SQuAD normalises.

The gold is `reference`: one text, a JSON list of texts of which any will do, or Search-R1's `{"target": [...]}`
(a row whose gold column is a list comes as JSON by itself). The answer is the last `<answer>` pair after the last
`</think>`; with `tagged: false` all that follows it, where there is no pair. Source: SQuAD (arXiv 1606.05250).
"""

import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from rewards.response_format import visible
from rlhf.errors import DataError
from rlhf.types import RewardResult

MAX_WORDS = 20
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_ARTICLES = frozenset(["a", "an", "the"])
_VERDICTS = frozenset(["yes", "no", "noanswer"])


def exact_match(
    completion: str, reference: str | None, *, tagged: bool = True, prompt_opens_think: bool = False
) -> RewardResult:
    """1 when the answer is one of the golds, but for case, punctuation, articles and spacing; else 0."""
    answers = golds(reference)
    answer = extract(completion, tagged=tagged, prompt_opens_think=prompt_opens_think)
    return _result(answer, float(answer is not None and normalise(answer) in answers))


def f1(
    completion: str, reference: str | None, *, tagged: bool = True, prompt_opens_think: bool = False
) -> RewardResult:
    """The best F1 of the answer's words with a gold's; 0 where one of them is yes or no and they differ."""
    answers = golds(reference)
    answer = extract(completion, tagged=tagged, prompt_opens_think=prompt_opens_think)
    return _result(answer, 0.0 if answer is None else max(_f1(normalise(answer), gold) for gold in answers))


def contains(
    completion: str,
    reference: str | None,
    *,
    tagged: bool = True,
    prompt_opens_think: bool = False,
    max_words: int = MAX_WORDS,
) -> RewardResult:
    """1 when a gold stands in the answer, word for word, else 0 (containment, "SubEM").

    An answer of more than `max_words` words is 0, or listing every name would pay; so is one that says both yes
    and no to a gold that is one of them.
    """
    answers = golds(reference)
    answer = extract(completion, tagged=tagged, prompt_opens_think=prompt_opens_think)
    words = () if answer is None else normalise(answer)
    is_in = len(words) <= max_words and any(_contains(words, gold) for gold in answers)
    return _result(answer, float(is_in))


def extract(completion: str, *, tagged: bool, prompt_opens_think: bool = False) -> str | None:
    """The answer as written; None when there is none."""
    text = visible(completion, prompt_opens_think=prompt_opens_think)
    if text is None:
        return None
    found = _ANSWER.findall(text)
    answer = found[-1] if found else "" if tagged else text
    return answer.strip() if normalise(answer) else None


@lru_cache(maxsize=4096)
def golds(reference: str | None) -> tuple[tuple[str, ...], ...]:
    """The words of every gold. DataError when there is none."""
    texts: Sequence[object] = [] if reference is None else [reference]
    if reference is not None and reference.lstrip()[:1] in ("[", "{"):
        try:
            parsed = json.loads(reference)
        except ValueError:
            parsed = reference
        parsed = parsed.get("target", reference) if isinstance(parsed, dict) else parsed
        texts = parsed if isinstance(parsed, list) else [parsed]
    found = tuple(dict.fromkeys(words for text in texts if (words := normalise(str(text)))))
    if not found:
        raise DataError(f"reference is {reference!r:.80}, expected an answer or a JSON list of answers.")
    return found


def normalise(text: str) -> tuple[str, ...]:
    """The words without case, punctuation and articles (which stay where there is nothing else)."""
    text = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(
        c
        for c in text
        if (c not in string.punctuation and unicodedata.category(c)[0] not in "PC") or c.isspace()
    )
    words = kept.split()
    return tuple(word for word in words if word not in _ARTICLES) or tuple(words)


def _f1(answer: tuple[str, ...], gold: tuple[str, ...]) -> float:
    if answer != gold and any(len(side) == 1 and side[0] in _VERDICTS for side in (answer, gold)):
        return 0.0
    common = sum((Counter(answer) & Counter(gold)).values())
    return 2 * common / (len(answer) + len(gold))


def _contains(words: tuple[str, ...], gold: tuple[str, ...]) -> bool:
    if len(gold) == 1 and gold[0] in _VERDICTS:
        return _VERDICTS.intersection(words) == set(gold)
    return any(words[i : i + len(gold)] == gold for i in range(len(words) - len(gold) + 1))


def _result(answer: str | None, value: float) -> RewardResult:
    if answer is None:
        return RewardResult(value=0.0, outcome="unparsable")
    return RewardResult(value=value, outcome="ok" if value == 1 else "wrong", detail={"answer": answer[:200]})
