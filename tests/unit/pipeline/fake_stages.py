"""A pipeline whose stages compute digests in place of training: what they read decides what they leave.

As a script, `pipeline FILE` runs it, every stage in a child, `stage FILE`; `endless FILE` with stages that take hours.
"""

import hashlib
import json
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from rlhf.config.pipeline import load_pipeline
from rlhf.config.stage_kinds import KINDS
from rlhf.content_hashes import ContentHashes
from rlhf.pipeline.child import Outcome, end_with_stdin, run_stage
from rlhf.pipeline.identity import learned
from rlhf.pipeline.job import Job
from rlhf.pipeline.opened import Pipeline
from rlhf.pipeline.runner import run_in_child, run_pipeline

SCRIPT = [sys.executable, "-m", "tests.unit.pipeline.fake_stages"]
PAUSE_S = 0.02
CHUNKS = 8
MODEL = {
    "config": {"model_type": "qwen3", "hidden_size": 64}, "tokenizer": "characters", "dtype": "float32",
}  # fmt: skip


def write_pipeline(folder: Path, **changes: Any) -> Path:
    """A pipeline of six stages in which everything depends on something; `changes` are top-level keys."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "demonstrations.jsonl"
    if not data.exists():
        data.write_text(json.dumps({"prompt": "1+1=", "completion": "2"}) + "\n")
    (folder / "grading.py").write_text("def grade(completion, reference): return 1.0\n")
    reward = {"use": f"{folder / 'grading.py'}:grade"}
    train = {"file": str(data)}
    values: dict[str, Any] = {
        "name": "fake",
        "run_dir": str(folder / "run"),
        "models": {"base": MODEL},
        "shared": {"task": {"template": "{prompt}", "rewards": [reward]}, "sampling": {"max_tokens": 8}},
        "stages": {
            "scores": {
                "kind": "eval",
                "models": {"Dev1": "${cold_start}", "Dev2": "${rl}", "Dev3": "${final}"},
                "sets": {"sums": {"source": train}},
            },
            "cold_start": {"kind": "sft", "model": "base", "sft": {"source": train}},
            "rl": {"kind": "rl", "model": "${cold_start}", "task": {"train": train}},
            "reject": {"kind": "reject", "model": "${rl}", "task": {"train": train}},
            "final": {"kind": "sft", "model": "base", "sft": {"source": {"file": "${reject.rows}"}}},
            "student": {"kind": "distill", "model": "base", "sft": {"source": {"file": "${reject.rows}"}, "lr": 0.1}},
        },
    }  # fmt: skip
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False))
    return path


def fake(job: Job, code_dir: Path) -> Outcome:
    """Read the settings and the inputs, chunk by chunk as far as an earlier process did not, and leave digests.

    What `reject` leaves does not depend on its seed.
    """
    _note(job, "begins")
    hashes = ContentHashes(job.folder / "nowhere")
    inputs = sorted((link.name, hashes.of(link)) for link in (job.folder / "inputs").iterdir())
    settings = learned(
        job.section.model_dump(mode="json", exclude={"seed"} if job.kind == "reject" else set())
    )
    settings = json.loads(json.dumps(settings).replace(str(job.folder), ""))
    digest = hashlib.sha256(json.dumps([job.kind, settings, inputs]).encode()).hexdigest()
    progress = job.folder / "progress.txt"
    done = len(progress.read_text().splitlines()) if progress.exists() else 0
    for chunk in range(done, CHUNKS):
        _pause()
        with progress.open("a") as file:
            file.write(f"{chunk}\n")
    text = f"{digest} {progress.read_text()}"
    for name, path in KINDS[job.kind].artefacts.items():
        file = job.folder / path
        if name == "model":
            file.mkdir(exist_ok=True)
            (file / "config.json").write_text("{}")
            (file / "sft.json").write_text(str(time.time()))  # no part of the model
            file = file / "model.safetensors"
        file.write_text(f"{name} {text}")
    return Outcome(metrics={"sft/loss": 1.0})


def _pause() -> None:
    """In naps: a signal that comes just before one long sleep would wait for its end."""
    deadline = time.monotonic() + PAUSE_S
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))


def _note(job: Job, what: str) -> None:
    with (job.folder.parents[2] / "ledger.txt").open("a") as ledger:
        ledger.write(f"{job.stage} {what}\n")


def begun(folder: Path) -> list[str]:
    """The stages that were begun, in order, and forget them."""
    ledger = folder / "ledger.txt"
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    ledger.unlink(missing_ok=True)
    return [line.split()[0] for line in lines]


def run_here(path: Path, *overrides: str, **choice: Any) -> Pipeline:
    """Run the pipeline with its stages in this process."""
    pipeline = Pipeline.of(load_pipeline(path, overrides), code_dir=path.parent)

    def start(_: str, file: Path) -> None:
        run_stage(file, code_dir=path.parent, execute=fake)

    run_pipeline(pipeline, start=start, **choice)
    return pipeline


def main(command: str, path: Path) -> None:
    global PAUSE_S  # noqa: PLW0603
    # As `rlhf.cli` does: a shell starts background jobs, and so their tests, with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if command in ("stage", "endless-stage"):
        end_with_stdin()
        PAUSE_S = PAUSE_S if command == "stage" else 600.0
        run_stage(path, code_dir=path.parent, execute=fake)
        return
    pipeline = Pipeline.of(load_pipeline(path), code_dir=path.parent)
    stage = "stage" if command == "pipeline" else "endless-stage"
    run_pipeline(pipeline, start=partial(run_in_child, command=[*SCRIPT, stage]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
