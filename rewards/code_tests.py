"""Rewards a program that passes the tests of its prompt: `rewards.code_tests:grade`, and `:compiler_feedback`.

The column `tests` says what is tested (`rewards.code_records`). Programs run in the sandbox only, and the
process that holds the expected values never runs them (`rewards.code_grading`).
"""

import math
import random
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from rewards.code_bench import LIMITS, RAN, Bench, BrokenSandbox, Verdict
from rewards.code_extraction import Answer, extract
from rewards.code_grading import run_tests
from rewards.code_languages import LANGUAGES, require
from rewards.code_records import AssertTests, Record, StdioTests, parse_record
from rewards.code_scorer import load_scorer
from rlhf.errors import DataError, LoadError, RewardError
from rlhf.sandbox.client import Sandbox, default_sandbox
from rlhf.types import Outcome, Prompt, RewardResult

Credit = Literal["all", "share", "staged"]
_GRADER_S = 16.0
"""What a grading takes beside the program: starts, restarts, a machine that is busy."""
STAGES = {"compiled": 0.1, "ran": 0.2, "passed": 0.7}
"""What `staged` credit pays: for a program that compiles, for the share of tests that run to their end, that pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of the tests of one completion. Tests that were not run any more are neither run nor passed."""

    num_tests: int
    passed: int
    ran: int
    compiled: bool
    failure: Verdict | None
    failed_test: int | None

    @property
    def parts(self) -> dict[str, float]:
        """The stages, 0 to 1."""
        return {
            "compiled": float(self.compiled),
            "ran": self.ran / self.num_tests,
            "passed": self.passed / self.num_tests,
        }

    def value(self, credit: Credit) -> float:
        """The reward, 0 to 1; 1 only when every test passed."""
        if credit == "all":
            return float(self.passed == self.num_tests)
        if credit == "share":
            return self.passed / self.num_tests
        return sum(weight * self.parts[name] for name, weight in STAGES.items())

    @property
    def outcome(self) -> Outcome:
        """`ok` when every test passed, limit when the first failure was one, else wrong."""
        if self.failure is None:
            return "ok"
        return "limit" if self.failure.kind in LIMITS else "wrong"


