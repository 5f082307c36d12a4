"""``verify``: whether an artifact or a bundle is what its manifest says, and still computes what it did."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitdeploy import environment
from vitdeploy.artifacts import Artifact, Engine, Golden, OnnxModel, open_artifact
from vitdeploy.artifacts.bundle import Bundle, is_bundle, read_bundle
from vitdeploy.artifacts.lineage import artifacts_in, find_parent
from vitdeploy.artifacts.reference import SUFFIX as REFERENCE_SUFFIX
from vitdeploy.artifacts.reference import load_reference, read_reference, reference_path
from vitdeploy.artifacts.report_json import read_report
from vitdeploy.artifacts.run_record import RUN
from vitdeploy.backends import get_backend
from vitdeploy.backends.opening import engine_backend, open_session
from vitdeploy.backends.tensorrt_backend import PlanBackend
from vitdeploy.datasets import DataSource, batches, open_dataset
from vitdeploy.errors import ArtifactError, BackendError, UsageError
from vitdeploy.measure.accuracy import run_batch
from vitdeploy.measure.statistics import fraction_of_range
from vitdeploy.preprocess import to_input
from vitdeploy.progress import Progress
from vitdeploy.records import Check, Precision, Record
from vitdeploy.records.report import REPORT
from vitdeploy.runtime.choosing import choose, rebuild
from vitdeploy.terminal_progress import AUTO, shown

TOLERANCES: dict[Precision, float] = {
    "fp32": 1e-4,  # summation order
    "fp16": 2e-2,  # 2⁻¹¹ per operation, over tens of layers; runtimes differ in what they accumulate in FP32
    "int8": 1e-1,  # one rounding that falls the other way moves a whole step, and the steps add up
    "int8-weight-only": 2e-2,
    "fp8": 1e-1,
    "mixed": 1e-1,
}
"""Largest |Δlogit| between two runs of one graph, as a fraction of the logits' range, on any machine and runtime."""

AGREEMENT = 0.9
BATCH = 16


