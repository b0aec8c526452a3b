"""Rewards by the verdict of a model served behind an OpenAI-compatible endpoint: a judge, or a generative reward model.

`Score` asks for a number, `Rubrics` for yes or no on each criterion of the row, `Compare` which of two answers is
better. All ask at temperature 0 with a fixed seed. A reply without a strict verdict is the judge's fault: value None,
outcome error, never 0. An answer that is empty, or cut inside its thought, is the model's: 0, without a call.
`rewards.endpoint` says which errors a recipe can retry.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from typing import Any, Literal

from rewards.endpoint import Endpoint, Reply, as_endpoint, together
from rewards.judge_text import ask, question, verdict
from rewards.response_format import has_text, visible
from rlhf.errors import ConfigError, DataError
from rlhf.types import Outcome, Prompt, RewardResult, TrajectoryGroup

MAX_CHARACTERS = 32_000
_SHOWN = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The judge's whole number from `lowest` to `highest`, brought to 0 to 1. One call a sample."""

    endpoint: Endpoint | Mapping[str, Any]
    """As `rewards.endpoint.Endpoint`."""
    criteria: str = "Judge how correct, complete and helpful the answer is."
    lowest: int = 1
    highest: int = 10
    use_reference: bool = True
    """Show the judge the row's reference answer, where it has one."""
    prompt_opens_think: bool = False
    max_characters: int = MAX_CHARACTERS
    """A longer answer is not sent: value 0, outcome limit."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "endpoint", as_endpoint(self.endpoint))
        if not 0 <= self.lowest < self.highest:
            raise ConfigError(
                f"lowest is {self.lowest} and highest {self.highest}, expected 0 <= lowest < highest."
            )

    async def __call__(self, completion: str, prompt: Prompt, reference: str | None = None) -> RewardResult:
        """The judge's score of the visible answer."""
        answer, fault = _answer(completion, self.prompt_opens_think, self.max_characters)
        if fault is not None:
            return fault
        texts = {"question": question(prompt), "answer": answer}
        task = f"Give the answer a whole number from {self.lowest} (worst) to {self.highest} (best)."
        if self.use_reference and reference:
            texts = {**texts, "reference": reference}
            task = f"The reference is known to be right. {task}"
        reply = await as_endpoint(self.endpoint).chat(ask(self.criteria, task, "<number>", texts))
        said = verdict(reply) or ""
        if not said.isdecimal() or not self.lowest <= int(said[:9]) <= self.highest:
            return _no_verdict(reply, f"a number from {self.lowest} to {self.highest}")
        value = (int(said) - self.lowest) / (self.highest - self.lowest)
        return RewardResult(value=value, parts={"score": float(said)}, detail=_shown(reply))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubrics:
    """The weighted share of the row's criteria that the judge finds met. One call a criterion.

    The column `rubrics` is a list of {criterion, weight}, or that as JSON; a negative weight is for something to avoid.
    Value: the sum of the weights met, over the sum of the positive ones, cut to 0 to 1. One criterion without a
    verdict leaves the sample without a value. Source: rubrics per prompt, as in DeepSeek-V3.2 (arXiv 2512.02556).
    """

    endpoint: Endpoint | Mapping[str, Any]
    criteria: str = "Judge whether the answer meets one criterion."
    at_once: int = 8
    """Calls of one sample that are under way together."""
    prompt_opens_think: bool = False
    max_characters: int = MAX_CHARACTERS

    def __post_init__(self) -> None:
        object.__setattr__(self, "endpoint", as_endpoint(self.endpoint))

    async def __call__(
        self, completion: str, prompt: Prompt, rubrics: Sequence[Mapping[str, Any]] | str
    ) -> RewardResult:
        """The weighted share of the criteria that are met; parts `rubric_0`... are 1 where met."""
        criteria = _rubrics(rubrics)
        answer, fault = _answer(completion, self.prompt_opens_think, self.max_characters)
        if fault is not None:
            return fault
        task = "Say whether the answer meets the criterion: YES only if it does so fully, else NO."
        base = {"question": question(prompt), "answer": answer}
        asked = [ask(self.criteria, task, "<YES or NO>", {**base, "criterion": c}) for c, _ in criteria]
        endpoint = as_endpoint(self.endpoint)
        replies = await together([endpoint.chat(messages) for messages in asked], at_once=self.at_once)
        verdicts = [verdict(reply) for reply in replies]
        for reply, said in zip(replies, verdicts, strict=True):
            if said not in ("YES", "NO"):
                return _no_verdict(reply, "YES or NO")
        met = sum(weight for (_, weight), said in zip(criteria, verdicts, strict=True) if said == "YES")
        best = sum(weight for _, weight in criteria if weight > 0)
        parts = {f"rubric_{index}": float(said == "YES") for index, said in enumerate(verdicts)}
        return RewardResult(value=min(max(met / best, 0.0), 1.0), parts=parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """The share of comparisons that an attempt wins (a tie is half), each asked in both orders.

    `against: reference` compares with the row's reference answer: 2 calls a sample. `against: siblings` is a tournament
    of the group: G (G - 1) calls for G samples; `opponents: k` lets each meet its next k only: 2 k G calls.
    A pair on which the judge contradicts itself when the order is changed is a tie, or with `disagreement: none` not
    counted. An attempt without a comparison that counts has no value. `limit_s` is for one sample, so G of them here.
    """

    endpoint: Endpoint | Mapping[str, Any]
    criteria: str = "Judge which of two answers to the question is more correct, complete and helpful."
    against: Literal["reference", "siblings"] = "siblings"
    opponents: int | None = None
    disagreement: Literal["tie", "none"] = "tie"
    at_once: int = 16
    """Calls of one group that are under way together."""
    prompt_opens_think: bool = False
    max_characters: int = MAX_CHARACTERS

    def __post_init__(self) -> None:
        object.__setattr__(self, "endpoint", as_endpoint(self.endpoint))
        if self.against not in ("reference", "siblings") or self.disagreement not in ("tie", "none"):
            raise ConfigError(
                f"against is {self.against!r} and disagreement {self.disagreement!r}, expected reference or siblings, "
                "and tie or none."
            )
        if self.opponents is not None and (self.opponents < 1 or self.against == "reference"):
            raise ConfigError(
                f"opponents is {self.opponents} and against {self.against}: expected at least 1, against siblings."
            )

    async def __call__(self, group: TrajectoryGroup) -> list[RewardResult]:
        """One share for each attempt; part `contradicted` is the share of its pairs that the judge contradicts."""
        found = [
            _answer(t.completion, self.prompt_opens_think, self.max_characters) for t in group.trajectories
        ]
        answers = [answer for answer, _ in found]
        pairs = self._pairs([i for i, (_, fault) in enumerate(found) if fault is None])
        if self.against == "reference":
            if not group.prompt.reference:
                raise DataError("against is reference, but the row has no reference answer.")
            answers.append(group.prompt.reference)
        outcomes = await together(
            [self._compare(group.prompt, answers[a], answers[b]) for a, b in pairs], at_once=self.at_once
        )
        # Who says nothing loses to everyone who says something.
        walkovers = [1.0 for _, fault in found if fault is not None and self.against == "siblings"]
        results = []
        for index, (_, fault) in enumerate(found):
            own = [
                (s if a == index else _turned(s))
                for (a, b), s in zip(pairs, outcomes, strict=True)
                if index in (a, b)
            ]
            results.append(fault or self._result([*own, *walkovers]))
        return results

    def _pairs(self, entered: Sequence[int]) -> list[tuple[int, int]]:
        """Who meets whom; the reference stands at the end, at -1."""
        if self.against == "reference":
            return [(index, -1) for index in entered]
        size = len(entered)
        if self.opponents is None:
            return list(combinations(entered, 2))
        near = {
            tuple(sorted((i, (i + k) % size)))
            for i in range(size)
            for k in range(1, min(self.opponents + 1, size))
        }
        return [(entered[a], entered[b]) for a, b in sorted(near)]

    async def _compare(self, prompt: Prompt, first: str, second: str) -> float | str:
        """What `first` wins: 1, 0.5, 0; or the word that says why there is no telling."""
        if first.strip() == second.strip():
            return 0.5
        task = "Say which answer is better: A, B, or TIE if neither is."
        said = []
        for a, b in ((first, second), (second, first)):
            texts = {"question": question(prompt), "answer-A": a, "answer-B": b}
            reply = await as_endpoint(self.endpoint).chat(ask(self.criteria, task, "<A, B or TIE>", texts))
            said.append(verdict(reply) or "")
        shares = [{"A": 1.0, "B": 0.0, "TIE": 0.5}.get(word) for word in said]
        if shares[0] is None or shares[1] is None:
            return "unparsable"
        return shares[0] if shares[0] == 1 - shares[1] else "contradicted"

    def _result(self, outcomes: Sequence[float | str]) -> RewardResult:
        counted = [0.5 if o == "contradicted" and self.disagreement == "tie" else o for o in outcomes]
        shares = [share for share in counted if isinstance(share, float)]
        parts = {"contradicted": outcomes.count("contradicted") / max(len(outcomes), 1)}
        if shares:
            return RewardResult(value=sum(shares) / len(shares), parts=parts)
        reasons = ", ".join(sorted({str(outcome) for outcome in outcomes}))
        if not reasons:
            return RewardResult(
                value=None, outcome="not_applicable", detail={"error": "there is no one to compare with"}
            )
        return RewardResult(value=None, outcome="error", detail={"error": f"every comparison was {reasons}"})


def _turned(outcome: float | str) -> float | str:
    return outcome if isinstance(outcome, str) else 1 - outcome


def _answer(
    completion: str, prompt_opens_think: bool, max_characters: int
) -> tuple[str, RewardResult | None]:
    """The visible answer, and the verdict that it has without a judge, if any."""
    text = visible(completion, prompt_opens_think=prompt_opens_think) or ""
    outcome: Outcome = "limit" if has_text(text) else "unparsable"
    if has_text(text) and len(text) <= max_characters:
        return text.strip(), None
    return "", RewardResult(value=0.0, outcome=outcome)


def _rubrics(given: Any) -> list[tuple[str, float]]:
    try:
        listed = json.loads(given) if isinstance(given, str) else given
        found = [(str(item["criterion"]).strip(), float(item["weight"])) for item in listed]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"rubrics is {given!r:.80}, expected a list of {{criterion, weight}}: {error!r}"
        ) from error
    is_sound = all(text and isfinite(weight) and weight for text, weight in found)
    if not is_sound or not any(weight > 0 for _, weight in found):
        raise DataError(
            f"rubrics is {given!r:.80}, expected criteria with weights other than 0, one above 0."
        )
    return found


def _no_verdict(reply: Reply, expected: str) -> RewardResult:
    cut = "" if reply.is_complete else " (the reply was cut: raise max_tokens in endpoint.parameters)"
    error = f"the judge's last line gives no verdict, expected VERDICT: {expected}{cut}"
    return RewardResult(value=None, outcome="error", detail={"error": error, **_shown(reply)})


def _shown(reply: Reply) -> dict[str, str]:
    return {"judge": reply.text[-_SHOWN:]}
