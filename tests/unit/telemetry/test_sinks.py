import importlib.util
import json
import math

import pytest

from rlhf.errors import DependencyError
from rlhf.telemetry.sinks import JsonlSink, ListSink, TensorBoardSink, WandbSink, read_metrics


def test_jsonl_sink_round_trips(tmp_path):
    sink = JsonlSink(tmp_path)
    sink.log(1, {"update/loss": 0.1 + 0.2})
    sink.log(2, {"update/loss": -3e-17})

    lines = read_metrics(tmp_path)

    assert [(line["step"], line["update/loss"]) for line in lines] == [(1, 0.1 + 0.2), (2, -3e-17)]
    sink.close()


def test_jsonl_sink_cuts_what_will_be_logged_again(tmp_path):
    first = JsonlSink(tmp_path)
    for step in range(6):
        first.log(step, {"update/loss": float(step)})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "upda')

    resumed = JsonlSink(tmp_path, first_step=4)
    resumed.log(4, {"update/loss": 40.0})
    resumed.close()

    assert [(line["step"], line["update/loss"]) for line in read_metrics(tmp_path)] == [
        (0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0),
    ]  # fmt: skip


def test_jsonl_sink_starts_fresh_by_default(tmp_path):
    JsonlSink(tmp_path).log(7, {"update/loss": 1.0})

    JsonlSink(tmp_path).close()

    assert read_metrics(tmp_path) == []


def test_jsonl_sink_writes_null_for_nonfinite_values_and_counts_them(tmp_path):
    sink = JsonlSink(tmp_path)
    sink.log(1, {"update/loss": math.nan, "update/grad_norm": math.inf, "update/lr": 1e-5})
    sink.close()

    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f"invalid JSON constant {name}"))
    assert (line["update/loss"], line["update/grad_norm"], line["update/lr"]) == (None, None, 1e-5)
    assert line["nonfinite"] == sink.num_nonfinite == 2


@pytest.mark.parametrize("make", [JsonlSink, lambda _: ListSink()])
def test_sinks_refuse_an_undeclared_metric(tmp_path, make):
    sink = make(tmp_path)

    with pytest.raises(AssertionError, match="update/loss"):
        sink.log(1, {"update/los": 1.0})
    sink.close()


def test_list_sink_keeps_a_copy():
    sink, metrics = ListSink(), {"update/loss": 1.0}

    sink.log(3, metrics)
    metrics["update/loss"] = 2.0

    assert sink.lines == [(3, {"update/loss": 1.0})]


def test_tensorboard_sink_writes_scalars(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sink = TensorBoardSink(tmp_path)
    sink.log(1, {"update/loss": 0.5})
    sink.log(2, {"update/loss": 0.25})
    sink.close()

    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()

    assert [(e.step, e.value) for e in events.Scalars("update/loss")] == [(1, 0.5), (2, 0.25)]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_wandb_sink_without_wandb_names_the_extra(tmp_path):
    with pytest.raises(DependencyError, match="trackers"):
        WandbSink(tmp_path, project="p", name="n", config={})
