"""Real learner ranks in processes of their own, the batches they train on, and what the tests ask of them."""

import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from rlhf.batch import Batch
from rlhf.config.schema import LearnerConfig, ModelConfig
from rlhf.interfaces import LossOutput
from rlhf.learner.fsdp import FsdpLearner, LearnerPlan, RankPlace
from rlhf.learner.model import whole
from rlhf.machine import free_port
from tests.tiny import tiny_config

ROOT = Path(__file__).resolve().parents[3]


class Ranks:
    """`world_size` idle processes; `run` hands the same work to all of them."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        # Plain processes: those of multiprocessing would leave its resource tracker behind.
        with Listener(("127.0.0.1", 0)) as listener:
            program = f"from tests.unit.learner.ranks import serve; serve({listener.address[1]})"
            self._processes = [
                subprocess.Popen([sys.executable, "-c", program], cwd=ROOT) for _ in range(world_size)
            ]
            self._pipes = [listener.accept() for _ in range(world_size)]

    def run(self, work: Callable[..., Any], *args: Any) -> list[Any]:
        """Results of `work(place, *args)`, by rank. The first failure is raised here."""
        port = free_port()
        for rank, pipe in enumerate(self._pipes):
            place = RankPlace(rank=rank, world_size=self.world_size, port=port, timeout_s=300)
            _send(pipe, (work, place, args))
        answers = [_receive(pipe) for pipe in self._pipes]
        for is_ok, answer in answers:
            if not is_ok:
                raise AssertionError(answer)
        return [answer for _, answer in answers]

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:  # in the order of connecting, not that of the processes
            _send(pipe, None)
            pipe.close()
        for process in self._processes:
            process.wait(60)


def serve(port: int) -> None:
    """Do what `Ranks` at `port` sends, until it sends None."""
    torch.set_num_threads(1)
    pipe = Client(("127.0.0.1", port))
    while (task := _receive(pipe)) is not None:
        work, place, args = task
        try:
            _send(pipe, (True, work(place, *args)))
        except Exception:  # noqa: BLE001  # the test sees it
            _send(pipe, (False, traceback.format_exc()))
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def _send(pipe: Connection, message: Any) -> None:
    # Not pipe.send: torch would share the tensors' memory through file descriptors.
    pipe.send_bytes(pickle.dumps(message))


def _receive(pipe: Connection) -> Any:
    return pickle.loads(pipe.recv_bytes())


def plan(model: ModelConfig | None = None, needs_reference: bool = False, **learner: Any) -> LearnerPlan:
    """A plan for the tiny model in float32."""
    return LearnerPlan(
        model=model or ModelConfig(config=tiny_config(), dtype="float32"),
        learner=LearnerConfig(**({"lr": 1e-2, "weight_decay": 0.1, "logprob_chunk": 7} | learner)),
        total_steps=20,
        seed=3,
        needs_reference=needs_reference,
    )


def example_batch(rows: int = 9, seed: int = 0, vocabulary: int = 96) -> Batch:
    """Rows of 2 to 30 tokens, with advantages and global loss weights.

    The three rows of a group begin alike: with a prompt of 1 to 5 tokens and the first sampled ones.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 31, (rows,), generator=generator)
    segment_ids = torch.repeat_interleave(torch.arange(rows), lengths)
    starts = torch.cumsum(lengths, 0) - lengths
    size = int(lengths.sum())
    positions = torch.arange(size) - starts[segment_ids]
    group_ids = torch.arange(rows) // 3
    prompts = torch.randint(1, 6, (rows,), generator=generator)[group_ids]
    loss_mask = positions >= prompts[segment_ids]
    tokens = torch.randint(0, vocabulary, (size,), generator=generator)
    beginnings = torch.randint(0, vocabulary, (rows, 31), generator=generator)[
        group_ids[segment_ids], positions
    ]
    return Batch(
        tokens=torch.where(positions < prompts[segment_ids] + 2, beginnings, tokens),
        positions=positions,
        segment_ids=segment_ids,
        loss_mask=loss_mask,
        rollout_logprobs=torch.zeros(size),
        versions=torch.where(loss_mask, 0, -1),
        rewards=torch.zeros(rows),
        group_ids=group_ids,
        truncated=torch.zeros(rows, dtype=torch.bool),
        advantages=torch.randn(size, generator=generator),
        loss_weights=loss_mask / loss_mask.sum(),
    )


def share(batch: Batch, world_size: int, budget: int) -> list[list[Batch]]:
    """Micro-batches of at most `budget` tokens for each rank, as many on every rank (empty ones fill up)."""
    lengths = batch.row_lengths().tolist()
    ranks: list[list[list[int]]] = [[] for _ in range(world_size)]
    for row in range(batch.num_rows):
        mine = ranks[row % world_size]
        if not mine or sum(lengths[r] for r in mine[-1]) + lengths[row] > budget:
            mine.append([])
        mine[-1].append(row)
    most = max(map(len, ranks))
    return [
        [batch.select_rows(torch.tensor(rows, dtype=torch.long)) for rows in mine + [[]] * (most - len(mine))]
        for mine in ranks
    ]


