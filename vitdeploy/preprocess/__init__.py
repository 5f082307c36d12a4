"""From an image file to a network input: the same code trains, calibrates and runs."""

from vitdeploy.preprocess.huggingface import preprocess_from_hf
from vitdeploy.preprocess.images import open_image, plain_image
from vitdeploy.preprocess.pixels import denormalized, normalize, stacked, to_input, to_pixels
from vitdeploy.preprocess.record import DIGITS_PREPROCESS, IMAGENET_MEAN, IMAGENET_STD, image_size
from vitdeploy.preprocess.sources import CONFIG, PREPROCESSOR, preprocess_from, preprocess_of_folder, read_config
from vitdeploy.preprocess.timm_configuration import preprocess_from_timm_config

__all__ = [
    "CONFIG",
    "DIGITS_PREPROCESS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PREPROCESSOR",
    "denormalized",
    "image_size",
    "normalize",
    "open_image",
    "plain_image",
    "preprocess_from",
    "preprocess_from_hf",
    "preprocess_from_timm_config",
    "preprocess_of_folder",
    "read_config",
    "stacked",
    "to_input",
    "to_pixels",
]
