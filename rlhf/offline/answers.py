"""Which final answers are one vote: the right ones, equal texts, and, if asked for, what the reward takes for equal."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Final

from rlhf.data.collected import Collected
from rlhf.rollout.scoring import RewardPool
from rlhf.types import Message, Prompt, Trajectory, TrajectoryGroup, Turn

RIGHT: Final = True
"""The vote of every right sample: each of them equals the gold answer."""


def votes_by_text(one: Collected) -> list[Hashable | None]:
    """The vote of each sample: RIGHT, the text of its answer, or None where it gave none."""
    return [RIGHT if sample.is_correct else sample.answer for sample in one.samples]


async def votes_by_reward(one: Collected, reward: RewardPool, *, gold_template: str) -> list[Hashable | None]:
    """As `votes_by_text`, where wrong answers that the first reward takes for each other are one vote.

    An answer belongs to the first earlier one that, as the gold, has it graded right. That runs in the reward
    workers, within their deadlines; what cannot be graded is a vote of its own.
    """
    votes = votes_by_text(one)
    open_texts = list(dict.fromkeys(vote for vote in votes if isinstance(vote, str)))
    stands_for: dict[str, str] = {}
    while open_texts:
        first, *rest = open_texts
        stands_for[first] = first
        alike = await _taken_for(first, rest, one.prompt, reward, gold_template=gold_template)
        stands_for |= dict.fromkeys(alike, first)
        open_texts = [text for text in rest if text not in stands_for]
    return [stands_for[vote] if isinstance(vote, str) else vote for vote in votes]


async def _taken_for(
    gold: str, texts: Sequence[str], prompt: Prompt, reward: RewardPool, *, gold_template: str
) -> list[str]:
    if not texts:
        return []
    answers = [gold_template.replace("{reference}", text) for text in texts]
    group = TrajectoryGroup(
        index=0,
        prompt=replace(prompt, reference=gold),
        trajectories=tuple(_stand_in(answer, index) for index, answer in enumerate(answers)),
    )
    parts = {part.name: part for part in await reward.grade(group)}
    if not reward.names or reward.names[0] not in parts:
        return []
    results = parts[reward.names[0]].results
    return [text for text, r in zip(texts, results, strict=True) if r.value is not None and r.value > 0.5]


def _stand_in(completion: str, index: int) -> Trajectory:
    message = Message(role="assistant", content=completion)
    turn = Turn(message=message, segment=0, start=0, stop=0)
    return Trajectory(segments=(), turns=(turn,), stop="stop", sample_index=index, seed=0)
