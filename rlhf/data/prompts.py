"""Prompts of a source, and the resumable stream that hands them out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy

from rlhf.config.task import CurriculumConfig, SourceConfig
from rlhf.data.curriculum import Curriculum
from rlhf.data.images import keep_images
from rlhf.data.records import REFERENCE_COLUMNS, parse_row
from rlhf.data.sources import BadRows, read_rows
from rlhf.errors import CheckpointError, DataError
from rlhf.types import Prompt


def load_prompts(
    source: SourceConfig,
    *,
    key: str,
    require_reference: bool,
    bad_rows: BadRows | None = None,
    images: Path | None = None,
) -> list[Prompt]:
    """Every prompt of a source, in its order.

    `key` is the recipe key of the source. Image bytes of its rows are kept in the folder `images`, if there is one.
    Raises DataError naming the row for a malformed row, two rows with one id, and, when `require_reference`, a row
    without a gold answer. `bad_rows` takes these errors instead, as long as there is a good row.
    """
    prompts: list[Prompt] = []
    seen: dict[str, str] = {}
    for location, row in read_rows(source, key=key, bad_rows=bad_rows):
        try:
            prompt = read_prompt(row, source, location=location, key=key, require_reference=require_reference)
            if prompt.id in seen:
                raise DataError(
                    f"{key}: rows {seen[prompt.id]} and {location} have the same id {prompt.id!r}; "
                    "ids must be unique."
                )
        except DataError as error:
            if bad_rows is None:
                raise
            bad_rows.append((location, error))
            continue
        seen[prompt.id] = location
        prompts.append(prompt if images is None else keep_images(prompt, images))
    if not prompts and bad_rows:
        raise bad_rows[0][1]
    return prompts


def of_scenario(prompts: Sequence[Prompt], name: str) -> list[Prompt]:
    """The prompts as those of a scenario: the column `scenario` names it, and so do their ids. '' changes nothing.

    Raises DataError for a row whose own column `scenario` says otherwise.
    """
    for prompt in prompts if name else ():
        if prompt.columns.get("scenario", name) != name:
            raise DataError(
                f"task.scenarios.{name}: row {prompt.id} has a column `scenario`, {prompt.columns['scenario']!r:.80}, "
                "which task.scenarios sets to its own name. Drop or rename it with a mapper."
            )
    return [
        replace(prompt, id=f"{name}/{prompt.id}", scenario=name, columns={**prompt.columns, "scenario": name})
        if name
        else prompt
        for prompt in prompts
    ]


def read_prompt(
    row: Mapping[str, Any], source: SourceConfig, *, location: str, key: str, require_reference: bool
) -> Prompt:
    """The prompt of a row of `source`. DataError, naming the row, for what `load_prompts` refuses of one."""
    prompt = parse_row(row, location=location, columns=source.columns, key=key)
    if require_reference and prompt.reference is None:
        raise DataError(
            f"{key}: row {location} has no reference answer, and the rewards need one; expected one of "
            f"{', '.join(REFERENCE_COLUMNS)} or reward_model.ground_truth, found {sorted(row)}. "
            f"Name the right column with {key}.columns: {{reference: ...}}."
        )
    return prompt


class PromptStream:
    """Hands out prompts for ever, a fresh shuffle each epoch, and keeps the ledger of what became of each.

    An admission is in flight from `next` until it is trained or discarded. Which prompt it is follows from
    (seed, index) alone, so the ledger is three things: the next index, a mark below which all are settled,
    and the settled ones above it. After `load_state_dict` the admissions that were in flight are handed out
    again first, in order and with their index: nothing is lost, nothing is trained twice.

    A prompt that the curriculum passes over is an admission that is discarded at once, by that reason.
    """

    def __init__(
        self, prompts: Sequence[Prompt], *, seed: int, curriculum: CurriculumConfig | None = None
    ) -> None:
        """`prompts` must be the same at every resume (checked)."""
        if not prompts:
            raise DataError("a prompt stream needs at least one prompt")
        self._prompts = prompts
        self._seed = seed
        self._curriculum = None if curriculum is None else Curriculum(curriculum, seed=seed)
        self._next = 0
        self._mark = 0
        self._settled: set[int] = set()
        self._again: list[int] = []
        self._discarded: Counter[str] = Counter()
        self._orders: dict[int, list[int]] = {}

    def next(self) -> tuple[int, Prompt]:
        """(admission index, prompt); it is in flight from now on."""
        if self._again:
            index = self._again.pop(0)
            return index, self.prompt(index)
        for _ in range(len(self._prompts)):
            index = self._next
            self._next += 1
            prompt = self.prompt(index)
            if self._curriculum is None or not self._curriculum.skips(prompt.id, epoch=self._epoch(index)):
                return index, prompt
            self.discard(index, "curriculum")
        # Every prompt was passed over once: take the next one as it comes.
        self._next += 1
        return self._next - 1, self.prompt(self._next - 1)

    def prompt(self, index: int) -> Prompt:
        """The prompt of an admission."""
        epoch, place = self._epoch(index), index % len(self._prompts)
        if epoch not in self._orders:
            oldest_open = self._mark // len(self._prompts)
            self._orders = {e: order for e, order in self._orders.items() if e >= oldest_open}
            order = numpy.random.default_rng([self._seed & 0xFFFFFFFF, epoch]).permutation(len(self._prompts))
            self._orders[epoch] = order.tolist()
        return self._prompts[self._orders[epoch][place]]

    def trained(self, index: int, solved: Sequence[bool] = ()) -> None:
        """Settle an admission: the weights have learned from it. `solved` says so of each gradable attempt."""
        self._settle(index, solved)

    def discard(self, index: int, reason: str, solved: Sequence[bool] = ()) -> None:
        """Settle an admission that will not be trained on; counted by reason."""
        self._settle(index, solved)
        self._discarded[reason] += 1

    @property
    def in_flight(self) -> list[int]:
        """Admissions handed out (or to be handed out again) and not settled, oldest first."""
        return [index for index in range(self._mark, self._next) if index not in self._settled]

    @property
    def num_fetched(self) -> int:
        """Admissions so far, those that the curriculum passed over included."""
        return self._next

    @property
    def num_trained(self) -> int:
        """Admissions trained on so far."""
        return self._mark + len(self._settled) - self._discarded.total()

    @property
    def discarded(self) -> Mapping[str, int]:
        """Discarded admissions by reason."""
        return dict(self._discarded)

    @property
    def epoch(self) -> float:
        """Passes over the prompts so far, with the fraction of the current one."""
        return self._next / len(self._prompts)

    def metrics(self) -> Mapping[str, float]:
        """`curriculum/` metrics since the last call."""
        return {} if self._curriculum is None else self._curriculum.metrics()

    def state_dict(self) -> dict[str, Any]:
        """The ledger (and what the curriculum measured) as plain JSON; its size does not grow with the run."""
        return {
            "source": self._fingerprint(),
            "next": self._next,
            "mark": self._mark,
            "settled": sorted(self._settled),
            "discarded": dict(self._discarded),
            "measured": {} if self._curriculum is None else self._curriculum.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was called. Raises CheckpointError for other prompts or another seed."""
        if state["source"] != self._fingerprint():
            raise CheckpointError(
                "the checkpoint's prompt ledger belongs to other prompts or another seed: found "
                f"{state['source']}, expected {self._fingerprint()}. "
                "Resume with the task.train and seed the run began with."
            )
        self._next = int(state["next"])
        self._mark = int(state["mark"])
        self._settled = set(state["settled"])
        self._discarded = Counter(state["discarded"])
        self._again = self.in_flight
        if self._curriculum is not None:
            self._curriculum.load_state_dict(state["measured"])

    def _epoch(self, index: int) -> int:
        return index // len(self._prompts)

    def _settle(self, index: int, solved: Sequence[bool]) -> None:
        if index in self._settled or not self._mark <= index < self._next or index in self._again:
            raise ValueError(f"admission {index} is not in flight: settled before, or never handed out")
        if self._curriculum is not None:
            self._curriculum.record(self.prompt(index).id, epoch=self._epoch(index), solved=solved)
        self._settled.add(index)
        while self._mark in self._settled:
            self._settled.remove(self._mark)
            self._mark += 1

    def _fingerprint(self) -> dict[str, Any]:
        digest = sha256("\n".join(prompt.id for prompt in self._prompts).encode()).hexdigest()[:16]
        return {"num_prompts": len(self._prompts), "ids": digest, "seed": self._seed}
