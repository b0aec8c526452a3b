"""A stage that trains through TRL, from the side of its parent: folder, identity, resume, summary.

The folder ends as a Hugging Face folder with `<kind>_metrics.jsonl` and, written last, the summary `<kind>.json`:
{"identity", "config", "metrics", "warnings"}. While it trains it also holds `scratch/` with the job and checkpoints.
"""

import contextlib
import importlib.util
import json
import logging
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy

from rlhf.config.algorithm import LoraConfig
from rlhf.config.schema import ModelConfig
from rlhf.config.trainer import DpoConfig, RewardModelConfig, SftConfig
from rlhf.data.row_order import Indices, training_order
from rlhf.episodes.render import Renderer
from rlhf.errors import ConfigError, DependencyError, ModelError, PlacementError
from rlhf.machine import usable_cores
from rlhf.run_folder import replace_file
from rlhf.stages.following import Child, follow, launch, trainer_environment
from rlhf.stages.trained_rows import (
    Rows,
    check_all_show,
    images_digest,
    model_digest,
    rows_digest,
    write_rows,
)

logger = logging.getLogger(__name__)

SILENCE_S = 600.0
"""Longest wait for a sign of life, which the child gives after loading and after every optimizer step: longer
than reading tens of gigabytes from a network disk, or than the slowest step on a laptop."""
Kind = Literal["sft", "dpo", "reward_model"]
TrainerConfig = SftConfig | DpoConfig | RewardModelConfig
JOB = "job.json"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""What a model that sees images has beside its tokenizer."""
COMPLETE = "complete"
"""The last file that is written into a checkpoint."""
_NOT_LEARNED_FROM = {"threads", "source", "heldout", "repeat", "checkpoint_every"}
"""Keys that change neither weights nor rows beyond what the rows themselves say."""
Progress = Callable[[Mapping[str, float]], None]
"""Called with {step, num_steps, loss, accuracy, lr, seconds} after every logged step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerStage:
    """What is trained, from what, and what is known of it before."""

    kind: Kind
    config: TrainerConfig
    renderer: Renderer
    """Its model_folder holds the starting weights."""
    seed: int
    lora: LoraConfig | None = None
    frozen: frozenset[str] = frozenset()
    """Parts of a model that sees images which are not trained."""
    rows: Rows
    one_pass: Indices
    """Indices of the rows of one pass."""
    heldout: Rows = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of the training process that change what is learned."""
    findings: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the summary that are known beforehand."""
    warnings: tuple[str, ...] = ()

    @property
    def num_steps(self) -> int:
        """Optimizer steps."""
        if self.config.num_steps is not None:
            return self.config.num_steps
        passes = self.config.num_epochs or 0.0
        return math.ceil(passes * len(self.one_pass) / self.config.batch_size)


@contextlib.contextmanager
def early_child(kind: Kind, config: TrainerConfig, out_folder: str | Path) -> Iterator[Child | None]:
    """The stage's training process, which loads its libraries while the block prepares the job and gives it to
    `run_stage`; it ends with the block. None where the folder holds a result.
    """
    out = Path(out_folder)
    child = None if _summary(out, kind).is_file() else _launch(kind, config, out)
    try:
        yield child
    finally:
        if child is not None:
            child.end()


