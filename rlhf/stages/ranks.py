"""Several ranks of one training on this machine: `python -m rlhf.stages.ranks NUM MODULE job.json DESCRIPTOR`.

Starts MODULE once for each rank, with the variables of torch.distributed set before anything heavy is imported, in the
process group of the caller. Ends all of them when one fails or when stdin closes.
"""

import os
import subprocess
import sys
import threading
import time

from rlhf.machine import free_port


def start_ranks(num_ranks: int, module: str, arguments: list[str]) -> int:
    """Run the ranks to their end; returns the first exit code that is not 0, else 0."""
    shared = {
        "WORLD_SIZE": num_ranks,
        "LOCAL_WORLD_SIZE": num_ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),  # on every address, as torch listens
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=os.environ
            | {name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()},
            stdin=subprocess.PIPE,
            pass_fds=(int(arguments[-1]),),
        )
        for rank in range(num_ranks)
    ]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        codes = [process.poll() for process in ranks]
        failed = [code for code in codes if code]
        if failed or all(code == 0 for code in codes):
            for process in ranks:
                process.kill()
                process.wait()
            return abs(failed[0]) if failed else 0
        time.sleep(0.05)


def _end_with_parent() -> None:
    """The ranks read the pipes of this process: they end with it."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(start_ranks(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
