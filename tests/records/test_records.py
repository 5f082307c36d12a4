"""Records are immutable, canonical, and tolerant of keys from a newer version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vitdeploy.artifacts.manifests import parse_manifest
from vitdeploy.records import BuildInfo, Manifest, ModelSpec, Preprocess, canonical_json, sha256_of, stage_key

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def manifest() -> Manifest:
    return Manifest(kind="onnx", model=ModelSpec(family="vit", name="tiny"))


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_canonical_json_survives_a_round_trip_and_ignores_key_order(value: dict[str, object]) -> None:
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text
    assert sha256_of(dict(reversed(list(value.items())))) == sha256_of(value)


def test_stage_key_changes_with_stage_options_and_parents() -> None:
    key = stage_key("export", {"opset": 20}, {"checkpoint": "aa"})
    assert key == stage_key("export", {"opset": 20}, {"checkpoint": "aa"})
    others = {
        stage_key("build", {"opset": 20}, {"checkpoint": "aa"}),
        stage_key("export", {"opset": 19}, {"checkpoint": "aa"}),
        stage_key("export", {"opset": 20}, {"checkpoint": "ab"}),
    }
    assert key not in others
    assert len(others) == 3


def test_manifest_with_unknown_keys_is_read_and_still_verified() -> None:
    raw = manifest().sealed("00").model_dump(mode="json")
    raw["from_the_future"] = 1
    raw["manifest_sha256"] = sha256_of({key: value for key, value in raw.items() if key != "manifest_sha256"})
    assert parse_manifest(canonical_json(raw), Path("x")).payload_sha256 == "00"


def test_records_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(manifest(), "kind", "engine")  # noqa: B010 - mypy knows that it is read-only


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (0.5,)}, "one per channel"),
        ({"std": (0.5, 0.0, 0.5)}, "must be positive"),
        ({"resize_size": 0}, "out of range"),
        ({"resize_size": None}, "must be one number with resize 'shortest'"),
    ],
)
def test_preprocess_refuses_values_that_contradict_each_other(change: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"size": (224, 224), "resize_size": 256, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(ValidationError, match=message):
        Preprocess.model_validate({**values, **change})


@pytest.mark.parametrize(
    ("profiles", "limits"),
    [
        ((), (1, 8)),
        (((1, 4, 8),), (1, 8)),
        (((1, 6, 8), (4, 4, 16)), (4, 16)),  # by the largest batch, not the preferred one
        (((8, 8, 16), (2, 4, 16)), (2, 16)),
    ],
)
def test_a_run_over_many_images_takes_the_profile_with_the_largest_batch(
    profiles: tuple[tuple[int, int, int], ...], limits: tuple[int, int]
) -> None:
    build = BuildInfo(backend="tensorrt", version="10.3", batch=(1, 4, 8), profiles=profiles)
    assert build.batch_limits == limits
