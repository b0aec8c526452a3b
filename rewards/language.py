"""Rewards a completion, or its chain of thought, for staying in one language: the share of words in that language.

Words are told apart by script, and where languages share a script, sentence by sentence through function words:
the sentence belongs to the language with most of them. A sentence with none, or with as many for two languages,
says nothing and is left out. Nothing is downloaded, and no model is asked.

What it cannot tell: languages that are not in `language_words` (Norwegian or Hungarian is taken for whichever of
the listed ones it shares words with, or for none), a few words of another Latin language inside a sentence, names,
dialects, and nonsense made of the right words (add `rewards.length:repetition` against loops).
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

from rewards.language_words import CHARACTERS_PER_WORD, FUNCTION_WORDS, LANGUAGES, SCRIPTS
from rewards.response_format import thought, visible
from rlhf.errors import DataError
from rlhf.types import RewardResult

MIN_DISTINCT_WORDS = 3
_NOT_PROSE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`"  # code
    r"|\$\$.{0,2000}?\$\$|\$[^$\n]{1,300}\$|\\\(.{0,2000}?\\\)|\\\[.{0,2000}?\\\]"
    r"|\\begin\{(\w{1,20}\*?)\}.{0,2000}?\\end\{\1\}|\\[a-zA-Z]+"  # math
    r"|https?://\S+|</?[a-zA-Z_]{1,20}>"
    r"|(?<!\w)[^\W\d_]*+[\d_=^][\w=^]*+",  # x1, a_n, n=3
    re.DOTALL,
)
_SENTENCE_END = re.compile(r"[.!?;:。！？；：\n।؟]+")  # noqa: RUF001
_FUNCTION = re.compile("sin|cos|tan|cot|sec|log|ln|exp|lim|max|min|mod|gcd|lcm|det|arg|sup|inf")
_MARK = "mark"


def consistency(
    completion: str,
    language: str,
    *,
    part: Literal["thought", "visible", "all"] = "thought",
    prompt_opens_think: bool = False,
) -> RewardResult:
    """The share (0 to 1) of words in `language` (a code such as `en`; a kwarg or a column) in a part of the completion.

    Code, math, addresses, tags and single letters are no words. A part with fewer than three distinct words, or
    none that can be told, is 0 with outcome unparsable. Source: the language consistency reward of DeepSeek-R1
    (arXiv 2501.12948): target-language words / words of the chain of thought, added to the task's reward.
    """
    code = language_code(language)
    texts = {
        "thought": thought(completion, prompt_opens_think=prompt_opens_think),
        "visible": visible(completion, prompt_opens_think=prompt_opens_think) or "",
        "all": completion,
    }
    if part not in texts:
        raise DataError(f"part is {part!r}, expected one of {', '.join(texts)}.")
    found = share(texts[part], code)
    if found is None:
        return RewardResult(value=0.0, outcome="unparsable")
    return RewardResult(value=found)


def language_code(language: str) -> str:
    """The code without its region (`pt-BR` is `pt`). DataError, with those known, for another language."""
    code = str(language).lower().replace("_", "-").partition("-")[0]
    if code not in LANGUAGES:
        raise DataError(f"language is {language!r}, expected one of {', '.join(sorted(LANGUAGES))}.")
    return code


def share(text: str, language: str) -> float | None:
    """The share of words that can be told to be `language`'s, of all that can be told; None if there are too few."""
    text = _NOT_PROSE.sub(" ", unicodedata.normalize("NFKC", text))
    text = text.casefold() if text.isupper() else text
    own = other = 0.0
    distinct: set[str] = set()
    for sentence in _SENTENCE_END.split(text):
        words = list(_words(sentence))
        verdicts: dict[str, bool | None] = {}
        for script, word in words:
            distinct.update(word if script in CHARACTERS_PER_WORD else [word])
            if script not in verdicts:
                verdicts[script] = _belongs(script, [w for s, w in words if s == script], words, language)
            weight = len(word) / CHARACTERS_PER_WORD.get(script, len(word))
            if verdicts[script] is not None:
                own, other = (own + weight, other) if verdicts[script] else (own, other + weight)
    if len(distinct) < MIN_DISTINCT_WORDS or not own + other:
        return None
    return own / (own + other)


def _belongs(script: str, words: list[str], sentence: list[tuple[str, str]], language: str) -> bool | None:
    """Whether the sentence's words of one script are the language's; None where that cannot be told."""
    if script == "cjk" and language in ("zh", "ja"):
        has_kana = any(other == "kana" for other, _ in sentence)
        return has_kana == (language == "ja") or (None if language == "ja" else False)
    if script not in FUNCTION_WORDS:
        return SCRIPTS.get(language) == script
    if language not in FUNCTION_WORDS[script]:
        return False
    counts = {name: sum(w in known for w in words) for name, known in FUNCTION_WORDS[script].items()}
    own, best_other = counts.pop(language), max(counts.values())
    if own > best_other:
        return True
    # One shared word ("per", "an") is no evidence of another language.
    return False if best_other >= own + 2 else None


def _words(sentence: str) -> Iterator[tuple[str, str]]:
    """(script, casefolded word) of the sentence, without variables, short names of points and math functions."""
    script, word = "", ""
    for character in sentence + " ":
        kind = _script(character)
        if kind == _MARK or (character in "'’" and word):  # noqa: RUF001
            word += "'" if character == "’" else character  # noqa: RUF001
        elif kind == script and word:
            word += character
        else:
            word = word.strip("'")
            is_symbol = len(word) == 1 and script in ("latin", "greek", "cyrillic")
            is_name = word.isupper() and len(word) <= 4
            if word and script and not is_symbol and not is_name and not _FUNCTION.fullmatch(word):
                yield script, word.casefold()
            script, word = kind, character if kind else ""


@lru_cache(maxsize=4096)
def _script(character: str) -> str:
    category = unicodedata.category(character)[0]
    if category == "M":
        return _MARK
    if category != "L":
        return ""
    script = unicodedata.name(character, "").partition(" ")[0].partition("-")[0].lower()
    return "kana" if script in ("hiragana", "katakana") else script
