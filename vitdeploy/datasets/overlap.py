"""Images that two datasets share, by content: a copy under another name is found, a re-encoded one is not."""

from __future__ import annotations

from collections import defaultdict

from vitdeploy.datasets.base import Dataset
from vitdeploy.errors import DataError

_LISTED = 3


def shared_images(first: Dataset, second: Dataset) -> list[int]:
    """Return the indices of the images of ``first`` that are in ``second`` too.

    Files are read only where one of the same size is in the other dataset.
    """
    sizes_first, sizes_second = _sizes(first), _sizes(second)
    if sizes_first is None or sizes_second is None:
        known = set(second.sample_ids)
        return [index for index, identity in enumerate(first.sample_ids) if identity in known]
    found = []
    for size, indices in sizes_first.items():
        others = {second.sample_id(index) for index in sizes_second.get(size, ())}
        found += [index for index in indices if others and first.sample_id(index) in others]
    return sorted(found)


def overlap_text(first: Dataset, second: Dataset) -> str:
    """Return in words which images two datasets share; empty where none is."""
    shared = shared_images(first, second)
    if not shared:
        return ""
    listed = ", ".join(f"'{first.name(index)}'" for index in shared[:_LISTED])
    more = ", …" if len(shared) > _LISTED else ""
    return f"{len(shared)} of the {len(first)} images of {first.uri!r} are in {second.uri!r} too ({listed}{more})"


def _sizes(dataset: Dataset) -> dict[int, list[int]] | None:
    """Return size in bytes → images of that size; None where images are not files."""
    sizes: defaultdict[int, list[int]] = defaultdict(list)
    for index in range(len(dataset)):
        file = dataset.file(index)
        if file is None:
            return None
        try:
            sizes[file.stat().st_size].append(index)
        except OSError as error:
            raise DataError(f"image {str(file)!r} cannot be read: {error.strerror}") from error
    return sizes
