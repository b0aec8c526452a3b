"""Judges graded rows one after another: whether golds are paid and nothing else is, and how long it took."""

import heapq
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlhf.check.grading import BROKEN, GradedRow
from rlhf.check.probes import NUM_WRONG, WRONG, Probe, may_hold
from rlhf.check.report import Finding
from rlhf.rollout.reward_totals import Part
from rlhf.types import Outcome, Prompt, RewardResult

DOUBT_COLUMN = "gold_doubt"
"""A prompt column in which a data mapper says why the row's gold answer may be wrong."""
UNGRADABLE = "not gradable"
NOT_RIGHT = "gold not graded right"
REWARDED = "rewarded without the answer"
CONTRACT = "contract"
FULL_CREDIT, NO_CREDIT = 0.5, 0.05
"""Share of what parts the gold from a wrong answer: more than the first is pay, less than the second is noise."""
_NUM_SLOWEST = 5


@dataclass(slots=True, kw_only=True)
class RewardTally:
    """What one reward said of all rows it applies to."""

    num_rows: int = 0
    gold_outcomes: Counter[Outcome] = field(default_factory=Counter)
    other_outcomes: Counter[Outcome] = field(default_factory=Counter)
    gold_values: dict[str, float] = field(default_factory=dict)
    """Row -> value of the gold, graded alone."""
    num_told_apart: int = 0
    """Golds that scored more than a wrong answer."""
    alike: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Row -> (value of the gold, of a wrong answer), where the first is not more."""
    unsteady: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Row -> (value of the gold alone, among siblings), where they differ."""
    values: dict[str, list[float]] = field(default_factory=dict)
    """Probe -> [number, sum of values]."""
    partial: Counter[str] = field(default_factory=Counter)
    """Probe -> rows on which it earned a part of the gold's credit."""
    seconds: "array[float]" = field(default_factory=lambda: array("d"))

    @property
    def compares(self) -> bool:
        """Whether it tells golds from wrong answers, on most rows: it knows the gold."""
        return self.num_told_apart > len(self.alike)

    def add(self, row: GradedRow, part: Part) -> None:
        """Count the results of one row."""
        self.num_rows += 1
        for probe, result in zip(row.probes, part.results, strict=True):
            is_gold = row.has_gold and probe is row.probes[0]
            (self.gold_outcomes if is_gold else self.other_outcomes)[result.outcome] += 1
            self.seconds.append(result.seconds)
            if result.value is not None and not probe.constant:
                entry = self.values.setdefault(probe.name, [0, 0.0])
                entry[0] += 1
                entry[1] += result.value

    def mean(self, probe: str) -> float | None:
        """Mean value of a probe over all rows that had one."""
        count, total = self.values.get(probe, (0, 0.0))
        return total / count if count else None


