"""The live terminal view; one plain line per step where there is no terminal. Driver only."""

import logging
import math
import re
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlhf.telemetry.logs import FILE_ONLY, TERMINAL

logger = logging.getLogger(__name__)

_PHASE_LINE_EVERY_S = 10.0
_TIME_PARTS = (
    ("rollout", "time/rollout_wait_s", "cyan"),
    ("logprobs", "time/logprobs_s", "yellow"),
    ("update", "time/update_s", "magenta"),
    ("sync", "time/sync_s", "green"),
    ("pack", "time/pack_s", "blue"),
    ("eval", "time/eval_s", "white"),
    ("checkpoint", "time/checkpoint_s", "bright_black"),
)
_RETRIEVAL = (
    ("taste", "eval/taste", "{:.2f}"),
    ("judges", "eval/judge_score", "{:.2f}"),
    ("precision", "eval/precision", "{:.3f}"),
    ("zero-shot", "eval/zero_shot", "{:.3f}"),
    ("loss", "update/list_loss", "{:.3f}"),
)
_TRENDS = (("reward", "rollout/reward_mean"), ("accuracy", "eval/accuracy"), ("taste", "eval/taste"))
_BLOCKS = "▁▂▃▄▅▆▇█"


class LiveView:
    """What a user watches: phases before training, then one update per step. Odd values never raise.

    `header` is shown as it is (run name, model, engine, placement, staleness). `enabled=False`, or a console
    that is no terminal, gives one log line per step and per finished phase instead.
    """

    def __init__(
        self, header: Mapping[str, str], *, enabled: bool = True, console: Console = TERMINAL
    ) -> None:
        self._header = dict(header)
        self._on_terminal = enabled and console.is_terminal
        self._phase: tuple[str, float | None, float | None] | None = None
        self._phase_logged = ("", 0.0)
        self._step, self._num_steps = 0, 0
        self._started: tuple[int, float] | None = None
        self._metrics: dict[str, float] = {}
        self._history: dict[str, list[float]] = {name: [] for _, name in _TRENDS}
        self._sample: str | None = None
        # Last: it renders at once.
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._on_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._on_terminal:
            self._live.stop()

    def describe(self, header: Mapping[str, str]) -> None:
        """Replace the header once more is known; without a terminal, say it in one line."""
        self._header = dict(header)
        self._log("  ".join(f"{name} {value}" for name, value in header.items()))

    def phase(self, text: str, done: float | None = None, total: float | None = None) -> None:
        """Show what is happening outside of steps, with a bar if `done` and `total` are known."""
        self._phase = (text, done, total)
        progress = _progress_text(done, total)
        finished = bool(progress) and done == total
        kind = text.split(" · ", 1)[0]  # "SFT · loss 0.31": the part before the dot names the phase
        last_kind, last_time = self._phase_logged
        due = kind != last_kind or finished or time.monotonic() - last_time > _PHASE_LINE_EVERY_S
        if due:
            self._phase_logged = (kind, time.monotonic())
            self._log("  ".join(filter(None, (text, progress))))

    def step(
        self, step: int, num_steps: int, metrics: Mapping[str, float], sample: str | None = None
    ) -> None:
        """Show a finished step (1 is the first)."""
        self._phase = None
        if self._started is None:
            self._started = (step, time.monotonic())
        self._step, self._num_steps = step, num_steps
        evaluated = {name: value for name, value in self._metrics.items() if name.startswith("eval/")}
        self._metrics = {**evaluated, **metrics}
        for name, history in self._history.items():
            if name in metrics and is_number(metrics[name]):
                history.append(metrics[name])
        self._sample = sample or self._sample
        self._log(step_line(step, num_steps, metrics))

    def note(self, text: str) -> None:
        """Say one thing, above the view."""
        logger.info(text)

    def _log(self, line: str) -> None:
        logger.info(line, extra=FILE_ONLY if self._on_terminal else None)

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = [_header(self._header)]
        if self._step:
            parts.append(self._progress())
            parts.append(_numbers(self._metrics))
            parts.append(_time_split(self._metrics))
            parts.append(_sparklines(self._history))
        if self._phase is not None:
            parts.append(_phase(*self._phase))
        if self._sample is not None:
            parts.append(Text.assemble(("sample  ", "dim"), self._sample, no_wrap=True, overflow="ellipsis"))
        return Panel(Group(*parts), border_style="dim", padding=(0, 1))

    def _progress(self) -> RenderableType:
        line = Table.grid(padding=(0, 2), expand=True)
        line.add_column()
        line.add_column(ratio=1)
        line.add_column(justify="right")
        bar = ProgressBar(total=max(self._num_steps, 1), completed=self._step, complete_style="cyan")
        line.add_row(
            Text(f"step {self._step}/{self._num_steps}", style="bold"), bar, Text(self._remaining(), "dim")
        )
        return line

    def _remaining(self) -> str:
        assert self._started is not None
        first, since = self._started
        elapsed, steps = time.monotonic() - since, self._step - first
        if steps <= 0:
            return ""
        return f"{clock(elapsed / steps * max(self._num_steps - self._step, 0))} left"


