"""Sharded checkpoints that any number of ranks can read, and export to a Hugging Face folder."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import PreTrainedModel

from rlhf.errors import CheckpointError

MANIFEST = "learner.json"
_SHOWN = 5


def save_state(folder: Path, state: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
    """Write every rank's shards, then rank 0 puts `folder` in place at once. A collective.

    A crash leaves either the old folder or none, never half of one.
    """
    partial = folder.with_name(folder.name + ".partial")
    _on_first(lambda: _emptied(partial))
    save(dict(state), checkpoint_id=partial)
    _on_first(lambda: _finish(partial, folder, facts))


def read_facts(folder: Path, shapes: Mapping[str, list[int]], parts: Sequence[str]) -> dict[str, int]:
    """What `save_state` noted (optimizer steps, ranks), once it is sure that the parameters are the same.

    `parts` are held beside the policy: a critic, a reference that is reset. Raises CheckpointError when the
    folder is no checkpoint, belongs to another model or holds other parts.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise CheckpointError(
            f"{folder} holds no {MANIFEST}: it is no checkpoint of a learner, or was never finished. "
            "Name a folder written by checkpoint.every."
        )
    facts = json.loads(file.read_text())
    _refuse_parts(folder, set(facts.pop("parts", ())), set(parts))
    found: dict[str, list[int]] = facts.pop("parameters")
    problems = [f"{name} is missing" for name in shapes.keys() - found.keys()]
    problems += [f"{name} is not part of this model" for name in found.keys() - shapes.keys()]
    problems += [
        f"{name} has shape {found[name]}, this model has {shapes[name]}"
        for name in shapes.keys() & found.keys()
        if found[name] != shapes[name]
    ]
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CheckpointError(
            f"{folder} is a checkpoint of another model: {'; '.join(sorted(problems)[:_SHOWN])}{more}. "
            "Resume with the recipe it was written by, or start a new run folder."
        )
    return facts  # type: ignore[no-any-return]


def _refuse_parts(folder: Path, found: set[str], expected: set[str]) -> None:
    problems = [f"it holds a {part}, this run has none" for part in sorted(found - expected)]
    problems += [f"it holds no {part}, this run has one" for part in sorted(expected - found)]
    if problems:
        raise CheckpointError(
            f"{folder} is a checkpoint of another algorithm: {'; '.join(problems)}. "
            "Resume with the recipe it was written by, or start a new run folder."
        )


def load_state(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Fill the tensors of `state` in place from `folder`, whatever number of ranks wrote it. A collective."""
    load(dict(state), checkpoint_id=folder)


def export_model(folder: Path, model: PreTrainedModel, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Write `weights` as a Hugging Face folder. `model` (without storage) gives the architecture.

    A collective: every rank walks `weights`, rank 0 writes.
    """
    first = dist.get_rank() == 0
    state = {}
    for name, tensor in weights:
        if first:
            state[name] = tensor.cpu().contiguous()
    if first:
        model.config.dtype = next(iter(state.values())).dtype
        partial = _emptied(folder.with_name(folder.name + ".partial"))
        # Named as in a checkpoint already.
        model.save_pretrained(partial, state_dict=state, save_original_format=False)
        _replace(partial, folder)
    dist.barrier()


def _on_first(action: Callable[[], object]) -> None:
    """Run `action` on rank 0 while the others wait; its failure is every rank's failure."""
    failure: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            action()
        except OSError as error:
            failure = [f"{type(error).__name__}: {error}"]
    dist.broadcast_object_list(failure, src=0)
    if failure[0] is not None:
        raise CheckpointError(
            f"the checkpoint could not be written ({failure[0]}). Free the disk or change run_dir."
        )


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _finish(partial: Path, folder: Path, facts: Mapping[str, object]) -> None:
    (partial / MANIFEST).write_text(json.dumps(facts, indent=1))
    _replace(partial, folder)


def _replace(partial: Path, folder: Path) -> None:
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
