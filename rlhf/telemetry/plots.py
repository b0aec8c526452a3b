"""Which plots the report shows, and their data. The drawing is in `assets/plots.js`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhf.telemetry.metrics import declared, find

Line = Mapping[str, Any]
"""One line of metrics.jsonl."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve. `low` and `high` name its ribbon, `spread` a half-width around it."""

    metric: str
    label: str
    low: str | None = None
    high: str | None = None
    spread: str | None = None
    overlay: bool = False
    """In a stack: drawn as a line above the bars."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One plot. `bound` is the label of a horizontal limit whose value comes with the run."""

    title: str
    series: tuple[Series, ...]
    unit: str = ""
    kind: Literal["line", "stack"] = "line"
    log: bool = False
    bound: str | None = None
    wide: bool = False
    note: str = ""


CHARTS = (
    Chart(
        title="Held-out accuracy",
        series=(
            Series(
                metric="eval/accuracy", label="accuracy", low="eval/accuracy_low", high="eval/accuracy_high"
            ),
        ),
        unit="%",
        note="Prompts never trained on; the ribbon is the Wilson 95 % interval.",
    ),
    Chart(
        title="Reward",
        series=(
            Series(metric="rollout/reward_mean", label="mean", spread="rollout/reward_std"),
            Series(metric="reward/shaped_mean", label="after shaping"),
        ),
        note="Mean over the trajectories of a step; the ribbon is one standard deviation.",
    ),
    Chart(
        title="Where the time goes",
        series=(
            Series(metric="time/rollout_wait_s", label="wait for rollout"),
            Series(metric="time/pack_s", label="pack"),
            Series(metric="time/logprobs_s", label="log-probs"),
            Series(metric="time/update_s", label="update"),
            Series(metric="time/sync_s", label="sync"),
            Series(metric="time/eval_s", label="evaluation"),
            Series(metric="time/checkpoint_s", label="checkpoint"),
            Series(metric="time/rollout_busy_s", label="engines busy", overlay=True),
        ),
        unit="s",
        kind="stack",
        wide=True,
        note="Seconds per step. Engines busy above the wait for rollout: generation and training overlapped.",
    ),
    Chart(
        title="Log-probability gap",
        series=(
            Series(metric="mismatch/logprob_gap_max", label="largest"),
            Series(metric="mismatch/logprob_gap_mean", label="mean"),
            Series(metric="sync/probe_gap", label="sync probe"),
        ),
        unit="nats",
        log=True,
        note="Learner against engine on the same tokens. It shows staleness and numeric mismatch.",
    ),
    Chart(
        title="Staleness",
        series=(
            Series(metric="buffer/staleness_max", label="oldest token"),
            Series(metric="buffer/staleness_mean", label="mean"),
        ),
        unit="versions",
        bound="bound",
        note="Age in weight versions of the tokens trained on; never above the bound.",
    ),
    Chart(
        title="KL divergence",
        series=(
            Series(metric="update/kl", label="to the reference"),
            Series(metric="update/kl_old", label="of the update"),
            Series(metric="mismatch/kl", label="engine to learner"),
        ),
        unit="nats",
        note="How far the policy moved, and how far the engine is from the learner.",
    ),
    Chart(
        title="Entropy",
        series=(Series(metric="update/entropy", label="policy"),),
        unit="nats",
        note="A fall to zero ends exploration.",
    ),
    Chart(
        title="Completion length",
        series=(
            Series(metric="rollout/completion_tokens_mean", label="mean"),
            Series(metric="rollout/completion_tokens_max", label="longest"),
            Series(metric="eval/completion_tokens_mean", label="held-out mean"),
        ),
        unit="tokens",
    ),
    Chart(
        title="Throughput",
        series=(Series(metric="rollout/tokens_per_s", label="sampled"),),
        unit="tokens/s",
    ),
    Chart(
        title="Gradient norm",
        series=(
            Series(metric="update/grad_norm", label="policy, before clipping"),
            Series(metric="critic/grad_norm", label="critic"),
        ),
    ),
    Chart(
        title="Learning rate",
        series=(
            Series(metric="update/lr", label="policy"),
            Series(metric="critic/lr", label="critic"),
        ),
    ),
    Chart(
        title="Critic",
        series=(
            Series(metric="critic/value_mean", label="value"),
            Series(metric="critic/return_mean", label="return"),
            Series(metric="critic/explained_variance", label="explained variance"),
        ),
        note="Means over trained tokens. Explained variance 1: the critic knows every return; 0: none.",
    ),
    Chart(
        title="Signal",
        series=(
            Series(metric="rollout/zero_variance_share", label="groups without signal"),
            Series(metric="rollout/discarded_share", label="groups discarded"),
            Series(metric="rollout/truncated_share", label="truncated"),
            Series(metric="rollout/ungradable_share", label="not gradable"),
            Series(metric="update/clip_share", label="clipped tokens"),
        ),
        unit="%",
        note="Shares of the step. A group whose rewards are all equal teaches nothing.",
    ),
    Chart(
        title="Curriculum",
        series=(
            Series(metric="curriculum/pass_rate", label="measured pass rate"),
            Series(metric="curriculum/outside_share", label="prompts outside the band"),
        ),
        unit="%",
    ),
    Chart(
        title="Turns of an episode",
        series=(
            Series(metric="env/turns_mean", label="mean"),
            Series(metric="env/turns_max", label="longest"),
            Series(metric="env/tool_calls_mean", label="tool calls"),
        ),
    ),
    Chart(
        title="Faults in episodes",
        series=(
            Series(metric="env/tool_errors_share", label="calls answered by an error"),
            Series(metric="env/retried_share", label="episodes tried again"),
        ),
        unit="%",
    ),
    Chart(
        title="Importance weights",
        series=(
            Series(metric="mismatch/ess", label="effective sample size"),
            Series(metric="mismatch/capped_share", label="capped tokens"),
            Series(metric="mismatch/masked_share", label="masked tokens"),
        ),
        unit="%",
    ),
)


