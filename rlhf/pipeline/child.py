"""One stage in a process of its own: `rlhf stage FILE`, which is what a pipeline starts."""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhf.config.stage_kinds import KINDS
from rlhf.errors import StageError
from rlhf.pipeline.job import Job, read_job
from rlhf.pipeline.result import FILE as RESULT
from rlhf.pipeline.result import Result, read_result, write_result
from rlhf.run_folder import own

logger = logging.getLogger(__name__)

LOCK = ".stage.lock"
WAIT_S = 120.0
"""For a process that still works in the folder: that of a pipeline which was killed is about to end."""
GRACE_S = 30.0
"""Between the request to end and the end by force."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an executor hands back."""

    metrics: Mapping[str, float]
    artefacts: Mapping[str, str] | None = None
    """Name -> path below the stage's folder; default: those of the kind."""


Executor = Callable[[Job, Path], Outcome]
"""(job, code_dir) -> outcome. It can be called again in the same folder after a kill at any moment."""


def run_stage(file: Path, *, code_dir: Path, execute: Executor) -> Result:
    """Run the stage of `file` unless its folder holds its result already; the result is the last thing written."""
    job = read_job(file)
    taken = (
        f"another process has been working in {str(job.folder)!r} for {WAIT_S:g} s. Wait for it, or end it."
    )
    with own(job.folder / LOCK, taken=taken, wait_s=WAIT_S):
        found = read_result(job.folder)
        if found is not None and found.key == job.key and _is_whole(job.folder, found):
            logger.info("%s is finished: nothing to do", job.folder)
            return found
        # Of what is made anew in its place, it would say that it is whole as soon as it is begun.
        (job.folder / RESULT).unlink(missing_ok=True)
        started = time.monotonic()
        outcome = execute(job, code_dir)
        artefacts = KINDS[job.kind].artefacts if outcome.artefacts is None else outcome.artefacts
        for name, path in artefacts.items():
            if not (job.folder / path).exists():
                raise StageError(f"{job.stage}: the stage ended without its {name} ({job.folder / path}).")
        result = Result(
            kind=job.kind,
            key=job.key,
            metrics=dict(outcome.metrics),
            artefacts=dict(artefacts),
            seconds=round(time.monotonic() - started, 3),
        )
        write_result(job.folder, result)
        return result


def _is_whole(folder: Path, result: Result) -> bool:
    return all((folder / path).exists() for path in result.artefacts.values())


def end_with_stdin() -> None:
    """End this process when its standard input closes, which happens when the pipeline's process dies."""
    threading.Thread(target=_watch_stdin, daemon=True).start()


def _watch_stdin() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE_S)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