def run_stage(
    stage: TrainerStage, *, out_folder: str | Path, on_progress: Progress | None, child: Child | None = None
) -> str:
    """Train to the end in `out_folder` and return it; a finished or unfinished stage of the same identity is used.

    `child` is what `early_child` gave for this stage.
    Raises ConfigError, DependencyError and PlacementError for what this machine cannot do, LearnerError when the
    training process dies, DeadlineError when it makes no progress for SILENCE_S seconds.
    """
    check_adapter(stage.kind, stage.config, stage.lora)
    check_frozen(stage.frozen, stage.renderer)
    check_all_show(stage.rows, num_ranks=stage.config.num_ranks, kind=stage.kind)
    out = Path(out_folder)
    summary = _summary(out, stage.kind)
    identity = _identity(stage)
    if summary.is_file() and json.loads(summary.read_text(encoding="utf-8"))["identity"] == identity:
        logger.info("%s: %s is already finished with these settings; used again", stage.kind, out)
        shutil.rmtree(out / "scratch", ignore_errors=True)  # a kill may have come before its end
        return str(out)
    for warning in stage.warnings:
        logger.warning("%s: %s", stage.kind, warning)
    child = child or _launch(stage.kind, stage.config, out)
    try:
        scratch = _open_scratch(stage, out, identity)
        replace_file(scratch / JOB, json.dumps(_job(stage, out)))
        follow(
            child,
            silence_s=SILENCE_S,
            on_line=lambda line: on_progress(json.loads(line)) if on_progress is not None else None,
        )
    finally:
        child.end()
    found = json.loads((scratch / "found.json").read_text(encoding="utf-8"))
    for warning in found["warnings"]:
        logger.warning("%s: %s", stage.kind, warning)
    ended = {
        "identity": identity,
        "config": stage.config.model_dump(mode="json"),
        "metrics": {**stage.findings, **found["metrics"]},
        "warnings": [*stage.warnings, *found["warnings"]],
    }
    replace_file(summary, json.dumps(ended, indent=1))
    shutil.rmtree(scratch)
    return str(out)


def images_beside(out_folder: str | Path) -> Path:
    """Where a stage keeps images that its rows hold as bytes: its own folder is emptied when it is begun anew."""
    return Path(out_folder).absolute().parent / "images"


def check_adapter(kind: str, config: TrainerConfig, lora: LoraConfig | None) -> None:
    """Refuse what model.lora, bitsandbytes or the GPUs of this machine do not allow."""
    if lora is None:
        for key, is_given in (
            ("lora_result", config.lora_result == "adapter"),
            ("load_in_4bit", config.load_in_4bit),
        ):
            if is_given:
                raise ConfigError(
                    f"{kind}.{key} is set but model.lora is not: there would be no adapter. Set model.lora, or remove "
                    "the first."
                )
    if config.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
        raise DependencyError(
            f"{kind}.load_in_4bit is true, but bitsandbytes is not installed. Install bitsandbytes, or set it to false."
        )
    import torch

    num_gpus = torch.cuda.device_count()
    if config.load_in_4bit and not num_gpus:
        raise ConfigError(
            f"{kind}.load_in_4bit is true, but this machine has no CUDA GPU, which bitsandbytes needs. Set it to false."
        )
    if 0 < num_gpus < config.num_ranks:
        raise PlacementError(
            f"{kind}.num_ranks is {config.num_ranks}, found {num_gpus} GPUs on this machine: every rank needs one. "
            "Lower the first."
        )
    if config.num_ranks > 1 and not num_gpus:
        logger.info(
            "%s: %d ranks without a GPU train data-parallel (gloo), not sharded", kind, config.num_ranks
        )


def check_frozen(frozen: frozenset[str], renderer: Renderer) -> None:
    """Refuse parts that the model does not have."""
    if frozen and renderer.vision is None:
        raise ModelError(
            f"model.freeze names {', '.join(sorted(frozen))}, which the model {renderer.model_folder!r} does not have. "
            "Remove it, or choose a model that sees images."
        )


def model_frozen(model: ModelConfig | None) -> frozenset[str]:
    """The parts that a stage was asked to leave as they are."""
    return frozenset() if model is None else model.freeze.frozen


def model_lora(model: ModelConfig | None) -> LoraConfig | None:
    """The adapters that a stage was asked for."""
    return None if model is None else model.lora


