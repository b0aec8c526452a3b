import subprocess
import sys

import pytest
import torch

from rlhf.errors import SyncError
from rlhf.weight_sync.files import FileSender, read_weights, sweep

WEIGHTS = [
    ("a.weight", torch.arange(6.0).reshape(2, 3)),
    ("b.bias", torch.tensor([1.5, -2.0], dtype=torch.bfloat16)),
    ("c.scale", torch.tensor(3.0)),
    ("d.empty", torch.empty(0, 4)),
    ("e.transposed", torch.arange(6.0).reshape(2, 3).T),
]


def test_every_tensor_comes_back_bit_for_bit(tmp_path):
    sender = FileSender(run="r", rank=0, folder=tmp_path)
    read = dict(read_weights(sender.send(WEIGHTS, 3)))
    assert list(read) == [name for name, _ in WEIGHTS]
    for name, tensor in WEIGHTS:
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_tensors_outlive_the_file(tmp_path):
    sender = FileSender(run="r", rank=0, folder=tmp_path)
    read = dict(read_weights(sender.send(WEIGHTS, 3)))
    sender.release()
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(read["a.weight"], WEIGHTS[0][1])


def test_other_ranks_only_take_part_in_the_gathering(tmp_path):
    seen = []
    weights = (seen.append(name) or (name, tensor) for name, tensor in WEIGHTS)
    assert FileSender(run="r", rank=1, folder=tmp_path).send(weights, 3) is None
    assert len(seen) == len(WEIGHTS)
    assert list(tmp_path.iterdir()) == []


def test_file_is_removed_when_writing_fails(tmp_path, monkeypatch):
    sender = FileSender(run="r", rank=0, folder=tmp_path)
    monkeypatch.setattr("rlhf.weight_sync.files.zlib", None)
    with pytest.raises(AttributeError):
        sender.send(WEIGHTS, 3)
    assert list(tmp_path.iterdir()) == []


def test_a_new_send_replaces_the_last(tmp_path):
    sender = FileSender(run="r", rank=0, folder=tmp_path)
    sender.send(WEIGHTS, 3)
    sender.send(WEIGHTS, 4)
    assert len(list(tmp_path.iterdir())) == 1


def test_flipped_byte_names_the_tensor(tmp_path):
    info = FileSender(run="r", rank=0, folder=tmp_path).send(WEIGHTS, 3)
    file = next(tmp_path.iterdir())
    data = bytearray(file.read_bytes())
    data[info["tensors"][1]["offset"]] ^= 1
    file.write_bytes(data)
    with pytest.raises(SyncError, match=r"tensor 'b.bias' of version 3 was damaged"):
        list(read_weights(info))


def test_cut_file_names_the_first_tensor_not_received(tmp_path):
    info = FileSender(run="r", rank=0, folder=tmp_path).send(WEIGHTS, 3)
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[: info["tensors"][1]["offset"]])
    with pytest.raises(SyncError, match=r"tensor 'b.bias' of version 3 was not received"):
        list(read_weights(info))


def test_file_of_another_version_names_both(tmp_path):
    sender = FileSender(run="r", rank=0, folder=tmp_path)
    with pytest.raises(SyncError, match=r"'rlhf-weights version 3', expected version 4"):
        list(read_weights({**sender.send(WEIGHTS, 3), "version": 4}))


def test_absent_file_says_where_cpu_sync_works(tmp_path):
    info = FileSender(run="r", rank=0, folder=tmp_path).send(WEIGHTS, 3)
    next(tmp_path.iterdir()).unlink()
    with pytest.raises(SyncError, match=r"on this machine"):
        list(read_weights(info))


def test_sweep_removes_files_of_dead_writers_only(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    (tmp_path / f"rlhf-weights-run-with-dashes-{dead.pid}-7").touch()
    alive = tmp_path / "rlhf-weights-run-1-7"
    alive.touch()
    unrelated = tmp_path / "other"
    unrelated.touch()
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([alive, unrelated])
