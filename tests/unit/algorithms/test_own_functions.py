"""Functions from a user's file: what they get, and how their mistakes are told."""

from dataclasses import replace

import pytest
import torch

from rlhf.errors import ConfigError, LoadError
from tests.unit.algorithms.bundles import algorithm, filled
from tests.unit.algorithms.ragged import ragged


def test_a_users_function_that_is_not_there_is_named():
    with pytest.raises(LoadError, match=r"algorithm.policy: there is no file 'nowhere.py'"):
        algorithm(policy="nowhere.py:loss")


def test_an_estimator_of_the_wrong_shape_is_named(tmp_path):
    (tmp_path / "mine.py").write_text("def per_row(batch):\n    return batch.rewards\n")
    with pytest.raises(ConfigError, match=r"algorithm.advantages gave a tensor of shape"):
        algorithm(advantages=f"{tmp_path}/mine.py:per_row").add_advantages(ragged(1))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[0.0]", r"gave a value \(list\), expected a tensor with one number"),
        ("batch.rollout_logprobs / 0", r"gave NaN or infinity for (\d+) of the \1 trained tokens"),
    ],
)
def test_an_estimator_that_gives_no_numbers_is_named(tmp_path, body, message):
    (tmp_path / "mine.py").write_text(f"def advantages(batch):\n    return {body}\n")
    with pytest.raises(ConfigError, match=message):
        algorithm(advantages=f"{tmp_path}/mine.py:advantages").add_advantages(ragged(1))


def test_an_estimator_that_fails_is_named_with_its_line(tmp_path):
    (tmp_path / "mine.py").write_text("def broken(batch):\n    return batch.rewrads\n")
    with pytest.raises(ConfigError, match=r"(?s)mine.py:broken failed on a step: AttributeError.*line 2"):
        algorithm(advantages=f"{tmp_path}/mine.py:broken").add_advantages(ragged(1))


def test_an_estimator_may_give_nan_where_the_reward_is_one(tmp_path):
    (tmp_path / "mine.py").write_text("def plain(batch):\n    return batch.rewards[batch.segment_ids]\n")
    batch = ragged(1)
    rewards = batch.rewards.index_fill(0, torch.tensor([0]), torch.nan)
    algorithm(advantages=f"{tmp_path}/mine.py:plain").add_advantages(replace(batch, rewards=rewards))


def test_settings_of_a_users_function_need_no_star(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def scaled(batch, k, by=2.0):\n    return k * by * batch.rollout_logprobs\n\n"
        "def loss(inputs, by: float = 1.0):\n    return by * inputs.new, inputs.new > 0\n"
    )
    mine = {"advantages": f"{tmp_path}/mine.py:scaled", "policy": f"{tmp_path}/mine.py:loss"}
    found = algorithm(**mine, advantage_kwargs={"k": 99}, policy_kwargs={"by": 3})
    assert found.loss.settings() == {"by": 3.0}
    assert "scaled (by 2.0, k 99)" in dict(found.lines())["  advantages"]
    with pytest.raises(
        ConfigError, match=r"algorithm.advantage_kwargs: scaled needs k, which has no default"
    ):
        algorithm(**mine)


def test_a_users_estimator_gets_what_it_asks_for(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from rlhf.algorithms.gae import gae\n\n\ndef ours(batch, gamma=1.0):\n    return gae(batch, gamma=gamma)\n"
    )
    own = f"{tmp_path}/mine.py:ours"
    plain = algorithm(advantages=own)
    assert plain.value_loss is None
    assert not plain.needs_reference
    assert not plain.needs_old_logprobs(1)
    asked = algorithm(
        advantages=own,
        advantage_inputs=["values", "old_logprobs", "teacher_logprobs"],
        advantage_kwargs={"gamma": 0.9},
        reference="teacher",
    )
    assert asked.value_loss is not None
    assert asked.needs_reference
    assert asked.needs_old_logprobs(1)
    ours, theirs = (
        asked.add_advantages(filled()),
        algorithm("ppo", advantage_kwargs={"gamma": 0.9}, whiten=False),
    )
    expected = replace(theirs, kl_in_reward=None).add_advantages(filled())
    assert torch.equal(ours.advantages, expected.advantages)
    assert torch.equal(ours.returns, expected.returns)
