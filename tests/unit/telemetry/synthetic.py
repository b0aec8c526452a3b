"""A run folder as a real run leaves it, with a model that learns arithmetic."""

import json
import math
import random
from pathlib import Path

from rlhf.telemetry.metrics import wilson
from rlhf.telemetry.recording import SampleRecorder
from rlhf.telemetry.sinks import JsonlSink
from rlhf.types import Message, Prompt, RewardResult, Segment, Trajectory, TrajectoryGroup, Turn

CONFIG = """\
name: quickstart
seed: 0
model:
  config: {model_type: qwen3, hidden_size: 128, num_hidden_layers: 4}
  tokenizer: characters
  dtype: float32
algorithm: {name: grpo, clip_low: 0.2, clip_high: 0.28}
schedule:
  num_steps: %d
  prompts_per_step: 64
  samples_per_prompt: 8
  max_staleness: 1
learner: {lr: 5.0e-05, num_ranks: 2}
engine: {kind: vllm, num_engines: 1}
placement: {kind: split}
eval: {every: 5, num_prompts: 256}
"""
ENVIRONMENT = {
    "python": "3.12.4",
    "packages": {"torch": "2.13.0+cpu", "vllm": "0.32.0", "ray": "2.60.0", "transformers": "5.19.0"},
    "git": {"commit": "4f3c2a1", "dirty": False},
    "machine": {"cpu": "2 cores", "memory_gb": 8, "gpus": []},
}


def decode(ids):
    return [chr(i) for i in ids]


def make_trajectory(prompt, completion, *, version, reward, rng=None, index=0):
    rng = rng or random.Random(0)
    ids = tuple(map(ord, prompt + completion))
    mask = (False,) * len(prompt) + (True,) * len(completion)
    sampled = tuple(round(-rng.expovariate(6), 6) for _ in completion)
    split = len(completion) // 2
    versions = (-1,) * len(prompt) + (max(version - 1, 0),) * split + (version,) * (len(completion) - split)
    segment = Segment(
        token_ids=ids, loss_mask=mask, rollout_logprobs=(0.0,) * len(prompt) + sampled, versions=versions
    )
    turn = Turn(
        message=Message(role="assistant", content=completion), segment=0, start=len(prompt), stop=len(ids)
    )
    stop = "length" if reward.outcome == "limit" else "stop"
    return Trajectory(
        segments=(segment,), turns=(turn,), stop=stop, sample_index=index, seed=index, reward=reward
    )


def make_group(index, *, version=0, skill=0.5, size=8, rng=None):
    rng = rng or random.Random(index)
    a, b, c = rng.randint(10, 99), rng.randint(2, 99), rng.randint(2, 9)
    question, answer = f"{a} + {b} * {c} = ?", a + b * c
    trajectories = []
    for sample in range(size):
        right = rng.random() < skill
        given = answer if right else answer + rng.choice([-10, 1, 7])
        text = f"<think>{b}*{c}={b * c}; {a}+{b * c}={given}</think>\n<answer>{given}</answer>\n"
        format_ok = rng.random() < 0.5 + skill / 2
        outcome = "ok" if right and format_ok else "wrong"
        if not format_ok:
            text, outcome = text[: rng.randint(9, len(text) - 9)], rng.choice(["unparsable", "limit"])
        value = 1.0 if outcome == "ok" else 0.1 if format_ok else 0.0
        parts = {"math_answer": float(outcome == "ok"), "response_format": float(format_ok)}
        reward = RewardResult(value=value, outcome=outcome, parts=parts, detail={"expected": str(answer)})
        trajectories.append(
            make_trajectory(question + "\n", text, version=version, reward=reward, rng=rng, index=sample)
        )
    prompt = Prompt(
        id=f"chain-{index}", messages=(Message(role="user", content=question),), reference=str(answer)
    )
    return TrajectoryGroup(index=index, prompt=prompt, trajectories=tuple(trajectories))


def advantages_of(groups):
    rows = []
    for group in groups:
        values = [t.reward.value for t in group.trajectories]
        mean = sum(values) / len(values)
        rows.append([value - mean for value in values])
    return rows


