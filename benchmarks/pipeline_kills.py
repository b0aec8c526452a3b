"""A pipeline that is killed at random moments against the same pipeline left alone: what differs at the end.

`python benchmarks/pipeline_kills.py recipes/cpu/r1.yaml --kills 5 --seed 0 --folder runs/kills` runs it once in
peace and once with SIGKILLs, sent in turn to the pipeline's process, to the stage's, and to the busiest below that (an
engine, a learner rank). It prints where each kill fell, whether a finished stage was run again, and which artefacts
differ. Exit code 1 if a stage was repeated or an artefact differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
from rich.console import Console
from rich.table import Table

from rlhf.pipeline.manifest import Manifest
from rlhf.pipeline.result import read_result

VICTIMS = ("pipeline", "stage", "below")
TICK_S = 0.05
ENDS_S = 60.0
"""A pipeline that has not ended so long after a kill has survived it."""
BURIED_S = 180.0
"""Longest wait for what a kill leaves behind to end."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One SIGKILL: when, whom, and in which stage."""

    second: float
    victim: str
    stage: str
    finished: int


def main() -> int:
    """Run both, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--folder", type=Path, default=Path("runs/kills"))
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "rlhf.cli", "pipeline", arguments.recipe, *arguments.overrides]
    calm, rough = arguments.folder / "calm", arguments.folder / "rough"
    started = time.monotonic()
    subprocess.run([*command, f"run_dir={calm}"], check=True)
    # A calm run that was there already took the seconds of its stages.
    seconds = max(time.monotonic() - started, sum(r.seconds for r in Manifest.read(calm).records.values()))
    draw = random.Random(arguments.seed)
    moments = sorted(draw.uniform(0, seconds) for _ in range(arguments.kills))
    kills, repeated = disturb([*command, f"run_dir={rough}"], rough, moments)
    differences = compare(calm, rough)
    show(kills, repeated, differences, seconds)
    return 1 if repeated or any(differences.values()) else 0


def disturb(command: Sequence[str], folder: Path, moments: Sequence[float]) -> tuple[list[Kill], list[str]]:
    """Run to the end with a kill at each second of working time; the kills, and the finished stages that ran again."""
    kills: list[Kill] = []
    stamps: dict[str, int] = {}
    repeated: set[str] = set()
    process, worked = _begin(command), 0.0
    for number, moment in enumerate(moments):
        while worked < moment and process.poll() is None:
            time.sleep(TICK_S)
            worked += TICK_S
        if process.poll() == 0:
            break
        victim, finished = VICTIMS[number % len(VICTIMS)], _stamps(folder)
        kills.append(Kill(second=moment, victim=victim, stage=_stage(folder), finished=len(finished)))
        repeated |= {name for name, stamp in stamps.items() if finished.get(name) != stamp}
        stamps = finished
        if _kill(process, victim):
            process = _begin(command)
    if process.wait() != 0:
        subprocess.run(command, check=True)
    finished = _stamps(folder)
    repeated |= {name for name, stamp in stamps.items() if finished.get(name) != stamp}
    return kills, sorted(repeated)


def _begin(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, start_new_session=True)


def _kill(process: "subprocess.Popen[bytes]", victim: str) -> bool:
    """Whether the pipeline has ended of it, with all that was below. What it survives, it goes on after."""
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(_chosen(process.pid, family, victim), signal.SIGKILL)
    try:
        process.wait(ENDS_S)
    except subprocess.TimeoutExpired:
        return False
    _bury(family)
    return True


def compare(calm: Path, rough: Path) -> dict[str, list[str]]:
    """Stage -> its artefacts whose contents differ."""
    one, other = Manifest.read(calm), Manifest.read(rough)
    found = {}
    for stage, folder in one.present.items():
        theirs = other.records[other.present[stage]].artefacts
        found[stage] = [
            name for name, digest in one.records[folder].artefacts.items() if theirs[name] != digest
        ]
    return found


def show(
    kills: Sequence[Kill], repeated: Sequence[str], differences: dict[str, list[str]], seconds: float
) -> None:
    """Two tables and a line."""
    console = Console()
    table = Table(title=f"kills in {seconds:.0f} s of work")
    for heading in ("at", "killed", "in stage", "finished before"):
        table.add_column(heading)
    for kill in kills:
        table.add_row(f"{kill.second:.0f} s", kill.victim, kill.stage, str(kill.finished))
    console.print(table)
    table = Table(title="against the run in peace")
    for heading in ("stage", "artefacts"):
        table.add_column(heading)
    for stage, names in differences.items():
        table.add_row(stage, f"differ: {', '.join(names)}" if names else "equal, bit for bit")
    console.print(table)
    console.print(f"finished stages that were run again: {', '.join(repeated) or 'none'}")


def _stamps(folder: Path) -> dict[str, int]:
    """Folder of a finished stage -> when its result was written, which never changes again."""
    files = folder.glob("stages/*/result.json")
    return {
        file.parent.name: file.stat().st_mtime_ns for file in files if read_result(file.parent) is not None
    }


def _stage(folder: Path) -> str:
    """The stage whose folder was begun last."""
    begun = sorted(folder.glob("stages/*/stage.yaml"), key=lambda file: file.stat().st_mtime_ns)
    return begun[-1].parent.name if begun else "-"


def _chosen(pid: int, family: Sequence[psutil.Process], victim: str) -> int:
    children = [process for process in family if process.is_running() and process.ppid() == pid]
    below = [process for process in family if process.is_running() and process not in children]
    if victim == "pipeline" or not children:
        return pid
    if victim == "stage" or not below:
        return children[0].pid
    busiest = max(below, key=lambda process: sum(process.cpu_times()[:2]))
    return busiest.pid


def _bury(family: Sequence[psutil.Process]) -> None:
    _, left = psutil.wait_procs(list(family), timeout=BURIED_S)
    if left:
        raise RuntimeError(f"{BURIED_S:g} s after the kill these still run: {left}")


if __name__ == "__main__":
    sys.exit(main())
