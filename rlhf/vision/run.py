"""A run of retrieval alignment: the loop's other groups. Compare rlhf/run.py."""

import asyncio
import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from rlhf.cluster.learners import LearnerClient
from rlhf.cluster.pools import JudgeClient, PoolClient
from rlhf.config.alignment import AlignmentRecipe
from rlhf.interfaces import Placement, PromptLedger, WeightSync
from rlhf.retrieval import Gallery, PartialOrder
from rlhf.rollout.buffer import GroupBuffer
from rlhf.rollout.group import Producer
from rlhf.run import Clock, RunState
from rlhf.run_folder import RunFolder, replace_file
from rlhf.telemetry.live import LiveView
from rlhf.telemetry.sinks import Sink
from rlhf.vision.batches import Batch, Replay, images_of, step_batches
from rlhf.vision.evaluate import Facts, embedded, known, measure
from rlhf.vision.materials import EvalSet
from rlhf.vision.measures import bootstrap, means
from rlhf.vision.orders import refuse_stale, write_orders
from rlhf.vision.pictures import Pictures
from rlhf.vision.rollout import Indexes, OrderGroup

INDEX = "index.safetensors"
SHOWN_QUERIES, SHOWN_IMAGES = 12, 5
"""Held-out queries, and first images of each, whose pictures are kept for the report."""
_SHOWN_LISTS = 2
"""Lists of a step that are written down."""
_ALARM_AFTER = 3
"""Evaluations in a row at which the judges' score rises and people's taste, or relevance, falls."""


