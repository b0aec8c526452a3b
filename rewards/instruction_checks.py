"""Rewards instructions that can be checked by rule: IFEval's records (arXiv 2311.07911), our own checks.

A row names its instructions in `instruction_id_list` and their arguments in `kwargs`, one mapping each, as in
IFEval's data; `rlvr_ifeval_row` maps RLVR-IFeval rows to that. `rewards.instructions` says what each check asks. To
report a benchmark's score, use the benchmark's own scorer: these checks are stricter where that one can be farmed.
"""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from rewards.instructions import CHECKS
from rewards.prose import is_loop
from rewards.response_format import has_text, visible
from rlhf.errors import DataError
from rlhf.types import Prompt, RewardResult

_ANSWER = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)
_RLVR = {
    "verify_keywords": ("keywords:existence", {"keyword_list": "keywords"}),
    "verify_keyword_frequency": ("keywords:frequency", {"word": "keyword", "N": "frequency"}),
    "validate_forbidden_words": ("keywords:forbidden_words", {"forbidden_words": "forbidden_words"}),
    "verify_letter_frequency": ("keywords:letter_frequency", {"letter": "letter", "N": "let_frequency"}),
    "validate_response_language": ("language:response_language", {"language": "language"}),
    "verify_paragraph_count": ("length_constraints:number_paragraphs", {"N": "num_paragraphs"}),
    "validate_word_constraint": (
        "length_constraints:number_words",
        {"N": "num_words", "quantifier": "relation"},
    ),
    "verify_sentence_constraint": (
        "length_constraints:number_sentences",
        {"N": "num_sentences", "quantifier": "relation"},
    ),
    "validate_paragraphs": (
        "length_constraints:nth_paragraph_first_word",
        {"N": "num_paragraphs", "i": "nth_paragraph", "first_word": "first_word"},
    ),
    "verify_postscript": ("detectable_content:postscript", {"postscript_marker": "postscript_marker"}),
    "validate_placeholders": ("detectable_content:number_placeholders", {"N": "num_placeholders"}),
    "verify_bullet_points": ("detectable_format:number_bullet_lists", {"N": "num_bullets"}),
    "validate_title": ("detectable_format:title", {}),
    "validate_choice": ("detectable_format:constrained_response", {"options": "options"}),
    "validate_highlighted_sections": (
        "detectable_format:number_highlighted_sections",
        {"N": "num_highlights"},
    ),
    "validate_sections": (
        "detectable_format:multiple_sections",
        {"N": "num_sections", "section_splitter": "section_spliter"},
    ),
    "validate_json_format": ("detectable_format:json_format", {}),
    "validate_repeat_prompt": ("combination:repeat_prompt", {"original_prompt": "prompt_to_repeat"}),
    "validate_two_responses": ("combination:two_responses", {}),
    "validate_uppercase": ("change_case:english_capital", {}),
    "validate_lowercase": ("change_case:english_lowercase", {}),
    "validate_frequency_capital_words": (
        "change_case:capital_word_frequency",
        {"N": "capital_frequency", "quantifier": "capital_relation"},
    ),
    "validate_end": ("startend:end_checker", {"end_phrase": "end_phrase"}),
    "validate_quotation": ("startend:quotation", {}),
    "validate_no_commas": ("punctuation:no_comma", {}),
}
"""RLVR-IFeval's function -> instruction id, and its arguments' names -> ours."""
_RLVR_EXACT = {
    "verify_keyword_frequency": {"relation": "exactly"},
    "verify_letter_frequency": {"let_relation": "exactly"},
}


def follow(
    completion: str,
    prompt: Prompt,
    instruction_id_list: Sequence[str] | str,
    kwargs: Sequence[Mapping[str, Any] | None] | str,
    *,
    prompt_opens_think: bool = False,
) -> RewardResult:
    """1 when every instruction of the row is kept, else 0; part `kept` is the share of them that is.

    Reads what follows the think block, without an `<answer>` pair around all of it. A response that is empty, one
    thing over and over, or a copy of the prompt keeps nothing. DataError for an unknown instruction or argument.
    """
    instructions = _instructions(instruction_id_list, kwargs)
    text = _response(completion, prompt_opens_think=prompt_opens_think)
    kept = [CHECKS[name](text, **arguments) for name, arguments in instructions]
    if not has_text(text) or is_loop(text) or _is_copy(text, prompt):
        return RewardResult(value=0.0, outcome="unparsable", parts={"kept": 0.0})
    broken = [name for (name, _), is_kept in zip(instructions, kept, strict=True) if not is_kept]
    return RewardResult(
        value=float(not broken),
        outcome="wrong" if broken else "ok",
        parts={"kept": sum(kept) / len(kept)},
        detail={"broken": ", ".join(broken)} if broken else {},
    )