class Tally:
    """Findings and figures of the rows seen so far; the results themselves are not kept."""

    def __init__(self, names: Sequence[str], *, needs_reference: bool) -> None:
        self.rewards = {name: RewardTally() for name in names}
        self.num_rows = 0
        self.num_golds = 0
        self.num_judged = 0
        """Rows on which some reward told the gold from wrong answers, so that what a probe earns means something."""
        self.earned: Counter[str] = Counter()
        """Constant answer -> rows on which it earns what the gold earns."""
        self.sound: dict[int, tuple[Prompt, frozenset[str]]] = {}
        """Rows that broke no reward, by their place, with the rewards that apply."""
        self.slowest: list[tuple[float, str, str]] = []
        """(seconds, row, what) of the slowest single completions, at most one a row."""
        self._needs_reference = needs_reference
        self._findings: list[Finding] = []
        self._right: set[str] = set()
        self._not_right: set[str] = set()
        self._paid: list[tuple[str, Finding]] = []
        """Reward -> what it pays for; it counts if the reward turns out to know golds."""

    def add(self, row: GradedRow) -> None:
        """Judge one row."""
        self.num_rows += 1
        for part in row.parts:
            self.rewards[part.name].add(row, part)
        self._time(row)
        failures = _failures(row)
        problem = _why_ungradable(row)
        self._findings += failures
        if problem:
            self._find(UNGRADABLE, row, with_doubt(row.prompt, problem))
        if not failures and not problem:
            self.sound[row.index] = row.prompt, frozenset(part.name for part in row.parts)
        self.num_golds += row.has_gold
        if row.has_gold and not problem:
            self._judge(row)

    def findings(self) -> list[Finding]:
        """Everything that is wrong with rows, and with rewards as far as rows show it."""
        found = [*self._findings, *(f for name, f in self._paid if self.rewards[name].compares)]
        for name, reward in self.rewards.items():
            if not reward.num_rows:
                found.append(
                    Finding(
                        kind="applies to no row", row="", reason=f"{name}: see its `when`", is_fatal=False
                    )
                )
            if reward.compares:
                found += [
                    Finding(kind=NOT_RIGHT, row=row, reason=f"{name}: {_no_more(gold, wrong)}")
                    for row, (gold, wrong) in reward.alike.items()
                    if row not in self._not_right
                ]
                found += _below_usual(name, reward.gold_values)
        return found

    @property
    def num_right(self) -> int:
        """Rows whose gold every reward that knows golds grades right."""
        alike = {row for reward in self.rewards.values() if reward.compares for row in reward.alike}
        return len(self._right - self._not_right - alike)

    def unsteady(self, names: Sequence[str]) -> list[Finding]:
        """Of these rewards, those that gave one gold two values."""
        found: list[Finding] = []
        for name in names:
            differing = self.rewards[name].unsteady
            if differing:
                row, (alone, beside) = next(iter(differing.items()))
                reason = (
                    f"{name}: a gold graded twice gets two values, on {len(differing)} of {self.num_golds} rows; "
                    f"for example row {row}: {alone:g}, then {beside:g}"
                )
                found.append(Finding(kind=CONTRACT, row="", reason=reason))
        return found

    def _judge(self, row: GradedRow) -> None:
        totals = row.totals
        pairs = zip(row.parts, row.alone, strict=True)
        telling = [part for part, alone in pairs if self._tells_apart(row, part, alone.results[0])]
        gold, wrong = _value(totals[0]), _wrong(totals)
        if wrong >= gold and (self._needs_reference or telling):
            values = ", ".join(f"{part.name} {_show(part.results[0])}" for part in row.parts)
            of_parts = f" ({values})" if len(row.parts) > 1 else ""
            self._find(NOT_RIGHT, row, with_doubt(row.prompt, _no_more(gold, wrong) + of_parts))
            return
        for part in telling:
            result = part.results[0]
            if result.outcome != "ok":
                self._find(NOT_RIGHT, row, with_doubt(row.prompt, f"{part.name}: {_explain(result)}"))
        if not telling:
            return
        self.num_judged += 1
        self._right.add(row.prompt.id)
        first = 1 + NUM_WRONG
        for index, probe in enumerate(row.probes[first:], start=first):
            if probe.constant:
                self._judge_constant(row, telling, index)
            else:
                self._judge_probe(row, telling, index, totals)

    def _tells_apart(self, row: GradedRow, part: Part, alone: RewardResult) -> bool:
        gold, wrong = _value(part.results[0]), _wrong(part.results)
        reward = self.rewards[part.name]
        if part.results[0].value is None or alone.value is None:
            return False
        reward.gold_values[row.prompt.id] = alone.value
        if gold != alone.value:
            reward.unsteady[row.prompt.id] = (alone.value, gold)
        if gold > wrong:
            reward.num_told_apart += 1
        else:
            reward.alike[row.prompt.id] = (gold, wrong)
        return gold > wrong

    def _judge_probe(
        self, row: GradedRow, telling: Sequence[Part], index: int, totals: Sequence[RewardResult]
    ) -> None:
        probe = row.probes[index]
        is_paid = False
        for part in telling:
            credit = _credit(part, index)
            if credit >= 1 or (_value(part.results[index]) > 0 and credit > _allowed(probe)):
                is_paid = True
                said = f"{part.name} pays {_show(part.results[index])}, for the gold {_show(part.results[0])}"
                self._paid.append((part.name, self._finding(f"{REWARDED}: {probe.name}", row, said)))
            elif credit > NO_CREDIT:
                self.rewards[part.name].partial[probe.name] += 1
        if not is_paid and _value(totals[index]) >= _value(totals[0]):
            said = f"the rewards add up to {_show(totals[index])}, for the gold to {_show(totals[0])}"
            self._find(f"{REWARDED}: {probe.name}", row, said)

    def _judge_constant(self, row: GradedRow, telling: Sequence[Part], index: int) -> None:
        probe = row.probes[index]
        paying = [part for part in telling if _credit(part, index) >= 1]
        if not paying:
            return
        self.earned[probe.constant] += 1
        gold = row.prompt.reference or ""
        if not may_hold(gold, probe.constant):
            said = f"{paying[0].name} pays {probe.constant!r}, the gold is {gold!r:.80}"
            kind = "constant answer rewarded where the gold is another"
            self._paid.append((paying[0].name, self._finding(kind, row, said)))

    def _time(self, row: GradedRow) -> None:
        seconds, name, probe = max(
            (
                (result.seconds, part.name, probe.name)
                for part in row.parts
                for probe, result in zip(row.probes, part.results, strict=True)
            ),
            default=(0.0, "", ""),
        )
        entry = (seconds, row.prompt.id, f"{name}, {probe}")
        if len(self.slowest) < _NUM_SLOWEST:
            heapq.heappush(self.slowest, entry)
        else:
            heapq.heappushpop(self.slowest, entry)

    def _find(self, kind: str, row: GradedRow, reason: str) -> None:
        if kind == NOT_RIGHT:
            self._not_right.add(row.prompt.id)
        self._findings.append(self._finding(kind, row, reason))

    def _finding(self, kind: str, row: GradedRow, reason: str) -> Finding:
        return Finding(kind=kind, row=row.prompt.id, reason=reason)


