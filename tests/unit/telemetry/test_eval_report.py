import io
import json
import re
import shutil
import subprocess

import pytest
from rich.console import Console

from rlhf.offline.command import table_of
from rlhf.telemetry import eval_report
from rlhf.telemetry.eval_report import eval_report_data, write_eval_report

ATTACK = "</script><script>document.title='owned'</script> /*DATA*/ <img src=x onerror=alert(1)>"


def figure(value):
    return {"value": value, "low": value / 2, "high": (1 + value) / 2, "problems": 3}


def write_folder(folder, *, samples=3, text="2"):
    figures = {
        name: figure(0.5) for name in ("accuracy", "format", "truncated", "ungradable", "tokens", "reward")
    }
    figures |= {f"{kind}{k}": figure(k / 16) for k in (4, 1, 2) for kind in ("pass@", "pass^", "maj@")}
    scores = {
        "source": {"file": "rows.jsonl"},
        "sampling": {
            "num_samples": 4,
            "temperature": 0.6,
            "top_p": 1.0,
            "top_k": 0,
            "max_tokens": 8,
            "seed": 0,
        },
        "figures": figures,
        "counts": {"prompts": 3, "samples": 12, "ungradable": 0},
        "lengths": [{"least": 1, "most": 9, "samples": 12, "accuracy": figure(0.5)}],
        "difficulties": [{"low": 0, "high": 0, "problems": 3, "accuracy": 0, "tokens": 3, "truncated": 0}],
    }
    models = {name: {"model": f"models/{name}", "sets": {"sums": scores}} for name in ("base", "tuned")}
    (folder / "eval.json").write_text(json.dumps({"name": "trial", "models": models}))
    row = {
        "model": "base", "set": "sums", "prompt_id": "p", "prompt": text, "reference": "2", "pass_rate": 0.5,
        "index": 0, "completion": text, "turns": [], "answer": "2", "is_correct": True, "reward": 1.0,
        "outcome": "ok", "parts": {"task": 1.0}, "stop": "stop", "tokens": 3,
    }  # fmt: skip
    (folder / "samples.jsonl").write_text(
        "".join(json.dumps(row | {"index": i}) + "\n" for i in range(samples))
    )
    return folder


def test_eval_report_has_figures_curves_and_samples(tmp_path):
    data = eval_report_data(write_folder(tmp_path))
    assert [(r["model"], r["set"]) for r in data["results"]] == [("base", "sums"), ("tuned", "sums")]
    curves = data["results"][0]["curves"]
    assert set(curves) == {"pass@k", "pass^k", "maj@k"}
    assert [point[0] for point in curves["pass@k"]] == [1, 2, 4]
    assert curves["pass@k"][2] == [4, 0.25, 0.125, 0.625]
    assert data["samples"]["total"] == len(data["samples"]["rows"]) == 3


def test_eval_report_is_one_file_without_network_and_escapes_model_text(tmp_path):
    page = write_eval_report(write_folder(tmp_path, text=ATTACK)).read_text()
    assert page.count("</script>") == 2
    outside = re.sub(r'id="data">.*?</script>', "", page, flags=re.DOTALL)
    assert "onerror" not in outside
    assert set(re.findall(r"https?://[^\"' ]+", outside)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"/\*(STYLE|SCRIPT)\*/", page)


def test_eval_report_keeps_to_its_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(eval_report, "_BUDGET", 20_000)
    data = eval_report_data(write_folder(tmp_path, samples=40, text="long " * 5000))["samples"]
    assert data["total"] == 40
    assert 0 < len(data["rows"]) < 40
    assert all(len(row["completion"]) < 9000 for row in data["rows"])


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_eval_report_script_parses(tmp_path):
    page = write_eval_report(write_folder(tmp_path)).read_text()
    script = tmp_path / "page.js"
    script.write_text(page.rpartition("<script>")[2].partition("</script>")[0])
    done = subprocess.run(["node", "--check", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_table_says_how_a_figure_was_sampled_and_how_sure_it_is(tmp_path):
    out = io.StringIO()
    Console(width=100, file=out).print(
        table_of(json.loads((write_folder(tmp_path) / "eval.json").read_text()))
    )
    text = out.getvalue()
    assert "3 prompts x 4, T=0.6 top_p=1" in text
    assert "0.250 [0.125, 0.625]" in text
    assert all(word in text for word in ("base", "tuned", "pass@4", "maj@4"))
    assert "pass@2" not in text
