import pytest

from rewards.response_format import answer_after_think, tag_credit, think, think_answer, thought, visible
from rlhf.types import Message, Prompt
from tests.unit.rewards.attempts import worthless

WHOLE = "<think>a</think><answer>1</answer>"
R1_PROMPT = Prompt(
    id="p",
    messages=(
        Message(
            role="user",
            content="Answer as <think> reasoning here </think> <answer> answer here </answer>. How much is 1+1?",
        ),
    ),
)
MALFORMED = [
    "",
    " \n",
    "1",
    "<think>a</think>",
    "<answer>1</answer>",
    "<think></think><answer>1</answer>",
    "<think>a</think><answer> </answer>",
    "<think>\u200b</think><answer>1</answer>",
    "<think>...</think><answer>1</answer>",
    "<think>a</think><answer>--</answer>",
    "x<think>a</think><answer>1</answer>",
    "<think>a</think>x<answer>1</answer>",
    "<think>a</think><answer>1</answer>x",
    "<think>a<think>b</think><answer>1</answer>",
    "<think>a</think></think><answer>1</answer>",
    "<think>a</think><answer>1</answer><answer>1</answer>",
    "<think>a</think><answer><answer>1</answer></answer>",
    "<think><answer>1</answer></think><answer>1</answer>",
    "<think>a<answer>1</think></answer>",
    "<answer>1</answer><think>a</think>",
    "</think>a<think><answer>1</answer>",
    "<think>a</think><answer>1",
    "< think>a</think><answer>1</answer>",
    "<think>" * 50,
    "<think></think><answer></answer>",
]


@pytest.mark.parametrize("text", [WHOLE, "\n<think>\na\n</think>\n\n<answer> 1 </answer>\n"])
def test_think_answer_accepts_the_exact_shape(text: str) -> None:
    assert think_answer(text) == 1.0


@pytest.mark.parametrize("text", MALFORMED)
def test_think_answer_refuses_anything_else(text: str) -> None:
    assert think_answer(text) == 0.0


def test_answer_after_think_wants_no_opening_tag() -> None:
    assert answer_after_think("a</think><answer>1</answer>") == 1.0
    assert think_answer("a</think><answer>1</answer>", prompt_opens_think=True) == 1.0
    assert answer_after_think("<think>a</think><answer>1</answer>") == 0.0
    assert answer_after_think("</think><answer>1</answer>") == 0.0


def test_text_outside_the_tags_is_an_option_and_nothing_else_is() -> None:
    assert think_answer("So: <think>a</think> then <answer>1</answer>.", text_outside=True) == 1.0
    assert think_answer("So: <think>a</think><answer></answer>.", text_outside=True) == 0.0
    assert think_answer("<answer>1</answer><think>a</think>", text_outside=True) == 0.0
    assert think("First. <think>a</think> 1", text_outside=True) == 1.0
    assert think("First. <think>a</think> 1") == 0.0


@pytest.mark.parametrize("text", ["<think>a</think> The answer is 1.", "<think>\na\n</think>\n∅"])
def test_think_accepts_a_thought_and_an_answer(text: str) -> None:
    assert think(text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "<think>a</think>",
        "<think>a</think> ...",
        "<think></think>1",
        "<think>a",
        "a</think>1",
        WHOLE,
        "<think>a</think>1</think>",
        "<think>a</think>1<think>b</think>2",
    ],
)
def test_think_refuses_anything_else(text: str) -> None:
    assert think(text) == 0.0


def test_think_after_a_template_that_opens_it() -> None:
    assert think("a</think>1", prompt_opens_think=True) == 1.0
    assert think("<think>a</think>1", prompt_opens_think=True) == 0.0
    assert think("a 1", prompt_opens_think=True) == 0.0


@pytest.mark.parametrize("reward", [think_answer, tag_credit])
@pytest.mark.parametrize(
    "copied",
    [R1_PROMPT.messages[0].content, "<think> reasoning here </think> <answer> answer here </answer>"],
    ids=["the prompt", "the template's example"],
)
def test_a_copy_of_the_prompt_earns_nothing(reward, copied: str) -> None:
    assert reward(copied, R1_PROMPT) == 0.0
    assert reward(WHOLE, R1_PROMPT) == 1.0


@pytest.mark.parametrize(
    ("text", "credit"),
    [
        (WHOLE, 1.0),
        ("<think>a", 0.25),
        ("<think>a</think>", 0.5),
        ("<think>a</think> 1", 0.5),
        ("<think>a</think><answer>1", 0.75),
        ("<think>a</think>x<answer>1</answer>", 0.5),
        ("<think>a</think><answer>1</answer>x", 0.0),
        ("<think>a<answer>1</think></answer>", 0.25),
        ("a<think>b</think>", 0.0),
        ("<think></think><answer></answer>", 0.0),
        ("</answer></think><answer><think>", 0.0),
        ("<think>a</think></think><answer>1</answer>", 0.0),
        ("<think>" * 50, 0.0),
        ("the " * 50, 0.0),
        (" ", 0.0),
        ("", 0.0),
    ],
)
def test_tag_credit_counts_tags_in_place_from_the_first(text: str, credit: float) -> None:
    assert tag_credit(text) == credit


def test_tag_credit_pays_nothing_for_the_tag_that_the_template_wrote() -> None:
    assert tag_credit("", prompt_opens_think=True) == 0.0
    assert tag_credit("a", prompt_opens_think=True) == 0.0
    assert tag_credit("a</think>", prompt_opens_think=True) == pytest.approx(1 / 3)
    assert tag_credit("a</think><answer>1</answer>", prompt_opens_think=True) == 1.0


def test_a_completion_splits_into_thought_and_visible_text() -> None:
    assert (thought("<think>a</think>b"), visible("<think>a</think>b")) == ("a", "b")
    assert (thought("a</think>b"), visible("a</think>b")) == ("a", "b")
    assert (thought("<think>a"), visible("<think>a")) == ("a", None)
    assert (thought("b"), visible("b")) == ("", "b")
    assert (thought("b", prompt_opens_think=True), visible("b", prompt_opens_think=True)) == ("b", None)
    assert visible("<think>a</think>b<think>c") is None


@pytest.mark.parametrize("name", worthless(R1_PROMPT))
@pytest.mark.parametrize("prompt_opens_think", [False, True])
def test_a_worthless_completion_earns_nothing(name: str, prompt_opens_think: bool) -> None:
    completion = worthless(R1_PROMPT)[name]
    for reward in (think_answer, think, tag_credit):
        assert reward(completion, R1_PROMPT, prompt_opens_think=prompt_opens_think) == 0.0
