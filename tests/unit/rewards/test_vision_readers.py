import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
from PIL import Image

from rewards.vision_readers import FolderGallery, file_queries, folder_captions
from rlhf.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    (root / "more").mkdir(parents=True)
    Image.new("RGB", (10, 6), "red").save(root / "b.png")
    Image.new("L", (8, 8), 90).save(root / "a.jpg")
    Image.new("RGBA", (40, 20), "blue").save(root / "more" / "c.PNG")
    (root / "notes.md").write_text("not a picture")
    return root


IDS = ("a.jpg", "b.png", "more/c.PNG")


def test_ids_are_paths_from_the_folder(folder):
    gallery = FolderGallery(str(folder))
    assert gallery.ids() == IDS
    found = gallery.load(["more/c.PNG", "a.jpg"])
    assert [(p.mode, p.size, p.info["id"]) for p in found] == [
        ("RGB", (40, 20), "more/c.PNG"),
        ("RGB", (8, 8), "a.jpg"),
    ]


def test_large_pictures_are_loaded_smaller_if_asked(folder):
    (found,) = FolderGallery(str(folder), max_side=10).load(["more/c.PNG"])
    assert found.size == (10, 5)
    with pytest.raises(DataError, match="max_side"):
        FolderGallery(str(folder), max_side=0)


def test_pictures_are_upright(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (10, 6), "red").save(folder / "turned.jpg", exif=exif)
    assert FolderGallery(str(folder)).load(["turned.jpg"])[0].size == (6, 10)


@pytest.mark.parametrize("by_contents", [False, True])
def test_the_version_follows_the_files(folder, by_contents):
    before = FolderGallery(str(folder), by_contents)
    assert FolderGallery(str(folder), by_contents).version == before.version
    Image.new("RGB", (10, 6), "green").save(folder / "b.png")
    os.utime(folder / "b.png", ns=(1, 1))
    changed = FolderGallery(str(folder), by_contents)
    (folder / "a.jpg").unlink()
    assert len({before.version, changed.version, FolderGallery(str(folder), by_contents).version}) == 3


