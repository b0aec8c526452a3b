"""Runs what is not done: one stage after the other, each in a process that ends with this one."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rlhf.config.references import Reference
from rlhf.errors import ConfigError, StageError
from rlhf.pipeline.graph import needed_by
from rlhf.pipeline.manifest import Verdict
from rlhf.pipeline.opened import Pipeline, Standing, held
from rlhf.telemetry.live import clock
from rlhf.telemetry.logs import logged_to

logger = logging.getLogger(__name__)

ASKED_FOR = Verdict(state="to do", why="asked for by --redo", altered=True)
Start = Callable[[str, Path], None]
"""(stage, its stage.yaml): run it to its end. Raises StageError when it fails."""


def run_pipeline(
    pipeline: Pipeline, *, start: Start, until: str | None = None, redo: Sequence[str] = ()
) -> None:
    """Run what is not done, of `until` and what it needs only if that is given. `redo` names stages to run again.

    Raises StageError when a stage ends without its result. The same call goes on from there.
    """
    chosen = pipeline.stages
    if until is not None:
        chosen = needed_by(pipeline.stage(until, option="--until").name, pipeline.stages)
    again = {pipeline.stage(name, option="--redo").name for name in redo}
    for name in sorted(again - {stage.name for stage in chosen}):
        raise ConfigError(
            f"--redo {name}: --until {until} leaves that stage out, as {until} does not need it. Drop one of the two."
        )
    with held(pipeline.config.folder), logged_to(pipeline.config.folder):
        pipeline.write_config()
        hashes: dict[Reference, str] = {}
        for number, stage in enumerate(chosen, 1):
            place = f"[{number}/{len(chosen)}] {stage.name}"
            standing = pipeline.judge(stage, hashes)
            if stage.name in again:
                standing = replace(standing, verdict=ASKED_FOR)
            hashes |= _run_one(pipeline, standing, hashes, place=place, start=start)


def _run_one(
    pipeline: Pipeline, standing: Standing, hashes: dict[Reference, str], *, place: str, start: Start
) -> dict[Reference, str]:
    """The hashes of the stage's artefacts, after running it if it is not done."""
    assert standing.identity is not None
    stage, verdict = standing.stage, standing.verdict
    folder = standing.identity.folder(stage.name)
    if verdict.altered:
        pipeline.manifest.put_aside(folder)
    if verdict.state == "done":
        is_present = pipeline.manifest.present.get(stage.name, folder) == folder
        said = verdict.why or ("done" if is_present else f"done before with these settings, in {folder}")
        logger.info("%s: %s", place, said)
        return pipeline.adopt(standing)
    logger.info("%s: %s (%s)", place, stage.kind, "goes on" if verdict.state == "resumes" else verdict.why)
    pipeline.manifest.forget(folder)
    file = pipeline.write_stage(standing)
    start(stage.name, file)
    found = pipeline.judge(stage, hashes)
    if found.verdict.state != "done":
        raise StageError(f"{stage.name} ended well but left no result in {file.parent}: {found.verdict.why}.")
    return _finished(pipeline, found, place)


def _finished(pipeline: Pipeline, standing: Standing, place: str) -> dict[Reference, str]:
    hashes = pipeline.adopt(standing)
    result = pipeline.manifest.result(standing.stage.name)
    assert result is not None
    logger.info("%s: done in %s", place, clock(result.seconds))
    return hashes


def run_in_child(stage: str, file: Path, *, command: Sequence[str]) -> None:
    """Run `command FILE` to its end; it must end when its standard input closes.

    An interrupt is passed on and waited for; a second one kills. Raises StageError when it ends with an error.
    """
    process = subprocess.Popen([*command, str(file)], stdin=subprocess.PIPE, process_group=0)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        logger.info("%s: ending it in order; once more to kill it", stage)
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
    if code != 0:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        raise StageError(
            f"{stage} {how}; what it said stands above and in {file.parent}. The same command, without --redo, "
            "goes on at this stage."
        )


def stage_command(*, code_dir: Path, verbose: bool = False) -> list[str]:
    """`rlhf stage`, tied to the process that starts it; the file goes last."""
    flags = ["--verbose"] if verbose else []
    return [sys.executable, "-m", "rlhf.cli", *flags, "stage", "--tied", "--code-dir", str(code_dir)]
