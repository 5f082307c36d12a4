"""Verbs on another machine, over a real OpenSSH server: what they bring back, and what a broken link costs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from notes import Notes
from PIL import Image
from small_vit import write_small_vit
from ssh_server import HOST, SshServer, why_none

from vitdeploy import BuildTarget, Remote, open_dataset, read_report
from vitdeploy.artifacts import OnnxModel, read_engine
from vitdeploy.backends import get_backend
from vitdeploy.cli import main
from vitdeploy.errors import BuildError, RemoteError, UsageError
from vitdeploy.progress import SILENT, Task
from vitdeploy.remote import shipping
from vitdeploy.remote.link import check_host
from vitdeploy.remote.shipping import LostLinkError, Parcel, ship

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_none() is not None, reason=why_none() or "")]
needs_rtx = pytest.mark.skipif(
    get_backend("tensorrt-rtx").unavailable() is not None,
    reason="tensorrt-rtx is an extra: pip install 'vitdeploy[tensorrt-rtx]'",
)
FOR_89 = BuildTarget(compute_capabilities=("8.9",))
MIB = 1 << 20


class Interfering(Notes):
    """A progress that does something, once, as soon as a line says ``at``, or so many steps of a task are done."""

    def __init__(self, act: object, *, at: str = "", after: float = float("inf")) -> None:
        super().__init__()
        self._act, self._at, self._after = act, at, after
        self.tasks: list[str] = []

    def note(self, text: str) -> None:
        super().note(text)
        if self._at and self._at in text:
            self._at = ""
            self._do()

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        self.tasks.append(f"{description} ({total:.0f})" if total else description)
        yield _Counting(self)

    def count(self, steps: float) -> None:
        self._after -= steps
        if self._after <= 0:
            self._after = float("inf")
            self._do()

    def _do(self) -> None:
        assert callable(self._act)
        self._act()


class _Counting:
    def __init__(self, progress: Interfering) -> None:
        self._progress = progress

    def advance(self, steps: float = 1) -> None:
        self._progress.count(steps)

    def describe(self, text: str) -> None:
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    started = SshServer(tmp_path_factory.mktemp("ssh") / "server")
    yield started
    started.stop()


@pytest.fixture(autouse=True)
def _client(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    reach(server, monkeypatch)
    monkeypatch.setattr(shipping, "WAITS_S", (0.1, 0.1, 0.1))


def reach(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{server.folder / 'bin'}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return write_small_vit(tmp_path_factory.mktemp("model") / "vit.onnx", "fp16")


def names_in(server: SshServer, folder: str) -> list[str]:
    there = server.cache / "remote" / folder
    return sorted(path.name for path in there.iterdir()) if there.is_dir() else []


def parcel_of(size: int, seed: int) -> Parcel:
    return Parcel.of_bytes(bytes([seed]) * 100 + os.urandom(size - 100), "")


def test_images_and_graphs_are_shipped_once_and_measured_there(
    server: SshServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graphs = [write_small_vit(tmp_path / f"{kind}.onnx", kind) for kind in ("fp32", "fp16")]
    photos, folder = write_photos(tmp_path / "photos"), tmp_path / "report"
    code = main(["bench", *(str(one.path) for one in graphs), "--data", str(photos), "--on", HOST, "--rounds", "1",
                 "--iterations", "1", "--no-processes", "--no-image-to-label", "--no-energy",
                 "--report", str(folder), "--predictions", str(tmp_path / "p.parquet")])  # fmt: skip
    assert code == 0, capsys.readouterr().err
    report = read_report(folder)
    assert [row.status for row in report.rows] == ["ok", "ok"]
    assert report.conditions.data == str(photos)
    assert report.conditions.data_sha256 == open_dataset(photos).digest
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.html", "report.json", "report.md", "report.samples.npz"
    ]  # fmt: skip
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra: pip install 'vitdeploy[parquet]'")
    assert "0/0.png" in str(parquet.read_table(tmp_path / "p.parquet").to_pydict())
    assert names_in(server, "jobs") == []
    again = Interfering(lambda: None)
    ship(HOST, [Parcel.of_file(path, "") for path in (graphs[0].path, *photos.rglob("*.png"))], again)
    assert again.tasks == [], "shipped a second time"


def write_photos(folder: Path) -> Path:
    """Write twelve pictures of ten classes."""
    for index in range(12):
        file = folder / str(index % 10) / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 * index).save(file)
    return folder


def test_a_transfer_goes_on_where_its_link_was_killed(server: SshServer) -> None:
    parcel = parcel_of(24 * MIB, 1)
    progress = Interfering(server.break_links, after=8 * MIB)
    ship(HOST, [parcel], progress)
    assert f"the link to {HOST} broke: trying again" in progress.lines
    first, second = (int(task.rpartition("(")[2].rstrip(")")) for task in progress.tasks)
    assert first == 24 * MIB
    assert second < first, "the second try began at the first byte"
    blob = server.cache / "remote" / "blobs" / parcel.sha256
    assert blob.read_bytes() == parcel.source
    assert names_in(server, "parts") == []


def test_what_arrived_before_the_host_was_gone_is_kept_for_the_next_call(tmp_path: Path, server: SshServer) -> None:
    parcel = parcel_of(24 * MIB, 2)
    with pytest.raises(LostLinkError, match=f"the link to '{HOST}' keeps breaking: what has arrived stays"):
        ship(HOST, [parcel], Interfering(server.stop, after=8 * MIB))
    try:
        assert names_in(server, "parts") == [parcel.sha256]
    finally:
        server.begin()
    progress = Interfering(lambda: None)
    ship(HOST, [parcel], progress)
    assert int(progress.tasks[0].rpartition("(")[2].rstrip(")")) < 24 * MIB
    assert names_in(server, "parts") == []


@needs_rtx
def test_an_engine_is_built_there_while_the_link_is_broken_and_brought_here(
    server: SshServer, model: OnnxModel, tmp_path: Path
) -> None:
    output, progress = tmp_path / "out" / "vit.engine", Interfering(server.break_links, at="building with")
    engine = Remote(HOST).build(model, output, target=FOR_89, progress=progress)
    assert f"the link to {HOST} broke: trying again" in progress.lines
    assert [line for line in progress.lines if "building with" in line] == [
        f"{HOST}: building with tensorrt-rtx (tensorrt is not installed); backend= chooses another"
    ]
    assert read_engine(output) == engine
    assert engine.manifest.parents == {"onnx": model.digest}
    assert sorted(path.name for path in output.parent.iterdir()) == ["vit.engine", "vit.engine.json"]
    assert names_in(server, "jobs") == []


@needs_rtx
def test_the_same_call_takes_over_what_a_lost_one_began(
    server: SshServer, model: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "WAITS_S", ())
    output = tmp_path / "vit.engine"
    with pytest.raises(LostLinkError):
        Remote(HOST).build(model, output, target=FOR_89, progress=Interfering(server.break_links, at="building with"))
    assert list(tmp_path.iterdir()) == []
    assert len(names_in(server, "jobs")) == 1
    notes = Notes()
    Remote(HOST).build(model, output, target=FOR_89, progress=notes)
    assert f"taking over what an earlier call has begun on {HOST}" in notes.lines
    assert read_engine(output).manifest.parents == {"onnx": model.digest}
    assert names_in(server, "jobs") == []


@needs_rtx
def test_an_interrupt_ends_the_job_and_leaves_nothing(server: SshServer, model: OnnxModel, tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Remote(HOST).build(
            model, tmp_path / "vit.engine", target=FOR_89, progress=Interfering(interrupt, at="building with")
        )
    assert list(tmp_path.iterdir()) == []
    assert names_in(server, "jobs") == []
    assert [one for one in workers(server) if one.status() != psutil.STATUS_ZOMBIE] == []


@needs_rtx
def test_a_job_that_is_killed_there_is_an_error_here(server: SshServer, model: OnnxModel, tmp_path: Path) -> None:
    def kill() -> None:
        for worker in workers(server):
            worker.kill()

    with pytest.raises(RemoteError, match=f"the job on '{HOST}' was killed"):
        Remote(HOST).build(
            model, tmp_path / "vit.engine", target=FOR_89, progress=Interfering(kill, at="building with")
        )
    assert list(tmp_path.iterdir()) == []
    assert names_in(server, "jobs") == []


def workers(server: SshServer) -> list[psutil.Process]:
    jobs = str(server.cache / "remote" / "jobs")
    return [one for one in psutil.process_iter(["cmdline"]) if any(jobs in word for word in one.info["cmdline"] or ())]


def test_an_error_of_the_host_keeps_its_kind_and_says_where(model: OnnxModel, tmp_path: Path) -> None:
    with pytest.raises((BuildError, RemoteError), match=f"on {HOST}: "):
        Remote(HOST).build(model, tmp_path / "vit.engine", backend="tensorrt-rtx",
                           target=BuildTarget(compute_capabilities=("3.0",)), progress=SILENT)  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: OnnxModel
) -> None:
    full = SshServer(tmp_path / "full", forced='ulimit -f 400; sh -c "$SSH_ORIGINAL_COMMAND"')
    reach(full, monkeypatch)
    try:
        code = main(["build", str(model.path), "-o", str(tmp_path / "vit.engine"), "--on", HOST])
    finally:
        full.stop()
    expected = f"error: the disk of '{HOST}' is full: make room there and run the same command again\n"
    assert (code, capsys.readouterr().err) == (1, expected)
    assert names_in(full, "parts") == []
    assert not (tmp_path / "vit.engine").exists()


def test_a_disk_without_room_is_found_before_anything_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: OnnxModel
) -> None:
    nearly = tmp_path / "nearly"
    nearly.mkdir()
    (nearly / "sitecustomize.py").write_text(  # what df says there
        "import shutil\nwhole = shutil.disk_usage\nshutil.disk_usage = lambda path: whole(path)._replace(free=90_000)\n"
    )
    small = SshServer(tmp_path / "small", {"PYTHONPATH": str(nearly)})
    reach(small, monkeypatch)
    try:
        code = main(["build", str(model.path), "-o", str(tmp_path / "vit.engine"), "--on", HOST])
    finally:
        small.stop()
    there = str(small.cache / "remote")
    line = (
        rf"error: the disk of '{HOST}' has 90\.0 kB left in '{there}' and the files need [\d.]+ [kM]B: "
        r"make room there; nothing was shipped\n"
    )
    assert code == 1
    assert re.fullmatch(line, capsys.readouterr().err)
    assert names_in(small, "parts") == names_in(small, "blobs") == []
    assert not (tmp_path / "vit.engine").exists()


WAYS_IN = {
    "no key of the user's is accepted": ("other_key", "host_key", "accepts none of your keys"),
    "the host is not known": ("user_key", None, "is not known here: connect once with 'ssh board'"),
    "the host is another one": ("user_key", "other_key", "has changed since it was last known"),
}


@pytest.mark.parametrize(("user_key", "known_key", "reason"), WAYS_IN.values(), ids=list(WAYS_IN))
def test_who_cannot_get_in_is_told_why_in_one_line(
    server: SshServer, capsys: pytest.CaptureFixture[str], user_key: str, known_key: str | None, reason: str
) -> None:
    server.use_key(user_key)
    server.know_host(known_key)
    try:
        code = main(["doctor", "--on", HOST])
    finally:
        server.use_key("user_key")
        server.know_host("host_key")
    output = capsys.readouterr()
    assert (code, output.out) == (1, "")
    assert len(output.err.splitlines()) == 1
    assert output.err.startswith("error: ")
    assert reason in output.err


def test_a_host_without_python_3_10_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = tmp_path / "commands"
    commands.mkdir()
    (commands / "python3").write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.10\nexit 1\n')
    (commands / "python3").chmod(0o755)
    for name in ("sh", "base64", "head", "tr"):
        (commands / name).symlink_to(
            next(path for path in (Path("/bin", name), Path("/usr/bin", name)) if path.exists())
        )
    old = SshServer(tmp_path / "old", forced=f'PATH={commands} sh -c "$SSH_ORIGINAL_COMMAND"')
    (old.cache / "venv").unlink()
    reach(old, monkeypatch)
    try:
        code = main(["doctor", "--on", HOST])
    finally:
        old.stop()
    assert code == 1
    assert capsys.readouterr().err == (
        f"error: '{HOST}' has Python 3.8.10: vitdeploy needs Python 3.10 or newer there, as JetPack 6 has it\n"
    )


def test_doctor_names_the_host_its_memory_and_its_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--on", HOST]) == 0
    output = capsys.readouterr().out
    assert f"host: {HOST}" in output
    assert "free memory: " in output
    assert "onnxruntime: " in output


def test_a_host_that_lacks_packages_is_told_the_command_that_adds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: OnnxModel
) -> None:
    bare = SshServer(tmp_path / "bare", forced='PYTHONNOUSERSITE=1 sh -c "$SSH_ORIGINAL_COMMAND"')
    environment = bare.cache / "venv"
    environment.unlink()
    (environment / "bin").mkdir(parents=True)
    interpreter = environment / "bin" / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {psutil.Process().exe()} -S "$@"\n')
    interpreter.chmod(0o755)
    reach(bare, monkeypatch)
    try:
        built = main(["build", str(model.path), "-o", str(tmp_path / "vit.engine"), "--on", HOST])
        refused = capsys.readouterr().err
        diagnosed = main(["doctor", "--on", HOST])
    finally:
        bare.stop()
    assert (built, diagnosed) == (1, 0)
    assert "lacks numpy, pillow, onnx" in refused
    assert "'onnxruntime>=" in refused
    assert len(refused.splitlines()) == 1
    assert "missing  packages: Python lacks numpy" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["-oProxyCommand=touch /tmp/owned", "", "two words"])
def test_a_name_that_is_no_host_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="expected USER@HOST"):
        check_host(name)
