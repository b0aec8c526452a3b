"""The loop on fakes under a virtual clock: order of calls, staleness, the ledger, cadence, resuming."""

import asyncio
import contextlib
import json
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from rlhf.algorithms.catalogue import resolve
from rlhf.config.schema import Recipe
from rlhf.data.prompts import PromptStream
from rlhf.errors import EngineError, SyncError
from rlhf.interfaces import UpdateMetrics
from rlhf.rollout.buffer import GroupBuffer
from rlhf.rollout.group import Producer, Sampled
from rlhf.run import Run, RunState, load_state
from rlhf.run_folder import RunFolder
from rlhf.telemetry.live import LiveView
from rlhf.telemetry.recording import SampleRecorder
from rlhf.telemetry.sinks import ListSink
from rlhf.train import train
from rlhf.types import RewardResult, Sampling
from tests.fakes import make_prompt, make_trajectory, run_virtually

PER_STEP, NUM_PROMPTS = 4, 40


@dataclass
class World:
    """Learner, sync, engine, reward and placement that take random time and note what happened."""

    rng: random.Random = field(default_factory=lambda: random.Random(1))
    version: int = 0
    live: int | None = None
    is_training: bool = False
    breaks_at: int | None = None
    events: list[str] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    generated_while_training: int = 0
    measured: dict[str, float] = field(default_factory=dict)
    kl_coefs: list[float] = field(default_factory=list)
    minibatches: list[list[list[int]]] = field(default_factory=list)

    async def __call__(self, prompt, *, seeds, sampling):
        assert self.live is not None, "generation before the first publish"
        version = self.live
        await asyncio.sleep(self.rng.paretovariate(1.5))
        self.generated_while_training += self.is_training
        return [make_trajectory(version=version, reward=None, sample_index=i) for i in range(len(seeds))]

    async def score(self, group):
        await asyncio.sleep(self.rng.random())
        return [RewardResult(value=float(t.sample_index % 2)) for t in group.trajectories]

    @contextlib.asynccontextmanager
    async def training(self):
        self.events.append("training")
        self.is_training = True
        yield
        self.is_training = False

    async def annotate(self, batch):
        zeros = torch.zeros(batch.num_tokens)
        return replace(
            batch,
            old_logprobs=zeros,
            ref_logprobs=zeros,
            values=zeros,
            last_values=torch.zeros(batch.num_rows),
        )

    async def update(self, minibatches, loss):
        await asyncio.sleep(self.rng.expovariate(0.5))
        assert all(part.advantages is not None and part.loss_weights is not None for part in minibatches)
        self.version += 1
        self.events.append(f"update {self.version}")
        self.kl_coefs.append(loss.kl_coef)
        self.minibatches.append([part.group_ids.tolist() for part in minibatches])
        return UpdateMetrics(values={"update/grad_norm": 1.0} | self.measured)

    async def update_critic(self, minibatches, loss):
        assert all(part.returns is not None for part in minibatches)
        self.events.append(f"update critic {self.version}")
        return UpdateMetrics(values={"critic/grad_norm": 1.0})

    async def reset_reference(self):
        self.events.append(f"reset reference {self.version}")

    async def publish(self, version):
        await asyncio.sleep(0.1)
        if version == self.breaks_at:
            raise SyncError("the engine holds other weights")
        self.live = version
        self.events.append(f"publish {version}")
        return {"sync/probe_gap": 0.0}

    async def forget_prefixes(self) -> None: ...

    def metrics(self):
        return {}

    async def evaluate(self):
        self.events.append(f"evaluate {self.live}")
        return {"eval/accuracy": 0.5}

    async def save(self, folder):
        Path(folder).write_text(str(self.version))
        self.events.append(f"save {self.version}")

    async def close(self) -> None: ...


class WatchedBuffer(GroupBuffer):
    """A buffer that notes when slots reopen."""

    events: list[str]

    def release(self) -> None:
        self.events.append("release")
        super().release()


def recipe(folder: Path, *, num_steps: int, max_staleness: int, **sections) -> Recipe:
    values = {
        "name": "fakes",
        "run_dir": str(folder),
        "model": {"path": "x"},
        "task": {"train": {"file": "a"}, "rewards": [{"use": "a:b"}]},
        "schedule": {
            "num_steps": num_steps,
            "prompts_per_step": PER_STEP,
            "samples_per_prompt": 2,
            "max_staleness": max_staleness,
            "minibatches": 2,
        },
        "eval": {"every": 2},
        "checkpoint": {"every": 3},
    }
    return Recipe.model_validate(values | sections)


