import pytest

from rlhf.cluster.transfer import choose_sync
from rlhf.config.schema import Recipe
from rlhf.errors import ConfigError


def recipe(kind: str, placement: str) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "a",
            "model": {"path": "x"},
            "task": {"train": {"file": "a"}, "rewards": [{"use": "a:b"}]},
            "sync": {"kind": kind},
            "placement": {"kind": placement},
        }
    )


@pytest.mark.parametrize(
    ("kind", "placement", "device", "chosen"),
    [
        ("auto", "split", "cpu", "cpu"),
        ("auto", "colocated", "cpu", "cpu"),
        ("auto", "split", "cuda", "nccl"),
        ("auto", "colocated", "cuda", "ipc"),
        ("disk", "split", "cpu", "disk"),
        ("disk", "colocated", "cuda", "disk"),
        ("cpu", "split", "cpu", "cpu"),
        ("nccl", "split", "cuda", "nccl"),
    ],
)
def test_sync_follows_from_device_and_placement(kind, placement, device, chosen):
    assert choose_sync(recipe(kind, placement), device) == chosen


@pytest.mark.parametrize(
    ("kind", "placement", "device", "says"),
    [
        ("nccl", "split", "cpu", "sync.kind is nccl, which needs GPUs"),
        ("ipc", "colocated", "cpu", "sync.kind is ipc, which needs GPUs"),
        ("ipc", "split", "cuda", "placement.kind is split"),
    ],
)
def test_impossible_sync_is_refused(kind, placement, device, says):
    with pytest.raises(ConfigError, match=says):
        choose_sync(recipe(kind, placement), device)
