"""`stage.yaml`: all that one stage is, with nothing left to look up."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from rlhf.config.loading import checked_section, read_mapping
from rlhf.config.pipeline import Values
from rlhf.config.section import Section
from rlhf.config.stage_kinds import KINDS
from rlhf.errors import ConfigError
from rlhf.run_folder import replace_file

FILE = "stage.yaml"
_KEYS = {"pipeline", "stage", "kind", "key", "model_seed", "settings"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A stage ready to run in `folder`."""

    pipeline: str
    stage: str
    kind: str
    key: str
    model_seed: int
    """Of models that are initialised at random: the same in all stages of a pipeline."""
    section: Section
    folder: Path
    before: Path | None = None
    """The folder of this stage's result with other settings: samples that these did not change can be taken from it."""

    @property
    def name(self) -> str:
        """What trackers and views call it."""
        return f"{self.pipeline}-{self.stage}"


def write_job(folder: Path, values: Values) -> Path:
    """Write `stage.yaml` from the keys of a job, `settings` in place of its section."""
    file = folder / FILE
    replace_file(file, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return file


def read_job(file: Path) -> Job:
    """The job that a stage file describes. ConfigError when it is not one."""
    values = read_mapping(file)
    kind = KINDS.get(str(values.get("kind")))
    if kind is None or not values.keys() >= _KEYS or not isinstance(values["settings"], dict):
        raise ConfigError(
            f"{str(file)!r} is not a stage file (found the keys {sorted(values)}, expected {sorted(_KEYS)}). "
            "A pipeline writes them: run `rlhf pipeline`, or name runs/<name>/stages/<stage>/stage.yaml."
        )
    settings = values["settings"] | {key: str(values["stage"]) for key in kind.own if key == "name"}
    return Job(
        pipeline=str(values["pipeline"]),
        stage=str(values["stage"]),
        kind=str(values["kind"]),
        key=str(values["key"]),
        model_seed=int(values["model_seed"]),
        section=checked_section(kind.section, settings, where=file, under="settings"),
        folder=file.parent.absolute(),
        before=None if values.get("before") is None else Path(str(values["before"])),
    )