def test_the_version_of_the_contents_is_that_of_a_copy_too(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    here, there = (FolderGallery(str(f), by_contents=True) for f in (folder, tmp_path / "copy"))
    assert here.version == there.version
    assert FolderGallery(str(folder)).version != FolderGallery(str(tmp_path / "copy")).version


def test_a_gallery_pickles_small_and_notices_other_files(folder):
    gallery = FolderGallery(str(folder))
    written = pickle.dumps(gallery)
    assert len(written) < 400
    assert pickle.loads(written) == gallery
    (folder / "a.jpg").unlink()
    with pytest.raises(DataError, match="not those that the gallery was made of"):
        pickle.loads(written).ids()


@pytest.mark.parametrize("name", ["none.png", "notes.md", "../pictures/a.jpg", "more\\c.PNG"])
def test_a_file_that_is_no_picture_of_the_folder_is_refused(folder, name):
    with pytest.raises(DataError, match="not one of the 3"):
        FolderGallery(str(folder)).load([name])


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(30)])
def test_a_broken_picture_is_named(folder, content):
    (folder / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png cannot be read"):
        FolderGallery(str(folder)).load(["broken.png"])


def test_a_picture_that_was_cut_is_named(folder):
    whole = folder / "b.png"
    Image.effect_noise((64, 64), 50).save(whole)
    whole.write_bytes(whole.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"b\.png cannot be read"):
        FolderGallery(str(folder)).load(["b.png"])


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(DataError, match="no picture"):
        FolderGallery(str(tmp_path))
    with pytest.raises(DataError, match="not a folder"):
        FolderGallery(str(tmp_path / "none"))


PAIRS = [("a.jpg", "grey"), ("b.png", "red, dark"), ("more/c.PNG", "blue")]


def write_captions(folder: Path, form: str, pairs=PAIRS) -> None:
    if form == "jsonl":
        (folder / "captions.jsonl").write_text(
            "\n".join(json.dumps({"file_name": name, "text": text}) for name, text in pairs)
        )
    elif form == "csv":
        lines = [f'{name},"{text}"' for name, text in pairs]
        (folder / "captions.csv").write_text("\n".join(["image,caption", *lines]), encoding="utf-8-sig")
    else:
        for name, text in pairs:
            (folder / name).with_suffix(".txt").write_text(text + "\n")


@pytest.mark.parametrize("form", ["jsonl", "csv", "txt"])
def test_captions_are_read_in_each_form(folder, form):
    write_captions(folder, form)
    assert folder_captions(str(folder)) == PAIRS


def test_a_picture_may_have_several_captions(folder):
    write_captions(folder, "csv", [*PAIRS, ("a.jpg", "dull")])
    assert folder_captions(str(folder))[-1] == ("a.jpg", "dull")


@pytest.mark.parametrize("form", ["jsonl", "csv", "txt"])
def test_pictures_without_a_caption_are_told(folder, form):
    write_captions(folder, form, PAIRS[:2])
    with pytest.raises(DataError, match=r"1 of 3 pictures have no caption, such as 'more/c\.PNG'"):
        folder_captions(str(folder))
    assert folder_captions(str(folder), every=False) == PAIRS[:2]


def test_captions_in_two_forms_or_in_none_are_refused(folder):
    with pytest.raises(DataError, match="no file"):
        folder_captions(str(folder))
    write_captions(folder, "csv")
    write_captions(folder, "txt")
    with pytest.raises(DataError, match=r"captions\.csv and 3 \.txt files"):
        folder_captions(str(folder))


@pytest.mark.parametrize("form", ["jsonl", "csv", "txt"])
def test_an_empty_caption_is_refused(folder, form):
    write_captions(folder, form, [*PAIRS[:2], ("more/c.PNG", " ")])
    with pytest.raises(DataError, match=r"'more/c\.PNG' is empty"):
        folder_captions(str(folder))


def test_a_caption_of_no_picture_is_refused(folder):
    write_captions(folder, "jsonl", [*PAIRS, ("d.png", "x")])
    with pytest.raises(DataError, match=r"no picture 'd\.png'"):
        folder_captions(str(folder))


@pytest.mark.parametrize(
    "row", ['{"image": "a.jpg"}', '{"image": "a.jpg", "caption": 3}', "[]", "{", '{"x": 1, "text": "y"}']
)
def test_a_row_that_is_no_caption_is_named_by_its_line(folder, row):
    (folder / "captions.jsonl").write_text('{"image": "b.png", "caption": "red"}\n' + row)
    with pytest.raises(DataError, match="line 2"):
        folder_captions(str(folder))


def test_queries_are_read_from_each_kind_of_file(tmp_path):
    (tmp_path / "q.txt").write_text("a cat\n\n  a dog \n")
    (tmp_path / "q.jsonl").write_text(
        '{"query": "a cat", "id": 7, "relevant": ["1.png", "2.png"]}\n{"query": "a dog"}'
    )
    (tmp_path / "q.csv").write_text("id,query,relevant\n7,a cat,1.png | 2.png\n,a dog,\n")
    plain, *full = (file_queries(str(tmp_path / f"q.{suffix}")) for suffix in ("txt", "jsonl", "csv"))
    assert [(q.id, q.text, q.relevant) for q in plain] == [("a cat", "a cat", None), ("a dog", "a dog", None)]
    for found in full:
        assert [(q.id, q.text, q.relevant) for q in found] == [
            ("7", "a cat", ("1.png", "2.png")),
            ("a dog", "a dog", None),
        ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.txt", "\n"),
        ("q.jsonl", '{"text": "a cat"}'),
        ("q.jsonl", '{"query": "a cat", "relevant": 3}'),
        ("q.csv", "name\na cat\n"),
        ("q.pdf", "a cat"),
    ],
)
def test_a_file_without_queries_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=name):
        file_queries(str(tmp_path / name))
