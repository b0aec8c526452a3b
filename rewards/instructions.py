"""The checks behind `rewards.instruction_checks`: each says whether a response keeps one instruction.

The ids and the names of the arguments are IFEval's (arXiv 2311.07911). What is counted is stricter than there in one
way: of what must come often (sentences, bullets, placeholders...) each counts once, and nothing that is empty counts.
"""
# ruff: noqa: RUF001 (other alphabets' commas)

import json
import re
from collections.abc import Callable, Sequence

from rewards.language import language_code, share
from rewards.prose import paragraphs, sentences, words
from rewards.response_format import has_text
from rlhf.errors import DataError

LANGUAGE_SHARE = 0.9
AROUND = 0.1
"""`around` n allows this share of n more or less, at least 1."""
DEFAULT_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_DIVIDER = re.compile(r"^[ \t]*\*[ \t]?\*[ \t]?\*[ \t]*$", re.MULTILINE)
_BULLET = re.compile(r"^[ \t]*[-*+•][ \t]+(\S.*)$", re.MULTILINE)
_HIGHLIGHT = re.compile(r"(?<!\*)(\*{1,2})(?![\s*])([^\n*]+)(?<!\s)\1(?!\*)")
_PLACEHOLDER = re.compile(r"\[([^\[\]\n]+)\]")
_TITLE = re.compile(r"<<([^<>\n]+)>>")
_SIX_STARS = re.compile(r"(?<!\*)\*{6}(?!\*)")
_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL | re.IGNORECASE)


def keywords_existence(text: str, *, keywords: Sequence[str]) -> bool:
    """Every keyword stands in the text as a word (or words) of its own, in any case."""
    return all(occurrences(keyword, text) for keyword in _list(keywords, "keywords"))


