"""`rlhf pipeline`, and the page that `rlhf report` writes for a pipeline's folder."""

import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rlhf.config.pipeline import load_pipeline
from rlhf.pipeline.opened import Pipeline, pipeline_yaml
from rlhf.pipeline.report import write_pipeline_report
from rlhf.pipeline.runner import run_in_child, run_pipeline, stage_command
from rlhf.pipeline.summary import closing_tables, finished_stages, times_line
from rlhf.telemetry.logs import TERMINAL

logger = logging.getLogger(__name__)


def pipeline(
    path: str,
    overrides: Sequence[str],
    *,
    code_dir: Path,
    choice: tuple[str | None, Sequence[str]] | None,
    verbose: bool,
) -> int:
    """Run what is not done and sum it up; without a choice (--until, --redo), only draw it."""
    opened = Pipeline.of(load_pipeline(path, overrides), code_dir=code_dir)
    if choice is None:
        from rlhf.pipeline.drawing import draw

        sys.stdout.write(pipeline_yaml(opened.config, opened.stages))
        TERMINAL.print(draw(opened.config, opened.survey()))
        return 0
    until, redo = choice
    start = partial(run_in_child, command=stage_command(code_dir=code_dir, verbose=verbose))
    run_pipeline(opened, start=start, until=until, redo=redo)
    stages = finished_stages(opened.config.folder)
    TERMINAL.print(*closing_tables(stages), sep="\n")
    sys.stdout.write(f"{times_line(stages)}\nreport: {write_pipeline_report(opened.config.folder)}\n")
    return 0
