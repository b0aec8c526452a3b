"""TRL's GRPOTrainer on the same model, prompts, samples and token limits: `trl_side.py FD`, a process of its own.

It takes one step per message and answers with its seconds and sampled tokens. What is set for it, so that it is
not slowed: float32 like ours, no gradient checkpointing, SDPA, KV cache, no logging, no saving, the reward function
called in the process. Its generation is Hugging Face's, the only one it
has without CUDA (its vLLM modes need a GPU).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    TrainerCallback,
    TrainerControl,
)
from trl import GRPOConfig, GRPOTrainer

from benchmarks.child import open_pipe, receive, send
from rlhf.config.rewards import RewardConfig
from rlhf.importing import load_function
from rlhf.rollout.reward_shapes import bind
from rlhf.rollout.reward_values import as_result
from rlhf.types import Message, Prompt, Trajectory, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class TrlSettings:
    """One run of GRPOTrainer: as many steps as `prompts` holds batches of `prompts_per_step`."""

    model: str
    prompts: Sequence[Prompt]
    """In the order in which the loop takes them."""
    texts: Sequence[str]
    ids: Sequence[tuple[int, ...]]
    """What each text must tokenise to."""
    prompts_per_step: int
    limits: Sequence[int]
    """Exact completion length of each of a prompt's samples."""
    reward: RewardConfig
    temperature: float
    threads: int
    rows: int
    """Samples in one forward and backward pass; gradients are accumulated over the step."""
    scratch: str


class ExactLengths(LogitsProcessor):
    """Row i ends at exactly limits[i] tokens: the end token is forbidden before and forced there."""

    def __init__(self, limits: torch.Tensor, *, prompt_width: int, eos: int) -> None:
        self._limits, self._width, self._eos = limits, prompt_width, eos

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores of the next token, [rows, vocabulary]."""
        scores[:, self._eos] = -torch.inf
        due = self._limits == input_ids.shape[1] - self._width + 1
        if due.any():
            scores[due] = -torch.inf
            scores[due, self._eos] = 0.0
        return scores


class Turns(TrainerCallback):
    """Waits for the parent before each step and reports after it."""

    def __init__(self, count: Callable[[], int]) -> None:
        self._pipe = open_pipe()
        self._count = count
        self._started = 0.0

    def receive(self) -> Any:
        """The next message; None when the parent is gone."""
        try:
            return receive(self._pipe)
        except EOFError:
            return None

    def on_train_begin(self, _args: Any, _state: Any, control: TrainerControl, **_: Any) -> None:
        """Everything is loaded."""
        self._next(control, "ready")

    def on_step_end(self, _args: Any, _state: Any, control: TrainerControl, **_: Any) -> None:
        """One generation and its optimizer step are done."""
        self._next(control, (time.perf_counter() - self._started, self._count()))

    def _next(self, control: TrainerControl, answer: Any) -> None:
        send(self._pipe, answer)
        if self.receive() is None:
            control.should_training_stop = True
        self._started = time.perf_counter()


def reward_function(config: RewardConfig, prompts: Sequence[Prompt]) -> Callable[..., list[float]]:
    """The recipe's reward in TRL's signature; per-sample rewards only."""
    bound = bind(load_function(config.use, key="task.rewards.0.use"), config.kwargs, key="task.rewards.0")
    if not bound.shape.is_per_sample or bound.shape.is_async:
        raise SystemExit(f"--against trl serves rewards that grade one sample, not {config.use}")
    by_id = {prompt.id: prompt for prompt in prompts}

    def grade(completions: Sequence[str], row_id: Sequence[str], **_: Any) -> list[float]:
        values = []
        for text, name in zip(completions, row_id, strict=True):
            turn = Turn(message=Message(role="assistant", content=text), segment=0, start=0, stop=0)
            trajectory = Trajectory(segments=(), turns=(turn,), stop="stop", sample_index=0, seed=0)
            result = as_result(bound.call(by_id[name], trajectory), seconds=0.0)
            values.append(float("nan") if result.value is None else result.value)
        return values

    return grade


def main() -> None:
    count = {"tokens": 0}
    turns = Turns(lambda: count["tokens"])
    settings = TrlSettings(**turns.receive())
    torch.set_num_threads(settings.threads)
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    tokenizer.padding_side = "left"
    if [tuple(ids) for ids in tokenizer(text=list(settings.texts))["input_ids"]] != list(settings.ids):
        raise SystemExit("TRL's tokenizer gives these prompts other ids than the loop's renderer does")
    grade = reward_function(settings.reward, settings.prompts)

    def counted(completions: Sequence[str], completion_ids: Sequence[Any], **columns: Any) -> list[float]:
        count["tokens"] = sum(len(ids) for ids in completion_ids)
        return grade(completions, **columns)

    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
    rows = [{"prompt": t, "row_id": p.id} for t, p in zip(settings.texts, settings.prompts, strict=True)]
    trainer = GRPOTrainer(
        model,
        reward_funcs=counted,
        args=arguments(settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[turns],
    )
    limit_lengths(model, settings, eos=tokenizer.eos_token_id)
    trainer.train()


def arguments(settings: TrlSettings) -> GRPOConfig:
    """One optimizer step per generation of prompts x samples, in `rows` at a time."""
    samples = len(settings.limits)
    batch = settings.prompts_per_step * samples
    return GRPOConfig(
        output_dir=settings.scratch,
        max_steps=len(settings.prompts) // settings.prompts_per_step,
        per_device_train_batch_size=settings.rows,
        gradient_accumulation_steps=batch // settings.rows,
        num_generations=samples,
        max_completion_length=max(settings.limits),
        temperature=settings.temperature,
        shuffle_dataset=False,
        # As in the loop: the work of a step without a change, so that all steps are alike.
        learning_rate=1e-30,
        lr_scheduler_type="constant",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def limit_lengths(model: Any, settings: TrlSettings, *, eos: int) -> None:
    """Make `model.generate` give each row the length of its sample."""
    limits = torch.tensor(settings.limits).repeat(settings.prompts_per_step)
    generate = model.generate

    def limited(*args: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        exact = ExactLengths(limits, prompt_width=input_ids.shape[1], eos=eos)
        return generate(*args, input_ids=input_ids, logits_processor=LogitsProcessorList([exact]), **kwargs)

    model.generate = limited


if __name__ == "__main__":
    main()
