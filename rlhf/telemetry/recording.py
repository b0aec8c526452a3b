"""Trajectories on disk: a few per step for people to read, whole groups for `rlhf replay`."""

import gzip
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.errors import DataError
from rlhf.image_codes import DrawnImages, ImageCodes
from rlhf.types import (
    Dropped,
    Prompt,
    RewardResult,
    Segment,
    Trajectory,
    TrajectoryGroup,
    Turn,
    message_of,
)

Decode = Callable[[Sequence[int]], list[str]]
"""Token ids -> the text piece of each."""


class SampleRecorder:
    """Writes `samples/step-000012.jsonl`: the best, the worst and some random trajectories of a step.

    The choice depends on `seed` and the step only. Files at or after `first_step` (of a crashed process) go.
    """

    def __init__(
        self, run_dir: Path, *, decode: Decode, samples_per_step: int, seed: int = 0, first_step: int = 0
    ) -> None:
        self._folder = run_dir / "samples"
        self._decode = decode
        self._samples_per_step = samples_per_step
        self._seed = seed
        for path in sample_files(run_dir):
            if _step_of(path) >= first_step:
                path.unlink()

    def record(
        self, step: int, groups: Sequence[TrajectoryGroup], advantages: Sequence[Sequence[float]]
    ) -> str | None:
        """Write the chosen trajectories; returns one of them in a line for the live view, None without any.

        `advantages[g][i]` belongs to `groups[g].trajectories[i]`.
        """
        flat = [
            (group, trajectory, advantage)
            for group, row in zip(groups, advantages, strict=True)
            for trajectory, advantage in zip(group.trajectories, row, strict=True)
        ]
        rng = random.Random(f"{self._seed}/{step}")
        picks = _choose([t.reward for _, t, _ in flat], self._samples_per_step, rng)
        if not picks:
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"step-{step:06d}.jsonl").open("w", encoding="utf-8") as file:
            for index, pick in picks:
                group, trajectory, advantage = flat[index]
                entry = {"step": step, "pick": pick, **self._entry(group, trajectory, advantage)}
                file.write(json.dumps(entry, allow_nan=False) + "\n")
        group, trajectory, _ = flat[rng.choice(picks)[0]]
        return sample_line(group.prompt, trajectory)

    def _entry(self, group: TrajectoryGroup, trajectory: Trajectory, advantage: float) -> dict[str, Any]:
        reward = trajectory.reward or RewardResult(value=None, outcome="not_applicable")
        return {
            "group": group.index,
            "prompt_id": group.prompt.id,
            "prompt": prompt_text(group.prompt),
            "reference": group.prompt.reference,
            "completion": trajectory.completion,
            "sample_index": trajectory.sample_index,
            "stop": trajectory.stop,
            "reward": _finite(reward.value),
            "outcome": reward.outcome,
            "parts": {name: _finite(value) for name, value in reward.parts.items()},
            "detail": {name: str(value) for name, value in reward.detail.items()},
            "advantage": _finite(advantage),
            "turns": [_readable(turn) for turn in trajectory.turns] if trajectory.is_episode else [],
            "segments": [self._segment(segment) for segment in trajectory.segments],
        }

    def _segment(self, segment: Segment) -> dict[str, Any]:
        return {
            "token_ids": segment.token_ids,
            "pieces": self._decode(segment.token_ids),
            "loss_mask": [int(m) for m in segment.loss_mask],
            "rollout_logprobs": [_finite(round(value, 5)) for value in segment.rollout_logprobs],
            "versions": segment.versions,
        }


def _readable(turn: Turn) -> dict[str, Any]:
    """A turn of an episode for people."""
    message = turn.message
    return {
        "role": message.role if message.name is None else f"{message.role} {message.name}",
        "thinking": message.reasoning or "",
        "text": message.content,
        "calls": [call.raw or f"{call.name}({json.dumps(call.arguments)})" for call in message.tool_calls],
        "is_error": message.is_error,
        "reward": _finite(turn.reward),
    }


def prompt_text(prompt: Prompt) -> str:
    """The prompt as a person reads it: the text alone if it is one user message, else with roles."""
    if len(prompt.messages) == 1:
        return prompt.messages[0].content
    return "\n\n".join(f"[{message.role}] {message.content}" for message in prompt.messages)


