"""The SFT stage's own process: `python -m rlhf.stages.sft_process job.json DESCRIPTOR`.

Writes one JSON line per logged step to the open file descriptor, and a blank one as a sign of life after
loading and after every step; ends when its stdin closes.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

NOT_LEARNED = -100


def padded_batch(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """input_ids and labels [rows, longest], padded on the right without an attention mask.

    Under causal attention no real token sees the padding to its right, and its labels are ignored: the loss
    is that of a masked batch, whatever id stands there. Without a mask SDPA stays on its fast path on CPU.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    input_ids = torch.zeros((len(rows), longest), dtype=torch.long)
    labels = torch.full((len(rows), longest), NOT_LEARNED)
    for index, row in enumerate(rows):
        input_ids[index, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        labels[index, : len(row["labels"])] = torch.tensor(row["labels"])
    return {"input_ids": input_ids, "labels": labels, "position_ids": torch.arange(longest)[None]}


def packed_batch(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """The rows one behind the other as [1, tokens]; positions that start again keep them apart."""
    return {
        "input_ids": torch.tensor([[token for row in rows for token in row["input_ids"]]]),
        "labels": torch.tensor([[label for row in rows for label in row["labels"]]]),
        "position_ids": torch.cat([torch.arange(len(row["input_ids"])) for row in rows])[None],
    }


class Report(TrainerCallback):  # type: ignore[misc]
    """Writes each logged step to the file and the channel, and signs of life to the channel."""

    def __init__(self, metrics: TextIO, channel: TextIO) -> None:
        self._metrics, self._channel = metrics, channel
        self._started = time.monotonic()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock after loading."""
        self._started = time.monotonic()
        _write(self._channel, "")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Say that the process is alive: logged steps may be far apart."""
        _write(self._channel, "")

    def on_log(self, _args: Any, state: Any, _control: Any, **event: Any) -> None:
        """Write what the trainer logged; its closing summary has no loss and is left out."""
        logs = event["logs"]
        if "loss" not in logs:
            return
        line = {
            "step": state.global_step,
            "num_steps": state.max_steps,
            "loss": logs["loss"],
            "accuracy": logs["mean_token_accuracy"],
            "lr": logs["learning_rate"],
            "seconds": round(time.monotonic() - self._started, 3),
        }
        for stream in (self._metrics, self._channel):
            _write(stream, json.dumps(line))


def _write(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


def train(job: dict[str, Any], channel: TextIO) -> None:
    """Train and save; `channel` receives the progress lines."""
    torch.set_num_threads(job["threads"])
    on_gpu = torch.cuda.is_available()
    trust = job["trust_remote_code"]
    arguments = SFTConfig(
        output_dir=job["scratch"],
        max_steps=job["num_steps"],
        per_device_train_batch_size=job["batch_size"],
        learning_rate=job["lr"],
        warmup_steps=job["warmup_steps"],
        lr_scheduler_type="linear",
        adam_beta2=0.95,
        seed=job["seed"],
        bf16=on_gpu,
        use_cpu=not on_gpu,
        gradient_checkpointing=on_gpu,
        dataloader_pin_memory=on_gpu,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        max_length=None,
        logging_steps=max(1, job["num_steps"] // 100),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    rows = [
        {"input_ids": ids, "labels": [t if m else NOT_LEARNED for t, m in zip(ids, is_learned, strict=True)]}
        for ids, is_learned in job["rows"]
    ]
    with Path(job["metrics"]).open("w", encoding="utf-8") as metrics:
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, trust_remote_code=trust),
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(job["out"], trust_remote_code=trust),
            data_collator=packed_batch if job["packing"] else padded_batch,
            callbacks=[Report(metrics, channel)],
        )
        trainer.train()
    trainer.model.save_pretrained(job["out"])


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with os.fdopen(int(sys.argv[2]), "w", encoding="utf-8") as progress:
        train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), progress)
