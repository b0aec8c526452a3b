import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.config.merge import MergeConfig
from rlhf.errors import ModelError
from rlhf.stages.merge import run_merge
from tests.tiny import save_tiny

IDS = torch.tensor([[5, 9, 40, 41, 3, 70]])


def merge(out: Path, **keys: Any) -> Path:
    return Path(run_merge(MergeConfig.model_validate(keys), out))


def logprobs(network: Any) -> Tensor:
    with torch.no_grad():
        return network.eval()(input_ids=IDS).logits.float().log_softmax(-1)


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def adapter_of(base: Path, folder: Path, **settings: Any) -> Any:
    """A peft model with random adapters, saved."""
    config = LoraConfig(**({"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"]} | settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = get_peft_model(load(base), config)
        for name, parameter in network.named_parameters():
            if ".lora_" in name or "modules_to_save" in name:
                parameter.data.normal_(std=0.2)
    network.save_pretrained(folder)
    return PeftModel.from_pretrained(load(base), folder)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "use_rslora": True,
            "alpha_pattern": {"down_proj": 3},
            "rank_pattern": {"layers.0.self_attn.q_proj": 2},
        },
        {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    ],
    ids=["plain", "patterns", "modules saved whole"],
)
def test_a_merged_adapter_gives_the_log_probabilities_of_the_peft_model(tmp_path: Path, settings) -> None:
    base = save_tiny(tmp_path / "base")
    expected = logprobs(adapter_of(base, tmp_path / "adapter", **settings))
    out = merge(tmp_path / "out", method="adapter", base=str(base), adapter=str(tmp_path / "adapter"))
    torch.testing.assert_close(logprobs(load(out)), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(logprobs(load(base)), expected, atol=0.05)
    assert AutoTokenizer.from_pretrained(out).get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()
    assert (out / "generation_config.json").is_file()
    metrics = json.loads((out / "merge.json").read_text())["metrics"]
    tensors = [load(folder).state_dict() for folder in (base, out)]
    changed = [
        name for name in load_file(out / "model.safetensors") if not torch.equal(*(t[name] for t in tensors))
    ]
    assert metrics["tensors_changed"] == len(changed) < metrics["tensors"]


def test_an_average_is_that_of_each_tensor_in_whatever_files_it_lies(tmp_path: Path) -> None:
    folders = [save_tiny(tmp_path / str(seed), seed, vocab_size=4096) for seed in (1, 2)]
    load(folders[1]).save_pretrained(folders[1], max_shard_size="600KB")
    (folders[1] / "model.safetensors").unlink()
    models = [
        {"path": str(folder), "weight": weight} for folder, weight in zip(folders, (3.0, 1.0), strict=True)
    ]
    out = merge(tmp_path / "out", method="linear", models=models, shard_mb=1)
    first, second = (load(folder).state_dict() for folder in folders)
    found = load(out).state_dict()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, 0.75 * first[name] + 0.25 * second[name], atol=1e-6, rtol=0)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    stored = [load_file(file) for file in sorted(out.glob("*.safetensors"))]
    assert len(stored) > 1
    assert index["metadata"]["total_size"] == sum(4 * t.numel() for part in stored for t in part.values())


def test_task_vectors_are_added_to_the_base_in_the_type_that_is_asked_for(tmp_path: Path) -> None:
    base, one, two = (save_tiny(tmp_path / str(seed), seed) for seed in (0, 1, 2))
    models = [{"path": str(one), "weight": 0.5}, {"path": str(two), "weight": 0.25}]
    out = merge(tmp_path / "out", method="task_vectors", base=str(base), models=models, dtype="bfloat16")
    stored = load_file(out / "model.safetensors")
    parts = [load_file(folder / "model.safetensors") for folder in (base, one, two)]
    for name, tensor in stored.items():
        b, x, y = (part[name] for part in parts)
        torch.testing.assert_close(tensor, (b + 0.5 * (x - b) + 0.25 * (y - b)).bfloat16())
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_merge_is_done_once_for_the_same_inputs(tmp_path: Path) -> None:
    folders = [save_tiny(tmp_path / str(seed), seed) for seed in (1, 2)]
    keys: dict[str, Any] = {"method": "linear", "models": [{"path": str(folder)} for folder in folders]}
    out = merge(tmp_path / "out", **keys)
    before = (out / "merge.json").stat().st_mtime_ns
    assert (merge(out, **keys) / "merge.json").stat().st_mtime_ns == before
    save_tiny(folders[0], seed=3)
    changed = load(merge(out, **keys)).state_dict()
    expected = [load(folder).state_dict() for folder in folders]
    name = "model.norm.weight"
    torch.testing.assert_close(changed[name], (expected[0][name] + expected[1][name]) / 2)
    assert json.loads((out / "merge.json").read_text())["metrics"]["tensors"] > 10


def test_models_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    deeper = save_tiny(tmp_path / "deeper", num_hidden_layers=3)
    wider = save_tiny(tmp_path / "wider", intermediate_size=256)
    other = save_tiny(tmp_path / "other", model_type="llama", head_dim=16)
    retold = save_tiny(tmp_path / "retold")
    text = (retold / "tokenizer.json").read_text()
    (retold / "tokenizer.json").write_text(text.replace('"a": ', '"ä": '))
    for folder, said in (
        (deeper, r"merge\.models\[1\]: \d+ tensors are not in both models, 'model.layers.2"),
        (wider, r"has the shape \(64, 256\), in merge\.models\[0\] it has \(64, 128\)"),
        (other, "model_type is 'llama', that of"),
        (retold, "its tokenizer differs from that of .* in 2 entries"),
    ):
        with pytest.raises(ModelError, match=said):
            merge(tmp_path / "out", method="linear", models=[{"path": str(base)}, {"path": str(folder)}])
    assert not (tmp_path / "out").exists()


def test_adapters_that_are_more_than_lora_on_stored_tensors_are_refused(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    keys = {"method": "adapter", "base": str(base)}
    with pytest.raises(ModelError, match=r"holds no adapter_config\.json"):
        merge(tmp_path / "out", **keys, adapter=str(base))
    adapter_of(base, tmp_path / "dora", use_dora=True)
    with pytest.raises(ModelError, match="has use_dora, which is not plain LoRA"):
        merge(tmp_path / "out", **keys, adapter=str(tmp_path / "dora"))
    adapter_of(save_tiny(tmp_path / "deeper", num_hidden_layers=3), tmp_path / "deep")
    with pytest.raises(
        ModelError, match=r"'model\.layers\.2\..*' is adapted, but merge\.base .* stores no such"
    ):
        merge(tmp_path / "out", **keys, adapter=str(tmp_path / "deep"))
    adapter_of(save_tiny(tmp_path / "wider", intermediate_size=256), tmp_path / "wide")
    with pytest.raises(ModelError, match=r"down_proj.* in the shape \(64, 256\), in .* it has \(64, 128\)"):
        merge(tmp_path / "out", **keys, adapter=str(tmp_path / "wide"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"method": "adapter", "base": "a"}, "missing \\['adapter'\\]"),
        ({"method": "linear", "base": "a", "models": [{"path": "b"}]}, "not read \\['base'\\]"),
        ({"method": "linear", "models": [{"path": "a"}, {"path": "b", "weight": -1}]}, "weights sum to 0"),
    ],
)
def test_a_method_takes_its_own_keys_alone(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        MergeConfig.model_validate(keys)
