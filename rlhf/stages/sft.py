"""The cold start: supervised fine-tuning in a process of its own."""

import json
import logging
import os
import selectors
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import IO

from rlhf.config.trainer import SftConfig
from rlhf.data.prompts import load_prompts
from rlhf.episodes.chat import ChatRenderer
from rlhf.episodes.demonstration import demonstration_ids
from rlhf.episodes.endpoint_wire import read_messages
from rlhf.episodes.render import Renderer
from rlhf.errors import DataError, DeadlineError, LearnerError, ModelError
from rlhf.types import Prompt

logger = logging.getLogger(__name__)

DONE = "sft.json"
METRICS = "sft_metrics.jsonl"
KEY = "sft.source"
SILENCE_S = 600.0
"""Longest wait for a sign of life, which the child gives after loading and after every optimizer step: longer
than reading tens of gigabytes from a network disk, or than the slowest step on a laptop."""
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
Row = tuple[list[int], list[bool]]
"""(ids, which of them are learned: completions with eos, or an assistant's turns)"""
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
    training process dies, DeadlineError when it makes no progress for SILENCE_S seconds.
    """
    out = Path(out_folder)
    prompts = [
        prompt
        for key, source in config.sources.items()
        for prompt in load_prompts(source, key=key, require_reference=False)
    ]
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
    threads = config.threads or _usable_cores()
    settings |= {"model": renderer.model_folder, "out": str(out), "scratch": str(scratch)}
    settings |= {"metrics": str(out / METRICS), "seed": seed, "threads": threads, "rows": rows}
    settings["trust_remote_code"] = renderer.trust_remote_code
    job = scratch / "job.json"
    job.write_text(json.dumps(settings), encoding="utf-8")
    follow(
        [sys.executable, "-m", "rlhf.stages.sft_process", str(job)],
        environment=_environment(threads),
        log=out / "sft.log",
        silence_s=SILENCE_S,
        on_line=lambda line: on_progress(json.loads(line)) if on_progress is not None else None,
    )
    shutil.rmtree(scratch)
    _replace(done, json.dumps({"identity": identity, "config": config.model_dump()}))
    return str(out)


def tokenised_rows(prompts: Sequence[Prompt], renderer: Renderer, max_length: int) -> list[Row]:
    """Every row as ids: what RL would show the engine, and what the engine should sample then.

    A row has a `completion`, or `messages`: a whole conversation, whose assistant's turns are learned.
    Raises DataError naming the first row without either or with more than `max_length` tokens.
    """
    rows = []
    has_conversations = any("messages" in prompt.columns for prompt in prompts)
    chat = ChatRenderer(renderer) if has_conversations else None
    for prompt in prompts:
        where = f"{KEY}: row {prompt.id}"
        if chat is not None and "messages" in prompt.columns:
            row = _conversation(prompt, chat, where=where)
        else:
            row = _answer(prompt, renderer, where=where)
        rows.append(row)
    lengths = {prompt.id: len(ids) for prompt, (ids, _) in zip(prompts, rows, strict=True)}
    too_long = [name for name, length in lengths.items() if length > max_length]
    if too_long:
        others = f", and so have {len(too_long) - 1} of the other rows" if len(too_long) > 1 else ""
        raise DataError(
            f"{KEY}: row {too_long[0]} has {lengths[too_long[0]]} tokens, more than sft.max_length ({max_length})"
            f"{others}; the longest has {max(lengths.values())}. "
            "Rows are never cut: raise the limit, or leave such rows out with a mapper."
        )
    return rows


def _conversation(prompt: Prompt, chat: ChatRenderer, *, where: str) -> Row:
    try:
        messages = read_messages(prompt.columns["messages"])
        return demonstration_ids(chat, messages, prompt.columns.get("tools") or ())
    except (DataError, ModelError, TypeError, ValueError) as error:
        raise DataError(f"{where}: its `messages` cannot be learned: {error}") from error


def _answer(prompt: Prompt, renderer: Renderer, *, where: str) -> Row:
    text = prompt.columns.get("completion")
    if not isinstance(text, str) or not text:
        raise DataError(
            f"{where} has no `completion` (found {text!r:.40}) and no `messages`, expected what is to be learned; "
            f"its columns are {sorted(prompt.columns)}."
        )
    question = renderer.encode_prompt(prompt)
    answer = renderer.encode_completion(text, where=where)
    return [*question, *answer], [False] * len(question) + [True] * len(answer)


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


def _usable_cores() -> int:
    """Cores this process may use; macOS only tells how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _replace(path: Path, text: str) -> None:
    """Write a file in one rename: a kill leaves the old one or the new one."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def follow(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: Path,
    silence_s: float,
    on_line: Callable[[str], None],
) -> None:
    """Run a process to its end and hand over what it writes to the descriptor given as its last argument.

    Blank lines are signs of life and are not handed over. The process should end when its stdin closes, so
    that it never outlives this one; what it prints goes to `log`.
    Raises LearnerError when it fails, DeadlineError when it is silent for `silence_s` seconds; its process
    group is killed then, and when `on_line` raises.
    """
    reader, writer = os.pipe()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, str(writer)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=(writer,),
            process_group=0,
        )
    os.close(writer)
    with process, open(reader, "rb", buffering=0) as channel:
        try:
            for line in _lines(channel, process, silence_s):
                if line:
                    on_line(line)
            code = process.wait(silence_s)
        except subprocess.TimeoutExpired as error:
            raise DeadlineError(
                f"sft: the training process made no progress for {silence_s:g} s and was ended "
                f"(log: {log}):\n{_last_lines(log)}"
            ) from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if code != 0:
        raise LearnerError(
            f"sft: the training process ended with code {code} (log: {log}):\n{_last_lines(log)}"
        )


def _lines(channel: IO[bytes], process: subprocess.Popen[bytes], silence_s: float) -> Iterator[str]:
    held = b""
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        while selector.select(silence_s):
            received = channel.read(1 << 16)
            if not received:
                return
            *lines, held = (held + received).split(b"\n")
            yield from (line.decode() for line in lines)
    raise subprocess.TimeoutExpired(process.args, silence_s)


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:])
