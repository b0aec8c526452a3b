import time

import pytest

from rewards.code_extraction import Answer, extract

CODE = "x = 1\n"
FENCED = f"```python\n{CODE}```"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (FENCED, CODE),
        (f"Here:\n{FENCED}\nDone.", CODE),
        (f"```py\n{CODE}```", CODE),
        (f"```Python\n{CODE}```", CODE),
        (f"```python title=a.py\n{CODE}```", CODE),
        (f"~~~python\n{CODE}~~~", CODE),
        (f"````python\n```\n{CODE}````", f"```\n{CODE}"),
        (f"<answer>```python\n{CODE}```</answer>", CODE),
        ("- step\n\n  ```python\n  if x:\n      y\n  ```", "if x:\n    y\n"),
        # the last block with the language, whatever follows it without a label or with another one
        (f"```python\nold\n```\n{FENCED}\n```\n1 2 3\n```\n```text\nout\n```", CODE),
        (f"```\nold\n```\nand\n```\n{CODE}```", CODE),
        # an unfinished fence is taken to the end
        (f"text\n```python\n{CODE}", CODE),
        (f"```python\nold\n```\n```python\n{CODE}", CODE),
        # thinking is not the answer
        (f"<think>```python\nold\n```</think>{FENCED}", CODE),
        (f"```python\nold\n```</think>\n{FENCED}", CODE),
    ],
)
def test_program_is_the_last_block_of_its_language(text, source):
    assert extract(text, ("python",)) == Answer("python", source)


@pytest.mark.parametrize(
    "text",
    [
        "",
        CODE,
        f"<think>{FENCED}",
        f"<think>a</think> b <think>{FENCED}",
        f"<think>{FENCED}</think>",
        "```cpp\nint main() {}\n```",
        "```python\n```",
        "```python\n   \n```",
        "an inline ```python``` mention",
    ],
)
def test_completion_without_a_program_gives_none(text):
    assert extract(text, ("python",)) is None


def test_whole_text_counts_only_if_asked_and_only_without_blocks():
    assert extract(CODE, ("python",), whole_text=True) == Answer("python", CODE)
    assert extract("```text\nhello\n```", ("python",), whole_text=True) is None
    assert extract(f"<think>{CODE}", ("python",), whole_text=True) is None


def test_label_chooses_among_the_languages_and_none_means_the_first():
    both = ("cpp", "python")
    assert extract("```c++\nmain\n```", both) == Answer("cpp", "main\n")
    assert extract(f"```cpp\nmain\n```\n{FENCED}", both) == Answer("python", CODE)
    assert extract("```\nmain\n```", both) == Answer("cpp", "main\n")


def test_hostile_text_is_read_in_linear_time():
    start = time.perf_counter()
    for text in (
        "```" * 300_000,
        "```\n" * 200_000,
        "`" * 10**6,
        " " * 10**6 + "```python",
        "```python" + " " * 10**6,
    ):
        extract(text, ("python",))
    assert time.perf_counter() - start < 60
