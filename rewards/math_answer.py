r"""Rewards a final answer that is mathematically the reference: 1 or 0, exact, no model text evaluated.

Only text after the last `</think>` counts. The answer is, in this order: the last complete `<answer>` pair;
the last complete `\boxed` or `\fbox`; the last `####` before a number or formula; what follows "the answer is";
any other `####`. What equals what is decided in `rewards.math_equality`.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rewards import math_process
from rewards.math_equality import Rules, Verdict, is_list
from rewards.math_notation import number
from rlhf.errors import DataError
from rlhf.types import RewardResult

TAIL_CHARACTERS = 64_000
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?=[^\s{]))")
_BARE_BOX = re.compile(r"[^\s$]{0,100}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_MARKED = re.compile(r"####\s*+(?!\d+\.[ \t]+\S)([-+−$\\(\[{.\d][^\n]*)")  # noqa: RUF001
_PHRASE = re.compile(r"answer[\s*]*+(?:is|are|:|=)[\s*]*+:?[\s*]*+([^\n]+)", re.IGNORECASE)
_PHRASE_END = re.compile(r"\.(?=\s|$)|,?\s(?:since|because)\b|,\sas\b")
_LAST_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")
_WORKED_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|\.\d+")


def grade(
    completion: str, reference: str | None, *, lenient: bool = False, prompt_opens_think: bool = False
) -> RewardResult:
    """1 when the completion's final answer equals `reference`, else 0.

    Outcomes: ok, wrong, unparsable (no final answer), limit (an expression too large to compare); error with
    value None when the reference itself is empty or does not equal itself. `lenient` also takes the last
    number of a completion that marks no answer. Set `prompt_opens_think` when the chat template itself ends in
    `<think>`: a completion without `</think>` then is an unfinished thought and gives no answer.
    """
    gold, problem = _gold(reference)
    if problem:
        return RewardResult(
            value=None, outcome="error", detail={"error": f"reference {reference!r} {problem}"}
        )
    if prompt_opens_think:
        completion = "<think>" + completion
    answer = extract(completion, several=is_list(gold), lenient=lenient)
    if answer is None:
        return RewardResult(value=0.0, outcome="unparsable")
    verdict = _compare(gold, answer)
    outcome = {Verdict.EQUAL: "ok", Verdict.DIFFERENT: "wrong", Verdict.TOO_LARGE: "limit"}[verdict]
    value = 1.0 if verdict is Verdict.EQUAL else 0.0
    return RewardResult(value=value, outcome=outcome, detail={"answer": answer[:200]})  # type: ignore[arg-type]


def warm_up() -> None:
    """Import the symbolic back end (half a second) outside every deadline; reward workers call it once."""
    math_process.start()


_compare = lru_cache(maxsize=8192)(math_process.compare)


@lru_cache(maxsize=65536)
def _gold(reference: str | None) -> tuple[str, str]:
    """The gold within the reference (which may be a whole solution with #### or a box), and its problem."""
    if reference is None or not reference.strip():
        return "", "is empty"
    gold = _boxed(reference, several=False)
    if gold is None and "####" in reference:
        gold = reference.rpartition("####")[2]
    gold = (reference if gold is None else gold).strip()
    if not gold:
        return "", "marks an empty answer"
    return gold, "" if math_process.compare(gold, gold) is Verdict.EQUAL else "does not equal itself"


def extract(completion: str, *, several: bool = False, lenient: bool = False) -> str | None:
    """The completion's final answer; None when it gives none. `several`: boxes of one line form a list."""
    text = visible(completion)
    if text is None:
        return None
    text = text[-TAIL_CHARACTERS:]
    close = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, close) if close >= 0 else -1
    if start >= 0:
        text = text[start + len("<answer>") : close]
        boxed = _boxed(text, several=several)
        answer = boxed if boxed is not None else _phrase(text) or text
    elif _BOX.search(text):
        answer = _boxed(text, several=several) or ""
    else:
        answer = _marked(text) or _phrase(text) or (_last_number(text) if lenient else "") or _heading(text)
    return answer.strip() or None


def visible(completion: str) -> str | None:
    """What follows the last `</think>`; None while a think block is still open."""
    text = completion.rpartition("</think>")[2]
    return None if "<think>" in text else text


def _boxed(text: str, *, several: bool) -> str | None:
    """Content of the last complete box, or of all on its line; None without one."""
    closing = _closing_braces(text)
    boxes: list[tuple[int, str]] = []
    for match in _BOX.finditer(text):
        start, stop = match.end(), closing.get(match.end() - 1)
        if not match.group().endswith("{"):
            boxes.append((match.start(), _BARE_BOX.match(text, start)[0]))  # type: ignore[index]
        elif stop is not None:
            boxes.append((match.start(), text[start:stop]))
    if not boxes:
        return None
    if several:
        line = text.rfind("\n", 0, boxes[-1][0])
        return ", ".join(content for start, content in boxes if start > line)
    return boxes[-1][1]


def _closing_braces(text: str) -> dict[int, int]:
    """Place of every matched opening brace -> place of its closing one, in one pass over any text."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for match in _BRACE.finditer(text):
        if match.group() == "{":
            opened.append(match.start())
        elif match.group() == "}" and opened:
            closing[opened.pop()] = match.start()
    return closing


def _marked(text: str) -> str:
    found = _MARKED.findall(text)
    return found[-1] if found else ""


def _heading(text: str) -> str:
    return text.rpartition("####")[2].strip().partition("\n")[0] if "####" in text else ""


def _phrase(text: str) -> str:
    found = _PHRASE.findall(text)
    return _PHRASE_END.split(found[-1])[0].strip(" *") if found else ""


def _last_number(text: str) -> str:
    found = _LAST_NUMBER.findall(text)
    return found[-1] if found else ""


def gsm8k_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Map a GSM8K row {question, answer} to {prompt, reference, gold_doubt}.

    The gold follows `####`. A row whose answer marks no number gets an empty reference. `gold_doubt` says why
    the gold may be wrong: missing, no number, or a number that its own solution never mentions ("": no
    doubt).
    """
    if "question" not in row or "answer" not in row:
        raise DataError(f"gsm8k_row needs the columns question and answer, found {', '.join(row) or 'none'}.")
    work, marker, gold = str(row["answer"]).rpartition("####")
    gold = gold.strip()
    value = number(gold)
    if not marker:
        doubt = "the answer has no '####' followed by a gold number"
    elif value is None:
        doubt = f"the gold after '####' is {gold!r}, not a number"
    else:
        doubt = "" if _mentions(work, value) else f"the worked solution never mentions its gold {gold}"
    is_usable = bool(marker) and value is not None
    return {"prompt": row["question"], "reference": gold if is_usable else "", "gold_doubt": doubt}


def _mentions(work: str, value: Fraction) -> bool:
    """Whether the worked solution has the number, up to sign, cents for dollars, and `100 000` for 100000."""
    joined = re.sub(r"(?<=\d) (?=\d{3}\b)", "", work)
    texts = _WORKED_NUMBER.findall(work) + (_WORKED_NUMBER.findall(joined) if joined != work else [])
    found = {abs(Fraction(text.replace(",", ""))) for text in texts}
    return abs(value) in found or abs(value) / 100 in found
