import json

import pytest

from rlhf.config.algorithm import LoraConfig
from rlhf.config.schema import ModelConfig
from rlhf.config.trainer import DpoConfig, RewardModelConfig, SftConfig
from rlhf.episodes.render import Renderer
from rlhf.errors import ConfigError, DataError, DependencyError
from rlhf.stages.preference_rows import read_pairs
from rlhf.stages.reward_model import padding_token
from rlhf.stages.trained_rows import that_fit
from rlhf.stages.trainer_stage import check_adapter
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    return Renderer(model_folder=str(save_tiny(tmp_path_factory.mktemp("model"))), template="{prompt}")


def found(tmp_path, renderer, *rows, section=DpoConfig, **changes):
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    config = section(source={"file": str(file)}, **changes)
    return read_pairs(config.source, config, renderer=renderer, key="dpo.source")


PAIR = {"prompt": "1+1=", "chosen": "2", "rejected": "34"}


def test_sides_are_the_ids_that_rl_would_sample(tmp_path, renderer):
    (row,) = found(tmp_path, renderer, PAIR).rows
    assert renderer.decode(row["prompt_ids"]) == "1+1="
    assert [renderer.pieces(row[f"{side}_ids"]) for side in ("chosen", "rejected")] == [
        ["2", "<eos>"],
        ["3", "4", "<eos>"],
    ]


def test_messages_are_the_same_pair_as_texts(tmp_path, renderer):
    asked = {"role": "user", "content": "1+1="}
    whole = {
        "prompt": [asked],
        "chosen": [asked, {"role": "assistant", "content": "2"}],
        "rejected": [{"role": "assistant", "content": "34"}],
    }
    assert found(tmp_path, renderer, whole).rows == found(tmp_path, renderer, PAIR).rows


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"chosen": None}, r"dpo\.source: row pairs\.jsonl:0: `chosen` is None"),
        ({"rejected": [{"role": "user", "content": "34"}]}, "expected a text, one message of the assistant"),
        ({"rejected": "2"}, "are the same answer"),
        ({"rejected": "3" * 60}, r"has 65 tokens, more than dpo\.max_length \(40\)"),
    ],
)
def test_unusable_pair_is_named(tmp_path, renderer, change, says):
    with pytest.raises(DataError, match=says):
        found(tmp_path, renderer, PAIR | change, max_length=40)


def test_longer_pairs_are_dropped_and_counted_where_that_was_chosen(tmp_path, renderer, caplog):
    rows = found(tmp_path, renderer, PAIR | {"rejected": "3" * 60}, PAIR, max_length=40, on_long="drop")
    assert (len(rows.rows), rows.num_dropped) == (1, 1)
    assert "left out" in caplog.text


def test_no_row_left_is_an_error():
    with pytest.raises(DataError, match=r"No row would be left: raise sft\.max_length"):
        that_fit([("a", 9)], limit=8, on_long="drop", key="sft")


def test_margin_is_read_from_its_column(tmp_path, renderer):
    (row,) = found(tmp_path, renderer, PAIR | {"gap": 2}, section=RewardModelConfig, margin="gap").rows
    assert row["margin"] == 2.0
    with pytest.raises(DataError, match="`gap` is None, expected a number"):
        found(tmp_path, renderer, PAIR, section=RewardModelConfig, margin="gap")


def test_padding_of_a_reward_model_never_ends_an_answer(renderer, tmp_path):
    assert padding_token(renderer) == "<pad>"
    tokenizer = renderer.tokenizer
    save_tiny(tmp_path)
    tokenizer = Renderer(model_folder=str(tmp_path), template="{prompt}").tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    assert padding_token(Renderer(model_folder=str(tmp_path), template="{prompt}")) == "<unk>"


def sft(**changes):
    return SftConfig(source={"file": "x"}, **changes)


def test_adapter_keys_without_an_adapter_are_refused():
    with pytest.raises(ConfigError, match=r"sft\.lora_result is set but model\.lora is not"):
        check_adapter("sft", sft(lora_result="adapter"), None)


def test_four_bits_need_bitsandbytes_and_a_gpu(monkeypatch):
    lora = ModelConfig(path="x", lora=LoraConfig()).lora
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DependencyError, match="bitsandbytes is not installed"):
        check_adapter("sft", sft(load_in_4bit=True), lora)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError, match="has no CUDA GPU"):
        check_adapter("sft", sft(load_in_4bit=True), lora)
