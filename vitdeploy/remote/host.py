"""``Remote``: verbs that run on another machine over SSH; what they take is shipped there, the result brought back.

A job goes on when the link breaks, or when this process is killed: the same call finds it and brings its result.
"""

from __future__ import annotations

import json
import os
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vitdeploy.artifacts import Artifact, Engine, OnnxModel, open_onnx, read_engine, sidecar_of
from vitdeploy.artifacts.files import TEMPORARY_PREFIX, FilesTogether, together, write_error
from vitdeploy.artifacts.naming import output_beside
from vitdeploy.artifacts.outputs import refuse_unwritable
from vitdeploy.artifacts.pairs import atomic_pair
from vitdeploy.artifacts.reference import load_reference
from vitdeploy.artifacts.report_json import read_report
from vitdeploy.benching.options import BenchOptions
from vitdeploy.datasets import Dataset, DataSource
from vitdeploy.datasets.uri import parse_uri
from vitdeploy.environment import jetpack_of, parse_l4t
from vitdeploy.errors import RemoteError, UsageError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.reading import require_regular
from vitdeploy.records import Report, sha256_of
from vitdeploy.records.report import REPORT, SAMPLES
from vitdeploy.remote.events import Replay
from vitdeploy.remote.link import check_host, connect
from vitdeploy.remote.shipping import LostLinkError, Parcel, fetch, persist, request_answer, ship
from vitdeploy.remote.wheel import make_wheel, requirements
from vitdeploy.remote.worker import FINDINGS, PREDICTIONS
from vitdeploy.sessions import BuildTarget
from vitdeploy.stages.bench import BenchRequest
from vitdeploy.stages.build import BUILDERS
from vitdeploy.stages.doctor import Finding
from vitdeploy.terminal_progress import AUTO, shown
from vitdeploy.text import size_text


