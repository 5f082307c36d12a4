"""Which images something has seen: by content, in a bounded number of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vitdeploy.records.base import Record

LARGEST_SKETCH = 8192
_DIGITS = 16


class SampleSet(Record):
    """A set of images by the SHA-256 of their content; of a large one a part that says how much it shares with another.

    ``ids`` are the smallest 8192 digests in order, their first 16 hexadecimal digits each: all of them where the set is
    no larger (a bottom-k sketch, Cohen and Kaplan 2007, section 2).
    """

    images: int
    ids: tuple[str, ...]

    @classmethod
    def of(cls, sample_ids: Iterable[str]) -> SampleSet:
        """Return the set of these samples, each counted once."""
        distinct = sorted({identity[:_DIGITS] for identity in sample_ids})
        return cls(images=len(distinct), ids=tuple(distinct[:LARGEST_SKETCH]))

    @classmethod
    def union(cls, sets: Sequence[SampleSet]) -> SampleSet:
        """Return the set of all images of disjoint sets."""
        ids = sorted({identity for one in sets for identity in one.ids})
        return cls(images=sum(one.images for one in sets), ids=tuple(ids[:LARGEST_SKETCH]))

    def shared_with(self, sample_ids: Sequence[str]) -> int:
        """Return how many of these samples are in the set; of a sketch an estimate, 0 where it shows none."""
        known = set(self.ids)
        found = sum(identity[:_DIGITS] in known for identity in sample_ids)
        if not found or self.images == len(self.ids):
            return found
        share = (int(self.ids[-1], 16) + 1) / 16**_DIGITS  # of all digests, those that the sketch decides
        return min(len(sample_ids), max(found, round(found / share)))


class TrainingData(Record):
    """One training: its data, and the images that weights were fitted to and chosen by."""

    data: str
    train: SampleSet
    validation: SampleSet | None = None
