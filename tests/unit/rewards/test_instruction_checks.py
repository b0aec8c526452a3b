import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.instruction_checks import follow, follow_share, rlvr_ifeval_row
from rewards.instructions import CHECKS, holds
from rlhf.data.records import parse_row
from rlhf.errors import DataError
from rlhf.types import RewardResult
from tests.unit.rewards.attempts import prompt_of, worthless
from tests.unit.rewards.instruction_cases import CASES, POEM, Case

PROMPT = prompt_of("Write a few lines about a market by the river, and say what one can buy there.")
EASY = {  # the laxest form of every instruction that a short text could keep by chance
    "keywords:frequency": {"keyword": "dog", "frequency": 3, "relation": "less than"},
    "keywords:forbidden_words": {"forbidden_words": ["dog"]},
    "keywords:letter_frequency": {"letter": "q", "let_frequency": 9, "let_relation": "less than"},
    "length_constraints:number_sentences": {"num_sentences": 99, "relation": "less than"},
    "length_constraints:number_words": {"num_words": 100, "relation": "at least"},
    "change_case:capital_word_frequency": {"capital_frequency": 1, "capital_relation": "less than"},
}


def verdict(case: Case, response: str) -> RewardResult:
    return follow(response, PROMPT, [case.id], [case.arguments])


each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.id} {c.arguments.get('relation', '')}")


def test_every_check_has_cases() -> None:
    assert len(CHECKS) >= 25
    assert {case.id for case in CASES} == set(CHECKS)
    assert all(len(case.kept) >= 2 and len(case.broken) >= 2 and case.tricks for case in CASES)


@each_case
def test_an_instruction_that_is_kept_earns_one(case: Case) -> None:
    assert {response: verdict(case, response).value for response in case.kept} == dict.fromkeys(
        case.kept, 1.0
    )


@each_case
def test_an_instruction_that_is_broken_earns_nothing(case: Case) -> None:
    results = [verdict(case, response) for response in case.broken]
    assert [r.value for r in results] == [0.0] * len(results)
    assert results[0].detail == {"broken": case.id}


@each_case
def test_a_trick_earns_nothing(case: Case) -> None:
    assert [t for t in case.tricks if verdict(case, t).value != 0.0] == []


@each_case
def test_a_worthless_response_earns_nothing(case: Case) -> None:
    arguments = EASY.get(case.id, case.arguments)
    paid = {
        name: value
        for name, response in worthless(PROMPT).items()
        if (value := follow_share(response, PROMPT, [case.id], [arguments]).value)
    }
    assert not paid


@each_case
@given(response=st.text(max_size=60))
def test_any_response_has_a_verdict(case: Case, response: str) -> None:
    assert verdict(case, response).value in (0.0, 1.0)


def test_credit_is_for_all_or_by_share() -> None:
    ids = [
        "punctuation:no_comma",
        "change_case:english_lowercase",
        "startend:quotation",
        "detectable_format:title",
    ]
    strict = follow("yes it is.", PROMPT, ids, [{}, {}, {}, {}])
    shared = follow_share("yes it is.", PROMPT, ids, [{}, {}, {}, {}])
    assert (strict.value, strict.outcome, strict.parts) == (0.0, "wrong", {"kept": 0.5})
    assert shared.value == 0.5
    assert strict.detail == {"broken": "startend:quotation, detectable_format:title"}


def test_records_of_a_table_have_empty_arguments_and_floats() -> None:
    kwargs = [{"num_words": 2.0, "relation": "at least", "keywords": None}, None]
    result = follow("Yes it is.", PROMPT, ["length_constraints:number_words", "punctuation:no_comma"], kwargs)
    assert result.value == 1.0
    ids = json.dumps(["length_constraints:number_words", "punctuation:no_comma"])
    assert follow("Yes it is.", PROMPT, ids, json.dumps(kwargs)).value == 1.0


@pytest.mark.parametrize(
    ("ids", "kwargs", "message"),
    [
        (["count:emoji"], [{}], "names 'count:emoji', which has no check; there are keywords:existence"),
        (["startend:quotation"], [{"n": 1}], "unknown \\['n'\\], expected \\[\\]"),
        (["startend:end_checker"], [{}], "missing \\['end_phrase'\\]"),
        (["startend:end_checker"], [{"end_phrase": " "}], "every response would do"),
        (["keywords:existence"], [{"keywords": []}], "every response would do"),
        (["keywords:existence"], [{"keywords": "dog"}], "expected a list of texts"),
        (
            ["keywords:letter_frequency"],
            [{"letter": "ab", "let_frequency": 1, "let_relation": "at least"}],
            "one char",
        ),
        (["length_constraints:number_words"], [{"num_words": 1, "relation": "about"}], "relation is 'about'"),
        (
            ["length_constraints:nth_paragraph_first_word"],
            [{"num_paragraphs": 1, "nth_paragraph": 2, "first_word": "a"}],
            "expected 1 to num_paragraphs = 1",
        ),
        (["language:response_language"], [{"language": "xx"}], "language is 'xx'"),
        (["startend:quotation"], [], "has 1 instructions, kwargs 0"),
        ([], [], "expected a list of instruction ids"),
        (None, None, "expected a list of instruction ids"),
        ("{", "[]", "expected JSON"),
    ],
)
@pytest.mark.parametrize("response", ["", POEM], ids=["empty", "text"])
def test_a_bad_record_is_an_error_and_never_a_score(ids, kwargs, message: str, response: str) -> None:
    with pytest.raises(DataError, match=message):
        follow(response, PROMPT, ids, kwargs)