def keyword_frequency(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    """The keyword stands so often in the text."""
    return holds(occurrences(keyword, text), relation, frequency)


def forbidden_words(text: str, *, forbidden_words: Sequence[str]) -> bool:
    """None of the words stands in the text."""
    return not any(occurrences(word, text) for word in _list(forbidden_words, "forbidden_words"))


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    """The character comes so often, in any case."""
    if len(letter) != 1:
        raise DataError(f"letter is {letter!r}, expected one character.")
    return holds(text.casefold().count(letter.casefold()), let_relation, let_frequency)


def response_language(text: str, *, language: str) -> bool:
    """At least nine in ten of the words that can be told are the language's."""
    return (share(text, language_code(language)) or 0.0) >= LANGUAGE_SHARE


def number_sentences(text: str, *, num_sentences: int, relation: str) -> bool:
    """So many sentences."""
    return holds_distinct(sentences(text), relation, num_sentences)


def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Exactly so many paragraphs, divided by lines of `***`."""
    parts = [part.strip() for part in _DIVIDER.split(text)]
    return all(map(has_text, parts)) and holds_distinct(parts, "exactly", num_paragraphs)


def number_words(text: str, *, num_words: int, relation: str) -> bool:
    """So many words."""
    return holds(len(words(text)), relation, num_words)


def nth_paragraph_first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Exactly so many paragraphs, divided by blank lines; the nth (from 1) begins with the word, in any case."""
    if not 1 <= nth_paragraph <= num_paragraphs:
        raise DataError(f"nth_paragraph is {nth_paragraph}, expected 1 to num_paragraphs = {num_paragraphs}.")
    parts = paragraphs(text)
    if not holds_distinct(parts, "exactly", num_paragraphs):
        return False
    return [w.casefold() for w in words(parts[nth_paragraph - 1])[:1]] == [first_word.strip().casefold()]


def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    """At least so many placeholders such as [address]."""
    return holds_distinct(filter(has_text, _PLACEHOLDER.findall(text)), "at least", num_placeholders)


def postscript(text: str, *, postscript_marker: str) -> bool:
    """After the response, a line that begins with the marker (spaces after its dots are free) and goes on."""
    phrase = _text(postscript_marker, "postscript_marker").rstrip(".")
    letters = r"\.[ ]?".join(map(re.escape, phrase.split(".")))
    found = re.search(rf"^[ \t*_]*{letters}(?!\w)\.?", text, re.MULTILINE | re.IGNORECASE)
    return found is not None and has_text(text[: found.start()]) and has_text(text[found.end() :])


def number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    """Exactly so many bullet points."""
    return holds_distinct(filter(has_text, _BULLET.findall(text)), "exactly", num_bullets)


def constrained_response(text: str, *, options: Sequence[str] = DEFAULT_OPTIONS) -> bool:
    """One of the options stands in the text, and no other."""
    rest, found = text, 0
    for option in sorted(_list(options, "options"), key=len, reverse=True):
        found += bool(occurrences(option, rest, exact_case=True))
        rest = rest.replace(option, "\n")
    return found == 1


def number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    """At least so many parts in *asterisks* or **two of them**."""
    marked = [content for _, content in _HIGHLIGHT.findall(text)]
    return holds_distinct(filter(has_text, marked), "at least", num_highlights)


def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least so many sections: lines that begin with the word and a number, each followed by some text."""
    heading = re.compile(
        rf"^[ \t#*_]*{re.escape(_text(section_spliter, 'section_spliter'))}[ \t]?(\d+)", re.MULTILINE
    )
    pieces = heading.split(text)
    return holds_distinct(
        [number for number, body in zip(pieces[1::2], pieces[2::2], strict=True) if has_text(body)],
        "at least",
        num_sections,
    )


def json_format(text: str) -> bool:
    """The whole text, or a code block that is the whole text, is a JSON object or list with something in it."""
    fenced = _FENCE.fullmatch(text.strip())
    try:
        found = json.loads(fenced[1] if fenced else text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict | list) and bool(found)


def title(text: str) -> bool:
    """A title in <<double angular brackets>>, and a text beside it."""
    return any(map(has_text, _TITLE.findall(text))) and has_text(_TITLE.sub("", text))


def two_responses(text: str) -> bool:
    """Two different responses, divided by ******."""
    parts = _SIX_STARS.split(text)
    return len(parts) == 2 and all(map(has_text, parts)) and _plain(parts[0]) != _plain(parts[1])


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    """The prompt, word for word, then an answer."""
    said, asked = text.strip().casefold(), _text(prompt_to_repeat, "prompt_to_repeat").casefold()
    return said.startswith(asked) and has_text(said[len(asked) :])


def constrained_start(text: str, *, starter: str) -> bool:
    """The text begins with the phrase and goes on."""
    phrase = _text(starter, "starter")
    return text.strip().startswith(phrase) and has_text(text.strip()[len(phrase) :])


def end_checker(text: str, *, end_phrase: str) -> bool:
    """The text ends with the phrase, in any case; something stands before it."""
    said, phrase = (
        text.strip().strip('"').strip().casefold(),
        _text(end_phrase, "end_phrase").casefold(),
    )
    return said.endswith(phrase) and has_text(said.removesuffix(phrase))


def quotation(text: str) -> bool:
    """The whole text stands in double quotation marks."""
    said = text.strip()
    return len(said) > 1 and said[0] == said[-1] == '"' and has_text(said)


def capital_word_frequency(text: str, *, capital_frequency: int, capital_relation: str) -> bool:
    """So many words in capital letters."""
    return holds(sum(word.isupper() for word in words(text)), capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    """No small letters, and, as far as that can be told, English."""
    return text.isupper() and _is_english(text)


def english_lowercase(text: str) -> bool:
    """No capital letters, and, as far as that can be told, English."""
    return text.islower() and _is_english(text)


def no_comma(text: str) -> bool:
    """No comma of any script."""
    return not any(comma in text for comma in ",，、،")


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": keywords_existence,
    "keywords:frequency": keyword_frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "multi-turn:constrained_start": constrained_start,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}
"""Instruction id -> its check, called with the response and the instruction's arguments by name."""


def holds(count: int, relation: str, number: int) -> bool:
    """Whether `count` is, say, `at least` the number."""
    return _holds(count, count, relation, number)


def holds_distinct(found: "filter[str] | Sequence[str]", relation: str, number: int) -> bool:
    """As `holds`; an item said twice counts once towards a minimum, and twice towards a maximum."""
    items = [_plain(item) for item in found]
    return _holds(len(set(items)), len(items), relation, number)


def _holds(low: int, high: int, relation: str, number: int) -> bool:
    slack = max(round(AROUND * number), 1)
    verdicts = {
        "at least": low >= number,
        "more than": low > number,
        "at most": high <= number,
        "less than": high < number,
        "exactly": low == high == number,
        "around": low >= number - slack and high <= number + slack,
    }
    if relation not in verdicts:
        raise DataError(f"relation is {relation!r}, expected one of {', '.join(verdicts)}.")
    return verdicts[relation]


def occurrences(phrase: str, text: str, *, exact_case: bool = False) -> int:
    """How often the phrase stands in the text, not as a part of a longer word."""
    phrase = _text(phrase, "a keyword")
    pattern = r"\s+".join(map(re.escape, phrase.split()))
    before = r"(?<!\w)" if phrase[0].isascii() and phrase[0].isalnum() else ""
    after = r"(?!\w)" if phrase[-1].isascii() and phrase[-1].isalnum() else ""
    return len(re.findall(before + pattern + after, text, 0 if exact_case else re.IGNORECASE))


def _list(value: Sequence[str], name: str) -> Sequence[str]:
    if isinstance(value, str) or not value:
        raise DataError(
            f"{name} is {value!r}, expected a list of texts: without one, every response would do."
        )
    return value


def _text(value: str, name: str) -> str:
    if not value.strip():
        raise DataError(f"{name} is {value!r}, expected a text: without one, every response would do.")
    return value.strip()


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold())) or text.strip()


def _is_english(text: str) -> bool:
    found = share(text, "en")
    return found is None or found >= LANGUAGE_SHARE


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