def assemble(asked: Recipe, world: World) -> Run:
    """As build.py does, from fakes; resumes from the folder's last checkpoint."""
    folder = RunFolder.open(asked, fresh=False)
    source = [make_prompt(i) for i in range(NUM_PROMPTS)]
    prompts, state = PromptStream(source, seed=0, curriculum=asked.task.curriculum), RunState()
    if checkpoints := folder.checkpoints():
        state, ledger = load_state(checkpoints[-1])
        prompts.load_state_dict(ledger)
        world.version = int((checkpoints[-1] / "learner").read_text())
    buffer = WatchedBuffer(PER_STEP, asked.schedule.max_staleness)
    buffer.events = world.events
    producer = Producer(
        buffer=buffer,
        prompts=prompts,
        work=Sampled(
            rollout=world,
            reward=world,
            sampling=Sampling(max_tokens=8),
            samples_per_prompt=2,
            seed=0,
            drop_zero_variance=asked.schedule.drop_zero_variance,
            temperature_points=asked.sampling.temperature_points,
        ),
        version=lambda: state.step,
    )
    settle = prompts.trained
    prompts.trained = lambda index, solved: (world.trained.append(index), settle(index, solved))[1]
    return Run(
        recipe=asked,
        folder=folder,
        learner=world,
        engine=world,
        sync=world,
        placement=world,
        algorithm=resolve(asked),
        annotators=(world.annotate,),
        reward_parts=(),
        decode_steps=None,
        reward=world,
        prompts=prompts,
        buffer=buffer,
        producer=producer,
        evaluator=world.evaluate,
        sinks=(ListSink(),),
        recorder=SampleRecorder(folder.path, decode=lambda ids: ["x"] * len(ids), samples_per_step=2),
        view=LiveView({}, enabled=False),
        state=state,
    )


def run_steps(
    folder: Path, *, num_steps: int, max_staleness: int = 0, world: World | None = None, **sections
) -> tuple[Run, World]:
    world = world or World()
    run = assemble(recipe(folder, num_steps=num_steps, max_staleness=max_staleness, **sections), world)
    run_virtually(train(run))
    return run, world


def lines_of(run: Run) -> dict[int, dict[str, float]]:
    (sink,) = run.sinks
    return dict(sink.lines)


def test_one_step_happens_in_the_order_of_the_docs(tmp_path):
    _, world = run_steps(tmp_path, num_steps=1, max_staleness=0)
    assert world.events == [
        "publish 0",
        "evaluate 0",
        "training",
        "update 1",
        "publish 1",
        "evaluate 1",
        "save 1",
        "release",
    ]


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
def test_slots_reopen_only_after_the_weights_are_live(tmp_path, max_staleness):
    _, world = run_steps(tmp_path, num_steps=6, max_staleness=max_staleness)
    kept = [event for event in world.events if event.split()[0] in ("update", "publish", "release")]
    expected = [event for step in range(1, 7) for event in (f"update {step}", f"publish {step}", "release")]
    assert kept == ["publish 0", *expected]


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
def test_every_prompt_is_trained_once_in_admission_order(tmp_path, max_staleness):
    run, world = run_steps(tmp_path, num_steps=10, max_staleness=max_staleness)
    assert world.trained == list(range(10 * PER_STEP))
    assert run.prompts.num_trained == 10 * PER_STEP
    assert run.state.num_tokens == 10 * PER_STEP * 2 * 3
    assert len(run.prompts.in_flight) <= run.buffer.num_slots


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
def test_recorded_staleness_reaches_the_bound_and_never_passes_it(tmp_path, max_staleness):
    run, world = run_steps(tmp_path, num_steps=30, max_staleness=max_staleness)
    ages = [line["buffer/staleness_max"] for step, line in lines_of(run).items() if step]
    assert len(ages) == 30
    assert max(ages) == max_staleness
    assert (world.generated_while_training > 0) == (max_staleness > 0)


