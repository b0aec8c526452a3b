"""The grades of a chunk that is not complete, so that a kill has nothing graded twice."""

import contextlib
import json
import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlhf.types import RewardResult, TrajectoryGroup


def group_digest(group: TrajectoryGroup) -> tuple[str, ...]:
    """One digest per trajectory of all that a grade follows from, log-probabilities aside."""
    found = []
    for trajectory in group.trajectories:
        of_it: list[Any] = [group.prompt.id, trajectory.sample_index, trajectory.seed, trajectory.stop]
        of_it += [[segment.token_ids, segment.loss_mask] for segment in trajectory.segments]
        of_it += [[turn.message.role, turn.message.content, turn.reward] for turn in trajectory.turns]
        of_it.append(None if trajectory.reward is None else trajectory.reward.value)
        found.append(blake2b(json.dumps(of_it).encode(), digest_size=16).hexdigest())
    return tuple(found)


class GradeJournal:
    """A line a group: its digests and its results, written when they are known.

    A group is found when every sample of it is: rewards may compare the samples of a group. One with a sample that
    could not be graded is not written down, so that what was mended is tried again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[tuple[str, ...], list[RewardResult]] = {}

    def __enter__(self) -> Self:
        whole = _drop_torn_line(self._path)
        for line in whole.splitlines():
            raw = json.loads(line)
            self._known[tuple(raw["digests"])] = [RewardResult(**result) for result in raw["results"]]
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def find(self, digests: tuple[str, ...]) -> list[RewardResult] | None:
        """The results of a group, if they are written here."""
        return self._known.get(digests)

    def note(self, prompt_id: str, digests: tuple[str, ...], results: Sequence[RewardResult]) -> None:
        """Write down the results of a group; the prompt's id is for people."""
        if any(result.outcome in ("timeout", "error") for result in results):
            return
        kept = [
            {"value": r.value, "outcome": r.outcome, "parts": dict(r.parts), "detail": dict(r.detail)}
            for r in results
        ]
        self._file.write(json.dumps({"prompt": prompt_id, "digests": digests, "results": kept}) + "\n")
        self._file.flush()


def _drop_torn_line(path: Path) -> str:
    """The text of the file, cut after its last whole line, as the file then is."""
    with contextlib.suppress(FileNotFoundError):
        written = path.read_bytes()
        whole = written[: written.rfind(b"\n") + 1]
        if len(whole) < len(written):
            os.truncate(path, len(whole))
        return whole.decode()
    return ""
