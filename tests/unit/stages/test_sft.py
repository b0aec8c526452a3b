import json
import os
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.config.schema import ModelConfig
from rlhf.config.task import SourceConfig
from rlhf.config.trainer import SftConfig
from rlhf.data.prompts import load_prompts
from rlhf.episodes.render import Renderer
from rlhf.errors import DataError, DeadlineError, LearnerError, ModelError
from rlhf.machine import usable_cores
from rlhf.run_folder import replace_file
from rlhf.stages.following import follow, launch
from rlhf.stages.model_folder import prepare_model_folder
from rlhf.stages.sft import run_sft, tokenised_rows
from rlhf.stages.sft_process import packed_batch, padded_batch
from rlhf.stages.trainer_stage import early_child

TINY = {
    "model_type": "qwen3",
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
}


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    model = ModelConfig(config=TINY, tokenizer="characters")
    return Renderer(
        model_folder=prepare_model_folder(model, tmp_path_factory.mktemp("model"), seed=0),
        template="{prompt}",
    )


def source(tmp_path, *rows):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return SourceConfig(file=str(file))


ROWS = [
    {"prompt": f"{a}+{b}=", "completion": f"<answer>{a + b}</answer>"} for a in range(9) for b in range(9)
]


def settings(tmp_path, **changes):
    return SftConfig(
        source=source(tmp_path, *ROWS), num_steps=20, batch_size=16, lr=3e-3, threads=1, **changes
    )


def test_rows_are_the_ids_rl_shows_the_engine(tmp_path, renderer):
    prompts = load_prompts(source(tmp_path, *ROWS), key="sft.source", require_reference=False)
    rows = tokenised_rows(prompts, renderer, key="sft.source")
    for prompt, (ids, is_learned) in zip(prompts, rows, strict=True):
        question = renderer.encode_prompt(prompt)
        assert tuple(ids[: len(question)]) == question
        assert is_learned == [False] * len(question) + [True] * (len(ids) - len(question))
    assert {ids[-1] for ids, _ in rows} == {renderer.stop_token_ids[0]}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "1+1="}, r"sft\.source: row rows\.jsonl:1 has no `completion`"),
        (
            {"prompt": "1+1=", "completion": "x" * 80},
            r"rows\.jsonl:1 has 85 tokens, more than sft\.max_length \(64\); the longest has 85",
        ),
        (
            {"messages": [{"role": "user", "content": "1+1="}]},
            r"rows\.jsonl:1: its `messages` cannot be learned",
        ),
    ],
)
def test_unusable_row_is_named(tmp_path, renderer, row, says):
    config = SftConfig(source=source(tmp_path, ROWS[0], row), max_length=64)
    with pytest.raises(DataError, match=says):
        run_sft(config, renderer=renderer, out_folder=tmp_path / "out", seed=0)


def test_rows_that_do_not_fit_are_counted(tmp_path, renderer):
    rows = [{"prompt": "1+1=", "completion": "x" * size} for size in (80, 9, 70, 60, 90)]
    config = SftConfig(source=source(tmp_path, *rows), max_length=64)
    with pytest.raises(DataError, match=r":0 has 85 .*and so have 3 of the other rows; the longest has 95"):
        run_sft(config, renderer=renderer, out_folder=tmp_path / "out", seed=0)


def test_repeats_that_leave_no_row_are_refused(tmp_path, renderer):
    config = SftConfig(source=[source(tmp_path, *ROWS[:4])], repeat=[0.1])
    with pytest.raises(DataError, match=r"sft\.repeat is \[0\.1\] of sources with \[4\] rows"):
        run_sft(config, renderer=renderer, out_folder=tmp_path / "out", seed=0)


