"""What of nccl and ipc can be tested without a GPU: the messages, and the checks before anything is sent."""

import pytest
import torch

from rlhf.errors import SyncError
from rlhf.interfaces import TensorSpec
from rlhf.weight_sync.streams import EngineLink, StreamSender

SPECS = [
    TensorSpec(name="a", dtype="float32", shape=(2, 3)),
    TensorSpec(name="b", dtype="bfloat16", shape=(4,)),
]
WEIGHTS = [("a", torch.zeros(2, 3)), ("b", torch.zeros(4, dtype=torch.bfloat16))]


class Recorder:
    """A trainer that sends by asking the client for one update per tensor."""

    def __init__(self, client, stream):
        self.client, self.stream = client, stream
        client.init_weight_transfer_engine({"packed": True})

    def send_weights(self):
        self.client.start_weight_update()
        for name, _ in self.stream:
            self.client.update_weights({"names": [name]})
        self.client.finish_weight_update()

    def shutdown(self):
        self.client = None


@pytest.fixture
def messages():
    return []


@pytest.fixture
def sender(messages):
    link = EngineLink(
        init_transfer=lambda info: messages.append(("init", info)),
        update=lambda info: messages.append(("update", info)),
    )
    return StreamSender(Recorder, link, specs=SPECS)


def test_stream_connects_once_and_stamps_every_message_with_the_version(sender, messages):
    assert sender.send(WEIGHTS, 1) is None
    sender.send(WEIGHTS, 2)
    assert messages == [
        ("init", {"packed": True}),
        ("update", {"names": ["a"], "version": 1}),
        ("update", {"names": ["b"], "version": 1}),
        ("update", {"names": ["a"], "version": 2}),
        ("update", {"names": ["b"], "version": 2}),
    ]


def test_stream_refuses_a_tensor_that_was_not_announced(sender):
    with pytest.raises(SyncError, match=r"announced TensorSpec.*'b'"):
        sender.send([WEIGHTS[0], ("c", WEIGHTS[1][1])], 1)


def test_stream_refuses_another_dtype(sender):
    with pytest.raises(SyncError, match=r"float64"):
        sender.send([("a", torch.zeros(2, 3, dtype=torch.float64))], 1)


def test_stream_names_the_tensor_that_never_came(sender):
    with pytest.raises(SyncError, match=r"'b' was announced but not published"):
        sender.send(WEIGHTS[:1], 1)


def test_vllm_trainers_accept_our_arguments():
    pytest.importorskip("vllm")
    from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    from rlhf.weight_sync.streams import _Client, _source, _Stream

    assert NCCLTrainerInitInfo(rank=0, master_address="h", master_port=1, world_size=3).is_sender
    assert not IPCTrainerInitInfo(rank=1, packed=True).is_sender
    assert isinstance(_Client(EngineLink(init_transfer=print, update=print)), VLLMWeightSyncClient)
    metadata = _source(_Stream(SPECS)).metadata()
    assert [(m.name, m.dtype, m.shape) for m in metadata] == [
        ("a", torch.float32, (2, 3)),
        ("b", torch.bfloat16, (4,)),
    ]
