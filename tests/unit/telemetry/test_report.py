import json
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise

import pytest

from rlhf.telemetry.recording import SampleRecorder
from rlhf.telemetry.report import embed_json, merge_steps, report_data, write_report
from rlhf.telemetry.report_samples import embed_samples
from rlhf.telemetry.sinks import JsonlSink
from rlhf.types import Message, RewardResult, ToolCall, Turn
from tests.unit.telemetry.synthetic import decode, make_group, make_trajectory, write_run

ATTACK = "</script><script>document.title='owned'</script><!-- <img src=x onerror=alert(1)> \u2028 &amp;"
ATTACK += " /*SCRIPT*/ /*DATA*/"


def data_of(path):
    [text] = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL
    )
    return json.loads(text)


def test_report_shows_accuracy_before_and_after(run_dir):
    data = data_of(write_report(run_dir))

    assert data["title"] == "quickstart"
    assert data["accuracy"]["before"]["accuracy"] == pytest.approx(197 / 256)
    assert data["accuracy"]["after"]["step"] == 5
    assert data["accuracy"]["after"]["accuracy_low"] < data["accuracy"]["after"]["accuracy"]
    assert data["status"] == {"kind": "good", "text": "finished, 8 steps"}


def test_report_has_the_plots_and_cards(run_dir):
    data = data_of(write_report(run_dir))

    titles = {chart["title"] for chart in data["charts"]}
    assert {"Reward", "Held-out accuracy", "KL divergence", "Entropy", "Completion length"} <= titles
    assert {"Log-probability gap", "Staleness", "Where the time goes", "Throughput", "Reward parts"} <= titles
    staleness = next(chart for chart in data["charts"] if chart["title"] == "Staleness")
    assert staleness["bound"] == {"label": "bound", "y": 1}
    cards = {card["label"]: card for card in data["cards"]}
    assert cards["Max staleness"]["note"] == "bound 1: kept"
    assert cards["Syncs verified"]["value"] == "8 / 8"
    assert all(len(s["y"]) == len(data["steps"]) for chart in data["charts"] for s in chart["series"])


def test_report_of_episodes_shows_turns_endings_faults_and_whole_episodes(run_dir):
    call = ToolCall(id="c", name="get", arguments={"name": "a"}, raw='[get(name="a")]')
    messages = [
        Message(role="assistant", content="", reasoning="look first", tool_calls=(call,)),
        Message(role="tool", content=f"Error: {ATTACK}", tool_call_id="c", name="get", is_error=True),
        Message(role="assistant", content="15"),
    ]
    group = make_group(900, size=1)
    turns = tuple(Turn(message=message, segment=0, start=0, stop=1, reward=0.25) for message in messages)
    episode = replace(group.trajectories[0], turns=turns, is_episode=True)
    sink = JsonlSink(run_dir, first_step=9)
    sink.log(9, {"env/turns_mean": 2.0, "env/tool_errors_share": 0.5, "env/stop/max_turns": 1.0})
    sink.close()
    recorder = SampleRecorder(run_dir, decode=decode, samples_per_step=1, first_step=9)
    recorder.record(9, [replace(group, trajectories=(episode,))], [[0.5]])

    data = data_of(write_report(run_dir))

    titles = {chart["title"] for chart in data["charts"]}
    assert {"Turns of an episode", "Endings", "Faults in episodes"} <= titles
    first, answer, last = data["samples"]["rows"][-1]["turns"]
    assert (first["thinking"], first["calls"], first["reward"]) == ("look first", ['[get(name="a")]'], 0.25)
    assert (answer["role"], answer["is_error"], last["text"]) == ("tool get", True, "15")
    assert not data["samples"]["rows"][0]["turns"]


def test_report_names_a_broken_staleness_bound(run_dir):
    sink = JsonlSink(run_dir, first_step=9)
    sink.log(9, {"buffer/staleness_max": 3.0})
    sink.close()

    cards = {card["label"]: card for card in report_data(run_dir)["cards"]}

    assert (cards["Max staleness"]["value"], cards["Max staleness"]["state"]) == ("3", "bad")


