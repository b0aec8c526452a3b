"""Run by the interpreter that has `verifiers`: lists an environment's tasks, or plays one. Imports nothing of ours."""

import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

_FIELDS = ("prompt", "example_id", "answer", "info", "task")


def main() -> None:
    """`list TOLD RESULT ASKED` or `play TOLD RESULT`; JSON in and, in the file RESULT, out."""
    do, told, result, *rest = sys.argv[1:]
    settings = json.loads(told)
    if settings["path"]:
        sys.path.insert(0, settings["path"])
    import verifiers

    environment = verifiers.load_environment(settings["id"], **settings["args"])
    if do == "list":
        answer: Any = _tasks(environment, **json.loads(rest[0]))
    else:
        answer = asyncio.run(_play(environment))
    Path(result).write_text(json.dumps(answer, default=str), encoding="utf-8")


def _tasks(environment: Any, *, split: str, seed: int, size: int) -> list[dict[str, Any]]:
    get = environment.get_dataset if split == "train" else environment.get_eval_dataset
    tasks = get().shuffle(seed=seed)
    chosen = tasks.select(range(min(size, len(tasks)))).to_list()
    return [{name: task[name] for name in _FIELDS if task.get(name) is not None} for task in chosen]


async def _play(environment: Any) -> dict[str, Any]:
    from verifiers.types import ClientConfig

    task = json.loads(Path(os.environ["TASK_FILE"]).read_text(encoding="utf-8"))["columns"]["verifiers"]
    # Tries are the runner's: one of the package's own would sample the same turn a second time.
    client = ClientConfig(
        api_key_var="OPENAI_API_KEY", api_base_url=os.environ["OPENAI_BASE_URL"], max_retries=0
    )
    broken = _Raised(logging.ERROR)
    rubrics = logging.getLogger("verifiers.rubrics")
    rubrics.addHandler(broken)
    # An environment may have turned the package's log down, or off.
    rubrics.setLevel(logging.ERROR)
    logging.disable(logging.NOTSET)
    found = await environment.run_rollout(task, client, "policy", {})
    return {
        "raised": broken.told,
        "reward": found.get("reward"),
        "metrics": {name: value for name, value in (found.get("metrics") or {}).items() if value is not None},
        "error": json.dumps(found["error"], default=str) if found.get("error") else "",
    }


class _Raised(logging.Handler):
    """What the rubric's functions raised: the package counts it as 0, and tells only its log."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.told = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.told += f"{record.getMessage()}\n"


if __name__ == "__main__":
    main()