@dataclass(kw_only=True)
class CodeTests:
    """Grades completions against the `tests` of their prompts. Its fields are the reward's kwargs."""

    credit: Credit = "all"
    """all: 1 when every test passes, else 0, and the first failure ends the testing; share: of tests passed;
    staged: see STAGES."""
    max_tests: int | None = None
    """Test at most so many, the same ones for all attempts at a prompt; the record's hardest are among them."""
    seed: int = 0
    """Of the choice."""
    cpu_s: float = 4.0
    """CPU seconds per test, where the record states none; four times as long by the clock at most."""
    total_cpu_s: float = 12.0
    """CPU seconds of all tests together: those left when they are used up have failed."""
    memory_mb: int = 1024
    """Per test, where the record states none."""
    languages: Sequence[str] = ("python",)
    """Accepted in stdio tests; the label of a block decides. A block without a label is in the first."""
    whole_text: bool = False
    """Whether a completion without any block is taken as the program."""
    prompt_opens_think: bool = False
    """Whether the chat template ends in `<think>`: without `</think>` the completion is an unfinished thought."""
    allow_weak: bool = False
    """Whether records are graded whose tests must run in the solution's process, where it can cheat."""
    sandbox: Sandbox = field(default_factory=default_sandbox, repr=False)

    def __post_init__(self) -> None:
        if self.credit not in get_args(Credit):
            raise LoadError(
                f"kwargs.credit is {self.credit!r}, expected one of {', '.join(get_args(Credit))}."
            )
        for name in ("max_tests", "cpu_s", "total_cpu_s", "memory_mb"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise LoadError(f"kwargs.{name} is {getattr(self, name)!r}, expected a number above 0.")
        if not self.languages or isinstance(self.languages, str):
            raise LoadError(f"kwargs.languages is {self.languages!r}, expected a list such as [python, cpp].")
        self.languages = tuple(self.languages)
        require(self.languages, self.sandbox)
        self._latest: tuple[Any, Record] | None = None

    @property
    def longest_s(self) -> float:
        """Seconds after which a verdict is there whatever the program does, unless its record asks for more."""
        return 5 * self.total_cpu_s + _GRADER_S

    def __call__(self, completion: str, tests: Any, prompt: Prompt) -> RewardResult:
        """The reward of one completion, 0 to 1; its parts are the stages, its detail the first failure.

        Raises RewardError or DataError (the grader's or the record's fault: no value) and never for what the
        program does.
        """
        record = self._record(tests)
        languages = self._languages(record)
        answer = extract(
            completion, languages, whole_text=self.whole_text, prompt_opens_think=self.prompt_opens_think
        )
        if answer is None:
            return RewardResult(value=0.0, outcome="unparsable", detail={"kind": "no program"})
        numbers = chosen_tests(record, max_tests=self.max_tests, key=f"{self.seed} {prompt.id}")
        try:
            report, tier = self._test(record, answer, numbers)
        except BrokenSandbox:
            # Once more: a machine that was overloaded for a moment is no reason to lose a sample.
            try:
                report, tier = self._test(record, answer, numbers)
            except BrokenSandbox as error:
                raise RewardError(f"the sandbox broke twice: {error}") from error
        return self._result(report, tier)

    def _record(self, column: Any) -> Record:
        """The parsed column; siblings of a group bring the same one."""
        latest = self._latest
        if latest is None or latest[0] is not column:
            latest = self._latest = (column, parse_record(column))
        record = latest[1]
        if isinstance(record.tests, AssertTests) and record.tests.is_weak and not self.allow_weak:
            raise DataError(
                "the tests of this prompt are weak: they must run in the solution's own process, where it can "
                "answer for them. Leave the row out, or set kwargs.allow_weak: true where nobody trains on it."
            )
        return record

    def _languages(self, record: Record) -> tuple[str, ...]:
        wanted = (record.language,) if record.language else tuple(self.languages)
        if not isinstance(record.tests, StdioTests):
            wanted = ("python",)
        missing = [name for name in wanted if name not in self.languages]
        if missing:
            raise DataError(
                f"the tests of this prompt are for {missing[0]!r}, but kwargs.languages is {list(self.languages)}. "
                "Add it there, or leave the row out."
            )
        return wanted

    def _test(self, record: Record, answer: Answer, numbers: Sequence[int]) -> tuple[Report, str]:
        cpu_s = record.cpu_s * LANGUAGES[answer.language].cpu_factor if record.cpu_s else self.cpu_s
        bench = Bench(
            sandbox=self.sandbox,
            cpu_s=cpu_s,
            total_cpu_s=max(self.total_cpu_s, cpu_s),
            memory_mb=int(record.memory_mb or self.memory_mb),
        )
        passed = ran = 0
        compiled = True
        failure, failed_test = None, None
        with closing(run_tests(bench, record, answer, numbers)) as verdicts:
            for number, verdict in verdicts:
                passed += verdict.kind == "passed"
                ran += verdict.kind in RAN
                compiled = compiled and verdict.has_compiled
                if verdict.kind != "passed" and failure is None:
                    failure, failed_test = verdict, number
                if verdict.is_final or (failure is not None and self.credit == "all"):
                    break
        report = Report(
            num_tests=len(numbers),
            passed=passed,
            ran=ran,
            compiled=compiled,
            failure=failure,
            failed_test=failed_test,
        )
        return report, bench.tier

    def _result(self, report: Report, tier: str) -> RewardResult:
        detail: dict[str, str | float] = {"tier": tier, "tests": report.num_tests}
        if report.failure is not None:
            detail |= {"kind": report.failure.kind, "message": report.failure.message}
            detail |= {"failed_test": report.failed_test or 0}
        # With `all` the shares are of the tests up to the first failure, so they would mean nothing.
        parts = report.parts if self.credit != "all" else {"compiled": report.parts["compiled"]}
        return RewardResult(
            value=report.value(self.credit), outcome=report.outcome, parts=parts, detail=detail
        )


class CompilerFeedback:
    """Compiler feedback as a dense reward, as DeepSeek-Coder-V2 (2406.11931) uses it: 0 to 1, or a scorer's number.

    There a reward model is trained on completions with their test results, and RL takes its scores;
    `rewards.code_feedback` writes the rows to train one on. The stages are parts in both cases.

    Takes the kwargs of `CodeTests`, with `staged` as the default credit, and `scorer`: None, the kwargs of
    `rewards.reward_model:ServedScorer`, or `module:attribute` of a function of (prompt, completion).
    """

    def __init__(self, *, scorer: str | Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        if "credit" in kwargs and kwargs["credit"] == "all":
            raise LoadError(
                "kwargs.credit is 'all', which is not dense: use code_tests:grade, or share or staged."
            )
        self._tests = CodeTests(**{"credit": "staged", **kwargs})
        self._scorer = None if scorer is None else load_scorer(scorer)
        self.longest_s = self._tests.longest_s

    def __call__(self, completion: str, tests: Any, prompt: Prompt) -> RewardResult:
        """The raw signal or the scorer's number. RewardError when the scorer fails: never 0 for that."""
        raw = self._tests(completion, tests, prompt)
        if self._scorer is None:
            return raw
        score = self._scorer(prompt, completion)
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise RewardError(f"the scorer returned {score!r:.80}, expected a finite number")
        return replace(raw, value=float(score), parts={**raw.parts, "raw": raw.value or 0.0})


def chosen_tests(record: Record, *, max_tests: int | None, key: str) -> list[int]:
    """Numbers of the tests to run, the record's hardest first; the choice of the others follows from `key`."""
    hardest = list(dict.fromkeys(record.hardest))
    others = [number for number in range(len(record.tests)) if number not in set(hardest)]
    room = len(record.tests) if max_tests is None else max_tests
    if room < len(record.tests):
        hardest = hardest[:room]
        others = sorted(random.Random(key).sample(others, max(0, min(room - len(hardest), len(others)))))
    return hardest + others


def warm_up() -> None:
    """Start the sandbox outside every deadline; reward workers call it once. SandboxError when there is none."""
    assert default_sandbox().tier


grade = CodeTests
compiler_feedback = CompilerFeedback
