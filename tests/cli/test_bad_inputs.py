"""Mistakes that users make: each ends in one message that says what to do, exit code 2 and no traceback."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlhf.config.loading import load_recipe
from rlhf.run_folder import RunFolder
from tests.cli.command import rlhf, rlhf_from_cold, write_recipe, write_rows
from tests.tiny import save_tiny


@dataclass(frozen=True)
class Case:
    """Overrides ({d} is the test's folder) and what the message must hold: its error type first."""

    overrides: tuple[str, ...]
    says: tuple[str, ...]


BEFORE_TORCH = {
    "unknown key": Case(
        ("schedule.num_step=3",), ("ConfigError", "'schedule.num_step'", "did you mean 'schedule.num_steps'?")
    ),
    "missing model": Case(
        ("model.path=./nowhere",), ("ModelError", "model.path", "no folder './nowhere'", "looked in")
    ),
    "model folder without a config": Case(
        ("model.path={d}",), ("ModelError", "model.path", "no config.json", "expected a Hugging Face")
    ),
    "colocated with staleness 1": Case(
        ("placement.kind=colocated", "schedule.max_staleness=1"),
        (
            "ConfigError",
            "schedule.max_staleness is 1",
            "placement.kind is colocated",
            "Set schedule.max_staleness: 0",
        ),
    ),
    "unwritable run folder": Case(
        ("run_dir=/proc/sums",), ("ConfigError", "run_dir", "'/proc/sums'", "Name another folder")
    ),
    "run folder below a file": Case(
        ("run_dir={d}/rows.jsonl/run",), ("ConfigError", "run_dir", "Not a directory", "Name another folder")
    ),
    "override without a value": Case(
        ("schedule.num_steps",), ("ConfigError", "'schedule.num_steps'", "expected key.sub=value")
    ),
    "override of a missing section": Case(
        ("shedule.num_steps=3",), ("ConfigError", "'shedule'", "did you mean 'schedule'?")
    ),
    "override with broken YAML": Case(
        ("telemetry.sinks=[a",), ("ConfigError", "telemetry.sinks=[a", "line 1")
    ),
    "negative learning rate": Case(
        ("learner.lr=-1",), ("ConfigError", "learner.lr", "found -1", "expected greater than 0")
    ),
    "row longer than a micro-batch": Case(
        ("sampling.max_tokens=1000",), ("ConfigError", "learner.microbatch_tokens is 512", "Raise the last")
    ),
    "no rewards": Case(("task.rewards=[]",), ("ConfigError", "task.rewards is empty", "task.environment")),
    "retries of no error": Case(
        ("task.rewards=[{{use: 'sums:grade', retries: {{times: 3}}}}]",),
        ("ConfigError", "missing key 'task.rewards.0.retries.on'"),
    ),
    "two sources": Case(
        ("task.train.dataset=some/name",),
        ("ConfigError", "task.train", "exactly one of file, dataset, generator"),
    ),
    "code folder that does not exist": Case(
        ("--code-dir", "/nowhere"), ("ConfigError", "--code-dir", "/nowhere")
    ),
}

BEFORE_RAY = {
    "no chat template": Case(
        ("task.template=chat",), ("ModelError", "no chat template", "model.chat_template", "plain template")
    ),
    "chat template file that does not exist": Case(
        ("task.template=chat", "model.chat_template=gone.jinja"),
        ("ModelError", "model.chat_template", "no file 'gone.jinja'"),
    ),
    "template without a slot": Case(
        ("task.template='Q: '",), ("ConfigError", "task.template is 'Q: '", "plain template with {prompt}")
    ),
    "empty data": Case(
        ("task.train.file={d}/empty.jsonl",), ("DataError", "task.train", "is empty", "at least one row")
    ),
    "data file that does not exist": Case(
        ("task.train.file=gone.jsonl",), ("DataError", "task.train.file", "'gone.jsonl'", "looked in")
    ),
    "row without an answer": Case(
        ("task.train.file={d}/unanswered.jsonl",),
        ("DataError", "row unanswered.jsonl:1", "no reference answer", "task.train.columns"),
    ),
    "two rows with one id": Case(
        ("task.train.file={d}/twins.jsonl",),
        ("DataError", "twins.jsonl:0", "twins.jsonl:1", "ids must be unique"),
    ),
    "line that is not JSON": Case(
        ("task.train.file={d}/broken.jsonl",),
        ("DataError", "broken.jsonl line 2 is not JSON", "one JSON object"),
    ),
    "prompt that is too long": Case(
        ("task.train.file={d}/long.jsonl",),
        ("DataError", "longer than sampling.max_prompt_tokens (32)", "row long.jsonl:0", "Raise the limit"),
    ),
    "character the tokenizer lacks": Case(
        ("task.train.file={d}/foreign.jsonl",), ("DataError", "foreign.jsonl:0", "no token for what follows")
    ),
    "reward path that does not exist": Case(
        ("task.rewards=[{{use: 'gone.rewards:grade'}}]",),
        ("LoadError", "task.rewards[0]", "no module 'gone.rewards'", "--code-dir"),
    ),
    "reward function that does not exist": Case(
        ("task.rewards=[{{use: '{d}/sums.py:grad'}}]",),
        ("LoadError", "task.rewards[0]", "Did you mean", "grade"),
    ),
    "reward with a strange signature": Case(
        ("task.rewards=[{{use: '{d}/strange.py:grade'}}]",),
        ("LoadError", "task.rewards[0]", "unknown signature (a, b)", "grade(completion, reference)"),
    ),
    "reward module that fails to import": Case(
        ("task.rewards=[{{use: 'broken_rewards:grade'}}]", "--code-dir", "{d}"),
        ("LoadError", "task.rewards[0]", "importing 'broken_rewards' failed", "ZeroDivisionError"),
    ),
    "reward that needs a column the training rows lack": Case(
        ("task.rewards=[{{use: '{d}/needy.py:grade'}}]",),
        ("DataError", "needy.grade", "'level'", "row rows.jsonl:0 of task.train", "['answer']", "`when`"),
    ),
    "reward that needs a column the held-out rows lack": Case(
        (
            "task.rewards=[{{use: '{d}/sums.py:grade'}}, {{use: '{d}/needy.py:grade', when: {{kind: hard}}}}]",
            "task.heldout={{file: '{d}/levels.jsonl'}}",
            "eval.every=1",
        ),
        ("DataError", "needy.grade", "'level'", "row levels.jsonl:2 of task.heldout"),
    ),
    "reward workers larger than their limit": Case(
        ("task.reward_memory_mb=3",), ("ConfigError", "task.reward_memory_mb is 3", "sums.grade")
    ),
    "only gates": Case(
        ("task.rewards=[{{use: '{d}/sums.py:grade', gate: true}}]",),
        ("ConfigError", "task.rewards", "gate: false"),
    ),
    "more ranks than cores": Case(
        ("learner.num_ranks=1000",),
        ("PlacementError", "learner.num_ranks (1000)", "need 1001 cores", "placement.kind: colocated"),
    ),
    "unknown algorithm": Case(
        ("algorithm.name=gropo",), ("ConfigError", "algorithm.name", "'gropo'", "Did you mean 'grpo'?")
    ),
    "nccl on a CPU": Case(("sync.kind=nccl",), ("ConfigError", "sync.kind is nccl", "Use sync.kind: auto")),
    "tokenizer larger than the model": Case(
        (
            "model={{config: {{model_type: qwen3, vocab_size: 64, hidden_size: 32, intermediate_size: 64, "
            "num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1, head_dim: 32}}, "
            "tokenizer: characters}}",
        ),
        ("ModelError", "model.config.vocab_size is 64", "needs 99 or more"),
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a good recipe, a model, and files that spoil it."""
    folder = tmp_path_factory.mktemp("bad_inputs")
    write_recipe(folder)
    save_tiny(folder / "model")
    good = {"prompt": "1+1=", "answer": "2"}
    write_rows(folder / "empty.jsonl", [])
    write_rows(folder / "unanswered.jsonl", [good, {"prompt": "1+2="}])
    write_rows(folder / "twins.jsonl", [good | {"id": "a"}, good | {"id": "a"}])
    write_rows(folder / "long.jsonl", [good | {"prompt": "1+" * 40}])
    write_rows(folder / "foreign.jsonl", [good | {"prompt": "1+1=\N{SNOWMAN}"}])
    (folder / "broken.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt":\n')
    (folder / "strange.py").write_text("def grade(a, b):\n    return 1.0\n")
    (folder / "needy.py").write_text("def grade(completion, level):\n    return 1.0\n")
    rows = [good, good | {"level": 1, "kind": "hard"}, good | {"kind": "hard"}]
    write_rows(folder / "levels.jsonl", rows)
    (folder / "broken_rewards.py").write_text("1 / 0\n")
    return folder


@pytest.mark.parametrize("case", BEFORE_TORCH.values(), ids=BEFORE_TORCH)
def test_mistake_is_explained_at_once(place, case):
    assert_explained(place, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", BEFORE_RAY.values(), ids=BEFORE_RAY)
def test_mistake_is_explained_before_anything_starts(place, case):
    assert_explained(place, case)


def assert_explained(place: Path, case: Case) -> None:
    overrides = [text.format(d=place) if "{d}" in text or "{{" in text else text for text in case.overrides]
    done = rlhf("train", place / "recipe.yaml", *overrides)
    assert_one_error(done, case.says)
    assert "starting" not in done.stderr, "found only after processes were started"


def assert_one_error(done, says) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.split(":")[0].endswith("Error")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith(f"{says[0]}: ")
    message = done.stderr[done.stderr.index(errors[0]) :]
    assert not [part for part in says if part not in message], message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: [", "line 1, column"),
        ("- a\n", "found a list, expected a mapping"),
        ("extends: recipe.yaml\n", "one hop is allowed"),
        ("extends: gone.yaml\n", "does not exist"),
        ("name: a\nname: b\n", "key 'name' was already given in line 1"),
    ],
)
def test_broken_recipe_is_explained(tmp_path, text, says):
    (tmp_path / "recipe.yaml").write_text(text)
    assert_one_error(rlhf("train", tmp_path / "recipe.yaml"), ("ConfigError", says))


def test_recipe_that_does_not_exist_is_explained(tmp_path):
    assert_one_error(
        rlhf("train", tmp_path / "no.yaml"), ("ConfigError", "no.yaml' does not exist", "looked from")
    )


@pytest.mark.parametrize("command", ["check", "doctor"])
def test_other_commands_explain_a_bad_recipe_alike(tmp_path, command):
    assert_one_error(rlhf(command, tmp_path / "no.yaml"), ("ConfigError", "does not exist"))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.path=other", "model.path is '{d}/model' there and 'other' now"),
        ("model.dtype=bfloat16", "model.dtype is 'float32' there and 'bfloat16' now"),
        ("task.rewards.0.weight=2", None),
        (
            "task.rewards=[{{use: '{d}/sums.py:grade', weight: 2}}]",
            "task.rewards.0.weight is 1.0 there and 2.0 now",
        ),
    ],
)
def test_checkpoint_of_another_model_is_refused(tmp_path, override, says):
    recipe = write_recipe(tmp_path)
    with RunFolder.open(load_recipe(recipe), fresh=False).new_checkpoint(1):
        pass
    done = rlhf("train", recipe, "schedule.num_steps=2", override.format(d=tmp_path))
    if says is None:
        assert_one_error(done, ("ConfigError", "not a section"))
    else:
        assert_one_error(done, ("CheckpointError", says.format(d=tmp_path), "--fresh"))


@pytest.mark.slow
def test_weights_of_another_model_at_the_same_path_are_refused(tmp_path):
    recipe = write_recipe(tmp_path)
    save_tiny(tmp_path / "model")
    trained = rlhf_from_cold("train", recipe, limit_s=280)
    assert trained.returncode == 0, trained.stderr
    assert "1 steps of RL" in trained.stdout
    assert (tmp_path / "run/model/model.safetensors").is_file()
    shutil.rmtree(tmp_path / "model")
    save_tiny(tmp_path / "model", num_hidden_layers=1)
    resumed = rlhf_from_cold("train", recipe, "schedule.num_steps=2", limit_s=280)
    assert_one_error(
        resumed, ("CheckpointError", "of another model", "model.layers.1", "start a new run folder")
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: x\n", "missing key 'stages'"),
        ("name: x\nstages: {a: {kind: sft}}\n", "stages.a: missing key 'model'"),
        ("name: x\nstages: {a: {kind: rl, model: '${b}'}}\n", "there is no stage 'b'"),
        ("name: [x\n", "line 2"),
    ],
)
def test_bad_pipeline_ends_in_one_message(tmp_path, text, says):
    file = tmp_path / "pipeline.yaml"
    file.write_text(text)
    done = rlhf("pipeline", file)
    assert done.returncode == 2
    assert done.stderr.startswith("ConfigError: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_other_file_is_no_stage(tmp_path):
    done = rlhf("stage", write_recipe(tmp_path))
    assert done.returncode == 2
    assert "is not a stage file" in done.stderr
