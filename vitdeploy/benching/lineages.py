"""Which candidates are one model in several precisions, and which are different models."""

from __future__ import annotations

from collections.abc import Sequence

from vitdeploy.artifacts import Artifact, Checkpoint, OnnxModel
from vitdeploy.artifacts.lineage import ancestors
from vitdeploy.benching.candidates import Candidate

ORIGINS = ("onnx", "checkpoint")
ADOPTED = ("", "onnx")


def number_models(candidates: Sequence[Candidate]) -> tuple[int, ...]:
    """Return for each candidate the number of its model, from 1 in the order in which they occur.

    Two are one model where they were made from one graph or one file of weights, as their manifests say. Where the way
    back to it is lost, they are one unless their architectures differ.
    """
    origins = _Origins([one.artifact for one in candidates if one.artifact is not None])
    numbers: list[int] = []
    for index, one in enumerate(candidates):
        same = (numbers[other] for other in range(index) if origins.are_one(one, candidates[other]))
        numbers.append(next(same, max(numbers, default=0) + 1))
    return tuple(numbers)


class _Origins:
    """Digests that lead to the same graph or weights, joined."""

    def __init__(self, artifacts: Sequence[Artifact]) -> None:
        self._above: dict[str, str] = {}
        self._whole: set[str] = set()
        for artifact in ancestors(artifacts):
            parents = {role: digest for role, digest in artifact.manifest.parents.items() if role in ORIGINS}
            for digest in parents.values():
                self._above[self._top(digest)] = self._top(artifact.digest)
            is_adopted = isinstance(artifact, OnnxModel) and artifact.manifest.precision == "fp32" and not parents
            if "checkpoint" in parents or is_adopted:
                self._whole.add(artifact.digest)

    def are_one(self, one: Candidate, other: Candidate) -> bool:
        """Return whether two candidates are one model."""
        first, second = self._top(one.digest), self._top(other.digest)
        if first == second:
            return True
        wholes = {self._top(digest) for digest in self._whole}
        if (first in wholes and second in wholes) or all(isinstance(x.artifact, Checkpoint) for x in (one, other)):
            return False
        models = (one.model, other.model)
        if any(model.family in ADOPTED for model in models):
            return True  # an adopted graph does not say of which family it is
        return len({(model.family, str(sorted(model.arguments.items()))) for model in models}) == 1

    def _top(self, digest: str) -> str:
        while digest in self._above and self._above[digest] != digest:
            digest = self._above[digest]
        return digest
