"""Every metric, declared once: meaning, unit, and how several observations of a step become one."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args

from rlhf.telemetry.alignment_metrics import ALIGNMENT
from rlhf.types import Outcome

Reduction = Literal["mean", "sum", "max", "last"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A declared metric. A `*` in the name stands for one free part of the path (`reward/*/mean`)."""

    name: str
    reduction: Reduction
    unit: str
    meaning: str


_DECLARED = (
    *(Metric(*entry) for entry in ALIGNMENT),
    Metric("rollout/reward_mean", "mean", "", "Mean reward of the gradable trajectories trained on."),
    Metric("rollout/reward_std", "mean", "", "Standard deviation of those rewards."),
    Metric(
        "rollout/accuracy",
        "mean",
        "share",
        "Share of training trajectories whose first reward is above 0.5.",
    ),
    Metric("rollout/completion_tokens_mean", "mean", "tokens", "Mean sampled tokens of a trajectory."),
    Metric("rollout/completion_tokens_max", "max", "tokens", "Sampled tokens of the longest trajectory."),
    Metric("rollout/truncated_share", "mean", "share", "Share of trajectories stopped by the token limit."),
    Metric("rollout/tokens_per_s", "mean", "tokens/s", "Sampled tokens per second of wall time."),
    Metric("rollout/num_tokens", "sum", "tokens", "Sampled tokens trained on."),
    Metric("rollout/num_trajectories", "sum", "trajectories", "Trajectories trained on."),
    Metric(
        "rollout/kept_overflow_share",
        "mean",
        "share",
        "Share of sampled tokens left out of the loss: their kept set exceeded sampling.kept_limit.",
    ),
    Metric(
        "rollout/cached_share",
        "mean",
        "share",
        "Share of the engine's input tokens that were in its prefix cache.",
    ),
    Metric("rollout/groups", "sum", "groups", "Groups trained on."),
    Metric("rollout/temperature", "mean", "", "Mean sampling temperature of the trajectories trained on."),
    Metric(
        "rollout/zero_variance_share",
        "mean",
        "share",
        "Share of groups whose rewards are all equal.",
    ),
    Metric(
        "rollout/ungradable_share",
        "mean",
        "share",
        "Share of trajectories whose reward could not be computed.",
    ),
    Metric("rollout/discarded", "sum", "groups", "Groups rolled out and thrown away since the step before."),
    Metric(
        "rollout/discarded_share", "mean", "share", "Share of them among those and the groups trained on."
    ),
    Metric("rollout/discarded/*", "sum", "groups", "Groups thrown away for this reason."),
    Metric("curriculum/pass_rate", "mean", "share", "Mean measured pass rate of the prompts seen so far."),
    Metric("curriculum/outside_share", "mean", "share", "Share of them outside task.curriculum's band."),
    Metric("curriculum/skipped", "sum", "prompts", "Prompts passed over since the step before."),
    Metric("scenario/*/share", "mean", "share", "Share of this scenario in the groups trained on."),
    Metric("scenario/*/reward_mean", "mean", "", "Mean reward of its gradable trajectories."),
    Metric(
        "scenario/*/accuracy",
        "mean",
        "share",
        "Share of its trajectories whose first reward is above 0.5.",
    ),
    Metric("scenario/*/completion_tokens_mean", "mean", "tokens", "Mean sampled tokens of its trajectories."),
    Metric("scenario/*/num_tokens", "sum", "tokens", "Its sampled tokens trained on."),
    Metric("scenario/*/truncated_share", "mean", "share", "Share of its trajectories stopped by a limit."),
    Metric("scenario/*/zero_variance_share", "mean", "share", "Share of its groups of equal rewards."),
    Metric("scenario/*/discarded", "sum", "groups", "Its groups thrown away since the step before."),
    Metric("scenario/*/skipped", "sum", "prompts", "Its prompts that the curriculum passed over since then."),
    Metric("scenario/*/pass_rate", "mean", "share", "Mean measured pass rate of its prompts seen so far."),
    Metric("scenario/*/outside_share", "mean", "share", "Share of them outside task.curriculum's band."),
    Metric("rollout/outcome/*", "mean", "share", "Share of trajectories with this verdict."),
    Metric("reward/shaped_mean", "mean", "", "Mean reward after shaping, which advantages are made of."),
    Metric(
        "reward/ungradable_share",
        "last",
        "share",
        "Share of all samples graded so far that have no total; discarded and held-out ones count.",
    ),
    Metric("reward/*/mean", "mean", "", "Mean of this part of the reward."),
    Metric("reward/*/*/mean", "mean", "", "Mean of a number that this reward gave beside its value."),
    Metric("reward/*/std", "mean", "", "Standard deviation of this part of the reward."),
    Metric("reward/*/seconds_p50", "mean", "s", "Median time this reward took for one trajectory."),
    Metric("reward/*/seconds_p99", "max", "s", "99th percentile of that time."),
    Metric("reward/*/queue_s", "mean", "s", "Mean wait for a free reward worker."),
    Metric(
        "reward/*/kills", "sum", "", "Workers that ended in a call of this reward, killed or by themselves."
    ),
    Metric("reward/*/retries", "sum", "", "Calls of this reward that were tried again."),
    Metric(
        "reward/*/leaks", "sum", "", "Workers replaced because this reward left memory, processes or files."
    ),
    *(
        Metric(f"reward/*/{outcome}", "mean", "share", f"Share of its verdicts that are {outcome!r}.")
        for outcome in get_args(Outcome)
    ),
    Metric("update/loss", "mean", "", "The minimised loss; its level means little for policy gradients."),
    Metric("update/grad_norm", "mean", "", "Gradient norm before clipping."),
    Metric("update/lr", "last", "", "Learning rate of the step."),
    Metric("update/entropy", "mean", "nats", "Mean entropy of the policy over trained tokens."),
    Metric("update/clip_share", "mean", "share", "Share of tokens whose ratio was clipped."),
    Metric("update/ratio_max", "max", "", "Largest probability ratio new/old over trained tokens."),
    Metric("update/ratio_mean", "mean", "", "Mean probability ratio new/old over trained tokens."),
    Metric("update/kl", "mean", "nats", "KL divergence to the frozen reference."),
    Metric("update/teacher_kl", "mean", "nats", "Student's log-probability minus its teacher's, per token."),
    Metric("update/teacher_kl/*", "mean", "nats", "The same over the rows of one teacher."),
    Metric("update/kl_coef", "last", "", "Weight of that KL, where it is steered."),
    Metric("update/kl_old", "mean", "nats", "KL divergence to the policy before this step's updates."),
    Metric("update/advantages_std", "mean", "", "Standard deviation of the advantages."),
    Metric("update/masked_share", "mean", "share", "Share of sampled tokens left out of the loss."),
    Metric(
        "update/positive_nll", "mean", "nats", "Mean negative log-likelihood of positively rewarded rows."
    ),
    Metric("update/selected_share", "mean", "share", "Share of tokens chosen by their covariance."),
    Metric("update/num_tokens", "sum", "tokens", "Tokens the learner processed, prompts included."),
    Metric("critic/grad_norm", "mean", "", "Gradient norm of the critic before clipping."),
    Metric("critic/lr", "last", "", "Learning rate of the critic."),
    Metric(
        "mismatch/logprob_gap_max",
        "max",
        "nats",
        "Largest |learner - engine| log-probability gap of a token.",
    ),
    Metric(
        "mismatch/logprob_gap_mean",
        "mean",
        "nats",
        "Mean |learner - engine| log-probability gap of tokens.",
    ),
    Metric("mismatch/kl", "mean", "nats", "KL(engine || learner), k3 estimator over sampled tokens."),
    Metric("mismatch/kl_k1", "mean", "nats", "The same divergence by the k1 estimator; can be negative."),
    Metric("mismatch/chi_square", "mean", "", "Chi-square divergence E[w^2] - 1 of the importance weights."),
    Metric("mismatch/ess", "mean", "share", "Effective sample size of the importance weights, as a share."),
    Metric("mismatch/weight_mean", "mean", "", "Mean importance weight learner/engine, before any cap."),
    Metric("mismatch/weight_square_mean", "mean", "", "Mean of its square; becomes `mismatch/ess`."),
    Metric("mismatch/capped_share", "mean", "share", "Share of tokens whose importance weight was capped."),
    Metric("mismatch/masked_share", "mean", "share", "Share of tokens that an off-policy mask dropped."),
    Metric("mismatch/masked_share/*", "mean", "share", "Share of tokens that this mask dropped."),
    Metric("critic/loss", "mean", "", "The minimised value loss of the critic."),
    Metric("critic/clip_share", "mean", "share", "Share of tokens whose value was clipped."),
    Metric("critic/value_mean", "mean", "", "Mean value of trained tokens."),
    Metric("critic/return_mean", "mean", "", "Mean return of trained tokens."),
    Metric(
        "critic/return_square_mean", "mean", "", "Mean squared return; part of `critic/explained_variance`."
    ),
    Metric("critic/error_mean", "mean", "", "Mean of return - value."),
    Metric(
        "critic/error_square_mean", "mean", "", "Mean of its square; part of `critic/explained_variance`."
    ),
    Metric("critic/explained_variance", "mean", "share", "1 - Var(return - value) / Var(return)."),
    Metric("buffer/staleness_max", "max", "versions", "Age of the oldest token trained on."),
    Metric("buffer/staleness_mean", "mean", "versions", "Mean age of the tokens trained on."),
    Metric("buffer/head_wait_s", "sum", "s", "Wait for the oldest group while younger ones were finished."),
    Metric("buffer/in_flight", "last", "groups", "Groups being rolled out when the step took its own."),
    Metric("sync/seconds", "sum", "s", "Weight transfer to every engine, verification included."),
    Metric("sync/probe_gap", "max", "nats", "Log-probability gap of the probe that verified this sync."),
    Metric("sync/probe_s", "sum", "s", "Time of that probe."),
    Metric("sync/bytes", "sum", "bytes", "Weight bytes sent."),
    Metric("time/step_s", "sum", "s", "One loop step, evaluation and checkpoint left out."),
    Metric("time/rollout_wait_s", "sum", "s", "The loop waited for trajectories."),
    Metric("time/rollout_busy_s", "sum", "s", "Engines were generating (also while the learner worked)."),
    Metric("time/pack_s", "sum", "s", "Packing trajectories into tensors."),
    Metric("time/logprobs_s", "sum", "s", "Old and reference log-probabilities."),
    Metric("time/update_s", "sum", "s", "Forward, backward and optimizer."),
    Metric("time/sync_s", "sum", "s", "Publishing weights."),
    Metric("time/eval_s", "sum", "s", "Evaluation on held-out prompts."),
    Metric("time/checkpoint_s", "sum", "s", "Writing a checkpoint."),
    Metric("time/overlap_share", "mean", "share", "Share of the step in which engine and learner both ran."),
    Metric("env/turns_mean", "mean", "turns", "Mean turns of the model in an episode."),
    Metric("env/turns_max", "max", "turns", "Turns of the longest episode."),
    Metric("env/tool_calls_mean", "mean", "calls", "Mean tool calls of an episode."),
    Metric("env/tool_errors_share", "mean", "share", "Share of calls that were answered by an error."),
    Metric(
        "env/segments_mean",
        "mean",
        "rows",
        "Mean training rows of an episode; rewritten contexts add some.",
    ),
    Metric(
        "env/retried_share", "mean", "share", "Share of episodes that followed one which ended in an error."
    ),
    Metric(
        "env/dropped_tokens", "sum", "tokens", "Sampled tokens that are not trained on, for a listed reason."
    ),
    Metric("env/answer_s", "mean", "s", "Mean time the environment or a tool took to answer."),
    Metric(
        "env/cached_share",
        "mean",
        "share",
        "Share of cached tokens in the contexts of all turns but an episode's first.",
    ),
    Metric("env/stop/*", "mean", "share", "Share of episodes that ended so."),
    Metric("env/log/*", "mean", "", "Mean of a number that the environment logged."),
    Metric("eval/accuracy", "mean", "share", "Share of held-out completions that are right."),
    Metric("eval/accuracy_low", "mean", "share", "Lower end of its Wilson 95 % interval."),
    Metric("eval/accuracy_high", "mean", "share", "Upper end of its Wilson 95 % interval."),
    Metric("eval/reward_mean", "mean", "", "Mean held-out reward."),
    Metric("eval/completion_tokens_mean", "mean", "tokens", "Mean length of held-out completions."),
    Metric("eval/truncated_share", "mean", "share", "Share of held-out completions cut by the token limit."),
    Metric("eval/pass_at_k", "mean", "share", "Chance that one of k samples of a held-out prompt is right."),
    Metric(
        "eval/ungradable", "sum", "completions", "Held-out completions whose reward could not be computed."
    ),
    Metric("eval/num_prompts", "sum", "prompts", "Held-out prompts evaluated."),
    Metric("eval/turns_mean", "mean", "turns", "Mean turns of the model in a held-out episode."),
    Metric(
        "eval/*/accuracy", "mean", "share", "Share of right ones among this scenario's held-out completions."
    ),
    Metric("eval/*/accuracy_low", "mean", "share", "Lower end of its Wilson 95 % interval."),
    Metric("eval/*/accuracy_high", "mean", "share", "Upper end of its Wilson 95 % interval."),
    Metric("eval/*/reward_mean", "mean", "", "Mean reward of this scenario's held-out completions."),
    Metric("eval/*/num_prompts", "sum", "prompts", "Held-out prompts of this scenario."),
    Metric("eval/log/*", "mean", "", "Mean of a number that the environment logged, held-out."),
    Metric("reject/num_prompts", "last", "prompts", "Prompts that samples were collected of."),
    Metric("reject/num_samples", "last", "samples", "Samples that were collected."),
    Metric("reject/pass_rate", "last", "share", "Mean pass rate of the prompts that could be graded."),
    Metric("reject/solved_share", "last", "share", "Share of prompts with a right sample."),
    Metric("reject/kept", "last", "samples", "Samples that were kept: rows."),
    Metric("reject/kept_share", "last", "share", "Share of all samples that were kept."),
    Metric("reject/kept_prompts", "last", "prompts", "Prompts with a kept sample."),
    Metric("reject/kept_tokens", "last", "tokens", "Sampled tokens of the kept samples."),
    Metric("reject/pairs", "last", "pairs", "Pairs of a right and a wrong sample."),
    Metric("reject/contaminated", "last", "prompts", "Prompts that say what a test set says."),
    Metric(
        "reject/dropped/*", "last", "samples", "Samples that were not kept, by the first rule they broke."
    ),
    Metric("reject/dropped/filter/*", "last", "samples", "Samples that this filter left out."),
    Metric("merge/tensors", "last", "tensors", "Tensors of the merged model."),
    Metric("merge/tensors_changed", "last", "tensors", "Those that are not simply the first model's."),
    Metric("trainer/rows", "last", "rows", "Rows (or pairs) that a pass takes, repeats included."),
    Metric("trainer/dropped_rows", "last", "rows", "Rows left out because they are longer than max_length."),
    Metric("trainer/num_steps", "last", "steps", "Optimizer steps of the stage."),
    Metric("trainer/loss_at_start", "last", "", "Loss of the first step, before any update; DPO: log 2."),
    Metric("trainer/loss_at_end", "last", "", "Loss that was logged last."),
    Metric("trainer/seconds", "last", "s", "Time of the optimizer steps."),
    Metric("preference/num_heldout", "last", "pairs", "Held-out pairs that accuracy is measured on."),
    Metric(
        "preference/accuracy_before",
        "last",
        "share",
        "Held-out pairs ranked right by the model before training.",
    ),
    Metric("preference/accuracy_after", "last", "share", "The same after training."),
    Metric(
        "preference/accuracy_reward", "last", "share", "The same by DPO's implicit reward, after training."
    ),
    Metric(
        "preference/accuracy_chosen_shorter", "last", "share", "After, where the chosen is the shorter one."
    ),
    Metric(
        "preference/accuracy_chosen_longer", "last", "share", "After, where the chosen is the longer one."
    ),
    *(
        Metric(
            f"preference/accuracy_{name}_{end}",
            "last",
            "share",
            f"The {side} end of its Wilson 95 % interval.",
        )
        for name in ("before", "after", "reward", "chosen_shorter", "chosen_longer")
        for end, side in (("low", "lower"), ("high", "upper"))
    ),
    Metric(
        "preference/accuracy_balanced", "last", "share", "Mean of those two: accuracy with length balanced."
    ),
    Metric(
        "preference/num_chosen_shorter", "last", "pairs", "Held-out pairs whose chosen is the shorter one."
    ),
    Metric("preference/num_chosen_longer", "last", "pairs", "Held-out pairs whose chosen is the longer one."),
    Metric("length/chosen_longer_share", "last", "share", "Training pairs whose chosen is the longer one."),
    Metric("length/chosen_longer_share_low", "last", "share", "The lower end of its Wilson 95 % interval."),
    Metric("length/chosen_longer_share_high", "last", "share", "The upper end of its Wilson 95 % interval."),
    Metric("length/longer_wins", "last", "share", "Accuracy of `the longer one is better`; ties count half."),
    Metric("length/longer_wins_low", "last", "share", "The lower end of its Wilson 95 % interval."),
    Metric("length/longer_wins_high", "last", "share", "The upper end of its Wilson 95 % interval."),
    Metric("length/label_correlation", "last", "", "Correlation of the length difference with the label."),
    Metric(
        "length/score_correlation",
        "last",
        "",
        "Correlation of the held-out length difference with the score's.",
    ),
    Metric("length/is_biased", "last", "", "1 where the training pairs are length-biased."),
    Metric("memory/*", "max", "bytes", "Peak memory of this part."),
)

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _DECLARED}
_FAMILIES = tuple(
    (re.compile(re.escape(m.name).replace(r"\*", "[^/]+")), m) for m in _DECLARED if "*" in m.name
)


