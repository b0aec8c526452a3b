"""What only a GPU can show: the variable-length kernel, bf16 compute, and giving the device to an engine and back."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from rlhf.config.schema import ModelConfig
from rlhf.learner.attention import _bucketed, _varlen, build_packing
from rlhf.learner.fsdp import FsdpLearner, RankPlace
from rlhf.machine import free_port
from tests.tiny import tiny_config
from tests.unit.learner.ranks import example_batch, plan, policy_gradient

pytestmark = pytest.mark.gpu


@pytest.fixture
def place() -> Iterator[RankPlace]:
    yield RankPlace(port=free_port(), device="cuda")
    if dist.is_initialized():
        dist.destroy_process_group()


def learner(place: RankPlace, *, dtype: str) -> FsdpLearner:
    return FsdpLearner(plan(ModelConfig(config=tiny_config(), dtype=dtype)), place)


@pytest.mark.parametrize("shared", [0, 50], ids=["own", "shared"])
def test_varlen_attention_equals_bucketed_attention_values_and_gradients(shared: int) -> None:
    lengths = [5, 130, 1, 64, 77]
    origins = torch.arange(sum(lengths))
    for start in (136, 200):  # the last two rows begin as the second does
        origins[start : start + shared] = torch.arange(5, 5 + shared)
    packing = build_packing(lengths, torch.device("cuda"), origins)
    torch.manual_seed(0)
    shapes = [(int(packing.place.max()) + 1, heads, 64) for heads in (4, 2, 2)]
    leaves = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    results = []
    for attend in (_varlen, _bucketed):
        out = attend(*leaves, packing, 0.125)
        gradients = torch.autograd.grad(out.float().square().sum(), leaves)
        results.append([out, *gradients])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours.reshape(theirs.shape).float(), theirs.float(), rtol=5e-2, atol=5e-2)


def test_bf16_logprobs_stay_close_to_fp32(place: RankPlace) -> None:
    batch = example_batch(seed=1)
    exact = learner(place, dtype="float32").logprobs([batch])[0]
    dist.destroy_process_group()
    rounded = learner(replace(place, port=free_port()), dtype="bfloat16").logprobs([batch])[0]
    assert (exact - rounded).abs().max() < 0.2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_update_after_offload_and_reload_equals_update_without(place: RankPlace, dtype: str) -> None:
    batch = example_batch(seed=1)
    results = []
    for moves in (False, True):
        rank = learner(replace(place, port=free_port()), dtype=dtype)
        for _ in range(2):
            rank.update([[batch]], policy_gradient)
            if moves:
                rank.offload()
                assert next(iter(rank.policy.parameters())).device.type == "cpu"
                rank.reload()
        results.append(rank.logprobs([batch])[0])
        dist.destroy_process_group()
    torch.testing.assert_close(*results)