def _why_ungradable(row: GradedRow) -> str:
    """Why the first probe (the gold, if the row has one) gets no value; '' when it gets one."""
    if not row.parts:
        return f"no reward applies to it; its columns are {sorted(row.prompt.columns)}"
    if row.totals[0].value is not None:
        return ""
    missing = [p for p in row.parts if p.results[0].value is None and not p.reward.optional]
    return "; ".join(f"{p.name}: {_explain(p.results[0])}" for p in missing) or "no reward gives it a value"


def _failures(row: GradedRow) -> list[Finding]:
    """Probes after the first that break a reward: one finding a reward."""
    found: list[Finding] = []
    for part in row.parts:
        broken = [
            (probe, result)
            for probe, result in zip(row.probes[1:], part.results[1:], strict=True)
            if result.outcome in BROKEN
        ]
        if broken:
            names = ", ".join(dict.fromkeys(probe.name for probe, _ in broken))
            reason = f"{part.name} on {names}: {_explain(broken[0][1])}"
            kind = "reward fails on an answer"
            found.append(
                Finding(kind=kind, row=row.prompt.id, reason=reason, is_fatal=not part.reward.optional)
            )
    return found


def _below_usual(name: str, golds: Mapping[str, float]) -> list[Finding]:
    """Golds that earn less than nine in ten do: a program that fails a test, an answer with a slip."""
    usual, count = Counter(golds.values()).most_common(1)[0]
    if count < 0.9 * len(golds):
        return []
    return [
        Finding(
            kind="gold earns less than usual",
            row=row,
            reason=f"{name}: {value:g}, most earn {usual:g}",
            is_fatal=False,
        )
        for row, value in golds.items()
        if value < usual
    ]


def _credit(part: Part, index: int) -> float:
    """What a probe earns of what parts the gold (1) from a wrong answer (0); the gold must earn more."""
    result, gold, wrong = part.results[index], _value(part.results[0]), _wrong(part.results)
    if result.value is None:
        return 0.0
    return (result.value - wrong) / (gold - wrong) if wrong > float("-inf") else float(result.value >= gold)


def _allowed(probe: Probe) -> float:
    return FULL_CREDIT if probe.shows_answer else NO_CREDIT


def _value(result: RewardResult) -> float:
    return float("-inf") if result.value is None else result.value


def _wrong(results: Sequence[RewardResult]) -> float:
    """What the better of the wrong answers earns."""
    return max(map(_value, results[1 : 1 + NUM_WRONG]))


def _show(result: RewardResult) -> str:
    return result.outcome if result.value is None else f"{result.value:g}"


def _no_more(gold: float, wrong: float) -> str:
    return f"scored {gold:g}, no more than {WRONG} ({wrong:g})"


def _explain(result: RewardResult) -> str:
    """Outcome, value and the reward's own words, short."""
    said = "; ".join(
        f"{name}: {text}" for name, text in result.detail.items() if text and name != "traceback"
    )
    value = "" if result.value is None else f", scored {result.value:g}"
    return f"{result.outcome}{value}" + (f" ({said[:300]})" if said else "")


def with_doubt(prompt: Prompt, reason: str) -> str:
    """The reason, and what the row's mapper said against its gold."""
    doubt = doubt_of(prompt)
    return f"{reason}; {doubt}" if doubt else reason


def doubt_of(prompt: Prompt) -> str:
    """What the row's mapper said against its gold; '' for nothing."""
    return str(prompt.columns.get(DOUBT_COLUMN) or "")
