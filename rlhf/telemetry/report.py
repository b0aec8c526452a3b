"""`report.html`: the whole run in one file that needs no network."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from rlhf.telemetry.live import clock
from rlhf.telemetry.plots import Line, chart_data, metric_rows
from rlhf.telemetry.recording import read_samples, sample_files
from rlhf.telemetry.report_samples import embed_samples
from rlhf.telemetry.sinks import read_metrics

_SCRIPTS = ("dom.js", "plots.js", "samples.js", "page.js")


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into the run folder from what is there, and return its path.

    Reads metrics.jsonl, samples/, config.yaml and environment.json; whatever is missing is left out.
    """
    path = run_dir / "report.html"
    path.write_text(_page(report_data(run_dir)), encoding="utf-8")
    return path


def report_data(run_dir: Path) -> dict[str, Any]:
    """Everything the page shows, ready for JSON."""
    lines = merge_steps(read_metrics(run_dir))
    config_text = _read(run_dir / "config.yaml")
    config = (yaml.safe_load(config_text) if config_text else None) or {}
    environment = _read(run_dir / "environment.json")
    entries = [entry for path in sample_files(run_dir) for entry in read_samples(path)]
    max_staleness = _lookup(config, "schedule.max_staleness")
    return {
        "title": config.get("name") or run_dir.name,
        "facts": _facts(config),
        "status": _status(lines, _lookup(config, "schedule.num_steps")),
        "accuracy": _accuracy(lines),
        "cards": _cards(lines, max_staleness),
        "steps": [line["step"] for line in lines],
        "charts": chart_data(lines, max_staleness=max_staleness),
        "metrics": metric_rows(lines),
        "samples": embed_samples(entries),
        "config": config_text,
        "environment": _flat(json.loads(environment)) if environment else [],
    }


