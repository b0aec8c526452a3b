"""Many graded samples of many prompts, written chunk by chunk: what a kill costs is the chunk it falls into."""

import asyncio
import json
import logging
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf.data.collected import Collected, Sample, conversation_of, prompt_record, read_lines, to_line
from rlhf.errors import CheckpointError, DataError
from rlhf.interfaces import Reward, RolloutFunction
from rlhf.offline.journal import GradeJournal, group_digest
from rlhf.rollout.group import sample_seed
from rlhf.rollout.statistics import answer_of, is_correct
from rlhf.run_folder import difference, own, replace_file
from rlhf.types import Prompt, RewardResult, Sampling, Trajectory, TrajectoryGroup

logger = logging.getLogger(__name__)
IDENTITY = "collect.json"
DONE = "collected.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectPlan:
    """What is drawn. At temperature 0 all samples of a prompt are the same: ask for one."""

    prompts: Iterable[Prompt]
    """Gone through twice and never held as a whole; with ids that differ."""
    sampling: Sampling
    samples_per_prompt: int
    seed: int = 0
    prompts_per_chunk: int = 64
    chunks_in_flight: int = 1
    """1: the prompts of a chunk are decoded together and with nothing else, so that a run repeats bit for bit."""
    filters: frozenset[str] = frozenset()
    """Parts of the reward that grade nothing by themselves: a sample with no other could not be graded."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What else decides the samples and their grades (model, rewards), by the names of its keys."""
    forget: Callable[[], Awaitable[object]] | None = None
    """Awaited before every chunk where they go one by one: has the engines forget what they have seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a collection is; shares and rates are those of this process."""

    prompts_done: int
    num_prompts: int
    correct_share: float
    """Of the samples that could be graded."""
    samples_per_s: float


OnProgress = Callable[[Progress], None]


