"""The gallery as a matrix of embeddings that knows which weights made it; search is exact."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlhf.errors import CheckpointError, DataError

_CHUNK = 65536
"""Images whose scores exist at one time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryIndex:
    """Embeddings of length 1, one row per image; made by the engines at weight version `version`."""

    ids: tuple[str, ...]
    matrix: Tensor
    """[n, d] float32."""
    version: int
    _place: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.matrix.shape[0] != len(self.ids):
            raise ValueError(
                f"matrix has {self.matrix.shape[0]} rows, expected one for each of {len(self.ids)} images"
            )
        if not torch.isfinite(self.matrix).all():
            bad = self.ids[int((~torch.isfinite(self.matrix)).any(1).nonzero()[0])]
            raise DataError(
                f"the embedding of image {bad!r} is not finite at weight version {self.version}: look at the image, "
                "or lower learner.lr."
            )
        object.__setattr__(self, "_place", {name: i for i, name in enumerate(self.ids)})

    def rows(self, ids: Sequence[str]) -> Tensor:
        """[m, d] of these images."""
        return self.matrix[[self._place[name] for name in ids]]

    def scores(self, query: Tensor) -> Tensor:
        """[n] cosines with a query [d]."""
        return self.matrix @ query

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(cosines, places), both [q, k], best first; equal cosines by place."""
        k = min(k, len(self.ids))
        best = torch.empty(queries.shape[0], 0)
        places = torch.empty(queries.shape[0], 0, dtype=torch.long)
        for start in range(0, len(self.ids), _CHUNK):
            part = queries @ self.matrix[start : start + _CHUNK].T
            own = torch.arange(start, start + part.shape[1]).expand_as(part)
            best, places = torch.cat([best, part], 1), torch.cat([places, own], 1)
            order = best.sort(dim=1, descending=True, stable=True).indices[:, :k]
            best, places = best.gather(1, order), places.gather(1, order)
        return best, places

    def save(self, file: Path) -> None:
        """Write it as one safetensors file."""
        names = "\n".join(self.ids)
        save_file(
            {"matrix": self.matrix.contiguous()}, file, metadata={"ids": names, "version": str(self.version)}
        )

    @classmethod
    def load(cls, file: Path, *, ids: Sequence[str]) -> "GalleryIndex":
        """What `save` wrote. Raises CheckpointError when the gallery has other images now."""
        try:
            with safe_open(file, "pt") as opened:
                metadata, matrix = opened.metadata(), opened.get_tensor("matrix")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{file} is no index of a gallery ({error}). Start the run anew with --fresh."
            ) from error
        if metadata["ids"] != "\n".join(ids):
            raise CheckpointError(
                f"{file} is the index of another gallery: it has {matrix.shape[0]} images, data.gallery gives "
                f"{len(ids)}, or they have other ids. Resume with the gallery that the run began with."
            )
        return cls(ids=tuple(ids), matrix=matrix, version=int(metadata["version"]))


def random_share(num: int, share: float, *, seed: int) -> Tensor:
    """[num] bool: which images a visit retrieves from."""
    if share >= 1:
        return torch.ones(num, dtype=torch.bool)
    kept = np.random.default_rng(seed).permutation(num)[: max(1, round(share * num))]
    mask = torch.zeros(num, dtype=torch.bool)
    mask[torch.from_numpy(kept)] = True
    return mask
