# ruff: noqa: RUF001 (full-width characters are tested)
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.decontamination import Benchmarks, asked, words
from rlhf.types import Message, Prompt

LONG = "A train leaves the station at noon and travels at sixty miles per hour. When does it arrive?"


def test_a_run_of_ten_words_in_common_is_found_whatever_case_and_signs():
    sets = Benchmarks({"trains": [LONG], "other": ["nothing of the kind"]}, ngram=10)
    inside = "Tell me: LEAVES the station; at noon and (travels) at sixty miles, please."
    assert sets.containing(inside) == ["trains"]
    assert sets.containing("leaves the station at noon and travels at sixty") == []


@pytest.mark.parametrize(
    ("text", "is_found"),
    [("12 + 7 =", True), ("12  +  7 =", True), ("12 - 7 =", False), ("112 + 7 =", False), ("what is 12 + 7 =", False)],
)  # fmt: skip
def test_short_texts_are_compared_as_a_whole_with_their_signs(text, is_found):
    assert bool(Benchmarks({"sums": ["12 + 7 ="]}, ngram=10).containing(text)) == is_found


def test_empty_texts_contaminate_nothing():
    assert Benchmarks({"empty": ["", " "]}, ngram=3).containing("") == []


def test_words_of_scripts_without_spaces_are_characters():
    assert words("我们 ＡＢ c_d") == ["我", "们", "ab", "c", "d"]


def test_asked_is_what_users_say():
    messages = [Message(role="system", content="s"), Message(role="user", content="u")]
    assert asked(Prompt(id="p", messages=tuple(messages))) == "u"


@given(st.lists(st.text(alphabet="ab 1+", max_size=16), max_size=4), st.text(alphabet="ab 1+", max_size=16))
def test_benchmarks_agree_with_a_search_of_every_run(texts, text):
    def runs(of):
        found = re.findall(r"[a-z0-9]+", of)
        return {tuple(found[i : i + 2]) for i in range(len(found) - 1)} or {" ".join(of.split())} - {""}

    expected = any(runs(text) & runs(other) for other in texts)
    assert Benchmarks({"x": texts}, ngram=2).containing(text) == (["x"] if expected else [])
