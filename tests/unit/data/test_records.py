from datetime import date
from decimal import Decimal

import pytest

from rlhf.data.records import parse_row
from rlhf.errors import DataError
from rlhf.types import Message


def parse(row, **columns):
    return parse_row(row, location="train.jsonl:7", columns=columns, key="task.train")


def test_plain_row_becomes_a_prompt():
    prompt = parse({"prompt": "2+2=", "answer": "4", "level": 3})
    assert prompt.messages == (Message(role="user", content="2+2="),)
    assert (prompt.id, prompt.reference, prompt.columns) == (
        "train.jsonl:7",
        "4",
        {"answer": "4", "level": 3},
    )


def test_trl_row_keeps_its_messages_and_columns():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    prompt = parse({"prompt": messages, "solution": "4"})
    assert [message.role for message in prompt.messages] == ["system", "user"]
    assert prompt.reference == "4"


def test_verl_row_gives_ground_truth_and_id():
    row = {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": "How many?"}],
        "reward_model": {"style": "rule", "ground_truth": "72"},
        "extra_info": {"id": "gsm8k-5", "split": "train"},
    }
    prompt = parse(row)
    assert (prompt.id, prompt.reference) == ("gsm8k-5", "72")
    assert prompt.columns["data_source"] == "openai/gsm8k"


def test_empty_column_does_not_hide_the_gold_answer():
    assert parse({"prompt": "?", "answer": "", "reward_model": {"ground_truth": "5"}}).reference == "5"
    assert parse({"prompt": "?", "answer": ""}).reference is None


@pytest.mark.parametrize(
    ("value", "reference"),
    [
        (Decimal("2.50"), "2.50"),
        (date(2024, 2, 29), "2024-02-29"),
        ([Decimal("1"), date(2024, 2, 29)], '["1", "2024-02-29"]'),
        (0, "0"),
        (True, "true"),
    ],
)
def test_reference_of_any_column_type_becomes_text(value, reference):
    assert parse({"prompt": "?", "answer": value}).reference == reference


def test_columns_are_renamed():
    prompt = parse({"question": "2+2?", "target": 4}, prompt="question", reference="target")
    assert (prompt.messages[0].content, prompt.reference, prompt.columns) == ("2+2?", "4", {"reference": 4})


@pytest.mark.parametrize(
    ("row", "columns", "says"),
    [
        ({"question": "?"}, {}, r"row train\.jsonl:7 has no `prompt`; its columns are \['question'\]"),
        ({"question": "?"}, {"prompt": "questoin"}, r"task\.train\.columns\.prompt.*Did you mean 'question'"),
        ({"prompt": "  "}, {}, "`prompt` is empty"),
        ({"prompt": 5}, {}, "`prompt` is 5, expected text or a list of messages"),
        ({"prompt": []}, {}, "expected text or a list"),
        (
            {"prompt": [{"role": "human", "content": "x"}]},
            {},
            r"prompt\[0\] has role 'human', expected one of system",
        ),
        ({"prompt": [{"role": "user"}]}, {}, r"prompt\[0\] is .*expected \{role"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, {}, "last message .* is the assistant's"),
        ({"prompt": "x", "images": "one.png"}, {}, "`images` is 'one.png', expected a list"),
    ],
)
def test_bad_row_is_named(row, columns, says):
    with pytest.raises(DataError, match=says):
        parse(row, **columns)