@dataclass(frozen=True)
class Remote:
    """A machine that ``ssh HOST`` reaches, such as ``user@jetson``: with Python 3.10 and what vitdeploy needs there.

    The package itself need not be installed there: the one that runs here is shipped, once. Keys, configuration and
    known_hosts are ssh's own; a host that is not known is refused.
    """

    host: str

    def __post_init__(self) -> None:
        check_host(self.host)

    def build(
        self,
        model: Artifact | Path | str,
        output: Path | str | None = None,
        *,
        backend: str | None = None,
        target: BuildTarget = BuildTarget(),
        progress: Progress | None = AUTO,
    ) -> Engine:
        """Build an engine on the host, check it there, and bring it here; see ``vd.build``.

        Raises:
            RemoteError: The host cannot be reached, lacks something, or the link breaks for good.
            VitdeployError: As ``vd.build``; the message begins with the host where it was raised there.
        """
        progress = shown(progress)
        graph = open_onnx(model)
        output = Path(output) if output is not None else output_beside(graph.path, ".engine")
        refuse_unwritable(output, "an engine file", inputs=(graph,), beside=(sidecar_of(output),))
        if backend is not None and backend not in BUILDERS:
            raise UsageError(f"backend {backend!r} builds no engine, expected one of {', '.join(BUILDERS)}")
        if isinstance(target.timing_cache, Path):
            raise UsageError(f"timing_cache={str(target.timing_cache)!r} is a file here: the host keeps its own")
        files = _Files()
        task = {
            "verb": "build",
            "model": files.add(graph),
            "output": output.name,
            "backend": backend,
            "target": asdict(target),
        }
        with self._job(task, files.parcels, output, progress) as result, _folder_beside(output) as folder:
            engine, sidecar = folder / output.name, sidecar_of(folder / output.name)
            for path in (engine, sidecar):
                result.fetch(path.name, path)
            read_engine(engine)
            with atomic_pair(sidecar_of(output), sidecar.read_text("utf8"), output) as temporary:
                engine.replace(temporary)
        return read_engine(output)

    def bench(
        self,
        artifacts: Sequence[Artifact | Path | str] | Artifact | Path | str,
        data: DataSource | None = None,
        *,
        baseline: Artifact | Path | str | None = None,
        options: BenchOptions = BenchOptions(),
        keep: Path | str | None = None,
        predictions: Path | str | None = None,
        files: FilesTogether | None = None,
        progress: Progress | None = AUTO,
    ) -> Report:
        """Measure artifacts on the host; see ``vd.bench``. Images that are measured on are shipped there, once.

        Raises:
            RemoteError: The host cannot be reached, lacks something, or the link breaks for good.
            UsageError: ``baseline`` is no artifact, or the data are no files.
            VitdeployError: As ``vd.bench``; the message begins with the host where it was raised there.
        """
        progress = shown(progress)
        request = BenchRequest.open(
            artifacts, data, baseline=baseline, options=options, keep=keep, predictions=predictions
        )
        if request.baseline is not None and not isinstance(request.baseline, Artifact):
            raise UsageError(
                f"the baseline {str(baseline)!r} is no artifact, which alone can be shipped: name a checkpoint, ONNX "
                "model or engine that vitdeploy wrote"
            )
        parcels = _Files()
        label_map = None if options.label_map is None else parcels.add_file(Path(options.label_map))
        task = {
            "verb": "bench",
            "artifacts": [parcels.add(artifact) for artifact in request.artifacts],
            "baseline": None if request.baseline is None else parcels.add(request.baseline),
            "data": parcels.add_data(request.dataset),
            "predictions": predictions is not None,
            "options": {**asdict(replace(options, label_map=None)), "label_map": label_map},
        }
        with (
            self._job(task, parcels.parcels, None if keep is None else Path(keep), progress) as result,
            tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX) as folder,
            together(files) as written,
        ):
            result.fetch(REPORT, Path(folder) / REPORT)
            report = read_report(Path(folder) / REPORT)
            kept: dict[str, str] = {}
            if keep is not None and SAMPLES in result.names:
                with written.path(Path(keep) / SAMPLES) as temporary:
                    kept[SAMPLES] = result.fetch(SAMPLES, temporary)
            if predictions is not None:
                with written.path(Path(predictions)) as temporary:
                    kept[Path(predictions).name] = result.fetch(PREDICTIONS, temporary)
        return report.model_copy(update={"command": request.command, "files": kept})

    def doctor(self, *, progress: Progress | None = AUTO) -> list[Finding]:
        """Return what the host can do; where packages are missing there, what it is and what they are.

        Raises:
            RemoteError: The host cannot be reached, or has no Python 3.10.
        """
        progress = shown(progress)
        board = self._look(progress)
        found = [Finding.of("machine", "host", "ok", self.host), *_memory_findings(board)]
        if board["missing"]:
            return [*found, *_board_findings(board), self._missing_finding(board)]
        with self._job({"verb": "doctor"}, [], None, progress) as result, tempfile.TemporaryDirectory() as folder:
            result.fetch(FINDINGS, Path(folder) / FINDINGS)
            there = json.loads((Path(folder) / FINDINGS).read_text("utf8"))
        return [*found, *(Finding.model_validate(finding) for finding in there)]

    def _look(self, progress: Progress) -> dict[str, Any]:
        return request_answer(self.host, {"verb": "look", "requires": requirements()}, progress)

    def _missing_finding(self, board: Mapping[str, Any]) -> Finding:
        names = ", ".join(board["missing"])
        return Finding.of("machine", "packages", "missing", f"Python lacks {names}", self._remedy(board))

    def _remedy(self, board: Mapping[str, Any]) -> str:
        """Return the command that gives the host an environment that is found there from then on."""
        least = dict(requirements())
        wanted = " ".join(f"'{name}>={least[name]}'" for name in board["missing"])
        place = str(Path(board["cache"]).parent / "venv")
        if board["executable"].startswith(place):
            return f"{place}/bin/pip install {wanted}"
        return f"python3 -m venv --system-site-packages {place} && {place}/bin/pip install {wanted}"

    @contextmanager
    def _job(
        self, task: Mapping[str, Any], parcels: Sequence[Parcel], output: Path | None, progress: Progress
    ) -> Iterator[_Result]:
        """Ship what a job needs, run it, and yield its results; it is removed from the host at the end.

        A job that was begun by a call with the same inputs and output is taken over. It stays there when the link
        breaks for good, and ends when this is interrupted.
        """
        board = self._look(progress)
        if board["missing"]:
            raise RemoteError(
                f"Python {board['python']} of {self.host!r} lacks {', '.join(board['missing'])}: run there "
                f'"{self._remedy(board)}"'
            )
        wheel = Parcel.of_bytes(make_wheel(), "")
        ship(self.host, [wheel, *parcels], progress)
        files = sorted((parcel.place, parcel.sha256) for parcel in parcels)
        where = [platform.node(), os.getuid() if hasattr(os, "getuid") else 0, str(output and output.absolute())]
        job = sha256_of({"task": task, "files": files, "package": wheel.sha256, "where": where})[:32]
        start = {"verb": "start", "job": job, "package": wheel.sha256, "files": files, "task": task}
        try:
            if request_answer(self.host, start, progress)["taken_over"]:
                progress.note(f"taking over what an earlier call has begun on {self.host}")
            with Replay(self.host, progress) as replay:
                listed = self._follow(job, replay, progress)
            yield _Result(self.host, job, listed, progress)
        except LostLinkError:
            raise
        except BaseException:
            self._drop(job)
            raise
        self._drop(job)

    def _follow(self, job: str, replay: Replay, progress: Progress) -> list[dict[str, Any]]:
        """Show a job's events until it has ended, and return its results."""
        position = 0

        def attempt() -> list[dict[str, Any]]:
            nonlocal position
            with connect(self.host, {"verb": "follow", "job": job, "offset": position}) as connection:
                while True:
                    event, size = connection.event()
                    position += size
                    replay.show(event)
                    if replay.files is not None:
                        return replay.files

        return persist(self.host, attempt, progress, lambda: position)

    def _drop(self, job: str) -> None:
        with suppress(RemoteError):  # it is removed there in a month at the latest
            request_answer(self.host, {"verb": "drop", "job": job}, SILENT)