def _open_scratch(stage: TrainerStage, out: Path, identity: str) -> Path:
    """The scratch folder, with rows; what an earlier call left there stays if it was the same stage."""
    scratch = out / "scratch"
    written = scratch / "identity.json"
    if written.is_file() and json.loads(written.read_text(encoding="utf-8")) == identity:
        done = sorted(
            int(mark.parent.name.rpartition("-")[2]) for mark in scratch.glob(f"checkpoint-*/{COMPLETE}")
        )
        where = (
            f"goes on from its checkpoint of step {done[-1]}"
            if done
            else "begins anew: it has no checkpoint yet"
        )
        logger.info("%s: %s was left unfinished and %s", stage.kind, out, where)
        return scratch
    others = [path for path in out.iterdir() if path != _log(out, stage.kind) and path != scratch]
    if others or written.is_file():
        logger.info(
            "%s: %s holds another training (other settings, rows or weights); begun anew", stage.kind, out
        )
    written.unlink(missing_ok=True)  # first: what a kill leaves of the rest must not look unfinished
    for path in (*others, scratch):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    scratch.mkdir()
    stage.renderer.tokenizer.save_pretrained(out)
    for name in PROCESSOR_FILES:
        if (Path(stage.renderer.model_folder) / name).is_file():
            shutil.copy(Path(stage.renderer.model_folder) / name, out)
    write_rows(stage.rows, scratch / "rows.arrow")
    if stage.heldout:
        write_rows(stage.heldout, scratch / "heldout.arrow")
    order = training_order(
        stage.one_pass, num_rows=stage.num_steps * stage.config.batch_size, seed=stage.seed
    )
    numpy.save(scratch / "order.npy", order)
    replace_file(written, json.dumps(identity))
    return scratch


def _job(stage: TrainerStage, out: Path) -> dict[str, Any]:
    config = stage.config
    keys = {
        "batch_size",
        "lr",
        "lr_schedule",
        "min_lr_ratio",
        "warmup_steps",
        "weight_decay",
        "max_grad_norm",
    }
    keys |= {"num_ranks", "checkpoint_every", "lora_result", "load_in_4bit"}
    return {
        **config.model_dump(include=keys),
        **stage.extra,
        "kind": stage.kind,
        "num_steps": stage.num_steps,
        "microbatch_size": config.microbatch_size or config.batch_size // config.num_ranks,
        "lora": None if stage.lora is None else stage.lora.model_dump(mode="json"),
        "frozen": sorted(stage.frozen),
        "model": stage.renderer.model_folder,
        "trust_remote_code": stage.renderer.trust_remote_code,
        "out": str(out),
        "scratch": str(out / "scratch"),
        "metrics": str(out / f"{stage.kind}_metrics.jsonl"),
        "seed": stage.seed,
        "threads": _threads(config),
        "has_heldout": bool(stage.heldout),
    }


def _launch(kind: Kind, config: TrainerConfig, out: Path) -> Child:
    """The training process, which waits for its job."""
    job = out / "scratch" / JOB
    job.unlink(missing_ok=True)  # that of an earlier process
    out.mkdir(parents=True, exist_ok=True)
    module = [f"rlhf.stages.{kind}_process"]
    if config.num_ranks > 1:
        module = ["rlhf.stages.ranks", str(config.num_ranks), *module]
    return launch(
        [sys.executable, "-m", *module, str(job)],
        environment=trainer_environment(num_ranks=config.num_ranks, threads=_threads(config)),
        log=_log(out, kind),
    )


def _threads(config: TrainerConfig) -> int:
    return config.threads or max(1, usable_cores() // config.num_ranks)


def _summary(out: Path, kind: Kind) -> Path:
    return out / f"{kind}.json"


def _log(out: Path, kind: Kind) -> Path:
    return out / f"{kind}.log"


def _identity(stage: TrainerStage) -> str:
    settings = stage.config.model_dump(mode="json", exclude=_NOT_LEARNED_FROM)
    lora = None if stage.lora is None else stage.lora.model_dump(mode="json")
    parts = [stage.kind, settings, lora, stage.seed, dict(stage.extra), stage.one_pass.tolist()]
    if stage.frozen:
        parts.append(sorted(stage.frozen))
    if (images := images_digest(stage.rows, stage.heldout)) is not None:
        parts.append(images)
    digests = [
        rows_digest(stage.rows),
        rows_digest(stage.heldout),
        model_digest(Path(stage.renderer.model_folder)),
    ]
    return sha256(json.dumps([parts, digests]).encode()).hexdigest()
