"""An agent script of your own, trained as it is: it asks the model through `openai` and says itself how well it went.

    environment: {use: "envs.script:script_environment", kwargs: {script: my_agent.py, columns: [reference]}}

The script finds OPENAI_BASE_URL, OPENAI_API_KEY and TASK_FILE (JSON: id, messages, and of the row what `columns` names)
in its environment, and writes `score.json` into its folder: a number, or an object with `score`, whose other numbers
are logged. It is run in a fork that has made `imports`, and so begins in milliseconds.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.episodes.program import Finished, ProgramEnvironment
from rlhf.episodes.warm_script import WarmScript
from rlhf.errors import EpisodeError
from rlhf.interfaces import Context

_SCORE = "score.json"
_TAIL = 2000
_STARTED_IN = os.getcwd()
"""What relative paths are relative to: an episode has a folder of its own."""


def script_environment(
    *, script: str, imports: Sequence[str] = ("openai",), columns: Sequence[str] = ()
) -> ProgramEnvironment:
    """The script at this path. ConfigError when it, or what it imports, is not there."""
    path = Path(_STARTED_IN, script)
    return ProgramEnvironment(WarmScript(path, imports=tuple(imports)), score=read_score, columns=columns)


def warm_up(**options: Any) -> None:
    """Make the imports once, before the first episode."""
    script_environment(**options)
    if openai := sys.modules.get("openai"):
        # It imports most of itself at its first use.
        with openai.OpenAI(base_url="http://nowhere", api_key="none") as client:
            _ = client.chat.completions


def read_score(context: Context) -> float | Mapping[str, float]:
    """What the script has written; 0 when a limit of ours ended it before. EpisodeError when it failed by itself."""
    finished: Finished = context.state
    is_ended = finished.exit_code is None or finished.ended is not None
    if finished.exit_code and not is_ended:
        # What it has written before may be a start value.
        raise EpisodeError(f"the script ended with code {finished.exit_code}: {finished.stderr[-_TAIL:]}")
    try:
        found: float | Mapping[str, float] = json.loads(Path(context.folder, _SCORE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        if is_ended:
            return 0.0
        raise EpisodeError(f"the script left no {_SCORE} ({error!r}): {finished.stderr[-_TAIL:]}") from error
    return found
