# ruff: noqa: RUF001 (full-width punctuation is tested)
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.prose import is_loop, paragraphs, pieces, repeated_share, sentences, words


def test_words_join_hyphens_apostrophes_and_decimal_points() -> None:
    assert words("It's 3.14, state-of-the-art!") == ["It's", "3.14", "state-of-the-art"]
    assert words("我们 don’t") == ["我", "们", "don’t"]
    assert words("... -- !") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", 3),
        ("Mr. Smith went to St. Mary with 3.5 kg, i.e. a lot.", 1),
        ('He said: "Hi!" Then he left...', 2),
        ("A. B. C. D.", 1),
        ("你好。再见！好？", 3),
        ("A title\n\nA sentence", 2),
        ("Items:\n- one\n- two", 3),
        ("1. first\n2. second", 2),
        ("one line\nand its rest", 1),
        ("! ? ...", 0),
        ("", 0),
    ],
)
def test_sentences_are_counted(text: str, expected: int) -> None:
    assert len(sentences(text)) == expected


def test_paragraphs_are_what_blank_lines_separate() -> None:
    assert paragraphs("a\nb\n\n \t\nc\n\n\n") == ["a\nb", "c"]


def test_loops_are_told_from_prose() -> None:
    assert is_loop("the the the")
    assert is_loop("a" * 100)
    assert is_loop("哈" * 10)
    assert is_loop("We need it. " * 20)
    assert not is_loop("")
    assert not is_loop("No. No.")
    assert not is_loop("\n".join(f"| row {i} | {i * 7} | yes |" for i in range(40)))
    assert not is_loop("[" + ",".join(f'{{"id":{i},"name":"item {i * 37}"}}' for i in range(40)) + "]")
    assert not is_loop(
        "We need the sum of the numbers, and the sum of the numbers is what we need to find here. " * 2
    )


def test_a_word_too_long_to_be_one_is_cut() -> None:
    assert pieces("a" * 26) == ["aaaa"] * 6 + ["aa"]
    assert pieces("Short words") == ["short", "words"]


@given(st.lists(st.integers(0, 3), max_size=20), st.integers(1, 4))
def test_repeated_share_counts_distinct_runs(items: list[int], size: int) -> None:
    runs = [tuple(items[i : i + size]) for i in range(max(0, len(items) - size + 1))]
    expected = 1 - len(set(runs)) / len(runs) if runs else 0.0
    assert repeated_share(items, size) == pytest.approx(expected)


def test_long_texts_take_linear_time() -> None:
    start = time.process_time()
    for text in (
        "." * 100_000,
        "a." * 50_000,
        "\n" * 100_000,
        " \n" * 50_000,
        "-a" * 50_000,
        '"' * 100_000,
        ".)" * 50_000,
    ):
        sentences(text), words(text), paragraphs(text), is_loop(text)
    assert time.process_time() - start < 10
