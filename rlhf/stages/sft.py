"""The cold start: supervised fine-tuning in a process of its own."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from rlhf.config.schema import SftConfig
from rlhf.data.prompts import load_prompts
from rlhf.episodes.render import Renderer
from rlhf.errors import DataError, LearnerError
from rlhf.types import Prompt

logger = logging.getLogger(__name__)

DONE = "sft.json"
METRICS = "sft_metrics.jsonl"
KEY = "sft.source"
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
Row = tuple[list[int], list[int]]
"""(prompt ids, completion ids with eos)"""
Progress = Callable[[Mapping[str, float]], None]
"""Called with {step, num_steps, loss, accuracy, lr, seconds} after every logged step."""


def run_sft(
    config: SftConfig,
    *,
    renderer: Renderer,
    out_folder: str | Path,
    seed: int,
    on_progress: Progress | None = None,
) -> str:
    """Fine-tune the model of `renderer.model_folder` on `config.source` and return the folder of the result.

    The result is a Hugging Face folder with tokenizer, generation config and sft_metrics.jsonl. A folder
    that was finished with the same settings, rows and starting weights is used again.
    Prompts are rendered as in RL.
    Raises DataError for a row without a completion or longer than `config.max_length`, LearnerError when the
    training process dies.
    """
    out = Path(out_folder)
    prompts = load_prompts(config.source, key=KEY, require_reference=False)
    rows = tokenised_rows(prompts, renderer, config.max_length)
    identity = _identity(config, rows, model_folder=Path(renderer.model_folder), seed=seed)
    done = out / DONE
    if done.is_file() and json.loads(done.read_text(encoding="utf-8"))["identity"] == identity:
        logger.info("sft: %s is already finished with these settings; used again", out)
        return str(out)
    shutil.rmtree(out, ignore_errors=True)
    scratch = out / "scratch"
    scratch.mkdir(parents=True)
    renderer.tokenizer.save_pretrained(out)
    settings = config.model_dump(include={"num_steps", "batch_size", "lr", "warmup_steps", "packing"})
    threads = config.threads or len(os.sched_getaffinity(0))
    settings |= {"model": renderer.model_folder, "out": str(out), "scratch": str(scratch)}
    settings |= {"metrics": str(out / METRICS), "seed": seed, "threads": threads, "rows": rows}
    job = scratch / "job.json"
    job.write_text(json.dumps(settings), encoding="utf-8")
    _run_process(job, threads, on_progress)
    shutil.rmtree(scratch)
    done.write_text(json.dumps({"identity": identity, "config": config.model_dump()}), encoding="utf-8")
    return str(out)


def tokenised_rows(prompts: Sequence[Prompt], renderer: Renderer, max_length: int) -> list[Row]:
    """Every row as ids: what RL would show the engine, and what the engine should sample then.

    Raises DataError naming the first row without a completion or with more than `max_length` tokens.
    """
    rows = []
    for prompt in prompts:
        where = f"{KEY}: row {prompt.id}"
        text = prompt.columns.get("completion")
        if not isinstance(text, str) or not text:
            raise DataError(
                f"{where} has no `completion` (found {text!r:.40}), expected the text to be learned; "
                f"its columns are {sorted(prompt.columns)}."
            )
        question = list(renderer.encode_prompt(prompt))
        answer = list(renderer.encode_completion(text, where=where))
        if len(question) + len(answer) > max_length:
            raise DataError(
                f"{where} has {len(question) + len(answer)} tokens, more than sft.max_length ({max_length}). "
                "Rows are never cut: raise the limit, or leave the row out with a mapper."
            )
        rows.append((question, answer))
    return rows


def _identity(config: SftConfig, rows: Sequence[Row], *, model_folder: Path, seed: int) -> str:
    settings = config.model_dump(exclude={"threads", "source"})
    digest = sha256(json.dumps([settings, seed, rows]).encode())
    digest.update((model_folder / "config.json").read_bytes())
    for file in sorted(model_folder.glob("*.safetensors")):
        with file.open("rb") as weights:
            # Size, head and tail tell two checkpoints apart without reading tens of gigabytes.
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode() + weights.read(1 << 20))
            weights.seek(max(0, size - (1 << 20)))
            digest.update(weights.read())
    return digest.hexdigest()


def _environment(threads: int) -> dict[str, str]:
    """The child's variables: no rank inherited from a launcher, one GPU, no telemetry ping."""
    inherited = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    return inherited | {
        "OMP_NUM_THREADS": str(threads),
        # Waiting threads must not spin: beside one other busy process that costs ten times the step.
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # TRL refuses to train with several GPUs in one process.
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
    }


def _run_process(job: Path, threads: int, on_progress: Progress | None) -> None:
    log = job.parent.parent / "sft.log"
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "rlhf.stages.sft_process", str(job), str(writer)]
    with log.open("wb") as output:
        # The child ends itself when its stdin closes, so that it never outlives this process.
        process = subprocess.Popen(
            command,
            env=_environment(threads),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=(writer,),
        )
    os.close(writer)
    with process, open(reader, encoding="utf-8") as channel:
        try:
            for line in channel:
                if on_progress is not None:
                    on_progress(json.loads(line))
            code = process.wait()
        finally:
            process.kill()
    if code != 0:
        last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:])
        raise LearnerError(f"sft: the training process ended with code {code} (log: {log}):\n{last}")
