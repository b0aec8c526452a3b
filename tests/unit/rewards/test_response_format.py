import pytest

from rewards.response_format import answer_after_think, think_answer


@pytest.mark.parametrize(
    "text", ["<think>a</think><answer>1</answer>", "\n<think>\na\n</think>\n\n<answer> 1 </answer>\n"]
)
def test_think_answer_accepts_the_exact_shape(text: str) -> None:
    assert think_answer(text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "<think>a</think>",
        "<answer>1</answer>",
        "<think></think><answer>1</answer>",
        "<think>a</think><answer> </answer>",
        "x<think>a</think><answer>1</answer>",
        "<think>a</think>x<answer>1</answer>",
        "<think>a</think><answer>1</answer>x",
        "<think>a<think>b</think><answer>1</answer>",
        "<think>a</think></think><answer>1</answer>",
        "<think>a</think><answer>1</answer><answer>1</answer>",
        "<think>a</think><answer><answer>1</answer></answer>",
        "<think><answer>1</answer></think><answer>1</answer>",
        "<answer>1</answer><think>a</think>",
        "<think>a</think><answer>1",
    ],
)
def test_think_answer_refuses_anything_else(text: str) -> None:
    assert think_answer(text) == 0.0


def test_answer_after_think_wants_no_opening_tag() -> None:
    assert answer_after_think("a</think><answer>1</answer>") == 1.0
    assert answer_after_think("<think>a</think><answer>1</answer>") == 0.0
    assert answer_after_think("</think><answer>1</answer>") == 0.0
