"""The reader of published model outputs."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.math_grading import MODELS, model_solutions, report_model_solutions

RIGHT = "She sells 16 - 7 = <<16-7=9>>9 eggs\nShe makes 9 * 2 = $<<9*2=18>>18\nA: 18"
WRONG = "She sells 16 * 7 = <<16*7=112>>112 eggs\nA: 1,120.5"
TRUNCATED = "For the first glass she pays 5 * 1/2 = $<<5*1/2=2.5>>2.5.\nFor the second 18"


def write(path: Path, labels: list[bool], solutions: list[str]) -> Path:
    row = {"question": "How much?", "ground_truth": "16 - 7 = 9\n9 * 2 = 18\nA: 18"}
    row |= {
        model: {"is_correct": label, "solution": solution}
        for model, label, solution in zip(MODELS, labels, solutions, strict=True)
    }
    path.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    return path


def test_published_solutions_are_graded_as_labelled(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [True, False, False, True], [RIGHT, WRONG, TRUNCATED, RIGHT + ".0"])
    verdicts = list(model_solutions(file))
    assert [result.value == 1.0 for _, _, result in verdicts] == [True, False, False, True] * 2
    assert [result.outcome for _, _, result in verdicts[:3]] == ["ok", "wrong", "unparsable"]
    assert report_model_solutions(file, Console(quiet=True)) == 0


def test_disagreement_with_a_label_is_reported_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.jsonl", [True, True, False, False], [RIGHT, WRONG, TRUNCATED, RIGHT])
    assert report_model_solutions(file, Console(width=200)) == 1
    printed = capsys.readouterr().out
    assert "line 1, 6b_verification: labelled correct, graded wrong" in printed
    assert "line 2, 175b_verification: labelled incorrect, graded ok" in printed
    assert "8 labelled solutions, 4 disagreements" in printed
