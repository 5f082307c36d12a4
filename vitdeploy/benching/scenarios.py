"""The scenarios of MLPerf Inference, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitdeploy.benching.candidates import batch_fits
from vitdeploy.benching.measuring import Entry
from vitdeploy.benching.options import BenchOptions
from vitdeploy.datasets import Dataset, batches
from vitdeploy.measure.accuracy import run_batch
from vitdeploy.measure.scenarios import STREAMS, Load, run_scenario
from vitdeploy.progress import Progress
from vitdeploy.records import Preprocess
from vitdeploy.text import one_line

MOST_SAMPLES = 1024  # what LoadGen's mlperf.conf keeps in memory for image classification
MOST_BYTES = 256 << 20


def measure_scenarios(entries: Sequence[Entry], dataset: Dataset, options: BenchOptions, progress: Progress) -> None:
    """Put each row under each scenario, alone; a row that fails gets a note and keeps what was measured before.

    A query is images that are preprocessed and in memory; its latency ends with the outputs in memory.
    """
    alive = [entry for entry in entries if entry.alive and entry.blocks]
    libraries: dict[Preprocess, NDArray[np.float32]] = {}
    with progress.task("Scenarios", total=len(alive) * len(options.scenarios)) as task:
        for entry in alive:
            preprocess, session = entry.candidate.preprocess, entry.session
            assert preprocess is not None
            assert session is not None
            if preprocess not in libraries:
                libraries[preprocess] = _library(dataset, preprocess)
            images, limits = libraries[preprocess], entry.candidate.limits

            def run(samples: Sequence[int], entry: Entry = entry, images: NDArray[np.float32] = images) -> None:
                assert entry.session is not None
                run_batch(entry.session, images[list(samples)], entry.candidate.limits)

            fitting = [batch for batch in options.batches if batch_fits(entry.candidate, session, batch) is None]
            batch = max(fitting, default=(limits or (1, 1))[1])
            for name in options.scenarios:
                task.describe(f"{entry.candidate.name} {name}")
                load = Load(run, len(images), batch, options.scenario_s, options.latency_bound_ms, options.seed)
                try:
                    run(range(min(batch, len(images))))  # nothing is set up while it counts
                    entry.scenarios.append(run_scenario(name, load))
                except Exception as error:  # any runtime's own exception type; the bench goes on
                    entry.notes.append(f"scenario {name} failed: {one_line(error)}")
                task.advance()


def _library(dataset: Dataset, preprocess: Preprocess) -> NDArray[np.float32]:
    """Return the images that queries are drawn from, as many as a quarter of a gigabyte holds."""
    height, width = preprocess.pixel_size or preprocess.size
    size = 4 * preprocess.channels * height * width
    count = min(len(dataset), MOST_SAMPLES, max(STREAMS, MOST_BYTES // size))
    return next(batches(dataset, preprocess, count))
