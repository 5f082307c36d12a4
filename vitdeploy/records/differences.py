"""Images on which a candidate and the baseline predict different classes."""

from __future__ import annotations

from pydantic import Field

from vitdeploy.records.base import Record


class ShownPrediction(Record):
    """The class that a row ranks first, by the name that the model has for it, and its probability."""

    row: str
    predicted: str
    probability: float | None
    right: bool | None


class DifferingImage(Record):
    """One image: as the data calls it, its label, what the baseline predicts, and those rows that predict otherwise.

    ``thumbnail`` is the image as the model sees it, reduced, as a ``data:`` URI; None where none was wanted.
    """

    name: str
    sample_id: str
    label: str | None
    baseline: ShownPrediction
    others: tuple[ShownPrediction, ...]
    thumbnail: str | None = Field(default=None, pattern="^data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+$")


class Differences(Record):
    """How many ``images`` any row ranks otherwise than the baseline, and some of them: the rows' new errors first."""

    images: int
    shown: tuple[DifferingImage, ...] = ()
