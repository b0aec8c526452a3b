"""kill -9 of a process that collects and selects, at any moment: the same files, nothing graded twice."""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.toy import ROOT

pytestmark = pytest.mark.slow
OUTPUTS = ("rows.jsonl", "prompts.jsonl", "summary.json", "metrics.json")


def start(folder: Path, graded: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, "-m", "tests.collecting", str(folder), str(graded)], cwd=ROOT)


def journaled(folder: Path) -> set[str]:
    """Prompts whose grades lie on disk, in whole lines."""
    found = set()
    for chunk in (folder / "collected").glob("chunk-*.jsonl"):
        found |= {json.loads(line)["id"] for line in chunk.read_text().splitlines()}
    for journal in (folder / "collected").glob("grades-*.jsonl"):
        whole = journal.read_text().rpartition("\n")[0].splitlines()
        found |= {json.loads(line)["prompt"] for line in whole}
    return found


def files(folder: Path) -> dict[str, bytes]:
    chunks = sorted((folder / "collected").iterdir())
    return {path.name: path.read_bytes() for path in [*chunks, *(folder / name for name in OUTPUTS)]}


def test_what_is_killed_while_it_collects_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    assert start(tmp_path / "whole", tmp_path / "once").wait() == 0
    graded, folder, generator = tmp_path / "graded", tmp_path / "killed", random.Random(0)
    killed_after: list[int] = []
    graded.touch()
    while True:
        before, known = graded.read_text().count("\n"), journaled(folder)
        process = start(folder, graded)
        # Its start takes seconds, its work a fraction of one: count the work.
        wanted = before + generator.randrange(1, 12)
        while process.poll() is None and graded.read_text().count("\n") < wanted:
            time.sleep(0.0005)
        process.kill()
        ended = process.wait()
        lines = graded.read_text().split()
        assert known.isdisjoint(lines[before:])
        if ended == 0:
            break
        killed_after.append(len(lines))
    assert len(killed_after) >= 2
    assert files(folder) == files(tmp_path / "whole")
    assert Counter((tmp_path / "once").read_text().split()).most_common(1)[0][1] == 1
