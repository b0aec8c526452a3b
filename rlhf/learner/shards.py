"""This rank's part of tensors that are spread over the ranks, and more tensors spread alike."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def zeros_beside(parameter: Tensor, *, last: int | None = None, dtype: torch.dtype) -> Tensor:
    """Zeros of a parameter's shape and sharding; `last`: another size of the last dimension, which no shard cuts."""
    mine = local(parameter.detach())
    whole_shape, own_shape = [
        shape if last is None else (*shape[:-1], last) for shape in (parameter.shape, mine.shape)
    ]
    zeros = torch.zeros(own_shape, dtype=dtype, device=mine.device)
    if not isinstance(parameter, DTensor):
        return zeros
    assert all(placement.is_shard(0) for placement in parameter.placements), "FSDP2 shards rows"
    whole = torch.empty(whole_shape, device="meta")
    return DTensor.from_local(
        zeros,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )
