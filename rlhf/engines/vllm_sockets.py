"""Sockets that vLLM leaves behind."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

_SOCKETS = "VLLM_RPC_BASE_PATH"


@contextlib.contextmanager
def removed_sockets() -> Iterator[None]:
    """A folder for the sockets that vLLM names in this time, removed at its end.

    It never removes them, and sockets that are connected need no names: so a kill leaves none behind either.
    """
    before = {name: value for name, value in os.environ.items() if name == _SOCKETS}
    # Short: the path of a socket has room for 107 bytes.
    with tempfile.TemporaryDirectory(prefix=f"rlhf-{os.getpid()}-", dir=before.get(_SOCKETS)) as folder:
        os.environ[_SOCKETS] = folder
        try:
            yield
        finally:
            del os.environ[_SOCKETS]
            os.environ.update(before)
