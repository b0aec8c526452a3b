"""One adversarial case: what a model wrote, the gold, the verdict of a careful grader, and why."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["right", "wrong", "no answer", "limit", "bad gold"]


@dataclass(frozen=True, kw_only=True)
class Case:
    line: int
    """Line of the policy in docs/math.md."""
    completion: str
    gold: str
    verdict: Verdict
    reason: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        given = dict(self.options) or ""
        return f"{self.line}: {self.gold[:30]!r} <- {self.completion[-45:]!r} is {self.verdict}: {self.reason} {given}"


def pairs(line: int, verdict: Verdict, rows: Iterable[tuple[str, str, str]], **options: Any) -> list[Case]:
    r"""Cases of (gold, answer, reason); the answer stands in \boxed, where its braces allow that, else in tags."""
    return [
        Case(line=line, completion=_wrap(answer), gold=gold, verdict=verdict, reason=reason, options=options)
        for gold, answer, reason in rows
    ]


def texts(line: int, gold: str, rows: Iterable[tuple[str, Verdict, str]], **options: Any) -> list[Case]:
    """Cases of (completion, verdict, reason) for one gold."""
    return [
        Case(line=line, completion=text, gold=gold, verdict=verdict, reason=reason, options=options)
        for text, verdict, reason in rows
    ]


def _wrap(answer: str) -> str:
    is_balanced = answer.replace(r"\{", "").count("{") == answer.replace(r"\}", "").count("}")
    return rf"So it is $\boxed{{{answer}}}$." if is_balanced else f"<answer>{answer}</answer>"