class Verification(Record):
    """The checks that were made of one artifact, in order."""

    path: str
    kind: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Return whether nothing failed; what could not be checked does not count against it."""
        return all(check.status != "failed" for check in self.checks)


def verify(
    artifact: Bundle | Artifact | Path | str,
    data: DataSource | None = None,
    *,
    rebuild_engine: bool | None = None,
    public_key: Path | str | None = None,
    progress: Progress | None = AUTO,
) -> Verification:
    """Check an artifact: digests, the graph by onnx's rules, golden samples by running it, its parents.

    An engine runs where a GPU of its kind is, on the golden samples that it carries (or those of the graph beside
    it), and tells in which precision its products run. What cannot be checked is reported as unchecked, with the
    reason. Of a bundle every file is compared with its digest, every artifact is checked so, and the last check says
    what ``load`` runs on this machine.

    Args:
        artifact: What is checked, a bundle or the folder of a run too; of one that is open already, its file is
            read again.
        data: A dataset whose logits were stored with ``ExportOptions.reference``: the artifact's top-1 must agree with
            PyTorch's on at least 90 % of it.
        rebuild_engine: Build an engine from a bundle's graph where none of its engines runs here, and keep it in the
            cache folder, where ``load`` finds it; None does so where there is a GPU.
        public_key: The key (Ed25519, PEM) of the owner who must have signed a bundle.
        progress: Shows the run over ``data``.
    Raises:
        ArtifactError: The file is missing, damaged, not signed by the owner, or does not match its own manifest.
        DataError: ``data`` cannot be read.
        UsageError: ``data`` is given for a bundle, or what a bundle alone has for something else.
    """
    path = artifact.path if isinstance(artifact, Artifact | Bundle) else Path(artifact)
    if isinstance(artifact, Bundle) or path.is_dir() or is_bundle(path):
        if data is not None:
            raise UsageError(f"{str(path)!r} is a bundle: name one of its artifacts to compare with stored logits")
        if (path / RUN).is_file() and not is_bundle(path):
            return _verify_run(path, rebuild_engine, public_key)
        return _verify_bundle(read_bundle(path, public_key), public_key, rebuild_engine, shown(progress))
    if rebuild_engine is not None or public_key is not None:
        raise UsageError(f"{str(path)!r} is no bundle: only bundles are signed and hold engines that can be rebuilt")
    earlier, artifact = artifact, open_artifact(path)
    if isinstance(earlier, Artifact) and earlier != artifact:
        raise ArtifactError(f"{str(earlier.path)!r} was written anew since it was opened, and holds something else")
    checks = _checks_of(artifact)
    checks += _check_parents(artifact)
    if data is not None:
        checks.append(_check_agreement(artifact, data, shown(progress)))
    return Verification(path=str(artifact.path), kind=artifact.manifest.kind, checks=tuple(checks))


def _verify_run(folder: Path, rebuild_engine: bool | None, public_key: Path | str | None) -> Verification:
    """Check every artifact of a run, and that its report is as it was written."""
    if rebuild_engine is not None or public_key is not None:
        raise UsageError(f"{str(folder)!r} is a run: only bundles are signed and hold engines that can be rebuilt")
    checks = []
    for file in artifacts_in(folder):
        if file.name.endswith(REFERENCE_SUFFIX):
            continue  # checked with the graph that it lies beside
        try:
            artifact = open_artifact(file)
            found = [*_checks_of(artifact), *_check_parents(artifact)]
        except ArtifactError as error:
            found = [Check(name="digest", status="failed", detail=str(error))]
        checks += [check.model_copy(update={"name": f"{file.name}: {check.name}"}) for check in found]
    if (folder / REPORT).is_file():
        read_report(folder)
        checks.append(Check(name=f"{REPORT}: digest", status="passed", detail="its numbers are those measured"))
    return Verification(path=str(folder), kind="run", checks=tuple(checks))


def _checks_of(artifact: Artifact) -> list[Check]:
    """Return what the file itself, and what lies in it, is checked for."""
    checks = [Check(name="digest", status="passed", detail="content, manifest and samples match their digests")]
    if isinstance(artifact, OnnxModel):
        checks += [_check_rules(artifact), _check_golden(artifact)]
    if isinstance(artifact, Engine):
        checks += _examine(artifact)
    if isinstance(artifact, OnnxModel) and (beside := reference_path(artifact.path)).exists():
        checks.append(_check_reference(beside, artifact))
    return checks


def _verify_bundle(
    bundle: Bundle, public_key: Path | str | None, rebuild_engine: bool | None, progress: Progress
) -> Verification:
    manifest = bundle.manifest
    detail = f"{len(manifest.files)} files match their digests, and there is no other"
    checks = [Check(name="files", status="passed", detail=detail), _signature(bundle, public_key)]
    for listed in (*bundle.engines(), *bundle.graphs()):
        found = open_artifact(listed.path)
        if found.manifest != listed.manifest:
            raise ArtifactError(f"{listed.path.name!r} in {str(bundle.path)!r} has another manifest than the bundle")
        checks += [
            check.model_copy(update={"name": f"{listed.path.name}: {check.name}"}) for check in _checks_of(found)
        ]
    choice = choose(bundle)
    if rebuild_engine is None:
        rebuild_engine = environment.current().gpu is not None
    if isinstance(choice.artifact, OnnxModel) and rebuild_engine:
        checks += _rebuilt(bundle, progress)
        choice = choose(bundle)
    checks += [Check(name="passed over", status="unchecked", detail=reason) for reason in choice.passed_over]
    try:
        with open_session(choice.artifact) as session:
            detail = f"{choice.artifact.path.name} under {session.provider} is what 'load' and 'predict' run here"
        checks.append(Check(name="runs here", status="passed", detail=detail))
    except BackendError as error:
        checks.append(Check(name="runs here", status="failed", detail=str(error)))
    return Verification(path=str(bundle.path), kind="bundle", checks=tuple(checks))


def _signature(bundle: Bundle, public_key: Path | str | None) -> Check:
    """Return what is known of a signature, which was checked where a key was given."""
    if public_key is not None:
        return Check(name="signature", status="passed", detail=f"the owner of {str(public_key)!r} signed the manifest")
    detail = "signed: vd.verify(..., public_key='KEY') says by whom" if bundle.is_signed else "the bundle is not signed"
    return Check(name="signature", status="unchecked", detail=detail)


def _rebuilt(bundle: Bundle, progress: Progress) -> list[Check]:
    """Build an engine of a bundle's graph for this machine, and return what it was checked for."""
    try:
        engine = rebuild(bundle, progress)
    except BackendError as error:
        return [Check(name="rebuilt engine", status="unchecked", detail=f"none was built: {error}")]
    build = engine.manifest.build
    assert build is not None
    detail = f"built by {build.backend} {build.version} and kept as {engine.path}"
    own = [check.model_copy(update={"name": f"rebuilt engine: {check.name}"}) for check in engine.manifest.checks]
    return [Check(name="rebuilt engine", status="passed", detail=detail), *own]


