# ruff: noqa: RUF001 (letters of other scripts are tested)
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.visual_answers import choice, count, number
from rlhf.errors import DataError
from tests.unit.rewards.attempts import prompt_of, worthless

OPTIONS = ["cat", "A dog", "Point A", "red or blue"]


def tagged(answer: str) -> str:
    return f"<think>so</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    "answer",
    [
        "B",
        "b",
        "(B)",
        "[b]",
        "B.",
        "B)",
        "B:",
        "**B**",
        "$B$",
        r"\text{B}",
        r"\boxed{B}",
        r"\boxed{\textbf{(B)}}",
        "Option B",
        "choice (b)",
        "The answer is B.",
        "Answer: (B)",
        "Ｂ",
        "Ⓑ",
        "B. A dog",
        "B: a dog",
        "B (A dog)",
        "B - A dog",
        "B\n",
        "The answer is B because A is wrong.",
    ],
)
def test_a_letter_in_any_dress_is_the_choice(answer):
    assert choice(tagged(answer), "B").value == 1.0
    assert choice(tagged(answer), "B", OPTIONS).value == 1.0
    assert choice(tagged(answer), "C", OPTIONS).outcome == "wrong"


@pytest.mark.parametrize(
    "text", ["(B)", "B.", "B. A dog", r"\boxed{B}", "The answer is B", "The answer is option (B)."]
)
def test_a_text_that_is_nothing_but_the_answer_needs_no_mark(text):
    assert choice(text, "B", OPTIONS).value == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        tagged("A or B"),
        tagged("B, A, C, D"),
        tagged("B. Or A."),
        tagged("B. Point A"),
        tagged("B. A or C"),
        "<answer>A</answer><answer>B</answer>",
        r"\boxed{A} \boxed{B}",
        "The answer is A. The answer is B.",
        "(A) cat (B) A dog",
    ],
)
def test_two_claimed_letters_are_unparsable_whichever_is_right(completion):
    for gold in "ABCD":
        result = choice(completion, gold, OPTIONS)
        assert (result.value, result.outcome) == (0.0, "unparsable")
        assert ", " in result.detail["claims"]


@pytest.mark.parametrize(
    "completion",
    [
        "It is B",
        tagged("not B"),
        tagged("B is wrong"),
        tagged("Bear"),
        tagged("В"),
        tagged("E"),
        tagged("1"),
        tagged(""),
        "<think>B",
        "B</think>",
        "<answer>B",
        r"\boxed{B",
        "I would say that (B) is it",
        tagged("A dog or a cat"),
    ],
)
def test_what_names_no_option_is_unparsable(completion):
    result = choice(completion, "B", OPTIONS)
    assert (result.value, result.outcome) == (0.0, "unparsable")


def test_the_text_of_an_option_is_its_letter():
    for answer in ("A dog", "a  DOG.", '"a dog"'):
        assert choice(tagged(answer), "B", OPTIONS).value == 1.0
    assert choice(tagged("red or blue"), "D", OPTIONS).value == 1.0
    assert choice(tagged("Point A"), "C", OPTIONS).value == 1.0
    assert choice(tagged("cat"), "A").outcome == "unparsable"
    assert choice(tagged("4"), "B", ["3", "4"]).value == 1.0
    assert choice(tagged("B"), "B", ["B", "A"]).value == 1.0, "a letter is a letter first"
    assert choice(tagged("same"), "A", ["same", "Same."]).outcome == "unparsable"
    assert choice(tagged("A"), "A", ["same", "same"]).value == 1.0
    assert choice(tagged("x"), "C", {"A": "y", "C": "x"}).value == 1.0


@pytest.mark.parametrize("reference", ["B", "b", "(B)", "B.", "B. A dog", "A dog"])
def test_the_gold_may_be_a_letter_or_an_options_text(reference):
    assert choice(tagged("B"), reference, OPTIONS).value == 1.0


@pytest.mark.parametrize("reference", [None, "", " ", "E", "bird", "A or B", "2", "B. Point A"])
def test_a_gold_that_is_no_option_is_an_error(reference):
    with pytest.raises(
        DataError, match=r"reference is .*, expected one letter of ABCD or the text of one option"
    ):
        choice(tagged("B"), reference, OPTIONS)


