"""Checks a task before training: every gold answer is graded right, nothing empty, copied or hidden is."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlhf.interfaces import Reward
from rlhf.types import Message, Prompt, RewardResult, Trajectory, TrajectoryGroup, Turn

GOLD_TEMPLATE = "<think>x</think><answer>{reference}</answer>"
DOUBT_COLUMN = "gold_doubt"
"""A prompt column in which a data mapper says why the row's gold answer may be wrong."""
NONSENSE = "no such answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldFinding:
    """One prompt and what is wrong with it."""

    prompt_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldReport:
    """What `check_gold` found. `wrong`: not graded right; `doubtful`: golds their own row speaks against."""

    num_prompts: int
    wrong: tuple[GoldFinding, ...]
    doubtful: tuple[GoldFinding, ...]
    rewarded_probes: Mapping[str, tuple[GoldFinding, ...]]
    """Probe name -> prompts where a completion without a visible answer scored as much as the gold."""
    seconds: float

    @property
    def is_sound(self) -> bool:
        """Whether every gold was graded right and no probe was rewarded."""
        return not self.wrong and not any(self.rewarded_probes.values())


async def check_gold(
    prompts: Sequence[Prompt],
    reward: Reward,
    *,
    template: str = GOLD_TEMPLATE,
    batch: int = 256,
    progress: Callable[[int], None] | None = None,
) -> GoldReport:
    """Grade every prompt's gold, put into `template` at {reference}, beside completions that earn nothing.

    A gold is right when its outcome is ok and it scores more than the same template with a nonsense answer.
    The other probes (empty, the prompt copied, the gold only inside the think block) must score less than the
    gold. `batch` prompts are in flight at a time; `progress` gets the number done. Give the pool
    `max_ungradable=1.0`, or many bad golds end the check with a RewardError before they are all listed.
    """
    start = time.perf_counter()
    wrong: list[GoldFinding] = []
    probes: dict[str, list[GoldFinding]] = {"empty": [], "copied prompt": [], "gold only in think": []}
    graded = [prompt for prompt in prompts if prompt.reference is not None]
    wrong += [
        GoldFinding(prompt_id=p.id, reason=_with_doubt(p, "no reference answer"))
        for p in prompts
        if p.reference is None
    ]
    for first in range(0, len(graded), batch):
        chunk = graded[first : first + batch]
        groups = [_group(first + i, prompt, template) for i, prompt in enumerate(chunk)]
        for prompt, results in zip(chunk, await asyncio.gather(*map(reward.score, groups)), strict=True):
            reason = _why_wrong(results[0], nonsense=results[1])
            if reason:
                wrong.append(GoldFinding(prompt_id=prompt.id, reason=_with_doubt(prompt, reason)))
                continue
            for name, result in zip(probes, results[2:], strict=True):
                if _score(result) >= _score(results[0]):
                    probes[name].append(GoldFinding(prompt_id=prompt.id, reason=f"scored {result.value:g}"))
        if progress is not None:
            progress(first + len(chunk))
    return GoldReport(
        num_prompts=len(prompts),
        wrong=tuple(wrong),
        doubtful=tuple(GoldFinding(prompt_id=p.id, reason=doubt) for p in prompts if (doubt := _doubt(p))),
        rewarded_probes={name: tuple(findings) for name, findings in probes.items()},
        seconds=time.perf_counter() - start,
    )


def _group(index: int, prompt: Prompt, template: str) -> TrajectoryGroup:
    gold = prompt.reference or ""
    completions = [
        template.replace("{reference}", gold),
        template.replace("{reference}", NONSENSE),
        "",
        prompt.messages[-1].content,
        f"<think>{gold} \\boxed{{{gold}}} <answer>{gold}</answer></think>",
    ]
    trajectories = tuple(_trajectory(i, text) for i, text in enumerate(completions))
    return TrajectoryGroup(index=index, prompt=prompt, trajectories=trajectories)


def _trajectory(sample_index: int, completion: str) -> Trajectory:
    message = Message(role="assistant", content=completion)
    turn = Turn(message=message, segment=0, start=0, stop=0)
    return Trajectory(segments=(), turns=(turn,), stop="stop", sample_index=sample_index, seed=sample_index)


def _why_wrong(gold: RewardResult, *, nonsense: RewardResult) -> str:
    if gold.value is None or gold.outcome != "ok":
        detail = "; ".join(f"{name}: {text}" for name, text in gold.detail.items() if text)
        return f"{gold.outcome} ({detail[:300]})" if detail else gold.outcome
    if _score(nonsense) >= gold.value:
        return f"scored {gold.value:g}, no more than the answer {NONSENSE!r}"
    return ""


def _score(result: RewardResult) -> float:
    return float("-inf") if result.value is None else result.value


def _with_doubt(prompt: Prompt, reason: str) -> str:
    doubt = _doubt(prompt)
    return f"{reason}; {doubt}" if doubt else reason


def _doubt(prompt: Prompt) -> str:
    return str(prompt.columns.get(DOUBT_COLUMN) or "")
