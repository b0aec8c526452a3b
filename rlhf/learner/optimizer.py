"""AdamW over sharded parameters, its learning-rate schedule, and clipping by the global gradient norm."""

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import AdamW

from rlhf.config.schema import LearnerConfig
from rlhf.learner.fp8_adamw import Fp8AdamW
from rlhf.learner.shards import local


def build_optimizer(module: nn.Module, config: LearnerConfig) -> AdamW | Fp8AdamW:
    """AdamW over what is trainable; weight decay on matrices only, not on norms and biases."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer_state == "fp8":
        return Fp8AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    optimizer = AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    # Made now, not at the first step: a checkpoint has one layout whenever it is written or read.
    for parameter in trained:
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }
    return optimizer


def learning_rate(step: int, total_steps: int, config: LearnerConfig) -> float:
    """Learning rate of optimizer step `step` (from 0): a linear rise over the warm-up, then the schedule."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.lr
    progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    remaining = 1 - progress if config.lr_schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * remaining)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> float:
    """Norm of the whole gradient over all ranks, before clipping to `max_norm`. A collective."""
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    squared = torch.nn.utils.get_total_norm(gradients).double().square()
    dist.all_reduce(squared)
    norm = float(squared.sqrt())
    if max_norm is not None and math.isfinite(norm) and norm > max_norm:
        torch._foreach_mul_(gradients, max_norm / norm)
    return norm