@pytest.mark.parametrize(
    "options", ["ABCD", [], ["one"], [1, 2], {"a": "x", "b": "y"}, {"AB": "x"}, ["x"] * 27]
)
def test_options_that_are_no_list_of_texts_are_an_error(options):
    with pytest.raises(DataError, match="expected 2 to 26 texts"):
        choice(tagged("A"), "A", options)


def test_lenient_reads_the_last_line_of_an_unmarked_text():
    for text in ("A is out.\nSo I take (B).", "It is B", "I think that B is a good fit"):
        assert choice(text, "B", OPTIONS).outcome == "unparsable"
        assert choice(text, "B", OPTIONS, lenient=True).value == 1.0
    for text in ("It is A or B", "It is not B", "B\nI do not know"):
        assert choice(text, "B", OPTIONS, lenient=True).outcome == "unparsable"
    for text in ("There are 2 cats.\nIn all three of them.", "It is 3"):
        assert number(text, "3").outcome == "unparsable"
        assert number(text, "3", lenient=True).value == 1.0


def test_counts_are_exact_unless_graded():
    assert count(tagged("There are three dogs."), "3").value == 1.0
    assert count("3", "three").value == 1.0
    assert count(tagged("4"), "3").outcome == "wrong"
    assert count(tagged("4"), "3").value == 0.0
    assert count(tagged("4"), "3", graded=True).value == pytest.approx(0.75)
    assert count(tagged("0"), "3", graded=True).value == 0.0
    assert count(tagged("0"), "0", graded=True).value == 1.0
    assert number(tagged("-3"), "3", graded=True).value == 0.0
    assert number(tagged("-2"), "-4", graded=True).value == pytest.approx(0.5)
    assert count(tagged(str(10**25)), str(10**25 + 1), graded=True).value < 1.0


@pytest.mark.parametrize(
    "answer", ["3 or 4", "about 3", "3-5", "1, 2, 3, 4, 5", "one two three", "3²", "", "many"]
)
def test_several_numbers_and_hedges_are_unparsable_even_when_graded(answer):
    for reward in (count, number):
        assert reward(tagged(answer), "3", graded=True).outcome == "unparsable"
        assert reward(tagged(answer), "3", graded=True).value == 0.0


@pytest.mark.parametrize("reference", [None, "", "many", "3 or 4", "1/2", "3-5", "about 3"])
def test_a_gold_without_one_number_is_an_error(reference):
    for reward in (count, number):
        with pytest.raises(DataError, match="expected one number"):
            reward(tagged("3"), reference)


@pytest.mark.parametrize("reference", ["-1", "2.5"])
def test_a_count_is_a_whole_number(reference):
    with pytest.raises(DataError, match="expected a whole number"):
        count(tagged("3"), reference)
    assert number(tagged(reference), reference).value == 1.0


@pytest.mark.parametrize("name", worthless(prompt_of()))
def test_a_worthless_completion_earns_nothing(name):
    completion = worthless(prompt_of("How many are in the 2 pictures? (A) one (B) 2"))[name]
    for lenient in (False, True):
        assert choice(completion, "B", lenient=lenient).value == 0.0
    assert count(completion, "2", graded=True).value == 0.0


@given(st.text(max_size=80), st.booleans())
def test_no_text_breaks_a_reward_and_none_is_paid_for_two_golds(text, lenient):
    paid = [gold for gold in "ABCD" if choice(text, gold, OPTIONS, lenient=lenient).value]
    assert len(paid) <= 1
    paid = [gold for gold in range(5) if number(text, str(gold), lenient=lenient).value]
    assert len(paid) <= 1


@given(
    st.lists(
        st.sampled_from(["A", "B", "or", "not", "(C)", "<answer>", "</answer>", r"\boxed{", "}", "\n", "."])
    )
)
def test_no_arrangement_of_letters_and_marks_is_paid_for_two_golds(pieces):
    text = " ".join(pieces)
    assert sum(choice(text, gold, lenient=True).value for gold in "ABCD") <= 1
