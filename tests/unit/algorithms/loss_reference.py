"""Slow losses from the formulas: Python loops over numbers, no tensors, no autograd.

Gradients are complex-step derivatives, exact to rounding: live is a complex number, detached a
float. Comparisons look at real parts.
"""

import cmath
import math
from collections.abc import Callable, Sequence

from rlhf.algorithms.losses import PolicyLoss
from rlhf.batch import Batch

STEP = 1e-30
Number = complex
BOUNDS = {
    "token_tis": (-math.inf, 2.0),
    "token_mis": (-math.inf, 2.0),
    "icepop": (0.5, 5.0),
    "sequence_tis": (-math.inf, 5.0),
    "sequence_mis": (-math.inf, 3.0),
    "geometric_mask": (0.99, 1.01),
    "geometric_mask_tis": (0.999, 1.002),
}


def gradient(f: Callable[[list[Number]], Number], at: Sequence[float]) -> list[float]:
    result = []
    for place in range(len(at)):
        moved: list[Number] = [complex(x) for x in at]
        moved[place] += 1j * STEP
        result.append(f(moved).imag / STEP)
    return result


def loss_value(
    loss: PolicyLoss,
    live: Sequence[Number],
    entropy: Sequence[Number],
    batch: Batch,
    detached: Sequence[float],
) -> Number:
    """The loss of a whole batch; `live` and `detached` are the current log-probabilities."""
    rollouts = batch.rollout_logprobs.tolist()
    rewards = (batch.rewards if batch.task_rewards is None else batch.task_rewards).tolist()
    learner = list(detached) if batch.old_logprobs is None else batch.old_logprobs.tolist()
    olds = rollouts if loss.old_from == "rollout" else learner
    weights, rows = batch.loss_weights.tolist(), batch.segment_ids.tolist()
    trained = [t for t, m in enumerate(batch.loss_mask.tolist()) if m and weights[t] != 0]
    positive = [t for t in trained if rewards[rows[t]] > 0]
    total: Number = 0
    for t in trained:
        peers = [u for u in trained if rows[u] == rows[t]]
        advantage = batch.advantages[t].item()
        if not dropped(loss, t, peers, olds, rollouts, detached, advantage):
            term = policy_term(loss, t, peers, live, olds, detached, advantage, batch)
            total += weights[t] * correction(loss, t, peers, olds, rollouts) * term
        if loss.kl_coef:
            sampler = rollouts if loss.kl_ratio_from == "rollout" else learner
            x, ratio = live[t] - batch.ref_logprobs[t].item(), cmath.exp(bounded(loss, live[t] - sampler[t]))
            frozen = detached[t] - batch.ref_logprobs[t].item()
            total += weights[t] * loss.kl_coef * kl(x, frozen, ratio, loss.kl_estimator)
        total -= weights[t] * loss.entropy_coef * entropy[t]
    if positive:
        total += loss.positive_nll_coef * sum(-live[t] for t in positive) / len(positive)
    return total


def bounded(loss: PolicyLoss, log_ratio: Number) -> Number:
    limit, size = loss.log_ratio_limit, complex(log_ratio).real
    if limit is None or -limit <= size <= limit:
        return log_ratio
    return limit if size > 0 else -limit


def kl(x: Number, frozen: float, ratio: Number, estimator: str) -> Number:
    k3 = cmath.exp(-x) - 1 + x
    return {
        "k1": x,
        "k2": x * x / 2,
        "k3": k3,
        "k3_st": math.exp(-frozen) - 1 + frozen + x * x / 2 - frozen * frozen / 2,
        "k3_unbiased": ratio * k3,
    }[estimator]


def correction(loss: PolicyLoss, t: int, peers: list[int], olds: list[float], rollouts: list[float]) -> float:
    low, high = BOUNDS.get(loss.correction, (-math.inf, math.inf))
    low = low if loss.correction_floor is None else loss.correction_floor
    high = high if loss.correction_cap is None else loss.correction_cap
    gaps = [olds[u] - rollouts[u] for u in peers]
    token = math.exp(bounded(loss, olds[t] - rollouts[t]))
    product = math.exp(bounded(loss, sum(gaps)))
    geometric = math.exp(bounded(loss, sum(gaps) / len(gaps)))
    return {
        "none": 1.0,
        "token_is": token,
        "token_tis": min(max(token, low), high),
        "token_mis": token if low <= token <= high else 0.0,
        "icepop": token if low <= token <= high else 0.0,
        "sequence_tis": min(max(product, low), high),
        "sequence_mis": product if low <= product <= high else 0.0,
        "geometric_mask": 1.0 if low <= geometric <= high else 0.0,
        "geometric_mask_tis": token if low <= geometric <= high else 0.0,
    }[loss.correction]


def dropped(
    loss: PolicyLoss,
    t: int,
    peers: list[int],
    olds: list[float],
    rollouts: list[float],
    detached: Sequence[float],
    advantage: float,
) -> bool:
    if loss.opsm_delta is None or advantage >= 0:
        return False
    return sum(rollouts[u] - detached[u] for u in peers) / len(peers) > loss.opsm_delta


