"""Join or start Ray, and end what was started. The only place where environment variables are decided."""

import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import ray

from rlhf.config.schema import PlacementConfig
from rlhf.errors import PlacementError
from rlhf.machine import usable_cores

TEMP_PREFIX = "rlhf-ray-"
OBJECT_STORE_BYTES = 2 * 2**30
_CONNECT_S = 10.0
_STARTS = 3
"""Tries to start a local Ray, whose own limit of 30 s cannot be set."""
_TOO_SLOW = "timed out during startup"

logger = logging.getLogger(__name__)


def thread_environment(threads: int) -> dict[str, str]:
    """Environment of a torch process: `threads` OpenMP threads that sleep, not spin, while they wait."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }


def device_for(placement: PlacementConfig) -> str:
    """`cpu` or `cuda`; raises PlacementError when CUDA is asked for and absent."""
    import torch

    if placement.device == "cuda" and placement.address is None and not torch.cuda.is_available():
        raise PlacementError(
            "placement.device is cuda but this machine has no usable GPU. Use placement.device=auto, "
            "or name a cluster that has GPUs with placement.address."
        )
    if placement.device == "auto" and placement.address is not None:
        raise PlacementError(
            f"placement.address is {placement.address!r} but placement.device is auto: this machine cannot tell what "
            "the cluster's machines have. Set placement.device to cuda or cpu."
        )
    if placement.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return placement.device


@contextlib.contextmanager
def ray_session(placement: PlacementConfig, *, code_dir: Path) -> Iterator[None]:
    """A Ray to run in: the cluster at `placement.address`, or a local one that ends with this block.

    `code_dir` comes first on the path of every worker; on a cluster it is shipped.
    """
    path = os.pathsep.join([str(code_dir), *filter(None, [os.environ.get("PYTHONPATH")])])
    runtime_env: dict[str, object] = {"env_vars": {"PYTHONPATH": path, "RAY_DEDUP_LOGS": "1"}}
    if placement.address is not None:
        with _own_sigterm():
            _join(placement.address, code_dir)
        try:
            yield
        finally:
            ray.shutdown()
        return
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{TEMP_PREFIX}{os.getpid()}-"))
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with _own_sigterm():
            _start(placement, runtime_env, folder)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _start(placement: PlacementConfig, runtime_env: dict[str, object], folder: Path) -> None:
    """A local Ray. PlacementError when its processes are too slow to start, in several tries."""
    for attempt in range(_STARTS):
        try:
            ray.init(
                address="local",
                num_cpus=placement.num_cpus or usable_cores(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                object_store_memory=min(OBJECT_STORE_BYTES, psutil.virtual_memory().available // 10),
                runtime_env=runtime_env,
                _temp_dir=str(folder),
            )
            return
        except Exception as error:  # Ray raises no narrower one
            ray.shutdown()
            if _TOO_SLOW not in str(error):
                raise
            logger.warning("Ray did not start within its 30 s, try %d of %d", attempt + 1, _STARTS)
    raise PlacementError(
        f"Ray did not start within 30 s, in {_STARTS} tries: its processes get too little of this machine. End what "
        "keeps it busy, or join a running cluster with placement.address."
    )


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the command line's handler: that of Ray exits on the spot, past every clean-up."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _join(address: str, code_dir: Path) -> None:
    """Connect to a running cluster, or say within seconds that there is none."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host:
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        ray.init(
            address=address,
            runtime_env={"working_dir": str(code_dir), "excludes": ["runs", ".venv", ".git"]},
            log_to_driver=False,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise PlacementError(
            f"placement.address is {address!r}, but no Ray cluster answers there ({error}). Start one with "
            "`ray start --head`, mend the address (host:port, or auto), or leave the key out to start a local one. "
            "A cluster that asks for Ray's token wants RAY_AUTH_MODE=token in the environment."
        ) from error


def _sweep() -> None:
    """Remove the folders of local Rays whose driver was killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMP_PREFIX}*"):
        owner = folder.name.removeprefix(TEMP_PREFIX).split("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
