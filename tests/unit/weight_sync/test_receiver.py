"""Every way a sync can go wrong, planted in a real vLLM engine."""

from typing import Any

import pytest

from rlhf.errors import SyncError
from rlhf.weight_sync.files import FileSender
from rlhf.weight_sync.probe import Probe, probe_gap, probe_sequences
from rlhf.weight_sync.verified import VerifiedSync
from tests.faulty_transfer import DROPPED
from tests.live_vllm import LiveEngine, LocalLearner, OneEngine, changed_model, model_logprobs, weight_files

pytestmark = pytest.mark.slow
SEQUENCES = probe_sequences(128, seed=0, num=4, length=32)


@pytest.fixture
def live(live_vllm):
    """The live engine without a fault, before and after."""
    live_vllm.run(live_vllm.engine.init_transfer({"fault": ""}))
    yield live_vllm
    live_vllm.run(live_vllm.engine.init_transfer({"fault": ""}))
    if live_vllm.engine._holds:
        live_vllm.run(live_vllm.engine.resume())
    assert weight_files() == []


def publish(live: LiveEngine, learner: LocalLearner, version: int, *, every: int = 1) -> Any:
    probe = Probe(sequences=SEQUENCES, tolerance=1e-3, every=every)
    return live.run(VerifiedSync(learner, OneEngine(live.engine), probe=probe).publish(version))


def learner(seed: int, sender: FileSender | None = None) -> LocalLearner:
    return LocalLearner(changed_model(seed), sender or FileSender(run="unit", rank=0))


def test_publish_brings_learner_and_engine_together(live):
    for version in (31, 32):
        metrics = publish(live, learner(version), version)
        assert metrics["sync/probe_gap"] < 1e-4


def test_stale_head_is_named_by_the_receiver(live):
    publish(live, learner(1), 1)
    live.run(live.engine.init_transfer({"fault": "stale_head"}))
    with pytest.raises(SyncError, match=r"lm_head is stale.*tied embeddings"):
        publish(live, learner(2), 2)
    assert live.engine._holds == {"update"}


def test_stale_head_is_caught_by_the_probe_alone(live):
    publish(live, learner(1), 1)
    live.run(live.engine.init_transfer({"fault": "unnoticed_stale_head"}))
    with pytest.raises(SyncError, match=r"weights of version 2 arrived intact in engine 0.*differ"):
        publish(live, learner(2), 2)
    assert (
        probe_gap(model_logprobs(changed_model(2), SEQUENCES), live.run(live.engine.probe(SEQUENCES))) > 0.5
    )


def test_tensor_lost_by_the_receiver_is_named(live):
    live.run(live.engine.init_transfer({"fault": "dropped"}))
    with pytest.raises(SyncError, match=r"without new weights: model.layers.2.self_attn.qkv_proj"):
        publish(live, learner(2), 2)
    assert DROPPED.startswith("model.layers.2.self_attn")


def test_tensor_not_sent_is_named(live):
    class Forgetful(FileSender):
        def send(self, weights, version):
            return super().send(
                [pair for pair in weights if pair[0] != "model.layers.1.mlp.down_proj.weight"], version
            )

    with pytest.raises(SyncError, match=r"without new weights: model.layers.1.mlp.down_proj"):
        publish(live, learner(2, Forgetful(run="unit", rank=0)), 2)


def test_tensor_the_model_does_not_have_is_named(live):
    class Generous(FileSender):
        def send(self, weights, version):
            pairs = list(weights)
            return super().send([*pairs, ("model.layers.1.mlp.extra.weight", pairs[0][1])], version)

    with pytest.raises(SyncError, match=r"no module or parameter named .layers\.1\.mlp\.extra"):
        publish(live, learner(2, Generous(run="unit", rank=0)), 2)


def test_swapped_version_names_both(live):
    class Late(FileSender):
        def send(self, weights, version):
            return super().send(weights, version - 1)

    with pytest.raises(SyncError, match=r"holds weight version 4, but version 5 was published"):
        publish(live, learner(2, Late(run="unit", rank=0)), 5)


def test_damaged_tensor_is_named(live):
    def damage(info: dict[str, Any]) -> dict[str, Any]:
        tensors = [t | {"crc": t["crc"] ^ 1} if t["name"] == DROPPED else t for t in info["tensors"]]
        return info | {"tensors": tensors}

    with pytest.raises(SyncError, match=rf"tensor '{DROPPED}' of version 2 was damaged"):
        publish(live, LocalLearner(changed_model(2), FileSender(run="unit", rank=0), damage), 2)


def test_engine_recovers_after_a_failed_update(live):
    live.run(live.engine.init_transfer({"fault": "dropped"}))
    with pytest.raises(SyncError):
        publish(live, learner(2), 2)
    live.run(live.engine.resume())
    live.run(live.engine.init_transfer({"fault": ""}))
    assert publish(live, learner(7), 3)["sync/probe_gap"] < 1e-4
