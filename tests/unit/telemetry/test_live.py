import io
import logging
import math

import pytest
from rich.console import Console

from rlhf.telemetry.live import LiveView, clock, sparkline, step_line
from rlhf.telemetry.logs import TERMINAL, configure_logging, log_to_folder
from tests.unit.telemetry.synthetic import eval_metrics

METRICS = {
    "rollout/reward_mean": 0.812,
    "rollout/tokens_per_s": 8123.4,
    "rollout/completion_tokens_mean": 39.5,
    "time/step_s": 4.1,
    "time/rollout_wait_s": 2.1,
    "time/update_s": 1.6,
    "time/sync_s": 0.1,
    "mismatch/logprob_gap_max": 3e-6,
    "buffer/staleness_max": 0.0,
}
HEADER = {"run": "quickstart", "model": "qwen3", "engine": "vllm", "placement": "split"}


def terminal(**options):
    return Console(file=io.StringIO(), force_terminal=True, width=130, **options)


def test_step_line_says_what_was_measured():
    line = step_line(12, 40, METRICS | eval_metrics(231))

    assert line == (
        "step 12/40  reward 0.812  acc 0.902 [0.86 0.93]  tok/s 8123  "
        "step 4.1s (rollout 2.1 update 1.6 sync 0.1)  gap 3e-06  stale 0"
    )


def test_step_line_leaves_out_what_was_not():
    assert step_line(1, 2, {}) == "step 1/2"


def test_live_view_falls_back_to_one_line_per_step(caplog):
    caplog.set_level(logging.INFO, logger="rlhf")
    console = Console(file=io.StringIO(), force_terminal=False)

    with LiveView(HEADER, console=console) as view:
        view.describe(HEADER)
        view.phase("loading the engine")
        for done in range(5):
            view.phase(f"SFT · loss {done}", done, 4)
        view.step(1, 2, METRICS, "1 + 1 → 2")
        view.step(2, 2, METRICS)
        view.note("done")

    assert caplog.messages == [
        "run quickstart  model qwen3  engine vllm  placement split",
        "loading the engine",
        "SFT · loss 0  0/4",
        "SFT · loss 4  4/4",
        step_line(1, 2, METRICS),
        step_line(2, 2, METRICS),
        "done",
    ]
    assert console.file.getvalue() == ""


def test_live_view_draws_on_a_terminal():
    console = terminal()

    with LiveView(HEADER, console=console) as view:
        view.phase("SFT · loss 0.31", 20, 260)
        view.step(1, 40, METRICS | eval_metrics(200), "1 + 1 → 2")
        view.step(2, 40, METRICS, None)

    drawn = console.file.getvalue()
    for part in ("quickstart", "step 2/40", "held-out accuracy", "rollout 2.1s", "1 + 1 → 2", "0.781"):
        assert part in drawn


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, None, "text", -1.0, 1e300])
def test_live_view_survives_odd_values(odd):
    console = terminal()
    names = [*METRICS, *eval_metrics(1), "update/kl"]

    with LiveView({}, console=console) as view:
        view.phase("odd", odd, odd)
        view.step(0, 0, dict.fromkeys(names, odd), "[bold]not markup[/nope]")
        view.step(3, 2, {}, None)
        view.step(1, 2, dict.fromkeys(names, odd), None)

    assert step_line(1, 2, dict.fromkeys(names, odd)).startswith("step 1/2")


@pytest.mark.parametrize(("seconds", "text"), [(4.2, "4 s"), (187, "3:07"), (7391, "2:03:11")])
def test_clock_reads_like_a_clock(seconds, text):
    assert clock(seconds) == text


def test_sparkline_spans_the_blocks():
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([]) == ""
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert len(sparkline([float(i) for i in range(1000)])) == 40


@pytest.fixture
def clean_logging():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.mark.usefixtures("clean_logging")
def test_logging_keeps_third_parties_quiet_and_writes_the_folder(tmp_path, capsys):
    assert not TERMINAL.is_terminal
    configure_logging()
    handler = log_to_folder(tmp_path / "run")

    logging.getLogger("rlhf.train").info("a fact")
    logging.getLogger("rlhf.telemetry.live").info("a step", extra={"file_only": True})
    logging.getLogger("vllm.engine").info("chatter")
    handler.close()

    shown, kept = capsys.readouterr().err, (tmp_path / "run" / "run.log").read_text()
    assert "a fact" in shown
    assert "a fact" in kept
    assert "a step" not in shown
    assert "a step" in kept
    assert "chatter" not in shown + kept
