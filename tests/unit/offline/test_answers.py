"""Votes by the reward, in real workers."""

import asyncio

from rlhf.config.rewards import RewardConfig
from rlhf.offline.answers import RIGHT, votes_by_reward, votes_by_text
from rlhf.rollout.scoring import RewardPool
from tests.unit.offline.test_figures import collected, sample

REWARD = """
import time

def grade(completion, reference):
    answer = completion.removeprefix("<").removesuffix(">")
    if "hang" in (answer, reference):
        time.sleep(600)
    return float(float(answer) == float(reference))
"""


def wrong(index, answer):
    return sample(index, right=False, reward=0.0, answer=answer)


def test_votes_by_reward_join_what_the_reward_takes_for_equal(tmp_path):
    (tmp_path / "numbers.py").write_text(REWARD)
    one = collected(
        0, wrong(0, "0.5"), sample(1, answer="7"), wrong(2, ".50"), wrong(3, "2"), wrong(4, None),
        wrong(5, "0.5"), wrong(6, "2.0"), wrong(7, "three"),
    )  # fmt: skip
    found = asyncio.run(_votes(one, tmp_path))
    assert found == ["0.5", RIGHT, "0.5", "2", None, "0.5", "2", "three"]
    assert votes_by_text(one) == ["0.5", RIGHT, ".50", "2", None, "0.5", "2.0", "three"]


def test_a_comparison_that_hangs_is_killed_and_the_answer_votes_alone(tmp_path):
    (tmp_path / "numbers.py").write_text(REWARD)
    one = collected(0, wrong(0, "1"), wrong(1, "hang"), wrong(2, "1.0"))
    assert asyncio.run(_votes(one, tmp_path)) == ["1", "hang", "1"]


async def _votes(one, folder):
    reward = RewardConfig(use=f"{folder / 'numbers.py'}:grade", limit_s=1.5)
    pool = RewardPool([reward], num_workers=1)
    try:
        return await votes_by_reward(one, pool, gold_template="<{reference}>")
    finally:
        await pool.close()