@dataclass(frozen=True)
class _Result:
    """The results of a job that is done, still on the host."""

    host: str
    job: str
    files: Sequence[Mapping[str, Any]]
    progress: Progress

    @property
    def names(self) -> set[str]:
        return {file["name"] for file in self.files}

    def fetch(self, name: str, path: Path) -> str:
        """Bring one of them here, and return its SHA-256."""
        file = next(file for file in self.files if file["name"] == name)
        fetch(self.host, self.job, file, path, self.progress)
        return str(file["sha256"])


class _Files:
    """What a job takes: files of one folder here lie in one folder there, so that they find each other."""

    def __init__(self) -> None:
        self._folders: list[Path] = []
        self._parcels: dict[str, Parcel] = {}

    @property
    def parcels(self) -> list[Parcel]:
        return list(self._parcels.values())

    def add(self, artifact: Artifact) -> str:
        """Add an artifact with all that belongs to it, and return its place."""
        if isinstance(artifact, OnnxModel):
            reference = load_reference(artifact)
            beside = [*artifact.external_data(), *([] if reference is None else [reference.path])]
        else:
            beside = [sidecar_of(artifact.path)] if isinstance(artifact, Engine) else []
        for path in beside:
            self._put(path, artifact.path.parent)
        return self._put(artifact.path, artifact.path.parent)

    def add_file(self, path: Path) -> str:
        """Add a file, and return its place."""
        require_regular(path)
        return self._put(path, path.parent)

    def add_data(self, dataset: Dataset) -> str | dict[str, Any]:
        """Add the images of a dataset, and return what opens them there; its name where the package holds it.

        Raises:
            UsageError: They are neither files nor in the package.
        """
        if parse_uri(dataset.uri).where == "digits":
            return dataset.uri
        files = []
        for index in range(len(dataset)):
            file = dataset.file(index)
            place = f"data/{index:07d}{'' if file is None else file.suffix}"
            if file is not None:
                self._parcels[place] = Parcel.of_file(file, place)
            if file is None or self._parcels[place].sha256 != dataset.sample_id(index):
                raise UsageError(
                    f"{dataset.uri!r} holds images that are no files of their own, so they cannot be shipped: "
                    "name a folder of images"
                )
            files.append(place)
        return {
            "uri": dataset.uri,
            "files": files,
            "names": [dataset.name(index) for index in range(len(dataset))],
            "labels": None if dataset.labels is None else dataset.labels.tolist(),
            "classes": list(dataset.classes),
        }

    def _put(self, path: Path, folder: Path) -> str:
        folder = folder.absolute()
        if folder not in self._folders:
            self._folders.append(folder)
        place = f"{self._folders.index(folder)}/{os.path.relpath(path.absolute(), folder)}"
        self._parcels[place] = Parcel.of_file(path, place)
        return place


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """Yield a new folder on the disk of ``path``, from which files are renamed to their place."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=path.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise write_error(path, error) from error


def _memory_findings(board: Mapping[str, Any]) -> list[Finding]:
    memory, disk = board["free_memory_bytes"], board["free_bytes"]
    return [
        Finding.of("machine", "free memory", "ok", "unknown" if memory is None else size_text(memory)),
        Finding.of("machine", "free disk", "ok", f"{size_text(disk)} for {board['cache']}"),
    ]


def _board_findings(board: Mapping[str, Any]) -> list[Finding]:
    """Return what is known of a host on which the package cannot run yet."""
    found = [Finding.of("machine", "python", "ok", f"{board['python']} on {board['os']}")]
    if (l4t := parse_l4t(board["nv_tegra_release"])) is None:
        return found
    release = jetpack_of(l4t)
    found.append(Finding.of("machine", "JetPack", "ok", f"{release} (L4T {l4t})" if release else f"L4T {l4t}"))
    mode = re.search(r"Power Mode:\s*(\S+)", board["power_mode"])
    found.append(Finding.of("machine", "power mode", "ok" if mode else "warning", mode[1] if mode else "unknown"))
    if board["tensorrt"]:
        return [*found, Finding.of("backend", "tensorrt", "ok", board["tensorrt"])]
    remedy = "sudo apt-get install python3-libnvinfer"
    return [*found, Finding.of("backend", "tensorrt", "missing", "its Python bindings are not installed", remedy)]