def test_evaluation_and_checkpoints_come_when_due_and_at_the_end(tmp_path):
    run, world = run_steps(tmp_path, num_steps=7, max_staleness=1)
    assert [e for e in world.events if e.startswith("evaluate")] == [f"evaluate {v}" for v in (0, 2, 4, 6, 7)]
    assert [e for e in world.events if e.startswith("save")] == ["save 3", "save 6", "save 7"]
    assert [path.name for path in run.folder.checkpoints()] == ["step-000006", "step-000007"]
    lines = lines_of(run)
    assert list(lines) == list(range(8))
    assert [step for step, line in lines.items() if "eval/accuracy" in line] == [0, 2, 4, 6, 7]


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
def test_resumed_run_loses_no_prompt_and_trains_none_twice(tmp_path, max_staleness):
    first = World(breaks_at=5)
    with pytest.raises(SyncError, match="other weights"):
        run_steps(tmp_path, num_steps=8, max_staleness=max_staleness, world=first)
    run, second = run_steps(tmp_path, num_steps=8, max_staleness=max_staleness)
    assert second.events[0] == "publish 3"
    assert "evaluate 3" not in second.events
    assert first.trained[: 3 * PER_STEP] + second.trained == list(range(8 * PER_STEP))
    assert run.state.step == second.version == 8
    ledger = json.loads((run.folder.checkpoints()[-1] / "state.json").read_text())
    assert ledger["state"]["num_tokens"] == 8 * PER_STEP * 2 * 3


def test_finished_run_publishes_and_stops(tmp_path):
    run_steps(tmp_path, num_steps=3, max_staleness=0)
    _, again = run_steps(tmp_path, num_steps=3, max_staleness=0)
    assert again.events == ["publish 3"]


def test_engine_failure_ends_the_run_and_leaves_no_task(tmp_path):
    class Dying(World):
        async def __call__(self, prompt, *, seeds, sampling):
            if len(self.trained) >= PER_STEP:
                raise EngineError("engine 0 died")
            return await super().__call__(prompt, seeds=seeds, sampling=sampling)

    async def main() -> int:
        with pytest.raises(EngineError, match="engine 0 died"):
            await train(run)
        return len(asyncio.all_tasks())

    world = Dying()
    run = assemble(recipe(tmp_path, num_steps=5, max_staleness=1), world)
    assert run_virtually(main()) == 1
    assert "save" not in " ".join(world.events)


def test_the_critic_is_trained_before_the_policy_and_alone_at_the_start(tmp_path):
    _, world = run_steps(
        tmp_path, num_steps=3, algorithm={"name": "ppo"}, critic={"pretrain_steps": 2}, eval={"every": 0}
    )
    updates = [event for event in world.events if event.startswith("update")]
    assert updates == ["update critic 0", "update critic 0", "update critic 0", "update 1"]
    assert "publish 3" in world.events


def test_the_reference_becomes_the_policy_every_n_steps(tmp_path):
    _, world = run_steps(
        tmp_path, num_steps=5, algorithm={"kl_coef": 0.1, "reference_reset_every": 2}, eval={"every": 0}
    )
    assert [e for e in world.events if e.startswith("reset")] == ["reset reference 2", "reset reference 4"]
    assert world.events.index("reset reference 2") < world.events.index("publish 2")


def test_the_kl_coefficient_is_steered_and_survives_a_kill(tmp_path):
    steered = {"kl_coef": 0.1, "kl_target": 0.01, "kl_horizon": 80.0}
    first = World(measured={"update/kl": 1.0}, breaks_at=5)
    with pytest.raises(SyncError, match="other weights"):
        run_steps(tmp_path, num_steps=6, world=first, algorithm=steered)
    second = World(measured={"update/kl": 0.0})
    run, _ = run_steps(tmp_path, num_steps=6, world=second, algorithm=steered)
    up, down = 1 + 0.2 * 8 / 80, 1 - 0.2 * 8 / 80
    assert first.kl_coefs == pytest.approx([0.1 * up**step for step in range(5)])
    assert second.kl_coefs == pytest.approx([0.1 * up**3 * down**step for step in range(3)])
    assert lines_of(run)[4]["update/kl_coef"] == pytest.approx(0.1 * up**3)


def test_every_pass_trains_each_group_once_in_an_order_of_its_own(tmp_path):
    schedule = {"num_steps": 1, "prompts_per_step": 4, "samples_per_prompt": 2}
    _, world = run_steps(
        tmp_path, num_steps=1, schedule=schedule | {"minibatches": 2, "inner_epochs": 3}, eval={"every": 0}
    )
    (step,) = world.minibatches
    assert len(step) == 6
    orders = [tuple(step[2 * i] + step[2 * i + 1]) for i in range(3)]
    assert all(sorted(order) == [0, 0, 1, 1, 2, 2, 3, 3] for order in orders)
    assert len(set(orders)) > 1


@pytest.mark.parametrize(("share", "warns"), [(0.2, False), (0.4, True)])
def test_a_mask_that_eats_much_is_warned_of(tmp_path, caplog, share, warns):
    run_steps(tmp_path, num_steps=1, world=World(measured={"mismatch/masked_share": share}))
    assert ("off-policy masks dropped 40 %" in caplog.text) == warns