def policy_term(
    loss: PolicyLoss,
    t: int,
    peers: list[int],
    live: Sequence[Number],
    olds: list[float],
    detached: Sequence[float],
    advantage: float,
    batch: Batch,
) -> Number:
    given = {"clip_low": loss.clip_low, "clip_high": loss.clip_high, "dual_clip": loss.dual_clip}
    given = {k: v for k, v in given.items() if v is not None} | dict(loss.policy_kwargs)
    log_ratio = bounded(loss, live[t] - olds[t])
    ratio, frozen = cmath.exp(log_ratio), math.exp(bounded(loss, detached[t] - olds[t]))
    match loss.policy:
        case "ppo":
            return clipped(ratio, advantage, {"clip_low": 0.2, "clip_high": 0.2} | given)
        case "clip_cov":
            number = frozen if batch.selected[t] else ratio
            return clipped(number, advantage, {"clip_low": 0.2, "clip_high": 0.2} | given)
        case "gspo" | "gspo_token":
            number = sequence_ratio(loss, t, peers, live, olds, detached)
            return clipped(number, advantage, {"clip_low": 3e-4, "clip_high": 4e-4} | given)
        case "reinforce":
            return -advantage * live[t]
        case "cispo":
            weight = min(frozen, 1 + given.get("clip_high", 4.0))
            if "clip_low" in given:
                weight = max(weight, 1 - given["clip_low"])
            return -weight * advantage * live[t]
        case "sapo":
            tau = given.get("tau_positive", 1.0) if advantage > 0 else given.get("tau_negative", 1.05)
            return -(4 / tau) / (1 + cmath.exp(-tau * (ratio - 1))) * advantage
        case "dppo":
            moved = math.exp(detached[t]) - math.exp(olds[t])
            return dppo(log_ratio, moved, advantage, given)
        case "kl_cov":
            size = log_ratio * ((complex(log_ratio).real > 0) - (complex(log_ratio).real < 0))
            return -ratio * advantage + (given.get("coef", 1.0) * size if batch.selected[t] else 0)
    raise AssertionError(loss.policy)


def sequence_ratio(
    loss: PolicyLoss,
    t: int,
    peers: list[int],
    live: Sequence[Number],
    olds: list[float],
    detached: Sequence[float],
) -> Number:
    if loss.policy == "gspo":
        return cmath.exp(bounded(loss, sum(live[u] - olds[u] for u in peers) / len(peers)))
    mean = sum(detached[u] - olds[u] for u in peers) / len(peers)
    return cmath.exp(bounded(loss, mean + live[t] - detached[t]))


def dppo(log_ratio: Number, moved: float, advantage: float, given: dict[str, float]) -> Number:
    limit = given.get("delta_high", 0.2) if advantage > 0 else given.get("delta_low", 0.2)
    gone = moved > limit if advantage > 0 else moved < -limit
    pull = given.get("k", 1e-3) * log_ratio**2
    return pull if gone else pull - cmath.exp(log_ratio) * advantage


def clipped(ratio: Number, advantage: float, settings: dict[str, float]) -> Number:
    low, high = 1 - settings["clip_low"], 1 + settings["clip_high"]
    bounded = low if ratio.real < low else high if ratio.real > high else ratio
    worse = max(-ratio * advantage, -bounded * advantage, key=lambda value: complex(value).real)
    dual = settings.get("dual_clip")
    if dual is not None and advantage < 0:
        return min(worse, -dual * advantage, key=lambda value: complex(value).real)
    return worse


def selected_by_covariance(batch: Batch, *, fraction: float) -> list[int]:
    """The tokens of KL-Cov: largest covariance first, earlier place first among equals."""
    logprobs = (batch.rollout_logprobs if batch.old_logprobs is None else batch.old_logprobs).tolist()
    covariance = covariances(batch, logprobs)
    order = sorted(covariance, key=lambda t: (-covariance[t], t))
    return order[: max(int(fraction * len(order)), 1)]


def covariances(batch: Batch, logprobs: Sequence[float]) -> dict[int, float]:
    advantages, weights = batch.advantages.tolist(), batch.loss_weights.tolist()
    trained = [t for t, m in enumerate(batch.loss_mask.tolist()) if m and weights[t] != 0]
    if not trained:
        return {}
    mean_a = math.fsum(advantages[t] for t in trained) / len(trained)
    mean_l = math.fsum(logprobs[t] for t in trained) / len(trained)
    return {t: (advantages[t] - mean_a) * (logprobs[t] - mean_l) for t in trained}


def value_loss(clip: float | None, live: Sequence[Number], batch: Batch) -> Number:
    total: Number = 0
    for t, mask in enumerate(batch.loss_mask.tolist()):
        if not mask or batch.loss_weights[t] == 0:
            continue
        target, old = batch.returns[t].item(), batch.values[t].item()
        error = (live[t] - target) ** 2
        if clip is not None:
            value: Number = live[t]
            if value.real > old + clip:
                value = old + clip
            elif value.real < old - clip:
                value = old - clip
            error = max(error, (value - target) ** 2, key=lambda number: complex(number).real)
        total += batch.loss_weights[t].item() * 0.5 * error
    return total