def chart_data(lines: Sequence[Line], *, max_staleness: int | None) -> list[dict[str, Any]]:
    """The plots that have data, as the page draws them: one y (or None) per line."""
    reported = {name for line in lines for name, value in line.items() if value is not None}
    charts = []
    for chart in (*CHARTS, *_families(reported)):
        series = [_series(s, lines) for s in chart.series if s.metric in reported]
        if not series:
            continue
        data = {
            "title": chart.title,
            "unit": chart.unit,
            "kind": chart.kind,
            "log": chart.log,
            "wide": chart.wide,
        }
        data |= {"note": chart.note or _meaning(chart), "series": series}
        if chart.bound and max_staleness is not None:
            data["bound"] = {"label": chart.bound, "y": max_staleness}
        charts.append(data)
    return charts


def metric_rows(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Every reported metric with its meaning and its column, for the table of all numbers."""
    rows = []
    for name in sorted({name for line in lines for name in line if "/" in name}):
        metric = find(name)  # None: written by another version of this package
        unit, meaning = (metric.unit, metric.meaning) if metric else ("", "")
        rows.append({"name": name, "unit": unit, "meaning": meaning, "y": column(lines, name)})
    return rows


def column(lines: Sequence[Line], name: str) -> list[float | None]:
    """The metric of every line, None where it was not reported, to six significant digits."""
    values = (line.get(name) for line in lines)
    return [None if value is None else float(f"{value:.6g}") for value in values]


def _series(series: Series, lines: Sequence[Line]) -> dict[str, Any]:
    y = column(lines, series.metric)
    data: dict[str, Any] = {"label": series.label, "name": series.metric, "y": y, "overlay": series.overlay}
    if series.low and series.high:
        data["low"], data["high"] = column(lines, series.low), column(lines, series.high)
    if series.spread:
        spread = column(lines, series.spread)
        pairs = list(zip(y, spread, strict=True))
        data["low"] = [None if v is None or s is None else v - s for v, s in pairs]
        data["high"] = [None if v is None or s is None else v + s for v, s in pairs]
    return data


def _families(reported: set[str]) -> list[Chart]:
    families = (
        ("Held-out accuracy by scenario", r"eval/([^/]+)/accuracy", "%"),
        ("Reward by scenario", r"scenario/([^/]+)/reward_mean", ""),
        ("Share of the step by scenario", r"scenario/([^/]+)/share", "%"),
        ("Reward parts", r"reward/([^/]+)/mean", ""),
        ("Verdicts", r"rollout/outcome/([^/]+)", "%"),
        ("Endings", r"env/stop/([^/]+)", "%"),
        ("Logged by the environment", r"env/log/([^/]+)", ""),
        ("Discarded groups", r"rollout/discarded/([^/]+)", ""),
    )
    charts = []
    for title, pattern, unit in families:
        found = sorted((match[1], name) for name in reported if (match := re.fullmatch(pattern, name)))
        series = tuple(Series(metric=name, label=part) for part, name in found)
        charts.append(Chart(title=title, series=series, unit=unit))
    return charts


def _meaning(chart: Chart) -> str:
    return declared(chart.series[0].metric).meaning if len(chart.series) == 1 else ""
