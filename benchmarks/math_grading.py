"""`math_answer` against Math-Verify: errors and milliseconds, on the adversarial cases and on gold answers.

`python benchmarks/math_grading.py` grades every case of tests/unit/rewards/math_cases and, where ../shared/data or
`--data` has them, the golds of GSM8K and 500 of MATH, right and spoilt, by both graders in turn in one run.
`--model-solutions FILE` grades OpenAI's published GSM8K model outputs (example_model_solutions.jsonl) instead.
docs/math.md says what the columns mean.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from benchmarks.math_verify_side import DEADLINE_S, MathVerify
from rewards import math_process
from rewards.math_answer import grade, gsm8k_row
from rewards.math_symbols import equal
from rlhf.types import RewardResult
from tests.unit.rewards.math_cases.case import Case
from tests.unit.rewards.math_cases.every import CASES

REPOSITORY = Path(__file__).resolve().parents[1]
HUNG_S = 3.0
EXTRACTION_LINES = (1, 2, 3)
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
FINAL_LINE = "\nA:"


@dataclass(frozen=True)
class Question:
    """A completion, its gold, and whether a careful grader pays for it."""

    completion: str
    gold: str
    is_right: bool
    about: str


@dataclass
class Score:
    """What one grader did with a set of questions."""

    milliseconds: list[float] = field(default_factory=list)
    false_positives: list[Question] = field(default_factory=list)
    false_negatives: list[Question] = field(default_factory=list)
    hangs: list[Question] = field(default_factory=list)

    def see(self, question: Question, *, is_paid: bool, seconds: float) -> None:
        """Count one verdict."""
        self.milliseconds.append(1000 * seconds)
        if seconds >= HUNG_S:
            self.hangs.append(question)
        elif is_paid and not question.is_right:
            self.false_positives.append(question)
        elif question.is_right and not is_paid:
            self.false_negatives.append(question)


def main() -> int:
    arguments = parser().parse_args()
    console = Console(width=150)
    if arguments.model_solutions:
        return report_model_solutions(arguments.model_solutions, console)
    sets = {
        "adversarial, extraction (lines 1-3)": list(adversarial(extraction=True)),
        "adversarial, equality (lines 4-10)": list(adversarial(extraction=False)),
        "GSM8K golds and golds + 1": list(gsm8k(arguments.data, arguments.limit)),
        "500 MATH golds and golds + 1": list(math500(arguments.data, arguments.limit)),
    }
    table = Table(title="math_answer against Math-Verify with default settings, in one run")
    for column in ("set", "grader", "right", "wrong", "median ms", "p99 ms", "worst ms"):
        table.add_column(column, justify="left" if column in ("set", "grader") else "right")
    for column in ("paid wrongly", "refused wrongly", f"over {HUNG_S:g} s"):
        table.add_column(column, justify="right")
    for name, questions in sets.items():
        if not questions:
            console.print(f"{name}: not found under {arguments.data}")
            continue
        for grader, score in compare(questions).items():
            add_row(table, (name, grader), questions, score)
            if arguments.errors:
                report_errors(console, f"{name}, {grader}", score)
    console.print(table)
    console.print(symbolic_step())
    return 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    options.add_argument("--limit", type=int, default=None, help="golds of each data set (default: all)")
    options.add_argument("--errors", action="store_true", help="list every error of both graders")
    options.add_argument(
        "--model-solutions", type=Path, help="a file in the format of example_model_solutions"
    )
    return options


def adversarial(*, extraction: bool) -> Iterator[Question]:
    """The cases that need no option of ours and have a usable gold."""
    for case in CASES:
        if case.options or case.verdict == "bad gold" or (case.line in EXTRACTION_LINES) is not extraction:
            continue
        yield question_of(case)


def question_of(case: Case) -> Question:
    return Question(case.completion, case.gold, is_right=case.verdict == "right", about=case.name)


def gsm8k(data: Path, limit: int | None) -> Iterator[Question]:
    files = [data / "gsm8k" / f"{split}.jsonl" for split in ("train", "test")]
    rows = (line for file in files if file.is_file() for line in file.read_text().splitlines())
    for line in islice(rows, limit):
        gold = gsm8k_row(json.loads(line))["reference"]
        yield from gold_and_spoilt(gold, str(int(gold.replace(",", "")) + 1))


def math500(data: Path, limit: int | None) -> Iterator[Question]:
    file = data / "math500" / "answers.jsonl"
    for line in islice(file.read_text().splitlines() if file.is_file() else (), limit):
        gold = json.loads(line)["answer"]
        yield from gold_and_spoilt(gold, f"{gold}+1")


def gold_and_spoilt(gold: str, spoilt: str) -> Iterator[Question]:
    for answer in (gold, spoilt):
        text = f"So the result is $\\boxed{{{answer}}}$."
        yield Question(text, gold, is_right=answer == gold, about=f"{gold!r} <- {answer!r}")


def compare(questions: Sequence[Question]) -> dict[str, Score]:
    """Both graders on every question, one after the other, so that noise on the machine meets both."""
    ours, theirs = Score(), Score()
    math_process.start()
    with MathVerify() as math_verify:
        for question in questions:
            started = time.perf_counter()
            result = grade(question.completion, question.gold)
            ours.see(question, is_paid=result.value == 1.0, seconds=time.perf_counter() - started)
            is_paid, seconds = math_verify.grade(question.completion, question.gold)
            theirs.see(question, is_paid=is_paid, seconds=seconds)
    return {"math_answer": ours, "Math-Verify": theirs}


def add_row(table: Table, names: tuple[str, str], questions: Sequence[Question], score: Score) -> None:
    right = sum(question.is_right for question in questions)
    ordered = sorted(score.milliseconds)
    worst = f"> {1000 * DEADLINE_S:.0f}" if ordered[-1] >= 1000 * DEADLINE_S else f"{ordered[-1]:.0f}"
    speed = (f"{median(ordered):.2f}", f"{ordered[int(0.99 * (len(ordered) - 1))]:.1f}", worst)
    errors = (score.false_positives, score.false_negatives, score.hangs)
    table.add_row(*names, str(right), str(len(questions) - right), *speed, *(str(len(e)) for e in errors))


def report_errors(console: Console, name: str, score: Score) -> None:
    kinds = {
        "paid wrongly": score.false_positives,
        "refused wrongly": score.false_negatives,
        "hung": score.hangs,
    }
    for kind, questions in kinds.items():
        for question in questions:
            console.print(f"{name}: {kind}: {question.about}", markup=False, highlight=False, soft_wrap=True)


def symbolic_step(rounds: int = 300) -> Table:
    """What a warm worker adds to a symbolic comparison that the process could do itself."""
    table = Table(title=f"one symbolic comparison, {rounds} different ones, ms")
    for column in ("where", "median", "p99"):
        table.add_column(column, justify="right" if column != "where" else "left")
    pairs = [(f"(x+{n})(x-{n})", f"x^2-{n * n}") for n in range(2, rounds + 2)]
    math_process.start()
    for where, judge in {
        "in this process": lambda gold, answer: equal(gold, answer, math_process.EXACT),
        "in a warm worker": math_process.compare,
    }.items():
        taken = []
        for gold, answer in pairs:
            started = time.perf_counter()
            judge(gold, answer)
            taken.append(1000 * (time.perf_counter() - started))
        taken.sort()
        table.add_row(where, f"{median(taken):.2f}", f"{taken[int(0.99 * (len(taken) - 1))]:.2f}")
    return table


def report_model_solutions(path: Path, console: Console) -> int:
    """Grade published outputs whose labels are known; 1 when a verdict differs from its label."""
    verdicts = list(model_solutions(path))
    differing = [
        (where, label, result) for where, label, result in verdicts if (result.value == 1.0) != label
    ]
    for where, label, result in differing:
        labelled = "correct" if label else "incorrect"
        console.print(
            f"{where}: labelled {labelled}, graded {result.outcome} {dict(result.detail)}", markup=False
        )
    console.print(f"{len(verdicts)} labelled solutions, {len(differing)} disagreements")
    return 1 if differing else 0


def model_solutions(path: Path) -> Iterator[tuple[str, bool, RewardResult]]:
    """Place, label and verdict of every solution. A solution ends in a line `A: 18`; a truncated one has none."""
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        row = json.loads(line)
        gold = row["ground_truth"].rpartition(FINAL_LINE)[2]
        for model in MODELS:
            work, marker, answer = row[model]["solution"].rpartition(FINAL_LINE)
            completion = f"{work}\n#### {answer.strip()}" if marker else answer
            yield f"line {number}, {model}", row[model]["is_correct"], grade(completion, gold)


if __name__ == "__main__":
    sys.exit(main())