async def collect(
    rollout: RolloutFunction,
    reward: Reward,
    plan: CollectPlan,
    folder: Path,
    *,
    progress: OnProgress | None = None,
) -> None:
    """Roll out and grade every prompt of `plan` into `folder`; what is there already is not done again.

    A folder holds `collect.json` (what was asked), `chunk-000012.jsonl` (a line a prompt, made by rename) and, while a
    chunk is not complete, `grades-000012.jsonl`, from which the same sample takes its grade after a kill. Samples that
    cannot be graded have the reward None. Raises CheckpointError for a folder that was collected with other settings,
    RewardError as `Reward.score` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken = f"another process collects in {folder}. Wait for it, or name another folder."
    with own(folder / ".lock", taken=taken):
        num_prompts = _claim(plan, folder)
        collector = _Collector(rollout=rollout, reward=reward, plan=plan, folder=folder)
        collector.meter = _Meter(num_prompts=num_prompts, on_progress=progress)
        await collector.run()
        replace_file(folder / DONE, json.dumps({"num_prompts": num_prompts}))


def is_collected(plan: CollectPlan, folder: Path) -> bool:
    """Whether `folder` is complete. Raises CheckpointError if it was collected with other settings."""
    if not (folder / IDENTITY).is_file():
        return False
    _claim(plan, folder)
    return (folder / DONE).is_file()


def take_over(plan: CollectPlan, source: Path, folder: Path) -> None:
    """Give `folder`, if it is not there, the chunks of `source`, if they are what `plan` asks for."""
    if folder.exists() or not (source / IDENTITY).is_file():
        return
    if json.loads((source / IDENTITY).read_text(encoding="utf-8")) != _identity(plan):
        return
    draft = folder.with_name(f".{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    # Links: whoever writes one of these files replaces it.
    for path in (*source.glob("chunk-*.jsonl"), *(source / name for name in (IDENTITY, DONE))):
        if path.is_file():
            try:
                os.link(path, draft / path.name)
            except OSError:  # not every file system has links
                shutil.copyfile(path, draft / path.name)
    draft.rename(folder)
    logger.info("samples and grades taken from %s", source)


def asked_of(folder: Path) -> Mapping[str, Any]:
    """What was asked of a complete collection. DataError for a folder that is not one."""
    _refuse_incomplete(folder)
    asked: Mapping[str, Any] = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
    return asked


def read_collected(folder: Path) -> Iterator[Collected]:
    """Every prompt of a complete collection, in the order of the prompts, one at a time in memory.

    Raises DataError for a folder that is not complete.
    """
    _refuse_incomplete(folder)
    return read_lines(sorted(folder.glob("chunk-*.jsonl")))


def _refuse_incomplete(folder: Path) -> None:
    if not (folder / DONE).is_file():
        raise DataError(
            f"{folder} is no complete collection: it has no {DONE}. Run the stage to its end first."
        )


@dataclass(slots=True, kw_only=True)
class _Meter:
    num_prompts: int
    on_progress: OnProgress | None
    prompts_done: int = 0
    samples: int = 0
    gradable: int = 0
    correct: int = 0
    started: float = field(default_factory=time.monotonic)

    def found(self, num_prompts: int) -> None:
        """So many prompts were done before this process."""
        self.prompts_done += num_prompts
        self._tell()

    def did(self, one: Collected) -> None:
        self.prompts_done += 1
        self.samples += len(one.samples)
        self.gradable += one.num_gradable
        self.correct += one.num_correct
        self._tell()

    def _tell(self) -> None:
        if self.on_progress is not None:
            self.on_progress(
                Progress(
                    prompts_done=self.prompts_done,
                    num_prompts=self.num_prompts,
                    correct_share=self.correct / max(self.gradable, 1),
                    samples_per_s=self.samples / max(time.monotonic() - self.started, 1e-9),
                )
            )


@dataclass(slots=True, kw_only=True)
class _Collector:
    rollout: RolloutFunction
    reward: Reward
    plan: CollectPlan
    folder: Path
    meter: _Meter = field(init=False)

    async def run(self) -> None:
        """Every chunk that is not there, at most `chunks_in_flight` at a time."""
        running: set[asyncio.Task[None]] = set()
        try:
            for number, (first, prompts) in enumerate(
                _chunks(self.plan.prompts, self.plan.prompts_per_chunk)
            ):
                if self._file("chunk", number).is_file():
                    self._file("grades", number).unlink(missing_ok=True)
                    self.meter.found(len(prompts))
                    continue
                if len(running) == self.plan.chunks_in_flight:
                    running = await _first(running)
                running.add(asyncio.create_task(self._chunk(number, first, prompts), name=f"chunk {number}"))
            while running:
                running = await _first(running)
        finally:
            await _end(running)

    async def _chunk(self, number: int, first: int, prompts: Sequence[Prompt]) -> None:
        if self.plan.forget is not None and self.plan.chunks_in_flight == 1:
            await self.plan.forget()
        with GradeJournal(self._file("grades", number)) as journal:
            wave = [
                asyncio.create_task(self._one(index, prompt, journal), name=f"collect {prompt.id}")
                for index, prompt in enumerate(prompts, start=first)
            ]
            try:
                collected = await asyncio.gather(*wave)
            finally:
                await _end(wave)
        replace_file(self._file("chunk", number), "".join(map(to_line, collected)))
        self._file("grades", number).unlink(missing_ok=True)

    async def _one(self, index: int, prompt: Prompt, journal: GradeJournal) -> Collected:
        plan = self.plan
        seeds = [sample_seed(plan.seed, prompt.id, i, 0) for i in range(plan.samples_per_prompt)]
        made = await self.rollout(prompt, seeds=seeds, sampling=plan.sampling)
        trajectories = tuple(replace(t, temperature=plan.sampling.temperature) for t in made)
        group = TrajectoryGroup(index=index, prompt=prompt, trajectories=trajectories)
        digest = group_digest(group)
        results = journal.find(digest)
        if results is None:
            results = await self.reward.score(group)
            journal.note(prompt.id, digest, results)
        samples = tuple(_sample(t, r, plan.filters) for t, r in zip(trajectories, results, strict=True))
        collected = Collected(prompt=prompt, samples=samples)
        self.meter.did(collected)
        return collected

    def _file(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind}-{number:06d}.jsonl"


def _sample(trajectory: Trajectory, result: RewardResult, filters: frozenset[str]) -> Sample:
    if result.value is not None and result.parts and filters.issuperset(result.parts):
        result = replace(result, value=None, outcome="not_applicable")
    return Sample(
        index=trajectory.sample_index,
        seed=trajectory.seed,
        completion=trajectory.completion,
        reward=result.value,
        is_correct=is_correct(result),
        outcome=result.outcome,
        parts=dict(result.parts),
        stop=trajectory.stop,
        num_tokens=trajectory.num_sampled,
        is_episode=trajectory.is_episode,
        answer=answer_of(result),
        messages=conversation_of(trajectory),
        tools=trajectory.tools,
    )


def _chunks(prompts: Iterable[Prompt], size: int) -> Iterator[tuple[int, list[Prompt]]]:
    """(index of the first, prompts) of each chunk."""
    rest, first = iter(prompts), 0
    while chunk := list(islice(rest, size)):
        yield first, chunk
        first += len(chunk)


async def _first(running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Those still running once one has ended; raises what it raised."""
    done, rest = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        running.discard(task)
        task.result()
    return rest


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _claim(plan: CollectPlan, folder: Path) -> int:
    """The number of prompts; writes down what is asked, or compares it with what is written."""
    identity = _identity(plan)
    written = folder / IDENTITY
    if not written.is_file():
        if any(folder.glob("chunk-*.jsonl")):
            raise CheckpointError(
                f"{folder} holds chunks but no {IDENTITY}: remove the folder, or name another."
            )
        replace_file(written, json.dumps(identity, indent=1))
    before = json.loads(written.read_text(encoding="utf-8"))
    for key in {**before, **identity}:
        if before.get(key) != identity.get(key):
            raise CheckpointError(
                f"{folder} was collected with other settings: {difference(key, before.get(key), identity.get(key))}. "
                "Name another folder, remove this one, or set the key back."
            )
    return int(identity["prompts"]["number"])


def _identity(plan: CollectPlan) -> dict[str, Any]:
    digest, number = sha256(), 0
    for prompt in plan.prompts:
        digest.update(json.dumps(prompt_record(prompt), sort_keys=True).encode())
        number += 1
    if not number:
        raise DataError("there is no prompt to collect samples of")
    identity = {
        "seed": plan.seed,
        "sampling": asdict(plan.sampling),
        "collect": {
            "samples_per_prompt": plan.samples_per_prompt,
            "prompts_per_chunk": plan.prompts_per_chunk,
        },
        "prompts": {"number": number, "digest": digest.hexdigest()},
        **plan.identity,
    }
    asked: dict[str, Any] = json.loads(json.dumps(identity))
    return asked
