"""What the processes that train through TRL share: arguments, data, checkpoints, progress lines, the result.

A process gets a job and an open descriptor. Rank 0 writes one JSON line per logged step to it, and a blank one as a
sign of life after loading, after every step and after every batch of pairs that is scored; every rank ends when its
stdin closes.
"""

import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy
import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback

from rlhf.data.vision_model import TOWER, auto_model, part_of, sees
from rlhf.errors import LearnerError
from rlhf.run_folder import replace_file
from rlhf.stages.trainer_stage import COMPLETE

T = TypeVar("T")
Job = dict[str, Any]
_HEAD = re.compile(r"\bscore\b")
_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def main(train: Callable[[Job, TextIO], None]) -> None:
    """Run `train(job, channel)` for the command line `MODULE job.json DESCRIPTOR`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = _awaited(Path(sys.argv[1]))
    torch.set_num_threads(job["threads"])
    with os.fdopen(int(sys.argv[2]), "w", encoding="utf-8") as channel:
        train(job, channel)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def trainer_arguments(job: Job) -> dict[str, Any]:
    """Arguments of transformers' Trainer: float32 weights, rows in the order given, bfloat16 passes on a GPU."""
    on_gpu = torch.cuda.is_available()
    is_sharded = on_gpu and job["num_ranks"] > 1
    steps = job["num_steps"]
    arguments = {
        "output_dir": job["scratch"],
        "max_steps": steps,
        "per_device_train_batch_size": job["microbatch_size"],
        "gradient_accumulation_steps": job["batch_size"] // (job["microbatch_size"] * job["num_ranks"]),
        "train_sampling_strategy": "sequential",
        "learning_rate": job["lr"],
        "warmup_steps": job["warmup_steps"],
        "weight_decay": job["weight_decay"],
        "max_grad_norm": job["max_grad_norm"] or 0.0,  # 0 is off there
        "adam_beta2": 0.95,
        "seed": job["seed"],
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "gradient_checkpointing": on_gpu and not is_sharded,
        "dataloader_pin_memory": on_gpu,
        "average_tokens_across_devices": True,
        "remove_unused_columns": False,
        "logging_steps": max(1, steps // 100),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it would log the mean of other losses in place of NaN
        "save_strategy": "steps" if job["checkpoint_every"] else "no",
        "save_steps": job["checkpoint_every"] or steps,
        "save_total_limit": 2,  # the newest may be cut short by a kill
        "report_to": [],
        "disable_tqdm": True,
    }
    if is_sharded:
        arguments |= {"fsdp": True, "fsdp_config": {"version": 2, "activation_checkpointing": True}}
    return arguments | _schedule(job)


def _schedule(job: Job) -> dict[str, Any]:
    name, ratio = job["lr_schedule"], job["min_lr_ratio"]
    if ratio == 1:
        name = "constant"
    if not ratio or name == "constant":
        return {"lr_scheduler_type": _SCHEDULES[name]}
    if name == "cosine":
        return {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": ratio}}
    # A polynomial of power 1 is the line that ends above 0.
    return {
        "lr_scheduler_type": "polynomial",
        "lr_scheduler_kwargs": {"lr_end": job["lr"] * ratio, "power": 1.0},
    }


def model_arguments(job: Job) -> dict[str, Any]:
    """Arguments of `from_pretrained`: float32 master weights, or a base of 4 bits."""
    arguments: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": job["trust_remote_code"]}
    if job["load_in_4bit"]:
        from transformers import BitsAndBytesConfig

        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        arguments["device_map"] = {"": torch.cuda.current_device()}
    return arguments


def language_model(folder: str) -> Any:
    """The class of transformers that loads the model of a folder, its head included."""
    return auto_model(read_config(folder))


def read_config(folder: str) -> dict[str, Any]:
    """The config.json of a model."""
    config: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return config


def freeze(model: Any, job: Job) -> None:
    """Take the parts that `model.freeze` names out of training; a new head is always trained."""
    for name, parameter in model.named_parameters():
        if part_of(name) in job["frozen"] and not _HEAD.search(name):
            parameter.requires_grad_(False)


def adapter(job: Job, *, task: str | None) -> Any:
    """Settings of peft for model.lora; None without. A reward model's head is trained in full."""
    if job["lora"] is None:
        return None
    from peft import LoraConfig

    targets = job["lora"]["targets"]
    return LoraConfig(
        task_type=task,
        r=job["lora"]["rank"],
        lora_alpha=job["lora"]["alpha"],
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=rf".*\b{TOWER}\b.*" if _leaves_tower(job, targets) else None,
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
    )


def _leaves_tower(job: Job, targets: str | Sequence[str]) -> bool:
    """Whether a model that sees images gets adapters in its language model alone: its tower is not named."""
    is_named = not isinstance(targets, str) and any(TOWER in target for target in targets)
    return sees(read_config(job["model"])) and not is_named


def tokenizer(job: Job) -> Any:
    """The tokenizer, as the parent wrote it into the result."""
    return AutoTokenizer.from_pretrained(job["out"], trust_remote_code=job["trust_remote_code"])


def all_rows(job: Job, name: str = "rows") -> Dataset:
    """Each row once."""
    return Dataset.from_file(str(Path(job["scratch"]) / f"{name}.arrow"))


def ordered(job: Job, rows: Dataset) -> Dataset:
    """The rows of the whole training in their order: a batch after the other, ranks and micro-batches beside."""
    return rows.select(numpy.load(Path(job["scratch"]) / "order.npy"))


def is_first_rank() -> bool:
    """Whether this process writes files."""
    return os.environ.get("RANK", "0") == "0"


def say(channel: TextIO, line: str = "") -> None:
    """Write a line to the parent, from the first rank alone; a blank one is a sign of life."""
    if is_first_rank():
        channel.write(line + "\n")
        channel.flush()


def wait_for_all() -> None:
    """Return when every rank is here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def from_before(job: Job, measure: Callable[[], T]) -> T:
    """What `measure` finds before training, as JSON has it: once for all attempts of the stage. Every rank calls it."""
    file = Path(job["scratch"]) / "start.json"
    is_there = file.is_file()
    wait_for_all()  # before anybody writes it: a late rank must not find it and leave the others to measure alone
    if is_there:
        found: T = json.loads(file.read_text(encoding="utf-8"))
        return found
    found = measure()
    if is_first_rank():
        replace_file(file, json.dumps(found))
    return found


def train_to_end(trainer: Any, job: Job, channel: TextIO, *, accuracy: str) -> dict[str, float]:
    """Train, from the newest whole checkpoint if there is one, and save the result; metrics of the summary.

    `accuracy` is the name under which the trainer logs what the progress line calls so.
    """
    # Without it the mean would be over the tokens of a micro-batch, which overweights short rows.
    trainer.model_accepts_loss_kwargs = True
    checkpoint = newest_checkpoint(Path(job["scratch"]))
    step = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
    if checkpoint is not None:
        _load_renamed(trainer, job, checkpoint)
    report = Report(job, channel, accuracy=accuracy, resumed_at=step)
    trainer.add_callback(report)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    save_result(trainer, job)
    lines = report.lines
    return {
        "trainer/num_steps": job["num_steps"],
        "trainer/loss_at_start": lines[0]["loss"],
        "trainer/loss_at_end": lines[-1]["loss"],
        "trainer/seconds": lines[-1]["seconds"],
    }


def _load_renamed(trainer: Any, job: Job, checkpoint: Path) -> None:
    """Load weights whose names differ in checkpoint and network, as those of models that see images do.

    transformers' trainer compares names alone, and goes on without the weights that it does not find.
    """
    if job["lora"] is None and not trainer.is_fsdp_enabled and sees(read_config(job["model"])):
        saved = type(trainer.model).from_pretrained(checkpoint, dtype=torch.float32)
        trainer.model.load_state_dict(saved.state_dict())


def newest_checkpoint(scratch: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    marks = scratch.glob(f"checkpoint-*/{COMPLETE}")
    return max((mark.parent for mark in marks), key=lambda c: int(c.name.rpartition("-")[2]), default=None)


def save_result(trainer: Any, job: Job) -> None:
    """Leave a whole model in the result folder, or the adapter alone."""
    out = Path(job["out"])
    if job["lora"] is None:
        if trainer.is_fsdp_enabled:
            trainer.save_model(str(out))
        elif is_first_rank():
            trainer.model.save_pretrained(out)
    else:
        target = out if job["lora_result"] == "adapter" else Path(job["scratch"]) / "adapter"
        trainer.save_model(str(target))
        if is_first_rank() and target != out:
            _merge(trainer, job, target)
    if is_first_rank():
        (out / "training_args.bin").unlink(missing_ok=True)
    wait_for_all()


def _merge(trainer: Any, job: Job, folder: Path) -> None:
    """Add the adapter to the base in float32, whatever the base was held in while training."""
    from peft import PeftModel

    base_class = type(trainer.accelerator.unwrap_model(trainer.model).get_base_model())
    labels = {} if job["kind"] != "reward_model" else {"num_labels": 1}
    base = base_class.from_pretrained(
        job["model"], dtype=torch.float32, trust_remote_code=job["trust_remote_code"], **labels
    )
    merged = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    text = trainer.model.config.get_text_config()
    merged.config.get_text_config().pad_token_id = text.pad_token_id
    merged.save_pretrained(job["out"])


def write_found(job: Job, metrics: dict[str, float], warnings: list[str]) -> None:
    """Hand metrics and warnings to the parent, which writes the summary."""
    if is_first_rank():
        text = json.dumps({"metrics": metrics, "warnings": warnings})
        (Path(job["scratch"]) / "found.json").write_text(text, encoding="utf-8")


class Report(TrainerCallback):  # type: ignore[misc]
    """Writes each logged step to the file and the channel, signs of life to the channel, marks to checkpoints."""

    def __init__(self, job: Job, channel: TextIO, *, accuracy: str, resumed_at: int) -> None:
        self._channel, self._accuracy = channel, accuracy
        self._kind, self._every = job["kind"], job["checkpoint_every"]
        self._file = Path(job["metrics"])
        # The last line ends in a line break, unless it was cut short.
        written = self._file.read_text(encoding="utf-8").split("\n")[:-1] if resumed_at else []
        self.lines: list[dict[str, Any]] = [
            line for line in map(json.loads, written) if line["step"] <= resumed_at
        ]
        """What was logged so far, by this process and those before it."""
        self._before = self.lines[-1]["seconds"] if self.lines else 0.0
        self._started = time.monotonic()
        if is_first_rank():
            self._file.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock after loading."""
        self._started = time.monotonic()
        say(self._channel)

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say that the process is alive: logged steps may be far apart. A checkpoint closes a span of the log."""
        say(self._channel)
        if self._every and state.global_step % self._every == 0:
            control.should_log = True

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Mark the checkpoint as whole, once every rank has written its part."""
        wait_for_all()
        if is_first_rank():
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()

    def on_log(self, _args: Any, state: Any, _control: Any, **event: Any) -> None:
        """Write what the trainer logged; its closing summary has no loss and is left out. LearnerError for NaN."""
        logs = event["logs"]
        for name in ("loss", "grad_norm", "train_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise LearnerError(
                    f"{self._kind}: {name} is {logs[name]} at step {state.global_step}, expected a finite number. "
                    f"Lower {self._kind}.lr, warm up longer, or look for an odd row."
                )
        if "loss" not in logs:
            return
        line = {
            "step": state.global_step,
            "num_steps": state.max_steps,
            "loss": logs["loss"],
            "accuracy": logs[self._accuracy],
            "lr": logs["learning_rate"],
            "seconds": round(self._before + time.monotonic() - self._started, 3),
        }
        self.lines.append(line)
        if is_first_rank():
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        say(self._channel, json.dumps(line))


def _awaited(file: Path) -> Job:
    """The job, once the parent has written it: by rename, so what is there is whole."""
    while not file.is_file():
        time.sleep(0.02)
    job: Job = json.loads(file.read_text(encoding="utf-8"))
    return job


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)
