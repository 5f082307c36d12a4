"""The child process of a bench: ``python -m vitdeploy.benching.probe`` opens one candidate and says what that costs.

It reads a request (``request_of``) as JSON on stdin. The parent has verified the artifact, so the manifest comes with
the request: verifying again would read the file, and count as the candidate's memory.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitdeploy import backends
from vitdeploy.artifacts import Artifact, Checkpoint, Engine, OnnxModel
from vitdeploy.benching.candidates import Candidate, make_feed, of_artifact, of_loaded
from vitdeploy.benching.options import BenchOptions
from vitdeploy.errors import VitdeployError
from vitdeploy.measure.process import ProcessCost, answer, observe
from vitdeploy.records import Manifest, Preprocess
from vitdeploy.sources.source import Source, SourceOptions, open_source
from vitdeploy.text import one_line

MODULE = "vitdeploy.benching.probe"
OPENED_WITH = ("threads", "tf32", "cuda_graph", "cpu_fallback")
KINDS = {"checkpoint": Checkpoint, "onnx": OnnxModel, "engine": Engine}


def request_of(candidate: Candidate, *, batch: int, options: BenchOptions) -> dict[str, Any]:
    """Return what the child is asked."""
    artifact = candidate.artifact
    return {
        "path": str(artifact.path.absolute()) if artifact is not None else None,
        "manifest": artifact.manifest.model_dump(mode="json") if artifact is not None else None,
        "source": None if candidate.source is None else _source_words(candidate.source),
        "task": candidate.model.task,
        "preprocess": candidate.preprocess.model_dump(mode="json") if candidate.preprocess is not None else None,
        "backend": candidate.backend,
        "device": candidate.device,
        "provider": candidate.provider,
        "batch": batch,
        "pinning": candidate.pinning,
        "spinning": candidate.spinning,
        "threads": options.threads,
        "tf32": options.tf32,
        "cuda_graph": options.cuda_graph,
        "cpu_fallback": options.cpu_fallback,
    }


def _source_words(source: Source) -> dict[str, Any]:
    """Return what opens a source again, as JSON."""
    options = source.options
    weights = options.weights.path if isinstance(options.weights, Artifact) else options.weights
    preprocess = options.named_preprocess
    return {
        "text": source.text,
        "weights": None if weights is None else str(weights),
        "random_weights": options.random_weights,
        "arguments": dict(options.arguments),
        "reset_head": options.reset_head,
        "head_for": options.head_for,
        "seed": options.seed,
        "labels": None if options.labels is None else str(options.labels),
        "preprocess": None if preprocess is None else preprocess.model_dump(mode="json"),
        "task": options.task,
    }


def _source_of(words: dict[str, Any]) -> Source:
    options = {name: value for name, value in words.items() if name != "text"}
    if options["preprocess"] is not None:
        options["preprocess"] = Preprocess.model_validate(options["preprocess"])
    return open_source(words["text"], SourceOptions(**options))


def probe(request: dict[str, Any]) -> ProcessCost:
    """Open the candidate and run it once on a random batch; a SOURCE is loaded as part of opening it."""
    if request["preprocess"] is None:
        return ProcessCost(reason="its manifest has no preprocessing")
    preprocess = Preprocess.model_validate(request["preprocess"])
    backends.get_backend(request["backend"]).unavailable()  # imports the library: its time is not the model's
    return observe(
        lambda: _candidate(request).open(**{name: request[name] for name in OPENED_WITH}),
        lambda session: make_feed(session, preprocess, request["batch"]),
    )


def _candidate(request: dict[str, Any]) -> Candidate:
    device, provider = request["device"], request["provider"]
    if request["manifest"] is None:
        from vitdeploy.sources.headless import without_head
        from vitdeploy.sources.load import load

        source = _source_of(request["source"])
        loaded = load(source)
        if request["task"] == "features" and loaded.spec.task != "features":
            loaded = without_head(loaded)
        return of_loaded(source, loaded, device)
    manifest = Manifest.model_validate(request["manifest"])
    artifact = KINDS[manifest.kind](Path(request["path"]), manifest)
    found = of_artifact(artifact, request["backend"], device, provider)
    return replace(found, pinning=request["pinning"], spinning=request["spinning"])


def main() -> int:
    """Answer on the real stdout; whatever a runtime prints goes to stderr."""
    with os.fdopen(os.dup(1), "w") as stream:
        os.dup2(2, 1)
        try:
            cost = probe(json.load(sys.stdin))
        except VitdeployError as error:
            cost = ProcessCost(reason=f"its process failed: {one_line(error)}")
        answer(cost, stream)
    return 0


if __name__ == "__main__":
    sys.exit(main())
