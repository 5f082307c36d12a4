"""``convert``: weights of any make become a checkpoint of ours, an artifact with preprocessing and digest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy import environment
from vitdeploy.artifacts import Artifact, Checkpoint, write_checkpoint
from vitdeploy.artifacts.outputs import refuse_unwritable
from vitdeploy.errors import UsageError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import Manifest, stage_key
from vitdeploy.sources.source import Source, SourceOptions, open_source
from vitdeploy.terminal_progress import AUTO, shown

DEFAULTS = SourceOptions()


def convert(
    source: Artifact | Path | str,
    output: Path | str,
    *,
    options: SourceOptions = DEFAULTS,
    progress: Progress | None = AUTO,
) -> Checkpoint:
    """Write the weights of ``source`` as a checkpoint and return it.

    Weights of a family that this package builds are in its own layout; models of timm and torchvision keep theirs, and
    their package builds the module again when the checkpoint is opened.

    Args:
        source: As for ``load_source``.
        output: The ``.safetensors`` file.
        options: See ``SourceOptions``.
        progress: Notes which dialect it was and what was decided.
    Raises:
        UsageError: Options contradict each other.
        ModelError, CheckpointError, ArtifactError: The source cannot be loaded, or the file not written.
    """
    return ConvertRequest.open(source, output, options=options).run(shown(progress))


@dataclass(frozen=True)
class ConvertRequest:
    """A conversion that is ready to run: the model found and checked."""

    source: Source
    output: Path

    @classmethod
    def open(
        cls, source: Source | Artifact | Path | str, output: Path | str, *, options: SourceOptions = DEFAULTS
    ) -> ConvertRequest:
        """Find the model; nothing is loaded, and torch is not needed.

        Raises:
            VitdeployError: As ``convert``, where source or options are unfit or the output cannot be written.
        """
        output = Path(output)
        refuse_unwritable(output, "a checkpoint", inputs=(source, options.weights, options.labels))
        if type(options) is not SourceOptions:
            raise UsageError(f"convert takes SourceOptions and was handed {type(options).__name__}, which has more")
        return cls(open_source(source, options), output)

    @property
    def parents(self) -> dict[str, str]:
        """None: the weights in our layout are this very payload, and a foreign file has no digest of ours."""
        return {}

    @property
    def values(self) -> dict[str, Any]:
        """What decides the result, as JSON values."""
        return {**self.source.values, "seed": self.source.options.seed}

    @property
    def key(self) -> str:
        """The freshness key of the result."""
        return stage_key("convert", self.values, {"weights": self.source.digest})

    def run(self, progress: Progress = SILENT) -> Checkpoint:
        """Load the weights and write them.

        Raises:
            VitdeployError: As ``convert``.
        """
        from vitdeploy.sources.load import load

        loaded = load(self.source, progress)
        manifest = Manifest(
            kind="checkpoint",
            key=self.key,
            model=loaded.spec,
            preprocess=loaded.preprocess,
            trained_on=loaded.trained_on,
            options=self.values,
            producer="vitdeploy convert",
            versions=environment.versions(),
            environment=environment.current(),
        )
        tensors = {name: tensor.detach().numpy() for name, tensor in loaded.module.state_dict().items()}
        return write_checkpoint(self.output, tensors, manifest)