def step_metrics(step, num_steps, rng):
    skill = 0.55 + 0.43 * (1 - math.exp(-3 * step / num_steps))
    length = 38 + 4 * math.sin(step / 7) + rng.gauss(0, 0.6)
    busy, update = 1.9 + rng.random() * 0.4, 1.5 + rng.random() * 0.2
    wait = max(0.05, busy - update + rng.gauss(0.2, 0.1))
    return {
        "rollout/reward_mean": skill + rng.gauss(0, 0.015),
        "rollout/reward_std": math.sqrt(skill * (1 - skill)) * 0.6,
        "rollout/accuracy": skill,
        "rollout/completion_tokens_mean": length,
        "rollout/completion_tokens_max": length + 20 + rng.random() * 6,
        "rollout/truncated_share": 0.05 * (1 - skill),
        "rollout/tokens_per_s": 512 * length / (wait + update + 0.25),
        "rollout/num_tokens": 512 * length,
        "rollout/num_trajectories": 512,
        "rollout/zero_variance_share": 0.2 + 0.6 * skill * rng.random(),
        "reward/math_answer/mean": skill - 0.02,
        "reward/response_format/mean": min(1.0, skill + 0.2),
        "update/loss": rng.gauss(0, 0.01),
        "update/grad_norm": 0.3 + rng.expovariate(8),
        "update/lr": 5e-5 * min(1, step / 5),
        "update/entropy": 0.31 * math.exp(-step / num_steps) + rng.gauss(0, 0.004),
        "update/clip_share": 0.01 * rng.random(),
        "update/kl_old": 0.0008 * rng.random(),
        "mismatch/logprob_gap_max": 3e-6 * math.exp(rng.gauss(0, 0.5))
        if step < 2
        else 0.2 * rng.random() + 0.05,
        "mismatch/logprob_gap_mean": 4e-7 * math.exp(rng.gauss(0, 0.3)) if step < 2 else 0.004,
        "mismatch/kl": 0.0004 * rng.random(),
        "mismatch/ess": 0.97 + 0.02 * rng.random(),
        "buffer/staleness_max": float(min(1, step - 1)),
        "buffer/staleness_mean": 0.6 * min(1, step - 1),
        "sync/seconds": 0.09,
        "sync/probe_gap": 8e-7 * math.exp(rng.gauss(0, 0.4)),
        "time/step_s": wait + update + 0.25,
        "time/rollout_wait_s": wait,
        "time/rollout_busy_s": busy,
        "time/pack_s": 0.03,
        "time/logprobs_s": 0.1,
        "time/update_s": update,
        "time/sync_s": 0.09,
        "time/overlap_share": 0.6,
    }


def eval_metrics(correct, n=256):
    low, high = wilson(correct, n)
    return {
        "eval/accuracy": correct / n,
        "eval/accuracy_low": low,
        "eval/accuracy_high": high,
        "eval/reward_mean": correct / n,
        "eval/completion_tokens_mean": 39.0,
        "eval/num_prompts": n,
    }


def write_run(run_dir: Path, *, num_steps=40, done=None, samples_per_step=16, evaluate=True) -> Path:
    """A run folder of `done` of `num_steps` steps."""
    done = num_steps if done is None else done
    rng = random.Random(1)
    sink = JsonlSink(run_dir)
    recorder = SampleRecorder(run_dir, decode=decode, samples_per_step=samples_per_step)
    if evaluate:
        sink.log(0, eval_metrics(197))
    for step in range(1, done + 1):
        metrics = step_metrics(step, num_steps, rng)
        if evaluate and step % 5 == 0:
            metrics |= eval_metrics(int(256 * (0.77 + 0.22 * (1 - math.exp(-4 * step / num_steps)))))
            metrics["time/eval_s"] = 0.8
        sink.log(step, metrics)
        groups = [
            make_group(step * 64 + i, version=step - 1, skill=metrics["rollout/accuracy"], rng=rng)
            for i in range(4)
        ]
        recorder.record(step, groups, advantages_of(groups))
    sink.close()
    (run_dir / "config.yaml").write_text(CONFIG % num_steps)
    (run_dir / "environment.json").write_text(json.dumps(ENVIRONMENT))
    return run_dir
