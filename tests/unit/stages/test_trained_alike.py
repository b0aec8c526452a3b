"""Real training processes: what is learned does not depend on ranks, micro-batches, packing, or on being killed."""

import json

import pytest
import torch
from safetensors.torch import load_file

from rlhf.config.schema import ModelConfig
from rlhf.config.trainer import DpoConfig, SftConfig
from rlhf.episodes.render import Renderer
from rlhf.stages.dpo import run_dpo
from rlhf.stages.model_folder import prepare_model_folder
from rlhf.stages.sft import run_sft

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
# Dropout makes a run depend on its random numbers, which a checkpoint must hold.
DROPOUT = TINY | {"attention_dropout": 0.2}
STEPS = 6
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    return model_renderer(TINY, tmp_path_factory.mktemp("model"))


def model_renderer(config, folder):
    model = ModelConfig(config=config, tokenizer="characters")
    return Renderer(model_folder=prepare_model_folder(model, folder, seed=0), template="{prompt}")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Rows of very unequal length: a mean per rank or per micro-batch would weigh short ones more."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [
        {
            "prompt": f"{index}=",
            "completion": "ab" * (1 + (index % 4) ** 2),
            "chosen": "yes" * (1 + index % 3),
            "rejected": "no" * (1 + index % 5),
        }
        for index in range(20)
    ]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return {"file": str(file)}


def tuned(renderer, source, folder, **changes):
    settings = {"num_steps": STEPS, "batch_size": 8, "lr": 1e-3, "threads": 1, "max_length": 64} | changes
    return run_sft(SftConfig(source=source, **settings), renderer=renderer, out_folder=folder, seed=3)


def curve(folder, kind="sft"):
    lines = [json.loads(line) for line in (folder / f"{kind}_metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


@pytest.fixture(scope="module")
def undivided(renderer, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undivided") / "out"
    tuned(renderer, source, folder)
    return folder


@pytest.mark.parametrize(
    "changes", [{"num_ranks": 2, "microbatch_size": 2}, {"packing": True, "microbatch_size": 4}]
)
def test_ranks_microbatches_and_packing_leave_loss_and_weights_unchanged(
    renderer, source, undivided, tmp_path, changes
):
    tuned(renderer, source, tmp_path / "out", **changes)
    assert curve(tmp_path / "out") == pytest.approx(curve(undivided), rel=1e-4)
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", undivided))
    for name, weights in expected.items():
        torch.testing.assert_close(found[name], weights, atol=2e-5, rtol=1e-3)


class Killed(Exception):
    """Raised while the training process runs, which is then killed with SIGKILL."""


def test_killed_training_goes_on_and_ends_with_the_same_bits(source, tmp_path, caplog):
    caplog.set_level("INFO")
    renderer = model_renderer(DROPOUT, tmp_path / "model")
    config = DpoConfig(
        source=source, num_steps=STEPS, batch_size=4, microbatch_size=2, lr=1e-3, threads=1, max_length=64,
        checkpoint_every=2, sft_coef=0.2,
    )  # fmt: skip

    def kill_at_5(line):
        if line["step"] == 5:
            raise Killed

    run_dpo(config, renderer=renderer, out_folder=tmp_path / "whole", seed=3)
    with pytest.raises(Killed):
        run_dpo(config, renderer=renderer, out_folder=tmp_path / "cut", seed=3, on_progress=kill_at_5)
    steps = []
    run_dpo(
        config,
        renderer=renderer,
        out_folder=tmp_path / "cut",
        seed=3,
        on_progress=lambda line: steps.append(line["step"]),
    )
    assert steps == [5, 6]
    assert "goes on from its checkpoint of step 4" in caplog.text
    assert curve(tmp_path / "cut", "dpo") == curve(tmp_path / "whole", "dpo")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("cut", "whole")]
    assert weights[0] == weights[1]
    assert not (tmp_path / "cut" / "scratch").exists()


def test_unfinished_folder_of_other_settings_is_begun_anew(renderer, source, undivided, tmp_path, caplog):
    caplog.set_level("INFO")
    scratch = tmp_path / "out" / "scratch"
    scratch.mkdir(parents=True)
    (scratch / "identity.json").write_text('"of another"')
    (scratch / "checkpoint-4").mkdir()
    (scratch / "checkpoint-4" / "complete").touch()
    tuned(renderer, source, tmp_path / "out", num_steps=1)
    assert "begun anew" in caplog.text
    assert curve(tmp_path / "out")[1] == curve(undivided)[1]
