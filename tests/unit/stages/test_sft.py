import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.config.schema import ModelConfig, SftConfig, SourceConfig
from rlhf.data.prompts import load_prompts
from rlhf.episodes.render import Renderer
from rlhf.errors import DataError, LearnerError
from rlhf.stages.model_folder import prepare_model_folder
from rlhf.stages.sft import run_sft, tokenised_rows
from rlhf.stages.sft_process import packed_batch, padded_batch

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
    rows = tokenised_rows(prompts, renderer, 64)
    assert [tuple(question) for question, _ in rows] == [renderer.encode_prompt(prompt) for prompt in prompts]
    assert {answer[-1] for _, answer in rows} == {renderer.stop_token_ids[0]}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "1+1="}, r"sft\.source: row rows\.jsonl:1 has no `completion`"),
        (
            {"prompt": "1+1=", "completion": "x" * 80},
            r"rows\.jsonl:1 has 85 tokens, more than sft\.max_length \(64\)",
        ),
    ],
)
def test_unusable_row_is_named(tmp_path, renderer, row, says):
    prompts = load_prompts(source(tmp_path, ROWS[0], row), key="sft.source", require_reference=False)
    with pytest.raises(DataError, match=says):
        tokenised_rows(prompts, renderer, 64)


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