def test_conversations_are_learned_beside_plain_rows_and_need_no_prompt(tmp_path, renderer):
    chat = Renderer(model_folder=renderer.model_folder, chat_template="recipes/cpu/chat.jinja")
    call = {"id": "c1", "type": "function", "function": {"name": "get", "arguments": {"name": "a"}}}
    messages = [
        {"role": "user", "content": "a*3"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "5", "tool_call_id": "c1"},
        {"role": "assistant", "content": "15"},
    ]
    rows = source(tmp_path, {"messages": messages}, ROWS[0])
    prompts = load_prompts(rows, key="sft.source", require_reference=False)
    assert [m.content for m in prompts[0].messages] == ["a*3"]
    (ids, is_learned), (plain, _) = tokenised_rows(prompts, chat, key="sft.source")
    marked = [f"{p}*" if m else p for p, m in zip(chat.pieces(ids), is_learned, strict=True)]
    assert "".join(marked) == 'Ua*3\nA[*g*e*t*(*n*a*m*e*=*"*a*"*)*]*<eos>*T5\nA1*5*<eos>*'
    assert chat.pieces(plain)[0] == "U"


@pytest.mark.parametrize("collate", [padded_batch, packed_batch])
def test_batch_without_mask_gives_the_loss_of_a_masked_batch(renderer, collate):
    rows = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]},
        {"input_ids": [5, 6], "labels": [-100, 6]},
    ]
    model = AutoModelForCausalLM.from_pretrained(renderer.model_folder)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    masked = model(**(padded_batch(rows) | {"position_ids": None}), attention_mask=mask).loss
    torch.testing.assert_close(model(**collate(rows), use_cache=False).loss, masked)


@pytest.mark.slow
def test_sft_learns_writes_a_whole_folder_and_is_used_again(tmp_path, renderer):
    seen = []
    out = run_sft(
        settings(tmp_path), renderer=renderer, out_folder=tmp_path / "out", seed=0, on_progress=seen.append
    )
    metrics = [json.loads(line) for line in (tmp_path / "out" / "sft_metrics.jsonl").read_text().splitlines()]
    assert metrics == seen
    assert [line["step"] for line in seen] == list(range(1, 21))
    assert seen[-1]["loss"] < 0.7 * seen[0]["loss"]
    assert AutoTokenizer.from_pretrained(out).eos_token_id == 1
    assert Renderer(model_folder=out, template="{prompt}").stop_token_ids == (1,)

    again = []
    run_sft(settings(tmp_path), renderer=renderer, out_folder=out, seed=0, on_progress=again.append)
    assert again == []


def test_finished_folder_loses_what_a_kill_left_beside_its_summary(tmp_path, renderer, monkeypatch):
    """A model's folder is hashed as a whole: scratch files would make it another model."""
    out, trained = tmp_path / "out", []

    def follow_nothing(*_, **__):
        trained.append(1)
        (out / "scratch" / "found.json").write_text('{"metrics": {}, "warnings": []}')

    monkeypatch.setattr("rlhf.stages.trainer_stage.follow", follow_nothing)
    run_sft(settings(tmp_path), renderer=renderer, out_folder=out, seed=0)
    left = sorted(out.iterdir())
    (out / "scratch" / "checkpoint-20").mkdir(parents=True)
    run_sft(settings(tmp_path), renderer=renderer, out_folder=out, seed=0)
    assert trained == [1]
    assert sorted(out.iterdir()) == left


@pytest.mark.slow
def test_process_that_was_started_early_trains_what_it_is_given_then(tmp_path, renderer):
    out, seen = tmp_path / "out", []
    (out / "scratch" / "checkpoint-7").mkdir(parents=True)
    (out / "scratch" / "job.json").write_text("{}")  # of an earlier process
    config = settings(tmp_path).model_copy(update={"num_steps": 3})
    with early_child("sft", config, out) as child:
        run_sft(config, renderer=renderer, out_folder=out, seed=0, on_progress=seen.append, child=child)
        assert child.process.returncode == 0
    assert [line["step"] for line in seen] == [1, 2, 3]
    assert not (out / "scratch").exists()
    assert "Error" not in (out / "sft.log").read_text()
    with early_child("sft", config, out) as child:
        assert child is None


def test_process_that_was_started_early_ends_with_what_prepares_its_job(tmp_path):
    with pytest.raises(KeyboardInterrupt), early_child("sft", settings(tmp_path), tmp_path / "out") as child:
        raise KeyboardInterrupt
    assert child.process.returncode == -9


