"""One environment for every test, and a check at the end that nothing was left behind."""

import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from jaxtyping import install_import_hook

# Before torch, Ray or a tokenizer is imported: threads that spin make a shared machine ten times slower.
SESSION = uuid.uuid4().hex
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    OMP_WAIT_POLICY="PASSIVE",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    RAY_USAGE_STATS_ENABLED="0",
    VLLM_NO_USAGE_STATS="1",
    WANDB_MODE="offline",
    RLHF_TEST_SESSION=SESSION,
)

# Shapes are checked at run time under test, and free in production.
install_import_hook(["rlhf.batch", "rlhf.algorithms"], "beartype.beartype")

PREFIXES = ("rlhf-", "rlhf_")
GRACE_S = 60.0
"""What other runs on this machine, such as the tests beside these, leave behind for a moment goes away."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs GPUs where there are too few, with the reason."""
    marked = [(item, 2 if item.get_closest_marker("multigpu") else 1) for item in items if _needs_gpu(item)]
    if not marked:
        return
    import torch

    found = torch.cuda.device_count()
    for item, needed in marked:
        if found < needed:
            item.add_marker(pytest.mark.skip(reason=f"needs {needed} CUDA GPU(s), found {found}"))


def _needs_gpu(item: pytest.Item) -> bool:
    return item.get_closest_marker("gpu") is not None or item.get_closest_marker("multigpu") is not None


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Set up first and so torn down last: no process and no temporary file of this session outlives it."""
    files_before = _product_files()
    yield
    deadline = time.monotonic() + GRACE_S
    while ((processes := _processes()) or _left(files_before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not processes, f"processes left running: {processes}"
    files = _left(files_before)
    assert not files, f"temporary files left: {sorted(map(str, files))}"


def _processes() -> list[str]:
    """Every living process that inherited this session's mark, its children's orphans included."""
    left = []
    for process in psutil.process_iter():
        try:
            is_ours = process.environ().get("RLHF_TEST_SESSION") == SESSION
            command = " ".join(process.cmdline())
            # Python's own tracker of this very process ends when its pipe closes, with us.
            is_tracker = "multiprocessing.resource_tracker" in command and process.ppid() == os.getpid()
            if is_ours and not is_tracker and process.pid != os.getpid() and command:
                left.append(f"{process.pid} {command[:120]}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return left


def _product_files() -> set[Path]:
    folders = [Path(tempfile.gettempdir()), Path("/dev/shm")]
    return {
        path
        for folder in folders
        if folder.is_dir()
        for path in folder.iterdir()
        if path.name.startswith(PREFIXES)
    }


def _left(before: set[Path]) -> list[Path]:
    """Files made since; another run on this machine owns those that carry a live process's id."""
    return [path for path in _product_files() - before if not _has_live_owner(path)]


def _has_live_owner(path: Path) -> bool:
    numbers = [int(part) for part in path.name.replace("_", "-").split("-") if part.isdigit()]
    return any(number != os.getpid() and psutil.pid_exists(number) for number in numbers)
