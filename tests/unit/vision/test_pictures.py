"""Pictures kept for a report: once, small, and found again by name."""

import base64
from dataclasses import dataclass, field
from io import BytesIO

import pytest
from PIL import Image

from rlhf.vision.pictures import Pictures


@dataclass
class Sized:
    """Pictures of the size that their name tells: `wide-300x40`."""

    mode: str = "RGB"
    version: str = "1"
    loaded: list[str] = field(default_factory=list)

    def ids(self):
        return []

    def load(self, ids):
        self.loaded += ids
        sizes = [tuple(map(int, name.rpartition("-")[2].split("x"))) for name in ids]
        return [Image.new(self.mode, size) for size in sizes]


def opened(uri: str | None) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(BytesIO(base64.b64decode(data)))


def test_pictures_are_written_once(tmp_path):
    kept, gallery = Pictures(tmp_path / "pictures"), Sized()
    kept.keep(gallery, ["a-8x8", "b-9x9", "a-8x8"])
    written = {file: file.stat().st_mtime_ns for file in kept.folder.iterdir()}
    kept.keep(gallery, ["b-9x9", "c-7x7", "a-8x8"])
    kept.keep(gallery, ["c-7x7"])
    assert gallery.loaded == ["a-8x8", "b-9x9", "c-7x7"]
    assert len(list(kept.folder.iterdir())) == 3
    assert {file: file.stat().st_mtime_ns for file in written} == written


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("large-300x300", (96, 96)),
        ("wide-300x150", (96, 48)),
        ("tall-10x960", (1, 96)),
        ("small-16x12", (16, 12)),
    ],
)
def test_pictures_are_at_most_96_pixels_and_never_enlarged(tmp_path, name, size):
    kept = Pictures(tmp_path)
    kept.keep(Sized(), [name])
    assert opened(kept.uri(name)).size == size


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK"])
def test_pictures_of_any_mode_are_kept_in_colour(tmp_path, mode):
    kept = Pictures(tmp_path)
    kept.keep(Sized(mode=mode), ["a-8x8"])
    assert opened(kept.uri("a-8x8")).mode == "RGB"


def test_picture_that_was_not_kept_has_no_uri(tmp_path):
    assert Pictures(tmp_path / "nowhere").uri("a") is None
    kept = Pictures(tmp_path)
    kept.keep(Sized(), ["a-8x8"])
    assert kept.uri("a-8x9") is None


def test_nothing_to_keep_makes_no_folder(tmp_path):
    Pictures(tmp_path / "pictures").keep(Sized(), [])
    assert not (tmp_path / "pictures").exists()


def test_any_name_is_one_file_in_the_folder(tmp_path):
    kept = Pictures(tmp_path / "pictures")
    names = ["../outside/a-8x8", "x" * 400 + "-8x8", "<b>/\N{SNOWMAN}-8x8"]
    kept.keep(Sized(), names)
    assert len(list(kept.folder.iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
    assert all(kept.uri(name) for name in names)
