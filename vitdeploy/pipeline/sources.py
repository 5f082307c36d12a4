"""What a run reads: model, datasets, tables and plans, each opened once and handed to every stage that needs it."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

from vitdeploy.artifacts import CalibrationTable, is_calibration_table
from vitdeploy.datasets import Dataset, Split, open_dataset, rename_classes
from vitdeploy.datasets.base import DatasetBase
from vitdeploy.datasets.class_names import read_class_names
from vitdeploy.datasets.opening import calibration_split, evaluation_split
from vitdeploy.datasets.uri import parse_uri
from vitdeploy.errors import RecipeError
from vitdeploy.pipeline.recipe import QuantizeSection, Recipe
from vitdeploy.quantization.request import QuantizeOptions, open_calibration, open_plan
from vitdeploy.sources.source import Source, SourceOptions, open_source
from vitdeploy.stages.train import names_of_splits
from vitdeploy.wording import adoption


class RunSources:
    """The sources of one recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._datasets: dict[str, Dataset] = {}
        self._calibrations = {section.name: self._open(section) for section in recipe.quantize}

    def dataset(self, uri: str, split: Split | None = None) -> Dataset:
        """Return a dataset, the same one for the same text.

        Raises:
            DataError: There is none.
        """
        text = parse_uri(uri, split).text
        if text not in self._datasets:
            dataset = open_dataset(uri, split=split)
            if self._names is not None and parse_uri(uri).where == parse_uri(self._recipe.data).where:
                dataset = rename_classes(dataset, self._names)
            self._datasets[text] = dataset
        return self._datasets[text]

    @cached_property
    def _names(self) -> tuple[str, ...] | None:
        """The names that a training gives to the classes of the run's data."""
        labels = self._recipe.train.labels
        return None if labels is None else read_class_names(labels)

    def split(self, name: Split) -> Dataset:
        """Return a split of the run's data."""
        return self.dataset(self._recipe.data, name)

    @cached_property
    def model(self) -> Source | None:
        """The model that the run starts from, None where it trains one.

        Raises:
            RecipeError: It is an ONNX file.
        """
        source = self._recipe.source
        if source is None:
            return None
        if Path(source).suffix == ".onnx":
            raise RecipeError(
                f"the recipe is not valid: source is the ONNX file {source!r}, and a run starts from weights: "
                f"{adoption(source)} adopts it, then quantize, build and bench"
            )
        recipe = self._recipe
        options = SourceOptions(
            weights=recipe.weights, arguments=recipe.arguments, preprocess=recipe.preprocess, labels=recipe.labels
        )
        return open_source(source, options)

    @cached_property
    def splits(self) -> dict[Split, Dataset]:
        """The splits that a training uses."""
        return {name: self.split(name) for name in names_of_splits(self._recipe.data)}

    @property
    def test(self) -> Dataset:
        """The data of the report, unless the recipe names other: what ``bench`` takes of the run's data."""
        return self.dataset(self._recipe.data, evaluation_split(self._recipe.data))

    @cached_property
    def bench(self) -> Dataset:
        """The data of the report."""
        data = self._recipe.bench.data
        return self.test if data is None else self.dataset(data, evaluation_split(data))

    def quantization(self, section: QuantizeSection) -> tuple[CalibrationTable | Dataset | None, QuantizeOptions]:
        """Return what a section is calibrated with, and its options; their sources open."""
        calibration, options = self._calibrations[section.name]
        if calibration is None and section.precision in ("int8", "fp8"):
            calibration = self.split("train")
            options = replace(options, samples=min(section.samples, len(calibration)))
        return calibration, options

    def _open(self, section: QuantizeSection) -> tuple[CalibrationTable | Dataset | None, QuantizeOptions]:
        options = replace(section.options, plan=open_plan(section.options.plan))
        if isinstance(options.validation, str | Path):
            validation = self.dataset(str(options.validation))
            assert isinstance(validation, DatasetBase)
            options = replace(options, validation=validation)
        calibration = section.calibration
        if calibration is None or is_calibration_table(Path(calibration)):
            table = open_calibration(calibration)
            return table, options
        return self.dataset(calibration, calibration_split(calibration)), options