def test_report_needs_no_network(run_dir):
    page = write_report(run_dir).read_text()

    outside = re.sub(r'id="data">.*?</script>', "", page, flags=re.DOTALL)
    assert set(re.findall(r"https?://[^\"' ]+", outside)) <= {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page
    assert not re.search(r"/\*(STYLE|SCRIPT|DATA)\*/", page)


def test_report_escapes_model_text(run_dir):
    group = make_group(0)
    hostile = make_trajectory("p", ATTACK, version=0, reward=RewardResult(value=1.0, detail={ATTACK: ATTACK}))
    group = type(group)(index=0, prompt=group.prompt, trajectories=(hostile,))
    SampleRecorder(run_dir, decode=decode, samples_per_step=1, first_step=9).record(9, [group], [[0.0]])
    (run_dir / "environment.json").write_text(json.dumps({"host": ATTACK}))

    path = write_report(run_dir)

    assert path.read_text().count("</script>") == 2
    assert "onerror" not in re.sub(r'id="data">.*?</script>', "", path.read_text(), flags=re.DOTALL)
    row = data_of(path)["samples"]["rows"][-1]
    assert row["detail"] == {ATTACK: ATTACK}
    assert data_of(path)["environment"] == [["host", ATTACK]]


def test_embed_json_survives_half_a_surrogate_pair():
    text = embed_json({"text": "\ud83d"})

    assert json.loads(text) == {"text": "\ud83d"}
    text.encode("utf-8")


def test_report_of_an_empty_folder(tmp_path):
    data = data_of(write_report(tmp_path))

    assert data["status"] == {"kind": "bad", "text": "no step was recorded"}
    assert data["accuracy"] is None
    assert data["charts"] == data["cards"] == data["environment"] == []


def test_report_without_evaluation_of_a_run_that_stopped(tmp_path):
    data = data_of(write_report(write_run(tmp_path, num_steps=8, done=1, evaluate=False, samples_per_step=0)))

    assert data["accuracy"] is None
    assert data["status"]["text"] == "1 of 8 steps recorded"
    assert data["samples"] == {"total": 0, "vocabulary": {}, "rows": []}


def test_report_shows_nan_as_gaps_and_counts_them(run_dir):
    sink = JsonlSink(run_dir, first_step=9)
    sink.log(9, {"update/entropy": float("nan")})
    sink.close()

    data = data_of(write_report(run_dir))

    entropy = next(chart for chart in data["charts"] if chart["title"] == "Entropy")
    assert entropy["series"][0]["y"][-1] is None
    assert {"label": "Not finite", "value": "1"}.items() <= data["cards"][-1].items()


def test_report_keeps_metrics_of_another_version(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "time": 0, "update/forgotten": 1.0}\n{"step": 10, "ti')

    rows = {row["name"]: row for row in report_data(run_dir)["metrics"]}

    assert rows["update/forgotten"]["meaning"] == ""


def test_merge_steps_joins_lines_of_one_step():
    lines = [{"step": 2, "a": 1}, {"step": 1, "a": 0}, {"step": 2, "b": 3}]

    assert merge_steps(lines) == [{"step": 1, "a": 0}, {"step": 2, "a": 1, "b": 3}]


def test_embedded_samples_keep_tokens_and_odd_pieces():
    entry = {"step": 1, "pick": "best", "completion": "é", "reward": 1.0}
    entry["segments"] = [
        {
            "token_ids": [7, 5, 5],
            "pieces": ["q", "é", ""],
            "loss_mask": [0, 1, 1],
            "rollout_logprobs": [0.0, -0.1234, None],
            "versions": [-1, 4, 5],
        }
    ]

    embedded = embed_samples([entry])

    assert embedded["vocabulary"] == {7: "q", 5: "é"}
    assert embedded["rows"][0]["tokens"] == 2
    assert embedded["rows"][0]["segments"] == [
        {
            "ids": [7, 5, 5],
            "odd": [[2, ""]],
            "mask": [0, 1, 1, 2],
            "versions": [-1, 1, 4, 1, 5, 1],
            "logprobs": [-123, None],
        }
    ]


def test_embedded_samples_stay_in_the_budget_and_cover_the_run():
    entries = [
        {"step": step, "pick": pick, "completion": "x" * 50, "prompt": f"{step}", "segments": []}
        for step in range(100)
        for pick in ("best", "worst", "random")
    ]

    embedded = embed_samples(entries, budget=2_000)

    steps = [row["step"] for row in embedded["rows"]]
    assert embedded["total"] == 300
    assert len(json.dumps(embedded["rows"])) < 2_400
    assert steps == sorted(steps)
    assert max(b - a for a, b in pairwise(steps)) < 25


def test_report_of_a_hundred_steps_is_small(tmp_path):
    path = write_report(write_run(tmp_path, num_steps=100))

    assert path.stat().st_size < 2_000_000


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_report_draws_in_a_browser_and_runs_no_model_text(run_dir, tmp_path):
    test_report_escapes_model_text(run_dir)
    test_report_of_episodes_shows_turns_endings_faults_and_whole_episodes(run_dir)
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    )
    flags += " --disable-component-update --disable-sync --virtual-time-budget=3000 --dump-dom"
    command = [
        "chromium",
        *flags.split(),
        f"--user-data-dir={tmp_path / 'profile'}",
        f"file://{run_dir}/report.html",
    ]

    page = subprocess.run(command, capture_output=True, text=True, timeout=400, check=True).stdout

    drawn = page.split('id="data"')[0]
    assert "<title>quickstart · RL run</title>" in drawn
    assert drawn.count('class="canvas"') >= 10
    assert drawn.count('<details class="sample"') >= 20
    assert "points by RL" in drawn