def find(name: str) -> Metric | None:
    """The declaration of `name`, None if there is none."""
    exact = METRICS.get(name)
    return exact or next((metric for pattern, metric in _FAMILIES if pattern.fullmatch(name)), None)


def declared(name: str) -> Metric:
    """The declaration of `name`. Raises AssertionError naming the nearest: undeclared is our bug."""
    metric = find(name)
    if metric is None:
        near = get_close_matches(name, METRICS, n=1, cutoff=0.0)[0]
        raise AssertionError(
            f"metric {name!r} is not declared; the nearest is {near!r}. Declare it in telemetry/metrics.py."
        )
    return metric


def reduce_metrics(observations: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """One value per name out of several observations of a step, each by its declared reduction."""
    collected: dict[str, list[float]] = {}
    for observation in observations:
        for name, value in observation.items():
            collected.setdefault(name, []).append(value)
    return {name: _reduce(values, declared(name).reduction) for name, values in collected.items()}


def wilson(correct: float, n: int) -> tuple[float, float]:
    """The Wilson 95 % interval of a share. `n == 0` says nothing: (0, 1).

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if n == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    share = correct / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def _reduce(values: list[float], reduction: Reduction) -> float:
    match reduction:
        case "mean":
            return math.fsum(values) / len(values)
        case "sum":
            return math.fsum(values)
        case "max":
            return max(values)
        case "last":
            return values[-1]