def step_line(step: int, num_steps: int, metrics: Mapping[str, float]) -> str:
    """One step in one line; what was not measured is left out."""
    parts = [f"step {step}/{num_steps}"]
    _add(parts, metrics, "reward {:.3f}", "rollout/reward_mean")
    if is_number(metrics.get("eval/accuracy")):
        parts.append(f"acc {_accuracy(metrics)}")
    for label, name, pattern in _RETRIEVAL:
        _add(parts, metrics, f"{label} {pattern}", name)
    _add(parts, metrics, "tok/s {:.0f}", "rollout/tokens_per_s")
    if is_number(metrics.get("time/step_s")):
        shares: list[str] = []
        for label, name, _ in _TIME_PARTS[:4]:
            _add(shares, metrics, label + " {:.1f}", name)
        parts.append(f"step {metrics['time/step_s']:.1f}s" + (f" ({' '.join(shares)})" if shares else ""))
    _add(parts, metrics, "kl {:.4f}", "update/kl")
    _add(parts, metrics, "gap {:.0e}", "mismatch/logprob_gap_max")
    _add(parts, metrics, "stale {:.0f}", "buffer/staleness_max")
    return "  ".join(parts)


def is_number(value: object) -> bool:
    """True for a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def clock(seconds: float) -> str:
    """Seconds as 42 s, 3:07 or 2:03:11."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def sparkline(values: list[float], *, width: int = 40) -> str:
    """The values as a line of blocks, averaged down to at most `width`."""
    if not values:
        return ""
    size = max(1, math.ceil(len(values) / width))
    means = [
        math.fsum(chunk) / len(chunk) for i in range(0, len(values), size) if (chunk := values[i : i + size])
    ]
    low, high = min(means), max(means)
    span = high - low or 1.0
    return "".join(_BLOCKS[min(7, int((mean - low) / span * 8))] for mean in means)


def _add(parts: list[str], metrics: Mapping[str, float], pattern: str, name: str) -> None:
    if name not in metrics:
        return
    value = metrics[name]
    parts.append(pattern.format(value) if is_number(value) else f"{pattern.split(' ', 1)[0]} {value}")


def _accuracy(metrics: Mapping[str, float]) -> str:
    low, high = metrics.get("eval/accuracy_low"), metrics.get("eval/accuracy_high")
    interval = f" [{low:.2f} {high:.2f}]" if is_number(low) and is_number(high) else ""
    return f"{metrics['eval/accuracy']:.3f}{interval}"


def _header(header: Mapping[str, str]) -> Text:
    text = Text()
    for index, (name, value) in enumerate(header.items()):
        text.append(f"{name} ", style="dim")
        text.append(f"{value}   ", style="bold cyan" if index == 0 else "bold")
    return text


def _progress_text(done: float | None, total: float | None) -> str:
    return f"{done:g}/{total:g}" if is_number(done) and is_number(total) else ""


def _phase(text: str, done: float | None, total: float | None) -> RenderableType:
    line = Table.grid(padding=(0, 2))
    cells: list[RenderableType] = [Text(text, style="bold yellow")]
    if is_number(done) and is_number(total):
        assert done is not None
        assert total is not None
        cells += [
            ProgressBar(total=max(total, 1), completed=done, width=40),
            Text(f"{done:g}/{total:g}", "dim"),
        ]
    line.add_row(*cells)
    return line


def _numbers(metrics: Mapping[str, float]) -> RenderableType:
    shown = (
        ("reward", "rollout/reward_mean", "{:.3f}"),
        *_RETRIEVAL,
        ("tokens/s", "rollout/tokens_per_s", "{:,.0f}"),
        ("length", "rollout/completion_tokens_mean", "{:.1f}"),
        ("entropy", "update/entropy", "{:.3f}"),
        ("KL", "update/kl", "{:.4f}"),
        ("grad", "update/grad_norm", "{:.3f}"),
        ("log-prob gap", "mismatch/logprob_gap_max", "{:.1e}"),
        ("staleness", "buffer/staleness_max", "{:.0f}"),
    )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    cells = []
    if is_number(metrics.get("eval/accuracy")):
        table.add_column("held-out accuracy")
        cells.append(Text(_accuracy(metrics), style="bold green"))
    scenarios = [name.split("/")[1] for name in metrics if re.fullmatch(r"scenario/[^/]+/reward_mean", name)]
    each = tuple((scenario, f"scenario/{scenario}/reward_mean", "{:.3f}") for scenario in scenarios)
    for label, name, pattern in (*shown[:1], *each, *shown[1:]):
        if is_number(metrics.get(name)):
            table.add_column(label)
            cells.append(Text(pattern.format(metrics[name]), style="bold"))
    table.add_row(*cells)
    return table


def _time_split(metrics: Mapping[str, float], *, width: int = 48) -> Text:
    present = [(t, metrics[n], c) for t, n, c in _TIME_PARTS if is_number(metrics.get(n)) and metrics[n] > 0]
    total = math.fsum(seconds for _, seconds, _ in present)
    if not total:
        return Text()
    text = Text("time  ", style="dim")
    for _, seconds, colour in present:
        text.append("█" * round(seconds / total * width), style=colour)
    for label, seconds, colour in present:
        if seconds < total / 50:
            continue
        text.append("  ■ ", style=colour)
        text.append(f"{label} {seconds:.1f}s", style="dim")
    return text


def _sparklines(history: Mapping[str, list[float]]) -> Text:
    text = Text()
    for label, name in _TRENDS:
        if history[name]:
            text.append(f"{label}  ", style="dim")
            text.append(sparkline(history[name]), style="cyan")
            text.append(f"  {history[name][0]:.2f} → {history[name][-1]:.2f}     ", style="dim")
    return text
