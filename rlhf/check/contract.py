"""What every reward promises: one completion, one value, whoever is graded beside it; and nothing left behind."""

import asyncio
import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from rlhf.check.grading import group_of
from rlhf.check.judging import CONTRACT
from rlhf.check.leftovers import changed_files, files_below
from rlhf.check.probes import Probe, ProbeSet
from rlhf.check.report import Finding
from rlhf.rollout.reward_shapes import Shape
from rlhf.rollout.reward_totals import Part
from rlhf.rollout.scoring import RewardPool
from rlhf.types import Prompt, RewardResult

NUM_ROWS = 16
_NUM_PROBES = 6
"""Siblings a row is graded with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Difference:
    """Two values of one completion."""

    row: str
    probe: str
    before: str
    after: str


@dataclass(slots=True, kw_only=True)
class _Verdicts:
    """Where one reward's values differed, by what was done differently."""

    rows: set[str] = field(default_factory=set)
    again: list[_Difference] = field(default_factory=list)
    reversed: list[_Difference] = field(default_factory=list)
    alone: list[_Difference] = field(default_factory=list)


async def check_contract(prompts: Sequence[Prompt], pool: RewardPool, probes: ProbeSet) -> list[Finding]:
    """Grade every row's probes twice, in reverse order and one by one; say where a reward's values differ.

    Files that appeared or changed in the working directory, and processes or threads that the workers gained,
    are warnings: others may have made them.
    """
    files = files_below(Path())
    sets = [probes.of(prompt)[:_NUM_PROBES] for prompt in prompts]
    rows = list(zip(range(len(prompts)), prompts, sets, strict=True))
    first = await asyncio.gather(*(_grade(*row, pool) for row in rows))
    load = _load(pool)
    verdicts = {name: _Verdicts() for name in pool.names}
    for row, parts in zip(rows, first, strict=True):
        await _regrade(row, parts, pool, verdicts)
    findings = [*_left_behind(load, _load(pool))]
    if changed := changed_files(files, files_below(Path())):
        reason = f"files of the working directory changed while rewards were graded: {changed}"
        findings.append(Finding(kind=CONTRACT, row="", reason=reason, is_fatal=False))
    shapes = dict(zip(pool.names, pool.shapes, strict=True))
    return [*(f for name in pool.names if (f := _judge(name, shapes[name], verdicts[name]))), *findings]


async def _grade(index: int, prompt: Prompt, probes: Sequence[Probe], pool: RewardPool) -> list[Part]:
    return await pool.grade(group_of(index, prompt, probes, pool))


async def _regrade(
    row: tuple[int, Prompt, Sequence[Probe]],
    first: Sequence[Part],
    pool: RewardPool,
    verdicts: Mapping[str, _Verdicts],
) -> None:
    index, prompt, probes = row
    again, backwards, *alone = await asyncio.gather(
        _grade(index, prompt, probes, pool),
        _grade(index, prompt, probes[::-1], pool),
        *(_grade(index, prompt, [probe], pool) for probe in probes),
    )
    for number, part in enumerate(first):
        found = verdicts[part.name]
        found.rows.add(prompt.id)
        singles = [parts[number].results[0] for parts in alone]
        for kept, results in (
            (found.again, again[number].results),
            (found.reversed, backwards[number].results[::-1]),
            (found.alone, singles),
        ):
            kept += _differences(prompt, probes, part.results, results)


def _differences(
    prompt: Prompt,
    probes: Sequence[Probe],
    before: Sequence[RewardResult],
    after: Sequence[RewardResult],
) -> list[_Difference]:
    return [
        _Difference(row=prompt.id, probe=probe.name, before=_show(old), after=_show(new))
        for probe, old, new in zip(probes, before, after, strict=True)
        if not _is_same(old.value, new.value)
    ]


def _judge(name: str, shape: Shape, found: _Verdicts) -> Finding | None:
    """The first promise that the reward breaks; what follows from it is not said again."""
    if found.again:
        # A judge behind a network may sample; a plain function that does not repeat itself is broken.
        return _finding(
            name, "graded again, it gives other values", found.again, found, fatal=not shape.is_async
        )
    if found.reversed:
        what = "its values depend on the order of the siblings"
        return _finding(name, what, found.reversed, found, fatal=True)
    if found.alone and shape.is_per_sample:
        return _finding(name, "a completion graded alone gets another value", found.alone, found, fatal=True)
    if found.alone and shape.kind != "group":
        what = "its values depend on the other completions of the call"
        return _finding(name, what, found.alone, found, fatal=False)
    return None


def _finding(
    name: str, what: str, differences: Sequence[_Difference], found: _Verdicts, *, fatal: bool
) -> Finding:
    example = differences[0]
    rows = len({difference.row for difference in differences})
    reason = (
        f"{name}: {what}, on {rows} of {len(found.rows)} rows; for example row {example.row}, {example.probe}: "
        f"{example.before}, then {example.after}"
    )
    return Finding(kind=CONTRACT, row="", reason=reason, is_fatal=fatal)


def _is_same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)


def _show(result: RewardResult) -> str:
    return result.outcome if result.value is None else f"{result.value:g}"


def _load(pool: RewardPool) -> dict[int, tuple[int, int]]:
    """Worker -> (processes below it, threads)."""
    found: dict[int, tuple[int, int]] = {}
    for pid in pool.worker_pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            found[pid] = len(process.children(recursive=True)), process.num_threads()
    return found


def _left_behind(
    before: Mapping[int, tuple[int, int]], after: Mapping[int, tuple[int, int]]
) -> Iterable[Finding]:
    for what, place in (("processes", 0), ("threads", 1)):
        old = sum(before[pid][place] for pid in before if pid in after)
        new = sum(after[pid][place] for pid in before if pid in after)
        if new > old:
            reason = f"the reward workers had {old} {what} and have {new} after grading the same rows again"
            yield Finding(kind=CONTRACT, row="", reason=reason, is_fatal=False)
