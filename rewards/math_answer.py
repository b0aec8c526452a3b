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
from rewards.math_equality import Rules, Verdict, has_members
from rewards.math_notation import number, quantity
from rlhf.errors import DataError, RewardError
from rlhf.types import Outcome, RewardResult

TAIL_CHARACTERS = 64_000
MAX_CACHED = 2000
"""Longest texts whose verdicts are kept: 8192 of them are at most tens of megabytes."""
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?=[^\s{]))")
_BARE_BOX = re.compile(r"[^\s$]{0,100}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_MARKED = re.compile(r"####\s*+(?!\d+\.[ \t]+\S)([-+−$\\(\[{.\d][^\n]*)")  # noqa: RUF001
_PHRASE = re.compile(r"answer[\s*]*+(?:is|are|:|=)[\s*]*+:?[\s*]*+", re.IGNORECASE)
_PHRASE_END = re.compile(r"\.(?=\s|$)|,?\s(?:since|because)\b|,\sas\b")
_LAST_NUMBER = re.compile(r"-?\$?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?%?")
_WORKED_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|\.\d+")


def grade(  # noqa: PLR0913  # each is a key of the recipe or a column of the record
    completion: str,
    reference: str | None,
    *,
    tolerance: float | str | None = None,
    simplified: bool | None = None,
    lenient: bool = False,
    prompt_opens_think: bool = False,
) -> RewardResult:
    """1 when the completion's final answer equals `reference`, else 0.

    `tolerance`: largest difference of equal numbers, or with a percent sign ("1%") its share of the gold; none by
    default. `simplified` accepts no arithmetic that is still to be done. `lenient` also takes the last expression of
    a completion that marks no answer. Set `prompt_opens_think` when the chat template itself ends in `<think>`: a
    completion without `</think>` then is an unfinished thought and gives no answer.

    Outcomes: ok, wrong, unparsable (no final answer), limit (an expression too large or too slow to compare); error
    with value None when the reference or an option is not usable, or the comparing processes failed.
    """
    try:
        rules = _rules(tolerance, simplified)
        gold, is_list = _gold(reference)
        if prompt_opens_think:
            completion = "<think>" + completion
        answers = _candidates(completion, several=is_list, lenient=lenient)
        verdicts = {_compare(gold, answer, rules): answer for answer in answers}
    except (DataError, RewardError) as error:
        return RewardResult(value=None, outcome="error", detail={"error": str(error)})
    if not verdicts:
        return RewardResult(value=0.0, outcome="unparsable")
    outcomes: dict[Verdict, Outcome] = {
        Verdict.EQUAL: "ok",
        Verdict.TOO_LARGE: "limit",
        Verdict.DIFFERENT: "wrong",
    }
    verdict, outcome = next((v, o) for v, o in outcomes.items() if v in verdicts)
    value = 1.0 if verdict is Verdict.EQUAL else 0.0
    return RewardResult(value=value, outcome=outcome, detail={"answer": verdicts[verdict][:200]})


def warm_up() -> None:
    """Start the comparing processes (half a second) outside every deadline; reward workers call it once."""
    math_process.start()


def _rules(tolerance: float | str | None, simplified: bool | None) -> Rules:
    if simplified not in (None, False, True):
        raise DataError(f"simplified is {simplified!r}, expected true or false")
    if tolerance is None or tolerance == "":
        return Rules(simplified=bool(simplified))
    share = quantity(str(tolerance).strip())
    if share is None or share.unit or share.value < 0 or isinstance(tolerance, bool):
        raise DataError(
            f"tolerance is {tolerance!r}, expected a number of at least 0 or a percentage as '1%'"
        )
    if share.is_percent:
        return Rules(relative_tolerance=share.value / 100, simplified=bool(simplified))
    return Rules(tolerance=share.value, simplified=bool(simplified))


def _compare(gold: str, answer: str, rules: Rules) -> Verdict:
    # Long answers never reach sympy: quick to compare again, and too long to keep thousands of.
    compare = _cached if len(gold) + len(answer) <= MAX_CACHED else math_process.compare
    return compare(gold, answer, rules)


_cached = lru_cache(maxsize=8192)(math_process.compare)


def _gold(reference: str | None) -> tuple[str, bool]:
    """The gold within the reference, which may be a whole solution with #### or a box, and whether it is a list.

    DataError when it is not usable.
    """
    if reference is None or not reference.strip():
        raise DataError(f"reference {reference!r} is empty")
    gold = _boxed(reference)
    if gold is None and "####" in reference:
        gold = reference.rpartition("####")[2]
    gold = (reference if gold is None else gold).strip()
    problem, is_list = _checked(gold) if len(gold) <= MAX_CACHED else _checked.__wrapped__(gold)
    if problem:
        raise DataError(f"reference {reference[-80:]!r} {problem}")
    return gold, is_list


@lru_cache(maxsize=8192)
def _checked(gold: str) -> tuple[str, bool]:
    """What is wrong with a gold, if anything, and whether it is a list."""
    if not gold:
        return "marks an empty answer", False
    verdict = math_process.compare(gold, gold, by_text=False)
    problems = {Verdict.DIFFERENT: "does not equal itself", Verdict.TOO_LARGE: "is too large to compare"}
    return problems.get(verdict, ""), has_members(gold)


def extract(completion: str, *, lenient: bool = False) -> str | None:
    """The completion's final answer; None when it gives none."""
    return next(iter(_candidates(completion, several=False, lenient=lenient)), None)


def _candidates(completion: str, *, several: bool, lenient: bool) -> list[str]:
    """The final answer, if any; with `several` also the list that the boxes of its line form."""
    text = visible(completion)
    if text is None:
        return []
    text = text[-TAIL_CHARACTERS:]
    tagged = _tagged(text)
    if tagged is not None:
        found = [_boxed(tagged), _boxed_list(tagged) if several else None]
        found = [_phrase(tagged) or tagged] if found[0] is None else found
    elif _BOX.search(text):
        found = [_boxed(text), _boxed_list(text) if several else None]
    else:
        found = [
            _marked(text) or _phrase(text) or (_last_expression(text) if lenient else "") or _heading(text)
        ]
    return [answer.strip() for answer in found if answer and answer.strip()]


def _tagged(text: str) -> str | None:
    """Content of the last complete <answer> pair."""
    start = text.rfind("<answer>", 0, max(text.rfind("</answer>"), 0))
    return None if start < 0 else text[start + len("<answer>") :].partition("</answer>")[0]


def visible(completion: str) -> str | None:
    """What follows the last `</think>`; None while a think block is still open."""
    text = completion.rpartition("</think>")[2]
    return None if "<think>" in text else text


def _boxed(text: str) -> str | None:
    """Content of the last complete box."""
    boxes = complete_boxes(text)
    return boxes[-1][1] if boxes else None


def _boxed_list(text: str) -> str | None:
    """The boxes of the last one's line as a list, where there are several."""
    boxes = complete_boxes(text)
    line = text.rfind("\n", 0, boxes[-1][0]) if boxes else 0
    contents = [content for start, content in boxes if start > line]
    return ", ".join(contents) if len(contents) > 1 else None


def complete_boxes(text: str) -> list[tuple[int, str]]:
    """Place and content of every complete box that is in no other one."""
    closing = _closing_braces(text)
    boxes: list[tuple[int, str]] = []
    end = 0
    for match in _BOX.finditer(text):
        start = match.end()
        if not match.group().endswith("{"):
            content = _BARE_BOX.match(text, start)[0]  # type: ignore[index]
        elif start - 1 in closing:
            content = text[start : closing[start - 1]]
        else:
            continue
        if match.start() >= end:
            boxes.append((match.start(), content))
            end = start + len(content)
    return boxes


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
    for start in reversed([match.end() for match in _PHRASE.finditer(text)]):
        stop = text.find("\n", start)
        if answer := _PHRASE_END.split(text[start : stop if stop >= 0 else None])[0].strip(" *"):
            return answer
    return ""


def _last_expression(text: str) -> str:
    """The last formula in dollar signs or LaTeX brackets, unless a number comes after it."""
    formula, end = "", 0
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]"), ("$", "$")):
        stop = text.rfind(closing)
        start = text.rfind(opening, 0, max(stop, 0))
        if start >= 0 and stop >= end:
            formula, end = text[start + len(opening) : stop], stop + len(closing)
    found = _LAST_NUMBER.findall(text, end)
    return found[-1] if found else formula


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
