"""Datasets: digits, image folders, calibration sets and timm's datasets, behind one ``open_dataset(uri)``."""

from vitdeploy.datasets.base import SPLITS, Dataset, DataSource, Split, content_digest, pixels_id
from vitdeploy.datasets.calibration_set import CalibrationFiles, CalibrationSet, is_calibration_set
from vitdeploy.datasets.imagenet import imagenet_classes, imagenet_labels
from vitdeploy.datasets.labels import match_labels, read_label_map, rename_classes, require_labels
from vitdeploy.datasets.layout import images_below
from vitdeploy.datasets.loading import batches, load_pixels
from vitdeploy.datasets.opening import evaluation_split, labelled_splits_of, open_dataset, splits_of
from vitdeploy.datasets.overlap import overlap_text, shared_images
from vitdeploy.datasets.uri import refuse_output_in_data

__all__ = [
    "SPLITS",
    "CalibrationFiles",
    "CalibrationSet",
    "DataSource",
    "Dataset",
    "Split",
    "batches",
    "content_digest",
    "evaluation_split",
    "imagenet_classes",
    "imagenet_labels",
    "images_below",
    "is_calibration_set",
    "labelled_splits_of",
    "load_pixels",
    "match_labels",
    "open_dataset",
    "overlap_text",
    "pixels_id",
    "read_label_map",
    "refuse_output_in_data",
    "rename_classes",
    "require_labels",
    "shared_images",
    "splits_of",
]
