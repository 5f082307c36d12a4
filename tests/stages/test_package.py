"""A bundle holds what a device needs, is the same bytes each time, and is refused where a byte of it was changed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitdeploy import load
from vitdeploy.artifacts import Engine, OnnxModel, write_engine
from vitdeploy.artifacts.bundle import is_bundle, read_bundle
from vitdeploy.datasets import open_dataset
from vitdeploy.errors import ArtifactError, UsageError
from vitdeploy.measure.accuracy import run_batch
from vitdeploy.reading import read_tensors
from vitdeploy.records import BuildInfo
from vitdeploy.stages.inspect import inspect
from vitdeploy.stages.package import Provenance, package
from vitdeploy.stages.predict import predict
from vitdeploy.stages.quantize import quantize
from vitdeploy.stages.verify import verify

pytestmark = pytest.mark.slow

TERMS = Provenance(licence="Apache-2.0", source="redrawn for a test")


@pytest.fixture(scope="module")
def fp16(tiny_onnx: OnnxModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return quantize(tiny_onnx, tmp_path_factory.mktemp("fp16") / "tiny.fp16.onnx", precision="fp16")


@pytest.fixture(scope="module")
def engine(tiny_onnx: OnnxModel, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine of a GPU that no machine has: it is packed, and passed over wherever it arrives."""
    build = BuildInfo(backend="tensorrt-rtx", version="0.1", batch=(1, 2, 4), compute_capabilities=("1.0",))
    parents = {"onnx": tiny_onnx.digest}
    manifest = tiny_onnx.manifest.model_copy(
        update={"kind": "engine", "build": build, "golden_sha256": None, "parents": parents, "checks": ()}
    )
    return write_engine(tmp_path_factory.mktemp("engine") / "tiny.engine", b"plan", manifest)


@pytest.fixture
def bundle(tiny_onnx: OnnxModel, fp16: OnnxModel, engine: Engine, tmp_path: Path) -> Path:
    package([engine, tiny_onnx, fp16], tmp_path / "tiny.bundle", provenance=TERMS)
    return tmp_path / "tiny.bundle"