@dataclass(slots=True, kw_only=True)
class HeldOut:
    """Evaluation through the engines; what it found is kept for the report."""

    heldout: EvalSet
    pool: PoolClient
    judges: JudgeClient
    weights: Mapping[str, float]
    top_k: int
    folder: Path
    """Of `evaluations/`."""
    reference: Path
    """File of the first evaluation's embeddings of the gallery."""
    pictures: Pictures
    history: list[dict[str, float]] = field(default_factory=list)
    _facts: Facts | None = None

    async def measured(self, step: int, progress: Callable[[float, float], None]) -> dict[str, float]:
        """`eval/` metrics."""
        gallery = self.heldout.gallery
        wanted = (
            known(self.heldout, torch.zeros(len(gallery.ids()), 1)).wanted
            if self._facts is None
            else self._facts.wanted
        )
        found = await self.pool.embed(wanted.texts, wanted.images, on_done=progress)
        texts, images = torch.from_numpy(found.texts), torch.from_numpy(found.images)
        facts = self._known(images[: len(gallery.ids())])
        vectors = embedded(facts, texts, images)
        measures = measure(facts, vectors, top_k=self.top_k)
        places = (vectors.queries @ vectors.gallery.T).topk(self.top_k, dim=1).indices
        judged = await self._judged(places)
        low, high = bootstrap(measures["taste"])
        metrics = means(measures) | {"taste_low": low, "taste_high": high, **self._scores(judged)}
        if self.heldout.truth is None:
            metrics = {
                name: value for name, value in metrics.items() if not name.startswith(("taste", "ndcg"))
            }
        self._write(step, places, judged, metrics)
        self.history.append(metrics)
        metrics["hacking_alarm"] = float(self.is_hacked())
        return {f"eval/{name}": value for name, value in metrics.items()}

    def is_hacked(self) -> bool:
        """The judges' score rose while taste or precision fell, in each of the last three evaluations."""
        recent = self.history[-_ALARM_AFTER - 1 :]
        if len(recent) <= _ALARM_AFTER:
            return False
        return all(
            after["judge_score"] > before["judge_score"]
            and any(after.get(name, 0.0) < before.get(name, 0.0) for name in ("taste", "precision"))
            for before, after in itertools.pairwise(recent)
        )

    def _known(self, gallery: torch.Tensor) -> Facts:
        if self._facts is None:
            from safetensors.torch import load_file, save_file

            if not self.reference.is_file():
                self.reference.parent.mkdir(parents=True, exist_ok=True)
                save_file({"matrix": gallery.contiguous()}, self.reference)
            self._facts = known(self.heldout, load_file(self.reference)["matrix"])
        return self._facts

    async def _judged(self, places: torch.Tensor) -> list[dict[str, tuple[float, ...]]]:
        """{judge: a score of each first image}, query by query."""
        ids = self.heldout.gallery.ids()
        return [
            await self.judges.scores("heldout", query.text, [ids[place] for place in row])
            for query, row in zip(self.heldout.queries, places.tolist(), strict=True)
        ]

    def _scores(self, judged: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
        totals: dict[str, list[float]] = {}
        for scores in judged:
            for name, values in scores.items():
                totals.setdefault(name, []).extend(values)
        found = {f"judge/{name}": sum(values) / len(values) for name, values in totals.items()}
        found["judge_score"] = sum(self.weights[name] * found[f"judge/{name}"] for name in totals)
        return found

    def _write(
        self,
        step: int,
        places: torch.Tensor,
        judged: Sequence[Mapping[str, Sequence[float]]],
        metrics: Mapping[str, float],
    ) -> None:
        assert self._facts is not None, "measured comes first"
        ids, taste = self.heldout.gallery.ids(), self._facts.taste
        rows = [
            {
                "query": query.text,
                "items": [ids[place] for place in row],
                "judges": scores,
                **({} if self.heldout.truth is None else {"taste": taste[row].tolist()}),
            }
            for query, row, scores in zip(self.heldout.queries, places.tolist(), judged, strict=True)
        ]
        shown = [ids[place] for row in places[:SHOWN_QUERIES, :SHOWN_IMAGES].tolist() for place in row]
        self.pictures.keep(self.heldout.gallery, shown)
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(
            self.folder / f"step-{step:06d}.json", json.dumps({"metrics": dict(metrics), "rows": rows})
        )


@dataclass(slots=True, kw_only=True)
class AlignmentRun:
    """The parts of one run, assembled by vision/build.py and driven by train.py."""

    recipe: AlignmentRecipe
    folder: RunFolder
    learner: LearnerClient
    sync: WeightSync
    placement: Placement
    prompts: PromptLedger
    buffer: GroupBuffer[OrderGroup]
    producer: Producer[OrderGroup]
    replay: Replay
    indexes: Indexes | None
    heldout: HeldOut | None
    fingerprint: str
    gallery: Gallery
    pictures: Pictures
    sinks: Sequence[Sink]
    view: LiveView
    state: RunState
    clock: Clock = field(default_factory=Clock)
    _evaluated: dict[str, float] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.recipe.schedule.num_steps

    def pack(self, groups: Sequence[OrderGroup]) -> list[list[Batch]]:
        """The lists of a step as every rank's micro-batches. Raises StaleError; then nothing is trained."""
        orders = [group.order for group in groups if group.order is not None]
        bound = self.recipe.schedule.max_staleness + self.recipe.orders.refresh_every
        oldest = self.state.step - bound if self.recipe.orders.refresh_every else None
        refuse_stale(orders, fingerprint=self.fingerprint, oldest=oldest)
        replay = self.replay.at(self.state.step) if self.recipe.loss.replay_coef else []
        return step_batches(orders, replay, self.recipe)

    async def annotate(self, batch: list[list[Batch]]) -> list[list[Batch]]:
        """Nothing: a list carries its reference scores."""
        return batch

    async def update(self, batch: list[list[Batch]]) -> dict[str, float]:
        """One optimizer step."""
        return dict((await self.learner.update_shares(batch)).values)

    def advance(self, groups: Sequence[OrderGroup]) -> None:
        """Count the step: its lists are trained and their weights are live."""
        self.state.step += 1
        for group in groups:
            self.prompts.trained(group.index)

    async def evaluate(self, *, first: bool = False) -> None:
        """Measure taste and retention if this step is due; `first` only before any training."""
        every, step = self.recipe.eval.every, self.state.step
        due = every > 0 and (step % every == 0 or step == self.num_steps)
        if self.heldout is None or not due or (first and step > 0):
            return
        with self._aside("eval_s"):
            self._evaluated = await self.heldout.measured(
                step, lambda done, total: self.view.phase("evaluating on held-out images", done, total)
            )
        if self._evaluated["eval/hacking_alarm"]:
            self.view.note(
                f"step {step}: the judges' score has risen over {_ALARM_AFTER} evaluations while taste or precision "
                "fell: the judges may be gamed. Look at the pictures in the report."
            )
        if first:
            self._emit({**self._evaluated, "time/eval_s": self.clock.lap()["eval_s"]})

    def log(
        self, groups: Sequence[OrderGroup], batch: list[list[Batch]], measured: Mapping[str, float]
    ) -> None:
        """Write the step down."""
        spent = self.clock.lap()
        self.state.train_s += spent["step_s"]
        ages = [self.state.step - 1 - group.version for group in groups]
        orders = [group.order for group in groups if group.order is not None]
        metrics = dict(measured) | {f"time/{name}": seconds for name, seconds in spent.items()}
        metrics |= {
            "rollout/groups": float(len(groups)),
            "order/images": float(images_of(batch)),
            "order/teacher_agreement": _agreement(orders),
            "order/index_age": float(max(self.state.step - 1 - order.version for order in orders)),
            "buffer/in_flight": float(self.buffer.in_flight),
            "buffer/staleness_max": float(max(ages)),
            "rollout/discarded": float(sum(self.buffer.discarded.values())),
        }
        shown = orders[:_SHOWN_LISTS]
        write_orders(self.folder.path / "orders" / f"step-{self.state.step:06d}.jsonl", shown)
        if self._evaluated or self.state.step in (1, self.num_steps):
            self.pictures.keep(self.gallery, [name for order in shown for name in order.items])
        self._emit(metrics | self._evaluated)

    async def checkpoint(self) -> None:
        """Save everything if this step is due. A checkpoint is complete or absent."""
        every, step = self.recipe.checkpoint.every, self.state.step
        if step != self.num_steps and (every == 0 or step % every):
            return
        with self._aside("checkpoint_s"), self.folder.new_checkpoint(step) as draft:
            await self.learner.save(str(draft / "learner"))
            if (
                self.indexes is not None
                and self.indexes.current is not None
                and self.recipe.orders.refresh_every
            ):
                self.indexes.current.save(draft / INDEX)
            history = [] if self.heldout is None else self.heldout.history
            state = {
                "state": asdict(self.state),
                "prompts": self.prompts.state_dict(),
                "evaluations": history,
            }
            (draft / "state.json").write_text(json.dumps(state))
        self.folder.prune(self.recipe.checkpoint.keep)

    def _emit(self, metrics: Mapping[str, float]) -> None:
        for sink in self.sinks:
            sink.log(self.state.step, metrics)
        self._evaluated = {}
        self.view.step(self.state.step, self.num_steps, metrics)

    @contextlib.contextmanager
    def _aside(self, name: str) -> Iterator[None]:
        with self.clock.time(name):
            yield


def _agreement(orders: Sequence[PartialOrder]) -> float:
    """Mean rank correlation of both teachers over the lists: 1 they say the same, 0 they know different things."""
    found = []
    for order in orders:
        if "taste" not in order.teacher or "semantic" not in order.teacher:
            continue
        taste, semantic = (
            torch.tensor(order.teacher[name]).argsort().argsort().double() for name in ("taste", "semantic")
        )
        value = float(torch.corrcoef(torch.stack([taste, semantic]))[0, 1])
        found.append(0.0 if math.isnan(value) else value)
    return sum(found) / len(found) if found else 0.0


async def collect(run: AlignmentRun, progress: Callable[[float, float], None]) -> list[PartialOrder]:
    """As many lists as the whole run would train on, under the weights of its start."""
    await run.sync.publish(run.state.step)
    total = run.num_steps * run.recipe.schedule.queries_per_step
    producer = asyncio.create_task(run.producer.run(), name="list producer")
    found: list[PartialOrder] = []
    try:
        while len(found) < total:
            groups = await run.buffer.take()
            found += [group.order for group in groups if group.order is not None]
            for group in groups:
                run.prompts.trained(group.index)
            run.buffer.release()
            progress(min(len(found), total), total)
    finally:
        producer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await producer
    return found[:total]
