"""Curriculum, dynamic sampling and temperature schedule in the loop, under a virtual clock."""

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rlhf.errors import SyncError
from rlhf.run import Run
from rlhf.train import train
from rlhf.types import RewardResult
from tests.fakes import make_trajectory, run_virtually
from tests.unit.test_train import PER_STEP, World, assemble, lines_of, recipe

CURRICULUM = {"low": 0.05, "high": 0.95, "revisit": 0.1}


@dataclass
class Graded(World):
    """Of three prompts one is always solved, one never and one half the time; every rollout takes a second or two."""

    asked: list[tuple[int, str, float]] = field(default_factory=list)
    """(weight version, prompt, temperature)"""
    seconds: dict[int, float] = field(default_factory=dict)
    """Spent on prompts of that kind (0 always, 1 never, 2 half) so far."""

    async def __call__(self, prompt, *, seeds, sampling):
        self.asked.append((self.live, prompt.id, sampling.temperature))
        version, took = self.live, 1 + self.rng.random()
        await asyncio.sleep(took)
        kind = kind_of(prompt.id)
        self.seconds[kind] = self.seconds.get(kind, 0.0) + took
        return [make_trajectory(version=version, reward=None, sample_index=i) for i in range(len(seeds))]

    async def score(self, group):
        kind = kind_of(group.prompt.id)
        return [RewardResult(value=[1.0, 0.0, float(t.sample_index % 2)][kind]) for t in group.trajectories]


def kind_of(prompt_id: str) -> int:
    return int(prompt_id[1:]) % 3


def run_steps(folder: Path, world: Graded, *, num_steps: int, staleness: int = 0, **sections) -> Run:
    asked = recipe(folder, num_steps=num_steps, max_staleness=staleness)
    values = asked.model_dump(mode="json")
    for name, section in sections.items():
        values[name] |= section
    run = assemble(type(asked).model_validate(values), world)
    run_virtually(train(run))
    return run


def wasted(world: Graded) -> float:
    return 1 - world.seconds[2] / sum(world.seconds.values())


@pytest.mark.parametrize("staleness", [0, 2])
def test_curriculum_spends_less_time_on_prompts_always_or_never_solved(tmp_path, staleness):
    shares, needed = [], []
    for name, chosen in (("off", None), ("on", CURRICULUM)):
        world = Graded()
        sections = {"schedule": {"drop_zero_variance": True}, "task": {"curriculum": chosen}}
        run = run_steps(tmp_path / name, world, num_steps=60, staleness=staleness, **sections)
        shares.append(wasted(world))
        needed.append(len(world.asked))
        lines = [line for step, line in lines_of(run).items() if step]
        skipped = sum(line.get("curriculum/skipped", 0) for line in lines)
        assert (skipped > 0) == (chosen is not None)
    assert shares[0] == pytest.approx(2 / 3, abs=0.05)
    assert shares[1] < 0.35
    assert needed[1] < 0.6 * needed[0]


def test_curriculum_of_a_synchronous_run_resumes_bit_for_bit(tmp_path):
    sections = {
        "schedule": {"drop_zero_variance": True},
        "task": {"curriculum": CURRICULUM},
        "sampling": {"temperature_points": [[0, 1.0], [9, 0.4]]},
    }
    whole = Graded()
    expected = run_steps(tmp_path / "whole", whole, num_steps=12, **sections)
    first, second = Graded(breaks_at=8), Graded()
    second.rng.seed(99)  # other durations: groups finish in another order
    with pytest.raises(SyncError, match="other weights"):
        run_steps(tmp_path / "broken", first, num_steps=12, **sections)
    resumed = run_steps(tmp_path / "broken", second, num_steps=12, **sections)
    assert second.asked == [entry for entry in whole.asked if entry[0] >= 6]
    assert whole.trained[-len(second.trained) :] == second.trained
    assert state_of(resumed)["prompts"] == state_of(expected)["prompts"]
    assert state_of(expected)["prompts"]["discarded"]["curriculum"] > 0


def state_of(run: Run) -> dict:
    return json.loads((run.folder.checkpoints()[-1] / "state.json").read_text())


def test_discarded_groups_are_counted_by_reason_and_as_a_share(tmp_path):
    run = run_steps(tmp_path, Graded(), num_steps=20, schedule={"drop_zero_variance": True})
    lines = [line for step, line in lines_of(run).items() if step]
    for line in lines:
        assert line["rollout/discarded"] == line.get("rollout/discarded/zero_variance", 0.0)
        total = line["rollout/discarded"] + PER_STEP
        assert line["rollout/discarded_share"] == pytest.approx(line["rollout/discarded"] / total)
        assert line["rollout/zero_variance_share"] == 0
    share = sum(line["rollout/discarded_share"] for line in lines) / len(lines)
    assert share == pytest.approx(2 / 3, abs=0.1)


@pytest.mark.parametrize("staleness", [0, 1, 4])
def test_temperature_follows_the_version_that_admitted_the_group(tmp_path, staleness):
    world = Graded()
    points = [[0, 1.0], [10, 0.5]]
    run = run_steps(
        tmp_path, world, num_steps=12, staleness=staleness, sampling={"temperature_points": points}
    )
    assert all(temperature == pytest.approx(1 - 0.05 * min(v, 10)) for v, _, temperature in world.asked)
    found = [line["rollout/temperature"] for step, line in lines_of(run).items() if step]
    assert found == pytest.approx([1 - 0.05 * min(max(step - staleness, 0), 10) for step in range(12)])
