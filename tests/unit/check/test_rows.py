from rlhf.check.rows import repeated_rows, shared_rows
from rlhf.types import Message, Prompt
from tests.unit.check.checking import checked, use


def prompt(identity: str, text: str, gold: str | None) -> Prompt:
    return Prompt(id=identity, messages=(Message(role="user", content=text),), reference=gold)


def test_repeats_are_found_in_normalised_text_and_told_from_conflicts():
    rows = [
        prompt("a", "What is 1+1?", "2"),
        prompt("b", "what  is\n1+1? ", "2.0"),
        prompt("c", "What is １+1?", "3"),  # noqa: RUF001
        prompt("d", "What is 1-1?", "2"),
    ]
    found = [(finding.row, finding.kind, finding.is_fatal) for finding in repeated_rows(rows)]
    assert found == [
        ("b", "same prompt and gold twice", False),
        ("c", "conflict: same prompt, different golds", False),
    ]
    assert repeated_rows(rows)[1].reason == "the prompt of row a, there with the gold '2', here '3'"


def test_repeats_differ_by_their_history_and_images():
    question = Message(role="user", content="And now?")
    rows = [
        Prompt(id="a", messages=(question,)),
        Prompt(id="b", messages=(Message(role="system", content="Be brief."), question)),
        Prompt(id="c", messages=(question,), images=("cat.png",)),
    ]
    assert not repeated_rows(rows)


def test_shared_rows_name_the_first_training_row():
    train = [prompt("a", "x", "1"), prompt("b", "X", "1")]
    (finding,) = shared_rows(train, [prompt("c", " x ", "9"), prompt("d", "y", "1")])
    assert (finding.row, finding.reason) == ("c", "the prompt of training row a")


def test_check_names_repeats_overlap_and_rows_that_cannot_be_read(tmp_path):
    rows = [
        {"prompt": "1+1", "answer": "2"},
        {"prompt": "1+1 ", "answer": "3"},
        {"prompt": "", "answer": "4"},
        {"answer": "5"},
        {"prompt": "2+2", "answer": "4", "id": "rows.jsonl:0"},
        {"prompt": "3+3", "answer": "6"},
    ]
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text('{"prompt": "1+1", "answer": "2", "id": "rows.jsonl:0"}\n{"prompt": \n[1]\n')
    found = checked(tmp_path, use("right"), rows=rows, heldout={"file": str(heldout)})
    bad = ["rows.jsonl:2", "rows.jsonl:3", "rows.jsonl:4", "heldout.jsonl:1", "heldout.jsonl:2"]
    assert found.fatal == {"row cannot be read": bad}
    assert found.warned == {
        "conflict: same prompt, different golds": ["rows.jsonl:1"],
        "held-out prompt also in task.train": ["rows.jsonl:0 of task.heldout"],
    }
    assert found.says("golds") == "4 of 4 graded right"
    assert "3 prompts, conflict: same prompt, different golds (1 row)" in found.says("task.train")
    assert "1 prompts, 1 of them also in task.train" in found.says("task.heldout")