def follow_share(
    completion: str,
    prompt: Prompt,
    instruction_id_list: Sequence[str] | str,
    kwargs: Sequence[Mapping[str, Any] | None] | str,
    *,
    prompt_opens_think: bool = False,
) -> RewardResult:
    """As `follow`, but the value is the share of the instructions that are kept."""
    result = follow(completion, prompt, instruction_id_list, kwargs, prompt_opens_think=prompt_opens_think)
    return replace(result, value=result.parts["kept"])


def rlvr_ifeval_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Map an RLVR-IFeval row {messages, ground_truth} to {prompt, instruction_id_list, kwargs}.

    `ground_truth` is JSON: the name of a checking function and its arguments. DataError for an unknown function.
    """
    if "messages" not in row or "ground_truth" not in row:
        raise DataError(f"rlvr_ifeval_row needs messages and ground_truth, found {', '.join(row) or 'none'}.")
    truth = _parsed(row["ground_truth"], "ground_truth")
    function = truth.get("func_name") if isinstance(truth, Mapping) else None
    if function not in _RLVR:
        raise DataError(f"ground_truth names the function {function!r}, expected one of {', '.join(_RLVR)}.")
    name, renamed = _RLVR[function]
    arguments = {ours: truth[theirs] for theirs, ours in renamed.items() if truth.get(theirs) is not None}
    return {
        "prompt": [message for message in row["messages"] if message["role"] != "assistant"],
        "instruction_id_list": [name],
        "kwargs": [arguments | _RLVR_EXACT.get(function, {})],
    }


def _instructions(ids: Any, kwargs: Any) -> list[tuple[str, dict[str, Any]]]:
    names, arguments = _parsed(ids, "instruction_id_list"), _parsed(kwargs, "kwargs")
    if not isinstance(names, Sequence) or not names or not isinstance(arguments, Sequence):
        raise DataError(
            f"the row has instruction_id_list {names!r:.80} and kwargs {arguments!r:.80}, expected a list of "
            "instruction ids and a list of as many mappings."
        )
    if len(names) != len(arguments):
        raise DataError(
            f"instruction_id_list has {len(names)} instructions, kwargs {len(arguments)} mappings."
        )
    return [(name, _arguments(name, given or {})) for name, given in zip(names, arguments, strict=True)]


def _arguments(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are set (a table's other columns are None), checked against the check's signature."""
    if name not in CHECKS:
        raise DataError(
            f"instruction_id_list names {name!r}, which has no check; there are {', '.join(CHECKS)}."
        )
    known = _parameters(name)
    found = {key: value for key, value in given.items() if value is not None}
    missing = [key for key, is_needed in known.items() if is_needed and key not in found]
    unknown = [key for key in found if key not in known]
    if missing or unknown:
        raise DataError(
            f"the kwargs of {name} are {found!r:.120}; missing {missing}, unknown {unknown}, expected {list(known)}."
        )
    # A table that lacks some numbers hands out the others as floats.
    return {key: int(v) if isinstance(v, float) and v.is_integer() else v for key, v in found.items()}


@cache
def _parameters(name: str) -> dict[str, bool]:
    """Argument -> whether it must be given."""
    parameters = inspect.signature(CHECKS[name]).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY}


def _parsed(value: Any, column: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise DataError(f"{column} is {value!r:.80}, expected JSON: {error}") from error


def _response(completion: str, *, prompt_opens_think: bool) -> str:
    text = visible(completion, prompt_opens_think=prompt_opens_think) or ""
    answer = _ANSWER.fullmatch(text)
    return (answer[1] if answer else text).strip()


def _is_copy(text: str, prompt: Prompt) -> bool:
    """Whether the response says nothing but (half of) the last message of the prompt."""
    said = " ".join(text.split()).casefold()
    asked = " ".join(prompt.messages[-1].content.split()).casefold()
    if not asked:
        return False
    return not has_text(said.replace(asked, "")) or (said in asked and 2 * len(said) >= len(asked))
