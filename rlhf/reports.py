"""`rlhf report FOLDER`: the page that fits what the folder holds."""

from pathlib import Path

import yaml

from rlhf.errors import ConfigError


def write_any_report(folder: Path) -> Path:
    """Write `report.html` for a run, a pipeline, an evaluation or a bench. ConfigError for another folder."""
    if (folder / "pipeline.yaml").is_file():
        from rlhf.pipeline.report import write_pipeline_report

        return write_pipeline_report(folder)
    if (folder / "eval.json").is_file():
        from rlhf.telemetry.eval_report import write_eval_report

        return write_eval_report(folder)
    if (folder / "bench.json").is_file():
        from rlhf.vision.report import write_bench_report

        return write_bench_report(folder)
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"{str(folder)!r} is not a run folder: it has no config.yaml, no eval.json, no bench.json and no "
            "pipeline.yaml."
        )
    if _aligns(folder / "config.yaml"):
        from rlhf.vision.run_report import write_alignment_report

        return write_alignment_report(folder)
    from rlhf.telemetry.report import write_report

    return write_report(folder)


def _aligns(config: Path) -> bool:
    """Whether a resolved recipe is one of retrieval alignment."""
    values = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    return "task" not in values and "gallery" in (values.get("data") or {})