def test_only_what_follows_the_think_block_is_read() -> None:
    ids, kwargs = ["punctuation:no_comma"], [{}]
    assert follow("<think>a, b</think>Yes it is.", PROMPT, ids, kwargs).value == 1.0
    assert follow("<think>a b</think>Yes, it is.", PROMPT, ids, kwargs).value == 0.0
    assert follow("<think>Yes it is.", PROMPT, ids, kwargs).outcome == "unparsable"
    assert follow("Yes it is.", PROMPT, ids, kwargs, prompt_opens_think=True).outcome == "unparsable"
    quotation = follow('<think>a</think>\n<answer>"Yes."</answer>', PROMPT, ["startend:quotation"], [{}])
    assert quotation.value == 1.0


def test_half_the_prompt_is_a_copy_and_an_option_it_names_is_not() -> None:
    asked = prompt_of("Is it so? Answer with one of these: My answer is yes. My answer is no. Nothing else.")
    ids, kwargs = ["detectable_format:constrained_response"], [{}]
    assert follow("My answer is yes.", asked, ids, kwargs).value == 1.0
    assert follow("Is it so? Answer with one of these: My answer is yes.", asked, ids, kwargs).value == 0.0


@pytest.mark.parametrize(
    ("relation", "low", "inside", "high"),
    [
        ("exactly", 4, 5, 6),
        ("around", 3, 4, 7),
        ("at least", 4, 5, None),
        ("more than", 5, 6, None),
        ("at most", None, 5, 6),
        ("less than", None, 4, 5),
    ],
)
def test_relations(relation: str, low: int | None, inside: int, high: int | None) -> None:
    assert holds(inside, relation, 5)
    assert low is None or not holds(low, relation, 5)
    assert high is None or not holds(high, relation, 5)


@pytest.mark.parametrize(
    ("truth", "name", "kept", "broken"),
    [
        (
            {"func_name": "verify_keyword_frequency", "word": "dog", "N": 2},
            "keywords:frequency",
            POEM,
            "A dog.",
        ),
        (
            {"func_name": "validate_word_constraint", "N": 3, "quantifier": "at most", "letter": None},
            "length_constraints:number_words",
            "Three words only",
            POEM,
        ),
        ({"func_name": "validate_lowercase"}, "change_case:english_lowercase", "yes it is", POEM),
        (
            {"func_name": "validate_paragraphs", "N": 2, "i": 1, "first_word": "Two"},
            "length_constraints:nth_paragraph_first_word",
            "Two are here.\n\nNo more.",
            "No.\n\nTwo.",
        ),
    ],
)
def test_rlvr_ifeval_rows_become_records(truth: dict, name: str, kept: str, broken: str) -> None:
    messages = [
        {"role": "user", "content": "Say so."},
        {"role": "assistant", "content": "I would rather not."},
    ]
    row = rlvr_ifeval_row({"messages": messages, "ground_truth": json.dumps(truth), "dataset": "ifeval"})
    prompt = parse_row(row, location="r:0", columns={}, key="task.train")
    assert [m.role for m in prompt.messages] == ["user"]
    assert row["instruction_id_list"] == [name]
    assert follow(kept, prompt, row["instruction_id_list"], row["kwargs"]).value == 1.0
    assert follow(broken, prompt, row["instruction_id_list"], row["kwargs"]).value == 0.0


def test_an_unknown_rlvr_function_is_named() -> None:
    row = {"messages": [], "ground_truth": json.dumps({"func_name": "verify_rhyme"})}
    with pytest.raises(DataError, match="names the function 'verify_rhyme', expected one of verify_keywords"):
        rlvr_ifeval_row(row)
    with pytest.raises(DataError, match="needs messages and ground_truth, found prompt"):
        rlvr_ifeval_row({"prompt": "x"})


def test_long_responses_take_linear_time() -> None:
    start = time.process_time()
    for response in (
        "*a" * 30_000,
        "[" * 60_000,
        "<<" * 30_000,
        "- " * 30_000,
        "Section " * 8_000,
        "P. " * 20_000,
    ):
        for case in CASES:
            verdict(case, response)
    assert time.process_time() - start < 30
