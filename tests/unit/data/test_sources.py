import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlhf.config.task import SourceConfig
from rlhf.data.sources import read_rows
from rlhf.errors import DataError

ROWS = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(5)]


def count_up(seed, size=3, step=1):
    return [{"prompt": str(seed + step * i)} for i in range(size)]


def only_even(row):
    return row if int(row["answer"]) % 2 == 0 else None


def misspelt(row):
    return {"prompt": row["question"]}


def read(**source):
    return list(read_rows(SourceConfig(**source), key="task.train"))


@pytest.fixture
def jsonl(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    return file


def test_jsonl_rows_carry_their_place(jsonl):
    assert read(file=str(jsonl)) == [(f"train.jsonl:{i}", row) for i, row in enumerate(ROWS)]


def test_parquet_rows_equal_the_jsonl_rows(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert [row for _, row in read(file=str(tmp_path / "a.parquet"))] == ROWS


def test_folder_reads_its_files_in_name_order(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"prompt": "1"}')
    assert [place for place, _ in read(file=str(tmp_path))][4:] == ["a.parquet:4", "b.jsonl:0"]


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        (["test", "train"], "train", ["train"]),
        (["test", "train"], "test", ["test"]),
        (["test-0", "train-00000-of-00002", "train_1"], "train", ["train-00000-of-00002", "train_1"]),
        (["gsm8k_test", "gsm8k_train"], "test", ["gsm8k_test"]),
        (["test_sft", "train_gen", "train_sft"], "train_sft", ["train_sft"]),
        (["contest", "trainer"], "train", ["contest", "trainer"]),
    ],
)
def test_folder_of_files_keeps_to_the_split(tmp_path, names, split, chosen):
    for name in names:
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "1"}')
    read_places = [place for place, _ in read(file=str(tmp_path), split=split)]
    assert read_places == [f"{name}.jsonl:0" for name in chosen]


def test_folder_of_other_splits_names_its_files(tmp_path):
    for name in ("a", "dev-0"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "1"}')
    with pytest.raises(
        DataError, match=r"task\.train\.split: .*'train', it has \['a\.jsonl', 'dev-0\.jsonl'\]"
    ):
        read(file=str(tmp_path))


def test_byte_order_mark_is_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "1"}\r\n{"prompt": "\xc3\xa9"}\r\n')
    assert [row["prompt"] for _, row in read(file=str(tmp_path / "a.jsonl"))] == ["1", "é"]


def test_file_that_is_not_utf8_names_the_place(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "1"}\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"task\.train\.file: .*a\.jsonl line 2 is not UTF-8: .* at byte 16"):
        read(file=str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("with_splits", [False, True])
def test_saved_data_set_is_read(tmp_path, with_splits):
    data = datasets.Dataset.from_list(ROWS)
    (datasets.DatasetDict(train=data) if with_splits else data).save_to_disk(str(tmp_path / "saved"))
    assert read(file=str(tmp_path / "saved"))[2] == ("saved:2", ROWS[2])


def test_saved_data_set_names_its_splits(tmp_path):
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match=r"task\.train\.split: .* has no split 'test', it has \['train'\]"):
        read(file=str(tmp_path / "saved"), split="test")


def test_generator_gets_seed_size_and_kwargs():
    source = {"generator": f"{__file__}:count_up", "seed": 10, "kwargs": {"step": 2}}
    assert [row["prompt"] for _, row in read(**source)] == ["10", "12", "14"]
    assert len(read(**source, limit=2)) == 2


def test_mapper_leaves_rows_out_and_places_stay(jsonl):
    assert [place for place, _ in read(file=str(jsonl), mapper=f"{__file__}:only_even")] == [
        "train.jsonl:1",
        "train.jsonl:3",
    ]


def test_limit_counts_mapped_rows(jsonl):
    assert len(read(file=str(jsonl), mapper=f"{__file__}:only_even", limit=1)) == 1


def test_failing_mapper_names_the_row(jsonl):
    with pytest.raises(DataError, match=r"misspelt on row train\.jsonl:0 raised KeyError: 'question'"):
        read(file=str(jsonl), mapper=f"{__file__}:misspelt")


def test_malformed_line_is_named(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "1"}\n{"prompt": \n')
    with pytest.raises(DataError, match=r"task\.train\.file: .*bad\.jsonl line 2 is not JSON"):
        read(file=str(tmp_path / "bad.jsonl"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.jsonl", "", r"empty\.jsonl' ?is empty|empty\.jsonl is empty"),
        ("list.jsonl", "[1, 2]\n", r"row list\.jsonl:0 is a list, expected a mapping"),
        ("data.csv", "a,b", r"ends in '\.csv', expected one of \.jsonl, \.parquet"),
        ("bad.parquet", "nothing", "not a readable Parquet file"),
    ],
)
def test_unusable_file_is_named(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=says):
        read(file=str(tmp_path / name))


def test_missing_file_and_empty_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"task\.train\.file: there is no file or folder 'nowhere\.jsonl'"):
        read(file="nowhere.jsonl")
    with pytest.raises(DataError, match=r"holds no \.jsonl or \.parquet"):
        read(file=str(tmp_path))


def test_generators_rows_have_the_same_ids_wherever_its_file_lies(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "sums.py").write_text("def rows(seed):\n    return [{'prompt': '1+1='}]\n")
    here, there = (read(generator=f"{tmp_path / folder / 'sums.py'}:rows") for folder in ("here", "there"))
    assert here == there == [("sums.py:rows:0", {"prompt": "1+1="})]


def test_generator_with_wrong_arguments_is_named():
    with pytest.raises(
        DataError, match=r"task\.train\.generator: .*count_up.*unexpected keyword argument 'stride'"
    ):
        read(generator=f"{__file__}:count_up", kwargs={"stride": 2})