def contents(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_a_bundle_holds_what_a_device_needs(bundle: Path, tiny_onnx: OnnxModel) -> None:
    names = {file.name for file in bundle.iterdir()}
    assert names == {
        "manifest.json", "README.md", "labels.txt", "preprocess.json", "golden.safetensors", "tiny.onnx",
        "tiny.fp16.onnx", "tiny.fp16.plan.json", "tiny.engine", "tiny.engine.json",
    }  # fmt: skip
    assert (bundle / "labels.txt").read_text() == "".join(f"{digit}\n" for digit in range(10))
    golden = read_tensors(bundle / "golden.safetensors")
    with load(tiny_onnx) as model:
        outputs = run_batch(model._session, golden["inputs"])
    np.testing.assert_allclose(outputs, golden["outputs.tiny.onnx"], rtol=1e-4, atol=1e-4)
    readme = (bundle / "README.md").read_text()
    for expected in (
        "vitdeploy verify .",
        "vitdeploy predict . ",
        "Apache-2.0",
        "redrawn for a test",
        "| tiny.engine |",
    ):
        assert expected in readme


def test_the_same_inputs_give_the_same_bytes(
    bundle: Path, tiny_onnx: OnnxModel, fp16: OnnxModel, engine: Engine, tmp_path: Path
) -> None:
    copies = []
    for index, artifact in enumerate((engine, tiny_onnx, fp16)):
        place = tmp_path / f"elsewhere{index}" / artifact.path.name
        place.parent.mkdir()
        shutil.copyfile(artifact.path, place)
        if artifact is engine:
            shutil.copyfile(f"{artifact.path}.json", f"{place}.json")
        os.utime(place, (0, 1_000_000_000))
        copies.append(place)
    package(copies, tmp_path / "again.bundle", provenance=TERMS)
    assert contents(tmp_path / "again.bundle") == contents(bundle)
    for name in ("a.zip", "b.zip"):
        package(copies, tmp_path / name, provenance=TERMS)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert contents(read_bundle(tmp_path / "a.zip").folder) == contents(bundle)


def test_a_bundle_predicts_what_its_graph_predicts(bundle: Path, tiny_onnx: OnnxModel, tmp_path: Path) -> None:
    dataset = open_dataset("digits:test")
    images = [dataset.image(index) for index in range(20)]
    package([tiny_onnx], tmp_path / "tiny.zip")
    expected = predict(tiny_onnx, images)
    for source in (bundle, str(bundle), read_bundle(bundle), tmp_path / "tiny.zip"):
        assert predict(source, images) == expected
    with load(bundle) as model:
        assert model.artifact == tiny_onnx
        assert model.embed(images).shape == (20, 32)


def test_a_bundle_runs_without_any_graph_library(bundle: Path) -> None:
    program = """
import sys
for name in ("torch", "torchvision", "timm", "onnx", "onnx_ir", "onnxscript"):
    sys.modules[name] = None
import numpy as np
from vitdeploy import load
print(load(sys.argv[1]).predict(np.full((3, 8, 8, 1), 90, np.uint8), top=1)[2].classes[0].index)
"""
    done = subprocess.run([sys.executable, "-c", program, str(bundle)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in set("0123456789")


def test_verify_says_what_it_did(bundle: Path) -> None:
    found = verify(bundle)
    assert found.passed
    assert found.kind == "bundle"
    checks = {check.name: check for check in found.checks}
    assert "9 files match" in checks["files"].detail
    for name in ("tiny.onnx", "tiny.fp16.onnx"):
        for what in ("digest", "onnx checker", "golden samples"):
            assert checks[f"{name}: {what}"].status == "passed"
    assert checks["tiny.engine: golden samples"].status == "unchecked"
    assert checks["passed over"].detail.startswith("tiny.engine: ")
    assert checks["runs here"].detail.startswith("tiny.onnx under CPUExecutionProvider")


def test_verify_rebuilds_an_engine_where_it_is_asked_to(bundle: Path, tiny_onnx: OnnxModel) -> None:
    from vitdeploy.runtime.choosing import find_rebuilt, rebuild

    found = verify(bundle, rebuild_engine=True, progress=None)
    assert found.passed
    checks = {check.name: check for check in found.checks}
    assert checks["rebuilt engine"].status == "passed"
    assert "built by tensorrt-rtx" in checks["rebuilt engine"].detail
    engine = rebuild(read_bundle(bundle))
    assert engine.manifest.parents["onnx"] == tiny_onnx.digest
    assert engine.manifest.build is not None
    assert engine.manifest.build.batch == (1, 2, 4)  # as the engine in the bundle
    if find_rebuilt(tiny_onnx) is None:  # no GPU: it is kept, and ONNX Runtime runs the graph
        assert checks["runs here"].detail.startswith("tiny.onnx under CPUExecutionProvider")


def test_verify_without_a_builder_says_so(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitdeploy.errors import BackendError

    def none() -> str:
        raise BackendError("no library that builds engines is installed: pip install 'vitdeploy[tensorrt-rtx]'")

    monkeypatch.setattr("vitdeploy.runtime.choosing.default_builder", none)
    checks = {check.name: check for check in verify(bundle, rebuild_engine=True, progress=None).checks}
    assert checks["rebuilt engine"].status == "unchecked"
    assert "pip install" in checks["rebuilt engine"].detail


def test_inspect_knows_a_bundle(bundle: Path) -> None:
    found = inspect(bundle)
    assert found.kind == "bundle"
    facts = dict(found.facts)
    assert facts["licence"] == "Apache-2.0"
    assert ("engine", "tiny.engine, fp32") in found.facts
    assert ("graph", "tiny.fp16.onnx, fp16") in found.facts


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte of a graph": (lambda b: flip(b / "tiny.onnx", 5000), "'tiny.onnx' .* does not match its digest"),
    "a byte of the labels": (lambda b: flip(b / "labels.txt", 0), "'labels.txt' .* does not match"),
    "an appended byte": (
        lambda b: (b / "README.md").write_bytes((b / "README.md").read_bytes() + b"!"),
        "'README.md' .* does not match",
    ),
    "a missing file": (lambda b: (b / "tiny.engine").unlink(), "lacks 'tiny.engine'"),
    "a file too many": (lambda b: (b / "extra.so").write_bytes(b"x"), "'extra.so', which its manifest does not list"),
    "the manifest": (lambda b: replace(b / "manifest.json", "Apache", "Public"), "does not match its digest"),
    "another schema": (lambda b: replace(b / "manifest.json", '"schema_version":1', '"schema_version":9'), "schema"),
    "no manifest": (lambda b: (b / "manifest.json").unlink(), "is no bundle: it has no manifest.json"),
    "a link": (lambda b: relink(b / "labels.txt"), "'labels.txt', which is a link"),
    "a folder inside": (lambda b: (b / "more").mkdir(), "'more', which is a link or no file"),
}


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"!")


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def relink(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere.txt"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_bundle_is_refused(bundle: Path, name: str) -> None:
    change, reason = CHANGES[name]
    change(bundle)
    for use in (read_bundle, load, verify):
        with pytest.raises(ArtifactError, match=reason):
            use(bundle)


@pytest.mark.parametrize("left", [".DS_Store", "._tiny.onnx", "Thumbs.db", "desktop.ini", "@eaDir"])
def test_what_systems_leave_in_a_bundle_is_passed_over(bundle: Path, left: str) -> None:
    (bundle / left).mkdir() if left == "@eaDir" else (bundle / left).write_bytes(b"\0\5\26\7")
    assert read_bundle(bundle).manifest.graphs
    (bundle / f"{left}.so").write_bytes(b"x")
    if not left.startswith("._"):
        with pytest.raises(ArtifactError, match="which its manifest does not list"):
            read_bundle(bundle)


@pytest.mark.parametrize(
    ("top", "left"),
    [
        ("vit.bundle/", ("__MACOSX/vit.bundle/._manifest.json", "vit.bundle/.DS_Store")),  # as Finder makes it
        ("vit.bundle/", ("vit.bundle/Thumbs.db",)),  # with its folder, as on Windows
        ("", ("__MACOSX/._manifest.json",)),  # of chosen files
        ("vit.bundle\\", ()),  # as PowerShell 5 makes it
        ("./", ()),
        ("./vit.bundle/", ("./vit.bundle/.DS_Store",)),
    ],
)
def test_an_archive_that_a_file_browser_made_of_a_bundle_is_one(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top: str, left: tuple[str, ...]
) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "sent.zip", "w", zipfile.ZIP_DEFLATED) as made:
        if top:
            made.writestr(top, b"")
        for file in bundle.iterdir():
            made.write(file, f"{top}{file.name}")
        for name in left:
            made.writestr(name, b"x")
    assert is_bundle(tmp_path / "sent.zip")
    found = read_bundle(tmp_path / "sent.zip")
    assert found.manifest == read_bundle(bundle).manifest
    assert {file.name for file in found.folder.iterdir()} == {file.name for file in bundle.iterdir()}


def archive(path: Path, members: dict[str, bytes], **changes: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in {"manifest.json": b'{"kind": "bundle"}', **members}.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = changes.get("mode", 0) << 16 if name != "manifest.json" else 0
            entry.compress_type = changes.get("method", zipfile.ZIP_DEFLATED)
            made.writestr(entry, data)
    return path


def patched(path: Path, old: bytes, new: bytes) -> Path:
    """Write other bytes over some, as no program for archives would."""
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return path


def hostile(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    bomb = io.BytesIO(b"\0" * (300 << 20)).getvalue()
    return {
        "absolute": (archive(tmp_path / "1.zip", {"/tmp/x": b""}), "plain names without folders"),
        "upwards": (archive(tmp_path / "2.zip", {"../x": b""}), "plain names without folders"),
        "windows": (archive(tmp_path / "3.zip", {"..\\x": b""}), "plain names without folders"),
        "drive": (archive(tmp_path / "4.zip", {"C:x": b""}), "plain names without folders"),
        "folder": (archive(tmp_path / "5.zip", {"a/b": b"", "c": b""}), "plain names without folders"),
        "two folders": (archive(tmp_path / "18.zip", {"a/b": b"", "c/d": b""}), "plain names without folders"),
        "upwards in a folder": (archive(tmp_path / "19.zip", {"../a/b": b""}), "plain names without folders"),
        "link": (archive(tmp_path / "6.zip", {"x": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777), "is a link"),
        "device": (archive(tmp_path / "7.zip", {"x": b""}, mode=stat.S_IFCHR | 0o666), "no plain file"),
        "one name on some disks": (archive(tmp_path / "8.zip", {"x": b"", "X": b""}), "'x' and 'X', which some disks"),
        "composed": (
            archive(tmp_path / "11.zip", {"\u00e9": b"", "e\u0301": b""}),
            "which some disks take for one name",
        ),
        "a long name": (archive(tmp_path / "12.zip", {"x" * 256: b""}), "at most 255 bytes"),
        "a name for terminals": (archive(tmp_path / "13.zip", {"\x1b[31m": b""}), "printable characters"),
        "NUL": (patched(archive(tmp_path / "14.zip", {"xZy": b""}), b"xZy", b"x\0y"), r"'x\\x00y', expected names"),
        "a manifest up to NUL": (
            patched(archive(tmp_path / "15.zip", {"manifest.jsonZ": b""}), b"manifest.jsonZ", b"manifest.json\0"),
            "printable characters",
        ),
        "LZMA": (archive(tmp_path / "16.zip", {"x": b"y"}, method=zipfile.ZIP_LZMA), "by method 14 of zip"),
        "bzip2": (archive(tmp_path / "17.zip", {"x": b"y"}, method=zipfile.ZIP_BZIP2), "by method 12 of zip"),
        "bomb": (archive(tmp_path / "9.zip", {"x": bomb}), "claims to unpack to"),
        "many": (archive(tmp_path / "10.zip", {str(i): b"" for i in range(1001)}), "at most 1000"),
    }


def test_a_hostile_archive_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "cache"))
    for name, (path, reason) in hostile(tmp_path).items():
        assert is_bundle(path), name
        with pytest.raises(ArtifactError, match=reason):
            read_bundle(path)
        assert list((tmp_path / "cache" / "bundles").iterdir()) == [], name
    assert not Path("/tmp/x").exists()


def test_an_archive_whose_member_begins_behind_its_end_is_damaged(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"x": b"y"})
    data = bytearray(path.read_bytes())
    entry = data.rfind(b"PK\x01\x02")
    data[entry + 42 : entry + 46] = b"\xff\xff\xff\x7f"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="truncated or damaged archive"):
        read_bundle(path)


def test_a_truncated_archive_is_refused(tiny_onnx: OnnxModel, tmp_path: Path) -> None:
    package([tiny_onnx], tmp_path / "whole.zip")
    data = (tmp_path / "whole.zip").read_bytes()
    (tmp_path / "torn.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match="truncated or damaged"):
        read_bundle(tmp_path / "torn.zip")
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    (tmp_path / "flipped.zip").write_bytes(flipped)
    with pytest.raises(ArtifactError, match=r"damaged|digest"):
        read_bundle(tmp_path / "flipped.zip")


def test_a_changed_unpacked_copy_is_unpacked_anew(tiny_onnx: OnnxModel, tmp_path: Path) -> None:
    package([tiny_onnx], tmp_path / "tiny.zip")
    folder = read_bundle(tmp_path / "tiny.zip").folder
    flip(folder / "tiny.onnx", 4000)
    assert (read_bundle(tmp_path / "tiny.zip").folder / "tiny.onnx").read_bytes() == tiny_onnx.path.read_bytes()


def test_what_makes_no_bundle_is_refused(
    tiny_onnx: OnnxModel, engine: Engine, tmp_path: Path, finished_run: Path
) -> None:
    output = tmp_path / "out.bundle"
    other = finished_run / "model.onnx"
    shutil.copyfile(tiny_onnx.path, tmp_path / "tiny.onnx")
    calls: list[tuple[list[object], str]] = [
        ([], "needs an ONNX model"),
        ([engine], "needs an ONNX model"),
        ([tiny_onnx, other], r"'model\.onnx' has another model than 'tiny\.onnx'"),
        ([other, engine], "has another model"),
        ([tiny_onnx, tmp_path / "tiny.onnx"], "two files are called"),
        ([tiny_onnx, tiny_onnx.path.with_name("tiny.safetensors")], "is a checkpoint, expected ONNX models"),
    ]
    for artifacts, reason in calls:
        with pytest.raises(UsageError, match=reason):
            package(artifacts, output)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="measured none of these artifacts"):
        package([tiny_onnx], output, report=finished_run)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(UsageError, match="exists and is no bundle"):
        package([tiny_onnx], tmp_path / "photos")
    assert not output.exists()
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"


def test_an_engine_without_its_graph_is_refused(fp16: OnnxModel, engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the graph that 'tiny\.engine' was built from is not among"):
        package([fp16, engine], tmp_path / "out.bundle")


def test_a_report_travels_with_what_it_measured(finished_run: Path, tmp_path: Path) -> None:
    graphs = sorted(finished_run.glob("*.onnx"))
    made = package(graphs, tmp_path / "run.bundle", report=finished_run)
    assert json.loads((made.folder / "report.json").read_text())["rows"]
    assert (made.folder / "report.html").read_bytes() == (finished_run / "report.html").read_bytes()
    readme = (made.folder / "README.md").read_text()
    row = next(line for line in readme.splitlines() if line.startswith("| model.onnx |"))
    assert "%" in row
    assert "digits" in readme  # what it was trained on


def test_an_earlier_bundle_is_replaced_as_a_whole(bundle: Path, tiny_onnx: OnnxModel) -> None:
    package([tiny_onnx], bundle)
    assert not (bundle / "tiny.engine").exists()
    assert [graph.name for graph in read_bundle(bundle).manifest.graphs] == ["tiny.onnx"]


def test_an_earlier_archive_is_replaced_and_nobody_elses(tiny_onnx: OnnxModel, tmp_path: Path) -> None:
    output = tmp_path / "tiny.zip"
    package([tiny_onnx], output)
    package([tiny_onnx], output, provenance=TERMS)
    assert read_bundle(output).manifest.licence == TERMS.licence
    for name, members in {"theirs": {"manifest.json": b'{"name": "an extension"}'}, "other": {"a.txt": b"a"}}.items():
        theirs = tmp_path / f"{name}.zip"
        with zipfile.ZipFile(theirs, "w") as made:
            for member, data in members.items():
                made.writestr(member, data)
        before = theirs.read_bytes()
        with pytest.raises(ArtifactError, match="was not written by vitdeploy"):
            package([tiny_onnx], theirs)
        assert theirs.read_bytes() == before
