"""`rlhf check` of a recipe with scenarios: each by itself, with its own data, rewards and golds."""

from pathlib import Path

from tests.cli.command import write_rows
from tests.unit.check.checking import SUMS, Checked, checked, use

LINES = tuple({"prompt": f"Say {i}.", "gold_completion": f"So {i}."} for i in range(10))
JUDGE = """
def said(completion, prompt, gold_completion):
    return float(completion == gold_completion)


def polite(completion):
    return float(completion.endswith("please"))
"""


def checked_both(folder: Path, lines: list[dict[str, str]]) -> Checked:
    (folder / "judge.py").write_text(JUDGE)
    sums = {"file": str(write_rows(folder / "sums.jsonl", [dict(row) for row in SUMS]))}
    said = {"file": str(write_rows(folder / "lines.jsonl", lines))}
    late = {"use": f"{folder / 'judge.py'}:polite", "weight": 0.1, "first_step": -1}
    scenarios = {
        "sums": {"train": sums, "heldout": sums, "rewards": [use("right")]},
        "lines": {
            "train": said,
            "rewards": [{"use": f"{folder / 'judge.py'}:said"}, late],
            "needs_reference": False,
        },
    }
    return checked(folder, train=None, rewards=[], scenarios=scenarios)


def test_golds_of_every_scenario_are_graded_by_its_rewards(tmp_path):
    found = checked_both(tmp_path, list(LINES))
    assert found.code == 0, found.found
    assert "10 prompts" in found.says("task.scenarios.sums.train")
    assert "10 of them also in task.scenarios.sums.train" in found.says("task.scenarios.sums.heldout")
    assert found.says("golds") == "20 of 20 graded right | 10 of 10 graded right"
    assert "applies to 10 of 10 rows" in found.says("reward judge.polite")


def test_what_is_wrong_is_told_of_the_scenario(tmp_path):
    found = checked_both(tmp_path, [*LINES, {"prompt": "Say it."}])
    assert found.code == 1
    assert found.fatal
    assert all(row.startswith("lines/") for rows in found.fatal.values() for row in rows)
