"""Small copies of the images that a report shows, kept in the run folder: the report needs no gallery."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from rlhf.retrieval import Gallery

_SIDE = 96


@dataclass(frozen=True, slots=True)
class Pictures:
    """`pictures/` of a run folder."""

    folder: Path

    def keep(self, gallery: Gallery, ids: Sequence[str]) -> None:
        """Write those that are not there yet."""
        missing = [name for name in dict.fromkeys(ids) if not self._file(name).is_file()]
        if not missing:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, image in zip(missing, gallery.load(missing), strict=True):
            small = image.convert("RGB")
            small.thumbnail((_SIDE, _SIDE))
            buffer = BytesIO()
            small.save(buffer, format="PNG")
            draft = self._file(name).with_suffix(".draft")
            draft.write_bytes(buffer.getvalue())
            draft.replace(self._file(name))

    def uri(self, name: str) -> str | None:
        """The image inside a document; None where it was not kept."""
        file = self._file(name)
        if not file.is_file():
            return None
        return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"

    def _file(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.png"
