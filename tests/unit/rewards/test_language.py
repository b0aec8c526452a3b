# ruff: noqa: RUF001 (other alphabets are what is tested)
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.language import consistency, language_code, share
from rewards.language_words import FUNCTION_WORDS, LANGUAGES, SCRIPTS
from rlhf.errors import DataError
from tests.unit.rewards.attempts import prompt_of, worthless
from tests.unit.rewards.language_texts import TEXTS

GSM8K = Path(__file__).parents[4] / "shared" / "data" / "gsm8k" / "test.jsonl"


@pytest.mark.parametrize("language", sorted(TEXTS))
def test_a_text_is_its_own_language_and_no_other(language: str) -> None:
    found = {other: share(TEXTS[language], other) or 0.0 for other in LANGUAGES}
    assert found.pop(language) == 1.0
    assert max(found.values()) <= 0.3


def test_every_language_has_a_script_of_its_own_or_function_words() -> None:
    assert set(SCRIPTS) | {name for group in FUNCTION_WORDS.values() for name in group} == LANGUAGES
    assert {language for group in FUNCTION_WORDS.values() for language in group} <= set(TEXTS)
    assert len(set(SCRIPTS.values())) == len(SCRIPTS)


def test_gsm8k_is_english() -> None:
    if not GSM8K.is_file():
        pytest.skip(f"needs {GSM8K.name} of shared/data/gsm8k, which is not on this machine")
    rows = [json.loads(line) for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    shares = [share(row["question"], "en") for row in rows]
    assert sum(found == 1.0 for found in shares) >= 0.99 * len(rows)
    assert None not in shares
    assert not any((share(row["question"], other) or 0) > 0.3 for row in rows for other in ("de", "fr", "nl"))


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Okay, so we need to find it. 首先我们设方程。", "en", 7 / (7 + 3.5)),
        ("Okay, so we need to find it. 首先我们设方程。", "zh", 3.5 / (7 + 3.5)),
        ("设正方形的边长为 $a$，因为 AB = CD，所以 sin(x) = 1。", "zh", 1.0),
        ("Wir müssen zuerst die Summe berechnen. Then we need to divide it by the terms.", "de", 6 / 15),
        ("THE ANSWER IS THAT WE NEED MORE OF THESE.", "en", 1.0),
        ("ES IST NICHT DAS, WAS WIR BRAUCHEN.", "en", 0.0),
        ("計算の結果は正しいです。", "zh", 0.0),
        ("计算的结果是正确的。", "ja", None),
        ("Compute 2 + 2 with the rule.", "en", 1.0),
        ("2 + 2 = 4", "en", None),
        ("the the the the the the", "en", None),
        ("哈哈哈哈哈哈哈哈", "zh", None),
        ("lorem ipsum dolor amet", "en", None),
        ("", "en", None),
        (" \n", "en", None),
    ],
)
def test_share_counts_the_words_that_can_be_told(text: str, language: str, expected: float | None) -> None:
    found = share(text, language)
    assert found is None if expected is None else found == pytest.approx(expected)


@pytest.mark.parametrize(
    "hidden",
    [
        "```\nund das ist nicht gut\n```",
        "`und das ist nicht`",
        "```und das ist nicht",
        r"$\text{und das ist nicht}$",
        r"\[ \text{und das ist nicht} \]",
        "https://und.das.ist/nicht/gut",
        "sin cos log",
        "x1 und_das n=3",
    ],
)
def test_code_and_math_are_no_words(hidden: str) -> None:
    assert share(f"We need to sum the values of this: {hidden}", "en") == 1.0
    assert share(f"我们需要计算它的结果: {hidden}", "zh") == 1.0


def test_consistency_reads_the_chain_of_thought() -> None:
    completion = "<think>We need to find the sum of these.</think>Die Antwort ist nicht das, was wir dachten."
    assert consistency(completion, "en").value == 1.0
    assert consistency(completion, "de").value == 0.0
    assert consistency(completion, "de", part="visible").value == 1.0
    assert 0 < consistency(completion, "de", part="all").value < 1
    assert consistency("We need to find the sum of these", "en", prompt_opens_think=True).value == 1.0


@pytest.mark.parametrize(
    "completion",
    ["", " \n", "<think></think>", "<think>the the the</think>", "the " * 50, "<think>" * 50, "Add 2 and 2."],
)
def test_consistency_pays_nothing_without_a_thought_to_read(completion: str) -> None:
    result = consistency(completion, "en")
    assert (result.value, result.outcome) == (0.0, "unparsable")


def test_language_codes() -> None:
    assert (language_code("pt-BR"), language_code("zh_TW"), language_code("EN")) == ("pt", "zh", "en")
    with pytest.raises(DataError, match="language is 'xx', expected one of am, ar"):
        consistency("<think>a</think>", "xx")
    with pytest.raises(DataError, match="part is 'half', expected one of thought, visible, all"):
        consistency("a", "en", part="half")  # type: ignore[arg-type]


@given(st.text(max_size=300), st.sampled_from(sorted(LANGUAGES)))
def test_share_is_a_share_of_any_text(text: str, language: str) -> None:
    found = share(text, language)
    assert found is None or 0 <= found <= 1


def test_long_texts_take_linear_time() -> None:
    start = time.process_time()
    for text in (
        "$" * 50_000,
        "\\begin{a}" * 5_000,
        "a" * 100_000,
        "`" * 50_000,
        "a=" * 50_000,
        "的" * 50_000,
    ):
        share(text, "en")
    assert time.process_time() - start < 10


@pytest.mark.parametrize("name", worthless(prompt_of()))
def test_consistency_pays_nothing_for_a_worthless_completion(name: str) -> None:
    assert consistency(worthless(prompt_of())[name], "en").value == 0.0
