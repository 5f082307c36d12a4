"""Carry out a search for a budget, and write what it found: the front, and a plan for each candidate on it."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from vitdeploy import environment
from vitdeploy.artifacts.files import FilesTogether
from vitdeploy.artifacts.outputs import folder_or_nothing
from vitdeploy.artifacts.pages import write_with_pages
from vitdeploy.datasets import batches
from vitdeploy.datasets.base import Subset
from vitdeploy.errors import ArtifactError
from vitdeploy.progress import Progress
from vitdeploy.quantization.budget import BudgetSearch, Place, Validation
from vitdeploy.quantization.budget_choice import Limits, by_error, by_speed, choose, verdict
from vitdeploy.quantization.budget_journal import BudgetJournal
from vitdeploy.quantization.budget_plans import BudgetPlans
from vitdeploy.quantization.calibration import Calibrated
from vitdeploy.quantization.division import Division
from vitdeploy.quantization.overflow import find_overflows
from vitdeploy.quantization.plan import Intent, make_plan
from vitdeploy.quantization.prepared import Prepared
from vitdeploy.quantization.realize import Realizer
from vitdeploy.quantization.request import QuantizeInputs
from vitdeploy.quantization.sensitivity import TrialImages
from vitdeploy.reading import read_json
from vitdeploy.records import Check, Front, NodePrecision, PrecisionPlan
from vitdeploy.records.budget import FRONT
from vitdeploy.sessions import Opener
from vitdeploy.text import printable_json

FrontPage: TypeAlias = Callable[[Front], str]
"""Renders the page of a search."""

PAGE = "front.html"
PLAN_SUFFIX = ".plan.json"
RANKED_ON = 64
BATCH = 16


@dataclass(frozen=True)
class Chosen:
    """What is to be written, and whether it is what was asked for."""

    plan: PrecisionPlan
    precision: NodePrecision
    is_within: bool
    front: Front

    @property
    def check(self) -> Check:
        """The budget as a check of the graph."""
        (one,) = (found for found in self.front.candidates if found.name == self.front.chosen)
        worst = None if one.delta_ci95_pp is None or one.precision == "fp32" else -one.delta_ci95_pp[0]
        return Check(
            name="top-1 drop",
            status="passed" if self.is_within else "failed",
            value=0.0 if worst is None else worst,
            limit=self.front.max_drop_pp,
            unit="pp",
            detail=f"worse end of the 95 % interval on {self.front.images} images of {self.front.data!r}",
        )


@dataclass(frozen=True)
class BudgetRun:
    """A search that is ready to run for one request whose calibration is done."""

    inputs: QuantizeInputs
    place: Place
    validation: Validation
    open_on_cpu: Opener
    journal: BudgetJournal

    def run(self, prepared: Prepared, calibrated: Calibrated, division: Division, progress: Progress) -> Chosen:
        """Search, and return what was chosen.

        Raises:
            BackendError: The FP32 graph does not run where latency counts.
        """
        start, inputs = time.monotonic(), self.inputs
        assert inputs.options.max_drop is not None
        assert inputs.data is not None
        half = make_plan(prepared.linears, prepared.attentions, Intent("fp16", inputs.target))
        preprocess = self.validation.preprocess
        overflows = find_overflows(prepared.graph, batches(division.fit, preprocess, 1), self.open_on_cpu)
        realizer = Realizer(prepared, calibrated.observers, inputs.form)
        search = BudgetSearch(
            plans=BudgetPlans(realizer, calibrated.found.plan, half, inputs.precision, overflows),
            place=self.place,
            validation=self.validation,
            ranking=self._ranking(division),
            open_on_cpu=self.open_on_cpu,
            max_drop_pp=inputs.options.max_drop,
            journal=self.journal,
            progress=progress,
        )
        candidates = search.run()
        chosen, is_within = choose(candidates, inputs.options.max_drop)
        limits = Limits(inputs.options.max_drop, len(self.validation.dataset), self.place.title)
        lines = verdict(candidates, chosen, is_within, limits)
        few = limits.images < search.least_images
        versions = environment.versions()
        front = Front(
            model=inputs.source.path.name,
            model_sha256=inputs.source.digest,
            target=inputs.target,
            max_drop_pp=inputs.options.max_drop,
            runtime=self.place.title,
            batch=self.place.batch,
            calibration=inputs.data.uri,
            data=self.validation.dataset.uri,
            data_sha256=self.validation.dataset.digest,
            images=len(self.validation.dataset),
            least_images=search.least_images,
            chosen=chosen.name,
            within_budget=is_within,
            verdict=lines,
            candidates=tuple(sorted(candidates, key=by_error if few else by_speed)),
            seconds=time.monotonic() - start,
            producer=f"vitdeploy {versions.get('vitdeploy', '')}".strip(),
            versions=versions,
            environment=environment.current(),
        )
        assert chosen.plan is not None
        return Chosen(chosen.plan, chosen.precision, is_within, front)

    def _ranking(self, division: Division) -> TrialImages:
        """Return images of the calibration set: the order of groups must not depend on the validation images."""
        part = division.compare or division.fit
        chosen = Subset(part, np.arange(min(RANKED_ON, len(part))))
        return TrialImages([np.array(batch) for batch in batches(chosen, self.validation.preprocess, BATCH)])


def front_folder(output: Path) -> Path:
    """Return the folder of a search whose graph is ``output``: ``vit.int8.budget`` for ``vit.int8.onnx``."""
    return output.with_suffix(".budget")


def front_path(output: Path) -> Path:
    """Return where the front of a search goes whose graph is ``output``."""
    return front_folder(output) / FRONT


def best_found_path(output: Path) -> Path:
    """Return where the best graph goes that is not within the budget."""
    return output.with_suffix(f".best-found{output.suffix}")


@contextmanager
def front_beside(folder: Path, front: Front, page: FrontPage | None = None) -> Iterator[Path]:
    """Write ``front.json``, its page and a plan for each candidate on the front.

    They take their places when the block succeeds, the page last. Yields the path of the JSON. The name of a plan has
    its digest, so that an earlier front keeps its plans until the new one takes its place; then they are removed.

    Raises:
        ArtifactError: The folder cannot be written, or the disk is full; what was there is untouched.
    """
    earlier, named, plans = _plans_of(folder / FRONT), [], dict[str, str]()
    for one in front.candidates:
        if one.plan is not None and one.precision != "fp32" and (one.on_front or one.name == front.chosen):
            text = one.plan.model_dump_json(indent=2) + "\n"
            digest = hashlib.sha256(text.encode()).hexdigest()
            file = f"{re.sub(r'[^a-z0-9]+', '-', one.name.lower()).strip('-')}.{digest[:8]}{PLAN_SUFFIX}"
            plans[file] = text
            one = one.model_copy(update={"plan_file": file})
        named.append(one)
    front = front.model_copy(update={"candidates": tuple(named)})
    text = json.dumps(front.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
    pages = [] if page is None else [(folder / PAGE, page(front))]
    with folder_or_nothing(folder), FilesTogether() as files:
        write_with_pages(folder / FRONT, printable_json(text) + "\n", pages, files)  # after the plans that it names
        for file, plan in plans.items():
            files.write(folder / file, plan)
        yield folder / FRONT
    for file in earlier - plans.keys():
        (folder / file).unlink(missing_ok=True)


def _plans_of(path: Path) -> set[str]:
    """Return the names of the plans beside an earlier front; none where it cannot be read."""
    try:
        content = read_json(path)
        files = [one.get("plan_file") or "" for one in content["candidates"]]
    except (ArtifactError, KeyError, TypeError, AttributeError):
        return set()
    return {file for file in files if str(file).endswith(PLAN_SUFFIX) and Path(file).name == file}
