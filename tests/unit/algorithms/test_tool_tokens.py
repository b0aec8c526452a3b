"""Whole updates of every preset: tokens that no engine sampled (prompts, tools, templates) are as good as not there."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf.algorithms.catalogue import Algorithm
from rlhf.algorithms.correction import CORRECTIONS
from rlhf.algorithms.losses import PolicyLoss
from rlhf.batch import Batch
from rlhf.config.presets import PRESETS
from rlhf.types import NOT_SAMPLED
from tests.unit.algorithms import advantage_reference as slow
from tests.unit.algorithms import loss_reference
from tests.unit.algorithms.bundles import algorithm
from tests.unit.algorithms.ragged import (
    current_logprobs,
    entropies,
    ragged,
    with_padding,
    with_token_fields,
)

seeds = st.integers(0, 10_000)
TIGHT = {"correction_floor": 0.8, "correction_cap": 1.2}


def episodes(seed: int) -> tuple[Batch, Tensor, Tensor]:
    """Rows with tools between the sampled tokens, NaN and infinities there; current log-probabilities, entropies."""
    batch = ragged(seed)
    batch = replace(batch, old_logprobs=batch.rollout_logprobs + 0.2 * torch.sin(batch.tokens.double()))
    made = with_token_fields(batch, seed)
    # What the learner gives rides along in fields that are filled in later.
    made = replace(
        made, advantages=current_logprobs(batch, seed).detach(), returns=entropies(batch, seed).detach()
    )
    made = with_padding(replace(made, reward_parts=made.reward_parts[:, :2]), seed)
    logprobs, entropy = made.advantages, made.returns
    return replace(made, advantages=None, returns=None, loss_weights=None), logprobs, entropy


def changed_at_tools(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0)


def quiet(batch: Batch) -> Batch:
    """The same batch with other ids, log-probabilities, values and rewards wherever nothing was sampled."""
    found = {
        f.name: changed_at_tools(value, batch.loss_mask)
        for f in fields(batch)
        if isinstance(value := getattr(batch, f.name), Tensor)
        and value.is_floating_point()
        and value.shape == batch.tokens.shape
    }
    tokens = torch.where(batch.loss_mask, batch.tokens, batch.tokens + 1000)
    return replace(batch, **found, tokens=tokens)


def update(chosen: Algorithm, batch: Batch, logprobs: Tensor, entropy: Tensor) -> dict[str, Tensor]:
    """Losses, gradients and metrics of one update of policy and critic."""
    batch = chosen.add_loss_weights(chosen.add_advantages(batch), seed=3)
    live, spread = logprobs.clone().requires_grad_(), entropy.clone().requires_grad_()
    output = chosen.loss(live, spread, batch)
    by_logprob, by_entropy = torch.autograd.grad(output.loss, [live, spread], materialize_grads=True)
    found = {"loss": output.loss.detach(), "by_logprob": by_logprob, "by_entropy": by_entropy}
    sums = dict(output.sums)
    if chosen.value_loss is not None:
        values = (batch.values + 0.7 * logprobs).requires_grad_()
        critic = chosen.value_loss(values, None, batch)
        (by_value,) = torch.autograd.grad(critic.loss, [values], materialize_grads=True)
        found |= {"critic_loss": critic.loss.detach(), "by_value": by_value}
        sums |= critic.sums
    return found | {f"{name}/{i}": part for name, pair in sums.items() for i, part in enumerate(pair)}


def without_tools(batch: Batch) -> Batch:
    """Only what was sampled."""
    kept = {
        f.name: value[batch.loss_mask]
        for f in fields(batch)
        if isinstance(value := getattr(batch, f.name), Tensor) and value.shape == batch.tokens.shape
    }
    return replace(batch, **kept)


CHOSEN = [
    *(pytest.param({"name": name}, id=name) for name in PRESETS),
    *(pytest.param({"correction": name, **TIGHT, "opsm_delta": 0.05}, id=name) for name in CORRECTIONS[2:]),
]


@pytest.mark.parametrize("settings_", CHOSEN)
@settings(max_examples=6)
@given(seed=seeds)
def test_what_tool_tokens_hold_changes_nothing(settings_, seed):
    chosen = algorithm(**settings_)
    batch, logprobs, entropy = episodes(seed)
    tools = ~batch.loss_mask
    assert tools.any()
    assert (batch.versions[tools] == NOT_SAMPLED).all()
    other = quiet(batch), changed_at_tools(logprobs, ~tools), changed_at_tools(entropy, ~tools)
    found, expected = update(chosen, batch, logprobs, entropy), update(chosen, *other)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.isfinite().all(), name
        assert torch.equal(value, expected[name]), name
        if value.shape == tools.shape:
            assert value[tools].count_nonzero() == 0, name


@pytest.mark.parametrize("correction", CORRECTIONS)
@settings(max_examples=8)
@given(seed=seeds, critic=st.booleans())
def test_an_update_is_that_of_the_sampled_tokens_alone(correction, seed, critic):
    """PPO with a critic, or GRPO, on rows with tools, held against the formulas on the sampled tokens by themselves."""
    how = {"gamma": 0.9, "lam": 0.8}
    bounds = TIGHT if correction not in ("none", "token_is") else {}
    chosen = algorithm(
        "ppo" if critic else "grpo",
        **({"advantage_kwargs": how} if critic else {}),
        **{"kl_coef": 0.0, "whiten": False, "correction": correction, "aggregation": "token_mean", **bounds},
    )
    batch, logprobs, entropy = episodes(seed)
    found = update(chosen, batch, logprobs, entropy)
    alone = without_tools(batch)
    live, spread = logprobs[batch.loss_mask].tolist(), entropy[batch.loss_mask].tolist()
    advantages = slow.gae(alone, **how) if critic else slow.grpo(alone)
    graded = (~alone.rewards.isnan())[alone.segment_ids]
    weights = graded.double() / max(int(graded.sum()), 1)
    alone = replace(alone, advantages=torch.tensor(advantages, dtype=torch.float64), loss_weights=weights)
    loss = PolicyLoss(correction=correction, **bounds, **_clips(chosen))

    def formula(at):
        return loss_reference.loss_value(loss, at, spread, alone, live)

    assert found["loss"].item() == pytest.approx(complex(formula(live)).real, abs=1e-9)
    gradient = loss_reference.gradient(formula, live)
    assert found["by_logprob"][batch.loss_mask].tolist() == pytest.approx(gradient, abs=1e-9)
    if critic:
        targets = slow.returns(alone, gamma=how["gamma"], lam=chosen.returns.keywords["lam"])
        values = (alone.values + 0.7 * logprobs[batch.loss_mask]).tolist()
        assert found["critic_loss"].item() == pytest.approx(
            sum(
                w * max((v - r) ** 2, (min(max(v, old - 0.5), old + 0.5) - r) ** 2) / 2
                for w, v, r, old in zip(weights.tolist(), values, targets, alone.values.tolist(), strict=True)
            ),
            abs=1e-9,
        )


def _clips(chosen: Algorithm) -> dict[str, float | None]:
    return {name: getattr(chosen.loss, name) for name in ("clip_low", "clip_high", "dual_clip")}