def policy_gradient(logprobs: Tensor, entropy: Tensor | None, batch: Batch) -> LossOutput:
    """A loss whose gradient depends on every field the learner hands over."""
    assert batch.loss_weights is not None
    assert batch.advantages is not None
    loss = -(batch.loss_weights * batch.advantages * logprobs).sum()
    if entropy is not None and entropy.requires_grad:
        loss = loss - 0.1 * (batch.loss_weights * entropy).sum()
    trained = batch.loss_mask.sum()
    return LossOutput(
        loss=loss, sums={"logprob": (logprobs.sum(), trained), "never": (trained * 0, trained * 0)}
    )


def regression(values: Tensor, entropy: Tensor | None, batch: Batch) -> LossOutput:
    """Squared distance of values to a fixed target: the batch's advantages."""
    assert entropy is None
    assert batch.loss_weights is not None
    assert batch.advantages is not None
    error = torch.where(batch.loss_mask & (batch.positions > 0), values - batch.advantages, 0).square()
    loss = (batch.loss_weights * error).sum()
    return LossOutput(loss=loss, sums={"error": (error.sum(), batch.loss_mask.sum())})


def set_head(learner: FsdpLearner) -> None:
    """Give the critic a head that is not zero, the same at any number of ranks."""
    assert learner.critic is not None
    head = learner.critic.parameters["head.weight"]
    assert isinstance(head, DTensor)
    values = torch.arange(head.numel(), dtype=torch.float32).sin().view(head.shape)
    sharded = distribute_tensor(values, head.device_mesh, head.placements)
    head.to_local().detach().copy_(sharded.to_local())


def critic_gradients(place: RankPlace, what: LearnerPlan, batch: Batch, budget: int) -> dict[str, Tensor]:
    """The critic's summed gradient of one mini-batch."""
    learner = FsdpLearner(what, place)
    set_head(learner)
    assert learner.critic is not None
    learner.critic.accumulate(share(batch, place.world_size, budget)[place.rank], regression, {})
    parameters = learner.critic.parameters
    found = {name: whole(p.grad) for name, p in parameters.items() if p.grad is not None}
    learner.close()
    return found


def gradients(place: RankPlace, what: LearnerPlan, batch: Batch, budget: int) -> dict[str, Tensor]:
    """The summed gradient of one mini-batch."""
    learner = FsdpLearner(what, place)
    learner.policy.accumulate(share(batch, place.world_size, budget)[place.rank], policy_gradient, {})
    found = {name: whole(p.grad) for name, p in learner.policy.parameters.items() if p.grad is not None}
    learner.close()
    return found


def train(
    place: RankPlace,
    what: LearnerPlan,
    updates: Sequence[int],
    load: str | None = None,
    save: str | None = None,
) -> dict[str, Any]:
    """Load, one update per seed in `updates`, save; weights and metrics afterwards."""
    learner = FsdpLearner(what, place)
    if load is not None:
        learner.load(load)
    metrics = []
    for seed in updates:
        micro = share(example_batch(seed=seed), place.world_size, 60)[place.rank]
        metrics.append(dict(learner.update([micro], policy_gradient).values))
        if learner.critic is not None:
            metrics[-1] |= learner.update_critic([micro, micro], regression).values
        if what.reference_resets and seed == 1:
            learner.reset_reference()
    if save is not None:
        learner.save(save)
    result = {
        "weights": dict(learner.weights()),
        "metrics": metrics,
        "step": learner.policy.step,
        "state": {name: whole(t).clone() for name, t in learner._state().items()},
        "rng": torch.get_rng_state(),
    }
    learner.close()
    return result


def score(place: RankPlace, what: LearnerPlan, batch: Batch) -> dict[str, Any]:
    """Log-probabilities before and after an update, under the policy and the reference."""
    learner = FsdpLearner(what, place)
    micro = share(batch, place.world_size, 60)[place.rank]
    before = learner.logprobs(micro)
    learner.update([micro], policy_gradient)
    result = {
        "before": before,
        "after": learner.logprobs(micro),
        "reference": learner.logprobs(micro, reference=True),
        "probe": learner.probe([[5, 6, 7], [8, 9]]),
    }
    learner.close()
    return result


def score_after_reset(
    place: RankPlace, what: LearnerPlan, batch: Batch, folder: str
) -> dict[str, list[Tensor]]:
    """Log-probabilities around a reset of the reference, and those of a learner that loads what was saved."""
    learner = FsdpLearner(what, place)
    micro = share(batch, place.world_size, 60)[place.rank]
    result = {"initial": learner.logprobs(micro)}
    learner.update([micro], policy_gradient)
    learner.reset_reference()
    result |= {"at reset": learner.logprobs(micro), "reference": learner.logprobs(micro, reference=True)}
    learner.update([micro], policy_gradient)
    result |= {"later": learner.logprobs(micro), "kept": learner.logprobs(micro, reference=True)}
    learner.save(folder)
    learner.close()
    learner = FsdpLearner(what, replace(place, port=place.port + 1))
    learner.load(folder)
    result["loaded"] = learner.logprobs(micro, reference=True)
    learner.close()
    return result


def without_old(batch: Batch) -> Batch:
    """The batch with no trained token."""
    return replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))