def sample_line(prompt: Prompt, trajectory: Trajectory, *, width: int = 160) -> str:
    """Prompt, completion and reward in one line, each cut to its share of `width`."""
    value = trajectory.reward.value if trajectory.reward else None
    reward = "not gradable" if value is None else f"{value:.2f}"
    asked = _short(prompt.messages[-1].content, width // 3)
    return f"{asked} → {_short(trajectory.completion, width - width // 3)}  ({reward})"


def sample_files(run_dir: Path) -> list[Path]:
    """The sample files of a run, oldest step first."""
    return sorted((run_dir / "samples").glob("step-*.jsonl"), key=_step_of)


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The entries of one sample file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def save_groups(path: Path, groups: Sequence[TrajectoryGroup]) -> None:
    """Write whole groups (gzipped JSON lines); `load_groups` gives equal ones back.

    Raises DataError for a prompt whose columns JSON cannot hold exactly.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for group in groups:
            _check_columns(group.prompt)
            file.write(json.dumps(asdict(group), default=np.ndarray.tolist) + "\n")


def load_groups(path: Path) -> list[TrajectoryGroup]:
    """Read what `save_groups` wrote, floats bit for bit."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [_group(json.loads(line)) for line in file]


def _choose(rewards: Sequence[RewardResult | None], count: int, rng: random.Random) -> list[tuple[int, str]]:
    """(index, why) of at most `count` trajectories: a third best, a third worst, the rest random."""
    order = list(range(len(rewards)))
    rng.shuffle(order)  # ties (all rewards 0 or 1) must not favour the first groups
    values = [None if r is None else _finite(r.value) for r in rewards]
    order.sort(key=lambda i: (values[i] is not None, values[i] or 0.0))  # not gradable counts as worst
    count = min(count, len(order))
    third = count // 3
    worst, best = order[:third], order[len(order) - third :]
    middle = sorted(rng.sample(order[third : len(order) - third], count - 2 * third))
    return [(i, "best") for i in best] + [(i, "worst") for i in worst] + [(i, "random") for i in middle]


def _group(raw: Mapping[str, Any]) -> TrajectoryGroup:
    prompt = dict(raw["prompt"])
    prompt["messages"] = tuple(map(message_of, prompt["messages"]))
    prompt["images"] = tuple(prompt["images"])
    trajectories = tuple(_trajectory(t) for t in raw["trajectories"])
    return TrajectoryGroup(index=raw["index"], prompt=Prompt(**prompt), trajectories=trajectories)


def _trajectory(raw: Mapping[str, Any]) -> Trajectory:
    fields = dict(raw)
    fields["segments"] = tuple(_segment(segment) for segment in raw["segments"])
    fields["turns"] = tuple(Turn(**{**turn, "message": message_of(turn["message"])}) for turn in raw["turns"])
    fields["dropped"] = tuple(Dropped(**part) for part in raw["dropped"])
    fields["opening"] = tuple(map(message_of, raw.get("opening", ())))
    fields["tools"] = tuple(raw.get("tools", ()))
    if reward := raw["reward"]:
        fields["reward"] = RewardResult(**{**reward, "steps": tuple(map(tuple, reward["steps"]))})
    return Trajectory(**fields)


def _segment(raw: Mapping[str, Any]) -> Segment:
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in raw.items()
        if value is not None
    }
    if "routing" in fields:
        fields["routing"] = np.array(fields["routing"], np.int16)
    if "kept" in fields:
        fields["kept"] = tuple(np.array(ids, np.int32) for ids in fields["kept"])
    if drawn := raw.get("drawn"):
        spans = tuple(map(tuple, drawn["spans"]))
        fields["drawn"] = DrawnImages(rule=ImageCodes(**drawn["rule"]), spans=spans)
    return Segment(**fields)


def _check_columns(prompt: Prompt) -> None:
    columns = dict(prompt.columns)
    try:
        exact = json.loads(json.dumps(columns)) == columns
    except (TypeError, ValueError):
        exact = False
    if not exact:
        raise DataError(
            f"prompt {prompt.id!r}: its columns hold values that JSON cannot keep exactly "
            f"({', '.join(f'{k}: {type(v).__name__}' for k, v in columns.items())}). "
            "Map them to text, numbers or lists with task.train.mapper."
        )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _short(text: str, width: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
