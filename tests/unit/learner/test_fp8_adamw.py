"""AdamW with narrow moments: close to torch's, alike on any number of ranks, and 3 bytes a parameter."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from rlhf.config.schema import LearnerConfig
from rlhf.learner.fp8_adamw import BLOCK, Fp8AdamW, first_codes, second_codes
from rlhf.learner.fsdp import FsdpLearner, RankPlace
from rlhf.learner.model import whole
from rlhf.learner.optimizer import build_optimizer
from rlhf.learner.shards import local
from tests.unit.learner.ranks import Ranks, example_batch, plan, policy_gradient, share

BETAS = ((0.9, 0.95), (0.94, 0.9995), (0.0, 0.5))


def trajectory(module: nn.Module, config: LearnerConfig, steps: int, batch: int = 64) -> list[Tensor]:
    """Weights after each step of a regression on fixed noisy data; the loss last."""
    optimizer = build_optimizer(module, config)
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(512, 32, generator=generator)
    targets = (inputs[:, :4].sin() @ torch.ones(4, 1)) + 0.1 * torch.randn(512, 1, generator=generator)
    found = []
    for step in range(steps):
        chosen = torch.randint(0, 512, (batch,), generator=torch.Generator().manual_seed(step))
        loss = (module(inputs[chosen]) - targets[chosen]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    found.append((module(inputs) - targets).square().mean().detach())
    return found


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(32, 200), nn.Tanh(), nn.Linear(200, 1))


def test_trajectory_stays_close_to_that_of_adamw_over_200_steps() -> None:
    config = LearnerConfig(lr=1e-3, weight_decay=0.01, betas=(0.9, 0.99))
    exact = trajectory(network(), config, 200)
    narrow = trajectory(network(), config.model_copy(update={"optimizer_state": "fp8"}), 200)
    start = torch.cat([p.detach().flatten() for p in network().parameters()])
    travelled = (exact[-2] - start).norm()
    for step in (0, 10, 50, 199):
        assert (narrow[step] - exact[step]).norm() < 0.1 * (exact[step] - start).norm()
    assert torch.cosine_similarity(narrow[-2] - start, exact[-2] - start, dim=0) > 0.99
    assert travelled > 1
    assert narrow[-1] == pytest.approx(float(exact[-1]), rel=0.1)


def test_first_step_is_that_of_adamw_to_the_rounding_of_float32() -> None:
    config = LearnerConfig(lr=1e-2, weight_decay=0.1)
    exact = trajectory(network(), config, 1)[0]
    narrow = trajectory(network(), config.model_copy(update={"optimizer_state": "fp8"}), 1)[0]
    torch.testing.assert_close(narrow, exact, rtol=1e-5, atol=1e-7)


def test_quadratic_bowl_of_unequal_axes_is_walked_to_its_bottom() -> None:
    curvature = torch.logspace(-3, 3, 256).reshape(2, 128)
    distances = []
    for kind in ("float32", "fp8"):
        point = nn.Parameter(torch.ones(2, 128))
        module = nn.Module()
        module.register_parameter("point", point)
        optimizer = build_optimizer(module, LearnerConfig(lr=0.01, optimizer_state=kind))
        for _ in range(200):
            (curvature * point.square()).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        distances.append(point.detach().abs().mean())
    assert distances[1] < distances[0] + 0.02 < 0.1


@pytest.mark.parametrize("betas", BETAS)
def test_every_moment_fades_when_gradients_stop_even_beside_a_large_one(betas: tuple[float, float]) -> None:
    codes = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert (first_codes(codes * betas[0]).float() < codes).all()
    normal = torch.arange(2**10, 2**10 + 2**10).to(torch.float32)
    assert (second_codes(normal * betas[1]).float() < normal).all()


def test_betas_that_would_never_fade_are_refused() -> None:
    stuck = torch.tensor([1.125])
    assert torch.equal(first_codes(stuck * 0.95).float(), stuck)
    for betas in ((0.95, 0.95), (0.9, 0.9999)):
        with pytest.raises(ValueError, match=r"learner\.betas is .* learner\.optimizer_state is fp8"):
            LearnerConfig(betas=betas, optimizer_state="fp8")


def test_second_moment_is_never_rounded_to_zero_under_a_first_that_is_not() -> None:
    weight = nn.Parameter(torch.zeros(1, 2 * BLOCK))
    optimizer = Fp8AdamW([{"params": [weight]}], lr=1.0, betas=(0.9, 0.95), eps=1e-30)
    gradient = torch.logspace(0, -18, 2 * BLOCK)[None]
    for _ in range(30):
        weight.grad = gradient.clone()
        before = weight.detach().clone()
        optimizer.step()
        assert (weight - before).abs().max() < 1.2
    assert (second_codes(torch.tensor([1e-30, 0.0])) > 0).tolist() == [True, False]


def test_state_takes_three_bytes_and_two_scales_a_block() -> None:
    module = nn.Linear(4096, 64, bias=False)
    optimizer = build_optimizer(module, LearnerConfig(optimizer_state="fp8"))
    held = sum(t.numel() * t.element_size() for t in optimizer.state[module.weight].values())
    assert held / module.weight.numel() == pytest.approx(3 + 8 / BLOCK, rel=1e-4)


def follow(place: RankPlace, what, seeds: list[int]) -> dict[str, Tensor]:
    """Weights and moments after steps along gradients that are the same at any number of ranks."""
    learner = FsdpLearner(what, place)
    for seed in seeds:
        for index, parameter in enumerate(learner.policy.parameters.values()):
            generator = torch.Generator().manual_seed(seed * 1000 + index)
            full = torch.randn(parameter.shape, generator=generator)
            rows = -(-parameter.shape[0] // place.world_size)
            mine = full[place.rank * rows : (place.rank + 1) * rows]
            parameter.grad = torch.zeros_like(parameter)
            local(parameter.grad).copy_(mine)
        learner.policy.optimizer.step()
    found = {name: whole(t).clone() for name, t in learner._state().items()}
    learner.close()
    return found


def test_two_ranks_round_as_one_does_bit_for_bit(place: RankPlace, two_ranks: Ranks) -> None:
    what = plan(optimizer_state="fp8")
    alone = follow(place, what, [0, 1, 2])
    for together in two_ranks.run(follow, what, [0, 1, 2]):
        assert together.keys() == alone.keys()
        assert all(torch.equal(together[name], alone[name]) for name in alone)


def test_clipping_and_metrics_are_those_of_float32(place: RankPlace) -> None:
    norms = []
    for kind in ("float32", "fp8"):
        learner = FsdpLearner(plan(max_grad_norm=0.1, optimizer_state=kind), place)
        micro = share(example_batch(), 1, 60)[0]
        metrics = [learner.update([micro], policy_gradient).values for _ in range(3)]
        norms.append([m["update/grad_norm"] for m in metrics])
        learner.close()
    assert norms[0][0] == norms[1][0]
    for ours, theirs in itertools.pairwise(norms):
        assert ours == pytest.approx(theirs, rel=0.2)
