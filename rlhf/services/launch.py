"""The process of a service: `python -m rlhf.services.launch LIFELINE_FD ENGINE ARGUMENTS...`."""

import runpy
import sys

from rlhf.lifeline import tie_life_to

_VLLM = "vllm.entrypoints.openai.api_server"


def main() -> None:
    """Serve until the process is ended, or the one at the other end of the pipe is gone."""
    tie_life_to(int(sys.argv[1]))
    engine, arguments = sys.argv[2], sys.argv[3:]
    if engine == "vllm":
        sys.argv = [_VLLM, *arguments]
        runpy.run_module(_VLLM, run_name="__main__")
        return
    from rlhf.services.hf_server import serve

    serve(arguments[0])


if __name__ == "__main__":
    main()