def _check_rules(model: OnnxModel) -> Check:
    import onnx

    if any(file.is_symlink() for file in model.external_data()):
        detail = "onnx's checker opens no weights that are a link: it checks a copy of the folder without links"
        return Check(name="onnx checker", status="unchecked", detail=detail)
    try:
        onnx.checker.check_model(model.path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return Check(name="onnx checker", status="failed", detail=" ".join(str(error).split()))
    return Check(name="onnx checker", status="passed", detail="operators, types and shapes are valid")


def _examine(engine: Engine) -> list[Check]:
    """Return what a device finds: the golden samples, and the precision of the engine's products."""
    samples, reason = find_golden(engine)
    if engine.golden is None and samples is not None:
        engine = Engine(engine.path, engine.manifest.model_copy(update={"golden": samples.to_text()}))
    try:
        backend: object = get_backend(engine_backend(engine))
    except ArtifactError as error:
        return [Check(name="golden samples", status="unchecked", detail=str(error))]
    assert isinstance(backend, PlanBackend)
    try:
        found = backend.examine(engine).checks
    except BackendError as error:
        return [Check(name="golden samples", status="failed", detail=str(error))]
    return [
        check.model_copy(update={"name": "golden samples", "detail": reason if samples is None else check.detail})
        if check.name == "golden"
        else check
        for check in found
    ]


def _check_golden(artifact: OnnxModel) -> Check:
    name = "golden samples"
    golden, reason = find_golden(artifact)
    spec = artifact.manifest.preprocess
    if golden is None or spec is None:
        return Check(name=name, status="unchecked", detail=reason or "the artifact carries no preprocessing")
    try:
        with open_session(artifact) as session:
            logits = run_batch(session, to_input(golden.pixels, spec), artifact.manifest.batch_limits)
    except BackendError as error:
        return Check(name=name, status="unchecked", detail=str(error))
    expected = golden.outputs
    apart = float(np.abs(logits - expected).max()) if np.isfinite(logits).all() else float("inf")
    value = fraction_of_range(apart, float(expected.max() - expected.min()))
    limit = TOLERANCES[artifact.manifest.precision]
    return Check(
        name=name,
        status="passed" if value <= limit else "failed",
        value=value,
        limit=limit,
        unit="of the logits' range",
        detail=f"max |Δlogit| {apart:.3g} over {len(expected)} samples against the logits stored with the graph",
    )


def find_golden(artifact: OnnxModel | Engine) -> tuple[Golden | None, str]:
    """Return the samples that an artifact carries, else those of the graph beside an engine; or why there are none."""
    if artifact.golden is not None:
        return artifact.golden, ""
    if isinstance(artifact, OnnxModel):
        return None, "the file carries no samples"
    parent = find_parent(artifact, "onnx")
    if not isinstance(parent, OnnxModel):
        return None, "the graph that it was built from does not lie beside it"
    return parent.golden, "" if parent.golden is not None else f"{parent.path.name} carries no samples"


def _check_reference(path: Path, graph: OnnxModel) -> Check:
    """Check the digests of PyTorch's logits that lie beside a graph, and whether they are its own."""
    try:
        reference = read_reference(path)
    except ArtifactError as error:
        return Check(name="reference logits", status="failed", detail=str(error))
    if reference.info.onnx_sha256 not in (graph.digest, *graph.manifest.parents.values()):
        detail = f"{path.name} holds the logits of another graph: nothing here uses them"
        return Check(name="reference logits", status="unchecked", detail=detail)
    detail = f"{path.name} holds PyTorch's logits of {len(reference.info.sample_ids)} images and matches its digests"
    return Check(name="reference logits", status="passed", detail=detail)


def _check_parents(artifact: Artifact) -> list[Check]:
    """Look for the artifacts that this one was made from, by their digests."""
    checks = []
    for role, digest in sorted(artifact.manifest.parents.items()):
        name, short = f"parent {role}", digest[:12]
        found = find_parent(artifact, role)
        if found is not None:
            checks.append(Check(name=name, status="passed", detail=f"{found.path.name} is the one ({short})"))
        else:
            checks.append(Check(name=name, status="unchecked", detail=f"no sound file beside it has digest {short}"))
    return checks


def _check_agreement(artifact: Artifact, data: DataSource, progress: Progress) -> Check:
    name = "agreement with PyTorch"
    spec, reference = artifact.manifest.preprocess, load_reference(artifact)
    if reference is None or spec is None:
        return Check(
            name=name,
            status="unchecked",
            detail="no logits of PyTorch are stored beside it: "
            "vd.export(..., options=vd.ExportOptions(reference='DATA')) stores them",
        )
    dataset = open_dataset(data)
    expected = reference.rows(dataset.sample_ids)
    if expected is None:
        return Check(name=name, status="unchecked", detail=f"{dataset.uri!r} has images whose logits are not stored")
    try:
        with open_session(artifact) as session, progress.task("verify", total=len(dataset)) as task:
            parts = []
            for images in batches(dataset, spec, BATCH):
                parts.append(run_batch(session, images, artifact.manifest.batch_limits))
                task.advance(len(images))
    except BackendError as error:
        return Check(name=name, status="unchecked", detail=str(error))
    agreement = float(np.mean(np.concatenate(parts).argmax(axis=1) == expected.argmax(axis=1)))
    return Check(
        name=name,
        status="passed" if agreement >= AGREEMENT else "failed",
        value=agreement,
        limit=AGREEMENT,
        unit="of the images",
        detail=f"same top-1 class as PyTorch on {agreement:.2%} of {len(expected)} images",
    )
