"""A pipeline and its folder: what every stage is now, and what is done."""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import yaml

from rlhf.config.pipeline import PipelineConfig, Values, near
from rlhf.config.references import Reference, replaced
from rlhf.content_hashes import ContentHashes
from rlhf.errors import ConfigError
from rlhf.pipeline.graph import Stage, resolve
from rlhf.pipeline.identity import Identity, identity_of, missing_files
from rlhf.pipeline.job import write_job
from rlhf.pipeline.manifest import Manifest, Record, Verdict
from rlhf.run_folder import environment, own, replace_file, taken

PIPELINE_FILE = "pipeline.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A stage and how it stands. `identity` is None as long as one that it needs is not done."""

    stage: Stage
    verdict: Verdict
    identity: Identity | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """The stages in running order, the manifest of the folder, and the hashes of what is in it."""

    config: PipelineConfig
    stages: list[Stage]
    manifest: Manifest
    hashes: ContentHashes
    code_dir: Path

    @classmethod
    def of(cls, config: PipelineConfig, *, code_dir: Path) -> "Pipeline":
        """Check the whole pipeline and read its folder; writes nothing. ConfigError for the first mistake."""
        stages = resolve(config)
        for stage in stages:
            for key, path in missing_files(stage):
                raise ConfigError(
                    f"stages.{stage.name}.{key}: there is no file or folder {path!r} (looked from {str(Path.cwd())!r})."
                )
        folder = config.folder
        return cls(
            config=config,
            stages=stages,
            manifest=Manifest.read(folder),
            hashes=ContentHashes(folder),
            code_dir=code_dir,
        )

    def stage(self, name: str, *, option: str) -> Stage:
        """The stage of that name; `option` is named in the error."""
        found = next((stage for stage in self.stages if stage.name == name), None)
        if found is None:
            names = [stage.name for stage in self.stages]
            raise ConfigError(f"{option} {name}: there is no stage {name!r}.{near(name, names)}")
        return found

    def survey(self) -> list[Standing]:
        """How every stage stands, without changing anything."""
        standings: list[Standing] = []
        hashes: dict[Reference, str] = {}
        for stage in self.stages:
            unknown = dict.fromkeys(need.stage for need in stage.needs if need not in hashes)
            if unknown:
                verdict = Verdict(state="waits", why=f"after {', '.join(unknown)}")
                standings.append(Standing(stage=stage, verdict=verdict, identity=None))
                continue
            standing = self.judge(stage, hashes)
            standings.append(standing)
            if standing.verdict.state == "done":
                hashes |= self._artefacts_of(standing)
        return standings

    def judge(self, stage: Stage, hashes: dict[Reference, str]) -> Standing:
        """How a stage stands whose inputs have the given hashes."""
        identity = identity_of(stage, hashes, self.hashes, code_dir=self.code_dir)
        verdict = self.manifest.judge(stage.name, identity, self.hashes)
        return Standing(stage=stage, verdict=verdict, identity=identity)

    def _artefacts_of(self, standing: Standing) -> dict[Reference, str]:
        assert standing.identity is not None
        record = self.manifest.records.get(standing.identity.folder(standing.stage.name))
        if record is None:  # finished, but not yet written down
            record = copy_of(self.manifest).adopt(
                standing.stage.name, standing.identity, self.hashes, versions=dict
            )
        return references_to(standing.stage.name, record)

    def adopt(self, standing: Standing) -> dict[Reference, str]:
        """Make a done stage's result its present one; the hashes of its artefacts."""
        assert standing.identity is not None
        record = self.manifest.adopt(
            standing.stage.name, standing.identity, self.hashes, versions=_environment
        )
        self.hashes.save()
        self.manifest.save()
        return references_to(standing.stage.name, record)

    def write_stage(self, standing: Standing) -> Path:
        """The stage's folder with its `stage.yaml` and links to its inputs; the path of that file."""
        assert standing.identity is not None
        stage = standing.stage
        folder = self.config.folder / standing.identity.folder(stage.name)
        (folder / "inputs").mkdir(parents=True, exist_ok=True)
        links = {need: self._link(folder, need) for need in stage.needs}
        settings = replaced(stage.settings, lambda reference: str(links[stage.written[reference]]))
        return write_job(
            folder,
            {
                "pipeline": self.config.name,
                "stage": stage.name,
                "kind": stage.kind,
                "key": standing.identity.key,
                "model_seed": self.config.seed,
                "settings": settings,
                "before": self._before(standing),
            },
        )

    def _before(self, standing: Standing) -> str | None:
        assert standing.identity is not None
        present = self.manifest.present.get(standing.stage.name)
        if (
            present is None
            or standing.verdict.altered
            or present == standing.identity.folder(standing.stage.name)
        ):
            return None
        # What new code would sample or grade is not there.
        if self.manifest.code_changes(present, standing.identity):
            return None
        return str((self.config.folder / present).absolute())

    def write_config(self) -> None:
        """Write the pipeline as resolved, which loads back to the same one."""
        self.config.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.config.folder / PIPELINE_FILE, pipeline_yaml(self.config, self.stages))

    def _link(self, folder: Path, need: Reference) -> Path:
        """A link in the stage's folder: its path stays the same when an equal input lies elsewhere."""
        source = self.manifest.artefact(need.stage, need.artefact).absolute()
        link = (folder / "inputs" / f"{need.stage}.{need.artefact}{source.suffix}").absolute()
        draft = link.with_name(f".{link.name}")
        draft.unlink(missing_ok=True)
        draft.symlink_to(Path("../../..") / source.relative_to(self.config.folder.absolute()))
        draft.replace(link)
        return link


def copy_of(manifest: Manifest) -> Manifest:
    """A copy that can be changed without changing the original."""
    return replace(manifest, present=dict(manifest.present), records=dict(manifest.records))


@functools.cache
def _environment() -> Values:
    """Asking git and every package takes a second: once will do."""
    return environment()


def references_to(stage: str, record: Record) -> dict[Reference, str]:
    """The hashes of a stage's artefacts, as others name them."""
    return {Reference(stage, name): digest for name, digest in record.artefacts.items()}


def pipeline_yaml(config: PipelineConfig, stages: list[Stage]) -> str:
    """The whole pipeline, every default written out."""
    values = config.model_dump(mode="json", exclude={"stages", "shared"})
    values["stages"] = {stage.name: {"kind": stage.kind, **stage.settings} for stage in stages}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def held(folder: Path) -> IO[bytes]:
    """Own a pipeline's folder until it is closed. ConfigError when it cannot be written or another process owns it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return own(folder / ".lock", taken=taken(folder))
    except OSError as error:
        raise ConfigError(
            f"run_dir: cannot write to {str(folder)!r} ({error.strerror}). Name another folder with run_dir=...."
        ) from error
