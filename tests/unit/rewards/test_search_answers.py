# ruff: noqa: RUF001 (typographic quotation marks are tested)
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.search_answers import contains, exact_match, extract, f1, golds, normalise
from rlhf.data.records import parse_row
from rlhf.errors import DataError
from tests.unit.rewards.attempts import prompt_of, worthless

REWARDS = (exact_match, f1, contains)


def tagged(answer: str) -> str:
    return f"<think>so</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("Paris", "Paris"),
        (" the  PARIS. ", "paris"),
        ("U.S.", "US"),
        ("“Paris”", "Paris"),
        ("rock ’n’ roll", "rock 'n' roll"),
        ("A", "a"),
        ("The Who", "Who"),
        ("ｐａｒｉｓ", "Paris"),
        ("1,000", "1000"),
        ("Paris", '["London", "Paris"]'),
        ("Paris", '{"target": ["Paris", "Lutetia"]}'),
        ("[sic]", "[sic]"),
    ],
)
def test_answers_equal_up_to_squads_normalisation(answer: str, gold: str) -> None:
    assert [reward(tagged(answer), gold).value for reward in REWARDS] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "overlap", "inside"),
    [
        ("the city of Paris", "Paris", 0.0, 2 / 4, 1.0),
        ("New York City", "New York", 0.0, 4 / 5, 1.0),
        ("York New", "New York", 0.0, 1.0, 0.0),
        ("party", "art", 0.0, 0.0, 0.0),
        ("London", "Paris", 0.0, 0.0, 0.0),
        ("no", "yes", 0.0, 0.0, 0.0),
        ("yes it is", "yes", 0.0, 0.0, 1.0),
        ("yes and no", "yes", 0.0, 0.0, 0.0),
        ("Paris Paris Paris", "Paris", 0.0, 2 / 4, 1.0),
        ("Paris, " * 30, "Paris", 0.0, 2 / 31, 0.0),
    ],
)
def test_answers_that_differ(answer: str, gold: str, exact: float, overlap: float, inside: float) -> None:
    assert exact_match(tagged(answer), gold).value == exact
    assert f1(tagged(answer), gold).value == pytest.approx(overlap)
    assert contains(tagged(answer), gold).value == inside


def test_every_name_there_is_does_not_pay() -> None:
    everyone = " ".join(f"name{i}" for i in range(30))
    assert contains(tagged(everyone), "name3").value == 0.0
    assert contains(tagged(everyone), "name3", max_words=40).value == 1.0
    assert exact_match(tagged(everyone), "name3").value == 0.0


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<answer>a</answer> <answer>b</answer>", "b"),
        ("<answer>a <answer>b</answer>", "b"),
        ("<answer>a</answer> so b", "a"),
        ("<think><answer>a</answer></think>b", None),
        ("<think><answer>a</answer>", None),
        ("b", None),
        ("<answer>b", None),
        ("<answer> </answer>", None),
        ("<answer>...</answer>", None),
    ],
)
def test_the_answer_is_the_last_pair_after_the_thought(completion: str, expected: str | None) -> None:
    assert extract(completion, tagged=True) == expected


def test_without_tags_all_that_follows_the_thought_is_the_answer() -> None:
    assert exact_match("<think>London</think>\nParis.", "Paris", tagged=False).value == 1.0
    assert exact_match("<think>Paris", "Paris", tagged=False).outcome == "unparsable"
    assert exact_match("Paris", "Paris", tagged=False, prompt_opens_think=True).outcome == "unparsable"
    assert exact_match("It is London. <answer>Paris</answer>", "Paris", tagged=False).value == 1.0


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("name", worthless(prompt_of()))
def test_a_worthless_completion_earns_nothing(reward, name: str) -> None:
    completion = worthless(prompt_of("Who was it?"))[name]
    assert reward(completion, "Ada Lovelace").value == 0.0
    assert reward(completion, "Ada Lovelace", tagged=False).value == 0.0


@pytest.mark.parametrize("reference", [None, "", " ", "[]", '["", "..."]', "?!", '{"target": []}'])
def test_a_gold_that_is_nothing_is_an_error_and_never_a_score(reference: str | None) -> None:
    for reward in REWARDS:
        with pytest.raises(DataError, match="expected an answer or a JSON list of answers"):
            reward(tagged("..."), reference)


def test_gold_lists_of_a_row_are_read() -> None:
    row = {"prompt": "?", "golden_answers": ["Paris", "Lutetia"]}
    prompt = parse_row(row, location="r:0", columns={"reference": "golden_answers"}, key="k")
    assert exact_match(tagged("lutetia"), prompt.reference).value == 1.0
    verl = {"prompt": "?", "reward_model": {"ground_truth": {"target": ["Paris"]}, "style": "rule"}}
    prompt = parse_row(verl, location="r:0", columns={}, key="k")
    assert exact_match(tagged("Paris"), prompt.reference).value == 1.0


@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_every_gold_is_right_on_itself(texts: list[str]) -> None:
    reference = json.dumps(texts)
    usable = [text for text in texts if normalise(text) and not {"<", ">"} & set(text)]
    if not usable:
        return
    assert set(golds(reference)) >= {normalise(text) for text in usable}
    for text in usable:
        assert exact_match(tagged(text), reference).value == 1.0
        assert f1(tagged(text), reference).value == 1.0