def merge_steps(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """One line per step, in order; a later line of a step adds to and overrides the earlier one."""
    merged: dict[int, dict[str, Any]] = {}
    for line in lines:
        merged.setdefault(line["step"], {}).update(line)
    return [merged[step] for step in sorted(merged)]


def _page(data: Mapping[str, Any]) -> str:
    assets = files("rlhf.telemetry") / "assets"
    page = (assets / "report.html").read_text(encoding="utf-8")
    scripts = "\n".join((assets / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    # The data goes in last: model text that looks like a placeholder must stay text.
    page = page.replace("/*STYLE*/", (assets / "report.css").read_text(encoding="utf-8"))
    page = page.replace("/*SCRIPT*/", scripts)
    return page.replace("/*DATA*/", embed_json(data))


def embed_json(data: object) -> str:
    """JSON that is safe inside a script element: no `<`, so nothing in it can end the element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # A model can sample half of a surrogate pair; UTF-8 has no place for it.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _facts(config: Mapping[str, Any]) -> list[list[str]]:
    wanted = (
        ("model", _model(config)),
        ("algorithm", _lookup(config, "algorithm.name")),
        ("engine", _lookup(config, "engine.kind")),
        ("placement", _lookup(config, "placement.kind")),
        ("prompts x samples", _product(config)),
        ("seed", config.get("seed")),
    )
    return [[label, str(value)] for label, value in wanted if value is not None]


def _model(config: Mapping[str, Any]) -> str | None:
    path = _lookup(config, "model.path")
    if path is not None:
        return Path(path).name
    kind = _lookup(config, "model.config.model_type")
    return None if kind is None else f"{kind}, random initialisation"


def _product(config: Mapping[str, Any]) -> str | None:
    prompts = _lookup(config, "schedule.prompts_per_step")
    samples = _lookup(config, "schedule.samples_per_prompt")
    return None if prompts is None or samples is None else f"{prompts} x {samples}"


def _status(lines: Sequence[Line], num_steps: int | None) -> dict[str, Any]:
    done = lines[-1]["step"] if lines else 0
    if num_steps is not None and done >= num_steps:
        return {"kind": "good", "text": f"finished, {done} steps"}
    if not lines:
        return {"kind": "bad", "text": "no step was recorded"}
    of = f" of {num_steps}" if num_steps is not None else ""
    return {"kind": "warn" if num_steps is not None else "plain", "text": f"{done}{of} steps recorded"}


def _accuracy(lines: Sequence[Line]) -> dict[str, Any] | None:
    evaluated = [line for line in lines if line.get("eval/accuracy") is not None]
    if not evaluated:
        return None
    keys = ("accuracy", "accuracy_low", "accuracy_high", "num_prompts")
    points = [{"step": line["step"]} | {key: line.get(f"eval/{key}") for key in keys} for line in evaluated]
    return {"before": points[0], "after": points[-1] if len(points) > 1 else None}


def _cards(lines: Sequence[Line], bound: int | None) -> list[dict[str, str]]:
    tokens = _present(lines, "rollout/num_tokens")
    rates = _present(lines, "rollout/tokens_per_s")
    seconds = [v for name in ("step_s", "eval_s", "checkpoint_s") for v in _present(lines, f"time/{name}")]
    nonfinite = sum(line.get("nonfinite", 0) for line in lines)
    cards = [
        _reward_card(lines),
        _card("Steps", str(lines[-1]["step"]) if seconds else None, _per_step(lines)),
        _card("Tokens sampled", _count(sum(tokens)) if tokens else None, f"{_trajectories(lines)}"),
        _card("Throughput", _count(sum(rates) / len(rates)) if rates else None, "sampled tokens/s, mean"),
        _card("Wall time", clock(sum(seconds)) if seconds else None, "steps, evaluations, checkpoints"),
        _staleness_card(lines, bound),
        _gap_card(lines),
        _sync_card(lines),
        _card(
            "Not finite", str(nonfinite) if nonfinite else None, "NaN or infinite metric values", state="bad"
        ),
    ]
    return [card for card in cards if card is not None]


def _card(label: str, value: str | None, note: str, *, state: str = "plain") -> dict[str, str] | None:
    return None if value is None else {"label": label, "value": value, "note": note, "state": state}


def _reward_card(lines: Sequence[Line]) -> dict[str, str] | None:
    rewards = _present(lines, "rollout/reward_mean")
    if not rewards:
        return None
    return _card("Training reward", f"{rewards[-1]:.3f}", f"from {rewards[0]:.3f} at the first step")


def _staleness_card(lines: Sequence[Line], bound: int | None) -> dict[str, str] | None:
    ages = _present(lines, "buffer/staleness_max")
    if not ages:
        return None
    kept = bound is None or max(ages) <= bound
    note = "weight versions" if bound is None else f"bound {bound}: " + ("kept" if kept else "broken")
    return _card("Max staleness", f"{max(ages):g}", note, state="good" if kept else "bad")


def _gap_card(lines: Sequence[Line]) -> dict[str, str] | None:
    gaps = _present(lines, "mismatch/logprob_gap_max")
    return _card("Max log-prob gap", f"{max(gaps):.2g}", "nats, engine to learner") if gaps else None


def _sync_card(lines: Sequence[Line]) -> dict[str, str] | None:
    syncs, probes = _present(lines, "sync/seconds"), _present(lines, "sync/probe_gap")
    if not syncs and not probes:
        return None
    note = f"largest probe gap {max(probes):.2g}" if probes else "none probed"
    return _card(
        "Syncs verified",
        f"{len(probes)} / {max(len(syncs), len(probes))}",
        note,
        state="good" if probes else "warn",
    )


def _trajectories(lines: Sequence[Line]) -> str:
    counts = _present(lines, "rollout/num_trajectories")
    return f"{_count(sum(counts))} trajectories" if counts else "by the engines"


def _per_step(lines: Sequence[Line]) -> str:
    seconds = sorted(_present(lines, "time/step_s"))
    return f"median step {seconds[len(seconds) // 2]:.2f} s" if seconds else ""


def _present(lines: Sequence[Line], name: str) -> list[float]:
    return [line[name] for line in lines if line.get(name) is not None]


def _count(value: float) -> str:
    for size, suffix in ((1e9, " B"), (1e6, " M"), (1e4, " k")):
        if value >= size:
            return f"{value / (1e3 if size == 1e4 else size):.3g}{suffix}"
    return f"{value:,.0f}"


def _lookup(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _flat(value: object, prefix: str = "") -> list[list[str]]:
    if isinstance(value, Mapping):
        return [
            row
            for key, item in value.items()
            for row in _flat(item, f"{prefix}.{key}" if prefix else str(key))
        ]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return [[prefix, text]]


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
