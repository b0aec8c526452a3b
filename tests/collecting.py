"""Collecting with a scripted engine in a process of its own, so that it can be killed at any moment."""

import asyncio
import json
import sys
from pathlib import Path

from rlhf.config.reject import SelectConfig
from rlhf.data.selection import Rules
from rlhf.offline.collect import CollectPlan, collect
from rlhf.offline.selected import write_selected
from rlhf.types import Message, Prompt, RewardResult, Sampling
from tests.fakes import make_trajectory

NUM_PROMPTS = 70


def prompts() -> list[Prompt]:
    return [Prompt(id=f"p{i}", messages=(Message(role="user", content=f"q{i}"),)) for i in range(NUM_PROMPTS)]


async def roll_out(prompt, *, seeds, sampling):
    await asyncio.sleep(seeds[0] % 7 / 1000)
    return [
        make_trajectory(text=f"{prompt.id} {s}", reward=None, sample_index=i) for i, s in enumerate(seeds)
    ]


class Written:
    """A grader that writes a line before it grades a group: (process, prompt)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def score(self, group):
        with self._path.open("a") as file:
            file.write(f"{group.prompt.id}\n")
        await asyncio.sleep(0.002)
        values = [float(int(t.completion.split()[1]) % 3 == 0) for t in group.trajectories]
        return [RewardResult(value=v, parts={"task": v}) for v in values]


def main(folder: Path, graded: Path) -> None:
    plan = CollectPlan(
        prompts=prompts(), sampling=Sampling(max_tokens=8), samples_per_prompt=6, prompts_per_chunk=7
    )
    asyncio.run(collect(roll_out, Written(graded), plan, folder / "collected"))
    metrics = write_selected(folder / "collected", Rules(config=SelectConfig(per_prompt=2, limit=50)), folder)
    (folder / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
