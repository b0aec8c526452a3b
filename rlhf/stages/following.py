"""A training process and its ranks, from the side of the process that started it."""

import os
import selectors
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rlhf.errors import DeadlineError, LearnerError

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def trainer_environment(*, num_ranks: int, threads: int) -> dict[str, str]:
    """The child's variables: no rank inherited from a launcher, one GPU for each rank, no telemetry ping."""
    inherited = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    every = ",".join(str(index) for index in range(num_ranks))
    return inherited | {
        "OMP_NUM_THREADS": str(threads),
        # Waiting threads must not spin: beside one other busy process that costs ten times the step.
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # TRL refuses to train with several GPUs in one process.
        "CUDA_VISIBLE_DEVICES": ",".join(
            os.environ.get("CUDA_VISIBLE_DEVICES", every).split(",")[:num_ranks]
        ),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A training process that was started, perhaps before there is a job for it."""

    process: subprocess.Popen[bytes]
    channel: IO[bytes]
    """What it writes to the descriptor given as its last argument."""
    log: Path
    """What it prints; the name without its suffix is that of the stage in errors."""

    def end(self) -> None:
        """Kill its process group if it still runs."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.channel.close()
        if self.process.stdin is not None:
            self.process.stdin.close()


def launch(command: Sequence[str], *, environment: Mapping[str, str], log: Path) -> Child:
    """Start a training process, with a descriptor to write to as its last argument.

    It should end when its stdin closes, so that it never outlives this one.
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
    return Child(process=process, channel=open(reader, "rb", buffering=0), log=log)


def follow(child: Child, *, silence_s: float, on_line: Callable[[str], None]) -> None:
    """Wait for the end of a training process and hand over the lines that it writes to its channel.

    Blank lines are signs of life and are not handed over.
    Raises LearnerError when it fails, DeadlineError when it is silent for `silence_s` seconds; its process
    group is killed then, and when `on_line` raises.
    """
    process, log = child.process, child.log
    name = log.stem
    try:
        for line in _lines(child.channel, process, silence_s):
            if line:
                on_line(line)
        code = process.wait(silence_s)
    except subprocess.TimeoutExpired as error:
        raise DeadlineError(
            f"{name}: the training process made no progress for {silence_s:g} s and was ended "
            f"(log: {log}):\n{_last_lines(log)}"
        ) from error
    finally:
        child.end()
    if code != 0:
        raise LearnerError(
            f"{name}: the training process ended with code {code} (log: {log}):\n{_last_lines(log)}"
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
