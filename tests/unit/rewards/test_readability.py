import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.readability import code_blocks, longest_paragraph, mixed_language, repeated
from rlhf.errors import DataError

ENGLISH = "We have to add the two numbers and then we take the half of what they make."


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("plain `code` and ``` in a line", 0),
        ("```python\nprint(1)\n```", 1),
        ("a\n```\nx\n```\nb\n  ~~~\ny\n  ~~~\n", 2),
        ("```\nnever closed", 1),
        ("````\n```\ninner\n```\n````", 1),
        ("> ```\n> quoted\n> ```", 1),
        ("", 0),
    ],
)
def test_code_blocks_are_counted(text, count):
    assert code_blocks(text) == count


def test_code_blocks_of_the_thought_alone():
    text = "<think>a\n```\nx\n```\n</think>\n```\ny\n```\n"
    assert (code_blocks(text), code_blocks(text, part="thought"), code_blocks(text, part="visible")) == (
        2,
        1,
        1,
    )
    opened = "x\n```\ny\n```\n</think>done"
    assert code_blocks(opened, part="thought", prompt_opens_think=True) == 1


def test_longest_paragraph_is_told_in_words():
    assert longest_paragraph("one two\nthree\n\nfour") == 3
    assert longest_paragraph("") == 0


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [(ENGLISH, 0, 0), (ENGLISH + " 我们需要把这两个数字加起来然后除以二得到结果。", 0.3, 0.9), ("1 + 1 = 2", 0, 0)],
)  # fmt: skip
def test_mixed_language_is_the_share_of_foreign_words(text, low, high):
    assert low <= mixed_language(text, "en") <= high


def test_repeated_is_near_one_for_a_loop_and_zero_for_prose():
    assert repeated(ENGLISH) == 0
    assert repeated("so it goes on and " * 50) > 0.9


@given(st.text(alphabet="ab `~\n<think/>", max_size=40))
def test_shares_stay_within_their_range_and_counts_are_whole(text):
    for part in ("all", "thought", "visible"):
        assert 0 <= mixed_language(text, "en", part=part) <= 1
        assert 0 <= repeated(text, size=2, part=part) <= 1
        assert code_blocks(text, part=part) % 1 == longest_paragraph(text, part=part) % 1 == 0


def test_an_unknown_part_is_refused():
    with pytest.raises(DataError, match="part is 'middle', expected one of all, thought, visible"):
        repeated("a b", part="middle")