@pytest.mark.slow
def test_training_that_dies_says_why(tmp_path, renderer):
    folder = tmp_path / "broken"
    folder.mkdir()
    renderer.tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(TINY))
    broken = Renderer(model_folder=str(folder), template="{prompt}")
    with pytest.raises(
        LearnerError, match=r"(?s)sft: the training process ended with code 1.*model\.safetensors"
    ):
        run_sft(settings(tmp_path), renderer=broken, out_folder=tmp_path / "out", seed=0)
    assert not (tmp_path / "out" / "sft.json").exists()


HANGS = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
print("stuck in a lock", flush=True)
os.write(int(sys.argv[1]), f"{child.pid}\\n".encode())
time.sleep(600)
"""
SLOW_BUT_ALIVE = """
import os, sys, time
for part in (b"\\n", b"\\n", b"one\\ntw", b"o\\n"):
    time.sleep(0.8)
    os.write(int(sys.argv[1]), part)
"""


def run_child(code, tmp_path, silence_s):
    lines = []
    child = launch([sys.executable, "-c", code], environment=os.environ, log=tmp_path / "log")
    follow(child, silence_s=silence_s, on_line=lines.append)
    return lines


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")")[-1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_silent_process_is_ended_with_its_children(tmp_path):
    pids = []
    child = launch([sys.executable, "-c", HANGS], environment=os.environ, log=tmp_path / "log")
    with pytest.raises(DeadlineError, match=r"(?s)no progress for 3 s.*stuck in a lock"):
        follow(child, silence_s=3.0, on_line=lambda line: pids.append(int(line)))
    deadline = time.monotonic() + 60
    while is_alive(pids[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pids[0])


def test_process_that_shows_signs_of_life_may_take_longer_than_the_limit(tmp_path):
    assert run_child(SLOW_BUT_ALIVE, tmp_path, silence_s=3.0) == ["one", "two"]


def test_process_that_closes_its_channel_and_hangs_is_ended(tmp_path):
    code = "import os, sys, time; os.close(int(sys.argv[1])); time.sleep(600)"
    with pytest.raises(DeadlineError, match=r"no progress for 0\.5 s"):
        run_child(code, tmp_path, silence_s=0.5)


def test_cores_are_known_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() == (os.cpu_count() or 1)


def test_write_that_breaks_off_leaves_the_old_file(tmp_path):
    file = tmp_path / "sft.json"
    replace_file(file, "old")
    with pytest.raises(UnicodeEncodeError):
        replace_file(file, "half \ud800")
    assert file.read_text() == "old"


@pytest.mark.slow
def test_model_with_its_own_code_is_made_and_tuned_where_that_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))  # the child reads it, this process did
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = tmp_path / "code"
    code.mkdir()
    (code / "configuration_own.py").write_text(
        "from transformers import Qwen3Config\nclass OwnConfig(Qwen3Config):\n    model_type = 'own'\n"
    )
    (code / "modeling_own.py").write_text(
        "from transformers import Qwen3ForCausalLM\nfrom .configuration_own import OwnConfig\n"
        "class OwnModel(Qwen3ForCausalLM):\n    config_class = OwnConfig\n"
    )
    auto_map = {
        "AutoConfig": f"{code}--configuration_own.OwnConfig",
        "AutoModelForCausalLM": f"{code}--modeling_own.OwnModel",
    }
    own = {"config": TINY | {"model_type": "own", "auto_map": auto_map}, "tokenizer": "characters"}
    with pytest.raises(ModelError, match=r"model\.config cannot be used: .*own"):
        prepare_model_folder(ModelConfig(**own), tmp_path / "refused", seed=0)
    folder = prepare_model_folder(ModelConfig(**own, trust_remote_code=True), tmp_path / "own", seed=0)
    renderer = Renderer(model_folder=folder, template="{prompt}", trust_remote_code=True)
    brief = settings(tmp_path).model_copy(update={"num_steps": 1})
    out = run_sft(brief, renderer=renderer, out_folder=tmp_path / "out", seed=0)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "own"
    assert AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True).config.model_type == "own"
