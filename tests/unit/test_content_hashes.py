"""What a model's folder is taken for: all of its weights, nothing of how its training went."""

import os

from rlhf.content_hashes import ContentHashes


def write_model(folder, *, weights=b"\0" * (3 << 20)):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_a_weight_in_the_middle_of_a_file_counts_as_any_other(tmp_path):
    model = write_model(tmp_path / "model")
    before = ContentHashes(tmp_path).of_model(str(model))
    weights = bytearray(3 << 20)
    weights[3 << 19] = 1
    write_model(model, weights=bytes(weights))
    assert ContentHashes(tmp_path).of_model(str(model)) != before


def test_what_a_trainer_notes_beside_a_model_does_not_count(tmp_path):
    model = write_model(tmp_path / "model")
    before = ContentHashes(tmp_path).of_model(str(model))
    (model / "sft.json").write_text('{"metrics": {"trainer/seconds": 3.0}}')
    (model / "sft_metrics.jsonl").write_text("{}")
    assert ContentHashes(tmp_path).of_model(str(model)) == before


def test_a_file_is_read_again_only_when_its_size_or_time_is_another(tmp_path):
    model = write_model(tmp_path / "model")
    weights = model / "model.safetensors"
    times = (weights.stat().st_atime_ns, weights.stat().st_mtime_ns)
    hashes = ContentHashes(tmp_path)
    before = hashes.of_model(str(model))
    hashes.save()
    weights.write_bytes(b"\1" * (3 << 20))
    os.utime(weights, ns=times)
    assert ContentHashes(tmp_path).of_model(str(model)) == before
    os.utime(weights, ns=(times[0], times[1] + 1))
    assert ContentHashes(tmp_path).of_model(str(model)) != before


def test_a_hub_name_stands_for_itself(tmp_path):
    assert ContentHashes(tmp_path).of_model("owner/model") == "owner/model"
