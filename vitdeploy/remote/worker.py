"""``python -m vitdeploy.remote.worker JOB``: what a host does for a job, with the package that was shipped to it."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import FidelityWarning, VitdeployError
from vitdeploy.reading import sha256_of_file
from vitdeploy.remote.events import EventProgress
from vitdeploy.text import one_line

if TYPE_CHECKING:
    from vitdeploy.datasets import Dataset

FINDINGS = "findings.json"
PREDICTIONS = "predictions.parquet"

Options = Mapping[str, Any]


def main(job: Path) -> int:
    """Do a job, and write what becomes of it as events."""
    request = json.loads((job / "request.json").read_text("utf8"))
    with (job / "events.jsonl").open("w", encoding="utf8") as stream:
        progress = EventProgress(stream)

        def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
            if issubclass(category, FidelityWarning):
                progress.write("warning", category=category.__name__, text=str(message))

        warnings.simplefilter("always", FidelityWarning)
        warnings.showwarning = show
        try:
            JOBS[request["verb"]](request, job / "in", job / "out", progress)
        except VitdeployError as error:
            progress.write("error", type=type(error).__name__, text=str(error))
            return 1
        except Exception as error:
            progress.write("error", type=type(error).__name__, text=one_line(error))
            raise  # its traceback goes into the job's log
        progress.write("done", files=[_listed(file) for file in sorted((job / "out").iterdir())])
    return 0


def _listed(file: Path) -> dict[str, Any]:
    return {"name": file.name, "size": file.stat().st_size, "sha256": sha256_of_file(file)}


def _build(request: Options, inputs: Path, outputs: Path, progress: EventProgress) -> None:
    from pydantic import TypeAdapter

    from vitdeploy.sessions import BuildTarget
    from vitdeploy.stages.build import build

    target = TypeAdapter(BuildTarget).validate_python(request["target"])
    build(
        inputs / request["model"],
        outputs / request["output"],
        backend=request["backend"],
        target=target,
        progress=progress,
    )


def _bench(request: Options, inputs: Path, outputs: Path, progress: EventProgress) -> None:
    from pydantic import TypeAdapter

    from vitdeploy.benching.options import BenchOptions
    from vitdeploy.report import write_report
    from vitdeploy.stages.bench import bench

    values = dict(request["options"])
    if values["label_map"] is not None:
        values["label_map"] = inputs / values["label_map"]
    report = bench(
        [inputs / place for place in request["artifacts"]],
        _dataset(request["data"], inputs),
        baseline=None if request["baseline"] is None else inputs / request["baseline"],
        options=TypeAdapter(BenchOptions).validate_python(values),
        keep=outputs,
        predictions=outputs / PREDICTIONS if request["predictions"] else None,
        progress=progress,
    )
    write_report(report, outputs)


def _dataset(data: str | Options, inputs: Path) -> Dataset | str:
    """Return the name of data that the host has itself, or what was shipped, under the names that it has at home."""
    if isinstance(data, str):
        return data
    from vitdeploy.datasets.folder import ImageFiles

    files = [inputs / place for place in data["files"]]

    class Shipped(ImageFiles):
        def file(self, index: int) -> Path:
            return files[index]

    return Shipped(data["uri"], inputs, data["names"], data["labels"], data["classes"])


def _doctor(request: Options, inputs: Path, outputs: Path, progress: EventProgress) -> None:
    from vitdeploy.stages.doctor import doctor

    found = [finding.model_dump(mode="json") for finding in doctor()]
    (outputs / FINDINGS).write_text(json.dumps(found), encoding="utf8")


JOBS: dict[str, Callable[[Options, Path, Path, EventProgress], None]] = {
    "build": _build,
    "bench": _bench,
    "doctor": _doctor,
}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
