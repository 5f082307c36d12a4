"""``convert``: weights of any make become a checkpoint of ours, an artifact with preprocessing and digest."""

from __future__ import annotations

from pathlib import Path

from vitdeploy import environment
from vitdeploy.artifacts import Checkpoint, write_checkpoint
from vitdeploy.artifacts.files import refuse_unwritable
from vitdeploy.errors import UsageError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import Manifest, stage_key
from vitdeploy.stages.export import ExportOptions, load

DEFAULTS = ExportOptions()


def convert(
    source: str | Path, output: Path | str, *, options: ExportOptions = DEFAULTS, progress: Progress = SILENT
) -> Checkpoint:
    """Write the weights of ``source`` as a checkpoint in our layout and return it.

    Args:
        source: As for ``load_source``, but of a family that this package builds itself.
        output: The ``.safetensors`` file.
        options: Those that concern weights: ``weights``, ``random_weights``, ``arguments``, ``reset_head``, ``labels``,
            ``seed``.
        progress: Notes which dialect it was and what was decided.
    Raises:
        UsageError: The model is one of timm's or torchvision's own, or an option is for ONNX files only.
        ModelError, CheckpointError, ArtifactError: The source cannot be loaded, or the file not written.
    """
    from vitdeploy.models.registry import FAMILIES

    output = Path(output)
    refuse_unwritable(output, "a checkpoint")
    for name, value in _only_for_onnx(options).items():
        if value is not None:
            raise UsageError(f"{name} is for ONNX files, and {str(output)!r} is a checkpoint: leave it out")
    loaded = load(str(source), options, progress)
    if loaded.spec.family not in FAMILIES:
        raise UsageError(
            f"{str(source)!r} is built by {loaded.spec.family}, so its weights have no place in a model of ours: "
            "export it to ONNX, or name the catalogue's model with '--weights FILE'"
        )
    # No parent is named: the weights in our layout are this very payload, and a foreign file has no digest of ours.
    recorded: dict[str, object] = {"arguments": dict(options.arguments), "reset_head": options.reset_head}
    recorded |= {"seed": options.seed, "classes": list(loaded.spec.classes)}
    manifest = Manifest(
        kind="checkpoint",
        key=stage_key("convert", recorded, {"weights": loaded.digest}),
        model=loaded.spec,
        preprocess=loaded.preprocess,
        options=recorded,
        producer="vitdeploy export",
        versions=environment.versions(),
        environment=environment.current(),
    )
    tensors = {name: tensor.detach().numpy() for name, tensor in loaded.module.state_dict().items()}
    return write_checkpoint(output, tensors, manifest)


def _only_for_onnx(options: ExportOptions) -> dict[str, object]:
    return {
        "--reference": options.reference,
        "--golden": options.golden,
        "--preprocess": options.preprocess,
    }
