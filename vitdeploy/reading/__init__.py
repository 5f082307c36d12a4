"""Reading what comes from outside: regular files only, of bounded size and depth, and nothing in them is executed."""

from vitdeploy.reading.archives import check_zip, plain_name, read_npz, top_folder, unpack_zip
from vitdeploy.reading.json_text import decode_text, first_problem, parse_json, read_json
from vitdeploy.reading.leftovers import format_of, is_of_system, refuse_stand_in, stands_for_a_file
from vitdeploy.reading.regular import (
    missing,
    open_regular,
    read_bytes,
    read_head,
    require_regular,
    require_text,
    sha256_of_file,
)
from vitdeploy.reading.safetensors_file import (
    is_safetensors,
    open_safetensors,
    read_tensors,
    safetensors_layout,
    safetensors_metadata,
)
from vitdeploy.reading.yaml_text import parse_yaml, read_yaml

__all__ = [
    "check_zip",
    "decode_text",
    "first_problem",
    "format_of",
    "is_of_system",
    "is_safetensors",
    "missing",
    "open_regular",
    "open_safetensors",
    "parse_json",
    "parse_yaml",
    "plain_name",
    "read_bytes",
    "read_head",
    "read_json",
    "read_npz",
    "read_tensors",
    "read_yaml",
    "refuse_stand_in",
    "require_regular",
    "require_text",
    "safetensors_layout",
    "safetensors_metadata",
    "sha256_of_file",
    "stands_for_a_file",
    "top_folder",
    "unpack_zip",
]
